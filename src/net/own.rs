//! Which addresses are this machine's own.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

/// Whether what is sent there stays on this machine, whoever takes it here. Nothing is sent to find out.
pub fn is_own(address: IpAddr) -> bool {
    let address = address.to_canonical();
    // The unspecified address is this machine, too.
    address.is_loopback()
        || address.is_unspecified()
        || source_towards(address) == Some(address)
        || is_bindable(address)
}

/// Whether one can listen there: on secondary addresses as well, to which the kernel sends from the first of their network.
fn is_bindable(address: IpAddr) -> bool {
    // Of documentation: nobody has it. Where even that can be bound (`ip_nonlocal_bind`), it says nothing.
    let nobodys: IpAddr = if address.is_ipv4() {
        Ipv4Addr::new(192, 0, 2, 254).into()
    } else {
        Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0xfffe).into()
    };
    let can_bind = |address: IpAddr| UdpSocket::bind((address, 0)).is_ok();
    can_bind(address) && !can_bind(nobodys)
}

/// The address that the kernel would send from. To one of its own addresses it sends from that.
fn source_towards(address: IpAddr) -> Option<IpAddr> {
    let any = if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { IpAddr::from(Ipv6Addr::UNSPECIFIED) };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    // A datagram socket's connecting only looks for the way. The port stands for any.
    socket.connect(SocketAddr::new(address, 9)).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_and_unspecified_addresses_are_own_in_every_notation() {
        for own in ["127.0.0.1", "127.1.2.3", "::1", "0.0.0.0", "::", "::ffff:127.0.0.1", "::ffff:0.0.0.0"] {
            assert!(is_own(own.parse().unwrap()), "{own}");
        }
    }

    #[test]
    fn addresses_of_interfaces_are_own_and_others_are_not() {
        // Of documentation: nobody has them.
        for other in ["192.0.2.1", "203.0.113.77", "::ffff:198.51.100.7", "2001:db8::77"] {
            let address: IpAddr = other.parse().unwrap();
            assert!(!is_own(address), "{other}");
            // Where there is a way out, it begins at an address of ours.
            if let Some(source) = source_towards(address.to_canonical()) {
                assert!(is_own(source), "{source}");
            }
        }
    }
}
