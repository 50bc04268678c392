//! The counters that workers share, under every order in which threads can come to them: `loom` runs each model again and
//! again until it has tried them all. What is checked is the library's own source of the budget and the bucket, with loom's
//! atomics; the gauge that the budget counts in is a stand-in of the same three operations.

use loom::thread;
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;

#[path = "../src/cluster"]
mod cluster {
    use loom::sync::atomic;

    #[allow(unused, reason = "not all of it is of interest here, and their own tests run in the library")]
    #[path = "bucket.rs"]
    pub mod bucket;
    #[allow(unused, reason = "as well")]
    #[path = "budget.rs"]
    pub mod budget;

    pub mod endpoint {
        /// Time stands still in a model.
        pub fn nanos(_: tokio::time::Instant) -> u64 {
            1
        }
    }
}

mod telemetry {
    pub mod metrics {
        use loom::sync::atomic::{AtomicI64, Ordering::SeqCst};

        /// As the library's, with loom's atomics.
        #[derive(Debug, Default)]
        pub struct Gauge(AtomicI64);

        impl Gauge {
            pub fn inc(&self) -> i64 {
                self.0.fetch_add(1, SeqCst) + 1
            }

            pub fn dec(&self) {
                self.0.fetch_sub(1, SeqCst);
            }

            pub fn get(&self) -> i64 {
                self.0.load(SeqCst)
            }
        }
    }
}

use cluster::{
    bucket::{Bucket, Rate},
    budget::Budget,
};
use telemetry::metrics::Gauge;

fn main() {
    retries_held_at_one_time_are_never_more_than_the_share();
    what_was_earned_is_spent_once();
    the_last_token_is_taken_once();
    println!("every interleaving of the counters is right");
}

/// Runs `one` on several threads at once, in every order, and hands all results to `check`.
fn all_orders<S: Send + Sync + 'static, R: Send + 'static>(
    threads: usize,
    shared: impl Fn() -> S + Send + Sync + 'static,
    one: fn(&Arc<S>) -> R,
    check: impl Fn(&S, Vec<R>) + Send + Sync + 'static,
) {
    loom::model(move || {
        let shared = Arc::new(shared());
        let start = |_| {
            let shared = shared.clone();
            thread::spawn(move || one(&shared))
        };
        let others: Vec<_> = (1..threads).map(start).collect();
        let mut results = vec![one(&shared)];
        results.extend(others.into_iter().map(|other| other.join().unwrap()));
        check(&shared, results);
    });
}

struct Shared {
    budget: Arc<Budget>,
    active: Arc<Gauge>,
    now: Instant,
}

fn budget(earned: u32) -> Shared {
    let active = Arc::new(Gauge::default());
    let budget = Arc::new(Budget::counting_in(active.clone()));
    budget.earn(earned, 100);
    Shared { budget, active, now: Instant::now() }
}

fn retries_held_at_one_time_are_never_more_than_the_share() {
    // Half of the others in flight: with three retries, those are two, which would allow but one.
    let one = |shared: &Arc<Shared>| shared.budget.take(50, 0, 5, shared.now);
    all_orders(
        3,
        || budget(1000),
        one,
        |shared, grants| {
            let granted = grants.iter().flatten().count();
            assert!(granted <= 1, "{granted} of the one that there may be");
            drop(grants);
            assert_eq!(shared.active.get(), 0, "all of them are given back");
        },
    );
}

fn what_was_earned_is_spent_once() {
    let one = |shared: &Arc<Shared>| shared.budget.take(100, 0, 100, shared.now).is_some();
    all_orders(
        3,
        || budget(100),
        one,
        |_, granted| {
            assert_eq!(granted.into_iter().filter(|granted| *granted).count(), 1);
        },
    );
}

fn the_last_token_is_taken_once() {
    struct Last(Bucket, Rate, Instant);
    let full = || {
        let last = Last(Bucket::default(), Rate::new(10.0, 2.0), Instant::now());
        last.0.take(last.1, last.2).unwrap();
        last
    };
    all_orders(
        3,
        full,
        |last| last.0.take(last.1, last.2),
        |_, taken| {
            let waits: Vec<Duration> = taken.into_iter().filter_map(Result::err).collect();
            assert_eq!(waits, [Duration::from_millis(100); 2], "one has it, two are told when the next comes");
        },
    );
}
