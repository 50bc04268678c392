//! Connections to API servers: one for all watches, and further ones where a server does not allow as many streams.

use super::access::Access;
use crate::{
    error::root_cause,
    net::tls,
    registry::{
        RegistryError, SetupError,
        http::HttpClient,
        http2::Http2,
        link::{self, Link},
        server::Server,
    },
};
use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{Request, Response, Uri};
use http_body_util::Full;
use hyper::body::Incoming;
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::time::timeout;

/// A server that vanished without a word is noticed within the sum of these two.
const PING_INTERVAL: Duration = Duration::from_secs(15);
const PING_TIMEOUT: Duration = Duration::from_secs(8);

type Body = Full<Bytes>;

/// The way to a cluster.
pub struct Connections {
    servers: Vec<Server>,
    tls: tls::Client,
    /// A further one is added when those that there are have no room. Go's servers, and so Kubernetes' own, allow a
    /// hundred streams on a connection.
    links: ArcSwap<Vec<Arc<Link<Connect>>>>,
}

/// How one connection is made.
pub struct Connect(tls::Client);

/// One connection. Dropping it closes it.
pub struct Connection {
    server: Server,
    transport: Transport,
    streams: AtomicUsize,
    worked: AtomicBool,
    /// Whether the server may have hung up because it wants a client certificate, of which TLS 1.3 tells late.
    anonymous: bool,
}

enum Transport {
    Http2(Http2<Body>),
    /// Without TLS: a `kubectl proxy`, which speaks nothing newer. A connection for each request.
    Http1(Box<HttpClient>),
}

/// Room for one exchange on a connection. Given back when dropped.
pub struct Place {
    link: Arc<Link<Connect>>,
    connection: Arc<Connection>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.connection.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Connections {
    /// Does not connect yet. Fails if TLS is needed and its files cannot be used.
    pub fn new(access: &Access) -> Result<Self, SetupError> {
        // Said now, by name of the file, rather than as a failure to connect.
        for server in access.servers.iter().filter(|server| server.secure) {
            access.tls.config(&[])?;
            access.tls.server_name(&server.host)?;
        }
        Ok(Self { servers: access.servers.clone(), tls: access.tls.clone(), links: ArcSwap::default() })
    }

    pub fn are_several(&self) -> bool {
        self.servers.len() > 1
    }

    /// Room on a connection that there is, or on the next attempt at one, which may wait before it starts.
    pub async fn place(&self) -> Result<Place, RegistryError> {
        let mut nth = 0;
        loop {
            let link = self.link(nth);
            let connection = link.connection().await?;
            if connection.enter() {
                return Ok(Place { link, connection });
            }
            nth += 1;
        }
    }

    fn link(&self, nth: usize) -> Arc<Link<Connect>> {
        let links = self.links.rcu(|links| {
            let mut links = Vec::clone(links);
            if links.len() <= nth {
                links.push(Arc::new(Link::new(self.servers.clone(), Connect(self.tls.clone()))));
            }
            links
        });
        // There are at least `nth` from the rounds before, and one more by now; `rcu` returns what was there before.
        links.get(nth).cloned().unwrap_or_else(|| self.links.load()[nth].clone())
    }
}

impl link::Connect for Connect {
    type Connection = Connection;

    async fn connect(&self, server: &Server) -> Result<Connection, RegistryError> {
        let transport = if server.secure {
            Transport::Http2(Http2::open(server, &self.0, Some(PING_INTERVAL), PING_TIMEOUT).await?)
        } else {
            let client = HttpClient::new(server.clone(), &Default::default());
            Transport::Http1(client.map_err(|error| unreachable(server, error.to_string()))?.into())
        };
        Ok(Connection {
            server: server.clone(),
            transport,
            streams: AtomicUsize::new(0),
            worked: AtomicBool::new(false),
            anonymous: server.secure && self.0.cert.is_none(),
        })
    }
}

impl link::Connection for Connection {
    fn is_closed(&self) -> bool {
        match &self.transport {
            Transport::Http2(connection) => connection.is_closed(),
            Transport::Http1(_) => false,
        }
    }

    fn has_worked(&self) -> bool {
        self.worked.load(Ordering::Relaxed)
    }
}

impl Connection {
    /// Takes room for one exchange, if there is some.
    fn enter(&self) -> bool {
        let most = match &self.transport {
            Transport::Http2(connection) => connection.most_streams(),
            Transport::Http1(_) => usize::MAX,
        };
        let enter = |streams: usize| (streams < most).then_some(streams + 1);
        self.streams.fetch_update(Ordering::Relaxed, Ordering::Relaxed, enter).is_ok()
    }
}

impl Place {
    /// The server, as errors name it.
    pub fn server(&self) -> &str {
        &self.connection.server.text
    }

    /// Sends a request, whose URI is only a path with its query. The head of the answer comes within `limit`.
    pub async fn exchange(&self, request: Request<Body>, limit: Duration) -> Result<Response<Incoming>, RegistryError> {
        let call = async {
            match &self.connection.transport {
                Transport::Http1(client) => client.exchange(Ok(request)).await,
                Transport::Http2(connection) => {
                    let request = self.absolute(request)?;
                    let mut sender = connection.sender();
                    let answer = async {
                        sender.ready().await?;
                        sender.send_request(request).await
                    };
                    answer.await.map_err(|error| self.broken(&error))
                }
            }
        };
        let late = |_| unreachable(&self.connection.server, format!("no answer within {limit:?}"));
        timeout(limit, call).await.map_err(late)?
    }

    /// HTTP/2 has the server's name and scheme in each request.
    fn absolute(&self, mut request: Request<Body>) -> Result<Request<Body>, RegistryError> {
        let Server { origin, base, .. } = &self.connection.server;
        let uri = format!("{}{base}{}", origin.to_string().trim_end_matches('/'), request.uri());
        *request.uri_mut() = uri.parse::<Uri>().map_err(|error| self.protocol(error))?;
        Ok(request)
    }

    /// The server has given a good answer.
    pub fn worked(&self) {
        self.connection.worked.store(true, Ordering::Relaxed);
    }

    /// Another server may serve where this one does not.
    pub fn give_up(&self) {
        self.link.give_up(&self.connection);
    }

    /// The exchange ended by an error of the connection.
    pub fn broken(&self, error: &hyper::Error) -> RegistryError {
        let mut cause = match &self.connection.transport {
            Transport::Http2(connection) => connection.cause(error),
            Transport::Http1(_) => root_cause(error),
        };
        if self.connection.anonymous && !link::Connection::has_worked(&*self.connection) {
            cause.push_str(" (does it want a client certificate? none is set)");
        }
        unreachable(&self.connection.server, cause)
    }

    pub fn unreachable(&self, cause: impl ToString) -> RegistryError {
        unreachable(&self.connection.server, cause.to_string())
    }

    pub fn protocol(&self, cause: impl ToString) -> RegistryError {
        RegistryError::Protocol { server: self.server().into(), cause: cause.to_string() }
    }
}

fn unreachable(server: &Server, cause: String) -> RegistryError {
    RegistryError::Unreachable { server: server.text.clone(), cause }
}
