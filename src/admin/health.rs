//! Whether pillion runs, and whether it can take traffic.

use super::{
    Admin, State, json,
    view::{NotReady, Source, Waiting},
};
use axum::{
    extract,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use futures_util::future::join_all;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// What `app` says about the process as a whole.
#[derive(Debug, Default)]
pub struct Health {
    /// All listeners are bound.
    pub listening: AtomicBool,
    /// pillion is about to stop and wants no new traffic.
    pub draining: AtomicBool,
}

/// Looks at nothing: whoever restarts pillion because something *else* is down takes its last known good away.
pub(super) async fn live() -> &'static str {
    "ok\n"
}

pub(super) async fn ready(extract::State(admin): Admin) -> Response {
    let (listening, draining) = (admin.health.listening.load(Relaxed), admin.health.draining.load(Relaxed));
    if listening && !draining && admin.discovery.is_ready(&admin.config.load()) {
        return "ok\n".into_response();
    }
    let waiting = waiting(&admin).await;
    let error = missing(listening, draining, &waiting);
    json(StatusCode::SERVICE_UNAVAILABLE, &NotReady { error, listening, draining, waiting })
}

/// The services that `is_ready` waits for, with what their sources have said.
async fn waiting(admin: &State) -> Vec<Waiting> {
    let config = admin.config.load_full();
    let unanswered = admin.discovery.unanswered(&config).into_iter();
    join_all(unanswered.map(async |service| Waiting {
        sources: admin.discovery.sources(&service).await.into_iter().map(Source::from).collect(),
        service,
    }))
    .await
}

/// All that is missing, in one line that says it without the rest.
fn missing(listening: bool, draining: bool, waiting: &[Waiting]) -> String {
    let mut missing = Vec::new();
    if draining {
        missing.push("pillion is stopping".to_owned());
    }
    if !listening {
        missing.push("not all listeners are bound yet".to_owned());
    }
    missing.extend(waiting.iter().map(|Waiting { service, sources }| {
        let sources: Vec<_> = sources.iter().map(said).collect();
        let sources = if sources.is_empty() { "it has no registry to ask".into() } else { sources.join(", ") };
        format!("no first answer about `{service}` ({sources})")
    }));
    if missing.is_empty() {
        // It became ready between the question and the look at what is missing.
        missing.push("the first answers came just now".to_owned());
    }
    format!("not ready: {}", missing.join("; "))
}

fn said(source: &Source) -> String {
    let Source { source, instances, failure, .. } = source;
    match (failure, instances) {
        (Some(failure), _) => format!("{source}: {failure}"),
        (None, Some(0)) => format!("{source}: knows no instance"),
        (None, Some(_)) => format!("{source}: answered"),
        (None, None) => format!("{source}: has not answered yet"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(source: &str, instances: Option<usize>, failure: Option<&str>) -> Source {
        Source { source: source.into(), instances, age_seconds: None, failure: failure.map(Into::into) }
    }

    #[test]
    fn everything_that_is_missing_is_said() {
        assert_eq!(missing(false, true, &[]), "not ready: pillion is stopping; not all listeners are bound yet");
        let users = Waiting {
            service: "users".into(),
            sources: vec![source("main", None, Some("cannot reach x: refused")), source("old", Some(0), None)],
        };
        let orders = Waiting { service: "orders".into(), sources: vec![source("main", None, None)] };
        let lost = Waiting { service: "lost".into(), sources: Vec::new() };
        assert_eq!(
            missing(true, false, &[users, orders, lost]),
            "not ready: no first answer about `users` (main: cannot reach x: refused, old: knows no instance); \
             no first answer about `orders` (main: has not answered yet); \
             no first answer about `lost` (it has no registry to ask)"
        );
    }
}
