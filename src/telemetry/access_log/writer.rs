//! The thread that makes text of records and writes it.

use super::{Counter, record::AccessRecord};
use crate::config::{self, LogFormat};
use arc_swap::ArcSwap;
use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    mem,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{
            AtomicBool,
            Ordering::{Acquire, Relaxed},
        },
        mpsc::Receiver,
    },
    time::Duration,
};
use tokio::{sync::oneshot, time::Instant};

/// After it was woken the writer waits this long before it looks for more, so that a busy pillion wakes it (a system
/// call on the request path) 100 times a second and not once per request. 200,000 requests per second half fill the
/// queue in this time.
pub(super) const GATHER: Duration = Duration::from_millis(10);

/// Written when this much has come together, or when there is nothing more.
const BATCH: usize = 64 * 1024;

/// A failing disk is reported this often.
const REPORT: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(super) enum Message {
    Record(Box<AccessRecord>),
    Flush(oneshot::Sender<()>),
    Wake,
}

/// What can change while the writer runs.
#[derive(Debug)]
pub(super) struct Settings {
    json: AtomicBool,
    path: ArcSwap<Option<PathBuf>>,
    pub(super) reopen: AtomicBool,
}

impl Settings {
    pub(super) fn new(config: &config::AccessLog) -> Self {
        Self {
            json: AtomicBool::new(config.format == LogFormat::Json),
            path: ArcSwap::from_pointee(config.path.clone()),
            reopen: AtomicBool::new(false),
        }
    }

    /// Says whether the path is another.
    pub(super) fn set(&self, config: &config::AccessLog) -> bool {
        self.json.store(config.format == LogFormat::Json, Relaxed);
        *self.path.swap(Arc::new(config.path.clone())) != config.path
    }

    fn format(&self) -> LogFormat {
        if self.json.load(Relaxed) { LogFormat::Json } else { LogFormat::Text }
    }
}

pub(super) struct Target(Box<dyn Write + Send>);

impl Target {
    /// Standard output when there is no path.
    pub(super) fn open(path: Option<&Path>) -> io::Result<Self> {
        let Some(path) = path else { return Ok(Self(Box::new(io::stdout()))) };
        let file: File = OpenOptions::new().create(true).append(true).open(path)?;
        Ok(Self(Box::new(file)))
    }

    #[cfg(test)]
    pub(super) fn new(writer: impl Write + Send + 'static) -> Self {
        Self(Box::new(writer))
    }
}

pub(super) struct Writer {
    records: Receiver<Message>,
    settings: Arc<Settings>,
    target: Target,
    dropped: Arc<Counter>,
    /// Lines not written yet, and how many there are.
    batch: Vec<u8>,
    lines: u64,
    /// A write stopped within a line; the next one begins with the end of that line.
    torn: bool,
    reported: Option<Instant>,
}

impl Writer {
    pub(super) fn new(
        records: Receiver<Message>,
        settings: Arc<Settings>,
        target: Target,
        dropped: Arc<Counter>,
    ) -> Self {
        Self { records, settings, target, dropped, batch: Vec::new(), lines: 0, torn: false, reported: None }
    }

    /// Ends when the log is dropped and everything in the queue is written.
    pub(super) fn run(mut self) {
        while let Ok(message) = self.records.recv() {
            let urgent = !matches!(message, Message::Record(_));
            self.take(message);
            if !urgent {
                std::thread::sleep(GATHER);
            }
            while let Ok(message) = self.records.try_recv() {
                self.take(message);
            }
            self.write();
            // Idle: a burst's memory is given back.
            self.batch = Vec::new();
        }
    }

    fn take(&mut self, message: Message) {
        if self.settings.reopen.swap(false, Acquire) {
            self.reopen();
        }
        match message {
            Message::Record(record) => {
                record.write(&mut self.batch, self.settings.format());
                self.lines += 1;
                if self.batch.len() >= BATCH {
                    self.write();
                }
            }
            Message::Flush(done) => {
                self.write();
                // Whoever asked may have stopped waiting.
                let _ = done.send(());
            }
            Message::Wake => {}
        }
    }

    fn reopen(&mut self) {
        // What was logged before the rotation belongs to the old file.
        self.write();
        match Target::open(self.settings.path.load().as_deref()) {
            Ok(target) => (self.target, self.torn) = (target, false),
            Err(error) => tracing::error!(%error, "the access log cannot be opened; it goes on where it was"),
        }
    }

    fn write(&mut self) {
        if self.lines == 0 {
            return;
        }
        let lines = mem::take(&mut self.lines);
        let mut rest: &[u8] = &self.batch;
        let result = (|| {
            if self.torn {
                self.target.0.write_all(b"\n")?;
                self.torn = false;
            }
            while !rest.is_empty() {
                match self.target.0.write(rest) {
                    Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                    Ok(written) => rest = &rest[written..],
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
            self.target.0.flush()
        })();
        if let Err(error) = result {
            let written = &self.batch[..self.batch.len() - rest.len()];
            self.torn |= written.last().is_some_and(|last| *last != b'\n');
            let whole = memchr::memchr_iter(b'\n', written).count() as u64;
            self.dropped.add(lines - whole.min(lines));
            if self.reported.is_none_or(|last| last.elapsed() >= REPORT) {
                self.reported = Some(Instant::now());
                tracing::error!(%error, "the access log cannot be written; lines are lost and counted");
            }
        }
        self.batch.clear();
    }
}
