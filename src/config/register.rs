//! Reading those parts of `register` that have several forms. By hand, because an untagged derive says only that nothing
//! fitted.

use super::{Network, RegisterAddress, RegisterPort, error::shorten};
use crate::pattern::Pattern;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{Error, MapAccess, SeqAccess, Unexpected, Visitor},
    ser::SerializeMap,
};
use std::{borrow::Cow, fmt, net::IpAddr, path::PathBuf, str::FromStr};

/// How a text or a list of them looks in the JSON Schema.
#[derive(JsonSchema)]
#[schemars(untagged)]
#[allow(dead_code, reason = "only its schema is used")]
pub enum OneOrMore {
    One(String),
    More(Vec<String>),
}

/// For `#[serde(deserialize_with = "one_or_more")]`.
pub fn one_or_more<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    struct TextOrList;

    impl<'de> Visitor<'de> for TextOrList {
        type Value = Vec<String>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a name or a list of names")
        }

        fn visit_str<E: Error>(self, name: &str) -> Result<Vec<String>, E> {
            Ok(vec![name.into()])
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<String>, A::Error> {
            let mut names = Vec::new();
            while let Some(name) = list.next_element()? {
                names.push(name);
            }
            Ok(names)
        }
    }

    from.deserialize_any(TextOrList)
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("found `{}`; expected a network, like `10.0.0.0/8`", shorten(text));
        let (address, bits) = text.split_once('/').ok_or_else(bad)?;
        let address: IpAddr = address.parse().map_err(|_| bad())?;
        let bits: u8 = bits.parse().map_err(|_| bad())?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        if bits > most { Err(bad()) } else { Ok(Self { address, bits }) }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.bits)
    }
}

impl<'de> Deserialize<'de> for RegisterAddress {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(field_identifier, rename_all = "lowercase")]
        enum Key {
            Interface,
            Network,
        }

        struct TextOrMap;

        impl<'de> Visitor<'de> for TextOrMap {
            type Value = RegisterAddress;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an IP address, a host name, `{ interface: NAME }` or `{ network: 10.0.0.0/8 }`")
            }

            fn visit_str<E: Error>(self, host: &str) -> Result<RegisterAddress, E> {
                Ok(RegisterAddress::Host(host.into()))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RegisterAddress, A::Error> {
                let found = match map.next_key()? {
                    Some(Key::Interface) => RegisterAddress::Interface(map.next_value()?),
                    Some(Key::Network) => {
                        let text: String = map.next_value()?;
                        RegisterAddress::Network(text.parse().map_err(A::Error::custom)?)
                    }
                    None => return Err(A::Error::invalid_type(Unexpected::Map, &self)),
                };
                only_one(map, found, "interface, network")
            }
        }

        from.deserialize_any(TextOrMap)
    }
}

impl<'de> Deserialize<'de> for RegisterPort {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(field_identifier, rename_all = "snake_case")]
        enum Key {
            Env,
            File,
            Listener,
            PidFile,
            Pid,
        }

        struct NumberOrMap;

        impl<'de> Visitor<'de> for NumberOrMap {
            type Value = RegisterPort;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(
                    "a number from 1 to 65535, `{ env: NAME }`, `{ file: PATH }`, `{ listener: NAME }`, `{ pid_file: PATH }`, `{ pid: NUMBER }` or \
                     `command`",
                )
            }

            fn visit_u64<E: Error>(self, number: u64) -> Result<RegisterPort, E> {
                let port = u16::try_from(number).ok().and_then(|number| number.try_into().ok());
                port.map(RegisterPort::Number).ok_or_else(|| E::invalid_value(Unexpected::Unsigned(number), &self))
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<RegisterPort, E> {
                match text {
                    "command" => Ok(RegisterPort::Command),
                    _ => Err(E::invalid_value(Unexpected::Str(text), &self)),
                }
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RegisterPort, A::Error> {
                let found = match map.next_key()? {
                    Some(Key::Env) => RegisterPort::Env(map.next_value()?),
                    Some(Key::File) => RegisterPort::File(map.next_value::<PathBuf>()?),
                    Some(Key::Listener) => RegisterPort::Listener(map.next_value()?),
                    Some(Key::Pid) => RegisterPort::Pid(map.next_value()?),
                    Some(Key::PidFile) => RegisterPort::PidFile(map.next_value::<PathBuf>()?),
                    None => return Err(A::Error::invalid_type(Unexpected::Map, &self)),
                };
                only_one(map, found, "env, file, listener, pid_file, pid")
            }
        }

        from.deserialize_any(NumberOrMap)
    }
}

/// `found`, unless more follows.
fn only_one<'de, A: MapAccess<'de>, T>(mut map: A, found: T, keys: &str) -> Result<T, A::Error> {
    match map.next_key::<String>()? {
        None => Ok(found),
        Some(_) => Err(A::Error::custom(format!("expected only one of {keys}"))),
    }
}

fn entry<S: Serializer>(to: S, key: &str, value: &impl Serialize) -> Result<S::Ok, S::Error> {
    let mut map = to.serialize_map(Some(1))?;
    map.serialize_entry(key, value)?;
    map.end()
}

impl Serialize for RegisterAddress {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Outgoing => to.serialize_none(),
            Self::Host(host) => to.serialize_str(host),
            Self::Interface(name) => entry(to, "interface", name),
            Self::Network(network) => entry(to, "network", &network.to_string()),
        }
    }
}

impl Serialize for RegisterPort {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Number(number) => number.serialize(to),
            Self::Env(name) => entry(to, "env", name),
            Self::File(path) => entry(to, "file", path),
            Self::Listener(name) => entry(to, "listener", name),
            Self::PidFile(path) => entry(to, "pid_file", path),
            Self::Pid(id) => entry(to, "pid", id),
            Self::Command => to.serialize_str("command"),
        }
    }
}

/// A map with one of these keys, each a text, and what it says.
fn one_of(keys: &[(&str, &str)]) -> Vec<Schema> {
    let each = keys.iter().map(|(key, description)| {
        let mut properties = serde_json::Map::new();
        properties.insert((*key).into(), serde_json::json!({ "type": "string", "description": description }));
        json_schema!({ "type": "object", "properties": properties, "required": [key], "additionalProperties": false })
    });
    each.collect()
}

impl JsonSchema for RegisterAddress {
    fn schema_name() -> Cow<'static, str> {
        "RegisterAddress".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let mut forms = vec![json_schema!({ "type": "string" })];
        forms.extend(one_of(&[
            ("interface", "The first address of this network interface, IPv4 before IPv6."),
            ("network", "The only address of this machine that is in this network, e.g. 10.0.0.0/8."),
        ]));
        json_schema!({ "description": "Where others reach it.", "anyOf": forms })
    }
}

impl JsonSchema for RegisterPort {
    fn schema_name() -> Cow<'static, str> {
        "RegisterPort".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let mut forms = vec![json_schema!({ "type": "integer", "minimum": 1, "maximum": 65535 })];
        forms.extend(one_of(&[
            ("env", "An environment variable of pillion's."),
            ("file", "A file with the number in it, which may come later and change."),
            ("listener", "The port of this listener of pillion's."),
            ("pid_file", "The port on which the process listens whose id is in this file, or one that it started."),
        ]));
        forms.push(json_schema!({ "const": "command" }));
        let description = "The port on which this process listens, or one that it started.";
        let pid = json_schema!({ "type": "integer", "minimum": 1, "description": description });
        forms.push(json_schema!({
            "type": "object", "properties": { "pid": pid }, "required": ["pid"], "additionalProperties": false,
        }));
        json_schema!({ "description": "Where its port comes from.", "anyOf": forms })
    }
}

/// Why there is no name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error(
        "`{{{0}}}` is nothing that a name is made of; expected {{service}}, {{env}}, {{domain}}, {{version}} or {{zone}}"
    )]
    Unknown(String),
    #[error("`{{service}}` has no value; expected `service`, or `node.service`")]
    NoService,
    #[error("`{{{0}}}` has no value; expected `{1}`")]
    NoValue(&'static str, &'static str),
    #[error("a `{{` is without its `}}`")]
    Open,
}

impl NameError {
    pub(super) fn wants_service(&self) -> bool {
        *self == Self::NoService
    }
}

impl super::Register {
    /// The name that registries are to know it by.
    pub fn full_name(&self, node: &super::Node) -> Result<String, NameError> {
        let mut name = String::new();
        let mut rest = self.name.as_str();
        while let Some((before, after)) = rest.split_once('{') {
            let (field, after) = after.split_once('}').ok_or(NameError::Open)?;
            name += before;
            let (value, field, key) = match field {
                "service" => (self.service.as_ref().or(node.service.as_ref()), "service", ""),
                "env" => (node.env.as_ref(), "env", "node.env"),
                "domain" => (self.domain.as_ref(), "domain", "domain"),
                "version" => (self.version.as_ref().or(node.version.as_ref()), "version", "version"),
                "zone" => (self.zone.as_ref().or(node.zone.as_ref()), "zone", "zone"),
                other => return Err(NameError::Unknown(shorten(other))),
            };
            match value.filter(|value| !value.is_empty()) {
                Some(value) => name += value,
                None if field == "service" => return Err(NameError::NoService),
                None => return Err(NameError::NoValue(field, key)),
            }
            rest = after;
        }
        Ok(name + rest)
    }

    /// Whether the whole of `name` matches `name_pattern`. False for a pattern that is none.
    pub fn fits_pattern(&self, name: &str) -> bool {
        Pattern::new(&self.name_pattern).is_ok_and(|pattern| pattern.fits(name.as_bytes()))
    }
}
