//! What frameworks write about an instance into a key-value registry. Each layout is a pure decoder.

mod go_micro;
mod go_zero;
mod grpc;
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
            _ => Cow::Borrowed(service),
        };
        format!("{}{name}/", self.base)
    }

    /// The service whose instance is at `key`, or `None` if the layout would not write such a key.
    pub fn service_at<'k>(&self, key: &'k [u8]) -> Option<&'k str> {
        let (service, id) = std::str::from_utf8(key).ok()?.strip_prefix(&self.base)?.rsplit_once('/')?;
        if service.is_empty() || id.is_empty() {
            return None;
        }
        let possible = match self.layout {
            Layout::Plain | Layout::Kratos | Layout::Grpc => true,
            Layout::GoMicro => !service.contains('/'),
            // Without a prefix every key of the whole etcd comes by here, and a lease id is a number.
            Layout::GoZero => id.bytes().all(|b| b.is_ascii_digit()),
        };
        possible.then_some(service)
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
        }
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

    const LAYOUTS: [Layout; 5] = [Layout::Plain, Layout::Kratos, Layout::GoMicro, Layout::GoZero, Layout::Grpc];

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
        ] {
            assert_eq!(Keys::new(layout, None).service_at(key.as_bytes()), service, "{layout:?} {key}");
        }
        assert_eq!(Keys::new(Layout::Plain, None).service_at(b"/pillion/\xff/a"), None);
    }

    proptest! {
        #[test]
        fn no_value_makes_a_decoder_panic(
            suffix in ".{0,20}",
            value in prop_oneof![
                prop::collection::vec(any::<u8>(), 0..200),
                r#"[\[\]{}",:0-9a-zA-Z/?=.]{0,200}"#.prop_map(String::into_bytes),
                // Near to what is meant, so that the inner parts are reached.
                ".{0,40}".prop_map(|t| serde_json::json!({
                    "address": t, "Addr": t, "endpoints": [t, format!("grpc://{t}")],
                    "metadata": {"weight": t}, "Metadata": t, "nodes": [{"id": t, "address": t}],
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
