//! Several registries of different kinds that are killed one after the other, and all at once, under load.

use crate::{
    e2e::{ANY, Load, Pillion, Upstream, get, pillion, until, until_answer},
    relay::Relay,
    servers::{EtcdServer, RedisServer, SentinelCluster, eventually, program},
};
use http::Version;
use std::{fs, net::SocketAddr, path::Path, time::Duration};
use tempfile::TempDir;
use tokio::time::Instant;

/// Longer than Sentinels take to make another one the master, on a busy machine, too.
const AFTER: Duration = Duration::from_secs(15);
const HOLD: Duration = Duration::from_secs(2);
const FAILURES: &str = "pillion_discovery_failures_total";

async fn start(folder: &Path, config: &str) -> Pillion {
    let path = folder.join("pillion.yaml");
    fs::write(&path, config).unwrap();
    Pillion::start(pillion(&["run", "--listen", ANY, "--admin", ANY, "--config"]).arg(path)).await
}

/// Over both versions of HTTP.
struct Loads([Load; 2]);

impl Loads {
    fn start(address: SocketAddr) -> Self {
        let pause = Duration::from_millis(5);
        Self([Version::HTTP_11, Version::HTTP_2].map(|version| Load::paced(address, version, "users", 2, pause)))
    }

    async fn more(&mut self, count: u64) {
        for load in &mut self.0 {
            load.more(count).await;
        }
    }

    async fn end_without_failure(self) -> u64 {
        let mut done = 0;
        for load in self.0 {
            done += load.end_without_failure().await;
        }
        done
    }
}

/// The changes from one source to another that were told, each as `FROM TO`.
fn changes(pillion: &Pillion) -> Vec<String> {
    let log = pillion.log();
    let told = log.lines().filter_map(|line| line.split_once("another source is believed now")).map(|(_, rest)| rest);
    let word = |rest: &str, name: &str| {
        let value = rest.split_once(&format!("{name}=")).unwrap().1;
        value.split_whitespace().next().unwrap().trim_matches('"').to_owned()
    };
    told.map(|rest| format!("{} {}", word(rest, "from"), word(rest, "to"))).collect()
}

#[tokio::test]
async fn etcd_then_redis_behind_sentinels_then_the_disk_and_back() {
    let (mut etcd, mut redis) =
        tokio::join!(async { EtcdServer::start(&program("etcd")).await }, SentinelCluster::start());
    let [in_etcd, in_redis, later, on_disk] = [
        Upstream::start("etcd").await,
        Upstream::start("redis").await,
        Upstream::start("later").await,
        Upstream::start("disk").await,
    ];
    etcd.put("/pillion/users/a", in_etcd.address.to_string()).await;
    redis.master.cli(&["SET", "/pillion/users/a", &in_redis.address.to_string()]);
    assert_eq!(redis.master.cli(&["WAIT", "1", "60000"]), "1");
    let folder = TempDir::new().unwrap();
    let content = format!("services: {{ users: ['{}'] }}", on_disk.address);
    fs::write(folder.path().join("instances.yaml"), content).unwrap();
    let config = format!(
        "registries:\n  etcd: {{ kind: etcd, endpoints: ['{}'] }}\n\
         \x20 redis: {{ kind: redis, sentinels: {:?}, master: mymaster, interval: 1s }}\n\
         \x20 disk: {{ kind: file, path: instances.yaml }}\n\
         discovery: {{ failover: {{ after: {}s, hold: {}s }} }}\n",
        etcd.url(),
        redis.addresses(),
        AFTER.as_secs(),
        HOLD.as_secs(),
    );
    let pillion = start(folder.path(), &config).await;
    let until_from = async |name: &str, since: Instant| {
        until_answer(pillion.egress(), "users", |_, by| by == name).await;
        since.elapsed()
    };
    until_from("etcd", Instant::now()).await;
    let mut loads = Loads::start(pillion.egress());

    let killed = Instant::now();
    etcd.kill();
    let took = until_from("redis", killed).await;
    println!("etcd killed: Redis is used {took:.1?} later (failover.after is {AFTER:?})");
    assert!(took >= AFTER && took < 2 * AFTER, "{took:?}");

    // Redis' own failover takes less than that, so that nothing farther down is used meanwhile.
    let killed = Instant::now();
    redis.master.kill();
    eventually("the replica to be the master", async || redis.replica.try_cli(&["ROLE"]).starts_with("master")).await;
    let promoted = killed.elapsed();
    redis.replica.cli(&["SET", "/pillion/users/b", &later.address.to_string()]);
    let took = until_from("later", killed).await;
    println!("Redis' master killed: another one after {promoted:.1?}, a change there is seen after {took:.1?}");
    assert_eq!(changes(&pillion), ["etcd redis"]);

    let back = Instant::now();
    etcd.restart().await;
    let up = back.elapsed();
    let took = until_from("etcd", back).await;
    println!("etcd started again: it is up after {up:.1?}, and used after {took:.1?} (failover.hold is {HOLD:?})");
    assert!(took >= HOLD, "{took:?}");
    // Those that were under way.
    until("the others to be left alone", async || {
        let before = in_redis.requests() + later.requests();
        loads.more(50).await;
        in_redis.requests() + later.requests() == before
    })
    .await;
    let (before, seen) = (in_redis.requests() + later.requests(), Instant::now());
    while seen.elapsed() < HOLD + Duration::from_secs(1) {
        loads.more(50).await;
    }
    assert_eq!(in_redis.requests() + later.requests(), before, "and only that");
    assert_eq!(changes(&pillion), ["etcd redis", "redis etcd"], "once there, once back");

    let killed = Instant::now();
    etcd.kill();
    redis.replica.kill();
    let took = until_from("disk", killed).await;
    println!("both killed: what is on disk is used {took:.1?} later");
    let back = Instant::now();
    etcd.restart().await;
    println!("etcd started again: it is used after {:.1?}", until_from("etcd", back).await);
    loads.more(100).await;
    let seen = pillion.json("/api/services/users").await;
    let in_use: Vec<_> = seen["sources"].as_array().unwrap().iter().map(|source| source["in_use"] == true).collect();
    assert_eq!(in_use, [true, false, false], "{seen:#}");
    assert_eq!(changes(&pillion), ["etcd redis", "redis etcd", "etcd disk", "disk etcd"]);
    println!("{} requests, none failed", loads.end_without_failure().await);
}

async fn write(etcd: &EtcdServer, redis: &RedisServer, in_etcd: [&Upstream; 2], in_redis: [&Upstream; 2]) {
    for Upstream { name, address, .. } in in_etcd {
        etcd.put(&format!("/pillion/users/{name}"), address.to_string()).await;
    }
    for Upstream { name, address, .. } in in_redis {
        redis.cli(&["SET", &format!("/pillion/users/{name}"), &address.to_string()]);
    }
}

#[tokio::test]
async fn all_are_killed_and_come_back_with_other_instances() {
    let (etcd, redis) = tokio::join!(async { EtcdServer::start(&program("etcd")).await }, RedisServer::notifying());
    let (mut etcd, mut redis) = (etcd, redis);
    let [a, b, c, d, e] = [
        Upstream::start("a").await,
        Upstream::start("b").await,
        Upstream::start("c").await,
        Upstream::start("d").await,
        Upstream::start("e").await,
    ];
    write(&etcd, &redis, [&a, &b], [&a, &b]).await;
    // So that each can come back with all that it has at once.
    let ways = [Relay::to(etcd.port).await, Relay::to(redis.port).await];
    let config = format!(
        "registries:\n  etcd: {{ kind: etcd, endpoints: ['http://{}'] }}\n\
         \x20 redis: {{ kind: redis, addresses: ['{}'] }}\n\
         discovery: {{ failover: {{ after: 5s, hold: 1s }}, snapshot: {{ dir: kept }} }}\n\
         services: {{ users: {{}} }}\n",
        ways[0].address(),
        ways[1].address(),
    );
    // One that stays, and one that is killed as well.
    let folders = [TempDir::new().unwrap(), TempDir::new().unwrap()];
    let (stays, dies) = tokio::join!(start(folders[0].path(), &config), start(folders[1].path(), &config));
    let mut loads = Vec::new();
    for (pillion, folder) in [(&stays, &folders[0]), (&dies, &folders[1])] {
        until_answer(pillion.egress(), "users", |status, _| status == 200).await;
        until("it to be kept", async || {
            let files = fs::read_dir(folder.path().join("kept")).into_iter().flatten();
            files.map(|file| file.unwrap().path()).any(|path| path.extension().is_none_or(|end| end != "tmp"))
        })
        .await;
        loads.push(Loads::start(pillion.egress()));
    }
    for load in &mut loads {
        load.more(50).await;
    }
    etcd.kill();
    redis.kill();
    for way in &ways {
        way.cut();
    }
    for pillion in [&stays, &dies] {
        for source in ["etcd", "redis"] {
            let failures = format!("{FAILURES}{{service=\"users\",source=\"{source}\"}}");
            until(&failures, async || pillion.metric(&failures).await > 0.0).await;
        }
    }
    for load in &mut loads {
        load.more(200).await;
    }
    println!("{} requests to the one that is killed, none failed", loads.pop().unwrap().end_without_failure().await);
    let mut dies = dies;
    dies.signal("KILL");
    assert_eq!(dies.ended().await, -9);

    let asked = Instant::now();
    let again = start(folders[1].path(), &config).await;
    let up = asked.elapsed();
    let (status, name) = get(again.egress(), "users").await.unwrap();
    println!(
        "killed and started again without a registry: up after {up:.1?}, the first answer after {:.1?}",
        asked.elapsed()
    );
    assert!(status == 200 && ["a", "b"].contains(&name.as_str()), "{status} {name}");
    // It waited for none of the registries.
    assert!(asked.elapsed() < Duration::from_secs(15), "{:?}", asked.elapsed());
    assert_eq!(again.admin_text("/ready").await, (200, "ok\nfrom snapshot: users\n".into()));
    let seen = again.json("/api/services/users").await;
    assert_eq!(
        (seen["state"].as_str(), seen["snapshot"]["source"].as_str()),
        (Some("known"), Some("etcd")),
        "{seen:#}"
    );
    for source in seen["sources"].as_array().unwrap() {
        assert!(source["instances"].is_null() && source["in_use"] == false, "{seen:#}");
    }
    assert_eq!(seen["endpoints"].as_array().unwrap().len(), 2, "{seen:#}");
    loads.push(Loads::start(again.egress()));
    for load in &mut loads {
        load.more(100).await;
    }

    // They have lost everything, and know others.
    tokio::join!(etcd.restart_empty(), redis.restart());
    write(&etcd, &redis, [&c, &d], [&d, &e]).await;
    for way in &ways {
        way.mend();
    }
    let back = Instant::now();
    until("the old ones to be left alone, and both new ones used", async || {
        let before = [&a, &b, &c, &d].map(Upstream::requests);
        for load in &mut loads {
            load.more(50).await;
        }
        let now = [&a, &b, &c, &d].map(Upstream::requests);
        now[..2] == before[..2] && now[2] > before[2] && now[3] > before[3]
    })
    .await;
    println!("back with other instances: both pillions use them after {:.1?}", back.elapsed());
    // Without a word to anybody.
    drop((a, b));
    for (pillion, mut load) in [&stays, &again].into_iter().zip(loads) {
        // The one that was back first was in use meanwhile, perhaps.
        until("etcd to be believed again", async || {
            pillion.json("/api/services/users").await["sources"][0]["in_use"] == true
        })
        .await;
        load.more(200).await;
        println!("{} requests, none failed", load.end_without_failure().await);
        assert_eq!(pillion.admin_text("/ready").await, (200, "ok\n".into()));
        let seen = pillion.json("/api/services/users").await;
        assert!(seen.get("snapshot").is_none() && seen.get("held").is_none(), "{seen:#}");
        let endpoints = seen["endpoints"].as_array().unwrap().iter().map(|endpoint| &endpoint["address"]);
        let mut endpoints: Vec<_> = endpoints.map(|address| address.as_str().unwrap().to_owned()).collect();
        let mut wanted = [&c, &d].map(|upstream| upstream.address.to_string());
        endpoints.sort();
        wanted.sort();
        assert_eq!(endpoints, wanted);
    }
}
