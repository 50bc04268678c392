//! Follows one service in its sources and publishes what is in force.

use super::{
    checker::Checker,
    linger::{self, Linger},
    settings::SettingsFor,
};
use crate::{
    cluster::{
        Cluster,
        outlier::{Change as HealthChange, Detector, Seen, What},
        table::State,
    },
    registry::{Instance, Observation, Registry, RegistryError, Sink, sink},
    telemetry::{Telemetry, metrics::SourceMetrics},
};
use futures_util::future::{join_all, select_all};
use std::{future::pending, sync::Arc, time::Duration};
use tokio::{
    sync::{Notify, Semaphore, mpsc, oneshot, watch},
    task::JoinHandle,
    time::{Instant, sleep_until},
};

/// One service being followed. Dropping it ends that; what was published stays with those who hold the cluster.
pub struct Follower {
    cluster: Arc<Cluster>,
    settings: SettingsFor,
    sources: Vec<Source>,
    coalesce: Duration,
    detector: Detector,
    /// Rings when an endpoint that is gone may have to go now.
    worse: Arc<Notify>,
    /// How many looks in a row found that nobody had asked for it.
    idle_looks: u32,
    orders: mpsc::UnboundedSender<Change>,
    task: JoinHandle<()>,
}

/// A registry that is asked, and what it said.
struct Source {
    registry: Arc<dyn Registry>,
    observed: watch::Receiver<Observation>,
}

/// Other settings, and who waits until they are in force.
type Change = (SettingsFor, oneshot::Sender<()>);

/// What one source has said about a service, for the admin interface.
#[derive(Debug, Clone)]
pub struct SourceStatus {
    pub source: String,
    /// Instances in its newest set; `None` until it has answered.
    pub instances: Option<usize>,
    /// How long ago the source last confirmed that set.
    pub age: Option<Duration>,
    pub failure: Option<String>,
}

impl Follower {
    pub fn start(
        cluster: Arc<Cluster>,
        settings: SettingsFor,
        sources: Vec<Arc<dyn Registry>>,
        telemetry: &Telemetry,
        coalesce: Duration,
        checks: Arc<Semaphore>,
    ) -> Self {
        let (mut seen, mut follows, mut counted) = (Vec::new(), Vec::new(), Vec::new());
        for registry in sources {
            let (sink, observed) = sink();
            let for_age = observed.clone();
            let age = move || for_age.borrow().confirmed.map(|confirmed| confirmed.elapsed());
            counted.push(telemetry.metrics.source(&cluster.name, registry.name(), age));
            follows.push(follow_watched(registry.clone(), settings.registered_as.clone(), sink, observed.clone()));
            seen.push(Source { registry, observed });
        }
        let (orders, changes) = mpsc::unbounded_channel();
        let worse = Arc::<Notify>::default();
        let mut publisher = Publisher {
            cluster: cluster.clone(),
            settings: settings.clone(),
            sources: seen.iter().map(|source| source.observed.clone()).collect(),
            counted,
            failures: vec![0; seen.len()],
            failing: vec![false; seen.len()],
            known: cluster.load().state == State::Known,
            heard: false,
            linger: Linger::default(),
            worse: worse.clone(),
        };
        // So that the settings are in force at once, whenever the sources may answer.
        publisher.publish();
        let checker = Checker::new(cluster.clone(), checks, worse.clone());
        let task = tokio::spawn(async move {
            tokio::join!(join_all(follows), publisher.run(coalesce, changes), checker.run());
        });
        let detector = Detector::default();
        Self { cluster, settings, sources: seen, coalesce, detector, worse, idle_looks: 0, orders, task }
    }

    /// Takes over other settings, if they ask the same of the same sources; else it has to be started afresh. The
    /// receiver hears when they are in force.
    pub fn change(
        &mut self,
        settings: &SettingsFor,
        sources: &[Arc<dyn Registry>],
        coalesce: Duration,
    ) -> Option<oneshot::Receiver<()>> {
        let same_sources =
            self.sources.iter().map(|source| Arc::as_ptr(&source.registry)).eq(sources.iter().map(Arc::as_ptr));
        if !same_sources || self.settings.registered_as != settings.registered_as || self.coalesce != coalesce {
            return None;
        }
        self.settings = settings.clone();
        let (done, in_force) = oneshot::channel();
        let _ = self.orders.send((settings.clone(), done));
        Some(in_force)
    }

    pub fn cluster(&self) -> &Arc<Cluster> {
        &self.cluster
    }

    /// Whether it is followed even when nobody asks for it.
    pub fn is_pinned(&self) -> bool {
        self.settings.pinned
    }

    /// Looks whether anybody asked for it; returns how many times in a row nobody did.
    pub fn look(&mut self) -> u32 {
        self.idle_looks = if self.cluster.take_used() { 0 } else { self.idle_looks + 1 };
        self.idle_looks
    }

    /// Decides anew who is available, from the numbers of the last period too if one has passed.
    pub fn review(&mut self, period_passed: bool) {
        let asked = self.cluster.take_review();
        if !asked && !period_passed {
            return;
        }
        let (snapshot, now) = (self.cluster.load(), Instant::now());
        let (endpoints, service) = (&snapshot.endpoints, &snapshot.settings.service);
        let changes = if period_passed {
            self.detector.tick(endpoints, service, now)
        } else {
            self.detector.review(endpoints, service, now)
        };
        for change in &changes {
            tell(&self.cluster, change);
        }
        if !changes.is_empty() || (period_passed && snapshot.changes_with_time()) {
            self.cluster.recount();
        }
        if asked && endpoints.iter().any(|endpoint| endpoint.live.is_gone() && linger::has_failed(&endpoint.live)) {
            self.worse.notify_one();
        }
    }

    pub fn sources(&self) -> Vec<SourceStatus> {
        let status = |Source { registry, observed }: &Source| {
            let observed = observed.borrow();
            SourceStatus {
                source: registry.name().into(),
                instances: observed.instances.as_ref().map(|instances| instances.len()),
                age: observed.confirmed.map(|confirmed| confirmed.elapsed()),
                failure: observed.failure.as_ref().map(RegistryError::to_string),
            }
        };
        self.sources.iter().map(status).collect()
    }

    pub fn stop(self) -> Arc<Cluster> {
        self.cluster.clone()
    }
}

/// Logs and counts a change of an endpoint's health.
fn tell(cluster: &Cluster, HealthChange { endpoint, what }: &HealthChange) {
    let (service, endpoint) = (&cluster.name, &endpoint.instance.address);
    let rounded = |long: &Duration| format!("{:.1}s", long.as_secs_f64());
    match what {
        What::Ejected { cause, long, seen } => {
            cluster.metrics.ejections.inc(*cause as usize);
            let (cause, seen, long) = (cause.as_str(), shown(seen), rounded(long));
            tracing::warn!(%service, %endpoint, cause, %seen, %long, "ejected");
        }
        What::StillEjected { long, streak } => {
            tracing::warn!(%service, %endpoint, long = %rounded(long), in_a_row = streak, "stays ejected: its probe failed");
        }
        What::Admitted => tracing::info!(%service, %endpoint, "no longer ejected"),
        What::Kept { cause, seen } => {
            let (cause, seen) = (cause.as_str(), shown(seen));
            tracing::warn!(%service, %endpoint, cause, %seen, "failing, but no more may be ejected");
        }
        What::Recovered => tracing::info!(%service, %endpoint, "no longer failing"),
    }
}

fn shown(Seen { consecutive, window }: &Seen) -> String {
    let in_a_row = format!("{consecutive} failures in a row");
    match window {
        Some((requests, rate)) => format!("{in_a_row}, {:.1} % of the last {requests}", (1.0 - rate) * 100.0),
        None => in_a_row,
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Follows `service` and starts afresh whenever the registry was silent for longer than its protocol allows: a
/// connection that was cut without a word looks just like a quiet one.
async fn follow_watched(
    registry: Arc<dyn Registry>,
    service: String,
    sink: Sink,
    observed: watch::Receiver<Observation>,
) {
    loop {
        tokio::select! {
            () = registry.clone().follow(service.clone(), sink.clone()) => {}
            () = silence(&observed, registry.silence_limit()) => {
                let cause = format!("nothing was heard for {:?}; starting afresh", registry.silence_limit());
                tracing::warn!(%service, registry = registry.name(), "{cause}");
                sink.failed(RegistryError::Unreachable { server: registry.name().into(), cause });
            }
        }
    }
}

/// Returns when nothing was heard for `limit`.
async fn silence(observed: &watch::Receiver<Observation>, limit: Duration) {
    let mut since = Instant::now();
    loop {
        sleep_until(since + limit).await;
        match observed.borrow().heard {
            Some(heard) if heard > since => since = heard,
            _ => return,
        }
    }
}

/// Turns what the sources say into what is in force.
struct Publisher {
    cluster: Arc<Cluster>,
    settings: SettingsFor,
    sources: Vec<watch::Receiver<Observation>>,
    counted: Vec<Arc<SourceMetrics>>,
    failures: Vec<u64>,
    /// Which sources are in a failure that was told.
    failing: Vec<bool>,
    /// Whether any source ever listed an instance.
    known: bool,
    /// Whether an answer of these sources has been in force.
    heard: bool,
    linger: Linger,
    worse: Arc<Notify>,
}

impl Publisher {
    async fn run(mut self, coalesce: Duration, mut changes: mpsc::UnboundedReceiver<Change>) {
        let worse = self.worse.clone();
        let mut quiet_until = Instant::now();
        loop {
            let news = async {
                // The first change goes out at once; those that follow on its heels are gathered.
                sleep_until(quiet_until).await;
                changed(&mut self.sources).await;
            };
            let lingering = self.linger.end();
            let leaves = async {
                match lingering {
                    Some(end) => tokio::select! {
                        () = sleep_until(end) => {}
                        () = worse.notified() => {}
                    },
                    None => pending().await,
                }
            };
            tokio::select! {
                () = news => {
                    if self.publish_and_tell() {
                        quiet_until = Instant::now() + coalesce;
                    }
                }
                () = leaves => drop(self.publish_and_tell()),
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

    fn publish(&mut self) -> bool {
        let seen: Vec<Observation> = self.sources.iter_mut().map(|source| source.borrow_and_update().clone()).collect();
        self.count_failures(&seen);
        let (listed, mut state) = in_force(&seen, self.known || self.settings.pinned, self.heard);
        self.heard |= state != State::Pending;
        let before = self.cluster.load();
        let (instances, gone): (Arc<[Instance]>, usize) = if state == State::Pending {
            // Nothing was heard yet. What there was before stays, under the settings of now.
            state = before.state;
            (before.endpoints.iter().map(|endpoint| endpoint.instance.clone()).collect(), 0)
        } else {
            let check = self.settings.settings.service.health_check.as_ref();
            self.linger.keep(&before.endpoints, listed.clone(), check, Instant::now())
        };
        drop(before);
        self.known |= !instances.is_empty();
        if let Err(error) = self.settings.with_tls_for(&instances) {
            tracing::error!(service = %self.cluster.name, %error, "instances that want TLS cannot be used");
        }
        let published = self.cluster.publish(&self.settings.settings, &instances, state);
        if gone > 0 {
            let service = &self.cluster.name;
            tracing::info!(%service, gone, "endpoints that are no longer listed stay in use while their checks pass");
            // The set may be the same.
            self.cluster.announce();
        }
        for (observed, counted) in seen.iter().zip(&self.counted).filter(|_| published) {
            if observed.instances.as_ref().is_some_and(|own| Arc::ptr_eq(own, &listed)) {
                counted.changes.inc();
            }
        }
        published
    }

    fn count_failures(&mut self, seen: &[Observation]) {
        for ((observed, counted), known) in seen.iter().zip(&self.counted).zip(&mut self.failures) {
            if observed.failures > *known {
                counted.failures.add(observed.failures - *known);
                *known = observed.failures;
            }
        }
        // Once when it begins and once when it is over, not each time.
        for (observed, (failing, counted)) in seen.iter().zip(self.failing.iter_mut().zip(&self.counted)) {
            let service = &self.cluster.name;
            match &observed.failure {
                Some(error) if !*failing => {
                    tracing::warn!(%service, registry = counted.source(), %error, "a registry fails; what it said last stays in use");
                }
                None if *failing => tracing::info!(%service, registry = counted.source(), "the registry answers again"),
                _ => {}
            }
            *failing = observed.failure.is_some();
        }
    }
}

async fn changed(sources: &mut [watch::Receiver<Observation>]) {
    if sources.is_empty() {
        return pending().await;
    }
    let _ = select_all(sources.iter_mut().map(|source| Box::pin(source.changed()))).await;
}

/// The set in force: that of the first source that lists any instance. A source that fails keeps its last set, so an
/// outage takes nothing away. `known`: the service exists even if nobody lists it now. `heard`: there was an answer in
/// force before; until then, that one source has nothing means nothing while another, perhaps, has not answered yet.
fn in_force(seen: &[Observation], known: bool, heard: bool) -> (Arc<[Instance]>, State) {
    let listed = seen.iter().filter_map(|observed| observed.instances.as_ref()).find(|instances| !instances.is_empty());
    if let Some(instances) = listed {
        return (instances.clone(), State::Known);
    }
    let answered = seen.iter().filter(|observed| observed.instances.is_some()).count();
    let state = match (answered == seen.len() && answered > 0, known) {
        (all, true) if all || (heard && answered > 0) => State::Known,
        (true, false) => State::Unknown,
        // One that has not answered may know it.
        _ => State::Pending,
    };
    (Arc::new([]), state)
}

#[cfg(test)]
#[path = "follower_tests.rs"]
pub(super) mod tests;
