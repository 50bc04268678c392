//! Kitex and Hertz in Redis (`registry-redis`): a hash per service, whose fields are the instances' addresses.

use super::{DecodeError, Metadata};
use crate::registry::Instance;
use serde::Deserialize;
use serde_json::json;

#[derive(Deserialize)]
struct RegistryInfo {
    addr: String,
    #[serde(default)]
    weight: i64,
    #[serde(default)]
    tags: Metadata,
}

/// What those frameworks take for a weight of nothing or less.
const DEFAULT_WEIGHT: u32 = 10;

/// The instance in the value of one field: `{"service_name","addr":"10.0.0.1:8888","weight":10,"tags":{}}`.
pub fn decode(value: &[u8]) -> Result<Instance, DecodeError> {
    let found: RegistryInfo = serde_json::from_slice(value)?;
    let mut instance = Instance::new(found.addr.as_str(), found.addr.parse()?);
    found.tags.apply(&mut instance);
    instance.weight = u32::try_from(found.weight).ok().filter(|weight| *weight > 0).unwrap_or(DEFAULT_WEIGHT);
    Ok(instance)
}

/// The value of one field. Without a weight it is what those frameworks have by default.
pub fn encode(service: &str, instance: &Instance, weight: Option<u32>) -> Vec<u8> {
    let mut tags = instance.labels.clone();
    if let Some(zone) = &instance.zone {
        tags.entry("zone".into()).or_insert_with(|| zone.clone());
    }
    // In the order of their own writer, whose keys and values these are.
    let (service, address, tags) = (json!(service), json!(instance.address.to_string()), json!(tags));
    let weight = weight.unwrap_or(DEFAULT_WEIGHT);
    format!(r#"{{"service_name":{service},"addr":{address},"weight":{weight},"tags":{tags}}}"#).into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_what_they_write_and_is_read_as_the_same() {
        let mut instance = Instance::new("10.0.0.1:8888", "10.0.0.1:8888".parse().unwrap());
        instance.labels = [("version", "v2"), ("zone", "az-1")].map(|(key, value)| (key.into(), value.into())).into();
        (instance.weight, instance.zone) = (20, Some("az-1".into()));
        let value = encode("users", &instance, Some(20));
        let theirs =
            r#"{"service_name":"users","addr":"10.0.0.1:8888","weight":20,"tags":{"version":"v2","zone":"az-1"}}"#;
        assert_eq!(String::from_utf8(value.clone()).unwrap(), theirs);
        assert_eq!(decode(&value).unwrap(), instance);
        assert_eq!(decode(&encode("users", &instance, None)).unwrap().weight, DEFAULT_WEIGHT);
    }

    #[test]
    fn address_weight_and_tags_are_read() {
        let value =
            br#"{"service_name":"users","addr":"10.0.0.1:8888","weight":20,"tags":{"zone":"az-1","version":"v2"}}"#;
        let instance = decode(value).unwrap();
        assert_eq!((instance.id.as_str(), instance.address.to_string().as_str()), ("10.0.0.1:8888", "10.0.0.1:8888"));
        assert_eq!((instance.weight, instance.zone.as_deref(), instance.version()), (20, Some("az-1"), Some("v2")));
        for none in ["0", "-1", "99999999999"] {
            let value = format!(r#"{{"service_name":"users","addr":"10.0.0.1:8888","weight":{none},"tags":null}}"#);
            assert_eq!(decode(value.as_bytes()).unwrap().weight, DEFAULT_WEIGHT, "{none}");
        }
    }

    #[test]
    fn bad_values_are_errors() {
        for value in ["", "{}", r#"{"addr":"10.0.0.1"}"#, r#"{"addr":1}"#, "10.0.0.1:80", "\u{0}"] {
            assert!(decode(value.as_bytes()).is_err(), "{value}");
        }
    }
}
