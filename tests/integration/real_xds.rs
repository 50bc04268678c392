//! The xDS registry against a control plane made of go-control-plane, in both variants of the protocol and with both of
//! its caches; and beside an Envoy that takes the same.

use crate::{
    e2e::median_below,
    following::Following,
    relay::Relay,
    servers::{Certificates, ControlPlane, Envoy, eventually, free_port},
};
use pillion::{
    config::{Secret, Tls, XdsDiscover, XdsNode, XdsProtocol, XdsRegistry},
    registry::{Protocol, Registry, Xds},
};
use serde_json::{Value, json};
use std::{path::Path, sync::Arc, time::Duration};
use tempfile::TempDir;
use tokio::time::{Instant, sleep, timeout};

const NODE: &str = "web-1";
const EDS: &str = "ClusterLoadAssignment";
const CDS: &str = "Cluster";

fn config(url: &str) -> XdsRegistry {
    let node = XdsNode { id: Some(NODE.into()), zone: Some("eu-1".into()), ..XdsNode::default() };
    XdsRegistry { servers: vec![url.into()], node, ..XdsRegistry::default() }
}

fn with(config: &XdsRegistry) -> Arc<Xds> {
    Arc::new(Xds::new("main", config).unwrap())
}

fn registry(url: &str) -> Arc<Xds> {
    with(&config(url))
}

/// A cluster whose endpoints come by EDS under `service`.
fn eds_cluster(name: &str, service: &str) -> Value {
    let eds = json!({"eds_config": {"ads": {}, "resource_api_version": "V3"}, "service_name": service});
    json!({"name": name, "type": "EDS", "connect_timeout": "1s", "eds_cluster_config": eds})
}

fn endpoint(host: &str, more: Value) -> Value {
    let mut endpoint = json!({"endpoint": {"address": {"socket_address": {"address": host, "port_value": 80}}}});
    endpoint.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    endpoint
}

fn assignment(name: &str, endpoints: impl IntoIterator<Item = Value>) -> Value {
    let endpoints: Vec<_> = endpoints.into_iter().collect();
    json!({"cluster_name": name, "endpoints": [{"locality": {"region": "eu", "zone": "eu-1"}, "lb_endpoints": endpoints}]})
}

fn plain(name: &str, hosts: &[&str]) -> Value {
    assignment(name, hosts.iter().map(|host| endpoint(host, json!({}))))
}

/// A control plane with one service of these hosts.
async fn serving(args: &[&str], service: &str, hosts: &[&str]) -> ControlPlane {
    let mut control = ControlPlane::start(args).await;
    control.endpoints([plain(service, hosts)]).await;
    control.clusters([eds_cluster(service, "")]).await;
    control
}

/// Runs a test with each of go-control-plane's caches in each variant: as the server prefers it, with a server that knows no
/// deltas, and where the config wants it so.
async fn on_each(test: impl AsyncFn(&str, &[&str], XdsProtocol)) {
    let sotw: &[&str] = &["-sotw-only"];
    for (cache, more, protocol) in [
        ("linear", &[][..], XdsProtocol::Auto),
        ("linear", sotw, XdsProtocol::Auto),
        ("linear", &[], XdsProtocol::Sotw),
        ("snapshot", &[], XdsProtocol::Auto),
        ("snapshot", sotw, XdsProtocol::Auto),
        // In this mode it answers no state-of-the-world request that leaves anything out.
        ("snapshot-ads", &[], XdsProtocol::Delta),
    ] {
        let name = format!("{cache} {} {protocol:?}", more.join(" "));
        println!("{name}");
        test(&name, &[&["-cache", cache], more].concat(), protocol).await;
    }
}

#[tokio::test]
async fn a_change_is_followed_in_both_variants() {
    on_each(async |name, args, protocol| {
        let mut control = serving(args, "other", &["10.0.0.9"]).await;
        let registry = with(&XdsRegistry { protocol, ..config(&control.url()) });
        let mut users = Following::start(&registry, "users");
        users.until_set(&[]).await;
        // A cluster before its endpoints, under another name than theirs.
        control.clusters([eds_cluster("users", "users-eds")]).await;
        control.endpoints([plain("users-eds", &["10.0.0.1"])]).await;
        let instances = users.until_set(&["10.0.0.1:80 10.0.0.1:80 100"]).await;
        assert_eq!((instances[0].zone.as_deref(), instances[0].labels["xds.region"].as_str()), (Some("eu-1"), "eu"));
        // Weight, metadata and status.
        let lb = json!({"filter_metadata": {"envoy.lb": {"version": "v2"}}});
        let changed = json!({"load_balancing_weight": 3, "health_status": "DRAINING", "metadata": lb});
        control
            .endpoints([assignment("users-eds", [endpoint("10.0.0.1", changed), endpoint("10.0.0.2", json!({}))])])
            .await;
        let instances = users.until_set(&["10.0.0.1:80 10.0.0.1:80 300", "10.0.0.2:80 10.0.0.2:80 100"]).await;
        assert_eq!((instances[0].healthy, instances[0].version(), instances[1].healthy), (false, Some("v2"), true));
        // Who comes later reads the same.
        Following::start(&registry, "users")
            .until_set(&["10.0.0.1:80 10.0.0.1:80 300", "10.0.0.2:80 10.0.0.2:80 100"])
            .await;
        control.endpoints([plain("users-eds", &["10.0.0.2"])]).await;
        users.until_set(&["10.0.0.2:80 10.0.0.2:80 100"]).await;
        let mut listed = registry.clone().list().await.unwrap();
        listed.sort();
        assert_eq!(listed, ["other", "users"]);
        // An assignment that is empty, then a cluster that is gone, and back.
        control.endpoints([json!({"cluster_name": "users-eds"})]).await;
        users.until_set(&[]).await;
        control.endpoints([plain("users-eds", &["10.0.0.3"])]).await;
        users.until_set(&["10.0.0.3:80 10.0.0.3:80 100"]).await;
        control.delete_cluster("users").await;
        users.until_set(&[]).await;
        control.clusters([eds_cluster("users", "users-eds")]).await;
        users.until_set(&["10.0.0.3:80 10.0.0.3:80 100"]).await;
        let requests = control.requests(NODE).await;
        assert_eq!(requests.refusals(), [""; 0], "{name}");
        assert!(requests.about(CDS)[0]["node"].to_string().contains(r#""zone":"eu-1""#));
        assert!(
            requests.about(EDS).iter().all(|one| !one["names"].to_string().contains("other")),
            "only what is called"
        );
        assert_eq!(control.connections().await, (1, 1), "{name}: one connection for all");
        // Who is gone is unsubscribed, and with the last the connection goes.
        drop(users);
        eventually("the connection to go", async || control.connections().await.1 == 0).await;
    })
    .await;
}

#[tokio::test]
async fn endpoints_alone_are_followed_by_the_service_s_name() {
    on_each(async |_, args, protocol| {
        let mut control = ControlPlane::start(args).await;
        control.endpoints([plain("users", &["10.0.0.1"]), plain("other", &["10.0.0.9"])]).await;
        control.clusters([eds_cluster("users", "")]).await;
        let registry = with(&XdsRegistry { protocol, discover: XdsDiscover::Eds, ..config(&control.url()) });
        let mut users = Following::start(&registry, "users");
        users.until_set(&["10.0.0.1:80 10.0.0.1:80 100"]).await;
        let mut other = Following::start(&registry, "other");
        other.until_set(&["10.0.0.9:80 10.0.0.9:80 100"]).await;
        control.endpoints([plain("users", &["10.0.0.2"])]).await;
        users.until_set(&["10.0.0.2:80 10.0.0.2:80 100"]).await;
        // Off and on again: what is asked for anew is told anew.
        drop(users);
        let mut users = Following::start(&registry, "users");
        users.until_set(&["10.0.0.2:80 10.0.0.2:80 100"]).await;
        // Only deltas have a word for what is gone.
        if protocol != XdsProtocol::Sotw && !args.contains(&"-sotw-only") {
            control.delete_endpoints("users").await;
            users.until_set(&[]).await;
        }
        assert!(control.requests(NODE).await.about(CDS).is_empty());
        assert_eq!(registry.list().await.unwrap(), ["users"], "clusters are asked for when somebody wants a list");
    })
    .await;
}

#[tokio::test]
async fn clusters_that_have_their_endpoints_in_them() {
    let mut control = ControlPlane::start(&[]).await;
    let inline = |name: &str, kind: &str, host: &str| json!({"name": name, "type": kind, "connect_timeout": "1s", "load_assignment": plain(name, &[host])});
    let mut secure = inline("secure", "STATIC", "10.0.0.1");
    secure["transport_socket"] = json!({
        "name": "envoy.transport_sockets.tls",
        "typed_config": {"@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext"}
    });
    secure["typed_extension_protocol_options"] = json!({
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": {"http2_protocol_options": {}}
        }
    });
    let original = json!({"name": "original", "type": "ORIGINAL_DST", "lb_policy": "CLUSTER_PROVIDED"});
    control
        .clusters([
            secure,
            inline("dns", "STRICT_DNS", "users.internal"),
            inline("logical", "LOGICAL_DNS", "users.internal"),
            original,
        ])
        .await;
    let registry = registry(&control.url());
    let instances = Following::start(&registry, "secure").until_set(&["10.0.0.1:80 10.0.0.1:80 100"]).await;
    assert_eq!((instances[0].protocol, instances[0].tls), (Some(Protocol::Http2), Some(true)));
    let mut dns = Following::start(&registry, "dns");
    dns.until_set(&["users.internal:80 users.internal:80 100"]).await;
    Following::start(&registry, "logical").until_set(&["users.internal:80 users.internal:80 100"]).await;
    let failure = Following::start(&registry, "original").until_failure(&[]).await;
    assert!(failure.contains("`original` cannot be used: a cluster of the kind ORIGINAL_DST"), "{failure}");
    control.clusters([inline("dns", "STRICT_DNS", "other.internal")]).await;
    dns.until_set(&["other.internal:80 other.internal:80 100"]).await;
    assert_eq!(control.requests(NODE).await.refusals(), [""; 0], "others may use what we cannot");
}

#[tokio::test]
async fn what_cannot_be_used_is_refused_and_the_last_good_one_stays() {
    on_each(async |name, args, protocol| {
        let mut control = serving(args, "users", &["10.0.0.1"]).await;
        let registry = with(&XdsRegistry { protocol, ..config(&control.url()) });
        let mut users = Following::start(&registry, "users");
        users.until_set(&["10.0.0.1:80 10.0.0.1:80 100"]).await;
        control.endpoints([assignment("users", [endpoint("not a host", json!({}))])]).await;
        eventually("the refusal", async || !control.requests(NODE).await.refusals().is_empty()).await;
        let start = Instant::now();
        // A server that sends again what was refused must not be answered in a loop.
        sleep(Duration::from_secs(2)).await;
        let requests = control.requests(NODE).await;
        println!("{name}: {} refusals within 2 s", requests.refusals().len());
        assert!(requests.refusals().len() <= 10, "{:?}", requests.refusals());
        let said = requests.refusals().remove(0);
        assert!(said.starts_with("users: `not a host:80` is not an address"), "{said}");
        users.until_set(&["10.0.0.1:80 10.0.0.1:80 100"]).await;
        // What is right again is in use, as soon as the server tells it.
        control.endpoints([plain("users", &["10.0.0.2"])]).await;
        users.until_set(&["10.0.0.2:80 10.0.0.2:80 100"]).await;
        eventually("the acceptance", async || control.requests(NODE).await.accepted(EDS)).await;
        println!("{name}: in use {:.1?} after the refusal", start.elapsed());
    })
    .await;
}

#[tokio::test]
async fn a_restart_empties_nothing_and_what_is_held_is_not_sent_again() {
    on_each(async |name, args, protocol| {
        let mut control = serving(args, "users", &["10.0.0.1"]).await;
        let registry = with(&XdsRegistry { protocol, ..config(&control.url()) });
        let mut users = Following::start(&registry, "users");
        users.until_set(&["10.0.0.1:80 10.0.0.1:80 100"]).await;
        control.kill();
        let failure = users.until_failure(&["10.0.0.1:80 10.0.0.1:80 100"]).await;
        assert!(failure.starts_with("cannot reach http://127.0.0.1:"), "{failure}");
        control.restart().await;
        users.until_set(&["10.0.0.1:80 10.0.0.1:80 100"]).await;
        // Clusters are told before endpoints are asked for.
        eventually("the subscription", async || !control.requests(NODE).await.about(EDS).is_empty()).await;
        let requests = control.requests(NODE).await;
        let first = requests.about(EDS)[0].clone();
        if first["delta"] == true {
            assert_eq!(first["versions"].as_object().map(|versions| versions.len()), Some(1), "{name}: {first}");
            assert_eq!(requests.about(EDS).len(), 1, "{name}: the version is the same, so nothing was sent");
        } else {
            assert!(!first["version"].as_str().unwrap_or_default().is_empty(), "{name}: {first}");
        }
        control.endpoints([plain("users", &["10.0.0.2"])]).await;
        users.until_set(&["10.0.0.2:80 10.0.0.2:80 100"]).await;
        // What changed while it was away.
        control.kill();
        users.until_failure(&["10.0.0.2:80 10.0.0.2:80 100"]).await;
        control.restart().await;
        control.delete_cluster("users").await;
        users.until_set(&[]).await;
    })
    .await;
}

#[tokio::test]
async fn a_connection_that_is_cut_without_a_word_is_noticed() {
    let mut control = serving(&[], "users", &["10.0.0.1"]).await;
    let relay = Relay::to(control.port).await;
    let url = format!("http://127.0.0.1:{}", relay.port);
    let registry = with(&XdsRegistry { keepalive: Duration::from_secs(2), ..config(&url) });
    let mut users = Following::start(&registry, "users");
    users.until_set(&["10.0.0.1:80 10.0.0.1:80 100"]).await;
    relay.silence();
    let start = Instant::now();
    control.endpoints([plain("users", &["10.0.0.2"])]).await;
    let failure = users.until_failure(&["10.0.0.1:80 10.0.0.1:80 100"]).await;
    println!("noticed after {:.1?}: {failure}", start.elapsed());
    // Without its pings it would be minutes.
    assert!(start.elapsed() < Duration::from_secs(45), "{:?}", start.elapsed());
    // Connections are accepted, and nobody is there: that is no confirmation.
    sleep(Duration::from_secs(3)).await;
    let seen = users.until("what is there now", |_| true).await;
    assert!(seen.failure.is_some() && seen.confirmed.unwrap().elapsed() > Duration::from_secs(3));
    relay.cut();
    relay.mend();
    users.until_set(&["10.0.0.2:80 10.0.0.2:80 100"]).await;
}

#[tokio::test]
async fn a_server_that_allows_no_pings_keeps_a_quiet_connection() {
    // grpc-go closes a connection after the third ping within its five minutes.
    let control = serving(&[], "users", &["10.0.0.1"]).await;
    let registry = with(&XdsRegistry { keepalive: Duration::from_secs(1), ..config(&control.url()) });
    let mut users = Following::start(&registry, "users");
    users.until_set(&["10.0.0.1:80 10.0.0.1:80 100"]).await;
    eventually("the acceptance", async || control.requests(NODE).await.accepted(EDS)).await;
    let before = control.requests(NODE).await.count();
    sleep(Duration::from_secs(6)).await;
    let seen = users.until("still the same", |seen| seen.instances.is_some()).await;
    assert_eq!((seen.failures, control.connections().await, control.requests(NODE).await.count()), (0, (1, 1), before));
    let now = Instant::now();
    eventually("it to be confirmed again", async || {
        users.until("anything", |_| true).await.confirmed.is_some_and(|confirmed| confirmed > now)
    })
    .await;
}

#[tokio::test]
async fn wrong_credentials_are_told_and_tried_again() {
    let mut control = serving(&["-token", "right"], "users", &["10.0.0.1"]).await;
    for token in [None, Some(Secret::new("wrong"))] {
        let registry = with(&XdsRegistry { token, ..config(&control.url()) });
        let mut users = Following::start(&registry, "users");
        let failure = users.until_failure(&[]).await;
        assert_eq!(failure, format!("{} refused: no valid bearer token", control.url()));
        users.until("more attempts", |seen| seen.failures >= 3).await;
        let error = registry.list().await.unwrap_err().to_string();
        assert!(error.contains("no valid bearer token"), "{error}");
    }
    let registry = with(&XdsRegistry { token: Some(Secret::new("right")), ..config(&control.url()) });
    Following::start(&registry, "users").until_set(&["10.0.0.1:80 10.0.0.1:80 100"]).await;
    // The same in a header of the operator's choice.
    let metadata = [("authorization".to_owned(), Secret::new("Bearer right"))].into_iter().collect();
    let registry = with(&XdsRegistry { metadata, ..config(&control.url()) });
    let mut users = Following::start(&registry, "users");
    users.until_set(&["10.0.0.1:80 10.0.0.1:80 100"]).await;
    control.endpoints([plain("users", &["10.0.0.2"])]).await;
    users.until_set(&["10.0.0.2:80 10.0.0.2:80 100"]).await;
}

#[tokio::test]
async fn another_server_takes_over() {
    let mut one = serving(&[], "users", &["10.0.0.1"]).await;
    let mut two = serving(&[], "users", &["10.0.0.2"]).await;
    one.clusters([eds_cluster("only-one", "")]).await;
    one.endpoints([plain("only-one", &["10.0.0.9"])]).await;
    let nobody = format!("http://127.0.0.1:{}", free_port());
    let registry = with(&XdsRegistry { servers: vec![nobody, one.url(), two.url()], ..config("") });
    two.kill();
    let mut users = Following::start(&registry, "users");
    let mut other = Following::start(&registry, "only-one");
    users.until_set(&["10.0.0.1:80 10.0.0.1:80 100"]).await;
    other.until_set(&["10.0.0.9:80 10.0.0.9:80 100"]).await;
    two.restart().await;
    one.kill();
    users.until_set(&["10.0.0.2:80 10.0.0.2:80 100"]).await;
    // What the second has never heard of is gone, though the first's versions mean nothing to it.
    other.until_set(&[]).await;
}

#[tokio::test]
async fn over_tls_and_with_a_client_certificate() {
    let dir = TempDir::new().unwrap();
    let certificates = Certificates::make(dir.path());
    let path = |name: &str| dir.path().join(name);
    let text = |name: &str| path(name).to_str().unwrap().to_owned();
    let (cert, key, ca) = (text("server.pem"), text("server.key"), text("ca.pem"));
    let args = ["-cert", &cert, "-key", &key, "-client-ca", &ca];
    let mut control = ControlPlane::start_with("https", TempDir::new().unwrap(), &args).await;
    control.endpoints([plain("users", &["10.0.0.1"])]).await;
    control.clusters([eds_cluster("users", "")]).await;
    let whole = Tls {
        ca: Some(path("ca.pem")),
        cert: Some(path("client.pem")),
        key: Some(path("client.key")),
        ..Tls::default()
    };
    let using = |tls: Tls| with(&XdsRegistry { tls, ..config(&control.url()) });
    Following::start(&using(whole.clone()), "users").until_set(&["10.0.0.1:80 10.0.0.1:80 100"]).await;
    let anonymous = Tls { cert: None, key: None, ..whole.clone() };
    let strange: &Path = &certificates.stranger;
    let strange_authority = Tls { ca: Some(strange.into()), ..whole };
    for (tls, expected) in [(anonymous, "certificate"), (strange_authority, "UnknownIssuer")] {
        let failure = Following::start(&using(tls), "users").until_failure(&[]).await;
        assert!(failure.contains(expected), "{failure}");
    }
}

#[tokio::test]
async fn a_service_that_nobody_tells_of_is_an_error_after_a_while() {
    // With clusters there is an answer at once; without, only silence.
    let control = serving(&[], "users", &["10.0.0.1"]).await;
    let start = Instant::now();
    Following::start(&registry(&control.url()), "nobody").until_set(&[]).await;
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    let registry = with(&XdsRegistry { discover: XdsDiscover::Eds, ..config(&control.url()) });
    let mut nobody = Following::start(&registry, "nobody");
    let failure = nobody.until_failure(&[]).await;
    assert!(failure.contains("nothing about `nobody` within 15s"), "{failure}");
}

#[tokio::test]
async fn two_hundred_services_share_a_connection_and_a_change_arrives_at_once() {
    on_each(async |name, args, protocol| {
        let mut control = ControlPlane::start(args).await;
        let set = |service: usize, changed: usize| {
            let weight = json!({"load_balancing_weight": changed + 1});
            let host = |n: usize| format!("10.{}.{}.{n}", service / 200, service % 200);
            let endpoints = (0..20).map(|n| endpoint(&host(n), if n == 0 { weight.clone() } else { json!({}) }));
            assignment(&format!("s{service}"), endpoints)
        };
        control.endpoints((0..200).map(|service| set(service, 0))).await;
        control.clusters((0..200).map(|service| eds_cluster(&format!("s{service}"), ""))).await;
        let registry = with(&XdsRegistry { protocol, keepalive: Duration::from_secs(60), ..config(&control.url()) });
        let start = Instant::now();
        let mut all: Vec<_> = (0..200).map(|n| Following::start(&registry, &format!("s{n}"))).collect();
        for one in &mut all {
            one.until("20 instances", |seen| seen.instances.as_ref().is_some_and(|set| set.len() == 20)).await;
        }
        println!("{name}: 200 services of 20 instances known after {:.0?}", start.elapsed());
        assert_eq!(control.connections().await, (1, 1));
        eventually("the acceptance", async || control.requests(NODE).await.accepted(EDS)).await;
        let mut asked = control.requests(NODE).await.count();
        println!("{name}: {asked} requests for that");
        // Those that come late are told of late.
        eventually("a quiet connection to be quiet", async || {
            sleep(Duration::from_secs(3)).await;
            let before = std::mem::replace(&mut asked, control.requests(NODE).await.count());
            asked == before
        })
        .await;
        assert!(asked <= 30, "{asked} requests");
        let what = format!("{name}: from the start of the change to the sink");
        let mut changes = 0;
        median_below(&what, Duration::from_millis(50), async || {
            let mut times = Vec::new();
            for round in 0..50 {
                let service = round * 4;
                changes += 1;
                all[service].mark_seen();
                let start = Instant::now();
                control.endpoints([set(service, changes)]).await;
                all[service].changed().await;
                times.push(start.elapsed());
            }
            times
        })
        .await;
        let answers = control.requests(NODE).await.count() - asked;
        println!("{name}: {answers} requests for {changes} changes");
        // The snapshot cache has one version for all types, so state of the world tells clusters and endpoints each time.
        assert!(answers <= 2 * changes, "one answer for each response: {answers} for {changes}");
    })
    .await;
}

/// What Envoy makes of an assignment is the measure: what we accept it accepts, and we see the same endpoints.
#[tokio::test]
async fn envoy_accepts_what_we_accept_and_sees_the_same() {
    let mut control = ControlPlane::start(&[]).await;
    let whole = json!({"cluster_name": "whole", "endpoints": [
        {"locality": {"region": "eu", "zone": "eu-1", "sub_zone": "a"}, "lb_endpoints": [
            endpoint("10.0.0.1", json!({"load_balancing_weight": 3, "health_status": "HEALTHY"})),
            endpoint("10.0.0.2", json!({"health_status": "UNHEALTHY"})),
            endpoint("10.0.0.3", json!({"health_status": "DRAINING"})),
            endpoint("10.0.0.4", json!({"health_status": "TIMEOUT"})),
            endpoint("10.0.0.5", json!({"health_status": "DEGRADED"})),
            endpoint("10.0.0.6", json!({})),
        ]},
        {"locality": {"zone": "eu-2"}, "priority": 1, "lb_endpoints": [endpoint("fd00::1", json!({}))]},
    ]});
    let good = [
        whole,
        json!({"cluster_name": "empty"}),
        json!({"cluster_name": "policy", "policy": {"drop_overloads": [{"category": "x", "drop_percentage": {"numerator": 5}}],
            "endpoint_stale_after": "90s"}, "endpoints": [{"lb_endpoints": [endpoint("10.0.0.1", json!({}))]}]}),
    ];
    let bad = [
        ("weight", json!([{"lb_endpoints": [endpoint("10.0.0.1", json!({"load_balancing_weight": 0}))]}])),
        ("locality", json!([{"load_balancing_weight": 0, "lb_endpoints": [endpoint("10.0.0.1", json!({}))]}])),
        ("priority", json!([{"priority": 129, "lb_endpoints": [endpoint("10.0.0.1", json!({}))]}])),
        ("host", json!([{"lb_endpoints": [endpoint("not a host", json!({}))]}])),
        (
            "port",
            json!([{"lb_endpoints": [{"endpoint": {"address": {"socket_address": {"address": "10.0.0.1", "port_value": 65536}}}}]}]),
        ),
    ];
    let names = good.iter().map(|one| one["cluster_name"].as_str().unwrap());
    let clusters: Vec<_> = names.chain(bad.iter().map(|(name, _)| *name)).map(|name| eds_cluster(name, "")).collect();
    control.endpoints(good.clone()).await;
    control.clusters(clusters).await;

    let envoy = Envoy::start(control.port, "envoy", "DELTA_GRPC").await;
    let registry = registry(&control.url());
    eventually("Envoy to accept", async || {
        envoy.endpoints("whole").await.len() == 7 && envoy.endpoints("policy").await.len() == 1
    })
    .await;
    for one in &good {
        let name = one["cluster_name"].as_str().unwrap();
        let mut following = Following::start(&registry, name);
        let seen = following.until("an answer", |seen| seen.instances.is_some()).await;
        let mut ours: Vec<_> = seen
            .instances
            .unwrap()
            .iter()
            .map(|one| {
                let host = one.address.to_string().replace(['[', ']'], "");
                let zone = one.zone.as_deref().unwrap_or("-");
                let priority = &one.labels["xds.priority"];
                format!("{host} {} {zone} {priority} {}", one.weight / 100, one.healthy)
            })
            .collect();
        ours.sort();
        assert_eq!(ours, envoy.endpoints(name).await, "{name}");
    }
    assert_eq!(control.requests("envoy").await.refusals(), [""; 0]);
    assert_eq!(control.requests(NODE).await.refusals(), [""; 0]);
    let _all: Vec<_> = bad.iter().map(|(name, _)| Following::start(&registry, name)).collect();
    for (count, (name, endpoints)) in bad.into_iter().enumerate() {
        control.endpoints([json!({"cluster_name": name, "endpoints": endpoints})]).await;
        for node in ["envoy", NODE] {
            let refused = async || control.requests(node).await.refusals().len() > count;
            if timeout(Duration::from_secs(60), eventually("a refusal", refused)).await.is_err() {
                panic!("{node} does not refuse `{name}`: {:?}", control.requests(node).await.refusals());
            }
        }
    }
    println!("Envoy: {:#?}", control.requests("envoy").await.refusals());
    println!("pillion: {:#?}", control.requests(NODE).await.refusals());
}
