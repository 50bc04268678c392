//! The admin interface: health, metrics and state over HTTP, for probes, scrapers, the commands and whoever has `curl`.
//!
//! It runs on the control thread and answers from what is in memory, so it answers when the registries do not. The one
//! exception is `?all=1`, which asks them and therefore has a time limit.

mod failure;
mod health;
mod services;
mod settings;
#[cfg(test)]
pub(crate) mod tests;
pub mod view;

pub use health::Health;

use crate::{
    config::Config,
    discovery,
    telemetry::{Telemetry, log::LogHandle},
};
use arc_swap::ArcSwap;
use axum::{
    Router,
    extract::{self, Request},
    http::{HeaderMap, Method, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::get,
};
use failure::Failure;
use serde::Serialize;
use std::{fmt::Write, sync::Arc};

/// What the admin interface looks at. All of it belongs to others; the only thing it changes is the level of the log.
pub struct State {
    pub config: Arc<ArcSwap<Config>>,
    pub discovery: discovery::Handle,
    pub telemetry: Arc<Telemetry>,
    pub log: LogHandle,
    pub registries: Arc<ArcSwap<discovery::Registries>>,
    pub health: Arc<Health>,
}

/// What handlers take.
type Admin = extract::State<Arc<State>>;

/// Every path with its method, for the index and for whoever asked for another.
const PATHS: [(&str, &str, &str); 10] = [
    ("GET", "/", "this list"),
    ("GET", "/live", "200 as long as pillion runs"),
    ("GET", "/ready", "200 once it can take traffic; otherwise 503 and what is missing"),
    ("GET", "/metrics", "metrics for Prometheus, in the format that `Accept` prefers"),
    ("GET", "/api/services", "the services that are followed"),
    ("GET", "/api/services?all=1", "and those that the registries know besides"),
    ("GET", "/api/services/NAME", "one service: settings, sources and endpoints"),
    ("GET", "/api/config", "the config in force, secrets masked; YAML with `Accept: application/yaml`"),
    ("GET", "/api/log", "the level of the log"),
    ("PUT", "/api/log?level=LEVEL", "changes it until the next start: `debug`, `info,pillion::registry=debug`"),
];

/// The admin interface over HTTP.
pub fn router(state: State) -> Router {
    Router::new()
        .route("/", get(index))
        .route("/live", get(health::live))
        .route("/ready", get(health::ready))
        .route("/metrics", get(metrics))
        .route("/api/services", get(services::all))
        .route("/api/services/{name}", get(services::one))
        .route("/api/config", get(settings::config))
        .route("/api/log", get(settings::log_level).put(settings::set_log_level))
        .fallback(async || Failure::new(StatusCode::NOT_FOUND, "there is no such path", paths()))
        .method_not_allowed_fallback(async || {
            Failure::new(StatusCode::METHOD_NOT_ALLOWED, "this path does not take this method", paths())
        })
        .layer(middleware::from_fn(refuse_web_pages))
        .with_state(Arc::new(state))
}

async fn index() -> String {
    let mut text = format!("pillion {}\n\n", env!("CARGO_PKG_VERSION"));
    let width = PATHS.iter().map(|(_, path, _)| path.len()).max().unwrap_or_default();
    for (method, path, what) in PATHS {
        let _ = writeln!(text, "{method}  {path:width$}  {what}");
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

/// A web page that somebody on this machine looks at could otherwise change settings: its requests need no permission
/// to be *sent* here. Browsers mark those that can change something with `Origin`, and nothing else does.
async fn refuse_web_pages(request: Request, next: Next) -> Response {
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    if !reads && request.headers().contains_key(header::ORIGIN) {
        return Failure::new(
            StatusCode::FORBIDDEN,
            "web pages cannot change anything here",
            "a request without `Origin`",
        )
        .into_response();
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
