//! The Redis registry against a real server: layouts, notifications, expiry, speed, and what it costs the server.

use crate::{
    e2e::median_below,
    following::Following,
    relay::Relay,
    servers::{RedisServer, eventually},
};
use pillion::{
    config::{RedisLayout, RedisRegistry},
    registry::{Redis, Registry},
};
use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio::time::{Instant, sleep};

/// No check comes in the time of a test: what is seen was heard of.
const NO_CHECKS: Duration = Duration::from_secs(600);

fn to(redis: &RedisServer) -> RedisRegistry {
    RedisRegistry { addresses: vec![redis.address()], ..RedisRegistry::default() }
}

fn open(config: RedisRegistry) -> Arc<Redis> {
    Arc::new(Redis::new("main", &config).unwrap())
}

fn unix_milliseconds() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()
}

#[tokio::test]
async fn a_change_is_heard_of_where_redis_notifies() {
    let redis = RedisServer::notifying().await;
    let registry = open(RedisRegistry { interval: NO_CHECKS, ..to(&redis) });
    let mut users = Following::start(&registry, "users");
    users.until_set(&[]).await;
    redis.cli(&["SET", "/pillion/users/a", "10.0.0.1:80", "PX", "60000"]);
    users.until_set(&["a 10.0.0.1:80 100"]).await;
    let map = r#"{"address":"10.0.0.1:80","weight":30,"zone":"az-1","labels":{"version":"v2"}}"#;
    redis.cli(&["SET", "/pillion/users/a", map, "PX", "60000"]);
    let set = users.until_set(&["a 10.0.0.1:80 30"]).await;
    assert_eq!((set[0].zone.as_deref(), set[0].version()), (Some("az-1"), Some("v2")));
    redis.cli(&["MSET", "/pillion/users/b", "10.0.0.2:80", "/pillion/users-admin/c", "10.0.0.3:80"]);
    users.until_set(&["a 10.0.0.1:80 30", "b 10.0.0.2:80 100"]).await;
    redis.cli(&["RENAME", "/pillion/users/b", "/pillion/users/d"]);
    users.until_set(&["a 10.0.0.1:80 30", "d 10.0.0.2:80 100"]).await;

    let mut listed = registry.clone().list().await.unwrap();
    listed.sort();
    assert_eq!(listed, ["users", "users-admin"]);
    redis.cli(&["DEL", "/pillion/users/a", "/pillion/users/d"]);
    users.until_set(&[]).await;
}

#[tokio::test]
async fn names_are_no_patterns_and_other_databases_are_others() {
    let redis = RedisServer::notifying().await;
    let odd = RedisRegistry { db: 3, prefix: Some("/a*[b]?\\".into()), ..to(&redis) };
    let registry = open(RedisRegistry { interval: NO_CHECKS, ..odd });
    let mut odd = Following::start(&registry, "us?[x]*rs");
    let mut plain = Following::start(&registry, "users");
    odd.until_set(&[]).await;
    plain.until_set(&[]).await;
    let set = |db: &str, key: &str, value: &str| drop(redis.cli(&["-n", db, "SET", key, value]));
    set("3", "/a*[b]?\\/us?[x]*rs/a", "10.0.0.1:80");
    odd.until_set(&["a 10.0.0.1:80 100"]).await;
    set("0", "/a*[b]?\\/users/a", "10.0.0.2:80");
    set("3", "/axbx/users/a", "10.0.0.3:80");
    set("3", "/a*[b]?\\/users/b", "10.0.0.4:80");
    plain.until_set(&["b 10.0.0.4:80 100"]).await;
    assert_eq!(registry.list().await.unwrap(), ["us?[x]*rs", "users"]);
}

#[tokio::test]
async fn without_notifications_a_change_is_seen_within_the_interval() {
    let redis = RedisServer::start().await;
    let interval = Duration::from_millis(500);
    let registry = open(RedisRegistry { interval, ..to(&redis) });
    let mut users = Following::start(&registry, "users");
    let dubbo = open(RedisRegistry { interval, layout: RedisLayout::Kitex, ..to(&redis) });
    let mut hash = Following::start(&dubbo, "users");
    users.until_set(&[]).await;
    hash.until_set(&[]).await;
    let limit = interval + Duration::from_millis(150);
    let mut n = 0;
    median_below("redis: checked each 500 ms, keys", limit, async || {
        let mut times = Vec::new();
        for _ in 0..10 {
            n += 1;
            let start = Instant::now();
            redis.cli(&["SET", "/pillion/users/a", &format!("10.0.0.{n}:80")]);
            users.until_set(&[&format!("a 10.0.0.{n}:80 100")]).await;
            times.push(start.elapsed());
        }
        times
    })
    .await;
    median_below("redis: checked each 500 ms, a hash", limit, async || {
        let mut times = Vec::new();
        for _ in 0..10 {
            n += 1;
            let start = Instant::now();
            let value = format!(r#"{{"service_name":"users","addr":"10.0.0.1:80","weight":{n},"tags":{{}}}}"#);
            redis.cli(&["HSET", "/kitex/users/server", "10.0.0.1:80", &value]);
            hash.until_set(&[&format!("10.0.0.1:80 10.0.0.1:80 {n}")]).await;
            times.push(start.elapsed());
        }
        times
    })
    .await;
}

#[tokio::test]
async fn who_writes_may_say_so() {
    let redis = RedisServer::start().await;
    let mut users = Following::start(&open(RedisRegistry { interval: NO_CHECKS, ..to(&redis) }), "users");
    users.until_set(&[]).await;
    redis.cli(&["MSET", "/pillion/users/a", "10.0.0.1:80", "/pillion/users/b", "10.0.0.2:80"]);
    assert_eq!(redis.cli(&["PUBLISH", "/pillion/users", "a"]), "1");
    users.until_set(&["a 10.0.0.1:80 100"]).await;
    // Nothing in particular is everything.
    redis.cli(&["PUBLISH", "/pillion/users", ""]);
    users.until_set(&["a 10.0.0.1:80 100", "b 10.0.0.2:80 100"]).await;
    redis.cli(&["DEL", "/pillion/users/a"]);
    redis.cli(&["PUBLISH", "/pillion/users", "a"]);
    users.until_set(&["b 10.0.0.2:80 100"]).await;
}

/// Redis says that a key has expired when it deletes it, which may be long after, and mostly says nothing.
#[tokio::test]
async fn what_expires_is_gone_at_that_moment() {
    let redis = RedisServer::start_with(&["--hz", "1"], &[]).await;
    let registry = open(RedisRegistry { interval: NO_CHECKS, ..to(&redis) });
    redis.cli(&["SET", "/pillion/users/stays", "10.0.0.9:80"]);
    // All of them must have been seen before the first one goes, and what is said of `b` later before that goes.
    let start = Instant::now();
    redis.cli(&["SET", "/pillion/users/a", "10.0.0.1:80", "PX", "5000"]);
    redis.cli(&["SET", "/pillion/users/b", "10.0.0.2:80", "PX", "12000"]);
    let mut users = Following::start(&registry, "users");
    users.until_set(&["a 10.0.0.1:80 100", "b 10.0.0.2:80 100", "stays 10.0.0.9:80 100"]).await;
    users.until_set(&["b 10.0.0.2:80 100", "stays 10.0.0.9:80 100"]).await;
    let first = start.elapsed();
    // Written again, it lives on. (This only says so because nothing else does.)
    let again = Instant::now();
    redis.cli(&["PEXPIRE", "/pillion/users/b", "10000"]);
    redis.cli(&["PUBLISH", "/pillion/users", "b"]);
    users.until_set(&["stays 10.0.0.9:80 100"]).await;
    let second = again.elapsed();
    println!("redis: expiry after 5 s was seen after {first:.1?}, after 10 s after {second:.1?}");
    // Never too soon. Nothing else than its own clock tells it, so that it is seen at all says that it looks at that; the time
    // above it is the machine's.
    assert!((Duration::from_secs(5)..Duration::from_secs(8)).contains(&first), "{first:?}");
    assert!((Duration::from_secs(10)..Duration::from_secs(13)).contains(&second), "{second:?}");

    let kitex = open(RedisRegistry { interval: NO_CHECKS, layout: RedisLayout::Kitex, ..to(&redis) });
    let value = r#"{"service_name":"users","addr":"10.0.0.1:80","weight":10,"tags":null}"#;
    redis.cli(&["HSET", "/kitex/users/server", "10.0.0.1:80", value]);
    let start = Instant::now();
    redis.cli(&["PEXPIRE", "/kitex/users/server", "5000"]);
    let mut users = Following::start(&kitex, "users");
    users.until_set(&["10.0.0.1:80 10.0.0.1:80 10"]).await;
    users.until_set(&[]).await;
    let took = start.elapsed();
    assert!((Duration::from_secs(5)..Duration::from_secs(8)).contains(&took), "{took:?}");
}

/// Byte for byte what `RedisRegistry` of apache/dubbo-spi-extensions sends: `HSET` and then `PUBLISH` on the same key, the
/// URL as `toFullString` writes it, with nothing encoded, and the time when it expires.
#[tokio::test]
async fn dubbo_providers_register_renew_and_expire() {
    const KEY: &str = "/dubbo/com.foo.Bar/providers";
    let redis = RedisServer::start().await;
    let registry = open(RedisRegistry { interval: NO_CHECKS, layout: RedisLayout::Dubbo, ..to(&redis) });
    let mut bar = Following::start(&registry, "com.foo.Bar");
    bar.until_set(&[]).await;
    let url = |host: u8, more: &str| {
        format!(
            "dubbo://10.0.0.{host}:20880/com.foo.Bar?anyhost=true&application=bar&deprecated=false&dubbo=2.0.2&dynamic=true\
             &generic=false&interface=com.foo.Bar&methods=hello,bye&pid=4711&release=3.2.9&revision=1.0.0&side=provider\
             &timestamp=1795286782126&version=1.0.0{more}"
        )
    };
    let register = |url: &str, lives: i64| {
        let expires = i64::try_from(unix_milliseconds()).unwrap() + lives;
        if redis.cli(&["HSET", KEY, url, &expires.to_string()]) == "1" {
            assert_eq!(redis.cli(&["PUBLISH", KEY, "register"]), "1");
        }
    };
    let shown =
        |host: u8, weight: u32| format!("dubbo://10.0.0.{host}:20880?version=1.0.0 10.0.0.{host}:20880 {weight}");
    register(&url(1, ""), 60_000);
    let set = bar.until_set(&[&shown(1, 100)]).await;
    assert_eq!((set[0].version(), set[0].labels["methods"].as_str()), (Some("1.0.0"), "hello,bye"));
    let start = Instant::now();
    register(&url(2, "&weight=50"), 5000);
    bar.until_set(&[&shown(1, 100), &shown(2, 50)]).await;
    // It does not renew; nobody says that it is gone, and its field stays until some Dubbo administration removes it.
    bar.until_set(&[&shown(1, 100)]).await;
    let took = start.elapsed();
    assert!((Duration::from_secs(5)..Duration::from_secs(8)).contains(&took), "{took:?}");
    assert_eq!(redis.cli(&["HLEN", KEY]), "2");
    // The same one renews, which is not published either.
    register(&url(2, "&weight=50"), 60_000);
    register(&url(3, "&weight=20"), 60_000);
    bar.until_set(&[&shown(1, 100), &shown(2, 50), &shown(3, 20)]).await;
    let other = Following::start(&registry, "com.foo.Bar:2.0.0").until_set(&[]).await;
    assert!(other.is_empty());

    let mut listed = registry.clone().list().await.unwrap();
    listed.sort();
    assert_eq!(listed, ["com.foo.Bar"]);
    for host in 1..=3 {
        let more = ["", "&weight=50", "&weight=20"][usize::from(host) - 1];
        assert_eq!(redis.cli(&["HDEL", KEY, &url(host, more)]), "1");
        redis.cli(&["PUBLISH", KEY, "unregister"]);
    }
    bar.until_set(&[]).await;
}

/// What Kitex's `registry-redis` does to register, renew and deregister, and Hertz's under another prefix.
#[tokio::test]
async fn kitex_and_hertz_register_renew_and_deregister() {
    let redis = RedisServer::start().await;
    for (prefix, key) in [(None, "/kitex/users/server"), (Some("/hertz".to_owned()), "/hertz/users/server")] {
        let layout = RedisLayout::Kitex;
        let registry = open(RedisRegistry { interval: NO_CHECKS, layout, prefix, ..to(&redis) });
        let mut users = Following::start(&registry, "users");
        users.until_set(&[]).await;
        let register = |address: &str, weight: i32| {
            let value = format!(
                r#"{{"service_name":"users","addr":"{address}","weight":{weight},"tags":{{"version":"v2","zone":"az-1"}}}}"#
            );
            redis.cli(&["HSET", key, address, &value]);
            redis.cli(&["EXPIRE", key, "60"]);
            redis.cli(&["PUBLISH", key, &format!("register-users-{address}")]);
        };
        register("10.0.0.1:8888", 10);
        register("10.0.0.2:8888", 20);
        let set = users.until_set(&["10.0.0.1:8888 10.0.0.1:8888 10", "10.0.0.2:8888 10.0.0.2:8888 20"]).await;
        assert_eq!((set[0].version(), set[0].zone.as_deref()), (Some("v2"), Some("az-1")));
        assert_eq!(registry.clone().list().await.unwrap(), ["users"]);
        redis.cli(&["HDEL", key, "10.0.0.1:8888"]);
        redis.cli(&["PUBLISH", key, "deregister-users-10.0.0.1:8888"]);
        users.until_set(&["10.0.0.2:8888 10.0.0.2:8888 20"]).await;
        redis.cli(&["DEL", key]);
        redis.cli(&["PUBLISH", key, "deregister-users-10.0.0.2:8888"]);
        users.until_set(&[]).await;
    }
}

#[tokio::test]
async fn one_bad_value_hides_no_other() {
    let redis = RedisServer::notifying().await;
    let mut users = Following::start(&open(RedisRegistry { interval: NO_CHECKS, ..to(&redis) }), "users");
    redis.cli(&["SET", "/pillion/users/a", "10.0.0.1:80"]);
    redis.cli(&["SET", "/pillion/users/bad", "{"]);
    redis.cli(&["HSET", "/pillion/users/hash", "f", "v"]);
    users.until_set(&["a 10.0.0.1:80 100"]).await;
    redis.cli(&["SET", "/pillion/users/b", "10.0.0.2:80"]);
    users.until_set(&["a 10.0.0.1:80 100", "b 10.0.0.2:80 100"]).await;
    // One that was readable stays as it was until it is readable again, or gone.
    redis.cli(&["SET", "/pillion/users/a", "nonsense"]);
    redis.cli(&["SET", "/pillion/users/b", "10.0.0.3:80"]);
    users.until_set(&["a 10.0.0.1:80 100", "b 10.0.0.3:80 100"]).await;
    redis.cli(&["DEL", "/pillion/users/a"]);
    users.until_set(&["b 10.0.0.3:80 100"]).await;
    // The hash of a whole service that is none is an error, and no empty set.
    let kitex = open(RedisRegistry { layout: RedisLayout::Kitex, ..to(&redis) });
    redis.cli(&["SET", "/kitex/users/server", "x"]);
    let failure = Following::start(&kitex, "users").until_failure(&[]).await;
    assert!(failure.contains("WRONGTYPE"), "{failure}");
}

#[tokio::test]
async fn two_hundred_services_share_two_connections() {
    let redis = RedisServer::notifying().await;
    let mut writer = redis.connection().await;
    for service in 0..200 {
        for instance in 0..20 {
            let line = format!("SET /pillion/s{service}/{instance} 10.0.{service}.{instance}:80 PX 600000");
            assert_eq!(writer.command(&line).await, "+OK\r\n");
        }
    }
    drop(writer);
    let relay = Relay::to(redis.port).await;
    let interval = Duration::from_secs(2);
    let registry = open(RedisRegistry { addresses: vec![relay.address()], interval, ..RedisRegistry::default() });
    let start = Instant::now();
    let mut followers: Vec<_> = (0..200).map(|n| Following::start(&registry, &format!("s{n}"))).collect();
    for follower in &mut followers {
        follower.until("all of it", |seen| seen.instances.as_ref().is_some_and(|set| set.len() == 20)).await;
    }
    println!("redis: 200 services of 20 instances were read in {:.0?}", start.elapsed());
    assert_eq!(relay.connections(), 2);
    eventually("two clients", async || redis.clients() == 2).await;

    let commands = ["scan", "get", "pttl", "role", "ping", "subscribe", "psubscribe"];
    let calls = || commands.map(|command| redis.calls(command));
    let difference = |before: [usize; 7]| -> String {
        let now = calls();
        let each = commands
            .iter()
            .zip(now)
            .zip(before)
            .map(|((command, now), before)| format!("{command} {:.0}", (now - before) as f64 / 10.0));
        each.collect::<Vec<_>>().join(", ")
    };
    // At 4,000 keys in steps of 1,000, for all services together.
    let looks = |start: Instant| 1 + start.elapsed().as_secs() as usize / 2;
    let (before, start) = (calls(), Instant::now());
    sleep(Duration::from_secs(10)).await;
    println!("redis: commands per second, idle, checked each {interval:?}: {}", difference(before));
    let scans = calls()[0] - before[0];
    assert!(scans <= 7 * looks(start), "{scans}");
    eventually("more looks", async || calls()[0] - before[0] >= 16).await;
    let (before, start) = (calls(), Instant::now());
    for n in 0..10 {
        redis.cli(&["SET", "/pillion/s7/0", &format!("10.0.7.99:{}", 80 + n), "PX", "600000"]);
        sleep(Duration::from_secs(1)).await;
    }
    println!("redis: the same with one change per second: {}", difference(before));
    assert!(calls()[0] - before[0] <= 7 * looks(start), "a change takes no look at all keys");
    followers[7]
        .until("the last change", |seen| {
            seen.instances.as_ref().unwrap().iter().any(|instance| instance.address.port() == 89)
        })
        .await;
    assert_eq!(relay.connections(), 2);
    // Who is dropped leaves nothing behind: the server counts.
    drop(followers);
    let mut one = Following::start(&registry, "s0");
    one.until("all of it", |seen| seen.instances.as_ref().is_some_and(|set| set.len() == 20)).await;
    eventually("one subscription", async || redis.cli(&["PUBSUB", "NUMPAT"]) == "1").await;
}

#[tokio::test]
async fn a_change_arrives_in_less_than_20_ms() {
    for (what, redis) in [("notified", RedisServer::notifying().await), ("published", RedisServer::start().await)] {
        let mut writer = redis.connection().await;
        for n in 0..100 {
            writer.command(&format!("SET /pillion/users/{n} 10.0.0.1:80 PX 600000")).await;
        }
        let mut users = Following::start(&open(RedisRegistry { interval: NO_CHECKS, ..to(&redis) }), "users");
        users.until("the first set", |seen| seen.instances.as_ref().is_some_and(|set| set.len() == 100)).await;
        let mut port = 80;
        let measured = format!("redis, {what}: from the start of the SET to the sink");
        median_below(&measured, Duration::from_millis(20), async || {
            let mut times = Vec::new();
            port += 1;
            for n in 0..100 {
                users.mark_seen();
                let start = Instant::now();
                writer.command(&format!("SET /pillion/users/{n} 10.0.0.1:{port} PX 600000")).await;
                if what == "published" {
                    assert_eq!(writer.command(&format!("PUBLISH /pillion/users {n}")).await, ":1\r\n");
                }
                users.changed().await;
                times.push(start.elapsed());
            }
            times
        })
        .await;
    }
}

#[tokio::test]
async fn a_thousand_services_are_listed_and_a_large_one_is_read_whole() {
    let redis = RedisServer::start().await;
    let mut writer = redis.connection().await;
    for n in 0..6000 {
        let key = if n < 1000 { format!("/pillion/s{n:04}/a") } else { format!("/pillion/large/{n}") };
        writer.command(&format!("SET {key} 10.1.{}.{}:80", n / 250, n % 250)).await;
    }
    let registry = open(to(&redis));
    let start = Instant::now();
    let listed = registry.clone().list().await.unwrap();
    println!("redis: {} services of 6,000 keys listed in {:.1?}", listed.len(), start.elapsed());
    assert_eq!(listed.len(), 1001);
    let start = Instant::now();
    let mut large = Following::start(&registry, "large");
    large.until("all of them", |seen| seen.instances.as_ref().is_some_and(|set| set.len() == 5000)).await;
    println!("redis: 5,000 instances read in {:.1?}", start.elapsed());
}
