//! The record of one UDP session. It counts itself when it is dropped, however the session ended.

use super::session::Session;
use crate::{
    cluster::{Cluster, endpoint::InFlight, health::Outcome},
    error::{ProxyError, Reason},
    proxy::{carried::Carried, listener::Listener},
    telemetry::access_log::AccessRecord,
};
use std::{net::SocketAddr, rc::Rc, sync::Arc, time::Duration};
use tokio::time::Instant;

#[derive(Debug)]
pub struct Record {
    carried: Carried,
    session: Rc<Session>,
    /// Whether the current endpoint has given an answer.
    answered: bool,
}

impl Record {
    pub fn start(listener: Rc<Listener>, session: Rc<Session>, client: SocketAddr) -> Self {
        let carried = Carried::start(listener, client, |metrics| &metrics.udp.lives);
        Self { carried, session, answered: false }
    }

    pub fn started(&self) -> Instant {
        self.carried.started()
    }

    /// It is for this service.
    pub fn routed(&mut self, cluster: Arc<Cluster>) {
        self.carried.routed(cluster);
    }

    /// Its datagrams go to an endpoint.
    pub fn attempt(&mut self, in_flight: InFlight) {
        self.answered = false;
        self.carried.attempt(in_flight);
    }

    /// That endpoint has answered for the first time, after `latency`.
    pub fn answered(&mut self, latency: Duration) {
        self.answered = true;
        self.tell(Outcome::Success);
        if let Some(in_flight) = self.carried.in_flight() {
            in_flight.endpoint().live.observe(latency, Instant::now());
        }
    }

    pub fn has_answered(&self) -> bool {
        self.answered
    }

    /// What came of it.
    pub fn tell(&mut self, outcome: Outcome) {
        self.carried.tell(outcome);
    }

    /// An endpoint takes nothing, because of `reason`.
    pub fn not_reached(&mut self, reason: Reason) {
        self.carried.not_reached(reason);
    }

    pub fn ended(mut self, outcome: Result<(), ProxyError>) {
        self.carried.ended(outcome, "UDP session");
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if let Some(cluster) = self.carried.cluster() {
            self.session.count(cluster);
        }
        let (outcome, duration) = self.carried.count();
        let access_log = &self.carried.listener().telemetry.access_log;
        if access_log.wants(0, outcome.is_err()) {
            let moved = self.session.moved.numbers();
            access_log.log(AccessRecord {
                bytes_in: moved.sent_bytes,
                bytes_out: moved.received_bytes,
                ..self.carried.line("UDP", outcome, duration)
            });
        }
    }
}
