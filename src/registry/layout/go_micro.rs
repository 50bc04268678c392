//! go-micro (v1.18 to v6): one key per node, whose value is the whole service with that node in it.

use super::{DecodeError, EncodeError, Metadata, id_segment};
use crate::registry::{Address, Instance, Protocol};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;

#[derive(Serialize, Deserialize)]
struct Service {
    #[serde(default)]
    name: String,
    #[serde(default)]
    version: String,
    #[serde(default)]
    metadata: Metadata,
    /// What can be called there, which says nothing to us.
    #[serde(default, skip_deserializing)]
    endpoints: Option<()>,
    #[serde(default)]
    nodes: Option<Vec<Node>>,
}

#[derive(Serialize, Deserialize)]
struct Node {
    #[serde(default)]
    metadata: Metadata,
    #[serde(default)]
    id: String,
    address: String,
}

/// A service's or a node's name in a key: go-micro writes `-` for each `/`.
pub fn segment(name: &str) -> Cow<'_, str> {
    if name.contains('/') { Cow::Owned(name.replace('/', "-")) } else { Cow::Borrowed(name) }
}

/// The instances in one key's value: `{"name","version","metadata","endpoints","nodes":[{"id","address","metadata"}]}`.
/// The service's metadata holds for each node; the node's own goes over it.
pub fn decode(suffix: &str, value: &[u8]) -> Result<Vec<Instance>, DecodeError> {
    let Some(suffix) = id_segment(suffix) else { return Ok(Vec::new()) };
    let service: Service = serde_json::from_slice(value)?;
    let nodes = service.nodes.unwrap_or_default();
    nodes
        .into_iter()
        .map(|node| {
            let address: Address = node.address.parse()?;
            let id = if node.id.is_empty() { suffix.to_owned() } else { node.id };
            let mut instance = Instance::new(id, address);
            service.metadata.clone().apply(&mut instance);
            node.metadata.apply(&mut instance);
            if !service.version.is_empty() {
                instance.labels.insert("version".into(), service.version.clone());
            }
            Ok(instance)
        })
        .collect()
}

/// The value for `instance`: the service with this one node. What it speaks is in the node's metadata, in the words of
/// go-micro's own servers.
pub fn encode(service: &str, instance: &Instance) -> Result<Vec<u8>, EncodeError> {
    let mut metadata = Metadata::of(instance);
    let version = metadata.take_version();
    if let Some(protocol) = instance.protocol {
        let word = if protocol == Protocol::Http2 { "grpc" } else { "http" };
        metadata.0.entry("protocol".into()).or_insert_with(|| word.into());
    }
    let node = Node { metadata, id: instance.id.clone(), address: instance.address.to_string() };
    Ok(serde_json::to_vec(&Service {
        name: service.into(),
        version,
        metadata: Metadata::default(),
        endpoints: None,
        nodes: Some(vec![node]),
    })?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_what_go_micro_writes() {
        let mut instance = Instance::new("users-5c7a", "10.0.0.1:39213".parse().unwrap());
        instance.protocol = Some(Protocol::Http2);
        instance.labels = [("version".into(), "latest".into()), ("team".into(), "b".into())].into();
        assert_eq!(
            String::from_utf8(encode("go.users", &instance).unwrap()).unwrap(),
            r#"{"name":"go.users","version":"latest","metadata":{},"endpoints":null,"nodes":[{"metadata":{"protocol":"grpc","team":"b"},"id":"users-5c7a","address":"10.0.0.1:39213"}]}"#
        );
    }

    #[test]
    fn a_node_inherits_from_its_service() {
        // What go-micro v5 writes for a gRPC server.
        let value = br#"{"name":"users","version":"latest","metadata":{"team":"a","weight":"10"},"endpoints":[{"name":"Users.Get","request":{"name":"GetRequest","type":"GetRequest","values":null},"response":null,"metadata":{}}],"nodes":[{"id":"users-5c7a","address":"10.0.0.1:39213","metadata":{"broker":"http","protocol":"grpc","registry":"etcd","server":"grpc","team":"b","transport":"grpc"}}]}"#;
        let instances = decode("users-5c7a", value).unwrap();
        assert_eq!(instances.len(), 1);
        let instance = &instances[0];
        assert_eq!((instance.id.as_str(), instance.address.to_string().as_str()), ("users-5c7a", "10.0.0.1:39213"));
        assert_eq!((instance.weight, instance.version()), (10, Some("latest")));
        assert_eq!(instance.labels["team"], "b", "the node's own metadata wins");
        assert_eq!(instance.protocol, Some(Protocol::Http2));
    }

    #[test]
    fn nulls_are_empty_and_mistakes_are_errors() {
        assert_eq!(
            decode("a", br#"{"name":"users","version":"","metadata":null,"endpoints":null,"nodes":null}"#).unwrap(),
            []
        );
        let instances = decode("a", br#"{"nodes":[{"id":"","address":"10.0.0.1:1","metadata":null}]}"#).unwrap();
        assert_eq!(instances, [Instance::new("a", "10.0.0.1:1".parse().unwrap())]);
        for value in ["", "{", r#"{"nodes":[{"id":"a"}]}"#, r#"{"nodes":[{"id":"a","address":""}]}"#] {
            assert!(decode("a", value.as_bytes()).is_err(), "{value}");
        }
        assert_eq!(decode("b/a", b"").unwrap(), []);
    }
}
