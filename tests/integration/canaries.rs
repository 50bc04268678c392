//! Canaries on the real program: good ones come through, bad ones are taken back within one hold, and the end of who decides
//! changes nothing. Here the state is in a file; `real_canaries` has it in real stores.

use crate::{
    e2e::{ANY, Load, Pillion, output, pillion, serve, until},
    peer::Peer,
    socket::Socket,
};
use bytes::Bytes;
use http::{Response, Version};
use http_body_util::Full;
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

/// How long it lasts where a bad canary is to be found in it: that takes requests, of which a busy machine has few.
const LONG_HOLD: Duration = Duration::from_secs(12);

/// Where the state is kept.
pub trait Place {
    /// The registry, as the config has it.
    fn settings(&self) -> String;
}

/// A folder beside a file.
struct FileStore(TempDir);

impl FileStore {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        fs::write(folder.path().join("kv.yaml"), "services: {}").unwrap();
        Self(folder)
    }
}

impl Place for FileStore {
    fn settings(&self) -> String {
        format!("kind: file, path: '{}'", self.0.path().join("kv.yaml").display())
    }
}

/// A version of a service: 95 of 100 requests take 4 ms, 5 take 30 ms, and none fails, until it is told otherwise.
pub struct Instance {
    address: SocketAddr,
    pub manners: Arc<Manners>,
    task: JoinHandle<()>,
}

pub struct Manners {
    /// Of a hundred requests.
    pub failing: AtomicU32,
    /// Times the latency.
    pub slower: AtomicU32,
    asked: AtomicU32,
}

impl Drop for Instance {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Instance {
    async fn start() -> Self {
        let listener = Socket(TcpListener::bind(ANY).await.unwrap());
        let address = listener.local_addr().unwrap();
        let manners = Manners { failing: 0.into(), slower: 1.into(), asked: 0.into() };
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

    fn asked(&self) -> u32 {
        self.manners.asked.load(Relaxed)
    }
}

impl Manners {
    async fn answer(&self) -> Response<Full<Bytes>> {
        self.asked.fetch_add(1, Relaxed);
        let time = if fastrand::u32(..100) < 5 { 30 } else { 4 };
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

    fn change(&self, from: &str, to: &str) {
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
    Load::paced(pillion.egress(), Version::HTTP_11, "users", 6, Duration::from_millis(10))
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

/// A bad canary is taken back within one hold of going bad, and stays back.
async fn taken_back(fleet: &Fleet, pillion: &Pillion, cause: &str, at: f64) {
    let since = Instant::now();
    let state = until_state(pillion, "being taken back", |state| state["is"] == "rolled-back").await;
    let took = since.elapsed();
    let last = decision(&state, "roll-back");
    println!("{cause}: taken back after {took:.1?}: {last}");
    assert_eq!((last["cause"].as_str(), state["percent"].as_f64()), (Some(cause), Some(0.0)));
    assert!(last["figures"]["canary"]["requests"].as_u64().unwrap() > 0, "{last:#}");
    // No step came to its end in between; what comes after the decision is reading it.
    assert_eq!(last["from"].as_f64(), Some(at), "within one hold: {last:#}");
    assert!(took < 2 * LONG_HOLD, "{took:?}");
    nobody_is_sent_to(&fleet.canary, &fleet.stable).await;
    let (asked, stable) = (fleet.canary.asked(), fleet.stable.asked());
    until("the baseline to have all", async || fleet.stable.asked() > stable + 300).await;
    assert_eq!(fleet.canary.asked(), asked);
}

/// Waits until a hundred requests in a row have gone to the other: then those that were under way have arrived.
async fn nobody_is_sent_to(left: &Instance, other: &Instance) {
    until("nobody to be sent there", async || {
        let (before, others) = (left.asked(), other.asked());
        until("requests", async || other.asked() >= others + 100).await;
        left.asked() == before
    })
    .await;
}

/// It has all requests in the end, and none fails.
pub async fn a_good_canary_comes_through(place: &impl Place) {
    let fleet = Fleet::start(place, "").await;
    let mut pillion = fleet.pillion().await;
    assert_eq!(rollout(&pillion).await["state"], Value::Null, "nobody decides before there are requests");
    let load = load(&pillion);
    let state = until_done(&pillion).await;
    assert_eq!((state["percent"].as_f64(), state["release"].as_str()), (Some(100.0), Some("version=v2")));
    let verdicts: Vec<_> = state["decisions"].as_array().unwrap().iter().map(|it| it["verdict"].as_str()).collect();
    for verdict in ["start", "promote", "done"] {
        assert!(verdicts.contains(&Some(verdict)), "{verdicts:?}");
    }
    nobody_is_sent_to(&fleet.stable, &fleet.canary).await;
    let (stable, canary) = (fleet.stable.asked(), fleet.canary.asked());
    until("the canary to have all", async || fleet.canary.asked() > canary + 300).await;
    assert_eq!(fleet.stable.asked(), stable);
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

/// A canary that is spoiled when it has that share is taken back because of that.
pub async fn a_bad_canary_is_taken_back(place: &impl Place, cause: &str, at: f64, spoil: impl Fn(&Manners)) {
    let fleet = Fleet::start(place, "").await;
    let seconds = |time: Duration| format!("hold: {}s", time.as_secs());
    fleet.change(&seconds(HOLD), &seconds(LONG_HOLD));
    let pillion = fleet.pillion().await;
    let load = load(&pillion);
    until_percent(&pillion, at).await;
    spoil(&fleet.canary.manners);
    taken_back(&fleet, &pillion, cause, at).await;
    load.end().await;
}

/// Another one goes on where the one that dies has stopped.
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
    let killed = Instant::now();
    drop(dies);
    first.end().await;
    // Nothing goes back or on meanwhile; then it goes on.
    until("the other to decide", async || leads(&stays).await).await;
    println!("another decides after {:.1?}", killed.elapsed());
    let state = until_done(&stays).await;
    assert_ne!(decision(&state, "done")["by"], by, "the other decided");
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
    a_bad_canary_is_taken_back(&place, "error-rate", 20.0, |canary| canary.failing.store(5, Relaxed)).await;
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

#[tokio::test]
async fn another_decides_when_the_one_that_did_dies() {
    who_decides_dies(&FileStore::new()).await;
}

#[tokio::test]
async fn too_few_requests_decide_nothing() {
    few_requests_hold(&FileStore::new()).await;
}

#[tokio::test]
async fn it_can_be_steered_by_hand() {
    let place = FileStore::new();
    let fleet = Fleet::start(&place, ", start: manual, cool_down: 1s").await;
    // Commands come one after the other, and each may take its time.
    fleet.change(&format!("hold: {}s", HOLD.as_secs()), &format!("hold: {}s", LONG_HOLD.as_secs()));
    let (one, other) = (fleet.pillion().await, fleet.pillion().await);
    let loads = [load(&one), load(&other)];
    let told = async |pillion: &Pillion, args: &[&str]| {
        let admin = pillion.admin().to_string();
        let done = output(&mut crate::e2e::pillion(&[&["rollout", "--admin", &admin], args].concat())).await;
        let text = String::from_utf8(if done.status.success() { done.stdout } else { done.stderr }).unwrap();
        (done.status.success(), text)
    };
    let (ok, text) = told(&one, &[]).await;
    assert!(ok && text.contains("users") && text.contains("not begun"), "{text}");
    let (ok, text) = told(&one, &["pause", "users"]).await;
    assert!(!ok && text.contains("there is no rollout in progress"), "{text}");
    let (ok, text) = told(&one, &["start", "orders"]).await;
    assert!(!ok && text.contains("`orders` has no `rollout`"), "{text}");
    let (ok, text) = told(&one, &["start"]).await;
    assert!(!ok && text.contains("<SERVICE>"), "{text}");

    // What one is told, all do.
    let (ok, text) = told(&one, &["start", "users"]).await;
    assert!(ok && text == "the rollout of users starts with 20 %\n", "{text}");
    until_percent(&other, 20.0).await;
    let (ok, text) = told(&other, &["pause", "users"]).await;
    assert!(ok && text.contains("pauses"), "{text}");
    until_state(&one, "a pause", |state| state["is"] == "paused").await;
    let (ok, text) = told(&other, &["promote", "users"]).await;
    assert!(ok && text.contains("promotes from 20 % to 50 %"), "{text}");
    until_percent(&one, 50.0).await;
    sleep(LONG_HOLD + Duration::from_secs(1)).await;
    let (ok, text) = told(&one, &["status", "users"]).await;
    assert!(ok && text.contains("paused, 50 % for") && text.contains("holds: paused"), "{text}");
    let (ok, text) = told(&one, &["resume", "users"]).await;
    assert!(ok && text == "the rollout of users resumes\n", "{text}");
    until_state(&other, "the end of the pause", |state| state["is"] == "running").await;
    let (ok, text) = told(&other, &["resume", "users"]).await;
    assert!(!ok && text.contains("it is not paused"), "{text}");
    let (ok, text) = told(&one, &["abort", "users"]).await;
    assert!(ok && text.contains("rolls back from 50 %: aborted by hand"), "{text}");
    for pillion in [&one, &other] {
        until_percent(pillion, 0.0).await;
    }
    nobody_is_sent_to(&fleet.canary, &fleet.stable).await;
    // It does not begin again by itself; by hand it does, after the time to cool down.
    sleep(Duration::from_millis(1200)).await;
    assert_eq!(rollout(&one).await["state"]["is"], "rolled-back");
    let (ok, text) = told(&other, &["start", "users"]).await;
    assert!(ok && text == "the rollout of users starts with 20 %, attempt 2\n", "{text}");
    for load in loads {
        load.end_without_failure().await;
    }
}

/// What the admin interface says to a request without a body.
async fn steer(pillion: &Pillion, method: &str, what: &str) -> (u16, Value) {
    let mut client = Peer::connect(pillion.admin()).await;
    client.send(format!("{method} /api/rollouts/{what} HTTP/1.1\r\nhost: admin\r\ncontent-length: 0\r\n\r\n")).await;
    let answer = client.response().await;
    (answer.status(), serde_json::from_slice(&answer.body).unwrap_or_default())
}

#[tokio::test]
async fn the_api_steers_it_or_says_why_not() {
    let place = FileStore::new();
    let fleet = Fleet::start(&place, ", start: manual").await;
    let pillion = fleet.pillion().await;
    let load = load(&pillion);
    for (what, status, text) in [
        ("users/pause", 409, "there is no rollout in progress"),
        ("orders/start", 404, "`orders` has no `rollout`"),
        ("users/restart", 404, "nothing is called `restart` here"),
        ("%ff/start", 400, ""),
        ("users/start", 200, "running"),
        ("users/start", 409, "it is in progress already"),
        ("users/resume", 409, "it is not paused"),
        ("users/pause", 200, "paused"),
        ("users/pause", 409, "it is paused already"),
    ] {
        let (got, answer) = steer(&pillion, "POST", what).await;
        assert_eq!(got, status, "{what}: {answer}");
        assert!(answer.to_string().contains(text), "{what}: {answer}");
    }
    assert_eq!(steer(&pillion, "GET", "users/start").await.0, 405);
    // It stays where it is for longer than a step lasts, and goes on with a step of full length.
    sleep(HOLD + Duration::from_secs(1)).await;
    let state = rollout(&pillion).await["state"].clone();
    assert_eq!((state["is"].as_str(), state["percent"].as_f64()), (Some("paused"), Some(20.0)));
    let resumed = Instant::now();
    let (status, answer) = steer(&pillion, "POST", "users/resume").await;
    assert_eq!((status, answer["is"].as_str()), (200, Some("running")), "{answer}");
    until_percent(&pillion, 50.0).await;
    assert!(resumed.elapsed() >= HOLD - Duration::from_secs(1), "{:?}", resumed.elapsed());
    let (status, answer) = steer(&pillion, "POST", "users/abort").await;
    assert_eq!((status, answer["is"].as_str(), answer["percent"].as_f64()), (200, Some("rolled-back"), Some(0.0)));
    load.end_without_failure().await;
    // A store that cannot be had: a file where its folder was.
    let folder = place.0.path().join("kv.yaml.store");
    fs::remove_dir_all(&folder).unwrap();
    fs::write(&folder, "").unwrap();
    let (status, answer) = steer(&pillion, "POST", "users/start").await;
    assert_eq!(status, 503, "{answer}");
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
