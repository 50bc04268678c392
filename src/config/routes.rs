//! Reading those parts of routes that have a short form. By hand, because an untagged derive says only that nothing fitted.

use super::{Target, ValueMatch, WhenEmpty, error::shorten};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{Error, MapAccess, SeqAccess, value::MapAccessDeserializer},
    ser::SerializeMap,
};
use std::{borrow::Cow, fmt, str::FromStr};

/// For `#[serde(deserialize_with = "one_or_many")]`: a text alone is a list of one.
pub fn one_or_many<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    struct Visitor;

    impl<'de> serde::de::Visitor<'de> for Visitor {
        type Value = Vec<String>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a text or a list of them")
        }

        fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
            Ok(Vec::new())
        }

        fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
            Ok(vec![text.into()])
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
            let mut all = Vec::new();
            while let Some(one) = seq.next_element()? {
                all.push(one);
            }
            Ok(all)
        }
    }

    // As a text, so that what looks like a number stays as it was written.
    from.deserialize_str(Visitor)
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = match text.split_once('/') {
            None => Some((None, Some(text))),
            Some((service, "")) => Some((Some(service), None)),
            Some((service, subset)) => Some((Some(service), Some(subset))),
        };
        let is_name = |part: Option<&str>| part.is_none_or(|part| !part.is_empty() && !part.contains('/'));
        match parts {
            Some((service, subset)) if is_name(service) && is_name(subset) => {
                Ok(Self { service: service.map(Into::into), subset: subset.map(Into::into) })
            }
            _ => Err(format!("found `{}`; expected `SUBSET`, `SERVICE/` or `SERVICE/SUBSET`", shorten(text))),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(service) = &self.service {
            write!(f, "{service}/")?;
        }
        f.write_str(self.subset.as_deref().unwrap_or_default())
    }
}

impl Serialize for Target {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Target {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}

impl JsonSchema for Target {
    fn schema_name() -> Cow<'static, str> {
        "Target".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A subset of this service, `SUBSET`; another service, `SERVICE/`; or a subset of that, `SERVICE/SUBSET`.",
            "type": "string",
            "pattern": "^([^/]+|[^/]+/[^/]*)$",
        })
    }
}

/// A [`ValueMatch`] as a map. One of them is given.
#[derive(Deserialize, JsonSchema, Default)]
#[serde(deny_unknown_fields, default)]
struct ValueMatchMap {
    /// The whole value.
    exact: Option<String>,
    /// What the value begins with.
    prefix: Option<String>,
    /// For the whole value.
    regex: Option<String>,
    /// Whether it is there, with any value.
    present: Option<bool>,
}

impl<'de> Deserialize<'de> for ValueMatch {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = ValueMatch;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value, or a map with one of `exact`, `prefix`, `regex` and `present`")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<ValueMatch, E> {
                Ok(ValueMatch::Exact(text.into()))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<ValueMatch, A::Error> {
                let ValueMatchMap { exact, prefix, regex, present } =
                    ValueMatchMap::deserialize(MapAccessDeserializer::new(map))?;
                let given = [
                    exact.map(ValueMatch::Exact),
                    prefix.map(ValueMatch::Prefix),
                    regex.map(ValueMatch::Regex),
                    present.map(ValueMatch::Present),
                ];
                let mut given = given.into_iter().flatten();
                match (given.next(), given.next()) {
                    (Some(one), None) => Ok(one),
                    _ => Err(A::Error::custom("expected exactly one of `exact`, `prefix`, `regex` and `present`")),
                }
            }
        }

        // As a text, so that what looks like a number stays as it was written.
        from.deserialize_str(Visitor)
    }
}

impl Serialize for ValueMatch {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        if let Self::Exact(text) = self {
            return text.serialize(to);
        }
        let mut map = to.serialize_map(Some(1))?;
        match self {
            Self::Exact(text) => map.serialize_entry("exact", text)?,
            Self::Prefix(text) => map.serialize_entry("prefix", text)?,
            Self::Regex(text) => map.serialize_entry("regex", text)?,
            Self::Present(present) => map.serialize_entry("present", present)?,
        }
        map.end()
    }
}

impl JsonSchema for ValueMatch {
    fn schema_name() -> Cow<'static, str> {
        "ValueMatch".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let map = generator.subschema_for::<ValueMatchMap>();
        json_schema!({
            "description": "A value: the text itself, or a map with one of `exact`, `prefix`, `regex` and `present`.",
            "anyOf": [{ "type": ["string", "number", "boolean"] }, map],
        })
    }
}

/// The words of [`WhenEmpty`], which no subset may be called.
pub const FAIL: &str = "fail";
pub const SERVICE: &str = "service";

impl fmt::Display for WhenEmpty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fail => FAIL,
            Self::Service => SERVICE,
            Self::Subset(name) => name,
        })
    }
}

impl Serialize for WhenEmpty {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for WhenEmpty {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        Ok(match text.as_str() {
            FAIL => Self::Fail,
            SERVICE => Self::Service,
            _ => Self::Subset(text),
        })
    }
}

impl JsonSchema for WhenEmpty {
    fn schema_name() -> Cow<'static, str> {
        "WhenEmpty".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "description": "`fail`, `service`, or the name of another subset.", "type": "string" })
    }
}
