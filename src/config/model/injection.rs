//! Faults that are put in on purpose, to see how callers bear them.

use super::super::human;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Faults for testing. Each is drawn once per request, before its first try.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(deny_unknown_fields, default)]
pub struct FaultInjection {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delay: Option<Delay>,
    /// After the delay, where both hit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub abort: Option<Abort>,
}

/// The request waits before it is sent. The wait counts in its timeout and in the caller's deadline.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Delay {
    pub percent: Percent,
    /// How long such a request waits.
    #[serde(with = "human")]
    #[schemars(with = "human::Text")]
    pub duration: Duration,
    /// Only requests that carry this header; the percentage is of those.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header: Option<String>,
    /// Only those that carry `header` with this value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
}

/// pillion answers the request itself. A `fallback` takes it for the service's own answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Abort {
    pub percent: Percent,
    /// What HTTP callers get.
    #[serde(default = "unavailable")]
    #[schemars(range(min = 400, max = 599))]
    pub status: u16,
    /// What gRPC callers get; by default what their libraries make of `status`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 16))]
    pub grpc_status: Option<u8>,
    /// Only requests that carry this header; the percentage is of those.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header: Option<String>,
    /// Only those that carry `header` with this value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
}

/// A share in percent, from 0 to 100; fractions count.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Percent(#[schemars(range(min = 0.0, max = 100.0))] pub f64);

fn unavailable() -> u16 {
    503
}
