//! The values of the flags: ports, addresses, users, groups, marks.

use std::{
    fmt::{self, Display},
    net::IpAddr,
    process::Command,
    str::FromStr,
};

/// Ports from the first to the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ports {
    pub first: u16,
    pub last: u16,
}

impl Ports {
    pub const fn one(port: u16) -> Self {
        Self { first: port, last: port }
    }

    pub fn contains(self, other: Self) -> bool {
        self.first <= other.first && other.last <= self.last
    }

    /// The same ports, in order, each once.
    pub fn merge(mut all: Vec<Self>) -> Vec<Self> {
        all.sort_unstable();
        let mut merged: Vec<Self> = Vec::new();
        for ports in all {
            match merged.last_mut() {
                Some(before) if ports.first <= before.last.saturating_add(1) => {
                    before.last = before.last.max(ports.last)
                }
                _ => merged.push(ports),
            }
        }
        merged
    }
}

impl FromStr for Ports {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        match (port(first), port(last)) {
            (Ok(first), Ok(last)) if first <= last => Ok(Self { first, last }),
            (Ok(first), Ok(last)) => Err(format!("expected the lower port first: {last}-{first}")),
            _ => Err("expected ports from 1 to 65535, like 8080 or 8000-8099".into()),
        }
    }
}

impl Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        if self.first == self.last { write!(f, "{}", self.first) } else { write!(f, "{}-{}", self.first, self.last) }
    }
}

pub fn port(text: &str) -> Result<u16, String> {
    text.parse().ok().filter(|port| *port > 0).ok_or_else(|| "expected a port from 1 to 65535".into())
}

/// All addresses that begin with the same bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cidr {
    /// Zero after the first `length` bits.
    pub address: IpAddr,
    pub length: u8,
}

impl Cidr {
    fn contains(self, other: Self) -> bool {
        self.address.is_ipv4() == other.address.is_ipv4()
            && self.length <= other.length
            && cut(other.address, self.length) == self.address
    }

    /// The same addresses, in order, each once.
    pub fn merge(mut all: Vec<Self>) -> Vec<Self> {
        // What contains another comes before it.
        all.sort_unstable();
        let mut merged: Vec<Self> = Vec::new();
        for cidr in all {
            if !merged.last().is_some_and(|before| before.contains(cidr)) {
                merged.push(cidr);
            }
        }
        merged
    }
}

/// The address without what comes after its first `length` bits.
fn cut(address: IpAddr, length: u8) -> IpAddr {
    let length = u32::from(length);
    match address {
        IpAddr::V4(v4) => IpAddr::from((v4.to_bits() & u32::MAX.checked_shl(32 - length).unwrap_or(0)).to_be_bytes()),
        IpAddr::V6(v6) => IpAddr::from((v6.to_bits() & u128::MAX.checked_shl(128 - length).unwrap_or(0)).to_be_bytes()),
    }
}

impl FromStr for Cidr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const EXPECTED: &str = "expected addresses like 10.0.0.0/8, fd00::/8 or 192.0.2.7";
        let (address, length) = text.split_once('/').map_or((text, None), |(address, length)| (address, Some(length)));
        let address: IpAddr = address.parse().map_err(|_| EXPECTED.to_owned())?;
        if let IpAddr::V6(v6) = address
            && let Some(v4) = v6.to_ipv4_mapped()
        {
            return Err(format!("connections to it are of IPv4; expected {v4}, or its network"));
        }
        let most = if address.is_ipv4() { 32 } else { 128 };
        let length = match length.map(str::parse) {
            None => most,
            Some(Ok(length)) if length <= most => length,
            Some(_) => return Err(format!("expected from 0 to {most} bits after `/`")),
        };
        let cidr = Self { address: cut(address, length), length };
        if cidr.address == address { Ok(cidr) } else { Err(format!("these are the addresses {cidr}; expected that")) }
    }
}

impl Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

/// A user's number.
pub fn user(text: &str) -> Result<u32, String> {
    id("passwd", "user", text)
}

/// A group's number.
pub fn group(text: &str) -> Result<u32, String> {
    id("group", "group", text)
}

/// Names are looked up by the system's own program: they can be in a directory service, or be systemd's, and a pillion that is
/// linked statically could not ask there.
fn id(database: &str, kind: &str, text: &str) -> Result<u32, String> {
    if text.is_empty() || text.starts_with('-') {
        return Err(format!("expected a {kind}'s name or number"));
    }
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        // The highest one means nobody in the kernel's calls.
        return text.parse().ok().filter(|id| *id != u32::MAX).ok_or_else(|| format!("no {kind} has so high a number"));
    }
    let found = Command::new("getent").args([database, text]).output().map_err(|error| {
        format!("names cannot be looked up here: `getent` does not run ({error}); expected the {kind}'s number")
    })?;
    let line = String::from_utf8_lossy(&found.stdout);
    line.split(':').nth(2).and_then(|id| id.parse().ok()).ok_or_else(|| format!("there is no such {kind}"))
}

/// What sockets can be marked with.
pub fn mark(text: &str) -> Result<u32, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16),
        None => text.parse(),
    };
    // Sockets without a mark have 0.
    parsed.ok().filter(|mark| *mark > 0).ok_or_else(|| "expected a number from 1 to 0xffffffff".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ports(all: &[&str]) -> Vec<Ports> {
        all.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn cidrs(all: &[&str]) -> Vec<Cidr> {
        all.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn text<T: Display>(all: &[T]) -> String {
        all.iter().map(T::to_string).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn ports_are_merged() {
        assert_eq!(text(&Ports::merge(ports(&["90", "80", "80-85", "86", "82-83"]))), "80-86 90");
        assert_eq!(text(&Ports::merge(ports(&["1-65535", "65535", "1"]))), "1-65535");
        assert_eq!(text(&Ports::merge(Vec::new())), "");
    }

    #[test]
    fn what_is_no_port_is_refused() {
        for wrong in ["", "0", "65536", "http", "80-", "-80", "80-0", "80-70000", "80,90", " 80"] {
            assert!(wrong.parse::<Ports>().unwrap_err().starts_with("expected ports from 1 to 65535"), "{wrong}");
        }
        assert_eq!("90-80".parse::<Ports>().unwrap_err(), "expected the lower port first: 80-90");
    }

    #[test]
    fn addresses_are_merged() {
        let all = ["10.1.0.0/16", "fd00::1", "10.0.0.0/8", "fd00::/8", "10.1.2.3", "11.0.0.0/8", "0.0.0.0/32"];
        assert_eq!(text(&Cidr::merge(cidrs(&all))), "0.0.0.0/32 10.0.0.0/8 11.0.0.0/8 fd00::/8");
        assert_eq!(text(&Cidr::merge(cidrs(&["10.0.0.0/8", "0.0.0.0/0", "::1", "::/0"]))), "0.0.0.0/0 ::/0");
    }

    #[test]
    fn what_is_no_network_is_refused() {
        for (wrong, told) in [
            ("10.0.0.1/8", "these are the addresses 10.0.0.0/8"),
            ("fd00::1/64", "these are the addresses fd00::/64"),
            ("10.0.0.0/33", "expected from 0 to 32 bits"),
            ("fd00::/129", "expected from 0 to 128 bits"),
            ("10.0.0.0/", "expected from 0 to 32 bits"),
            ("10.0.0.0/-1", "expected from 0 to 32 bits"),
            ("10.0.0/8", "expected addresses like"),
            ("users", "expected addresses like"),
            ("", "expected addresses like"),
            ("::ffff:10.0.0.1", "expected 10.0.0.1"),
        ] {
            let found = wrong.parse::<Cidr>().unwrap_err();
            assert!(found.contains(told), "{wrong}: {found}");
        }
    }

    #[test]
    fn users_and_groups_are_found_by_name() {
        assert_eq!((user("root"), group("root")), (Ok(0), Ok(0)));
        assert_eq!(user("65532"), Ok(65532));
        assert_eq!(user("no-such-user").unwrap_err(), "there is no such user");
        assert_eq!(group("no-such-group").unwrap_err(), "there is no such group");
        for wrong in ["", "-1", "4294967295", "99999999999"] {
            assert!(user(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn marks_are_numbers() {
        assert_eq!((mark("0x70"), mark("112"), mark("0xffffffff")), (Ok(0x70), Ok(112), Ok(u32::MAX)));
        for wrong in ["", "0", "0x0", "0x", "-1", "70h", "0x100000000"] {
            assert!(mark(wrong).is_err(), "{wrong}");
        }
    }
}
