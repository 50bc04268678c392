//! Listening sockets. Each worker has its own on the same address (`SO_REUSEPORT`), so that no lock is shared to accept.

use crate::backoff::Backoff;
use socket2::{Domain, Protocol, Socket, Type};
use std::{
    io,
    net::{self, SocketAddr},
    time::Duration,
};
use tokio::net::{TcpListener, TcpStream};

/// Connections that the kernel holds for us before they are accepted. The kernel cuts it to `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// Binds `count` sockets to one address. With port 0, all share the port that the first was given.
pub fn bind(address: SocketAddr, count: usize) -> io::Result<Vec<net::TcpListener>> {
    // `SO_REUSEPORT` lets *any* process of this user share the port, so two pillions with one config would silently
    // halve the traffic. A first bind without it finds out whether the port is free.
    if address.port() != 0 {
        drop(open(address, false)?);
    }
    let first = open(address, true)?;
    let bound = first.local_addr()?;
    let mut sockets = vec![first];
    for _ in 1..count {
        sockets.push(open(bound, true)?);
    }
    Ok(sockets)
}

/// The same for datagrams.
pub fn bind_udp(address: SocketAddr, count: usize) -> io::Result<Vec<net::UdpSocket>> {
    if address.port() != 0 {
        drop(open_udp(address, false)?);
    }
    let first = open_udp(address, true)?;
    let bound = first.local_addr()?;
    let mut sockets = vec![first];
    for _ in 1..count {
        sockets.push(open_udp(bound, true)?);
    }
    Ok(sockets)
}

/// One for connections and one for datagrams, at the same port. `shared`: with another process of this user, which had to open
/// its own like this.
pub fn bind_both(address: SocketAddr, shared: bool) -> io::Result<(net::TcpListener, net::UdpSocket)> {
    let mut tries = 0;
    loop {
        let tcp = open(address, shared)?;
        match open_udp(tcp.local_addr()?, shared) {
            // A port that is free for the one may be taken for the other.
            Err(error) if address.port() == 0 && error.kind() == io::ErrorKind::AddrInUse && tries < 100 => tries += 1,
            udp => return Ok((tcp, udp?)),
        }
    }
}

/// The sockets of one listener.
#[derive(Debug)]
pub enum Sockets {
    /// By which connections come in.
    Tcp(Vec<net::TcpListener>),
    /// By which datagrams come in.
    Udp(Vec<net::UdpSocket>),
}

impl Sockets {
    pub fn local_addr(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(sockets) => sockets.first()?.local_addr().ok(),
            Self::Udp(sockets) => sockets.first()?.local_addr().ok(),
        }
    }

    /// Those by which connections come in.
    pub fn tcp(&self) -> &[net::TcpListener] {
        match self {
            Self::Tcp(sockets) => sockets,
            Self::Udp(_) => &[],
        }
    }

    pub fn clear(&mut self) {
        match self {
            Self::Tcp(sockets) => sockets.clear(),
            Self::Udp(sockets) => sockets.clear(),
        }
    }

    /// Copies for `count` workers.
    pub fn deal(&self, count: usize) -> io::Result<Vec<Self>> {
        Ok(match self {
            Self::Tcp(sockets) => {
                deal(sockets, count, net::TcpListener::try_clone)?.into_iter().map(Self::Tcp).collect()
            }
            Self::Udp(sockets) => deal(sockets, count, net::UdpSocket::try_clone)?.into_iter().map(Self::Udp).collect(),
        })
    }
}

/// Deals sockets out to `count` workers, so that each socket is read from and each worker has something to read from.
/// Workers share a socket where there are too few of them.
fn deal<S>(sockets: &[S], count: usize, copy: impl Fn(&S) -> io::Result<S>) -> io::Result<Vec<Vec<S>>> {
    let mut dealt: Vec<Vec<_>> = (0..count).map(|_| Vec::new()).collect();
    if sockets.is_empty() || dealt.is_empty() {
        return Ok(dealt);
    }
    for turn in 0..sockets.len().max(count) {
        dealt[turn % count].push(copy(&sockets[turn % sockets.len()])?);
    }
    Ok(dealt)
}

fn open(address: SocketAddr, reuse_port: bool) -> io::Result<net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if reuse_port {
        socket.set_reuse_port(true)?;
    }
    socket.set_nonblocking(true)?;
    // Small answers must not wait for the previous one's acknowledgement. Accepted sockets inherit it from this one, which
    // saves a system call for each.
    socket.set_tcp_nodelay(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn open_udp(address: SocketAddr, reuse_port: bool) -> io::Result<net::UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if reuse_port {
        socket.set_reuse_port(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// Accepts the next connection. Errors that concern one connection are passed over; when the process has no file
/// descriptor or memory left it waits instead of spinning, and `on_error` is told each time.
pub async fn accept(listener: &TcpListener, mut on_error: impl FnMut(&io::Error)) -> (TcpStream, SocketAddr) {
    let mut backoff = Backoff::new(Duration::from_millis(10), Duration::from_secs(1));
    loop {
        match listener.accept().await {
            Ok(accepted) => return accepted,
            Err(error) => {
                on_error(&error);
                use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
                if !matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted) {
                    tokio::time::sleep(backoff.next_wait()).await;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_sockets_are_dealt_out_and_nobody_goes_without() {
        for (sockets, workers) in [(1, 1), (1, 4), (4, 1), (3, 3), (2, 3), (3, 2), (5, 2)] {
            let address = |socket: &net::TcpListener| socket.local_addr().unwrap();
            let sockets: Vec<_> =
                (0..sockets).map(|_| bind("127.0.0.1:0".parse().unwrap(), 1).unwrap().remove(0)).collect();
            let dealt = deal(&sockets, workers, net::TcpListener::try_clone).unwrap();
            assert_eq!(dealt.len(), workers);
            assert!(dealt.iter().all(|own| !own.is_empty()));
            let all: Vec<_> = dealt.iter().flatten().map(address).collect();
            assert_eq!(all.len(), sockets.len().max(workers));
            assert!(sockets.iter().all(|socket| all.contains(&address(socket))));
        }
        assert_eq!(deal(&[], 2, net::TcpListener::try_clone).unwrap().iter().flatten().count(), 0);
    }

    #[test]
    fn workers_share_a_port_and_strangers_do_not() {
        let ours = bind("127.0.0.1:0".parse().unwrap(), 3).unwrap();
        let ports: Vec<_> = ours.iter().map(|s| s.local_addr().unwrap()).collect();
        assert!(ports.iter().all(|p| *p == ports[0]), "{ports:?}");
        assert_eq!(bind(ports[0], 1).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        let ours = bind_udp("127.0.0.1:0".parse().unwrap(), 3).unwrap();
        let ports: Vec<_> = ours.iter().map(|s| s.local_addr().unwrap()).collect();
        assert!(ports.iter().all(|p| *p == ports[0]), "{ports:?}");
        assert_eq!(bind_udp(ports[0], 1).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    }
}
