//! What the checks of one endpoint have shown so far, and when the next one is due. Neither clock nor chance is in here:
//! both are given.

use super::Failure;
use crate::config::HealthCheck;
use std::time::Duration;
use tokio::time::Instant;

/// What is thought of an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Not checked yet: used, and the first check decides at once.
    Unknown,
    Healthy,
    /// It was healthy, and its last checks failed: still used.
    Suspect {
        failures: u32,
    },
    /// Not used. `passes`: those in a row since its last failure.
    Unhealthy {
        passes: u32,
    },
}

/// One endpoint's checks so far.
#[derive(Debug, Clone)]
pub struct Checked {
    pub state: State,
    /// When it is checked next.
    pub next: Instant,
    pub last: Option<Last>,
    /// The time between the last check and the next, without what chance adds or takes away.
    wait: Duration,
}

/// One check's result.
#[derive(Debug, Clone)]
pub struct Last {
    /// When it ended.
    pub at: Instant,
    pub took: Duration,
    /// `None`: it passed.
    pub failure: Option<Failure>,
}

impl State {
    /// Whether requests are sent to it.
    pub fn is_usable(self) -> bool {
        !matches!(self, Self::Unhealthy { .. })
    }

    /// Whether its last check passed and it is in use because of that.
    pub fn is_passing(self) -> bool {
        self == Self::Healthy
    }

    fn after(self, passed: bool, check: &HealthCheck) -> Self {
        let failed = |before: u32| match before + 1 {
            failures if failures >= check.fall => Self::Unhealthy { passes: 0 },
            failures => Self::Suspect { failures },
        };
        match (self, passed) {
            (Self::Unknown | Self::Healthy | Self::Suspect { .. }, true) => Self::Healthy,
            (Self::Unhealthy { passes }, true) if passes + 1 >= check.rise => Self::Healthy,
            (Self::Unhealthy { passes }, true) => Self::Unhealthy { passes: passes + 1 },
            (Self::Unknown | Self::Unhealthy { .. }, false) => Self::Unhealthy { passes: 0 },
            (Self::Healthy, false) => failed(0),
            (Self::Suspect { failures }, false) => failed(failures),
        }
    }
}

impl Checked {
    /// Not checked yet.
    pub fn new(next: Instant) -> Self {
        Self { state: State::Unknown, next, last: None, wait: Duration::ZERO }
    }

    /// With one more result. `gone`: its registry no longer lists it, and it is to be known soon when it ends. `chance` is
    /// from 0 to 1.
    pub fn after(&self, last: Last, check: &HealthCheck, gone: bool, chance: f64) -> Self {
        let passed = last.failure.is_none();
        let state = self.state.after(passed, check);
        let wait = match state {
            State::Suspect { .. } => check.interval / 3,
            _ if gone => check.interval / 3,
            State::Unhealthy { .. } if !passed && !self.state.is_usable() => {
                self.wait.max(check.interval).mul_f64(1.5).min(check.max_interval).max(check.interval)
            }
            _ => check.interval,
        };
        Self { state, next: last.at + wait.mul_f64(0.9 + chance / 5.0), last: Some(last), wait }
    }

    /// The same, with the next check at `next` or before.
    pub fn at_the_latest(&self, next: Instant) -> Self {
        Self { next: self.next.min(next), ..self.clone() }
    }
}

/// When the first check of the `index`-th of `count` new endpoints is due: the first ones soon, all of them within one
/// interval, and never many at one moment. `chance` is from 0 to 1.
pub fn first_wait(index: usize, count: usize, interval: Duration, chance: f64) -> Duration {
    /// Few endpoints need not be spread over the whole interval.
    const FURTHEST_APART: Duration = Duration::from_millis(50);
    let apart = interval.div_f64(count.max(1) as f64).min(FURTHEST_APART);
    apart.mul_f64(index as f64 + chance)
}
