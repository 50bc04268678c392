//! Responses up to a number of bytes; the one that was not used for the longest time goes first.

use bytes::Bytes;
use http::{HeaderName, HeaderValue};
use std::{collections::BTreeMap, ops::Bound, rc::Rc, time::Duration};
use tokio::time::Instant;

/// What an entry takes besides its texts and its body, about.
const PER_ENTRY: usize = 320;
const PER_FIELD: usize = 72;

/// One response.
#[derive(Debug)]
pub struct Entry {
    pub fields: Vec<(HeaderName, HeaderValue)>,
    pub body: Bytes,
    pub stored: Instant,
    /// How old it was then.
    pub age: Duration,
    /// It must not be given after this time, by its own word.
    pub valid: Option<Duration>,
    /// Whether it may be given to anybody, whoever asked for it.
    pub shared: bool,
}

#[derive(Debug, Default)]
pub struct Store {
    /// Each with the number of its last use.
    entries: BTreeMap<Rc<str>, (u64, Rc<Entry>)>,
    by_use: BTreeMap<u64, Rc<str>>,
    uses: u64,
    bytes: usize,
}

impl Store {
    pub fn put(&mut self, key: String, entry: Entry, max_bytes: usize) {
        self.remove(&key);
        let size = size(&key, &entry);
        if size > max_bytes {
            return;
        }
        let key: Rc<str> = key.into();
        self.bytes += size;
        self.uses += 1;
        self.by_use.insert(self.uses, key.clone());
        self.entries.insert(key, (self.uses, Rc::new(entry)));
        while self.bytes > max_bytes
            && let Some(oldest) = self.by_use.values().next().cloned()
        {
            self.remove(&oldest);
        }
    }

    /// A response that is still valid by its own word.
    pub fn get(&mut self, key: &str, now: Instant) -> Option<Rc<Entry>> {
        let (used, entry) = self.entries.get_mut(key)?;
        if entry.valid.is_some_and(|valid| now - entry.stored >= valid) {
            self.remove(key);
            return None;
        }
        self.uses += 1;
        if let Some(key) = self.by_use.remove(used) {
            self.by_use.insert(self.uses, key);
        }
        *used = self.uses;
        Some(entry.clone())
    }

    /// Removes all whose keys start so.
    pub fn remove_all(&mut self, start: &str) {
        let from = (Bound::Included(start), Bound::Unbounded);
        let there = self.entries.range::<str, _>(from).map(|(key, _)| key.clone());
        let there: Vec<_> = there.take_while(|key| key.starts_with(start)).collect();
        for key in there {
            self.remove(&key);
        }
    }

    fn remove(&mut self, key: &str) {
        if let Some((used, entry)) = self.entries.remove(key) {
            self.by_use.remove(&used);
            self.bytes -= size(key, &entry);
        }
    }

    #[cfg(test)]
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

fn size(key: &str, entry: &Entry) -> usize {
    let fields = entry.fields.iter().map(|(name, value)| name.as_str().len() + value.len() + PER_FIELD);
    key.len() + entry.body.len() + fields.sum::<usize>() + PER_ENTRY
}
