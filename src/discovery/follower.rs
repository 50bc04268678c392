//! Follows one service in its sources.

use super::{
    checker::Checker,
    linger,
    publisher::{Change, Known, Observer, Publisher, Standing},
    settings::SettingsFor,
    status::{Held, SnapshotStatus, SourceStatus, Status},
    watchdog,
};
use crate::{
    cluster::{
        Cluster,
        outlier::{Change as HealthChange, Detector, Seen, What},
    },
    registry::{Observation, Registry, Sink, sink},
    telemetry::Telemetry,
};
use futures_util::future::join_all;
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::{Notify, Semaphore, mpsc, oneshot, watch},
    task::JoinHandle,
    time::Instant,
};

/// One service being followed. Dropping it ends that; what was published stays with those who hold the cluster.
pub struct Follower {
    cluster: Arc<Cluster>,
    settings: SettingsFor,
    sources: Vec<Source>,
    coalesce: Duration,
    detector: Detector,
    /// Rings when requests or checks failed, so that an endpoint that is gone may have to go now, and another datacenter may
    /// have to be used.
    worse: Arc<Notify>,
    /// How many looks in a row found that nobody had asked for it.
    idle_looks: u32,
    orders: mpsc::UnboundedSender<Change>,
    standing: watch::Receiver<Standing>,
    task: JoinHandle<()>,
}

/// A registry that is asked, and what it said.
struct Source {
    registry: Arc<dyn Registry>,
    observed: watch::Receiver<Observation>,
}

impl Follower {
    pub fn start(
        cluster: Arc<Cluster>,
        settings: SettingsFor,
        sources: Vec<Arc<dyn Registry>>,
        telemetry: &Telemetry,
        known: Known,
        coalesce: Duration,
        checks: Arc<Semaphore>,
    ) -> Self {
        let (mut seen, mut follows, mut observers) = (Vec::new(), Vec::new(), Vec::new());
        for (registry, asked) in sources.into_iter().zip(&settings.plan.asked) {
            let (sink, observed) = sink();
            let for_age = observed.clone();
            let age = move || for_age.borrow().confirmed.map(|confirmed| confirmed.elapsed());
            let metrics = telemetry.metrics.source(&cluster.name, registry.name(), age);
            observers.push(Observer::new(observed.clone(), metrics));
            follows.push(follow(registry.clone(), asked.name.clone(), sink, observed.clone()));
            seen.push(Source { registry, observed });
        }
        let (orders, changes) = mpsc::unbounded_channel();
        let worse = Arc::<Notify>::default();
        let (mut publisher, standing) =
            Publisher::new(cluster.clone(), settings.clone(), observers, known, worse.clone());
        // So that the settings are in force at once, whenever the sources may answer.
        publisher.publish();
        let checker = Checker::new(cluster.clone(), checks, worse.clone());
        let task = tokio::spawn(async move {
            tokio::join!(join_all(follows), publisher.run(coalesce, changes), checker.run());
        });
        let detector = Detector::default();
        Self { cluster, settings, sources: seen, coalesce, detector, worse, idle_looks: 0, orders, standing, task }
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
        if !same_sources || self.settings.plan != settings.plan || self.coalesce != coalesce {
            return None;
        }
        self.settings = settings.clone();
        let (done, in_force) = oneshot::channel();
        let _ = self.orders.send((settings.clone(), done));
        Some(in_force)
    }

    /// Whether it asks the same of the same sources, by their names.
    pub fn has_plan_of(&self, settings: &SettingsFor) -> bool {
        self.settings.plan == settings.plan
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
        let gone_and_failed =
            || endpoints.iter().any(|endpoint| endpoint.live.is_gone() && linger::has_failed(&endpoint.live));
        if asked && (self.settings.plan.is_by_nearness() || gone_and_failed()) {
            self.worse.notify_one();
        }
    }

    pub fn status(&self) -> Status {
        let (standing, now) = (self.standing.borrow(), Instant::now());
        let source = |(place, Source { registry, observed }): (usize, &Source)| SourceStatus {
            in_use: standing.from.contains(&place),
            latency: standing.latencies.get(place).copied().flatten(),
            ..SourceStatus::new(
                registry.name(),
                &observed.borrow(),
                standing.counts.get(place).copied().flatten(),
                standing.given_up.get(place).is_some_and(|given_up| *given_up),
                now,
            )
        };
        Status {
            sources: self.sources.iter().enumerate().map(source).collect(),
            snapshot: standing.snapshot.as_ref().map(|(source, saved)| SnapshotStatus {
                source: source.clone(),
                age: saved.elapsed().unwrap_or_default(),
            }),
            held: standing.held.map(|(alarm, endpoints)| Held {
                endpoints,
                before: alarm.before,
                since: now.duration_since(alarm.since),
            }),
        }
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

async fn follow(registry: Arc<dyn Registry>, service: String, sink: Sink, observed: watch::Receiver<Observation>) {
    let follow = || registry.clone().follow(service.clone(), sink.clone());
    let heard = || observed.borrow().heard;
    watchdog::follow(&service, &*registry, follow, heard, |error| sink.failed(error)).await;
}

#[cfg(test)]
#[path = "follower_tests.rs"]
pub(super) mod tests;
