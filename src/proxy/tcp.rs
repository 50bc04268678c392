//! The life of one TCP connection: which service it is for, the way to an endpoint, the bytes. It reads downwards from
//! [`serve`].

mod connect;
mod connections;
mod record;

pub use connect::{Tunnel, Tunnels};
pub use connections::Connections;
pub use record::Record;

use super::{
    first_bytes,
    http::{Proxy, cluster_of, ready_snapshot},
    journey::connect_error,
    listener::{Connection, Way},
};
use crate::{
    cluster::{
        Cluster, Endpoint, Snapshot,
        balance::Ask,
        connect::{ConnectError, connect_bare},
        endpoint::InFlight,
        health::{Choice, Outcome},
        limit::Connected,
        table::Settings,
    },
    config::{ListenerProtocol, ProxyVersion},
    error::{ProxyError, Reason},
    net::{
        io::Stream,
        proxy_protocol::{self, Addresses},
        relay::{Broken, Relay},
    },
};
use bytes::BytesMut;
use connections::Watched;
use std::{
    future::poll_fn,
    net::{IpAddr, SocketAddr},
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
};
use tokio::{net::TcpStream, time::Instant};

/// Serves one connection to its end.
pub async fn serve(client: TcpStream, peer: SocketAddr, connection: Connection, proxy: Rc<Proxy>) {
    let mut record = Record::start(connection.listener().clone(), peer);
    let ready = Box::pin(set_out(&client, peer, &proxy, &mut record)).await;
    carry(client, ready, &proxy, record).await;
}

/// Carries the bytes of a connection that is `ready` to its end.
pub async fn carry(client: TcpStream, ready: Result<Ready, ProxyError>, proxy: &Proxy, mut record: Record) {
    let outcome = match ready {
        Ok(ready) => exchange(Stream::Tcp(client), ready, proxy, &mut record).await,
        Err(error) => {
            // It was never connected to anybody: no orderly end.
            Stream::Tcp(client).reset();
            Err(error)
        }
    };
    record.ended(outcome);
}

/// A connection whose other half is there.
pub struct Ready {
    pub met: Met,
    /// What was read of it already.
    pub start: BytesMut,
}

/// A connection to one of a service's endpoints.
pub struct Met {
    pub server: Stream,
    /// Its place among the service's connections.
    place: Connected,
    cluster: Arc<Cluster>,
    endpoint: Arc<Endpoint>,
}

impl Met {
    /// Whether pillion speaks TLS on it.
    pub fn is_tls(&self) -> bool {
        matches!(self.server, Stream::Tls(_))
    }
}

/// Whom a connection comes from.
#[derive(Debug, Clone, Copy)]
pub struct Caller {
    pub peer: SocketAddr,
    /// What it said itself of that.
    told: Option<Addresses>,
    /// The address that it called, if the kernel redirected it.
    pub called: Option<SocketAddr>,
}

/// Where a connection goes.
#[derive(Debug, Clone)]
pub struct Heading {
    pub cluster: Arc<Cluster>,
    /// The only one of its endpoints that is meant.
    pub only: Option<Arc<Endpoint>>,
    /// Its client speaks TLS itself, so pillion does not, whatever the endpoint wants.
    pub is_tls: bool,
}

/// From a connection to one of its service's endpoints. Boxed by its caller: all of it is over once the bytes flow.
async fn set_out(
    client: &TcpStream,
    peer: SocketAddr,
    proxy: &Proxy,
    record: &mut Record,
) -> Result<Ready, ProxyError> {
    let mut start = BytesMut::new();
    let caller = introduced(client, peer, &mut start, record).await?;
    let settings = record.listener().settings();
    let cluster = match &settings.way {
        Way::Inbound { app, .. } => app.cluster.clone(),
        Way::Outbound { rule, .. } if settings.protocol == ListenerProtocol::Tls => {
            let until = record.started() + settings.limits.head_timeout;
            let server = first_bytes::server_name(client, &mut start, until).await?.ok_or_else(no_server)?;
            record.asks_for(&server);
            cluster_of(rule.of_server(&server)?, proxy).await?
        }
        Way::Outbound { rule, .. } => cluster_of(rule.fixed()?, proxy).await?,
    };
    let heading = Heading { cluster, only: None, is_tls: settings.protocol == ListenerProtocol::Tls };
    let met = meet(client, &caller, &heading, proxy, record).await?;
    Ok(Ready { met, start })
}

/// Whom a connection comes from: it says so itself where its listener asks for that.
pub async fn introduced(
    client: &TcpStream,
    peer: SocketAddr,
    start: &mut BytesMut,
    record: &mut Record,
) -> Result<Caller, ProxyError> {
    let settings = record.listener().settings();
    let told = match settings.proxy_protocol {
        true => first_bytes::proxy_header(client, start, record.started() + settings.limits.head_timeout).await?,
        false => None,
    };
    let peer = told.map_or(peer, |addresses| addresses.source);
    record.comes_from(peer);
    Ok(Caller { peer, told, called: None })
}

/// Connects to where it goes.
pub async fn meet(
    client: &TcpStream,
    caller: &Caller,
    heading: &Heading,
    proxy: &Proxy,
    record: &mut Record,
) -> Result<Met, ProxyError> {
    let cluster = &heading.cluster;
    cluster.mark_used();
    record.routed(cluster.clone());
    let (snapshot, _) = ready_snapshot(cluster, record.started(), proxy.discovery.first_answer(), None).await?;
    let called = || Some(Addresses { source: caller.peer, destination: caller.called.or(client.local_addr().ok())? });
    let preface = preface(&snapshot, || caller.told.or_else(called));
    reach(heading, &snapshot, Ask::default(), caller.peer, &preface, record).await
}

fn no_server() -> ProxyError {
    ProxyError::new(Reason::UnknownService, "the ClientHello names no server (SNI), so no service")
}

/// What an upstream is told first: whom a connection comes from, where its service wants that.
fn preface(snapshot: &Snapshot, addresses: impl FnOnce() -> Option<Addresses>) -> BytesMut {
    let mut header = BytesMut::new();
    match snapshot.settings.service.tcp.proxy_protocol {
        None => {}
        Some(ProxyVersion::V1) => proxy_protocol::write_v1(&mut header, addresses()),
        Some(ProxyVersion::V2) => proxy_protocol::write_v2(&mut header, addresses()),
    }
    header
}

/// A connection to an endpoint, on which `preface` has been said: one after the other is tried, until one takes it or another
/// try is not allowed. As nothing was sent yet, the budget of retries has no say.
async fn reach(
    heading: &Heading,
    snapshot: &Snapshot,
    ask: Ask,
    peer: SocketAddr,
    preface: &[u8],
    record: &mut Record,
) -> Result<Met, ProxyError> {
    let (cluster, settings) = (&heading.cluster, &snapshot.settings);
    let limit = settings.service.limits.connections;
    // Before an endpoint is picked: who is picked may be the one probe of somebody who was kept out.
    let Some(mut place) = cluster.limits.connect(limit) else {
        return Err(ProxyError::new(Reason::ConnectionLimit, ConnectError::Limit(limit).to_string()));
    };
    let source = settings.source_for(peer.ip());
    let ask = Ask { key: snapshot.key_of_source(peer.ip(), cluster.metrics.tcp.lives.open.get()), ..ask };
    let mut tried: Vec<Arc<Endpoint>> = Vec::new();
    let mut failed = None;
    while tried.len() <= settings.service.retry.attempts as usize {
        let picked = match &heading.only {
            // Whoever called it by its address takes it as it is.
            Some(only) => tried.is_empty().then_some((only, Choice::Available)),
            None => snapshot.pick(false, ask, &tried, Instant::now()),
        };
        let Some((endpoint, choice)) = picked else { break };
        let endpoint = endpoint.clone();
        if snapshot.leaves_zone(&endpoint) {
            cluster.metrics.zone_left.inc();
        }
        match try_one(&endpoint, choice, settings, preface, heading.is_tls, source, record).await {
            Ok(server) => {
                place.has(&server);
                return Ok(Met { server, place, cluster: cluster.clone(), endpoint });
            }
            Err(error) => {
                failed = Some(error);
                tried.push(endpoint);
            }
        }
    }
    Err(failed.unwrap_or_else(|| snapshot.no_endpoints(ask.within)))
}

/// A connection to this endpoint.
async fn try_one(
    endpoint: &Arc<Endpoint>,
    choice: Choice,
    settings: &Settings,
    preface: &[u8],
    is_tls: bool,
    source: Option<IpAddr>,
    record: &mut Record,
) -> Result<Stream, ProxyError> {
    record.attempt(InFlight::start(endpoint.clone(), choice));
    let begun = Instant::now();
    match connect_bare(endpoint, settings, preface, is_tls, source).await {
        Ok(server) => {
            record.tell(Outcome::Success);
            let now = Instant::now();
            endpoint.live.observe(now - begun, now);
            Ok(server)
        }
        Err(error) => {
            // What this machine lacks is not the endpoint's fault.
            if !error.is_own() {
                record.tell(Outcome::Failure);
            }
            let error = connect_error(endpoint, &error);
            record.not_reached(error.reason);
            Err(error)
        }
    }
}

/// Until both sides have ended, one breaks, or it has been enough.
async fn exchange(client: Stream, ready: Ready, proxy: &Proxy, record: &mut Record) -> Result<(), ProxyError> {
    let Ready { met: Met { server, place: _place, cluster, endpoint }, start } = ready;
    let watched = record.watch(connections::Handle::new(&proxy.tcp, cluster, endpoint));
    let mut flow = Flow { relay: Relay::new(client, server, start), watched, is_over: false };
    let outcome = poll_fn(|cx| flow.poll(cx)).await;
    flow.is_over = matches!(outcome, Ok(()));
    outcome
}

/// Bytes on their way. Dropped while they move, it ends with a reset: nobody is to take what came for all that there was.
struct Flow<'w> {
    relay: Relay,
    watched: &'w Watched,
    is_over: bool,
}

impl Flow<'_> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ProxyError>> {
        if let Poll::Ready(reason) = self.watched.poll_enough(cx) {
            return Poll::Ready(Err(ProxyError::new(reason, "closed by pillion")));
        }
        self.relay.poll(&self.watched.moved, cx).map_err(|broken| {
            self.relay.reset();
            match broken {
                Broken::Client(error) => ProxyError::new(Reason::DownstreamClosed, error.to_string()),
                Broken::Server(error) => ProxyError::new(Reason::UpstreamClosed, error.to_string()),
            }
        })
    }
}

impl Drop for Flow<'_> {
    fn drop(&mut self) {
        if !self.is_over && (self.relay.holds_bytes() || self.watched.is_moving()) {
            self.relay.reset();
        }
    }
}
