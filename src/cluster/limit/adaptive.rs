//! Finds out how many requests a service can work on at one time, from how long its responses take.

use crate::{cluster::endpoint::nanos, config};
use std::{
    sync::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering::Relaxed},
    time::Duration,
};
use tokio::time::Instant;

/// The limit to begin with. Low, so that the usual latency is learnt before there is a queue. (Netflix's.)
const START: f64 = 20.0;
/// Fewer answers say nothing about a window. (Netflix's.)
const MIN_SAMPLES: u32 = 10;

/// The state of a limit that follows the gradient of latency.
///
/// The idea and the numbers are those of Gradient2 in Netflix's concurrency-limits: the latency of one window is compared
/// with the usual one, an average over some ten minutes. While both are about the same, the limit grows by `headroom`;
/// when the window's is higher, requests queue up in the service, and the limit shrinks in the same proportion:
///
/// ```text
/// gradient = tolerance × usual / latency, from 0.5 to 1.0
/// limit    = 0.8 × limit + 0.2 × (gradient × limit + headroom)
/// ```
///
/// The headroom is √limit as in Envoy's adaptive concurrency filter, and at least Netflix's 4. A service that always was
/// slow is as slow as usual, so its limit does not shrink.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Gradient {
    limit: f64,
    /// In nanoseconds.
    usual: f64,
    /// How many windows it was learnt from, while that matters.
    windows: u32,
}

/// What was seen in one window.
#[derive(Debug, Clone, Copy)]
struct Window {
    /// The mean, in nanoseconds.
    latency: f64,
    /// The most requests in flight.
    in_flight: f64,
    length: Duration,
}

impl Gradient {
    /// How much the newest limit counts.
    const SMOOTHING: f64 = 0.2;
    /// What the usual latency is averaged over: Netflix's 600 windows of a second.
    const USUAL: Duration = Duration::from_secs(600);
    /// So long a window counts at most. Times with few requests say no more than others.
    const LONGEST: Duration = Duration::from_secs(1);
    /// So many windows make the first average.
    const WARM_UP: u32 = 10;

    fn next(self, window: Window, config: &config::AdaptiveLimit) -> Self {
        let windows = (self.windows + 1).min(Self::WARM_UP + 1);
        let weight = if windows <= Self::WARM_UP {
            1.0 / f64::from(windows)
        } else {
            window.length.min(Self::LONGEST).as_secs_f64() / Self::USUAL.as_secs_f64()
        };
        let mut usual = self.usual + (window.latency - self.usual) * weight;
        // After a long time of overload the average is far too high; it must not take as long to come down.
        if usual > 2.0 * window.latency {
            usual *= 0.9;
        }
        // Where the limit is far away, nothing is learnt about it.
        let limit = if window.in_flight < self.limit / 2.0 {
            self.limit
        } else {
            let gradient = (config.tolerance * usual / window.latency).clamp(0.5, 1.0);
            let headroom = self.limit.sqrt().max(4.0);
            self.limit + Self::SMOOTHING * (gradient * self.limit + headroom - self.limit)
        };
        Self { limit: within(limit, config), usual, windows }
    }
}

fn within(limit: f64, config: &config::AdaptiveLimit) -> f64 {
    limit.clamp(f64::from(config.min), f64::from(config.max))
}

/// A [`Gradient`] that all workers tell what they see. Whoever ends a window works the limit out.
#[derive(Debug)]
pub struct Adaptive {
    pub config: config::AdaptiveLimit,
    /// The [`Gradient`], each part by itself: whoever ended the window is the only one that writes until the next has ended.
    limit: AtomicU64,
    usual: AtomicU64,
    windows: AtomicU32,
    /// The window so far. A sample that comes while it ends may count in part for the one and in part for the other.
    began: AtomicU64,
    latencies: AtomicU64,
    samples: AtomicU32,
    busiest: AtomicI64,
}

impl Adaptive {
    pub fn new(config: config::AdaptiveLimit) -> Self {
        Self {
            limit: AtomicU64::new(within(START, &config).to_bits()),
            usual: AtomicU64::new(0),
            windows: AtomicU32::new(0),
            began: AtomicU64::new(nanos(Instant::now())),
            latencies: AtomicU64::new(0),
            samples: AtomicU32::new(0),
            busiest: AtomicI64::new(0),
            config,
        }
    }

    pub fn limit(&self) -> u32 {
        f64::from_bits(self.limit.load(Relaxed)) as u32
    }

    /// Counts one response. Whether there is another limit now.
    pub fn observe(&self, latency: Duration, in_flight: i64, now: Instant) -> bool {
        self.latencies.fetch_add(u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX), Relaxed);
        let samples = self.samples.fetch_add(1, Relaxed) + 1;
        self.busiest.fetch_max(in_flight, Relaxed);
        let (began, now) = (self.began.load(Relaxed), nanos(now));
        let length = Duration::from_nanos(now.saturating_sub(began));
        if length < self.config.window || samples < MIN_SAMPLES {
            return false;
        }
        if self.began.compare_exchange(began, now, Relaxed, Relaxed).is_err() {
            return false;
        }
        let samples = self.samples.swap(0, Relaxed).max(1);
        let latencies = self.latencies.swap(0, Relaxed);
        let window = Window {
            latency: (latencies as f64 / f64::from(samples)).max(1.0),
            in_flight: self.busiest.swap(0, Relaxed) as f64,
            length,
        };
        let before = Gradient {
            limit: f64::from_bits(self.limit.load(Relaxed)),
            usual: f64::from_bits(self.usual.load(Relaxed)),
            windows: self.windows.load(Relaxed),
        };
        let next = before.next(window, &self.config);
        self.limit.store(next.limit.to_bits(), Relaxed);
        self.usual.store(next.usual.to_bits(), Relaxed);
        self.windows.store(next.windows, Relaxed);
        next.limit != before.limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A service that works on `servers` requests at one time, each taking `base`; others queue up in it.
    struct Service {
        servers: f64,
        base: Duration,
    }

    impl Service {
        fn latency(&self, in_flight: f64) -> Duration {
            self.base.mul_f64((in_flight / self.servers).max(1.0))
        }

        /// Lets `wanted` requests be made at any time, for as long as it takes; gives the limit at the end.
        async fn run(&self, adaptive: &Adaptive, wanted: u32, time: Duration) -> u32 {
            let end = Instant::now() + time;
            while Instant::now() < end {
                let in_flight = wanted.min(adaptive.limit());
                let latency = self.latency(f64::from(in_flight));
                for _ in 0..in_flight {
                    adaptive.observe(latency, in_flight.into(), Instant::now());
                }
                tokio::time::advance(latency).await;
            }
            adaptive.limit()
        }
    }

    const SERVICE: Service = Service { servers: 50.0, base: Duration::from_millis(20) };
    const MINUTE: Duration = Duration::from_secs(60);

    fn adaptive() -> Adaptive {
        Adaptive::new(config::AdaptiveLimit::default())
    }

    #[tokio::test(start_paused = true)]
    async fn it_settles_where_more_requests_only_wait() {
        let adaptive = adaptive();
        assert_eq!(adaptive.limit(), 20);
        let found = SERVICE.run(&adaptive, 1000, MINUTE).await;
        assert!((50..120).contains(&found), "{found} for a service of 50");
        // Long overload makes slow answers look usual only slowly.
        let later = SERVICE.run(&adaptive, 1000, 5 * MINUTE).await;
        assert!((50..200).contains(&later), "{later} for a service of 50");
    }

    #[tokio::test(start_paused = true)]
    async fn it_falls_when_the_service_can_do_less_and_comes_back_with_it() {
        let adaptive = adaptive();
        let before = SERVICE.run(&adaptive, 1000, MINUTE).await;
        let weak = Service { servers: 10.0, ..SERVICE };
        let fallen = weak.run(&adaptive, 1000, MINUTE / 2).await;
        assert!(fallen < before / 2 && fallen >= 10, "from {before} to {fallen}");
        let again = SERVICE.run(&adaptive, 1000, MINUTE).await;
        assert!(again >= 50, "from {fallen} to {again}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_service_that_is_simply_slow_is_not_held_back() {
        let adaptive = adaptive();
        let slow = Service { servers: 1e9, base: Duration::from_secs(2) };
        assert_eq!(slow.run(&adaptive, 5000, 10 * MINUTE).await, 1024);
    }

    #[tokio::test(start_paused = true)]
    async fn without_load_nothing_is_learnt_about_the_limit() {
        let adaptive = adaptive();
        assert_eq!(SERVICE.run(&adaptive, 9, MINUTE).await, 20);
        let one = Gradient { limit: 100.0, usual: 1e6, windows: Gradient::WARM_UP };
        let window = |in_flight| Window { latency: 50e6, in_flight, length: Duration::from_millis(100) };
        assert_eq!(one.next(window(49.0), &adaptive.config).limit, 100.0);
        assert_eq!(one.next(window(50.0), &adaptive.config).limit, 92.0, "half of 100 and 10 more, a fifth of the way");
    }

    #[tokio::test(start_paused = true)]
    async fn after_overload_the_usual_latency_comes_down_in_seconds() {
        let config = config::AdaptiveLimit::default();
        let mut gradient = Gradient { limit: 100.0, usual: 500e6, windows: Gradient::WARM_UP + 1 };
        let window = Window { latency: 10e6, in_flight: 5.0, length: Duration::from_millis(100) };
        for _ in 0..50 {
            gradient = gradient.next(window, &config);
        }
        assert!(gradient.usual <= 20e6, "{gradient:?}");
    }
}
