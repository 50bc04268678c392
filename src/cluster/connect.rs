//! Opening a connection to an upstream.

use super::{
    Endpoint,
    table::{Settings, UpstreamTls},
};
use crate::{
    error::Reason,
    net::io::Stream,
    registry::{Address, Instance, Protocol},
};
use rustls::pki_types::ServerName;
use socket2::{SockRef, TcpKeepalive};
use std::{io, sync::Arc, time::Duration};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Why there is no connection. Cloned for each request that waited for it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ConnectError {
    #[error("no connection within {0:?}")]
    Timeout(Duration),
    #[error("cannot connect: {0}")]
    Tcp(Arc<io::Error>),
    #[error("TLS: {0}")]
    Tls(Arc<io::Error>),
    #[error("`{0}` cannot be the name of a TLS server")]
    ServerName(String),
    #[error("the instance asks for TLS, and the system's certificate authorities could not be loaded")]
    NoAuthorities,
    #[error("{0} connections to the service may be open, and are")]
    Limit(u32),
    #[error("HTTP/2: {0}")]
    Http2(Arc<h2::Error>),
}

impl ConnectError {
    pub fn reason(&self) -> Reason {
        match self {
            Self::Timeout(_) => Reason::ConnectTimeout,
            Self::Limit(_) => Reason::ConnectionLimit,
            _ => Reason::ConnectFailed,
        }
    }
}

/// Connects within the service's connect timeout, TLS included. Gives what the peer speaks: `wanted`, or what ALPN settled.
pub async fn connect(
    endpoint: &Endpoint,
    settings: &Settings,
    wanted: Option<Protocol>,
) -> Result<(Stream, Protocol), ConnectError> {
    let limit = settings.service.timeouts.connect;
    match tokio::time::timeout(limit, open(endpoint, settings, wanted)).await {
        Ok(opened) => opened,
        Err(_) => Err(ConnectError::Timeout(limit)),
    }
}

/// Finds out within half a minute that a host is gone, also while nothing is sent. The kernel's, not HTTP/2's pings: gRPC
/// servers take more than one of those in five minutes for an attack and hang up.
fn keepalive() -> TcpKeepalive {
    TcpKeepalive::new().with_time(Duration::from_secs(15)).with_interval(Duration::from_secs(5)).with_retries(3)
}

async fn open(
    endpoint: &Endpoint,
    settings: &Settings,
    wanted: Option<Protocol>,
) -> Result<(Stream, Protocol), ConnectError> {
    let address = &endpoint.instance.address;
    let tls = tls_for(&endpoint.instance, settings)?;
    let tcp = open_tcp(address).await?;
    match tls {
        Some(tls) => open_tls(tcp, address, tls, wanted).await,
        None => Ok((Stream::Tcp(tcp), wanted.unwrap_or(Protocol::Http1))),
    }
}

/// The settings for TLS to `instance`; `None` if it is spoken to in plain text.
pub fn tls_for<'s>(instance: &Instance, settings: &'s Settings) -> Result<Option<&'s UpstreamTls>, ConnectError> {
    match settings.wants_tls(instance) {
        false => Ok(None),
        // Never in plain text instead.
        true => settings.tls.as_deref().map(Some).ok_or(ConnectError::NoAuthorities),
    }
}

pub async fn open_tcp(address: &Address) -> Result<TcpStream, ConnectError> {
    let tcp = match address {
        Address::Ip(address) => TcpStream::connect(address).await,
        Address::Name { host, port } => TcpStream::connect((host.as_str(), *port)).await,
    };
    let tcp = tcp.map_err(|error| ConnectError::Tcp(Arc::new(error)))?;
    // Small requests must not wait for the previous one's acknowledgement. Failure costs latency only.
    let _ = tcp.set_nodelay(true);
    let _ = SockRef::from(&tcp).set_tcp_keepalive(&keepalive());
    Ok(tcp)
}

/// Gives what the peer speaks: `wanted`, or what ALPN settled.
pub async fn open_tls(
    tcp: TcpStream,
    address: &Address,
    tls: &UpstreamTls,
    wanted: Option<Protocol>,
) -> Result<(Stream, Protocol), ConnectError> {
    let host = match (&tls.server_name, address) {
        (Some(name), _) => name.clone(),
        (None, Address::Name { host, .. }) => host.clone(),
        (None, Address::Ip(address)) => address.ip().to_string(),
    };
    let name = ServerName::try_from(host.clone()).map_err(|_| ConnectError::ServerName(host))?;
    let config = match wanted {
        Some(Protocol::Http1) => &tls.http1,
        Some(Protocol::Http2) => &tls.http2,
        None => &tls.either,
    };
    let stream = TlsConnector::from(config.clone())
        .connect(name, tcp)
        .await
        .map_err(|error| ConnectError::Tls(Arc::new(error)))?;
    let settled = match stream.get_ref().1.alpn_protocol() {
        Some(b"h2") => Protocol::Http2,
        _ => wanted.unwrap_or(Protocol::Http1),
    };
    Ok((Stream::Tls(Box::new(stream)), settled))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::Live;

    #[tokio::test]
    async fn an_instance_that_asks_for_tls_is_never_spoken_to_without() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string().parse().unwrap();
        let instance = Instance { tls: Some(true), ..Instance::new("a", address) };
        let endpoint = Endpoint { instance, live: Arc::new(Live::new(None)) };
        let settings = Settings::default();
        let refused = connect(&endpoint, &settings, None).await.unwrap_err();
        assert!(matches!(refused, ConnectError::NoAuthorities), "{refused}");
    }
}
