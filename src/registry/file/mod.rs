//! Instances listed in a YAML or JSON file, which is watched.
//!
//! It is looked at several times a second rather than through inotify: that sees in the same way an edit in place, an
//! editor's rename, a ConfigMap whose link is turned to another directory, and a file on a network.

mod content;
mod probe;
#[cfg(test)]
mod tests;

use super::{Registry, RegistryError, Sink};
use crate::config;
use content::Services;
use futures_util::future::BoxFuture;
use probe::{Probe, Seen};
use std::{path::PathBuf, sync::Arc, time::Duration};
use tokio::{
    sync::{Semaphore, watch},
    time::{Instant, sleep},
};

/// How often the file is looked at.
const POLL: Duration = Duration::from_millis(250);

/// Followers show this often that the file is still watched.
const BEAT: Duration = Duration::from_secs(5);

/// One file, whoever follows services in it.
#[derive(Debug)]
pub struct FileRegistry {
    name: String,
    path: PathBuf,
    view: watch::Sender<View>,
    /// Whoever holds it looks at the file for all followers. So no task has to be started and stopped: the next follower
    /// takes over when the one that looks is dropped.
    eyes: Semaphore,
}

/// What the file says.
#[derive(Debug, Default)]
struct View {
    /// The last good content.
    services: Option<Arc<Services>>,
    failure: Option<RegistryError>,
    /// The failure that was logged; looking at the same bad content again is no news.
    logged: Option<u64>,
}

impl FileRegistry {
    pub fn new(name: &str, config: &config::FileRegistry) -> Arc<Self> {
        Arc::new(Self {
            name: name.into(),
            path: config.path.clone(),
            view: watch::Sender::default(),
            eyes: Semaphore::new(1),
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
                self.view.send_modify(|view| self.take(view, probe));
            }
            sleep(wait).await;
        }
    }

    fn take(&self, view: &mut View, probe: Probe) {
        let (identity, failure) = match probe {
            Probe::Same | Probe::Unsettled => return,
            Probe::Good(services) => {
                if view.logged.take().is_some() {
                    tracing::info!(registry = self.name, file = %self.path.display(), "the file is good again");
                }
                view.services = Some(Arc::new(services));
                view.failure = None;
                return;
            }
            Probe::Bad { identity, cause } => (identity, RegistryError::Protocol { server: self.server(), cause }),
            Probe::Unreadable { identity, cause } => {
                (identity, RegistryError::Unreachable { server: self.server(), cause })
            }
        };
        if view.logged.replace(identity) != Some(identity) {
            let stays =
                if view.services.is_some() { "the last good instances stay in use" } else { "there are none yet" };
            tracing::error!(registry = self.name, "{failure}\n{stays}");
        }
        view.failure = Some(failure);
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

impl View {
    /// `given` is the content that `sink` has got last.
    fn tell(&self, service: &str, sink: &Sink, given: &mut Option<Arc<Services>>) {
        if let Some(services) = &self.services
            && !given.as_ref().is_some_and(|given| Arc::ptr_eq(given, services))
        {
            sink.set(services.get(service).cloned().unwrap_or_default());
            *given = Some(services.clone());
        }
        match &self.failure {
            Some(failure) => sink.failed(failure.clone()),
            None if given.is_some() => sink.alive(),
            None => {}
        }
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
            if self.view.receiver_count() == 0 {
                // Nobody has looked for a while, so what was seen may be long untrue.
                self.view.send_modify(|view| *view = View { logged: view.logged, ..View::default() });
            }
            let mut view = self.view.subscribe();
            let tell = async {
                let mut given = None;
                loop {
                    view.borrow_and_update().tell(&service, &sink, &mut given);
                    // It cannot end while `self` is there.
                    let _ = view.changed().await;
                }
            };
            let look = async {
                // The semaphore is never closed.
                let _eyes = self.eyes.acquire().await;
                self.look().await;
            };
            tokio::join!(tell, look);
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

    fn silence_limit(&self) -> Duration {
        6 * BEAT
    }
}
