//! An instance as Nacos' own clients register it.

use super::decode::DEFAULT_CLUSTER;
use crate::registry::{Address, Instance, Protocol, Registration};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// What Kratos calls the schemes of endpoints: it registers `NAME.SCHEME`, and says so in the metadata.
const KRATOS_SCHEMES: [&str; 4] = ["http", "https", "grpc", "grpcs"];

/// A host of a service.
#[derive(Debug, Clone, PartialEq)]
pub struct Host {
    pub ip: String,
    pub port: u16,
    pub cluster: String,
    pub weight: f64,
    pub healthy: bool,
    pub enabled: bool,
    pub metadata: BTreeMap<String, String>,
}

impl Host {
    /// Our weight of 100 is Nacos' 1.0, and what has no place of its own is metadata: all labels, and `zone`, `protocol`,
    /// `secure` and Kratos' `kind` where something is known that the labels do not say already.
    pub fn new(registration: &Registration) -> Self {
        let Registration { service, instance, asked, .. } = registration;
        let mut metadata = instance.labels.clone();
        let mut known = |key: &str, value: String| {
            metadata.entry(key.into()).or_insert(value);
        };
        if let Some(zone) = &instance.zone {
            known("zone", zone.clone());
        }
        if let Some((_, scheme)) = service.rsplit_once('.')
            && KRATOS_SCHEMES.contains(&scheme)
        {
            known("kind", scheme.into());
        }
        if instance.protocol == Some(Protocol::Http2) {
            known("protocol", "http2".into());
        }
        if let Some(tls) = instance.tls {
            known("secure", tls.to_string());
        }
        let ip = match &instance.address {
            Address::Ip(address) => address.ip().to_string(),
            Address::Name { host, .. } => host.clone(),
        };
        let cluster = asked.nacos.as_ref().and_then(|nacos| nacos.cluster.clone());
        Self {
            ip,
            port: instance.address.port(),
            cluster: cluster.unwrap_or_else(|| DEFAULT_CLUSTER.into()),
            weight: f64::from(instance.weight) / f64::from(Instance::DEFAULT_WEIGHT),
            healthy: true,
            enabled: true,
            metadata,
        }
    }

    pub fn json(&self) -> Value {
        json!({
            "ip": self.ip, "port": self.port, "clusterName": self.cluster, "weight": self.weight,
            "healthy": self.healthy, "enabled": self.enabled, "ephemeral": true, "metadata": self.metadata,
        })
    }

    /// As the server makes it, but for the service: there is one host of this id.
    pub fn id(&self) -> String {
        format!("{}#{}#{}", self.ip, self.port, self.cluster)
    }

    /// Whether this host of the server's is at our place.
    pub fn is_at(&self, there: &Value) -> bool {
        there["ip"] == *self.ip && there["port"] == self.port && there["clusterName"] == *self.cluster
    }

    /// Whether it is as we registered it. An unhealthy one may be told as healthy, because the server protects a service of
    /// which too few are healthy.
    pub fn is_like(&self, there: &Value) -> bool {
        let weight = there["weight"].as_f64().is_some_and(|weight| (weight - self.weight).abs() < 1e-9);
        weight && there["metadata"] == json!(self.metadata) && (!self.healthy || there["healthy"] == true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::{NacosRegister, Register},
        registry::nacos::decode,
    };
    use std::time::Duration;

    fn registration(service: &str, instance: Instance) -> Registration {
        Registration { service: service.into(), instance, ttl: Duration::from_secs(15), asked: Register::default() }
    }

    fn instance() -> Instance {
        let mut instance = Instance::new("users-1", "10.0.0.1:8080".parse().unwrap());
        instance.labels =
            [("version", "v2"), ("tag.blue", "true")].map(|(key, value)| (key.into(), value.into())).into();
        instance
    }

    #[test]
    fn what_is_written_is_what_clients_write() {
        let host = Host::new(&registration("users", instance()));
        let json = json!({
            "ip": "10.0.0.1", "port": 8080, "clusterName": "DEFAULT", "weight": 1.0, "healthy": true, "enabled": true,
            "ephemeral": true, "metadata": { "version": "v2", "tag.blue": "true" },
        });
        assert_eq!((host.json(), host.id().as_str()), (json, "10.0.0.1#8080#DEFAULT"));
        let v6 = Host::new(&registration("users", Instance::new("a", "[::1]:80".parse().unwrap())));
        assert_eq!(v6.ip, "::1");
    }

    #[test]
    fn what_is_written_is_read_as_the_same() {
        let mut whole = instance();
        (whole.weight, whole.zone, whole.tls) = (250, Some("az-1".into()), Some(true));
        whole.protocol = Some(Protocol::Http2);
        let mut asking = registration("users", whole.clone());
        asking.asked.nacos = Some(NacosRegister { cluster: Some("hangzhou".into()) });
        for healthy in [true, false] {
            let host = Host { healthy, ..Host::new(&asking) };
            let mut read = decode::found(vec![host.json()].into(), &[]).instances;
            assert_eq!(read.len(), 1);
            let mut read = read.remove(0);
            assert_eq!((read.id.as_str(), read.healthy), ("hangzhou/10.0.0.1:8080", healthy));
            for added in ["cluster", "zone", "protocol", "secure"] {
                assert!(read.labels.remove(added).is_some(), "{added}");
            }
            assert_eq!(read, Instance { id: read.id.clone(), healthy, ..whole.clone() });
        }
    }

    #[test]
    fn kratos_finds_its_scheme() {
        for (service, kind) in
            [("users.grpc", Some("grpc")), ("users.https", Some("https")), ("users", None), ("users.v1", None)]
        {
            let host = Host::new(&registration(service, instance()));
            assert_eq!(host.metadata.get("kind").map(String::as_str), kind, "{service}");
        }
        let mut said = instance();
        said.labels.insert("kind".into(), "http".into());
        assert_eq!(Host::new(&registration("users.grpc", said)).metadata["kind"], "http", "what is said stays");
    }

    #[test]
    fn ours_is_told_from_others_and_from_what_was_changed() {
        let host = Host::new(&registration("users", instance()));
        let mut there = host.json();
        there["instanceId"] = "10.0.0.1#8080#DEFAULT#DEFAULT_GROUP@@users".into();
        assert!(host.is_at(&there) && host.is_like(&there));
        for (key, value) in [("weight", json!(2.0)), ("metadata", json!({})), ("healthy", json!(false))] {
            let mut changed = there.clone();
            changed[key] = value;
            assert!(host.is_at(&changed) && !host.is_like(&changed), "{key}");
        }
        let unfit = Host { healthy: false, ..host.clone() };
        assert!(unfit.is_like(&there), "it is protected");
        for (key, value) in [("ip", json!("10.0.0.2")), ("port", json!(1)), ("clusterName", json!("c1"))] {
            let mut other = there.clone();
            other[key] = value;
            assert!(!host.is_at(&other), "{key}");
        }
    }
}
