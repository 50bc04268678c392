//! Tunnels that clients ask for by `CONNECT host:port`: TCP connections of which pillion is told where they are to go.

use super::{Heading, Met, Ready, Record, exchange, preface, reach, try_one};
use crate::{
    cluster::{
        Cluster, Endpoint, Live, Snapshot, balance::Ask, connect::ConnectError, health::Choice, subset::Settled,
        table::Settings,
    },
    config::{self, Service, Tcp, Timeouts, Unknown},
    error::{ProxyError, Reason},
    net::{
        io::{Io, Stream},
        own::is_own,
        proxy_protocol::Addresses,
    },
    proxy::{
        headers::Origin,
        http::{Proxy, cluster_asked_for, cluster_of, ready_snapshot},
        listener::{Listener, Way},
        transparent::STRANGERS,
    },
    registry::{Address, Instance},
    route::{self, Action, Asked, MOST_SERVICES, Target},
    telemetry::Telemetry,
};
use bytes::BytesMut;
use http::{Request, uri::Authority};
use std::{
    net::{IpAddr, SocketAddr},
    rc::Rc,
    sync::Arc,
};
use tokio::{net::lookup_host, time::timeout};

/// A host may have many addresses; so many are tried.
const MOST_ADDRESSES: usize = 4;

/// Where a listener's tunnels may go, beside services.
#[derive(Debug)]
pub struct Tunnels {
    passing: Option<Passing>,
}

#[derive(Debug)]
struct Passing {
    ports: Box<[u16]>,
    /// What is passed on counts here. It has no endpoints: each destination is one for itself.
    cluster: Arc<Cluster>,
}

/// A tunnel whose other half is there.
pub struct Tunnel {
    met: Met,
    record: Record,
}

impl Tunnels {
    pub fn new(config: &config::Connect, telemetry: &Telemetry) -> Self {
        let passing = (config.unknown == Unknown::Pass).then(|| {
            let timeouts = Timeouts { connect: config.timeout, ..Timeouts::default() };
            let tcp = Tcp { idle_timeout: config.idle_timeout, ..Tcp::default() };
            let service = Service { timeouts, tcp, ..Service::default() };
            let settings = Arc::new(Settings { service, ..Settings::default() });
            // Nothing is ever to be reviewed: there is nobody to take out.
            let metrics = telemetry.metrics.service(STRANGERS);
            let cluster = Arc::new(Cluster::new(STRANGERS, settings, metrics, Arc::default()));
            Passing { ports: config.ports.clone().into(), cluster }
        });
        Self { passing }
    }
}

impl Tunnel {
    /// A connection to where `request` asks for. What went wrong is counted and logged.
    pub async fn open(
        request: &Request<()>,
        listener: &Rc<Listener>,
        origin: &Origin,
        io: &Io,
        proxy: &Proxy,
    ) -> Result<Self, ProxyError> {
        let mut record = Record::start(listener.clone(), origin.peer);
        record.is_tunnel(route::authority(request.uri(), request.headers()));
        match set_out(request, origin, io, proxy, &mut record).await {
            Ok(met) => Ok(Self { met, record }),
            Err(error) => {
                record.ended(Err(error.clone()));
                Err(error)
            }
        }
    }

    /// Carries bytes to the tunnel's end. `start`: what the client has sent already.
    pub async fn carry(self, client: Stream, start: BytesMut, proxy: &Proxy) {
        let Self { mut record, met } = self;
        let outcome = exchange(client, Ready { met, start }, proxy, &mut record).await;
        record.ended(outcome);
    }

    /// It comes to nothing.
    pub fn failed(self, error: ProxyError) {
        self.record.ended(Err(error));
    }
}

async fn set_out(
    request: &Request<()>,
    origin: &Origin,
    io: &Io,
    proxy: &Proxy,
    record: &mut Record,
) -> Result<Met, ProxyError> {
    let settings = record.listener().settings();
    let Way::Outbound { rule, caller, tunnels: Some(tunnels) } = &settings.way else {
        return Err(ProxyError::new(Reason::Unsupported, "CONNECT, which the listener takes only with `connect`"));
    };
    let (authority, port) = destination(request)?;
    // An address is nobody's name.
    let is_name = |name: &&str| name.parse::<IpAddr>().is_err();
    let service = route::service(request, rule).ok().filter(is_name);
    // Of hosts elsewhere no registry is asked, where they may be passed on.
    let is_foreign = |service: &str| {
        let may_be_stranger = rule.of_stranger(authority.host()).is_some_and(|named| named.may_be_stranger);
        tunnels.passing.is_some() && may_be_stranger && proxy.discovery.table().followed_as(service).is_none()
    };
    let known = match service.filter(|service| !is_foreign(service)) {
        Some(service) => of_service(service, request, (rule, caller.as_ref()), origin, proxy, record).await?,
        None => None,
    };
    let Some((cluster, snapshot, settled)) = known else {
        let Some(passing) = &tunnels.passing else {
            let detail = format!("`{authority}` is no service, and `connect.unknown` says to refuse it");
            return Err(ProxyError::new(Reason::DestinationRefused, detail));
        };
        return passing.reach(authority.host(), port, record).await;
    };
    record.routed(cluster.clone());
    let Settled { within, first, .. } = settled;
    let peer = origin.peer;
    let own = || Some(Addresses { source: peer, destination: io.local_addr().ok()? });
    let preface = preface(&snapshot, own);
    let ask = Ask { within, first, ..Ask::default() };
    // What goes through a tunnel has its own TLS, if any.
    let heading = Heading { cluster, only: None, is_tls: true };
    reach(&heading, &snapshot, ask, peer, &preface, record).await
}

/// The host and the port that the client wants (RFC 9112, section 3.2.3).
fn destination(request: &Request<()>) -> Result<(&Authority, u16), ProxyError> {
    let uri = request.uri();
    let wrong = || ProxyError::new(Reason::BadRequest, "CONNECT says nothing of the form HOST:PORT");
    let plain = |authority: &&Authority| {
        uri.scheme().is_none() && !authority.host().is_empty() && !authority.as_str().contains('@')
    };
    let authority = uri.authority().filter(plain).ok_or_else(wrong)?;
    let port = authority.port_u16().filter(|port| *port != 0).ok_or_else(wrong)?;
    Ok((authority, port))
}

/// The service that a tunnel goes to, with those of its endpoints that it may go to. `None`: nobody knows that service.
async fn of_service(
    service: &str,
    request: &Request<()>,
    (rule, caller): (&route::Rule, Option<&http::HeaderValue>),
    origin: &Origin,
    proxy: &Proxy,
    record: &Record,
) -> Result<Option<(Arc<Cluster>, Arc<Snapshot>, Settled)>, ProxyError> {
    let mut cluster = cluster_asked_for(service, request, rule, proxy).await?;
    cluster.mark_used();
    let mut subset = None;
    for turn in 0.. {
        if turn == MOST_SERVICES {
            return Err(route::too_many(&cluster.name));
        }
        let Some(routes) = cluster.load().settings.routes.clone().filter(|_| subset.is_none()) else { break };
        let Some((_, route)) = routes.find(&Asked::new(request, caller)) else { break };
        let target = match &route.action {
            Action::Go(target) => target,
            Action::Split(split) => {
                let key = split.key.as_ref();
                let by_key = |key: &[u8]| split.choose(key);
                let kept = key.and_then(|key| key.with(request.headers(), origin.peer.ip(), by_key));
                kept.unwrap_or_else(|| split.draw())
            }
            // It is there to keep requests from the service's endpoints.
            Action::Redirect(_) | Action::Respond(_) => {
                let detail = format!("route `{}` of `{}` answers by itself", route.name, cluster.name);
                return Err(ProxyError::new(Reason::DestinationRefused, detail));
            }
        };
        let Target { service, subset: wanted } = target;
        subset = wanted.clone();
        let Some(other) = service else { break };
        cluster = cluster_of(other, proxy).await?;
        cluster.mark_used();
    }
    let first_answer = proxy.discovery.first_answer();
    match ready_snapshot(&cluster, record.started(), first_answer, None).await {
        Ok((snapshot, _)) => {
            let settled = subset.map_or_else(Settled::default, |subset| snapshot.settle(&subset));
            Ok(Some((cluster, snapshot, settled)))
        }
        // Handed on, it is known whose it is to be.
        Err(error) if error.reason == Reason::UnknownService && cluster.name.eq_ignore_ascii_case(service) => Ok(None),
        Err(error) => Err(error),
    }
}

impl Passing {
    /// A connection to a host that is no service.
    async fn reach(&self, host: &str, port: u16, record: &mut Record) -> Result<Met, ProxyError> {
        if !self.ports.contains(&port) {
            let detail = format!("`{host}` is no service, and `connect.ports` has no {port}");
            return Err(ProxyError::new(Reason::DestinationRefused, detail));
        }
        let cluster = &self.cluster;
        record.routed(cluster.clone());
        let settings = cluster.load().settings.clone();
        let limit = settings.service.timeouts.connect;
        // The listener's limit holds; tunnels to everywhere have none in common.
        let Some(mut place) = cluster.limits.connect(u32::MAX) else {
            return Err(ProxyError::new(Reason::ConnectionLimit, ConnectError::Limit(u32::MAX).to_string()));
        };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let found = match timeout(limit, lookup_host((host, port))).await {
            Ok(Ok(found)) => found,
            Ok(Err(error)) => return Err(ProxyError::new(Reason::ConnectFailed, format!("`{host}`: {error}"))),
            Err(_) => {
                let detail = format!("no address of `{host}` within {limit:?}");
                return Err(ProxyError::new(Reason::ConnectTimeout, detail));
            }
        };
        // To whom it was looked at it is connected to: a name may have another address a moment later.
        let (own, others): (Vec<SocketAddr>, Vec<_>) = found.partition(|address| is_own(address.ip()));
        let mut failed = match own.first() {
            Some(own) => {
                ProxyError::new(Reason::DestinationRefused, format!("`{host}` is this machine itself ({own})"))
            }
            None => ProxyError::new(Reason::ConnectFailed, format!("`{host}` has no address")),
        };
        for address in others.into_iter().take(MOST_ADDRESSES) {
            let instance = Instance::new(address.to_string(), Address::Ip(address));
            let endpoint = Arc::new(Endpoint { instance, live: Arc::new(Live::new(None)) });
            match try_one(&endpoint, Choice::Available, &settings, &[], true, None, record).await {
                Ok(server) => {
                    place.has(&server);
                    return Ok(Met { server, place, cluster: cluster.clone(), endpoint });
                }
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }
}
