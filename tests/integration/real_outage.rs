//! Registries that are killed, cut off, or not there yet.

use crate::{
    e2e::{ANY, Load, Pillion, Upstream, get, pillion, until, until_answer},
    relay::Relay,
    servers::{ConsulServer, EtcdServer, program},
};
use http::Version;
use serde_json::json;
use std::time::Duration;
use tokio::time::Instant;

/// The registries under test.
enum Server {
    Etcd(EtcdServer),
    Consul(ConsulServer),
}

impl Server {
    /// Both keep their data over a restart.
    async fn both() -> [Self; 2] {
        let etcd = EtcdServer::start(&program("etcd")).await;
        [Self::Etcd(etcd), Self::Consul(ConsulServer::start_with_data().await)]
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Etcd(_) => "etcd",
            Self::Consul(_) => "consul",
        }
    }

    fn port(&self) -> u16 {
        match self {
            Self::Etcd(etcd) => etcd.port,
            Self::Consul(consul) => consul.port,
        }
    }

    /// For `--registry`, at this port.
    fn url(&self, port: u16) -> String {
        match self {
            Self::Etcd(_) => format!("etcd://127.0.0.1:{port}"),
            // Its watchdog's time hangs on this one.
            Self::Consul(_) => format!("consul://127.0.0.1:{port}?wait=2s"),
        }
    }

    async fn register(&self, instance: &Upstream) {
        let Upstream { name, address, .. } = instance;
        match self {
            Self::Etcd(etcd) => drop(etcd.put(&format!("/pillion/users/{name}"), address.to_string()).await),
            Self::Consul(consul) => {
                let service = json!({"ID": name, "Name": "users", "Address": "127.0.0.1", "Port": address.port()});
                consul.register(&service).await;
            }
        }
    }

    async fn deregister(&self, instance: &Upstream) {
        match self {
            Self::Etcd(etcd) => etcd.delete(&format!("/pillion/users/{}", instance.name)).await,
            Self::Consul(consul) => {
                let path = format!("/v1/agent/service/deregister/{}", instance.name);
                consul.put(&path, &serde_json::Value::Null).await;
            }
        }
    }

    fn kill(&mut self) {
        match self {
            Self::Etcd(etcd) => etcd.kill(),
            Self::Consul(consul) => consul.kill(),
        }
    }

    async fn restart(&mut self) {
        match self {
            Self::Etcd(etcd) => etcd.restart().await,
            Self::Consul(consul) => consul.restart().await,
        }
    }
}

const FAILURES: &str = "pillion_discovery_failures_total";

async fn until_metric(pillion: &Pillion, name: &str, fits: impl Fn(f64) -> bool) {
    until(name, async || fits(pillion.metric(name).await)).await;
}

#[tokio::test]
async fn a_registry_is_killed_and_restarted_under_load_and_no_request_fails() {
    for mut server in Server::both().await {
        let (first, second) = (Upstream::start("first").await, Upstream::start("second").await);
        server.register(&first).await;
        let pillion = Pillion::with_registry(&server.url(server.port())).await;
        let egress = pillion.egress();
        until_answer(egress, "users", |status, _| status == 200).await;
        let mut loads = [Version::HTTP_11, Version::HTTP_2].map(|version| Load::start(egress, version, "users", 4));
        for round in 1..=2 {
            let failures = pillion.metric(FAILURES).await;
            server.kill();
            until_metric(&pillion, FAILURES, |now| now > failures).await;
            for load in &mut loads {
                load.more(500).await;
            }
            server.restart().await;
            // It is followed again: what changes from now on arrives.
            let up = Instant::now();
            if round == 1 {
                server.register(&second).await;
                until_answer(egress, "users", |_, name| name == "second").await;
            } else {
                server.deregister(&first).await;
                until("the first to be left alone", async || {
                    let before = first.requests();
                    for load in &mut loads {
                        load.more(50).await;
                    }
                    first.requests() == before
                })
                .await;
            }
            println!("{}: round {round}: right again {:.1?} after it was back", server.name(), up.elapsed());
        }
        for load in loads {
            println!("{}: {} requests", server.name(), load.end_without_failure().await);
        }
    }
}

#[tokio::test]
async fn a_sidecar_that_starts_before_its_registry_says_so_fast_and_recovers() {
    for mut server in Server::both().await {
        let users = Upstream::start("users").await;
        server.register(&users).await;
        server.kill();
        let pillion = Pillion::with_registry(&server.url(server.port())).await;
        let asked = Instant::now();
        let (status, body) = get(pillion.egress(), "users").await.unwrap();
        assert!(status == 503 && body.contains("discovery_timeout"), "{status} {body}");
        println!("{}: the first 503 after {:.1?}", server.name(), asked.elapsed());
        assert!(asked.elapsed() < Duration::from_secs(4), "{:?}", asked.elapsed());
        let asked = Instant::now();
        for _ in 0..10 {
            assert_eq!(get(pillion.egress(), "users").await.unwrap().0, 503);
        }
        assert!(asked.elapsed() < Duration::from_secs(1), "only the first waits: {:?}", asked.elapsed());
        server.restart().await;
        let up = Instant::now();
        until_answer(pillion.egress(), "users", |status, _| status == 200).await;
        println!("{}: recovered {:.1?} after it was up", server.name(), up.elapsed());
    }
}

#[tokio::test]
async fn a_silent_cut_is_noticed_and_the_table_is_right_again() {
    let [etcd, consul] = Server::both().await;
    let noticed = async |server: &Server| {
        let relay = Relay::to(server.port()).await;
        let (old, new) = (Upstream::start("old").await, Upstream::start("new").await);
        server.register(&old).await;
        let pillion = Pillion::with_registry(&server.url(relay.port)).await;
        until_answer(pillion.egress(), "users", |_, name| name == "old").await;
        let mut load = Load::start(pillion.egress(), Version::HTTP_11, "users", 2);
        relay.silence();
        let cut = Instant::now();
        server.register(&new).await;
        server.deregister(&old).await;
        until_metric(&pillion, FAILURES, |failures| failures > 0.0).await;
        println!("{}: a silent cut was noticed after {:.1?}", server.name(), cut.elapsed());
        relay.mend();
        let mended = Instant::now();
        until_answer(pillion.egress(), "users", |_, name| name == "new").await;
        println!("{}: the table was right {:.1?} after the way was free again", server.name(), mended.elapsed());
        load.more(10).await;
        load.end_without_failure().await;
    };
    tokio::join!(noticed(&etcd), noticed(&consul));
}

#[tokio::test]
async fn twenty_services_are_followed_politely() {
    for server in Server::both().await {
        let relay = Relay::to(server.port()).await;
        let users = Upstream::start("users").await;
        server.register(&users).await;
        let mut command = pillion(&["run", "--listen", ANY, "--admin", ANY, "--registry"]);
        // With the usual wait: how often an agent is asked is the question.
        let url = server.url(relay.port).replace("?wait=2s", "");
        let pillion = Pillion::start(command.arg(url)).await;
        for number in 0..19 {
            let (status, _) = get(pillion.egress(), &format!("service-{number}")).await.unwrap();
            assert_eq!(status, 404);
        }
        until_answer(pillion.egress(), "users", |status, _| status == 200).await;
        let (connections, requests) = (relay.connections(), relay.requests());
        // One change is one answer and one question anew for each who asked for that service, and none for the others.
        let more = Upstream::start("more").await;
        server.register(&more).await;
        until_answer(pillion.egress(), "users", |_, name| name == "more").await;
        println!(
            "{}: 20 services: {connections} connections, {} after a change; {requests} queries, {} after a change",
            server.name(),
            relay.connections(),
            relay.requests()
        );
        let most = if matches!(server, Server::Etcd(_)) { 1 } else { 20 };
        assert!(relay.connections() <= most + 1, "{}", relay.connections());
        // Two per service: the first answer, and the question that waits.
        assert!(requests <= 42 && relay.requests() <= requests + 4, "{requests}, then {}", relay.requests());
    }
}
