//! The record of one UDP session. It counts itself when it is dropped, however the session ended.

use super::session::Session;
use crate::{
    cluster::{
        Cluster,
        endpoint::InFlight,
        health::{Choice, Outcome},
    },
    error::{ProxyError, Reason},
    proxy::{listener::Listener, record::address},
    telemetry::{
        access_log::{AccessRecord, Text},
        flags::{Flag, Flags},
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
pub struct Record {
    listener: Rc<Listener>,
    session: Rc<Session>,
    client: SocketAddr,
    started: Instant,
    cluster: Option<Arc<Cluster>>,
    in_flight: Option<InFlight>,
    /// Whether the current endpoint has given an answer.
    answered: bool,
    attempts: u32,
    flags: Flags,
    /// Why the last endpoint could not be reached.
    not_reached: Option<Reason>,
    /// How it ended; `None` while it has not.
    outcome: Option<Result<(), Reason>>,
}

impl Record {
    pub fn start(listener: Rc<Listener>, session: Rc<Session>, client: SocketAddr) -> Self {
        Self {
            listener,
            session,
            client,
            started: Instant::now(),
            cluster: None,
            in_flight: None,
            answered: false,
            attempts: 0,
            flags: Flags::default(),
            not_reached: None,
            outcome: None,
        }
    }

    pub fn started(&self) -> Instant {
        self.started
    }

    /// It is for this service.
    pub fn routed(&mut self, cluster: Arc<Cluster>) {
        cluster.metrics.udp.open.inc();
        self.cluster = Some(cluster);
    }

    /// Its datagrams go to an endpoint.
    pub fn attempt(&mut self, in_flight: InFlight) {
        self.attempts += 1;
        self.answered = false;
        if let (Some(reason), Some(cluster)) = (self.not_reached.take(), &self.cluster) {
            self.flags.retried(reason);
            cluster.metrics.retries.inc(reason as usize);
        }
        match in_flight.choice() {
            Choice::Available => {}
            Choice::Probe => self.flags.set(Flag::Probe),
            Choice::LastResort => self.flags.set(Flag::LastResort),
        }
        self.in_flight = Some(in_flight);
    }

    /// That endpoint has answered for the first time, after `latency`.
    pub fn answered(&mut self, latency: Duration) {
        self.answered = true;
        self.tell(Outcome::Success);
        if let Some(in_flight) = &self.in_flight {
            in_flight.endpoint().live.observe(latency, Instant::now());
        }
    }

    pub fn has_answered(&self) -> bool {
        self.answered
    }

    /// What came of it.
    pub fn tell(&mut self, outcome: Outcome) {
        if let (Some(cluster), Some(in_flight)) = (&self.cluster, &mut self.in_flight) {
            cluster.tell(in_flight, outcome);
        }
    }

    /// An endpoint takes nothing, because of `reason`.
    pub fn not_reached(&mut self, reason: Reason) {
        self.not_reached = Some(reason);
    }

    pub fn ended(mut self, outcome: Result<(), ProxyError>) {
        if let Err(error) = &outcome {
            tracing::debug!(listener = %self.listener.name, client = %self.client, %error, "a UDP session");
        }
        self.outcome = Some(outcome.map_err(|error| error.reason));
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        // Only the end of pillion ends a session without a word.
        let outcome = self.outcome.unwrap_or(Err(Reason::ShuttingDown));
        let duration = self.started.elapsed();
        match &self.cluster {
            Some(cluster) => {
                self.session.count(cluster);
                let metrics = &cluster.metrics.udp;
                metrics.open.dec();
                metrics.duration.observe(duration);
                match outcome {
                    Ok(()) => metrics.done.inc(),
                    Err(reason) => metrics.failed.inc(reason as usize),
                }
            }
            None => {
                if let Err(reason) = outcome {
                    self.listener.metrics.rejected.inc(reason as usize);
                }
            }
        }
        let access_log = &self.listener.telemetry.access_log;
        if access_log.wants(0, outcome.is_err()) {
            let moved = self.session.moved.numbers();
            access_log.log(AccessRecord {
                time: SystemTime::now() - duration,
                listener: Text::Shared(self.listener.name.clone()),
                peer: self.client,
                method: None,
                authority: None,
                path: None,
                protocol: "UDP",
                service: self.cluster.as_ref().map(|cluster| Text::Shared(cluster.name.clone())),
                routed: None,
                endpoint: self.in_flight.as_ref().map(|in_flight| address(&in_flight.endpoint().instance.address)),
                status: 0,
                bytes_in: moved.sent_bytes,
                bytes_out: moved.received_bytes,
                duration,
                attempts: self.attempts,
                request_id: None,
                caller: None,
                reason: outcome.err().map(Reason::as_str),
                fallback: None,
                fault: None,
                flags: self.flags,
            });
        }
    }
}
