//! When a request that failed is tried again.

use super::super::human;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// When a request that failed is tried again, on another endpoint each time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Retry {
    /// Tries after the first; 0 means none.
    pub attempts: u32,
    /// After what.
    pub on: Vec<RetryOn>,
    /// The longest that one try may take to begin its response; then another one is made, if that is safe. Without it:
    /// `timeouts.request` for all together.
    #[serde(with = "human::optional", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<human::Text>")]
    pub per_try_timeout: Option<Duration>,
    pub backoff: RetryBackoff,
    /// A request's body of up to this many bytes is kept, to be sent again. Sending it does not wait for that.
    pub buffer: usize,
    pub budget: RetryBudget,
}

/// What is tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RetryOn {
    /// There was no connection.
    ConnectFailure,
    /// The upstream refused an HTTP/2 stream before it looked at it.
    RefusedStream,
    /// The connection ended before the response, or `per_try_timeout` passed; for idempotent methods.
    Reset,
    /// Status 502, 503 or 504; for idempotent methods.
    GatewayError,
    /// gRPC status UNAVAILABLE before any message.
    GrpcUnavailable,
}

/// How long to wait before another try: a random time up to a limit that doubles with each ("full jitter").
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RetryBackoff {
    /// The first limit.
    #[serde(with = "human")]
    #[schemars(with = "human::Text")]
    pub base: Duration,
    /// The last limit.
    #[serde(with = "human")]
    #[schemars(with = "human::Text")]
    pub max: Duration,
}

/// How many retries the service may have at most, so that a service that fails is not buried under them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RetryBudget {
    /// Retries at one time, in percent of the other requests in flight; and in all, in percent of the requests that came.
    pub percent: u32,
    /// As many per second are allowed in any case; ten seconds' worth can be saved up.
    pub per_second: u32,
}

impl Default for Retry {
    fn default() -> Self {
        use RetryOn::{ConnectFailure, GatewayError, GrpcUnavailable, RefusedStream, Reset};
        Self {
            attempts: 2,
            on: vec![ConnectFailure, RefusedStream, Reset, GatewayError, GrpcUnavailable],
            per_try_timeout: None,
            backoff: RetryBackoff::default(),
            buffer: 64 * 1024,
            budget: RetryBudget::default(),
        }
    }
}

impl Default for RetryBackoff {
    fn default() -> Self {
        Self { base: Duration::from_millis(25), max: Duration::from_millis(250) }
    }
}

impl Default for RetryBudget {
    fn default() -> Self {
        Self { percent: 20, per_second: 10 }
    }
}
