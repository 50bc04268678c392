//! etcd's own naming format (`naming/endpoints`), which grpc-go resolves as `etcd:///TARGET`.

use super::{DecodeError, EncodeError, Metadata};
use crate::registry::{Address, Instance, Protocol};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
struct Update {
    #[serde(rename = "Op", skip_deserializing)]
    operation: u8,
    // Go writes capitals and reads any; other writers count on the latter.
    #[serde(rename = "Addr", alias = "addr")]
    address: String,
    #[serde(rename = "Metadata", alias = "metadata", default)]
    metadata: Metadata,
}

/// The instance in one key's value: `{"Op":0,"Addr":"10.0.0.1:8080","Metadata":…}`. `Metadata` may be anything; only a
/// map has labels in it. The key is whatever its writer liked, slashes included, as for the format's own reader.
pub fn decode(suffix: &str, value: &[u8]) -> Result<Vec<Instance>, DecodeError> {
    if suffix.is_empty() {
        return Ok(Vec::new());
    }
    let update: Update = serde_json::from_slice(value)?;
    let address: Address = update.address.parse()?;
    let mut instance = Instance::new(suffix, address);
    update.metadata.apply(&mut instance);
    instance.protocol = Some(Protocol::Http2);
    Ok(vec![instance])
}

/// The value for `instance`. Its id is the rest of the key.
pub fn encode(instance: &Instance) -> Result<Vec<u8>, EncodeError> {
    let metadata = Metadata::of(instance);
    Ok(serde_json::to_vec(&Update { operation: 0, address: instance.address.to_string(), metadata })?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_may_be_anything() {
        for (value, weight) in [
            (r#"{"Op":0,"Addr":"10.0.0.1:8080","Metadata":null}"#, 100),
            (r#"{"Op":0,"Addr":"10.0.0.1:8080","Metadata":"text"}"#, 100),
            (r#"{"Op":0,"Addr":"10.0.0.1:8080","Metadata":{"weight":7,"version":"v2"}}"#, 7),
            (r#"{"addr":"10.0.0.1:8080"}"#, 100),
        ] {
            let instances = decode("10.0.0.1:8080", value.as_bytes()).unwrap();
            assert_eq!((instances[0].id.as_str(), instances[0].weight), ("10.0.0.1:8080", weight), "{value}");
            assert_eq!(instances[0].protocol, Some(Protocol::Http2));
        }
        assert_eq!(decode("rack/1", br#"{"Addr":"10.0.0.1:8080"}"#).unwrap()[0].id, "rack/1");
    }

    #[test]
    fn mistakes_are_errors() {
        for value in ["", "null", "{}", r#"{"Op":0,"Addr":"","Metadata":null}"#, r#"{"Addr":1}"#] {
            assert!(decode("a", value.as_bytes()).is_err(), "{value}");
        }
    }
}
