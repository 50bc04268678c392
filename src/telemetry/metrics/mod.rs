//! Metrics, and how they are shown.
//!
//! Whoever counts holds a handle ([`ServiceMetrics`], [`ListenerMetrics`], [`SourceMetrics`]) in which each number is an
//! atomic; a scrape walks the handles that are alive. So the request path looks nothing up, and a service's series are
//! gone as soon as nobody holds its handle: there is no step that could be forgotten.

mod counts;
mod family;
mod inbound;
mod mirror;
mod openmetrics;
mod process;
mod red;
mod registration;
mod rollout;
mod routes;
mod store;
mod subset;
mod tcp;
#[cfg(test)]
mod tests;
mod traffic;
mod udp;

pub use counts::{Codes, Counter, Gauge, LATENCY_BOUNDS, LATENCY_BUCKETS, LATENCY_PARTS, Latency, Ratio, Tally};
pub use inbound::{CallerMetrics, InboundMetrics, OTHER, UNKNOWN};
pub use mirror::{Compared, MirrorMetrics};
pub use red::Red;
pub use registration::RegistrationMetrics;
pub use rollout::RolloutMetrics;
pub use routes::RoutesMetrics;
pub use store::StoreMetrics;
pub use subset::SubsetMetrics;
pub use tcp::TcpMetrics;
pub use traffic::Traffic;
pub use udp::UdpMetrics;

use arc_swap::ArcSwap;
use family::{Family, Page};
use std::{
    fmt,
    sync::{Arc, Weak},
    time::Duration,
};

/// The words that label values are taken from, each list in the order of the caller's enum. See [`Tally`].
#[derive(Debug, Clone, Copy)]
pub struct Words {
    /// `reason` of `pillion_errors_total`.
    pub errors: &'static [&'static str],
    /// `reason` of `pillion_retries_total`.
    pub retries: &'static [&'static str],
    /// `reason` of `pillion_pool_closed_total`.
    pub pool_closed: &'static [&'static str],
    /// `reason` of `pillion_connections_refused_total`.
    pub refused: &'static [&'static str],
    /// `reason` of `pillion_udp_dropped_total`.
    pub dropped: &'static [&'static str],
    /// `state` of `pillion_endpoints`.
    pub endpoints: &'static [&'static str],
    /// `result` of `pillion_health_checks_total`.
    pub health_checks: &'static [&'static str],
    /// `cause` of `pillion_ejections_total`.
    pub ejections: &'static [&'static str],
    /// `kind` of `pillion_fallbacks_total`.
    pub fallbacks: &'static [&'static str],
    /// `kind` of `pillion_faults_total`.
    pub faults: &'static [&'static str],
    /// `reason` of `pillion_mirror_skipped_total`.
    pub mirror_skipped: &'static [&'static str],
    /// `state` of `pillion_registration_state`.
    pub registrations: &'static [&'static str],
    /// `result` of `pillion_routes_updates_total`.
    pub route_updates: &'static [&'static str],
    /// `phase` of `pillion_rollout_phase`.
    pub rollout_phases: &'static [&'static str],
    /// `verdict` of `pillion_rollout_decisions_total`.
    pub rollout_decisions: &'static [&'static str],
}

/// All metrics of one pillion. There are no globals, so that several can live in one process (tests do).
#[derive(Debug)]
pub struct Metrics {
    words: Words,
    services: Alive<ServiceMetrics>,
    sources: Alive<SourceMetrics>,
    listeners: Alive<ListenerMetrics>,
    registrations: Alive<RegistrationMetrics>,
    routes: Alive<RoutesMetrics>,
    stores: Alive<StoreMetrics>,
    rollouts: Alive<RolloutMetrics>,
    inbound: Alive<InboundMetrics>,
    threads: Alive<ThreadMetrics>,
    pub reloads: ReloadMetrics,
    /// The number of the step of the end; 0 before it.
    pub draining: Gauge,
    /// What the store on disk does. It holds it, too.
    pub snapshots: Arc<SnapshotMetrics>,
    /// Lines of the access log that were lost. The access log holds it, too.
    pub access_log_dropped: Arc<Counter>,
}

/// Reloads of the config.
#[derive(Debug, Default)]
pub struct ReloadMetrics {
    pub ok: Counter,
    pub failed: Counter,
}

/// Snapshots of services on disk.
#[derive(Debug, Default)]
pub struct SnapshotMetrics {
    pub writes: Counter,
    /// Those that could not be written or removed, and were tried again.
    pub write_failures: Counter,
    /// Those that are there and could not be read.
    pub read_failures: Counter,
    /// Those that were put aside.
    pub corrupt: Counter,
}

/// One service's numbers, or those of the local application.
#[derive(Debug)]
pub struct ServiceMetrics {
    service: Box<str>,
    /// Of the local application: the listener in front of it. Under the same name others of its kind may be called.
    listener: Option<Box<str>>,
    pub requests: Codes,
    pub duration: Latency,
    /// Requests that have a place. Counted by `cluster::limit`, as the two below.
    pub in_flight: Gauge,
    /// Requests that wait for one.
    pub waiting: Gauge,
    /// How many may have one.
    pub requests_limit: Gauge,
    pub request_bytes: Counter,
    pub response_bytes: Counter,
    pub errors: Tally,
    pub retries: Tally,
    /// Those that the budget did not allow.
    pub retries_denied: Counter,
    /// Those that it did, until they have ended. The budget holds it, too.
    pub retries_active: Arc<Gauge>,
    /// Requests that went to a second endpoint as well.
    pub hedges: Counter,
    /// Those of them that the second one answered.
    pub hedges_won: Counter,
    pub fallbacks: Tally,
    /// Those put in on purpose.
    pub faults: Tally,
    pub pool: PoolMetrics,
    pub tcp: TcpMetrics,
    pub udp: UdpMetrics,
    /// Endpoints by state: [`Tally::set`].
    pub endpoints: Tally,
    pub ejections: Tally,
    pub health_checks: Tally,
    /// 1 while so few endpoints are available that all are used.
    pub panicking: Gauge,
    /// Endpoints that are in use though far too many are gone from the registry.
    pub held: Gauge,
    /// 1: what is in use was read from the disk.
    pub from_snapshot: Gauge,
    /// Tries sent to another zone.
    pub zone_left: Counter,
    pub table_swaps: Counter,
    subsets: Alive<SubsetMetrics>,
    mirrors: Alive<MirrorMetrics>,
    mirror_skipped: &'static [&'static str],
}

/// Connections to one service's upstreams.
#[derive(Debug)]
pub struct PoolMetrics {
    pub idle: Gauge,
    pub active: Gauge,
    pub opened: Counter,
    pub closed: Tally,
    pub connect_failures: Counter,
}

/// What one source of discovery did for one service.
pub struct SourceMetrics {
    service: Box<str>,
    source: Box<str>,
    age: Box<dyn Fn() -> Option<Duration> + Send + Sync>,
    pub failures: Counter,
    pub changes: Counter,
    /// 1: what is in force comes from it.
    pub in_use: Gauge,
    /// 1: it has answered, and does not fail now.
    pub up: Gauge,
}

/// One listener's connections.
#[derive(Debug)]
pub struct ListenerMetrics {
    listener: Box<str>,
    pub connections: Gauge,
    pub accepted: Counter,
    pub refused: Tally,
    /// Requests that were answered before it was known which service they are for.
    pub rejected: Tally,
}

/// One thread's runtime.
pub struct ThreadMetrics {
    thread: Box<str>,
    tasks: Box<dyn Fn() -> usize + Send + Sync>,
}

impl Metrics {
    pub fn new(words: Words) -> Self {
        Self {
            words,
            services: Alive::default(),
            sources: Alive::default(),
            listeners: Alive::default(),
            registrations: Alive::default(),
            routes: Alive::default(),
            stores: Alive::default(),
            rollouts: Alive::default(),
            inbound: Alive::default(),
            threads: Alive::default(),
            reloads: ReloadMetrics::default(),
            draining: Gauge::default(),
            snapshots: Arc::default(),
            access_log_dropped: Arc::default(),
        }
    }

    /// The service's handle: the one that others hold already, or a new one from zero.
    pub fn service(&self, service: &str) -> Arc<ServiceMetrics> {
        self.service_or_app(service, None)
    }

    /// The same for the local application behind `listener`, which is called `service`.
    pub fn app(&self, service: &str, listener: &str) -> Arc<ServiceMetrics> {
        self.service_or_app(service, Some(listener))
    }

    fn service_or_app(&self, service: &str, listener: Option<&str>) -> Arc<ServiceMetrics> {
        self.services.find_or_add(
            |there| *there.service == *service && there.listener.as_deref() == listener,
            || ServiceMetrics {
                service: service.into(),
                listener: listener.map(Into::into),
                requests: Codes::default(),
                duration: Latency::default(),
                in_flight: Gauge::default(),
                waiting: Gauge::default(),
                requests_limit: Gauge::default(),
                request_bytes: Counter::default(),
                response_bytes: Counter::default(),
                errors: Tally::new(self.words.errors),
                retries: Tally::new(self.words.retries),
                retries_denied: Counter::default(),
                retries_active: Arc::default(),
                hedges: Counter::default(),
                hedges_won: Counter::default(),
                fallbacks: Tally::new(self.words.fallbacks),
                faults: Tally::new(self.words.faults),
                pool: PoolMetrics {
                    idle: Gauge::default(),
                    active: Gauge::default(),
                    opened: Counter::default(),
                    closed: Tally::new(self.words.pool_closed),
                    connect_failures: Counter::default(),
                },
                tcp: TcpMetrics::new(self.words.errors),
                udp: UdpMetrics::new(self.words.errors, self.words.dropped),
                endpoints: Tally::new(self.words.endpoints),
                ejections: Tally::new(self.words.ejections),
                health_checks: Tally::new(self.words.health_checks),
                panicking: Gauge::default(),
                held: Gauge::default(),
                from_snapshot: Gauge::default(),
                zone_left: Counter::default(),
                table_swaps: Counter::default(),
                subsets: Alive::default(),
                mirrors: Alive::default(),
                mirror_skipped: self.words.mirror_skipped,
            },
        )
    }

    /// A new handle for what `source` does for `service`; it takes the place of an older one. `age` is asked at each
    /// scrape how long ago the source confirmed its set, and gives `None` as long as it never did.
    pub fn source(
        &self,
        service: &str,
        source: &str,
        age: impl Fn() -> Option<Duration> + Send + Sync + 'static,
    ) -> Arc<SourceMetrics> {
        let handle = Arc::new(SourceMetrics {
            service: service.into(),
            source: source.into(),
            age: Box::new(age),
            failures: Counter::default(),
            changes: Counter::default(),
            in_use: Gauge::default(),
            up: Gauge::default(),
        });
        self.sources.replace(|there| *there.service == *service && *there.source == *source, &handle);
        handle
    }

    /// The listener's handle: the one that others hold already, or a new one from zero.
    pub fn listener(&self, listener: &str) -> Arc<ListenerMetrics> {
        self.listeners.find_or_add(
            |there| *there.listener == *listener,
            || ListenerMetrics {
                listener: listener.into(),
                connections: Gauge::default(),
                accepted: Counter::default(),
                refused: Tally::new(self.words.refused),
                rejected: Tally::new(self.words.errors),
            },
        )
    }

    /// A new handle for who calls the local application behind `listener`; it takes the place of an older one. `healthy`
    /// is asked at each scrape whether the application passes its checks, and gives `None` where there are none.
    pub fn inbound(
        &self,
        listener: &str,
        healthy: impl Fn() -> Option<bool> + Send + Sync + 'static,
    ) -> Arc<InboundMetrics> {
        let handle = Arc::new(InboundMetrics::new(listener, healthy));
        self.inbound.replace(|there| there.listener() == listener, &handle);
        handle
    }

    /// A new handle for a thread with a runtime of its own; `tasks` is asked at each scrape how many it has.
    pub fn thread(&self, thread: &str, tasks: impl Fn() -> usize + Send + Sync + 'static) -> Arc<ThreadMetrics> {
        let handle = Arc::new(ThreadMetrics { thread: thread.into(), tasks: Box::new(tasks) });
        self.threads.replace(|there| *there.thread == *thread, &handle);
        handle
    }

    /// The content type and the body for a scrape with this `Accept` header.
    pub fn render(&self, accept: Option<&str>) -> (&'static str, String) {
        let families = self.gather();
        if accept.is_some_and(openmetrics::is_preferred)
            && let Ok(body) = openmetrics::encode(&families)
        {
            return (openmetrics::CONTENT_TYPE, body);
        }
        let body = prometheus::TextEncoder::new().encode_to_string(&families).unwrap_or_else(|error| {
            // It refuses only families without a name or metrics, and `Page::finish` leaves none of those.
            tracing::error!(%error, "the metrics could not be written");
            String::new()
        });
        (prometheus::TEXT_FORMAT, body)
    }

    fn gather(&self) -> Vec<prometheus::proto::MetricFamily> {
        let mut page = Page::new();
        page.add(Family::BuildInfo, &[("version", env!("CARGO_PKG_VERSION"))], 1.0);
        page.add(Family::ConfigReloads, &[("result", "ok")], self.reloads.ok.get() as f64);
        page.add(Family::ConfigReloads, &[("result", "failed")], self.reloads.failed.get() as f64);
        page.add(Family::Draining, &[], self.draining.get() as f64);
        page.add(Family::AccessLogDropped, &[], self.access_log_dropped.get() as f64);
        self.snapshots.collect(&mut page);
        self.services.each(|service| service.collect(&mut page));
        self.sources.each(|source| source.collect(&mut page));
        self.listeners.each(|listener| listener.collect(&mut page));
        self.registrations.each(|registration| registration.collect(&mut page));
        self.routes.each(|routes| routes.collect(&mut page));
        self.stores.each(|store| store.collect(&mut page));
        self.rollouts.each(|rollout| rollout.collect(&mut page));
        self.inbound.each(|inbound| inbound.collect(&mut page));
        self.threads.each(|thread| page.add(Family::Tasks, &[("thread", &thread.thread)], (thread.tasks)() as f64));
        process::collect(&mut page);
        page.finish()
    }
}

impl SnapshotMetrics {
    fn collect(&self, page: &mut Page) {
        page.add(Family::SnapshotWrites, &[], self.writes.get() as f64);
        for (kind, counter) in
            [("write", &self.write_failures), ("read", &self.read_failures), ("corrupt", &self.corrupt)]
        {
            page.add(Family::SnapshotErrors, &[("kind", kind)], counter.get() as f64);
        }
    }
}

impl ServiceMetrics {
    pub fn service(&self) -> &str {
        &self.service
    }

    /// The handle of one of its subsets: the one that others hold already, or a new one from zero.
    pub fn subset(&self, name: &str) -> Arc<SubsetMetrics> {
        self.subsets.find_or_add(|there| *there.subset == *name, || SubsetMetrics::new(name))
    }

    /// The same for the copies that one of its routes sends `to` somewhere.
    pub fn mirror(&self, route: &str, to: &str) -> Arc<MirrorMetrics> {
        let is_it = |there: &MirrorMetrics| *there.route == *route && *there.to == *to;
        self.mirrors.find_or_add(is_it, || MirrorMetrics::new(route, to, self.mirror_skipped))
    }

    fn collect(&self, page: &mut Page) {
        let own = [("service", &*self.service), ("listener", self.listener.as_deref().unwrap_or_default())];
        let own = if self.listener.is_some() { &own[..] } else { &own[..1] };
        for (code, count) in self.requests.each() {
            page.add(Family::Requests, &[own, &[("code", &code)]].concat(), count as f64);
        }
        page.add_histogram(Family::Duration, own, self.duration.read());
        for (family, gauge) in [
            (Family::InFlight, &self.in_flight),
            (Family::Waiting, &self.waiting),
            (Family::RequestsLimit, &self.requests_limit),
            (Family::RetriesActive, &*self.retries_active),
            (Family::Panic, &self.panicking),
            (Family::DiscoveryHeld, &self.held),
            (Family::DiscoverySnapshot, &self.from_snapshot),
        ] {
            page.add(family, own, gauge.get() as f64);
        }
        for (family, counter) in [
            (Family::RequestBytes, &self.request_bytes),
            (Family::ResponseBytes, &self.response_bytes),
            (Family::RetriesDenied, &self.retries_denied),
            (Family::Hedges, &self.hedges),
            (Family::HedgesWon, &self.hedges_won),
            (Family::PoolOpened, &self.pool.opened),
            (Family::PoolConnectFailures, &self.pool.connect_failures),
            (Family::ZoneLeft, &self.zone_left),
            (Family::TableSwaps, &self.table_swaps),
        ] {
            page.add(family, own, counter.get() as f64);
        }
        for (family, label, tally) in [
            (Family::Errors, "reason", &self.errors),
            (Family::Retries, "reason", &self.retries),
            (Family::Fallbacks, "kind", &self.fallbacks),
            (Family::Faults, "kind", &self.faults),
            (Family::PoolClosed, "reason", &self.pool.closed),
            (Family::Endpoints, "state", &self.endpoints),
            (Family::Ejections, "cause", &self.ejections),
            (Family::HealthChecks, "result", &self.health_checks),
        ] {
            // Those at 0, too: a rate over a series that starts at 1 would miss the first event.
            for (word, count) in tally.each() {
                page.add(family, &[own, &[(label, word)]].concat(), count as f64);
            }
        }
        for (state, gauge) in [("idle", &self.pool.idle), ("active", &self.pool.active)] {
            page.add(Family::PoolConnections, &[own, &[("state", state)]].concat(), gauge.get() as f64);
        }
        self.tcp.collect(own, page);
        self.udp.collect(own, page);
        self.subsets.each(|subset| subset.collect(&self.service, page));
        self.mirrors.each(|mirror| mirror.collect(&self.service, page));
    }
}

impl SourceMetrics {
    pub fn source(&self) -> &str {
        &self.source
    }

    fn collect(&self, page: &mut Page) {
        let labels = [("service", &*self.service), ("source", &*self.source)];
        if let Some(age) = (self.age)() {
            page.add(Family::DiscoveryAge, &labels, age.as_secs_f64());
        }
        page.add(Family::DiscoveryFailures, &labels, self.failures.get() as f64);
        page.add(Family::DiscoveryChanges, &labels, self.changes.get() as f64);
        page.add(Family::DiscoveryInUse, &labels, self.in_use.get() as f64);
        page.add(Family::DiscoveryUp, &labels, self.up.get() as f64);
    }
}

impl fmt::Debug for SourceMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SourceMetrics")
            .field("service", &self.service)
            .field("source", &self.source)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for ThreadMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ThreadMetrics").field("thread", &self.thread).finish_non_exhaustive()
    }
}

impl ListenerMetrics {
    fn collect(&self, page: &mut Page) {
        let listener = ("listener", &*self.listener);
        page.add(Family::Connections, &[listener], self.connections.get() as f64);
        page.add(Family::ConnectionsOpened, &[listener], self.accepted.get() as f64);
        for (reason, count) in self.refused.each() {
            page.add(Family::ConnectionsRefused, &[listener, ("reason", reason)], count as f64);
        }
        for (reason, count) in self.rejected.each() {
            page.add(Family::RequestsRejected, &[listener, ("reason", reason)], count as f64);
        }
    }
}

/// The handles that somebody still holds.
#[derive(Debug)]
struct Alive<T>(ArcSwap<Vec<Weak<T>>>);

impl<T> Default for Alive<T> {
    fn default() -> Self {
        Self(ArcSwap::default())
    }
}

impl<T> Alive<T> {
    fn each(&self, visit: impl FnMut(Arc<T>)) {
        self.0.load().iter().filter_map(Weak::upgrade).for_each(visit);
    }

    fn find_or_add(&self, is_it: impl Fn(&T) -> bool, make: impl FnOnce() -> T) -> Arc<T> {
        let find = |list: &[Weak<T>]| list.iter().filter_map(Weak::upgrade).find(|there| is_it(there));
        if let Some(there) = find(&self.0.load()) {
            return there;
        }
        let mut handle = Arc::new(make());
        let made = handle.clone();
        // Two threads may ask for the same at one moment; the one that comes second takes what the first has put in.
        self.0.rcu(|list| match find(list) {
            Some(there) => {
                handle = there;
                Vec::clone(list)
            }
            None => {
                handle = made.clone();
                Self::with(list, &made, |_| false)
            }
        });
        handle
    }

    fn replace(&self, is_it: impl Fn(&T) -> bool, handle: &Arc<T>) {
        self.0.rcu(|list| Self::with(list, handle, &is_it));
    }

    /// The list with `handle` in it, without those that nobody holds or that are `unwanted`.
    fn with(list: &[Weak<T>], handle: &Arc<T>, unwanted: impl Fn(&T) -> bool) -> Vec<Weak<T>> {
        let keep = list.iter().filter(|there| there.upgrade().is_some_and(|there| !unwanted(&there)));
        keep.cloned().chain([Arc::downgrade(handle)]).collect()
    }
}
