//! Turns what the sources of one service say into what is in force.

use super::{
    disk::Disk,
    guard::Alarm,
    linger::{Kept, Linger, View},
    nearness::Nearness,
    settings::SettingsFor,
    snapshot::Saved,
    sources::{Said, Sources},
};
use crate::{
    cluster::{Cluster, table::State},
    registry::{Instance, Observation},
    telemetry::metrics::SourceMetrics,
};
use futures_util::future::select_all;
use std::{
    collections::HashSet,
    future::pending,
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::{
    sync::{Notify, mpsc, oneshot, watch},
    time::{Instant, sleep_until},
};

/// Other settings, and who waits until they are in force.
pub type Change = (SettingsFor, oneshot::Sender<()>);

/// One source, as the publisher hears it.
pub struct Observer {
    observed: watch::Receiver<Observation>,
    counted: Arc<SourceMetrics>,
    /// Failures that were counted.
    failures: u64,
    /// Whether it is in a failure that was told.
    failing: bool,
    /// When it last confirmed its set.
    confirmed: Option<Instant>,
}

/// Whom what is in force comes from, for those who ask.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Standing {
    /// Whose instances are in force.
    pub from: Vec<usize>,
    /// By source: how many of its instances count, whether it was given up, and how far away it is.
    pub counts: Vec<Option<usize>>,
    pub given_up: Vec<bool>,
    pub latencies: Vec<Option<Duration>>,
    /// What the guard holds, and how many.
    pub held: Option<(Alarm, usize)>,
    /// What is in force was read from the disk: whose it was, and when that was confirmed.
    pub snapshot: Option<(String, SystemTime)>,
}

/// What is known of a service before its sources have said anything.
pub struct Known {
    /// What was kept on disk.
    pub disk: Disk,
    /// What was in force in the pillion that was taken over from.
    pub before: Option<Saved>,
    /// What is in force, if anything is, was made of what the same sources said.
    pub same_sources: bool,
}

/// The publisher of one service. Lives in the follower's task.
pub struct Publisher {
    cluster: Arc<Cluster>,
    settings: SettingsFor,
    observers: Vec<Observer>,
    sources: Sources,
    nearness: Nearness,
    disk: Disk,
    before: Option<Saved>,
    /// Whether any source ever listed an instance.
    known: bool,
    /// Whether an answer of these sources has been in force.
    heard: bool,
    linger: Linger,
    worse: Arc<Notify>,
    standing: watch::Sender<Standing>,
}

impl Observer {
    pub fn new(observed: watch::Receiver<Observation>, counted: Arc<SourceMetrics>) -> Self {
        Self { observed, counted, failures: 0, failing: false, confirmed: None }
    }

    /// The newest that was heard. Failures are counted, and told once when they begin and once when they are over.
    fn hear(&mut self, service: &str) -> Observation {
        let seen = self.observed.borrow_and_update().clone();
        if seen.failures > self.failures {
            self.counted.failures.add(seen.failures - self.failures);
            self.failures = seen.failures;
        }
        let registry = self.counted.source();
        match &seen.failure {
            Some(error) if !self.failing && seen.instances.is_none() => {
                tracing::warn!(%service, registry, %error, "a registry fails, and has said nothing yet");
            }
            Some(error) if !self.failing => {
                tracing::warn!(%service, registry, %error, "a registry fails; what it said last stays in use");
            }
            None if self.failing => tracing::info!(%service, registry, "the registry answers again"),
            _ => {}
        }
        self.failing = seen.failure.is_some();
        self.counted.up.set(i64::from(seen.failure.is_none() && seen.confirmed.is_some()));
        self.confirmed = seen.confirmed;
        seen
    }
}

impl Publisher {
    pub fn new(
        cluster: Arc<Cluster>,
        settings: SettingsFor,
        observers: Vec<Observer>,
        Known { disk, before, same_sources }: Known,
        worse: Arc<Notify>,
    ) -> (Self, watch::Receiver<Standing>) {
        let (standing, receiver) = watch::channel(Standing::default());
        let mut linger = Linger::default();
        if same_sources {
            // What is in force was listed by them, or is held: a reload during an outage must not end that.
            let there = cluster.load();
            let there: Vec<Instance> = there.endpoints.iter().map(|endpoint| endpoint.instance.clone()).collect();
            linger.seed(&there, Instant::now());
        }
        let publisher = Self {
            known: cluster.load().state == State::Known,
            sources: Sources::new(settings.plan.clone(), Instant::now()),
            nearness: Nearness::new(settings.plan.to_measure()),
            disk,
            before,
            cluster,
            settings,
            observers,
            heard: false,
            linger,
            worse,
            standing,
        };
        (publisher, receiver)
    }

    pub async fn run(mut self, coalesce: Duration, mut changes: mpsc::UnboundedReceiver<Change>) {
        let worse = self.worse.clone();
        let mut quiet_until = Instant::now();
        loop {
            let news = async {
                // The first change goes out at once; those that follow on its heels are gathered.
                sleep_until(quiet_until).await;
                changed(&mut self.observers).await;
            };
            let lingering = self.linger.end();
            let times = [lingering, self.sources.next()];
            tokio::select! {
                () = news => {
                    if self.publish_and_tell() {
                        quiet_until = Instant::now() + coalesce;
                    }
                }
                () = worse.notified() => {
                    self.nearness.doubt();
                    self.publish_and_tell();
                }
                () = until(times.into_iter().flatten().min()) => drop(self.publish_and_tell()),
                () = self.disk.next() => drop(self.publish_and_tell()),
                (place, latency) = self.nearness.next(&self.sources) => {
                    self.sources.measured(place, latency, Instant::now());
                    self.publish_and_tell();
                }
                Some((settings, done)) = changes.recv() => {
                    self.settings = settings;
                    self.publish();
                    let _ = done.send(());
                }
            }
        }
    }

    fn publish_and_tell(&mut self) -> bool {
        let published = self.publish();
        if published {
            let set = self.cluster.load();
            let (instances, state) = (set.endpoints.len(), set.state);
            tracing::info!(service = %self.cluster.name, instances, ?state, "endpoints changed");
        }
        published
    }

    /// Puts in force what the sources say now. Whether that changed anything.
    pub fn publish(&mut self) -> bool {
        let now = Instant::now();
        for (place, observer) in self.observers.iter_mut().enumerate() {
            let seen = observer.hear(&self.cluster.name);
            self.sources.hear(place, &seen, now);
        }
        self.nearness.hear(&self.sources);
        let mut said = self.sources.decide(now);
        let mut state = self.state(&said);
        self.heard |= state != State::Pending;
        let mut snapshot = None;
        if state == State::Pending
            && let Some(saved) = self.disk.saved(self.observers.iter().all(|observer| observer.failing))
        {
            let instances = self.sources.in_scope(&saved.source, &saved.instances);
            if !instances.is_empty() {
                snapshot = Some((saved.source.clone(), saved.saved));
                (said.instances, state) = (instances, State::Known);
            }
        } else if state != State::Pending {
            let on_disk = self.disk.take();
            if let Some(saved) = self.before.take().or(on_disk) {
                self.remember(&saved, now);
            }
        }
        let before = self.cluster.load();
        let kept = if state == State::Pending {
            // Nothing was heard yet. What there was before stays, under the settings of now.
            state = before.state;
            let there = before.endpoints.iter().map(|endpoint| &endpoint.instance);
            let instances = there.filter(|instance| self.sources.is_in_scope(instance)).cloned().collect();
            Kept { instances, new: 0, held: 0, alarm: None, back: HashSet::new() }
        } else {
            let service = &self.settings.settings.service;
            let moved = self.has_moved(&said);
            let view = View { listed: said.instances.clone(), withdrawn: &said.withdrawn, parts: &said.parts, moved };
            self.linger.keep(&before.endpoints, view, service, now)
        };
        drop(before);
        let published = self.put_in_force(&kept, state);
        self.tell_kept(&kept, &said);
        for place in said.from.iter().filter(|_| published) {
            self.observers[*place].counted.changes.inc();
        }
        self.save(&said, &kept);
        let again = !kept.back.is_empty();
        self.stand(said, &kept, snapshot);
        // Those that are back are to be checked, which they are once they are in force.
        if again { self.publish() || published } else { published }
    }

    /// Whether others are believed now, all of them, and not because those before list nothing any more.
    fn has_moved(&self, said: &Said) -> bool {
        let before = &self.standing.borrow().from;
        let lists = |place: &usize| self.sources.set(*place).is_some_and(|set| !set.is_empty());
        let others =
            !before.is_empty() && !said.from.is_empty() && before.iter().all(|place| !said.from.contains(place));
        others && before.iter().all(lists)
    }

    /// What was in force before the start and not long ago counts as listed until just now: a registry that was emptied while
    /// pillion was restarted.
    fn remember(&mut self, saved: &Saved, now: Instant) {
        let longest = self.settings.settings.service.guard.longest;
        if saved.saved.elapsed().is_ok_and(|age| age <= longest) {
            let instances = self.sources.in_scope(&saved.source, &saved.instances);
            self.linger.seed(&instances, now);
        }
    }

    /// Keeps on disk what sources said. Not while far too many are gone: what was known before is better then.
    fn save(&mut self, said: &Said, kept: &Kept) {
        let is_none = said.instances.is_empty() && said.answered == self.sources.count() && said.answered > 0;
        // What is still being read may be needed to judge what was said.
        if self.disk.is_reading() || kept.alarm.is_some() || !kept.back.is_empty() || (!is_none && said.from.is_empty())
        {
            return;
        }
        let from: Vec<usize> = if is_none { (0..self.sources.count()).collect() } else { said.from.clone() };
        // As old as the oldest part of it.
        let confirmed = from.iter().filter_map(|place| self.observers[*place].confirmed).min();
        if let Some(confirmed) = confirmed {
            let names = self.names(&from);
            self.disk.save(&names, &said.instances, confirmed);
        }
    }

    /// What is known of the service's existence. Until there was an answer in force, that one source has nothing means
    /// nothing while another, perhaps, has not answered yet.
    fn state(&self, said: &Said) -> State {
        let known = self.known || self.settings.pinned;
        // One that has failed for long is not waited for.
        let enough = said.settled == self.sources.count() && said.answered > 0;
        match (enough, known) {
            _ if !said.instances.is_empty() => State::Known,
            (enough, true) if enough || (self.heard && said.answered > 0) => State::Known,
            (true, false) => State::Unknown,
            // One that has not answered may know it.
            _ => State::Pending,
        }
    }

    fn put_in_force(&mut self, Kept { instances, back, .. }: &Kept, state: State) -> bool {
        self.known |= !instances.is_empty();
        if let Err(error) = self.settings.with_tls_for(instances) {
            tracing::error!(service = %self.cluster.name, %error, "instances that want TLS cannot be used");
        }
        self.cluster.publish_doubting(back, &self.settings.settings, instances, state)
    }

    fn tell_kept(&self, kept: &Kept, said: &Said) {
        let (service, gone) = (&self.cluster.name, kept.new);
        let held = i64::try_from(kept.held).unwrap_or(i64::MAX);
        let before = self.standing.borrow().held;
        match (before, kept.alarm) {
            (None, Some(alarm)) => {
                let (before, listed) = (alarm.before, said.instances.len());
                tracing::warn!(%service, before, listed, held, "far fewer instances are listed at once; those that are gone stay in use while they answer (services.NAME.guard)");
            }
            (Some(_), None) => {
                tracing::info!(%service, "those that were gone are listed again, or do not answer: what is listed is in use, and nothing else")
            }
            _ if gone > 0 => {
                tracing::info!(%service, gone, "endpoints that are no longer listed stay in use while their checks pass");
            }
            _ => {}
        }
        self.cluster.metrics.held.set(held);
        if gone > 0 {
            // They are to be checked, though the set may be the same.
            self.cluster.announce();
        }
    }

    /// Notes whom what is in force comes from, and tells when that changes.
    fn stand(&mut self, said: Said, kept: &Kept, snapshot: Option<(String, SystemTime)>) {
        self.cluster.metrics.from_snapshot.set(i64::from(snapshot.is_some()));
        let places = 0..self.sources.count();
        let standing = Standing {
            counts: places.clone().map(|place| self.sources.set(place).map(|set| set.len())).collect(),
            given_up: places.clone().map(|place| self.sources.is_given_up(place)).collect(),
            latencies: places.map(|place| self.sources.latency(place)).collect(),
            held: kept.alarm.map(|alarm| (alarm, kept.held)),
            from: said.from,
            snapshot,
        };
        let before = self.standing.send_replace(standing);
        let now = self.standing.borrow();
        if let (None, Some((source, _))) = (&before.snapshot, &now.snapshot) {
            tracing::warn!(service = %self.cluster.name, source, "no registry answers: what was kept on disk is in use");
        }
        for (place, observer) in self.observers.iter().enumerate() {
            observer.counted.in_use.set(i64::from(now.from.contains(&place)));
        }
        if !before.from.is_empty() && !now.from.is_empty() && before.from != now.from {
            let (from, to) = (self.names(&before.from), self.names(&now.from));
            tracing::warn!(service = %self.cluster.name, from, to, "another source is believed now");
        }
    }

    fn names(&self, places: &[usize]) -> String {
        let names: Vec<_> = places.iter().map(|place| self.observers[*place].counted.source()).collect();
        names.join(", ")
    }
}

async fn changed(observers: &mut [Observer]) {
    if observers.is_empty() {
        return pending().await;
    }
    let _ = select_all(observers.iter_mut().map(|observer| Box::pin(observer.observed.changed()))).await;
}

async fn until(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => pending().await,
    }
}
