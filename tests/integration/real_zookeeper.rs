//! The ZooKeeper registry against real servers, every line that is installed.

use crate::{
    e2e::median_below,
    following::Following,
    relay::Relay,
    servers::{
        Certificates, eventually, free_port,
        zookeeper::{ZOOKEEPERS, ZookeeperServer},
    },
};
use pillion::{
    config::{Layout, Secret, Tls, ZookeeperRegistry},
    registry::{Protocol, Registry, Zookeeper},
};
use std::{fs, sync::Arc, time::Duration};
use tokio::time::{Instant, sleep};

/// The newest, and the oldest, which has no watches that stay.
const ENDS: [&str; 2] = [ZOOKEEPERS[0], ZOOKEEPERS[2]];

fn registry(address: &str) -> Arc<Zookeeper> {
    with(ZookeeperRegistry { endpoints: vec![address.into()], ..ZookeeperRegistry::default() })
}

fn with(config: ZookeeperRegistry) -> Arc<Zookeeper> {
    Arc::new(Zookeeper::new("main", &config).unwrap())
}

/// Layout, path, value, the instances that it gives, a changed path and value, the instances that this gives.
type Case = (Layout, &'static str, String, &'static [&'static str], &'static str, String, &'static [&'static str]);

#[tokio::test]
async fn a_change_is_followed_in_every_layout() {
    // Values are what the frameworks put, byte by byte.
    let kratos = |weight| {
        format!(
            r#"{{"id":"7d9e","name":"users","version":"v1","metadata":{{"weight":"{weight}"}},"endpoints":["http://10.0.0.1:8000","grpc://10.0.0.1:9000"]}}"#
        )
    };
    let micro = |weight| {
        format!(
            r#"{{"name":"users","version":"latest","metadata":null,"endpoints":[],"nodes":[{{"id":"users-1","address":"10.0.0.1:8000","metadata":{{"protocol":"grpc","weight":"{weight}"}}}}]}}"#
        )
    };
    let plain = |weight| format!(r#"{{"address":"10.0.0.1:8000","weight":{weight}}}"#);
    let spring = |weight| {
        format!(
            r#"{{"name":"users","id":"7d9e","address":"10.0.0.1","port":8000,"sslPort":null,"payload":{{"@class":"org.springframework.cloud.zookeeper.discovery.ZookeeperInstance","id":"application-1","name":"users","metadata":{{"weight":"{weight}","instance_status":"UP"}}}},"registrationTimeUTC":1795287803606,"serviceType":"DYNAMIC","uriSpec":null}}"#
        )
    };
    let cases: [Case; 5] = [
        (
            Layout::Plain,
            "/pillion/users/a",
            plain(10),
            &["a 10.0.0.1:8000 10"],
            "/pillion/users/a",
            plain(20),
            &["a 10.0.0.1:8000 20"],
        ),
        (
            Layout::Kratos,
            "/microservices/users/7d9e",
            kratos(10),
            &["7d9e/grpc 10.0.0.1:9000 10", "7d9e/http 10.0.0.1:8000 10"],
            "/microservices/users/7d9e",
            kratos(20),
            &["7d9e/grpc 10.0.0.1:9000 20", "7d9e/http 10.0.0.1:8000 20"],
        ),
        (
            Layout::GoMicro,
            "/micro-registry/users/users-1",
            micro(10),
            &["users-1 10.0.0.1:8000 10"],
            "/micro-registry/users/users-1",
            micro(20),
            &["users-1 10.0.0.1:8000 20"],
        ),
        (
            Layout::Curator,
            "/services/users/7d9e",
            spring(10),
            &["7d9e 10.0.0.1:8000 10"],
            "/services/users/7d9e",
            spring(20),
            &["7d9e 10.0.0.1:8000 20"],
        ),
        (
            Layout::Dubbo,
            "/dubbo/users/providers/tri%3A%2F%2F10.0.0.1%3A8000%2Fusers%3Fweight%3D10",
            "10.0.0.1".into(),
            &["tri://10.0.0.1:8000 10.0.0.1:8000 10"],
            "/dubbo/users/providers/tri%3A%2F%2F10.0.0.1%3A8000%2Fusers%3Fweight%3D20",
            "10.0.0.1".into(),
            &["tri://10.0.0.1:8000 10.0.0.1:8000 20"],
        ),
    ];
    for name in ZOOKEEPERS {
        println!("{name}");
        let server = ZookeeperServer::start(name).await;
        let mut client = server.client().await;
        for (layout, path, value, gives, changed_path, changed, then_gives) in &cases {
            let registry = with(ZookeeperRegistry {
                endpoints: vec![server.address()],
                layout: *layout,
                ..ZookeeperRegistry::default()
            });
            let mut users = Following::start(&registry, "users");
            users.until_set(&[]).await;
            // A neighbour whose name begins alike is not this service.
            let neighbour = path.replacen("users", "users-admin", 1);
            client.create(&neighbour, value, true).await;
            client.create(path, value, true).await;
            let instances = users.until_set(gives).await;
            if matches!(layout, Layout::GoMicro | Layout::Dubbo) {
                assert_eq!(instances[0].protocol, Some(Protocol::Http2), "{layout:?}");
            }
            if path == changed_path {
                client.set(path, changed).await;
            } else {
                client.create(changed_path, changed, true).await;
                client.delete(path).await;
            }
            users.until_set(then_gives).await;
            // Who comes later reads the same from the list.
            Following::start(&registry, "users").until_set(then_gives).await;
            assert_eq!(registry.clone().list().await.unwrap(), ["users", "users-admin"], "{layout:?}");
            client.delete(changed_path).await;
            users.until_set(&[]).await;
            assert_eq!(registry.clone().list().await.unwrap(), ["users-admin"], "{layout:?}");
            // And back, which is a new node.
            client.create(path, value, true).await;
            users.until_set(gives).await;
            client.delete(path).await;
            client.delete(&neighbour).await;
        }
    }
}

#[tokio::test]
async fn one_bad_value_hides_no_other_and_folders_are_no_instances() {
    for name in ENDS {
        let server = ZookeeperServer::start(name).await;
        let mut client = server.client().await;
        let config = ZookeeperRegistry {
            endpoints: vec![server.address()],
            chroot: Some("/team-a/".into()),
            prefix: Some("apps".into()),
            ..ZookeeperRegistry::default()
        };
        let registry = with(config);
        let mut users = Following::start(&registry, "users");
        let mut admin = Following::start(&registry, "users/admin");
        users.until_set(&[]).await;
        client.create("/team-a/apps/users/bad", "nonsense", true).await;
        client.create("/team-a/apps/users/good", "10.0.0.1:80", true).await;
        client.create("/team-a/apps/users/admin/a", "10.0.0.9:80", true).await;
        users.until_set(&["good 10.0.0.1:80 100"]).await;
        admin.until_set(&["a 10.0.0.9:80 100"]).await;
        // One that was good keeps what was last understood of it.
        client.set("/team-a/apps/users/good", "nonsense").await;
        client.create("/team-a/apps/users/next", "10.0.0.2:80", true).await;
        users.until_set(&["good 10.0.0.1:80 100", "next 10.0.0.2:80 100"]).await;
        client.set("/team-a/apps/users/bad", "10.0.0.3:80").await;
        client.delete("/team-a/apps/users/good").await;
        users.until_set(&["bad 10.0.0.3:80 100", "next 10.0.0.2:80 100"]).await;
        assert_eq!(registry.list().await.unwrap(), ["users", "users/admin"]);
    }
}

#[tokio::test]
async fn a_server_that_is_killed_empties_nothing_and_is_found_again() {
    for name in ENDS {
        let mut server = ZookeeperServer::start(name).await;
        server.client().await.create("/pillion/users/a", "10.0.0.1:80", false).await;
        let mut users = Following::start(&registry(&server.address()), "users");
        users.until_set(&["a 10.0.0.1:80 100"]).await;
        server.kill();
        let failure = users.until_failure(&["a 10.0.0.1:80 100"]).await;
        assert!(failure.starts_with("cannot reach 127.0.0.1:"), "{failure}");
        server.restart().await;
        users.until_set(&["a 10.0.0.1:80 100"]).await;
        server.client().await.create("/pillion/users/b", "10.0.0.2:80", false).await;
        users.until_set(&["a 10.0.0.1:80 100", "b 10.0.0.2:80 100"]).await;
        // One that lost its data is behind what was seen. It refuses for as long as the session would have lived; then
        // its truth counts.
        let start = Instant::now();
        server.restart_empty().await;
        users.until_set(&[]).await;
        println!("{name}: a server that lost its data was believed after {:.1?}", start.elapsed());
        server.client().await.create("/pillion/users/c", "10.0.0.3:80", false).await;
        users.until_set(&["c 10.0.0.3:80 100"]).await;
    }
}

#[tokio::test]
async fn a_session_is_taken_up_again_and_replaced_once_it_expired() {
    for name in ENDS {
        let server = ZookeeperServer::start(name).await;
        let mut client = server.client().await;
        let others = server.sessions().await;
        let own = async || {
            let mut sessions = server.sessions().await;
            sessions.retain(|id| !others.contains(id));
            sessions
        };
        let relay = Relay::to(server.port).await;
        client.create("/pillion/users/a", "10.0.0.1:80", true).await;
        client.create("/pillion/users/b", "10.0.0.2:80", true).await;
        let config = ZookeeperRegistry {
            endpoints: vec![relay.address()],
            // As long as the server lets it live: the first cut must be mended within it.
            session_timeout: Duration::from_secs(10),
            ..ZookeeperRegistry::default()
        };
        let mut users = Following::start(&with(config), "users");
        users.until_set(&["a 10.0.0.1:80 100", "b 10.0.0.2:80 100"]).await;
        let first = own().await;
        assert_eq!(first.len(), 1);

        // What happens while the connection is gone is not missed, whichever session comes after it.
        relay.cut();
        users.until_failure(&["a 10.0.0.1:80 100", "b 10.0.0.2:80 100"]).await;
        client.delete("/pillion/users/a").await;
        relay.mend();
        users.until_set(&["b 10.0.0.2:80 100"]).await;
        assert_eq!(own().await, first, "the same session");

        relay.cut();
        users.until_failure(&["b 10.0.0.2:80 100"]).await;
        client.set("/pillion/users/b", "10.0.0.3:80").await;
        // The server looks at its sessions once per tick.
        sleep(Duration::from_secs(12)).await;
        relay.mend();
        users.until_set(&["b 10.0.0.3:80 100"]).await;
        let second = own().await;
        assert!(second.len() == 1 && second != first, "another session than {first:?}: {second:?}");
        client.set("/pillion/users/b", "10.0.0.4:80").await;
        users.until_set(&["b 10.0.0.4:80 100"]).await;
    }
}

/// The server gives a session up while its connection is still open and only silent: it hangs up when it is asked again.
#[tokio::test]
async fn a_connection_that_falls_silent_is_noticed() {
    let server = ZookeeperServer::start(ZOOKEEPERS[0]).await;
    let mut client = server.client().await;
    client.create("/pillion/users/a", "10.0.0.1:80", true).await;
    let relay = Relay::to(server.port).await;
    let mut users = Following::start(&registry(&relay.address()), "users");
    users.until_set(&["a 10.0.0.1:80 100"]).await;
    let start = Instant::now();
    relay.silence();
    let failure = users.until_failure(&["a 10.0.0.1:80 100"]).await;
    let took = start.elapsed();
    // The server grants 10 s at most.
    println!("a silent connection was noticed after {took:.1?}: {failure}");
    assert!(took < Duration::from_secs(20) && failure.contains("nothing was heard for"), "{took:?}: {failure}");
    client.set("/pillion/users/a", "10.0.0.2:80").await;
    relay.cut();
    relay.mend();
    users.until_set(&["a 10.0.0.2:80 100"]).await;
}

#[tokio::test]
async fn of_several_servers_one_that_works_is_found() {
    let server = ZookeeperServer::start(ZOOKEEPERS[0]).await;
    let mut client = server.client().await;
    client.create("/pillion/users/a", "10.0.0.1:80", true).await;
    let (one, other) = (Relay::to(server.port).await, Relay::to(server.port).await);
    let endpoints = vec![format!("127.0.0.1:{}", free_port()), one.address(), other.address()];
    let registry = with(ZookeeperRegistry { endpoints, ..ZookeeperRegistry::default() });
    let mut users = Following::start(&registry, "users");
    users.until_set(&["a 10.0.0.1:80 100"]).await;
    for id in ["b", "c"] {
        // Whichever of them was in use, the next one takes over.
        let (cut, kept) = if id == "b" { (&one, &other) } else { (&other, &one) };
        kept.mend();
        cut.cut();
        let path = format!("/pillion/users/{id}");
        client.create(&path, "10.0.0.9:80", true).await;
        users.until_set(&["a 10.0.0.1:80 100", &format!("{id} 10.0.0.9:80 100")]).await;
        client.delete(&path).await;
        users.until_set(&["a 10.0.0.1:80 100"]).await;
    }
}

#[tokio::test]
async fn two_hundred_services_share_one_connection() {
    for name in ENDS {
        let server = ZookeeperServer::start(name).await;
        let mut client = server.client().await;
        let creates = (0..200).flat_map(|service| {
            let folder = format!("create /pillion/s{service} ''");
            let instance = move |n| format!("create -e /pillion/s{service}/{n} 10.0.{service}.{n}:80");
            std::iter::once(folder).chain((0..20).map(instance))
        });
        client.run_all(std::iter::once("create /pillion ''".into()).chain(creates)).await;
        let relay = Relay::to(server.port).await;
        let registry = registry(&relay.address());

        let (start, received) = (Instant::now(), server.number("srvr", "Received").await);
        let mut followers: Vec<_> = (0..200).map(|n| Following::start(&registry, &format!("s{n}"))).collect();
        for follower in &mut followers {
            follower.until("all", |seen| seen.instances.as_ref().is_some_and(|set| set.len() == 20)).await;
        }
        let took = start.elapsed();
        let asked = server.number("srvr", "Received").await - received;
        // A server without watches that stay hangs up on who asks for one.
        let connections = if name == ENDS[1] { 2 } else { 1 };
        assert_eq!(relay.connections(), connections, "{name}");
        let watches = server.number("wchs", "Total watches").await;
        println!("{name}: 200 services of 20 read in {took:.1?} by {asked} requests; {watches} watches");
        // The old server does not count those for names of children here.
        assert_eq!(watches, if name == ENDS[1] { 200 * 20 } else { 200 });

        // Of the two sessions that there are, each of which says something every 3.3 s.
        let pings = |start: Instant| 2 * (1 + start.elapsed().as_secs() / 3);
        let (start, received) = (Instant::now(), server.number("srvr", "Received").await);
        sleep(Duration::from_secs(10)).await;
        // Two of them are these questions.
        let idle = server.number("srvr", "Received").await - received - 1;
        println!("{name}: {idle} requests in 10 s without a change");
        assert!(idle <= pings(start), "{idle} pings");

        let (start, received) = (Instant::now(), server.number("srvr", "Received").await);
        for n in 0..10 {
            client.set("/pillion/s7/3", &format!("10.1.0.{n}:80")).await;
            followers[7]
                .until("it", |seen| {
                    seen.instances
                        .as_ref()
                        .is_some_and(|set| set.iter().any(|i| i.address.to_string() == format!("10.1.0.{n}:80")))
                })
                .await;
        }
        let changed = server.number("srvr", "Received").await - received - 1;
        println!("{name}: {changed} requests for 10 changes, 10 of them the writer's");
        assert!(changed <= 20 + pings(start), "{changed}");

        // Followers that are dropped leave no watch behind, but those that fire once.
        if name == ENDS[0] {
            followers.truncate(1);
            eventually("one watch at the server", async || server.number("wchs", "Total watches").await == 1).await;
            followers[0].mark_seen();
            client.set("/pillion/s0/3", "10.1.0.0:80").await;
            followers[0].changed().await;
        }
        drop((followers, registry));
        eventually("the session's end", async || server.sessions().await.len() == 1).await;
    }
}

#[tokio::test]
async fn users_and_passwords() {
    for name in ENDS {
        let server = ZookeeperServer::start(name).await;
        let mut client = server.client().await;
        client.run("addauth digest reader:hunter2").await;
        client.create("/pillion/users/a", "10.0.0.1:80", true).await;
        client.create("/pillion/closed/a", "10.0.0.1:80", true).await;
        client.run("setAcl /pillion/users/a auth::cdrwa").await;
        client.run("setAcl /pillion/closed auth::cdrwa").await;
        let as_user = |user: Option<&str>, password: &str| {
            with(ZookeeperRegistry {
                endpoints: vec![server.address()],
                user: user.map(Into::into),
                password: Some(Secret::new(password)),
                ..ZookeeperRegistry::default()
            })
        };
        let reader = as_user(Some("reader"), "hunter2");
        for service in ["users", "closed"] {
            Following::start(&reader, service).until_set(&["a 10.0.0.1:80 100"]).await;
        }
        assert_eq!(reader.list().await.unwrap(), ["closed", "users"]);
        for stranger in [as_user(None, ""), as_user(Some("reader"), "wrong")] {
            for (service, what) in [("users", "below /pillion/users"), ("closed", "no right to read /pillion/closed")] {
                let mut following = Following::start(&stranger, service);
                let failure = following.until_failure(&[]).await;
                assert!(failure.contains("refused: no right") && failure.contains(what), "{failure}");
            }
            let failure = stranger.list().await.unwrap_err().to_string();
            assert!(failure.contains("no right to read /pillion/closed (NoAuth)"), "{failure}");
        }
        // It keeps trying.
        let mut users = Following::start(&as_user(None, ""), "users");
        users.until_failure(&[]).await;
        client.run("setAcl /pillion/users/a world:anyone:r").await;
        users.until_set(&["a 10.0.0.1:80 100"]).await;
    }
}

#[tokio::test]
async fn tls_with_a_client_certificate() {
    for name in [ZOOKEEPERS[0], ZOOKEEPERS[1]] {
        let secure_port = free_port();
        let mut stranger = None;
        let server = ZookeeperServer::start_with(name, |dir| {
            stranger = Some(Certificates::make(dir).stranger);
            let read = |name: &str| fs::read_to_string(dir.join(name)).unwrap();
            fs::write(dir.join("server-both.pem"), read("server.key") + &read("server.pem")).unwrap();
            let dir = dir.display();
            format!(
                "secureClientPort={secure_port}\nsecureClientPortAddress=127.0.0.1\n\
                 serverCnxnFactory=org.apache.zookeeper.server.NettyServerCnxnFactory\n\
                 ssl.keyStore.location={dir}/server-both.pem\nssl.keyStore.type=PEM\n\
                 ssl.trustStore.location={dir}/ca.pem\nssl.trustStore.type=PEM\n\
                 ssl.clientAuth=need\nssl.hostnameVerification=false\n"
            )
        })
        .await;
        let path = |name: &str| server.file(name);
        server.client().await.create("/pillion/users/a", "10.0.0.1:80", false).await;
        let using = |scheme: &str, port, tls| {
            with(ZookeeperRegistry {
                endpoints: vec![format!("{scheme}127.0.0.1:{port}")],
                tls,
                ..ZookeeperRegistry::default()
            })
        };
        let whole = Tls {
            ca: Some(path("ca.pem")),
            cert: Some(path("client.pem")),
            key: Some(path("client.key")),
            server_name: None,
        };
        let mut users = Following::start(&using("tls://", secure_port, whole.clone()), "users");
        users.until_set(&["a 10.0.0.1:80 100"]).await;
        server.client().await.create("/pillion/users/b", "10.0.0.2:80", false).await;
        users.until_set(&["a 10.0.0.1:80 100", "b 10.0.0.2:80 100"]).await;

        let anonymous = Tls { cert: None, key: None, ..whole.clone() };
        let wrong_name = Tls { server_name: Some("other.internal".into()), ..whole.clone() };
        let strange_authority = Tls { ca: stranger, ..whole };
        for (scheme, tls, expected) in [
            ("tls://", anonymous, "certificate"),
            ("tls://", wrong_name, "other.internal"),
            ("tls://", strange_authority, "UnknownIssuer"),
            ("", Tls::default(), "wants TLS"),
        ] {
            let failure = Following::start(&using(scheme, secure_port, tls), "users").until_failure(&[]).await;
            assert!(failure.to_lowercase().contains(&expected.to_lowercase()), "{failure}");
        }
    }
}

#[tokio::test]
async fn a_change_arrives_in_less_than_50_ms() {
    for name in ZOOKEEPERS {
        let server = ZookeeperServer::start(name).await;
        let mut client = server.client().await;
        client.create("/pillion/users/0", "10.0.0.1:80", true).await;
        client.run_all((1..100).map(|n| format!("create -e /pillion/users/{n} 10.0.0.1:80"))).await;
        let mut users = Following::start(&registry(&server.address()), "users");
        users.until("the first set", |seen| seen.instances.as_ref().is_some_and(|set| set.len() == 100)).await;
        let what = format!("{name}: from the start of the change to the sink");
        let mut host = 1;
        median_below(&what, Duration::from_millis(50), async || {
            let mut times = Vec::new();
            host += 1;
            for n in 0..100 {
                users.mark_seen();
                let asked = Instant::now();
                client.set(&format!("/pillion/users/{n}"), &format!("10.0.0.{host}:{}", n + 1)).await;
                users.changed().await;
                times.push(asked.elapsed());
            }
            times
        })
        .await;
    }
}
