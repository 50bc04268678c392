//! Where questions come in.

use super::{Over, Server};
use crate::net::listen;
use anyhow::Context;
use std::{
    io::{self, ErrorKind},
    net::{self, SocketAddr},
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::Semaphore,
    task::JoinSet,
    time::{sleep, timeout},
};

/// Between two tries to take something where that fails.
const PAUSE: Duration = Duration::from_millis(10);
/// Connections at one time. Over TCP only what has no room in a datagram is asked.
const MOST_CONNECTIONS: usize = 128;
/// How long a connection may say nothing.
const IDLE: Duration = Duration::from_secs(10);
/// Longer questions there are none.
const LARGEST: usize = 4096;

/// Those for all addresses of the config.
#[derive(Debug)]
pub struct Sockets(Vec<(SocketAddr, net::TcpListener, net::UdpSocket)>);

impl Sockets {
    /// `shared`: with another pillion, whose place this one is to take.
    pub fn bind(config: &crate::config::Dns, shared: bool) -> anyhow::Result<Self> {
        let is_default = config.listen == crate::config::Dns::default().listen;
        let mut sockets = Vec::new();
        for address in &config.listen {
            match listen::bind_both(*address, shared) {
                Ok((tcp, udp)) => sockets.push((tcp.local_addr()?, tcp, udp)),
                // Many machines have no IPv6 at all; only who asks for it is told.
                Err(error) if is_default && address.is_ipv6() && has_no_such_address(&error) => {
                    tracing::info!(%address, "there is no IPv6 here; DNS questions are taken over IPv4 alone");
                }
                Err(error) => {
                    return Err(error).with_context(|| {
                        format!("cannot listen on {address} for DNS; another address is chosen with `dns.listen`")
                    });
                }
            }
        }
        Ok(Self(sockets))
    }

    /// Answers what comes in, for as long as it is polled.
    pub fn serve(self, server: Server) -> io::Result<impl Future<Output = ()> + Send + use<>> {
        let server = Arc::new(server);
        let connections = Arc::new(Semaphore::new(MOST_CONNECTIONS));
        let mut ready = Vec::new();
        for (address, tcp, udp) in self.0 {
            ready.push((address, TcpListener::from_std(tcp)?, UdpSocket::from_std(udp)?));
        }
        Ok(async move {
            let mut running = JoinSet::new();
            for (address, tcp, udp) in ready {
                tracing::info!(%address, suffix = server.config.suffix, "answering DNS questions");
                running.spawn(datagrams(Arc::new(udp), server.clone()));
                running.spawn(streams(tcp, server.clone(), connections.clone()));
            }
            while running.join_next().await.is_some() {}
        })
    }
}

fn has_no_such_address(error: &io::Error) -> bool {
    // (EAFNOSUPPORT: the kernel is without IPv6.)
    error.kind() == ErrorKind::AddrNotAvailable
        || error.raw_os_error() == Some(rustix::io::Errno::AFNOSUPPORT.raw_os_error())
}

async fn datagrams(socket: Arc<UdpSocket>, server: Arc<Server>) {
    let mut answering = JoinSet::new();
    let mut space = [0; LARGEST];
    loop {
        tokio::select! {
            received = socket.recv_from(&mut space) => match received {
                Ok((length, from)) => {
                    let (bytes, socket, server) = (space[..length].to_vec(), socket.clone(), server.clone());
                    answering.spawn(async move {
                        if let Some(answer) = server.answer(&bytes, from, Over::Udp).await {
                            // Who has asked may be gone.
                            let _ = socket.send_to(&answer, from).await;
                        }
                    });
                }
                Err(error) => {
                    tracing::debug!(%error, "a DNS question could not be received");
                    sleep(PAUSE).await;
                }
            },
            _ = answering.join_next(), if !answering.is_empty() => {}
        }
    }
}

async fn streams(listener: TcpListener, server: Arc<Server>, connections: Arc<Semaphore>) {
    let mut answering = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, from)) => {
                    // Who comes beyond the limit finds the connection closed.
                    let Ok(place) = connections.clone().try_acquire_owned() else { continue };
                    let server = server.clone();
                    answering.spawn(async move {
                        let _ = questions(stream, from, &server).await;
                        drop(place);
                    });
                }
                Err(error) => {
                    tracing::debug!(%error, "a connection with DNS questions could not be taken");
                    sleep(PAUSE).await;
                }
            },
            _ = answering.join_next(), if !answering.is_empty() => {}
        }
    }
}

/// One after the other, each with its length before it.
async fn questions(mut stream: TcpStream, from: SocketAddr, server: &Server) -> io::Result<()> {
    loop {
        let question = timeout(IDLE, async {
            let mut bytes = vec![0; usize::from(stream.read_u16().await?)];
            stream.read_exact(&mut bytes).await?;
            io::Result::Ok(bytes)
        });
        let bytes = question.await.map_err(io::Error::other)??;
        let Some(answer) = server.answer(&bytes, from, Over::Tcp).await else { return Ok(()) };
        let length = u16::try_from(answer.len()).map_err(io::Error::other)?;
        timeout(IDLE, stream.write_all(&[&length.to_be_bytes(), &answer[..]].concat()))
            .await
            .map_err(io::Error::other)??;
    }
}
