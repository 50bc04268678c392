//! The record of one TCP connection. It counts itself when it is dropped, however the connection ended.

use super::connections::{Handle, Watched};
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
use http::{Method, StatusCode};
use std::{net::SocketAddr, rc::Rc, sync::Arc, time::SystemTime};
use tokio::time::Instant;

#[derive(Debug)]
pub struct Record {
    listener: Rc<Listener>,
    peer: SocketAddr,
    /// Whom it asks for: a server's name, or the address that its client called.
    asked: Option<Arc<str>>,
    /// Whether it was asked for by `CONNECT`.
    is_tunnel: bool,
    started: Instant,
    cluster: Option<Arc<Cluster>>,
    in_flight: Option<InFlight>,
    watched: Option<Handle>,
    attempts: u32,
    flags: Flags,
    /// Why the last endpoint could not be reached.
    not_reached: Option<Reason>,
    is_dismissed: bool,
    /// How it ended; `None` while it has not.
    outcome: Option<Result<(), Reason>>,
}

impl Record {
    pub fn start(listener: Rc<Listener>, peer: SocketAddr) -> Self {
        Self {
            listener,
            peer,
            asked: None,
            is_tunnel: false,
            started: Instant::now(),
            cluster: None,
            in_flight: None,
            watched: None,
            attempts: 0,
            flags: Flags::default(),
            not_reached: None,
            is_dismissed: false,
            outcome: None,
        }
    }

    pub fn listener(&self) -> &Listener {
        &self.listener
    }

    pub fn started(&self) -> Instant {
        self.started
    }

    /// This is whom it comes from.
    pub fn comes_from(&mut self, peer: SocketAddr) {
        self.peer = peer;
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
        cluster.metrics.tcp.open.inc();
        if let Some(before) = self.cluster.replace(cluster) {
            before.metrics.tcp.open.dec();
        }
    }

    /// Its requests are what counts: it was opened for HTTP.
    pub fn dismiss(mut self) {
        if let Some(cluster) = self.cluster.take() {
            cluster.metrics.tcp.open.dec();
        }
        self.is_dismissed = true;
    }

    /// It is tried to connect it to an endpoint.
    pub fn attempt(&mut self, in_flight: InFlight) {
        self.attempts += 1;
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

    /// What came of that.
    pub fn tell(&mut self, outcome: Outcome) {
        if let (Some(cluster), Some(in_flight)) = (&self.cluster, &mut self.in_flight) {
            cluster.tell(in_flight, outcome);
        }
    }

    /// An endpoint could not be reached because of `reason`.
    pub fn not_reached(&mut self, reason: Reason) {
        self.not_reached = Some(reason);
    }

    /// Bytes flow.
    pub fn watch(&mut self, connection: Handle) -> &Watched {
        self.watched.insert(connection)
    }

    pub fn ended(mut self, outcome: Result<(), ProxyError>) {
        if let Err(error) = &outcome {
            tracing::debug!(listener = %self.listener.name, peer = %self.peer, %error, "a TCP connection");
        }
        self.outcome = Some(outcome.map_err(|error| error.reason));
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if self.is_dismissed {
            return;
        }
        // Only the end of pillion ends a connection without a word.
        let outcome = self.outcome.unwrap_or(Err(Reason::ShuttingDown));
        let duration = self.started.elapsed();
        match &self.cluster {
            Some(cluster) => {
                let metrics = &cluster.metrics.tcp;
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
        // Once bytes flow, what was answered has been answered.
        let status = match outcome {
            _ if !self.is_tunnel => 0,
            Err(reason) if self.watched.is_none() => reason.status().as_u16(),
            _ => StatusCode::OK.as_u16(),
        };
        let access_log = &self.listener.telemetry.access_log;
        if access_log.wants(status, outcome.is_err()) {
            let moved = self.watched.as_ref().map(|watched| &watched.moved);
            access_log.log(AccessRecord {
                time: SystemTime::now() - duration,
                listener: Text::Shared(self.listener.name.clone()),
                peer: self.peer,
                method: self.is_tunnel.then_some(Method::CONNECT),
                authority: self.asked.take().map(Text::Shared),
                path: None,
                protocol: if self.is_tunnel { "HTTP/1.1" } else { "TCP" },
                service: self.cluster.as_ref().map(|cluster| Text::Shared(cluster.name.clone())),
                routed: None,
                endpoint: self.in_flight.as_ref().map(|in_flight| address(&in_flight.endpoint().instance.address)),
                status,
                bytes_in: moved.map_or(0, |moved| moved.sent.get()),
                bytes_out: moved.map_or(0, |moved| moved.received.get()),
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
