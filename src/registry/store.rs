//! A registry's own key-value store, for what a fleet of pillions has to agree on: documents below a path, which are watched,
//! changed by compare-and-set, and guarded by a lock that its holder can lose. A registry that has one gives it out
//! ([`super::Registry::store`]); each backend's is in a file `store.rs` beside its `entry.rs`.
//!
//! Keys are names with `/` between them, `pillion/routes/users`; each backend writes them as its users would expect.

mod document;
mod lock;
#[cfg(test)]
pub(crate) mod memory;
#[cfg(test)]
mod tests;

pub(super) use document::{Cell, Holder, InDocument, InStore};
pub use lock::{Claim, Lock, all_given_back};

use super::{
    RegistryError,
    watch::{self, Watch},
};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use std::{fmt, sync::Arc, time::Duration};
use tokio::{sync::watch as channel, time::Instant};

/// The largest value that is read. What backends take is less (Consul 512 KiB) or little more.
pub const MAX_VALUE: usize = 1 << 20;

/// A registry's key-value store.
pub trait Store: Send + Sync + 'static {
    /// Tells `sink` all that is below `path`, and again whenever it changes, until the returned future is dropped. It never
    /// ends by itself: it reconnects with back-off, reporting each failure to `sink`.
    fn watch(self: Arc<Self>, path: String, sink: Sink) -> BoxFuture<'static, ()>;

    /// The value under a key, as the store has it now.
    fn get(self: Arc<Self>, key: String) -> BoxFuture<'static, Result<Option<Item>, RegistryError>>;

    /// Puts a value under a key if that still is at the version `expected`, or, where there is none, is not there.
    fn put_if(
        self: Arc<Self>,
        key: String,
        expected: Option<Version>,
        value: Bytes,
    ) -> BoxFuture<'static, Result<Put, RegistryError>>;

    /// A claim to the lock `key` in the name of `owner`, which others read. Nothing is asked of the store yet. The store
    /// takes the lock away when the claim was not renewed for `ttl`, or for as little as it can.
    fn claim(self: Arc<Self>, key: String, owner: String, ttl: Duration) -> Box<dyn Claim>;

    /// Waits until the lock `key` is ours.
    fn lock(
        self: Arc<Self>,
        key: String,
        owner: String,
        ttl: Duration,
    ) -> BoxFuture<'static, Result<Lock, RegistryError>> {
        let claim = self.claim(key, owner, ttl);
        Box::pin(lock::lock(claim, ttl))
    }
}

/// A value in a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// Of those that are watched, without the path.
    pub key: String,
    pub value: Bytes,
    pub version: Version,
}

/// Which of the values that a key had. It is compared, and shown; what is in it is the backend's.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Version(Box<str>);

impl Version {
    pub fn new(text: impl fmt::Display) -> Self {
        Self(text.to_string().into())
    }

    /// For stores that do not count: a value that comes again is the same.
    pub fn of_content(value: &[u8]) -> Self {
        Self::new(format_args!("{:016x}", twox_hash::XxHash64::oneshot(0, value)))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// A version that is a number.
    pub fn number<T: std::str::FromStr>(&self) -> Result<T, RegistryError> {
        let cause = || format!("`{}` is no version of this store; expected a number", self.0);
        self.0.parse().map_err(|_| RegistryError::Impossible { cause: cause() })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What came of a compare-and-set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Put {
    /// This is its version now.
    Done(Version),
    /// It is at another version.
    Conflict,
}

impl Put {
    /// Of what a backend says: the version now, or none where it wrote nothing.
    pub(super) fn at(version: Option<impl fmt::Display>) -> Self {
        version.map_or(Self::Conflict, |version| Self::Done(Version::new(version)))
    }
}

/// What a store has said about a path so far.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// All that is below it, sorted by key; `None` until the store has answered once. Kept when it fails.
    pub items: Option<Arc<[Item]>>,
    /// When it last said anything that proves that this is current.
    pub confirmed: Option<Instant>,
    /// When anything at all was heard: what the watchdog looks at.
    pub heard: Option<Instant>,
    /// The failure that it is in, if it is in one.
    pub failure: Option<RegistryError>,
}

/// Makes the two ends of one watch's channel.
pub fn sink() -> (Sink, channel::Receiver<Seen>) {
    let (sender, receiver) = channel::channel(Seen::default());
    (Sink { sender }, receiver)
}

/// The watch's end. Calls never block.
#[derive(Debug, Clone)]
pub struct Sink {
    sender: channel::Sender<Seen>,
}

impl Sink {
    /// All that is there. Readers are woken only by a change.
    pub fn set(&self, mut items: Vec<Item>) {
        items.sort_by(|a, b| a.key.cmp(&b.key));
        let now = Instant::now();
        self.sender.send_if_modified(|seen| {
            (seen.heard, seen.confirmed) = (Some(now), Some(now));
            let recovered = seen.failure.take().is_some();
            if seen.items.as_deref() == Some(&items[..]) {
                return recovered;
            }
            seen.items = Some(items.into());
            true
        });
    }

    /// The store proved that what it said last still holds.
    pub fn alive(&self) {
        let now = Instant::now();
        self.sender.send_if_modified(|seen| {
            seen.heard = Some(now);
            if seen.items.is_some() {
                seen.confirmed = Some(now);
            }
            seen.failure.take().is_some()
        });
    }

    /// The store failed. What it said last stays.
    pub fn failed(&self, error: RegistryError) {
        self.sender.send_modify(|seen| {
            seen.heard = Some(Instant::now());
            seen.failure = Some(error);
        });
    }
}

impl watch::Listener<Vec<Item>> for Sink {
    fn set(&mut self, items: Vec<Item>) {
        Self::set(self, items);
    }

    fn alive(&self) {
        Self::alive(self);
    }

    fn failed(&self, error: RegistryError) {
        Self::failed(self, error);
    }
}

/// Follows what is below `path` by `watch` for ever, on behalf of the registry of that name.
pub(super) async fn follow(registry: &str, path: &str, sink: Sink, watch: impl Watch<Vec<Item>>) {
    watch::follow_sets(registry, path, sink, watch).await;
}

/// What all keys below `path` begin with.
pub(super) fn below(path: &str) -> String {
    format!("{path}/")
}
