//! Reading the `app` of a listener, which has a short form. By hand, because an untagged derive says only that nothing fitted.

use super::App;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{
    Deserialize, Deserializer,
    de::{Error, MapAccess, Unexpected, Visitor, value::MapAccessDeserializer},
};
use std::{
    borrow::Cow,
    fmt,
    net::{Ipv4Addr, SocketAddr},
};

/// Where the local application listens, as it may be written: a port of 127.0.0.1, or `IP:PORT`.
pub struct PortOrAddress(SocketAddr);

/// For `#[serde(deserialize_with = "port_or_address")]`.
pub fn port_or_address<'de, D: Deserializer<'de>>(from: D) -> Result<SocketAddr, D::Error> {
    PortOrAddress::deserialize(from).map(|PortOrAddress(address)| address)
}

/// An [`App`] as it may be written: where it listens, or a map.
pub struct AddressOrApp(App);

/// For `#[serde(deserialize_with = "address_or_app")]`. An `app:` with nothing after it is none of these: without the
/// application, the listener would offer all services to whoever can reach it.
pub fn address_or_app<'de, D: Deserializer<'de>>(from: D) -> Result<Option<App>, D::Error> {
    AddressOrApp::deserialize(from).map(|AddressOrApp(app)| Some(app))
}

fn from_port<E: Error>(port: u64, expected: &dyn serde::de::Expected) -> Result<SocketAddr, E> {
    match u16::try_from(port) {
        Ok(port @ 1..) => Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, port))),
        _ => Err(E::invalid_value(Unexpected::Unsigned(port), expected)),
    }
}

fn from_text<E: Error>(text: &str, expected: &dyn serde::de::Expected) -> Result<SocketAddr, E> {
    text.parse().map_err(|_| E::invalid_value(Unexpected::Str(text), expected))
}

impl<'de> Deserialize<'de> for PortOrAddress {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Address;

        impl Visitor<'_> for Address {
            type Value = PortOrAddress;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a port from 1 to 65535 or `IP:PORT`, like `127.0.0.1:8080`")
            }

            fn visit_u64<E: Error>(self, port: u64) -> Result<PortOrAddress, E> {
                from_port(port, &self).map(PortOrAddress)
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<PortOrAddress, E> {
                from_text(text, &self).map(PortOrAddress)
            }
        }

        from.deserialize_any(Address)
    }
}

impl<'de> Deserialize<'de> for AddressOrApp {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Either;

        impl<'de> Visitor<'de> for Either {
            type Value = AddressOrApp;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a port from 1 to 65535, `IP:PORT`, or a map")
            }

            fn visit_u64<E: Error>(self, port: u64) -> Result<AddressOrApp, E> {
                from_port(port, &self).map(|address| AddressOrApp(App::at(address)))
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<AddressOrApp, E> {
                from_text(text, &self).map(|address| AddressOrApp(App::at(address)))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<AddressOrApp, A::Error> {
                App::deserialize(MapAccessDeserializer::new(map)).map(AddressOrApp)
            }
        }

        from.deserialize_any(Either)
    }
}

impl JsonSchema for PortOrAddress {
    fn schema_name() -> Cow<'static, str> {
        "PortOrAddress".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A port of 127.0.0.1, or `IP:PORT`.",
            "anyOf": [
                { "type": "integer", "minimum": 1, "maximum": 65535 },
                { "type": "string", "pattern": ":[0-9]+$" },
            ],
        })
    }
}

impl JsonSchema for AddressOrApp {
    fn schema_name() -> Cow<'static, str> {
        "AddressOrApp".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let address = generator.subschema_for::<PortOrAddress>();
        let map = generator.subschema_for::<App>();
        json_schema!({ "anyOf": [address, map] })
    }
}
