//! Connections that come from another's address: that of the client whom they are for.

use socket2::{Domain, Socket, Type};
use std::{
    io,
    net::{IpAddr, SocketAddr},
};

/// Lets the socket connect as `source`, from a port that is free there. It needs CAP_NET_RAW or CAP_NET_ADMIN.
///
/// (The port is chosen here and not when it connects, so it is one that no other connection from this address has: enough for
/// some 28000 from each.)
pub fn bind(socket: &Socket, source: IpAddr) -> io::Result<()> {
    allow(socket, source.is_ipv4())?;
    socket.bind(&SocketAddr::new(source, 0).into())
}

/// Whether this process may connect as others, from addresses of this family. Nothing is sent to find out.
pub fn may_borrow(ipv4: bool) -> io::Result<()> {
    let domain = if ipv4 { Domain::IPV4 } else { Domain::IPV6 };
    allow(&Socket::new(domain, Type::STREAM, None)?, ipv4)
}

/// Why one cannot connect to `to` as `source`, whatever the kernel says.
pub fn misfit(source: IpAddr, to: IpAddr) -> Option<&'static str> {
    if source.is_unspecified() || source.is_multicast() {
        // To the kernel they mean any address, that is: pillion's own.
        return Some("nobody has this address");
    }
    if source.is_ipv4() != to.is_ipv4() {
        return Some("one is an IPv4 address and the other one of IPv6");
    }
    None
}

fn allow(socket: &Socket, ipv4: bool) -> io::Result<()> {
    if ipv4 { socket.set_ip_transparent_v4(true) } else { socket.set_ip_transparent_v6(true) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_kept_only_towards_its_own_family() {
        let misfit = |source: &str, to: &str| misfit(source.parse().unwrap(), to.parse().unwrap()).is_some();
        for (source, to) in [("192.0.2.1", "127.0.0.1"), ("2001:db8::1", "::1"), ("127.0.0.1", "127.0.0.1")] {
            assert!(!misfit(source, to), "{source} {to}");
        }
        for (source, to) in
            [("192.0.2.1", "::1"), ("2001:db8::1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("::", "::1")]
        {
            assert!(misfit(source, to), "{source} {to}");
        }
    }
}
