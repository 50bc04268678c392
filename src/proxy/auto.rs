//! Connections of which it is found out what they speak: those that speak HTTP are carried by request, all others by byte. It
//! reads downwards from [`serve`].

use super::{
    first_bytes,
    headers::Origin,
    http::{Proxy, cluster_of},
    listener::{self, Connection, Settings, Way},
    tcp::{self, Caller, Heading, Met, Ready, Record},
    transparent::Called,
};
use crate::{
    cluster::Endpoint,
    error::{ProxyError, Reason},
    net::{detect::Protocol, io::Stream, original},
    telemetry::Telemetry,
};
use bytes::BytesMut;
use std::{
    cell::RefCell,
    collections::HashMap,
    future::{pending, poll_fn},
    io,
    net::SocketAddr,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::Poll,
    time::Duration,
};
use tokio::{
    io::AsyncBufRead,
    net::TcpStream,
    time::{Instant, sleep, timeout},
};

/// A client that says nothing for so long may wait for the server to speak first. No client that speaks first takes so long
/// on the same machine, unless it opens connections in advance.
const PATIENCE: Duration = Duration::from_millis(10);

/// The same where clients spoke first so far.
const LONGER: Duration = Duration::from_millis(200);

/// How long it is believed who speaks first somewhere: another server may be there later.
const MEMORY: Duration = Duration::from_secs(10 * 60);

/// Of so many places it is remembered.
const PLACES: usize = 1024;

/// Serves one connection to its end.
pub async fn serve(client: TcpStream, peer: SocketAddr, connection: Connection, proxy: Rc<Proxy>) {
    let mut record = Record::start(connection.listener().clone(), peer);
    let ready = match Box::pin(find_out(&client, peer, &proxy, &mut record)).await {
        Ok(Spoken::Http { start, origin }) => {
            record.dismiss();
            return Box::pin(listener::serve(client, start, Rc::new(origin), connection, proxy)).await;
        }
        Ok(Spoken::Bytes(ready)) => Ok(ready),
        Err(error) => Err(error),
    };
    tcp::carry(client, ready, &proxy, record).await;
}

/// What a connection turned out to be.
enum Spoken {
    Http { start: BytesMut, origin: Origin },
    Bytes(Ready),
}

/// A connection of which little is known yet.
struct Newcomer<'c> {
    client: &'c TcpStream,
    caller: Caller,
    called: Option<Called>,
    settings: &'c Settings,
    proxy: &'c Proxy,
    telemetry: Arc<Telemetry>,
    start: BytesMut,
}

/// Boxed by its caller: all of it is over once the bytes flow.
async fn find_out(
    client: &TcpStream,
    peer: SocketAddr,
    proxy: &Proxy,
    record: &mut Record,
) -> Result<Spoken, ProxyError> {
    let (settings, telemetry) = (record.listener().settings(), record.listener().telemetry.clone());
    let mut called = match &settings.transparent {
        Some(transparent) => Some(Called::of(client, peer, transparent, proxy)?),
        None => None,
    };
    if let Some(called) = &mut called {
        called.find_owner(proxy).await;
        record.asks_for(&called.address().to_string());
    }
    let mut start = BytesMut::new();
    let mut caller = tcp::introduced(client, peer, &mut start, record).await?;
    caller.called = called.as_ref().map(Called::address);
    let newcomer = Newcomer { client, caller, called, settings: &settings, proxy, telemetry, start };
    newcomer.find_out(record).await
}

impl Newcomer<'_> {
    async fn find_out(mut self, record: &mut Record) -> Result<Spoken, ProxyError> {
        let (protocol, met) = self.listen(record).await?;
        let is_http = match &protocol {
            Protocol::Http1 => self.is_for_service().await,
            Protocol::Http2 => true,
            _ => false,
        };
        if is_http {
            let origin = Origin::of(self.caller.peer, self.called);
            return Ok(Spoken::Http { start: self.start, origin });
        }
        let is_tls = matches!(protocol, Protocol::Tls(_));
        let met = match (self.heading_by_name(&protocol, record).await?, met) {
            (Some(heading), _) => self.meet(&heading, record).await?,
            // TLS within TLS is not what anybody meant.
            (None, Some(met)) if !(is_tls && met.is_tls()) => met,
            (None, _) => self.meet(&self.heading(is_tls).await?, record).await?,
        };
        Ok(Spoken::Bytes(Ready { met, start: self.start }))
    }

    /// What it speaks; and if the way to where its bytes go was opened to learn that, that way.
    async fn listen(&mut self, record: &mut Record) -> Result<(Protocol, Option<Met>), ProxyError> {
        if self.called.as_ref().is_some_and(Called::is_inbound) {
            // Whoever calls from outside has no say in where it goes.
            return Ok((Protocol::Other, None));
        }
        let place = self.place()?;
        let mut met = None;
        if self.start.is_empty() {
            let patience = match self.first_speaker(place) {
                Some(First::Server | First::ServerWithin) => return Ok((Protocol::Other, None)),
                Some(First::Client) => None,
                None => match self.proxy.speakers.recall(place) {
                    Some(First::Server) => return Ok((Protocol::Other, None)),
                    // Nobody waits for long; but another client may speak TLS itself, and that is seen from what it says.
                    Some(First::ServerWithin) => Some(PATIENCE),
                    // It was so once; now it may be another who calls there.
                    Some(First::Client) => Some(LONGER),
                    None => Some(PATIENCE),
                },
            };
            let idle = self.settings.limits.idle_timeout;
            if !self.until_it_speaks(patience.unwrap_or(idle), record).await? {
                if patience.is_none() {
                    return Err(ProxyError::new(Reason::IdleTimeout, "nothing was said"));
                }
                match self.race(record).await? {
                    Raced::Client(opened) => met = opened,
                    Raced::Server { met, spoke } => {
                        if spoke {
                            self.proxy
                                .speakers
                                .learn(place, if met.is_tls() { First::ServerWithin } else { First::Server });
                        }
                        return Ok((Protocol::Other, Some(met)));
                    }
                }
            }
        }
        let protocol = first_bytes::protocol(self.client, &mut self.start, self.settings.limits.detect_timeout).await?;
        if matches!(protocol, Protocol::Http1 | Protocol::Http2 | Protocol::Tls(_)) {
            self.proxy.speakers.learn(place, First::Client);
        }
        Ok((protocol, met))
    }

    /// What is remembered of who speaks first goes by this.
    fn place(&self) -> Result<SocketAddr, ProxyError> {
        let gone = |error: io::Error| ProxyError::new(Reason::DownstreamClosed, error.to_string());
        match &self.called {
            Some(called) => Ok(called.address()),
            None => self.client.local_addr().map(original::canonical).map_err(gone),
        }
    }

    /// Who speaks first, as far as that is said.
    fn first_speaker(&self, place: SocketAddr) -> Option<First> {
        let said = self.called.as_ref().and_then(Called::endpoint).and_then(|endpoint| said_of(endpoint));
        let by_port = || {
            let transparent = self.settings.transparent.as_ref()?;
            transparent.opaque_ports.contains(&place.port()).then_some(First::Server)
        };
        said.or_else(by_port)
    }

    /// Reads the first bytes, or sees the end, which is no byte. `false`: there was neither for so long.
    async fn until_it_speaks(&mut self, patience: Duration, record: &Record) -> Result<bool, ProxyError> {
        tokio::select! {
            read = timeout(patience, first_bytes::read_more(self.client, &mut self.start)) => match read {
                Ok(Ok(())) => Ok(true),
                Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(true),
                Ok(Err(error)) => Err(ProxyError::new(Reason::DownstreamClosed, error.to_string())),
                Err(_) => Ok(false),
            },
            () = record.listener().closed() => Err(closing()),
        }
    }

    /// Opens the way to where its bytes go, if all of it is bytes, and waits who of the two speaks first.
    async fn race(&self, record: &mut Record) -> Result<Raced, ProxyError> {
        let closed = record.listener().closed();
        let idle = self.settings.limits.idle_timeout;
        let opening = async {
            let heading = self.heading(false).await?;
            self.meet(&heading, record).await
        };
        let speaks = hear(self.client);
        tokio::pin!(closed, speaks);
        let met = tokio::select! {
            biased;
            _ = &mut speaks => return Ok(Raced::Client(None)),
            met = opening => met,
            () = &mut closed => return Err(closing()),
        };
        let mut met = match met {
            Ok(met) => met,
            // It may be late, and name another, or be answered by a fallback.
            Err(error) => {
                return tokio::select! {
                    biased;
                    _ = &mut speaks => Ok(Raced::Client(None)),
                    () = &mut closed => Err(closing()),
                    () = sleep(self.settings.limits.detect_timeout) => Err(error),
                };
            }
        };
        let heard = tokio::select! {
            biased;
            _ = &mut speaks => None,
            spoke = hear_server(&mut met.server) => Some(spoke),
            () = &mut closed => return Err(closing()),
            // From here on it is looked after like all that are carried by bytes.
            () = sleep(idle) => None,
        };
        // One that ends what pillion encrypts may have missed something in the handshake that a request's would have had (ALPN).
        if heard == Some(false) && met.is_tls() {
            tokio::select! {
                biased;
                _ = &mut speaks => return Ok(Raced::Client(None)),
                () = &mut closed => return Err(closing()),
                () = sleep(self.settings.limits.detect_timeout) => {}
            }
        }
        Ok(match heard {
            None => Raced::Client(Some(met)),
            Some(spoke) => Raced::Server { met, spoke },
        })
    }

    /// Whether its requests are for a service, or the local application. Those that are not go where they were to go, untouched.
    async fn is_for_service(&mut self) -> bool {
        match (&self.called, &self.settings.way) {
            // What is to reach a proxy is to reach it as it is.
            (Some(called), _) if called.is_certain() => !asks_proxy(&self.start),
            (Some(called), Way::Outbound { rule, .. }) if called.passes() => {
                called.asks_for_service(self.client, &mut self.start, self.settings, rule, self.proxy).await
            }
            _ => true,
        }
    }

    /// Where its bytes go if it asks for a server by its name, and that says more than the address that it called.
    async fn heading_by_name(&self, protocol: &Protocol, record: &mut Record) -> Result<Option<Heading>, ProxyError> {
        let (Protocol::Tls(hello), Some(called)) = (protocol, &self.called) else { return Ok(None) };
        let (Some(server), Way::Outbound { rule, .. }) = (&hello.server_name, &self.settings.way) else {
            return Ok(None);
        };
        record.asks_for(server);
        called.heading_to(server, rule, self.proxy).await
    }

    /// Where its bytes go.
    async fn heading(&self, is_tls: bool) -> Result<Heading, ProxyError> {
        let cluster = match (&self.called, &self.settings.way) {
            (Some(called), _) => return called.heading(is_tls, self.proxy, &self.telemetry).await,
            (None, Way::Inbound { app, .. }) => app.cluster.clone(),
            (None, Way::Outbound { rule, .. }) => cluster_of(rule.fixed()?, self.proxy).await?,
        };
        Ok(Heading { cluster, only: None, is_tls })
    }

    async fn meet(&self, heading: &Heading, record: &mut Record) -> Result<Met, ProxyError> {
        tcp::meet(self.client, &self.caller, heading, self.proxy, record).await
    }
}

/// Waits for a byte, or the end, and leaves it to be read; whether it is a byte. (To be told readable is not enough: that may be a
/// guess.)
async fn hear(stream: &TcpStream) -> bool {
    // An error is seen by whoever reads next.
    matches!(stream.peek(&mut [0]).await, Ok(1..))
}

/// The same of a server. What is within TLS counts, and not what TLS says of itself.
async fn hear_server(server: &mut Stream) -> bool {
    match server {
        Stream::Tcp(server) => {
            let mut start = [0; SETTINGS];
            match server.peek(&mut start).await {
                Ok(read) if is_settings(&start[..read]) => pending().await,
                Ok(read) => read > 0,
                // It is seen by whoever reads next.
                Err(_) => false,
            }
        }
        Stream::Tls(server) => {
            poll_fn(|cx| match Pin::new(&mut **server).poll_fill_buf(cx) {
                Poll::Ready(Ok(heard)) if is_settings(heard) => Poll::Pending,
                Poll::Ready(heard) => Poll::Ready(heard.is_ok_and(|heard| !heard.is_empty())),
                Poll::Pending => Poll::Pending,
            })
            .await
        }
    }
}

/// The head of an HTTP/2 frame.
const SETTINGS: usize = 9;

/// Whether it is how HTTP/2 servers greet, many of them before the client has said a word: that says nothing of who speaks first.
fn is_settings(start: &[u8]) -> bool {
    // Length, type, flags, stream.
    start.len() >= SETTINGS && start[3..SETTINGS] == [4, 0, 0, 0, 0, 0]
}

/// Whether a request is meant for a proxy: its target is a whole URL, or what a tunnel is to lead to. Its line is whole.
fn asks_proxy(start: &[u8]) -> bool {
    let mut words = start.trim_ascii_start().split(|byte| *byte == b' ');
    words.nth(1).is_some_and(|target| !target.starts_with(b"/") && target != b"*")
}

fn closing() -> ProxyError {
    ProxyError::new(Reason::ShuttingDown, "nothing was said before the listener was to end")
}

/// Who spoke first, and the connection to the server if there is one.
enum Raced {
    Client(Option<Met>),
    /// `spoke`: and it did not just end.
    Server {
        met: Met,
        spoke: bool,
    },
}

/// Who speaks first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum First {
    /// And what it speaks is told apart.
    Client,
    /// Or nothing is to be told apart, because it is carried by bytes anyway.
    Server,
    /// The same within the TLS that pillion speaks to it.
    ServerWithin,
}

/// What an endpoint's registry says of who speaks first.
fn said_of(endpoint: &Endpoint) -> Option<First> {
    if endpoint.instance.protocol.is_some() {
        return Some(First::Client);
    }
    let protocol = endpoint.instance.labels.get("protocol")?;
    let is_told_apart = ["http", "https", "grpc", "grpcs", "h2", "h2c", "http2", "tls"];
    Some(match is_told_apart.iter().any(|name| protocol.eq_ignore_ascii_case(name)) {
        true => First::Client,
        false => First::Server,
    })
}

/// Who speaks first where, as connections have shown.
#[derive(Debug, Default)]
pub struct Speakers {
    places: RefCell<HashMap<SocketAddr, (First, Instant)>>,
}

impl Speakers {
    fn recall(&self, place: SocketAddr) -> Option<First> {
        let places = self.places.borrow();
        let (first, learned) = places.get(&place)?;
        (learned.elapsed() < MEMORY).then_some(*first)
    }

    fn learn(&self, place: SocketAddr, first: First) {
        let mut places = self.places.borrow_mut();
        if places.len() >= PLACES && !places.contains_key(&place) {
            // It is learned again soon enough where it is needed.
            places.clear();
        }
        places.insert(place, (first, Instant::now()));
    }
}
