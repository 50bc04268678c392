//! The local application behind a listener, and how its callers' requests are carried to it.

use super::{
    super::app_address::{PortOrAddress, port_or_address},
    super::human,
    Breaker, Guard, HealthCheck, Limits, Outlier, Pool, Protocol, Retry, Service, Timeouts, VersionOverride,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{net::SocketAddr, time::Duration};

/// The local application: where it is, and how its callers' requests are carried to it. Nothing is taken from `defaults`,
/// which are for the services that it calls itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct App {
    /// Where it listens: a port of 127.0.0.1, or `IP:PORT`.
    #[serde(deserialize_with = "port_or_address")]
    #[schemars(with = "PortOrAddress")]
    pub address: SocketAddr,
    /// What it speaks. Without it: `http2` for gRPC requests, `http1` for all others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<AppProtocol>,
    /// From whose address its connections come.
    #[serde(default)]
    pub source: AppSource,
    /// As a service's.
    #[serde(default)]
    pub timeouts: Timeouts,
    #[serde(default)]
    pub limits: Limits,
    #[serde(default)]
    pub pool: Pool,
    /// Checks of pillion's own, of which `/ready` tells. Requests are sent to the application whatever they show. Without it
    /// there are none. (`max_interval` and `linger` are of no use here.)
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health_check: Option<HealthCheck>,
    #[serde(default)]
    pub callers: Callers,
    #[serde(default)]
    pub version_baggage: VersionBaggage,
}

/// What the local application speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum AppProtocol {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// Both: each request reaches it by the protocol by which it came, and gRPC by HTTP/2.
    Same,
}

/// From whose address the local application's connections come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "lowercase")]
pub enum AppSource {
    /// pillion's own.
    #[default]
    Pillion,
    /// The client's, or what the PROXY protocol says is that. pillion needs CAP_NET_RAW or CAP_NET_ADMIN for it, and the kernel to be told
    /// that the answers are for it (`pillion net up --keep-source PORT`).
    Client,
}

/// How callers are told apart in the metrics.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Callers {
    /// The request header that names the caller. A pillion whose `node.service` is set says that in `x-pillion-caller`.
    /// Requests without it are counted as from `unknown`.
    pub header: String,
    /// As many callers have numbers of their own; further ones are counted together as `other`. From 1 to 10000.
    pub max: usize,
    /// The numbers of a caller that did not come for so long are dropped.
    #[serde(with = "human")]
    #[schemars(with = "human::Text")]
    pub idle: Duration,
}

/// Whether requests for a version are marked with it, in the W3C `baggage` header. An application that passes baggage on, as
/// OpenTelemetry's SDKs do, then asks for the same version wherever it calls.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct VersionBaggage {
    pub mode: VersionBaggageMode,
    /// The header whose value is the version.
    pub header: String,
    /// The member of `baggage` that is added.
    pub baggage: String,
    /// What `own` puts in; `node.version` by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
}

/// Which requests are marked. None that has the member already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "lowercase")]
pub enum VersionBaggageMode {
    #[default]
    Off,
    /// Those with the header: with what it says.
    Passed,
    /// Those too; and those without it: with this instance's own version.
    Own,
}

impl App {
    /// At `address`, with every setting's default.
    pub fn at(address: SocketAddr) -> Self {
        Self {
            address,
            protocol: None,
            source: AppSource::Pillion,
            timeouts: Timeouts::default(),
            limits: Limits::default(),
            pool: Pool::default(),
            health_check: None,
            callers: Callers::default(),
            version_baggage: VersionBaggage::default(),
        }
    }

    /// Its settings as those of a service that has one endpoint. Nothing takes that out, and requests are not repeated:
    /// whoever called may have another instance to try.
    pub fn service(&self) -> Service {
        Service {
            protocol: match self.protocol {
                Some(AppProtocol::Http1) => Some(Protocol::Http1),
                Some(AppProtocol::Http2) => Some(Protocol::Http2),
                Some(AppProtocol::Same) | None => None,
            },
            timeouts: self.timeouts.clone(),
            limits: self.limits.clone(),
            pool: self.pool.clone(),
            // It is near and alone, so there is nothing to gain by asking it less often while it fails.
            health_check: self.health_check.clone().map(|check| HealthCheck { max_interval: check.interval, ..check }),
            retry: Retry { attempts: 0, on: Vec::new(), ..Retry::default() },
            breaker: Breaker { enabled: false, consecutive_failures: 0, ..Breaker::default() },
            outlier: Outlier { enabled: false, ..Outlier::default() },
            guard: Guard { enabled: false, ..Guard::default() },
            panic_threshold: 0,
            ..Service::default()
        }
    }
}

impl Default for Callers {
    fn default() -> Self {
        Self { header: "x-pillion-caller".into(), max: 100, idle: Duration::from_secs(600) }
    }
}

impl Default for VersionBaggage {
    fn default() -> Self {
        let VersionOverride { header, baggage, .. } = VersionOverride::default();
        Self { mode: VersionBaggageMode::Off, header, baggage, value: None }
    }
}
