//! The registries and how to reach them.

use super::{super::human, Secret, Tls, localhost};
use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{net::SocketAddr, num::NonZeroU32, path::PathBuf, time::Duration};

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
