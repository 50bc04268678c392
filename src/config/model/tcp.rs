//! How a service's TCP connections are carried.

use super::super::human;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// How connections are carried that come in by listeners with `protocol: tcp`, `tls`, or `auto` where it is no HTTP. `timeouts.connect`, `retry.attempts`
/// and `limits.connections` hold for them as well.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Tcp {
    /// A connection on which nothing came or went for so long is closed. Looked at once a second.
    #[serde(with = "human")]
    #[schemars(with = "human::Text")]
    pub idle_timeout: Duration,
    /// A connection is closed after this time, whatever moves. Without it: never.
    #[serde(with = "human::optional", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<human::Text>")]
    pub max_age: Option<Duration>,
    /// What becomes of connections to an endpoint that leaves the service.
    pub when_gone: WhenGone,
    /// How long they may go on with `when_gone: drain`.
    #[serde(with = "human")]
    #[schemars(with = "human::Text")]
    pub drain: Duration,
    /// What becomes of redirected connections whose client called an endpoint's own address.
    pub direct: Direct,
    /// Tell the upstream whom a connection comes from, by this version of the PROXY protocol. Without it: nothing is told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy_protocol: Option<ProxyVersion>,
}

/// What becomes of connections to an endpoint that leaves the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "lowercase")]
pub enum WhenGone {
    /// They go on until one of their ends closes them.
    #[default]
    Keep,
    /// The same, and after `drain` they are closed.
    Drain,
    /// They are closed within a second.
    Cut,
}

/// Where a connection goes whose client called an endpoint's own address, by a listener with `transparent`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "lowercase")]
pub enum Direct {
    /// To that endpoint: its client may know why it wants this one, such as a database's primary.
    #[default]
    Keep,
    /// To any of the service's endpoints.
    Balance,
}

/// A version of the PROXY protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ProxyVersion {
    /// A line of text.
    V1,
    /// Binary.
    V2,
}

impl Default for Tcp {
    fn default() -> Self {
        Self {
            idle_timeout: Duration::from_secs(60 * 60),
            max_age: None,
            when_gone: WhenGone::Keep,
            drain: Duration::from_secs(30),
            direct: Direct::Keep,
            proxy_protocol: None,
        }
    }
}
