//! Instances listed in a YAML or JSON file, which is watched.
//!
//! It is looked at several times a second rather than through inotify: that sees in the same way an edit in place, an
//! editor's rename, a ConfigMap whose link is turned to another directory, and a file on a network.

mod content;
mod entry;
#[cfg(fuzzing)]
pub mod fuzzing;
mod probe;
mod rewrite;
mod store;
#[cfg(test)]
mod tests;

use super::{Entry, Registration, Registry, RegistryError, Sink, shared::Shared, store::Store};
use crate::config;
use content::Services;
use entry::OwnEntry;
use futures_util::future::BoxFuture;
use probe::{Probe, Seen};
use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::time::{Instant, sleep};

/// How often the file is looked at.
const POLL: Duration = Duration::from_millis(250);

/// Followers show this often that the file is still watched.
const BEAT: Duration = Duration::from_secs(5);

/// One file, whoever follows services in it.
#[derive(Debug)]
pub struct FileRegistry {
    name: String,
    path: PathBuf,
    shared: Shared<Services>,
    /// The failure that was logged, 0 for none; looking at the same bad content again is no news.
    logged: AtomicU64,
}

impl FileRegistry {
    pub fn new(name: &str, config: &config::FileRegistry) -> Arc<Self> {
        Arc::new(Self {
            name: name.into(),
            path: config.path.clone(),
            shared: Shared::default(),
            logged: AtomicU64::new(0),
        })
    }

    /// Tells every follower what the file says, for as long as it is polled.
    async fn look(&self) {
        let mut seen = Seen::default();
        let mut told = Instant::now();
        loop {
            let (probe, after) = self.probe(seen).await;
            seen = after;
            let wait = if matches!(probe, Probe::Unsettled) { probe::SETTLE } else { POLL };
            if !matches!(probe, Probe::Same | Probe::Unsettled) || told.elapsed() >= BEAT {
                told = Instant::now();
                self.tell(probe);
            }
            sleep(wait).await;
        }
    }

    fn tell(&self, probe: Probe) {
        let (identity, failure) = match probe {
            Probe::Same | Probe::Unsettled => return self.shared.beat(),
            Probe::Good(services) => {
                if self.logged.swap(0, Ordering::Relaxed) != 0 {
                    tracing::info!(registry = self.name, file = %self.path.display(), "the file is good again");
                }
                return self.shared.set(Arc::new(services));
            }
            Probe::Bad { identity, cause } => (identity, RegistryError::Protocol { server: self.server(), cause }),
            Probe::Unreadable { identity, cause } => {
                (identity, RegistryError::Unreachable { server: self.server(), cause })
            }
        };
        if self.logged.swap(identity, Ordering::Relaxed) != identity {
            let stays =
                if self.shared.has_content() { "the last good instances stay in use" } else { "there are none yet" };
            tracing::error!(registry = self.name, "{failure}\n{stays}");
        }
        self.shared.failed(failure);
    }

    /// Looks at the file away from this thread, because a file may be on a network that hangs.
    async fn probe(&self, seen: Seen) -> (Probe, Seen) {
        let path = self.path.clone();
        let probed = tokio::task::spawn_blocking(move || probe::probe(&path, seen)).await;
        probed.unwrap_or_else(|error| (Probe::unreadable(&error.to_string()), Seen::default()))
    }

    fn server(&self) -> String {
        format!("the file {}", self.path.display())
    }
}

impl Registry for FileRegistry {
    fn name(&self) -> &str {
        &self.name
    }

    fn kind(&self) -> &'static str {
        "file"
    }

    fn follow(self: Arc<Self>, service: String, sink: Sink) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            let find = |services: &Services| services.get(&service).cloned().unwrap_or_default().into();
            self.shared.follow(&self.name, &service, sink, find, self.look()).await;
        })
    }

    fn list(self: Arc<Self>) -> BoxFuture<'static, Result<Vec<String>, RegistryError>> {
        Box::pin(async move {
            let mut seen = Seen::default();
            loop {
                let (probe, after) = self.probe(seen).await;
                seen = after;
                match probe {
                    Probe::Good(services) => return Ok(services.into_keys().collect()),
                    Probe::Bad { cause, .. } => {
                        return Err(RegistryError::Protocol { server: self.server(), cause });
                    }
                    Probe::Unreadable { cause, .. } => {
                        return Err(RegistryError::Unreachable { server: self.server(), cause });
                    }
                    Probe::Same | Probe::Unsettled => sleep(probe::SETTLE).await,
                }
            }
        })
    }

    fn entry(self: Arc<Self>, registration: Arc<Registration>) -> Result<Box<dyn Entry>, RegistryError> {
        Ok(Box::new(OwnEntry::new(self, registration)))
    }

    fn store(self: Arc<Self>) -> Result<Arc<dyn Store>, RegistryError> {
        Ok(self)
    }

    fn silence_limit(&self) -> Duration {
        6 * BEAT
    }
}
