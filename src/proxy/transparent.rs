//! Connections that the kernel redirected to pillion: whom their clients called.

use super::{
    first_bytes,
    http::{Proxy, cluster_of},
    listener::{Listener, Settings as ListenerSettings},
    tcp::Heading,
};
use crate::{
    cluster::{
        Cluster, Endpoint,
        addresses::Kind,
        table::{Settings, State},
    },
    config::{self, App, Direct, Direction, Unknown},
    error::{ProxyError, Reason},
    net::{loops, original},
    registry::{Address, Instance},
    route,
    telemetry::{Telemetry, metrics::ServiceMetrics},
};
use bytes::BytesMut;
use http::{Method, Request};
use std::{
    cell::{OnceCell, RefCell},
    collections::HashMap,
    net::SocketAddr,
    rc::{self, Rc},
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{
    net::TcpStream,
    time::{Instant, timeout},
};

/// What all addresses that belong to no service are called together. No service can have this name.
pub const STRANGERS: &str = "(unknown)";

/// Nothing but its two ends is to end what pillion does not know.
const FOR_EVER: Duration = Duration::from_secs(24 * 60 * 60);

/// It may be far away.
const CONNECT: Duration = Duration::from_secs(30);

/// So long is asked whether there is a service of a name, before the connection goes where it was to go: what has nothing to
/// do with the registry should hardly notice that this is slow.
const PATIENCE: Duration = Duration::from_secs(1);

/// With so many addresses it is looked which of them are not in use any more.
const MANY: usize = 64;

/// Whom a redirected connection's client called.
#[derive(Debug)]
pub struct Called {
    address: SocketAddr,
    direction: Direction,
    unknown: Unknown,
    owner: Option<Owned>,
    /// One of those that only services have, and nobody at all elsewhere.
    is_virtual: bool,
    /// The address, as if it were a service; once it is needed.
    stranger: OnceCell<Arc<Cluster>>,
}

/// A service that has the address.
#[derive(Debug)]
struct Owned {
    service: Arc<str>,
    endpoint: Option<Arc<Endpoint>>,
    /// Whether others have it, too.
    is_shared: bool,
}

impl Called {
    /// Finds out whom. `peer`: as the kernel knows it.
    pub fn of(
        client: &TcpStream,
        peer: SocketAddr,
        transparent: &config::Transparent,
        proxy: &Proxy,
    ) -> Result<Self, ProxyError> {
        // Before the first of pillion's own that could come back.
        loops::watch();
        let lost = |error| ProxyError::new(Reason::Loop, format!("the kernel redirected no such connection: {error}"));
        let address = original::canonical(original::destination(client).map_err(lost)?);
        if address == original::canonical(client.local_addr().map_err(lost)?) {
            let detail = "it was not redirected by the kernel, but opened to pillion itself";
            return Err(ProxyError::new(Reason::Loop, detail));
        }
        if loops::is_own(peer, address) {
            warn_of_loop(address);
            return Err(ProxyError::new(Reason::Loop, format!("it is pillion's own connection to {address}")));
        }
        let table = proxy.discovery.table();
        // An application here is called by its port, whatever services have it.
        let is_outbound = transparent.direction == Direction::Outbound;
        let owner = table.owner(address).filter(|_| is_outbound).and_then(|owner| {
            let is_there = |endpoint: &&Arc<Endpoint>| match endpoint.instance.address {
                Address::Ip(there) => original::canonical(there) == address,
                Address::Name { .. } => false,
            };
            let endpoint = match owner.kind {
                // It may not be followed any more, and is again from the next request on.
                Kind::Virtual => None,
                Kind::Endpoint(number) => {
                    table.get(&owner.service)?.load().endpoints.get(number).filter(is_there).cloned()
                }
            };
            Some(Owned { service: owner.service, endpoint, is_shared: owner.is_shared })
        });
        let is_virtual = is_outbound && table.virtuals().is_virtual(address.ip());
        let (direction, unknown) = (transparent.direction, transparent.unknown());
        Ok(Self { address, direction, unknown, owner, is_virtual, stranger: OnceCell::new() })
    }

    /// Finds out whose a virtual address is that nobody has asked for since the start: clients keep addresses for longer.
    pub async fn find_owner(&mut self, proxy: &Proxy) {
        if self.owner.is_none() && self.is_virtual {
            let asked = proxy.discovery.owner_of_virtual(self.address.ip());
            let service = Box::pin(timeout(PATIENCE, asked)).await.ok().flatten();
            self.owner = service.map(|service| Owned { service, endpoint: None, is_shared: false });
        }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Whether it is for an application here that no listener is for.
    pub fn is_inbound(&self) -> bool {
        self.direction == Direction::Inbound
    }

    /// Whether the address says whom it is for, whatever the client names.
    pub fn is_certain(&self) -> bool {
        self.owner.as_ref().is_some_and(|owner| !owner.is_shared)
    }

    pub fn passes(&self) -> bool {
        self.owner.is_some() || (self.unknown == Unknown::Pass && !self.is_virtual)
    }

    /// The endpoint whose own address was called.
    pub fn endpoint(&self) -> Option<&Arc<Endpoint>> {
        self.owner.as_ref()?.endpoint.as_ref()
    }

    /// Where its bytes go, if nothing that it says is looked at but whether it is TLS.
    pub async fn heading(&self, is_tls: bool, proxy: &Proxy, telemetry: &Telemetry) -> Result<Heading, ProxyError> {
        let Some(owner) = &self.owner else {
            return Ok(Heading { cluster: self.stranger(proxy, telemetry)?, only: None, is_tls });
        };
        let cluster = cluster_of(&owner.service, proxy).await?;
        // Of an address that several have nobody knows which of them is meant, and whether that one wants TLS.
        let keeps = owner.is_shared || cluster.load().settings.service.tcp.direct == Direct::Keep;
        Ok(Heading { only: owner.endpoint.clone().filter(|_| keeps), cluster, is_tls: is_tls || owner.is_shared })
    }

    /// The same for TLS whose client asks for the server of this name, if that is a service's.
    pub async fn heading_to(
        &self,
        server: &str,
        rule: &route::Rule,
        proxy: &Proxy,
    ) -> Result<Option<Heading>, ProxyError> {
        let Some(named) = rule.of_stranger(server) else { return Ok(None) };
        // The address has more to say than a name that belongs to another.
        if self.is_certain() && !self.is_owned_by(named.service) {
            return Ok(None);
        }
        Ok(find(named, proxy).await.map(|cluster| Heading { cluster, only: None, is_tls: true }))
    }

    fn is_owned_by(&self, service: &str) -> bool {
        self.owner.as_ref().is_some_and(|owner| owner.service.eq_ignore_ascii_case(service))
    }

    /// The service that an HTTP request is for.
    pub async fn cluster<B>(
        &self,
        request: &Request<B>,
        rule: &route::Rule,
        proxy: &Proxy,
        telemetry: &Telemetry,
    ) -> Result<Arc<Cluster>, ProxyError> {
        if !self.is_certain()
            && let Some(named) = rule.names(request)
            && let Some(cluster) = find(named, proxy).await
        {
            return Ok(cluster);
        }
        match &self.owner {
            Some(owner) => cluster_of(&owner.service, proxy).await,
            None => self.stranger(proxy, telemetry),
        }
    }

    /// Whether a connection that begins with this request is for a service. Its head stays in `start`.
    pub async fn asks_for_service(
        &self,
        client: &TcpStream,
        start: &mut BytesMut,
        settings: &ListenerSettings,
        rule: &route::Rule,
        proxy: &Proxy,
    ) -> bool {
        let until = Instant::now() + settings.limits.detect_timeout;
        let Some(head) = first_bytes::request_head(client, start, &settings.limits, until).await else { return false };
        match rule.names(&head.request) {
            // Whoever asks another proxy for a tunnel is to get it from that one.
            Some(_) if head.request.method() == Method::CONNECT => false,
            Some(named) => find(named, proxy).await.is_some(),
            None => false,
        }
    }

    fn stranger(&self, proxy: &Proxy, telemetry: &Telemetry) -> Result<Arc<Cluster>, ProxyError> {
        if self.is_virtual {
            let detail = format!(
                "{} is of those that DNS answers give to services (dns.addresses), and it is not known to which; its name has to be \
                 asked for again",
                self.address
            );
            return Err(ProxyError::new(Reason::UnknownService, detail));
        }
        match self.unknown {
            Unknown::Pass => Ok(self.stranger.get_or_init(|| proxy.strangers.cluster(self.address, telemetry)).clone()),
            Unknown::Refuse => {
                let detail = format!("no service has the address {}, and none that is known was named", self.address);
                Err(ProxyError::new(Reason::UnknownService, detail))
            }
        }
    }
}

/// The service of this name, if a registry knows one, and says so soon.
async fn find(named: route::Named<'_>, proxy: &Proxy) -> Option<Arc<Cluster>> {
    let name = named.service;
    let cluster = match named.may_be_stranger {
        true => proxy.discovery.table().followed_as(name)?,
        false if named.is_host => timeout(PATIENCE, proxy.discovery.of_host(name)).await.ok()?.ok()?,
        false => cluster_of(name, proxy).await.ok()?,
    };
    cluster.mark_used();
    let pending = cluster.load().state == State::Pending;
    if pending {
        let first_answer = proxy.discovery.first_answer();
        // What it is then is looked at below.
        let _ = timeout(PATIENCE, cluster.first_answer(first_answer)).await;
    }
    let is_known = cluster.load().state == State::Known;
    is_known.then_some(cluster)
}

/// Once is enough: each connection of pillion's own would bring it.
fn warn_of_loop(address: SocketAddr) {
    static WARNED: AtomicBool = AtomicBool::new(false);
    if !WARNED.swap(true, Relaxed) {
        tracing::warn!(
            %address,
            "pillion's own connections are redirected to itself, so none can be made; the rules must leave its user, group \
             or mark out (`pillion net up --pillion-user`)"
        );
    }
}

/// The listeners for local applications, by which redirected inbound connections go on.
#[derive(Debug, Default)]
pub struct Inbound {
    listeners: RefCell<Vec<rc::Weak<Listener>>>,
}

impl Inbound {
    pub fn add(&self, listener: &Rc<Listener>) {
        let mut listeners = self.listeners.borrow_mut();
        listeners.retain(|listener| listener.strong_count() > 0);
        listeners.push(Rc::downgrade(listener));
    }

    /// The listener whose application has the port that was called, if this one redirects inbound connections.
    pub fn listener(&self, by: &Listener, client: &TcpStream) -> Option<Rc<Listener>> {
        let settings = by.settings();
        let transparent = settings.transparent.as_ref()?;
        if transparent.direction == Direction::Outbound {
            return None;
        }
        let called = original::destination(client).ok()?;
        let listeners = self.listeners.borrow();
        let open = listeners.iter().filter_map(rc::Weak::upgrade).filter(|listener| !listener.is_closing());
        let addressed = open.filter_map(|listener| {
            let app = listener.settings().way.app_address()?;
            (app.port() == called.port()).then_some((app.is_ipv4() != called.is_ipv4(), listener))
        });
        // Of an application at addresses of both families that of the caller's: only there can it see who called.
        addressed.min_by_key(|(is_other, _)| *is_other).map(|(_, listener)| listener)
    }
}

/// The addresses that belong to no service, and to which there are connections: each as if it were a service with one
/// endpoint, which nothing takes out and nothing but its ends ends.
#[derive(Debug, Default)]
pub struct Strangers {
    clusters: RefCell<HashMap<SocketAddr, Weak<Cluster>>>,
    common: OnceCell<(Arc<Settings>, Arc<ServiceMetrics>)>,
}

impl Strangers {
    fn cluster(&self, address: SocketAddr, telemetry: &Telemetry) -> Arc<Cluster> {
        let mut clusters = self.clusters.borrow_mut();
        if let Some(known) = clusters.get(&address).and_then(Weak::upgrade) {
            return known;
        }
        let (settings, metrics) = self.common.get_or_init(|| (settings(), telemetry.metrics.service(STRANGERS)));
        let cluster = Arc::new(Cluster::new(STRANGERS, settings.clone(), metrics.clone(), Arc::default()));
        let instance = Instance::new(address.to_string(), Address::Ip(address));
        cluster.publish(settings, &[instance], State::Known);
        if clusters.len() >= MANY && clusters.len() == clusters.capacity() {
            clusters.retain(|_, cluster| cluster.strong_count() > 0);
        }
        clusters.insert(address, Arc::downgrade(&cluster));
        cluster
    }
}

fn settings() -> Arc<Settings> {
    let app = App::at(SocketAddr::from(([0, 0, 0, 0], 0)));
    let service = config::Service {
        timeouts: config::Timeouts { connect: CONNECT, request: FOR_EVER, idle: FOR_EVER, stream: None },
        limits: config::Limits { requests: u32::MAX, connections: u32::MAX, ..config::Limits::default() },
        tcp: config::Tcp { idle_timeout: FOR_EVER, ..config::Tcp::default() },
        ..app.service()
    };
    Arc::new(Settings { service, same_protocol: true, ..Settings::default() })
}
