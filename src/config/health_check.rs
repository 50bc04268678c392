//! Reading those parts of `health_check` that have a short form. By hand, because an untagged derive says only that nothing
//! fitted.

use super::{HttpCheck, StatusRange, error::shorten};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{Error, MapAccess, value::MapAccessDeserializer},
};
use std::{borrow::Cow, fmt, str::FromStr};

/// An [`HttpCheck`] as it may be written: a path, or a map.
pub struct PathOrMap(HttpCheck);

/// For `#[serde(deserialize_with = "path_or_map")]`.
pub fn path_or_map<'de, D: Deserializer<'de>>(from: D) -> Result<Option<HttpCheck>, D::Error> {
    Ok(Option::<PathOrMap>::deserialize(from)?.map(|PathOrMap(check)| check))
}

impl<'de> Deserialize<'de> for PathOrMap {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = PathOrMap;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a path, like `/health`, or a map")
            }

            fn visit_str<E: Error>(self, path: &str) -> Result<PathOrMap, E> {
                Ok(PathOrMap(HttpCheck { path: path.into(), ..HttpCheck::default() }))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<PathOrMap, A::Error> {
                HttpCheck::deserialize(MapAccessDeserializer::new(map)).map(PathOrMap)
            }
        }

        from.deserialize_any(Visitor)
    }
}

impl JsonSchema for PathOrMap {
    fn schema_name() -> Cow<'static, str> {
        "PathOrMap".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let map = generator.subschema_for::<HttpCheck>();
        json_schema!({ "anyOf": [{ "type": "string", "pattern": "^/" }, map] })
    }
}

impl FromStr for StatusRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let status = |text: &str| text.trim().parse().ok().filter(|status| (100..=599).contains(status));
        let (from, to) = text.split_once('-').unwrap_or((text, text));
        match (status(from), status(to)) {
            (Some(from), Some(to)) if from <= to => Ok(Self { from, to }),
            _ => {
                let text = shorten(text);
                Err(format!("found `{text}`; expected a status or a range of them, like `204` or `200-399`"))
            }
        }
    }
}

impl fmt::Display for StatusRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self { from, to } if from == to => from.fmt(f),
            Self { from, to } => write!(f, "{from}-{to}"),
        }
    }
}

impl Serialize for StatusRange {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for StatusRange {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}

impl JsonSchema for StatusRange {
    fn schema_name() -> Cow<'static, str> {
        "StatusRange".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A status or a range of them, both ends included: `204`, `200-399`.",
            "anyOf": [
                { "type": "integer", "minimum": 100, "maximum": 599 },
                { "type": "string", "pattern": "^[1-5][0-9]{2}( *- *[1-5][0-9]{2})?$" },
            ],
        })
    }
}
