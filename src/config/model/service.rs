//! How requests for a service are carried.

use super::{
    super::human, Balance, Breaker, Fallback, FaultInjection, Guard, HealthCheck, Hedge, Labels, Limits, Outlier,
    Retry, Rollout, Route, Source, Tcp, Tls, Udp, VersionOverride, VirtualAddress, WhenEmpty,
};
use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// How requests for one service are carried.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Service {
    /// Registries for this service, in order of priority, instead of `discovery.sources`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<Source>,
    /// The name under which the registries know it, where that is another. A registry's `scope` may add to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub registered_as: Option<String>,
    /// Virtual addresses, at which nobody listens: redirected connections to one of them (listeners with `transparent`) go to
    /// this service. `IP` with all its ports, or `IP:PORT`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<String>")]
    pub addresses: Vec<VirtualAddress>,
    /// Who gets which request.
    pub balance: Balance,
    /// What the upstreams speak. Without it: what the registry says; `http2` for gRPC requests; what ALPN settles
    /// where TLS is used; `http1` otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Protocol>,
    /// Use TLS to the upstreams, with these settings. Without it: if the registry says so, with the system's authorities.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
    /// How long what may take.
    pub timeouts: Timeouts,
    pub retry: Retry,
    /// Without it, a request goes to one endpoint at a time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hedge: Option<Hedge>,
    pub breaker: Breaker,
    pub outlier: Outlier,
    /// Checks of pillion's own. Without it there are none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health_check: Option<HealthCheck>,
    pub guard: Guard,
    /// With fewer available endpoints than this, in percent, all are used, those that are not available too: better a
    /// chance with each than the whole load on the few. 0 means never.
    pub panic_threshold: u32,
    pub pool: Pool,
    pub limits: Limits,
    pub tcp: Tcp,
    pub udp: Udp,
    /// What callers get instead of an error. Without it: the error.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fallback: Option<Fallback>,
    /// Faults for testing. Without it there are none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub faults: Option<FaultInjection>,
    /// Parts of the endpoints, by a name of your choice and the labels that their instances have in the registry:
    /// `canary: { version: v2 }`.
    #[serde(skip_serializing_if = "IndexMap::is_empty")]
    pub subsets: IndexMap<String, Labels>,
    /// What becomes of requests for a subset that is empty, in which no endpoint can take requests: `fail`, `service`
    /// (any of the service's endpoints, the default) or another subset. It is counted in
    /// `pillion_subset_fallbacks_total` and shown in the access log.
    #[serde(skip_serializing_if = "IndexMap::is_empty")]
    pub when_empty: IndexMap<String, WhenEmpty>,
    /// How requests can ask for a subset by themselves.
    #[serde(skip_serializing_if = "VersionOverride::is_default")]
    pub version_override: VersionOverride,
    /// What becomes of which requests. Without any they go to any of the endpoints.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<Route>,
    /// Moves the splits between two subsets step by step, as their figures allow. Without it they stay as they are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rollout: Option<Rollout>,
}

/// What an upstream speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2: by prior knowledge, or by ALPN when the connection is TLS.
    Http2,
}

/// How long what may take.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Timeouts {
    /// To open a connection to an upstream, TLS included.
    #[serde(with = "human")]
    #[schemars(with = "human::Text")]
    pub connect: Duration,
    /// From the request to the start of the response, over all tries, connecting included; while the request's body still
    /// comes in, from its end.
    /// `grpc-timeout` and `x-request-timeout` can only shorten it.
    #[serde(with = "human")]
    #[schemars(with = "human::Text")]
    pub request: Duration,
    /// The longest time without a byte in either direction once the response has started, and for upgraded connections.
    #[serde(with = "human")]
    #[schemars(with = "human::Text")]
    pub idle: Duration,
    /// From the request to the end of the response, whatever moves; upgraded connections as well. Without it: no limit.
    #[serde(with = "human::optional", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<human::Text>")]
    pub stream: Option<Duration>,
}

/// Connections to upstreams, per worker and endpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Pool {
    /// Idle HTTP/1.1 connections that are kept.
    pub max_idle: usize,
    /// An idle connection is closed after this time.
    #[serde(with = "human")]
    #[schemars(with = "human::Text")]
    pub idle_timeout: Duration,
    /// A connection takes no new request after this time, so that balancers behind names and addresses see changes.
    #[serde(with = "human")]
    #[schemars(with = "human::Text")]
    pub max_age: Duration,
}

impl Default for Service {
    fn default() -> Self {
        Self {
            sources: Vec::new(),
            registered_as: None,
            addresses: Vec::new(),
            balance: Balance::default(),
            protocol: None,
            tls: None,
            timeouts: Timeouts::default(),
            retry: Retry::default(),
            hedge: None,
            breaker: Breaker::default(),
            outlier: Outlier::default(),
            health_check: None,
            guard: Guard::default(),
            panic_threshold: 50,
            pool: Pool::default(),
            limits: Limits::default(),
            tcp: Tcp::default(),
            udp: Udp::default(),
            fallback: None,
            faults: None,
            subsets: IndexMap::new(),
            when_empty: IndexMap::new(),
            version_override: VersionOverride::default(),
            routes: Vec::new(),
            rollout: None,
        }
    }
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(1),
            request: Duration::from_secs(15),
            idle: Duration::from_secs(60),
            stream: None,
        }
    }
}

impl Default for Pool {
    fn default() -> Self {
        Self { max_idle: 128, idle_timeout: Duration::from_secs(60), max_age: Duration::from_secs(600) }
    }
}
