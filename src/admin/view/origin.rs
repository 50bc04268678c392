//! Where a service's endpoints come from, and how fresh that is.

use super::thousandths;
use crate::discovery::{self, SourceStatus, Status};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Whom a service's endpoints come from.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Origin {
    pub sources: Vec<Source>,
    /// No source has answered: what is in use was read from the disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<Snapshot>,
    /// Far too many instances are gone at once: some are in use because they answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held: Option<Held>,
}

/// One registry's word about one service.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Source {
    pub source: String,
    pub state: SourceState,
    /// Whether what is in use comes from it, also in part.
    pub in_use: bool,
    /// Those that count; `None` until it has answered.
    pub instances: Option<usize>,
    /// Those that it lists besides, and that its `scope` leaves out.
    #[serde(default)]
    pub out_of_scope: usize,
    /// Since it last confirmed its set.
    pub age_seconds: Option<f64>,
    /// Since its set last changed.
    #[serde(default)]
    pub unchanged_seconds: Option<f64>,
    /// How long a connection to its instances takes, where sources are chosen by nearness.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency_ms: Option<f64>,
    #[serde(default)]
    pub failures: u64,
    pub failure: Option<String>,
}

/// How a source does. As [`discovery::SourceState`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SourceState {
    #[default]
    Waiting,
    Answering,
    Failing,
    GivenUp,
}

/// What was read from the disk.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    pub source: String,
    pub age_seconds: f64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Held {
    pub endpoints: usize,
    /// How many instances were listed before.
    pub before: usize,
    pub since_seconds: f64,
}

impl From<Status> for Origin {
    fn from(Status { sources, snapshot, held }: Status) -> Self {
        Self {
            sources: sources.into_iter().map(Source::from).collect(),
            snapshot: snapshot.map(|snapshot| Snapshot { source: snapshot.source, age_seconds: seconds(snapshot.age) }),
            held: held.map(|held| Held {
                endpoints: held.endpoints,
                before: held.before,
                since_seconds: seconds(held.since),
            }),
        }
    }
}

impl From<SourceStatus> for Source {
    fn from(status: SourceStatus) -> Self {
        Self {
            source: status.source,
            state: status.state.into(),
            in_use: status.in_use,
            instances: status.instances,
            out_of_scope: status.out_of_scope,
            age_seconds: status.age.map(seconds),
            unchanged_seconds: status.unchanged.map(seconds),
            latency_ms: status.latency.map(|latency| thousandths(latency.as_secs_f64() * 1000.0)),
            failures: status.failures,
            failure: status.failure,
        }
    }
}

impl From<discovery::SourceState> for SourceState {
    fn from(state: discovery::SourceState) -> Self {
        match state {
            discovery::SourceState::Waiting => Self::Waiting,
            discovery::SourceState::Answering => Self::Answering,
            discovery::SourceState::Failing => Self::Failing,
            discovery::SourceState::GivenUp => Self::GivenUp,
        }
    }
}

fn seconds(time: Duration) -> f64 {
    thousandths(time.as_secs_f64())
}
