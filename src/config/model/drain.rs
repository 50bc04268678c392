//! How pillion ends.

use super::super::human;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The end, on SIGTERM or `POST /api/drain`: the application is taken out of its registries, callers hear of it, requests in
/// progress finish. Once none is left pillion exits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Drain {
    /// For all of it. What is still in progress then is cut off.
    #[serde(with = "human")]
    #[schemars(with = "human::Text")]
    pub timeout: Duration,
    /// How long callers may take to hear that the application leaves; until then it takes their requests as before. At most
    /// half of `timeout`; nothing is waited for where nothing was registered and no listener is inbound.
    #[serde(with = "human")]
    #[schemars(with = "human::Text")]
    pub spread: Duration,
    /// Keep outbound listeners open until `POST /api/quit` says that the application is gone, or the deadline is near. By
    /// default until no request has been in flight for half a second; or not at all, if the application serves nobody.
    pub wait_for_app: bool,
}

impl Default for Drain {
    fn default() -> Self {
        Self { timeout: Duration::from_secs(30), spread: Duration::from_secs(2), wait_for_app: false }
    }
}
