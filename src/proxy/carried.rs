//! What is recorded alike of all that is carried without a look at requests: TCP connections and UDP sessions.

use super::{
    listener::Listener,
    record::{address, flag_choice},
};
use crate::{
    cluster::{Cluster, endpoint::InFlight, health::Outcome},
    error::{ProxyError, Reason},
    telemetry::{
        access_log::{AccessRecord, Text},
        flags::Flags,
        metrics::{Lives, ServiceMetrics},
    },
};
use std::{
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::time::Instant;

#[derive(Debug)]
pub struct Carried {
    listener: Rc<Listener>,
    peer: SocketAddr,
    started: Instant,
    cluster: Option<Arc<Cluster>>,
    in_flight: Option<InFlight>,
    attempts: u32,
    flags: Flags,
    /// Why the last endpoint could not be reached.
    not_reached: Option<Reason>,
    /// How it ended; `None` while it has not.
    outcome: Option<Result<(), Reason>>,
    /// Where its service counts it.
    lives: fn(&ServiceMetrics) -> &Lives,
}

impl Carried {
    pub fn start(listener: Rc<Listener>, peer: SocketAddr, lives: fn(&ServiceMetrics) -> &Lives) -> Self {
        Self {
            listener,
            peer,
            started: Instant::now(),
            cluster: None,
            in_flight: None,
            attempts: 0,
            flags: Flags::default(),
            not_reached: None,
            outcome: None,
            lives,
        }
    }

    pub fn listener(&self) -> &Listener {
        &self.listener
    }

    pub fn started(&self) -> Instant {
        self.started
    }

    pub fn cluster(&self) -> Option<&Arc<Cluster>> {
        self.cluster.as_ref()
    }

    pub fn in_flight(&self) -> Option<&InFlight> {
        self.in_flight.as_ref()
    }

    /// This is whom it comes from.
    pub fn comes_from(&mut self, peer: SocketAddr) {
        self.peer = peer;
    }

    /// It is for this service, and not, if it was held to be, for another.
    pub fn routed(&mut self, cluster: Arc<Cluster>) {
        (self.lives)(&cluster.metrics).open.inc();
        if let Some(before) = self.cluster.replace(cluster) {
            (self.lives)(&before.metrics).open.dec();
        }
    }

    /// It is for no service.
    pub fn dismiss(&mut self) {
        if let Some(cluster) = self.cluster.take() {
            (self.lives)(&cluster.metrics).open.dec();
        }
    }

    /// It is tried to carry it to an endpoint.
    pub fn attempt(&mut self, in_flight: InFlight) {
        self.attempts += 1;
        if let (Some(reason), Some(cluster)) = (self.not_reached.take(), &self.cluster) {
            self.flags.retried(reason);
            cluster.metrics.retries.inc(reason as usize);
        }
        flag_choice(&mut self.flags, in_flight.choice());
        self.in_flight = Some(in_flight);
    }

    /// What came of that.
    pub fn tell(&mut self, outcome: Outcome) {
        if let (Some(cluster), Some(in_flight)) = (&self.cluster, &mut self.in_flight) {
            cluster.tell(in_flight, outcome);
        }
    }

    /// An endpoint could not be reached, or takes nothing, because of `reason`.
    pub fn not_reached(&mut self, reason: Reason) {
        self.not_reached = Some(reason);
    }

    /// `what`: what it is called in the log.
    pub fn ended(&mut self, outcome: Result<(), ProxyError>, what: &str) {
        if let Err(error) = &outcome {
            tracing::debug!(listener = %self.listener.name, peer = %self.peer, %error, "a {what}");
        }
        self.outcome = Some(outcome.map_err(|error| error.reason));
    }

    /// Counts it; how it ended, and after how long. To be called once, when its record is dropped.
    pub fn count(&self) -> (Result<(), Reason>, Duration) {
        // Only the end of pillion ends it without a word.
        let outcome = self.outcome.unwrap_or(Err(Reason::ShuttingDown));
        let duration = self.started.elapsed();
        match (&self.cluster, outcome) {
            (Some(cluster), _) => {
                (self.lives)(&cluster.metrics).ended(outcome.map_err(|reason| reason as usize), duration);
            }
            (None, Err(reason)) => self.listener.metrics.rejected.inc(reason as usize),
            (None, Ok(())) => {}
        }
        (outcome, duration)
    }

    /// Its line in the access log, as far as it is the same for all. `outcome`, `duration`: as [`Self::count`] gave them.
    pub fn line(&self, protocol: &'static str, outcome: Result<(), Reason>, duration: Duration) -> AccessRecord {
        AccessRecord {
            time: SystemTime::now() - duration,
            listener: Text::Shared(self.listener.name.clone()),
            peer: self.peer,
            method: None,
            authority: None,
            path: None,
            protocol,
            service: self.cluster.as_ref().map(|cluster| Text::Shared(cluster.name.clone())),
            routed: None,
            endpoint: self.in_flight.as_ref().map(|in_flight| address(&in_flight.endpoint().instance.address)),
            status: 0,
            bytes_in: 0,
            bytes_out: 0,
            duration,
            attempts: self.attempts,
            request_id: None,
            caller: None,
            reason: outcome.err().map(Reason::as_str),
            fallback: None,
            fault: None,
            flags: self.flags,
        }
    }
}
