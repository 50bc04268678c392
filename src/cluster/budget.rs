//! How many retries a service may have: a share of its requests, and a floor for those that are called seldom. Without it
//! a service that fails would get its whole load three times over, and not come up again.

use super::{
    atomic::{AtomicU64, Ordering::Relaxed},
    bucket::{Bucket, Rate},
};
use crate::telemetry::metrics::Gauge;
use std::sync::Arc;
use tokio::time::Instant;

/// What the floor may save up, in seconds of it. (Finagle's and Linkerd's retry budgets look back as far.)
const SAVED_SECONDS: f64 = 10.0;
/// What a retry costs of what requests have earned.
const RETRY: u64 = 100;

/// One service's retries, shared by all workers without a lock.
#[derive(Debug, Default)]
pub struct Budget {
    /// Retries that were granted and have not ended.
    active: Arc<Gauge>,
    /// What requests have earned and retries have not spent, in hundredths of a retry.
    earned: AtomicU64,
    floor: Bucket,
}

/// Leave for one retry. Held while it waits and until it has ended.
#[derive(Debug)]
pub struct Grant(Arc<Budget>);

impl Budget {
    /// With `active` to show how many retries there are.
    pub fn counting_in(active: Arc<Gauge>) -> Self {
        Self { active, earned: AtomicU64::new(0), floor: Bucket::default() }
    }

    /// A request has come, and may be tried again: it earns `percent` of a retry. As much is saved up as all those
    /// `in_flight` earn, so that many that fail at one moment can all be tried again if they may at all.
    pub fn earn(&self, percent: u32, in_flight: i64) {
        // Nearly always as much is saved up already.
        if self.earned.load(Relaxed) < most(percent, in_flight) {
            self.earned.fetch_add(u64::from(percent), Relaxed);
        }
    }

    /// Leave for a retry while `in_flight` requests, those that are being retried included, are in flight: if with it
    /// at most `percent` of the others' number are retries and it has been earned, or else from the floor of `per_second`.
    ///
    /// The number in flight alone would not do: beside long streams or polls, short requests could have all the retries
    /// that those never need.
    pub fn take(self: &Arc<Self>, percent: u32, per_second: u32, in_flight: i64, now: Instant) -> Option<Grant> {
        // Counted before it is compared, so that two workers at one moment cannot both take the last one.
        let active = self.active.inc();
        let grant = Grant(self.clone());
        let others = (in_flight - active).max(0);
        let shared = active * 100 <= i64::from(percent) * others && self.spend(most(percent, in_flight));
        (shared || self.take_from_floor(per_second, now)).then_some(grant)
    }

    fn spend(&self, most: u64) -> bool {
        self.earned.fetch_update(Relaxed, Relaxed, |earned| earned.min(most).checked_sub(RETRY)).is_ok()
    }

    fn take_from_floor(&self, per_second: u32, now: Instant) -> bool {
        let rate = f64::from(per_second);
        per_second > 0 && self.floor.take(Rate::new(rate, rate * SAVED_SECONDS), now).is_ok()
    }
}

/// The most that is saved up of what requests earn.
fn most(percent: u32, in_flight: i64) -> u64 {
    u64::from(percent) * u64::try_from(in_flight).unwrap_or_default()
}

impl Drop for Grant {
    fn drop(&mut self) {
        self.0.active.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{sync::atomic::AtomicUsize, time::Duration};

    #[tokio::test(start_paused = true)]
    async fn at_most_the_share_of_the_others_is_retried_at_once() {
        let budget = Arc::new(Budget::default());
        let take = || budget.take(20, 0, 60, Instant::now());
        earn(&budget, 200, 60);
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
    async fn no_more_is_retried_than_the_share_of_the_requests_that_came() {
        let budget = Arc::new(Budget::default());
        // Of 1,000 in flight nearly all are streams; each retry has ended before the next.
        let retries = || std::iter::from_fn(|| budget.take(20, 0, 1000, Instant::now())).map(drop).count();
        assert_eq!(retries(), 0, "nobody has come");
        earn(&budget, 500, 1000);
        assert_eq!(retries(), 100);
        earn(&budget, 5000, 1000);
        assert_eq!(retries(), 200, "as much as those in flight have earned is saved up");
        earn(&budget, 5000, 1000);
        let now = Instant::now();
        assert_eq!(std::iter::from_fn(|| budget.take(20, 0, 50, now)).map(drop).count(), 10, "those are fewer by now");
    }

    fn earn(budget: &Budget, requests: usize, in_flight: i64) {
        (0..requests).for_each(|_| budget.earn(20, in_flight));
    }

    #[tokio::test(start_paused = true)]
    async fn the_floor_gives_its_rate_and_saves_ten_seconds_of_it() {
        let budget = Arc::new(Budget::default());
        let take = || budget.take(0, 10, 1, Instant::now()).is_some();
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
                        earn(&budget, 50, 120);
                        let held: Vec<_> = (0..10).filter_map(|_| budget.take(20, 0, 120, now)).collect();
                        let together = all.fetch_add(held.len(), Relaxed) + held.len();
                        assert!(together <= 20, "{together}");
                        all.fetch_sub(held.len(), Relaxed);
                        drop(held);
                        from_floor += usize::from(budget.take(0, 10, 0, now).is_some());
                    }
                    from_floor
                })
            })
            .collect();
        assert_eq!(counts.into_iter().map(|thread| thread.join().unwrap()).sum::<usize>(), 100);
        assert_eq!(budget.active.get(), 0);
    }
}
