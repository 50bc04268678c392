//! How connections are carried that the kernel redirects to pillion.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize, de};
use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

/// What becomes of connections that the kernel redirects to pillion (`pillion net up`): each goes to the service that the
/// address belongs to which its client called, by the registry or by `services.*.addresses`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Transparent {
    /// Whose connections they are.
    pub direction: Direction,
    /// What becomes of those whose address belongs to no service, and who name none: by `Host` (HTTP), or the TLS server's
    /// name; `pass` by default. With `direction: inbound`, of those to a port that no listener's `app` has: `refuse` by default,
    /// because what pillion passes on there, a firewall takes for its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unknown: Option<Unknown>,
    /// Ports of destinations whose bytes are carried as they come, without a look at them: those at which servers speak
    /// first by custom. Others of that kind are found out, which costs their first connections a few milliseconds.
    pub opaque_ports: Vec<u16>,
}

/// Whose connections are redirected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// Those that applications here open.
    #[default]
    Outbound,
    /// Those that others open to applications here: each goes on as if it had come in by the listener whose `app` has the port
    /// that was called.
    Inbound,
}

/// What becomes of connections to addresses that belong to no service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Unknown {
    /// They go where they were to go, untouched.
    Pass,
    /// They are reset; requests are answered with an error.
    Refuse,
}

impl Transparent {
    pub fn unknown(&self) -> Unknown {
        self.unknown.unwrap_or(match self.direction {
            Direction::Outbound => Unknown::Pass,
            Direction::Inbound => Unknown::Refuse,
        })
    }
}

impl Default for Transparent {
    fn default() -> Self {
        Self {
            direction: Direction::Outbound,
            unknown: None,
            // FTP, SSH, SMTP, POP3, IMAP, SMTP submission, MySQL, NATS.
            opaque_ports: vec![21, 22, 25, 110, 143, 587, 3306, 4222],
        }
    }
}

/// An address at which nobody listens: who calls it means a service. `IP` (with all its ports) or `IP:PORT`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct VirtualAddress {
    pub ip: IpAddr,
    pub port: Option<u16>,
}

impl FromStr for VirtualAddress {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (ip, port) = match (text.parse::<SocketAddr>(), text.parse::<IpAddr>()) {
            (Ok(address), _) => (address.ip(), Some(address.port())),
            (_, Ok(ip)) => (ip, None),
            _ => return Err("`IP`, `IP:PORT` or `[IPV6]:PORT`"),
        };
        // Of the last two the kernel redirects nothing.
        if port == Some(0) || ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() {
            return Err("an address that can be called, no loopback, and a port from 1 to 65535");
        }
        Ok(Self { ip: ip.to_canonical(), port })
    }
}

impl fmt::Display for VirtualAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) => SocketAddr::new(self.ip, port).fmt(f),
            None => self.ip.fmt(f),
        }
    }
}

impl<'de> Deserialize<'de> for VirtualAddress {
    fn deserialize<D: de::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        text.parse().map_err(|expected| de::Error::invalid_value(de::Unexpected::Str(&text), &expected))
    }
}

impl Serialize for VirtualAddress {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}
