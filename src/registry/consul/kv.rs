//! Requests to Consul's KV store, and for the sessions that locks hang on.

use super::client::{Ask, Client, MARGIN, Page, encoded};
use crate::registry::RegistryError;
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use bytes::Bytes;
use http::{Method, StatusCode};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use serde_json::json;
use std::time::Duration;

/// What of a key needs no escape. A `/` is a part of it.
const KEY: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'/');

/// The TTLs that a session can have.
const TTL: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(86_400));

/// A key as Consul tells it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Pair {
    pub key: String,
    /// In base64; `null` if it is empty.
    value: Option<String>,
    pub modify_index: u64,
    /// Who has the lock.
    pub session: Option<String>,
}

impl Pair {
    pub fn value(&self) -> Result<Bytes, base64::DecodeError> {
        BASE64.decode(self.value.as_deref().unwrap_or_default()).map(Bytes::from)
    }
}

impl Client {
    /// The keys that begin with `prefix`.
    pub async fn pairs(&self, prefix: &str, ask: Ask) -> Result<Page<Vec<Pair>>, RegistryError> {
        let path = format!("/v1/kv/{}?recurse&{}", key(prefix), self.parameters(ask));
        let answer = self.send(Method::GET, &path, Bytes::new(), ask.limit()).await?;
        let rows = match answer.status {
            StatusCode::OK => serde_json::from_slice(&answer.body).map_err(|error| self.protocol(error))?,
            StatusCode::NOT_FOUND => Vec::new(),
            _ => return Err(self.denied(self.refusal(&answer), "key:read")),
        };
        self.check_leader(&answer)?;
        // Keys that are hidden must not look like keys that are gone.
        if self.is_filtered(&answer) || (rows.is_empty() && self.sees_nothing(&answer)) {
            let cause = format!("not all keys below `{prefix}` can be read; needed is key:read for all of them");
            return Err(RegistryError::Refused { server: self.server().into(), cause });
        }
        Ok(Page { index: self.index_of(&answer)?, rows })
    }

    /// The key as the leader has it.
    pub async fn pair(&self, name: &str) -> Result<Option<Pair>, RegistryError> {
        let path = format!("/v1/kv/{}?{}", key(name), self.parameters(Ask::Leader));
        let answer = self.send(Method::GET, &path, Bytes::new(), MARGIN).await?;
        match answer.status {
            StatusCode::OK => {
                let rows: Vec<Pair> = serde_json::from_slice(&answer.body).map_err(|error| self.protocol(error))?;
                Ok(rows.into_iter().next())
            }
            StatusCode::NOT_FOUND => Ok(None),
            _ => Err(self.denied(self.refusal(&answer), "key:read")),
        }
    }

    /// Puts a value if the key was last changed at this index, or is not there (0); gives the index of now.
    pub async fn swap(&self, name: &str, index: u64, value: &[u8]) -> Result<Option<u64>, RegistryError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Done {
            results: Vec<Result>,
        }
        #[derive(Deserialize)]
        struct Result {
            #[serde(rename = "KV")]
            kv: Changed,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Changed {
            modify_index: u64,
        }
        let operation = json!([{"KV": {"Verb": "cas", "Key": name, "Value": BASE64.encode(value), "Index": index}}]);
        let path = format!("/v1/txn?{}", self.dc());
        let answer = self.send(Method::PUT, &path, operation.to_string().into(), MARGIN).await?;
        match answer.status {
            StatusCode::OK => {
                let done: Done = serde_json::from_slice(&answer.body).map_err(|error| self.protocol(error))?;
                let changed = done.results.first().ok_or_else(|| self.protocol("it did nothing"))?;
                Ok(Some(changed.kv.modify_index))
            }
            // What was compared was not so, or rights are missing.
            StatusCode::CONFLICT if !String::from_utf8_lossy(&answer.body).contains("Permission denied") => Ok(None),
            _ => Err(self.denied(self.refusal(&answer), "key:write")),
        }
    }

    /// A new session, which ends when it is not renewed for `ttl`, and the keys that hang on it with it.
    pub async fn session(&self, name: &str, ttl: Duration) -> Result<String, RegistryError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Created {
            #[serde(rename = "ID")]
            id: String,
        }
        let seconds = ttl.clamp(TTL.0, TTL.1).as_millis().div_ceil(1000);
        // After a session's end Consul keeps its keys from others for 15 s by default, against holders that do not know that
        // they have lost them. What is done under a lock of ours is compare-and-set besides. 0 would mean the default.
        let session = json!({"Name": name, "TTL": format!("{seconds}s"), "Behavior": "delete", "LockDelay": "1ms"});
        let path = format!("/v1/session/create?{}", self.dc());
        let answer = self.send(Method::PUT, &path, session.to_string().into(), MARGIN).await?;
        if answer.status != StatusCode::OK {
            return Err(self.denied(self.refusal(&answer), "session:write"));
        }
        serde_json::from_slice(&answer.body).map(|Created { id }| id).map_err(|error| self.protocol(error))
    }

    /// Starts a session's time anew. False: it has ended.
    pub async fn renew_session(&self, id: &str) -> Result<bool, RegistryError> {
        let path = format!("/v1/session/renew/{id}?{}", self.dc());
        let answer = self.send(Method::PUT, &path, Bytes::new(), MARGIN).await?;
        match answer.status {
            StatusCode::OK => Ok(true),
            StatusCode::NOT_FOUND => Ok(false),
            _ => Err(self.denied(self.refusal(&answer), "session:write")),
        }
    }

    pub async fn end_session(&self, id: &str) -> Result<(), RegistryError> {
        let path = format!("/v1/session/destroy/{id}?{}", self.dc());
        let answer = self.send(Method::PUT, &path, Bytes::new(), MARGIN).await?;
        if answer.status == StatusCode::OK { Ok(()) } else { Err(self.refusal(&answer)) }
    }

    /// Hangs the key on a session. False: it hangs on another one.
    pub async fn acquire(&self, name: &str, session: &str, value: &str) -> Result<bool, RegistryError> {
        let path = format!("/v1/kv/{}?acquire={}{}", key(name), encoded(session), self.dc());
        let answer = self.send(Method::PUT, &path, value.to_owned().into(), MARGIN).await?;
        match answer.status {
            StatusCode::OK => Ok(answer.body.trim_ascii() == b"true"),
            // Ended between two calls.
            StatusCode::INTERNAL_SERVER_ERROR if String::from_utf8_lossy(&answer.body).contains("invalid session") => {
                Ok(false)
            }
            _ => Err(self.denied(self.refusal(&answer), "key:write and session:write")),
        }
    }

    /// The error, with the rights that are needed if it is for want of them.
    fn denied(&self, error: RegistryError, needed: &str) -> RegistryError {
        match error {
            RegistryError::Refused { server, cause }
                if cause.starts_with("403") || cause.contains("Permission denied") =>
            {
                RegistryError::Refused { server, cause: format!("{cause}; needed is {needed}") }
            }
            other => other,
        }
    }
}

fn key(name: &str) -> impl std::fmt::Display {
    utf8_percent_encode(name, KEY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_read_as_consul_writes_them() {
        let text = r#"[
            {"LockIndex": 1, "Key": "a/b", "Flags": 0, "Value": "aGVsbG8=", "CreateIndex": 5, "ModifyIndex": 7,
             "Session": "adf4238a-882b-9ddc-4a9d-5b6758e4159e"},
            {"LockIndex": 0, "Key": "a/empty", "Flags": 0, "Value": null, "CreateIndex": 6, "ModifyIndex": 6}]"#;
        let pairs: Vec<Pair> = serde_json::from_str(text).unwrap();
        assert_eq!((pairs[0].value().unwrap(), pairs[0].modify_index), (Bytes::from_static(b"hello"), 7));
        assert!(pairs[0].session.is_some());
        assert_eq!((pairs[1].value().unwrap(), &pairs[1].session), (Bytes::new(), &None));
        let damaged = Pair { value: Some("%".into()), ..pairs[1].clone() };
        assert!(damaged.value().is_err());
    }

    #[test]
    fn keys_are_escaped_but_for_their_slashes() {
        assert_eq!(key("pillion/routes/a b?%#ä").to_string(), "pillion/routes/a%20b%3F%25%23%C3%A4");
    }
}
