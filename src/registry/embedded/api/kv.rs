//! The key-value store: a value is the body of `/kv/KEY`, its version the `ETag`. A change can be made to depend on that, by
//! `If-Match: "VERSION"`, or `If-None-Match: *` for a key that must not be there; 412 says that it is not so.

#[cfg(test)]
mod tests;

use super::{Api, Failure, HEARTBEAT, KEYS, MAX_WATCHES};
use crate::registry::{
    embedded::{
        Refusal,
        values::{Change, Condition, Map, Value},
    },
    store::below,
};
use axum::{
    Json,
    body::Bytes,
    extract::{
        Path, Query, State,
        rejection::{BytesRejection, PathRejection, QueryRejection},
    },
    http::{HeaderMap, HeaderName, StatusCode, header},
    response::{
        IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
};
use futures_util::stream;
use serde::Deserialize;
use serde_json::json;
use std::{convert::Infallible, sync::Arc};
use tokio::sync::{OwnedSemaphorePermit, watch};

const KEY: &str = "names of printable ASCII characters with `/` between them, like /kv/pillion/routes/users";
const CONDITION: &str = "`If-Match: \"VERSION\"`, `If-None-Match: *`, or neither";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Which {
    #[serde(default)]
    path: String,
    #[serde(default)]
    watch: bool,
}

pub(super) async fn one(State(api): State<Api>, key: Result<Path<String>, PathRejection>) -> Result<Response, Failure> {
    let key = asked(key)?;
    let value = api.registry.value(&key).await.map_err(|refusal| Failure::refused(&refusal, KEY))?;
    let Some(Value { text, version }) = value else { return Err(unknown(&key)) };
    let headers = [(header::CONTENT_TYPE, "text/plain; charset=utf-8".to_owned()), (header::ETAG, tag(version))];
    Ok((headers, text).into_response())
}

pub(super) async fn put(
    State(api): State<Api>,
    key: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Failure> {
    let (key, condition) = (asked(key)?, condition(&headers)?);
    let body = body.map_err(|rejection| Failure::new(rejection.status(), rejection.body_text(), "a smaller value"))?;
    let text = std::str::from_utf8(&body).map_err(|error| Failure::bad(error, "text in UTF-8"))?;
    let change = api.registry.put_value(&key, condition, text).await;
    changed(&key, change.map_err(|refusal| Failure::refused(&refusal, KEY))?)
}

pub(super) async fn delete(
    State(api): State<Api>,
    key: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
) -> Result<Response, Failure> {
    let (key, condition) = (asked(key)?, condition(&headers)?);
    let change = api.registry.delete_value(&key, condition).await.map_err(|refusal| Failure::refused(&refusal, KEY))?;
    match change {
        Change::Conflict(None) => Err(unknown(&key)),
        change => changed(&key, change),
    }
}

pub(super) async fn all(
    State(api): State<Api>,
    which: Result<Query<Which>, QueryRejection>,
) -> Result<Response, Failure> {
    let Query(Which { path, watch }) = which.map_err(|rejection| Failure::bad(rejection.body_text(), KEYS))?;
    let refused = |refusal| Failure::refused(&refusal, KEYS);
    let mut values = api.registry.watch_values().await.map_err(refused)?;
    let prefix = if path.is_empty() { path } else { below(path.trim_end_matches('/')) };
    if !watch {
        return Ok(Json(listed(&values.borrow(), &prefix)).into_response());
    }
    let permit = api.watches.clone().try_acquire_owned().map_err(|_| {
        Failure::new(StatusCode::TOO_MANY_REQUESTS, format!("there are {MAX_WATCHES} watches already"), "fewer of them")
    })?;
    // What there is now is the first event.
    values.mark_changed();
    let events = stream::unfold(Watch { values, prefix, told: None, _permit: permit }, Watch::next);
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(HEARTBEAT).text("alive")).into_response())
}

/// Holds no part of the registry, whose end therefore ends the watch.
struct Watch {
    values: watch::Receiver<Arc<Map>>,
    prefix: String,
    told: Option<serde_json::Value>,
    _permit: OwnedSemaphorePermit,
}

impl Watch {
    async fn next(mut self) -> Option<(Result<Event, Infallible>, Self)> {
        loop {
            self.values.changed().await.ok()?;
            let listed = listed(&self.values.borrow_and_update(), &self.prefix);
            // Something may have changed elsewhere.
            if self.told.as_ref() != Some(&listed) {
                let data = listed.to_string();
                self.told = Some(listed);
                return Some((Ok(Event::default().event("values").data(data)), self));
            }
        }
    }
}

fn listed(all: &Map, prefix: &str) -> serde_json::Value {
    let below = all.iter().filter(|(key, _)| key.starts_with(prefix));
    below.map(|(key, Value { text, version })| json!({ "key": key, "version": version, "value": text })).collect()
}

fn tag(version: u64) -> String {
    format!("\"{version}\"")
}

fn asked(key: Result<Path<String>, PathRejection>) -> Result<String, Failure> {
    key.map(|Path(key)| key).map_err(|rejection| Failure::bad(rejection.body_text(), KEY))
}

fn condition(headers: &HeaderMap) -> Result<Condition, Failure> {
    let get = |name: HeaderName| headers.get(name).map(|value| value.to_str().unwrap_or_default().trim());
    match (get(header::IF_MATCH), get(header::IF_NONE_MATCH)) {
        (None, None) => Ok(Condition::Any),
        (None, Some("*")) => Ok(Condition::Absent),
        (Some(tag), None) => {
            let version = tag.trim_matches('"').parse();
            version.map(Condition::Version).map_err(|_| Failure::bad(format!("`{tag}` is no version"), CONDITION))
        }
        _ => Err(Failure::bad("this condition cannot be checked", CONDITION)),
    }
}

fn changed(key: &str, change: Change) -> Result<Response, Failure> {
    match change {
        Change::Done(version) => {
            Ok(([(header::ETAG, tag(version))], Json(json!({ "key": key, "version": version }))).into_response())
        }
        Change::Conflict(there) => {
            let there = there.map_or("it is not there".into(), |version| format!("it is at version {version}"));
            Err(Failure::new(StatusCode::PRECONDITION_FAILED, there, "the version that was asked for"))
        }
        Change::Full => Err(Failure::refused(&Refusal::FullOfKeys, "")),
    }
}

fn unknown(key: &str) -> Failure {
    let error = format!("there is no key `{}`", key.escape_debug());
    Failure::new(StatusCode::NOT_FOUND, error, "a key that is there, as in GET /kv?path=")
}
