//! Follows one service in its sources and publishes what is in force.

use super::settings::SettingsFor;
use crate::{
    cluster::{Cluster, table::State},
    registry::{Instance, Observation, Registry, RegistryError, Sink, sink},
    telemetry::{Telemetry, metrics::SourceMetrics},
};
use futures_util::future::{join_all, select_all};
use std::{future::pending, sync::Arc, time::Duration};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep, sleep_until},
};

/// One service being followed. Dropping it ends that; what was published stays with those who hold the cluster.
pub struct Follower {
    cluster: Arc<Cluster>,
    /// What it was started with.
    settings: SettingsFor,
    registries: Vec<Arc<dyn Registry>>,
    coalesce: Duration,
    sources: Vec<(String, watch::Receiver<Observation>)>,
    task: JoinHandle<()>,
}

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
        registries: Vec<Arc<dyn Registry>>,
        telemetry: &Telemetry,
        coalesce: Duration,
    ) -> Self {
        let (mut seen, mut follows, mut counted) = (Vec::new(), Vec::new(), Vec::new());
        for registry in registries.iter().cloned() {
            let (sink, observed) = sink();
            let for_age = observed.clone();
            let age = move || for_age.borrow().confirmed.map(|confirmed| confirmed.elapsed());
            counted.push(telemetry.metrics.source(&cluster.name, registry.name(), age));
            seen.push((registry.name().to_owned(), observed.clone()));
            follows.push(follow_watched(registry, settings.registered_as.clone(), sink, observed));
        }
        let publisher = Publisher {
            cluster: cluster.clone(),
            settings: settings.clone(),
            sources: seen.iter().map(|(_, observed)| observed.clone()).collect(),
            counted,
            failures: vec![0; seen.len()],
            known: false,
        };
        let task = tokio::spawn(async move {
            tokio::join!(join_all(follows), publisher.run(coalesce));
        });
        Self { cluster, settings, registries, coalesce, sources: seen, task }
    }

    pub fn cluster(&self) -> &Arc<Cluster> {
        &self.cluster
    }

    /// Whether it is followed even when nobody asks for it.
    pub fn is_pinned(&self) -> bool {
        self.settings.pinned
    }

    /// Whether one started with these would do the same. Never with TLS of its own: its files may have changed.
    pub fn is_like(&self, settings: &SettingsFor, registries: &[Arc<dyn Registry>], coalesce: Duration) -> bool {
        let (mine, theirs) = (&self.settings.settings.service, &settings.settings.service);
        mine == theirs
            && mine.tls.is_none()
            && self.settings.registered_as == settings.registered_as
            && self.settings.pinned == settings.pinned
            && self.coalesce == coalesce
            && self.registries.len() == registries.len()
            && self.registries.iter().zip(registries).all(|(mine, theirs)| Arc::ptr_eq(mine, theirs))
    }

    pub fn sources(&self) -> Vec<SourceStatus> {
        let status = |(name, observed): &(String, watch::Receiver<Observation>)| {
            let observed = observed.borrow();
            SourceStatus {
                source: name.clone(),
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
    /// Whether any source ever listed an instance.
    known: bool,
}

impl Publisher {
    async fn run(mut self, coalesce: Duration) {
        loop {
            // The first change goes out at once; those that follow on its heels are gathered.
            if self.publish() {
                sleep(coalesce).await;
            }
            self.changed().await;
        }
    }

    async fn changed(&mut self) {
        if self.sources.is_empty() {
            return pending().await;
        }
        let _ = select_all(self.sources.iter_mut().map(|source| Box::pin(source.changed()))).await;
    }

    /// Whether that changed anything.
    fn publish(&mut self) -> bool {
        let seen: Vec<Observation> = self.sources.iter_mut().map(|source| source.borrow_and_update().clone()).collect();
        self.count_failures(&seen);
        let (instances, state) = in_force(&seen, self.known || self.settings.pinned);
        self.known |= !instances.is_empty();
        if state == State::Pending {
            return false;
        }
        if let Err(error) = self.settings.with_tls_for(&instances) {
            tracing::error!(service = %self.cluster.name, %error, "instances that want TLS cannot be used");
        }
        let changed = self.cluster.publish(&self.settings.settings, &instances, state);
        if changed {
            tracing::info!(service = %self.cluster.name, instances = instances.len(), ?state, "endpoints changed");
            for (observed, counted) in seen.iter().zip(&self.counted) {
                if observed.instances.as_ref().is_some_and(|own| Arc::ptr_eq(own, &instances)) {
                    counted.changes.inc();
                }
            }
        }
        changed
    }

    fn count_failures(&mut self, seen: &[Observation]) {
        for ((observed, counted), known) in seen.iter().zip(&self.counted).zip(&mut self.failures) {
            if observed.failures > *known {
                counted.failures.add(observed.failures - *known);
                *known = observed.failures;
            }
        }
    }
}

/// The set in force: that of the first source that lists any instance. A source that fails keeps its last set, so an
/// outage takes nothing away. `known`: the service exists even if nobody lists it now.
fn in_force(seen: &[Observation], known: bool) -> (Arc<[Instance]>, State) {
    let listed = seen.iter().filter_map(|observed| observed.instances.as_ref()).find(|instances| !instances.is_empty());
    if let Some(instances) = listed {
        return (instances.clone(), State::Known);
    }
    let answered = seen.iter().filter(|observed| observed.instances.is_some()).count();
    let state = match (answered == seen.len() && answered > 0, known) {
        (_, true) if answered > 0 => State::Known,
        (true, false) => State::Unknown,
        // One that has not answered may know it.
        _ => State::Pending,
    };
    (Arc::new([]), state)
}

#[cfg(test)]
#[path = "follower_tests.rs"]
mod tests;
