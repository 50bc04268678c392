//! Following services.

use super::super::human;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Following services in the registries.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Discovery {
    /// Registries in order of priority. All of them, in the order of `registries`, by default.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<String>,
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
}

impl Default for Discovery {
    fn default() -> Self {
        Self {
            sources: Vec::new(),
            first_answer: Duration::from_secs(2),
            idle: Duration::from_secs(600),
            coalesce: Duration::from_millis(100),
            max_services: 1000,
        }
    }
}
