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

/// Upper bounds of the buckets, in microseconds.
const BOUNDS: [u64; 14] = [
    500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000, 5_000_000,
    10_000_000,
];

/// A histogram of durations. Own and not the `prometheus` crate's, which takes four atomic operations, one of them a
/// compare-and-swap loop on a float, where two adds do.
#[derive(Debug, Default)]
pub struct Latency {
    /// Not cumulative; the last is for what is longer than every bound.
    buckets: [AtomicU64; BOUNDS.len() + 1],
    nanoseconds: AtomicU64,
}

impl Latency {
    pub fn observe(&self, duration: Duration) {
        let nanoseconds = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let bucket = BOUNDS.partition_point(|bound| bound * 1000 < nanoseconds);
        self.buckets[bucket].fetch_add(1, Relaxed);
        self.nanoseconds.fetch_add(nanoseconds, Relaxed);
    }

    pub(super) fn read(&self) -> prometheus::proto::Histogram {
        let mut count = 0;
        let buckets = BOUNDS.iter().zip(&self.buckets).map(|(bound, here)| {
            count += here.load(Relaxed);
            let mut bucket = prometheus::proto::Bucket::default();
            bucket.set_upper_bound(*bound as f64 / 1e6);
            bucket.set_cumulative_count(count);
            bucket
        });
        let buckets: Vec<_> = buckets.collect();
        let mut histogram = prometheus::proto::Histogram::default();
        histogram.set_bucket(buckets);
        // Taken from the buckets, so that the count never contradicts them while requests go on.
        histogram.set_sample_count(count + self.buckets[BOUNDS.len()].load(Relaxed));
        histogram.set_sample_sum(self.nanoseconds.load(Relaxed) as f64 / 1e9);
        histogram
    }
}
