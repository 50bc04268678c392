//! The Consul registry against a real agent.

use crate::{
    e2e::median_below,
    following::{Following, shown},
    relay::Relay,
    servers::{Certificates, ConsulServer, free_port},
};
use futures_util::future::join_all;
use pillion::{
    config::{ConsulRegistry, Secret, Tls},
    registry::{Consul, Observation, Registry},
};
use serde_json::json;
use std::{cell::Cell, num::NonZeroU32, sync::Arc, time::Duration};
use tokio::time::Instant;

fn to(port: u16) -> ConsulRegistry {
    ConsulRegistry { address: format!("http://127.0.0.1:{port}"), ..ConsulRegistry::default() }
}

fn open(config: ConsulRegistry) -> Arc<Consul> {
    Arc::new(Consul::new("main", &config).unwrap())
}

#[tokio::test]
async fn a_change_is_followed() {
    let consul = ConsulServer::start().await;
    let registry = open(to(consul.port));
    let mut users = Following::start(&registry, "users");
    users.until_set(&[]).await;
    let instance = |weight: u32| {
        json!({"ID": "a", "Name": "users", "Address": "10.0.0.1", "Port": 8000, "Tags": ["blue"],
               "Meta": {"version": "v1"}, "Weights": {"Passing": weight, "Warning": 1}})
    };
    consul.register(&instance(10)).await;
    let set = users.until_set(&["n1/a 10.0.0.1:8000 10"]).await;
    assert_eq!((set[0].version(), set[0].labels["tag.blue"].as_str()), (Some("v1"), "true"));
    consul.register(&instance(20)).await;
    users.until_set(&["n1/a 10.0.0.1:8000 20"]).await;
    // Without an address of its own, it is at the agent's.
    consul.register(&json!({"ID": "b", "Name": "users", "Port": 8001})).await;
    users.until_set(&["n1/a 10.0.0.1:8000 20", "n1/b 127.0.0.1:8001 1"]).await;
    // A name that needs escaping in a path.
    consul.register(&json!({"ID": "odd", "Name": "a b%2F", "Address": "10.0.0.1", "Port": 80})).await;
    Following::start(&registry, "a b%2F").until_set(&["n1/odd 10.0.0.1:80 1"]).await;

    let mut listed = registry.clone().list().await.unwrap();
    listed.sort();
    assert_eq!(listed, ["a b%2F", "consul", "users"]);
    consul.put("/v1/agent/service/deregister/a", &json!(null)).await;
    users.until_set(&["n1/b 127.0.0.1:8001 1"]).await;
    // A whole node in maintenance is critical.
    consul.put("/v1/agent/maintenance?enable=true", &json!(null)).await;
    users.until_set(&[]).await;
}

#[tokio::test]
async fn checks_decide_who_is_in() {
    let consul = ConsulServer::start().await;
    let mut passing = Following::start(&open(to(consul.port)), "users");
    let mut usable = Following::start(&open(ConsulRegistry { only_passing: false, ..to(consul.port) }), "users");
    consul
        .register(&json!({"ID": "a", "Name": "users", "Address": "10.0.0.1", "Port": 80,
            "Weights": {"Passing": 10, "Warning": 3}, "Check": {"CheckID": "c", "TTL": "10m", "Status": "passing"}}))
        .await;
    for (state, in_passing, in_usable) in [
        ("pass", Some("n1/a 10.0.0.1:80 10"), Some("n1/a 10.0.0.1:80 10")),
        ("warn", None, Some("n1/a 10.0.0.1:80 3")),
        ("fail", None, None),
        ("pass", Some("n1/a 10.0.0.1:80 10"), Some("n1/a 10.0.0.1:80 10")),
    ] {
        consul.put(&format!("/v1/agent/check/{state}/c"), &json!(null)).await;
        passing.until_set(in_passing.as_slice()).await;
        usable.until_set(in_usable.as_slice()).await;
    }
}

#[tokio::test]
async fn tags_and_metadata_choose() {
    let consul = ConsulServer::start().await;
    let odd = r#"it's "odd" \ & 100%"#;
    for (id, tags, stage) in
        [("a", vec!["blue", "eu"], "prod"), ("b", vec!["blue"], "prod"), ("c", vec!["blue", "eu"], odd)]
    {
        consul
            .register(&json!({"ID": id, "Name": "users", "Address": "10.0.0.1", "Port": 80, "Tags": tags, "Meta": {"stage-of": stage}}))
            .await;
    }
    let chosen = |tags: &[&str], meta: &[(&str, &str)]| {
        open(ConsulRegistry {
            tags: tags.iter().map(ToString::to_string).collect(),
            meta: meta.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect(),
            ..to(consul.port)
        })
    };
    for (tags, meta, ids) in [
        (&["blue"][..], &[][..], &["a", "b", "c"][..]),
        (&["blue", "eu"], &[], &["a", "c"]),
        (&["blue", "eu"], &[("stage-of", "prod")], &["a"]),
        (&[], &[("stage-of", odd)], &["c"]),
        (&[], &[("no-such", "x")], &[]),
    ] {
        let wanted: Vec<_> = ids.iter().map(|id| format!("n1/{id} 10.0.0.1:80 1")).collect();
        let wanted: Vec<_> = wanted.iter().map(String::as_str).collect();
        Following::start(&chosen(tags, meta), "users").until_set(&wanted).await;
    }
}

#[tokio::test]
async fn an_agent_that_is_killed_empties_nothing_and_is_found_again() {
    let mut consul = ConsulServer::start_with_data().await;
    let users = json!({"ID": "a", "Name": "users", "Address": "10.0.0.1", "Port": 80});
    consul.register(&users).await;
    let mut follower = Following::start(&open(to(consul.port)), "users");
    follower.until_set(&["n1/a 10.0.0.1:80 1"]).await;
    consul.kill();
    let failure = follower.until_failure(&["n1/a 10.0.0.1:80 1"]).await;
    assert!(failure.starts_with("cannot reach http://127.0.0.1:"), "{failure}");
    consul.restart().await;
    follower.until_set(&["n1/a 10.0.0.1:80 1"]).await;
    consul.register(&json!({"ID": "b", "Name": "users", "Address": "10.0.0.2", "Port": 80})).await;
    follower.until_set(&["n1/a 10.0.0.1:80 1", "n1/b 10.0.0.2:80 1"]).await;
    consul.put("/v1/agent/service/deregister/a", &json!(null)).await;
    follower.until_set(&["n1/b 10.0.0.2:80 1"]).await;
}

#[tokio::test]
async fn an_index_that_goes_back_starts_over() {
    // A development agent forgets everything, so its index starts again far below.
    let mut consul = ConsulServer::start().await;
    for n in 0..50 {
        consul.register(&json!({"ID": "x", "Name": "other", "Address": "10.0.0.1", "Port": 1000 + n})).await;
    }
    consul.register(&json!({"ID": "a", "Name": "users", "Address": "10.0.0.1", "Port": 80})).await;
    let mut users = Following::start(&open(to(consul.port)), "users");
    users.until_set(&["n1/a 10.0.0.1:80 1"]).await;
    consul.restart().await;
    users.until_set(&[]).await;
    consul.register(&json!({"ID": "b", "Name": "users", "Address": "10.0.0.2", "Port": 80})).await;
    users.until_set(&["n1/b 10.0.0.2:80 1"]).await;
}

/// It answers meanwhile, from as much of its log as it has read: with what there was long ago.
#[tokio::test]
async fn a_server_that_reads_its_log_again_takes_nothing_back() {
    let mut consul = ConsulServer::start_with_data().await;
    for n in 0..1500 {
        consul.register(&json!({"ID": "a", "Name": "users", "Address": "10.0.0.1", "Port": 1000 + n})).await;
    }
    let registry = open(ConsulRegistry { max_requests_per_second: NonZeroU32::new(1000).unwrap(), ..to(consul.port) });
    let now = "n1/a 10.0.0.1:2499 1";
    // So many that one at least asks in that time.
    let mut followers: Vec<_> = (0..40).map(|_| Following::start(&registry, "users")).collect();
    for users in &mut followers {
        users.until_set(&[now]).await;
    }
    let again = followers.iter_mut().map(async |users| {
        let failed = Cell::new(false);
        let answers = |seen: &Observation| {
            assert_eq!(shown(seen.instances.as_deref().unwrap()), [now]);
            failed.set(failed.get() || seen.failure.is_some());
            failed.get() && seen.failure.is_none()
        };
        users.until("an answer after a failure", answers).await;
    });
    tokio::join!(consul.restart(), join_all(again));
    // And one who comes just then.
    consul.kill();
    let (mut late, ()) = tokio::join!(async { Following::start(&registry, "users") }, consul.restart());
    late.until("the first answer", |seen| {
        assert!(seen.instances.as_deref().is_none_or(|set| shown(set) == [now]), "{:?}", seen.instances);
        seen.instances.is_some()
    })
    .await;
}

#[tokio::test]
async fn an_agent_that_hangs_is_noticed() {
    let consul = ConsulServer::start().await;
    consul.register(&json!({"ID": "a", "Name": "users", "Address": "10.0.0.1", "Port": 80})).await;
    let registry = open(ConsulRegistry { wait: Duration::from_secs(1), ..to(consul.port) });
    let mut users = Following::start(&registry, "users");
    users.until_set(&["n1/a 10.0.0.1:80 1"]).await;
    consul.signal("STOP");
    let start = Instant::now();
    users.until_failure(&["n1/a 10.0.0.1:80 1"]).await;
    println!("consul: a hanging agent was noticed after {:.1?} (of which 1 s is `wait`)", start.elapsed());
    assert!(start.elapsed() < registry.silence_limit());
    consul.signal("CONT");
    users.until_set(&["n1/a 10.0.0.1:80 1"]).await;
}

#[tokio::test]
async fn rights_that_are_missing_are_a_failure_and_not_an_empty_service() {
    let root = "11111111-1111-1111-1111-111111111111";
    let consul = ConsulServer::start_with(&format!(
        r#"acl {{ enabled = true, default_policy = "deny", tokens {{ initial_management = "{root}", agent = "{root}" }} }}"#
    ))
    .await
    .with_token(root)
    .await;
    consul.register(&json!({"ID": "a", "Name": "users", "Address": "10.0.0.1", "Port": 80})).await;
    consul.register(&json!({"ID": "o", "Name": "orders", "Address": "10.0.0.1", "Port": 80})).await;
    let rules = r#"service "users" { policy = "read" } node_prefix "" { policy = "read" }"#;
    consul.put("/v1/acl/policy", &json!({"Name": "reader", "Rules": rules})).await;
    let reader = "22222222-2222-2222-2222-222222222222";
    consul.put("/v1/acl/token", &json!({"SecretID": reader, "Policies": [{"Name": "reader"}]})).await;
    let with = |token: Option<&str>| open(ConsulRegistry { token: token.map(Secret::new), ..to(consul.port) });

    // Short, because a query that waits already may not hear of rights that are taken away.
    let mine = ConsulRegistry { token: Some(Secret::new(reader)), wait: Duration::from_secs(1), ..to(consul.port) };
    let mut users = Following::start(&open(mine), "users");
    users.until_set(&["n1/a 10.0.0.1:80 1"]).await;
    for (token, service) in [(None, "users"), (Some("no-such-token"), "users"), (Some(reader), "orders")] {
        let failure = Following::start(&with(token), service).until_failure(&[]).await;
        println!("consul: {token:?} {service}: {failure}");
        assert!(failure.contains("refused"), "{failure}");
    }
    assert!(with(None).list().await.unwrap_err().to_string().contains("refused"));
    assert_eq!(with(Some(reader)).list().await.unwrap(), ["users"]);
    // Rights that are taken away while the service is followed keep the last set.
    consul.put("/v1/acl/policy", &json!({"Name": "nothing", "Rules": ""})).await;
    let token: serde_json::Value = serde_json::from_str(&consul.get("/v1/acl/tokens").await).unwrap();
    let of_reader = token.as_array().unwrap().iter().find(|token| token["SecretID"] == reader).unwrap();
    consul
        .put(
            &format!("/v1/acl/token/{}", of_reader["AccessorID"].as_str().unwrap()),
            &json!({"Policies": [{"Name": "nothing"}]}),
        )
        .await;
    consul.register(&json!({"ID": "b", "Name": "users", "Address": "10.0.0.2", "Port": 80})).await;
    users.until_failure(&["n1/a 10.0.0.1:80 1"]).await;
}

#[tokio::test]
async fn a_datacenter_is_asked_for() {
    let consul = ConsulServer::start().await;
    consul.register(&json!({"ID": "a", "Name": "users", "Address": "10.0.0.1", "Port": 80})).await;
    let at = |dc: &str| open(ConsulRegistry { dc: Some(dc.into()), ..to(consul.port) });
    Following::start(&at("dc1"), "users").until_set(&["n1/a 10.0.0.1:80 1"]).await;
    let failure = Following::start(&at("atlantis"), "users").until_failure(&[]).await;
    assert!(failure.contains("No path to datacenter"), "{failure}");
}

#[tokio::test]
async fn tls_with_a_client_certificate() {
    let dir = tempfile::tempdir().unwrap();
    let certificates = Certificates::make(dir.path());
    let path = |name: &str| dir.path().join(name);
    let https = free_port();
    let consul = ConsulServer::start_with(&format!(
        "ports {{ https = {https} }} tls {{ https {{ ca_file = {:?}, cert_file = {:?}, key_file = {:?}, verify_incoming = true }} }}",
        path("ca.pem"), path("server.pem"), path("server.key")
    ))
    .await;
    consul.register(&json!({"ID": "a", "Name": "users", "Address": "10.0.0.1", "Port": 80})).await;
    let with =
        |tls| open(ConsulRegistry { address: format!("https://127.0.0.1:{https}"), tls, ..ConsulRegistry::default() });
    let whole = Tls {
        ca: Some(path("ca.pem")),
        cert: Some(path("client.pem")),
        key: Some(path("client.key")),
        server_name: None,
    };
    let mut users = Following::start(&with(whole.clone()), "users");
    users.until_set(&["n1/a 10.0.0.1:80 1"]).await;
    consul.register(&json!({"ID": "b", "Name": "users", "Address": "10.0.0.2", "Port": 80})).await;
    users.until_set(&["n1/a 10.0.0.1:80 1", "n1/b 10.0.0.2:80 1"]).await;
    let named = Tls { server_name: Some("localhost".into()), ..whole.clone() };
    Following::start(&with(named), "users").until("an answer", |seen| seen.instances.is_some()).await;
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
async fn the_agent_is_asked_seldom() {
    let consul = ConsulServer::start().await;
    let relay = Relay::to(consul.port).await;
    consul.register(&json!({"ID": "a", "Name": "users", "Address": "10.0.0.1", "Port": 80})).await;
    let registry = open(to(relay.port));
    let mut users = Following::start(&registry, "users");
    users.until_set(&["n1/a 10.0.0.1:80 1"]).await;
    let mut absent = Following::start(&registry, "no-such-service");
    absent.until_set(&[]).await;
    // Two hundred changes of another service, the last of which is seen through another client.
    let start = Instant::now();
    let mut other = Following::start(&open(to(consul.port)), "other");
    for n in 0..200 {
        consul.register(&json!({"ID": "x", "Name": "other", "Address": "10.0.0.1", "Port": 1000 + n})).await;
    }
    other.until_set(&["n1/x 10.0.0.1:1199 1"]).await;
    println!("consul: {} requests for two services while another one changed 200 times", relay.requests());
    // Those that are woken in vain again and again ask once per second, on the average: the longer it took, the more of them.
    let most = 20 + 3 * start.elapsed().as_secs() as usize;
    assert!(relay.requests() <= most.min(150), "{} in {:?}", relay.requests(), start.elapsed());
    // What was slowed down still follows.
    consul.register(&json!({"ID": "n", "Name": "no-such-service", "Address": "10.0.0.1", "Port": 80})).await;
    absent.until_set(&["n1/n 10.0.0.1:80 1"]).await;
}

#[tokio::test]
async fn an_agent_that_is_full_is_waited_for() {
    let consul = ConsulServer::start_with("limits { http_max_conns_per_client = 4 }").await;
    let registry = open(to(consul.port));
    let mut followers: Vec<_> = (0..8).map(|n| Following::start(&registry, &format!("s{n}"))).collect();
    let mut full = 0;
    for follower in &mut followers {
        let seen = follower.until("an answer or a failure", |seen| seen.heard.is_some()).await;
        full += usize::from(seen.failure.is_some());
    }
    println!("consul: {full} of 8 were told that there are too many connections");
    // As soon as there is room, those get their turn.
    let last = followers.split_off(6);
    drop(followers);
    for mut follower in last {
        follower.until_set(&[]).await;
    }
}

#[tokio::test]
async fn a_change_arrives_in_less_than_20_ms() {
    let consul = ConsulServer::start().await;
    for n in 0..100 {
        consul.put("/v1/catalog/register", &external(n, 80)).await;
    }
    let fast = NonZeroU32::new(1000).unwrap();
    let mut users =
        Following::start(&open(ConsulRegistry { max_requests_per_second: fast, ..to(consul.port) }), "users");
    users.until("the first set", |seen| seen.instances.as_ref().is_some_and(|set| set.len() == 100)).await;
    let mut port = 80;
    median_below("consul: from the answer to the registration to the sink", Duration::from_millis(20), async || {
        let mut times = Vec::new();
        port += 1;
        for n in 0..100 {
            users.mark_seen();
            consul.put("/v1/catalog/register", &external(n, port)).await;
            let committed = Instant::now();
            users.changed().await;
            times.push(committed.elapsed());
        }
        times
    })
    .await;
}

/// A service on a node without an agent, which the catalog answers only when it is committed.
fn external(n: u32, port: u16) -> serde_json::Value {
    json!({"Node": format!("ext{n}"), "Address": "10.0.0.1", "Service": {"ID": format!("u{n}"), "Service": "users", "Port": port}})
}
