//! Following services.

use super::{super::human, Failover, Source};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{path::PathBuf, time::Duration};

/// Following services in the registries.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Discovery {
    /// Registries in order of priority: the first that lists any instance of a service is believed. All of them, in the
    /// order of `registries`, by default. Several can be taken together as one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<Source>,
    pub failover: Failover,
    /// How long the first request for a service waits for the registries' first answer.
    #[serde(with = "human")]
    #[schemars(with = "human::Text")]
    pub first_answer: Duration,
    /// A service that no request asked for during this time is no longer followed, unless `services` names it.
    #[serde(with = "human")]
    #[schemars(with = "human::Text")]
    pub idle: Duration,
    /// After a change was published, further ones are gathered for this long.
    #[serde(with = "human")]
    #[schemars(with = "human::Text")]
    pub coalesce: Duration,
    /// At most this many services are followed on demand, so that made-up names cannot fill the memory.
    pub max_services: usize,
    /// Keeps what is known on disk, so that pillion can start while no registry answers. Off by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<Snapshot>,
}

/// The last known instances of each service on disk.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Snapshot {
    /// A folder for one file per service; it is created if it is not there. Only pillions with the same registries may
    /// share one.
    pub dir: PathBuf,
    /// What the registries have not confirmed for longer than this is not used, and removed.
    #[serde(with = "human", default = "Snapshot::default_max_age")]
    #[schemars(with = "human::Text")]
    pub max_age: Duration,
    /// At most this many services are kept; the one that was confirmed the longest time ago goes.
    #[serde(default = "Snapshot::default_max_services")]
    pub max_services: usize,
}

impl Snapshot {
    /// In `dir`, with defaults.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into(), max_age: Self::default_max_age(), max_services: Self::default_max_services() }
    }

    fn default_max_age() -> Duration {
        Duration::from_secs(24 * 3600)
    }

    fn default_max_services() -> usize {
        1000
    }
}

impl Default for Discovery {
    fn default() -> Self {
        Self {
            sources: Vec::new(),
            failover: Failover::default(),
            first_answer: Duration::from_secs(2),
            idle: Duration::from_secs(600),
            coalesce: Duration::from_millis(100),
            max_services: 1000,
            snapshot: None,
        }
    }
}
