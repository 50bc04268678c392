//! The etcd registry against real etcds, every version that is installed.

use crate::{
    e2e::median_below,
    following::Following,
    relay::Relay,
    servers::{EtcdServer, etcds, free_port},
};
use pillion::{
    config::{EtcdRegistry, Layout, Secret, Tls},
    registry::{Etcd, Protocol, Registry},
};
use std::{path::PathBuf, sync::Arc, time::Duration};
use tokio::time::Instant;

fn registry(url: &str) -> Arc<Etcd> {
    with(EtcdRegistry { endpoints: vec![url.into()], ..EtcdRegistry::default() })
}

fn with(config: EtcdRegistry) -> Arc<Etcd> {
    Arc::new(Etcd::new("main", &config).unwrap())
}

/// Runs a test on each version.
async fn on_each(test: impl AsyncFn(&str, PathBuf)) {
    for (version, binary) in etcds() {
        println!("etcd {version}");
        test(&version, binary).await;
    }
}

/// Layout, key, value, the instances that it gives, a changed value, the instances that this gives.
type Case = (Layout, &'static str, String, &'static [&'static str], String, &'static [&'static str]);

#[tokio::test]
async fn a_change_is_followed_in_every_layout() {
    on_each(async |_, binary| {
        let etcd = EtcdServer::start(&binary).await;
        // Values are what the frameworks put, byte by byte.
        let kratos = |weight| format!(r#"{{"id":"7d9e","name":"users","version":"v1","metadata":{{"weight":"{weight}"}},"endpoints":["http://10.0.0.1:8000","grpc://10.0.0.1:9000"]}}"#);
        let micro = |weight| format!(r#"{{"name":"users","version":"latest","metadata":null,"endpoints":[],"nodes":[{{"id":"users-1","address":"10.0.0.1:8000","metadata":{{"protocol":"grpc","weight":"{weight}"}}}}]}}"#);
        let grpc = |weight| format!(r#"{{"Op":0,"Addr":"10.0.0.1:8000","Metadata":{{"weight":{weight}}}}}"#);
        let plain = |weight| format!(r#"{{"address":"10.0.0.1:8000","weight":{weight}}}"#);
        let cases: [Case; 5] = [
            (Layout::Plain, "/pillion/users/a", plain(10), &["a 10.0.0.1:8000 10"], plain(20), &["a 10.0.0.1:8000 20"]),
            (
                Layout::Kratos, "/microservices/users/7d9e", kratos(10),
                &["7d9e/grpc 10.0.0.1:9000 10", "7d9e/http 10.0.0.1:8000 10"], kratos(20),
                &["7d9e/grpc 10.0.0.1:9000 20", "7d9e/http 10.0.0.1:8000 20"],
            ),
            (Layout::GoMicro, "/micro/registry/users/users-1", micro(10), &["users-1 10.0.0.1:8000 10"], micro(20), &["users-1 10.0.0.1:8000 20"]),
            (Layout::GoZero, "users/7587870137262312214", "10.0.0.1:8000".into(), &["10.0.0.1:8000 10.0.0.1:8000 100"], "10.0.0.2:8000".into(), &["10.0.0.2:8000 10.0.0.2:8000 100"]),
            (Layout::Grpc, "users/10.0.0.1:8000", grpc(10), &["10.0.0.1:8000 10.0.0.1:8000 10"], grpc(20), &["10.0.0.1:8000 10.0.0.1:8000 20"]),
        ];
        for (layout, key, value, gives, changed, then_gives) in cases {
            let registry = with(EtcdRegistry { endpoints: vec![etcd.url()], layout, ..EtcdRegistry::default() });
            let mut users = Following::start(&registry, "users");
            users.until_set(&[]).await;
            // A neighbour whose name begins alike is not this service.
            etcd.put(&key.replacen("users", "users-admin", 1), &value).await;
            etcd.put(key, value).await;
            let instances = users.until_set(gives).await;
            if matches!(layout, Layout::Grpc | Layout::GoMicro) {
                assert_eq!(instances[0].protocol, Some(Protocol::Http2), "{layout:?}");
            }
            etcd.put(key, changed).await;
            users.until_set(then_gives).await;
            // Who comes later reads the same from the list.
            Following::start(&registry, "users").until_set(then_gives).await;
            etcd.delete(key).await;
            users.until_set(&[]).await;
            let mut listed = registry.clone().list().await.unwrap();
            listed.retain(|name| !name.starts_with('/'));
            assert_eq!(listed, ["users-admin"], "{layout:?}");
            etcd.delete(&key.replacen("users", "users-admin", 1)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn one_bad_value_hides_no_other() {
    on_each(async |_, binary| {
        let etcd = EtcdServer::start(&binary).await;
        etcd.put("/pillion/users/bad", b"\xff{").await;
        etcd.put("/pillion/users/good", "10.0.0.1:80").await;
        let mut users = Following::start(&registry(&etcd.url()), "users");
        users.until_set(&["good 10.0.0.1:80 100"]).await;
        // One that was good keeps what was last understood of it.
        etcd.put("/pillion/users/good", "nonsense").await;
        etcd.put("/pillion/users/next", "10.0.0.2:80").await;
        users.until_set(&["good 10.0.0.1:80 100", "next 10.0.0.2:80 100"]).await;
        etcd.put("/pillion/users/bad", "10.0.0.3:80").await;
        etcd.delete("/pillion/users/good").await;
        users.until_set(&["bad 10.0.0.3:80 100", "next 10.0.0.2:80 100"]).await;
    })
    .await;
}

#[tokio::test]
async fn a_server_that_is_killed_empties_nothing_and_is_found_again() {
    on_each(async |_, binary| {
        let mut etcd = EtcdServer::start(&binary).await;
        etcd.put("/pillion/users/a", "10.0.0.1:80").await;
        let mut users = Following::start(&registry(&etcd.url()), "users");
        users.until_set(&["a 10.0.0.1:80 100"]).await;
        etcd.kill();
        let failure = users.until_failure(&["a 10.0.0.1:80 100"]).await;
        assert!(failure.starts_with("cannot reach http://127.0.0.1:"), "{failure}");
        etcd.restart().await;
        users.until_set(&["a 10.0.0.1:80 100"]).await;
        etcd.put("/pillion/users/b", "10.0.0.2:80").await;
        users.until_set(&["a 10.0.0.1:80 100", "b 10.0.0.2:80 100"]).await;
        // A new cluster on the same port, with lower revisions: its truth counts, once it is told.
        etcd.restart_empty().await;
        users.until_set(&[]).await;
        etcd.put("/pillion/users/c", "10.0.0.3:80").await;
        users.until_set(&["c 10.0.0.3:80 100"]).await;
    })
    .await;
}

#[tokio::test]
async fn a_compaction_while_away_loses_nothing() {
    on_each(async |_, binary| {
        let etcd = EtcdServer::start(&binary).await;
        let relay = Relay::to(etcd.port).await;
        etcd.put("/pillion/users/a", "10.0.0.1:80").await;
        etcd.put("/pillion/users/b", "10.0.0.2:80").await;
        let mut users = Following::start(&registry(&format!("http://127.0.0.1:{}", relay.port)), "users");
        users.until_set(&["a 10.0.0.1:80 100", "b 10.0.0.2:80 100"]).await;
        relay.cut();
        users.until_failure(&["a 10.0.0.1:80 100", "b 10.0.0.2:80 100"]).await;
        etcd.delete("/pillion/users/a").await;
        let revision = etcd.put("/pillion/users/c", "10.0.0.3:80").await;
        etcd.compact(revision).await;
        relay.mend();
        users.until_set(&["b 10.0.0.2:80 100", "c 10.0.0.3:80 100"]).await;
    })
    .await;
}

#[tokio::test]
async fn a_server_that_hangs_is_noticed() {
    on_each(async |version, binary| {
        let etcd = EtcdServer::start(&binary).await;
        etcd.put("/pillion/users/a", "10.0.0.1:80").await;
        let mut users = Following::start(&registry(&etcd.url()), "users");
        users.until_set(&["a 10.0.0.1:80 100"]).await;
        etcd.signal("STOP");
        let start = Instant::now();
        users.until_failure(&["a 10.0.0.1:80 100"]).await;
        let took = start.elapsed();
        println!("etcd {version}: a hanging server was noticed after {took:.1?}");
        // Without asking it would never be.
        assert!(took < Duration::from_secs(45), "{took:?}");
        etcd.signal("CONT");
        users.until_set(&["a 10.0.0.1:80 100"]).await;
    })
    .await;
}

#[tokio::test]
async fn of_several_endpoints_one_that_works_is_found() {
    on_each(async |_, binary| {
        let etcd = EtcdServer::start(&binary).await;
        etcd.put("/pillion/users/a", "10.0.0.1:80").await;
        let (one, other) = (Relay::to(etcd.port).await, Relay::to(etcd.port).await);
        let url = |port| format!("http://127.0.0.1:{port}");
        let endpoints = vec![url(free_port()), url(one.port), url(other.port)];
        let registry = with(EtcdRegistry { endpoints, ..EtcdRegistry::default() });
        let mut users = Following::start(&registry, "users");
        users.until_set(&["a 10.0.0.1:80 100"]).await;
        for id in ["b", "c"] {
            // Whichever of them was in use, the next one takes over.
            let (cut, kept) = if id == "b" { (&one, &other) } else { (&other, &one) };
            kept.mend();
            cut.cut();
            let key = format!("/pillion/users/{id}");
            etcd.put(&key, "10.0.0.9:80").await;
            users.until_set(&["a 10.0.0.1:80 100", &format!("{id} 10.0.0.9:80 100")]).await;
            etcd.delete(&key).await;
            users.until_set(&["a 10.0.0.1:80 100"]).await;
        }
    })
    .await;
}

#[tokio::test]
async fn all_services_share_one_connection() {
    on_each(async |_, binary| {
        let etcd = EtcdServer::start(&binary).await;
        let relay = Relay::to(etcd.port).await;
        let registry = registry(&format!("http://127.0.0.1:{}", relay.port));
        let mut followers: Vec<_> = (0..50).map(|n| Following::start(&registry, &format!("s{n}"))).collect();
        for (n, follower) in followers.iter_mut().enumerate() {
            follower.until_set(&[]).await;
            etcd.put(&format!("/pillion/s{n}/a"), "10.0.0.1:80").await;
            follower.until_set(&["a 10.0.0.1:80 100"]).await;
        }
        assert_eq!(relay.connections(), 1);
        // Followers that are dropped leave no watch behind: the server counts them.
        drop(followers);
        let mut first = Following::start(&registry, "s0");
        first.until_set(&["a 10.0.0.1:80 100"]).await;
        crate::servers::eventually("one watcher at the server", async || etcd.watchers().await == 1).await;
    })
    .await;
}

#[tokio::test]
async fn users_and_passwords() {
    on_each(async |_, binary| {
        let etcd = EtcdServer::start(&binary).await;
        etcd.put("/pillion/users/a", "10.0.0.1:80").await;
        etcd.etcdctl(&["user", "add", "root:secret"]);
        etcd.etcdctl(&["user", "add", "reader:hunter2"]);
        etcd.etcdctl(&["role", "add", "reader"]);
        etcd.etcdctl(&["role", "grant-permission", "--prefix=true", "reader", "read", "/pillion/"]);
        etcd.etcdctl(&["user", "grant-role", "root", "root"]);
        etcd.etcdctl(&["user", "grant-role", "reader", "reader"]);
        let as_user = |user: Option<&str>, password: &str, prefix: Option<&str>| {
            with(EtcdRegistry {
                endpoints: vec![etcd.url()],
                user: user.map(Into::into),
                password: Some(Secret::new(password)),
                prefix: prefix.map(Into::into),
                ..EtcdRegistry::default()
            })
        };
        let reader = as_user(Some("reader"), "hunter2", None);
        // Credentials are no hindrance while the cluster does not ask for any.
        let mut early = Following::start(&reader, "users");
        early.until_set(&["a 10.0.0.1:80 100"]).await;
        etcd.etcdctl(&["auth", "enable"]);
        // The same connection, which has no token yet.
        Following::start(&reader, "users").until_set(&["a 10.0.0.1:80 100"]).await;

        for (registry, expected) in [
            (as_user(None, "", None), "user name is empty"),
            (as_user(Some("reader"), "wrong", None), "authentication failed"),
            (as_user(Some("reader"), "hunter2", Some("/other")), "permission denied"),
        ] {
            let failure = Following::start(&registry, "users").until_failure(&[]).await;
            assert!(failure.contains("refused") && failure.contains(expected), "{failure}");
            let failure = registry.list().await.unwrap_err().to_string();
            assert!(failure.contains(expected), "{failure}");
        }

        // All tokens are void after this, on a connection that stays.
        etcd.etcdctl(&["--user", "root:secret", "auth", "disable"]);
        etcd.etcdctl(&["auth", "enable"]);
        Following::start(&reader, "users").until_set(&["a 10.0.0.1:80 100"]).await;
        etcd.etcdctl(&["--user", "root:secret", "put", "/pillion/users/b", "10.0.0.2:80"]);
        early.until_set(&["a 10.0.0.1:80 100", "b 10.0.0.2:80 100"]).await;
    })
    .await;
}

#[tokio::test]
async fn tls_with_a_client_certificate() {
    on_each(async |_, binary| {
        let dir = tempfile::tempdir().unwrap();
        let certificates = crate::servers::Certificates::make(dir.path());
        let path = |name: &str| dir.path().join(name);
        let text = |name: &str| path(name).to_str().unwrap().to_owned();
        let (ca, cert, key) = (text("ca.pem"), text("server.pem"), text("server.key"));
        let args = ["--client-cert-auth", "--trusted-ca-file", &ca, "--cert-file", &cert, "--key-file", &key];
        let etcd = EtcdServer::start_with(&binary, "https", tempfile::tempdir().unwrap(), &args).await;
        let (client_cert, client_key) = (text("client.pem"), text("client.key"));
        let flags = ["--cacert", &ca, "--cert", &client_cert, "--key", &client_key];
        etcd.etcdctl(&[&flags[..], &["put", "/pillion/users/a", "10.0.0.1:80"]].concat());
        let using = |tls| with(EtcdRegistry { endpoints: vec![etcd.url()], tls, ..EtcdRegistry::default() });

        let whole = Tls {
            ca: Some(path("ca.pem")),
            cert: Some(path("client.pem")),
            key: Some(path("client.key")),
            server_name: None,
        };
        let mut users = Following::start(&using(whole.clone()), "users");
        users.until_set(&["a 10.0.0.1:80 100"]).await;
        etcd.etcdctl(&[&flags[..], &["put", "/pillion/users/b", "10.0.0.2:80"]].concat());
        users.until_set(&["a 10.0.0.1:80 100", "b 10.0.0.2:80 100"]).await;

        let anonymous = Tls { cert: None, key: None, ..whole.clone() };
        let wrong_name = Tls { server_name: Some("other.internal".into()), ..whole.clone() };
        let strange_authority = Tls { ca: Some(certificates.stranger), ..whole };
        for (tls, expected) in
            [(anonymous, "certificate"), (wrong_name, "other.internal"), (strange_authority, "UnknownIssuer")]
        {
            let failure = Following::start(&using(tls), "users").until_failure(&[]).await;
            assert!(failure.contains(expected), "{failure}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_thousand_services_are_listed_and_a_large_one_is_read_whole() {
    on_each(async |version, binary| {
        let etcd = EtcdServer::start(&binary).await;
        let puts = (0..6000).map(|n| {
            let key = if n < 1000 { format!("/pillion/s{n:04}/a") } else { format!("/pillion/large/{n}") };
            let etcd = &etcd;
            async move { etcd.put(&key, format!("10.1.{}.{}:80", n / 250, n % 250)).await }
        });
        futures_util::future::join_all(puts).await;
        let registry = registry(&etcd.url());
        let start = Instant::now();
        let listed = registry.clone().list().await.unwrap();
        println!("etcd {version}: {} services of 6,000 keys listed in {:.1?}", listed.len(), start.elapsed());
        assert_eq!(listed.len(), 1001);
        let start = Instant::now();
        let mut large = Following::start(&registry, "large");
        large.until("all of them", |seen| seen.instances.as_ref().is_some_and(|set| set.len() == 5000)).await;
        println!("etcd {version}: 5,000 instances read in {:.1?}", start.elapsed());
    })
    .await;
}

#[tokio::test]
async fn a_change_arrives_in_less_than_20_ms() {
    on_each(async |version, binary| {
        let etcd = EtcdServer::start(&binary).await;
        for n in 0..100 {
            etcd.put(&format!("/pillion/users/{n}"), "10.0.0.1:80").await;
        }
        let mut users = Following::start(&registry(&etcd.url()), "users");
        users.until("the first set", |seen| seen.instances.as_ref().is_some_and(|set| set.len() == 100)).await;
        // The news is often here before the writer has its answer; so this is the honest upper bound.
        let what = format!("etcd {version}: from the start of the put to the sink");
        // None of them is the one that is meant where none is said, 100: that would be no news.
        let mut weight = 1000;
        median_below(&what, Duration::from_millis(20), async || {
            let mut times = Vec::new();
            for n in 0..100 {
                weight += 1;
                users.mark_seen();
                let value = format!(r#"{{"address":"10.0.0.1:80","weight":{weight}}}"#);
                let asked = Instant::now();
                etcd.put(&format!("/pillion/users/{n}"), value).await;
                users.changed().await;
                times.push(asked.elapsed());
            }
            times
        })
        .await;
    })
    .await;
}
