//! Checks the endpoints of one service, each when its time has come.

use crate::{
    cluster::{
        Cluster, Endpoint,
        check::{self, Change, Outcome, State},
    },
    config::HealthCheck,
    telemetry::labels::CheckResult,
};
use futures_util::{
    future::BoxFuture,
    stream::{FuturesUnordered, StreamExt},
};
use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap, HashSet},
    future::pending,
    sync::Arc,
};
use tokio::{
    sync::{Notify, Semaphore},
    time::{Instant, sleep_until},
};

/// So many checks are made at one time, over all services.
pub const AT_ONE_TIME: usize = 64;

/// One service's checks. Lives in the follower's task, and ends with it.
pub struct Checker {
    cluster: Arc<Cluster>,
    slots: Arc<Semaphore>,
    /// Hears of each endpoint that no longer passes.
    worse: Arc<Notify>,
    /// `None`: there are no checks.
    check: Option<HealthCheck>,
    /// What is checked, by key. Each is in the queue, or running.
    targets: HashMap<u64, Arc<Endpoint>>,
    queue: BinaryHeap<Reverse<(Instant, u64)>>,
    running: FuturesUnordered<BoxFuture<'static, Done>>,
    running_keys: HashSet<u64>,
}

/// A check that was made.
struct Done {
    key: u64,
    began: Instant,
    outcome: Outcome,
}

impl Checker {
    pub fn new(cluster: Arc<Cluster>, slots: Arc<Semaphore>, worse: Arc<Notify>) -> Self {
        Self {
            cluster,
            slots,
            worse,
            check: None,
            targets: HashMap::new(),
            queue: BinaryHeap::new(),
            running: FuturesUnordered::new(),
            running_keys: HashSet::new(),
        }
    }

    pub async fn run(mut self) {
        let mut published = self.cluster.published();
        self.take_over();
        loop {
            let next = self.queue.peek().map(|Reverse((next, _))| *next);
            tokio::select! {
                // It fails when the cluster is gone, and we hold it.
                Ok(()) = published.changed() => self.take_over(),
                Some(done) = self.running.next() => self.finish(done),
                () = until(next) => self.start_due(),
            }
        }
    }

    /// Takes over what is in force now.
    fn take_over(&mut self) {
        let (snapshot, now) = (self.cluster.load(), Instant::now());
        let configured = snapshot.settings.service.health_check.as_ref();
        // Who is in use though it is gone has to answer, whether there are checks or not.
        let is_checked =
            |endpoint: &&Arc<Endpoint>| endpoint.is_usable() && (configured.is_some() || endpoint.live.is_gone());
        let gone = snapshot.endpoints.iter().any(|endpoint| endpoint.live.is_gone());
        let check = configured.cloned().or_else(|| gone.then(HealthCheck::default));
        let other_checks = self.check != check;
        if other_checks {
            self.check = check;
            self.running.clear();
            self.running_keys.clear();
        }
        self.targets.clear();
        self.queue.clear();
        if configured.is_none() {
            let unchecked = snapshot.endpoints.iter().filter(|endpoint| !is_checked(endpoint));
            if unchecked.filter(|endpoint| check::forget(&endpoint.live, now)).count() > 0 {
                self.cluster.recount();
            }
        }
        let Some(check) = &self.check else { return };
        for endpoint in snapshot.endpoints.iter().filter(is_checked) {
            self.targets.insert(endpoint.live.key, endpoint.clone());
        }
        let is_new = |endpoint: &Arc<Endpoint>| other_checks || endpoint.live.checked().is_none();
        let new = self.targets.values().filter(|endpoint| is_new(endpoint)).count();
        let mut index = 0;
        for (key, endpoint) in self.targets.iter().filter(|(key, _)| !self.running_keys.contains(key)) {
            let latest = if is_new(endpoint) {
                index += 1;
                now + check::first_wait(index - 1, new, check.interval, fastrand::f64())
            } else if endpoint.live.is_gone() {
                now + check.interval / 3
            } else {
                now + check.max_interval
            };
            self.queue.push(Reverse((check::schedule(&endpoint.live, latest), *key)));
        }
    }

    fn start_due(&mut self) {
        let Some(check) = &self.check else { return };
        let (now, snapshot) = (Instant::now(), self.cluster.load());
        while let Some(Reverse((_, key))) = self.queue.peek().copied().filter(|Reverse((next, _))| *next <= now) {
            self.queue.pop();
            let Some(endpoint) = self.targets.get(&key).cloned() else { continue };
            let (cluster, settings) = (self.cluster.clone(), snapshot.settings.clone());
            let (slots, check) = (self.slots.clone(), check.clone());
            self.running_keys.insert(key);
            self.running.push(Box::pin(async move {
                // It fails when the semaphore is closed, which nobody does.
                let _slot = slots.acquire().await;
                let began = Instant::now();
                let outcome = check::perform(&cluster.name, &endpoint, &settings, &check).await;
                Done { key, began, outcome }
            }));
        }
    }

    fn finish(&mut self, Done { key, began, outcome }: Done) {
        self.running_keys.remove(&key);
        let (Some(check), Some(endpoint)) = (&self.check, self.targets.get(&key)) else { return };
        let result = if outcome.is_ok() { CheckResult::Passed } else { CheckResult::Failed };
        self.cluster.metrics.health_checks.inc(result as usize);
        let was_shut = endpoint.live.health.is_shut();
        let change = check::record(&endpoint.live, check, outcome, began, Instant::now());
        let Some(checked) = endpoint.live.checked() else { return };
        self.queue.push(Reverse((checked.next, key)));
        let Some(change) = change else { return };
        let failure = checked.last.as_ref().and_then(|last| last.failure.as_ref());
        tell(&self.cluster, endpoint, change, failure.map(ToString::to_string));
        if was_shut != endpoint.live.health.is_shut() {
            self.cluster.recount();
        }
        if !change.to.is_passing() {
            self.worse.notify_one();
        }
    }
}

async fn until(next: Option<Instant>) {
    match next {
        Some(next) => sleep_until(next).await,
        None => pending().await,
    }
}

/// Logs what changed: an endpoint that begins to fail, or is well again, once.
fn tell(cluster: &Cluster, endpoint: &Endpoint, Change { from, to }: Change, failure: Option<String>) {
    let (service, endpoint) = (&cluster.name, &endpoint.instance.address);
    let failure = failure.unwrap_or_default();
    match (from, to) {
        (_, State::Unhealthy { .. }) => tracing::warn!(%service, %endpoint, %failure, "unhealthy"),
        (State::Unhealthy { .. }, _) => tracing::info!(%service, %endpoint, "healthy again"),
        (_, State::Suspect { .. }) => tracing::debug!(%service, %endpoint, %failure, "suspect"),
        _ => tracing::debug!(%service, %endpoint, "healthy"),
    }
}

#[cfg(test)]
#[path = "checker_tests.rs"]
mod tests;
