//! Decides which endpoints are kept out because of what their traffic showed, and which are let in again. One [`Detector`]
//! per service, on the control thread.

use super::{
    Endpoint, Live,
    health::{Cause, Health, Outcome, Standing},
};
use crate::config::{Breaker, Outlier, Service};
use std::{collections::HashMap, sync::Arc, time::Duration};
use tokio::time::Instant;

/// How often the numbers are looked at.
pub const PERIOD: Duration = Duration::from_secs(1);
/// Over how many periods success rates are taken.
const PERIODS: usize = 10;
/// An endpoint that failed or was silent twice and had no success for so many periods, while the others did well, is out. One
/// that hangs would else hardly be: its latency keeps requests away, so that five failures in a row take minutes.
const NO_SUCCESS: usize = 2;
/// What doing well is.
const WELL: f64 = 0.8;
/// An outlier is at least this much worse than the mean. Where all others never fail, the standard deviation is next to
/// nothing, and a single failure would be beyond any number of them.
const LEAST_DIFFERENCE: f64 = 0.05;

/// What a service's endpoints did in the last periods.
#[derive(Debug, Default)]
pub struct Detector {
    windows: HashMap<u64, Window, foldhash::fast::FixedState>,
}

/// A change that was made, to be told.
#[derive(Debug, Clone)]
pub struct Change {
    pub endpoint: Arc<Endpoint>,
    pub what: What,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum What {
    Ejected {
        cause: Cause,
        long: Duration,
        seen: Seen,
    },
    /// Ejected again, because its probe failed: the so-manieth time in a row.
    StillEjected {
        long: Duration,
        streak: u32,
    },
    Admitted,
    /// It should be ejected, and no more may be.
    Kept {
        cause: Cause,
        seen: Seen,
    },
    /// It no longer should.
    Recovered,
}

/// What an endpoint's requests showed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Seen {
    /// Failures in a row.
    pub consecutive: u32,
    /// Requests of the last window, and the share of them that succeeded.
    pub window: Option<(u32, f64)>,
}

impl Detector {
    /// A period has passed: looks at the numbers, then does what [`review`](Self::review) does.
    pub fn tick(&mut self, endpoints: &[Arc<Endpoint>], service: &Service, now: Instant) -> Vec<Change> {
        let each = unique(endpoints);
        let mut before = std::mem::take(&mut self.windows);
        // Those that nobody calls cost nothing; those that failed their checks begin anew when they pass.
        let counts = |live: &&Arc<Live>| live.requests() > 0 && !live.health.is_shut();
        for live in each.iter().map(|endpoint| &endpoint.live).filter(counts) {
            let mut window = before.remove(&live.key).unwrap_or_else(|| Window::new(live));
            window.turn(live);
            live.health.set_window(window.requests(), window.failures());
            self.windows.insert(live.key, window);
        }
        self.review_all(&each, service, now)
    }

    /// Does what follows from what requests found since the last time.
    pub fn review(&mut self, endpoints: &[Arc<Endpoint>], service: &Service, now: Instant) -> Vec<Change> {
        self.review_all(&unique(endpoints), service, now)
    }

    fn review_all(&mut self, each: &[&Arc<Endpoint>], service: &Service, now: Instant) -> Vec<Change> {
        let mut changes = Vec::new();
        let Service { breaker, outlier, .. } = service;
        let mut unavailable = each.iter().filter(|endpoint| !endpoint.live.health.is_available()).count();
        for endpoint in each {
            let health = &endpoint.live.health;
            let found = health.take_found();
            if !health.is_ejected() {
                continue;
            }
            if found == Some(Outcome::Success) || !(breaker.enabled || outlier.enabled) {
                self.forget(&endpoint.live);
                health.admit(now);
                unavailable -= 1;
                changes.push(Change { endpoint: Arc::clone(endpoint), what: What::Admitted });
            } else if found == Some(Outcome::Failure) {
                let (long, streak) = health.eject(health.cause(), breaker.open.base, breaker.open.max, now);
                changes.push(Change { endpoint: Arc::clone(endpoint), what: What::StillEjected { long, streak } });
            }
        }
        let most = breaker.max_ejected.max(outlier.max_ejected);
        for endpoint in too_many(each, most, now) {
            self.forget(&endpoint.live);
            endpoint.live.health.admit(now);
            unavailable -= 1;
            changes.push(Change { endpoint: endpoint.clone(), what: What::Admitted });
        }
        let mut kept = Vec::new();
        for (endpoint, cause) in self.candidates(each, breaker, outlier) {
            let health = &endpoint.live.health;
            let seen = Seen { consecutive: health.consecutive_failures(), window: health.window() };
            let most = if cause == Cause::Outlier { outlier.max_ejected } else { breaker.max_ejected };
            let what = if may_eject(unavailable, each.len(), most) {
                unavailable += 1;
                let (long, _) = health.eject(cause, breaker.open.base, breaker.open.max, now);
                What::Ejected { cause, long, seen }
            } else {
                kept.push(endpoint.live.key);
                if health.keep(Some(cause)) {
                    continue;
                }
                What::Kept { cause, seen }
            };
            changes.push(Change { endpoint: endpoint.clone(), what });
        }
        kept.sort_unstable();
        for endpoint in each.iter().filter(|endpoint| kept.binary_search(&endpoint.live.key).is_err()) {
            let health = &endpoint.live.health;
            if health.keep(None) && health.is_available() {
                changes.push(Change { endpoint: Arc::clone(endpoint), what: What::Recovered });
            }
        }
        changes
    }

    /// Those that are available and should not be, the worst first.
    fn candidates<'e>(
        &self,
        each: &[&'e Arc<Endpoint>],
        breaker: &Breaker,
        outlier: &Outlier,
    ) -> Vec<(&'e Arc<Endpoint>, Cause)> {
        let limit = self.outlier_limit(each, outlier);
        let recent = |endpoint: &Arc<Endpoint>| self.windows.get(&endpoint.live.key).map_or((0, 0), Window::recent);
        let all = each.iter().map(|endpoint| recent(endpoint)).fold((0, 0), |(a, b), (c, d)| (a + c, b + d));
        let mut candidates: Vec<(&Arc<Endpoint>, Cause, f64)> = Vec::new();
        for endpoint in each.iter().filter(|endpoint| endpoint.live.health.is_available()) {
            let health: &Health = &endpoint.live.health;
            let window = self.windows.get(&endpoint.live.key);
            let (requests, rate) = window.map_or((0, 1.0), |window| (window.requests(), window.rate()));
            let (most, in_a_row) = (breaker.consecutive_failures, health.consecutive_failures());
            let cause = if breaker.enabled && most > 0 && in_a_row >= most {
                Cause::ConsecutiveFailures
            } else if breaker.enabled
                && requests >= breaker.min_requests
                && (1.0 - rate) * 100.0 > f64::from(breaker.failure_percent)
            {
                Cause::FailurePercent
            } else if breaker.enabled
                && most > 0
                && health.without_success() >= 2
                && window.is_some_and(|window| window.fruitless > NO_SUCCESS)
                && do_well(recent(endpoint), all)
            {
                Cause::NoSuccess
            } else if requests >= outlier.min_requests && limit.is_some_and(|limit| rate < limit) {
                Cause::Outlier
            } else {
                continue;
            };
            let badness = f64::from(in_a_row) + (1.0 - rate);
            candidates.push((endpoint, cause, badness));
        }
        candidates.sort_by(|one, other| other.2.total_cmp(&one.2));
        candidates.into_iter().map(|(endpoint, cause, _)| (endpoint, cause)).collect()
    }

    /// The success rate below which an endpoint is an outlier: as in Envoy's outlier detection, the mean less so many
    /// standard deviations.
    fn outlier_limit(&self, each: &[&Arc<Endpoint>], outlier: &Outlier) -> Option<f64> {
        let judged = |endpoint: &&&Arc<Endpoint>| endpoint.live.health.is_available();
        let rates: Vec<f64> = each
            .iter()
            .filter(judged)
            .filter_map(|endpoint| self.windows.get(&endpoint.live.key))
            .filter(|window| window.requests() >= outlier.min_requests.max(1))
            .map(Window::rate)
            .collect();
        if !outlier.enabled || rates.len() < outlier.min_endpoints as usize || rates.is_empty() {
            return None;
        }
        let mean = rates.iter().sum::<f64>() / rates.len() as f64;
        let variance = rates.iter().map(|rate| (rate - mean).powi(2)).sum::<f64>() / rates.len() as f64;
        Some(mean - (outlier.deviations.0 * variance.sqrt()).max(LEAST_DIFFERENCE))
    }

    /// What was before does not count against one that is let in again.
    fn forget(&mut self, live: &Live) {
        self.windows.insert(live.key, Window::new(live));
        live.health.set_window(0, 0);
        live.forget_latency();
    }
}

/// Ejected endpoints beyond the cap, as when others have left the table. Those come first that were to be asked next.
fn too_many<'e>(each: &[&'e Arc<Endpoint>], most_percent: u32, now: Instant) -> Vec<&'e Arc<Endpoint>> {
    let may = (each.len() * most_percent as usize / 100).min(each.len().saturating_sub(1));
    let mut ejected: Vec<_> = each.iter().copied().filter(|endpoint| endpoint.live.health.is_ejected()).collect();
    ejected.sort_by_key(|endpoint| match endpoint.live.health.standing(now) {
        Standing::Ejected { left, .. } => left,
        // One that is being asked will tell.
        _ => Duration::MAX,
    });
    ejected.truncate(ejected.len().saturating_sub(may));
    ejected
}

/// Whether those other than one endpoint did well, by its and all recent requests and failures.
fn do_well((requests, failures): (u64, u64), (all_requests, all_failures): (u64, u64)) -> bool {
    let (others, failed) = (all_requests - requests, all_failures - failures);
    others > 0 && (others - failed) as f64 >= WELL * others as f64
}

/// Whether one more of `all` may become unavailable: it is counted with the others, and is never the last.
fn may_eject(unavailable: usize, all: usize, most_percent: u32) -> bool {
    let then = unavailable + 1;
    then < all && then as u64 * 100 <= all as u64 * u64::from(most_percent)
}

/// Each address once, and only what could be chosen at all.
fn unique(endpoints: &[Arc<Endpoint>]) -> Vec<&Arc<Endpoint>> {
    let mut seen =
        std::collections::HashSet::with_capacity_and_hasher(endpoints.len(), foldhash::fast::FixedState::default());
    endpoints.iter().filter(|endpoint| endpoint.is_usable() && seen.insert(endpoint.live.key)).collect()
}

/// One endpoint's requests in the last [`PERIODS`], as sums and what each period added.
#[derive(Debug)]
struct Window {
    completed: u64,
    failures: u64,
    periods: [(u32, u32); PERIODS],
    at: usize,
    /// Periods in a row, the last one included, that ended after a failure with no success since. As the first of them is
    /// not whole, one more than [`NO_SUCCESS`] make as many.
    fruitless: usize,
}

impl Window {
    /// Counts from now on.
    fn new(live: &Live) -> Self {
        Self { completed: live.completed(), failures: live.failures(), periods: [(0, 0); PERIODS], at: 0, fruitless: 0 }
    }

    fn turn(&mut self, live: &Live) {
        let (completed, failures) = (live.completed(), live.failures());
        let added = |now: u64, before: u64| u32::try_from(now.saturating_sub(before)).unwrap_or(u32::MAX);
        let failed = added(failures, self.failures);
        // What is read while others write may be off by a few; more failures than requests would be nonsense.
        self.periods[self.at] = (added(completed, self.completed).max(failed), failed);
        let (requests, failed) = self.periods[self.at];
        self.fruitless = match live.health.without_success() {
            0 => 0,
            _ if requests > failed => 1,
            _ => self.fruitless + 1,
        };
        self.at = (self.at + 1) % PERIODS;
        (self.completed, self.failures) = (completed, failures);
    }

    /// Requests and failures of the last [`NO_SUCCESS`] periods.
    fn recent(&self) -> (u64, u64) {
        let last = (1..=NO_SUCCESS).map(|back| self.periods[(self.at + PERIODS - back) % PERIODS]);
        last.fold((0, 0), |(requests, failures), (more, failed)| {
            (requests + u64::from(more), failures + u64::from(failed))
        })
    }

    fn requests(&self) -> u32 {
        self.periods.iter().fold(0, |sum, (requests, _)| sum.saturating_add(*requests))
    }

    fn failures(&self) -> u32 {
        self.periods.iter().fold(0, |sum, (_, failures)| sum.saturating_add(*failures))
    }

    /// The share that succeeded; 1 if there was nothing.
    fn rate(&self) -> f64 {
        1.0 - f64::from(self.failures()) / f64::from(self.requests().max(1))
    }
}

#[cfg(test)]
#[path = "outlier_tests.rs"]
mod tests;
