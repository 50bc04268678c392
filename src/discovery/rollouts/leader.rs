//! Deciding about one service's rollout, in one pillion at a time: the one that holds the lock.

use super::figures::Figures;
use crate::{
    backoff::Backoff,
    config::Rollout,
    registry::{
        RegistryError,
        store::{Item, Lock, Put, Store, Version},
    },
    rollout::{At, Decision, Phase, State, Verdict, due},
    telemetry::{Telemetry, labels::RolloutVerdict, metrics::RolloutMetrics},
};
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, MissedTickBehavior, interval, sleep, timeout},
};

/// So long after its holder died, another pillion can have the lock: about that and half of it.
const LOCK_TTL: Duration = Duration::from_secs(10);

/// What a look adds to the evidence is written at once when it changes something, and otherwise so often, or in such a part of
/// `hold` if that is sooner: all pillions are told of each write. Whoever takes over lacks at most so much.
const WRITTEN: Duration = Duration::from_secs(30);
const PART_OF_HOLD: u32 = 10;

/// Who gives the lock away wants it again after this time: longer than others take to get it.
const AWAY: Duration = Duration::from_secs(30);

/// Between attempts at a lock in a store that fails.
const BACKOFF: Duration = Duration::from_secs(1);
const LONGEST_BACKOFF: Duration = Duration::from_secs(30);

/// One service's state in the store, and what it is judged by.
pub struct Document {
    pub store: Arc<dyn Store>,
    pub service: String,
    pub key: String,
    pub lock: String,
    /// This pillion.
    pub by: Arc<str>,
    pub rollout: Rollout,
    pub release: String,
}

impl Document {
    pub async fn read(&self) -> Result<Option<Item>, RegistryError> {
        self.store.clone().get(self.key.clone()).await
    }

    /// The version that it now has; `None` if it is not at `version` any more.
    pub async fn write(&self, version: Option<Version>, state: &mut State) -> Result<Option<Version>, RegistryError> {
        state.revision += 1;
        let value = state.write().map_err(|cause| RegistryError::Impossible { cause })?;
        match self.store.clone().put_if(self.key.clone(), version, value.into()).await? {
            Put::Done(version) => Ok(Some(version)),
            Put::Conflict => Ok(None),
        }
    }
}

/// The task that decides, when it is its turn. Dropping it ends that, and gives the lock back.
pub struct Leader {
    task: JoinHandle<()>,
}

impl Leader {
    /// Fails if the config's Prometheus server cannot be asked: its TLS files.
    /// `known`: the newest state that this pillion has heard of.
    pub fn start(
        document: Document,
        known: watch::Receiver<Option<State>>,
        telemetry: &Telemetry,
        metrics: Arc<RolloutMetrics>,
    ) -> Result<Self, String> {
        let figures = Figures::new(&document.service, &document.rollout, telemetry)?;
        let (own, untold, written) = (None, Vec::new(), Instant::now());
        let deciding =
            Deciding { document, known, figures, metrics, own, untold, written, failing: false, is_unreadable: false };
        Ok(Self { task: tokio::spawn(deciding.run()) })
    }
}

impl Drop for Leader {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Deciding {
    document: Document,
    known: watch::Receiver<Option<State>>,
    figures: Figures,
    metrics: Arc<RolloutMetrics>,
    /// The state with all that was seen, while the store has the version that it was made from.
    own: Option<Own>,
    /// Decisions that are not in the store yet.
    untold: Vec<Decision>,
    written: Instant,
    /// Whether it is in a failure that was told.
    failing: bool,
    /// Whether the state in the store is of no use.
    is_unreadable: bool,
}

#[derive(Clone)]
struct Own {
    version: Option<Version>,
    state: State,
}

/// What a look came to.
enum Looked {
    /// There is nothing to decide now, or something was decided.
    On,
    /// It is not for this pillion to decide: another release is in progress than the one in its config.
    NotOurs(String),
}

/// Counts as leading as long as it is there.
struct Leading<'m>(&'m RolloutMetrics);

impl Drop for Leading<'_> {
    fn drop(&mut self) {
        self.0.leading.set(0);
    }
}

impl Deciding {
    async fn run(mut self) {
        let mut backoff = Backoff::new(BACKOFF, LONGEST_BACKOFF);
        let metrics = self.metrics.clone();
        loop {
            self.figures.until_there_are_some(self.document.rollout.interval).await;
            let Document { store, lock, by, service, .. } = &self.document;
            // Another claim of this pillion's, as after a reload, is not this one.
            let owner = format!("{by}/{:08x}", fastrand::u32(..));
            match store.clone().lock(lock.clone(), owner, LOCK_TTL).await {
                Ok(lock) => {
                    tracing::info!(service, "this pillion decides about the rollout");
                    backoff.reset();
                    metrics.leading.set(1);
                    let leading = Leading(&metrics);
                    let gave_away = self.lead(lock).await;
                    drop(leading);
                    if gave_away {
                        // A command, or another pillion's word, may change whose it is.
                        self.known.mark_unchanged();
                        let _ = timeout(AWAY, self.known.changed()).await;
                    }
                }
                Err(error) => {
                    self.ended(Err(format!("the lock: {error}")));
                    sleep(backoff.next_wait()).await;
                }
            }
        }
    }

    /// Decides until somebody else is to; gives whether it gave that away.
    async fn lead(&mut self, mut lock: Lock) -> bool {
        (self.own, self.untold) = Default::default();
        self.figures.start();
        let Rollout { interval: every, hold, min_requests, .. } = self.document.rollout;
        let service = self.document.service.clone();
        let mut looks = interval(every);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let look = async {
                looks.tick().await;
                self.look().await
            };
            // What is broken off here is in the store as a whole or not at all.
            let looked = tokio::select! {
                why = lock.lost() => {
                    tracing::warn!(service, why, "this pillion no longer decides about the rollout");
                    return false;
                }
                looked = look => looked,
            };
            let give_away = match &looked {
                Ok(Looked::On) if self.figures.are_few(hold, min_requests) => {
                    Some("too few requests come by here to judge by".to_owned())
                }
                Ok(Looked::NotOurs(release)) => {
                    Some(format!("release `{release}` is in progress, which is not the one in the config here"))
                }
                Ok(Looked::On) => None,
                Err(_) if self.is_unreadable => Some("the state cannot be read".to_owned()),
                Err(_) => None,
            };
            self.ended(looked.map(drop));
            if let Some(why) = give_away {
                tracing::info!(service, why, "another pillion is to decide about the rollout");
                // With what was seen here since the last time. If that fails, it is lost.
                if let Some(Own { version, state }) = self.own.take() {
                    let _ = self.write(version, state).await;
                }
                lock.release().await;
                return true;
            }
        }
    }

    /// Begins what is due, or looks at what came since the last time and decides.
    async fn look(&mut self) -> Result<Looked, String> {
        let item = self.document.read().await.map_err(|error| error.to_string())?;
        let (version, state) = self.newest(item)?;
        if let Some(state) = state.clone().filter(|_| !self.untold.is_empty() || version.is_none()) {
            // What was decided comes before anything else is; so does what the store has lost.
            return self.write(version, state).await;
        }
        let Document { rollout, release, by, .. } = &self.document;
        let now = At::now();
        if let Some(next) = due(state.as_ref(), rollout, release, by, now) {
            if !self.figures.canary_can_be_tried() {
                return Ok(Looked::On);
            }
            self.figures.start();
            self.untold.extend(next.decisions.back().cloned());
            return self.write(version, next).await;
        }
        let mut state = match state {
            Some(state) if state.is_live() && state.release == *release => state,
            Some(state) if state.is_live() => return Ok(Looked::NotOurs(state.release)),
            _ => {
                self.figures.start();
                return Ok(Looked::On);
            }
        };
        let told = state.last_error.clone();
        let decision = match self.figures.look().await {
            Ok(look) => state.look(&look, rollout, by, now),
            Err(error) => {
                self.metrics.failures.inc();
                state.blind(error, by, now)
            }
        };
        if state.decisions.back() == Some(&decision) {
            self.untold.push(decision);
        }
        let often = often(rollout);
        if !self.untold.is_empty() || state.last_error != told || self.written.elapsed() >= often {
            return self.write(version, state).await;
        }
        self.own = Some(Own { version, state });
        Ok(Looked::On)
    }

    /// The state: as it is in the store, with what was seen since it was written.
    fn newest(&mut self, item: Option<Item>) -> Result<(Option<Version>, Option<State>), String> {
        self.is_unreadable = false;
        let version = item.as_ref().map(|item| item.version.clone());
        let own = self.own.take();
        if let Some(own) = own.clone().filter(|own| own.version == version) {
            return Ok((version, Some(own.state)));
        }
        let Some(item) = item else {
            // The store was emptied, or is another one: what was decided is not forgotten with it.
            return Ok((None, self.known.borrow().clone().or(own.map(|own| own.state))));
        };
        let there = State::read(&item.value).inspect_err(|_| self.is_unreadable = true)?;
        let Some(Own { state: mut ours, .. }) = own else { return Ok((version, Some(there))) };
        if there == ours {
            // It was written, and only the answer was lost.
            self.tell();
        } else if matches!(ours.phase, Phase::RolledBack { .. }) && there.is_live() && there.release == ours.release {
            // Whatever somebody else did to it at the same time: a bad canary goes back.
            ours.revision = there.revision;
            return Ok((version, Some(ours)));
        }
        // Somebody else changed it; that counts.
        self.untold.clear();
        Ok((version, Some(there)))
    }

    async fn write(&mut self, version: Option<Version>, mut state: State) -> Result<Looked, String> {
        let written = self.document.write(version.clone(), &mut state).await;
        let (version, result) = match written {
            Ok(Some(version)) => {
                self.written = Instant::now();
                self.tell();
                (Some(version), Ok(Looked::On))
            }
            // It is read at the next look, which decides whether ours still counts.
            Ok(None) => (version, Ok(Looked::On)),
            Err(error) => (version, Err(error.to_string())),
        };
        self.own = Some(Own { version, state });
        result
    }

    fn tell(&mut self) {
        self.untold.drain(..).for_each(|decision| tell(&self.document.service, &decision, &self.metrics));
    }

    /// Failures are told once when they begin and once when they are over.
    fn ended(&mut self, looked: Result<(), String>) {
        let service = &self.document.service;
        match &looked {
            Err(error) if !self.failing => {
                tracing::warn!(service, error, "nothing can be decided about the rollout; its share stays");
            }
            Ok(()) if self.failing => tracing::info!(service, "the rollout goes on"),
            _ => {}
        }
        self.metrics.failures.add(u64::from(looked.is_err()));
        self.failing = looked.is_err();
    }
}

/// How often who decides writes the state at least.
fn often(rollout: &Rollout) -> Duration {
    WRITTEN.min(rollout.hold / PART_OF_HOLD)
}

/// Who decides writes sooner than that. A write may fail, and a look take its time.
pub fn longest_silence(rollout: &Rollout) -> Duration {
    2 * (often(rollout) + rollout.interval) + LOCK_TTL
}

/// Those for people: each has its figures.
fn tell(service: &str, decision: &Decision, metrics: &RolloutMetrics) {
    let release = &decision.release;
    metrics.decisions.inc(RolloutVerdict::of(&decision.verdict) as usize);
    if matches!(decision.verdict, Verdict::RollBack { .. }) {
        tracing::warn!(service, release, "the rollout {decision}");
    } else {
        tracing::info!(service, release, "the rollout {decision}");
    }
}

impl RolloutVerdict {
    pub fn of(verdict: &Verdict) -> Self {
        match verdict {
            Verdict::Start { .. } => Self::Start,
            Verdict::Wait => Self::Wait,
            Verdict::Hold { .. } => Self::Hold,
            Verdict::Promote { .. } => Self::Promote,
            Verdict::RollBack { .. } => Self::RollBack,
            Verdict::Done { .. } => Self::Done,
            Verdict::Pause => Self::Pause,
            Verdict::Resume => Self::Resume,
            Verdict::Abort { .. } => Self::Abort,
        }
    }
}
