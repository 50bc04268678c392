//! Speed from a registry to the table, and memory, at the size of a mesh.

use crate::{
    e2e::{ANY, Client, Pillion, Upstream, get, median_below, program, soon, until, until_answer},
    servers::{ConsulServer, EtcdServer, RedisServer, program as installed},
};
use futures_util::{StreamExt, future::join_all, stream};
use http::Version;
use pillion::{
    cluster::Cluster,
    config::{AccessLog, AccessLogMode, Config, ConsulRegistry, EtcdRegistry},
    discovery::{Discovery, Handle, Registries},
    registry::{Consul, Etcd, Registry},
    telemetry::{Telemetry, access_log, labels::WORDS, metrics::Metrics},
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::json;
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, sleep},
};

/// Discovery as the program has it, with one registry.
fn discovery(registry: Arc<dyn Registry>) -> Handle {
    let metrics = Metrics::new(WORDS);
    let off = AccessLog { mode: AccessLogMode::Off, ..AccessLog::default() };
    let access_log = access_log::AccessLog::start(&off, metrics.access_log_dropped.clone()).unwrap();
    let mut config = Config::default();
    config.discovery.sources = vec!["main".into()];
    let registries = Registries::from([("main".to_owned(), registry)]);
    let telemetry = Arc::new(Telemetry { metrics, access_log });
    let (discovery, handle) =
        Discovery::new(Arc::new(config), registries, None, Default::default(), telemetry).unwrap();
    tokio::spawn(discovery.run());
    handle
}

async fn until_weight(cluster: &Cluster, weight: u32) {
    let published = async {
        while !cluster.load().endpoints.iter().any(|endpoint| endpoint.instance.weight == weight) {
            sleep(Duration::from_micros(100)).await;
        }
    };
    soon("the change in the table", published).await;
}

/// From a registry's answer to a change to the endpoint in the table; each change finds a quiet discovery.
async fn measure(what: &str, registry: Arc<dyn Registry>, change: impl AsyncFn(u32)) {
    let handle = discovery(registry);
    change(1000).await;
    let cluster = handle.follow("users").await.unwrap();
    until_weight(&cluster, 1000).await;
    median_below(&format!("{what}: from the commit to the table"), Duration::from_millis(20), async || {
        let mut times = Vec::new();
        for weight in 1..=100 {
            sleep(Config::default().discovery.coalesce + Duration::from_millis(10)).await;
            change(weight).await;
            let committed = Instant::now();
            until_weight(&cluster, weight).await;
            times.push(committed.elapsed());
        }
        times
    })
    .await;
}

#[tokio::test]
async fn a_change_is_in_the_table_in_less_than_20_ms() {
    let etcd = EtcdServer::start(&installed("etcd")).await;
    let settings = EtcdRegistry { endpoints: vec![etcd.url()], ..EtcdRegistry::default() };
    measure("etcd", Arc::new(Etcd::new("main", &settings).unwrap()), async |weight| {
        etcd.put("/pillion/users/a", format!(r#"{{"address":"10.0.0.1:80","weight":{weight}}}"#)).await;
    })
    .await;
    let consul = ConsulServer::start().await;
    let settings = ConsulRegistry { address: format!("http://127.0.0.1:{}", consul.port), ..ConsulRegistry::default() };
    measure("consul", Arc::new(Consul::new("main", &settings).unwrap()), async |weight| {
        let service =
            json!({"ID": "a", "Name": "users", "Address": "10.0.0.1", "Port": 80, "Weights": {"Passing": weight, "Warning": 1}});
        consul.register(&service).await;
    })
    .await;
}

/// The program as users run it: `PILLION_RELEASE_BIN`, or built for this.
fn release() -> PathBuf {
    if let Some(path) = std::env::var_os("PILLION_RELEASE_BIN") {
        return path.into();
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let built = std::process::Command::new(env!("CARGO"))
        .args(["build", "--release", "--locked", "--bin", "pillion"])
        .current_dir(root)
        .status()
        .unwrap();
    assert!(built.success(), "the release build");
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    root.join(target).join("release/pillion")
}

#[tokio::test]
async fn memory_follows_what_the_app_calls_and_not_the_size_of_the_mesh() {
    const SERVICES: usize = 1000;
    const CALLED: usize = 10;
    const ENDPOINTS: usize = 10;
    let release = tokio::task::spawn_blocking(release).await.unwrap();
    let etcd = EtcdServer::start(&installed("etcd")).await;
    let mut upstreams = Vec::new();
    for number in 0..ENDPOINTS {
        upstreams.push(Upstream::start(&format!("u{number}")).await);
    }
    let instances = (0..SERVICES).flat_map(|service| (0..ENDPOINTS).map(move |endpoint| (service, endpoint)));
    let puts = instances.map(|(service, endpoint)| {
        let address = match upstreams.get(endpoint) {
            Some(upstream) if service < CALLED => upstream.address.to_string(),
            _ => format!("10.{}.{}.{endpoint}:8080", service / 250, service % 250),
        };
        let value = json!({"address": address, "zone": "az-1", "labels": {"version": "v1", "team": "payments"}});
        let key = format!("/pillion/service-{service:04}/{endpoint}");
        let etcd = &etcd;
        async move { etcd.put(&key, value.to_string()).await }
    });
    stream::iter(puts).buffer_unordered(64).collect::<Vec<_>>().await;

    let url = format!("etcd://127.0.0.1:{}", etcd.port);
    let args = ["run", "--listen", ANY, "--admin", ANY, "--registry", &url];
    let pillion = Pillion::start(&mut program(&release, &args)).await;
    assert_eq!(get(pillion.admin(), "admin").await.map(|(status, _)| status < 500), Ok(true));
    let idle = pillion.resident();
    for service in 0..CALLED {
        let service = format!("service-{service:04}");
        until_answer(pillion.egress(), &service, |status, _| status == 200).await;
        for version in [Version::HTTP_11, Version::HTTP_2] {
            let mut client = Client::connect(pillion.egress(), version).await.unwrap();
            for _ in 0..200 {
                assert_eq!(client.get(&service, "/").await.unwrap().0, 200);
            }
        }
    }
    let busy = pillion.resident();
    println!("memory: {idle} KiB idle, {busy} KiB with {CALLED} of {SERVICES} services called");
    assert!(idle <= 12 * 1024, "{idle} KiB idle");
    assert!(busy <= 25 * 1024, "{busy} KiB");
}

/// Held by a Redis, so that its ends are no descriptors of this program's.
#[tokio::test]
async fn idle_connections_take_little_memory() {
    // Of pillion's descriptors each takes two; `ulimit -Hn` may allow fewer than the ten thousand.
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
    let allowed = limit.maximum.unwrap_or(u64::MAX);
    let many = usize::try_from((allowed - 1000) / 2).unwrap().min(10_000);
    let release = tokio::task::spawn_blocking(release).await.unwrap();
    let redis = RedisServer::start_with(&["--maxclients", "10100"], &[]).await;
    let dir = tempfile::TempDir::new().unwrap();
    let (instances, config) = (dir.path().join("instances.yaml"), dir.path().join("pillion.yaml"));
    std::fs::write(&instances, format!("services: {{ cache: [\"{}\"] }}\n", redis.address())).unwrap();
    let text = format!(
        "listeners:\n  - {{ name: cache, listen: \"{ANY}\", protocol: tcp, service: cache }}\nadmin: {{ listen: \"{ANY}\" }}\n\
         registries: {{ main: {{ kind: file, path: \"{}\" }} }}\nservices: {{ cache: {{ limits: {{ connections: 20000 }} }} }}\n",
        instances.display()
    );
    std::fs::write(&config, text).unwrap();
    let pillion = Pillion::start(&mut program(&release, &["run", config.to_str().unwrap()])).await;
    let asked = async || {
        let mut peer = soon("a connection", TcpStream::connect(pillion.listener("cache"))).await.unwrap();
        let mut answer = [0; 7];
        peer.write_all(b"PING\r\n").await.unwrap();
        soon("an answer", peer.read_exact(&mut answer)).await.unwrap();
        assert_eq!(&answer, b"+PONG\r\n");
        peer
    };
    // What the program needs once is not counted as the connections'.
    drop(join_all((0..200).map(|_| asked())).await);
    until("them to end", async || pillion.metric("pillion_tcp_connections").await == 0.0).await;
    let before = pillion.resident();
    let mut held = Vec::new();
    while held.len() < many {
        let some = (many - held.len()).min(100);
        held.extend(join_all((0..some).map(|_| asked())).await);
    }
    assert_eq!(pillion.metric("pillion_tcp_connections").await, many as f64);
    let each = (pillion.resident() - before) as f64 / many as f64;
    println!("{many} idle connections through pillion: {each:.1} KiB of resident memory each");
    assert!(each <= 6.0, "{each:.1} KiB");
    // Each of them still works.
    for peer in &mut held {
        let mut answer = [0; 7];
        peer.write_all(b"PING\r\n").await.unwrap();
        soon("an answer", peer.read_exact(&mut answer)).await.unwrap();
    }
}
