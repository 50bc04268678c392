//! From a registration of ours to what an agent is told of it, and to what it should say of it afterwards.

#[cfg(test)]
mod tests;

use crate::{
    config::{ConsulCheck, ConsulRegister, Protocol},
    registry::{Address, Registration},
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, time::Duration};

/// How an agent describes a service, apart from its name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Description {
    #[serde(default)]
    address: String,
    port: u16,
    #[serde(default)]
    tags: Option<Vec<String>>,
    #[serde(default)]
    meta: Option<BTreeMap<String, String>>,
    #[serde(default)]
    tagged_addresses: Option<BTreeMap<String, TaggedAddress>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    weights: Option<Weights>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct TaggedAddress {
    address: String,
    port: u16,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Weights {
    passing: u32,
    warning: u32,
}

/// What an agent is sent.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Service<'a> {
    #[serde(rename = "ID")]
    id: &'a str,
    name: &'a str,
    #[serde(flatten)]
    description: &'a Description,
    check: Check,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Check {
    #[serde(rename = "CheckID")]
    id: String,
    name: &'static str,
    status: &'static str,
    deregister_critical_service_after: String,
    #[serde(flatten)]
    kind: Kind,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Kind {
    #[serde(rename_all = "PascalCase")]
    Ttl {
        #[serde(rename = "TTL")]
        ttl: String,
    },
    #[serde(rename_all = "PascalCase")]
    Run {
        #[serde(flatten)]
        target: BTreeMap<&'static str, String>,
        interval: String,
        timeout: String,
        #[serde(rename = "GRPCUseTLS")]
        grpc_tls: bool,
        #[serde(rename = "TLSSkipVerify")]
        skip_verify: bool,
    },
}

/// The name of the one check of the service `id`, as Consul itself and most frameworks call it.
pub fn check_id(id: &str) -> String {
    format!("service:{id}")
}

/// What a check's status is called.
pub fn status(healthy: bool) -> &'static str {
    if healthy { "passing" } else { "critical" }
}

impl Description {
    /// What `registration` is to look like.
    ///
    /// The zone and the weight are among the metadata too, where Spring Cloud and Kratos look for them, and the version is
    /// also a tag, which is where Kratos has it. Kratos takes a service for plain HTTP at an IPv4 address unless there is a
    /// URL among its addresses, so there is one for all others.
    pub fn of(registration: &Registration) -> Self {
        let Registration { instance, asked, .. } = registration;
        let mut tags: Vec<_> = registration.tags().map(str::to_owned).collect();
        tags.extend(instance.version().map(|version| format!("version={version}")));
        let mut meta: BTreeMap<_, _> =
            registration.metadata().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
        let secure = instance.tls == Some(true);
        let weight = asked.weight.map(|weight| weight.to_string());
        let known = [("zone", instance.zone.clone()), ("weight", weight), ("secure", secure.then(|| true.to_string()))];
        meta.extend(known.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))));

        let (host, port) = (host(&instance.address), instance.address.port());
        let scheme = match (instance.protocol, secure) {
            (Some(Protocol::Http2), _) => "grpc",
            (_, true) => "https",
            (_, false) => "http",
        };
        let query = if secure { "?isSecure=true" } else { "" };
        let url = TaggedAddress { address: format!("{scheme}://{}{query}", instance.address), port };
        let needs_url = scheme != "http" || host.contains(':');
        Self {
            address: host,
            port,
            tags: Some(tags),
            meta: Some(meta),
            tagged_addresses: needs_url.then(|| BTreeMap::from([(scheme.to_owned(), url)])),
            weights: asked.weight.map(|passing| Weights { passing, warning: 1 }),
        }
    }

    /// The whole service, whose check begins as `healthy`.
    pub fn service<'a>(
        &'a self,
        registration: &'a Registration,
        settings: &ConsulRegister,
        healthy: bool,
    ) -> Service<'a> {
        let Registration { service, instance, .. } = registration;
        let check = Check {
            id: check_id(&instance.id),
            name: "pillion",
            status: status(healthy),
            deregister_critical_service_after: go(settings.deregister_critical_after),
            kind: kind(registration, settings.check),
        };
        Service { id: &instance.id, name: service, description: self, check }
    }

    /// Whether `there`, which an agent tells, is this. It adds addresses of its own making, and a weight where there is none.
    pub fn is(&self, there: &Self) -> bool {
        let all = there.tagged_addresses.as_ref();
        let has = |(name, ours): (&String, &TaggedAddress)| all.and_then(|all| all.get(name)) == Some(ours);
        (&self.address, self.port) == (&there.address, there.port)
            && self.tags.as_deref().unwrap_or_default() == there.tags.as_deref().unwrap_or_default()
            && self.meta.clone().unwrap_or_default() == there.meta.clone().unwrap_or_default()
            && self.tagged_addresses.iter().flatten().all(has)
            && self.weights.is_none_or(|weights| there.weights == Some(weights))
    }

    pub fn is_at_the_address_of(&self, other: &Self) -> bool {
        (&self.address, self.port) == (&other.address, other.port)
    }

    /// Where it is, for people.
    pub fn place(&self) -> String {
        match self.address.as_str() {
            "" => format!("the agent's own address, port {}", self.port),
            host if host.contains(':') => format!("[{host}]:{}", self.port),
            host => format!("{host}:{}", self.port),
        }
    }
}

fn kind(registration: &Registration, check: ConsulCheck) -> Kind {
    let Registration { instance, asked, ttl, .. } = registration;
    let health = &asked.health;
    let address = health.port.map_or(instance.address.clone(), |port| instance.address.with_port(port.get()));
    // That of another port is not known to want TLS.
    let tls = instance.tls == Some(true) && health.port.is_none();
    let target = match check {
        ConsulCheck::Ttl => return Kind::Ttl { ttl: go(*ttl) },
        ConsulCheck::Tcp => BTreeMap::from([("TCP", address.to_string())]),
        ConsulCheck::Http => {
            let http = health.http.clone().unwrap_or_default();
            let scheme = if tls { "https" } else { "http" };
            BTreeMap::from([("HTTP", format!("{scheme}://{address}{}", http.path)), ("Method", http.method)])
        }
        ConsulCheck::Grpc => {
            let service = health.grpc.as_ref().map_or("", |grpc| grpc.service.as_str());
            let slash = if service.is_empty() { "" } else { "/" };
            BTreeMap::from([("GRPC", format!("{address}{slash}{service}"))])
        }
    };
    Kind::Run {
        target,
        interval: go(health.interval),
        timeout: go(health.timeout),
        grpc_tls: tls && check == ConsulCheck::Grpc,
        // As with pillion's own checks, it is asked whether it works and not who it is.
        skip_verify: tls,
    }
}

/// As Consul has it, without brackets.
fn host(address: &Address) -> String {
    match address {
        Address::Ip(address) => address.ip().to_string(),
        Address::Name { host, .. } => host.clone(),
    }
}

/// As Go reads a duration.
fn go(duration: Duration) -> String {
    format!("{}ms", duration.as_millis())
}
