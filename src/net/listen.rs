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
    fn workers_share_a_port_and_strangers_do_not() {
        let ours = bind("127.0.0.1:0".parse().unwrap(), 3).unwrap();
        let ports: Vec<_> = ours.iter().map(|s| s.local_addr().unwrap()).collect();
        assert!(ports.iter().all(|p| *p == ports[0]), "{ports:?}");
        assert_eq!(bind(ports[0], 1).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    }
}
