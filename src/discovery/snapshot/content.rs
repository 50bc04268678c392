//! What is in the file of a service: JSON, below a seal.

use super::Saved;
use crate::{
    config::Protocol,
    durable,
    registry::{AddressError, Instance},
};
use serde::{Deserialize, Serialize};
use std::{
    borrow::Cow,
    collections::BTreeMap,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// What the file says that it is.
pub(super) const WHAT: &str = "pillion's snapshot of a service";

/// Counts up when pillions of before would misunderstand what is written from then on.
const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
struct Content<'a> {
    version: u32,
    service: Cow<'a, str>,
    source: Cow<'a, str>,
    /// Milliseconds since 1970.
    saved_ms: u64,
    instances: Vec<Row<'a>>,
}

/// An instance. Not the layout `plain`, where an address is enough: here nothing is left to a default that may change.
#[derive(Serialize, Deserialize)]
struct Row<'a> {
    id: Cow<'a, str>,
    address: String,
    weight: u32,
    #[serde(default, skip_serializing_if = "is_zero")]
    priority: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    zone: Option<Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    protocol: Option<Protocol>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tls: Option<bool>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    labels: Cow<'a, BTreeMap<String, String>>,
    healthy: bool,
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// The file of `service`.
pub(super) fn encode(
    service: &str,
    source: &str,
    instances: &[Instance],
    saved: SystemTime,
) -> Result<Vec<u8>, serde_json::Error> {
    let since = saved.duration_since(UNIX_EPOCH).unwrap_or_default();
    let content = Content {
        version: VERSION,
        service: service.into(),
        source: source.into(),
        saved_ms: u64::try_from(since.as_millis()).unwrap_or(u64::MAX),
        instances: instances.iter().map(Row::from).collect(),
    };
    let mut body = serde_json::to_vec(&content)?;
    body.push(b'\n');
    Ok(durable::seal(WHAT, &body))
}

/// What the file of `service` says, or why it says nothing.
pub(super) fn decode(service: &str, bytes: &[u8]) -> Result<Saved, String> {
    let (content, saved) = read(bytes)?;
    if content.service != service {
        return Err(format!("it is of another service, `{}`", content.service.escape_debug()));
    }
    let instances: Result<_, AddressError> = content.instances.into_iter().map(Instance::try_from).collect();
    let instances = instances.map_err(|error| error.to_string())?;
    Ok(Saved { instances, source: content.source.into_owned(), saved })
}

/// The time in a file, whosever it is.
pub(super) fn time(bytes: &[u8]) -> Result<SystemTime, String> {
    read(bytes).map(|(_, saved)| saved)
}

fn read(bytes: &[u8]) -> Result<(Content<'static>, SystemTime), String> {
    #[derive(Deserialize)]
    struct Head {
        version: u32,
    }

    let body = durable::unseal(WHAT, bytes)?;
    let Head { version } = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    if version != VERSION {
        return Err(format!("it is of version {version}; expected version {VERSION}"));
    }
    let content: Content<'_> = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    let saved = UNIX_EPOCH.checked_add(Duration::from_millis(content.saved_ms)).ok_or("its time is out of range")?;
    Ok((content, saved))
}

impl<'a> From<&'a Instance> for Row<'a> {
    fn from(instance: &'a Instance) -> Self {
        // Field by field, so that a new one cannot be forgotten.
        let Instance { id, address, weight, priority, zone, protocol, tls, labels, healthy } = instance;
        Self {
            id: id.into(),
            address: address.to_string(),
            weight: *weight,
            priority: *priority,
            zone: zone.as_deref().map(Cow::Borrowed),
            protocol: *protocol,
            tls: *tls,
            labels: Cow::Borrowed(labels),
            healthy: *healthy,
        }
    }
}

impl TryFrom<Row<'_>> for Instance {
    type Error = AddressError;

    fn try_from(row: Row<'_>) -> Result<Self, AddressError> {
        Ok(Self {
            id: row.id.into_owned(),
            address: row.address.parse()?,
            weight: row.weight,
            priority: row.priority,
            zone: row.zone.map(Cow::into_owned),
            protocol: row.protocol,
            tls: row.tls,
            labels: row.labels.into_owned(),
            healthy: row.healthy,
        })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::registry::Address;
    use proptest::{collection, option, prelude::*, sample::select};

    /// One with all there can be, and one with as little as possible.
    pub fn instances() -> Vec<Instance> {
        let full = Instance {
            weight: 0,
            zone: Some("az-1".into()),
            protocol: Some(Protocol::Http2),
            tls: Some(true),
            labels: [("version".to_owned(), "ä\n\"".to_owned()), ("tag.a".to_owned(), "true".to_owned())].into(),
            healthy: false,
            ..Instance::new("a", "[::1]:80".parse().unwrap())
        };
        vec![full, Instance::new("b", "users.internal:80".parse().unwrap())]
    }

    fn sealed(body: &str) -> Vec<u8> {
        durable::seal(WHAT, body.as_bytes())
    }

    #[test]
    fn files_that_are_out_there_can_be_read() {
        // Never change this text: add the next version's beside it.
        let text = "# pillion's snapshot of a service. Do not edit. 304 bytes, XXH64 e6ce7b93ee94c523\n\
            {\"version\":1,\"service\":\"users\",\"source\":\"main\",\"saved_ms\":1790000000123,\"instances\":[\
            {\"id\":\"a\",\"address\":\"[::1]:80\",\"weight\":0,\"zone\":\"az-1\",\"protocol\":\"http2\",\"tls\":true,\
            \"labels\":{\"tag.a\":\"true\",\"version\":\"ä\\n\\\"\"},\"healthy\":false},\
            {\"id\":\"b\",\"address\":\"users.internal:80\",\"weight\":100,\"healthy\":true}]}\n";
        let saved = UNIX_EPOCH + Duration::from_millis(1_790_000_000_123);
        let written = encode("users", "main", &instances(), saved).unwrap();
        assert_eq!(String::from_utf8_lossy(&written), text);
        let read = decode("users", text.as_bytes()).unwrap();
        assert_eq!(read, Saved { instances: instances().into(), source: "main".into(), saved });
    }

    #[test]
    fn what_is_whole_and_yet_of_no_use_says_why() {
        let row = r#"{"id":"a","address":"10.0.0.1:80","weight":1,"healthy":true}"#;
        let text = |version: u32, service: &str, time: u64, row: &str| {
            sealed(&format!(
                r#"{{"version":{version},"service":"{service}","source":"main","saved_ms":{time},"instances":[{row}]}}"#
            ))
        };
        assert_eq!(decode("users", &text(1, "users", 7, row)).unwrap().instances.len(), 1);
        for (bytes, expected) in [
            (text(2, "users", 7, row), "it is of version 2; expected version 1"),
            (sealed(r#"{"version":2,"unheard":"of"}"#), "it is of version 2; expected version 1"),
            (text(1, "orders", 7, row), "it is of another service, `orders`"),
            (text(1, "users", u64::MAX, row), "its time is out of range"),
            (text(1, "users", 7, r#"{"id":"a","address":"10.0.0.1","weight":1,"healthy":true}"#), "is not an address"),
            (text(1, "users", 7, r#"{"id":"a","address":"10.0.0.1:80","weight":1}"#), "missing field `healthy`"),
            (text(1, "users", 7, "7"), "invalid type"),
            (sealed(""), "EOF while parsing"),
            (sealed("{}"), "missing field `version`"),
            (b"{\"version\":1}".to_vec(), "it has no first line"),
        ] {
            match decode("users", &bytes) {
                // On systems whose clocks count further, it is a time like any other.
                Ok(saved) => assert!(expected.contains("time") && saved.saved > SystemTime::now()),
                Err(cause) => assert!(cause.contains(expected), "{cause}"),
            }
        }
    }

    #[test]
    fn damage_at_any_byte_is_noticed() {
        let saved = UNIX_EPOCH + Duration::from_millis(7);
        let whole = encode("users", "main", &instances(), saved).unwrap();
        for at in 0..whole.len() {
            assert!(decode("users", &whole[..at]).is_err(), "cut at {at}");
            for change in [1, 0x20, 0x80, 0xff] {
                let mut bytes = whole.clone();
                bytes[at] ^= change;
                assert!(decode("users", &bytes).is_err(), "changed at {at}");
            }
        }
    }

    fn any_instance() -> impl Strategy<Value = Instance> {
        let host = prop_oneof![
            any::<std::net::IpAddr>().prop_map(|ip| ip.to_string()),
            "[a-z0-9._-]{1,60}"
                .prop_filter("an IP address by chance", |host| host.parse::<std::net::IpAddr>().is_err())
        ];
        let address = (host, 1..=u16::MAX).prop_map(|(host, port)| Address::new(&host, port).unwrap());
        let protocol = option::of(select(vec![Protocol::Http1, Protocol::Http2]));
        let labels = collection::btree_map(any::<String>(), any::<String>(), 0..4);
        let shares = (any::<u32>(), any::<u32>());
        let rest = (shares, option::of(any::<String>()), protocol, any::<Option<bool>>(), labels, any::<bool>());
        (any::<String>(), address, rest).prop_map(|(id, address, (shares, zone, protocol, tls, labels, healthy))| {
            let (weight, priority) = shares;
            Instance { id, address, weight, priority, zone, protocol, tls, labels, healthy }
        })
    }

    proptest! {
        #[test]
        fn what_is_written_can_be_read(
            service in any::<String>(),
            source in any::<String>(),
            instances in collection::vec(any_instance(), 0..5),
            millis in 0..4_000_000_000_000_u64,
        ) {
            let saved = UNIX_EPOCH + Duration::from_millis(millis);
            let bytes = encode(&service, &source, &instances, saved).unwrap();
            prop_assert_eq!(decode(&service, &bytes), Ok(Saved { instances: instances.into(), source, saved }));
        }

        #[test]
        fn no_bytes_are_a_panic(body in any::<Vec<u8>>(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
            let _ = decode("users", &body);
            let _ = decode("users", &durable::seal(WHAT, &body));
            let whole = encode("users", "main", &instances(), UNIX_EPOCH).unwrap();
            let mut body = durable::unseal(WHAT, &whole).unwrap().to_vec();
            let at = at.index(body.len());
            body[at] = byte;
            let _ = decode("users", &durable::seal(WHAT, &body));
        }
    }
}
