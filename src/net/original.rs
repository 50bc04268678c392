//! Where a connection was to go that the kernel redirected to pillion.

use socket2::SockRef;
use std::{io, net::SocketAddr};
use tokio::net::TcpStream;

/// The address that the client called. Of a connection that nobody redirected, it is the address at which it came in; or an
/// error, if the kernel tracks no connections.
pub fn destination(stream: &TcpStream) -> io::Result<SocketAddr> {
    let (socket, local) = (SockRef::from(stream), stream.local_addr()?);
    // An IPv4 connection to a listener for both families is one to the kernel's tables.
    let address = match local.ip().to_canonical().is_ipv4() {
        true => socket.original_dst_v4()?,
        false => socket.original_dst_v6()?,
    };
    address.as_socket().ok_or_else(|| io::Error::other("it was no IP address"))
}

/// An address as others write it: IPv4 as IPv4.
pub fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
