//! One service's snapshot on disk: read at the start, used while no source answers, written as they do.

use super::snapshot::{Saved, Store};
use crate::registry::Instance;
use futures_util::future::BoxFuture;
use std::{future::pending, sync::Arc, time::Duration};
use tokio::time::{Instant, sleep_until};

/// So often the store is told that what is in force was confirmed again.
const AGAIN: Duration = Duration::from_secs(60);

/// Without a store, nothing is ever read or written.
pub struct Disk {
    store: Option<Arc<Store>>,
    service: String,
    reading: Option<BoxFuture<'static, Option<Saved>>>,
    saved: Option<Saved>,
    /// When the sources have had their time for a first answer.
    due: Option<Instant>,
    again: Instant,
}

impl Disk {
    /// `patience`: how long the sources are waited for before what is on disk is used, if none of them fails sooner; `None`
    /// if more is known already.
    pub fn new(store: Option<Arc<Store>>, service: &str, patience: Option<Duration>) -> Self {
        let wanted = store.clone().filter(|_| patience.is_some());
        let reading = wanted.map(|store| -> BoxFuture<'static, Option<Saved>> {
            let service = service.to_owned();
            Box::pin(async move { store.load(&service).await })
        });
        let now = Instant::now();
        let due = patience.map(|patience| now + patience);
        Self { store, service: service.into(), reading, saved: None, due, again: now + AGAIN }
    }

    /// Returns when it is to be looked again what is in force. Loses nothing when it is dropped.
    pub async fn next(&mut self) {
        if self.store.is_none() {
            return pending().await;
        }
        let (reading, due, again) = (&mut self.reading, self.due, self.again);
        let read = async {
            match reading {
                Some(reading) => reading.await,
                None => pending().await,
            }
        };
        tokio::select! {
            saved = read => {
                self.saved = saved;
                self.reading = None;
            }
            () = async { match due { Some(due) => sleep_until(due).await, None => pending().await } } => self.due = None,
            () = sleep_until(again) => self.again = Instant::now() + AGAIN,
        }
    }

    /// What was saved, if it is time to use it. `all_fail`: no source is left that might answer soon.
    pub fn saved(&self, all_fail: bool) -> Option<&Saved> {
        self.saved.as_ref().filter(|saved| !saved.instances.is_empty() && (all_fail || self.due.is_none()))
    }

    /// What was saved, once: for a start at which a source answers before it was needed.
    pub fn take(&mut self) -> Option<Saved> {
        self.saved.take()
    }

    pub fn is_reading(&self) -> bool {
        self.reading.is_some()
    }

    /// Takes note of what sources said, which they last `confirmed` then. From now on they know better than what was read.
    pub fn save(&mut self, source: &str, instances: &Arc<[Instance]>, confirmed: Instant) {
        self.saved = None;
        self.due = None;
        if let Some(store) = &self.store {
            store.save(&self.service, source, instances, confirmed);
        }
    }
}
