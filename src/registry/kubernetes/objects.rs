//! Following objects of one kind, whatever they mean: they are listed, then watched from that version on.

use super::{
    Kubernetes,
    api::{CallError, JSON, Status, Stream},
};
use crate::registry::{RegistryError, watch::Failure};
use serde::{Deserialize, Deserializer, de::DeserializeOwned};
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::time::{Instant, sleep_until, timeout};

/// Objects per page.
const PAGE: u32 = 500;
/// How long one watch lasts. Its end is the server's chance to spread its clients anew.
const LEAST_WATCH: Duration = Duration::from_secs(240);
const LONGEST_WATCH: Duration = Duration::from_secs(300);
/// After this long without an event, not even a bookmark, the watch is not trusted. Bookmarks come once a minute, the first
/// of a server that has just started after two (seen with 1.34).
pub const SILENCE: Duration = Duration::from_secs(150);
/// A watch that ends sooner, without a word, has not worked.
const SHORTEST_WATCH: Duration = Duration::from_secs(1);

/// What can be followed.
pub trait Object: DeserializeOwned {
    fn metadata(&self) -> &Metadata;
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Metadata {
    pub name: String,
    #[serde(default)]
    pub resource_version: String,
    #[serde(default, deserialize_with = "null_is_empty")]
    pub labels: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(bound = "O: DeserializeOwned")]
pub(super) struct List<O> {
    pub(super) metadata: ListMetadata,
    #[serde(default, deserialize_with = "null_is_empty")]
    pub(super) items: Vec<O>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ListMetadata {
    #[serde(default)]
    resource_version: String,
    /// What to ask the next page with; empty after the last.
    #[serde(default, rename = "continue")]
    pub next: String,
}

/// A line of a watch.
#[derive(Deserialize)]
#[serde(tag = "type", content = "object", rename_all = "UPPERCASE")]
enum Event<O> {
    Added(O),
    Modified(O),
    Deleted(O),
    Bookmark(Bookmark),
    Error(Status),
}

#[derive(Deserialize)]
struct Bookmark {
    metadata: BookmarkMetadata,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct BookmarkMetadata {
    resource_version: String,
}

/// The objects that there are.
pub struct Objects<O> {
    kubernetes: Arc<Kubernetes>,
    /// With a query, to which more can be added.
    path: String,
    /// By name.
    pub(super) all: BTreeMap<String, O>,
    /// The newest version that was seen, where the next watch starts; empty before the first list.
    version: String,
    /// Whether that version is no measure any more: it is gone, or not there.
    lost: bool,
    watch: Option<Watching>,
    /// The server has asked not to be asked before.
    not_before: Option<Instant>,
}

struct Watching {
    stream: Stream,
    since: Instant,
    heard: bool,
}

impl<O: Object> Objects<O> {
    pub fn new(kubernetes: Arc<Kubernetes>, path: String) -> Self {
        Self {
            kubernetes,
            path,
            all: BTreeMap::new(),
            version: String::new(),
            lost: false,
            watch: None,
            not_before: None,
        }
    }

    /// Reads them all.
    pub async fn list(&mut self) -> Result<(), Failure> {
        self.watch = None;
        if let Some(time) = self.not_before.take() {
            sleep_until(time).await;
        }
        self.read().await.map_err(|error| self.failed(error))
    }

    /// Waits for what the watch says next, and whether that changed anything.
    pub async fn next(&mut self) -> Result<bool, Failure> {
        self.hear().await.map_err(|error| self.failed(error))
    }

    async fn read(&mut self) -> Result<(), CallError> {
        let mut fresh = BTreeMap::new();
        // Served from the API server's memory: whatever it has at first, then nothing older than was seen, whichever server
        // answers. Only without a version is etcd itself asked.
        let mut query = match self.version.as_str() {
            _ if self.lost => String::new(),
            "" => "&resourceVersion=0".to_owned(),
            version => format!("&resourceVersion={version}&resourceVersionMatch=NotOlderThan"),
        };
        loop {
            let path = format!("{}&limit={PAGE}{query}", self.path);
            let list: List<O> = self.kubernetes.api.get(&path, JSON).await?;
            fresh.extend(list.items.into_iter().map(|object| (object.metadata().name.clone(), object)));
            if list.metadata.next.is_empty() {
                self.version = list.metadata.resource_version;
                break;
            }
            query = format!("&continue={}", super::encoded(&list.metadata.next));
        }
        self.all = fresh;
        self.lost = false;
        Ok(())
    }

    async fn open(&self) -> Result<Watching, CallError> {
        let lasting = LEAST_WATCH + (LONGEST_WATCH - LEAST_WATCH).mul_f64(fastrand::f64());
        let path = format!(
            "{}&watch=1&allowWatchBookmarks=true&resourceVersion={}&timeoutSeconds={}",
            self.path,
            self.version,
            lasting.as_secs()
        );
        let stream = self.kubernetes.api.watch(&path).await?;
        Ok(Watching { stream, since: Instant::now(), heard: false })
    }

    /// Takes in one line of a watch at `server`. Whether it changed the objects.
    pub(super) fn apply(&mut self, line: &[u8], server: &str) -> Result<bool, CallError> {
        let event: Event<O> = serde_json::from_slice(line)
            .map_err(|error| RegistryError::Protocol { server: server.into(), cause: format!("an event: {error}") })?;
        let (object, gone) = match event {
            Event::Added(object) | Event::Modified(object) => (object, false),
            Event::Deleted(object) => (object, true),
            Event::Bookmark(bookmark) => {
                self.move_to(bookmark.metadata.resource_version)?;
                return Ok(false);
            }
            Event::Error(status) => return Err(status.into_error(server)),
        };
        self.move_to(object.metadata().resource_version.clone())?;
        if gone {
            self.all.remove(&object.metadata().name);
        } else {
            self.all.insert(object.metadata().name.clone(), object);
        }
        Ok(true)
    }

    /// A server that was restored from an older state takes a watch from a version that it does not have, and would be
    /// silent until it has: its bookmarks tell.
    fn move_to(&mut self, version: String) -> Result<(), CallError> {
        let numbers = (version.parse::<u64>(), self.version.parse::<u64>());
        if let (Ok(new), Ok(old)) = numbers
            && new < old
        {
            return Err(CallError::Version(format!("the version went back from {old} to {new}")));
        }
        self.version = version;
        Ok(())
    }

    /// What is to be remembered of an error until the next list.
    fn failed(&mut self, error: CallError) -> Failure {
        self.watch = None;
        match &error {
            CallError::Version(_) => self.lost = true,
            CallError::Later(_, wait) => self.not_before = Some(Instant::now() + *wait),
            _ => {}
        }
        error.into()
    }

    async fn hear(&mut self) -> Result<bool, CallError> {
        loop {
            let mut watch = match self.watch.take() {
                Some(watch) => watch,
                None => self.open().await?,
            };
            let more = timeout(SILENCE, watch.stream.more()).await.map_err(|_| CallError::Silence)??;
            if !more {
                if !watch.heard && watch.since.elapsed() < SHORTEST_WATCH {
                    let server = watch.stream.server().into();
                    return Err(RegistryError::Unreachable { server, cause: "the watch ended at once".into() }.into());
                }
                // As the server was asked to: go on where it was.
                continue;
            }
            let (mut heard, mut changed) = (false, false);
            while let Some(line) = watch.stream.line() {
                heard = true;
                changed |= self.apply(&line, watch.stream.server())?;
            }
            watch.heard |= heard;
            self.watch = Some(watch);
            if heard {
                return Ok(changed);
            }
        }
    }
}

/// Go writes an empty list or map as `null` where it was never made.
pub fn null_is_empty<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(from: D) -> Result<T, D::Error> {
    Option::deserialize(from).map(Option::unwrap_or_default)
}
