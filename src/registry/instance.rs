//! What a registry says about one endpoint, in the same words whatever the registry.

use crate::config::Protocol;
use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

/// Where an instance listens: an IP address, or a host name that is resolved at each connect.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Address {
    Ip(SocketAddr),
    Name { host: String, port: u16 },
}

/// One endpoint of a service, as a registry describes it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Instance {
    /// Unique within the service and the registry.
    pub id: String,
    pub address: Address,
    /// Share of the traffic relative to the service's other instances, in the registry's own scale. 0 takes none.
    pub weight: u32,
    /// Those of the lowest number take everything while enough of them are available, as with `balance.priority`.
    pub priority: u32,
    pub zone: Option<String>,
    /// What it speaks, if the registry says so.
    pub protocol: Option<Protocol>,
    /// Whether it wants TLS, if the registry says so.
    pub tls: Option<bool>,
    /// Metadata, tags (as `tag.NAME: "true"`), and `version` where the registry has one.
    pub labels: BTreeMap<String, String>,
    /// Whether the registry itself holds it fit to serve.
    pub healthy: bool,
}

impl Instance {
    /// The weight of an instance whose registry entry has none. Same as the middle of the scales in use
    /// (Kratos writes 100, Nacos shows 1.0 as 100 %), so that `weight: 50` means half of the others.
    pub const DEFAULT_WEIGHT: u32 = 100;

    pub fn new(id: impl Into<String>, address: Address) -> Self {
        Self {
            id: id.into(),
            address,
            weight: Self::DEFAULT_WEIGHT,
            priority: 0,
            zone: None,
            protocol: None,
            tls: None,
            labels: BTreeMap::new(),
            healthy: true,
        }
    }

    /// The `version` label.
    pub fn version(&self) -> Option<&str> {
        self.labels.get("version").map(String::as_str)
    }
}

impl Address {
    /// From a host as registries write it (IP with or without brackets, or a name) and a port.
    pub fn new(host: &str, port: u16) -> Result<Self, AddressError> {
        let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
        if port == 0 {
            return Err(AddressError { text: format!("{host}:{port}"), expected: "a port from 1 to 65535" });
        }
        if let Ok(ip) = bare.parse::<IpAddr>() {
            return Ok(Self::Ip(SocketAddr::new(ip, port)));
        }
        let name_like = !bare.is_empty()
            && bare.len() <= 253
            && bare.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'));
        if name_like {
            Ok(Self::Name { host: bare.to_ascii_lowercase(), port })
        } else {
            Err(AddressError { text: format!("{host}:{port}"), expected: "an IP address or a host name, then `:PORT`" })
        }
    }

    pub fn port(&self) -> u16 {
        match self {
            Self::Ip(address) => address.port(),
            Self::Name { port, .. } => *port,
        }
    }

    /// The same host, at another port.
    pub fn with_port(&self, port: u16) -> Self {
        match self {
            Self::Ip(address) => Self::Ip(SocketAddr::new(address.ip(), port)),
            Self::Name { host, .. } => Self::Name { host: host.clone(), port },
        }
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let bad = || AddressError { text: text.into(), expected: "`HOST:PORT`, `IP:PORT` or `[IPV6]:PORT`" };
        let (host, port) = text.rsplit_once(':').ok_or_else(bad)?;
        // An IPv6 address without brackets would make the port a guess.
        if host.contains(':') && !host.starts_with('[') {
            return Err(bad());
        }
        Self::new(host, port.parse().map_err(|_| bad())?)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => address.fmt(f),
            Self::Name { host, port } => write!(f, "{host}:{port}"),
        }
    }
}

/// A text that is not an address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not an address; expected {expected}")]
pub struct AddressError {
    text: String,
    expected: &'static str,
}

impl AddressError {
    /// For decoders of other ways to write an address.
    pub(super) fn new(text: &str, expected: &'static str) -> Self {
        Self { text: text.into(), expected }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_read_as_registries_write_them() {
        for (text, shown) in [
            ("10.0.0.7:8080", "10.0.0.7:8080"),
            ("[::1]:80", "[::1]:80"),
            ("Users.internal:80", "users.internal:80"),
            ("my_host:1", "my_host:1"),
        ] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), shown);
        }
        assert_eq!(Address::new("::1", 80).unwrap().to_string(), "[::1]:80");
    }

    #[test]
    fn what_is_no_address_is_refused_with_the_text() {
        for text in ["", "10.0.0.7", "::1:80", "a b:80", "host:0", "host:65536", ":80", "http://x:80"] {
            let error = text.parse::<Address>().unwrap_err().to_string();
            assert!(error.contains("is not an address; expected"), "{text}: {error}");
        }
    }
}
