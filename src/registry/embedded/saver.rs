//! Brings the state to disk: off the task that owns it, one write at a time, changes gathered.

use super::{saved, state::State};
use std::{io, path::PathBuf, time::Duration};
use tokio::{
    sync::watch,
    task::{JoinHandle, spawn_blocking},
    time::{Instant, sleep_until},
};

/// From the end of a write to the start of the next.
const INTERVAL: Duration = Duration::from_millis(100);

/// The same after a write that failed.
const RETRY: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Saver {
    path: PathBuf,
    /// The newest revision that is on disk, for those who wait for it.
    done: watch::Sender<u64>,
    written: Option<u64>,
    running: Option<(u64, JoinHandle<io::Result<()>>)>,
    next: Instant,
    failing: bool,
}

impl Saver {
    /// It writes once at the start, so that a place that cannot be written is known before it matters.
    pub(super) fn new(path: PathBuf, done: watch::Sender<u64>) -> Self {
        Self { path, done, written: None, running: None, next: Instant::now(), failing: false }
    }

    /// Waits until a write has ended and gives its result, or until one should start and gives `None`. May be dropped at
    /// any time.
    pub(super) async fn due(&mut self, revision: u64) -> Option<io::Result<()>> {
        match &mut self.running {
            Some((_, write)) => Some(write.await.unwrap_or_else(|error| Err(io::Error::other(error)))),
            None if self.written == Some(revision) => std::future::pending().await,
            None => {
                sleep_until(self.next).await;
                None
            }
        }
    }

    pub(super) fn start(&mut self, state: &State) {
        let (path, contents) = (self.path.clone(), state.contents());
        let write = spawn_blocking(move || saved::write(&path, &saved::encode(&contents)?));
        self.running = Some((state.revision, write));
    }

    pub(super) fn ended(&mut self, result: io::Result<()>) {
        let Some((revision, _)) = self.running.take() else { return };
        match result {
            Ok(()) => {
                self.written = Some(revision);
                self.done.send_replace(revision);
                self.next = Instant::now() + INTERVAL;
                if std::mem::take(&mut self.failing) {
                    tracing::info!(file = %self.path.display(), "what it holds is saved again");
                }
            }
            Err(error) => {
                self.next = Instant::now() + RETRY;
                // Once per spell, not once per second.
                if !std::mem::replace(&mut self.failing, true) {
                    tracing::error!(file = %self.path.display(), %error, "what it holds cannot be saved; trying on");
                }
            }
        }
    }

    /// Waits for the end of a write that runs.
    pub(super) async fn settle(&mut self) {
        if let Some((_, write)) = &mut self.running {
            // What it wrote or did not write is with the heir anyway.
            let _ = write.await;
        }
    }

    /// The last write.
    pub(super) async fn finish(&mut self, state: &State) {
        while self.running.is_some() || self.written != Some(state.revision) {
            if self.running.is_none() {
                self.start(state);
            }
            if let Some(result) = self.due(state.revision).await {
                let failed = result.is_err();
                self.ended(result);
                if failed {
                    return;
                }
            }
        }
    }
}
