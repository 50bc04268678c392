//! Curator's service discovery, in which Spring Cloud ZooKeeper and Dubbo's application-level discovery write as well: one
//! node per instance.

use super::{DecodeError, EncodeError, Metadata, dubbo, id_segment};
use crate::registry::{Address, Instance};
use serde::{Deserialize, Serialize};
use serde_json::Value;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ServiceInstance {
    #[serde(default)]
    id: String,
    #[serde(default)]
    address: Option<String>,
    #[serde(default)]
    port: Option<u16>,
    #[serde(default)]
    ssl_port: Option<u16>,
    #[serde(default)]
    payload: Value,
    #[serde(default)]
    enabled: Option<bool>,
}

/// The instances in one node's value: `{"name","id","address","port","sslPort","payload",…}`.
///
/// With an `sslPort` that one is used, with TLS, as Spring's own client does. The payload is whatever its writer likes:
/// Spring's and Dubbo's have a map `metadata` in it, whose entries become labels; of others the payload's own fields do.
/// `enabled: false`, and an `instance_status` other than `UP`, is an instance that its registry holds unfit.
///
/// An application of Dubbo lists in its metadata an endpoint per protocol that it serves, and gives one instance for each,
/// `ID/PROTOCOL`, with the label `protocol`.
pub fn decode(suffix: &str, value: &[u8]) -> Result<Vec<Instance>, DecodeError> {
    let Some(suffix) = id_segment(suffix) else { return Ok(Vec::new()) };
    let found: ServiceInstance = serde_json::from_slice(value)?;
    let metadata = metadata(found.payload);
    let id = if found.id.is_empty() { suffix } else { &found.id };
    let host = found.address.as_deref().unwrap_or_default();
    let healthy = found.enabled != Some(false)
        && metadata
            .0
            .get("instance_status")
            .is_none_or(|status| status.is_empty() || status.eq_ignore_ascii_case("UP"));
    let instance = |id: String, port| -> Result<_, DecodeError> {
        let mut instance = Instance::new(id, Address::new(host, port)?);
        metadata.clone().apply(&mut instance);
        instance.healthy = healthy;
        Ok(instance)
    };
    if let Some(endpoints) = metadata.0.get("dubbo.endpoints") {
        let endpoints: Vec<dubbo::Endpoint> = serde_json::from_str(endpoints)?;
        return endpoints
            .into_iter()
            .map(|endpoint| {
                let mut instance = instance(format!("{id}/{}", endpoint.protocol), endpoint.port)?;
                endpoint.apply(&mut instance);
                Ok(instance)
            })
            .collect();
    }
    let mut instance = instance(id.into(), found.ssl_port.or(found.port).unwrap_or(0))?;
    instance.tls = Some(found.ssl_port.is_some());
    Ok(vec![instance])
}

/// What is written of an instance: all fields, in the order in which Curator writes them.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Written<'a> {
    name: &'a str,
    id: &'a str,
    address: String,
    port: u16,
    ssl_port: Option<u16>,
    payload: Payload<'a>,
    #[serde(rename = "registrationTimeUTC")]
    registered: u64,
    service_type: &'static str,
    uri_spec: UriSpec,
}

/// Spring Cloud's, which others read as a map.
#[derive(Serialize)]
struct Payload<'a> {
    #[serde(rename = "@class")]
    class: &'static str,
    id: &'a str,
    name: &'a str,
    metadata: Metadata,
}

#[derive(Serialize)]
struct UriSpec {
    parts: [UriPart; 5],
}

#[derive(Serialize)]
struct UriPart {
    value: &'static str,
    variable: bool,
}

/// The value for `instance`, as Spring Cloud ZooKeeper writes it.
pub fn encode(service: &str, instance: &Instance, time: u64) -> Result<Vec<u8>, EncodeError> {
    let mut metadata = Metadata::of(instance);
    metadata.0.entry("instance_status".into()).or_insert_with(|| "UP".into());
    let port = instance.address.port();
    let address = match &instance.address {
        Address::Ip(address) => address.ip().to_string(),
        Address::Name { host, .. } => host.clone(),
    };
    let part = |value, variable| UriPart { value, variable };
    let uri = [("scheme", true), ("://", false), ("address", true), (":", false), ("port", true)];
    Ok(serde_json::to_vec(&Written {
        name: service,
        id: &instance.id,
        address,
        port,
        ssl_port: (instance.tls == Some(true)).then_some(port),
        payload: Payload {
            class: "org.springframework.cloud.zookeeper.discovery.ZookeeperInstance",
            id: &instance.id,
            name: service,
            metadata,
        },
        registered: time,
        service_type: "DYNAMIC",
        uri_spec: UriSpec { parts: uri.map(|(value, variable)| part(value, variable)) },
    })?)
}

fn metadata(payload: Value) -> Metadata {
    match payload {
        Value::Object(mut payload) => match payload.remove("metadata") {
            Some(metadata @ Value::Object(_)) => metadata.into(),
            // The name of a Java class says nothing to others.
            _ => Value::Object(payload.into_iter().filter(|(key, _)| key != "@class").collect()).into(),
        },
        _ => Metadata::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::Protocol;

    fn one(value: &str) -> Instance {
        let mut instances = decode("7d9e", value.as_bytes()).unwrap();
        assert_eq!(instances.len(), 1);
        instances.remove(0)
    }

    #[test]
    fn an_instance_of_spring_cloud() {
        let value = r#"{"name":"users","id":"application-1","address":"10.0.0.1","port":8005,"sslPort":null,"payload":{"@class":"org.springframework.cloud.zookeeper.discovery.ZookeeperInstance","id":"application-1","name":"users","metadata":{"instance_status":"UP","weight":"10","version":"v2"}},"registrationTimeUTC":1610116500446,"serviceType":"DYNAMIC","uriSpec":{"parts":[{"value":"scheme","variable":true},{"value":"://","variable":false},{"value":"address","variable":true},{"value":":","variable":false},{"value":"port","variable":true}]}}"#;
        let instance = one(value);
        assert_eq!((instance.id.as_str(), instance.address.to_string().as_str()), ("application-1", "10.0.0.1:8005"));
        assert_eq!((instance.weight, instance.version(), instance.tls), (10, Some("v2"), Some(false)));
        assert!(instance.healthy && !instance.labels.contains_key("@class"), "{instance:?}");
        assert!(!one(&value.replace(r#""UP""#, r#""OUT_OF_SERVICE""#)).healthy);
        assert!(one(&value.replace(r#""UP""#, r#""""#)).healthy);
        let secure = one(&value.replace(r#""sslPort":null"#, r#""sslPort":8443"#));
        assert_eq!((secure.address.port(), secure.tls), (8443, Some(true)));
    }

    #[test]
    fn payloads_of_any_kind() {
        for (payload, labels) in [
            ("null", vec![]),
            (r#""text""#, vec![]),
            (r#"{"@class":"com.example.Details","zone":"az-1","weight":7}"#, vec![("weight", "7"), ("zone", "az-1")]),
            (r#"{"metadata":null,"a":"b"}"#, vec![("a", "b")]),
        ] {
            let instance = one(&format!(r#"{{"name":"users","address":"10.0.0.1","port":80,"payload":{payload}}}"#));
            let seen: Vec<_> = instance.labels.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
            assert_eq!((seen, instance.id.as_str()), (labels, "7d9e"), "{payload}");
        }
        assert!(!one(r#"{"name":"users","address":"10.0.0.1","port":80,"enabled":false}"#).healthy);
    }

    #[test]
    fn an_application_of_dubbo_gives_an_instance_per_protocol() {
        let value = r#"{"name":"users","id":"10.0.0.1:20880","address":"10.0.0.1","port":20880,"sslPort":null,"payload":{"@class":"org.apache.dubbo.registry.zookeeper.ZookeeperInstance","id":"10.0.0.1:20880","name":"users","metadata":{"dubbo.endpoints":"[{\"port\":20880,\"protocol\":\"dubbo\"},{\"port\":50051,\"protocol\":\"tri\"}]","dubbo.metadata.revision":"a1","weight":"30"}},"serviceType":"DYNAMIC"}"#;
        let instances = decode("10.0.0.1:20880", value.as_bytes()).unwrap();
        let seen: Vec<_> =
            instances.iter().map(|i| (i.id.as_str(), i.address.to_string(), i.protocol, i.weight)).collect();
        assert_eq!(
            seen,
            [
                ("10.0.0.1:20880/dubbo", "10.0.0.1:20880".into(), None, 30),
                ("10.0.0.1:20880/tri", "10.0.0.1:50051".into(), Some(Protocol::Http2), 30),
            ]
        );
        assert_eq!(instances[1].labels["protocol"], "tri");
    }

    #[test]
    fn mistakes_are_errors() {
        for value in [
            "",
            "{}",
            r#"{"address":"10.0.0.1"}"#,
            r#"{"port":80}"#,
            r#"{"address":"10.0.0.1","port":-1}"#,
            r#"{"address":"10.0.0.1","port":1,"payload":{"metadata":{"dubbo.endpoints":"[{}]"}}}"#,
        ] {
            assert!(decode("a", value.as_bytes()).is_err(), "{value}");
        }
        assert_eq!(decode("b/a", b"").unwrap(), []);
    }
}
