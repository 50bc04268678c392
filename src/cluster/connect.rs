//! Opening a connection to an upstream.

use super::{
    Endpoint,
    table::{Settings, UpstreamTls},
};
use crate::{
    error::Reason,
    net::{borrowed, io::Stream, loops},
    registry::{Address, Instance, Protocol},
};
use rustls::{ClientConfig, pki_types::ServerName};
use socket2::{Domain, SockRef, Socket, TcpKeepalive, Type};
use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::AsyncWriteExt,
    net::{TcpStream, lookup_host},
};
use tokio_rustls::{TlsConnector, client::TlsStream};

const STREAM: Type = Type::STREAM.nonblocking().cloexec();

/// Why there is no connection. Cloned for each request that waited for it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ConnectError {
    #[error("no connection within {0:?}")]
    Timeout(Duration),
    #[error("cannot connect: {0}")]
    Tcp(Arc<io::Error>),
    #[error("cannot connect as {0}: {1}")]
    As(IpAddr, Arc<io::Error>),
    #[error(
        "no connection as {1} within {0:?}; perhaps the answers do not come back to pillion: `pillion net show` tells whether they do, \
         `pillion net up --keep-source` makes them"
    )]
    NoAnswer(Duration, IpAddr),
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
    /// Whether this machine could not even try: for want of descriptors, memory or ports.
    pub fn is_own(&self) -> bool {
        use rustix::io::Errno;
        let (Self::Tcp(error) | Self::As(_, error)) = self else { return false };
        let own = [Errno::ADDRINUSE, Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM, Errno::ADDRNOTAVAIL];
        own.iter().any(|own| error.raw_os_error() == Some(own.raw_os_error()))
    }

    pub fn reason(&self) -> Reason {
        match self {
            Self::Timeout(_) | Self::NoAnswer(..) => Reason::ConnectTimeout,
            Self::Limit(_) => Reason::ConnectionLimit,
            _ => Reason::ConnectFailed,
        }
    }
}

/// Connects within the service's connect timeout, TLS included; as `source` if that is given. Gives what the peer speaks: `wanted`,
/// or what ALPN settled.
pub async fn connect(
    endpoint: &Endpoint,
    settings: &Settings,
    wanted: Option<Protocol>,
    source: Option<IpAddr>,
) -> Result<(Stream, Protocol), ConnectError> {
    within(settings.service.timeouts.connect, source, open(endpoint, settings, wanted, source)).await
}

/// The same for bytes of which pillion knows nothing: where TLS is wanted, and they are none already (`is_tls`), it offers no
/// protocol. `preface` is said before anything else, TLS included.
pub async fn connect_bare(
    endpoint: &Endpoint,
    settings: &Settings,
    preface: &[u8],
    is_tls: bool,
    source: Option<IpAddr>,
) -> Result<Stream, ConnectError> {
    let open = async {
        let address = &endpoint.instance.address;
        let tls = if is_tls { None } else { tls_for(&endpoint.instance, settings)? };
        let mut tcp = open_as(address, source).await?;
        if !preface.is_empty() {
            tcp.write_all(preface).await.map_err(|error| ConnectError::Tcp(Arc::new(error)))?;
        }
        match tls {
            Some(tls) => secure(tcp, address, tls, &tls.bare).await.map(Box::new).map(Stream::Tls),
            None => Ok(Stream::Tcp(tcp)),
        }
    };
    within(settings.service.timeouts.connect, source, open).await
}

async fn within<T>(
    limit: Duration,
    source: Option<IpAddr>,
    open: impl Future<Output = Result<T, ConnectError>>,
) -> Result<T, ConnectError> {
    let late = || match source {
        None => ConnectError::Timeout(limit),
        Some(source) => ConnectError::NoAnswer(limit, source),
    };
    tokio::time::timeout(limit, open).await.unwrap_or_else(|_| Err(late()))
}

/// Finds out within half a minute that a host is gone, also while nothing is sent. The kernel's, not HTTP/2's pings: gRPC
/// servers take more than one of those in five minutes for an attack and hang up.
pub fn keepalive() -> TcpKeepalive {
    TcpKeepalive::new().with_time(Duration::from_secs(15)).with_interval(Duration::from_secs(5)).with_retries(3)
}

async fn open(
    endpoint: &Endpoint,
    settings: &Settings,
    wanted: Option<Protocol>,
    source: Option<IpAddr>,
) -> Result<(Stream, Protocol), ConnectError> {
    let address = &endpoint.instance.address;
    let tls = tls_for(&endpoint.instance, settings)?;
    let tcp = open_as(address, source).await?;
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
    open_as(address, None).await
}

/// A connection that comes from `source`; never from another address instead.
async fn open_as(address: &Address, source: Option<IpAddr>) -> Result<TcpStream, ConnectError> {
    let tcp = match (address, source) {
        (Address::Ip(address), None) => open_to(*address).await,
        (Address::Name { host, port }, None) => open_to_any(host, *port).await,
        (Address::Ip(address), Some(source)) => borrow(*address, source).await,
        // The config wants an address where a source is to be kept.
        (Address::Name { .. }, Some(_)) => Err(io::ErrorKind::Unsupported.into()),
    };
    let tcp = tcp.map_err(Arc::new).map_err(|error| match source {
        None => ConnectError::Tcp(error),
        Some(source) => ConnectError::As(source, error),
    })?;
    // Small requests must not wait for the previous one's acknowledgement. Failure costs latency only.
    let _ = tcp.set_nodelay(true);
    let _ = SockRef::from(&tcp).set_tcp_keepalive(&keepalive());
    Ok(tcp)
}

/// To the first of a name's addresses that takes it.
async fn open_to_any(host: &str, port: u16) -> io::Result<TcpStream> {
    let mut failed = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in lookup_host((host, port)).await? {
        match open_to(address).await {
            Ok(tcp) => return Ok(tcp),
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

async fn open_to(address: SocketAddr) -> io::Result<TcpStream> {
    if !loops::are_watched() {
        return TcpStream::connect(address).await;
    }
    connect_from(Socket::new(Domain::for_address(address), STREAM, None)?, address).await
}

/// The same from another's address.
async fn borrow(address: SocketAddr, source: IpAddr) -> io::Result<TcpStream> {
    if let Some(why) = borrowed::misfit(source, address.ip()) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    }
    let socket = Socket::new(Domain::for_address(address), STREAM, None)?;
    borrowed::bind(&socket, source)?;
    connect_from(socket, address).await
}

async fn connect_from(socket: Socket, address: SocketAddr) -> io::Result<TcpStream> {
    // As tokio does it; but its own address is remembered as soon as there is one. Should it be back before that, it goes round
    // once more, and that one is known.
    match socket.connect(&address.into()) {
        Err(error) if error.raw_os_error() != Some(rustix::io::Errno::INPROGRESS.raw_os_error()) => return Err(error),
        _ => {}
    }
    let local = socket.local_addr()?.as_socket().filter(|_| loops::are_watched());
    let own = local.map(|local| loops::Own::opening(local, address));
    let tcp = TcpStream::from_std(socket.into())?;
    tcp.writable().await?;
    match tcp.take_error()? {
        Some(error) => Err(error),
        None => {
            if let Some(own) = own {
                own.opened();
            }
            Ok(tcp)
        }
    }
}

/// Gives what the peer speaks: `wanted`, or what ALPN settled.
pub async fn open_tls(
    tcp: TcpStream,
    address: &Address,
    tls: &UpstreamTls,
    wanted: Option<Protocol>,
) -> Result<(Stream, Protocol), ConnectError> {
    let config = match wanted {
        Some(Protocol::Http1) => &tls.http1,
        Some(Protocol::Http2) => &tls.http2,
        None => &tls.either,
    };
    let stream = secure(tcp, address, tls, config).await?;
    let settled = match stream.get_ref().1.alpn_protocol() {
        Some(b"h2") => Protocol::Http2,
        _ => wanted.unwrap_or(Protocol::Http1),
    };
    Ok((Stream::Tls(Box::new(stream)), settled))
}

/// TLS on a connection to `address`.
async fn secure(
    tcp: TcpStream,
    address: &Address,
    tls: &UpstreamTls,
    config: &Arc<ClientConfig>,
) -> Result<TlsStream<TcpStream>, ConnectError> {
    let host = match (&tls.server_name, address) {
        (Some(name), _) => name.clone(),
        (None, Address::Name { host, .. }) => host.clone(),
        (None, Address::Ip(address)) => address.ip().to_string(),
    };
    let name = ServerName::try_from(host.clone()).map_err(|_| ConnectError::ServerName(host))?;
    let connected = TlsConnector::from(config.clone()).connect(name, tcp).await;
    connected.map_err(|error| ConnectError::Tls(Arc::new(error)))
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
        let refused = connect(&endpoint, &settings, None, None).await.unwrap_err();
        assert!(matches!(refused, ConnectError::NoAuthorities), "{refused}");
    }
}
