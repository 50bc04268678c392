//! The log of requests.
//!
//! A worker asks [`AccessLog::wants`] first, and only then makes an [`AccessRecord`] and hands it to a bounded queue.
//! One thread makes text of it and writes. It may block (a full pipe, a slow disk); the workers never do: when the queue
//! is full a record is dropped and counted.

mod record;
#[cfg(test)]
mod tests;
mod writer;

pub use record::{AccessRecord, RoutedTo, Text};

use super::metrics::Counter;
use crate::config::{self, AccessLogMode};
use std::{
    io,
    path::Path,
    sync::{
        Arc,
        atomic::{
            AtomicBool, AtomicU64,
            Ordering::{Relaxed, Release},
        },
        mpsc::{SyncSender, TrySendError, sync_channel},
    },
    time::Duration,
};
use tokio::sync::oneshot;
use writer::{Message, Target, Writer};

/// Records that wait for the writer. At 24 bytes a place, the queue itself takes 0.1 MB.
const QUEUE: usize = 4096;

/// Shared by all workers.
#[derive(Debug)]
pub struct AccessLog {
    queue: SyncSender<Message>,
    /// Of 2³² successful requests, how many are logged.
    share: AtomicU64,
    /// Failed requests are logged.
    failures: AtomicBool,
    settings: Arc<writer::Settings>,
    dropped: Arc<Counter>,
}

/// Whether the log that the config names can be opened.
pub fn check(config: &config::AccessLog) -> io::Result<()> {
    open(config).map(drop)
}

fn open(config: &config::AccessLog) -> io::Result<Target> {
    Target::open(config.path.as_deref()).map_err(|error| {
        let path = config.path.as_deref().unwrap_or(Path::new("standard output"));
        io::Error::new(error.kind(), format!("access_log.path: {}: {error}", path.display()))
    })
}

impl AccessLog {
    /// Opens the log and starts its writer. Lines that are lost are counted in `dropped`.
    pub fn start(config: &config::AccessLog, dropped: Arc<Counter>) -> io::Result<Self> {
        Self::start_with(config, open(config)?, dropped)
    }

    fn start_with(config: &config::AccessLog, target: Target, dropped: Arc<Counter>) -> io::Result<Self> {
        let (queue, records) = sync_channel(QUEUE);
        let settings = Arc::new(writer::Settings::new(config));
        let writer = Writer::new(records, settings.clone(), target, dropped.clone());
        std::thread::Builder::new().name("access-log".into()).spawn(move || writer.run())?;
        let log = Self { queue, share: AtomicU64::new(0), failures: AtomicBool::new(false), settings, dropped };
        log.set_mode(config);
        Ok(log)
    }

    /// Takes over new settings. A new path is opened by the writer at once; when that fails it says so and goes on with
    /// the old one.
    pub fn configure(&self, config: &config::AccessLog) {
        self.set_mode(config);
        if self.settings.set(config) {
            self.reopen();
        }
    }

    /// Opens the file anew, as after log rotation. Does not wait for it.
    pub fn reopen(&self) {
        // Goes with the writer's acquire, so that it sees the new path.
        self.settings.reopen.store(true, Release);
        // Only wakes the writer; when the queue is full it is awake anyway.
        let _ = self.queue.try_send(Message::Wake);
    }

    /// Whether a request that ended like this is to be logged. Ask exactly once per request: with a share below 1 the
    /// answer is drawn. `failed`: pillion answered itself, or the request was cut off.
    #[inline]
    pub fn wants(&self, status: u16, failed: bool) -> bool {
        if failed || status >= 500 {
            return self.failures.load(Relaxed);
        }
        match self.share.load(Relaxed) {
            0 => false,
            ALL => true,
            share => u64::from(fastrand::u32(..)) < share,
        }
    }

    /// Hands a record to the writer, or drops and counts it. Never blocks.
    pub fn log(&self, record: AccessRecord) {
        // Boxed, so that the queue's places are small: they are all touched when it is made.
        if self.queue.try_send(Message::Record(Box::new(record))).is_err() {
            self.dropped.inc();
        }
    }

    /// Waits until everything logged before is written, at most for `limit`. Says whether it was.
    pub async fn flush(&self, limit: Duration) -> bool {
        let flushed = async {
            let (done, wait) = oneshot::channel();
            let mut message = Message::Flush(done);
            loop {
                match self.queue.try_send(message) {
                    Ok(()) => return wait.await.is_ok(),
                    Err(TrySendError::Full(back)) => message = back,
                    Err(TrySendError::Disconnected(_)) => return false,
                }
                tokio::time::sleep(writer::GATHER).await;
            }
        };
        tokio::time::timeout(limit, flushed).await.unwrap_or(false)
    }

    fn set_mode(&self, config: &config::AccessLog) {
        let share = match config.mode {
            AccessLogMode::All => (config.sample.0.clamp(0.0, 1.0) * ALL as f64) as u64,
            AccessLogMode::Errors | AccessLogMode::Off => 0,
        };
        self.share.store(share, Relaxed);
        self.failures.store(config.mode != AccessLogMode::Off, Relaxed);
    }
}

/// The share of everything.
const ALL: u64 = 1 << 32;
