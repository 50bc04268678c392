//! When a request goes to two endpoints.

use super::super::human;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Sends a request that has no answer after some time to a second endpoint as well; the first answer counts, the other is
/// cancelled. Idempotent requests without a body only, no gRPC. Counted in the retry budget. One of the two keys is needed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Hedge {
    /// After this time.
    #[serde(default, with = "human::optional", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<human::Text>")]
    pub after: Option<Duration>,
    /// After the time that so many percent of the service's responses have taken lately, once there were a hundred.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub percentile: Option<u32>,
}
