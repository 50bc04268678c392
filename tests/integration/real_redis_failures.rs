//! The Redis registry when servers die, hang, refuse, or are not what they should be; Sentinels and their fail-over.

use crate::{
    following::Following,
    relay::{Fault, Faults, Relay, Way},
    servers::{Certificates, NOTIFYING, RedisServer, SentinelCluster, eventually, free_port},
};
use pillion::{
    config::{RedisLayout, RedisRegistry, Secret, Tls},
    registry::{Observation, Redis, Registry, sink},
};
use std::{sync::Arc, time::Duration};
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep},
};

/// No check comes in the time of a test.
const NO_CHECKS: Duration = Duration::from_secs(600);

fn to(address: String) -> RedisRegistry {
    RedisRegistry { addresses: vec![address], interval: Duration::from_millis(500), ..RedisRegistry::default() }
}

fn open(config: RedisRegistry) -> Arc<Redis> {
    Arc::new(Redis::new("main", &config).unwrap())
}

/// Counts how small the set of a service becomes once it has been there.
struct Smallest(JoinHandle<usize>);

impl Smallest {
    fn watch(registry: &Arc<Redis>, service: &str) -> Self {
        let (sink, mut seen) = sink();
        let following = registry.clone().follow(service.into(), sink);
        Self(tokio::spawn(async move {
            let follower = tokio::spawn(following);
            let mut smallest = usize::MAX;
            // Ends when the follower is aborted by the one instance that a test adds at its end.
            while smallest == usize::MAX
                || !seen.borrow().instances.iter().flat_map(|set| set.iter()).any(|i| i.id == "end")
            {
                seen.changed().await.unwrap();
                if let Some(set) = &seen.borrow_and_update().instances
                    && !(smallest == usize::MAX && set.is_empty())
                {
                    smallest = smallest.min(set.len());
                }
            }
            follower.abort();
            smallest
        }))
    }

    async fn seen(self) -> usize {
        self.0.await.unwrap()
    }
}

#[tokio::test]
async fn a_server_that_is_killed_empties_nothing_and_is_found_again() {
    let mut redis = RedisServer::notifying().await;
    redis.cli(&["SET", "/pillion/users/a", "10.0.0.1:80"]);
    redis.save();
    let registry = open(to(redis.address()));
    let mut users = Following::start(&registry, "users");
    users.until_set(&["a 10.0.0.1:80 100"]).await;
    redis.kill();
    let failure = users.until_failure(&["a 10.0.0.1:80 100"]).await;
    assert!(failure.starts_with("cannot reach 127.0.0.1:"), "{failure}");
    redis.restart().await;
    users.until_set(&["a 10.0.0.1:80 100"]).await;
    redis.cli(&["SET", "/pillion/users/b", "10.0.0.2:80"]);
    users.until_set(&["a 10.0.0.1:80 100", "b 10.0.0.2:80 100"]).await;
    // An answer is an answer, also that there is nothing.
    redis.cli(&["FLUSHALL"]);
    redis.save();
    redis.restart().await;
    users.until_set(&[]).await;
}

#[tokio::test]
async fn a_server_that_hangs_is_noticed() {
    for interval in [Duration::from_millis(500), NO_CHECKS] {
        let redis = RedisServer::start().await;
        redis.cli(&["SET", "/pillion/users/a", "10.0.0.1:80"]);
        let mut users = Following::start(&open(RedisRegistry { interval, ..to(redis.address()) }), "users");
        users.until_set(&["a 10.0.0.1:80 100"]).await;
        redis.signal("STOP");
        let start = Instant::now();
        users.until_failure(&["a 10.0.0.1:80 100"]).await;
        let took = start.elapsed();
        println!("redis: a hanging server was noticed after {took:.1?}, checked each {interval:?}");
        // By a question each 4 s that has to be answered within 5 s.
        assert!(took < Duration::from_secs(25), "{took:?}");
        redis.signal("CONT");
        users.until_set(&["a 10.0.0.1:80 100"]).await;
    }
}

#[tokio::test]
async fn a_silent_cut_is_noticed() {
    let redis = RedisServer::notifying().await;
    redis.cli(&["SET", "/pillion/users/a", "10.0.0.1:80"]);
    let relay = Relay::to(redis.port).await;
    let registry = open(RedisRegistry { interval: NO_CHECKS, ..to(relay.address()) });
    let mut users = Following::start(&registry, "users");
    users.until_set(&["a 10.0.0.1:80 100"]).await;
    relay.silence();
    let start = Instant::now();
    redis.cli(&["SET", "/pillion/users/b", "10.0.0.2:80"]);
    let failure = users.until_failure(&["a 10.0.0.1:80 100"]).await;
    println!("redis: a silent cut was noticed after {:.1?}: {failure}", start.elapsed());
    assert!(start.elapsed() < Duration::from_secs(25), "{:?}", start.elapsed());
    relay.mend();
    users.until_set(&["a 10.0.0.1:80 100", "b 10.0.0.2:80 100"]).await;
}

#[tokio::test]
async fn a_connection_for_messages_that_hears_nothing_is_noticed() {
    let redis = RedisServer::notifying().await;
    redis.cli(&["SET", "/pillion/users/a", "10.0.0.1:80"]);
    // The first one is for commands. The second hears the answer to its login, and then nothing.
    let deaf = |number| if number == 1 { Faults::down(Way::after(7, Fault::Swallow)) } else { Faults::default() };
    let relay = Relay::with(redis.port, deaf).await;
    let mut users = Following::start(&open(to(relay.address())), "users");
    let failure = users.until_failure(&[]).await;
    assert!(failure.contains("on the connection for messages"), "{failure}");
    users.until_set(&["a 10.0.0.1:80 100"]).await;
    assert_eq!(relay.connections(), 4);
}

#[tokio::test]
async fn of_several_addresses_one_that_works_is_found() {
    let redis = RedisServer::notifying().await;
    redis.cli(&["SET", "/pillion/users/a", "10.0.0.1:80"]);
    let (one, other) = (Relay::to(redis.port).await, Relay::to(redis.port).await);
    let addresses = vec![format!("127.0.0.1:{}", free_port()), one.address(), other.address()];
    let registry = open(RedisRegistry { addresses, ..RedisRegistry::default() });
    let mut users = Following::start(&registry, "users");
    users.until_set(&["a 10.0.0.1:80 100"]).await;
    for id in ["b", "c"] {
        // Whichever of them was in use, the next one takes over.
        let (cut, kept) = if id == "b" { (&one, &other) } else { (&other, &one) };
        kept.mend();
        cut.cut();
        let key = format!("/pillion/users/{id}");
        redis.cli(&["SET", &key, "10.0.0.9:80"]);
        users.until_set(&["a 10.0.0.1:80 100", &format!("{id} 10.0.0.9:80 100")]).await;
        redis.cli(&["DEL", &key]);
        users.until_set(&["a 10.0.0.1:80 100"]).await;
    }
}

/// To a replica without its master, keys that nobody could renew there have expired.
#[tokio::test]
async fn a_replica_that_lost_its_master_is_not_believed() {
    for (stale, expected) in [("yes", "a replica without its master"), ("no", "MASTERDOWN")] {
        let mut master = RedisServer::start().await;
        let port = master.port.to_string();
        let args = ["--replicaof", "127.0.0.1", &port, "--replica-serve-stale-data", stale];
        let replica = RedisServer::start_with(&[&NOTIFYING[..], &args].concat(), &[]).await;
        eventually("the replica to be one", async || replica.try_cli(&["ROLE"]).contains("connected")).await;
        let registry = open(RedisRegistry { interval: NO_CHECKS, ..to(replica.address()) });
        let mut users = Following::start(&registry, "users");
        users.until_set(&[]).await;
        // So long that it is seen, and the master is gone, before its time is over.
        master.cli(&["SET", "/pillion/users/a", "10.0.0.1:80", "PX", "6000"]);
        users.until_set(&["a 10.0.0.1:80 100"]).await;
        master.kill();
        eventually("what would have been believed", async || {
            !replica.try_cli(&["EXISTS", "/pillion/users/a"]).contains('1')
        })
        .await;
        let failed = |seen: &Observation| seen.failure.as_ref().is_some_and(|it| it.to_string().contains(expected));
        users.until(expected, failed).await;
        users.until_failure(&["a 10.0.0.1:80 100"]).await;
        // Back, and empty: the replica is emptied, and now that is the truth.
        master.restart().await;
        users.until_set(&[]).await;
    }
}

#[tokio::test]
async fn users_and_passwords() {
    let auth = ["-a", "secret", "--no-auth-warning"];
    let redis = RedisServer::start_with(&[&NOTIFYING[..], &["--requirepass", "secret"]].concat(), &auth).await;
    redis.cli(&["SET", "/pillion/users/a", "10.0.0.1:80"]);
    // All that is needed, as the documentation has it.
    let needed = ["~/pillion/*", "+ping", "+role", "+hello", "+select", "+scan", "+get", "+pttl", "+hgetall", "+time"];
    let channels = ["&*", "+subscribe", "+psubscribe", "+unsubscribe", "+punsubscribe"];
    let add = |name: &str, rights: &[&[&str]]| {
        let on = ["ACL", "SETUSER", name, "reset", "on", ">hunter2"];
        redis.cli(&[&on[..], &rights.concat()].concat());
    };
    add("reader", &[&needed, &channels]);
    add("deaf", &[&needed]);
    add("no-role", &[&needed, &channels, &["-role"]]);
    add("no-ping", &[&needed, &channels, &["-ping"]]);
    add("other", &[&["~/other/*"], &needed[1..], &channels]);
    let as_user = |user: Option<&str>, password: Option<&str>, interval| {
        let (user, password) = (user.map(Into::into), password.map(Secret::new));
        open(RedisRegistry { user, password, interval, ..to(redis.address()) })
    };
    for (user, password) in [(None, "secret"), (Some("default"), "secret"), (Some("reader"), "hunter2")] {
        let mut users = Following::start(&as_user(user, Some(password), NO_CHECKS), "users");
        users.until_set(&["a 10.0.0.1:80 100"]).await;
        redis.cli(&["SET", "/pillion/users/b", "10.0.0.2:80"]);
        users.until_set(&["a 10.0.0.1:80 100", "b 10.0.0.2:80 100"]).await;
        redis.cli(&["DEL", "/pillion/users/b"]);
        users.until_set(&["a 10.0.0.1:80 100"]).await;
    }
    // Without a right to the channels there are still the checks.
    let mut users = Following::start(&as_user(Some("deaf"), Some("hunter2"), Duration::from_millis(300)), "users");
    users.until_set(&["a 10.0.0.1:80 100"]).await;
    redis.cli(&["SET", "/pillion/users/b", "10.0.0.2:80"]);
    users.until_set(&["a 10.0.0.1:80 100", "b 10.0.0.2:80 100"]).await;

    for (user, password, expected) in [
        (None, None, "NOAUTH Authentication required. (set `password`"),
        (None, Some("wrong"), "WRONGPASS"),
        (Some("reader"), Some("wrong"), "(check `user` and `password`)"),
        (Some("nobody"), Some("hunter2"), "WRONGPASS"),
        (Some("no-role"), Some("hunter2"), "must be allowed `+role`"),
        (Some("no-ping"), Some("hunter2"), "no permissions to run the 'ping' command"),
    ] {
        let registry = as_user(user, password, NO_CHECKS);
        let failure = Following::start(&registry, "users").until_failure(&[]).await;
        let server = redis.address();
        assert!(failure.starts_with(&format!("{server} refused: ")) && failure.contains(expected), "{failure}");
        let failure = registry.list().await.unwrap_err().to_string();
        assert!(failure.contains(expected), "{failure}");
    }
    // It keeps trying, and may read in the end.
    let mut late = Following::start(&as_user(Some("late"), Some("hunter2"), NO_CHECKS), "users");
    late.until_failure(&[]).await;
    add("late", &[&needed, &channels]);
    late.until_set(&["a 10.0.0.1:80 100", "b 10.0.0.2:80 100"]).await;
    // Rights to other keys are none to these; each service is told by itself.
    let hash = RedisRegistry { layout: RedisLayout::Kitex, prefix: Some("/pillion".into()), ..to(redis.address()) };
    let hash = RedisRegistry { user: Some("other".into()), password: Some(Secret::new("hunter2")), ..hash };
    let failure = Following::start(&open(hash), "users").until_failure(&[]).await;
    assert!(failure.contains("refused: NOPERM"), "{failure}");

    let far = RedisRegistry { db: 99, password: Some(Secret::new("secret")), ..to(redis.address()) };
    let failure = Following::start(&open(far), "users").until_failure(&[]).await;
    assert!(failure.contains("DB index is out of range"), "{failure}");
}

#[tokio::test]
async fn tls_with_a_client_certificate() {
    let dir = tempfile::tempdir().unwrap();
    let certificates = Certificates::make(dir.path());
    let path = |name: &str| dir.path().join(name);
    let text = |name: &str| path(name).to_str().unwrap().to_owned();
    let (ca, cert, key) = (text("ca.pem"), text("server.pem"), text("server.key"));
    let args = ["--port", "0", "--tls-port", "PORT", "--tls-ca-cert-file", &ca, "--tls-cert-file", &cert];
    let args = [&args[..], &["--tls-key-file", &key], &NOTIFYING].concat();
    let (client_cert, client_key) = (text("client.pem"), text("client.key"));
    let cli = ["--tls", "--cacert", &ca, "--cert", &client_cert, "--key", &client_key];
    let redis = RedisServer::start_with(&args, &cli).await;
    redis.cli(&["SET", "/pillion/users/a", "10.0.0.1:80"]);
    let using = |tls| open(RedisRegistry { tls, interval: NO_CHECKS, ..to(redis.address()) });
    let whole = Tls {
        ca: Some(path("ca.pem")),
        cert: Some(path("client.pem")),
        key: Some(path("client.key")),
        server_name: None,
    };
    let mut users = Following::start(&using(Some(whole.clone())), "users");
    users.until_set(&["a 10.0.0.1:80 100"]).await;
    redis.cli(&["SET", "/pillion/users/b", "10.0.0.2:80"]);
    users.until_set(&["a 10.0.0.1:80 100", "b 10.0.0.2:80 100"]).await;

    let anonymous = Tls { cert: None, key: None, ..whole.clone() };
    let wrong_name = Tls { server_name: Some("other.internal".into()), ..whole.clone() };
    let strange_authority = Tls { ca: Some(certificates.stranger), ..whole.clone() };
    for (tls, expected) in [
        (Some(anonymous), "certificate"),
        (Some(wrong_name), "other.internal"),
        (Some(strange_authority), "UnknownIssuer"),
        (None, "does it expect TLS?"),
    ] {
        let failure = Following::start(&using(tls), "users").until_failure(&[]).await;
        assert!(failure.contains(expected), "{failure}");
    }
    let plain = RedisServer::start().await;
    let registry = open(RedisRegistry { tls: Some(whole), ..to(plain.address()) });
    let failure = Following::start(&registry, "users").until_failure(&[]).await;
    assert!(failure.contains("TLS"), "{failure}");
}

fn behind(cluster: &SentinelCluster) -> RedisRegistry {
    RedisRegistry { sentinels: cluster.addresses(), master: Some("mymaster".into()), ..RedisRegistry::default() }
}

#[tokio::test]
async fn a_fail_over_is_followed_and_empties_nothing() {
    let mut cluster = SentinelCluster::start().await;
    let registry = open(RedisRegistry { interval: Duration::from_millis(500), ..behind(&cluster) });
    for id in ["a", "b"] {
        cluster.master.cli(&["SET", &format!("/pillion/users/{id}"), "10.0.0.1:80"]);
    }
    assert_eq!(cluster.master.cli(&["WAIT", "1", "60000"]), "1");
    let mut users = Following::start(&registry, "users");
    let smallest = Smallest::watch(&registry, "users");
    let both = ["a 10.0.0.1:80 100", "b 10.0.0.1:80 100"];
    users.until_set(&both).await;

    let killed = Instant::now();
    cluster.master.kill();
    users.until_failure(&both).await;
    eventually("the replica to be the master", async || cluster.replica.try_cli(&["ROLE"]).starts_with("master")).await;
    let promoted = killed.elapsed();
    cluster.replica.cli(&["SET", "/pillion/users/c", "10.0.0.3:80"]);
    let all = [both[0], both[1], "c 10.0.0.3:80 100"];
    users.until_set(&all).await;
    println!(
        "redis: master killed, the other one promoted after {promoted:.1?}, followed after {:.1?}",
        killed.elapsed()
    );

    // The old one comes back with nothing, and takes itself for a master until a Sentinel tells it.
    cluster.master.restart().await;
    assert_eq!(cluster.master.cli(&["DBSIZE"]), "0");
    sleep(Duration::from_secs(1)).await;
    eventually("it to be a replica", async || cluster.master.try_cli(&["ROLE"]).starts_with("slave")).await;
    cluster.replica.cli(&["SET", "/pillion/users/end", "10.0.0.4:80"]);
    users.until_set(&[all[0], all[1], all[2], "end 10.0.0.4:80 100"]).await;
    // It may have seen its first set only after the fail-over.
    let smallest = smallest.seen().await;
    assert!(smallest >= 2, "a set was smaller: {smallest}");
}

/// A master that hangs closes no connection: that it is one no more is known only from the Sentinels.
#[tokio::test]
async fn the_news_of_a_switch_ends_the_old_connection() {
    let mut cluster = SentinelCluster::start().await;
    let registry = open(RedisRegistry { interval: NO_CHECKS, ..behind(&cluster) });
    cluster.master.cli(&["SET", "/pillion/users/a", "10.0.0.1:80"]);
    assert_eq!(cluster.master.cli(&["WAIT", "1", "60000"]), "1");
    let mut users = Following::start(&registry, "users");
    users.until_set(&["a 10.0.0.1:80 100"]).await;
    let registry_only = |line: &&str| line.contains(" name= ") && !line.contains("cmd=client|list");
    eventually("two connections to the master", async || {
        // The Sentinels' have names, and the replica's another type.
        ["normal", "pubsub"].map(|kind| {
            let list = cluster.master.cli(&["CLIENT", "LIST", "TYPE", kind]);
            list.lines().filter(registry_only).count()
        }) == [1, 1]
    })
    .await;
    // Nobody depends on one Sentinel.
    cluster.kill_sentinel(0);
    let paused = Instant::now();
    cluster.master.signal("STOP");
    let failure = users.until_failure(&["a 10.0.0.1:80 100"]).await;
    println!("redis: master paused, left after {:.1?}: {failure}", paused.elapsed());
    assert!(failure.contains(&format!("the master is now {}", cluster.replica.address())), "{failure}");
    users.until_set(&["a 10.0.0.1:80 100"]).await;
    // The old one wakes up, has what it had, and takes itself for the master. Nobody listens.
    cluster.master.signal("CONT");
    let _ = cluster.master.try_cli(&["SET", "/pillion/users/ghost", "10.0.0.9:80"]);
    cluster.replica.cli(&["SET", "/pillion/users/b", "10.0.0.2:80"]);
    users.until_set(&["a 10.0.0.1:80 100", "b 10.0.0.2:80 100"]).await;
    // A Sentinel may order a change of places as well, which breaks no connection before it is said.
    eventually("it to be a replica", async || cluster.replica.cli(&["INFO", "replication"]).contains("state=online"))
        .await;
    eventually("the Sentinels to know it", async || {
        cluster.ask_sentinel(1, &["SENTINEL", "FAILOVER", "mymaster"]) == "OK"
    })
    .await;
    eventually("the first to be the master", async || cluster.master.try_cli(&["ROLE"]).starts_with("master")).await;
    cluster.master.cli(&["SET", "/pillion/users/c", "10.0.0.3:80"]);
    users.until_set(&["a 10.0.0.1:80 100", "b 10.0.0.2:80 100", "c 10.0.0.3:80 100"]).await;
}

#[tokio::test]
async fn sentinels_have_credentials_of_their_own() {
    let auth = ["-a", "secret", "--no-auth-warning"];
    let lines = "requirepass watch\nsentinel sentinel-pass watch\nsentinel auth-pass mymaster secret";
    let args = ["--requirepass", "secret", "--masterauth", "secret"];
    let cluster = SentinelCluster::start_with(&args, &auth, lines).await;
    cluster.master.cli(&["SET", "/pillion/users/a", "10.0.0.1:80"]);
    let (watch, secret) = (Some(Secret::new("watch")), Some(Secret::new("secret")));
    let with = |sentinel_password: &Option<Secret>, password: &Option<Secret>, master: &str| {
        open(RedisRegistry {
            sentinel_password: sentinel_password.clone(),
            password: password.clone(),
            master: Some(master.into()),
            ..behind(&cluster)
        })
    };
    Following::start(&with(&watch, &secret, "mymaster"), "users").until_set(&["a 10.0.0.1:80 100"]).await;
    // A user who may ask for nothing but the address.
    let acl = ["ACL", "SETUSER", "client", "reset", "on", ">c", "&*", "+ping", "+subscribe"];
    for number in 0..3 {
        let acl = [&acl[..], &["+sentinel|get-master-addr-by-name"]].concat();
        assert_eq!(cluster.ask_sentinel(number, &acl), "OK");
    }
    let least = RedisRegistry { sentinel_user: Some("client".into()), password: secret.clone(), ..behind(&cluster) };
    let least = open(RedisRegistry { sentinel_password: Some(Secret::new("c")), ..least });
    Following::start(&least, "users").until_set(&["a 10.0.0.1:80 100"]).await;

    let master = cluster.master.address();
    for (registry, server, expected) in [
        (with(&None, &secret, "mymaster"), None, "refused: NOAUTH"),
        (with(&secret, &secret, "mymaster"), None, "refused: WRONGPASS"),
        (with(&watch, &watch, "mymaster"), Some(&master), "refused: WRONGPASS"),
        (with(&watch, &secret, "other"), None, "it watches no master named `other`"),
    ] {
        let failure = Following::start(&registry, "users").until_failure(&[]).await;
        assert!(failure.contains(expected), "{failure}");
        let by_master = failure.starts_with(&format!("{master} "));
        assert_eq!(by_master, server.is_some(), "{failure}");
    }
    // A Sentinel is no Redis, and a cluster is no single one.
    let wrong = RedisRegistry { password: watch, ..to(cluster.addresses()[0].clone()) };
    let failure = Following::start(&open(wrong), "users").until_failure(&[]).await;
    assert!(failure.contains("it is a Sentinel"), "{failure}");
    // By default the port of its bus is one that the kernel may have given to an outgoing connection.
    let bus = free_port().to_string();
    let node = RedisServer::start_with(&["--cluster-enabled", "yes", "--cluster-port", &bus], &[]).await;
    let failure = Following::start(&open(to(node.address())), "users").until_failure(&[]).await;
    assert!(failure.contains("refused: it is a node of a Redis Cluster"), "{failure}");
}
