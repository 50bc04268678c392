//! go-kratos (v2, v3): one key per process, whose value lists an endpoint per protocol that it serves.

use super::{DecodeError, EncodeError, Metadata};
use crate::registry::{Address, AddressError, Instance, Protocol};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
struct ServiceInstance {
    #[serde(default)]
    id: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    version: String,
    #[serde(default)]
    metadata: Metadata,
    #[serde(default)]
    endpoints: Option<Vec<String>>,
}

/// The instances in one key's value, e.g. `{"id","name","version","metadata":{},"endpoints":["http://10.0.0.1:8000"]}`.
///
/// **One process gives one instance per endpoint**: `ID/http` and `ID/grpc`, told apart by the label `scheme` (`http`
/// or `grpc`). A Kratos client takes only those of its own protocol, and so must whoever chooses among these: gRPC
/// requests go to `scheme: grpc`, others to `scheme: http`. Their `protocol` says the same: HTTP/2 for `grpc`, HTTP/1
/// for plain `http`, and nothing for `https`, where ALPN settles it. Endpoints of other schemes (`ws`, `kafka`, …)
/// are left out: a proxy for HTTP cannot carry them.
pub fn decode(service: &str, suffix: &str, value: &[u8]) -> Result<Vec<Instance>, DecodeError> {
    let found: ServiceInstance = serde_json::from_slice(value)?;
    // The same check as Kratos' own reader makes; it keeps `PREFIX/users/admin/ID` out of `users`.
    if suffix.is_empty() || if found.name.is_empty() { suffix.contains('/') } else { found.name != service } {
        return Ok(Vec::new());
    }
    let id = if found.id.is_empty() { suffix } else { &found.id };
    let mut instances = Vec::new();
    for url in found.endpoints.unwrap_or_default() {
        let Some(endpoint) = Endpoint::parse(&url)? else { continue };
        instances.push(endpoint_instance(id, endpoint, &found.version, found.metadata.clone()));
    }
    Ok(instances)
}

/// The value for `instance`: one process with one endpoint, whose scheme is gRPC's for what speaks HTTP/2.
pub fn encode(service: &str, instance: &Instance) -> Result<Vec<u8>, EncodeError> {
    let scheme = match (instance.protocol, instance.tls) {
        (Some(Protocol::Http2), Some(true)) => "grpcs",
        (Some(Protocol::Http2), _) => "grpc",
        (_, Some(true)) => "https",
        _ => "http",
    };
    let mut metadata = Metadata::of(instance);
    Ok(serde_json::to_vec(&ServiceInstance {
        id: instance.id.clone(),
        name: service.into(),
        version: metadata.take_version(),
        metadata,
        endpoints: Some(vec![format!("{scheme}://{}", instance.address)]),
    })?)
}

/// One endpoint of an instance as Kratos writes it: `grpc://10.0.0.1:9000?isSecure=true`, or newer `grpcs://…`.
pub struct Endpoint {
    address: Address,
    scheme: &'static str,
    tls: bool,
}

impl Endpoint {
    /// `None` for a scheme that is not HTTP or gRPC.
    pub fn parse(url: &str) -> Result<Option<Self>, AddressError> {
        let Some((scheme, rest)) = url.split_once("://") else {
            return Err(AddressError::new(url, "a URL like `grpc://HOST:PORT`"));
        };
        let (scheme, secure_scheme) = match scheme {
            "http" => ("http", false),
            "https" => ("http", true),
            "grpc" => ("grpc", false),
            "grpcs" => ("grpc", true),
            _ => return Ok(None),
        };
        let (authority, more) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        let query = more.split_once('?').map_or("", |(_, query)| query);
        let tls = secure_scheme || query.split('&').any(|pair| pair == "isSecure=true");
        Ok(Some(Self { address: authority.parse()?, scheme, tls }))
    }
}

/// The instance that `endpoint` of the process `id` is.
pub fn endpoint_instance(id: &str, endpoint: Endpoint, version: &str, metadata: Metadata) -> Instance {
    let Endpoint { address, scheme, tls } = endpoint;
    let mut instance = Instance::new(format!("{id}/{scheme}"), address);
    metadata.apply(&mut instance);
    instance.protocol = match (scheme, tls) {
        ("grpc", _) => Some(Protocol::Http2),
        (_, false) => Some(Protocol::Http1),
        _ => None,
    };
    instance.tls = Some(tls);
    instance.labels.insert("scheme".into(), scheme.into());
    if !version.is_empty() {
        instance.labels.insert("version".into(), version.into());
    }
    instance
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_what_kratos_writes() {
        let mut instance = Instance::new("7d9e-4c", "10.0.0.1:9000".parse().unwrap());
        instance.weight = 10;
        instance.protocol = Some(Protocol::Http2);
        instance.labels = [("version".into(), "v1.2.0".into()), ("team".into(), "a".into())].into();
        let written = String::from_utf8(encode("users", &instance).unwrap()).unwrap();
        assert_eq!(
            written,
            r#"{"id":"7d9e-4c","name":"users","version":"v1.2.0","metadata":{"team":"a","weight":"10"},"endpoints":["grpc://10.0.0.1:9000"]}"#
        );
        for (protocol, tls, scheme) in [
            (None, None, "http"),
            (Some(Protocol::Http1), Some(true), "https"),
            (Some(Protocol::Http2), Some(true), "grpcs"),
        ] {
            (instance.protocol, instance.tls) = (protocol, tls);
            let written = String::from_utf8(encode("users", &instance).unwrap()).unwrap();
            assert!(written.contains(&format!(r#"["{scheme}://10.0.0.1:9000"]"#)), "{written}");
        }
    }

    /// What `kratos/contrib/registry/etcd` puts for an application with both servers.
    const BOTH: &str = r#"{"id":"7d9e-4c","name":"users","version":"v1.2.0","metadata":{"weight":"10","zone":"az-1"},"endpoints":["http://10.0.0.1:8000","grpc://10.0.0.1:9000"]}"#;

    #[test]
    fn one_process_gives_an_instance_per_endpoint() {
        let instances = decode("users", "7d9e-4c", BOTH.as_bytes()).unwrap();
        let seen: Vec<_> = instances
            .iter()
            .map(|i| (i.id.as_str(), i.address.to_string(), i.protocol, i.tls, i.labels["scheme"].as_str()))
            .collect();
        assert_eq!(
            seen,
            [
                ("7d9e-4c/http", "10.0.0.1:8000".into(), Some(Protocol::Http1), Some(false), "http"),
                ("7d9e-4c/grpc", "10.0.0.1:9000".into(), Some(Protocol::Http2), Some(false), "grpc"),
            ]
        );
        for instance in &instances {
            assert_eq!((instance.weight, instance.version()), (10, Some("v1.2.0")));
            assert_eq!(instance.zone.as_deref(), Some("az-1"));
        }
    }

    #[test]
    fn security_is_in_the_scheme_or_in_the_query() {
        for (url, tls) in [
            ("grpc://10.0.0.1:9000?isSecure=false", false),
            ("grpc://10.0.0.1:9000?isSecure=true", true),
            ("grpcs://10.0.0.1:9000", true),
            ("https://users.internal:8443/?isSecure=false", true),
            ("http://[::1]:8000", false),
        ] {
            assert_eq!(Endpoint::parse(url).unwrap().unwrap().tls, tls, "{url}");
        }
    }

    #[test]
    fn other_services_and_other_schemes_are_left_out() {
        assert_eq!(decode("user", "s/7d9e", BOTH.as_bytes()).unwrap(), []);
        let value = br#"{"id":"a","name":"users","version":"","metadata":null,"endpoints":["kafka://10.0.0.1:9092"]}"#;
        assert_eq!(decode("users", "a", value).unwrap(), []);
        assert_eq!(decode("users", "a", br#"{"id":"a","name":"users","endpoints":null}"#).unwrap(), []);
    }

    #[test]
    fn bad_values_are_errors() {
        for value in [
            "",
            "{",
            r#"{"name":"users","endpoints":["http://10.0.0.1"]}"#,
            r#"{"name":"users","endpoints":["10.0.0.1:80"]}"#,
        ] {
            assert!(decode("users", "a", value.as_bytes()).is_err(), "{value}");
        }
    }
}
