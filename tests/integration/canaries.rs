//! Canaries on the real program: good ones come through, bad ones are taken back within one hold, and the end of who decides
//! changes nothing. Here the state is in a file; `real_canaries` has it in real stores.

use crate::{
    e2e::{ANY, Load, Pillion, pillion, serve, until},
    socket::{Socket, free_port},
};
use bytes::Bytes;
use http::{Response, Version};
use http_body_util::Full;
use pillion::rollout::At;
use serde_json::Value;
use std::{
    fs,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};
use tempfile::TempDir;
use tokio::{
    net::TcpListener,
    sync::watch,
    task::{JoinHandle, JoinSet},
    time::{Instant, sleep},
};

/// How long a step lasts.
pub const HOLD: Duration = Duration::from_secs(6);

/// How long it lasts where a bad canary is to be found in it: that takes requests, of which a busy machine has few. Where another
/// step comes before that one, and so is waited for, it is shorter.
const LONG_HOLD: Duration = Duration::from_secs(30);
pub const SHORTER_HOLD: Duration = Duration::from_secs(12);

/// Of those who call.
const CONNECTIONS: usize = 8;

/// Where the state is kept.
pub trait Place {
    /// The registry, as the config has it.
    fn settings(&self) -> String;
}

/// A folder beside a file.
pub struct FileStore(pub TempDir);

impl FileStore {
    pub fn new() -> Self {
        let folder = TempDir::new().unwrap();
        fs::write(folder.path().join("kv.yaml"), "services: {}").unwrap();
        Self(folder)
    }
}

/// In the pillion itself, so there is no other.
struct EmbeddedStore(u16);

impl Place for EmbeddedStore {
    fn settings(&self) -> String {
        format!("kind: embedded, listen: '127.0.0.1:{}', persist: kv.json", self.0)
    }
}

impl Place for FileStore {
    fn settings(&self) -> String {
        format!("kind: file, path: '{}'", self.0.path().join("kv.yaml").display())
    }
}

/// A version of a service: 97 of 100 requests take 4 ms, 3 take 180 ms, and none fails, until it is told otherwise. (What a busy
/// machine adds is little beside 180 ms, and twice as much is in another bucket of those that Prometheus has.)
pub struct Instance {
    pub address: SocketAddr,
    pub manners: Arc<Manners>,
    task: JoinHandle<()>,
}

pub struct Manners {
    /// Of a hundred requests.
    pub failing: AtomicU32,
    /// Times the latency.
    pub slower: AtomicU32,
    /// Of a hundred requests, those that take 180 ms.
    pub slow: AtomicU32,
    asked: AtomicU32,
}

impl Drop for Instance {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Instance {
    pub async fn start() -> Self {
        let listener = Socket(TcpListener::bind(ANY).await.unwrap());
        let address = listener.local_addr().unwrap();
        let manners = Manners { failing: 0.into(), slower: 1.into(), slow: 3.into(), asked: 0.into() };
        let manners = Arc::new(manners);
        let shared = manners.clone();
        let task = tokio::spawn(async move {
            let (_stays, leaving) = watch::channel(false);
            // They end with it.
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let manners = shared.clone();
                let answer = move |_| {
                    let manners = manners.clone();
                    async move { Ok(manners.answer().await) }
                };
                connections.spawn(serve(stream, answer, leaving.clone()));
            }
        });
        Self { address, manners, task }
    }

    pub fn asked(&self) -> u32 {
        self.manners.asked.load(Relaxed)
    }
}

impl Manners {
    async fn answer(&self) -> Response<Full<Bytes>> {
        self.asked.fetch_add(1, Relaxed);
        let time = if fastrand::u32(..100) < self.slow.load(Relaxed) { 180 } else { 4 };
        sleep(Duration::from_millis(time) * self.slower.load(Relaxed)).await;
        let fails = fastrand::u32(..100) < self.failing.load(Relaxed);
        let status = if fails { 500 } else { 200 };
        Response::builder().status(status).body(Full::default()).unwrap()
    }
}

/// Two versions of `users`, and the config of pillions that roll one of them out.
pub struct Fleet {
    folder: TempDir,
    pub stable: Instance,
    pub canary: Instance,
}

impl Fleet {
    pub async fn start(place: &impl Place, more: &str) -> Self {
        let fleet =
            Self { folder: TempDir::new().unwrap(), stable: Instance::start().await, canary: Instance::start().await };
        let listed = |version, instance: &Instance| {
            format!("{{ address: '{}', labels: {{ version: {version} }} }}", instance.address)
        };
        let instances =
            format!("services: {{ users: [{}, {}] }}", listed("v1", &fleet.stable), listed("v2", &fleet.canary));
        fs::write(fleet.folder.path().join("instances.yaml"), instances).unwrap();
        let hold = HOLD.as_secs();
        let config = format!(
            "registries: {{ main: {{ kind: file, path: instances.yaml }}, kv: {{ {} }} }}\n\
             discovery: {{ sources: [main] }}\n\
             routing: {{ rollouts: {{ registry: kv }} }}\n\
             services:\n  users:\n    subsets: {{ stable: {{ version: v1 }}, canary: {{ version: v2 }} }}\n\
             \x20   retry: {{ attempts: 1 }}\n    breaker: {{ enabled: false }}\n    outlier: {{ enabled: false }}\n\
             \x20   routes: [ {{ split: {{ stable: 100, canary: 0 }} }} ]\n\
             \x20   rollout: {{ steps: [20, 50, 100], hold: {hold}s, interval: 200ms, min_requests: 100, p99: {{ warm_up: 500ms }}{more} }}\n",
            place.settings()
        );
        fs::write(fleet.folder.path().join("pillion.yaml"), config).unwrap();
        fleet
    }

    pub fn change(&self, from: &str, to: &str) {
        let file = self.folder.path().join("pillion.yaml");
        let text = fs::read_to_string(&file).unwrap();
        assert!(text.contains(from));
        fs::write(file, text.replace(from, to)).unwrap();
    }

    pub async fn pillion(&self) -> Pillion {
        self.pillion_with("pillion.yaml").await
    }

    async fn pillion_with(&self, config: &str) -> Pillion {
        let config = self.folder.path().join(config);
        Pillion::start(pillion(&["run", "--listen", ANY, "--admin", ANY, "--config"]).arg(config)).await
    }
}

/// Four hundred requests per second, which leaves most of the machine to other tests.
pub fn load(pillion: &Pillion) -> Load {
    Load::paced(pillion.egress(), Version::HTTP_11, "users", CONNECTIONS, Duration::from_millis(10))
}

pub async fn rollout(pillion: &Pillion) -> Value {
    pillion.json("/api/rollouts").await["services"][0].clone()
}

/// Its state, once it fits.
pub async fn until_state(pillion: &Pillion, what: &str, fits: impl Fn(&Value) -> bool) -> Value {
    let start = Instant::now();
    loop {
        let rollout = rollout(pillion).await;
        if fits(&rollout["state"]) {
            return rollout["state"].clone();
        }
        assert!(
            start.elapsed() < Duration::from_secs(120),
            "waited in vain for {what}: {rollout:#}\n{}",
            pillion.log()
        );
        sleep(Duration::from_millis(50)).await;
    }
}

pub async fn until_percent(pillion: &Pillion, percent: f64) -> Value {
    until_state(pillion, &format!("{percent} %"), |state| state["percent"] == percent).await
}

pub async fn until_done(pillion: &Pillion) -> Value {
    until_state(pillion, "the end", |state| state["is"] == "done").await
}

/// The decision with this verdict.
pub fn decision<'s>(state: &'s Value, verdict: &str) -> &'s Value {
    let decisions = state["decisions"].as_array().unwrap();
    decisions.iter().rfind(|decision| decision["verdict"] == verdict).unwrap_or_else(|| panic!("{verdict}: {state:#}"))
}

/// A canary that goes bad is taken back within one hold because of that, and stays back.
pub async fn is_taken_back(fleet: &Fleet, pillion: &Pillion, bad: &Bad) {
    let spoiled = At::now();
    (bad.spoil)(&fleet.canary.manners);
    let state = until_state(pillion, "being taken back", |state| state["is"] == "rolled-back").await;
    let last = decision(&state, "roll-back");
    let at: At = serde_json::from_value(last["at"].clone()).unwrap();
    let took = at.since(spoiled);
    println!("{}: taken back after {took:.1?}: {last}", bad.cause);
    assert_eq!((last["cause"].as_str(), state["percent"].as_f64()), (Some(bad.cause), Some(0.0)));
    assert_eq!(last["from"].as_f64(), Some(bad.at), "{last:#}");
    assert!(last["figures"]["canary"]["requests"].as_u64().unwrap() > 0, "{last:#}");
    assert!(took < bad.hold(), "{took:?}");
    nobody_is_sent_to(&fleet.canary, &fleet.stable).await;
    let (asked, stable) = (fleet.canary.asked(), fleet.stable.asked());
    until("the baseline to have all", async || fleet.stable.asked() > stable + 300).await;
    assert_eq!(fleet.canary.asked(), asked);
}

/// Waits until a hundred requests in a row have gone to the other: then those that were under way have arrived.
pub async fn nobody_is_sent_to(left: &Instance, other: &Instance) {
    until("nobody to be sent there", async || {
        let (before, others) = (left.asked(), other.asked());
        until("requests", async || other.asked() >= others + 100).await;
        left.asked() == before
    })
    .await;
}

/// It has all requests in the end.
pub async fn comes_through(fleet: &Fleet, pillion: &Pillion) {
    let state = until_done(pillion).await;
    assert_eq!((state["percent"].as_f64(), state["release"].as_str()), (Some(100.0), Some("version=v2")));
    let verdicts: Vec<_> = state["decisions"].as_array().unwrap().iter().map(|it| it["verdict"].as_str()).collect();
    for verdict in ["start", "promote", "done"] {
        assert!(verdicts.contains(&Some(verdict)), "{verdicts:?}");
    }
    nobody_is_sent_to(&fleet.stable, &fleet.canary).await;
    let (stable, canary) = (fleet.stable.asked(), fleet.canary.asked());
    until("the canary to have all", async || fleet.canary.asked() > canary + 300).await;
    assert_eq!(fleet.stable.asked(), stable);
}

/// It has all requests in the end, and none fails.
pub async fn a_good_canary_comes_through(place: &impl Place) {
    let fleet = Fleet::start(place, "").await;
    let mut pillion = fleet.pillion().await;
    assert_eq!(rollout(&pillion).await["state"], Value::Null, "nobody decides before there are requests");
    let load = load(&pillion);
    comes_through(&fleet, &pillion).await;
    load.end_without_failure().await;
    pillion.until_logged("the rollout promotes from 20 % to 50 %; at 20 % for").await;
    for (metric, value) in [
        ("pillion_rollout_canary_percent{service=\"users\"}", 100.0),
        ("pillion_rollout_phase{service=\"users\",phase=\"done\"}", 1.0),
        ("pillion_rollout_leading{service=\"users\"}", 1.0),
        ("pillion_rollout_decisions_total{service=\"users\",verdict=\"promote\"}", 2.0),
    ] {
        assert_eq!(pillion.metric(metric).await, value, "{metric}");
    }
}

/// How a canary goes bad, and from which share on.
pub struct Bad {
    pub at: f64,
    pub cause: &'static str,
    spoil: fn(&Manners),
}

impl Bad {
    pub const FIVE_PERCENT_MORE_ERRORS: Self =
        Self { at: 20.0, cause: "error-rate", spoil: |canary| canary.failing.store(5, Relaxed) };
    pub const DOUBLED_P99: Self = Self { at: 20.0, cause: "p99", spoil: |canary| canary.slower.store(2, Relaxed) };
    pub const ONLY_AT_HALF: Self = Self { at: 50.0, ..Self::FIVE_PERCENT_MORE_ERRORS };

    /// How long each step lasts.
    pub fn hold(&self) -> Duration {
        if self.at > 20.0 { SHORTER_HOLD } else { LONG_HOLD }
    }

    /// Before pillions are started.
    pub fn prepare(&self, fleet: &Fleet) {
        let seconds = |time: Duration| format!("hold: {}s", time.as_secs());
        fleet.change(&seconds(HOLD), &seconds(self.hold()));
    }
}

/// A canary that goes bad when it has a certain share is taken back because of that.
pub async fn a_bad_canary_is_taken_back(place: &impl Place, bad: Bad) {
    let fleet = Fleet::start(place, "").await;
    bad.prepare(&fleet);
    let pillion = fleet.pillion().await;
    let load = load(&pillion);
    until_percent(&pillion, bad.at).await;
    is_taken_back(&fleet, &pillion, &bad).await;
    load.end().await;
}

/// How far a rollout is: the canary's share, and how many of its requests were looked at in this step.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
struct Progress {
    percent: f64,
    looked_at: u64,
}

impl Progress {
    fn of(state: &Value) -> Self {
        let looked_at = state["requests"]["canary"].as_u64().unwrap();
        Self { percent: state["percent"].as_f64().unwrap(), looked_at }
    }
}

/// Another one goes on where the one that dies has stopped: the canary has its share all the time, and what was seen counts.
pub async fn who_decides_dies(place: &impl Place) {
    let fleet = Fleet::start(place, "").await;
    let (one, other) = (fleet.pillion().await, fleet.pillion().await);
    let loads = [load(&one), load(&other)];
    until_percent(&one, 20.0).await;
    until_percent(&other, 20.0).await;
    let leads = async |pillion: &Pillion| rollout(pillion).await["leading"] == true;
    let (dies, stays, [first, second]) = if leads(&one).await {
        (one, other, loads)
    } else {
        (other, one, {
            let [a, b] = loads;
            [b, a]
        })
    };
    assert!(leads(&dies).await && !leads(&stays).await, "one decides");
    let by = decision(&rollout(&stays).await["state"], "start")["by"].clone();
    // As the store has it, from where another one would take it.
    let seen = |state: &Value| Progress::of(state).looked_at >= 100;
    let mut last = Progress::of(&until_state(&stays, "something seen of the canary", seen).await);
    let killed = Instant::now();
    drop(dies);
    first.end().await;
    println!("it dies at {last:?}");
    let asked = || [fleet.canary.asked(), fleet.stable.asked()];
    let before = asked();
    let mut is_taken_over = false;
    loop {
        let rollout = rollout(&stays).await;
        let progress = Progress::of(&rollout["state"]);
        assert!(progress >= last, "{last:?}, and then {progress:?}\n{}", stays.log());
        last = progress;
        if !is_taken_over && rollout["leading"] == true {
            is_taken_over = true;
            let [canary, stable] = [asked()[0] - before[0], asked()[1] - before[1]];
            println!("another decides after {:.1?}; meanwhile {canary} to the canary, {stable} not", killed.elapsed());
            // Each request is drawn, so of few of them any number may be the canary's.
            let share = f64::from(canary) / f64::from((canary + stable).max(1));
            assert!(canary + stable < 300 || share > 0.12, "{share} of them, which should be 0.2 at least");
        }
        if rollout["state"]["is"] == "done" {
            assert!(is_taken_over);
            assert_ne!(decision(&rollout["state"], "done")["by"], by, "the other decided");
            break;
        }
        assert!(killed.elapsed() < Duration::from_secs(150), "it does not go on: {rollout:#}\n{}", stays.log());
        sleep(Duration::from_millis(20)).await;
    }
    second.end_without_failure().await;
}

/// Whoever has seen too little decides nothing.
pub async fn few_requests_hold(place: &impl Place) {
    let fleet = Fleet::start(place, "").await;
    let pillion = fleet.pillion().await;
    let load = Load::paced(pillion.egress(), Version::HTTP_11, "users", 1, Duration::from_millis(100));
    let is_held = |state: &Value| {
        let decisions = state["decisions"].as_array();
        decisions.is_some_and(|all| all.last().is_some_and(|last| last["why"] == "too-few-requests"))
    };
    let state = until_state(&pillion, "a hold", is_held).await;
    assert_eq!(state["percent"], 20.0);
    assert_eq!(state["is"], "running");
    sleep(HOLD).await;
    assert_eq!(rollout(&pillion).await["state"]["percent"], 20.0, "it goes on holding");
    load.end_without_failure().await;
}

#[tokio::test]
async fn a_canary_comes_through_or_is_taken_back() {
    let place = FileStore::new();
    a_good_canary_comes_through(&place).await;
    let place = FileStore::new();
    a_bad_canary_is_taken_back(&place, Bad::FIVE_PERCENT_MORE_ERRORS).await;
    a_bad_canary_is_taken_back(&FileStore::new(), Bad::DOUBLED_P99).await;
}

#[tokio::test]
async fn a_canary_comes_through_or_is_taken_back_with_the_embedded_registry() {
    a_good_canary_comes_through(&EmbeddedStore(free_port())).await;
    a_bad_canary_is_taken_back(&EmbeddedStore(free_port()), Bad::ONLY_AT_HALF).await;
}

/// The registry dies with it, and has kept the state.
#[tokio::test]
async fn a_rollout_in_the_embedded_registry_outlives_a_crash() {
    let place = EmbeddedStore(free_port());
    let fleet = Fleet::start(&place, "").await;
    let mut pillion = fleet.pillion().await;
    let first = load(&pillion);
    let before = until_percent(&pillion, 20.0).await;
    let saved = || fs::read_to_string(fleet.folder.path().join("kv.json")).unwrap_or_default();
    until("it to be on disk", async || saved().contains("pillion/rollouts/users")).await;
    pillion.signal("KILL");
    pillion.ended().await;
    first.end().await;
    let pillion = fleet.pillion().await;
    let second = load(&pillion);
    let after = until_state(&pillion, "the state", Value::is_object).await;
    assert_eq!(after["started_at"], before["started_at"], "it is the same rollout");
    assert!(after["percent"].as_f64() >= Some(20.0), "{after:#}");
    comes_through(&fleet, &pillion).await;
    second.end_without_failure().await;
}

/// With all defaults: its requests are tried again, it is kept out, and what is for it goes to the others, so hardly anything fails.
#[tokio::test]
async fn a_canary_that_is_kept_out_is_taken_back() {
    let place = FileStore::new();
    let fleet = Fleet::start(&place, "").await;
    fleet.change("    retry: { attempts: 1 }\n    breaker: { enabled: false }\n    outlier: { enabled: false }\n", "");
    let pillion = fleet.pillion().await;
    let load = load(&pillion);
    until_percent(&pillion, 20.0).await;
    fleet.canary.task.abort();
    let state = until_state(&pillion, "being taken back", |state| state["is"] == "rolled-back").await;
    let last = decision(&state, "roll-back");
    assert_eq!(last["cause"], "error-rate", "{last:#}");
    let failed = load.end().await;
    assert!(failed.len() < 20, "{} failed", failed.len());
}

/// Without a share it gets no request that could find out that it is well again; so the next try does.
#[tokio::test]
async fn a_canary_that_was_kept_out_is_tried_again() {
    let place = FileStore::new();
    let fleet = Fleet::start(&place, ", attempts: 2, cool_down: 2s").await;
    fleet.change("    retry: { attempts: 1 }\n    breaker: { enabled: false }\n    outlier: { enabled: false }\n", "");
    let pillion = fleet.pillion().await;
    let load = load(&pillion);
    until_percent(&pillion, 20.0).await;
    fleet.canary.manners.failing.store(100, Relaxed);
    until_state(&pillion, "being taken back", |state| state["is"] == "rolled-back").await;
    let standing = async || {
        let endpoints = pillion.json("/api/services/users").await["endpoints"].clone();
        let address = fleet.canary.address.to_string();
        endpoints.as_array().unwrap().iter().find(|endpoint| endpoint["address"] == address).unwrap()["health"]["state"]
            .clone()
    };
    assert_ne!(standing().await, "available");
    fleet.canary.manners.failing.store(0, Relaxed);
    comes_through(&fleet, &pillion).await;
    assert_eq!(rollout(&pillion).await["state"]["attempt"], 2);
    assert_eq!(standing().await, "available");
    load.end().await;
}

#[tokio::test]
async fn another_decides_when_the_one_that_did_dies() {
    who_decides_dies(&FileStore::new()).await;
}

#[tokio::test]
async fn too_few_requests_decide_nothing() {
    few_requests_hold(&FileStore::new()).await;
}

/// A new canary begins with nothing, whatever share the one before had, and an older config does not bring that back.
#[tokio::test]
async fn another_release_begins_anew() {
    let place = FileStore::new();
    let fleet = Fleet::start(&place, ", release: a").await;
    // With a file of its own: a change of the other one would be noticed soon.
    fs::copy(fleet.folder.path().join("pillion.yaml"), fleet.folder.path().join("old.yaml")).unwrap();
    let (pillion, old) = (fleet.pillion().await, fleet.pillion_with("old.yaml").await);
    let load = load(&pillion);
    until_percent(&pillion, 20.0).await;
    fleet.change("release: a", "release: b, start: manual");
    pillion.signal("HUP");
    until("the new config", async || pillion.metric("pillion_config_reloads_total{result=\"ok\"}").await == 1.0).await;
    nobody_is_sent_to(&fleet.canary, &fleet.stable).await;
    assert_eq!(rollout(&pillion).await["in_force"], false);
    until("the other to know it", async || rollout(&old).await["in_force"] == true).await;
    load.end_without_failure().await;
}
