//! A registry inside this process, for a first look, development, and one machine.
//!
//! One task owns the [`State`]; everyone else sends it closures. So nothing is locked, a batch of changes is published
//! as one, and one timer serves all TTLs. [`router`] is its HTTP API.

mod api;
mod entry;
#[cfg(fuzzing)]
pub mod fuzzing;
mod handover;
mod saved;
mod saver;
mod state;
mod store;
#[cfg(test)]
mod tests;
mod values;

pub use api::router;
pub use values::{Change, Condition, Value};

use super::{self as registry, Instance, Registry, RegistryError, Sink, layout::plain::Entry, store::Store};
use crate::config::{EmbeddedRegistry, human};
use futures_util::future::BoxFuture;
use saver::Saver;
use state::{Kept, State};
use std::{io, sync::Arc, time::Duration};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep_until},
};

/// Followers show this often that they are alive.
const BEAT: Duration = Duration::from_secs(5);

/// TTLs that can be asked for.
const TTL: std::ops::RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(24 * 3600);

/// The longest name and id, in bytes.
const MAX_NAME: usize = 253;

/// The largest instance, as bytes of JSON.
const MAX_ENTRY: usize = 4096;

type Command = Box<dyn FnOnce(&mut State) + Send>;

/// The registry as its users hold it. It works as long as the task that came with it runs.
#[derive(Debug)]
pub struct Embedded {
    name: String,
    ttl: Duration,
    commands: mpsc::Sender<Command>,
    /// The newest revision that is on disk; `None` without persistence.
    saved: Option<watch::Receiver<u64>>,
}

/// An instance that somebody wants to be found.
#[derive(Debug, Clone)]
pub struct Registration {
    pub name: String,
    pub entry: Entry,
    /// The registry's default when absent.
    pub ttl: Option<Duration>,
}

/// What a registration gives: renew it within the TTL, by this id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    pub name: String,
    pub id: String,
    pub ttl: Duration,
}

/// Why the registry did not do what it was asked to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("{0}")]
    Invalid(String),
    #[error("the instance has {0} bytes as JSON, the most is {MAX_ENTRY}")]
    TooLarge(usize),
    #[error("service `{name}` has no instance `{id}`")]
    Unknown { name: String, id: String },
    #[error("the registry is full: it holds {} instances", state::MAX_INSTANCES)]
    Full,
    #[error("the registry is full: it holds {} keys", values::MAX_KEYS)]
    FullOfKeys,
    #[error("the registry has stopped")]
    Stopped,
}

impl Embedded {
    /// The registry, with what was saved, and the task that has to run for it. The task ends with the last user.
    ///
    /// Fails only if there is a saved state that cannot be read at all; one that is damaged is put aside.
    pub fn open(name: &str, config: &EmbeddedRegistry) -> io::Result<(Arc<Self>, BoxFuture<'static, ()>)> {
        let mut state = State::default();
        if let Some(path) = &config.persist {
            let contents = saved::load(path)?;
            state.values.replace(contents.values);
            for kept in contents.instances {
                if state.register(kept, Instant::now()).is_err() {
                    tracing::error!(file = %path.display(), "the saved state has more instances than fit");
                    break;
                }
            }
        }
        Ok(Self::running(name, config, state))
    }

    fn running(name: &str, config: &EmbeddedRegistry, state: State) -> (Arc<Self>, BoxFuture<'static, ()>) {
        let (commands, queue) = mpsc::channel(1024);
        let (saver, saved) = match &config.persist {
            Some(path) => {
                let (done, saved) = watch::channel(0);
                (Some(Saver::new(path.clone(), done)), Some(saved))
            }
            None => (None, None),
        };
        let registry = Self { name: name.into(), ttl: config.ttl, commands, saved };
        (Arc::new(registry), Box::pin(run(state, queue, saver)))
    }

    /// Puts an instance in, in place of one with the same id. Without an id of its own it has its address as id.
    pub async fn register(&self, registration: Registration) -> Result<Lease, Refusal> {
        let Registration { name, entry, ttl } = registration;
        let ttl = ttl.unwrap_or(self.ttl);
        if !TTL.contains(&ttl) {
            return Err(Refusal::Invalid(format!(
                "a ttl of {} is out of range; expected 100ms to 24h",
                human::format(ttl)
            )));
        }
        let instance = entry.into_instance(None).map_err(|error| Refusal::Invalid(error.to_string()))?;
        check_name("name", &name)?;
        check_name("id", &instance.id)?;
        // A bound for one instance and one for their number bound the memory.
        let size = serde_json::to_vec(&Entry::from(&instance)).map_or(usize::MAX, |json| json.len());
        if size > MAX_ENTRY {
            return Err(Refusal::TooLarge(size));
        }
        let lease = Lease { name: name.clone(), id: instance.id.clone(), ttl };
        let kept = Kept { name, instance, ttl };
        self.with(move |state| state.register(kept, Instant::now())).await?.map_err(|state::Full| Refusal::Full)?;
        Ok(lease)
    }

    /// Starts the instance's TTL anew. When it is unknown, register it again.
    pub async fn renew(&self, name: &str, id: &str) -> Result<Lease, Refusal> {
        let (name, id) = (name.to_owned(), id.to_owned());
        self.with(move |state| match state.renew(&name, &id, Instant::now()) {
            Some(ttl) => Ok(Lease { name, id, ttl }),
            None => Err(Refusal::Unknown { name, id }),
        })
        .await?
    }

    pub async fn deregister(&self, name: &str, id: &str) -> Result<(), Refusal> {
        let (name, id) = (name.to_owned(), id.to_owned());
        self.with(move |state| match state.deregister(&name, &id) {
            true => Ok(()),
            false => Err(Refusal::Unknown { name, id }),
        })
        .await?
    }

    /// The service's instances now; none for a name that is not known.
    pub async fn discover(&self, name: &str) -> Result<Vec<Instance>, Refusal> {
        let name = name.to_owned();
        self.with(move |state| state.discover(&name)).await
    }

    /// The names of the services that have instances.
    pub async fn services(&self) -> Result<Vec<String>, Refusal> {
        self.with(|state| state.services()).await
    }

    /// The service's set, now and whenever it changes. It ends with the registry.
    pub async fn watch_instances(&self, name: &str) -> Result<watch::Receiver<Arc<[Instance]>>, Refusal> {
        let name = name.to_owned();
        self.with(move |state| state.follow(&name)).await
    }

    /// Waits until everything done before is on disk. Without persistence there is nothing to wait for.
    pub async fn flush(&self) -> Result<(), Refusal> {
        let Some(mut saved) = self.saved.clone() else { return Ok(()) };
        let revision = self.with(|state| state.revision).await?;
        saved.wait_for(|saved| *saved >= revision).await.map_err(|_| Refusal::Stopped)?;
        Ok(())
    }

    /// What errors call it.
    fn server(&self) -> String {
        format!("the embedded registry `{}`", self.name)
    }

    fn error(&self, refusal: Refusal) -> RegistryError {
        let (server, cause) = (self.server(), refusal.to_string());
        match refusal {
            Refusal::Full | Refusal::FullOfKeys | Refusal::Stopped => RegistryError::Busy { server, cause },
            Refusal::Invalid(_) | Refusal::TooLarge(_) | Refusal::Unknown { .. } => {
                RegistryError::Refused { server, cause }
            }
        }
    }

    async fn with<T: Send + 'static>(&self, work: impl FnOnce(&mut State) -> T + Send + 'static) -> Result<T, Refusal> {
        let (answer, wait) = oneshot::channel();
        let command = Box::new(move |state: &mut State| {
            // Whoever asked may have stopped waiting.
            let _ = answer.send(work(state));
        });
        self.commands.send(command).await.map_err(|_| Refusal::Stopped)?;
        wait.await.map_err(|_| Refusal::Stopped)
    }
}

impl Registry for Embedded {
    fn name(&self) -> &str {
        &self.name
    }

    fn kind(&self) -> &'static str {
        "embedded"
    }

    fn entry(
        self: Arc<Self>,
        registration: Arc<registry::Registration>,
    ) -> Result<Box<dyn registry::Entry>, RegistryError> {
        Ok(Box::new(entry::OwnEntry::new(self, registration)))
    }

    fn follow(self: Arc<Self>, service: String, sink: Sink) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            loop {
                if let Ok(mut set) = self.watch_instances(&service).await {
                    loop {
                        let instances = set.borrow_and_update().to_vec();
                        sink.set(instances);
                        let changed = loop {
                            match tokio::time::timeout(BEAT, set.changed()).await {
                                Ok(changed) => break changed,
                                Err(_) => sink.alive(),
                            }
                        };
                        if changed.is_err() {
                            break;
                        }
                    }
                }
                // Its task is gone and does not come back; that is seen at shutdown only.
                sink.failed(unreachable(&Refusal::Stopped));
                tokio::time::sleep(BEAT).await;
            }
        })
    }

    fn list(self: Arc<Self>) -> BoxFuture<'static, Result<Vec<String>, RegistryError>> {
        Box::pin(async move { self.services().await.map_err(|error| unreachable(&error)) })
    }

    fn store(self: Arc<Self>) -> Result<Arc<dyn Store>, RegistryError> {
        Ok(self)
    }

    fn silence_limit(&self) -> Duration {
        6 * BEAT
    }
}

fn unreachable(cause: &Refusal) -> RegistryError {
    RegistryError::Unreachable { server: "the embedded registry".into(), cause: cause.to_string() }
}

fn check_name(what: &str, name: &str) -> Result<(), Refusal> {
    if !name.is_empty() && name.len() <= MAX_NAME && name.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Ok(());
    }
    Err(Refusal::Invalid(format!(
        "`{}` is not usable as {what}; expected 1 to {MAX_NAME} printable ASCII characters without spaces",
        name.escape_debug()
    )))
}

/// Owns the state until the last user of the registry is gone.
async fn run(mut state: State, mut queue: mpsc::Receiver<Command>, mut saver: Option<Saver>) {
    loop {
        let (expiry, revision) = (state.next_expiry().filter(|_| !state.borrowed), state.revision);
        let saving = async {
            match &mut saver {
                Some(saver) if !state.borrowed => saver.due(revision).await,
                _ => std::future::pending().await,
            }
        };
        tokio::select! {
            // Commands first: a renewal that is in the queue counts, also when this thread was late.
            biased;
            command = queue.recv() => match command {
                Some(command) => {
                    command(&mut state);
                    // A burst is published as one change.
                    while let Ok(command) = queue.try_recv() {
                        command(&mut state);
                    }
                }
                None => break,
            },
            () = sleep_until(expiry.unwrap_or_else(Instant::now)), if expiry.is_some() => state.expire(Instant::now()),
            result = saving => if let Some(saver) = &mut saver {
                match result {
                    Some(result) => saver.ended(result),
                    None => saver.start(&state),
                }
            },
        }
        state.publish();
        if let Some(heir) = state.heir.take() {
            if let Some(saver) = &mut saver {
                saver.settle().await;
            }
            // It may have given up waiting.
            let _ = heir.send(state.contents());
            return;
        }
    }
    if let Some(mut saver) = saver.filter(|_| !state.borrowed) {
        saver.finish(&state).await;
    }
}
