//! Following the keys that begin with a prefix: a range, then a watch from that revision.

use super::{
    Etcd,
    connection::{CallError, Connection},
    proto::{
        EventType, KeyValue, RangeRequest, WatchCreateRequest, WatchProgressRequest, WatchRequest, WatchRequestUnion,
        WatchResponse,
    },
};
use crate::registry::watch::{Failure, News, Watch};
use std::{sync::Arc, time::Duration};
use tokio::{sync::mpsc, time::sleep};
use tonic::Streaming;

/// Keys per page: about 100 KiB with what frameworks write.
const PAGE: i64 = 500;
/// How often the server is asked, in each watch, whether it is up to date. A quiet watch has no other sign of life:
/// etcd's own comes every 10 minutes.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(40);

/// What is made of keys and their values.
pub trait Content: Send + Sync {
    /// What its listeners get.
    type Set;

    /// These are all that there are.
    fn replace(&mut self, all: Vec<KeyValue>);

    /// Takes in one of them. Whether it made a difference: frameworks put the same value again as their heartbeat.
    fn put(&mut self, kv: KeyValue) -> bool;

    /// A key is gone. Whether it made a difference.
    fn delete(&mut self, key: &[u8]) -> bool;

    fn current(&self) -> Self::Set;
}

/// The keys that begin with a prefix.
pub struct Keyspace<C> {
    etcd: Arc<Etcd>,
    prefix: String,
    content: C,
    /// The revision up to which this is known.
    revision: i64,
    connection: Option<Arc<Connection>>,
    stream: Option<Stream>,
}

/// A watch at the server.
struct Stream {
    requests: mpsc::Sender<WatchRequest>,
    answers: Streaming<WatchResponse>,
    /// Nothing was heard since the server was asked for its progress.
    quiet: bool,
    /// Whether the pieces of a change that came so far made a difference.
    changed: bool,
}

impl<C: Content> Watch<C::Set> for Keyspace<C>
where
    C::Set: Send,
{
    async fn list(&mut self) -> Result<C::Set, Failure> {
        self.stream = None;
        let connection = self.etcd.link.connection().await.map_err(Failure::NoConnection)?;
        self.connection = Some(connection.clone());
        self.range(&connection).await.map_err(|error| self.failed(error))?;
        Ok(self.content.current())
    }

    async fn next(&mut self) -> Result<News<C::Set>, Failure> {
        let Some(connection) = self.connection.clone() else {
            return Err(Failure::Stale("there is no connection".into()));
        };
        self.hear(&connection).await.map_err(|error| self.failed(error))
    }
}

impl<C: Content> Keyspace<C> {
    pub fn new(etcd: Arc<Etcd>, prefix: String, content: C) -> Self {
        Self { etcd, prefix, content, revision: 0, connection: None, stream: None }
    }

    fn failed(&mut self, error: CallError) -> Failure {
        if let (CallError::Member(_), Some(connection)) = (&error, &self.connection) {
            self.etcd.link.give_up(connection);
        }
        error.into()
    }

    /// Reads all keys at one revision.
    async fn range(&mut self, connection: &Connection) -> Result<(), CallError> {
        let mut all = Vec::new();
        let range_end = super::range_end(self.prefix.as_bytes());
        let mut request = RangeRequest {
            key: self.prefix.clone().into_bytes(),
            range_end,
            limit: PAGE,
            revision: 0,
            keys_only: false,
        };
        loop {
            let page = connection.range(request.clone()).await?;
            if request.revision == 0 {
                request.revision = page.header.map_or(0, |header| header.revision);
            }
            let last = page.kvs.last().map(|kv| kv.key.clone());
            all.extend(page.kvs);
            match last {
                Some(mut key) if page.more => {
                    key.push(0);
                    request.key = key;
                }
                _ => break,
            }
        }
        self.content.replace(all);
        self.revision = request.revision;
        Ok(())
    }

    async fn open(&self, connection: &Connection) -> Result<Stream, CallError> {
        let (requests, mut queue) = mpsc::channel::<WatchRequest>(2);
        let create = WatchRequestUnion::Create(WatchCreateRequest {
            key: self.prefix.clone().into_bytes(),
            range_end: super::range_end(self.prefix.as_bytes()),
            start_revision: self.revision + 1,
            progress_notify: true,
            fragment: true,
        });
        // There is room for it.
        let _ = requests.try_send(WatchRequest { request: Some(create) });
        let answers = connection.watch(futures_util::stream::poll_fn(move |cx| queue.poll_recv(cx))).await?;
        Ok(Stream { requests, answers, quiet: false, changed: false })
    }

    async fn hear(&mut self, connection: &Connection) -> Result<News<C::Set>, CallError> {
        let mut stream = match self.stream.take() {
            Some(stream) => stream,
            None => self.open(connection).await?,
        };
        let news = loop {
            let answer = tokio::select! {
                answer = stream.answers.message() => answer,
                () = sleep(PROGRESS_INTERVAL.mul_f64(0.8 + 0.4 * fastrand::f64())) => {
                    // Full only if earlier ones could not be sent; the watchdog sees to that.
                    let ask = WatchRequestUnion::Progress(WatchProgressRequest {});
                    let _ = stream.requests.try_send(WatchRequest { request: Some(ask) });
                    if std::mem::replace(&mut stream.quiet, true) && self.newest(connection).await? == self.revision {
                        break News::Alive;
                    }
                    continue;
                }
            };
            stream.quiet = false;
            let answer = match answer {
                Ok(Some(answer)) => answer,
                Ok(None) => return Err(connection.canceled("the stream ended", 0)),
                Err(status) => return Err(connection.call_error(&status)),
            };
            if answer.canceled {
                return Err(connection.canceled(&answer.cancel_reason, answer.compact_revision));
            }
            if answer.created {
                continue;
            }
            self.revision = answer.header.map_or(self.revision, |header| header.revision.max(self.revision));
            for event in answer.events {
                let Some(kv) = event.kv else { continue };
                let is_gone = event.kind == EventType::Delete as i32;
                stream.changed |= if is_gone { self.content.delete(&kv.key) } else { self.content.put(kv) };
            }
            // The events of one revision may come in several pieces; they are one change.
            if answer.fragment {
                continue;
            }
            break if std::mem::take(&mut stream.changed) { News::Set(self.content.current()) } else { News::Alive };
        };
        self.stream = Some(stream);
        Ok(news)
    }

    /// The cluster's revision now. etcd 3.6 does not report progress to a watch that is waiting for a revision which
    /// does not exist yet, that is, as long as nothing at all was written since the list. Then the revision is still
    /// that of the list, which proves as much.
    async fn newest(&self, connection: &Connection) -> Result<i64, CallError> {
        // Any key that the user may read; there is none at the prefix itself.
        let key = self.prefix.clone().into_bytes();
        let request = RangeRequest { key, range_end: Vec::new(), limit: 1, revision: 0, keys_only: true };
        let answer = connection.range(request).await?;
        Ok(answer.header.map_or(0, |header| header.revision))
    }
}
