//! From a control plane's resources to instances. Pure: the same bytes give the same result.
//!
//! Only what breaks the API's own rules makes a resource unusable, as it does for Envoy; an endpoint that Envoy could use
//! and we cannot is left out and noted.

mod weights;

use super::proto::{
    AddressKind, Any, Cluster as ClusterMessage, ClusterLoadAssignment, DiscoveryType, HealthStatus,
    HttpProtocolOptions, Kind, LbEndpoint, Locality, Named, Struct, Value,
};
use crate::registry::{Address, Instance, Protocol};
use prost::Message;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
const TLS_SOCKET: &str = "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext";
/// The part of an endpoint's metadata that is for choosing among endpoints.
const LABELS: &str = "envoy.lb";

/// What a cluster says of its endpoints.
#[derive(Debug, Clone, PartialEq)]
pub struct Cluster {
    pub source: Source,
    pub protocol: Option<Protocol>,
    pub tls: Option<bool>,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Source {
    /// They are an assignment of their own: of that name, or of the cluster's.
    Eds(Option<Box<str>>),
    /// They are in the cluster.
    Inline(Arc<Endpoints>),
    /// A kind of cluster without endpoints that could be listed: which.
    None(Box<str>),
}

/// The endpoints of one assignment.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Endpoints {
    pub instances: Vec<Instance>,
    /// What was left out or is not applied.
    pub notes: Vec<String>,
    /// Without news for so long they count as unhealthy.
    pub stale_after: Option<Duration>,
}

/// What a cluster or an assignment is called; empty if that cannot be told.
pub fn name(bytes: &[u8]) -> String {
    Named::decode(bytes).map(|resource| resource.name).unwrap_or_default()
}

/// A cluster; or what is wrong with it.
pub fn cluster(bytes: &[u8]) -> Result<Cluster, String> {
    let message = ClusterMessage::decode(bytes).map_err(|error| error.to_string())?;
    if message.name.is_empty() {
        return Err("it has no name".into());
    }
    let (protocol, tls) = (protocol(&message), tls(&message));
    let own_type = message.cluster_type.as_ref().map(|own| own.name.as_str());
    let kind = match own_type {
        None => DiscoveryType::try_from(message.r#type).map_err(|_| format!("type {} is not known", message.r#type))?,
        // The same kinds, as extensions.
        Some("envoy.cluster.eds") => DiscoveryType::Eds,
        Some("envoy.cluster.static") => DiscoveryType::Static,
        Some("envoy.cluster.strict_dns" | "envoy.cluster.logical_dns" | "envoy.cluster.dns") => {
            DiscoveryType::StrictDns
        }
        Some(other) => {
            return Ok(Cluster { source: Source::None(other.into()), protocol, tls });
        }
    };
    let source = match kind {
        DiscoveryType::Eds => {
            let service = message.eds_cluster_config.map(|eds| eds.service_name).unwrap_or_default();
            Source::Eds((!service.is_empty() && service != message.name).then(|| service.into()))
        }
        // A name is resolved at each connect, whatever the kind of DNS cluster: that is what pillion has instead.
        DiscoveryType::Static | DiscoveryType::StrictDns | DiscoveryType::LogicalDns => {
            Source::Inline(Arc::new(endpoints(message.load_assignment.unwrap_or_default())?))
        }
        DiscoveryType::OriginalDst => Source::None("ORIGINAL_DST".into()),
    };
    Ok(Cluster { source, protocol, tls })
}

fn protocol(message: &ClusterMessage) -> Option<Protocol> {
    let options = message.typed_extension_protocol_options.get(HTTP_OPTIONS);
    let explicit = options
        .filter(|any| is(any, HTTP_OPTIONS))
        .and_then(|any| HttpProtocolOptions::decode(any.value.as_slice()).ok())
        .and_then(|options| options.explicit_http_config);
    match explicit {
        Some(explicit) if explicit.http2_protocol_options.is_some() => Some(Protocol::Http2),
        Some(explicit) if explicit.http_protocol_options.is_some() => Some(Protocol::Http1),
        _ => message.http2_protocol_options.as_ref().map(|_| Protocol::Http2),
    }
}

/// That there is no TLS is not said: a mesh may add it by other means.
fn tls(message: &ClusterMessage) -> Option<bool> {
    let typed = message.transport_socket.as_ref()?.typed_config.as_ref()?;
    is(typed, TLS_SOCKET).then_some(true)
}

fn is(any: &Any, name: &str) -> bool {
    any.type_url.rsplit('/').next() == Some(name)
}

/// The endpoints of an assignment; or what is wrong with it.
pub fn assignment(bytes: &[u8]) -> Result<Endpoints, String> {
    let message = ClusterLoadAssignment::decode(bytes).map_err(|error| error.to_string())?;
    if message.cluster_name.is_empty() {
        return Err("it has no name".into());
    }
    endpoints(message)
}

fn endpoints(message: ClusterLoadAssignment) -> Result<Endpoints, String> {
    let mut notes = Vec::new();
    let policy = message.policy.unwrap_or_default();
    if !policy.drop_overloads.is_empty() {
        notes.push("drop_overloads: pillion drops no share of the requests".into());
    }
    let stale_after = match policy.endpoint_stale_after {
        None => None,
        Some(wire) => {
            let parts = (u64::try_from(wire.seconds), u32::try_from(wire.nanos));
            match parts {
                (Ok(seconds), Ok(nanos)) if nanos < 1_000_000_000 && (seconds, nanos) != (0, 0) => {
                    Some(Duration::new(seconds, nanos))
                }
                _ => return Err("endpoint_stale_after is not above zero".into()),
            }
        }
    };
    let mut localities = message.endpoints;
    // An address that is there twice counts where it is preferred.
    localities.sort_by_key(|locality| locality.priority);
    let weights = weights::effective(&localities)?;
    let (mut seen, mut instances) = (BTreeSet::new(), Vec::new());
    for (locality, weights) in localities.iter().zip(weights) {
        if locality.priority > 128 {
            return Err(format!("priority {} is above 128", locality.priority));
        }
        let place = locality.locality.clone().unwrap_or_default();
        for (endpoint, weight) in locality.lb_endpoints.iter().zip(weights) {
            match address(endpoint)? {
                Ok(address) => {
                    let instance = instance(address, endpoint, weight, &place, locality.priority);
                    if seen.insert(instance.id.clone()) {
                        instances.push(instance);
                    }
                }
                Err(kind) => notes.push(format!("an endpoint is {kind}")),
            }
        }
    }
    if instances.is_empty() && localities.iter().any(|locality| !locality.lb_endpoints.is_empty()) {
        return Err(format!("none of its endpoints can be used: {}", notes.join("; ")));
    }
    Ok(Endpoints { instances, notes, stale_after })
}

/// Where the endpoint is; or which kind of address it has that we have no use for; or, outside, what is wrong with it.
fn address(endpoint: &LbEndpoint) -> Result<Result<Address, &'static str>, String> {
    let address = endpoint.endpoint.as_ref().and_then(|endpoint| endpoint.address.as_ref());
    let socket = match address.and_then(|address| address.address.as_ref()) {
        Some(AddressKind::Socket(socket)) => socket,
        Some(AddressKind::Pipe(_)) => return Ok(Err("a Unix domain socket")),
        Some(AddressKind::Internal(_)) => return Ok(Err("a listener within Envoy")),
        None => return Err("an endpoint has no address".into()),
    };
    if socket.protocol != 0 {
        return Ok(Err("not reached over TCP"));
    }
    if !socket.named_port.is_empty() {
        return Ok(Err("at a port that has a name instead of a number"));
    }
    let port = u16::try_from(socket.port_value).map_err(|_| format!("port {} is above 65535", socket.port_value))?;
    Address::new(&socket.address, port).map(Ok).map_err(|error| error.to_string())
}

fn instance(address: Address, endpoint: &LbEndpoint, weight: u32, place: &Locality, priority: u32) -> Instance {
    let mut instance = Instance::new(address.to_string(), address);
    instance.weight = weight;
    instance.zone = (!place.zone.is_empty()).then(|| place.zone.clone());
    let metadata = endpoint.metadata.as_ref().and_then(|metadata| metadata.filter_metadata.get(LABELS));
    instance.labels = metadata.map(labels).unwrap_or_default();
    let mut label = |name: &str, value: &str| {
        if !value.is_empty() {
            instance.labels.insert(format!("xds.{name}"), value.into());
        }
    };
    label("priority", &priority.to_string());
    label("region", &place.region);
    label("sub_zone", &place.sub_zone);
    let status = HealthStatus::try_from(endpoint.health_status);
    if status == Ok(HealthStatus::Degraded) {
        label("health", "degraded");
    }
    instance.healthy = matches!(status, Ok(HealthStatus::Unknown | HealthStatus::Healthy | HealthStatus::Degraded));
    instance
}

fn labels(metadata: &Struct) -> BTreeMap<String, String> {
    metadata.fields.iter().map(|(name, value)| (name.clone(), text(value))).collect()
}

/// A text as it is, all else as JSON.
fn text(value: &Value) -> String {
    match &value.kind {
        Some(Kind::Text(text)) => text.clone(),
        _ => json(value).to_string(),
    }
}

fn json(value: &Value) -> serde_json::Value {
    use serde_json::Value as Json;
    match &value.kind {
        None | Some(Kind::Null(_)) => Json::Null,
        // All numbers are floating; a whole one is written as one writes it.
        Some(Kind::Number(number)) if number.fract() == 0.0 && number.abs() < 1e15 => Json::from(*number as i64),
        Some(Kind::Number(number)) => Json::from(*number),
        Some(Kind::Text(text)) => Json::from(text.as_str()),
        Some(Kind::Bool(bool)) => Json::from(*bool),
        Some(Kind::Struct(inner)) => {
            Json::Object(inner.fields.iter().map(|(name, value)| (name.clone(), json(value))).collect())
        }
        Some(Kind::List(list)) => Json::Array(list.values.iter().map(json).collect()),
    }
}

#[cfg(test)]
mod tests;
