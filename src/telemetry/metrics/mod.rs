//! Metrics, and how they are shown.
//!
//! Whoever counts holds a handle ([`ServiceMetrics`], [`ListenerMetrics`], [`SourceMetrics`]) in which each number is an
//! atomic; a scrape walks the handles that are alive. So the request path looks nothing up, and a service's series are
//! gone as soon as nobody holds its handle: there is no step that could be forgotten.

mod alive;
mod counts;
mod dns;
mod family;
mod inbound;
mod lives;
mod mirror;
mod openmetrics;
mod process;
mod red;
#[cfg(test)]
mod reference;
mod registration;
mod rollout;
mod routes;
mod service;
mod store;
mod subset;
mod tcp;
#[cfg(test)]
mod tests;
mod traffic;
mod udp;

pub use counts::{Codes, Counter, Gauge, LATENCY_BOUNDS, LATENCY_BUCKETS, LATENCY_PARTS, Latency, Ratio, Tally};
pub use dns::DnsMetrics;
pub use inbound::{CallerMetrics, InboundMetrics, OTHER, UNKNOWN};
pub use lives::Lives;
pub use mirror::{Compared, MirrorMetrics};
pub use red::Red;
pub use registration::RegistrationMetrics;
pub use rollout::RolloutMetrics;
pub use routes::RoutesMetrics;
pub use service::{PoolMetrics, ServiceMetrics};
pub use store::StoreMetrics;
pub use subset::SubsetMetrics;
pub use tcp::TcpMetrics;
pub use traffic::Traffic;
pub use udp::UdpMetrics;

use alive::Alive;
use family::{Family, Page};
use std::{fmt, sync::Arc, time::Duration};

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
    /// `outcome` of `pillion_dns_queries_total`.
    pub dns: &'static [&'static str],
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
    dns: Alive<DnsMetrics>,
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
            dns: Alive::default(),
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
        self.services
            .find_or_add(|there| there.is_of(service, listener), || ServiceMetrics::new(service, listener, &self.words))
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
        self.dns.each(|dns| dns.collect(&mut page));
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
