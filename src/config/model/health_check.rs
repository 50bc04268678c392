//! How endpoints are checked by requests of pillion's own.

use super::super::{
    health_check::{PathOrMap, path_or_map},
    human,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{num::NonZeroU16, time::Duration};

/// Checks each endpoint now and then, and sends nothing to those that fail. With neither `http` nor `grpc` a connection is
/// opened, with TLS where it is used, and that is the check; otherwise it comes first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct HealthCheck {
    /// An HTTP request: a path, or a map. With `grpc` as well, for those endpoints whose registry does not say that they
    /// are for gRPC.
    #[serde(deserialize_with = "path_or_map", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<PathOrMap>")]
    pub http: Option<HttpCheck>,
    /// A call of the gRPC health checking protocol. With `http` as well, for those endpoints whose registry says that
    /// they are for gRPC.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grpc: Option<GrpcCheck>,
    /// Connect to this port instead of the endpoint's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<NonZeroU16>,
    /// From one check's end to the next check, give or take a tenth. A third of it while an endpoint that passed before
    /// fails, until that is decided.
    #[serde(with = "human")]
    #[schemars(with = "human::Text")]
    pub interval: Duration,
    /// While an unhealthy endpoint goes on failing, the time between checks grows by half with each, up to this. (Not at
    /// all if `interval` is longer.)
    #[serde(with = "human")]
    #[schemars(with = "human::Text")]
    pub max_interval: Duration,
    /// For one check, connecting included.
    #[serde(with = "human")]
    #[schemars(with = "human::Text")]
    pub timeout: Duration,
    /// So many passed checks in a row make an unhealthy endpoint healthy. The very first check decides alone.
    pub rise: u32,
    /// So many failed checks in a row make a healthy endpoint unhealthy. The very first check decides alone.
    pub fall: u32,
    /// An endpoint that its registry no longer lists stays in use for so long, while its checks pass. At the first check or
    /// request that fails it is gone.
    #[serde(with = "human")]
    #[schemars(with = "human::Text")]
    pub linger: Duration,
}

/// What is asked by HTTP, and what is a good answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct HttpCheck {
    /// With a query, if need be.
    pub path: String,
    /// The `Host`; by default the service's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// The method of the request.
    pub method: String,
    /// Statuses that pass: numbers and ranges.
    pub statuses: Vec<StatusRange>,
    /// A text that the first 64 KiB of the response's body must contain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
}

/// What is asked by gRPC. The answer must be SERVING.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(deny_unknown_fields, default)]
pub struct GrpcCheck {
    /// The gRPC service whose health is asked for; empty for the server's as a whole.
    pub service: String,
}

/// A status or a range of them, both ends included: `204`, `200-399`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StatusRange {
    pub from: u16,
    pub to: u16,
}

impl StatusRange {
    pub fn contains(self, status: u16) -> bool {
        (self.from..=self.to).contains(&status)
    }
}

impl Default for HealthCheck {
    fn default() -> Self {
        Self {
            http: None,
            grpc: None,
            port: None,
            interval: Duration::from_secs(5),
            max_interval: Duration::from_secs(30),
            timeout: Duration::from_secs(1),
            rise: 2,
            fall: 3,
            linger: Duration::from_secs(30),
        }
    }
}

impl Default for HttpCheck {
    /// The statuses are Kubernetes's.
    fn default() -> Self {
        Self {
            path: "/".into(),
            host: None,
            method: "GET".into(),
            statuses: vec![StatusRange { from: 200, to: 399 }],
            body: None,
        }
    }
}
