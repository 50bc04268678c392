//! What pillion registers: the local application, as others are to find it.

use super::{
    super::{
        health_check::{PathOrMap, path_or_map},
        human,
        register::one_or_more,
    },
    GrpcCheck, HttpCheck, Protocol,
};
use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{net::IpAddr, num::NonZeroU16, path::PathBuf, time::Duration};

/// One instance of the local application, which pillion registers while its checks pass, and takes out before it stops.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Register {
    /// What it is called; `node.service` by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// The name in the registries, made of `{service}`, `{env}`, `{version}`, `{zone}` (the `node`'s, or this entry's) and
    /// `{domain}`.
    pub name: String,
    /// A regular expression that the whole name must match.
    pub name_pattern: String,
    /// For `{domain}` in the name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// Unique within the service; by default `NAME-HOST-PORT`, which stays the same over restarts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Where others reach it: an IP address or a host name, `{ interface: eth0 }`, or `{ network: 10.0.0.0/8 }`. By default
    /// the address from which this machine reaches others. Never a loopback address, unless it is written here.
    #[serde(skip_serializing_if = "RegisterAddress::is_default")]
    pub address: RegisterAddress,
    /// A number, `{ env: PORT }`, `{ file: /run/app.port }` (waits for the file, and follows it), `{ listener: inbound }`
    /// (the port of a listener of pillion's), or `{ pid_file: /run/app.pid }` or `{ pid: 4711 }` (the port on which that
    /// process listens, or one that it started), or `command` (the same of what `pillion register … -- COMMAND` runs).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<RegisterPort>,
    /// The registries to register in, by name; one or a list. Without it: the only one that takes registrations.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "one_or_more")]
    #[schemars(with = "super::super::register::OneOrMore")]
    pub registry: Vec<String>,
    /// Share of the traffic relative to the service's other instances.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<u32>,
    /// `node.version` by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// `node.zone` by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// What it speaks: `http1` or `http2`. Layouts that register by scheme write `grpc` for `http2`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Protocol>,
    /// Whether it wants TLS.
    pub tls: bool,
    /// Tags of the instance, where the registry has such.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// Metadata of the instance.
    #[serde(skip_serializing_if = "IndexMap::is_empty")]
    pub metadata: IndexMap<String, String>,
    /// When the entry is neither renewed nor taken out, because pillion was killed, the registry forgets it after this.
    /// Renewed three times as often.
    #[serde(with = "human")]
    #[schemars(with = "human::Text")]
    pub ttl: Duration,
    /// It is registered once these checks pass.
    pub health: LocalHealth,
    /// What only Consul has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub consul: Option<ConsulRegister>,
    /// What only Nacos has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nacos: Option<NacosRegister>,
}

/// How it is registered in Consul.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ConsulRegister {
    /// Who tells Consul that it is fit to serve.
    pub check: ConsulCheck,
    /// Once it was critical for so long, Consul forgets it; at least `1m`, which is Consul's own minimum.
    #[serde(with = "human")]
    #[schemars(with = "human::Text")]
    pub deregister_critical_after: Duration,
}

/// The one check that Consul has of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "lowercase")]
pub enum ConsulCheck {
    /// pillion, which must say so again within the `ttl`.
    #[default]
    Ttl,
    /// The agent, which sends the request of `health.http` to the registered address.
    Http,
    /// The agent, which connects to the registered address.
    Tcp,
    /// The agent, which makes the call of `health.grpc` to the registered address.
    Grpc,
}

/// How it is registered in Nacos.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct NacosRegister {
    /// The cluster of the instance, which is `DEFAULT` by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
}

/// Where others reach it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum RegisterAddress {
    /// The address from which this machine reaches others.
    #[default]
    Outgoing,
    Host(String),
    /// The first address of this network interface, IPv4 before IPv6.
    Interface(String),
    /// The only address of this machine that is in this network.
    Network(Network),
}

/// A network in CIDR notation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    pub address: IpAddr,
    /// The length of its prefix in bits.
    pub bits: u8,
}

/// Where its port comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RegisterPort {
    Number(NonZeroU16),
    /// An environment variable of pillion's.
    Env(String),
    /// A file with the number in it, which may come later and change.
    File(PathBuf),
    /// The port of this listener of pillion's.
    Listener(String),
    /// The port on which the process listens whose id is in this file.
    PidFile(PathBuf),
    /// The same of this process.
    Pid(u32),
    /// The same of the process that `pillion register` runs.
    Command,
}

/// How the local application is checked. All that is given must pass; with none of them a connection is opened, and that is
/// the check.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LocalHealth {
    /// An HTTP request: a path, or a map.
    #[serde(deserialize_with = "path_or_map", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<PathOrMap>")]
    pub http: Option<HttpCheck>,
    /// A call of the gRPC health checking protocol.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grpc: Option<GrpcCheck>,
    /// A program with its arguments; exit code 0 passes. No shell is involved.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    /// The host that is checked; by default 127.0.0.1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// The port that is checked; by default the one that is registered, or where that is a listener's, its application's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<NonZeroU16>,
    /// From one check's end to the next, give or take a tenth. A third of it while a healthy application fails, until that is
    /// decided.
    #[serde(with = "human")]
    #[schemars(with = "human::Text")]
    pub interval: Duration,
    /// For one check.
    #[serde(with = "human")]
    #[schemars(with = "human::Text")]
    pub timeout: Duration,
    /// So many passed checks in a row make an unhealthy application healthy. The very first check decides alone.
    pub rise: u32,
    /// So many failed checks in a row make a healthy application unhealthy.
    pub fall: u32,
}

impl RegisterAddress {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl Network {
    pub fn contains(self, address: IpAddr) -> bool {
        match (self.address, address) {
            (IpAddr::V4(network), IpAddr::V4(address)) => {
                let shift = 32 - u32::from(self.bits);
                network.to_bits().checked_shr(shift) == address.to_bits().checked_shr(shift)
            }
            (IpAddr::V6(network), IpAddr::V6(address)) => {
                let shift = 128 - u32::from(self.bits);
                network.to_bits().checked_shr(shift) == address.to_bits().checked_shr(shift)
            }
            _ => false,
        }
    }
}

impl Default for Register {
    fn default() -> Self {
        Self {
            service: None,
            name: "{service}".into(),
            // What Consul, DNS and Kubernetes can all name.
            name_pattern: "[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?".into(),
            domain: None,
            id: None,
            address: RegisterAddress::default(),
            port: None,
            registry: Vec::new(),
            weight: None,
            version: None,
            zone: None,
            protocol: None,
            tls: false,
            tags: Vec::new(),
            metadata: IndexMap::new(),
            ttl: Duration::from_secs(15),
            health: LocalHealth::default(),
            consul: None,
            nacos: None,
        }
    }
}

impl Default for ConsulRegister {
    fn default() -> Self {
        Self { check: ConsulCheck::default(), deregister_critical_after: Duration::from_secs(60) }
    }
}

impl Default for LocalHealth {
    fn default() -> Self {
        Self {
            http: None,
            grpc: None,
            command: Vec::new(),
            host: None,
            port: None,
            interval: Duration::from_secs(5),
            timeout: Duration::from_secs(1),
            rise: 2,
            fall: 3,
        }
    }
}
