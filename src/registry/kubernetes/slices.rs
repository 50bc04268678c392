//! From EndpointSlices to instances.

#[cfg(test)]
mod tests;

use super::objects::{Metadata, Object, null_is_empty};
use crate::{
    config::{IpFamily, KubernetesPort, Protocol},
    registry::{Address, Instance},
};
use serde::Deserialize;
use std::collections::{BTreeMap, btree_map::Entry};

/// The port that is meant where a slice has several and nobody said which.
const USUAL_PORT: &str = "http";
/// The label that names the slice's service.
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Labels that Kubernetes itself puts on slices begin so, and mean nothing to balancing.
const BOOKKEEPING: [&str; 3] = [SERVICE_NAME, "endpointslice.kubernetes.io/", "service.kubernetes.io/"];
/// Where Helm and Kubernetes' own recommendation keep the version.
const APP_VERSION: &str = "app.kubernetes.io/version";

/// One EndpointSlice, as far as it is of use.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Slice {
    pub metadata: Metadata,
    address_type: String,
    #[serde(default)]
    ports: Option<Vec<Port>>,
    #[serde(default, deserialize_with = "null_is_empty")]
    endpoints: Vec<Endpoint>,
}

impl Object for Slice {
    fn metadata(&self) -> &Metadata {
        &self.metadata
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Port {
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    protocol: Option<String>,
    /// None at all means every port.
    #[serde(default)]
    port: Option<u16>,
    #[serde(default)]
    app_protocol: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Endpoint {
    #[serde(default, deserialize_with = "null_is_empty")]
    addresses: Vec<String>,
    #[serde(default, deserialize_with = "null_is_empty")]
    conditions: Conditions,
    #[serde(default)]
    hostname: Option<String>,
    #[serde(default)]
    node_name: Option<String>,
    #[serde(default)]
    zone: Option<String>,
    #[serde(default)]
    target_ref: Option<TargetRef>,
    #[serde(default, deserialize_with = "null_is_empty")]
    hints: Hints,
}

/// What is not said has a meaning of its own, see [`Endpoint::state`].
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Conditions {
    ready: Option<bool>,
    serving: Option<bool>,
    terminating: Option<bool>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct TargetRef {
    kind: String,
    name: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Hints {
    #[serde(deserialize_with = "null_is_empty")]
    for_zones: Vec<ForZone>,
}

#[derive(Debug, Clone, Deserialize)]
struct ForZone {
    name: String,
}

/// How fit an endpoint is, the best last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum State {
    Unfit,
    /// On its way out, but it still serves: for a service that has nothing better.
    Leaving,
    Ready,
}

/// What is taken of a service's slices.
#[derive(Debug, Clone)]
pub struct Choice {
    pub port: Option<KubernetesPort>,
    /// The family to use where a service has both.
    pub family: IpFamily,
    /// The zone whose hints count; `None` if hints do not.
    pub zone: Option<String>,
}

/// A service's instances in all its slices, sorted by id, and what is wrong with those that cannot be used.
///
/// Ids are addresses. An endpoint that moves from one slice to another is in both for a while and counts once. Those that
/// are not ready are there as unhealthy, and so are those that hints give to other zones; while none is ready, those that
/// are leaving and still serve are used instead.
pub fn instances<'s>(slices: impl Iterator<Item = &'s Slice> + Clone, choice: &Choice) -> (Vec<Instance>, Vec<String>) {
    let mut complaints = Vec::new();
    let mut found: BTreeMap<String, (State, &Endpoint, Instance)> = BTreeMap::new();
    let family = choice.family_of(slices.clone());
    for slice in slices.filter(|slice| slice.address_type == "FQDN" || slice.address_type == family) {
        let name = &slice.metadata.name;
        if slice.endpoints.is_empty() {
            continue;
        }
        let (port, app_protocol) = match slice.port(choice.port.as_ref()) {
            Ok(port) => port,
            Err(complaint) => {
                complaints.push(format!("{name}: {complaint}"));
                continue;
            }
        };
        let labels = slice.labels();
        for endpoint in &slice.endpoints {
            // There is exactly one that counts; the others are of a time when that was not decided.
            let host = endpoint.addresses.first().map_or("", String::as_str);
            let address = match Address::new(host, port) {
                Ok(address) => address,
                Err(error) => {
                    complaints.push(format!("{name}: {error}"));
                    continue;
                }
            };
            let state = endpoint.state();
            let instance = endpoint.instance(address, app_protocol, labels.clone());
            match found.entry(instance.id.clone()) {
                Entry::Vacant(place) => drop(place.insert((state, endpoint, instance))),
                Entry::Occupied(mut place) if place.get().0 < state => drop(place.insert((state, endpoint, instance))),
                Entry::Occupied(_) => {}
            }
        }
    }
    let best = found.values().map(|(state, ..)| *state).max().unwrap_or(State::Unfit);
    let ready = found.values().filter(|(state, ..)| *state == State::Ready).map(|(_, endpoint, _)| *endpoint);
    let zone = choice.hinted_zone(ready);
    let is_ours = |endpoint: &Endpoint| zone.is_none_or(|zone| endpoint.is_for(zone));
    let is_used = |state, endpoint| match state {
        State::Ready => is_ours(endpoint),
        State::Leaving => best == State::Leaving,
        State::Unfit => false,
    };
    let instances = found
        .into_values()
        .map(|(state, endpoint, instance)| Instance { healthy: is_used(state, endpoint), ..instance })
        .collect();
    (instances, complaints)
}

impl Choice {
    /// The address type to use: the preferred one, unless only the other has endpoints.
    fn family_of<'s>(&self, slices: impl Iterator<Item = &'s Slice> + Clone) -> &'static str {
        let (preferred, other) = match self.family {
            IpFamily::Ipv4 => ("IPv4", "IPv6"),
            IpFamily::Ipv6 => ("IPv6", "IPv4"),
        };
        let has = |family| slices.clone().any(|slice| slice.address_type == family && !slice.endpoints.is_empty());
        if has(preferred) || !has(other) { preferred } else { other }
    }

    /// The zone whose hints count. As for kube-proxy, they do only if every ready endpoint has some and one of them is for
    /// this zone: else they are out of date, or the zone has been forgotten.
    fn hinted_zone<'e>(&self, ready: impl Iterator<Item = &'e Endpoint> + Clone) -> Option<&str> {
        let all_have = ready.clone().all(|endpoint| !endpoint.hints.for_zones.is_empty());
        self.zone.as_deref().filter(|zone| all_have && ready.clone().any(|endpoint| endpoint.is_for(zone)))
    }
}

impl Slice {
    /// The port of its endpoints, with what the port says of its protocol.
    fn port(&self, wanted: Option<&KubernetesPort>) -> Result<(u16, Option<&str>), String> {
        let tcp = || {
            let ports = self.ports.as_deref().unwrap_or_default().iter();
            ports.filter(|port| port.protocol.as_deref().is_none_or(|protocol| protocol == "TCP"))
        };
        let named = |name: &str| tcp().find(|port| port.name.as_deref() == Some(name));
        let port = match wanted {
            // A process may listen on more ports than the service tells of.
            Some(KubernetesPort::Number(number)) => {
                let listed = tcp().find(|port| port.port == Some(number.get()));
                return Ok((number.get(), listed.and_then(|port| port.app_protocol.as_deref())));
            }
            Some(KubernetesPort::Name(name)) => {
                named(name).ok_or_else(|| format!("no TCP port is named `{name}`; there {}", listed(tcp())))?
            }
            None if tcp().count() > 1 => named(USUAL_PORT).ok_or_else(|| {
                format!("none of several ports is named `{USUAL_PORT}`; set `port`; there {}", listed(tcp()))
            })?,
            None => tcp().next().ok_or("it has no TCP port; set `port` to a number")?,
        };
        let number = port.port.ok_or("its port is left open; set `port` to a number")?;
        Ok((number, port.app_protocol.as_deref()))
    }

    /// The labels that are not Kubernetes' own: those of the Service, which are copied, and of whoever wrote the slice.
    fn labels(&self) -> BTreeMap<String, String> {
        let own = self.metadata.labels.iter();
        let own = own.filter(|(key, _)| !BOOKKEEPING.iter().any(|prefix| key.starts_with(prefix)));
        let mut labels: BTreeMap<_, _> = own.map(|(key, value)| (key.clone(), value.clone())).collect();
        if let Some(version) = labels.get(APP_VERSION).cloned() {
            labels.entry("version".into()).or_insert(version);
        }
        labels
    }
}

impl Endpoint {
    fn state(&self) -> State {
        let ready = self.conditions.ready.unwrap_or(true);
        let serving = self.conditions.serving.unwrap_or(ready);
        match self.conditions.terminating.unwrap_or(false) {
            _ if ready => State::Ready,
            true if serving => State::Leaving,
            _ => State::Unfit,
        }
    }

    fn is_for(&self, zone: &str) -> bool {
        self.hints.for_zones.iter().any(|hint| hint.name == zone)
    }

    fn instance(&self, address: Address, app_protocol: Option<&str>, labels: BTreeMap<String, String>) -> Instance {
        let mut instance = Instance::new(address.to_string(), address);
        (instance.protocol, instance.tls) = spoken(app_protocol);
        instance.zone = self.zone.clone().filter(|zone| !zone.is_empty());
        instance.labels = labels;
        let mut label = |key: &str, value: Option<&str>| {
            if let Some(value) = value.filter(|value| !value.is_empty()) {
                instance.labels.insert(key.into(), value.into());
            }
        };
        label("node", self.node_name.as_deref());
        label("hostname", self.hostname.as_deref());
        let target = self.target_ref.as_ref().filter(|target| !target.kind.is_empty());
        if let Some(target) = target {
            // `pod`, nearly always.
            label(&target.kind.to_ascii_lowercase(), Some(&target.name));
        }
        instance
    }
}

/// What `appProtocol` means: the words of Kubernetes itself, of the IANA, and those that meshes have made usual.
fn spoken(app_protocol: Option<&str>) -> (Option<Protocol>, Option<bool>) {
    match app_protocol.unwrap_or_default().to_ascii_lowercase().as_str() {
        "kubernetes.io/h2c" | "h2c" => (Some(Protocol::Http2), Some(false)),
        "http2" | "grpc" => (Some(Protocol::Http2), None),
        "grpcs" => (Some(Protocol::Http2), Some(true)),
        "http" | "kubernetes.io/ws" => (Some(Protocol::Http1), Some(false)),
        "kubernetes.io/wss" => (Some(Protocol::Http1), Some(true)),
        "https" => (None, Some(true)),
        _ => (None, None),
    }
}

/// The names of ports, for a complaint.
fn listed<'p>(ports: impl Iterator<Item = &'p Port>) -> String {
    let names: Vec<_> = ports
        .map(|port| match (port.name.as_deref().filter(|name| !name.is_empty()), port.port) {
            (Some(name), _) => format!("`{name}`"),
            (None, Some(number)) => number.to_string(),
            (None, None) => "any".into(),
        })
        .collect();
    if names.is_empty() { "is none".into() } else { format!("are {}", names.join(", ")) }
}
