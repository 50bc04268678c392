//! How the endpoint for a request is chosen.

use super::super::human;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Who gets which request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(deny_unknown_fields, default)]
pub struct Balance {
    /// `peak-ewma`; for services that a listener with `protocol: tcp` names, `least-connections`.
    pub policy: Policy,
    pub slow_start: SlowStart,
    pub penalty: Penalty,
    pub hash: Hash,
    pub zone: ZoneAware,
    pub priority: Priority,
}

/// How the endpoint for a request is chosen. All of them honour weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "kebab-case")]
pub enum Policy {
    /// The cheaper of two drawn at random, by peak-sensitive latency × requests in flight.
    #[default]
    PeakEwma,
    /// The one of two drawn at random that has fewer requests in flight.
    LeastRequest,
    /// The one that has the fewest requests in flight, of all; of more than 64 endpoints, of eight drawn at random.
    LeastConnections,
    /// In turn, smoothly interleaved by weight.
    RoundRobin,
    /// At random, by weight.
    Random,
    /// At random, by weight divided by mean response time.
    ResponseTime,
    /// By a hash of what `hash` names, from a table in which all endpoints have their even part; at random for requests
    /// without it. When an endpoint comes or goes, few keys besides its own move.
    Maglev,
    /// By a hash of what `hash` names, on a ring; at random for requests without it. When an endpoint comes or goes, only
    /// its own keys move.
    RingHash,
}

/// Gives an endpoint that is new, or comes back after it was kept out, its full share only after a while. Not while over
/// half of the endpoints are new: somebody has to take the load.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SlowStart {
    /// After this time it has its full share. Without it: at once.
    #[serde(with = "human::optional", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<human::Text>")]
    pub window: Option<Duration>,
    /// Its share grows as (age / window)^(1 / aggression): evenly with 1.0, sooner with more.
    pub aggression: Aggression,
    /// The share it begins with, in percent of the full one.
    pub min_weight_percent: u32,
}

/// How soon a slow start gives most of the share.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Aggression(#[schemars(range(min = 0.1, max = 10.0))] pub f64);

/// How long an endpoint that answered 429, or 503 with `Retry-After`, gets a tenth of its share.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Penalty {
    /// After a 429 that does not say how long.
    #[serde(with = "human")]
    #[schemars(with = "human::Text")]
    pub base: Duration,
    /// The longest time, whatever `Retry-After` says. `0s` means never.
    #[serde(with = "human")]
    #[schemars(with = "human::Text")]
    pub max: Duration,
}

/// What of a request `maglev` and `ring-hash` choose by: one of `header`, `cookie`, `source` and `path`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Hash {
    /// The value of this header; of several, the first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub header: Option<String>,
    /// The value of this cookie.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cookie: Option<String>,
    /// The client's IP address. (To a sidecar all of its application's requests come from one.)
    pub source: bool,
    /// The path without the query.
    pub path: bool,
    /// The most that an endpoint gets, in percent of its share of the requests in flight; the next one in the key's order
    /// takes what is over it. Counted in this pillion, and only above a few. 0 means no bound.
    pub balance_factor: u32,
}

/// Prefers endpoints of the zone that `node.zone` names, as far as it has the capacity for its part of the callers. Where
/// it has not, the rest goes to zones that have more than their part. Callers are taken to be spread evenly over the zones.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ZoneAware {
    /// Whether zones count.
    pub aware: bool,
    /// With fewer endpoints, zones do not matter.
    pub min_endpoints: u32,
}

/// Groups of endpoints, of which the first takes everything while enough of it are available: until less than 72 percent
/// are. The next group takes what is left over.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(deny_unknown_fields, default)]
pub struct Priority {
    /// The label whose value says which group an endpoint is in. Without it: its zone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// The values, first the one that is preferred. Endpoints with any other or none come last. Without values there are no
    /// groups but those that a registry itself makes, like DNS with the priority of SRV records.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub order: Vec<String>,
}

impl Policy {
    /// As the config has it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::PeakEwma => "peak-ewma",
            Self::LeastRequest => "least-request",
            Self::LeastConnections => "least-connections",
            Self::RoundRobin => "round-robin",
            Self::Random => "random",
            Self::ResponseTime => "response-time",
            Self::Maglev => "maglev",
            Self::RingHash => "ring-hash",
        }
    }

    /// Whether it goes by what a request has in it.
    pub const fn hashes(self) -> bool {
        matches!(self, Self::Maglev | Self::RingHash)
    }
}

impl Default for SlowStart {
    fn default() -> Self {
        Self { window: None, aggression: Aggression(1.0), min_weight_percent: 10 }
    }
}

impl Default for Penalty {
    fn default() -> Self {
        Self { base: Duration::from_secs(1), max: Duration::from_secs(10) }
    }
}

impl Default for Hash {
    fn default() -> Self {
        Self { header: None, cookie: None, source: false, path: false, balance_factor: 125 }
    }
}

impl Default for ZoneAware {
    /// Envoy's, whose users know it: 6 endpoints.
    fn default() -> Self {
        Self { aware: false, min_endpoints: 6 }
    }
}
