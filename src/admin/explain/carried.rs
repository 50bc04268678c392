//! What a listener makes of what comes in: requests, or connections and datagrams of which nothing but bytes is carried. It does
//! what `proxy::auto` and `proxy::transparent` do with connections, and says so.

use super::{Arrival, Explaining, FIRST_ANSWER, candidates};
use crate::{
    admin::view::{CalledStep, Carries, Explained, NotEligible, Outcome, ServiceStep, Way, Whose},
    cluster::{Cluster, Endpoint, Snapshot, addresses::Kind, subset::Settled, table::State},
    config::{self, Direct, Direction, ListenerProtocol, Transparent, Unknown},
    error::{ProxyError, Reason},
    registry::Address,
    route::{Named, Rule},
};
use http::{Method, uri::Scheme};
use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

/// The address that an application called, and whose it is.
struct Called {
    address: Option<SocketAddr>,
    owner: Option<Owned>,
    /// One of those that DNS answers give to services, so that nobody is there.
    is_virtual: bool,
}

struct Owned {
    cluster: Arc<Cluster>,
    snapshot: Arc<Snapshot>,
    /// `None`: a virtual address, at which nobody listens.
    endpoint: Option<Arc<Endpoint>>,
    is_shared: bool,
}

impl Explaining<'_> {
    /// At this listener.
    pub(super) async fn explain(&self, listener: &config::Listener) -> Explained {
        let named = |way| Explained::of(listener, way);
        match &listener.transparent {
            None => {
                let (way, otherwise) = self.called_itself(listener).await;
                Explained { otherwise, ..named(way) }
            }
            Some(transparent) if transparent.direction == Direction::Inbound => {
                self.redirected_in(listener, transparent).await
            }
            Some(transparent) => {
                let called = self.called().await;
                let rule = Rule::new(listener);
                let (way, otherwise) = if self.is_tls() {
                    (self.tls_to(&called, &rule, transparent.unknown()).await, None)
                } else {
                    let way = self.request_to(&called, &rule, transparent.unknown()).await;
                    (way, Some(self.bytes_to(&called, transparent.unknown())))
                };
                Explained { called: Some(called.step()), otherwise, ..named(way) }
            }
        }
    }

    /// Whether the client speaks TLS itself.
    fn is_tls(&self) -> bool {
        self.question.request.uri().scheme() == Some(&Scheme::HTTPS)
    }

    /// A listener that its clients call themselves: what becomes of what is asked about, and of what is no request, where both may
    /// come.
    async fn called_itself(&self, listener: &config::Listener) -> (Way, Option<Way>) {
        if let Some(app) = &listener.app {
            return (local(app), None);
        }
        let rule = Rule::new(listener);
        match listener.protocol {
            ListenerProtocol::Http => (self.at_listener(&rule).await, None),
            ListenerProtocol::Tcp | ListenerProtocol::Udp => (self.by_bytes(rule.fixed()).await, None),
            ListenerProtocol::Tls => {
                let lacks = || ProxyError::new(Reason::UnknownService, "the URL names no server, so no service");
                let server = self.question.request.uri().host().ok_or_else(lacks);
                (self.by_bytes(server.and_then(|server| rule.of_server(server))).await, None)
            }
            ListenerProtocol::Auto if self.is_tls() => (self.by_bytes(rule.fixed()).await, None),
            ListenerProtocol::Auto => (self.at_listener(&rule).await, Some(self.by_bytes(rule.fixed()).await)),
        }
    }

    /// A listener for inbound connections that the kernel redirects: each goes on by the one whose application has the port.
    async fn redirected_in(&self, listener: &config::Listener, transparent: &Transparent) -> Explained {
        let called = Called { address: self.question.called, owner: None, is_virtual: false };
        let uri = self.question.request.uri();
        let usual = if self.is_tls() { 443 } else { 80 };
        let port = called.address.map_or_else(|| uri.port_u16().unwrap_or(usual), |address| address.port());
        let has_port = |other: &&config::Listener| other.app.as_ref().is_some_and(|app| app.address.port() == port);
        // Of an application at addresses of both families that of the caller's, as the proxy has it.
        let is_other = |other: &&config::Listener| {
            let family = |app: &config::App| called.address.map(|called| called.is_ipv4() != app.address.is_ipv4());
            other.app.as_ref().and_then(family)
        };
        let goes_on = self.config.listeners.iter().filter(has_port).min_by_key(is_other);
        let way = match goes_on.and_then(|other| other.app.as_ref()) {
            Some(app) => local(app),
            None => self.bytes_to(&called, transparent.unknown()),
        };
        let step = CalledStep { port: Some(port), ..called.step() };
        let goes_on = goes_on.map(|other| other.name.clone());
        Explained { called: Some(step), goes_on, ..Explained::of(listener, way) }
    }

    /// Whom the application called.
    async fn called(&self) -> Called {
        let table = self.admin.discovery.table();
        let address = self.question.called;
        let owner = address.and_then(|address| table.owner(address).zip(Some(address))).and_then(|(owner, address)| {
            let cluster = table.get(&owner.service)?;
            let snapshot = cluster.load().clone();
            let is_there = |endpoint: &&Arc<Endpoint>| match endpoint.instance.address {
                Address::Ip(there) => canonical(there) == address,
                Address::Name { .. } => false,
            };
            let endpoint = match owner.kind {
                Kind::Virtual => None,
                Kind::Endpoint(number) => snapshot.endpoints.get(number).filter(is_there).cloned(),
            };
            Some(Owned { cluster, snapshot, endpoint, is_shared: owner.is_shared })
        });
        let is_virtual = address.is_some_and(|address| table.virtuals().is_virtual(address.ip()));
        let mut called = Called { address, owner, is_virtual };
        if let (Some(address), true, None) = (address, is_virtual, &called.owner)
            && let Some(service) = self.admin.discovery.owner_of_virtual(address.ip()).await
            && let Ok((cluster, snapshot)) = self.cluster(&service).await
        {
            called.owner = Some(Owned { cluster, snapshot, endpoint: None, is_shared: false });
        }
        called
    }

    /// A request whose connection the kernel redirected.
    async fn request_to(&self, called: &Called, rule: &Rule, unknown: Unknown) -> Way {
        let request = &self.question.request;
        // What is to reach another proxy goes to it as it is.
        let is_tunnel = request.method() == Method::CONNECT;
        if let Some(owner) = called.certain().filter(|_| !is_tunnel) {
            return self.for_service(&owner.cluster.name).await;
        }
        match rule.names(request) {
            Some(named) if !is_tunnel && called.certain().is_none() => match self.known(named).await {
                Some(cluster) => self.for_service(&cluster.name).await,
                None => self.bytes_to(called, unknown),
            },
            _ => self.bytes_to(called, unknown),
        }
    }

    /// TLS whose connection the kernel redirected.
    async fn tls_to(&self, called: &Called, rule: &Rule, unknown: Unknown) -> Way {
        let named = self.question.request.uri().host().and_then(|server| rule.of_stranger(server));
        // The address has more to say than a name that belongs to another.
        let counts = |named: &Named<'_>| {
            called.certain().is_none_or(|owner| owner.cluster.name.eq_ignore_ascii_case(named.service))
        };
        let known = match named.filter(counts) {
            Some(named) => self.known(named).await,
            None => None,
        };
        match known {
            Some(cluster) => self.by_bytes(Ok(&cluster.name)).await,
            None => self.bytes_to(called, unknown),
        }
    }

    /// Bytes that say nothing of where they are to go.
    fn bytes_to(&self, called: &Called, unknown: Unknown) -> Way {
        let Some(Owned { cluster, snapshot, endpoint, is_shared }) = &called.owner else {
            let outcome = match (unknown, called.address) {
                _ if called.is_virtual => {
                    let detail = "the address that was called is of those that DNS answers give to services, and it is not known to which";
                    Outcome::refused(ProxyError::new(Reason::UnknownService, detail))
                }
                (Unknown::Pass, address) => Outcome::Passed { address: address.map(|address| address.to_string()) },
                (Unknown::Refuse, _) => {
                    let detail = "nobody has the address that was called, and none that is known was named";
                    Outcome::refused(ProxyError::new(Reason::UnknownService, detail))
                }
            };
            return Arrival::at(outcome).after(Vec::new());
        };
        let keeps = *is_shared || snapshot.settings.service.tcp.direct == Direct::Keep;
        let only = endpoint.as_ref().filter(|_| keeps);
        let arrival = carried(cluster, snapshot, only).unwrap_or_else(Arrival::refused);
        arrival.after(vec![ServiceStep::without_routes(cluster, snapshot)])
    }

    async fn for_service(&self, service: &str) -> Way {
        let mut services = Vec::new();
        let arrival = self.on(service, self.question.request.clone(), 0, &mut services).await;
        arrival.unwrap_or_else(Arrival::refused).after(services)
    }

    /// To any endpoint of a service.
    async fn by_bytes(&self, service: Result<&str, ProxyError>) -> Way {
        let mut services = Vec::new();
        let arrival = async {
            let (cluster, snapshot) = self.cluster(service?).await?;
            services.push(ServiceStep::without_routes(&cluster, &snapshot));
            carried(&cluster, &snapshot, None)
        };
        let arrival = arrival.await.unwrap_or_else(Arrival::refused);
        arrival.after(services)
    }

    /// The service of that name, if there is one. About what looks like a host elsewhere no registry is asked.
    async fn known(&self, named: Named<'_>) -> Option<Arc<Cluster>> {
        let discovery = &self.admin.discovery;
        let name = match named.may_be_stranger {
            true => discovery.table().followed_as(named.service)?.name.clone(),
            false if named.is_host => discovery.of_host(named.service).await.ok()?.name.clone(),
            false => named.service.into(),
        };
        let (cluster, snapshot) = self.cluster(&name).await.ok()?;
        (snapshot.state == State::Known).then_some(cluster)
    }
}

impl Called {
    /// Its owner, if that is certain, whatever the client names.
    fn certain(&self) -> Option<&Owned> {
        self.owner.as_ref().filter(|owner| !owner.is_shared)
    }

    fn step(&self) -> CalledStep {
        let whose = match &self.owner {
            None if self.is_virtual => Whose::NoName,
            None => Whose::Nobodys,
            Some(Owned { is_shared: true, .. }) => Whose::Several,
            Some(Owned { endpoint: Some(_), .. }) => Whose::Endpoint,
            Some(Owned { endpoint: None, .. }) if self.is_virtual => Whose::Name,
            Some(Owned { endpoint: None, .. }) => Whose::Service,
        };
        let service = self.owner.as_ref().map(|owner| owner.cluster.name.to_string());
        let address = self.address.map(|address| address.to_string());
        CalledStep { address, port: None, whose, service }
    }
}

impl Explained {
    fn of(listener: &config::Listener, way: Way) -> Self {
        let carries = match listener.protocol {
            ListenerProtocol::Http => Carries::Requests,
            ListenerProtocol::Tcp => Carries::Tcp,
            ListenerProtocol::Tls => Carries::Tls,
            ListenerProtocol::Udp => Carries::Datagrams,
            ListenerProtocol::Auto => Carries::Either,
        };
        Self { listener: listener.name.clone(), carries, called: None, goes_on: None, way, otherwise: None }
    }
}

/// By byte to the endpoints of a service, or the one that was called: routes and subsets are about requests.
fn carried(cluster: &Cluster, snapshot: &Snapshot, only: Option<&Arc<Endpoint>>) -> Result<Arrival, ProxyError> {
    snapshot.is_known(&cluster.name, FIRST_ANSWER)?;
    let mut endpoints = candidates(snapshot, false, Settled::default());
    let service = cluster.name.to_string();
    let outcome = if let Some(only) = only {
        // Whoever called it takes it as it is.
        for (candidate, endpoint) in endpoints.iter_mut().zip(&snapshot.endpoints) {
            candidate.eligible = Arc::ptr_eq(endpoint, only);
            candidate.not = (!candidate.eligible).then_some(NotEligible::NotCalled);
        }
        Outcome::Itself { service, address: only.instance.address.to_string() }
    } else if endpoints.iter().any(|endpoint| endpoint.eligible) {
        Outcome::Sent { service, subset: None, instead: None }
    } else {
        Outcome::refused(snapshot.no_endpoints(Settled::default().within))
    };
    Ok(Arrival { endpoints, ..Arrival::at(outcome) })
}

fn local(app: &config::App) -> Way {
    Arrival::at(Outcome::Local { address: app.address.to_string() }).after(Vec::new())
}

/// As the kernel may write it in two ways.
pub(super) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// The address in a URL, if its host is one.
pub(super) fn address_in(uri: &http::Uri) -> Option<SocketAddr> {
    let ip: IpAddr = uri.host()?.trim_matches(['[', ']']).parse().ok()?;
    let usual = if uri.scheme() == Some(&Scheme::HTTPS) { 443 } else { 80 };
    Some(canonical(SocketAddr::new(ip, uri.port_u16().unwrap_or(usual))))
}
