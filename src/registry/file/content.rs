//! From the file's bytes to instances.

use crate::{
    config,
    registry::{Instance, layout::plain::Entry},
};
use indexmap::IndexMap;
use serde::{Deserialize, Deserializer, de::Error};
use std::collections::{HashMap, HashSet};

pub(super) type Services = HashMap<String, Vec<Instance>>;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    /// Optional only for the wording of the error.
    services: Option<IndexMap<String, Vec<Listed>>>,
}

/// Makes the instance while it is read, so that a bad address is reported at its place.
struct Listed(Instance);

impl<'de> Deserialize<'de> for Listed {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Entry::deserialize(from)?.into_instance(None).map(Self).map_err(D::Error::custom)
    }
}

/// What the file says, or all that is wrong with it. `name` is the file's, for the errors.
pub(super) fn decode(name: &str, bytes: &[u8]) -> Result<Services, String> {
    let document: Document = config::read(name, bytes).map_err(|errors| errors.to_string())?;
    // A file that is empty or cut off after its first line must not look like one that lists nothing.
    let services = document.services.ok_or_else(|| {
        format!("{name}: there are no services; expected `services:` and lists by name, or `services: {{}}` for none")
    })?;
    let mut errors = Vec::new();
    for (service, instances) in &services {
        let mut ids = HashSet::new();
        for Listed(instance) in instances {
            if !ids.insert(&instance.id) {
                errors.push(format!("{name}: services.{service}: two instances have the id `{}`", instance.id));
            }
        }
    }
    if !errors.is_empty() {
        return Err(errors.join("\n"));
    }
    let instances = |list: Vec<Listed>| list.into_iter().map(|Listed(instance)| instance).collect();
    Ok(services.into_iter().map(|(name, list)| (name, instances(list))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::Protocol;
    use proptest::prelude::*;

    #[test]
    fn yaml_and_json_say_the_same() {
        let yaml = "
services:
  user-service:
    - 10.0.0.7:8080
    - { address: 10.0.0.8:8080, weight: 50, zone: az-1, protocol: http2, labels: { version: canary } }
  idle: []
";
        let json = r#"{"services": {"idle": [], "user-service": ["10.0.0.7:8080", {"address": "10.0.0.8:8080",
            "weight": 50, "zone": "az-1", "protocol": "http2", "labels": {"version": "canary"}}]}}"#;
        let services = decode("a.yaml", yaml.as_bytes()).unwrap();
        assert_eq!(services, decode("a.json", json.as_bytes()).unwrap());
        let users = &services["user-service"];
        assert_eq!((users.len(), users[0].id.as_str(), users[1].weight), (2, "10.0.0.7:8080", 50));
        assert_eq!((users[1].protocol, users[1].version()), (Some(Protocol::Http2), Some("canary")));
        assert!(services["idle"].is_empty());
        assert!(decode("a.yaml", b"services: {}").unwrap().is_empty());
    }

    #[test]
    fn every_mistake_is_reported_with_its_place() {
        let text = "services:
  users:
    - 10.0.0.7
    - { address: 10.0.0.8:80, wieght: 5 }
    - { address: 10.0.0.9:80, weight: heavy }
";
        let errors = decode("a.yaml", text.as_bytes()).unwrap_err();
        for line in ["a.yaml:3:7: services.users[0]: `10.0.0.7` is not an address", "a.yaml:4:31: ", "a.yaml:5:39: "] {
            assert!(errors.lines().any(|there| there.starts_with(line)), "{line}\n{errors}");
        }
        assert!(errors.contains("did you mean `weight`?"), "{errors}");
        for text in ["", "\n# nothing\n", "services:", "services:\n", "[]", "services: 7", "service: {}", "\u{0}"] {
            assert!(decode("a.yaml", text.as_bytes()).is_err(), "{text}");
        }
        let twice = decode("a.yaml", b"services: { users: [ 10.0.0.7:80, 10.0.0.7:80 ] }").unwrap_err();
        assert_eq!(twice, "a.yaml: services.users: two instances have the id `10.0.0.7:80`");
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in any::<Vec<u8>>(), text in "[a-z0-9:{}\\[\\]\\- \n.,\"&*!]{0,60}") {
            let _ = decode("a.yaml", &bytes);
            let _ = decode("a.yaml", format!("services:\n  {text}").as_bytes());
        }
    }
}
