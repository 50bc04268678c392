//! All services that are followed, by name, and for each the set of endpoints that is in force.
//!
//! Readers take what is published without a lock; the one writer is `discovery`, on the control thread.

use super::{
    addresses::{Addresses, Changes, Owner},
    budget::Budget,
    check,
    endpoint::{Endpoint, InFlight, Live},
    health::{Outcome, Standing},
    latencies::Latencies,
    limit::{Gate, Limits},
    snapshot::Snapshot,
    subset::Subset,
    virtuals::Virtuals,
};
use crate::{
    config::Service,
    registry::{Address, Instance, Protocol},
    route,
    telemetry::{labels::EndpointState, metrics::ServiceMetrics},
};
use arc_swap::{ArcSwap, Guard};
use rustls::ClientConfig;
use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, OnceLock,
        atomic::{
            AtomicBool,
            Ordering::{AcqRel, Relaxed},
        },
    },
    time::Duration,
};
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

type Map = HashMap<Arc<str>, Arc<Cluster>, foldhash::fast::FixedState>;

/// Whether a name means something else than in lower case.
pub fn has_capitals(name: &str) -> bool {
    name.bytes().any(|byte| byte.is_ascii_uppercase())
}

/// Every followed service.
#[derive(Debug, Default)]
pub struct Table {
    clusters: ArcSwap<Map>,
    addresses: Addresses,
    virtuals: Virtuals,
}

impl Table {
    pub fn get(&self, service: &str) -> Option<Arc<Cluster>> {
        self.clusters.load().get(service).cloned()
    }

    /// The service that a host names, as far as that is settled: hosts are the same in any case, and services' names are not.
    /// It is the one that is written just so, and the one in lower case where it is known that there is none written so.
    pub fn of_host(&self, host: &str) -> Option<Arc<Cluster>> {
        let written_so = self.get(host)?;
        if !has_capitals(host) {
            return Some(written_so);
        }
        let state = written_so.load().state;
        match state {
            State::Known => Some(written_so),
            State::Unknown => {
                self.get(&host.to_ascii_lowercase()).filter(|cluster| cluster.load().state == State::Known)
            }
            State::Pending => None,
        }
    }

    /// The followed service that a host may name, of one that no registry is to be asked about.
    pub fn followed_as(&self, host: &str) -> Option<Arc<Cluster>> {
        let written_so = self.get(host);
        let is_settled = || written_so.as_ref().is_some_and(|cluster| cluster.load().state == State::Known);
        if !has_capitals(host) || is_settled() {
            return written_so;
        }
        let lower = self.get(&host.to_ascii_lowercase());
        lower.filter(|cluster| cluster.load().state != State::Unknown).or(written_so)
    }

    pub fn all(&self) -> Vec<Arc<Cluster>> {
        let mut all: Vec<_> = self.clusters.load().values().cloned().collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    pub fn len(&self) -> usize {
        self.clusters.load().len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The service that this address belongs to: of all that are followed, or that were when DNS answers gave it to them.
    pub fn owner(&self, address: SocketAddr) -> Option<Owner> {
        let names = || self.all().into_iter().map(|cluster| cluster.name.clone());
        let given = || {
            let ip = address.ip();
            let service = self.virtuals.owner(ip).or_else(|| self.virtuals.owner_among(ip, names()))?;
            Some(Owner::virtual_of(service))
        };
        let owner = self.addresses.owner(address, || self.all());
        if owner.is_none() && self.virtuals.is_virtual(address.ip()) { given() } else { owner }
    }

    /// The addresses that DNS answers give.
    pub fn virtuals(&self) -> &Virtuals {
        &self.virtuals
    }

    pub fn insert(&self, cluster: Arc<Cluster>) {
        // It may have been listed before.
        let _ = cluster.changes.set(self.addresses.changes().clone());
        self.clusters.rcu(|old| {
            let mut new = Map::clone(old);
            new.insert(cluster.name.clone(), cluster.clone());
            new
        });
        self.addresses.changed();
    }

    pub fn remove(&self, service: &str) {
        self.clusters.rcu(|old| {
            let mut new = Map::clone(old);
            new.remove(service);
            new
        });
        self.addresses.changed();
    }
}

/// One service: its settings and endpoints, replaced as a whole whenever either changes.
#[derive(Debug)]
pub struct Cluster {
    pub name: Arc<str>,
    pub metrics: Arc<ServiceMetrics>,
    snapshot: ArcSwap<Snapshot>,
    /// Since when it is followed, and its first answer has been waited for.
    pub since: Instant,
    pub retries: Arc<Budget>,
    pub limits: Arc<Limits>,
    /// Wakes requests that wait for the first answer, and whoever checks endpoints.
    published: watch::Sender<u64>,
    /// Set by each request, taken by discovery now and then, to know which services are idle.
    used: AtomicBool,
    /// Set by requests that saw something that may have to change who is available, taken by discovery at once.
    reviewing: AtomicBool,
    bell: Arc<Notify>,
    /// Only where requests are hedged by a percentile.
    latencies: OnceLock<Box<Latencies>>,
    /// Only once it is in a table: those that concern its addresses.
    changes: OnceLock<Changes>,
}

/// How requests for a service are carried, worked out once per change of the config.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    pub service: Service,
    /// TLS towards upstreams that ask for it in the registry, or all of them with `service.tls`.
    pub tls: Option<Arc<UpstreamTls>>,
    /// The zone that this pillion is in.
    pub zone: Option<String>,
    /// Where neither config nor registry says what the upstreams speak: what the request came by.
    pub same_protocol: bool,
    /// Whether connections come from the address of the client whom they are for, rather than pillion's own.
    pub keeps_source: bool,
    /// Its routes, where it has routes or subsets.
    pub routes: Option<Arc<route::Table>>,
    /// The limits of each route, by its number; empty where none has any.
    pub gates: Box<[Option<Arc<Gate>>]>,
}

impl Settings {
    /// As whom pillion connects for this client; `None`: as itself.
    pub fn source_for(&self, client: IpAddr) -> Option<IpAddr> {
        self.keeps_source.then(|| client.to_canonical())
    }
}

/// TLS settings towards one service's upstreams, per protocol that is offered.
#[derive(Debug)]
pub struct UpstreamTls {
    pub http1: Arc<ClientConfig>,
    pub http2: Arc<ClientConfig>,
    pub either: Arc<ClientConfig>,
    /// Offers none.
    pub bare: Arc<ClientConfig>,
    /// The name that certificates must have; the address's own host by default.
    pub server_name: Option<String>,
}

/// What the sources have said about the service's existence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// No source has answered yet.
    Pending,
    /// Every source that answered knows nothing of it, and the config does not name it.
    Unknown,
    /// It exists, even if it has no endpoint now.
    Known,
}

impl Cluster {
    /// `bell` calls whoever is to [`take_review`](Self::take_review).
    pub fn new(name: &str, settings: Arc<Settings>, metrics: Arc<ServiceMetrics>, bell: Arc<Notify>) -> Self {
        let limits = Arc::new(Limits::new(metrics.clone(), &settings.service.limits));
        let snapshot = Snapshot::new(settings, Box::new([]), State::Pending, &metrics);
        Self {
            name: name.into(),
            retries: Arc::new(Budget::counting_in(metrics.retries_active.clone())),
            metrics,
            snapshot: ArcSwap::from_pointee(snapshot),
            limits,
            since: Instant::now(),
            published: watch::Sender::new(0),
            used: AtomicBool::new(true),
            reviewing: AtomicBool::new(false),
            bell,
            latencies: OnceLock::new(),
            changes: OnceLock::new(),
        }
    }

    /// What is in force now.
    pub fn load(&self) -> Guard<Arc<Snapshot>> {
        self.snapshot.load()
    }

    /// Hears of each change of what is in force, and of endpoints that are gone though they stay in use.
    pub fn published(&self) -> watch::Receiver<u64> {
        self.published.subscribe()
    }

    /// Waits until a source has answered, or has had `timeout` for it since the service is followed: while the registries
    /// are down, only the first requests wait.
    pub async fn first_answer(&self, timeout: Duration) -> Guard<Arc<Snapshot>> {
        let mut published = self.published.subscribe();
        let answered = async {
            while self.load().state == State::Pending {
                // The sender lives in `self`, so this cannot fail.
                let _ = published.changed().await;
            }
        };
        let _ = tokio::time::timeout_at(self.since + timeout, answered).await;
        self.load()
    }

    /// Puts new instances in force. Endpoints that did not change stay the same; those whose weight or labels changed
    /// keep their numbers. Returns whether anything changed.
    pub fn publish(&self, settings: &Arc<Settings>, instances: &[Instance], state: State) -> bool {
        self.publish_doubting(&HashSet::new(), settings, instances, state)
    }

    /// The same. Those at these addresses are no longer listed, and have to pass a check before they are used, if there are
    /// others: most that had gone were meant to.
    pub fn publish_doubting(
        &self,
        doubted: &HashSet<Address>,
        settings: &Arc<Settings>,
        instances: &[Instance],
        state: State,
    ) -> bool {
        let old = self.snapshot.load_full();
        let same_settings = Arc::ptr_eq(&old.settings, settings);
        let same_instances = old.endpoints.iter().map(|e| &e.instance).eq(instances);
        if same_settings && same_instances && old.state == state {
            return false;
        }
        if old.settings.service.limits != settings.service.limits {
            self.limits.configure(&settings.service.limits);
        }
        // Connections made under other TLS or protocol settings must not be used any more.
        let same_peers = same_settings
            || (old.settings.service.tls == settings.service.tls
                && old.settings.service.protocol == settings.service.protocol);
        let endpoints = if same_peers { carry_over(&old.endpoints, instances) } else { carry_over(&[], instances) };
        let new = Arc::new(Snapshot::new(settings.clone(), endpoints, state, &self.metrics));
        mark_those_that_left(&old.endpoints, &new.endpoints);
        // Before a worker can see them.
        doubt(&new.endpoints, doubted, Instant::now());
        self.snapshot.store(new);
        if let Some(changes) = self.changes.get() {
            changes.fetch_add(1, AcqRel);
        }
        self.metrics.table_swaps.inc();
        self.recount();
        self.announce();
        true
    }

    /// Wakes those who wait for changes.
    pub fn announce(&self) {
        self.published.send_modify(|count| *count += 1);
    }

    /// Counts anew who is available.
    pub fn recount(&self) {
        let (snapshot, now) = (self.load(), Instant::now());
        let before = self.metrics.panicking.get() != 0;
        // Those that are gone and fail leave the table right after this; that is no panic.
        let leaving = snapshot.endpoints.iter().all(|endpoint| endpoint.live.is_gone());
        let panicking = snapshot.recount(now) && !leaving;
        match (before, panicking) {
            (false, true) => {
                tracing::warn!(service = %self.name, "panic: too few endpoints are available, so all are used");
            }
            (true, false) => tracing::info!(service = %self.name, "enough endpoints are available; the panic is over"),
            _ => {}
        }
        self.metrics.panicking.set(i64::from(panicking));
        if snapshot.state == State::Known {
            snapshot.subsets.iter().for_each(|subset| self.tell_if_empty(subset, &snapshot.subsets));
        }
        let mut counts = [0; EndpointState::COUNT];
        for endpoint in &snapshot.endpoints {
            let state = match endpoint.live.health.standing(now) {
                _ if !endpoint.is_usable() => EndpointState::Unavailable,
                Standing::Available => EndpointState::Available,
                Standing::Failing { .. } => EndpointState::Failing,
                Standing::Ejected { .. } | Standing::Probing { .. } => EndpointState::Ejected,
                Standing::Unhealthy => EndpointState::Unhealthy,
            };
            counts[state as usize] += 1;
        }
        counts.into_iter().enumerate().for_each(|(state, count)| self.metrics.endpoints.set(state, count));
    }

    fn tell_if_empty(&self, subset: &Subset, all: &[Subset]) {
        let now = i64::try_from(subset.available()).unwrap_or(i64::MAX);
        let (service, name, before) = (&self.name, &subset.name, subset.metrics.available.get());
        if now == 0 && before != 0 {
            let instead = subset.when_empty(all);
            tracing::warn!(%service, subset = %name, when_empty = instead, "a subset is empty: nobody in it can take requests");
        } else if now > 0 && before == 0 {
            tracing::info!(%service, subset = %name, endpoints = now, "a subset can take requests again");
        }
        subset.metrics.available.set(now);
        subset.metrics.probe_is_due.store(subset.is_probe_due(), Relaxed);
    }

    /// Takes note of what came of a request.
    pub fn tell(&self, request: &mut InFlight, outcome: Outcome) {
        let limit = match outcome {
            Outcome::Success | Outcome::Silence => 0,
            Outcome::Failure => self.load().settings.service.breaker.consecutive_failures,
        };
        if request.tell(outcome, limit) {
            self.ask_for_review();
        }
    }

    /// How long its responses took lately, as far as somebody observes it.
    pub fn latencies(&self) -> &Latencies {
        self.latencies.get_or_init(Box::default)
    }

    /// Asks the control thread to look at what requests found.
    fn ask_for_review(&self) {
        if !self.reviewing.swap(true, Relaxed) {
            self.bell.notify_one();
        }
    }

    /// Whether somebody asked for a look since the last call.
    pub fn take_review(&self) -> bool {
        self.reviewing.load(Relaxed) && self.reviewing.swap(false, Relaxed)
    }

    pub fn mark_used(&self) {
        // A plain store would make the cache line travel between workers for each request.
        if !self.used.load(Relaxed) {
            self.used.store(true, Relaxed);
        }
    }

    /// Whether a request came since the last call.
    pub fn take_used(&self) -> bool {
        self.used.swap(false, Relaxed)
    }
}

impl Settings {
    /// Whether an instance is to be spoken to by TLS. If it is and there are no settings for it, it must not be spoken to.
    pub fn wants_tls(&self, instance: &Instance) -> bool {
        self.service.tls.is_some() || instance.tls == Some(true)
    }
}

/// Tells those that `new` has no more, for connections that are still open to them.
fn mark_those_that_left(old: &[Arc<Endpoint>], new: &[Arc<Endpoint>]) {
    let staying: HashSet<u64, foldhash::fast::FixedState> = new.iter().map(|endpoint| endpoint.live.key).collect();
    old.iter().filter(|endpoint| !staying.contains(&endpoint.live.key)).for_each(|endpoint| endpoint.live.leave());
}

/// What makes two descriptions the same peer. Ids are not part of it: some frameworks make a new one at each start.
type Peer<'a> = (&'a Address, Option<Protocol>, Option<bool>);

fn peer(instance: &Instance) -> Peer<'_> {
    (&instance.address, instance.protocol, instance.tls)
}

/// Those at these addresses have to pass a check first, if there are others.
fn doubt(endpoints: &[Arc<Endpoint>], addresses: &HashSet<Address>, now: Instant) {
    if addresses.is_empty() {
        return;
    }
    let is_doubted = |endpoint: &&Arc<Endpoint>| addresses.contains(&endpoint.instance.address);
    let (doubted, others): (Vec<_>, Vec<_>) = endpoints.iter().partition(is_doubted);
    // Nobody lists them: that they cannot be used is no reason to panic, and so to use them all the same.
    doubted.iter().for_each(|endpoint| endpoint.live.set_gone(true));
    if others.iter().any(|endpoint| endpoint.is_usable() && endpoint.live.health.is_available()) {
        doubted.iter().for_each(|endpoint| check::doubt(&endpoint.live, now));
    }
}

fn carry_over(old: &[Arc<Endpoint>], instances: &[Instance]) -> Box<[Arc<Endpoint>]> {
    let now = Instant::now();
    let by_peer: HashMap<Peer<'_>, &Arc<Endpoint>, foldhash::fast::FixedState> =
        old.iter().map(|endpoint| (peer(&endpoint.instance), endpoint)).collect();
    // A new endpoint starts at the median: at 0 it would take all requests at once, at a high value none.
    let mut latencies: Vec<Duration> = old.iter().filter_map(|e| e.live.latency(now)).collect();
    latencies.sort_unstable();
    let median = latencies.get(latencies.len() / 2).copied();
    let mut fresh: HashMap<Peer<'_>, Arc<Live>, foldhash::fast::FixedState> = HashMap::default();
    instances
        .iter()
        .map(|instance| match by_peer.get(&peer(instance)) {
            Some(endpoint) if endpoint.instance == *instance => Arc::clone(endpoint),
            Some(endpoint) => Arc::new(Endpoint { instance: instance.clone(), live: endpoint.live.clone() }),
            None => {
                let live = fresh.entry(peer(instance)).or_insert_with(|| Arc::new(Live::new(median))).clone();
                Arc::new(Endpoint { instance: instance.clone(), live })
            }
        })
        .collect()
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
