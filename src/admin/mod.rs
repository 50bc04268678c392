//! The admin interface: health, metrics and state over HTTP, for probes, scrapers, the commands and whoever has `curl`.
//!
//! It runs on the control thread and answers from what is in memory, so it answers when the registries do not. The one
//! exception is `?all=1`, which asks them and therefore has a time limit.

mod drain;
mod explain;
mod failure;
mod health;
mod inbound;
mod registrations;
mod rollouts;
mod routes;
mod services;
mod settings;
#[cfg(test)]
pub(crate) mod tests;
pub mod view;

pub use health::{Health, readiness};

use crate::{
    config::Config,
    discovery,
    drain::Drain,
    registrar,
    telemetry::{Telemetry, log::LogHandle},
};
use arc_swap::ArcSwap;
use axum::{
    Router,
    extract::{self, ConnectInfo, Request},
    http::{HeaderMap, Method, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use failure::Failure;
use serde::Serialize;
use std::{fmt::Write, net::SocketAddr, sync::Arc};

/// What the admin interface looks at. All of it belongs to others; it changes the level of the log, and asks for the end.
pub struct State {
    pub config: Arc<ArcSwap<Config>>,
    pub discovery: discovery::Handle,
    pub telemetry: Arc<Telemetry>,
    pub log: LogHandle,
    pub registries: Arc<ArcSwap<discovery::Registries>>,
    pub registrar: registrar::Handle,
    pub health: Arc<Health>,
    pub drain: Arc<Drain>,
    /// What there is behind inbound listeners.
    pub local_apps: crate::inbound::Handle,
}

/// What handlers take.
type Admin = extract::State<Arc<State>>;

/// Every path with its method, for the index and for whoever asked for another.
const PATHS: [(&str, &str, &str); 21] = [
    ("GET", "/", "this list"),
    ("GET", "/live", "200 as long as pillion runs"),
    ("GET", "/startup", "200 once it could take traffic for the first time, and from then on"),
    ("GET", "/ready", "200 as long as it can take traffic; otherwise 503 and what is missing"),
    ("GET", "/registered", "the same, and the local application is in all its registries as fit to serve"),
    ("GET", "/metrics", "metrics for Prometheus, in the format that `Accept` prefers"),
    ("GET", "/api/services", "the services that are followed"),
    ("GET", "/api/services?all=1", "and those that the registries know besides"),
    ("GET", "/api/services/NAME", "one service: settings, sources and endpoints"),
    ("GET", "/api/explain?method=M&url=U&header=N:V", "which way a request goes, and why not another"),
    ("GET", "/api/routes", "where routes come from: the config or a store, and what of it was refused"),
    ("GET", "/api/rollouts", "how far each rollout is, by which figures, and who decides"),
    ("POST", "/api/rollouts/SERVICE/COMMAND", "start, pause, resume, promote or abort it, for all pillions"),
    ("GET", "/api/registrations", "the local application: its checks, and its entry in each registry"),
    ("GET", "/api/inbound", "the local application behind inbound listeners, and who calls it"),
    ("GET", "/api/config", "the config in force, secrets masked; YAML with `Accept: application/yaml`"),
    ("GET", "/api/log", "the level of the log"),
    ("PUT", "/api/log?level=LEVEL", "changes it until the next start: `debug`, `info,pillion::registry=debug`"),
    ("GET", "/api/drain", "whether pillion is to end, and how far that is"),
    ("POST", "/api/drain", "ends pillion as SIGTERM does: deregisters, lets requests finish, exits"),
    ("POST", "/api/quit", "the same when the application is done, as a job is: waits only for requests in progress"),
];

/// The admin interface over HTTP.
pub fn router(state: Arc<State>) -> Router {
    Router::new()
        .route("/", get(index))
        .route("/live", get(health::live))
        .route("/startup", get(health::startup))
        .route("/ready", get(health::ready))
        .route("/registered", get(health::registered))
        .route("/metrics", get(metrics))
        .route("/api/services", get(services::all))
        .route("/api/services/{name}", get(services::one))
        .route("/api/explain", get(explain::explain))
        .route("/api/routes", get(routes::all))
        .route("/api/rollouts", get(rollouts::all))
        .route("/api/rollouts/{service}/{command}", post(rollouts::command))
        .route("/api/registrations", get(registrations::all))
        .route("/api/inbound", get(inbound::all))
        .route("/api/config", get(settings::config))
        .route("/api/log", get(settings::log_level).put(settings::set_log_level))
        .route("/api/drain", get(drain::show).post(drain::drain))
        .route("/api/quit", post(drain::quit))
        .fallback(async || Failure::new(StatusCode::NOT_FOUND, "there is no such path", paths()))
        .method_not_allowed_fallback(async || {
            Failure::new(StatusCode::METHOD_NOT_ALLOWED, "this path does not take this method", paths())
        })
        .layer(middleware::from_fn_with_state(state.clone(), refuse_strangers))
        .with_state(state)
}

async fn index() -> String {
    let mut text = format!("pillion {}\n\n", env!("CARGO_PKG_VERSION"));
    let width = PATHS.iter().map(|(_, path, _)| path.len()).max().unwrap_or_default();
    for (method, path, what) in PATHS {
        let _ = writeln!(text, "{method:4}  {path:width$}  {what}");
    }
    text
}

fn paths() -> String {
    PATHS.map(|(method, path, _)| format!("{method} {path}")).join(", ")
}

async fn metrics(extract::State(admin): Admin, headers: HeaderMap) -> Response {
    let (content_type, body) = admin.telemetry.metrics.render(accept(&headers));
    ([(header::CONTENT_TYPE, content_type)], body).into_response()
}

fn accept(headers: &HeaderMap) -> Option<&str> {
    headers.get(header::ACCEPT).and_then(|value| value.to_str().ok())
}

/// Everybody may look who gets here, as probes and scrapers must. What changes something is for those beside pillion: behind
/// an address that is open to others, each of them could otherwise end it.
///
/// A web page that somebody on this machine looks at could change settings, too: its requests need no permission to be
/// *sent* here. Browsers mark those that can change something with `Origin`, and nothing else does.
async fn refuse_strangers(extract::State(admin): Admin, request: Request, next: Next) -> Response {
    if matches!(*request.method(), Method::GET | Method::HEAD) {
        return next.run(request).await;
    }
    let refused = |error: String, expected| Failure::new(StatusCode::FORBIDDEN, error, expected).into_response();
    if request.headers().contains_key(header::ORIGIN) {
        return refused("web pages cannot change anything here".into(), "a request without `Origin`");
    }
    let peer = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|peer| peer.0.ip().to_canonical());
    if !peer.is_some_and(|peer| peer.is_loopback()) && !admin.config.load().admin.remote_control {
        let from = peer.map_or_else(|| "an unknown address".into(), |peer| peer.to_string());
        return refused(
            format!("{from} may look and cannot change anything here"),
            "a request to 127.0.0.1 from the same machine or pod, or `admin: { remote_control: true }` in the config",
        );
    }
    next.run(request).await
}

/// A JSON answer that is good to read in a terminal, too.
fn json(status: StatusCode, body: &impl Serialize) -> Response {
    match serde_json::to_string_pretty(body) {
        Ok(text) => (status, [(header::CONTENT_TYPE, "application/json")], text + "\n").into_response(),
        // Only a map with keys that are no text could fail, and there is none.
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
