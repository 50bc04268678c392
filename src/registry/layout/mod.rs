//! What frameworks write about an instance into a key-value registry. Each layout is a pure decoder, and an encoder.

mod curator;
pub(super) mod dubbo;
mod go_micro;
mod go_zero;
mod grpc;
pub(super) mod kitex;
mod kratos;
mod metadata;
pub mod plain;

pub(super) use kratos::{Endpoint, endpoint_instance};
pub(super) use metadata::Metadata;

use super::{AddressError, Instance};
use crate::config::Layout;
use std::borrow::Cow;

/// Where a layout keeps its services, and how it reads them.
#[derive(Debug, Clone)]
pub struct Keys {
    layout: Layout,
    /// Empty, or ends in `/`.
    base: String,
}

impl Keys {
    /// With the layout's own prefix where `prefix` is `None`.
    pub fn new(layout: Layout, prefix: Option<&str>) -> Self {
        let prefix = prefix.unwrap_or_else(|| layout.default_prefix());
        // `/` is a prefix too, that of keys like `/users/a`; no prefix is keys like `users/a`.
        let base = if prefix.is_empty() { String::new() } else { format!("{}/", prefix.trim_end_matches('/')) };
        Self { layout, base }
    }

    /// What all keys of all services begin with.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// What the keys of `service`'s instances begin with. Ends in `/`, lest `users` would also mean `users-admin`.
    pub fn of_service(&self, service: &str) -> String {
        let name = match self.layout {
            Layout::GoMicro => go_micro::segment(service),
            Layout::Dubbo => Cow::Owned(dubbo::segment(service)),
            _ => Cow::Borrowed(service),
        };
        format!("{}{name}/", self.base)
    }

    /// The service whose instance is at `key`, or `None` if the layout would not write such a key.
    pub fn service_at<'k>(&self, key: &'k [u8]) -> Option<Cow<'k, str>> {
        let (service, id) = std::str::from_utf8(key).ok()?.strip_prefix(&self.base)?.rsplit_once('/')?;
        if service.is_empty() || id.is_empty() {
            return None;
        }
        let possible = match self.layout {
            Layout::Plain | Layout::Kratos | Layout::Grpc | Layout::Curator => true,
            Layout::GoMicro => !service.contains('/'),
            Layout::Dubbo => return dubbo::interface(service),
            // Without a prefix every key of the whole etcd comes by here, and a lease id is a number.
            Layout::GoZero => id.bytes().all(|b| b.is_ascii_digit()),
        };
        possible.then_some(Cow::Borrowed(service))
    }

    /// Whether what [`Self::decode`] is told of a value makes any difference.
    pub fn reads_values(&self) -> bool {
        self.layout != Layout::Dubbo
    }

    /// The instances in the value at `suffix`, which is the key after [`Self::of_service`]. None at all if the key is
    /// another service's.
    pub fn decode(&self, service: &str, suffix: &str, value: &[u8]) -> Result<Vec<Instance>, DecodeError> {
        match self.layout {
            Layout::Plain => plain::decode(suffix, value),
            Layout::Kratos => kratos::decode(service, suffix, value),
            Layout::GoMicro => go_micro::decode(suffix, value),
            Layout::GoZero => go_zero::decode(suffix, value),
            Layout::Grpc => grpc::decode(suffix, value),
            Layout::Curator => curator::decode(suffix, value),
            Layout::Dubbo => dubbo::decode(service, suffix),
        }
    }
}

/// What a layout writes for an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The key after [`Keys::of_service`]. `None`: the number of the lease that the key hangs on.
    pub suffix: Option<String>,
    pub value: Vec<u8>,
}

/// What some key has to do with an instance that is to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Relation {
    /// It is the same instance, perhaps with another content; or nothing that anybody could use, in its place.
    Same,
    /// Its place is taken: by one at this address.
    Taken(String),
    None,
}

impl Keys {
    /// What is written for `instance` of `service`. `time`: when it was registered, in milliseconds since 1970.
    ///
    /// Fails for what the layout has no way to write.
    pub fn encode(&self, service: &str, instance: &Instance, time: u64) -> Result<Record, EncodeError> {
        let own = |value| Record { suffix: Some(instance.id.clone()), value };
        if instance.id.contains('/') && matches!(self.layout, Layout::Plain | Layout::Kratos | Layout::Curator) {
            return Err(EncodeError::Id { id: instance.id.clone(), expected: "one without a slash" });
        }
        Ok(match self.layout {
            Layout::Plain => own(plain::encode(instance)?),
            Layout::Kratos => own(kratos::encode(service, instance)?),
            Layout::GoMicro => Record {
                suffix: Some(go_micro::segment(&instance.id).into_owned()),
                value: go_micro::encode(service, instance)?,
            },
            Layout::GoZero => go_zero::encode(instance),
            Layout::Grpc => own(grpc::encode(instance)?),
            Layout::Curator => own(curator::encode(service, instance, time)?),
            Layout::Dubbo => dubbo::encode(service, instance),
        })
    }

    /// Whether a key's place says which instance it is. If not, all of the service have to be looked at.
    pub fn are_places(&self) -> bool {
        !matches!(self.layout, Layout::GoZero | Layout::Dubbo)
    }

    /// What the value at `suffix` has to do with `instance`, which is written at `ours`.
    pub fn relation(
        &self,
        service: &str,
        instance: &Instance,
        ours: Option<&str>,
        (suffix, value): (&str, &[u8]),
    ) -> Relation {
        let there = self.decode(service, suffix, value).unwrap_or_default();
        let place = ours == Some(suffix);
        let id = match self.layout {
            Layout::Dubbo => ours.and_then(|ours| self.decode(service, ours, &[]).ok()?.pop()),
            _ => None,
        };
        let is_same = |other: &Instance| match (&id, self.are_places()) {
            (Some(ours), _) => ours.id == other.id,
            (None, false) => true,
            (None, true) => place,
        };
        if there.iter().any(|other| is_same(other) && other.address == instance.address) {
            return Relation::Same;
        }
        match there.first() {
            Some(other) if place => Relation::Taken(other.address.to_string()),
            None if place => Relation::Same,
            _ => Relation::None,
        }
    }
}

/// Why a layout cannot write an instance.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    #[error("the id `{id}` cannot be written in this layout; expected {expected} (`register[].id`)")]
    Id { id: String, expected: &'static str },
    #[error("it cannot be written as JSON: {0}")]
    Json(String),
}

impl From<serde_json::Error> for EncodeError {
    fn from(error: serde_json::Error) -> Self {
        Self::Json(error.to_string())
    }
}

/// Why one key's value is no instance.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error("it is not UTF-8")]
    NotText(#[from] std::str::Utf8Error),
    #[error("its JSON is not of this layout: {0}")]
    Json(String),
    #[error(transparent)]
    Address(#[from] AddressError),
}

impl From<serde_json::Error> for DecodeError {
    fn from(error: serde_json::Error) -> Self {
        Self::Json(error.to_string())
    }
}

/// The rest of a key as an id, unless there is more than one segment in it.
fn id_segment(suffix: &str) -> Option<&str> {
    (!suffix.is_empty() && !suffix.contains('/')).then_some(suffix)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LAYOUTS: [Layout; 7] =
        [Layout::Plain, Layout::Kratos, Layout::GoMicro, Layout::GoZero, Layout::Grpc, Layout::Curator, Layout::Dubbo];

    #[test]
    fn prefixes_are_those_of_the_frameworks() {
        for (layout, prefix, service, all, of_service) in [
            (Layout::Plain, None, "users", "/pillion/", "/pillion/users/"),
            (Layout::Plain, Some("/dev/"), "users", "/dev/", "/dev/users/"),
            (Layout::Plain, Some("/"), "users", "/", "/users/"),
            (Layout::Kratos, None, "users", "/microservices/", "/microservices/users/"),
            (Layout::GoMicro, None, "go.micro/users", "/micro/registry/", "/micro/registry/go.micro-users/"),
            (Layout::GoZero, None, "user.rpc", "", "user.rpc/"),
            (Layout::Grpc, Some(""), "users", "", "users/"),
            (Layout::Curator, None, "users", "/services/", "/services/users/"),
            (Layout::Dubbo, None, "com.foo.Bar:1.0", "/dubbo/", "/dubbo/com.foo.Bar/providers/"),
        ] {
            let keys = Keys::new(layout, prefix);
            assert_eq!((keys.base(), keys.of_service(service).as_str()), (all, of_service), "{layout:?} {prefix:?}");
        }
    }

    #[test]
    fn services_are_found_in_keys() {
        for (layout, key, service) in [
            (Layout::Plain, "/pillion/users/a", Some("users")),
            (Layout::Plain, "/pillion/users", None),
            (Layout::Plain, "/pillion/users/", None),
            (Layout::Plain, "/pillion//a", None),
            (Layout::Plain, "/other/users/a", None),
            (Layout::Kratos, "/microservices/team/users/a", Some("team/users")),
            (Layout::GoMicro, "/micro/registry/users/users-1", Some("users")),
            (Layout::GoMicro, "/micro/registry/a/users/users-1", None),
            (Layout::GoZero, "user.rpc/7587870137262312214", Some("user.rpc")),
            (Layout::GoZero, "/pillion/users/a", None),
            (Layout::Grpc, "users/10.0.0.1:8080", Some("users")),
            (Layout::Curator, "/services/team/users/7d9e", Some("team/users")),
            (Layout::Dubbo, "/dubbo/com.foo.Bar/providers/dubbo%3A%2F%2F10.0.0.1%3A20880", Some("com.foo.Bar")),
            (Layout::Dubbo, "/dubbo/com.foo.Bar/consumers/consumer%3A%2F%2F10.0.0.1", None),
        ] {
            assert_eq!(Keys::new(layout, None).service_at(key.as_bytes()).as_deref(), service, "{layout:?} {key}");
        }
        assert_eq!(Keys::new(Layout::Plain, None).service_at(b"/pillion/\xff/a"), None);
    }

    fn ours() -> Instance {
        let mut instance = Instance::new("7", "10.0.0.1:8080".parse().unwrap());
        instance.protocol = Some(crate::config::Protocol::Http2);
        instance.weight = 50;
        instance.zone = Some("az-1".into());
        instance.labels = [("version", "v2"), ("team", "a&b=c d"), ("tag.blue", "true")]
            .map(|(label, value)| (label.to_owned(), value.to_owned()))
            .into();
        instance
    }

    #[test]
    fn what_is_written_is_read_again() {
        for layout in LAYOUTS {
            let (keys, instance) = (Keys::new(layout, None), ours());
            let record = keys.encode("users", &instance, 1_610_116_500_446).unwrap();
            let suffix = record.suffix.unwrap();
            let read = keys.decode("users", &suffix, &record.value).unwrap();
            assert_eq!((read.len(), &read[0].address), (1, &instance.address), "{layout:?}");
            assert!(keys.service_at(format!("{}{suffix}", keys.of_service("users")).as_bytes()).is_some());
            if layout == Layout::GoZero {
                continue;
            }
            let found = (read[0].weight, read[0].version(), read[0].labels["team"].as_str());
            assert_eq!(found, (50, Some("v2"), "a&b=c d"), "{layout:?}");
            assert_eq!(read[0].labels["tag.blue"], "true", "{layout:?}");
            // Curator's has no word for what an instance speaks, and Dubbo's no zones.
            assert_eq!(read[0].protocol.is_some(), layout != Layout::Curator, "{layout:?}");
            assert_eq!(read[0].zone.is_some(), layout != Layout::Dubbo, "{layout:?}");
        }
        assert!(Keys::new(Layout::Plain, None).encode("users", &Instance { id: "a/b".into(), ..ours() }, 0).is_err());
    }

    #[test]
    fn what_is_there_already_is_told_apart() {
        for layout in LAYOUTS {
            let (keys, instance) = (Keys::new(layout, None), ours());
            let of = |instance: &Instance| keys.encode("users", instance, 0).unwrap();
            let record = of(&instance);
            let suffix = record.suffix.as_deref();
            let relation = |there: &Record| {
                keys.relation("users", &instance, suffix, (there.suffix.as_deref().unwrap(), &there.value))
            };
            let heavier = of(&Instance { weight: 99, ..instance.clone() });
            assert_eq!((relation(&record), relation(&heavier)), (Relation::Same, Relation::Same), "{layout:?}");
            let elsewhere = of(&Instance { address: "10.0.0.2:8080".parse().unwrap(), ..instance.clone() });
            let taken = Relation::Taken("10.0.0.2:8080".into());
            // The address is in the name, and another address another name.
            let expected = if layout == Layout::Dubbo { Relation::None } else { taken };
            assert_eq!(relation(&elsewhere), expected, "{layout:?}");
            let other = of(&Instance { id: "8".into(), address: "10.0.0.2:8080".parse().unwrap(), ..instance.clone() });
            assert_eq!(relation(&other), Relation::None, "{layout:?}");
        }
    }

    proptest! {
        #[test]
        fn no_value_makes_a_decoder_panic(
            suffix in prop_oneof![".{0,20}", "[a-z]{0,3}(%3A%2F%2F)?[0-9a-z.%&=?]{0,40}"],
            value in prop_oneof![
                prop::collection::vec(any::<u8>(), 0..200),
                r#"[\[\]{}",:0-9a-zA-Z/?=.]{0,200}"#.prop_map(String::into_bytes),
                // Near to what is meant, so that the inner parts are reached.
                ".{0,40}".prop_map(|t| serde_json::json!({
                    "address": t, "Addr": t, "endpoints": [t, format!("grpc://{t}")],
                    "metadata": {"weight": t}, "Metadata": t, "nodes": [{"id": t, "address": t}], "port": 1,
                    "payload": {"metadata": {"dubbo.endpoints": t}},
                }).to_string().into_bytes()),
            ],
        ) {
            for layout in LAYOUTS {
                let _ = Keys::new(layout, None).decode("users", &suffix, &value);
                let _ = Keys::new(layout, None).service_at(&value);
            }
        }
    }
}
