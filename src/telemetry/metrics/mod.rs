//! Metrics, and how they are shown.
//!
//! Whoever counts holds a handle ([`ServiceMetrics`], [`ListenerMetrics`], [`SourceMetrics`]) in which each number is an
//! atomic; a scrape walks the handles that are alive. So the request path looks nothing up, and a service's series are
//! gone as soon as nobody holds its handle: there is no step that could be forgotten.

mod counts;
mod family;
mod openmetrics;
mod process;
#[cfg(test)]
mod tests;

pub use counts::{Codes, Counter, Gauge, Latency, Tally};

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
}

/// All metrics of one pillion. There are no globals, so that several can live in one process (tests do).
#[derive(Debug)]
pub struct Metrics {
    words: Words,
    services: Alive<ServiceMetrics>,
    sources: Alive<SourceMetrics>,
    listeners: Alive<ListenerMetrics>,
    threads: Alive<ThreadMetrics>,
    pub reloads: ReloadMetrics,
    /// Lines of the access log that were lost. The access log holds it, too.
    pub access_log_dropped: Arc<Counter>,
}

/// Reloads of the config.
#[derive(Debug, Default)]
pub struct ReloadMetrics {
    pub ok: Counter,
    pub failed: Counter,
}

/// One service's numbers.
#[derive(Debug)]
pub struct ServiceMetrics {
    service: Box<str>,
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
    /// Endpoints by state: [`Tally::set`].
    pub endpoints: Tally,
    pub ejections: Tally,
    pub health_checks: Tally,
    /// 1 while so few endpoints are available that all are used.
    pub panicking: Gauge,
    /// Tries sent to another zone.
    pub zone_left: Counter,
    pub table_swaps: Counter,
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
            threads: Alive::default(),
            reloads: ReloadMetrics::default(),
            access_log_dropped: Arc::default(),
        }
    }

    /// The service's handle: the one that others hold already, or a new one from zero.
    pub fn service(&self, service: &str) -> Arc<ServiceMetrics> {
        self.services.find_or_add(
            |there| *there.service == *service,
            || ServiceMetrics {
                service: service.into(),
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
                endpoints: Tally::new(self.words.endpoints),
                ejections: Tally::new(self.words.ejections),
                health_checks: Tally::new(self.words.health_checks),
                panicking: Gauge::default(),
                zone_left: Counter::default(),
                table_swaps: Counter::default(),
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
        page.add(Family::AccessLogDropped, &[], self.access_log_dropped.get() as f64);
        self.services.each(|service| service.collect(&mut page));
        self.sources.each(|source| source.collect(&mut page));
        self.listeners.each(|listener| listener.collect(&mut page));
        self.threads.each(|thread| page.add(Family::Tasks, &[("thread", &thread.thread)], (thread.tasks)() as f64));
        process::collect(&mut page);
        page.finish()
    }
}

impl ServiceMetrics {
    pub fn service(&self) -> &str {
        &self.service
    }

    fn collect(&self, page: &mut Page) {
        let service = ("service", &*self.service);
        for (code, count) in self.requests.each() {
            page.add(Family::Requests, &[service, ("code", &code)], count as f64);
        }
        page.add_histogram(Family::Duration, &[service], self.duration.read());
        for (family, gauge) in [
            (Family::InFlight, &self.in_flight),
            (Family::Waiting, &self.waiting),
            (Family::RequestsLimit, &self.requests_limit),
            (Family::RetriesActive, &*self.retries_active),
            (Family::Panic, &self.panicking),
        ] {
            page.add(family, &[service], gauge.get() as f64);
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
            page.add(family, &[service], counter.get() as f64);
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
                page.add(family, &[service, (label, word)], count as f64);
            }
        }
        for (state, gauge) in [("idle", &self.pool.idle), ("active", &self.pool.active)] {
            page.add(Family::PoolConnections, &[service, ("state", state)], gauge.get() as f64);
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
