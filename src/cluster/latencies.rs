//! How long a service's responses take, for percentiles.

use std::{
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    time::Duration,
};

/// Latencies in buckets that grow by a quarter of a power of two, so that a percentile is right to within 19 percent. The
/// older ones count less and less: at every 4,096th all counts are halved.
///
/// Workers may write and halve at one moment; a few counts are lost then, which an estimate can bear and a lock would not.
#[derive(Debug)]
pub struct Latencies {
    buckets: [AtomicU32; BUCKETS],
    count: AtomicU32,
}

const BUCKETS: usize = 100;
/// The first bucket goes up to 2^16 ns, 65 µs; the last from 26 minutes.
const FIRST: u32 = 16;
const HALVED_AT: u32 = 4096;
/// With fewer, a percentile says nothing.
const LEAST: u32 = 100;

impl Default for Latencies {
    fn default() -> Self {
        Self { buckets: [const { AtomicU32::new(0) }; BUCKETS], count: AtomicU32::new(0) }
    }
}

impl Latencies {
    pub fn observe(&self, latency: Duration) {
        self.buckets[bucket(latency)].fetch_add(1, Relaxed);
        if self.count.fetch_add(1, Relaxed) + 1 >= HALVED_AT {
            let halved = self.buckets.iter().map(|count| {
                let half = count.load(Relaxed) / 2;
                count.store(half, Relaxed);
                half
            });
            self.count.store(halved.sum(), Relaxed);
        }
    }

    /// The latency that so many percent do not exceed; `None` until enough were seen.
    pub fn percentile(&self, percent: u32) -> Option<Duration> {
        let counts = self.buckets.each_ref().map(|count| count.load(Relaxed));
        let all: u32 = counts.iter().sum();
        let wanted = u64::from(all) * u64::from(percent);
        let mut below = 0;
        let bucket = counts.iter().position(|count| {
            below += u64::from(*count) * 100;
            below >= wanted
        });
        bucket.filter(|_| all >= LEAST).map(upper_bound)
    }
}

fn bucket(latency: Duration) -> usize {
    let nanos = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX).max(1);
    let power = nanos.ilog2();
    if power < FIRST {
        return 0;
    }
    let quarter = (nanos >> (power - 2)) & 3;
    ((power - FIRST) as usize * 4 + quarter as usize + 1).min(BUCKETS - 1)
}

fn upper_bound(bucket: usize) -> Duration {
    let (power, quarter) = (FIRST + (bucket / 4) as u32, (bucket % 4) as u64);
    Duration::from_nanos((4 + quarter) << (power - 2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_holds_what_is_below_its_bound_and_above_the_one_before() {
        for nanos in [1u64, 65_535, 65_536, 81_919, 81_920, 1_000_000, 33_333_333, 5_000_000_000] {
            let latency = Duration::from_nanos(nanos);
            let bucket = bucket(latency);
            assert!(latency < upper_bound(bucket), "{latency:?} in {bucket}");
            assert!(bucket == 0 || latency >= upper_bound(bucket - 1), "{latency:?} in {bucket}");
        }
        assert_eq!(bucket(Duration::MAX), BUCKETS - 1);
    }

    #[test]
    fn percentiles_are_close_and_follow_what_is_new() {
        let latencies = Latencies::default();
        let observe = |from: u64, to: u64| (from..to).for_each(|ms| latencies.observe(Duration::from_millis(ms)));
        observe(1, 100);
        assert_eq!(latencies.percentile(95), None, "99 are too few");
        observe(100, 101);
        let close = |percent, expected: u64| {
            let found = latencies.percentile(percent).unwrap().as_millis() as f64;
            assert!((1.0..1.26).contains(&(found / expected as f64)), "p{percent}: {found} ms, expected {expected}");
        };
        close(95, 95);
        close(50, 50);
        close(100, 100);
        (0..100).for_each(|_| observe(1001, 1101));
        close(50, 1050);
    }
}
