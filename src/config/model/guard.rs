//! What happens when a registry suddenly lists far fewer instances.

use super::super::human;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// When a source suddenly lists far fewer instances, those that are gone are checked before that is believed: by
/// `health_check`, or else by a connection to each. Those that answer stay in use, those that do not go.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Guard {
    /// Whether a sudden loss is doubted.
    pub enabled: bool,
    /// More than so many of the instances, in percent, gone within `grace` is sudden; all of them always is.
    pub lost: u32,
    /// The time within which losses are added up, and in which an instance that is gone must pass a check.
    #[serde(with = "human")]
    #[schemars(with = "human::Text")]
    pub grace: Duration,
    /// One that answers stays at most so long.
    #[serde(with = "human")]
    #[schemars(with = "human::Text")]
    pub longest: Duration,
}

impl Default for Guard {
    fn default() -> Self {
        Self { enabled: true, lost: 50, grace: Duration::from_secs(30), longest: Duration::from_secs(60 * 60) }
    }
}
