//! The Eureka registry against real servers.

use crate::{
    e2e::median_below,
    following::Following,
    relay::Relay,
    servers::{Certificates, EurekaServer, eureka_instance, eventually, free_port, program},
};
use pillion::{
    config::{EurekaAddress, EurekaName, EurekaRegistry, Secret, Tls},
    registry::{Eureka, Observation, Registry, RegistryError},
};
use serde_json::json;
use std::{process::Command, sync::Arc, time::Duration};
use tokio::time::{Instant, sleep};

/// Asks often, for the tests' sake.
const INTERVAL: Duration = Duration::from_millis(200);
/// How old the server's own cache may be here.
const CACHE: Duration = Duration::from_secs(1);

fn to(servers: &[String]) -> EurekaRegistry {
    EurekaRegistry { servers: servers.to_vec(), interval: INTERVAL, ..EurekaRegistry::default() }
}

fn open(config: EurekaRegistry) -> Arc<Eureka> {
    Arc::new(Eureka::new("main", &config).unwrap())
}

fn through(relay: &Relay) -> String {
    format!("http://{}/eureka", relay.address())
}

#[tokio::test]
async fn a_change_is_followed() {
    let eureka = EurekaServer::start().await;
    let registry = open(to(&[eureka.url()]));
    let mut users = Following::start(&registry, "users");
    users.until_set(&[]).await;
    let metadata = |weight: u32| json!({"metadata": {"weight": weight.to_string(), "version": "v1", "zone": "az-1"}});
    eureka.register("users", "a", 8000, metadata(10)).await;
    let set = users.until_set(&["a 10.0.0.1:8000 10"]).await;
    assert_eq!((set[0].version(), set[0].zone.as_deref()), (Some("v1"), Some("az-1")));
    eureka.set_metadata("users", "a", "weight=20").await;
    users.until_set(&["a 10.0.0.1:8000 20"]).await;
    eureka.register("users", "b", 8001, json!({"securePort": {"$": 8443, "@enabled": "true"}})).await;
    let set = users.until_set(&["a 10.0.0.1:8000 20", "b 10.0.0.1:8443 100"]).await;
    assert_eq!(set[1].tls, Some(true));
    eureka.set_status("users", "a", "OUT_OF_SERVICE").await;
    users.until_set(&["b 10.0.0.1:8443 100"]).await;
    // What it says of itself later does not count.
    eureka.register("users", "a", 8000, metadata(30)).await;
    sleep(CACHE + 3 * INTERVAL).await;
    users.until_set(&["b 10.0.0.1:8443 100"]).await;
    eureka.clear_status("users", "a").await;
    users.until_set(&["a 10.0.0.1:8000 30", "b 10.0.0.1:8443 100"]).await;
    for status in ["DOWN", "STARTING"] {
        eureka.register("users", "a", 8000, json!({"status": status})).await;
        users.until_set(&["b 10.0.0.1:8443 100"]).await;
        eureka.register("users", "a", 8000, metadata(30)).await;
        users.until_set(&["a 10.0.0.1:8000 30", "b 10.0.0.1:8443 100"]).await;
    }

    // By VIP address, which two applications share, and by host name.
    eureka.register("users-v2", "a", 9000, json!({"vipAddress": "users.shop,users"})).await;
    let by_vip =
        open(EurekaRegistry { by: EurekaName::Vip, connect_to: EurekaAddress::Hostname, ..to(&[eureka.url()]) });
    Following::start(&by_vip, "Users")
        .until_set(&["USERS-V2/a host-of-a:9000 100", "USERS/a host-of-a:8000 30", "USERS/b host-of-b:8443 100"])
        .await;
    assert_eq!(by_vip.list().await.unwrap(), ["USERS", "USERS-V2", "USERS.SHOP"]);
    assert_eq!(registry.clone().list().await.unwrap(), ["USERS", "USERS-V2"]);

    // One goes by its own word, the other one when nobody renews it any more.
    eureka.remove("users", "a").await;
    users.until_set(&["b 10.0.0.1:8443 100"]).await;
    // (Not before it was seen at all.)
    let dying = json!({"leaseInfo": {"renewalIntervalInSecs": 1, "durationInSecs": 5}});
    eureka.register("users", "b", 8001, dying).await;
    users.until_set(&["b 10.0.0.1:8001 100"]).await;
    users.until_set(&[]).await;
}

#[tokio::test]
async fn a_change_arrives_within_the_interval() {
    let eureka = EurekaServer::start().await;
    let registry = open(to(&[eureka.url()]));
    let mut users = Following::start(&registry, "users");
    users.until_set(&[]).await;
    let what = format!(
        "eureka: from a registration to the sink, of which {CACHE:?} may be the server's cache and {INTERVAL:?} the interval"
    );
    let mut weight = 0;
    median_below(&what, CACHE + INTERVAL.mul_f64(1.1) + Duration::from_millis(100), async || {
        let mut times = Vec::new();
        for _ in 0..15 {
            weight += 1;
            eureka.register("users", "a", 80, json!({"metadata": {"weight": weight.to_string()}})).await;
            let registered = Instant::now();
            users.until_set(&[&format!("a 10.0.0.1:80 {weight}")]).await;
            times.push(registered.elapsed());
        }
        times
    })
    .await;
}

#[tokio::test]
async fn the_server_is_restarted_cut_off_and_refuses() {
    let login = ["--spring.security.user.name=pillion", "--spring.security.user.password=se:cret"];
    let mut eureka = EurekaServer::start().await;
    let relay = Relay::to(eureka.port).await;
    let registry = open(to(&[through(&relay)]));
    let mut users = Following::start(&registry, "users");
    eureka.register("users", "a", 80, json!({})).await;
    users.until_set(&["a 10.0.0.1:80 100"]).await;

    relay.silence();
    let silent = Instant::now();
    let failure = users.until_failure(&["a 10.0.0.1:80 100"]).await;
    println!("eureka: a silent cut was noticed after {:.1?}: {failure}", silent.elapsed());
    assert!(failure.contains("no answer within 15s"), "{failure}");
    relay.cut();
    relay.mend();
    users.until_set(&["a 10.0.0.1:80 100"]).await;

    // It keeps nothing, so whoever is there must register again, as heartbeats make clients do.
    eureka.kill();
    let failure = users.until_failure(&["a 10.0.0.1:80 100"]).await;
    assert!(failure.contains("cannot reach http://127.0.0.1:"), "{failure}");
    eureka.restart_with(&[]).await;
    users.until_set(&[]).await;
    eureka.register("users", "b", 80, json!({})).await;
    users.until_set(&["b 10.0.0.1:80 100"]).await;

    eureka.restart_with(&login).await;
    // First it cannot be reached.
    let refused = |seen: &Observation| matches!(seen.failure, Some(RegistryError::Refused { .. }));
    users.until("a refusal", refused).await;
    let failure = users.until_failure(&["b 10.0.0.1:80 100"]).await;
    assert!(failure.ends_with("refused: 401 Unauthorized; expected a `user` and a `password`"), "{failure}");
    let with = |password: &str| EurekaRegistry {
        user: Some("pillion".into()),
        password: Some(Secret::new(password)),
        ..to(&[through(&relay)])
    };
    let mut wrong = Following::start(&open(with("secret")), "users");
    let failure = wrong.until_failure(&[]).await;
    assert!(failure.ends_with("refused: 401 Unauthorized; expected another `user` or `password`"), "{failure}");
    Following::start(&open(with("se:cret")), "users").until_set(&[]).await;

    // Who was refused is still trying. This server has no deltas.
    eureka.restart_with(&["--eureka.server.disable-delta=true"]).await;
    eureka.register("users", "c", 80, json!({})).await;
    for follower in [&mut users, &mut wrong] {
        follower.until_set(&["c 10.0.0.1:80 100"]).await;
    }
    eureka.remove("users", "c").await;
    users.until_set(&[]).await;
    // A path that is not Eureka's.
    let lost = open(to(&[through(&relay).replace("/eureka", "/nowhere")]));
    let failure = Following::start(&lost, "users").until_failure(&[]).await;
    assert!(failure.contains("404 Not Found") && failure.contains("is the path of `servers` right?"), "{failure}");
}

#[tokio::test]
async fn one_of_two_servers_is_used_and_the_other_when_it_fails() {
    let mut servers = EurekaServer::start_two().await;
    let relays = [Relay::to(servers[0].port).await, Relay::to(servers[1].port).await];
    let registry = open(to(&[through(&relays[0]), through(&relays[1])]));
    let mut users = Following::start(&registry, "users");
    // Whichever it is told, both know.
    servers[0].register("users", "a", 80, json!({})).await;
    servers[1].register("users", "b", 80, json!({})).await;
    let both = ["a 10.0.0.1:80 100", "b 10.0.0.1:80 100"];
    users.until_set(&both).await;
    let in_use = usize::from(relays[0].connections() == 0);
    let counts = || [&relays[in_use], &relays[1 - in_use]].map(|relay| (relay.connections(), relay.requests()));
    assert_eq!((counts()[0].0, counts()[1]), (1, (0, 0)), "one connection, to one server");

    servers[in_use].kill();
    users.until("the other server", |seen| seen.failures > 0 && seen.failure.is_none()).await;
    users.until_set(&both).await;
    servers[1 - in_use].set_metadata("users", "a", "weight=7").await;
    users.until_set(&["a 10.0.0.1:80 7", "b 10.0.0.1:80 100"]).await;
    let before = counts();
    eventually("five more polls", async || counts()[1].1 >= before[1].1 + 5).await;
    assert_eq!(counts()[0], before[0], "the one that is gone is left alone while the other one answers");
    assert_eq!(counts()[1].0, 1);
}

#[tokio::test]
async fn tls_with_a_client_certificate() {
    let dir = tempfile::tempdir().unwrap();
    let certificates = Certificates::make(dir.path());
    let path = |name: &str| dir.path().join(name);
    let file = |property: &str, name: &str| format!("--server.ssl.{property}=file:{}", path(name).display());
    let port = free_port();
    let _eureka = EurekaServer::start_at(
        port,
        &[
            &file("certificate", "server.pem"),
            &file("certificate-private-key", "server.key"),
            &file("trust-certificate", "ca.pem"),
            "--server.ssl.client-auth=need",
        ],
    )
    .await;
    let url = format!("https://127.0.0.1:{port}/eureka");
    // With its own TLS, not ours.
    let told = Command::new(program("curl"))
        .args(["-sS", "--fail", "-H", "content-type: application/json", "-d"])
        .arg(json!({"instance": eureka_instance("users", "a", 80, json!({}))}).to_string())
        .arg("--cacert")
        .arg(path("ca.pem"))
        .arg("--cert")
        .arg(path("client.pem"))
        .arg("--key")
        .arg(path("client.key"))
        .arg(format!("{url}/apps/users"))
        .output()
        .unwrap();
    assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
    let with = |tls| open(EurekaRegistry { tls, ..to(std::slice::from_ref(&url)) });
    let whole = Tls {
        ca: Some(path("ca.pem")),
        cert: Some(path("client.pem")),
        key: Some(path("client.key")),
        server_name: None,
    };
    Following::start(&with(whole.clone()), "users").until_set(&["a 10.0.0.1:80 100"]).await;
    let anonymous = Tls { cert: None, key: None, ..whole.clone() };
    let wrong_name = Tls { server_name: Some("other.internal".into()), ..whole.clone() };
    let strange_authority = Tls { ca: Some(certificates.stranger), ..whole };
    for (tls, expected) in
        [(anonymous, "cannot reach"), (wrong_name, "other.internal"), (strange_authority, "UnknownIssuer")]
    {
        let failure = Following::start(&with(tls), "users").until_failure(&[]).await;
        assert!(failure.contains(expected), "{failure}");
    }
}

#[tokio::test]
async fn two_hundred_services_of_twenty_instances() {
    const SERVICES: u16 = 200;
    const EACH: u16 = 20;
    // Deltas tell of the last minutes, here of two seconds: else they would tell of all these registrations.
    let short = [
        "--eureka.server.retention-time-in-m-s-in-delta-queue=2000",
        "--eureka.server.delta-retention-timer-interval-in-ms=200",
        // What was cached while something changed stays so until this ends, 180 s by default.
        "--eureka.server.response-cache-auto-expiration-in-seconds=5",
    ];
    let eureka = EurekaServer::start_with(&short).await;
    for service in 0..SERVICES {
        let registered = (0..EACH).map(|n| {
            let (eureka, app) = (&eureka, format!("s{service}"));
            async move { eureka.register(&app, &format!("{app}-{n}"), 1000 + n, json!({})).await }
        });
        futures_util::future::join_all(registered).await;
    }
    sleep(2 * CACHE + CACHE).await;
    let relay = Relay::to(eureka.port).await;
    let registry = open(to(&[through(&relay)]));
    let started = Instant::now();
    let mut followers: Vec<_> = (0..SERVICES).map(|n| Following::start(&registry, &format!("s{n}"))).collect();
    for follower in &mut followers {
        let whole = |seen: &Observation| seen.instances.as_ref().is_some_and(|set| set.len() == usize::from(EACH));
        follower.until("twenty instances", whole).await;
    }
    let (taken, all) = (started.elapsed(), relay.until(0, |passed| passed.down > 0).await.down);
    println!("eureka: {SERVICES} services of {EACH} were there after {taken:.0?}, in {all} bytes");
    let quiet = Instant::now();
    let before = relay.requests();
    sleep(10 * INTERVAL).await;
    let idle = (relay.requests() - before, relay.until(0, |_| true).await.down - all);
    println!("eureka: {} requests and {} bytes in {:.1?} without a change", idle.0, idle.1, quiet.elapsed());
    let most = 2 + (quiet.elapsed().as_secs_f64() / INTERVAL.as_secs_f64()) as usize;
    assert!(idle.0 <= most, "{idle:?}");

    // All that there is to change, while deltas come in.
    for step in 0..60 {
        let (service, n) = (step % 10, step / 10);
        let (app, id) = (format!("s{service}"), format!("s{service}-{n}"));
        match step % 4 {
            0 => eureka.set_metadata(&app, &id, &format!("weight={step}")).await,
            1 => eureka.set_status(&app, &id, "OUT_OF_SERVICE").await,
            2 => eureka.remove(&app, &id).await,
            _ => eureka.register(&app, &format!("new-{step}"), 80, json!({})).await,
        }
        if step % 10 == 9 {
            sleep(CACHE / 2).await;
        }
    }
    // Who fetches all afterwards sees the same.
    sleep(CACHE).await;
    eventually("the same set", async || {
        let fresh = open(to(&[eureka.url()]));
        for (service, follower) in followers[..10].iter_mut().enumerate() {
            let mut fresh = Following::start(&fresh, &format!("s{service}"));
            let all = fresh.until("a set", |seen| seen.instances.is_some()).await.instances;
            if follower.until("anything", |_| true).await.instances != all {
                return false;
            }
        }
        true
    })
    .await;
    let (connections, requests) = (relay.connections(), relay.requests());
    let more = relay.until(0, |_| true).await.down - all - idle.1;
    println!(
        "eureka: {connections} connection, {requests} requests in {:.1?}, {more} bytes for 60 changes",
        started.elapsed()
    );
    assert_eq!(connections, 1);
    // Each twentieth time it is meant to be; and once more each time that the server's caches, filled while something changed, did
    // not fit together, of which a slow server has several.
    assert!(more < (requests / 4) * all, "everything was fetched again and again, for {more} bytes of {all}");
}
