//! Where others reach the local application.

use crate::config::{Network, RegisterAddress};
use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
};

/// Addresses for documentation (RFC 5737, RFC 3849): nobody has them, so the way to them is the way to anybody.
const ANYBODY: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1))];

/// One address of one interface of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Local {
    pub interface: String,
    pub address: IpAddr,
}

/// What can be told of this machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Machine {
    pub addresses: Vec<Local>,
    /// The address from which it reaches others.
    pub outgoing: Option<IpAddr>,
}

impl Machine {
    /// This one, as it is now.
    pub fn here() -> io::Result<Self> {
        let interfaces = if_addrs::get_if_addrs()?.into_iter();
        let local = |interface: if_addrs::Interface| Local { address: interface.ip(), interface: interface.name };
        Ok(Self { addresses: interfaces.map(local).collect(), outgoing: ANYBODY.into_iter().find_map(outgoing) })
    }

    /// The host to register; fails with what to do about it.
    pub fn choose(&self, wanted: &RegisterAddress) -> Result<String, String> {
        match wanted {
            RegisterAddress::Host(host) => Ok(host.clone()),
            RegisterAddress::Interface(name) => self.on_interface(name),
            RegisterAddress::Network(network) => self.in_network(*network),
            RegisterAddress::Outgoing => self.outgoing_one(),
        }
        .map_err(|problem| format!("{problem}; this machine has {}", self.shown()))
    }

    fn on_interface(&self, name: &str) -> Result<String, String> {
        let mut there: Vec<_> = self.addresses.iter().filter(|local| local.interface == name).collect();
        if there.is_empty() {
            return Err(format!("there is no interface `{name}` with an address"));
        }
        // IPv4 first, and no address that is good only on its own link if there is another.
        there.sort_by_key(|local| (is_link_local(local.address), local.address.is_ipv6()));
        there.first().map(|local| local.address.to_string()).ok_or_else(String::new)
    }

    fn in_network(&self, network: Network) -> Result<String, String> {
        let mut there: Vec<_> =
            self.addresses.iter().map(|local| local.address).filter(|address| network.contains(*address)).collect();
        there.sort();
        there.dedup();
        match there.as_slice() {
            [] => Err(format!("no address is in the network {network}")),
            [one] => Ok(one.to_string()),
            _ => Err(format!("{} addresses are in the network {network}; expected one", there.len())),
        }
    }

    fn outgoing_one(&self) -> Result<String, String> {
        if let Some(address) = self.outgoing.filter(|address| is_for_others(*address)) {
            return Ok(address.to_string());
        }
        let others: Vec<_> = self.addresses.iter().filter(|local| is_for_others(local.address)).collect();
        match others.as_slice() {
            [one] => Ok(one.address.to_string()),
            [] => Err("no address that others could reach was found; expected `register[].address`".into()),
            _ => Err("it cannot be told which address others should use; expected `register[].address`".into()),
        }
    }

    fn shown(&self) -> String {
        let each: Vec<_> =
            self.addresses.iter().map(|local| format!("{} on {}", local.address, local.interface)).collect();
        if each.is_empty() { "no addresses".into() } else { each.join(", ") }
    }
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

fn is_for_others(address: IpAddr) -> bool {
    !address.is_loopback() && !address.is_unspecified() && !is_link_local(address)
}

/// The address from which this machine would reach `address`. Nothing is sent.
fn outgoing(address: IpAddr) -> Option<IpAddr> {
    let any: IpAddr = if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0)).ok()?;
    // Port 9 is "discard".
    socket.connect(SocketAddr::new(address, 9)).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(addresses: &[(&str, &str)], outgoing: Option<&str>) -> Machine {
        let local = |(interface, address): &(&str, &str)| Local {
            interface: (*interface).into(),
            address: address.parse().unwrap(),
        };
        Machine {
            addresses: addresses.iter().map(local).collect(),
            outgoing: outgoing.map(|address| address.parse().unwrap()),
        }
    }

    const TWO: &[(&str, &str)] = &[
        ("lo", "127.0.0.1"),
        ("eth0", "fe80::1"),
        ("eth0", "fd00::7"),
        ("eth0", "10.0.0.7"),
        ("docker0", "172.17.0.1"),
    ];

    #[test]
    fn the_address_is_the_one_others_can_use() {
        let default = RegisterAddress::Outgoing;
        assert_eq!(machine(TWO, Some("10.0.0.7")).choose(&default).unwrap(), "10.0.0.7");
        let problem = machine(TWO, None).choose(&default).unwrap_err();
        assert!(problem.contains("expected `register[].address`; this machine has 127.0.0.1 on lo, "), "{problem}");
        let one = &[("lo", "127.0.0.1"), ("eth0", "10.0.0.7")];
        assert_eq!(machine(one, None).choose(&default).unwrap(), "10.0.0.7");
        assert_eq!(
            machine(one, Some("127.0.0.1")).choose(&default).unwrap(),
            "10.0.0.7",
            "never a loopback by accident"
        );
        assert!(machine(&[("lo", "127.0.0.1")], None).choose(&default).unwrap_err().contains("no address that others"));
    }

    #[test]
    fn or_on_an_interface_or_in_a_network() {
        let machine = machine(TWO, Some("172.17.0.1"));
        let choose = |wanted| machine.choose(&wanted);
        assert_eq!(choose(RegisterAddress::Interface("eth0".into())).unwrap(), "10.0.0.7");
        assert!(
            choose(RegisterAddress::Interface("eth9".into())).unwrap_err().starts_with("there is no interface `eth9`")
        );
        let network = |text: &str| RegisterAddress::Network(text.parse().unwrap());
        assert_eq!(choose(network("10.0.0.0/8")).unwrap(), "10.0.0.7");
        assert_eq!(choose(network("fd00::/8")).unwrap(), "fd00::7");
        assert!(
            choose(network("192.168.0.0/16")).unwrap_err().starts_with("no address is in the network 192.168.0.0/16")
        );
        assert!(choose(network("0.0.0.0/1")).unwrap_err().starts_with("2 addresses are in"));
        assert_eq!(choose(RegisterAddress::Host("127.0.0.1".into())).unwrap(), "127.0.0.1", "on purpose");
    }

    #[test]
    fn this_machine_is_known() {
        let here = Machine::here().unwrap();
        assert!(here.addresses.iter().any(|local| local.address.is_loopback()), "{here:?}");
    }
}
