//! The HTTP API. Every answer is JSON, but for a value of the key-value store; an error says what was expected.

mod kv;

use super::{Embedded, Lease, Refusal, Registration};
use crate::{
    config::human,
    registry::{Instance, Protocol, layout::plain::Entry},
};
use axum::{
    Json, Router,
    body::Bytes,
    extract::{
        DefaultBodyLimit, Query, Request, State,
        rejection::{BytesRejection, QueryRejection},
    },
    http::{StatusCode, header},
    middleware::{self, Next},
    response::{
        IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
    routing::{get, post},
};
use futures_util::stream;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::json;
use std::{collections::BTreeMap, convert::Infallible, sync::Arc, time::Duration};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

const MAX_BODY: usize = 64 * 1024;

/// Watches at one time; each holds a connection.
const MAX_WATCHES: usize = 1024;

const HEARTBEAT: Duration = Duration::from_secs(15);

const REGISTER: &str = "JSON like {\"name\":\"users\",\"address\":\"10.0.0.7:8080\"}, and if wanted `id`, `weight`, `zone`, \
                        `protocol` (http1 or http2), `tls`, `labels` (texts by name), `ttl` (like \"30s\")";
const WHICH: &str = "JSON like {\"name\":\"users\",\"id\":\"10.0.0.7:8080\"}, with the id that `POST /register` gave";
const KEYS: &str = "the query `?path=PATH`, with `&watch=true` for what changes as well";
const PATHS: &str = "POST /register, POST /renew, POST /deregister, GET /discover?name=, GET /services, GET /watch?name=, \
                     GET, PUT and DELETE /kv/KEY, GET /kv?path=";

#[derive(Clone)]
struct Api {
    registry: Arc<Embedded>,
    watches: Arc<Semaphore>,
}

/// The registry's HTTP API.
pub fn router(registry: Arc<Embedded>) -> Router {
    Router::new()
        .route("/register", post(register))
        .route("/renew", post(renew))
        .route("/deregister", post(deregister))
        .route("/discover", get(discover))
        .route("/services", get(services))
        .route("/watch", get(watch))
        .route("/kv", get(kv::all))
        .route("/kv/{*key}", get(kv::one).put(kv::put).delete(kv::delete))
        .fallback(async || Failure::new(StatusCode::NOT_FOUND, "there is no such path", PATHS))
        .method_not_allowed_fallback(async || {
            Failure::new(StatusCode::METHOD_NOT_ALLOWED, "this path does not take this method", PATHS)
        })
        .layer(middleware::from_fn(refuse_web_pages))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(Api { registry, watches: Arc::new(Semaphore::new(MAX_WATCHES)) })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Register {
    name: String,
    address: String,
    id: Option<String>,
    weight: Option<u32>,
    zone: Option<String>,
    protocol: Option<Protocol>,
    tls: Option<bool>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    ttl: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Which {
    name: String,
    id: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Name {
    name: String,
}

async fn register(State(api): State<Api>, body: Result<Bytes, BytesRejection>) -> Result<Response, Failure> {
    let Register { name, address, id, weight, zone, protocol, tls, labels, ttl } = read(body, REGISTER)?;
    let ttl = ttl.map(|ttl| human::parse(&ttl)).transpose().map_err(|cause| Failure::bad(cause, REGISTER))?;
    let entry = Entry { address, id, weight, zone, protocol, tls, labels };
    let lease = api.registry.register(Registration { name, entry, ttl }).await;
    Ok(leased(lease.map_err(|refusal| Failure::refused(&refusal, REGISTER))?))
}

async fn renew(State(api): State<Api>, body: Result<Bytes, BytesRejection>) -> Result<Response, Failure> {
    let Which { name, id } = read(body, WHICH)?;
    let lease = api.registry.renew(&name, &id).await;
    Ok(leased(lease.map_err(|refusal| Failure::refused(&refusal, WHICH))?))
}

async fn deregister(State(api): State<Api>, body: Result<Bytes, BytesRejection>) -> Result<Response, Failure> {
    let Which { name, id } = read(body, WHICH)?;
    api.registry.deregister(&name, &id).await.map_err(|refusal| Failure::refused(&refusal, WHICH))?;
    Ok(Json(json!({ "name": name, "id": id })).into_response())
}

async fn discover(State(api): State<Api>, query: Result<Query<Name>, QueryRejection>) -> Result<Response, Failure> {
    let Name { name } = asked(query)?;
    let instances = api.registry.discover(&name).await.map_err(|refusal| Failure::refused(&refusal, ""))?;
    Ok(Json(entries(&instances)).into_response())
}

async fn services(State(api): State<Api>) -> Result<Response, Failure> {
    Ok(Json(api.registry.services().await.map_err(|refusal| Failure::refused(&refusal, ""))?).into_response())
}

async fn watch(State(api): State<Api>, query: Result<Query<Name>, QueryRejection>) -> Result<Response, Failure> {
    let Name { name } = asked(query)?;
    let permit = api.watches.clone().try_acquire_owned().map_err(|_| {
        Failure::new(StatusCode::TOO_MANY_REQUESTS, format!("there are {MAX_WATCHES} watches already"), "fewer of them")
    })?;
    let mut set = api.registry.watch_instances(&name).await.map_err(|refusal| Failure::refused(&refusal, ""))?;
    // The set that there is now is the first event.
    set.mark_changed();
    let events = stream::unfold(Watch { set, _permit: permit }, Watch::next);
    let heartbeat = KeepAlive::new().interval(HEARTBEAT).text("alive");
    Ok(Sse::new(events).keep_alive(heartbeat).into_response())
}

/// Holds no part of the registry, whose end therefore ends the watch.
struct Watch {
    set: watch::Receiver<Arc<[Instance]>>,
    _permit: OwnedSemaphorePermit,
}

impl Watch {
    async fn next(mut self) -> Option<(Result<Event, Infallible>, Self)> {
        self.set.changed().await.ok()?;
        let data = serde_json::to_string(&entries(&self.set.borrow_and_update())).ok()?;
        Some((Ok(Event::default().event("instances").data(data)), self))
    }
}

/// A web page that somebody on this machine looks at could otherwise register instances: its requests need no
/// permission to be *sent* here. Browsers mark them all with `Origin`, and nothing else does.
async fn refuse_web_pages(request: Request, next: Next) -> Response {
    if request.headers().contains_key(header::ORIGIN) {
        return Failure::new(StatusCode::FORBIDDEN, "requests of web pages are refused", "a request without `Origin`")
            .into_response();
    }
    next.run(request).await
}

fn leased(Lease { name, id, ttl }: Lease) -> Response {
    Json(json!({ "name": name, "id": id, "ttl": human::format(ttl) })).into_response()
}

fn entries(instances: &[Instance]) -> Vec<Entry> {
    instances.iter().map(Entry::from).collect()
}

fn read<T: DeserializeOwned>(body: Result<Bytes, BytesRejection>, expected: &'static str) -> Result<T, Failure> {
    // Whatever its content type: `curl -d` names a form, and there is only one kind of body here.
    let body = body.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => {
            Failure::new(StatusCode::PAYLOAD_TOO_LARGE, "the body is too large", format!("at most {MAX_BODY} bytes"))
        }
        status => Failure::new(status, rejection.body_text(), expected),
    })?;
    serde_json::from_slice(&body).map_err(|error| Failure::bad(error, expected))
}

fn asked(query: Result<Query<Name>, QueryRejection>) -> Result<Name, Failure> {
    let Query(name) = query.map_err(|rejection| Failure::bad(rejection.body_text(), "the query `?name=SERVICE`"))?;
    Ok(name)
}

/// An answer that is an error.
#[derive(Debug)]
struct Failure {
    status: StatusCode,
    error: String,
    expected: String,
}

impl Failure {
    fn new(status: StatusCode, error: impl Into<String>, expected: impl Into<String>) -> Self {
        Self { status, error: error.into(), expected: expected.into() }
    }

    fn bad(error: impl ToString, expected: &str) -> Self {
        Self::new(StatusCode::BAD_REQUEST, error.to_string(), expected)
    }

    fn refused(refusal: &Refusal, expected: &str) -> Self {
        let (status, expected) = match refusal {
            Refusal::Invalid(_) => (StatusCode::BAD_REQUEST, expected),
            Refusal::TooLarge(_) => (StatusCode::PAYLOAD_TOO_LARGE, "fewer or shorter labels"),
            Refusal::Unknown { .. } => {
                (StatusCode::NOT_FOUND, "an instance that is registered; it may have expired: register it again")
            }
            Refusal::FullOfKeys => (StatusCode::INSUFFICIENT_STORAGE, "room: delete keys"),
            Refusal::Full => (StatusCode::INSUFFICIENT_STORAGE, "room: deregister others, or wait until they expire"),
            Refusal::Stopped => (StatusCode::SERVICE_UNAVAILABLE, "a pillion that is not stopping"),
        };
        Self::new(status, refusal.to_string(), expected)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        (self.status, Json(json!({ "error": self.error, "expected": self.expected }))).into_response()
    }
}
