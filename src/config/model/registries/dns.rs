//! How to ask DNS.

use super::{super::super::human, Scope};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{
    net::{IpAddr, SocketAddr},
    num::NonZeroU16,
    time::Duration,
};

/// What stands for the service's name in [`DnsRegistry::name`].
const SERVICE: &str = "{service}";
const PORT: u16 = 53;
const LONGEST_LABEL: usize = 63;
const LONGEST_NAME: usize = 253;

/// DNS: one name per service.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DnsRegistry {
    /// Whom to ask: `IP` or `IP:PORT`, the next where one does not answer. By default those of `/etc/resolv.conf`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub servers: Vec<String>,
    /// The name to ask for, with `{service}` for the service: `{service}.service.consul` or `_{service}._tcp.example.com`.
    /// Asked for as it is; no search domains are added.
    pub name: String,
    /// The records that are asked for.
    #[serde(default)]
    pub record: DnsRecord,
    /// Where instances listen. Only with records that do not say it: all but `srv`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<NonZeroU16>,
    /// Asked again when what was answered has run out, but not sooner than after this time.
    #[serde(default = "min_ttl", with = "human")]
    #[schemars(with = "human::Text")]
    pub min_ttl: Duration,
    /// And not later.
    #[serde(default = "max_ttl", with = "human")]
    #[schemars(with = "human::Text")]
    pub max_ttl: Duration,
    /// How long one server may take, before the next one is asked.
    #[serde(default = "timeout", with = "human")]
    #[schemars(with = "human::Text")]
    pub timeout: Duration,
    #[serde(default, skip_serializing_if = "Scope::is_default")]
    pub scope: Scope,
}

/// Which records say where a service's instances are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "lowercase")]
pub enum DnsRecord {
    /// Host, port, priority and weight of each.
    #[default]
    Srv,
    /// IPv4 addresses.
    A,
    /// IPv6 addresses.
    Aaaa,
    /// IPv4 addresses, or IPv6 where there are none: a host that has both is not two instances.
    Ip,
}

impl DnsRegistry {
    /// As after loading a config that has only the name.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            servers: Vec::new(),
            name: name.into(),
            record: DnsRecord::default(),
            port: None,
            min_ttl: min_ttl(),
            max_ttl: max_ttl(),
            timeout: timeout(),
            scope: Scope::default(),
        }
    }

    /// The address of one of `servers`, with or without a port.
    pub fn server(text: &str) -> Option<SocketAddr> {
        let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
        let address = bare.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, PORT)).ok().or_else(|| text.parse().ok())?;
        (address.port() != 0).then_some(address)
    }

    /// The name to ask for, in lower case and without a dot at the end.
    ///
    /// Fails, saying what is expected, if DNS cannot carry it.
    pub fn name_of(&self, service: &str) -> Result<String, &'static str> {
        let name = self.name.replace(SERVICE, service).to_ascii_lowercase();
        let name = name.strip_suffix('.').unwrap_or(&name);
        let is_carried = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        if !name.bytes().all(is_carried) {
            return Err("letters, digits, `-` and `_`");
        }
        if name.len() > LONGEST_NAME || name.split('.').any(|label| !(1..=LONGEST_LABEL).contains(&label.len())) {
            return Err("from 1 to 63 characters between two dots, and 253 in all");
        }
        Ok(name.to_owned())
    }

    pub(in crate::config) fn names_service(&self) -> bool {
        self.name.contains(SERVICE)
    }
}

fn min_ttl() -> Duration {
    Duration::from_secs(1)
}

fn max_ttl() -> Duration {
    Duration::from_secs(300)
}

fn timeout() -> Duration {
    Duration::from_secs(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_addresses_with_or_without_a_port() {
        for (text, shown) in [
            ("10.0.0.53", "10.0.0.53:53"),
            ("10.0.0.53:5353", "10.0.0.53:5353"),
            ("::1", "[::1]:53"),
            ("[::1]", "[::1]:53"),
            ("[::1]:5353", "[::1]:5353"),
        ] {
            assert_eq!(DnsRegistry::server(text).unwrap().to_string(), shown);
        }
        for text in ["", "dns.example.com", "10.0.0.53:", "10.0.0.53:0", "10.0.0.53:x", "[10.0.0.53", "udp://10.0.0.53"]
        {
            assert_eq!(DnsRegistry::server(text), None, "{text}");
        }
    }

    #[test]
    fn names_that_dns_cannot_carry_are_refused() {
        let registry = DnsRegistry::new("_{service}._tcp.Example.com.");
        assert_eq!(registry.name_of("User-1").unwrap(), "_user-1._tcp.example.com");
        assert_eq!(registry.name_of("a.b_c").unwrap(), "_a.b_c._tcp.example.com");
        for service in ["a b", "a/b", "käse", "a\\b", "a\0", "{service}"] {
            assert!(registry.name_of(service).unwrap_err().starts_with("letters"), "{service}");
        }
        let bare = DnsRegistry::new("{service}.consul");
        for service in ["", ".", "a..b", ".a", "a.", &"a".repeat(64), &"a.".repeat(130)] {
            assert!(bare.name_of(service).unwrap_err().starts_with("from 1 to 63"), "{service}");
        }
    }
}
