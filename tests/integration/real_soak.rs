//! Everything at once, for as long as SOAK_SECONDS says (a minute; `make soak`: twenty): requests over HTTP/1.1, HTTP/2 and gRPC,
//! TCP connections, instances that come and go, canaries that come through and that are taken back, registries that are killed,
//! changed configs, upgrades in place, sidecars that drain. Nothing may fail, and nothing may grow.

#![allow(clippy::disallowed_types, reason = "tasks of one thread take turns, and wait for each other over awaits")]

use crate::{
    canaries::{self, rollout},
    e2e::{ANY, Load, PATIENCE, Pillion, Upstream, pillion, soon, until, until_answer},
    programs::{Server, run},
    servers::{AnyServer, NacosServer},
    socket::Socket,
};
use http::Version;
use serde_json::{Value, json};
use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, VecDeque},
    env, fs,
    net::SocketAddr,
    sync::atomic::Ordering::Relaxed,
    time::Duration,
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Mutex,
    time::{Instant, sleep},
};

const ETCD: usize = 0;
const CONSUL: usize = 1;
const NACOS: usize = 2;

/// How long an instance goes on after it has deregistered, as every guide to graceful shutdown has it.
const NOTICE: Duration = Duration::from_secs(1);

/// From so long on it is a soak, and not only a test that all of it works together.
const LONG: Duration = Duration::from_secs(600);

/// What can be in more than one registry at a time.
#[derive(Clone, PartialEq)]
struct Entry {
    service: &'static str,
    name: String,
    address: SocketAddr,
}

struct World {
    folder: TempDir,
    ends: Instant,
    /// Whoever holds one has it for itself, dead or alive.
    servers: [Mutex<AnyServer>; 3],
    /// What each of them should have.
    entries: RefCell<[Vec<Entry>; 3]>,
    pillion: Mutex<Pillion>,
    settings: Settings,
    is_long: bool,
    counts: RefCell<BTreeMap<&'static str, u64>>,
    failures: RefCell<Vec<String>>,
    /// Of those that were replaced.
    logs: RefCell<String>,
}

/// What changes in the config.
#[derive(Default)]
struct Settings {
    release: Cell<u32>,
    timeout: Cell<u32>,
}

impl World {
    async fn start(time: Duration) -> Self {
        let (etcd, consul, nacos) = tokio::join!(AnyServer::etcd(), AnyServer::consul(), NacosServer::start("nacos-3"));
        let servers = [etcd, consul, AnyServer::Nacos(nacos)];
        let folder = TempDir::new().unwrap();
        let registries = servers.iter().map(|server| {
            let (name, port) = (server.name(), server.port());
            match server {
                AnyServer::Etcd(_) => format!("  {name}: {{ kind: etcd, endpoints: ['http://127.0.0.1:{port}'] }}\n"),
                AnyServer::Nacos(nacos) => format!(
                    "  {name}: {{ kind: nacos, servers: ['http://127.0.0.1:{}'], grpc_port: {port} }}\n",
                    nacos.port
                ),
                _ => format!("  {name}: {{ kind: consul, address: 'http://127.0.0.1:{port}', wait: 10s }}\n"),
            }
        });
        fs::write(folder.path().join("registries"), format!("registries:\n{}", registries.collect::<String>()))
            .unwrap();
        let settings = Settings::default();
        settings.write(&folder);
        let pillion = Mutex::new(start(&folder).await);
        Self {
            folder,
            ends: Instant::now() + time,
            servers: servers.map(Mutex::new),
            entries: RefCell::default(),
            pillion,
            settings,
            is_long: time >= LONG,
            counts: RefCell::default(),
            failures: RefCell::default(),
            logs: RefCell::default(),
        }
    }

    fn goes_on(&self) -> bool {
        Instant::now() < self.ends
    }

    fn count(&self, what: &'static str) {
        *self.counts.borrow_mut().entry(what).or_default() += 1;
    }

    fn failed(&self, what: String) {
        self.failures.borrow_mut().push(what);
    }

    async fn register(&self, registry: usize, entry: &Entry) {
        let mut server = self.servers[registry].lock().await;
        server.register(entry.service, &entry.name, entry.address).await;
        self.entries.borrow_mut()[registry].push(entry.clone());
    }

    async fn deregister(&self, registry: usize, entry: &Entry) {
        let mut server = self.servers[registry].lock().await;
        server.deregister(entry.service, &entry.name, entry.address).await;
        self.entries.borrow_mut()[registry].retain(|other| other != entry);
    }
}

/// With the config as it is now.
async fn start(folder: &TempDir) -> Pillion {
    Pillion::start(pillion(&["run"]).arg(folder.path().join("pillion.yaml"))).await
}

impl Settings {
    fn write(&self, folder: &TempDir) {
        let registries = fs::read_to_string(folder.path().join("registries")).unwrap();
        let (release, timeout) = (self.release.get(), 10 + self.timeout.get());
        let text = format!(
            "upgrade: {{ socket: upgrade.sock }}\nadmin: {{ listen: '{ANY}' }}\n{registries}\
             discovery: {{ sources: [etcd, consul, nacos], failover: {{ after: 5s, hold: 5s }} }}\n\
             routing: {{ rollouts: {{ registry: consul }} }}\n\
             listeners:\n  - {{ name: egress, listen: '{ANY}' }}\n  - {{ name: db, listen: '{ANY}', protocol: tcp, service: db }}\n\
             services:\n  web: {{ timeouts: {{ request: {timeout}s }} }}\n  api: {{}}\n  side: {{ sources: [ {{ merge: [etcd, consul, nacos] }} ] }}\n  db: {{}}\n  rpc: {{}}\n  users:\n\
             \x20   subsets: {{ stable: {{ version: v1 }}, canary: {{ version: v2 }} }}\n\
             \x20   routes: [ {{ split: {{ stable: 100, canary: 0 }} }} ]\n\
             \x20   rollout: {{ release: '{release}', steps: [50, 100], hold: 12s, interval: 200ms, min_requests: 100, cool_down: 1s, p99: {{ warm_up: 500ms }} }}\n"
        );
        // As configs are put in place: whole.
        fs::write(folder.path().join("new.yaml"), text).unwrap();
        fs::rename(folder.path().join("new.yaml"), folder.path().join("pillion.yaml")).unwrap();
    }
}

impl World {
    /// What they need has to be there until then. A rollout that does not end is told of by itself.
    async fn loads_end(&self) {
        while !self.counts.borrow().contains_key("loads ended") {
            sleep(Duration::from_millis(100)).await;
        }
    }

    /// Puts a config into force.
    async fn reload(&self, change: impl FnOnce(&Settings)) {
        let pillion = self.pillion.lock().await;
        let reloads = "pillion_config_reloads_total{result=\"ok\"}";
        let before = pillion.metric(reloads).await;
        change(&self.settings);
        self.settings.write(&self.folder);
        until("the config to be read", async || pillion.metric(reloads).await > before).await;
        self.count("configs");
    }

    /// Now and then.
    async fn reloads(&self) {
        while self.goes_on() {
            sleep(Duration::from_secs(7)).await;
            self.reload(|settings| settings.timeout.set((settings.timeout.get() + 1) % 5)).await;
        }
    }

    /// Instances of a service in some registries, of which one leaves and another joins, again and again.
    async fn churn(&self, service: &'static str, registries: &[usize]) {
        let mut instances = VecDeque::new();
        for number in 0.. {
            let instance = Upstream::start(&format!("{service}-{number}")).await;
            let entry = Entry { service, name: instance.name.clone(), address: instance.address };
            for registry in registries {
                self.register(*registry, &entry).await;
            }
            instances.push_back((instance, entry));
            if instances.len() <= 4 {
                continue;
            }
            let (instance, entry) = instances.pop_front().unwrap();
            for registry in registries {
                self.deregister(*registry, &entry).await;
            }
            sleep(NOTICE).await;
            instance.leave().await;
            self.count("instances replaced");
            if !self.goes_on() {
                break;
            }
            sleep(Duration::from_secs(1)).await;
        }
        self.loads_end().await;
    }

    /// Kills each registry in turn.
    async fn outages(&self) {
        for registry in [ETCD, CONSUL, NACOS].into_iter().cycle() {
            sleep(Duration::from_secs(5)).await;
            if !self.goes_on() {
                break;
            }
            let mut server = self.servers[registry].lock().await;
            server.kill();
            // Sometimes long enough for another one to be believed.
            sleep(Duration::from_secs(if fastrand::bool() { 3 } else { 8 })).await;
            server.restart().await;
            if server.forgets() {
                let entries = self.entries.borrow()[registry].clone();
                for entry in entries {
                    server.register(entry.service, &entry.name, entry.address).await;
                }
            }
            // What goes on before it is followed again is for the long run, in which that has its time.
            if !self.is_long {
                let name = server.name();
                until("the registry to be followed again", async || {
                    let sources = self.pillion.lock().await.json("/api/services/api").await["sources"].clone();
                    sources.as_array().unwrap().iter().any(|it| it["source"] == name && it["state"] == "answering")
                })
                .await;
            }
            self.count("outages");
        }
    }

    /// New processes take over, in the first half: what grows is looked for in the second.
    async fn upgrades(&self, time: Duration) {
        for _ in 0..2 {
            sleep(time / 6).await;
            let mut old = self.pillion.lock().await;
            let new = start(&self.folder).await;
            assert_eq!((new.egress(), new.admin()), (old.egress(), old.admin()), "the same sockets");
            assert_eq!(old.ended().await, 0, "{}", old.log());
            self.logs.borrow_mut().push_str(&old.log());
            *old = new;
            self.count("upgrades");
        }
    }

    /// Applications behind pillions of their own, which register them in one registry after the other, and drain.
    async fn sidecars(&self) {
        let app = Upstream::start("side").await;
        let registries = fs::read_to_string(self.folder.path().join("registries")).unwrap();
        let sidecar = async |number: usize| {
            let registry = ["etcd", "consul", "nacos"][number % 3];
            let text = format!(
                "admin: {{ listen: '{ANY}' }}\n{registries}listeners: [ {{ name: inbound, listen: '{ANY}', app: {} }} ]\n\
                 register: [ {{ service: side, registry: {registry}, id: 'side-{number}', address: 127.0.0.1, port: {{ listener: inbound }}, ttl: 10s }} ]\n",
                app.address.port()
            );
            let file = self.folder.path().join(format!("side-{number}.yaml"));
            fs::write(&file, text).unwrap();
            // Not while that registry is down: nobody can be registered in it then, and nobody taken out.
            let server = self.servers[number % 3].lock().await;
            let sidecar = Pillion::start(pillion(&["run"]).arg(file)).await;
            let state = async || sidecar.json("/api/registrations").await["registrations"][0]["registries"][0].clone();
            let start = Instant::now();
            while state().await["state"] != "registered" {
                assert!(start.elapsed() < PATIENCE, "{number}: {:#}\n{}", state().await, sidecar.log());
                sleep(Duration::from_millis(20)).await;
            }
            drop(server);
            sidecar
        };
        let mut running = VecDeque::from([(0, sidecar(0).await), (1, sidecar(1).await), (2, sidecar(2).await)]);
        self.count("sidecars are there");
        for number in 3.. {
            sleep(Duration::from_secs(2)).await;
            if !self.goes_on() {
                break;
            }
            running.push_back((number, sidecar(number).await));
            let (number, mut first) = running.pop_front().unwrap();
            let server = self.servers[number % 3].lock().await;
            first.signal("TERM");
            assert_eq!(first.ended().await, 0, "{}", first.log());
            drop(server);
            self.count("sidecars drained");
        }
        self.loads_end().await;
    }

    /// One canary that is taken back, one that comes through, and so on.
    async fn rollouts(&self, canary: &canaries::Instance) {
        for release in 1.. {
            let is_good = release % 2 == 0;
            // So bad that it is seen by few requests, which are all that a busy machine has.
            let (slower, slow) = if is_good { (1, 3) } else { (2, 30) };
            canary.manners.slower.store(slower, Relaxed);
            canary.manners.slow.store(slow, Relaxed);
            self.reload(|settings| settings.release.set(release)).await;
            let start = Instant::now();
            loop {
                let rollout = rollout(&*self.pillion.lock().await).await;
                let state = &rollout["state"];
                if state["release"] == json!(release.to_string())
                    && (state["is"] == "done" || state["is"] == "rolled-back")
                {
                    let (verdict, what) = if is_good {
                        ("done", "canaries come through")
                    } else {
                        ("rolled-back", "canaries taken back")
                    };
                    if state["is"] == verdict {
                        self.count(what);
                    } else {
                        self.failed(format!("rollout {release} should be {verdict}: {state:#}"));
                    }
                    println!("release {release}: {}", state["decisions"].as_array().unwrap().last().unwrap());
                    break;
                }
                assert!(start.elapsed() < Duration::from_secs(300), "rollout {release} does not end: {rollout:#}");
                sleep(Duration::from_millis(100)).await;
            }
            if is_good && !self.goes_on() {
                return;
            }
        }
    }

    /// Every kind of call.
    async fn grpc(&self) {
        let egress = self.pillion.lock().await.egress().to_string();
        while self.goes_on() {
            for mode in ["unary", "server-stream", "client-stream", "bidi"] {
                let args = ["-target", &egress, "-authority", "rpc", "-mode", mode, "-n", "100", "-concurrency", "4"];
                let got = run("grpc-check-client", args).await;
                let result: Value = serde_json::from_str(&got.stdout).unwrap_or_default();
                if !got.ok || result["failed"] != 0 {
                    self.failed(format!("gRPC {mode}: {result} {}", got.stderr));
                }
                self.counts.borrow_mut().entry("gRPC calls").and_modify(|count| *count += 100).or_insert(100);
            }
            sleep(Duration::from_millis(200)).await;
        }
    }

    /// Connections that come and go.
    async fn tcp(&self) {
        let address = self.pillion.lock().await.listener("db");
        while self.goes_on() {
            if let Err(error) = echoes(address).await {
                self.failed(format!("TCP: {error}"));
            }
            self.count("TCP connections");
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// What could grow, once a second, in the second half.
    async fn samples(&self, time: Duration) -> Vec<Sample> {
        sleep(time / 2).await;
        let mut samples = Vec::new();
        while self.goes_on() {
            samples.push(Sample::of(&*self.pillion.lock().await).await);
            sleep(Duration::from_secs(1)).await;
        }
        samples
    }
}

/// What is sent comes back.
async fn echoes(address: SocketAddr) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(address).await?;
    let (sent, mut got) = ([b'x'; 1000], [0; 1000]);
    for _ in 0..5 {
        stream.write_all(&sent).await?;
        soon("an echo", stream.read_exact(&mut got)).await?;
        assert_eq!(sent, got);
        sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

/// An application that says what it hears.
async fn echo() -> SocketAddr {
    let listener = Socket(TcpListener::bind(ANY).await.unwrap());
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                tokio::io::copy(&mut read, &mut write).await
            });
        }
    });
    address
}

/// Of one process: KiB of resident memory, descriptors, tasks, series.
struct Sample([f64; 4]);

const SAMPLED: [&str; 4] = ["resident KiB", "descriptors", "tasks", "series"];

impl Sample {
    async fn of(pillion: &Pillion) -> Self {
        let (_, page) = pillion.admin_text("/metrics").await;
        let values = |name: &str| {
            let lines = page.lines().filter(|line| line.starts_with(name));
            lines.map(|line| line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap()).sum()
        };
        let series = page.lines().filter(|line| !line.starts_with('#')).count();
        Self([pillion.resident() as f64, values("process_open_fds"), values("pillion_tasks"), series as f64])
    }
}

/// What is in flight or open while there are requests.
const BACK_TO_ZERO: [&str; 9] = [
    "pillion_requests_in_flight",
    "pillion_requests_waiting",
    "pillion_retries_active",
    "pillion_mirror_in_flight",
    "pillion_connections{",
    "pillion_tcp_connections",
    "pillion_udp_sessions",
    "pillion_discovery_held",
    "pillion_panic",
];

#[tokio::test]
async fn everything_at_once_fails_nothing_and_grows_nowhere() {
    let time = env::var("SOAK_SECONDS").map_or(60, |text| text.parse().expect("SOAK_SECONDS is a number"));
    let time = Duration::from_secs(time);
    let world = World::start(time).await;
    let (stable, canary) = (canaries::Instance::start().await, canaries::Instance::start().await);
    {
        let AnyServer::Etcd(etcd) = &*world.servers[ETCD].lock().await else { unreachable!() };
        for (version, instance) in [("v1", &stable), ("v2", &canary)] {
            let value = json!({ "address": instance.address.to_string(), "labels": { "version": version } });
            etcd.put(&format!("/pillion/users/{version}"), value.to_string()).await;
        }
    }
    let mut rpc = Vec::new();
    for name in ["a", "b", "c"] {
        rpc.push(Server::start("grpc-echo-server", &["-id", name]).await);
        let entry = Entry { service: "rpc", name: name.into(), address: rpc.last().unwrap().address };
        world.register(NACOS, &entry).await;
        let entry = Entry { service: "db", name: format!("db-{name}"), address: echo().await };
        world.register(NACOS, &entry).await;
    }
    let load = async {
        let egress = world.pillion.lock().await.egress();
        until("the sidecars", async || world.counts.borrow().contains_key("sidecars are there")).await;
        for service in ["web", "api", "side", "users", "rpc"] {
            until_answer(egress, service, |status, _| status != 404 && status != 503).await;
        }
        let paced = |service, version, connections| {
            let load = Load::paced(egress, version, service, connections, Duration::from_millis(10));
            (format!("{service} over {version:?}"), load)
        };
        let loads = [
            paced("web", Version::HTTP_11, 4),
            paced("api", Version::HTTP_11, 2),
            paced("side", Version::HTTP_11, 2),
            paced("users", Version::HTTP_11, 8),
            paced("web", Version::HTTP_2, 2),
            paced("api", Version::HTTP_2, 4),
            paced("side", Version::HTTP_2, 2),
        ];
        let others = async { tokio::join!(world.grpc(), world.tcp(), world.rollouts(&canary)) };
        others.await;
        let mut done = 0;
        for (what, load) in loads {
            done += load.count();
            // Whoever was told to go before a request was sent may send it again, and has to.
            let told = |failure: &String| failure.contains("NO_ERROR, Remote") || failure.contains("Canceled");
            let failed = load.end().await.into_iter().filter(|failure| what.contains("HTTP/1.1") || !told(failure));
            failed.for_each(|failure| world.failed(format!("{what}: {failure}")));
        }
        world.counts.borrow_mut().insert("requests", done);
        world.count("loads ended");
    };
    let ((), (), (), (), (), (), (), samples) = tokio::join!(
        load,
        world.churn("web", &[ETCD, CONSUL]),
        world.churn("api", &[CONSUL, NACOS]),
        world.outages(),
        world.upgrades(time),
        world.reloads(),
        world.sidecars(),
        world.samples(time),
    );
    println!("in {time:?}: {:?}", world.counts.borrow());

    let failures = world.failures.take();
    let mut pillion = world.pillion.lock().await;
    if !failures.is_empty() {
        // Before the log, of which a report may show the beginning only.
        println!("{} failed: {:#?}", failures.len(), &failures[..failures.len().min(50)]);
        panic!("{} failed; the log is\n{}{}", failures.len(), world.logs.borrow(), pillion.log());
    }
    let (third, fourth) = samples.split_at(samples.len() / 2);
    let median = |samples: &[Sample], index: usize| {
        let mut values: Vec<_> = samples.iter().map(|sample| sample.0[index]).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    // A minute is too short to tell what grows from what goes up and down.
    let growth = if world.is_long { 1.1 } else { 1.5 };
    for (index, what) in SAMPLED.iter().enumerate() {
        let (before, after) = (median(third, index), median(fourth, index));
        println!("{what}: {before} in the third quarter, {after} in the last");
        assert!(after <= before * growth + 20.0, "{what}: {before}, then {after}");
    }
    for gauge in BACK_TO_ZERO {
        until(&format!("{gauge} to be 0"), async || pillion.metric(gauge).await == 0.0).await;
    }
    let busy = async || {
        let (_, page) = pillion.admin_text("/metrics").await;
        let lines =
            page.lines().filter(|line| line.starts_with("pillion_pool_connections") && line.contains("\"active\""));
        lines.filter(|line| !line.ends_with(" 0")).count()
    };
    until("no pooled connection to be busy", async || busy().await == 0).await;
    pillion.signal("TERM");
    assert_eq!(pillion.ended().await, 0, "{}", pillion.log());
}
