//! The Nacos registry against real servers of both lines.

use crate::{
    e2e::median_below,
    following::Following,
    relay::Relay,
    servers::{NACOS_VERSIONS, NacosServer, eventually, free_port},
};
use pillion::{
    config::{NacosRegistry, NacosTransport, Secret, Tls},
    registry::{Nacos, Registry},
};
use std::{sync::Arc, time::Duration};
use tokio::time::{Instant, sleep};

fn registry(url: &str) -> Arc<Nacos> {
    with(NacosRegistry { servers: vec![url.into()], transport: NacosTransport::Grpc, ..NacosRegistry::default() })
}

fn with(config: NacosRegistry) -> Arc<Nacos> {
    Arc::new(Nacos::new("main", &config).unwrap())
}

/// Runs a test on each version.
async fn on_each(test: impl AsyncFn(&'static str)) {
    for version in NACOS_VERSIONS {
        println!("{version}");
        test(version).await;
    }
}

#[tokio::test]
async fn changes_are_followed_over_grpc_and_http() {
    on_each(async |version| {
        let nacos = NacosServer::shared(version).await;
        // Other addresses each time: a server may still be forgetting the ones before.
        for (transport, net) in [(NacosTransport::Grpc, "10.0.0"), (NacosTransport::Http, "10.0.1")] {
            let at = |n: u32| format!("{net}.{n}:80");
            let shown = |n: u32, weight: u32| format!("{0} {0} {weight}", at(n));
            let config = NacosRegistry {
                servers: vec![nacos.url()],
                namespace: nacos.namespace.clone(),
                transport,
                poll: Duration::from_millis(500),
                ..NacosRegistry::default()
            };
            let registry = with(config.clone());
            let mut users = Following::start(&registry, "users");
            users.until_set(&[]).await;
            nacos.register("users", &at(1), "weight=0.5&metadata.version=v2&metadata.stage=live").await;
            let set = users.until_set(&[&shown(1, 50)]).await;
            assert_eq!((set[0].version(), set[0].labels["stage"].as_str(), set[0].healthy), (Some("v2"), "live", true));
            // Neighbours, which are not this service.
            nacos.register("users-admin", &at(9), "").await;
            nacos.register("users", &at(8), "groupName=SHOP").await;
            nacos.register("users", &at(7), "namespaceId=live").await;

            nacos.register("users", &at(1), "weight=2&metadata.version=v3").await;
            let set = users.until_set(&[&shown(1, 200)]).await;
            assert_eq!((set[0].version(), set[0].labels.get("stage")), (Some("v3"), None));
            nacos.register("users", &at(2), "clusterName=c1").await;
            let (one, other) = (shown(1, 200), format!("c1/{}", shown(2, 100)));
            let both = [one.as_str(), other.as_str()];
            let set = users.until_set(&both).await;
            assert_eq!((set[0].zone.as_deref(), set[1].zone.as_deref()), (None, Some("c1")));
            // Who comes later reads the same.
            Following::start(&registry, "users").until_set(&both).await;
            Following::start(&with(NacosRegistry { clusters: vec!["c1".into()], ..config.clone() }), "users")
                .until_set(&both[1..])
                .await;
            Following::start(&registry, "SHOP@@users").until_set(&[&shown(8, 100)]).await;
            let elsewhere = NacosRegistry { group: "SHOP".into(), ..config.clone() };
            Following::start(&with(elsewhere), "users").until_set(&[&shown(8, 100)]).await;
            let elsewhere = with(NacosRegistry { namespace: "live".into(), ..config.clone() });
            Following::start(&elsewhere, "users").until_set(&[&shown(7, 100)]).await;

            // One that is disabled is not told any more, one that does not beat first becomes unhealthy.
            nacos.register("users", &at(1), "enabled=false").await;
            users.until_set(&both[1..]).await;
            let timeouts =
                "metadata.preserved.heart.beat.interval=500&metadata.preserved.heart.beat.timeout=1000&clusterName=c1";
            nacos.register("users", &at(2), timeouts).await;
            users.until("an unhealthy one", |seen| seen.instances.as_ref().is_some_and(|set| !set[0].healthy)).await;
            nacos.deregister("users", &at(2), "clusterName=c1").await;
            nacos.deregister("users", &at(1), "").await;
            users.until_set(&[]).await;

            let mut listed = registry.clone().list().await.unwrap();
            listed.sort();
            assert_eq!(listed, ["users", "users-admin"]);
            nacos.deregister("users", &at(8), "groupName=SHOP").await;
            nacos.deregister("users", &at(7), "namespaceId=live").await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_server_that_is_killed_empties_nothing_until_it_answers() {
    on_each(async |version| {
        let mut nacos = NacosServer::start(version).await;
        nacos.register("users", "10.0.0.1:80", "").await;
        let mut users = Following::start(&registry(&nacos.url()), "users");
        users.until_set(&["10.0.0.1:80 10.0.0.1:80 100"]).await;
        nacos.kill();
        let failure = users.until_failure(&["10.0.0.1:80 10.0.0.1:80 100"]).await;
        assert!(failure.starts_with("cannot reach http://127.0.0.1:"), "{failure}");
        // It comes back with nothing, and says so; what it is told then arrives as before.
        nacos.restart().await;
        users.until_set(&[]).await;
        nacos.register("users", "10.0.0.2:80", "").await;
        users.until_set(&["10.0.0.2:80 10.0.0.2:80 100"]).await;
    })
    .await;
}

#[tokio::test]
async fn a_connection_that_is_cut_is_noticed_and_replaced() {
    on_each(async |version| {
        let nacos = NacosServer::shared(version).await;
        let relay = Relay::to(nacos.port + 1000).await;
        nacos.register("users", "10.0.0.1:80", "").await;
        let registry = with(NacosRegistry {
            servers: vec![nacos.url()],
            namespace: nacos.namespace.clone(),
            grpc_port: Some(relay.port),
            transport: NacosTransport::Grpc,
            ..NacosRegistry::default()
        });
        let mut users = Following::start(&registry, "users");
        users.until_set(&["10.0.0.1:80 10.0.0.1:80 100"]).await;
        relay.cut();
        users.until_failure(&["10.0.0.1:80 10.0.0.1:80 100"]).await;
        relay.mend();
        users.until_set(&["10.0.0.1:80 10.0.0.1:80 100"]).await;

        relay.silence();
        let start = Instant::now();
        users.until_failure(&["10.0.0.1:80 10.0.0.1:80 100"]).await;
        let took = start.elapsed();
        println!("{version}: silence was noticed after {took:.1?}");
        // Without asking it would never be.
        assert!(took < Duration::from_secs(45), "{took:?}");
        // What changes meanwhile is heard of afterwards.
        nacos.register("users", "10.0.0.2:80", "").await;
        relay.mend();
        users.until_set(&["10.0.0.1:80 10.0.0.1:80 100", "10.0.0.2:80 10.0.0.2:80 100"]).await;
    })
    .await;
}

#[tokio::test]
async fn a_server_that_asks_for_a_new_connection_gets_one() {
    on_each(async |version| {
        let nacos = NacosServer::start(version).await;
        let relay = Relay::to(nacos.port + 1000).await;
        let registry = with(NacosRegistry {
            servers: vec![nacos.url()],
            grpc_port: Some(relay.port),
            transport: NacosTransport::Grpc,
            ..NacosRegistry::default()
        });
        nacos.register("users", "10.0.0.1:80", "").await;
        let mut users = Following::start(&registry, "users");
        users.until_set(&["10.0.0.1:80 10.0.0.1:80 100"]).await;
        assert_eq!(relay.connections(), 1);
        nacos.send_clients_away().await;
        eventually("another connection", async || relay.connections() == 2).await;
        nacos.register("users", "10.0.0.1:80", "weight=3").await;
        users.until_set(&["10.0.0.1:80 10.0.0.1:80 300"]).await;
        assert_eq!(users.until("anything", |_| true).await.failures, 0, "that is no failure");
    })
    .await;
}

#[tokio::test]
async fn of_several_servers_one_that_works_is_found() {
    on_each(async |version| {
        // Each knows nothing of the other: what is seen tells which one is talked to.
        let (mut one, mut other) = tokio::join!(NacosServer::start(version), NacosServer::start(version));
        let dead = format!("http://127.0.0.1:{}", free_port());
        let servers = vec![dead, one.url(), other.url()];
        let registry = with(NacosRegistry { servers, transport: NacosTransport::Grpc, ..NacosRegistry::default() });
        one.register("users", "10.0.0.1:80", "").await;
        other.register("users", "10.0.0.2:80", "").await;
        let mut users = Following::start(&registry, "users");
        let seen = users.until("one of them", |seen| seen.instances.is_some()).await;
        let first = seen.instances.unwrap()[0].id == "10.0.0.1:80";
        let next = if first { "10.0.0.2:80 10.0.0.2:80 100" } else { "10.0.0.1:80 10.0.0.1:80 100" };
        if first {
            one.kill()
        } else {
            other.kill()
        }
        users.until_set(&[next]).await;
    })
    .await;
}

#[tokio::test]
async fn users_and_passwords() {
    on_each(async |version| {
        let mut nacos = NacosServer::start_with_users(version).await;
        nacos.register("users", "10.0.0.1:80", "").await;
        for transport in [NacosTransport::Grpc, NacosTransport::Http] {
            let as_user = |user: Option<&str>, password: &str| {
                with(NacosRegistry {
                    servers: vec![nacos.url()],
                    user: user.map(Into::into),
                    password: Some(Secret::new(password)),
                    transport,
                    poll: Duration::from_millis(500),
                    ..NacosRegistry::default()
                })
            };
            let wrong = "it answered the login of `nacos`";
            for (registry, expected) in [
                (as_user(None, ""), "refused"),
                (as_user(Some("nacos"), "wrong"), wrong),
                (as_user(Some("nobody"), "nacos"), "are user and password right?"),
            ] {
                let failure = Following::start(&registry, "users").until_failure(&[]).await;
                assert!(failure.contains("refused") && failure.contains(expected), "{failure}");
                let failure = registry.list().await.unwrap_err().to_string();
                assert!(failure.contains(expected), "{failure}");
            }
        }

        let registry = with(NacosRegistry {
            servers: vec![nacos.url()],
            user: Some("nacos".into()),
            password: Some(Secret::new("nacos")),
            transport: NacosTransport::Grpc,
            ..NacosRegistry::default()
        });
        let mut users = Following::start(&registry, "users");
        users.until_set(&["10.0.0.1:80 10.0.0.1:80 100"]).await;
        // Longer than a token lives.
        sleep(Duration::from_secs(10)).await;
        Following::start(&registry, "users").until_set(&["10.0.0.1:80 10.0.0.1:80 100"]).await;
        assert_eq!(registry.list().await.unwrap(), ["users"]);
        nacos.log_in().await;
        nacos.register("users", "10.0.0.2:80", "").await;
        let both = ["10.0.0.1:80 10.0.0.1:80 100", "10.0.0.2:80 10.0.0.2:80 100"];
        assert_eq!(users.until_set(&both).await.len(), 2);
        assert_eq!(users.until("anything", |_| true).await.failures, 0, "tokens are renewed before they end");
    })
    .await;
}

#[tokio::test]
async fn credentials_are_no_hindrance_while_nobody_asks_for_any() {
    on_each(async |version| {
        let nacos = NacosServer::shared(version).await;
        nacos.register("users", "10.0.0.1:80", "").await;
        let registry = with(NacosRegistry {
            servers: vec![nacos.url()],
            namespace: nacos.namespace.clone(),
            user: Some("nacos".into()),
            password: Some(Secret::new("wrong")),
            ..NacosRegistry::default()
        });
        Following::start(&registry, "users").until_set(&["10.0.0.1:80 10.0.0.1:80 100"]).await;
    })
    .await;
}

#[tokio::test]
async fn tls() {
    on_each(async |version| {
        let dir = tempfile::tempdir().unwrap();
        let (nacos, certificates) = NacosServer::start_with_tls(version, dir.path()).await;
        for transport in [NacosTransport::Grpc, NacosTransport::Http] {
            let using =
                |tls| with(NacosRegistry { servers: vec![nacos.url()], transport, tls, ..NacosRegistry::default() });
            let whole = Tls { ca: Some(dir.path().join("ca.pem")), ..Tls::default() };
            Following::start(&using(whole.clone()), "users").until_set(&[]).await;
            let wrong_name = Tls { server_name: Some("other.internal".into()), ..whole.clone() };
            let strange = Tls { ca: Some(certificates.stranger.clone()), ..whole };
            for (tls, expected) in [(wrong_name, "other.internal"), (strange, "UnknownIssuer")] {
                let failure = Following::start(&using(tls), "users").until_failure(&[]).await;
                assert!(failure.contains(expected), "{failure}");
            }
        }
        // Either of them alone.
        let tls = Tls { ca: Some(dir.path().join("ca.pem")), ..Tls::default() };
        let servers = vec![nacos.url().replace("https", "http")];
        let config = NacosRegistry { servers, tls, transport: NacosTransport::Grpc, ..NacosRegistry::default() };
        Following::start(&with(NacosRegistry { grpc_tls: Some(true), ..config.clone() }), "users").until_set(&[]).await;
        Following::start(&with(config), "users").until_failure(&[]).await;
    })
    .await;
}

#[tokio::test]
async fn http_stands_in_for_grpc_until_that_can_be_had() {
    let nacos = NacosServer::shared("nacos-3").await;
    let relay = Relay::to(nacos.port + 1000).await;
    relay.cut();
    let config = NacosRegistry {
        servers: vec![nacos.url()],
        namespace: nacos.namespace.clone(),
        grpc_port: Some(relay.port),
        ..NacosRegistry::default()
    };
    let registry = with(NacosRegistry { poll: Duration::from_millis(500), ..config.clone() });
    nacos.register("users", "10.0.0.1:80", "").await;
    let mut users = Following::start(&registry, "users");
    users.until_set(&["10.0.0.1:80 10.0.0.1:80 100"]).await;
    nacos.register("users", "10.0.0.1:80", "weight=2").await;
    users.until_set(&["10.0.0.1:80 10.0.0.1:80 200"]).await;
    assert_eq!(relay.connections(), 0);
    // Where only gRPC is wanted, nothing stands in for it.
    let only = with(NacosRegistry { transport: NacosTransport::Grpc, ..config });
    Following::start(&only, "users").until_failure(&[]).await;
    relay.mend();
    let start = Instant::now();
    while relay.connections() == 0 {
        // Once a minute.
        assert!(start.elapsed() < Duration::from_secs(180), "gRPC is tried again");
        sleep(Duration::from_millis(100)).await;
    }
    nacos.register("users", "10.0.0.1:80", "weight=3").await;
    users.until_set(&["10.0.0.1:80 10.0.0.1:80 300"]).await;
    assert_eq!(users.until("anything", |_| true).await.failures, 0);
}

#[tokio::test]
async fn all_services_share_one_connection_which_is_quiet() {
    on_each(async |version| {
        let nacos = NacosServer::shared(version).await;
        let relay = Relay::to(nacos.port + 1000).await;
        let registry = with(NacosRegistry {
            servers: vec![nacos.url()],
            namespace: nacos.namespace.clone(),
            grpc_port: Some(relay.port),
            transport: NacosTransport::Grpc,
            ..NacosRegistry::default()
        });
        let mut followers: Vec<_> = (0..50).map(|n| Following::start(&registry, &format!("s{n:02}"))).collect();
        for (n, follower) in followers.iter_mut().enumerate() {
            follower.until_set(&[]).await;
            nacos.register(&format!("s{n:02}"), "10.0.0.1:80", "").await;
            follower.until_set(&["10.0.0.1:80 10.0.0.1:80 100"]).await;
        }
        assert_eq!(relay.connections(), 1);
        let before = relay.until(0, |_| true).await;
        sleep(Duration::from_secs(12)).await;
        let after = relay.until(0, |_| true).await;
        let (up, down) = (after.up - before.up, after.down - before.down);
        println!("{version}: 50 services, idle for 12 s: {up} bytes to the server, {down} back, on 1 connection");
        assert!(up < 3000 && down < 3000, "two or three questions whether it is well: {up} {down}");

        // Followers that are dropped leave no subscription behind.
        assert_eq!(nacos.subscribers("s01").await, 1);
        let mut again = Following::start(&registry, "s02");
        again.until_set(&["10.0.0.1:80 10.0.0.1:80 100"]).await;
        drop(followers);
        eventually("nobody to be subscribed", async || nacos.subscribers("s01").await == 0).await;
        assert_eq!(nacos.subscribers("s02").await, 1, "one that is followed twice stays");
        nacos.register("s02", "10.0.0.1:80", "weight=2").await;
        again.until_set(&["10.0.0.1:80 10.0.0.1:80 200"]).await;
        // And who comes back at once is told of changes.
        for weight in 3..13 {
            drop(again);
            again = Following::start(&registry, "s02");
            again.until_set(&[&format!("10.0.0.1:80 10.0.0.1:80 {}", (weight - 1) * 100)]).await;
            nacos.register("s02", "10.0.0.1:80", &format!("weight={weight}")).await;
            again.until_set(&[&format!("10.0.0.1:80 10.0.0.1:80 {}", weight * 100)]).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_change_arrives_as_soon_as_the_server_pushes_it() {
    on_each(async |version| {
        // The server gathers changes, by default for 500 ms, and then for up to 100 ms more.
        for gathers in [0, 500] {
            let nacos =
                NacosServer::start_with(version, &[&format!("nacos.naming.push.pushTaskDelay={gathers}")]).await;
            let relay = Relay::to(nacos.port + 1000).await;
            let registry = with(NacosRegistry {
                servers: vec![nacos.url()],
                grpc_port: Some(relay.port),
                transport: NacosTransport::Grpc,
                ..NacosRegistry::default()
            });
            let mut users = Following::start(&registry, "users");
            users.until_set(&[]).await;
            let mut weight = 0;
            let mut changes = async |count: usize| {
                let (mut since_change, mut since_push) = (Vec::new(), Vec::new());
                for _ in 0..count {
                    weight += 1;
                    let before = relay.until(0, |_| true).await;
                    let start = Instant::now();
                    nacos.register("users", "10.0.0.1:80", &format!("weight={weight}")).await;
                    // A push is longer than an answer to whether the server is well.
                    relay.until(0, |now| now.down > before.down + 300).await;
                    let pushed = Instant::now();
                    users.until_set(&[&format!("10.0.0.1:80 10.0.0.1:80 {}", weight * 100)]).await;
                    since_push.push(pushed.elapsed());
                    since_change.push(start.elapsed());
                }
                (since_push, since_change)
            };
            // The first ones find a server that is still slow.
            changes(10).await;
            let after = |what| format!("{version}, which gathers changes for {gathers} ms: seen after {what}");
            median_below(&after("its push"), Duration::from_millis(50), async || changes(30).await.0).await;
            let limit = Duration::from_millis(gathers + 250);
            median_below(&after("the change"), limit, async || changes(30).await.1).await;
        }
    })
    .await;
}

#[tokio::test]
async fn two_hundred_services_of_twenty_instances() {
    on_each(async |version| {
        let nacos = NacosServer::shared(version).await;
        for service in 0..200 {
            let registered = (0..20).map(|n| {
                let (nacos, address) = (&nacos, format!("10.0.{service}.{n}:80"));
                async move { nacos.register(&format!("s{service}"), &address, "").await }
            });
            futures_util::future::join_all(registered).await;
        }
        let relay = Relay::to(nacos.port + 1000).await;
        let registry = with(NacosRegistry {
            servers: vec![nacos.url()],
            namespace: nacos.namespace.clone(),
            grpc_port: Some(relay.port),
            transport: NacosTransport::Grpc,
            ..NacosRegistry::default()
        });
        let start = Instant::now();
        let mut followers: Vec<_> = (0..200).map(|n| Following::start(&registry, &format!("s{n}"))).collect();
        for follower in &mut followers {
            follower.until("20 instances", |seen| seen.instances.as_ref().is_some_and(|set| set.len() == 20)).await;
        }
        println!(
            "{version}: 200 services of 20 were read in {:.0?} on {} connection",
            start.elapsed(),
            relay.connections()
        );
        assert_eq!(relay.connections(), 1);
        assert_eq!(registry.clone().list().await.unwrap().len(), 200);
        for (n, follower) in followers.iter_mut().enumerate() {
            nacos.deregister(&format!("s{n}"), &format!("10.0.{n}.0:80"), "").await;
            follower.until("19 instances", |seen| seen.instances.as_ref().is_some_and(|set| set.len() == 19)).await;
        }
    })
    .await;
}
