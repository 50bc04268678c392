//! One service's numbers.

use super::{
    Words,
    alive::Alive,
    counts::{Codes, Counter, Gauge, Latency, Tally},
    family::{Family, Page},
    mirror::MirrorMetrics,
    subset::SubsetMetrics,
    tcp::TcpMetrics,
    udp::UdpMetrics,
};
use std::sync::Arc;

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

impl ServiceMetrics {
    pub(super) fn new(service: &str, listener: Option<&str>, words: &Words) -> Self {
        Self {
            service: service.into(),
            listener: listener.map(Into::into),
            requests: Codes::default(),
            duration: Latency::default(),
            in_flight: Gauge::default(),
            waiting: Gauge::default(),
            requests_limit: Gauge::default(),
            request_bytes: Counter::default(),
            response_bytes: Counter::default(),
            errors: Tally::new(words.errors),
            retries: Tally::new(words.retries),
            retries_denied: Counter::default(),
            retries_active: Arc::default(),
            hedges: Counter::default(),
            hedges_won: Counter::default(),
            fallbacks: Tally::new(words.fallbacks),
            faults: Tally::new(words.faults),
            pool: PoolMetrics {
                idle: Gauge::default(),
                active: Gauge::default(),
                opened: Counter::default(),
                closed: Tally::new(words.pool_closed),
                connect_failures: Counter::default(),
            },
            tcp: TcpMetrics::new(words.errors),
            udp: UdpMetrics::new(words.errors, words.dropped),
            endpoints: Tally::new(words.endpoints),
            ejections: Tally::new(words.ejections),
            health_checks: Tally::new(words.health_checks),
            panicking: Gauge::default(),
            held: Gauge::default(),
            from_snapshot: Gauge::default(),
            zone_left: Counter::default(),
            table_swaps: Counter::default(),
            subsets: Alive::default(),
            mirrors: Alive::default(),
            mirror_skipped: words.mirror_skipped,
        }
    }

    /// Whether these are the numbers of `service`, or of the local application of this name behind `listener`.
    pub(super) fn is_of(&self, service: &str, listener: Option<&str>) -> bool {
        *self.service == *service && self.listener.as_deref() == listener
    }

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

    pub(super) fn collect(&self, page: &mut Page) {
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
