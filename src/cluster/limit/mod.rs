//! How much one service is sent: requests at one time, connections, requests per second. Shared by all workers; nobody
//! waits for a lock who does not wait for a place.

mod adaptive;
mod callers;
mod gate;
#[cfg(test)]
mod tests;

pub use gate::{Gate, Passed, Refusal};

use super::bucket::{Bucket, Rate};
use crate::{
    config,
    net::{io::Stream, loops},
    telemetry::metrics::ServiceMetrics,
};
use adaptive::Adaptive;
use arc_swap::ArcSwap;
use callers::Callers;
use http::HeaderMap;
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{
    sync::{Notify, Semaphore},
    time::Instant,
};

/// One service's limits, and what is taken of them.
#[derive(Debug)]
pub struct Limits {
    /// Holds the number of requests in flight, of those that wait, and the limit: the gauges are the counters.
    metrics: Arc<ServiceMetrics>,
    /// Held by the first of those who wait. The others wait for it in the order in which they came.
    front: Semaphore,
    /// Tells the first one to look again.
    freed: Notify,
    connections: AtomicU32,
    in_force: ArcSwap<InForce>,
    /// Whether there is a rate, so that requests for other services need not look.
    rated: AtomicBool,
    /// As well, whether the limit adapts itself.
    adapting: AtomicBool,
}

/// What the config says, with the state that goes with it. A part that a reload does not change is kept.
#[derive(Debug, Default)]
struct InForce {
    requests: u32,
    adaptive: Option<Arc<Adaptive>>,
    rate: Option<Arc<RateLimit>>,
}

#[derive(Debug)]
struct RateLimit {
    config: config::RateLimit,
    all: Option<(Rate, Bucket)>,
    callers: Option<Callers>,
}

/// As many wait already as may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueFull;

/// More requests per second than may be: of one caller, or of all. There is room for one after this time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TooFast {
    Caller(Duration),
    All(Duration),
}

impl TooFast {
    /// How long until there is room for one.
    pub fn wait(self) -> Duration {
        match self {
            Self::Caller(wait) | Self::All(wait) => wait,
        }
    }
}

impl Limits {
    pub fn new(metrics: Arc<ServiceMetrics>, config: &config::Limits) -> Self {
        let limits = Self {
            metrics,
            front: Semaphore::new(1),
            freed: Notify::new(),
            connections: AtomicU32::new(0),
            in_force: ArcSwap::default(),
            rated: AtomicBool::new(false),
            adapting: AtomicBool::new(false),
        };
        limits.configure(config);
        limits
    }

    /// Puts other settings in force. Requests that are in flight stay; fewer come in until the limit is kept.
    pub fn configure(&self, config: &config::Limits) {
        let old = self.in_force.load();
        let same = |adaptive: &&Arc<Adaptive>| config.adaptive.as_ref() == Some(&adaptive.config);
        let adaptive = old.adaptive.as_ref().filter(same).cloned();
        let same = |rate: &&Arc<RateLimit>| config.rate.as_ref() == Some(&rate.config);
        let rate = old.rate.as_ref().filter(same).cloned();
        let in_force = InForce {
            requests: config.requests,
            adaptive: adaptive.or_else(|| config.adaptive.clone().map(|config| Arc::new(Adaptive::new(config)))),
            rate: rate.or_else(|| config.rate.clone().map(|config| Arc::new(RateLimit::new(config)))),
        };
        self.rated.store(in_force.rate.is_some(), Relaxed);
        self.adapting.store(in_force.adaptive.is_some(), Relaxed);
        self.in_force.store(Arc::new(in_force));
        self.apply();
    }

    /// Sets the limit that is in force, and lets in who has a place with it.
    fn apply(&self) {
        loop {
            let in_force = self.in_force.load();
            self.metrics.requests_limit.set(in_force.limit());
            // A worker may have been late with the limit of what a reload has replaced.
            if Arc::ptr_eq(&in_force, &self.in_force.load()) {
                break;
            }
        }
        self.call_first();
    }

    /// A place for one more request, if there is one and nobody waits for it. It must [`Self::leave`].
    pub fn try_enter(&self) -> bool {
        if self.metrics.waiting.get() > 0 {
            return false;
        }
        // Counted before it is compared, so that two workers at one moment cannot both take the last place.
        if self.metrics.in_flight.inc() <= self.metrics.requests_limit.get() {
            return true;
        }
        self.leave();
        false
    }

    /// Waits for a place, behind those who came before, if fewer than `pending` wait. Whoever gives up waiting drops this.
    ///
    /// Only the first one looks for places. It is called whenever a request ends ([`Self::leave`]) after it was counted as
    /// waiting, and looks before it waits for that; so no place is free while somebody sleeps.
    pub async fn enter(&self, pending: u32) -> Result<(), QueueFull> {
        let waiting = Counted::start(&self.metrics);
        if waiting.number > i64::from(pending) {
            return Err(QueueFull);
        }
        // It is never closed.
        let _first = self.front.acquire().await;
        while !self.metrics.in_flight.inc_up_to(self.metrics.requests_limit.get()) {
            self.freed.notified().await;
        }
        Ok(())
    }

    /// A request has ended that had a place.
    pub fn leave(&self) {
        self.metrics.in_flight.dec();
        self.call_first();
    }

    fn call_first(&self) {
        if self.metrics.waiting.get() > 0 {
            self.freed.notify_one();
        }
    }

    /// Leave for one more connection, if fewer than `limit` are open.
    pub fn connect(self: &Arc<Self>, limit: u32) -> Option<Connected> {
        let number = self.connections.fetch_add(1, Relaxed) + 1;
        let connected = Connected(Box::new(Place { limits: self.clone(), own: None }));
        (number <= limit).then_some(connected)
    }

    /// Open connections, and those that are being opened.
    pub fn connections(&self) -> u32 {
        self.connections.load(Relaxed)
    }

    /// Whether requests per second are limited.
    pub fn is_rated(&self) -> bool {
        self.rated.load(Relaxed)
    }

    /// Takes a request from the rates, or tells when there is room for one. A caller that is refused takes nothing from the
    /// others.
    pub fn take_rate(&self, headers: &HeaderMap, now: Instant) -> Result<(), TooFast> {
        let in_force = self.in_force.load();
        in_force.rate.as_ref().map_or(Ok(()), |rate| rate.take(headers, now))
    }

    /// Whether [`Self::observe`] is of use.
    pub fn is_adapting(&self) -> bool {
        self.adapting.load(Relaxed)
    }

    /// A response began after `latency`.
    pub fn observe(&self, latency: Duration, now: Instant) {
        let in_force = self.in_force.load();
        if let Some(adaptive) = &in_force.adaptive
            && adaptive.observe(latency, self.metrics.in_flight.get(), now)
        {
            self.apply();
        }
    }
}

impl InForce {
    fn limit(&self) -> i64 {
        let adapted = self.adaptive.as_ref().map_or(u32::MAX, |adaptive| adaptive.limit());
        i64::from(self.requests.min(adapted))
    }
}

impl RateLimit {
    fn new(config: config::RateLimit) -> Self {
        let rate = |per_second: u32, burst: Option<u32>| {
            Rate::new(f64::from(per_second), f64::from(burst.unwrap_or(per_second)))
        };
        Self {
            all: config.per_second.map(|count| (rate(count, config.burst), Bucket::default())),
            callers: config.per_caller.as_ref().and_then(|callers| {
                // The config has been checked.
                let header = callers.header.parse().ok()?;
                Some(Callers::new(header, rate(callers.per_second, callers.burst), callers.max_callers))
            }),
            config,
        }
    }

    fn take(&self, headers: &HeaderMap, now: Instant) -> Result<(), TooFast> {
        if let Some(callers) = &self.callers {
            callers.take(headers, now).map_err(TooFast::Caller)?;
        }
        self.all.as_ref().map_or(Ok(()), |(rate, bucket)| bucket.take(*rate, now).map_err(TooFast::All))
    }
}

/// Counts a request as waiting for as long as it lives.
struct Counted<'m> {
    metrics: &'m ServiceMetrics,
    /// How many wait, this one included.
    number: i64,
}

impl<'m> Counted<'m> {
    fn start(metrics: &'m ServiceMetrics) -> Self {
        Self { metrics, number: metrics.waiting.inc() }
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.metrics.waiting.dec();
    }
}

/// Counts a connection as open for as long as it lives.
#[derive(Debug)]
pub struct Connected(Box<Place>);

/// Boxed: it is moved about within the futures of connections, which are to stay small.
#[derive(Debug)]
struct Place {
    limits: Arc<Limits>,
    own: Option<loops::Own>,
}

impl Connected {
    /// The connection is there.
    pub fn has(&mut self, stream: &Stream) {
        self.0.own = loops::Own::of(stream.tcp());
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.0.limits.connections.fetch_sub(1, Relaxed);
    }
}
