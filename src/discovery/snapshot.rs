//! The last known instances of each service on disk, for a start while no registry answers.
//!
//! Besides, what was last good in the store of routes, in a file of its own.
//!
//! One file per service in one folder, replaced in one step and sealed with a checksum ([`durable`](crate::durable)): a
//! crash leaves the old or the new one, and what is damaged all the same is put aside, told and counted. Reading and
//! writing happen off the control thread, and no failure of them is one of traffic. Pillions may share a folder: who writes
//! last wins, and who loses writes again when its source next confirms the set.

mod content;
mod folder;
#[cfg(fuzzing)]
pub mod fuzzing;
mod saver;
#[cfg(test)]
mod tests;

use crate::{config, registry::Instance, telemetry::metrics::SnapshotMetrics};
use folder::{Folder, Found};
use saver::{Order, Saver};
use std::{
    io,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::{
    sync::{Semaphore, mpsc, oneshot},
    task::spawn_blocking,
    time::Instant,
};

/// Files read at one time: at the start every service that the config names wants its own.
const READS: usize = 4;

/// The store as its users hold it. What was noted is still written when the last one is gone.
#[derive(Debug)]
pub struct Store {
    folder: Arc<Folder>,
    metrics: Arc<SnapshotMetrics>,
    orders: mpsc::UnboundedSender<Order>,
    reads: Semaphore,
}

/// What was saved of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Saved {
    /// As they were in force.
    pub instances: Arc<[Instance]>,
    /// The registry that they came from, by its name in the config of then.
    pub source: String,
    /// When that registry last confirmed them. Never in the future, whatever the clock said then.
    pub saved: SystemTime,
}

/// `discovery.snapshot.dir` cannot be used.
#[derive(Debug, Clone, thiserror::Error)]
#[error("discovery.snapshot.dir: `{}` cannot be used as a folder for snapshots: {cause}", dir.display())]
pub struct OpenError {
    dir: PathBuf,
    cause: Arc<io::Error>,
}

impl Saved {
    /// As a file would have it. Nothing if that cannot be written down.
    pub fn to_text(&self, service: &str) -> Option<String> {
        let bytes = content::encode(service, &self.source, &self.instances, self.saved).ok()?;
        String::from_utf8(bytes).ok()
    }

    /// What [`Self::to_text`] wrote of this service, or why it is nothing of the kind.
    pub fn from_text(service: &str, text: &str) -> Result<Self, String> {
        let saved = content::decode(service, text.as_bytes())?;
        Ok(Self { saved: saved.saved.min(SystemTime::now()), ..saved })
    }
}

impl Store {
    /// Creates the folder if it is not there, and starts the task that writes.
    ///
    /// Fails if the folder cannot be made or read. One that can only be read will do: it is told and counted that nothing
    /// can be saved, and what is there is used. Before another store is opened on the same folder, flush the old one, lest
    /// it writes what is older after what is newer.
    pub fn open(config: &config::Snapshot, metrics: Arc<SnapshotMetrics>) -> Result<Arc<Self>, OpenError> {
        let folder = Folder::open(config)
            .map_err(|cause| OpenError { dir: config.dir.clone(), cause: Arc::new(cause) })
            .map(Arc::new)?;
        let (orders, queue) = mpsc::unbounded_channel();
        tokio::spawn(Saver::new(folder.clone(), config.max_age, metrics.clone()).run(queue));
        Ok(Arc::new(Self { folder, metrics, orders, reads: Semaphore::new(READS) }))
    }

    /// What was last saved of a service; `None` if there is nothing, or nothing that can be used.
    pub async fn load(&self, service: &str) -> Option<Saved> {
        let _place = self.reads.acquire().await;
        let (folder, name) = (self.folder.clone(), service.to_owned());
        let read = spawn_blocking(move || folder.read(&name, SystemTime::now())).await;
        match read.unwrap_or_else(|error| Err(io::Error::other(error))) {
            Ok(Found::Saved(saved)) => return Some(saved),
            Ok(Found::Nothing) => {}
            Ok(Found::TooOld(age)) => {
                tracing::info!(service, age = ?Duration::from_secs(age.as_secs()), "its snapshot is too old and is not used");
            }
            Ok(Found::Corrupt { cause, aside }) => {
                self.metrics.corrupt.inc();
                let file = self.folder.path(service);
                let file = file.display();
                match aside {
                    Ok(aside) => {
                        let aside = aside.display();
                        tracing::warn!(service, %file, %aside, cause, "its snapshot cannot be used and is put aside");
                    }
                    Err(error) => {
                        tracing::warn!(service, %file, %error, cause, "its snapshot cannot be used, nor put aside");
                    }
                }
            }
            Err(error) => {
                self.metrics.read_failures.inc();
                let file = self.folder.path(service);
                tracing::warn!(service, file = %file.display(), %error, "its snapshot cannot be read");
            }
        }
        None
    }

    /// Takes note of what `source` said about a service, which it last `confirmed` then; to be called when that set comes
    /// in force, and now and then while it stays. Returns at once.
    ///
    /// Of several calls the newest counts. A changed set is written at once, or a second after the last one; one that was
    /// confirmed again is written when the file says too little about its age, every few minutes. A service that never had
    /// an instance leaves no file, so that made-up names drive out no others.
    pub fn save(&self, service: &str, source: &str, instances: &Arc<[Instance]>, confirmed: Instant) {
        let order = Order::save(service, source, instances, confirmed);
        // It takes orders as long as there is a store, except while the runtime ends.
        let _ = self.orders.send(order);
    }

    /// The file of the store of routes called `name`, if there is one that can be read. Blocks; for the start.
    pub fn load_routes(&self, name: &str) -> Option<Vec<u8>> {
        match self.folder.read_routes(name) {
            Ok(bytes) => bytes,
            Err(error) => {
                self.metrics.read_failures.inc();
                let file = self.folder.routes_path(name);
                tracing::warn!(file = %file.display(), %error, "the routes that were kept cannot be read");
                None
            }
        }
    }

    /// Takes note of what that file is to be; it is written at once, unless it is so already. Returns at once.
    pub fn save_routes(&self, name: &str, bytes: Vec<u8>) {
        let _ = self.orders.send(Order::SaveRoutes { name: name.into(), bytes: bytes.into() });
    }

    /// Waits until all that was noted before is on disk, or could not be written.
    pub async fn flush(&self) {
        let (done, wait) = oneshot::channel();
        let _ = self.orders.send(Order::Flush(done));
        let _ = wait.await;
    }
}
