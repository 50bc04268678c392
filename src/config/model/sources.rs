//! Where a service's instances are looked for.

use super::super::human;
use schemars::JsonSchema;
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{self, MapAccess, Visitor},
};
use std::{fmt, time::Duration};

/// One step in the order of priority: a registry, or several taken together.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// All that any of these registries lists. Of one address that several list, the first of them is believed.
    Merge(Vec<String>),
    /// What the nearest of these registries lists that has anything that can be reached: for one service in several
    /// datacenters. Nearness is the time that a connection to its instances takes.
    Nearest(Vec<String>),
    #[serde(untagged)]
    Registry(String),
}

/// When another source takes over from one that fails.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Failover {
    /// After a source has failed for so long, the next one that answers is believed, if there is one.
    #[serde(with = "human")]
    #[schemars(with = "human::Text")]
    pub after: Duration,
    /// It is believed again once it has answered for so long without a failure.
    #[serde(with = "human")]
    #[schemars(with = "human::Text")]
    pub hold: Duration,
}

impl Source {
    /// The registries in it.
    pub fn registries(&self) -> &[String] {
        match self {
            Self::Registry(name) => std::slice::from_ref(name),
            Self::Merge(names) | Self::Nearest(names) => names,
        }
    }
}

impl From<&str> for Source {
    fn from(name: &str) -> Self {
        Self::Registry(name.into())
    }
}

impl Default for Failover {
    fn default() -> Self {
        Self { after: Duration::from_secs(10), hold: Duration::from_secs(30) }
    }
}

/// By hand, because what serde derives for "a text or a map" loses the position of an error.
impl<'de> Deserialize<'de> for Source {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(field_identifier, rename_all = "lowercase")]
        enum Key {
            Merge,
            Nearest,
        }

        struct TextOrMap;

        impl<'de> Visitor<'de> for TextOrMap {
            type Value = Source;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a registry's name, `{ merge: [NAME, …] }` or `{ nearest: [NAME, …] }`")
            }

            fn visit_str<E: de::Error>(self, name: &str) -> Result<Source, E> {
                Ok(name.into())
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Source, A::Error> {
                let mut found = None;
                while let Some(key) = map.next_key()? {
                    if found.is_some() {
                        return Err(de::Error::custom("expected one of `merge` and `nearest`, not both"));
                    }
                    found = Some(match key {
                        Key::Merge => Source::Merge(map.next_value()?),
                        Key::Nearest => Source::Nearest(map.next_value()?),
                    });
                }
                // That it is empty is told by the checks, which know what was told before.
                Ok(found.unwrap_or(Source::Merge(Vec::new())))
            }
        }

        from.deserialize_any(TextOrMap)
    }
}
