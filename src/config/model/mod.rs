//! The shape of the config file. Every field's doc comment appears in the JSON Schema; every default is stated here.

mod app;
mod balance;
mod discovery;
mod dns;
mod drain;
mod fallback;
mod guard;
mod health_check;
mod hedge;
mod injection;
mod limits;
mod listener;
mod logs;
mod outlier;
mod register;
mod registries;
mod retry;
mod rollout;
mod routes;
mod routing;
mod secret;
mod service;
mod sources;
mod tcp;
mod tls;
mod transparent;
mod udp;
mod upgrade;

pub use app::{App, AppProtocol, AppSource, Callers, VersionBaggage, VersionBaggageMode};
pub use balance::{Aggression, Balance, Hash, Penalty, Policy, Priority, SlowStart, ZoneAware};
pub use discovery::{Discovery, Snapshot};
pub use dns::{AddressRange, Dns};
pub use drain::Drain;
pub use fallback::{Fallback, FallbackOn, FixedResponse, LastGood};
pub use guard::Guard;
pub use health_check::{GrpcCheck, HealthCheck, HttpCheck, StatusRange};
pub use hedge::Hedge;
pub use injection::{Abort, Delay, FaultInjection, Percent};
pub use limits::{AdaptiveLimit, CallerRate, Limits, RateLimit};
pub use listener::{Connect, Listener, ListenerLimits, ListenerProtocol};
pub use logs::{AccessLog, AccessLogMode, Log, LogFormat, Sample};
pub use outlier::{Breaker, BreakerOpen, Deviations, Outlier};
pub use register::{
    ConsulCheck, ConsulRegister, LocalHealth, NacosRegister, Network, Register, RegisterAddress, RegisterPort,
};
pub use registries::*;
pub use retry::{Retry, RetryBackoff, RetryBudget, RetryOn};
pub use rollout::{ErrorRateGuard, LatencyGuard, Prometheus, QueryGuard, Rollout, RolloutEvidence, RolloutStart};
pub use routes::{
    HeaderEdit, HeaderEdits, Labels, Mirror, PathMatch, Redirect, Rewrite, Route, RouteLimits, RouteMatch, SetCookie,
    Sticky, Target, ValueMatch, VersionOverride, WhenEmpty,
};
pub use routing::{RolloutStore, RouteStore, Routing, StoredRoutes};
pub use secret::Secret;
pub use service::{Pool, Protocol, Service, Timeouts};
pub use sources::{Failover, Source};
pub use tcp::{Direct, ProxyVersion, Tcp, WhenGone};
pub use tls::Tls;
pub use transparent::{Direction, Transparent, Unknown, VirtualAddress};
pub use udp::Udp;
pub use upgrade::Upgrade;

use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::net::{Ipv4Addr, SocketAddr};

/// pillion's whole configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// What this pillion and its application are called.
    pub node: Node,
    /// Threads that carry traffic: a number, or `auto` for one per core.
    pub workers: Workers,
    pub admin: Admin,
    /// The registries, by a name of your choice. Their order is the order of priority unless `discovery.sources` says otherwise.
    pub registries: IndexMap<String, Registry>,
    pub discovery: Discovery,
    /// What pillion registers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub register: Vec<Register>,
    /// Where pillion takes traffic. Without any: one named `egress` on 127.0.0.1:4140.
    pub listeners: Vec<Listener>,
    /// Answers applications' DNS questions. Off by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dns: Option<Dns>,
    /// Settings for every service; what `services` sets for one goes before them.
    pub defaults: Service,
    /// Settings by service name. A service named here is followed from the start; others on their first request.
    pub services: IndexMap<String, Service>,
    #[serde(skip_serializing_if = "Routing::is_default")]
    pub routing: Routing,
    pub drain: Drain,
    pub access_log: AccessLog,
    pub log: Log,
    /// Lets another pillion take this one's place without a lost connection. Off by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upgrade: Option<Upgrade>,
}

/// Names of this node. They are labels only, but for `zone` (see `balance.zone`) and `service`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(deny_unknown_fields, default)]
pub struct Node {
    /// The local application's service name. Services that it calls through pillion are told it, in `x-pillion-caller`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// The environment, for registrations and for the `env_label` of a registry's `scope`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub env: Option<String>,
    /// The zone, for `balance.zone`, `zone_hints` of Kubernetes, and registrations.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// The version, for registrations and for `version_baggage` of a listener's `app`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
}

/// How many worker threads: a number from 1 to 256, or `auto`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum Workers {
    Count(#[schemars(range(min = 1, max = 256))] u16),
    Auto(Auto),
}

/// The word `auto`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Auto {
    Auto,
}

/// The admin interface: health, metrics and state over HTTP.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Admin {
    /// Where it listens.
    pub listen: SocketAddr,
    /// Take requests that change something (`POST /api/drain`, `POST /api/quit`, `PUT /api/log`) from other machines and pods,
    /// too. By default only from loopback addresses, whatever `listen` is: nothing else says who asks.
    pub remote_control: bool,
}

const fn localhost(port: u16) -> SocketAddr {
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}

impl Workers {
    /// The number of worker threads on this machine.
    pub fn count(self) -> usize {
        match self {
            Self::Count(count) => usize::from(count),
            Self::Auto(_) => std::thread::available_parallelism().map_or(1, usize::from),
        }
    }
}

impl Default for Workers {
    fn default() -> Self {
        Self::Count(1)
    }
}

impl Default for Admin {
    fn default() -> Self {
        Self { listen: localhost(4191), remote_control: false }
    }
}
