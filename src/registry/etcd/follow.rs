//! Following one service: list, then watch from there; list again whenever the watch cannot be trusted to be whole.

use super::{
    Etcd,
    connection::{CallError, Connection},
    proto::{
        EventType, KeyValue, RangeRequest, WatchCreateRequest, WatchProgressRequest, WatchRequest, WatchRequestUnion,
    },
};
use crate::{
    backoff::Backoff,
    registry::{Instance, Sink},
};
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep},
};
use tracing::{debug, warn};

/// Keys per page: about 100 KiB with what frameworks write.
const PAGE: i64 = 500;
/// How often the server is asked, in each watch, whether it is up to date. A quiet watch has no other sign of life:
/// etcd's own comes every 10 minutes.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(40);
/// At most one line about bad values per service in this time.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(60);

/// Follows `service` for ever.
pub async fn follow(etcd: Arc<Etcd>, service: String, sink: Sink) {
    let mut follower = Follower {
        prefix: etcd.keys.of_service(&service),
        service,
        found: BTreeMap::new(),
        backoff: Backoff::new(Duration::from_millis(100), Duration::from_secs(10)),
        complaints: Complaints::default(),
        etcd,
        sink,
    };
    loop {
        follower.session().await;
    }
}

struct Follower {
    etcd: Arc<Etcd>,
    service: String,
    /// What the service's keys begin with.
    prefix: String,
    sink: Sink,
    /// What each key (without the prefix) says. Kept over reconnects for keys whose new value cannot be read.
    found: BTreeMap<String, Vec<Instance>>,
    backoff: Backoff,
    complaints: Complaints,
}

impl Follower {
    /// From a connection to its end, or to the end of the watch.
    async fn session(&mut self) {
        let etcd = self.etcd.clone();
        let connection = match etcd.link.connection().await {
            Ok(connection) => connection,
            // The link itself waits before the next attempt.
            Err(error) => return self.sink.failed(error),
        };
        match self.list_and_watch(&connection).await {
            CallError::Member(error) => {
                debug!(registry = etcd.name, service = self.service, %error, "lost the member");
                self.sink.failed(error);
                etcd.link.give_up(&connection);
            }
            CallError::Call(error) => {
                debug!(registry = etcd.name, service = self.service, %error, "refused");
                self.sink.failed(error);
            }
            CallError::Revision(reason) => {
                debug!(registry = etcd.name, service = self.service, reason, "listing again");
            }
        }
        // Also after the loss of a member, though the link waits too: something between may let ranges through and no
        // watch, and then every connection would seem to work.
        sleep(self.backoff.next_wait()).await;
    }

    async fn list_and_watch(&mut self, connection: &Connection) -> CallError {
        let revision = match self.list(connection).await {
            Ok(revision) => revision,
            Err(error) => return error,
        };
        self.publish();
        match self.watch(connection, revision + 1).await {
            Ok(never) => match never {},
            Err(error) => error,
        }
    }

    /// Reads all keys at one revision, which it returns.
    async fn list(&mut self, connection: &Connection) -> Result<i64, CallError> {
        let mut fresh = BTreeMap::new();
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
            for kv in page.kvs {
                let Some((suffix, decoded)) = self.decode(&kv) else { continue };
                let instances = decoded.or_else(|| self.found.get(&suffix).cloned());
                fresh.insert(suffix, instances.unwrap_or_default());
            }
            match last {
                Some(mut key) if page.more => {
                    key.push(0);
                    request.key = key;
                }
                _ => break,
            }
        }
        self.found = fresh;
        Ok(request.revision)
    }

    async fn watch(
        &mut self,
        connection: &Connection,
        start_revision: i64,
    ) -> Result<std::convert::Infallible, CallError> {
        let (requests, mut queue) = mpsc::channel::<WatchRequest>(2);
        let create = WatchRequestUnion::Create(WatchCreateRequest {
            key: self.prefix.clone().into_bytes(),
            range_end: super::range_end(self.prefix.as_bytes()),
            start_revision,
            progress_notify: true,
            fragment: true,
        });
        // There is room for it.
        let _ = requests.try_send(WatchRequest { request: Some(create) });
        let mut answers = connection.watch(futures_util::stream::poll_fn(move |cx| queue.poll_recv(cx))).await?;
        let (mut changed, mut quiet) = (false, false);
        let mut revision = start_revision - 1;
        loop {
            let answer = tokio::select! {
                answer = answers.message() => answer,
                () = sleep(PROGRESS_INTERVAL.mul_f64(0.8 + 0.4 * fastrand::f64())) => {
                    // Full only if earlier ones could not be sent; the watchdog sees to that.
                    let ask = WatchRequestUnion::Progress(WatchProgressRequest {});
                    let _ = requests.try_send(WatchRequest { request: Some(ask) });
                    if std::mem::replace(&mut quiet, true) && self.revision(connection).await? == revision {
                        self.sink.alive();
                    }
                    continue;
                }
            };
            quiet = false;
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
            self.backoff.reset();
            revision = answer.header.map_or(revision, |header| header.revision.max(revision));
            for event in answer.events {
                let Some(kv) = event.kv else { continue };
                changed |= self.apply(&kv, event.kind == EventType::Delete as i32);
            }
            // The events of one revision may come in several pieces; they are one change.
            if answer.fragment {
                continue;
            }
            if std::mem::take(&mut changed) { self.publish() } else { self.sink.alive() }
        }
    }

    /// The cluster's revision now. etcd 3.6 does not report progress to a watch that is waiting for a revision which
    /// does not exist yet, that is, as long as nothing at all was written since the list. Then the revision is still
    /// that of the list, which proves as much.
    async fn revision(&self, connection: &Connection) -> Result<i64, CallError> {
        // Any key that the user may read; there is none at the prefix itself.
        let key = self.prefix.clone().into_bytes();
        let request = RangeRequest { key, range_end: Vec::new(), limit: 1, revision: 0, keys_only: true };
        let answer = connection.range(request).await?;
        Ok(answer.header.map_or(0, |header| header.revision))
    }

    /// Takes in one event. Whether it made a difference: frameworks put the same value again as their heartbeat.
    fn apply(&mut self, kv: &KeyValue, deleted: bool) -> bool {
        if deleted {
            let removed = self.suffix(&kv.key).and_then(|suffix| self.found.remove(suffix));
            return removed.is_some_and(|instances| !instances.is_empty());
        }
        let Some((suffix, Some(instances))) = self.decode(kv) else { return false };
        if self.found.get(&suffix) == Some(&instances) {
            return false;
        }
        self.found.insert(suffix, instances);
        true
    }

    fn publish(&self) {
        self.sink.set(self.found.values().flatten().cloned().collect());
    }

    /// The key without the prefix, and the instances that its value says, or none (and a line in the log) if it says
    /// nothing that can be read: one writer's mistake must not hide the others, nor itself if it was read before.
    fn decode(&mut self, kv: &KeyValue) -> Option<(String, Option<Vec<Instance>>)> {
        let suffix = self.suffix(&kv.key)?.to_owned();
        let decoded = self.etcd.keys.decode(&self.service, &suffix, &kv.value);
        let instances = decoded.inspect_err(|error| {
            if let Some(more) = self.complaints.may_complain() {
                let key = String::from_utf8_lossy(&kv.key);
                warn!(registry = self.etcd.name, %key, more, "ignoring a value: {error}");
            }
        });
        Some((suffix, instances.ok()))
    }

    fn suffix<'k>(&self, key: &'k [u8]) -> Option<&'k str> {
        std::str::from_utf8(key).ok()?.strip_prefix(&self.prefix)
    }
}

/// Keeps a writer that repeats its mistake from filling the log.
#[derive(Default)]
struct Complaints {
    not_before: Option<Instant>,
    unsaid: u64,
}

impl Complaints {
    /// If it is time to speak: how many complaints were swallowed since the last.
    fn may_complain(&mut self) -> Option<u64> {
        let now = Instant::now();
        if self.not_before.is_some_and(|time| now < time) {
            self.unsaid += 1;
            return None;
        }
        self.not_before = Some(now + COMPLAINT_INTERVAL);
        Some(std::mem::take(&mut self.unsaid))
    }
}
