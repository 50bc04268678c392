//! The record of one TCP connection. It counts itself when it is dropped, however the connection ended.

use super::connections::{Handle, Watched};
use crate::{
    cluster::{Cluster, endpoint::InFlight, health::Outcome},
    error::{ProxyError, Reason},
    proxy::{carried::Carried, listener::Listener},
    telemetry::access_log::{AccessRecord, Text},
};
use http::{Method, StatusCode};
use std::{net::SocketAddr, rc::Rc, sync::Arc};
use tokio::time::Instant;

#[derive(Debug)]
pub struct Record {
    carried: Carried,
    /// Whom it asks for: a server's name, or the address that its client called.
    asked: Option<Arc<str>>,
    /// Whether it was asked for by `CONNECT`.
    is_tunnel: bool,
    watched: Option<Handle>,
    is_dismissed: bool,
}

impl Record {
    pub fn start(listener: Rc<Listener>, peer: SocketAddr) -> Self {
        let carried = Carried::start(listener, peer, |metrics| &metrics.tcp.lives);
        Self { carried, asked: None, is_tunnel: false, watched: None, is_dismissed: false }
    }

    pub fn listener(&self) -> &Listener {
        self.carried.listener()
    }

    pub fn started(&self) -> Instant {
        self.carried.started()
    }

    /// This is whom it comes from.
    pub fn comes_from(&mut self, peer: SocketAddr) {
        self.carried.comes_from(peer);
    }

    /// Its client asks for the server of this name, or at this address.
    pub fn asks_for(&mut self, server: &str) {
        self.asked = Some(server.into());
    }

    /// It is a tunnel, to there.
    pub fn is_tunnel(&mut self, authority: &str) {
        (self.asked, self.is_tunnel) = (Some(authority.into()), true);
    }

    /// It is for this service, and not, if it was held to be, for another.
    pub fn routed(&mut self, cluster: Arc<Cluster>) {
        self.carried.routed(cluster);
    }

    /// Its requests are what counts: it was opened for HTTP.
    pub fn dismiss(mut self) {
        self.carried.dismiss();
        self.is_dismissed = true;
    }

    /// It is tried to connect it to an endpoint.
    pub fn attempt(&mut self, in_flight: InFlight) {
        self.carried.attempt(in_flight);
    }

    /// What came of that.
    pub fn tell(&mut self, outcome: Outcome) {
        self.carried.tell(outcome);
    }

    /// An endpoint could not be reached because of `reason`.
    pub fn not_reached(&mut self, reason: Reason) {
        self.carried.not_reached(reason);
    }

    /// Bytes flow.
    pub fn watch(&mut self, connection: Handle) -> &Watched {
        self.watched.insert(connection)
    }

    pub fn ended(mut self, outcome: Result<(), ProxyError>) {
        self.carried.ended(outcome, "TCP connection");
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if self.is_dismissed {
            return;
        }
        let (outcome, duration) = self.carried.count();
        // Once bytes flow, what was answered has been answered.
        let status = match outcome {
            _ if !self.is_tunnel => 0,
            Err(reason) if self.watched.is_none() => reason.status().as_u16(),
            _ => StatusCode::OK.as_u16(),
        };
        let access_log = &self.carried.listener().telemetry.access_log;
        if access_log.wants(status, outcome.is_err()) {
            let moved = self.watched.as_ref().map(|watched| &watched.moved);
            let protocol = if self.is_tunnel { "HTTP/1.1" } else { "TCP" };
            access_log.log(AccessRecord {
                method: self.is_tunnel.then_some(Method::CONNECT),
                authority: self.asked.take().map(Text::Shared),
                status,
                bytes_in: moved.map_or(0, |moved| moved.sent.get()),
                bytes_out: moved.map_or(0, |moved| moved.received.get()),
                ..self.carried.line(protocol, outcome, duration)
            });
        }
    }
}
