//! Opening a connection to an upstream.

use crate::{
    cluster::{Endpoint, table::Settings},
    error::Reason,
    net::io::Stream,
    registry::{Address, Protocol},
};
use rustls::pki_types::ServerName;
use std::{io, sync::Arc};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Why there is no connection. Cloned for each request that waited for it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ConnectError {
    #[error("no connection within {0:?}")]
    Timeout(std::time::Duration),
    #[error("cannot connect: {0}")]
    Tcp(Arc<io::Error>),
    #[error("TLS: {0}")]
    Tls(Arc<io::Error>),
    #[error("`{0}` cannot be the name of a TLS server")]
    ServerName(String),
    #[error("HTTP/2: {0}")]
    Http2(Arc<h2::Error>),
}

impl ConnectError {
    pub fn reason(&self) -> Reason {
        match self {
            Self::Timeout(_) => Reason::ConnectTimeout,
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

async fn open(
    endpoint: &Endpoint,
    settings: &Settings,
    wanted: Option<Protocol>,
) -> Result<(Stream, Protocol), ConnectError> {
    let tcp = match &endpoint.instance.address {
        Address::Ip(address) => TcpStream::connect(address).await,
        Address::Name { host, port } => TcpStream::connect((host.as_str(), *port)).await,
    };
    let tcp = tcp.map_err(|error| ConnectError::Tcp(Arc::new(error)))?;
    // Small requests must not wait for the previous one's acknowledgement. Failure costs latency only.
    let _ = tcp.set_nodelay(true);
    let Some(tls) = settings.tls_for(&endpoint.instance) else {
        return Ok((Stream::Tcp(tcp), wanted.unwrap_or(Protocol::Http1)));
    };
    let host = match (&tls.server_name, &endpoint.instance.address) {
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
