//! The numbers themselves. Everything here is one or two atomic adds: no lock, no allocation, no label look-up.

use std::{
    sync::{
        OnceLock,
        atomic::{
            AtomicI64, AtomicU64,
            Ordering::{Relaxed, SeqCst},
        },
    },
    time::Duration,
};

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub fn inc(&self) {
        self.add(1);
    }

    pub fn add(&self, more: u64) {
        self.0.fetch_add(more, Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// A number that goes up and down.
///
/// Limits decide by some of these, so all that happens to them has one order that every thread agrees on. (On x86 that
/// costs nothing.)
#[derive(Debug, Default)]
pub struct Gauge(AtomicI64);

impl Gauge {
    /// Counts one more; gives the number with it.
    pub fn inc(&self) -> i64 {
        self.0.fetch_add(1, SeqCst) + 1
    }

    pub fn dec(&self) {
        self.0.fetch_sub(1, SeqCst);
    }

    /// Counts one more unless that would be more than `limit`.
    pub fn inc_up_to(&self, limit: i64) -> bool {
        self.0.fetch_update(SeqCst, SeqCst, |value| (value < limit).then_some(value + 1)).is_ok()
    }

    pub fn set(&self, value: i64) {
        self.0.store(value, Relaxed);
    }

    pub fn get(&self) -> i64 {
        self.0.load(SeqCst)
    }
}

/// One number per word of a fixed list. The caller's enum gives the index, so that nothing is looked up.
#[derive(Debug)]
pub struct Tally {
    words: &'static [&'static str],
    counts: Box<[AtomicU64]>,
}

impl Tally {
    pub(super) fn new(words: &'static [&'static str]) -> Self {
        Self { words, counts: words.iter().map(|_| AtomicU64::new(0)).collect() }
    }

    /// Counts one more of the word at `index`. An index that is not on the list counts nothing.
    pub fn inc(&self, index: usize) {
        debug_assert!(index < self.counts.len(), "no word has the index {index}");
        if let Some(count) = self.counts.get(index) {
            count.fetch_add(1, Relaxed);
        }
    }

    /// For states instead of events.
    pub fn set(&self, index: usize, value: u64) {
        debug_assert!(index < self.counts.len(), "no word has the index {index}");
        if let Some(count) = self.counts.get(index) {
            count.store(value, Relaxed);
        }
    }

    pub fn get(&self, index: usize) -> u64 {
        self.counts.get(index).map_or(0, |count| count.load(Relaxed))
    }

    /// Of all words.
    pub fn total(&self) -> u64 {
        self.each().map(|(_, count)| count).sum()
    }

    pub(super) fn each(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.words.iter().zip(&self.counts).map(|(word, count)| (*word, count.load(Relaxed)))
    }
}

/// Requests by status code.
#[derive(Debug, Default)]
pub struct Codes {
    /// One page per hundred, made when its first code is seen: a service that only ever answers 2xx takes 0.8 KiB and
    /// not 4.
    pages: [OnceLock<Box<[AtomicU64; 100]>>; 5],
    /// What is no status code between 100 and 599.
    other: AtomicU64,
}

impl Codes {
    pub fn inc(&self, code: u16) {
        let page = (code / 100).checked_sub(1).and_then(|page| self.pages.get(usize::from(page)));
        let count = match page {
            Some(page) => &page.get_or_init(|| Box::new([const { AtomicU64::new(0) }; 100]))[usize::from(code % 100)],
            None => &self.other,
        };
        count.fetch_add(1, Relaxed);
    }

    /// All of them together.
    pub(super) fn total(&self) -> u64 {
        let counts = self.pages.iter().filter_map(OnceLock::get).flat_map(|page| page.iter());
        counts.chain([&self.other]).map(|count| count.load(Relaxed)).sum()
    }

    /// The codes seen so far.
    pub(super) fn each(&self) -> impl Iterator<Item = (String, u64)> {
        let known = self.pages.iter().enumerate().filter_map(|(page, counts)| Some((page, counts.get()?))).flat_map(
            |(page, counts)| {
                counts.iter().enumerate().map(move |(rest, count)| (((page + 1) * 100 + rest).to_string(), count))
            },
        );
        known
            .chain([("other".to_owned(), &self.other)])
            .map(|(code, count)| (code, count.load(Relaxed)))
            .filter(|(_, count)| *count > 0)
    }
}

/// Upper bounds of the buckets of latencies that a scrape shows, in microseconds.
const SHOWN: [u64; 14] = [
    500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000, 5_000_000,
    10_000_000,
];
/// Each of them but the first is counted in so many parts: twice as slow must be seen as slower, and a series for each
/// would be far too many.
pub const LATENCY_PARTS: usize = 4;
/// Upper bounds of the buckets that are counted, in microseconds. No two are further apart than by a factor of 1.28.
pub const LATENCY_BOUNDS: [u64; (SHOWN.len() - 1) * LATENCY_PARTS + 1] = {
    let mut bounds = [SHOWN[0]; (SHOWN.len() - 1) * LATENCY_PARTS + 1];
    let mut shown = 1;
    while shown < SHOWN.len() {
        let (start, end) = (SHOWN[shown - 1], SHOWN[shown]);
        let thousandths = if end == 2 * start { [1200, 1400, 1700, 2000] } else { [1250, 1600, 2000, 2500] };
        let mut part = 0;
        while part < LATENCY_PARTS {
            bounds[(shown - 1) * LATENCY_PARTS + part + 1] = start * thousandths[part] / 1000;
            part += 1;
        }
        shown += 1;
    }
    bounds
};
/// How many buckets there are; the last is for what is longer than every bound.
pub const LATENCY_BUCKETS: usize = LATENCY_BOUNDS.len() + 1;

/// A histogram of durations. Own and not the `prometheus` crate's, which takes four atomic operations, one of them a
/// compare-and-swap loop on a float, where two adds do.
#[derive(Debug)]
pub struct Latency {
    /// Not cumulative.
    buckets: [AtomicU64; LATENCY_BUCKETS],
    nanoseconds: AtomicU64,
}

impl Default for Latency {
    fn default() -> Self {
        Self { buckets: [const { AtomicU64::new(0) }; LATENCY_BUCKETS], nanoseconds: AtomicU64::new(0) }
    }
}

impl Latency {
    pub fn observe(&self, duration: Duration) {
        let nanoseconds = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let bucket = LATENCY_BOUNDS.partition_point(|bound| bound * 1000 < nanoseconds);
        self.buckets[bucket].fetch_add(1, Relaxed);
        self.nanoseconds.fetch_add(nanoseconds, Relaxed);
    }

    /// How many there were in each bucket; the last is for what is longer than every bound.
    pub fn buckets(&self) -> [u64; LATENCY_BUCKETS] {
        std::array::from_fn(|bucket| self.buckets[bucket].load(Relaxed))
    }

    /// How many there were.
    pub(super) fn count(&self) -> u64 {
        self.buckets.iter().map(|bucket| bucket.load(Relaxed)).sum()
    }

    pub(super) fn read(&self) -> prometheus::proto::Histogram {
        let bounds = SHOWN.map(|bound| bound as f64 / 1e6);
        let counts = self.buckets();
        let shown: [u64; SHOWN.len() + 1] = std::array::from_fn(|shown| match shown {
            0 => counts[0],
            shown if shown == SHOWN.len() => counts[LATENCY_BUCKETS - 1],
            _ => counts[(shown - 1) * LATENCY_PARTS + 1..=shown * LATENCY_PARTS].iter().sum(),
        });
        histogram(&bounds, &shown, self.nanoseconds.load(Relaxed) as f64 / 1e9)
    }
}

/// Upper bounds of the buckets of a [`Ratio`].
const RATIOS: [f64; 13] = [0.1, 0.25, 0.5, 0.75, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0];

/// A histogram of one duration relative to another.
#[derive(Debug, Default)]
pub struct Ratio {
    /// Not cumulative; the last is for what is more than every bound.
    buckets: [AtomicU64; RATIOS.len() + 1],
    thousandths: AtomicU64,
}

impl Ratio {
    pub fn observe(&self, ratio: f64) {
        self.buckets[RATIOS.partition_point(|bound| *bound < ratio)].fetch_add(1, Relaxed);
        self.thousandths.fetch_add((ratio * 1e3).round() as u64, Relaxed);
    }

    pub(super) fn read(&self) -> prometheus::proto::Histogram {
        let buckets = self.buckets.each_ref().map(|bucket| bucket.load(Relaxed));
        histogram(&RATIOS, &buckets, self.thousandths.load(Relaxed) as f64 / 1e3)
    }
}

/// `buckets`: one for each of the `bounds`, and one more.
fn histogram(bounds: &[f64], buckets: &[u64], sum: f64) -> prometheus::proto::Histogram {
    let mut count = 0;
    let cumulative = bounds.iter().zip(buckets).map(|(bound, here)| {
        count += here;
        let mut bucket = prometheus::proto::Bucket::default();
        bucket.set_upper_bound(*bound);
        bucket.set_cumulative_count(count);
        bucket
    });
    let cumulative: Vec<_> = cumulative.collect();
    let mut histogram = prometheus::proto::Histogram::default();
    histogram.set_bucket(cumulative);
    // Taken from the buckets, so that the count never contradicts them while requests go on.
    histogram.set_sample_count(count + buckets.last().unwrap_or(&0));
    histogram.set_sample_sum(sum);
    histogram
}
