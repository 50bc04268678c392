//! The access log and pillion's own log.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// The log of requests. It is written away from the request path; when it cannot keep up, lines are dropped and counted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(deny_unknown_fields, default)]
pub struct AccessLog {
    /// Which requests have a line.
    pub mode: AccessLogMode,
    /// How a line is written.
    pub format: LogFormat,
    /// The share of successful requests that is logged with `mode: all`, from 0.0 to 1.0.
    pub sample: Sample,
    /// A file to append to; standard output by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
}

/// A share from 0.0 to 1.0.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Sample(#[schemars(range(min = 0.0, max = 1.0))] pub f64);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "lowercase")]
pub enum AccessLogMode {
    Off,
    /// Responses with 5xx, those made by pillion itself, and requests that were cut off or needed a fallback.
    #[default]
    Errors,
    All,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    #[default]
    Text,
    Json,
}

/// pillion's own log, on standard error.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// `error`, `warn`, `info`, `debug`, `trace`, or per module: `info,pillion::registry=debug`. Can be changed while running.
    pub level: String,
    /// How a line is written.
    pub format: LogFormat,
}

impl Default for Sample {
    fn default() -> Self {
        Self(1.0)
    }
}

impl Default for Log {
    fn default() -> Self {
        Self { level: "info".into(), format: LogFormat::Text }
    }
}
