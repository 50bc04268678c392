//! Registering in a real Redis, alone and behind Sentinels.

use crate::{
    e2e::PATIENCE,
    pillion::Setup,
    registering::{
        App, LONG, Place, Registering, SERVICE, follows_the_application, is_deployed_under_load, is_put_again,
        outlives_a_kill, refuses_a_clash, until_failing, until_gone, until_state, until_there,
    },
    servers::{RedisServer, SentinelCluster},
};
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// On a busy machine nobody may come round to renew a shorter one in time.
const TTL: Duration = Duration::from_secs(6);
const LAYOUTS: [&str; 3] = ["plain", "dubbo", "kitex"];

struct Redis {
    server: RedisServer,
    layout: &'static str,
    more: &'static str,
}

impl Redis {
    async fn start(layout: &'static str) -> Self {
        Self { server: RedisServer::start().await, layout, more: "" }
    }

    fn key(&self) -> &'static str {
        match self.layout {
            "dubbo" => "/dubbo/users/providers",
            _ => "/kitex/users/server",
        }
    }

    /// The entries that count, by Redis's own client.
    fn entries(server: &RedisServer, layout: &str, key: &str) -> Vec<String> {
        let lines = |args: &[&str]| -> Vec<String> {
            server
                .try_cli(args)
                .lines()
                .filter(|line| line.contains(':') || line.parse::<u64>().is_ok())
                .map(str::to_owned)
                .collect()
        };
        match layout {
            "plain" => {
                let keys = server.try_cli(&["KEYS", "/pillion/users/*"]);
                keys.lines().filter(|key| !key.is_empty()).flat_map(|key| lines(&["GET", key])).collect()
            }
            "dubbo" => {
                let now: u64 = server.try_cli(&["TIME"]).lines().next().and_then(|text| text.parse().ok()).unwrap_or(0);
                let all = lines(&["HGETALL", key]);
                let lives = |pair: &&[String]| pair[1].parse::<u64>().unwrap() >= now * 1000;
                all.chunks(2).filter(lives).map(|pair| pair[0].clone()).collect()
            }
            _ => lines(&["HVALS", key]),
        }
    }
}

fn address(entry: &str) -> String {
    let from = entry.find("127.0.0.1:").unwrap_or_else(|| panic!("no address in {entry}"));
    let end = entry[from + 10..].find(|c: char| !c.is_ascii_digit());
    entry[from..end.map_or(entry.len(), |end| from + 10 + end)].to_owned()
}

impl Place for Redis {
    fn settings(&self) -> String {
        format!("kind: redis, addresses: [\"{}\"], layout: {}{}", self.server.address(), self.layout, self.more)
    }

    async fn addresses(&self) -> Vec<String> {
        Self::entries(&self.server, self.layout, self.key()).iter().map(|entry| address(entry)).collect()
    }
}

#[tokio::test]
async fn the_application_comes_and_goes_in_every_layout() {
    for layout in LAYOUTS {
        println!("{layout}");
        let redis = Redis::start(layout).await;
        follows_the_application(&redis, LONG).await;
        assert_eq!(redis.server.cli(&["DBSIZE"]), "0", "nothing is left");
    }
}

#[tokio::test]
async fn pillion_is_killed_in_every_layout() {
    for layout in LAYOUTS {
        println!("{layout}");
        outlives_a_kill(&Redis::start(layout).await, TTL, TTL).await;
    }
}

#[tokio::test]
async fn a_taken_key_is_left_alone() {
    // In the hashes an instance's id is its address.
    refuses_a_clash(&Redis::start("plain").await, TTL).await;
}

#[tokio::test]
async fn what_is_lost_is_put_again_in_every_layout() {
    for layout in LAYOUTS {
        println!("{layout}, flushed");
        is_put_again(&mut Redis::start(layout).await, TTL, async |redis| drop(redis.server.cli(&["FLUSHALL"]))).await;
        println!("{layout}, restarted empty");
        is_put_again(&mut Redis::start(layout).await, TTL, async |redis| redis.server.restart().await).await;
    }
    println!("changed");
    is_put_again(&mut Redis::start("plain").await, TTL, async |redis| {
        let key = redis.server.cli(&["KEYS", "/pillion/users/*"]);
        redis.server.cli(&["SET", key.trim(), "10.0.0.1:1"]);
        let start = Instant::now();
        while !redis.server.cli(&["GET", key.trim()]).contains("10.0.0.1") {
            assert!(start.elapsed() < PATIENCE);
        }
        redis.server.cli(&["DEL", key.trim()]);
    })
    .await;
}

#[tokio::test]
async fn what_frameworks_write_is_written() {
    let redis = Redis::start("kitex").await;
    let app = App::started().await;
    let settings = "weight: 20, version: v2, metadata: { team: shop }";
    let pillion = Registering::new(&app, TTL).with(settings).registered(&redis).await;
    let (address, key) = (app.address.to_string(), redis.key());
    let value =
        format!(r#"{{"service_name":"users","addr":"{address}","weight":20,"tags":{{"team":"shop","version":"v2"}}}}"#);
    assert_eq!(redis.server.cli(&["HGET", key, &address]), value);
    // Others' longer time to live is left to them.
    redis.server.cli(&["EXPIRE", key, "600"]);
    sleep(TTL).await;
    assert!(redis.server.cli(&["PTTL", key]).parse::<u64>().unwrap() > 500_000);
    pillion.stop().await;

    let redis = Redis::start("dubbo").await;
    redis.server.cli(&[
        "HSET",
        redis.key(),
        &format!("dubbo://{address}/users?interface=users&version=v2&weight=7"),
        "99999999999999",
    ]);
    let pillion = Registering::new(&app, TTL).with(settings).start(&redis).await;
    until_state(&pillion, "registered").await;
    // What was there of ours with other parameters is replaced.
    assert_eq!(redis.server.cli(&["HLEN", redis.key()]), "1");
    let url = redis.server.cli(&["HKEYS", redis.key()]);
    assert!(url.starts_with(&format!("dubbo://{address}/users?")), "{url}");
    for parameter in ["category=providers", "interface=users", "side=provider", "team=shop", "version=v2", "weight=20"]
    {
        assert!(url.contains(parameter), "{parameter}: {url}");
    }
}

#[tokio::test]
async fn pillions_find_it_in_every_layout() {
    for layout in LAYOUTS {
        let redis = Redis::start(layout).await;
        let mut app = App::started().await;
        let _registered = Registering::new(&app, TTL).registered(&redis).await;
        let caller =
            Setup::default().registry("real", &redis.settings()).service("users: { sources: [real] }").start().await;
        let mut peer = crate::peer::Peer::connect(caller.egress()).await;
        peer.send("GET /hello HTTP/1.1\r\nhost: users\r\n\r\n").await;
        assert_eq!(peer.response().await.text(), "/hello", "{layout}");
        assert_eq!(app.called().await, "GET /hello");
    }
}

#[tokio::test]
async fn a_replica_that_is_read_is_not_written_to() {
    let master = RedisServer::start().await;
    let of = master.port.to_string();
    let replica = RedisServer::start_with(&["--replicaof", "127.0.0.1", &of], &[]).await;
    let both = format!("{}\", \"{}", replica.address(), master.address());
    let app = App::started().await;
    let redis = Redis { server: replica, layout: "plain", more: "" };
    let pillion = Registering::new(&app, TTL).start(&redis).await;
    until_failing(&pillion, "it should be the master, and is a replica").await;
    pillion.stop().await;
    let settings = format!("kind: redis, addresses: [\"{both}\"]");
    let entry =
        format!("service: {SERVICE}, registry: real, address: 127.0.0.1, port: {}, ttl: 6s", app.address.port());
    let pillion = Setup::default().registry("real", &settings).register(&entry).start().await;
    let redis = Redis { server: master, layout: "plain", more: "" };
    until_there(&redis, &[app.address]).await;
    pillion.stop().await;
    assert_eq!(redis.addresses().await, Vec::<String>::new());
}

#[tokio::test]
async fn without_the_rights_it_is_said_so() {
    let redis = Redis { more: ", user: reader, password: secret", ..Redis::start("plain").await };
    redis.server.cli(&[
        "ACL",
        "SETUSER",
        "reader",
        "on",
        ">secret",
        "~*",
        "&*",
        "+@read",
        "+@connection",
        "+role",
        "+scan",
    ]);
    let app = App::started().await;
    let pillion = Registering::new(&app, TTL).start(&redis).await;
    until_failing(&pillion, "set").await;
    // Without the right to publish it is there all the same.
    redis.server.cli(&["ACL", "SETUSER", "reader", "+set", "+pexpire", "+del"]);
    until_there(&redis, &[app.address]).await;
    until_state(&pillion, "registered").await;
    pillion.stop().await;
    until_gone(&redis).await;
}

#[tokio::test]
async fn the_next_master_has_it() {
    let mut cluster = SentinelCluster::start().await;
    let app = App::started().await;
    let sentinels: Vec<_> = cluster.addresses().iter().map(|address| format!("\"{address}\"")).collect();
    let settings = format!("kind: redis, sentinels: [{}], master: mymaster", sentinels.join(", "));
    let entry =
        format!("service: {SERVICE}, registry: real, address: 127.0.0.1, port: {}, ttl: 6s", app.address.port());
    let pillion = Setup::default().registry("real", &settings).register(&entry).start().await;
    until_state(&pillion, "registered").await;
    cluster.master.kill();
    let start = Instant::now();
    let failed_over = loop {
        if cluster.replica.try_cli(&["ROLE"]).starts_with("master") {
            break start.elapsed();
        }
        assert!(start.elapsed() < PATIENCE, "no fail-over");
        sleep(Duration::from_millis(20)).await;
    };
    // As long as it is not renewed it goes from there, too; so it stays only if it is written again.
    let there = |server: &RedisServer| Redis::entries(server, "plain", "").len();
    let mut seen = Instant::now();
    while seen.elapsed() < PATIENCE && there(&cluster.replica) == 0 {
        sleep(Duration::from_millis(20)).await;
    }
    println!("another master after {failed_over:?}, there after {:?}", start.elapsed());
    seen = Instant::now();
    sleep(TTL + Duration::from_secs(3)).await;
    assert_eq!(there(&cluster.replica), 1, "after {:?}", seen.elapsed());
    until_state(&pillion, "registered").await;
    pillion.stop().await;
    assert_eq!(there(&cluster.replica), 0);
}

#[tokio::test]
async fn a_rolling_deployment_fails_no_request() {
    is_deployed_under_load(&Redis::start("plain").await, TTL).await;
}
