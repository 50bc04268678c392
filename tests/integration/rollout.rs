//! All instances of a service are replaced under load, gently and not: no idempotent request fails, and no other runs twice.

use crate::{
    e2e::soon,
    faulty_connections::{Asker, Outcome},
    instance::Instance,
    pillion::{Pillion, Setup},
};
use http::Version;
use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};

const INSTANCES: usize = 3;
/// Per protocol of the callers.
const CALLERS: usize = 4;
/// Requests between two steps of a rollout.
const STEP: u64 = 100;

/// Requests, each with an id of its own, and what became of them.
struct Calls {
    ended: watch::Sender<bool>,
    done: watch::Receiver<u64>,
    tasks: JoinSet<Vec<(String, Outcome)>>,
}

impl Calls {
    /// From callers of both protocols, half of them GET and half POST.
    fn start(egress: SocketAddr) -> Self {
        let (ended, (count, done)) = (watch::Sender::new(false), watch::channel(0));
        let next = Arc::new(AtomicU64::new(0));
        let mut tasks = JoinSet::new();
        for version in [Version::HTTP_11, Version::HTTP_2] {
            for _ in 0..CALLERS {
                let (ended, count, next) = (ended.subscribe(), count.clone(), next.clone());
                tasks.spawn(async move {
                    let (mut asker, mut outcomes) = (Asker::new(egress, version), Vec::new());
                    while !*ended.borrow() {
                        let id = next.fetch_add(1, Relaxed);
                        let (method, body) = if id % 2 == 0 { ("GET", "") } else { ("POST", "order") };
                        let outcome = asker.ask(method, &format!("/{id}"), body).await;
                        outcomes.push((format!("{method} /{id}"), outcome));
                        count.send_modify(|count| *count += 1);
                    }
                    outcomes
                });
            }
        }
        Self { ended, done, tasks }
    }

    /// Waits until so many more have been answered.
    async fn more(&mut self, count: u64) {
        let wanted = *self.done.borrow() + count;
        soon("answers", self.done.wait_for(|done| *done >= wanted)).await.unwrap();
    }

    async fn end(self) -> Vec<(String, Outcome)> {
        self.ended.send_replace(true);
        soon("the callers to end", self.tasks.join_all()).await.into_iter().flatten().collect()
    }
}

/// How an instance ends.
#[derive(Debug, Clone, Copy)]
enum Ending {
    Told,
    Killed,
}

impl Ending {
    async fn of(self, instance: Instance) {
        match self {
            Self::Told => instance.stop().await,
            Self::Killed => instance.kill().await,
        }
    }
}

fn listed(instances: &[Instance], protocol: &str) -> Vec<String> {
    instances.iter().map(|one| format!("{{ address: {}, protocol: {protocol} }}", one.address)).collect()
}

/// Compares what callers were told with what the instances have executed.
fn judge(what: &str, outcomes: Vec<(String, Outcome)>, executed: &mut mpsc::UnboundedReceiver<String>) {
    let mut times: HashMap<String, u32> = HashMap::new();
    while let Ok(request) = executed.try_recv() {
        *times.entry(request).or_default() += 1;
    }
    let (all, mut failed, mut again) = (outcomes.len(), 0, 0);
    for (request, outcome) in outcomes {
        let (method, path) = request.split_once(' ').unwrap();
        let times = times.get(&request).copied().unwrap_or_default();
        match outcome {
            Outcome::Whole(body) => assert!(body == path && times >= 1, "{what}: {request}: {body:?}, {times} times"),
            // It had reached the instance that ended, which may have executed it.
            Outcome::Failed(502, reason) if method == "POST" && reason == "upstream_closed" => failed += 1,
            outcome => panic!("{what}: {request}: {outcome:?}"),
        }
        if method == "POST" {
            assert!(times <= 1, "{what}: {request} was executed {times} times");
        } else {
            again += u32::from(times > 1);
        }
    }
    println!("{what}: {all} requests, no GET failed, {again} ran again, {failed} POSTs failed, none ran twice");
}

/// Ends all, and gives back what they have executed.
async fn finish(
    what: &str,
    pillion: Pillion,
    idle: f64,
    calls: Calls,
    instances: Vec<Instance>,
    mut executed: mpsc::UnboundedReceiver<String>,
) {
    let outcomes = calls.end().await;
    for instance in instances {
        instance.stop().await;
    }
    judge(what, outcomes, &mut executed);
    // The sweep closes what its instance has closed.
    pillion.until_metric("pillion_pool_connections", &[], 0.0).await;
    pillion.until_idle(idle).await;
}

async fn start_all(tell: &mpsc::UnboundedSender<String>) -> Vec<Instance> {
    let mut instances = Vec::new();
    for _ in 0..INSTANCES {
        instances.push(Instance::start(tell).await);
    }
    instances
}

/// Each instance ends and comes back at its own address, twice; the registry says nothing of it.
async fn in_place(ending: Ending, protocol: &str) {
    let (tell, executed) = mpsc::unbounded_channel();
    let mut instances = start_all(&tell).await;
    let pillion = Setup::users(listed(&instances, protocol)).start().await;
    let idle = pillion.idle_tasks().await;
    let mut calls = Calls::start(pillion.egress());
    for _ in 0..2 * INSTANCES {
        calls.more(STEP).await;
        let instance = instances.remove(0);
        let address = instance.address;
        ending.of(instance).await;
        calls.more(STEP).await;
        instances.push(Instance::start_at(address, &tell).await);
    }
    calls.more(STEP).await;
    finish(&format!("in place, {ending:?}, {protocol}"), pillion, idle, calls, instances, executed).await;
}

/// Each instance is replaced by one at another address, and ends before the registry says that it is gone.
async fn replaced(ending: Ending, protocol: &str) {
    let (tell, executed) = mpsc::unbounded_channel();
    let mut instances = start_all(&tell).await;
    let pillion = Setup::users(listed(&instances, protocol)).start().await;
    let idle = pillion.idle_tasks().await;
    let mut calls = Calls::start(pillion.egress());
    let list = |instances: &[Instance]| {
        pillion.write_instances(&format!("services: {{ user-service: [{}] }}", listed(instances, protocol).join(", ")));
    };
    for _ in 0..INSTANCES {
        calls.more(STEP).await;
        instances.push(Instance::start(&tell).await);
        list(&instances);
        calls.more(STEP).await;
        ending.of(instances.remove(0)).await;
        calls.more(STEP).await;
        list(&instances);
    }
    calls.more(STEP).await;
    pillion.until_metric("pillion_endpoints", &["state=\"available\""], INSTANCES as f64).await;
    finish(&format!("replaced, {ending:?}, {protocol}"), pillion, idle, calls, instances, executed).await;
}

#[tokio::test]
async fn instances_that_are_told_to_end_and_come_back() {
    in_place(Ending::Told, "http1").await;
    in_place(Ending::Told, "http2").await;
}

#[tokio::test]
async fn instances_that_are_killed_and_come_back() {
    in_place(Ending::Killed, "http1").await;
    in_place(Ending::Killed, "http2").await;
}

#[tokio::test]
async fn instances_that_are_replaced_before_the_registry_knows() {
    for ending in [Ending::Told, Ending::Killed] {
        replaced(ending, "http1").await;
        replaced(ending, "http2").await;
    }
}
