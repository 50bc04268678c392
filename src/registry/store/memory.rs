//! A store in memory for tests, which can be made to fail.

use super::{Claim, InDocument, InStore, Item, Put, Sink, Store, Version};
use crate::registry::RegistryError;
use arc_swap::ArcSwapOption;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use std::{
    collections::BTreeMap,
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::sync::watch;

pub struct Memory {
    values: watch::Sender<BTreeMap<String, Bytes>>,
    pub fails: AtomicBool,
    /// Whether the next value is put, and nobody hears of it.
    pub loses_answer: AtomicBool,
    pub asked: AtomicUsize,
    meanwhile: ArcSwapOption<Meanwhile>,
}

/// What somebody else writes right before this value is put under this key.
type Meanwhile = Box<dyn Fn(&str, &Bytes) -> Option<Bytes> + Send + Sync>;

impl Default for Memory {
    fn default() -> Self {
        Self {
            values: watch::Sender::new(BTreeMap::new()),
            fails: false.into(),
            loses_answer: false.into(),
            asked: 0.into(),
            meanwhile: ArcSwapOption::empty(),
        }
    }
}

impl Memory {
    pub fn set(&self, key: &str, value: impl Into<Bytes>) {
        self.values.send_modify(|values| drop(values.insert(key.into(), value.into())));
    }

    pub fn remove(&self, key: &str) {
        self.values.send_modify(|values| drop(values.remove(key)));
    }

    pub fn value(&self, key: &str) -> Option<Bytes> {
        self.values.borrow().get(key).cloned()
    }

    /// What somebody else is to write between the read and the put of whoever compares and sets.
    pub fn meanwhile(&self, write: impl Fn(&str, &Bytes) -> Option<Bytes> + Send + Sync + 'static) {
        self.meanwhile.store(Some(Arc::new(Box::new(write))));
    }

    fn answer<T>(&self, value: T) -> Result<T, RegistryError> {
        self.asked.fetch_add(1, Relaxed);
        if self.fails.load(Relaxed) {
            return Err(RegistryError::Busy { server: "memory".into(), cause: "told to fail".into() });
        }
        Ok(value)
    }
}

impl Store for Memory {
    fn watch(self: Arc<Self>, path: String, sink: Sink) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            let mut values = self.values.subscribe();
            loop {
                let item = |(key, value): (&String, &Bytes)| {
                    let key = key.strip_prefix(&path)?.strip_prefix('/')?.to_owned();
                    Some(Item { key, version: Version::of_content(value), value: value.clone() })
                };
                sink.set(values.borrow_and_update().iter().filter_map(item).collect());
                if values.changed().await.is_err() {
                    pending().await
                }
            }
        })
    }

    fn get(self: Arc<Self>, key: String) -> BoxFuture<'static, Result<Option<Item>, RegistryError>> {
        Box::pin(async move {
            let value = self.value(&key);
            self.answer(value.map(|value| Item { version: Version::of_content(&value), key, value }))
        })
    }

    fn put_if(
        self: Arc<Self>,
        key: String,
        expected: Option<Version>,
        value: Bytes,
    ) -> BoxFuture<'static, Result<Put, RegistryError>> {
        Box::pin(async move {
            self.answer(())?;
            if let Some(other) = self.meanwhile.load().as_ref().and_then(|write| write(&key, &value)) {
                self.set(&key, other);
            }
            if self.value(&key).map(|there| Version::of_content(&there)) != expected {
                return Ok(Put::Conflict);
            }
            let version = Version::of_content(&value);
            self.set(&key, value);
            if self.loses_answer.swap(false, Relaxed) {
                return Err(RegistryError::Busy { server: "memory".into(), cause: "told to lose the answer".into() });
            }
            Ok(Put::Done(version))
        })
    }

    fn claim(self: Arc<Self>, key: String, owner: String, ttl: Duration) -> Box<dyn Claim> {
        Box::new(InDocument::new(InStore { store: self, key }, owner, ttl))
    }
}
