//! Registering in real Nacos servers of both lines, over gRPC and over HTTP.

use crate::{
    e2e::PATIENCE,
    peer::Peer,
    pillion::Setup,
    registering::{
        App, INTERVAL, LONG, Place, Registering, SERVICE, counted, follows_the_application, is_deployed_under_load,
        is_put_again, registration, until_failing, until_gone, until_state, until_there,
    },
    relay::Relay,
    servers::{NACOS_VERSIONS, NacosServer, eventually},
};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// On a busy machine nobody may come round to renew a shorter one in time.
const TTL: Duration = Duration::from_secs(6);
/// How often the server looks who has had no beats for too long.
const SERVER_CHECK: Duration = Duration::from_secs(5);
/// What a busy machine may take for what is quick otherwise: less than the 20 s after which the server forgets a connection
/// that is silent, or the 30 s after which it forgets an instance without a TTL of its own.
const MARGIN: Duration = Duration::from_secs(10);

/// One server, and how pillion is to reach it.
struct Nacos {
    server: NacosServer,
    more: String,
}

impl Nacos {
    async fn start(version: &'static str, transport: &str) -> Self {
        Self { server: NacosServer::start(version).await, more: format!("transport: {transport}") }
    }
}

impl Place for Nacos {
    fn settings(&self) -> String {
        format!("kind: nacos, servers: [\"{}\"], {}", self.server.url(), self.more)
    }

    async fn addresses(&self) -> Vec<String> {
        let hosts = self.server.hosts(SERVICE).await;
        let fit = hosts.iter().filter(|host| host["healthy"] == true && host["enabled"] == true);
        fit.map(|host| format!("{}:{}", host["ip"].as_str().unwrap(), host["port"])).collect()
    }
}

/// Runs a test on each version and with each transport.
async fn on_each(test: impl AsyncFn(&'static str, &'static str)) {
    for version in NACOS_VERSIONS {
        for transport in ["grpc", "http"] {
            println!("{version} {transport}");
            test(version, transport).await;
        }
    }
}

#[tokio::test]
async fn the_application_comes_and_goes() {
    on_each(async |version, transport| {
        follows_the_application(&Nacos::start(version, transport).await, LONG).await;
    })
    .await;
}

#[tokio::test]
async fn what_is_written_is_what_consumers_read() {
    on_each(async |version, transport| {
        let nacos = Nacos::start(version, transport).await;
        let mut app = App::started().await;
        let settings = "weight: 50, version: v2, zone: az-1, tags: [blue], metadata: { team: shop }, \
                        nacos: { cluster: hangzhou }";
        let pillion = Registering::new(&app, TTL).with(settings).registered(&nacos).await;
        let only = async || {
            let mut hosts = nacos.server.hosts(SERVICE).await;
            assert_eq!(hosts.len(), 1, "{hosts:?}");
            hosts.remove(0)
        };
        let host = only().await;
        let mut metadata = host["metadata"].clone();
        metadata.as_object_mut().unwrap().retain(|key, _| !key.starts_with("preserved."));
        assert_eq!(metadata, json!({ "version": "v2", "zone": "az-1", "tag.blue": "true", "team": "shop" }));
        assert_eq!((host["weight"].as_f64(), &host["clusterName"]), (Some(0.5), &json!("hangzhou")));
        assert_eq!((&host["ephemeral"], &host["enabled"]), (&json!(true), &json!(true)));
        // What is not fit is told as unhealthy, or over HTTP, where a beat would make it healthy, not at all.
        app.kill().await;
        until_gone(&nacos).await;
        until_state(&pillion, "unhealthy").await;
        match transport {
            "grpc" => assert_eq!(only().await["healthy"], false),
            _ => assert_eq!(nacos.server.hosts(SERVICE).await, Vec::<Value>::new()),
        }
        // It stays so, while it is renewed.
        let ((), seen) = counted(&nacos, sleep(TTL)).await;
        assert_eq!(seen, 0..=0);
        app.start().await;
        until_there(&nacos, &[app.address]).await;
        pillion.stop().await;
        assert_eq!(nacos.server.hosts(SERVICE).await, Vec::<Value>::new());
    })
    .await;
}

#[tokio::test]
async fn namespace_group_and_cluster_are_those_that_were_asked_for() {
    on_each(async |version, transport| {
        let (server, app) = (NacosServer::shared(version).await, App::started().await);
        let namespace = &server.namespace;
        let registry = format!(
            "kind: nacos, servers: [\"{}\"], transport: {transport}, namespace: {namespace}, group: SHOP",
            server.url()
        );
        // The group is the registry's, or the name's own.
        for (name, group, other) in [(SERVICE, "SHOP", "BANK"), ("BANK@@users", "BANK", "SHOP")] {
            let entry = format!(
                "service: \"{name}\", name_pattern: \"[A-Za-z@]+\", registry: real, address: 127.0.0.1, port: {}, ttl: {}ms, \
                 health: {{ interval: {}ms }}, nacos: {{ cluster: hangzhou }}",
                app.address.port(),
                TTL.as_millis(),
                INTERVAL.as_millis(),
            );
            let pillion = Setup::default().registry("real", &registry).register(&entry).start().await;
            until_state(&pillion, "registered").await;
            let told = async |namespace: &str, group: &str, cluster: &str| {
                let of = format!("{SERVICE}&namespaceId={namespace}&groupName={group}&clusters={cluster}");
                server.hosts(&of).await.iter().map(|host| host["port"].clone()).collect::<Vec<_>>()
            };
            let ours = json!(app.address.port());
            eventually("the instance", async || told(namespace, group, "hangzhou").await == [ours.clone()]).await;
            for (namespace, group, cluster) in
                [(namespace.as_str(), other, "hangzhou"), ("public", group, "hangzhou"), (namespace, group, "DEFAULT")]
            {
                assert_eq!(told(namespace, group, cluster).await, [0; 0], "{namespace} {group} {cluster}");
            }
            pillion.stop().await;
            assert_eq!(told(namespace, group, "hangzhou").await, [0; 0]);
        }
    })
    .await;
}

#[tokio::test]
async fn over_grpc_it_goes_with_the_connection() {
    for version in NACOS_VERSIONS {
        let nacos = Nacos::start(version, "grpc").await;
        let app = App::started().await;
        let registering = Registering::new(&app, TTL);
        let first = registering.registered(&nacos).await;
        first.kill().await;
        let gone = until_gone(&nacos).await;
        let second = registering.registered(&nacos).await;
        let ((), seen) = counted(&nacos, sleep(TTL)).await;
        assert_eq!(seen, 1..=1, "neither a gap nor two of it");
        println!("{version}: pillion killed: out after {gone:?}");
        assert!(gone < MARGIN, "out after {gone:?}");
        second.stop().await;
    }
}

#[tokio::test]
async fn over_http_it_outlives_a_kill() {
    for version in NACOS_VERSIONS {
        let nacos = Nacos::start(version, "http").await;
        let app = App::started().await;
        let registering = Registering::new(&app, TTL);
        let first = registering.registered(&nacos).await;
        let again = async {
            first.kill().await;
            let second = registering.registered(&nacos).await;
            // Whatever the first one left would run out in this time.
            sleep(TTL + SERVER_CHECK + Duration::from_secs(3)).await;
            second
        };
        let (second, seen) = counted(&nacos, again).await;
        assert_eq!(seen, 1..=1, "neither a gap nor two of it");
        second.kill().await;
        let gone = until_gone(&nacos).await;
        println!("{version}: pillion killed: out after {gone:?}, of a TTL of {TTL:?}");
        // It was renewed when a third of it had passed, or on a busy machine a little later.
        assert!(gone > TTL / 3 && gone < TTL + SERVER_CHECK + MARGIN, "out after {gone:?}");
    }
}

#[tokio::test]
async fn a_server_that_forgot_it_has_it_again() {
    on_each(async |version, transport| {
        let mut nacos = Nacos::start(version, transport).await;
        is_put_again(&mut nacos, TTL, async |nacos| nacos.server.restart().await).await;
    })
    .await;
}

#[tokio::test]
async fn what_somebody_takes_out_is_put_again() {
    for version in NACOS_VERSIONS {
        let mut nacos = Nacos::start(version, "http").await;
        is_put_again(&mut nacos, TTL, async |nacos| {
            let address = nacos.addresses().await.remove(0);
            nacos.server.deregister(SERVICE, &address, "").await;
            until_gone(nacos).await;
        })
        .await;
        // What is registered on a connection nobody else can take out.
        let nacos = Nacos::start(version, "grpc").await;
        let app = App::started().await;
        let pillion = Registering::new(&app, TTL).registered(&nacos).await;
        nacos.server.deregister(SERVICE, &app.address.to_string(), "").await;
        let ((), seen) = counted(&nacos, sleep(TTL)).await;
        assert_eq!(seen, 1..=1);
        pillion.stop().await;
        assert_eq!(nacos.addresses().await, Vec::<String>::new());
    }
}

#[tokio::test]
async fn another_connection_carries_it_on() {
    for version in NACOS_VERSIONS {
        let server = NacosServer::start(version).await;
        let relay = Relay::to(server.port + 1000).await;
        let nacos = Nacos { server, more: format!("transport: grpc, grpc_port: {}", relay.port) };
        let app = App::started().await;
        let pillion = Registering::new(&app, TTL).registered(&nacos).await;
        // A server that wants a new connection keeps the old one until there is one.
        let ((), seen) = counted(&nacos, async {
            nacos.server.send_clients_away().await;
            let start = Instant::now();
            while relay.connections() < 2 {
                assert!(start.elapsed() < PATIENCE, "there is no second connection");
                sleep(Duration::from_millis(5)).await;
            }
            sleep(TTL).await;
        })
        .await;
        println!("{version}: sent away: {seen:?} of it");
        assert_eq!(seen, 1..=1, "neither a gap nor two of it");
        relay.cut();
        until_gone(&nacos).await;
        relay.mend();
        let back = until_there(&nacos, &[app.address]).await;
        println!("{version}: cut and mended: in again after {back:?}");
        until_state(&pillion, "registered").await;
        // A silence is noticed by both.
        relay.silence();
        let out = until_gone(&nacos).await;
        relay.mend();
        let back = until_there(&nacos, &[app.address]).await;
        println!("{version}: silence: out after {out:?}, after its end in after {back:?}");
        pillion.stop().await;
        assert_eq!(nacos.addresses().await, Vec::<String>::new());
    }
}

#[tokio::test]
async fn two_of_one_service_share_the_connection() {
    on_each(async |version, transport| {
        let nacos = Nacos::start(version, transport).await;
        let (mut one, mut other) = (App::started().await, App::new());
        let entry = |app: &App| {
            format!(
                "service: {SERVICE}, registry: real, address: 127.0.0.1, port: {}, ttl: {}s, \
                 health: {{ interval: {}ms, rise: 1, fall: 2 }}",
                app.address.port(),
                TTL.as_secs(),
                INTERVAL.as_millis()
            )
        };
        let both = format!("{} }}, {{ {}", entry(&one), entry(&other));
        let pillion = Setup::default().registry("real", &nacos.settings()).register(&both).start().await;
        until_there(&nacos, &[one.address]).await;
        other.start().await;
        let mut all = [one.address.to_string(), other.address.to_string()];
        all.sort_unstable();
        until_there(&nacos, &all).await;
        let ((), seen) = counted(&nacos, sleep(TTL + SERVER_CHECK)).await;
        assert_eq!(seen, 2..=2);
        one.kill().await;
        until_there(&nacos, &[other.address]).await;
        pillion.stop().await;
        assert_eq!(nacos.server.hosts(SERVICE).await, Vec::<Value>::new());
    })
    .await;
}

#[tokio::test]
async fn without_the_right_to_it_is_said_so() {
    for version in NACOS_VERSIONS {
        for transport in ["grpc", "http"] {
            let server = NacosServer::start_with_users(version).await;
            let nobody = Nacos { server, more: format!("transport: {transport}") };
            let app = App::started().await;
            let pillion = Registering::new(&app, TTL).start(&nobody).await;
            until_failing(&pillion, "refused").await;
            println!("{version} {transport}: {}", registration(&pillion).await["failure"]);
            pillion.stop().await;
            let more = format!("transport: {transport}, user: nacos, password: nacos");
            let mut nacos = Nacos { more, ..nobody };
            let pillion = Registering::new(&app, TTL).start(&nacos).await;
            until_state(&pillion, "registered").await;
            nacos.server.log_in().await;
            until_there(&nacos, &[app.address]).await;
            // Longer than a token lives.
            sleep(Duration::from_secs(10)).await;
            until_state(&pillion, "registered").await;
            pillion.stop().await;
            nacos.server.log_in().await;
            assert_eq!(nacos.addresses().await, Vec::<String>::new());
        }
    }
}

#[tokio::test]
async fn http_stands_in_until_there_is_grpc() {
    let server = NacosServer::start("nacos-3").await;
    let relay = Relay::to(server.port + 1000).await;
    relay.cut();
    let nacos = Nacos { server, more: format!("grpc_port: {}", relay.port) };
    let app = App::started().await;
    let pillion = Registering::new(&app, TTL).registered(&nacos).await;
    assert_eq!(relay.connections(), 0);
    relay.mend();
    let moved = async {
        let start = Instant::now();
        while relay.connections() == 0 {
            // Once a minute.
            assert!(start.elapsed() < Duration::from_secs(180), "gRPC is tried again");
            sleep(Duration::from_millis(100)).await;
        }
        sleep(TTL).await;
    };
    let ((), seen) = counted(&nacos, moved).await;
    println!("from HTTP to gRPC: {seen:?} of it");
    assert_eq!(*seen.start(), 1, "no gap");
    eventually("the one without beats alone", async || {
        let hosts = nacos.server.hosts(SERVICE).await;
        hosts.len() == 1 && hosts[0]["metadata"] == json!({})
    })
    .await;
    assert_eq!(nacos.addresses().await, [app.address.to_string()]);
    relay.cut();
    // At once: whoever looks may see it all the time.
    eventually("HTTP stands in again", async || {
        let hosts = nacos.server.hosts(SERVICE).await;
        hosts.len() == 1 && !hosts[0]["metadata"]["preserved.heart.beat.timeout"].is_null()
    })
    .await;
    drop(pillion);
}

/// What Nacos' own clients are told of it, and whether they call it.
async fn consumed(nacos: &Nacos, program: &str) -> Vec<String> {
    let server = format!("127.0.0.1:{}", nacos.server.port);
    let found = tokio::process::Command::new(crate::servers::program(program))
        .args(["-nacos", &server, "-service", SERVICE, "-path", "/hello"])
        .output()
        .await
        .unwrap();
    assert!(found.status.success(), "{}", String::from_utf8_lossy(&found.stderr));
    let lines = String::from_utf8(found.stdout).unwrap();
    lines.lines().map(str::to_owned).collect()
}

#[tokio::test]
async fn their_own_clients_find_it_and_call_it() {
    for (version, program) in
        NACOS_VERSIONS.into_iter().flat_map(|version| ["consumer-nacos", "consumer-nacos-go"].map(|p| (version, p)))
    {
        let nacos = Nacos::start(version, "grpc").await;
        let mut app = App::started().await;
        let address = app.address;
        let pillion = Registering::new(&app, TTL).with("weight: 200").registered(&nacos).await;
        let weight = if program == "consumer-nacos" { "2.0" } else { "2" };
        let found = consumed(&nacos, program).await;
        assert_eq!(found, [format!("{address} true {weight}"), format!("called {address} /hello")], "{version}");
        assert_eq!(app.called().await, "GET /hello");
        // They are told that it is unhealthy, and do not call it.
        app.kill().await;
        until_gone(&nacos).await;
        assert_eq!(consumed(&nacos, program).await, [format!("{address} false {weight}")], "{version}");
        pillion.stop().await;
        assert_eq!(consumed(&nacos, program).await, Vec::<String>::new(), "{version}");
    }
}

/// pillion itself as a consumer, through which the application is called.
#[tokio::test]
async fn another_pillion_calls_it() {
    for version in NACOS_VERSIONS {
        let nacos = Nacos::start(version, "grpc").await;
        let mut app = App::started().await;
        let _registered = Registering::new(&app, TTL).registered(&nacos).await;
        let caller =
            Setup::default().registry("real", &nacos.settings()).service("users: { sources: [real] }").start().await;
        let mut peer = Peer::connect(caller.egress()).await;
        peer.send("GET /hello HTTP/1.1\r\nhost: users\r\n\r\n").await;
        assert_eq!(peer.response().await.text(), "/hello");
        assert_eq!(app.called().await, "GET /hello");
    }
}

#[tokio::test]
async fn a_rolling_deployment_fails_no_request() {
    is_deployed_under_load(&Nacos::start("nacos-3", "grpc").await, TTL).await;
}
