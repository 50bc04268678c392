//! From the hosts of a Nacos service to instances, with what frameworks put into their metadata.

#[cfg(test)]
mod tests;

use super::message::ServiceInfo;
use crate::registry::{Address, AddressError, Instance, Protocol, layout::Metadata, watch::Found};
use serde::Deserialize;
use serde_json::Value;

/// The cluster of instances that name none.
pub const DEFAULT_CLUSTER: &str = "DEFAULT";
/// Where grpc-spring-boot-starter says at which port its gRPC server listens, besides the application's HTTP.
const GRPC_PORTS: [&str; 2] = ["gRPC_port", "gRPC.port"];
/// Nacos' own limit on a weight.
const MAX_WEIGHT: f64 = 10_000.0;

/// One host as Nacos tells it, as far as it is of use.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Host {
    ip: String,
    port: u16,
    #[serde(default = "default_weight")]
    weight: f64,
    #[serde(default = "yes")]
    healthy: bool,
    #[serde(default = "yes")]
    enabled: bool,
    #[serde(default)]
    cluster_name: Option<String>,
    #[serde(default)]
    metadata: Metadata,
}

fn default_weight() -> f64 {
    1.0
}

fn yes() -> bool {
    true
}

/// The instances of a service, those in one of `clusters` if there are any.
///
/// Ids are `IP:PORT`, with the cluster before it (`c1/10.0.0.1:8000`) unless that is `DEFAULT`. A weight of 1.0, which
/// every instance has that asks for nothing else, is 100. Whoever is unhealthy or disabled stays in the set as unfit.
///
/// **A host with `gRPC_port` gives two instances**, told apart by the label `scheme` as those of Kratos are: `ID/http` at
/// its own port and `ID/grpc` at that one.
pub fn found(service: ServiceInfo, clusters: &[String]) -> Found {
    let mut found = Found::default();
    for value in service.hosts {
        let shown = || value.get("ip").and_then(Value::as_str).unwrap_or("a host without an address").to_owned();
        match Host::deserialize(&value) {
            Ok(host) => {
                if !clusters.is_empty() && !clusters.iter().any(|cluster| cluster == host.cluster()) {
                    continue;
                }
                match instances(host) {
                    Ok(instances) => found.instances.extend(instances),
                    Err(error) => found.unreadable.push(format!("{}: {error}", shown())),
                }
            }
            Err(error) => found.unreadable.push(format!("{}: {error}", shown())),
        }
    }
    found.instances.sort_by(|a, b| a.id.cmp(&b.id));
    found
}

impl Host {
    fn cluster(&self) -> &str {
        self.cluster_name.as_deref().filter(|name| !name.is_empty()).unwrap_or(DEFAULT_CLUSTER)
    }
}

fn instances(host: Host) -> Result<Vec<Instance>, AddressError> {
    let address = Address::new(&host.ip, host.port)?;
    let cluster = host.cluster();
    let id = if cluster == DEFAULT_CLUSTER { address.to_string() } else { format!("{cluster}/{address}") };
    let mut instance = Instance::new(id, address);
    instance.labels.insert("cluster".into(), cluster.into());
    let zone = (cluster != DEFAULT_CLUSTER).then(|| cluster.to_owned());
    let metadata = host.metadata;
    instance.tls = match metadata.0.get("secure").map(String::as_str) {
        Some("true") => Some(true),
        Some("false") => Some(false),
        _ => None,
    };
    let kind = metadata.0.get("kind").cloned();
    let grpc_port = GRPC_PORTS.iter().find_map(|name| metadata.0.get(*name)?.trim().parse().ok());
    metadata.apply(&mut instance);
    // Nacos has weights of its own; `weight` among the metadata is of some other scale.
    instance.weight = weight(host.weight);
    instance.healthy = host.healthy && host.enabled;
    // Clusters are where instances run: callers in Nacos' own libraries prefer those of their own.
    instance.zone = instance.zone.or(zone);
    match (kind.as_deref(), grpc_port.filter(|port| *port > 0)) {
        (Some(kind), _) if scheme(kind, &mut instance) => Ok(vec![instance]),
        (_, Some(port)) if port != instance.address.port() => {
            let mut grpc = instance.clone();
            grpc.address = instance.address.with_port(port);
            grpc.id.push_str("/grpc");
            // `secure` is about the application's HTTP.
            grpc.tls = None;
            scheme("grpc", &mut grpc);
            instance.id.push_str("/http");
            instance.labels.insert("scheme".into(), "http".into());
            Ok(vec![grpc, instance])
        }
        (_, Some(_)) => {
            scheme("grpc", &mut instance);
            Ok(vec![instance])
        }
        _ => Ok(vec![instance]),
    }
}

/// What Kratos' `kind` says, which is the scheme of the endpoint. False if it is none of its schemes.
fn scheme(kind: &str, instance: &mut Instance) -> bool {
    let (scheme, protocol, tls) = match kind {
        "grpc" => ("grpc", Some(Protocol::Http2), None),
        "grpcs" => ("grpc", Some(Protocol::Http2), Some(true)),
        "http" => ("http", Some(Protocol::Http1), None),
        // ALPN settles it.
        "https" => ("http", None, Some(true)),
        _ => return false,
    };
    instance.protocol = protocol;
    instance.tls = tls.or(instance.tls);
    instance.labels.insert("scheme".into(), scheme.into());
    true
}

/// On our scale, where 100 is the usual. What is more than nothing stays more than nothing.
fn weight(nacos: f64) -> u32 {
    if nacos <= 0.0 {
        return 0;
    }
    // At most a million, so nothing is lost.
    ((nacos.min(MAX_WEIGHT) * f64::from(Instance::DEFAULT_WEIGHT)).round() as u32).max(1)
}
