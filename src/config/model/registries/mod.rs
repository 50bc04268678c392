//! The registries and how to reach them.

mod consul;
mod dns;
mod embedded;
mod etcd;
mod eureka;
mod file;
mod kubernetes;
mod layout;
mod nacos;
mod redis;
mod scope;
mod xds;
mod zookeeper;

pub use consul::ConsulRegistry;
pub use dns::{DnsRecord, DnsRegistry};
pub use embedded::EmbeddedRegistry;
pub use etcd::EtcdRegistry;
pub use eureka::{EurekaAddress, EurekaName, EurekaRegistry};
pub use file::FileRegistry;
pub use kubernetes::{IpFamily, KubernetesPort, KubernetesRegistry};
pub use layout::Layout;
pub use nacos::{NacosRegistry, NacosTransport};
pub use redis::{RedisLayout, RedisRegistry};
pub use scope::Scope;
pub use xds::{XdsDiscover, XdsNode, XdsProtocol, XdsRegistry};
pub use zookeeper::ZookeeperRegistry;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One registry. `kind` decides which other keys there are.
#[derive(Debug, Clone, PartialEq, JsonSchema, Deserialize)]
#[serde(rename_all = "lowercase")]
#[schemars(tag = "kind")]
pub enum Registry {
    Embedded(EmbeddedRegistry),
    File(FileRegistry),
    Consul(ConsulRegistry),
    Etcd(EtcdRegistry),
    Redis(RedisRegistry),
    Xds(XdsRegistry),
    Dns(DnsRegistry),
    Zookeeper(ZookeeperRegistry),
    Kubernetes(KubernetesRegistry),
    Eureka(EurekaRegistry),
    Nacos(NacosRegistry),
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
            Self::Redis(settings) => Tagged { kind, settings }.serialize(to),
            Self::Xds(settings) => Tagged { kind, settings }.serialize(to),
            Self::Dns(settings) => Tagged { kind, settings }.serialize(to),
            Self::Zookeeper(settings) => Tagged { kind, settings }.serialize(to),
            Self::Kubernetes(settings) => Tagged { kind, settings }.serialize(to),
            Self::Eureka(settings) => Tagged { kind, settings }.serialize(to),
            Self::Nacos(settings) => Tagged { kind, settings }.serialize(to),
        }
    }
}

impl Registry {
    pub fn scope(&self) -> &Scope {
        match self {
            Self::Embedded(settings) => &settings.scope,
            Self::File(settings) => &settings.scope,
            Self::Consul(settings) => &settings.scope,
            Self::Etcd(settings) => &settings.scope,
            Self::Redis(settings) => &settings.scope,
            Self::Xds(settings) => &settings.scope,
            Self::Dns(settings) => &settings.scope,
            Self::Zookeeper(settings) => &settings.scope,
            Self::Kubernetes(settings) => &settings.scope,
            Self::Eureka(settings) => &settings.scope,
            Self::Nacos(settings) => &settings.scope,
        }
    }

    /// The kinds of [`Self::has_store`], as errors name them.
    pub const WITH_STORE: &str = "consul, embedded, etcd, file, kubernetes, nacos or zookeeper";

    /// Whether what it says comes over the network, and so may not be there.
    pub fn is_remote(&self) -> bool {
        !matches!(self, Self::Embedded(_) | Self::File(_))
    }

    /// Whether it has a key-value store of its own.
    pub fn has_store(&self) -> bool {
        match self {
            Self::Consul(_)
            | Self::Embedded(_)
            | Self::Etcd(_)
            | Self::File(_)
            | Self::Kubernetes(_)
            | Self::Nacos(_)
            | Self::Zookeeper(_) => true,
            Self::Redis(_) | Self::Dns(_) | Self::Eureka(_) | Self::Xds(_) => false,
        }
    }

    /// Whether instances can be registered in it.
    pub fn takes_registrations(&self) -> bool {
        match self {
            Self::Embedded(_)
            | Self::File(_)
            | Self::Consul(_)
            | Self::Etcd(_)
            | Self::Redis(_)
            | Self::Zookeeper(_)
            | Self::Eureka(_)
            | Self::Nacos(_) => true,
            // What is in these is put there by others: a zone's owner, a controller, a control plane.
            Self::Dns(_) | Self::Kubernetes(_) | Self::Xds(_) => false,
        }
    }

    pub fn kind(&self) -> &'static str {
        match self {
            Self::Embedded(_) => "embedded",
            Self::File(_) => "file",
            Self::Consul(_) => "consul",
            Self::Etcd(_) => "etcd",
            Self::Redis(_) => "redis",
            Self::Xds(_) => "xds",
            Self::Dns(_) => "dns",
            Self::Zookeeper(_) => "zookeeper",
            Self::Kubernetes(_) => "kubernetes",
            Self::Eureka(_) => "eureka",
            Self::Nacos(_) => "nacos",
        }
    }
}
