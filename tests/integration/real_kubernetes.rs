//! The Kubernetes registry against a real API server.

use crate::{
    e2e::median_below,
    following::Following,
    relay::Relay,
    servers::{
        Process, eventually, free_port,
        kubernetes::{ADMIN, KubernetesServer, NAMESPACE, READER, slice, slices},
        program,
    },
};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use futures_util::{StreamExt, stream};
use http::Method;
use pillion::{
    config::{IpFamily, KubernetesPort, KubernetesRegistry, Secret, Tls},
    registry::{Instance, Kubernetes, Protocol, Registry},
};
use serde_json::{Value, json};
use std::{fs, process::Command, sync::Arc, time::Duration};
use tokio::{
    net::TcpStream,
    time::{Instant, sleep},
};

fn config(server: &KubernetesServer, port: u16) -> KubernetesRegistry {
    KubernetesRegistry {
        servers: vec![format!("https://127.0.0.1:{port}")],
        namespace: Some(NAMESPACE.into()),
        token: Some(Secret::new(ADMIN)),
        tls: Tls { ca: Some(server.path("ca.pem")), ..Tls::default() },
        ..KubernetesRegistry::default()
    }
}

fn to(server: &KubernetesServer) -> KubernetesRegistry {
    config(server, server.port)
}

fn open(config: KubernetesRegistry) -> Arc<Kubernetes> {
    Arc::new(Kubernetes::new("main", &config, Some("az-1")).unwrap())
}

fn ready(address: &str) -> Value {
    json!({"addresses": [address], "conditions": {"ready": true, "serving": true, "terminating": false}})
}

/// The ids of those that are fit to serve.
fn healthy(set: &[Instance]) -> Vec<&str> {
    set.iter().filter(|one| one.healthy).map(|one| one.id.as_str()).collect()
}

#[tokio::test]
async fn a_change_is_followed() {
    let server = KubernetesServer::start().await;
    let registry = open(to(&server));
    let mut users = Following::start(&registry, "users");
    users.until_set(&[]).await;
    let mut first = slice(
        "users",
        "users-1",
        json!([{
            "addresses": ["10.0.0.1"], "nodeName": "node-1", "zone": "az-2", "hostname": "users-0",
            "targetRef": {"kind": "Pod", "namespace": NAMESPACE, "name": "users-0"},
            "conditions": {"ready": true, "serving": true, "terminating": false},
        }]),
    );
    first["metadata"]["labels"]["app.kubernetes.io/version"] = json!("1.4.2");
    first["ports"] =
        json!([{"name": "http", "port": 8080, "appProtocol": "kubernetes.io/h2c"}, {"name": "admin", "port": 9}]);
    server.put(&first).await;
    let set = users.until_set(&["10.0.0.1:8080 10.0.0.1:8080 100"]).await;
    assert_eq!(
        (set[0].version(), set[0].zone.as_deref(), set[0].protocol),
        (Some("1.4.2"), Some("az-2"), Some(Protocol::Http2))
    );
    let labels: Vec<_> = set[0].labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let expected =
        ["app.kubernetes.io/version=1.4.2", "hostname=users-0", "node=node-1", "pod=users-0", "version=1.4.2"];
    assert_eq!(labels, expected);

    // A second slice joins, first with an endpoint that moves over from the other.
    server.put(&slice("users", "users-2", json!([ready("10.0.0.2")]))).await;
    users.until_set(&["10.0.0.1:8080 10.0.0.1:8080 100", "10.0.0.2:80 10.0.0.2:80 100"]).await;
    first["metadata"]["labels"]["app.kubernetes.io/version"] = json!("1.4.3");
    first["endpoints"][0]["conditions"] = json!({"ready": false, "serving": true, "terminating": true});
    server.put(&first).await;
    let leaving = users
        .until("the first one leaving", |seen| {
            seen.instances.as_ref().is_some_and(|set| healthy(set) == ["10.0.0.2:80"] && set.len() == 2)
        })
        .await;
    assert_eq!(leaving.instances.unwrap()[0].version(), Some("1.4.3"));
    // Nothing better is left.
    server.delete("users-2").await;
    let set = users.until_set(&["10.0.0.1:8080 10.0.0.1:8080 100"]).await;
    assert_eq!(healthy(&set), ["10.0.0.1:8080"]);
    // Another port of the same endpoints, by the service's name and by the config.
    Following::start(&registry, "users.shop:admin").until_set(&["10.0.0.1:9 10.0.0.1:9 100"]).await;
    let admin = KubernetesRegistry { port: KubernetesPort::parse("admin"), ..to(&server) };
    Following::start(&open(admin), "users").until_set(&["10.0.0.1:9 10.0.0.1:9 100"]).await;

    let mut other = slice("orders", "orders-1", json!([ready("10.0.0.9")]));
    let elsewhere = slices().replace(NAMESPACE, "prod");
    server.send(Method::POST, &elsewhere, &other).await;
    Following::start(&registry, "orders.prod").until_set(&["10.0.0.9:80 10.0.0.9:80 100"]).await;
    Following::start(&registry, "orders").until_set(&[]).await;
    other["endpoints"] = Value::Null;
    server.put(&other).await;
    // The list is from the API server's memory, which may be a moment behind.
    eventually("both in the list", async || registry.clone().list().await.unwrap() == ["orders", "users"]).await;
    server.delete("users-1").await;
    users.until_set(&[]).await;
}

#[tokio::test]
async fn hints_and_families_choose() {
    let server = KubernetesServer::start().await;
    let hinted = |address: &str, zone: &str| json!({"addresses": [address], "zone": zone, "hints": {"forZones": [{"name": zone}]}});
    server.put(&slice("users", "four", json!([hinted("10.0.0.1", "az-1"), hinted("10.0.0.2", "az-2")]))).await;
    let mut six = slice("users", "six", json!([hinted("fd00::1", "az-1")]));
    six["addressType"] = json!("IPv6");
    server.put(&six).await;
    let both = &["10.0.0.1:80 10.0.0.1:80 100", "10.0.0.2:80 10.0.0.2:80 100"];
    let mut users = Following::start(&open(to(&server)), "users");
    assert_eq!(healthy(&users.until_set(both).await), ["10.0.0.1:80"]);
    let all = open(KubernetesRegistry { zone_hints: false, ..to(&server) });
    assert_eq!(healthy(&Following::start(&all, "users").until_set(both).await).len(), 2);
    let six_first = open(KubernetesRegistry { ip_family: IpFamily::Ipv6, ..to(&server) });
    Following::start(&six_first, "users").until_set(&["[fd00::1]:80 [fd00::1]:80 100"]).await;
    // One endpoint without a hint, and they do not count any more.
    server.put(&slice("users", "more", json!([ready("10.0.0.3")]))).await;
    let all_three = |set: &[Instance]| healthy(set).len() == 3;
    users.until("all three", |seen| seen.instances.as_deref().is_some_and(all_three)).await;
}

#[tokio::test]
async fn a_server_that_is_killed_empties_nothing_and_one_that_was_restored_is_believed() {
    let mut server = KubernetesServer::start().await;
    server.put(&slice("users", "users-1", json!([ready("10.0.0.1")]))).await;
    let mut users = Following::start(&open(to(&server)), "users");
    users.until_set(&["10.0.0.1:80 10.0.0.1:80 100"]).await;
    server.kill();
    let failure = users.until_failure(&["10.0.0.1:80 10.0.0.1:80 100"]).await;
    assert!(failure.starts_with("cannot reach https://127.0.0.1:"), "{failure}");
    server.restart().await;
    users.until_set(&["10.0.0.1:80 10.0.0.1:80 100"]).await;
    for n in 0..30 {
        server.put(&slice("users", "users-2", json!([ready(&format!("10.0.1.{n}"))]))).await;
    }
    users.until_set(&["10.0.0.1:80 10.0.0.1:80 100", "10.0.1.29:80 10.0.1.29:80 100"]).await;
    // Its versions start again, far below those that were seen: it is asked for what is newest, as it cannot have ours.
    server.restart_empty().await;
    users.until_set(&[]).await;
    server.put(&slice("users", "users-1", json!([ready("10.0.0.3")]))).await;
    users.until_set(&["10.0.0.3:80 10.0.0.3:80 100"]).await;
}

#[tokio::test]
async fn a_connection_that_is_cut_silently_is_noticed() {
    let server = KubernetesServer::start().await;
    let relay = Relay::to(server.port).await;
    server.put(&slice("users", "users-1", json!([ready("10.0.0.1")]))).await;
    let registry = open(config(&server, relay.port));
    let mut users = Following::start(&registry, "users");
    users.until_set(&["10.0.0.1:80 10.0.0.1:80 100"]).await;
    eventually("the watch", async || server.watches().await == 1).await;
    relay.silence();
    server.put(&slice("users", "users-2", json!([ready("10.0.0.2")]))).await;
    let start = Instant::now();
    users.until_failure(&["10.0.0.1:80 10.0.0.1:80 100"]).await;
    println!("kubernetes: a silent connection was noticed after {:.1?}", start.elapsed());
    assert!(start.elapsed() < registry.silence_limit());
    relay.mend();
    users.until_set(&["10.0.0.1:80 10.0.0.1:80 100", "10.0.0.2:80 10.0.0.2:80 100"]).await;
}

#[tokio::test]
async fn credentials_that_are_wrong_are_told_of_until_they_are_right() {
    let server = KubernetesServer::start_with(&["--authorization-mode=RBAC"]).await;
    server.put(&slice("users", "users-1", json!([ready("10.0.0.1")]))).await;
    let users = &["10.0.0.1:80 10.0.0.1:80 100"][..];
    for token in [None, Some("no-such-token")] {
        let registry = open(KubernetesRegistry { token: token.map(Secret::new), ..to(&server) });
        let failure = Following::start(&registry, "users").until_failure(&[]).await;
        println!("kubernetes: {token:?}: {failure}");
        assert!(failure.contains("refused: 401 Unauthorized") && failure.contains("is the token valid"), "{failure}");
        let listed = registry.list().await.unwrap_err().to_string();
        assert!(listed.contains("401 Unauthorized"), "{listed}");
    }
    // A token in a file, which is renewed there.
    let file = server.path("token");
    let by_file = open(KubernetesRegistry { token: None, token_file: Some(file.clone()), ..to(&server) });
    let mut follower = Following::start(&by_file, "users");
    let failure = follower.until_failure(&[]).await;
    assert!(failure.contains("there is no token") && failure.contains("No such file"), "{failure}");
    fs::write(&file, format!("{READER}\n")).unwrap();
    let seen = follower
        .until("no rights", |seen| seen.failure.as_ref().is_some_and(|it| it.to_string().contains("403")))
        .await;
    let failure = seen.failure.unwrap().to_string();
    println!("kubernetes: {failure}");
    assert!(
        failure.contains("User \"reader\" cannot list") && failure.contains("needed are `get`, `list` and `watch`"),
        "{failure}"
    );
    fs::write(&file, ADMIN).unwrap();
    follower.until_set(users).await;

    // Rights that are given count, and those that are taken away leave the last set in use.
    let rules = json!([{"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["get", "list", "watch"]}]);
    let rbac = format!("/apis/rbac.authorization.k8s.io/v1/namespaces/{NAMESPACE}");
    let metadata = json!({"name": "pillion"});
    server.send(Method::POST, &format!("{rbac}/roles"), &json!({"metadata": metadata, "rules": rules})).await;
    let binding = json!({
        "metadata": metadata, "subjects": [{"kind": "User", "name": "reader"}],
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "pillion"},
    });
    let relay = Relay::to(server.port).await;
    let reader = open(KubernetesRegistry { token: Some(Secret::new(READER)), ..config(&server, relay.port) });
    let mut follower = Following::start(&reader, "users");
    assert!(follower.until_failure(&[]).await.contains("403 Forbidden"));
    server.send(Method::POST, &format!("{rbac}/rolebindings"), &binding).await;
    follower.until_set(users).await;
    assert_eq!(reader.clone().list().await.unwrap(), ["users"]);
    assert!(Following::start(&reader, "users.other").until_failure(&[]).await.contains("403 Forbidden"));
    server.send(Method::DELETE, &format!("{rbac}/rolebindings/pillion"), &Value::Null).await;
    // A watch that there is goes on; the next one will be refused.
    relay.cut();
    for number in 0..relay.connections() {
        relay.until(number, |passed| passed.closed).await;
    }
    relay.mend();
    follower.until("no rights", |seen| seen.failure.as_ref().is_some_and(|it| it.to_string().contains("403"))).await;
    assert!(follower.until_failure(users).await.contains("403 Forbidden"));
}

#[tokio::test]
async fn tls_and_kubeconfigs() {
    let server = KubernetesServer::start().await;
    server.put(&slice("users", "users-1", json!([ready("10.0.0.1")]))).await;
    let users = &["10.0.0.1:80 10.0.0.1:80 100"][..];
    let tls = Tls {
        ca: Some(server.path("ca.pem")),
        cert: Some(server.path("client.pem")),
        key: Some(server.path("client.key")),
        server_name: None,
    };
    // A certificate is as good as a token.
    let with = |tls: Tls| open(KubernetesRegistry { token: None, tls, ..to(&server) });
    Following::start(&with(tls.clone()), "users").until_set(users).await;
    let named = Tls { server_name: Some("localhost".into()), ..tls.clone() };
    Following::start(&with(named), "users").until_set(users).await;
    let wrong_name = Tls { server_name: Some("other.internal".into()), ..tls.clone() };
    let strange = Tls { ca: Some(server.path("stranger.pem")), ..tls };
    for (tls, expected) in [(wrong_name, "other.internal"), (strange.clone(), "UnknownIssuer")] {
        let failure = Following::start(&with(tls), "users").until_failure(&[]).await;
        assert!(failure.contains(expected), "{failure}");
    }
    let unverified = KubernetesRegistry { insecure_skip_tls_verify: true, tls: strange, ..to(&server) };
    Following::start(&open(unverified), "users").until_set(users).await;

    let data = |name: &str| BASE64.encode(fs::read(server.path(name)).unwrap());
    let kubeconfig = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "certificate",
        "clusters": [{"name": "c", "cluster": {"server": server.url(), "certificate-authority-data": data("ca.pem")}},
            {"name": "files", "cluster": {"server": server.url(), "certificate-authority": "ca.pem"}},
            {"name": "open", "cluster": {"server": server.url(), "insecure-skip-tls-verify": true}}],
        "users": [{"name": "certificate", "user": {"client-certificate-data": data("client.pem"), "client-key-data": data("client.key")}},
            {"name": "token", "user": {"token": ADMIN}}],
        "contexts": [{"name": "certificate", "context": {"cluster": "c", "user": "certificate", "namespace": NAMESPACE}},
            {"name": "token", "context": {"cluster": "files", "user": "token", "namespace": NAMESPACE}},
            {"name": "open", "context": {"cluster": "open", "user": "token"}}],
    });
    let path = server.path("kubeconfig");
    fs::write(&path, kubeconfig.to_string()).unwrap();
    let of = |context: Option<&str>| KubernetesRegistry {
        kubeconfig: Some(path.clone()),
        context: context.map(str::to_owned),
        ..KubernetesRegistry::default()
    };
    Following::start(&open(of(None)), "users").until_set(users).await;
    Following::start(&open(of(Some("token"))), "users").until_set(users).await;
    let refused = Kubernetes::new("main", &of(Some("open")), None).err().unwrap().to_string();
    assert!(refused.contains("insecure-skip-tls-verify"), "{refused}");
    let asked = KubernetesRegistry { insecure_skip_tls_verify: true, ..of(Some("open")) };
    Following::start(&open(asked), "users.shop").until_set(users).await;

    // What kubectl makes of the same file, and its proxy, for those whose credentials come from another program.
    let mut get = Command::new(program("kubectl"));
    let shown = get.args(["get", "endpointslices", "-o", "name"]).env("KUBECONFIG", &path).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&shown.stdout).trim(), "endpointslice.discovery.k8s.io/users-1");
    let port = free_port();
    let mut command = Command::new(program("kubectl"));
    command.args(["proxy", &format!("--port={port}")]).env("KUBECONFIG", &path);
    let mut proxy = Process::start(command, &server.path("proxy.log"));
    proxy.until(async || TcpStream::connect(("127.0.0.1", port)).await.is_ok()).await;
    let proxied = KubernetesRegistry {
        servers: vec![format!("http://127.0.0.1:{port}")],
        namespace: Some(NAMESPACE.into()),
        ..KubernetesRegistry::default()
    };
    let mut follower = Following::start(&open(proxied), "users");
    follower.until_set(users).await;
    server.put(&slice("users", "users-2", json!([ready("10.0.0.2")]))).await;
    follower.until_set(&["10.0.0.1:80 10.0.0.1:80 100", "10.0.0.2:80 10.0.0.2:80 100"]).await;
}

#[tokio::test]
async fn another_server_of_the_cluster_takes_over() {
    let server = KubernetesServer::start().await;
    let (port, _another) = server.another().await;
    server.put(&slice("users", "users-1", json!([ready("10.0.0.1")]))).await;
    let relays = [Relay::to(server.port).await, Relay::to(port).await];
    let servers = relays.iter().map(|relay| format!("https://127.0.0.1:{}", relay.port)).collect();
    let mut users = Following::start(&open(KubernetesRegistry { servers, ..to(&server) }), "users");
    users.until_set(&["10.0.0.1:80 10.0.0.1:80 100"]).await;
    // Each of them is cut off once.
    let first = usize::from(relays[0].connections() == 0);
    for (round, cut) in [first, 1 - first].into_iter().enumerate() {
        let before = relays[1 - cut].connections();
        relays[cut].cut();
        let address = format!("10.0.0.{}", round + 2);
        server.put(&slice("users", "users-1", json!([ready(&address)]))).await;
        users.until_set(&[&format!("{address}:80 {address}:80 100")]).await;
        assert!(relays[1 - cut].connections() > before);
        relays[cut].mend();
    }
}

#[tokio::test]
async fn a_mesh_of_two_hundred_services_takes_few_connections() {
    const SERVICES: usize = 200;
    const INSTANCES: usize = 20;
    let server = KubernetesServer::start().await;
    let of = |service: usize, from: usize| {
        let endpoints: Vec<_> =
            (from..from + INSTANCES).map(|n| ready(&format!("10.{}.{}.{n}", service / 250, service % 250))).collect();
        slice(&format!("s{service}"), &format!("s{service}-1"), json!(endpoints))
    };
    stream::iter(0..SERVICES)
        .map(|service| {
            let slice = of(service, 0);
            let server = &server;
            async move { server.put(&slice).await }
        })
        .buffer_unordered(16)
        .collect::<Vec<_>>()
        .await;
    let relay = Relay::to(server.port).await;
    let registry = open(config(&server, relay.port));
    let start = Instant::now();
    let mut followers: Vec<_> =
        (0..SERVICES).map(|service| Following::start(&registry, &format!("s{service}"))).collect();
    for follower in &mut followers {
        follower.until("its instances", |seen| seen.instances.as_ref().is_some_and(|set| set.len() == INSTANCES)).await;
    }
    let took = start.elapsed();
    eventually("all watches", async || server.watches().await == SERVICES).await;
    println!(
        "kubernetes: {SERVICES} services of {INSTANCES} were there after {took:.1?}, on {} connections",
        relay.connections()
    );
    assert!(relay.connections() <= 3, "{}", relay.connections());
    let words = [r#"resource="endpointslices""#, r#"scope="namespace""#];
    let requests = async || server.metric("apiserver_request_total", &words).await;
    let before = requests().await;
    for service in 0..SERVICES {
        server.put(&of(service, 1)).await;
    }
    let last = format!("10.0.{}.{INSTANCES}:80", SERVICES - 1);
    followers
        .last_mut()
        .unwrap()
        .until("the change", |seen| seen.instances.as_ref().unwrap().iter().any(|one| one.id == last))
        .await;
    for (service, follower) in followers.iter_mut().enumerate() {
        let moved = format!("10.0.{service}.{INSTANCES}:80");
        follower.until("its change", |seen| seen.instances.as_ref().unwrap().iter().any(|one| one.id == moved)).await;
    }
    sleep(Duration::from_secs(2)).await;
    println!(
        "kubernetes: {} requests of lists and watches while {SERVICES} services changed once each",
        requests().await - before
    );
    assert_eq!(requests().await, before, "changes come by the watches that there are");
    drop(followers);
    eventually("the watches to end", async || server.watches().await == 0).await;
}

#[tokio::test]
async fn a_change_arrives_in_less_than_50_ms() {
    let server = KubernetesServer::start().await;
    let of = |last: usize| {
        slice(
            "users",
            "users-1",
            json!((0..20).map(|n| ready(&format!("10.0.{}.{n}", if n == 0 { last } else { 0 }))).collect::<Vec<_>>()),
        )
    };
    server.put(&of(1)).await;
    let mut users = Following::start(&open(to(&server)), "users");
    users.until("the first set", |seen| seen.instances.as_ref().is_some_and(|set| set.len() == 20)).await;
    let mut last = 1;
    median_below("kubernetes: from the answer to the write to the sink", Duration::from_millis(50), async || {
        let mut times = Vec::new();
        for _ in 0..100 {
            // From 2 to 254, and again.
            last = if last == 254 { 2 } else { last + 1 };
            users.mark_seen();
            server.put(&of(last)).await;
            let committed = Instant::now();
            users.changed().await;
            times.push(committed.elapsed());
        }
        times
    })
    .await;
}
