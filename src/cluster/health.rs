//! Whether an endpoint may be given requests; if not, why, and until when.
//!
//! The request path reads one number of this, takes a probe when one is due, and leaves word of what it saw. Whatever is
//! decided from that is decided by [`super::outlier`] on the control thread, which alone opens and closes, so that caps
//! hold exactly however many workers there are.

use super::endpoint::nanos;
use std::{
    sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed},
    time::Duration,
};
use tokio::time::Instant;

/// Not ejected, not unhealthy: takes requests.
const OPEN: u64 = 0;
/// Ejected, and one request is finding out whether it still has to be.
const PROBING: u64 = u64::MAX;
/// Failed its active checks: takes none until they pass.
const SHUT: u64 = u64::MAX - 1;

/// Why an endpoint is kept out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Cause {
    /// `breaker.consecutive_failures` in a row.
    ConsecutiveFailures,
    /// More than `breaker.failure_percent` of its requests failed.
    FailurePercent,
    /// It failed far more often than the others did.
    Outlier,
    /// Nothing succeeded there of late, while the others did well.
    NoSuccess,
}

/// How a request came to be sent to an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Choice {
    #[default]
    Available,
    /// It was ejected, its time is over, and this one request finds out how it is.
    Probe,
    /// It is not available, but so few are that all are used, or it is all that is left for a retry.
    LastResort,
}

/// What came of a request, as far as it says something about the endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Success,
    Failure,
    /// There was no answer by the time that its caller, or a hedged request, wanted one. That may be asking too much, so it
    /// counts only where the others do well.
    Silence,
}

/// The state of one endpoint for those who want to know.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Standing {
    Available,
    /// It takes requests only because no more endpoints may be ejected.
    Failing {
        cause: Cause,
    },
    /// Out because of its traffic. `left`: until it gets a probe.
    Ejected {
        cause: Cause,
        left: Duration,
    },
    /// Its time is over and one request is finding out how it is.
    Probing {
        cause: Cause,
    },
    /// Its active checks fail.
    Unhealthy,
}

/// What is known of one endpoint's health.
#[derive(Debug)]
pub struct Health {
    /// One of the constants above, or the nanosecond until which it is ejected.
    gate: AtomicU64,
    /// Failures since the last success.
    consecutive: AtomicU32,
    /// As well, those that were silent for too long.
    silent: AtomicU32,
    /// What a request found that came although the endpoint was not available: 0 nothing yet, 1 success, 2 failure.
    found: AtomicU8,
    cause: AtomicU8,
    /// Whether it should be ejected, and no more may be.
    kept: AtomicBool,
    /// When it was last ejected or let in again, in nanoseconds.
    changed: AtomicU64,
    /// Ejections on each other's heels; each lasts twice as long as the one before.
    streak: AtomicU32,
    ejections: AtomicU64,
    /// Of its requests in the last window, and how many of them succeeded.
    window: AtomicU64,
}

impl Default for Health {
    fn default() -> Self {
        Self {
            gate: AtomicU64::new(OPEN),
            consecutive: AtomicU32::new(0),
            silent: AtomicU32::new(0),
            found: AtomicU8::new(0),
            cause: AtomicU8::new(Cause::ConsecutiveFailures as u8),
            kept: AtomicBool::new(false),
            changed: AtomicU64::new(nanos(Instant::now())),
            streak: AtomicU32::new(0),
            ejections: AtomicU64::new(0),
            window: AtomicU64::new(0),
        }
    }
}

impl Health {
    /// Whether it takes requests.
    pub fn is_available(&self) -> bool {
        self.gate.load(Relaxed) == OPEN
    }

    /// Whether active checks keep it out.
    pub fn is_shut(&self) -> bool {
        self.gate.load(Relaxed) == SHUT
    }

    /// Takes the one probe, if the ejection is over and nobody else has it. A request that can be made `only_once` takes it
    /// only if no other has come for a while: its caller would see the failure.
    pub fn take_probe(&self, now: Instant, only_once: bool) -> bool {
        /// For services that get no other requests at all.
        const A_WHILE: Duration = Duration::from_secs(1);
        let until = self.gate.load(Relaxed);
        let due = if only_once { until.saturating_add(A_WHILE.as_nanos() as u64) } else { until };
        until != OPEN && due <= nanos(now) && self.gate.compare_exchange(until, PROBING, Relaxed, Relaxed).is_ok()
    }

    /// Whether the ejection is over, and the one probe not yet taken.
    pub fn is_probe_due(&self, now: Instant) -> bool {
        let until = self.gate.load(Relaxed);
        until != OPEN && until <= nanos(now)
    }

    /// The probe ended without finding anything, so another may be made.
    pub fn give_probe_back(&self) {
        let _ = self.gate.compare_exchange(PROBING, nanos(Instant::now()), Relaxed, Relaxed);
    }

    /// Takes note of what came of a request. True if something may have to be decided now; `limit` failures in a row do.
    pub fn report(&self, outcome: Outcome, choice: Choice, limit: u32) -> bool {
        match (outcome, choice) {
            (Outcome::Success, Choice::Available) => {
                // A plain store would make the cache line travel between workers for each request.
                if self.consecutive.load(Relaxed) != 0 {
                    self.consecutive.store(0, Relaxed);
                }
                if self.silent.load(Relaxed) != 0 {
                    self.silent.store(0, Relaxed);
                }
                false
            }
            (Outcome::Success, Choice::Probe | Choice::LastResort) => {
                self.consecutive.store(0, Relaxed);
                self.silent.store(0, Relaxed);
                self.found.store(1, Relaxed);
                true
            }
            (Outcome::Silence, Choice::Available | Choice::LastResort) => {
                self.silent.fetch_add(1, Relaxed);
                false
            }
            (Outcome::Failure | Outcome::Silence, Choice::Probe) => {
                self.found.store(2, Relaxed);
                true
            }
            (Outcome::Failure, Choice::Available | Choice::LastResort) => {
                let consecutive = self.consecutive.fetch_add(1, Relaxed).saturating_add(1);
                // Not each time: where the cap forbids to eject it, nothing comes of it.
                limit > 0 && consecutive.is_multiple_of(limit) && self.is_available()
            }
        }
    }

    pub fn consecutive_failures(&self) -> u32 {
        self.consecutive.load(Relaxed)
    }

    /// Since which nanosecond it takes requests, if it does.
    pub fn since(&self) -> u64 {
        self.changed.load(Relaxed)
    }

    /// Failures since the last success, and requests that had no answer when one was wanted.
    pub fn without_success(&self) -> u32 {
        self.consecutive.load(Relaxed).saturating_add(self.silent.load(Relaxed))
    }

    /// How often it was ejected.
    pub fn ejections(&self) -> u64 {
        self.ejections.load(Relaxed)
    }

    /// Requests that ended in the last window, and the share of them that succeeded. `None` if there were none.
    pub fn window(&self) -> Option<(u32, f64)> {
        let window = self.window.load(Relaxed);
        let (requests, failures) = ((window >> 32) as u32, window as u32);
        (requests > 0).then(|| (requests, 1.0 - f64::from(failures) / f64::from(requests)))
    }

    pub fn standing(&self, now: Instant) -> Standing {
        let cause = self.cause();
        match self.gate.load(Relaxed) {
            OPEN if self.kept.load(Relaxed) => Standing::Failing { cause },
            OPEN => Standing::Available,
            SHUT => Standing::Unhealthy,
            PROBING => Standing::Probing { cause },
            until => Standing::Ejected { cause, left: Duration::from_nanos(until.saturating_sub(nanos(now))) },
        }
    }

    pub fn cause(&self) -> Cause {
        match self.cause.load(Relaxed) {
            0 => Cause::ConsecutiveFailures,
            1 => Cause::FailurePercent,
            2 => Cause::Outlier,
            _ => Cause::NoSuccess,
        }
    }
}

/// What only the control thread does.
impl Health {
    pub(super) fn set_window(&self, requests: u32, failures: u32) {
        self.window.store(u64::from(requests) << 32 | u64::from(failures), Relaxed);
    }

    /// Takes what a request found that came although the endpoint was not available.
    pub(super) fn take_found(&self) -> Option<Outcome> {
        let found = self.found.load(Relaxed);
        if found == 0 {
            return None;
        }
        self.found.store(0, Relaxed);
        Some(if found == 1 { Outcome::Success } else { Outcome::Failure })
    }

    /// Whether traffic, and not active checks, keeps it out.
    pub(super) fn is_ejected(&self) -> bool {
        !matches!(self.gate.load(Relaxed), OPEN | SHUT)
    }

    /// Keeps it out: for `base` the first time, twice as long each time that it follows on the last one, at most `max`.
    /// Gives how long, and the how-manieth time it is.
    pub(super) fn eject(&self, cause: Cause, base: Duration, max: Duration, now: Instant) -> (Duration, u32) {
        /// For so long it has to do well to have one ejection less counted against it.
        const FORGIVEN: Duration = Duration::from_secs(10);
        let well = Duration::from_nanos(nanos(now).saturating_sub(self.changed.load(Relaxed)));
        let forgiven = if self.is_ejected() { 0 } else { (well.as_secs() / FORGIVEN.as_secs()) as u32 };
        let streak = self.streak.load(Relaxed).saturating_sub(forgiven);
        self.streak.store(streak.saturating_add(1), Relaxed);
        let doubled = base.saturating_mul(1u32.checked_shl(streak).unwrap_or(u32::MAX)).min(max);
        // Up to a fifth more, lest a fleet of sidecars that saw the same comes back at one moment.
        let long = doubled.mul_f64(1.0 + fastrand::f64() / 5.0);
        self.cause.store(cause as u8, Relaxed);
        self.changed.store(nanos(now), Relaxed);
        self.ejections.fetch_add(1, Relaxed);
        self.gate.store(nanos(now + long), Relaxed);
        (long, streak.saturating_add(1))
    }

    /// Keeps it out until [`admit`](Self::admit), whatever its traffic may show. What it has shown is forgotten.
    pub(super) fn shut(&self, now: Instant) {
        self.set_window(0, 0);
        self.changed.store(nanos(now), Relaxed);
        self.gate.store(SHUT, Relaxed);
    }

    /// It should be ejected for this, and no more may be; or it should not. Gives whether that was so before.
    pub(super) fn keep(&self, cause: Option<Cause>) -> bool {
        let before = self.kept.load(Relaxed);
        if before != cause.is_some() {
            self.kept.store(cause.is_some(), Relaxed);
        }
        if let Some(cause) = cause {
            self.cause.store(cause as u8, Relaxed);
        }
        before
    }

    /// Lets it in again.
    pub(super) fn admit(&self, now: Instant) {
        self.consecutive.store(0, Relaxed);
        self.silent.store(0, Relaxed);
        self.changed.store(nanos(now), Relaxed);
        self.gate.store(OPEN, Relaxed);
    }
}

impl Cause {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ConsecutiveFailures => "consecutive_failures",
            Self::FailurePercent => "failure_percent",
            Self::Outlier => "outlier",
            Self::NoSuccess => "no_success",
        }
    }
}
