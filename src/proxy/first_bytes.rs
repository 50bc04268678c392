//! What a connection says before anything is known of it, read until it is whole.

use super::h1::head::{RequestHead, parse_request};
use crate::{
    config::ListenerLimits,
    error::{ProxyError, Reason},
    net::{
        client_hello::HelloScan,
        detect::{Detector, Protocol},
        malformed::Malformed,
        proxy_protocol::{self, Addresses},
    },
};
use bytes::{Buf, Bytes, BytesMut};
use std::{io, time::Duration};
use tokio::{
    net::TcpStream,
    time::{Instant, timeout_at},
};

/// Room for most of what comes first: PROXY protocol headers, ClientHellos.
const ROOM: usize = 2048;

/// Reads a PROXY protocol header from the start of a connection, and gives whose connection it is, if the header says.
/// `start`: what was read, and then what of it is left.
pub async fn proxy_header(
    client: &TcpStream,
    start: &mut BytesMut,
    until: Instant,
) -> Result<Option<Addresses>, ProxyError> {
    let header = read_until(client, start, until, "PROXY protocol header", proxy_protocol::decode).await?;
    start.advance(header.length);
    Ok(header.addresses)
}

/// Reads a TLS ClientHello, which stays in `start`, and gives the name of the server that it asks for.
pub async fn server_name(
    client: &TcpStream,
    start: &mut BytesMut,
    until: Instant,
) -> Result<Option<String>, ProxyError> {
    let mut scan = HelloScan::default();
    let hello = read_until(client, start, until, "TLS ClientHello", |bytes| scan.find(bytes)).await?;
    Ok(hello.server_name)
}

/// Reads until `find` has found it.
async fn read_until<T>(
    client: &TcpStream,
    start: &mut BytesMut,
    until: Instant,
    what: &str,
    mut find: impl FnMut(&[u8]) -> Result<Option<T>, Malformed>,
) -> Result<T, ProxyError> {
    let reading = async {
        loop {
            match find(start) {
                Ok(Some(found)) => return Ok(found),
                Ok(None) => {}
                Err(malformed) => return Err(ProxyError::new(Reason::BadRequest, format!("no {what}: {malformed}"))),
            }
            if let Err(error) = read_more(client, start).await {
                return Err(ProxyError::new(Reason::DownstreamClosed, format!("before the {what}: {error}")));
            }
        }
    };
    let late = || ProxyError::new(Reason::HeadTimeout, format!("no whole {what} within `limits.head_timeout`"));
    timeout_at(until, reading).await.unwrap_or_else(|_| Err(late()))
}

/// What a connection speaks whose first bytes have come, or are about to. They stay in `start`. What is not clear after
/// `limit` is none of those that are told apart, and neither is what ends before that.
pub async fn protocol(client: &TcpStream, start: &mut BytesMut, limit: Duration) -> Result<Protocol, ProxyError> {
    let mut detector = Detector::default();
    let reading = async {
        loop {
            match detector.look(start) {
                Protocol::Unsure => {}
                known => return Ok(known),
            }
            match read_more(client, start).await {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(Protocol::Other),
                Err(error) => return Err(ProxyError::new(Reason::DownstreamClosed, error.to_string())),
            }
        }
    };
    timeout_at(Instant::now() + limit, reading).await.unwrap_or(Ok(Protocol::Other))
}

/// Reads the head of a connection's first HTTP/1 request, which stays in `start`. `None`: it is too large, too slow, or none.
pub async fn request_head(
    client: &TcpStream,
    start: &mut BytesMut,
    limits: &ListenerLimits,
    until: Instant,
) -> Option<RequestHead> {
    let end = async {
        let mut scanned = 0;
        loop {
            let new = &start[scanned..];
            if let Some(at) = memchr::memmem::find(new, b"\n\r\n") {
                return Some(scanned + at + 3);
            }
            if memchr::memmem::find(new, b"\n\n").is_some() {
                // The codec takes no such lines, so it is not asked.
                return None;
            }
            scanned = start.len().saturating_sub(2);
            if start.len() > limits.head_bytes {
                return None;
            }
            read_more(client, start).await.ok()?;
        }
    };
    let end = timeout_at(until, end).await.ok()??;
    parse_request(Bytes::copy_from_slice(&start[..end]), false).ok()
}

/// Reads what there is. An error of the kind `UnexpectedEof` is the end.
pub async fn read_more(client: &TcpStream, start: &mut BytesMut) -> io::Result<()> {
    loop {
        client.readable().await?;
        start.reserve(ROOM);
        match client.try_read_buf(start) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}
