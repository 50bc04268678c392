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
    /// It could take traffic once.
    pub started: AtomicBool,
}

/// Looks at nothing: whoever restarts pillion because something *else* is down takes its last known good away.
pub(super) async fn live() -> &'static str {
    "ok\n"
}

pub(super) async fn ready(extract::State(admin): Admin) -> Response {
    let applications = admin.local_apps.load().iter().filter_map(|app| app.not_ready()).collect();
    answer(look(&admin, applications).await)
}

/// As `/ready`, and the application is where its callers look for it.
pub(super) async fn registered(extract::State(admin): Admin) -> Response {
    let applications = admin.local_apps.load().iter().filter_map(|app| app.not_ready()).collect::<Vec<_>>();
    let views = admin.registrar.views();
    let mut unlisted: Vec<_> = views.iter().flat_map(|view| view.unlisted()).collect();
    // The registrar hears of a config a moment after others.
    let wanted = admin.config.load().register.len();
    if wanted == 0 {
        unlisted.push("nothing is to be registered (there is no `register` in the config)".into());
    }
    if views.len() < wanted {
        unlisted.push("the application is not registered yet".into());
    }
    answer(look(&admin, [applications, unlisted].concat()).await)
}

/// Stays as it is once it is good, also at the end: who waits for the start is not to start it anew then.
pub(super) async fn startup(extract::State(admin): Admin) -> Response {
    if admin.health.started.load(Relaxed) {
        return "ok\n".into_response();
    }
    answer(readiness(&admin).await)
}

fn answer(readiness: Result<String, NotReady>) -> Response {
    match readiness {
        Ok(text) => text.into_response(),
        Err(missing) => json(StatusCode::SERVICE_UNAVAILABLE, &missing),
    }
}

/// Whether pillion itself can take traffic; if not, what is missing. Remembers that it could. The application has no part in
/// it, because that is often started only then.
pub async fn readiness(admin: &State) -> Result<String, NotReady> {
    look(admin, Vec::new()).await
}

/// `applications`: those that cannot take traffic, or of which callers do not know, and why.
async fn look(admin: &State, applications: Vec<String>) -> Result<String, NotReady> {
    let (listening, draining) = (admin.health.listening.load(Relaxed), admin.drain.is_asked());
    if listening && !draining && admin.discovery.is_ready(&admin.config.load()) {
        admin.health.started.store(true, Relaxed);
        if applications.is_empty() {
            return Ok(ok(admin));
        }
    }
    let waiting = waiting(admin).await;
    let mut error = missing(listening, draining, &applications, &waiting);
    if !admin.discovery.hears_stores() {
        error.push_str("; the store of routes or of rollouts has not answered yet");
    }
    Err(NotReady { error, listening, draining, waiting, applications })
}

/// Ready, and for which services only by what was kept on disk.
fn ok(admin: &State) -> String {
    let clusters = admin.discovery.table().all();
    let from_disk = clusters.iter().filter(|cluster| cluster.metrics.from_snapshot.get() != 0);
    let names: Vec<_> = from_disk.map(|cluster| cluster.name.to_string()).collect();
    if names.is_empty() { "ok\n".into() } else { format!("ok\nfrom snapshot: {}\n", names.join(", ")) }
}

/// The services that `is_ready` waits for, with what their sources have said.
async fn waiting(admin: &State) -> Vec<Waiting> {
    let config = admin.config.load_full();
    let unanswered = admin.discovery.unanswered(&config).into_iter();
    join_all(unanswered.map(async |service| Waiting {
        sources: admin.discovery.status(&service).await.sources.into_iter().map(Source::from).collect(),
        service,
    }))
    .await
}

/// All that is missing, in one line that says it without the rest.
fn missing(listening: bool, draining: bool, applications: &[String], waiting: &[Waiting]) -> String {
    let mut missing = Vec::new();
    if draining {
        missing.push("pillion is stopping".to_owned());
    }
    if !listening {
        missing.push("not all listeners are bound yet".to_owned());
    }
    missing.extend(applications.iter().cloned());
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
        Source { source: source.into(), instances, failure: failure.map(Into::into), ..Source::default() }
    }

    #[test]
    fn everything_that_is_missing_is_said() {
        assert_eq!(missing(false, true, &[], &[]), "not ready: pillion is stopping; not all listeners are bound yet");
        let users = Waiting {
            service: "users".into(),
            sources: vec![source("main", None, Some("cannot reach x: refused")), source("old", Some(0), None)],
        };
        let orders = Waiting { service: "orders".into(), sources: vec![source("main", None, None)] };
        let lost = Waiting { service: "lost".into(), sources: Vec::new() };
        assert_eq!(
            missing(true, false, &["the application fails".into()], &[users, orders, lost]),
            "not ready: the application fails; no first answer about `users` (main: cannot reach x: refused, old: knows no instance); \
             no first answer about `orders` (main: has not answered yet); \
             no first answer about `lost` (it has no registry to ask)"
        );
    }
}
