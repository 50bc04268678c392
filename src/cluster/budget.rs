//! How many retries a service may have: a share of its requests, and a floor for those that are called seldom. Without it
//! a service that fails would get its whole load three times over, and not come up again.

use super::bucket::{Bucket, Rate};
use crate::telemetry::metrics::Gauge;
use std::sync::Arc;
use tokio::time::Instant;

/// What the floor may save up, in seconds of it. (Finagle's and Linkerd's retry budgets look back as far.)
const SAVED_SECONDS: f64 = 10.0;

/// One service's retries, shared by all workers without a lock.
#[derive(Debug, Default)]
pub struct Budget {
    /// Retries that were granted and have not ended.
    active: Arc<Gauge>,
    floor: Bucket,
}

/// Leave for one retry. Held while it waits and until it has ended.
#[derive(Debug)]
pub struct Grant(Arc<Budget>);

impl Budget {
    /// With `active` to show how many retries there are.
    pub fn counting_in(active: Arc<Gauge>) -> Self {
        Self { active, floor: Bucket::default() }
    }

    /// Leave for a retry while `in_flight` requests, those that are being retried included, are in flight: if with it
    /// at most `share` of the others' number are retries, or else from the floor of `per_second`.
    pub fn take(self: &Arc<Self>, share: f64, per_second: f64, in_flight: i64, now: Instant) -> Option<Grant> {
        // Counted before it is compared, so that two workers at one moment cannot both take the last one.
        let active = self.active.inc();
        let grant = Grant(self.clone());
        let others = (in_flight - active).max(0);
        let granted = active as f64 <= share * others as f64 || self.take_from_floor(per_second, now);
        granted.then_some(grant)
    }

    fn take_from_floor(&self, per_second: f64, now: Instant) -> bool {
        per_second > 0.0 && self.floor.take(Rate::new(per_second, per_second * SAVED_SECONDS), now).is_ok()
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        self.0.active.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        sync::atomic::{AtomicUsize, Ordering::Relaxed},
        time::Duration,
    };

    #[tokio::test(start_paused = true)]
    async fn at_most_the_share_of_the_others_is_retried_at_once() {
        let budget = Arc::new(Budget::default());
        let take = || budget.take(0.2, 0.0, 60, Instant::now());
        let mut held: Vec<_> = std::iter::from_fn(take).collect();
        assert_eq!((held.len(), budget.active.get()), (10, 10), "10 are a fifth of the 50 others");
        assert!(take().is_none(), "a refusal");
        assert_eq!(budget.active.get(), 10, "leaves nothing behind");
        held.pop();
        assert!(take().is_some());
        drop(held);
        assert_eq!(budget.active.get(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn the_floor_gives_its_rate_and_saves_ten_seconds_of_it() {
        let budget = Arc::new(Budget::default());
        let take = || budget.take(0.0, 10.0, 1, Instant::now()).is_some();
        assert_eq!(std::iter::repeat_with(take).take_while(|taken| *taken).count(), 100);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(std::iter::repeat_with(take).take_while(|taken| *taken).count(), 10);
        tokio::time::advance(Duration::from_secs(3600)).await;
        assert_eq!(std::iter::repeat_with(take).take_while(|taken| *taken).count(), 100, "no more is saved");
    }

    #[test]
    fn many_threads_never_overdraw_it() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let _entered = runtime.enter();
        let (budget, now) = (Arc::new(Budget::default()), Instant::now());
        let all = Arc::new(AtomicUsize::new(0));
        let counts: Vec<_> = (0..4)
            .map(|_| {
                let (budget, all) = (budget.clone(), all.clone());
                std::thread::spawn(move || {
                    let mut from_floor = 0;
                    for _ in 0..10_000 {
                        // Without the floor, 20 at most may be held by all together.
                        let held: Vec<_> = (0..10).filter_map(|_| budget.take(0.2, 0.0, 120, now)).collect();
                        let together = all.fetch_add(held.len(), Relaxed) + held.len();
                        assert!(together <= 20, "{together}");
                        all.fetch_sub(held.len(), Relaxed);
                        drop(held);
                        from_floor += usize::from(budget.take(0.0, 10.0, 0, now).is_some());
                    }
                    from_floor
                })
            })
            .collect();
        assert_eq!(counts.into_iter().map(|thread| thread.join().unwrap()).sum::<usize>(), 100);
        assert_eq!(budget.active.get(), 0);
    }
}
