//! pillion's own way to write an instance: `host:port`, or a map. The `file` and `embedded` registries take the same.

use super::{DecodeError, EncodeError, id_segment};
use crate::registry::{Address, AddressError, Instance, Protocol};
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{Error, MapAccess, Visitor, value::MapAccessDeserializer},
};
use std::{collections::BTreeMap, fmt};

/// An instance as a person writes it: `10.0.0.7:8080`, or
/// `{ address: 10.0.0.7:8080, weight: 50, zone: az-1, protocol: http2, tls: true, labels: { version: v2 }, id: a }`,
/// where all but `address` may be left out and any other key is an error. It is written as a map.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Entry {
    pub address: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Protocol>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<bool>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

impl From<&Instance> for Entry {
    fn from(instance: &Instance) -> Self {
        Self {
            address: instance.address.to_string(),
            id: Some(instance.id.clone()),
            weight: Some(instance.weight),
            zone: instance.zone.clone(),
            protocol: instance.protocol,
            tls: instance.tls,
            labels: instance.labels.clone(),
        }
    }
}

impl Entry {
    /// Only an address; all else at its default.
    pub fn new(address: impl Into<String>) -> Self {
        Self {
            address: address.into(),
            id: None,
            weight: None,
            zone: None,
            protocol: None,
            tls: None,
            labels: BTreeMap::new(),
        }
    }

    /// The instance that this describes. Its id is the entry's own, else `default_id`, else its address.
    ///
    /// Fails if `address` is no `HOST:PORT`.
    pub fn into_instance(self, default_id: Option<&str>) -> Result<Instance, AddressError> {
        let address: Address = self.address.parse()?;
        let id = self.id.or_else(|| default_id.map(str::to_owned)).unwrap_or_else(|| address.to_string());
        Ok(Instance {
            id,
            address,
            weight: self.weight.unwrap_or(Instance::DEFAULT_WEIGHT),
            priority: 0,
            zone: self.zone,
            protocol: self.protocol,
            tls: self.tls,
            labels: self.labels,
            healthy: true,
        })
    }
}

// Written by hand and not `untagged`, which would turn every mistake into "did not match any variant".
impl<'de> Deserialize<'de> for Entry {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Map {
            address: String,
            id: Option<String>,
            weight: Option<u32>,
            zone: Option<String>,
            protocol: Option<Protocol>,
            tls: Option<bool>,
            #[serde(default)]
            labels: BTreeMap<String, String>,
        }

        struct EntryVisitor;

        impl<'de> Visitor<'de> for EntryVisitor {
            type Value = Entry;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("`HOST:PORT`, or a map with `address`")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Entry, E> {
                Ok(Entry::new(text))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Entry, A::Error> {
                let Map { address, id, weight, zone, protocol, tls, labels } =
                    Map::deserialize(MapAccessDeserializer::new(map))?;
                Ok(Entry { address, id, weight, zone, protocol, tls, labels })
            }
        }

        from.deserialize_any(EntryVisitor)
    }
}

/// The instance in one key's value: JSON of an [`Entry`] map, or bare `host:port`. `suffix` is the key after
/// `PREFIX/SERVICE/`; one with a further `/` belongs to another service (`PREFIX/SERVICE/MORE/ID`) and gives nothing.
pub fn decode(suffix: &str, value: &[u8]) -> Result<Vec<Instance>, DecodeError> {
    let Some(id) = id_segment(suffix) else { return Ok(Vec::new()) };
    let text = std::str::from_utf8(value)?.trim();
    // A quoted string is JSON too, as `etcdctl put … "$(jq …)"` would write it.
    let entry = if text.starts_with(['{', '"']) { serde_json::from_str(text)? } else { Entry::new(text) };
    Ok(vec![entry.into_instance(Some(id))?])
}

/// The value for `instance`; its id is in the key.
pub fn encode(instance: &Instance) -> Result<Vec<u8>, EncodeError> {
    Ok(serde_json::to_vec(&Entry { id: None, ..Entry::from(instance) })?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_and_a_map_are_entries() {
        let text: Entry = serde_json::from_str(r#""10.0.0.7:8080""#).unwrap();
        assert_eq!(text, Entry::new("10.0.0.7:8080"));
        let map: Entry = serde_json::from_str(
            r#"{"address":"10.0.0.8:8080","weight":50,"zone":"az-1","protocol":"http2","tls":true,
                "labels":{"version":"canary"},"id":"a"}"#,
        )
        .unwrap();
        let instance = map.clone().into_instance(Some("key")).unwrap();
        assert_eq!((instance.id.as_str(), instance.weight, instance.version()), ("a", 50, Some("canary")));
        assert_eq!((instance.protocol, instance.tls), (Some(Protocol::Http2), Some(true)));
        assert_eq!(instance.zone.as_deref(), Some("az-1"));
        let again: Entry = serde_json::from_str(&serde_json::to_string(&map).unwrap()).unwrap();
        assert_eq!(again, map, "what is written can be read");
    }

    #[test]
    fn the_id_is_the_entrys_own_then_the_keys_then_the_address() {
        let entry = Entry::new("10.0.0.7:8080");
        assert_eq!(entry.clone().into_instance(Some("key")).unwrap().id, "key");
        assert_eq!(entry.into_instance(None).unwrap().id, "10.0.0.7:8080");
    }

    #[test]
    fn mistakes_are_named() {
        for (text, expected) in [
            (r#"{"address":"a:1","wieght":1}"#, "unknown field `wieght`"),
            (r#"{"weight":1}"#, "missing field `address`"),
            (r#"{"address":"a:1","weight":-1}"#, "invalid value: integer `-1`"),
            (r#"{"address":"a:1","protocol":"http3"}"#, "unknown variant `http3`"),
            ("7", "expected `HOST:PORT`, or a map"),
        ] {
            let error = serde_json::from_str::<Entry>(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
        assert!(Entry::new("10.0.0.7").into_instance(None).is_err());
    }

    #[test]
    fn keys_and_values_as_people_write_them() {
        for value in ["10.0.0.7:8080", "10.0.0.7:8080\n", r#""10.0.0.7:8080""#, r#"{"address":"10.0.0.7:8080"}"#] {
            let instances = decode("a", value.as_bytes()).unwrap();
            assert_eq!(instances, [Instance::new("a", "10.0.0.7:8080".parse().unwrap())], "{value}");
        }
        assert_eq!(decode("more/a", b"10.0.0.7:8080").unwrap(), []);
        for value in ["", "{", "{}", "[]", "10.0.0.7", "\u{0}"] {
            assert!(decode("a", value.as_bytes()).is_err(), "{value}");
        }
        assert!(decode("a", b"\xff").is_err());
    }
}
