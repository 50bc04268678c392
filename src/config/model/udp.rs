//! How a service's UDP sessions are carried.

use super::super::human;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// How datagrams are carried that come in by listeners with `protocol: udp`: those of one client address and port are a session,
/// and go to one endpoint. `retry.attempts` and `limits.connections` (sessions) hold for them as well.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Udp {
    /// A session in which nothing came or went for so long is over. Looked at once a second.
    #[serde(with = "human")]
    #[schemars(with = "human::Text")]
    pub idle_timeout: Duration,
    /// So many datagrams answer one of a client's. A session in which all have come is over at once: 1 for DNS. Without it: nobody
    /// knows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub responses: Option<u32>,
}

impl Default for Udp {
    fn default() -> Self {
        Self { idle_timeout: Duration::from_secs(30), responses: None }
    }
}
