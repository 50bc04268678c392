//! A token bucket that all workers take from without a lock.

use super::{
    atomic::{AtomicU64, Ordering::Relaxed},
    endpoint::nanos,
};
use std::time::Duration;
use tokio::time::Instant;

/// How fast a bucket fills, and how much it holds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rate {
    /// Nanoseconds in which one token comes.
    one: u64,
    /// Nanoseconds in which an empty bucket is filled.
    full: u64,
}

impl Rate {
    pub fn new(per_second: f64, burst: f64) -> Self {
        let one = 1e9 / per_second;
        Self { one: one as u64, full: (one * burst) as u64 }
    }
}

/// The bucket, as the time at which it will be full again ("virtual scheduling", ITU-T I.371; also known as GCRA): all of
/// it is in one number.
#[derive(Debug, Default)]
pub struct Bucket(AtomicU64);

impl Bucket {
    /// Takes a token, or tells how long it will be until there is one.
    pub fn take(&self, rate: Rate, now: Instant) -> Result<(), Duration> {
        let now = nanos(now);
        // At the latest when an empty one would be: the rate may have been a lower one before.
        let taken = |full: u64| full.clamp(now, now + rate.full) + rate.one - now;
        self.0
            .fetch_update(Relaxed, Relaxed, |full| {
                let taken = taken(full);
                (taken <= rate.full).then_some(now + taken)
            })
            .map(drop)
            .map_err(|full| Duration::from_nanos(taken(full).saturating_sub(rate.full)))
    }

    /// When it will be full again, for comparing: the later, the emptier it is.
    pub fn full(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_tells_when_the_next_token_comes() {
        let (bucket, rate) = (Bucket::default(), Rate::new(10.0, 3.0));
        let take = || bucket.take(rate, Instant::now());
        assert_eq!([take(), take(), take()], [Ok(()); 3]);
        assert_eq!(take(), Err(Duration::from_millis(100)));
        assert_eq!(take(), Err(Duration::from_millis(100)), "what is refused takes nothing");
        tokio::time::advance(Duration::from_millis(60)).await;
        assert_eq!(take(), Err(Duration::from_millis(40)));
        tokio::time::advance(Duration::from_millis(40)).await;
        assert_eq!((take(), take()), (Ok(()), Err(Duration::from_millis(100))));
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_taken_at_a_lower_rate_is_not_waited_for() {
        let (bucket, slow, fast) = (Bucket::default(), Rate::new(1.0, 3600.0), Rate::new(10.0, 1.0));
        while bucket.take(slow, Instant::now()).is_ok() {}
        assert_eq!(bucket.take(fast, Instant::now()), Err(Duration::from_millis(100)));
        tokio::time::advance(Duration::from_millis(3600 * 1000)).await;
        assert_eq!(bucket.take(fast, Instant::now()), Ok(()));
    }
}
