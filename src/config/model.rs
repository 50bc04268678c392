//! The shape of the config file. Every field's doc comment appears in the JSON Schema; every default is stated here.

use super::human;
use crate::registry::Protocol;
use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{
    net::{Ipv4Addr, SocketAddr},
    num::NonZeroU32,
    path::PathBuf,
    time::Duration,
};

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
    /// Where pillion takes traffic. Without any: one named `egress` on 127.0.0.1:4140.
    pub listeners: Vec<Listener>,
    /// Settings for every service; what `services` sets for one goes before them.
    pub defaults: Service,
    /// Settings by service name. A service named here is followed from the start; others on their first request.
    pub services: IndexMap<String, Service>,
    pub access_log: AccessLog,
    pub log: Log,
}

/// Names of this node. They are labels only.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(deny_unknown_fields, default)]
pub struct Node {
    /// The local application's service name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub env: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
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
    pub listen: SocketAddr,
}

/// One registry. `kind` decides which other keys there are.
#[derive(Debug, Clone, PartialEq, JsonSchema, Deserialize)]
#[serde(rename_all = "lowercase")]
#[schemars(tag = "kind")]
pub enum Registry {
    Embedded(EmbeddedRegistry),
    File(FileRegistry),
    Consul(ConsulRegistry),
    Etcd(EtcdRegistry),
}

/// A registry inside this process, for a first look, development, and one machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct EmbeddedRegistry {
    /// Where its HTTP API listens.
    pub listen: SocketAddr,
    /// Keeps the instances in this file, so that they survive a restart.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub persist: Option<PathBuf>,
    /// How long an instance lives without a renewal when it names no `ttl` itself.
    #[serde(with = "human")]
    #[schemars(with = "human::Text")]
    pub ttl: Duration,
}

/// Instances listed in a YAML or JSON file, which is watched.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FileRegistry {
    /// Relative paths are relative to the config file's folder, here and everywhere in it.
    pub path: PathBuf,
}

/// Consul, through an agent's HTTP API.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ConsulRegistry {
    /// The agent: `http://HOST:PORT` or `https://HOST:PORT`.
    pub address: String,
    /// ACL token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<Secret>,
    /// Datacenter; the agent's own by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dc: Option<String>,
    /// Only instances that carry all of these tags.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// Only instances whose metadata has all of these values.
    #[serde(skip_serializing_if = "IndexMap::is_empty")]
    pub meta: IndexMap<String, String>,
    /// Only instances whose checks all pass. With `false`, those in warning are used too, with their warning weight.
    pub only_passing: bool,
    /// The longest time that one blocking query waits at the agent; at most 10m.
    #[serde(with = "human")]
    #[schemars(with = "human::Text")]
    pub wait: Duration,
    /// At most this many requests per second to the agent, over all services.
    pub max_requests_per_second: NonZeroU32,
    #[serde(skip_serializing_if = "Tls::is_default")]
    pub tls: Tls,
}

/// etcd, version 3.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct EtcdRegistry {
    /// `http://HOST:PORT` or `https://HOST:PORT`, several for one cluster.
    pub endpoints: Vec<String>,
    /// How keys and values are written.
    pub layout: Layout,
    /// The part of the key before the service name. Each layout has its framework's own as default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password: Option<Secret>,
    #[serde(skip_serializing_if = "Tls::is_default")]
    pub tls: Tls,
}

/// How a framework writes an instance into a key-value registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "kebab-case")]
pub enum Layout {
    /// `PREFIX/SERVICE/ID` → `host:port`, or JSON of the same map as in the `file` registry. Default prefix `/pillion`.
    #[default]
    Plain,
    /// go-kratos: `/microservices/SERVICE/ID`.
    Kratos,
    /// go-micro: `/micro/registry/SERVICE/NODE`.
    GoMicro,
    /// go-zero: `SERVICE/LEASE` → `host:port`. No prefix by default.
    GoZero,
    /// etcd's own naming format, which grpc-go resolves: `SERVICE/ANY`. No prefix by default.
    Grpc,
}

/// TLS as a client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(deny_unknown_fields, default)]
pub struct Tls {
    /// PEM file of the authorities to trust; the system's by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// PEM file of the client certificate; goes with `key`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cert: Option<PathBuf>,
    /// PEM file of the client certificate's private key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<PathBuf>,
    /// The name that the server's certificate must have, where it is not the host that is connected to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_name: Option<String>,
}

impl Tls {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// Following services in the registries.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Discovery {
    /// Registries in order of priority. All of them, in the order of `registries`, by default.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<String>,
    /// How long the first request for a service waits for the registries' first answer.
    #[serde(with = "human")]
    #[schemars(with = "human::Text")]
    pub first_answer: Duration,
    /// A service that no request asked for during this time is no longer followed, unless `services` names it.
    #[serde(with = "human")]
    #[schemars(with = "human::Text")]
    pub idle: Duration,
    /// After a change was published, further ones are gathered for this long.
    #[serde(with = "human")]
    #[schemars(with = "human::Text")]
    pub coalesce: Duration,
    /// At most this many services are followed on demand, so that made-up names cannot fill the memory.
    pub max_services: usize,
}

/// One place where pillion takes traffic.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Listener {
    pub name: String,
    pub listen: SocketAddr,
    #[serde(default)]
    pub protocol: ListenerProtocol,
    /// All requests go to this service, whatever they ask for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// A request header that names the service; `Host` by default and where the header is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_header: Option<String>,
    /// Endings to take off the `Host` to get the service's name, e.g. `.svc.cluster.local`. The first that fits is used.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub host_suffixes: Vec<String>,
    /// Pass HTTP/1.1 header names on with upper and lower case as they came, for old applications.
    #[serde(default)]
    pub preserve_header_case: bool,
    #[serde(default)]
    pub limits: ListenerLimits,
}

/// What a listener's clients speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "lowercase")]
pub enum ListenerProtocol {
    /// HTTP/1.1 and HTTP/2 (prior knowledge) on one port.
    #[default]
    Http,
}

/// What one listener accepts before it refuses.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ListenerLimits {
    /// Open connections, over all workers. Further ones are closed at once.
    pub connections: usize,
    /// Bytes of a request's head; more is answered with 431. From 1024 to 1048576.
    pub head_bytes: usize,
    /// Lines of a request's head; more is answered with 431.
    pub head_lines: usize,
    /// From a request's first byte to the end of its head; more is answered with 408.
    #[serde(with = "human")]
    #[schemars(with = "human::Text")]
    pub head_timeout: Duration,
    /// A connection without any request for this long is closed.
    #[serde(with = "human")]
    #[schemars(with = "human::Text")]
    pub idle_timeout: Duration,
    /// Requests at one time on one HTTP/2 connection.
    pub h2_streams: u32,
}

/// How requests for one service are carried.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(deny_unknown_fields, default)]
pub struct Service {
    /// Registries for this service, in order of priority, instead of `discovery.sources`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<String>,
    /// The name under which the registries know it, where that is another.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub registered_as: Option<String>,
    pub balance: Balance,
    /// What the upstreams speak. Without it: what the registry says; `http2` for gRPC requests; what ALPN settles
    /// where TLS is used; `http1` otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Protocol>,
    /// Use TLS to the upstreams, with these settings. Without it: if the registry says so, with the system's authorities.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
    pub timeouts: Timeouts,
    pub pool: Pool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(deny_unknown_fields, default)]
pub struct Balance {
    pub policy: Policy,
}

/// How the endpoint for a request is chosen. All of them honour weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "kebab-case")]
pub enum Policy {
    /// The cheaper of two drawn at random, by peak-sensitive latency × requests in flight.
    #[default]
    PeakEwma,
    /// The one of two drawn at random that has fewer requests in flight.
    LeastRequest,
    /// In turn, smoothly interleaved by weight.
    RoundRobin,
    /// At random, by weight.
    Random,
    /// At random, by weight divided by mean response time.
    ResponseTime,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Timeouts {
    /// To open a connection to an upstream, TLS included.
    #[serde(with = "human")]
    #[schemars(with = "human::Text")]
    pub connect: Duration,
    /// From the end of the request's head to the start of the response, over all tries.
    /// `grpc-timeout` and `x-request-timeout` can only shorten it.
    #[serde(with = "human")]
    #[schemars(with = "human::Text")]
    pub request: Duration,
    /// The longest time without a byte in either direction once the response has started, and for upgraded connections.
    #[serde(with = "human")]
    #[schemars(with = "human::Text")]
    pub idle: Duration,
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

/// The log of requests. It is written away from the request path; when it cannot keep up, lines are dropped and counted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(deny_unknown_fields, default)]
pub struct AccessLog {
    pub mode: AccessLogMode,
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
    /// Responses with 5xx, those made by pillion itself, and requests that were cut off.
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
    pub format: LogFormat,
}

/// A value that is never shown.
#[derive(Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    pub fn new(value: impl Into<String>) -> Self {
        Self(value.into())
    }

    /// The value itself, for the one place that sends it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

impl Serialize for Secret {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str("***")
    }
}

impl Serialize for Registry {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        // Deserialized by hand-over of `kind` (see `config::de`), so that errors keep their positions; written alike.
        #[derive(Serialize)]
        struct Tagged<'a, T> {
            kind: &'static str,
            #[serde(flatten)]
            settings: &'a T,
        }
        let kind = self.kind();
        match self {
            Self::Embedded(settings) => Tagged { kind, settings }.serialize(to),
            Self::File(settings) => Tagged { kind, settings }.serialize(to),
            Self::Consul(settings) => Tagged { kind, settings }.serialize(to),
            Self::Etcd(settings) => Tagged { kind, settings }.serialize(to),
        }
    }
}

impl Registry {
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Embedded(_) => "embedded",
            Self::File(_) => "file",
            Self::Consul(_) => "consul",
            Self::Etcd(_) => "etcd",
        }
    }
}

impl Layout {
    /// The key prefix that the framework uses unless told otherwise.
    pub fn default_prefix(self) -> &'static str {
        match self {
            Self::Plain => "/pillion",
            Self::Kratos => "/microservices",
            Self::GoMicro => "/micro/registry",
            Self::GoZero | Self::Grpc => "",
        }
    }
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
        Self { listen: localhost(4191) }
    }
}

impl Default for EmbeddedRegistry {
    fn default() -> Self {
        Self { listen: localhost(4192), persist: None, ttl: Duration::from_secs(30) }
    }
}

impl Default for ConsulRegistry {
    fn default() -> Self {
        Self {
            address: "http://127.0.0.1:8500".into(),
            token: None,
            dc: None,
            tags: Vec::new(),
            meta: IndexMap::new(),
            only_passing: true,
            // What Consul's own documentation and most frameworks use: under the usual 60 s of middleboxes.
            wait: Duration::from_secs(55),
            max_requests_per_second: NonZeroU32::new(50).expect("not zero"),
            tls: Tls::default(),
        }
    }
}

impl Default for EtcdRegistry {
    fn default() -> Self {
        Self {
            endpoints: vec!["http://127.0.0.1:2379".into()],
            layout: Layout::default(),
            prefix: None,
            user: None,
            password: None,
            tls: Tls::default(),
        }
    }
}

impl Default for Discovery {
    fn default() -> Self {
        Self {
            sources: Vec::new(),
            first_answer: Duration::from_secs(2),
            idle: Duration::from_secs(600),
            coalesce: Duration::from_millis(100),
            max_services: 1000,
        }
    }
}

impl Listener {
    /// The listener that there is when the config names none.
    pub fn egress() -> Self {
        Self {
            name: "egress".into(),
            listen: localhost(4140),
            protocol: ListenerProtocol::Http,
            service: None,
            service_header: None,
            host_suffixes: Vec::new(),
            preserve_header_case: false,
            limits: ListenerLimits::default(),
        }
    }
}

impl Default for ListenerLimits {
    fn default() -> Self {
        Self {
            connections: 10_000,
            head_bytes: 64 * 1024,
            head_lines: 100,
            head_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(300),
            h2_streams: 100,
        }
    }
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { connect: Duration::from_secs(1), request: Duration::from_secs(15), idle: Duration::from_secs(60) }
    }
}

impl Default for Pool {
    fn default() -> Self {
        Self { max_idle: 128, idle_timeout: Duration::from_secs(60), max_age: Duration::from_secs(600) }
    }
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
