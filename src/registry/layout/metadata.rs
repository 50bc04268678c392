//! The `metadata` map that most frameworks carry, and the words in it that mean the same everywhere.

use crate::registry::{Instance, Protocol};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// Metadata as text. `null`, which Go writes for a map that was never made, is empty; numbers and the like are taken as
/// they are written, because one odd value is no reason to lose an instance.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Metadata(pub BTreeMap<String, String>);

impl<'de> Deserialize<'de> for Metadata {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Ok(Self::from(Value::deserialize(from)?))
    }
}

impl From<Value> for Metadata {
    /// Anything but a map has no labels in it.
    fn from(value: Value) -> Self {
        let Value::Object(map) = value else { return Self::default() };
        let text = |value| match value {
            Value::String(text) => text,
            other => other.to_string(),
        };
        Self(map.into_iter().filter(|(_, value)| !value.is_null()).map(|(key, value)| (key, text(value))).collect())
    }
}

impl Metadata {
    /// What is written of `instance`, such that [`Self::apply`] understands it: its labels, and what has no other place.
    pub fn of(instance: &Instance) -> Self {
        let mut labels = instance.labels.clone();
        if instance.weight != Instance::DEFAULT_WEIGHT {
            labels.insert("weight".into(), instance.weight.to_string());
        }
        if let Some(zone) = &instance.zone {
            labels.insert("zone".into(), zone.clone());
        }
        Self(labels)
    }

    /// Takes the version out, for layouts that have a field for it; empty without one.
    pub fn take_version(&mut self) -> String {
        self.0.remove("version").unwrap_or_default()
    }

    /// Adds the labels to `instance`, over those that it has, and sets what well-known words among them say: `weight`
    /// (a whole number), `zone`, `protocol` (`grpc` or `http2`).
    pub fn apply(self, instance: &mut Instance) {
        if let Some(weight) = self.weight() {
            instance.weight = weight;
        }
        if let Some(zone) = self.0.get("zone").filter(|zone| !zone.is_empty()) {
            instance.zone = Some(zone.clone());
        }
        if matches!(self.0.get("protocol").map(String::as_str), Some("grpc" | "http2" | "h2c")) {
            instance.protocol = Some(Protocol::Http2);
        }
        instance.labels.extend(self.0);
    }

    /// The `weight` among the labels, if it is a whole number.
    pub fn weight(&self) -> Option<u32> {
        self.0.get("weight")?.trim().parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn applied(json: &str) -> Instance {
        let mut instance = Instance::new("a", "10.0.0.1:80".parse().unwrap());
        serde_json::from_str::<Metadata>(json).unwrap().apply(&mut instance);
        instance
    }

    #[test]
    fn known_words_are_understood_and_all_become_labels() {
        let instance = applied(r#"{"weight":"30","zone":"az-2","protocol":"grpc","cpu":4,"gpu":null,"x":{"y":1}}"#);
        assert_eq!((instance.weight, instance.zone.as_deref()), (30, Some("az-2")));
        assert_eq!(instance.protocol, Some(Protocol::Http2));
        let labels: Vec<_> = instance.labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
        assert_eq!(labels, ["cpu=4", "protocol=grpc", "weight=30", r#"x={"y":1}"#, "zone=az-2"]);
    }

    #[test]
    fn what_is_not_understood_changes_nothing() {
        for json in ["null", "{}", r#""text""#, "[1]", r#"{"weight":"heavy"}"#, r#"{"weight":"-1"}"#] {
            assert_eq!(applied(json).weight, Instance::DEFAULT_WEIGHT, "{json}");
        }
    }
}
