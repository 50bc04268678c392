//! Keeping the requests of all followers together below a rate.

use std::{
    num::NonZeroU32,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};
use tokio::time::{Instant, sleep_until};

/// A token bucket, kept as the time at which it will next be full: one atomic, no lock.
#[derive(Debug)]
pub struct RateLimit {
    start: Instant,
    /// Nanoseconds between two requests when the bucket is empty.
    interval: u64,
    /// How far ahead of that pace requests may come, in nanoseconds.
    tolerance: u64,
    /// When the next request is due at that pace, in nanoseconds since `start`.
    due: AtomicU64,
}

impl RateLimit {
    /// At most `rate` per second, after a burst of a fifth of that (and of at least two, for the first query and the
    /// blocking one after it).
    pub fn new(rate: NonZeroU32) -> Self {
        let interval = 1_000_000_000 / u64::from(rate.get());
        let burst = u64::from(rate.get() / 5).max(2);
        Self { start: Instant::now(), interval, tolerance: interval * (burst - 1), due: AtomicU64::new(0) }
    }

    /// Waits until it is this request's turn. A wait that is dropped uses up its turn all the same.
    pub async fn turn(&self) {
        let now = u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let next = |due: u64| Some(due.max(now) + self.interval);
        let due = self.due.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).unwrap_or_default();
        let turn = due.saturating_sub(self.tolerance);
        if turn > now {
            sleep_until(self.start + Duration::from_nanos(turn)).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[tokio::test(start_paused = true)]
    async fn a_burst_then_the_rate() {
        let limit = Arc::new(RateLimit::new(NonZeroU32::new(50).unwrap()));
        let start = Instant::now();
        let times: Vec<_> = (0..60)
            .map(|_| {
                let limit = limit.clone();
                tokio::spawn(async move {
                    limit.turn().await;
                    start.elapsed().as_millis()
                })
            })
            .collect();
        let mut seen = Vec::new();
        for time in times {
            seen.push(time.await.unwrap());
        }
        seen.sort_unstable();
        assert_eq!(seen[9], 0, "ten at once");
        assert!((19..=21).contains(&seen[10]), "{seen:?}");
        assert!((999..=1001).contains(&seen[59]), "{seen:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn quiet_time_is_not_saved_up_for_ever() {
        let limit = RateLimit::new(NonZeroU32::new(1).unwrap());
        tokio::time::sleep(Duration::from_secs(3600)).await;
        let start = Instant::now();
        for _ in 0..3 {
            limit.turn().await;
        }
        assert_eq!(start.elapsed().as_secs(), 1, "a burst of two, then one per second");
    }
}
