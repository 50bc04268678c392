//! Questions about names that are no service's: to other servers, one after the other, and the answer back as it is.

use super::Over;
use crate::{
    config,
    registry::dns::{
        answer::{NOT_IMPLEMENTED, REFUSED, SERVER_FAILURE},
        message::Query,
        servers::{Server, Servers},
    },
};
use anyhow::Context;
use rustls::crypto::{SecureRandom, ring};
use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
    sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    time::{sleep, timeout},
};

/// Where systems list their servers.
const SYSTEM: &str = "/etc/resolv.conf";
/// No message is larger.
const LARGEST: usize = u16::MAX as usize;

pub struct Forwarder {
    servers: Servers,
    config: config::Dns,
    asked: Asked,
    random: &'static dyn SecureRandom,
}

impl Forwarder {
    pub fn new(config: &config::Dns) -> anyhow::Result<Self> {
        let servers = match &config.upstream_addresses()[..] {
            [] => Servers::of_file(Path::new(SYSTEM))
                .with_context(|| format!("dns: {SYSTEM} names no server; expected `dns.upstreams`"))?,
            upstreams => Servers::fixed(upstreams.to_vec()),
        };
        let random = ring::default_provider().secure_random;
        Ok(Self { servers, config: config.clone(), asked: Asked::default(), random })
    }

    /// The first good answer, or else the first that there was: from a server that has failed itself, or refuses.
    pub async fn ask(&self, query: &Query<'_>, from: SocketAddr, over: Over) -> Result<Vec<u8>, String> {
        if over == Over::Udp && self.asked.has(from.port(), query.id()) {
            warn_of_loop();
            return Err("it is pillion's own question, which has come back".into());
        }
        let mut second_best = None;
        let mut errors = Vec::new();
        for server in self.servers.in_turn() {
            if self.config.is_own(server.address) {
                errors.push(format!("{}: pillion itself answers there", server.address));
                continue;
            }
            match self.ask_one(&server, query, over).await {
                Ok(answer) if is_failure(&answer) => _ = second_best.get_or_insert(answer),
                Ok(answer) => return Ok(answer),
                Err(error) => errors.push(format!("{}: {error}", server.address)),
            }
        }
        self.servers.look_again().await;
        second_best.ok_or_else(|| errors.join("; "))
    }

    async fn ask_one(&self, server: &Server, query: &Query<'_>, over: Over) -> Result<Vec<u8>, String> {
        let (id, limit) = (self.id(), self.config.timeout);
        let mut bytes = query.bytes.to_vec();
        put_id(&mut bytes, id);
        let answer = async {
            match over {
                Over::Udp => self.udp(server.address, query, &bytes, id).await,
                Over::Tcp => tcp(server.address, query, &bytes, id).await,
            }
        };
        match timeout(limit, answer).await {
            Ok(Ok(mut answer)) => {
                server.answered();
                put_id(&mut answer, query.id());
                Ok(answer)
            }
            Ok(Err(error)) => {
                self.servers.silent(server);
                Err(error.to_string())
            }
            Err(_) => {
                self.servers.silent(server);
                Err(format!("no answer within {limit:?}"))
            }
        }
    }

    /// From a socket of its own, so that an answer has to find its port, too. Asks once more, as datagrams get lost.
    async fn udp(&self, server: SocketAddr, query: &Query<'_>, bytes: &[u8], id: u16) -> io::Result<Vec<u8>> {
        let any = match server {
            SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
            SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
        };
        let socket = UdpSocket::bind(any).await?;
        // The kernel gives this socket nothing that others sent.
        socket.connect(server).await?;
        let _until_dropped = self.asked.note(socket.local_addr()?.port(), id);
        socket.send(bytes).await?;
        let receive = async {
            let mut answer = vec![0; LARGEST];
            loop {
                let length = socket.recv(&mut answer).await?;
                if query.is_answered_by(&answer[..length], id) {
                    answer.truncate(length);
                    return Ok(answer);
                }
            }
        };
        let repeat = async {
            sleep(self.config.timeout / 2).await;
            if let Err(error) = socket.send(bytes).await {
                return error;
            }
            std::future::pending().await
        };
        tokio::select! {
            answer = receive => answer,
            error = repeat => Err(error),
        }
    }

    /// A number that nobody can guess.
    fn id(&self) -> u16 {
        let mut bytes = [0; 2];
        // It fails on machines without a source of random numbers, on which TLS does not work, either.
        if self.random.fill(&mut bytes).is_err() {
            return fastrand::u16(..);
        }
        u16::from_be_bytes(bytes)
    }
}

async fn tcp(server: SocketAddr, query: &Query<'_>, bytes: &[u8], id: u16) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(bytes.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes(), bytes].concat()).await?;
    let mut answer = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut answer).await?;
    if query.is_answered_by(&answer, id) { Ok(answer) } else { Err(io::Error::other("an answer to another question")) }
}

fn put_id(bytes: &mut [u8], id: u16) {
    if let Some(field) = bytes.first_chunk_mut() {
        *field = id.to_be_bytes();
    }
}

/// Whether another server may know better.
fn is_failure(answer: &[u8]) -> bool {
    let code = answer.get(3).map_or(0, |flags| u16::from(flags & 0xF));
    matches!(code, SERVER_FAILURE | NOT_IMPLEMENTED | REFUSED)
}

/// Once is enough: each question would bring it.
fn warn_of_loop() {
    static WARNED: AtomicBool = AtomicBool::new(false);
    if !WARNED.swap(true, Relaxed) {
        tracing::warn!(
            "pillion's own DNS questions are redirected to itself, so none can be answered; the rules must leave its user, \
             group or mark out (`pillion net up --pillion-user`)"
        );
    }
}

/// The last questions that pillion asked itself, by their numbers: those that come back have to be known. What has no room for one
/// more forgets the one before.
struct Asked([AtomicU32; 1024]);

impl Default for Asked {
    fn default() -> Self {
        Self([const { AtomicU32::new(0) }; 1024])
    }
}

/// Forgets the question when it is over.
struct Note<'a> {
    place: &'a AtomicU32,
    what: u32,
}

impl Asked {
    fn note(&self, port: u16, id: u16) -> Note<'_> {
        let (place, what) = self.place(port, id);
        place.store(what, Relaxed);
        Note { place, what }
    }

    fn has(&self, port: u16, id: u16) -> bool {
        let (place, what) = self.place(port, id);
        place.load(Relaxed) == what
    }

    fn place(&self, port: u16, id: u16) -> (&AtomicU32, u32) {
        // No port is 0, so neither is what is stored.
        (&self.0[usize::from(id) % self.0.len()], u32::from(port) << 16 | u32::from(id))
    }
}

impl Drop for Note<'_> {
    fn drop(&mut self) {
        let _ = self.place.compare_exchange(self.what, 0, Relaxed, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_questions_are_known_while_they_are_open() {
        let asked = Asked::default();
        assert!(!asked.has(5000, 0));
        let one = asked.note(5000, 7);
        assert!(asked.has(5000, 7) && !asked.has(5001, 7) && !asked.has(5000, 8));
        let other = asked.note(6000, 7 + 1024);
        assert!(asked.has(6000, 7 + 1024) && !asked.has(5000, 7), "there is one place");
        drop(one);
        assert!(asked.has(6000, 7 + 1024), "it is the other's now");
        drop(other);
        assert!(!asked.has(6000, 7 + 1024));
    }
}
