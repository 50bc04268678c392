//! Two versions of a service, pillions that roll one of them out, and how far they are.

use crate::{
    e2e::{ANY, Load, Pillion, pillion, serve, until},
    socket::Socket,
};
use bytes::Bytes;
use http::{Response, Version};
use http_body_util::Full;
use serde_json::Value;
use std::{
    fs,
    net::SocketAddr,
    path::PathBuf,
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

    /// Where it says who decides about `users`.
    pub fn lock(&self) -> PathBuf {
        self.0.path().join("kv.yaml.store/pillion/rollouts-locks/users")
    }
}

/// In the pillion itself, so there is no other.
pub struct EmbeddedStore(pub u16);

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
    pub task: JoinHandle<()>,
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
    pub folder: TempDir,
    pub stable: Instance,
    pub canary: Instance,
}

impl Fleet {
    pub async fn start(place: &impl Place, more: &str) -> Self {
        let fleet =
            Self { folder: TempDir::new().unwrap(), stable: Instance::start().await, canary: Instance::start().await };
        fleet.list(&[("v1", &fleet.stable), ("v2", &fleet.canary)]);
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

    /// These are the instances of `users`, by version.
    pub fn list(&self, instances: &[(&str, &Instance)]) {
        let listed = |(version, instance): &(&str, &Instance)| {
            format!("{{ address: '{}', labels: {{ version: {version} }} }}", instance.address)
        };
        let listed: Vec<_> = instances.iter().map(listed).collect();
        let text = format!("services: {{ users: [{}] }}", listed.join(", "));
        fs::write(self.folder.path().join("instances.yaml"), text).unwrap();
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

    pub async fn pillion_with(&self, config: &str) -> Pillion {
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

/// Waits until a hundred requests in a row have gone to the other: then those that were under way have arrived.
pub async fn nobody_is_sent_to(left: &Instance, other: &Instance) {
    until("nobody to be sent there", async || {
        let (before, others) = (left.asked(), other.asked());
        until("requests", async || other.asked() >= others + 100).await;
        left.asked() == before
    })
    .await;
}
