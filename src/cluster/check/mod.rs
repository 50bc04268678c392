//! Active checks: one check of one endpoint, and what follows from its result.

mod grpc;
mod http;
mod repeat;
mod state;

pub use repeat::{once_more, repeat};
pub use state::{Checked, Last, State, first_wait};

use super::{
    Endpoint, Live,
    connect::{self, ConnectError},
    table::Settings,
};
use crate::{
    config::{HealthCheck, HttpCheck},
    net::io::Stream,
    registry::Protocol,
};
use std::{fmt, future::Future};
use tokio::time::{Instant, timeout_at};

/// How far a check came: each layer stands on the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layer {
    Tcp,
    Tls,
    Http,
    Grpc,
    /// A program that looks at the application.
    Command,
}

/// Why a check failed, and at which layer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{layer}: {cause}")]
pub struct Failure {
    pub layer: Layer,
    pub cause: String,
}

pub type Outcome = Result<(), Failure>;

/// What is asked for once there is a connection.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Question<'c> {
    Nothing,
    Http(&'c HttpCheck),
    Grpc(&'c str),
}

/// A check changed what is thought of an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    pub from: State,
    pub to: State,
}

/// Checks `endpoint` once, on a connection of its own.
pub async fn perform(service: &str, endpoint: &Endpoint, settings: &Settings, check: &HealthCheck) -> Outcome {
    let deadline = Instant::now() + check.timeout;
    let too_late = |layer, what: &str| Failure::new(layer, format!("no {what} within {:?}", check.timeout));
    let instance = &endpoint.instance;
    let address = match check.port {
        Some(port) => instance.address.with_port(port.get()),
        None => instance.address.clone(),
    };
    let question = question(endpoint, check);
    let tls = connect::tls_for(instance, settings).map_err(connect_failure)?;
    let tcp = connect::open_tcp(&address);
    let tcp = timeout_at(deadline, tcp).await.map_err(|_| too_late(Layer::Tcp, "connection"))?;
    let tcp = tcp.map_err(connect_failure)?;
    let stated = settings.service.protocol.or(instance.protocol);
    let wanted = if matches!(question, Question::Grpc(_)) { Some(Protocol::Http2) } else { stated };
    let (stream, protocol) = match tls {
        None => (Stream::Tcp(tcp), wanted.unwrap_or(Protocol::Http1)),
        Some(tls) => {
            let opened = timeout_at(deadline, connect::open_tls(tcp, &address, tls, wanted)).await;
            opened.map_err(|_| too_late(Layer::Tls, "handshake"))?.map_err(connect_failure)?
        }
    };
    let target = http::Target { secure: tls.is_some(), authority: http::authority(service, &address) };
    let answered = |layer, exchange: Result<Outcome, _>| exchange.unwrap_or_else(|_| Err(too_late(layer, "answer")));
    match question {
        Question::Nothing => Ok(()),
        Question::Http(http) => {
            let exchange = http::check(stream, protocol, &target, http);
            answered(Layer::Http, timeout_at(deadline, exchange).await)
        }
        Question::Grpc(service) => {
            let exchange = grpc::check(stream, &target, service, check.timeout);
            answered(Layer::Grpc, timeout_at(deadline, exchange).await)
        }
    }
}

/// Where one process registers each of its servers by its scheme, as with Kratos, an HTTP request tells nothing about the
/// one for gRPC, nor the other way round.
fn question<'c>(endpoint: &Endpoint, check: &'c HealthCheck) -> Question<'c> {
    let scheme = endpoint.instance.labels.get("scheme").map(String::as_str);
    match (&check.http, &check.grpc) {
        (Some(_), None) if scheme == Some("grpc") => Question::Nothing,
        (None, Some(_)) if matches!(scheme, Some("http" | "https")) => Question::Nothing,
        (Some(_), Some(grpc)) if scheme == Some("grpc") => Question::Grpc(&grpc.service),
        (Some(http), _) => Question::Http(http),
        (None, Some(grpc)) => Question::Grpc(&grpc.service),
        (None, None) => Question::Nothing,
    }
}

fn connect_failure(error: ConnectError) -> Failure {
    match error {
        ConnectError::Tcp(cause) => Failure::new(Layer::Tcp, cause.to_string()),
        ConnectError::Tls(cause) => Failure::new(Layer::Tls, cause.to_string()),
        other => Failure::new(Layer::Tls, other.to_string()),
    }
}

/// Drives `connection` for as long as `exchange` takes.
async fn while_driving<T>(exchange: impl Future<Output = T>, connection: impl Future) -> T {
    tokio::pin!(exchange);
    tokio::select! {
        result = &mut exchange => return result,
        // The exchange learns of an error by itself, and there may be a response that is still to be read.
        _ = connection => {}
    }
    exchange.await
}

/// Puts a result in force. Only on the control thread. Gives what changed, if anything did.
pub fn record(live: &Live, check: &HealthCheck, outcome: Outcome, began: Instant, now: Instant) -> Option<Change> {
    let before = live.checked()?;
    let last = Last { at: now, took: now - began, failure: outcome.err() };
    let after = before.after(last, check, live.is_gone(), fastrand::f64());
    let change = Change { from: before.state, to: after.state };
    live.set_checked(Some(after));
    match change.to.is_usable() {
        false if !live.health.is_shut() => live.health.shut(now),
        true if live.health.is_shut() => live.health.admit(now),
        _ => {}
    }
    (change.from.is_usable() != change.to.is_usable() || change.from.is_passing() != change.to.is_passing())
        .then_some(change)
}

/// From now on it is checked, next at `next` at the latest. Only on the control thread.
pub fn schedule(live: &Live, next: Instant) -> Instant {
    let checked = live.checked().map_or_else(|| Checked::new(next), |checked| checked.at_the_latest(next));
    let next = checked.next;
    live.set_checked(Some(checked));
    next
}

/// It has to pass a check before it is used, and is checked now. Only on the control thread.
pub fn doubt(live: &Live, now: Instant) {
    live.set_checked(Some(Checked::new(now)));
    live.health.shut(now);
}

/// There are no more checks. True if they had kept it out. Only on the control thread.
pub fn forget(live: &Live, now: Instant) -> bool {
    if live.checked().is_none() {
        return false;
    }
    live.set_checked(None);
    let shut = live.health.is_shut();
    if shut {
        live.health.admit(now);
    }
    shut
}

impl Failure {
    fn new(layer: Layer, cause: impl Into<String>) -> Self {
        Self { layer, cause: cause.into() }
    }
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Tls => "TLS",
            Self::Http => "HTTP",
            Self::Grpc => "gRPC",
            Self::Command => "command",
        })
    }
}

#[cfg(test)]
mod tests;
