//! How fresh what is in force is, and whom it comes from: for the admin interface.

use crate::registry::{Observation, RegistryError};
use std::time::Duration;
use tokio::time::Instant;

/// What is known about where one service's endpoints come from.
#[derive(Debug, Clone, Default)]
pub struct Status {
    pub sources: Vec<SourceStatus>,
    /// What is in force comes from the disk, because no source has answered.
    pub snapshot: Option<SnapshotStatus>,
    /// Endpoints that are gone from their registry, far too many at once, and are kept while they answer.
    pub held: Option<Held>,
}

/// What one source has said about a service.
#[derive(Debug, Clone)]
pub struct SourceStatus {
    pub source: String,
    pub state: SourceState,
    /// Whether what is in force comes from it, also in part.
    pub in_use: bool,
    /// Instances in its newest set that count; `None` until it has answered.
    pub instances: Option<usize>,
    /// Those that it lists besides, and that are not in its scope.
    pub out_of_scope: usize,
    /// How long ago the source last confirmed that set.
    pub age: Option<Duration>,
    /// How long ago that set last changed.
    pub unchanged: Option<Duration>,
    /// How long a connection to its instances takes, where that is measured.
    pub latency: Option<Duration>,
    /// Failures since the service is followed.
    pub failures: u64,
    pub failure: Option<String>,
}

/// How a source does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SourceState {
    /// It has not answered yet.
    Waiting,
    Answering,
    /// It fails now. What it said last counts.
    Failing,
    /// It failed for so long, or so recently, that another one is believed, if there is one.
    GivenUp,
}

/// A set from the disk.
#[derive(Debug, Clone, PartialEq)]
pub struct SnapshotStatus {
    /// The source that it came from.
    pub source: String,
    /// How old it is.
    pub age: Duration,
}

/// Endpoints kept by the guard.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Held {
    pub endpoints: usize,
    /// How many instances there were before.
    pub before: usize,
    pub since: Duration,
}

impl SourceStatus {
    /// `instances`: how many of its set count.
    pub(super) fn new(
        source: &str,
        seen: &Observation,
        instances: Option<usize>,
        given_up: bool,
        now: Instant,
    ) -> Self {
        let since = |time: Option<Instant>| time.map(|time| now.duration_since(time));
        let state = match (&seen.instances, &seen.failure) {
            _ if given_up => SourceState::GivenUp,
            (_, Some(_)) => SourceState::Failing,
            (Some(_), None) => SourceState::Answering,
            (None, None) => SourceState::Waiting,
        };
        Self {
            source: source.into(),
            state,
            in_use: false,
            instances,
            out_of_scope: seen.instances.as_ref().map_or(0, |all| all.len().saturating_sub(instances.unwrap_or(0))),
            age: since(seen.confirmed),
            unchanged: since(seen.changed),
            latency: None,
            failures: seen.failures,
            failure: seen.failure.as_ref().map(RegistryError::to_string),
        }
    }
}
