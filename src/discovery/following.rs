//! A path in a registry's own store that is watched.

use super::watchdog;
use crate::{
    registry::{
        Registry, RegistryError,
        store::{self, Seen},
    },
    telemetry::{Telemetry, metrics::StoreMetrics},
};
use std::{future::pending, sync::Arc, time::Duration};
use tokio::{sync::watch, task::JoinHandle};

/// Which part of which store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// By its name in the config.
    pub registry: String,
    pub path: String,
}

/// A store that is watched. Dropping it ends that.
pub struct Following {
    pub place: Place,
    /// What is there, as the log calls it.
    what: &'static str,
    registry: Arc<dyn Registry>,
    seen: watch::Receiver<Seen>,
    /// Whether it is in a failure that was told.
    failing: bool,
    metrics: Arc<StoreMetrics>,
    task: JoinHandle<()>,
}

/// The store, for those who ask.
#[derive(Debug, Clone)]
pub struct StoreStatus {
    pub place: Place,
    /// Whether it has answered since the start.
    pub answered: bool,
    pub failure: Option<String>,
    /// How long ago it last confirmed what it said.
    pub age: Option<Duration>,
}

impl Following {
    pub fn start(what: &'static str, place: Place, registry: &Arc<dyn Registry>, telemetry: &Telemetry) -> Self {
        let (sink, seen) = store::sink();
        let metrics = telemetry.metrics.store(&place.registry, &place.path);
        let task = match registry.clone().store() {
            Ok(store) => {
                let (registry, heard, path) = (registry.clone(), seen.clone(), place.path.clone());
                let heard = move || heard.borrow().heard;
                let watch = {
                    let sink = sink.clone();
                    move || store.clone().watch(path.clone(), sink.clone())
                };
                tokio::spawn(async move {
                    watchdog::follow(what, &*registry, watch, heard, |error| sink.failed(error)).await;
                })
            }
            // The config was checked to name one that has a store.
            Err(error) => tokio::spawn(async move {
                sink.failed(error);
                pending().await
            }),
        };
        Self { place, what, registry: registry.clone(), seen, failing: false, metrics, task }
    }

    /// Whether it watches the same place in the same registry.
    pub fn is_at(&self, place: &Place, registry: &Arc<dyn Registry>) -> bool {
        self.place == *place && Arc::ptr_eq(&self.registry, registry)
    }

    pub fn registry(&self) -> &Arc<dyn Registry> {
        &self.registry
    }

    /// Waits until the store has something new to say. Loses nothing when it is dropped.
    pub async fn changed(&mut self) {
        if self.seen.changed().await.is_err() {
            // Only when the runtime ends.
            pending().await
        }
    }

    /// Whether the store has said anything at all.
    pub fn is_heard(&self) -> bool {
        self.seen.borrow().heard.is_some()
    }

    /// The newest that was heard. Failures are told once when they begin and once when they are over.
    pub fn hear(&mut self) -> Seen {
        let seen = self.seen.borrow_and_update().clone();
        let (what, Place { registry, path }) = (self.what, &self.place);
        match &seen.failure {
            Some(error) if !self.failing => {
                tracing::warn!(registry, path, %error, "{what} fails; all stays as it is");
            }
            None if self.failing => tracing::info!(registry, path, "{what} answers again"),
            _ => {}
        }
        self.failing = seen.failure.is_some();
        self.metrics.up.set(i64::from(seen.failure.is_none() && seen.confirmed.is_some()));
        seen
    }

    pub fn status(&self) -> StoreStatus {
        let seen = self.seen.borrow();
        StoreStatus {
            place: self.place.clone(),
            answered: seen.items.is_some(),
            failure: seen.failure.as_ref().map(RegistryError::to_string),
            age: seen.confirmed.map(|confirmed| confirmed.elapsed()),
        }
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        self.task.abort();
    }
}
