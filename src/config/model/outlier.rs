//! When an endpoint is kept out because of what its traffic showed.

use super::super::human;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Keeps an endpoint out that fails by itself, whatever the others do. After its time it gets one request as a probe;
/// if that fails too, it stays out for longer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Breaker {
    /// Whether it keeps anybody out.
    pub enabled: bool,
    /// So many failures in a row open it, or two if there was no success for two seconds while the others did well; 0 means
    /// any number is borne. A failure is a 5xx other than 501, no response, a
    /// response that breaks off, or gRPC UNKNOWN, INTERNAL, UNAVAILABLE or DATA_LOSS.
    pub consecutive_failures: u32,
    /// More failures than this, in percent of its requests in the last ten seconds, open it.
    pub failure_percent: u32,
    /// With fewer requests in ten seconds, percentages say nothing.
    pub min_requests: u32,
    pub open: BreakerOpen,
    /// At most so many of the service's endpoints, in percent and this one included, may be unavailable for it to open.
    /// Never the last one.
    pub max_ejected: u32,
}

/// How long an endpoint is kept out, plus up to a fifth at random.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct BreakerOpen {
    /// The first time. Each further time that follows on it lasts twice as long.
    #[serde(with = "human")]
    #[schemars(with = "human::Text")]
    pub base: Duration,
    /// The longest time.
    #[serde(with = "human")]
    #[schemars(with = "human::Text")]
    pub max: Duration,
}

/// Keeps an endpoint out that fails far more often than the others, for the same times as the breaker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Outlier {
    /// Whether it keeps anybody out.
    pub enabled: bool,
    /// Its success rate of the last ten seconds is below the mean of all by more than so many standard deviations, and
    /// by 5 percent at least.
    pub deviations: Deviations,
    /// Only if so many endpoints had `min_requests`.
    pub min_endpoints: u32,
    /// An endpoint counts if it had so many requests in ten seconds.
    pub min_requests: u32,
    /// As in `breaker`.
    pub max_ejected: u32,
}

/// A number of standard deviations.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Deviations(#[schemars(range(min = 0.1, max = 10.0))] pub f64);

impl Default for Breaker {
    fn default() -> Self {
        Self {
            enabled: true,
            consecutive_failures: 5,
            failure_percent: 20,
            min_requests: 20,
            open: BreakerOpen::default(),
            max_ejected: 50,
        }
    }
}

impl Default for BreakerOpen {
    fn default() -> Self {
        Self { base: Duration::from_secs(1), max: Duration::from_secs(60) }
    }
}

impl Default for Outlier {
    /// Envoy's, whose users know them: 1.9 deviations, 5 endpoints, 100 requests, 10 percent.
    fn default() -> Self {
        Self { enabled: true, deviations: Deviations(1.9), min_endpoints: 5, min_requests: 100, max_ejected: 10 }
    }
}
