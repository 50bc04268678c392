//! How much a service is sent, at one time and per second.

use super::super::human;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// How much a service is sent at one time and per second, over all workers. What is more is refused at once.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Requests in flight, each until its response has ended; upgraded connections count for as long as they live. A
    /// further one waits if `queue_timeout` allows it, and is answered with 503.
    pub requests: u32,
    /// Open connections to the endpoints, idle ones included. A request that needs a further one is answered with 503.
    pub connections: u32,
    /// Requests that may wait for their turn at one time.
    pub pending: u32,
    /// The longest that a request waits for its turn; with `0s` none waits. At most `timeouts.request`.
    #[serde(with = "human")]
    #[schemars(with = "human::Text")]
    pub queue_timeout: Duration,
    /// Lower `requests` while the latency shows that more are sent than the service can work on at one time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adaptive: Option<AdaptiveLimit>,
    /// Requests per second. What is more is answered with 429.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate: Option<RateLimit>,
}

/// The bounds within which the number of requests in flight adapts itself. `limits.requests` is a bound as well.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AdaptiveLimit {
    /// The limit is never below this.
    pub min: u32,
    /// The limit is never above this.
    pub max: u32,
    /// How many times as long as usual responses may take before fewer requests are sent. From 1.0 to 10.0.
    pub tolerance: f64,
    /// How often the limit is worked out, if ten requests or more have been answered. From 10ms to 1m.
    #[serde(with = "human")]
    #[schemars(with = "human::Text")]
    pub window: Duration,
}

/// Requests per second: of all callers together, of each, or both.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(deny_unknown_fields, default)]
pub struct RateLimit {
    /// Of all callers together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub per_second: Option<u32>,
    /// How many may come at once after a pause; by default as many as in a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub burst: Option<u32>,
    /// Of each caller.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub per_caller: Option<CallerRate>,
}

/// Requests per second of each caller.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CallerRate {
    /// The request header that names the caller. Requests without it count as one caller.
    pub header: String,
    /// As many for each caller.
    pub per_second: u32,
    /// How many may come at once after a pause; by default as many as in a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst: Option<u32>,
    /// As many callers are told apart; for a further one, the one that came last the longest ago is forgotten.
    #[serde(default = "max_callers")]
    pub max_callers: u32,
}

fn max_callers() -> u32 {
    1000
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            requests: 1024,
            connections: 1024,
            pending: 1024,
            queue_timeout: Duration::ZERO,
            adaptive: None,
            rate: None,
        }
    }
}

impl Default for AdaptiveLimit {
    fn default() -> Self {
        Self { min: 10, max: 1024, tolerance: 1.5, window: Duration::from_millis(100) }
    }
}
