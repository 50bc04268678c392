//! Endpoints that get less than their share for a while: those that are new, and those that asked for a pause.

use crate::{
    cluster::{
        Live,
        endpoint::{Endpoint, nanos},
    },
    config::Balance,
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::time::Instant;

/// What is left of its share to an endpoint under a penalty. Not nothing: that would be for the breaker to say, and how it
/// is now can only be seen from what it answers.
const PENALISED: f64 = 0.1;

/// What is known of it for one set of endpoints. Whoever draws asks first whether there is anything to know, which is one
/// load; then takes what it drew with the probability that is the endpoint's [`factor`](Self::factor), or draws again. So
/// no table has to be rebuilt while shares grow.
#[derive(Debug)]
pub struct Discount {
    slow_start: Option<SlowStart>,
    /// Whether so few are new that they can be spared.
    is_starting: AtomicBool,
    /// The nanosecond from which on all have their full share, if not sooner; 0 for long since.
    until: AtomicU64,
}

#[derive(Debug, Clone, Copy)]
struct SlowStart {
    window: f64,
    exponent: f64,
    least: f64,
}

impl Discount {
    pub fn new(balance: &Balance) -> Self {
        let slow_start = balance.slow_start.window.map(|window| SlowStart {
            window: window.as_nanos() as f64,
            exponent: 1.0 / balance.slow_start.aggression.0,
            least: f64::from(balance.slow_start.min_weight_percent) / 100.0,
        });
        Self { slow_start, is_starting: AtomicBool::new(false), until: AtomicU64::new(0) }
    }

    /// Looks who is new or penalised, of those that take requests.
    pub fn recount<'e>(&self, available: impl Iterator<Item = &'e Arc<Endpoint>>, now: Instant) {
        let (mut all, mut new, mut new_until, mut penalised_until) = (0, 0, 0, 0);
        for live in available.map(|endpoint| &endpoint.live) {
            all += 1;
            penalised_until = live.penalised_until().max(penalised_until);
            if let Some(slow_start) = self.slow_start
                && slow_start.age(live, now) < slow_start.window
            {
                new += 1;
                new_until = (live.health.since() + slow_start.window as u64).max(new_until);
            }
        }
        let is_starting = new > 0 && new * 2 <= all;
        self.is_starting.store(is_starting, Relaxed);
        self.prolong(penalised_until.max(if is_starting { new_until } else { 0 }));
    }

    /// Something holds until then.
    pub fn prolong(&self, until: u64) {
        self.until.fetch_max(until, Relaxed);
    }

    /// Whether any endpoint may get less than its share.
    pub fn is_on(&self, now: Instant) -> bool {
        let until = self.until.load(Relaxed);
        if until == 0 {
            return false;
        }
        if nanos(now) < until {
            return true;
        }
        // Whoever prolongs it in between wins.
        let _ = self.until.compare_exchange(until, 0, Relaxed, Relaxed);
        false
    }

    /// The part of its share that an endpoint gets now.
    pub fn factor(&self, live: &Live, now: Instant) -> f64 {
        let started = match self.slow_start {
            Some(slow_start) if self.is_starting.load(Relaxed) => slow_start.factor(live, now),
            _ => 1.0,
        };
        if nanos(now) < live.penalised_until() { started * PENALISED } else { started }
    }
}

impl SlowStart {
    /// In nanoseconds since it takes requests.
    fn age(&self, live: &Live, now: Instant) -> f64 {
        nanos(now).saturating_sub(live.health.since()) as f64
    }

    /// As Envoy has it: (age / window)^(1 / aggression), but not less than the least.
    fn factor(&self, live: &Live, now: Instant) -> f64 {
        let age = self.age(live, now);
        if age >= self.window { 1.0 } else { (age / self.window).powf(self.exponent).max(self.least) }
    }
}

/// For how long an endpoint that asked for a pause of `asked`, or for one without saying how long, is penalised.
pub fn penalty(balance: &Balance, asked: Option<Duration>) -> Duration {
    asked.unwrap_or(balance.penalty.base).min(balance.penalty.max)
}
