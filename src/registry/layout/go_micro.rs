//! go-micro (v1.18 to v6): one key per node, whose value is the whole service with that node in it.

use super::{DecodeError, Metadata, id_segment};
use crate::registry::{Address, Instance};
use serde::Deserialize;
use std::borrow::Cow;

#[derive(Deserialize)]
struct Service {
    #[serde(default)]
    version: String,
    #[serde(default)]
    metadata: Metadata,
    #[serde(default)]
    nodes: Option<Vec<Node>>,
}

#[derive(Deserialize)]
struct Node {
    #[serde(default)]
    id: String,
    address: String,
    #[serde(default)]
    metadata: Metadata,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::Protocol;

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
