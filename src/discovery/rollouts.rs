//! Rollouts as all pillions have them in common: their states, read from the store, and who decides.
//!
//! A pillion reads the states and gives its splits their weights; that is all that most of them do. For each service with a
//! rollout, the one that holds its lock looks at the figures, decides and writes the state ([`Leader`]). A release that the
//! state says nothing of, now or as an earlier one, leaves the splits as they are written.

mod figures;
mod leader;
mod prometheus;
mod status;
#[cfg(test)]
mod tests;

use super::{
    Registries,
    dynamic::Routes,
    following::{Following, Place},
    kept::{self, Kept},
    snapshot,
};
use crate::{
    config::{Config, Rollout, RolloutStore, StoredRoutes},
    registry::{
        Registry,
        store::{Item, Store, Version},
    },
    rollout::{self, At, Command, Phase, State},
    telemetry::{
        Telemetry,
        labels::{RolloutPhase, RolloutVerdict},
        metrics::{RolloutMetrics, SubsetMetrics},
    },
};
use leader::{Document, Leader};
pub use status::{RolloutStatus, RolloutsStatus, WaitingFor};
use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    fmt,
    future::pending,
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};

/// A rollout that was in progress when it was last heard of, so long ago, is not believed to be so still: it may have been taken
/// back since.
const OLDEST: Duration = Duration::from_secs(60 * 60);

/// All rollouts.
pub struct Rollouts {
    following: Option<Following>,
    /// The services that have a rollout.
    governed: BTreeMap<String, Governed>,
    states: BTreeMap<String, Known>,
    /// How this pillion is called where several decide one after the other.
    by: Arc<str>,
    /// Where states are kept on disk.
    disk: Option<Arc<snapshot::Store>>,
    telemetry: Arc<Telemetry>,
}

/// A service with a rollout.
struct Governed {
    rollout: Rollout,
    release: String,
    /// For who decides: the newest that was heard.
    known: watch::Sender<Option<State>>,
    /// Decides when it is its turn, as long as it is there. Not there where the store or its figures cannot be had.
    _leader: Option<Leader>,
    metrics: Arc<RolloutMetrics>,
}

/// What is known of one service's state.
#[derive(Default)]
struct Known {
    good: Option<Good>,
    /// The newest value, and why it cannot be used.
    refused: Option<(Item, String)>,
}

struct Good {
    item: Item,
    state: State,
    /// The store has not confirmed it since the start.
    from_disk: bool,
    /// The store has it no more.
    is_gone: bool,
    /// When it came.
    heard: Instant,
    /// Whether it was told that nobody looks at it.
    told_unattended: bool,
}

/// Why a command was not done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotDone {
    /// The service has no rollout.
    NoRollout(String),
    /// It makes no sense now.
    Refused(String),
    /// The store cannot be asked.
    Failed(String),
}

impl fmt::Display for NotDone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::NoRollout(cause) | Self::Refused(cause) | Self::Failed(cause)) = self;
        f.write_str(cause)
    }
}

impl Rollouts {
    /// Begins to watch the states, where any service has a rollout.
    pub fn new(
        config: &Config,
        registries: &Registries,
        routes: &Routes,
        disk: Option<Arc<snapshot::Store>>,
        telemetry: Arc<Telemetry>,
    ) -> Self {
        let (governed, states) = Default::default();
        let mut rollouts = Self { following: None, governed, states, by: name_of_this_one(), disk, telemetry };
        rollouts.change(config, registries, routes);
        rollouts
    }

    /// Takes over another config, or other `routes` that go before it.
    pub fn change(&mut self, config: &Config, registries: &Registries, routes: &Routes) {
        let wanted = with_rollouts(config, routes);
        let at = config.routing.rollout_store().filter(|_| !wanted.is_empty());
        let at = at.and_then(|RolloutStore { registry, path }| {
            let registry_at = registries.get(&registry)?;
            Some((Place { registry, path }, registry_at))
        });
        let Some((place, registry)) = at else {
            self.following = None;
            self.governed.clear();
            self.states.clear();
            return;
        };
        let same_store = self.following.as_ref().is_some_and(|following| following.is_at(&place, registry));
        if !same_store {
            if self.following.as_ref().is_none_or(|before| before.place != place) {
                self.states.clear();
                self.load(&place);
            }
            self.following = Some(Following::start("the store of rollouts", place.clone(), registry, &self.telemetry));
        }
        let mut before = std::mem::take(&mut self.governed);
        for (service, (rollout, release)) in wanted {
            let same = |there: &Governed| same_store && there.rollout == rollout && there.release == release;
            let governed = before.remove(&service).filter(same);
            let governed = governed.unwrap_or_else(|| self.govern(&service, &place, registry, rollout, release));
            self.governed.insert(service, governed);
        }
        self.count();
    }

    fn govern(
        &self,
        service: &str,
        place: &Place,
        registry: &Arc<dyn Registry>,
        rollout: Rollout,
        release: String,
    ) -> Governed {
        let metrics = self.telemetry.metrics.rollout(service);
        let known = watch::Sender::new(self.good(service).map(|good| good.state.clone()));
        let leader = registry.clone().store().map_err(|error| error.to_string()).and_then(|store| {
            let document = self.document(service, place, store, &rollout, &release);
            Leader::start(document, known.subscribe(), &self.telemetry, metrics.clone())
        });
        let leader = leader
            .inspect_err(|error| tracing::error!(service, error, "this pillion cannot decide about the rollout"))
            .ok();
        Governed { rollout, release, known, _leader: leader, metrics }
    }

    fn document(
        &self,
        service: &str,
        place: &Place,
        store: Arc<dyn Store>,
        rollout: &Rollout,
        release: &str,
    ) -> Document {
        Document {
            store,
            service: service.into(),
            key: format!("{}/{service}", place.path),
            lock: format!("{}-locks/{service}", place.path),
            by: self.by.clone(),
            rollout: rollout.clone(),
            release: release.into(),
        }
    }

    /// Puts what was kept on disk in force.
    fn load(&mut self, place: &Place) {
        let Some(bytes) = self.disk.as_ref().and_then(|disk| disk.load_routes(&kept::name(place))) else { return };
        match kept::decode(place, &bytes) {
            Ok(kept) => {
                for Kept { service, version, text } in kept {
                    let old = |state: State| state.is_live() && At::now().since(state.looked_at) > OLDEST;
                    if State::read(text.as_bytes()).is_ok_and(old) {
                        tracing::info!(
                            service,
                            "its rollout was in progress long ago; what the store says now is waited for"
                        );
                        continue;
                    }
                    let item = Item { key: service, value: text.into(), version: Version::new(version) };
                    self.take(&item, true);
                }
            }
            Err(cause) => tracing::warn!(cause, "the states of rollouts that were kept on disk cannot be used"),
        }
    }

    /// Waits until the store has something new to say. Loses nothing when it is dropped.
    /// Returns as well when it has become clear that nobody looks at one any more.
    pub async fn changed(&mut self) {
        let Some(following) = &mut self.following else { return pending().await };
        let attended = |service: &String| self.states.get(service)?.good.as_ref().filter(|good| !good.told_unattended);
        let until = |(service, governed): (&String, &Governed)| attended(service)?.unattended_from(&governed.rollout);
        match self.governed.iter().filter_map(until).min() {
            Some(unattended) => drop(timeout_at(unattended, following.changed()).await),
            None => following.changed().await,
        }
    }

    /// Whether the store has said anything at all, if there is one.
    pub fn is_heard(&self) -> bool {
        self.following.as_ref().is_none_or(Following::is_heard)
    }

    /// Takes in what the store says now; gives the services whose splits weigh something else now.
    pub fn hear(&mut self) -> BTreeSet<String> {
        let Some(following) = &mut self.following else { return BTreeSet::new() };
        let Some(items) = following.hear().items else {
            self.count();
            return BTreeSet::new();
        };
        let place = following.place.clone();
        let there: HashSet<&str> = items.iter().map(|item| item.key.as_str()).collect();
        for (service, known) in self.states.iter_mut().filter(|(service, _)| !there.contains(service.as_str())) {
            // A store that was emptied must not bring back what was taken back. Who decides writes it again.
            known.refused = None;
            if known.good.as_mut().is_some_and(|good| !std::mem::replace(&mut good.is_gone, true)) {
                tracing::warn!(%service, "the state of its rollout is gone from the store; what it was last stays");
            }
        }
        let before = self.phases();
        let changed = items.iter().filter(|item| self.take(item, false)).map(|item| item.key.clone()).collect();
        if let Some(disk) = self.disk.as_ref().filter(|_| self.phases() != before) {
            disk.save_routes(&kept::name(&place), kept::encode(&place, &self.kept()));
        }
        self.count();
        changed
    }

    /// What of the states is worth being kept on disk at once.
    fn phases(&self) -> Vec<(String, Phase, f64)> {
        let goods = self.states.values().filter_map(|known| known.good.as_ref());
        goods.map(|Good { state, .. }| (state.release.clone(), state.phase.clone(), state.percent)).collect()
    }

    fn good(&self, service: &str) -> Option<&Good> {
        self.states.get(service)?.good.as_ref()
    }

    /// Reads one state; gives whether it makes the splits weigh something else.
    fn take(&mut self, item: &Item, from_disk: bool) -> bool {
        let known = self.states.entry(item.key.clone()).or_default();
        if let Some(good) = known.good.as_mut().filter(|good| good.item == *item) {
            (good.from_disk, good.is_gone, known.refused) = (from_disk, false, None);
            return false;
        }
        match State::read(&item.value) {
            // What a server says that lags behind.
            Ok(state) if known.good.as_ref().is_some_and(|good| good.state.is_newer_than(&state)) => false,
            Ok(state) => {
                let same =
                    |before: &Good| (&before.state.release, before.state.percent) == (&state.release, state.percent);
                let changes = !known.good.as_ref().is_some_and(same);
                if changes && self.governed.contains_key(&item.key) {
                    let (service, State { percent, release, .. }) = (&item.key, &state);
                    tracing::info!(%service, percent, release, "the canary's share in the store");
                }
                if let Some(governed) = self.governed.get(&item.key) {
                    governed.known.send_replace(Some(state.clone()));
                }
                let told_unattended = known.good.as_ref().is_some_and(|good| good.told_unattended);
                if told_unattended && state.is_live() {
                    tracing::info!(service = item.key, by = state.by, "somebody decides about the rollout again");
                }
                let heard = Instant::now();
                let good = Good { item: item.clone(), state, from_disk, is_gone: false, heard, told_unattended: false };
                *known = Known { good: Some(good), refused: None };
                changes
            }
            Err(error) => {
                if known.refused.as_ref().is_none_or(|(told, _)| told != item) {
                    let service = &item.key;
                    tracing::error!(%service, %error, "the state of its rollout cannot be read; what was read last stays");
                }
                known.refused = Some((item.clone(), error));
                false
            }
        }
    }

    /// What the splits of a service are to weigh.
    pub fn state_of(&self, service: &str) -> Option<&State> {
        self.governed.get(service)?;
        Some(&self.good(service)?.state)
    }

    /// Does what somebody asks for, in the store, from where it comes back to every pillion.
    pub fn command(
        &self,
        service: &str,
        command: Command,
    ) -> impl Future<Output = Result<State, NotDone>> + Send + 'static {
        let document = self.document_of(service);
        let known = self.good(service).map(|good| good.state.clone());
        let governed = self.governed.get(service);
        let metrics = governed.map(|governed| governed.metrics.clone());
        let empty = governed.filter(|_| command == Command::Start).and_then(|governed| {
            let canary = &governed.rollout.canary;
            let refused = || NotDone::Refused(format!("no endpoint of `{canary}` can take requests"));
            (!figures::can_be_tried(&self.side(service, canary))).then(refused)
        });
        async move {
            let document = document?;
            if let Some(empty) = empty {
                return Err(empty);
            }
            let state = document.command(command, known).await?;
            if let (Some(metrics), Some(decision)) = (metrics, state.decisions.back()) {
                metrics.decisions.inc(RolloutVerdict::of(&decision.verdict) as usize);
            }
            Ok(state)
        }
    }

    /// What is counted of one of the two subsets.
    fn side(&self, service: &str, subset: &str) -> Arc<SubsetMetrics> {
        self.telemetry.metrics.service(service).subset(subset)
    }

    fn document_of(&self, service: &str) -> Result<Document, NotDone> {
        let there = self.governed.get(service).zip(self.following.as_ref());
        let Some((Governed { rollout, release, .. }, following)) = there else {
            return Err(NotDone::NoRollout(format!("`{service}` has no `rollout`")));
        };
        let store = following.registry().clone().store().map_err(|error| NotDone::Failed(error.to_string()))?;
        Ok(self.document(service, &following.place, store, rollout, release))
    }

    fn kept(&self) -> Vec<Kept> {
        let goods = self.states.values().filter_map(|known| known.good.as_ref());
        // What is good is text.
        let kept = |Good { item, .. }: &Good| Kept {
            service: item.key.clone(),
            version: item.version.to_string(),
            text: String::from_utf8_lossy(&item.value).into_owned(),
        };
        goods.map(kept).collect()
    }

    /// Takes note of how far they all are, and tells when nobody looks at one any more.
    fn count(&mut self) {
        for (service, governed) in &self.governed {
            let good = self.states.get_mut(service).and_then(|known| known.good.as_mut());
            let metrics = &governed.metrics;
            let state = good.as_ref().map(|good| &good.state);
            metrics.share.set(state.map_or(0, |state| state.weights().canary.into()));
            let phase = state.map(|state| RolloutPhase::from(&state.phase));
            for each in RolloutPhase::ALL {
                metrics.phase.set(each as usize, u64::from(phase == Some(each)));
            }
            let unattended = good.is_some_and(|good| good.tell_if_unattended(service, &governed.rollout));
            metrics.unattended.set(unattended.into());
        }
    }
}

impl Good {
    /// When it is clear that nobody looks at it, if it is in progress: who decides writes it every so often.
    fn unattended_from(&self, rollout: &Rollout) -> Option<Instant> {
        let is_expected = self.state.is_live() && !self.from_disk;
        is_expected.then(|| self.heard + leader::longest_silence(rollout))
    }

    fn tell_if_unattended(&mut self, service: &str, rollout: &Rollout) -> bool {
        let now = Instant::now();
        let unattended = self.unattended_from(rollout).is_some_and(|from| from <= now);
        if unattended && !self.told_unattended {
            let looked_at = self.state.looked_at;
            tracing::warn!(service, %looked_at, "nobody decides about the rollout; its share stays");
        }
        self.told_unattended = unattended;
        unattended
    }
}

impl From<&Phase> for RolloutPhase {
    fn from(phase: &Phase) -> Self {
        match phase {
            Phase::Running => Self::Running,
            Phase::Paused => Self::Paused,
            Phase::RolledBack { .. } => Self::RolledBack,
            Phase::Aborted { .. } => Self::Aborted,
            Phase::Done => Self::Done,
        }
    }
}

/// The services with a rollout, and what is to be rolled out.
fn with_rollouts(config: &Config, routes: &Routes) -> BTreeMap<String, (Rollout, String)> {
    let of = |name: &String| {
        let own = config.services.get(name).unwrap_or(&config.defaults);
        let service = match routes.get(name) {
            Some(stored) => StoredRoutes::clone(stored).over(own),
            None => own.clone(),
        };
        let rollout = service.rollout.clone()?;
        let release = rollout::release(&rollout, &service);
        Some((name.clone(), (rollout, release)))
    };
    config.services.keys().chain(routes.keys()).filter_map(of).collect()
}

/// The machine or pod, and the process.
fn name_of_this_one() -> Arc<str> {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    format!("{host}/{}", std::process::id()).into()
}

impl Document {
    /// Tries again when others change the state at the same time. `known`: what was read last.
    async fn command(&self, command: Command, known: Option<State>) -> Result<State, NotDone> {
        const TRIES: u32 = 5;
        let without = match command {
            Command::Abort => "; how to get a canary out without it: \"while the store is down\" in docs/rollouts.md",
            _ => "",
        };
        let failed = |error: &dyn fmt::Display| NotDone::Failed(format!("the store of rollouts: {error}{without}"));
        for _ in 0..TRIES {
            let item = self.read().await.map_err(|error| failed(&error))?;
            let other_version = |item: Option<&Item>| item.is_some_and(|it| State::is_of_another_version(&it.value));
            let carry_out = |state: Option<&State>| {
                rollout::command(state, command, &self.rollout, &self.release, &self.by, At::now())
                    .map_err(NotDone::Refused)
            };
            let mut next = match item.as_ref().map(|item| State::read(&item.value)).transpose() {
                Ok(there) => carry_out(there.as_ref())?,
                // Whatever it is, the canary is to get nothing. (But those that know another version would not read of that.)
                Err(_) if command == Command::Abort && !other_version(item.as_ref()) => match &known {
                    // It only has to be there again.
                    Some(known) if known.is_aborted(&self.release) => known.clone(),
                    known => carry_out(known.as_ref())?,
                },
                Err(error) => return Err(NotDone::Refused(self.unreadable(&error, other_version(item.as_ref())))),
            };
            if self.write(item.map(|item| item.version), &mut next).await.map_err(|error| failed(&error))?.is_some() {
                if let (Some(decision), service) = (next.decisions.back(), &self.service) {
                    tracing::warn!(service, by = decision.by, "by hand: the rollout {decision}");
                }
                return Ok(next);
            }
        }
        Err(NotDone::Failed("others keep changing the state".into()))
    }

    fn unreadable(&self, error: &str, other_version: bool) -> String {
        let Self { key, service, .. } = self;
        let remedy = match other_version {
            true => "pillions of that version change it".to_owned(),
            false => format!("`pillion rollout abort {service}` puts another in its place"),
        };
        format!("the state at `{key}` in the store cannot be read: {error}; {remedy}")
    }
}
