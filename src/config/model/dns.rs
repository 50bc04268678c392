//! Answering applications' DNS questions.

use super::{super::human, DnsRegistry, localhost};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize, de};
use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    str::FromStr,
    time::Duration,
};

/// Answers DNS questions: the names of services get virtual addresses, by which a listener with `transparent` knows them, and all
/// others are asked of other servers. `pillion net up --dns-port` makes the kernel bring what applications ask.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Dns {
    /// Where questions are taken, over UDP and TCP. By default at the loopback addresses of IPv4 and, where there is one, IPv6.
    pub listen: Vec<SocketAddr>,
    /// What services' names end with: `user-service.mesh`.
    pub suffix: String,
    /// Of which networks addresses are given to services, `IP/BITS`: one of IPv4, one of IPv6, or both. Which address a service
    /// has follows from its name, so it is the same in every pillion with the same networks, and after a restart.
    #[schemars(with = "Vec<String>")]
    pub addresses: Vec<AddressRange>,
    /// Who is asked for all other names: `IP` or `IP:PORT`, the next where one does not answer. By default those of
    /// `/etc/resolv.conf`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub upstreams: Vec<String>,
    /// How long one of them may take, before the next one is asked.
    #[serde(with = "human")]
    #[schemars(with = "human::Text")]
    pub timeout: Duration,
    /// For how long applications may keep the address of a service.
    #[serde(with = "human")]
    #[schemars(with = "human::Text")]
    pub ttl: Duration,
}

/// All addresses that begin with the same bits, as `IP/BITS`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AddressRange {
    /// Zero after the first `bits`.
    pub first: IpAddr,
    pub bits: u8,
}

impl Dns {
    /// The addresses of `upstreams`. (The config was validated: all are addresses.)
    pub fn upstream_addresses(&self) -> Vec<SocketAddr> {
        self.upstreams.iter().filter_map(|text| DnsRegistry::server(text)).collect()
    }

    /// Whether questions sent to `server` would come back.
    pub fn is_own(&self, server: SocketAddr) -> bool {
        let (ip, is_here) = (server.ip().to_canonical(), server.ip().is_loopback() || server.ip().is_unspecified());
        let takes = |own: &SocketAddr| own.ip().to_canonical() == ip || own.ip().is_unspecified() && is_here;
        self.listen.iter().any(|own| own.port() == server.port() && takes(own))
    }
}

impl Default for Dns {
    fn default() -> Self {
        Self {
            listen: vec![localhost(15053), SocketAddr::new(Ipv6Addr::LOCALHOST.into(), 15053)],
            suffix: ".mesh".into(),
            addresses: vec![
                // Reserved, so nobody is there.
                AddressRange { first: Ipv4Addr::new(240, 0, 0, 0).into(), bits: 4 },
                // The first 64 bits are fd and "pillion".
                AddressRange { first: Ipv6Addr::new(0xFD70, 0x696C, 0x6C69, 0x6F6E, 0, 0, 0, 0).into(), bits: 64 },
            ],
            upstreams: Vec::new(),
            timeout: Duration::from_secs(1),
            ttl: Duration::from_secs(10),
        }
    }
}

impl AddressRange {
    pub fn contains(&self, ip: IpAddr) -> bool {
        match (self.first, ip) {
            (IpAddr::V4(first), IpAddr::V4(ip)) => first == v4(ip, self.bits),
            (IpAddr::V6(first), IpAddr::V6(ip)) => first == v6(ip, self.bits),
            _ => false,
        }
    }

    pub fn overlaps(&self, other: &Self) -> bool {
        self.contains(other.first) || other.contains(self.first)
    }

    /// The number of bits that differ from address to address.
    pub fn free_bits(&self) -> u8 {
        (if self.first.is_ipv4() { 32 } else { 128 }) - self.bits
    }
}

/// The address without what comes after its first `bits`.
fn v4(ip: Ipv4Addr, bits: u8) -> Ipv4Addr {
    Ipv4Addr::from_bits(ip.to_bits() & u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0))
}

fn v6(ip: Ipv6Addr, bits: u8) -> Ipv6Addr {
    Ipv6Addr::from_bits(ip.to_bits() & u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0))
}

impl FromStr for AddressRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const EXPECTED: &str = "`IP/BITS`, like `240.0.0.0/4` or `fd00:1::/64`";
        let (ip, bits) = text.split_once('/').ok_or(EXPECTED)?;
        let (ip, bits): (IpAddr, u8) = (ip.parse().map_err(|_| EXPECTED)?, bits.parse().map_err(|_| EXPECTED)?);
        let (most, first) = match ip {
            IpAddr::V4(ip) => (32, IpAddr::from(v4(ip, bits.min(32)))),
            IpAddr::V6(ip) => (128, IpAddr::from(v6(ip, bits.min(128)))),
        };
        if bits > most {
            return Err(format!("from 0 to {most} bits after `/`"));
        }
        if first != ip {
            return Err(format!("`{first}/{bits}`, which is where these addresses begin"));
        }
        Ok(Self { first, bits })
    }
}

impl fmt::Display for AddressRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.first, self.bits)
    }
}

impl<'de> Deserialize<'de> for AddressRange {
    fn deserialize<D: de::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        text.parse()
            .map_err(|expected: String| de::Error::invalid_value(de::Unexpected::Str(&text), &expected.as_str()))
    }
}

impl Serialize for AddressRange {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}
