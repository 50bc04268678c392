//! What the two sides of a rollout did, and what can be read off a histogram.

use crate::telemetry::metrics::{LATENCY_BOUNDS, LATENCY_BUCKETS, LATENCY_PARTS};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, time::Duration};

/// What one look sees: what came since the look before.
///
/// This is all that decisions are made of, so whoever has such numbers can feed a rollout: this pillion's own metrics of
/// two subsets, or a Prometheus server that has those of the fleet.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Look {
    pub canary: Side,
    pub baseline: Side,
    /// What the config's `queries` gave, in their order; or why they gave nothing.
    pub queries: Vec<Result<f64, String>>,
    /// None of the canary's endpoints can take requests.
    pub canary_is_gone: bool,
}

/// What one side did in a time, or ever since it began.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Side {
    pub requests: u64,
    /// Those of them that failed.
    pub failures: u64,
    /// Responses by how long they took, in pillion's own buckets; not cumulative.
    #[serde(with = "buckets")]
    pub latencies: [u64; LATENCY_BUCKETS],
}

impl Default for Side {
    fn default() -> Self {
        Self { requests: 0, failures: 0, latencies: [0; LATENCY_BUCKETS] }
    }
}

impl Side {
    /// The numbers of the buckets at whose ends `/metrics` says how many there are up to there.
    pub fn shown() -> impl Iterator<Item = usize> {
        (0..LATENCY_BOUNDS.len()).step_by(LATENCY_PARTS).chain([LATENCY_BUCKETS - 1])
    }

    /// What `/metrics` shows, by [`shown`](Self::shown) buckets, without failures. What lies between two of those is spread evenly
    /// over the buckets there. Where it cannot be divided, it is drawn who gets more: a side of few responses, of which one look has
    /// one or two, would otherwise seem to be slower than a side of many.
    pub fn of_shown(cumulative: &BTreeMap<usize, u64>) -> Self {
        let (mut below, mut latencies) = (0, [0; LATENCY_BUCKETS]);
        for end in Self::shown() {
            let Some(count) = cumulative.get(&end) else { continue };
            let here = count.saturating_sub(below);
            below = below.max(*count);
            let parts = if (1..LATENCY_BUCKETS - 1).contains(&end) { LATENCY_PARTS } else { 1 };
            let lot = fastrand::u64(..parts as u64);
            // All of them together are `here`.
            let up_to = |part: usize| (here * part as u64 + lot) / parts as u64;
            for part in 0..parts {
                latencies[end + 1 + part - parts] = up_to(part + 1) - up_to(part);
            }
        }
        Self { requests: below, failures: 0, latencies }
    }

    /// What came between an earlier reading of the same counters and this one. Counters that are lower than they were
    /// belong to a program that has started anew, so all that they show is new.
    pub fn since(&self, earlier: &Self) -> Self {
        let restarted = self.requests < earlier.requests || self.failures < earlier.failures;
        if restarted || self.latencies.iter().zip(&earlier.latencies).any(|(now, then)| now < then) {
            return self.clone();
        }
        Self {
            requests: self.requests - earlier.requests,
            failures: self.failures - earlier.failures,
            latencies: std::array::from_fn(|bucket| self.latencies[bucket] - earlier.latencies[bucket]),
        }
    }

    pub fn add(&mut self, more: &Self) {
        self.requests += more.requests;
        self.failures += more.failures;
        self.latencies.iter_mut().zip(&more.latencies).for_each(|(sum, more)| *sum += more);
    }

    /// The share of requests that failed; 0 without any.
    pub fn error_rate(&self) -> f64 {
        // (Numbers that are read while others write may be off by a few.)
        self.failures.min(self.requests) as f64 / self.requests.max(1) as f64
    }

    pub fn histogram(&self) -> Histogram {
        Histogram(self.latencies.map(|count| count as f64))
    }

    /// How many responses there were, and how many of them took longer than the bound of this number.
    pub fn slower_than(&self, bound: usize) -> (u64, u64) {
        (self.latencies.iter().sum(), self.latencies[bound + 1..].iter().sum())
    }
}

/// Latencies in buckets, with weights.
///
/// Inside of a bucket they are taken to lie on a power law, a straight line where both axes are logarithmic, which is what
/// tails of latencies look like. So a percentile that falls inside a bucket is an estimate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Histogram(#[serde(with = "buckets")] pub [f64; LATENCY_BUCKETS]);

impl Histogram {
    pub fn total(&self) -> f64 {
        self.0.iter().sum()
    }

    /// The share that took longer than the bound of this number.
    pub fn above(&self, bound: usize) -> f64 {
        self.0[bound + 1..].iter().sum::<f64>() / self.total().max(f64::MIN_POSITIVE)
    }

    /// The share that took longer.
    pub fn slower_than(&self, latency: Duration) -> f64 {
        let bucket = Self::bucket_of(latency);
        let Some((from, to)) = bounds(bucket) else { return self.above(LATENCY_BOUNDS.len() - 1) };
        let (most, least) = (self.above_bucket_start(bucket), self.above(bucket));
        let part = if from > 0.0 && least > 0.0 {
            let part = (seconds(latency) / from).ln() / (to / from).ln();
            return most * (least / most).powf(part.clamp(0.0, 1.0));
        } else {
            (seconds(latency) - from) / (to - from)
        };
        most + (least - most) * part.clamp(0.0, 1.0)
    }

    /// The latency that this share stays under. What is longer than the last bound counts as that bound; without any
    /// response, zero.
    pub fn quantile(&self, share: f64) -> Duration {
        let bucket = self.bucket_of_quantile(share);
        let rest = 1.0 - share;
        let Some((from, to)) = bounds(bucket) else { return Duration::from_micros(LATENCY_BOUNDS[bucket - 1]) };
        let (most, least) = (self.above_bucket_start(bucket), self.above(bucket));
        if self.total() <= 0.0 || most <= least {
            return Duration::ZERO;
        }
        let latency = if from > 0.0 && least > 0.0 {
            from * (to / from).powf((rest / most).ln() / (least / most).ln())
        } else {
            from + (to - from) * (most - rest) / (most - least)
        };
        Duration::from_secs_f64(latency.clamp(from, to))
    }

    fn bucket_of_quantile(&self, share: f64) -> usize {
        (0..LATENCY_BOUNDS.len()).find(|bound| self.above(*bound) <= 1.0 - share).unwrap_or(LATENCY_BOUNDS.len())
    }

    pub fn bucket_of(latency: Duration) -> usize {
        LATENCY_BOUNDS.partition_point(|bound| u128::from(*bound) < latency.as_micros())
    }

    fn above_bucket_start(&self, bucket: usize) -> f64 {
        bucket.checked_sub(1).map_or(1.0, |bound| self.above(bound))
    }
}

/// Where a bucket starts and ends, in seconds; `None` for the last one, which has no end.
fn bounds(bucket: usize) -> Option<(f64, f64)> {
    let end = *LATENCY_BOUNDS.get(bucket)?;
    let start = bucket.checked_sub(1).map_or(0, |before| LATENCY_BOUNDS[before]);
    Some((start as f64 / 1e6, end as f64 / 1e6))
}

/// A number for each bucket, as a list.
mod buckets {
    use super::LATENCY_BUCKETS;
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    pub fn serialize<T: Serialize, S: Serializer>(each: &[T; LATENCY_BUCKETS], to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(each)
    }

    pub fn deserialize<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
        from: D,
    ) -> Result<[T; LATENCY_BUCKETS], D::Error> {
        let each = Vec::deserialize(from)?;
        each.try_into().map_err(|wrong: Vec<T>| D::Error::invalid_length(wrong.len(), &"one number for each bucket"))
    }
}

fn seconds(latency: Duration) -> f64 {
    latency.as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The number of the bucket that ends at so many milliseconds.
    fn to(milliseconds: u64) -> usize {
        LATENCY_BOUNDS.iter().position(|bound| *bound == milliseconds * 1000).unwrap()
    }

    fn side(counts: &[(usize, u64)]) -> Side {
        let mut side = Side::default();
        for (bucket, count) in counts {
            side.latencies[*bucket] = *count;
            side.requests += count;
        }
        side
    }

    #[test]
    fn a_difference_of_two_readings_is_what_came_between() {
        let earlier = Side { failures: 1, ..side(&[(3, 10)]) };
        let later = Side { failures: 3, ..side(&[(3, 12), (5, 7)]) };
        assert_eq!(later.since(&earlier), Side { failures: 2, ..side(&[(3, 2), (5, 7)]) });
        let anew = Side { failures: 1, ..side(&[(2, 4)]) };
        assert_eq!(anew.since(&later), anew, "after a restart all is new");
    }

    #[test]
    fn coarse_buckets_are_spread_over_those_that_are_counted() {
        let side = Side::of_shown(&[(0, 7), (4, 17), (8, 17), (12, 21), (LATENCY_BUCKETS - 1, 24)].into());
        assert_eq!((side.requests, side.latencies.iter().sum::<u64>()), (24, 24));
        let between = &side.latencies[1..=4];
        assert!(
            between.iter().sum::<u64>() == 10 && between.iter().all(|count| (2..=3).contains(count)),
            "{between:?}"
        );
        assert_eq!((side.latencies[0], side.latencies[LATENCY_BUCKETS - 1]), (7, 3));
        assert_eq!(side.latencies[5..=12], [0, 0, 0, 0, 1, 1, 1, 1]);
    }

    /// Few at a time, they would all count as the slowest of their bucket otherwise.
    #[test]
    fn single_responses_are_spread_as_many_are() {
        let mut sum = Side::default();
        for _ in 0..4000 {
            sum.add(&Side::of_shown(&[(0, 0), (4, 1)].into()));
        }
        assert_eq!(sum.requests, 4000);
        // Seven standard deviations.
        assert!(sum.latencies[1..=4].iter().all(|count| (800..=1200).contains(count)), "{:?}", sum.latencies);
    }

    #[test]
    fn a_percentile_inside_a_bucket_lies_on_a_power_law() {
        // Above 50 ms: 4 %; above 60 ms: 0.25 %. On the line between them 1 % is where half of the way is (in logarithms).
        let histogram = side(&[(to(50), 9600), (to(60), 375), (to(70), 25)]).histogram();
        let p99 = histogram.quantile(0.99).as_secs_f64();
        assert!((p99 - 0.05 * 1.2f64.sqrt()).abs() < 1e-6, "{p99}");
        assert!((histogram.slower_than(Duration::from_secs_f64(p99)) - 0.01).abs() < 1e-6);
        assert!((histogram.slower_than(Duration::from_millis(50)) - 0.04).abs() < 1e-9);
        assert!((histogram.slower_than(Duration::from_millis(60)) - 0.0025).abs() < 1e-9);
    }

    #[test]
    fn the_ends_of_the_scale_have_percentiles_too() {
        let p99 = |counts| side(counts).histogram().quantile(0.99);
        assert_eq!(p99(&[]), Duration::ZERO);
        assert_eq!(p99(&[(0, 100)]), Duration::from_micros(495), "a straight line where a logarithm has no start");
        assert_eq!(p99(&[(LATENCY_BUCKETS - 1, 100)]), Duration::from_secs(10), "at least");
        assert_eq!(side(&[(LATENCY_BUCKETS - 1, 1)]).histogram().slower_than(Duration::from_secs(60)), 1.0);
    }
}
