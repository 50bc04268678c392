//! The API server's answers: whole ones, and watches, line by line.

use super::{
    access::{Access, Token},
    connection::{Connections, Place},
};
use crate::registry::{RegistryError, SetupError, watch::Failure};
use bytes::{Bytes, BytesMut};
use http::{
    HeaderMap, Request, StatusCode,
    header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER, USER_AGENT},
    request::Builder,
};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;
use std::time::Duration;
use tokio::time::timeout;

/// For a whole page of a list.
pub const LIST_TIMEOUT: Duration = Duration::from_secs(30);
/// For the head of an answer. A server that does not have a version that was asked for waits 3 s for it.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// A page is of 500 slices, each of 1000 endpoints at most, and mostly of 100, at 300 bytes each.
const LARGEST_ANSWER: usize = 64 << 20;
/// One slice.
const LONGEST_LINE: usize = 16 << 20;
/// As much of an error's text as fits in a line of a log.
const LONGEST_CAUSE: usize = 300;
/// What a server's `Retry-After` may come to, so that one strange answer does not stop a follower for long.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(60);
const AGENT: &str = concat!("pillion/", env!("CARGO_PKG_VERSION"));
pub const JSON: &str = "application/json";
/// Of a change: what is `null` goes, and what is not named stays (RFC 7386).
const MERGE_PATCH: &str = "application/merge-patch+json";
/// Only the metadata of what is listed.
pub const METADATA: &str = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";

/// What came instead of the answer.
#[derive(Debug)]
pub enum CallError {
    Error(RegistryError),
    /// There is no connection; the next attempt at one waits by itself.
    NoConnection(RegistryError),
    /// The server asks to be left alone for so long.
    Later(RegistryError, Duration),
    /// The version is gone, or not there (the cluster was restored): list again, from what is newest.
    Version(String),
    /// A watch has said nothing for longer than it should. If something is wrong, the next list will tell.
    Silence,
    /// There is no such object.
    Absent(RegistryError),
    /// It is at another version, or there is one of that name.
    Conflict(RegistryError),
}

impl From<RegistryError> for CallError {
    fn from(error: RegistryError) -> Self {
        Self::Error(error)
    }
}

impl From<CallError> for Failure {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Error(error)
            | CallError::Later(error, _)
            | CallError::Absent(error)
            | CallError::Conflict(error) => Self::Error(error),
            CallError::NoConnection(error) => Self::NoConnection(error),
            CallError::Version(reason) => Self::Stale(reason),
            CallError::Silence => Self::Stale("nothing was heard for too long".into()),
        }
    }
}

/// What the server says instead of what was asked for.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Status {
    pub code: u16,
    message: String,
    reason: String,
    details: Option<Details>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Details {
    /// The object's, where it is about one.
    name: String,
    /// Its kind, or what the kind is called in paths.
    kind: String,
    causes: Vec<Cause>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Cause {
    reason: String,
}

/// The API of one cluster.
pub struct Api {
    connections: Connections,
    token: Token,
}

impl Api {
    pub fn new(access: Access) -> Result<Self, SetupError> {
        Ok(Self { connections: Connections::new(&access)?, token: access.token })
    }

    /// The whole answer at `path`, in the form `accept`: [`JSON`] or [`METADATA`].
    pub async fn get<T: DeserializeOwned>(&self, path: &str, accept: &'static str) -> Result<T, CallError> {
        self.whole(Request::get(path).header(ACCEPT, accept), Bytes::new()).await
    }

    /// Makes a new object, in the collection at `path`, and gives it as it is then.
    pub async fn create<T: DeserializeOwned>(&self, path: &str, object: &Value) -> Result<T, CallError> {
        let request = Request::post(path).header(ACCEPT, JSON).header(CONTENT_TYPE, JSON);
        self.whole(request, object.to_string().into()).await
    }

    /// Changes the object at `path`, if it is still at the version that `changes` may name, and gives it as it is then.
    pub async fn change<T: DeserializeOwned>(&self, path: &str, changes: &Value) -> Result<T, CallError> {
        let request = Request::patch(path).header(ACCEPT, JSON).header(CONTENT_TYPE, MERGE_PATCH);
        self.whole(request, changes.to_string().into()).await
    }

    async fn whole<T: DeserializeOwned>(&self, request: Builder, body: Bytes) -> Result<T, CallError> {
        let (place, body) = self.open(request, body).await?;
        let body = timeout(LIST_TIMEOUT, Limited::new(body, LARGEST_ANSWER).collect()).await;
        let body = body.map_err(|_| place.unreachable(format!("no whole answer within {LIST_TIMEOUT:?}")))?;
        let body = body.map_err(|error| match error.downcast::<hyper::Error>() {
            Ok(error) => place.broken(&error),
            Err(error) => place.protocol(error),
        })?;
        Ok(serde_json::from_slice(&body.to_bytes()).map_err(|error| place.protocol(error))?)
    }

    pub async fn watch(&self, path: &str) -> Result<Stream, CallError> {
        let (place, body) = self.open(Request::get(path).header(ACCEPT, JSON), Bytes::new()).await?;
        Ok(Stream { place, body, lines: Lines::default() })
    }

    async fn open(&self, request: Builder, body: Bytes) -> Result<(Place, Incoming), CallError> {
        let place = self.connections.place().await.map_err(CallError::NoConnection)?;
        let mut request = request.header(USER_AGENT, AGENT);
        let token = self.token.header().await;
        let token = token.map_err(|cause| RegistryError::Refused { server: place.server().into(), cause })?;
        if let Some(token) = token {
            request = request.header(AUTHORIZATION, token);
        }
        let request = request.body(body.into()).map_err(|error| place.protocol(error))?;
        let answer = place.exchange(request, HEAD_TIMEOUT).await;
        let (head, body) = answer.inspect_err(|_| place.give_up())?.into_parts();
        if matches!(head.status, StatusCode::OK | StatusCode::CREATED) {
            place.worked();
            return Ok((place, body));
        }
        let text = timeout(HEAD_TIMEOUT, Limited::new(body, LARGEST_ANSWER).collect()).await;
        let text = text.ok().and_then(Result::ok).map(|text| text.to_bytes()).unwrap_or_default();
        let error = refusal(place.server(), head.status, &head.headers, &text);
        // Of several servers another one may be ready.
        if self.connections.are_several() && head.status.is_server_error() && !matches!(error, CallError::Version(_)) {
            place.give_up();
        }
        Err(error)
    }
}

/// What an answer other than 200 means.
fn refusal(server: &str, status: StatusCode, headers: &HeaderMap, body: &[u8]) -> CallError {
    let said: Status = serde_json::from_slice(body).unwrap_or_default();
    let message = match said.message.as_str() {
        "" => String::from_utf8_lossy(body).trim().chars().take(LONGEST_CAUSE).collect(),
        message => message.to_owned(),
    };
    let error = match said.error(server, status, &message) {
        CallError::Error(error) => error,
        other => return other,
    };
    let wait = headers.get(RETRY_AFTER).and_then(|wait| wait.to_str().ok()?.trim().parse().ok());
    match wait {
        Some(seconds) => CallError::Later(error, Duration::from_secs(seconds).min(LONGEST_RETRY_AFTER)),
        None => CallError::Error(error),
    }
}

impl Status {
    /// What it means as an event of a watch.
    pub fn into_error(self, server: &str) -> CallError {
        let status = StatusCode::from_u16(self.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        self.error(server, status, &self.message)
    }

    fn error(&self, server: &str, status: StatusCode, message: &str) -> CallError {
        let causes = self.details.iter().flat_map(|details| &details.causes);
        let too_new = causes.map(|cause| cause.reason.as_str()).any(|reason| reason == "ResourceVersionTooLarge");
        if too_new || status == StatusCode::GONE || matches!(self.reason.as_str(), "Expired" | "Gone") {
            return CallError::Version(message.to_owned());
        }
        let details = self.details.as_ref();
        let (kind, name) = details.map_or(("", ""), |details| (details.kind.as_str(), details.name.as_str()));
        let help = match status {
            StatusCode::UNAUTHORIZED => "; is the token valid, and of this cluster?",
            StatusCode::FORBIDDEN => match kind {
                "configmaps" => {
                    "; needed are `get`, `list` and `watch` of `configmaps`, and to write `create` and `patch`"
                }
                "leases" => "; needed are `get`, `create` and `patch` of `leases` in `coordination.k8s.io`",
                _ => "; needed are `get`, `list` and `watch` of `endpointslices` in `discovery.k8s.io`",
            },
            StatusCode::NOT_FOUND if name.is_empty() => "; needed is Kubernetes 1.21 or newer",
            _ => "",
        };
        let (server, cause) = (server.to_owned(), format!("{status}: {message}{help}"));
        let error = match status {
            StatusCode::UNAUTHORIZED
            | StatusCode::FORBIDDEN
            | StatusCode::BAD_REQUEST
            | StatusCode::UNPROCESSABLE_ENTITY => RegistryError::Refused { server, cause },
            StatusCode::TOO_MANY_REQUESTS => RegistryError::Busy { server, cause },
            _ if status.is_server_error() => RegistryError::Busy { server, cause },
            _ => RegistryError::Protocol { server, cause },
        };
        match status {
            StatusCode::NOT_FOUND if !name.is_empty() => CallError::Absent(error),
            StatusCode::CONFLICT => CallError::Conflict(error),
            _ => CallError::Error(error),
        }
    }
}

/// A watch: an event per line. Dropping it ends it at the server.
pub struct Stream {
    place: Place,
    body: Incoming,
    lines: Lines,
}

impl Stream {
    /// Waits for more of it. `false` if it has ended as it should.
    pub async fn more(&mut self) -> Result<bool, RegistryError> {
        loop {
            return match self.body.frame().await {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => {
                        self.lines.push(&data).map_err(|error| self.place.protocol(error))?;
                        Ok(true)
                    }
                    Err(_) => continue,
                },
                Some(Err(error)) => Err(self.place.broken(&error)),
                None if self.lines.is_empty() => Ok(false),
                None => Err(self.place.unreachable("the watch ended in the middle of an event")),
            };
        }
    }

    /// The next line that is whole.
    pub fn line(&mut self) -> Option<BytesMut> {
        self.lines.next()
    }

    /// The server, as errors name it.
    pub fn server(&self) -> &str {
        self.place.server()
    }
}

/// Cuts what arrives into lines.
#[derive(Default)]
struct Lines {
    buffer: BytesMut,
    /// How much of it is known to have no end of a line.
    searched: usize,
}

impl Lines {
    fn push(&mut self, bytes: &[u8]) -> Result<(), String> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() > LONGEST_LINE && memchr::memchr(b'\n', &self.buffer[self.searched..]).is_none() {
            return Err(format!("an event of more than {LONGEST_LINE} bytes"));
        }
        Ok(())
    }

    /// Without its end.
    fn next(&mut self) -> Option<BytesMut> {
        let Some(end) = memchr::memchr(b'\n', &self.buffer[self.searched..]) else {
            self.searched = self.buffer.len();
            return None;
        };
        let mut line = self.buffer.split_to(self.searched + end + 1);
        line.truncate(line.len() - 1);
        self.searched = 0;
        Some(line)
    }

    fn is_empty(&self) -> bool {
        self.buffer.iter().all(u8::is_ascii_whitespace)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn answers_are_told_apart() {
        let expired =
            r#"{"kind":"Status","message":"The provided continue parameter is too old","reason":"Expired","code":410}"#;
        let too_new = r#"{"kind":"Status","message":"Timeout: Too large resource version: 99999, current: 2",
            "reason":"Timeout","details":{"causes":[{"reason":"ResourceVersionTooLarge","message":"Too large resource version"}],
            "retryAfterSeconds":1},"code":504}"#;
        let forbidden = r#"{"kind":"Status","message":"endpointslices.discovery.k8s.io is forbidden: User \"reader\" cannot list","reason":"Forbidden","code":403}"#;
        let no_map = r#"{"kind":"Status","message":"configmaps \"a\" not found","reason":"NotFound",
            "details":{"name":"a","kind":"configmaps"},"code":404}"#;
        let changed = r#"{"kind":"Status","message":"Operation cannot be fulfilled on configmaps \"a\": the object has been modified; please apply your changes to the latest version and try again","reason":"Conflict","details":{"name":"a","kind":"configmaps"},"code":409}"#;
        let no_right = r#"{"kind":"Status","message":"leases.coordination.k8s.io is forbidden","reason":"Forbidden",
            "details":{"group":"coordination.k8s.io","kind":"leases"},"code":403}"#;
        for (status, retry_after, body, expected) in [
            (410, None, expired, "Version(\"The provided continue"),
            (410, None, "", "Version("),
            (504, Some("1"), too_new, "Version(\"Timeout: Too large"),
            (504, None, "", "Error(Busy"),
            (403, None, forbidden, "needed are `get`, `list` and `watch`"),
            (401, None, "Unauthorized", "Error(Refused"),
            (400, None, "", "Error(Refused"),
            (404, None, "404 page not found", "1.21 or newer"),
            (404, None, no_map, "Absent(Protocol"),
            (409, None, changed, "Conflict(Protocol"),
            (403, None, no_right, "of `leases` in `coordination.k8s.io`"),
            (422, None, "", "Error(Refused"),
            (429, Some("7"), "", "7s)"),
            (429, Some("86400"), "", "60s)"),
            (429, Some("soon"), "", "Error(Busy"),
            (503, Some("2"), "apiserver is shutting down", "2s)"),
            (302, None, "", "Error(Protocol"),
        ] {
            let mut headers = HeaderMap::new();
            if let Some(wait) = retry_after {
                headers.insert(RETRY_AFTER, wait.parse().unwrap());
            }
            let error = refusal("s", StatusCode::from_u16(status).unwrap(), &headers, body.as_bytes());
            let shown = format!("{error:?}");
            assert!(shown.contains(expected), "{status} {body}: {shown}");
        }
    }

    proptest! {
        #[test]
        fn lines_come_out_however_they_arrive(lines in prop::collection::vec("[a-z]{0,9}", 0..9), piece in 1usize..9) {
            let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
            let (mut cut, mut found) = (Lines::default(), Vec::new());
            for bytes in format!("{text}rest").as_bytes().chunks(piece) {
                cut.push(bytes).unwrap();
                while let Some(line) = cut.next() {
                    found.push(String::from_utf8(line.to_vec()).unwrap());
                }
            }
            prop_assert_eq!(found, lines);
            prop_assert!(!cut.is_empty());
        }
    }
}
