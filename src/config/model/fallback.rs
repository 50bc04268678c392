//! What a caller gets when the service it asked for has no good answer.

use super::super::human;
use bytes::Bytes;
use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{path::PathBuf, time::Duration};

/// What a caller gets instead of an error: exactly one of `response`, `service` and `last_good`. The answer says which in
/// `x-pillion-fallback`. For gRPC requests only `service` counts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Fallback {
    /// Instead of what.
    pub on: Vec<FallbackOn>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response: Option<FixedResponse>,
    /// Another service to carry the request to, if its body is still at hand (`retry.buffer`), and if it is idempotent or
    /// surely was not executed. That service's own fallback does not count then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_good: Option<LastGood>,
}

/// What a fallback stands in for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum FallbackOn {
    /// An error of pillion's own that is not the caller's fault: no endpoints, no connection, no answer in time.
    Error,
    /// The upstream's final answer is 502, 503 or 504, or gRPC UNAVAILABLE before any message.
    GatewayError,
}

/// A response that is always the same.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct FixedResponse {
    /// Its status.
    #[schemars(range(min = 200, max = 599))]
    pub status: u16,
    /// Its body; or else `file`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
    /// A file with the body. It is read with the config.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// Its `content-type`.
    pub content_type: String,
    /// Further headers.
    #[serde(skip_serializing_if = "IndexMap::is_empty")]
    pub headers: IndexMap<String, String>,
    /// What is in `body` or in `file`.
    #[serde(skip)]
    pub content: Bytes,
}

/// The last good response to the same GET or HEAD, where HTTP lets a shared cache store it (RFC 9111)
/// and it says itself that it may be kept (`public`, `max-age`, `s-maxage`). Kept per worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LastGood {
    /// Bytes that all responses of the service may take together; the one that was not used for the longest time goes.
    pub max_bytes: usize,
    /// A larger body is not kept.
    pub max_body: usize,
    /// An older response is not given.
    #[serde(with = "human")]
    #[schemars(with = "human::Text")]
    pub max_age: Duration,
}

impl Default for Fallback {
    fn default() -> Self {
        Self { on: vec![FallbackOn::Error, FallbackOn::GatewayError], response: None, service: None, last_good: None }
    }
}

impl Default for FixedResponse {
    fn default() -> Self {
        Self {
            status: 200,
            body: None,
            file: None,
            content_type: "text/plain; charset=utf-8".into(),
            headers: IndexMap::new(),
            content: Bytes::new(),
        }
    }
}

impl Default for LastGood {
    fn default() -> Self {
        Self { max_bytes: 1024 * 1024, max_body: 64 * 1024, max_age: Duration::from_secs(600) }
    }
}
