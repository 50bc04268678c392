//! What registries see of one pillion that follows twenty services.

use crate::{
    e2e::{ANY, Pillion, pillion, until},
    relay::Relay,
    servers::AnyServer,
};
use futures_util::future::join_all;
use std::{fmt::Write as _, fs, net::SocketAddr, time::Duration};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

const SERVICES: usize = 20;
const QUIET: Duration = Duration::from_secs(5);
const CHANGES: u8 = 5;

/// What passed in a time.
#[derive(Debug, Clone, Copy)]
struct Seen {
    time: Duration,
    connections: usize,
    /// Writes of pillion's, about as many as its requests.
    writes: usize,
    up: usize,
    down: usize,
}

impl Seen {
    fn now(relay: &Relay) -> Self {
        let passed = relay.passed();
        let sum = |value: fn(&crate::relay::Passed) -> usize| passed.iter().map(value).sum();
        Self {
            time: relay.elapsed(),
            connections: passed.len(),
            writes: sum(|one| one.pieces),
            up: sum(|one| one.up),
            down: sum(|one| one.down),
        }
    }

    /// How many times as much as in five seconds there may be: on a busy machine all takes longer.
    fn longer(&self) -> usize {
        1 + (self.time.as_millis() / (QUIET + Duration::from_secs(2)).as_millis()) as usize
    }

    fn since(self, before: Self) -> Self {
        Self {
            time: self.time - before.time,
            connections: self.connections - before.connections,
            writes: self.writes - before.writes,
            up: self.up - before.up,
            down: self.down - before.down,
        }
    }
}

fn address(number: u8) -> SocketAddr {
    ([10, 0, 0, number], 80).into()
}

/// At the start, while nothing changes, and while one instance is registered per second.
async fn watched(server: &mut AnyServer) -> [Seen; 3] {
    server.register("s0", "n0", address(1)).await;
    let relay = Relay::to(server.port()).await;
    let folder = TempDir::new().unwrap();
    let mut config = "services:\n".to_owned();
    for number in 0..SERVICES {
        writeln!(config, "  s{number}: {{}}").unwrap();
    }
    let path = folder.path().join("pillion.yaml");
    fs::write(&path, config).unwrap();
    let mut command = pillion(&["run", "--listen", ANY, "--admin", ANY, "--registry", &server.url(relay.port)]);
    let pillion = Pillion::start(command.arg("--config").arg(path)).await;
    let endpoints = async |wanted: usize| {
        until(&format!("{wanted} endpoints from {}", server.name()), async || {
            pillion.json("/api/services/s0").await["endpoints"].as_array().unwrap().len() == wanted
        })
        .await;
    };
    endpoints(1).await;
    until(&format!("all answers of {}", server.name()), async || pillion.admin_text("/ready").await.0 == 200).await;
    // What follows the first answers: connections that are closed, a question that waits.
    sleep(Duration::from_secs(1)).await;
    let at_start = Seen::now(&relay);
    sleep(QUIET).await;
    let idle = Seen::now(&relay);
    for number in 1..=CHANGES {
        let changed = Instant::now();
        server.register("s0", &format!("n{number}"), address(number + 1)).await;
        sleep(Duration::from_secs(1).saturating_sub(changed.elapsed())).await;
    }
    until(&format!("all endpoints from {}", server.name()), async || {
        pillion.json("/api/services/s0").await["endpoints"].as_array().unwrap().len() == usize::from(CHANGES) + 1
    })
    .await;
    [at_start, idle.since(at_start), Seen::now(&relay).since(idle)]
}

#[tokio::test]
async fn twenty_services_are_followed_politely() {
    let (mut servers, kubernetes) = tokio::join!(AnyServer::all(), AnyServer::kubernetes());
    servers.push(kubernetes);
    let seen = join_all(servers.iter_mut().map(watched)).await;
    println!(
        "{SERVICES} services | connections | writes: start | idle {QUIET:?} | {CHANGES} changes | bytes up/down: start | idle | changes"
    );
    for (server, [start, idle, changes]) in servers.iter().zip(&seen) {
        println!(
            "{:11} | {:11} | {:13} | {:7} | {:9} | {}/{} | {}/{} | {}/{}",
            server.name(),
            start.connections,
            start.writes,
            idle.writes,
            changes.writes,
            start.up,
            start.down,
            idle.up,
            idle.down,
            changes.up,
            changes.down
        );
    }
    for (server, [start, idle, changes]) in servers.iter().zip(seen) {
        // Connections, writes at the start, when idle and under changes.
        let most = match server {
            // A question per service that waits for its answer, and asked anew after it.
            AnyServer::Consul(_) => [SERVICES + 1, 60, 10, 30],
            _ => [2, 100, 60, 80],
        };
        let most = [most[0], most[1] * start.longer(), most[2] * idle.longer(), most[3] * changes.longer()];
        let found = [start.connections, start.writes, idle.writes, changes.writes];
        assert!(found.iter().zip(most).all(|(found, most)| *found <= most), "{}: {found:?}, {most:?}", server.name());
        let new = idle.connections + changes.connections;
        // An answer may be there before the connection that it came on can be used again.
        let most = if matches!(server, AnyServer::Consul(_)) { 2 } else { 0 };
        assert!(new <= most, "{}: connections are kept, and {new} are new", server.name());
    }
}
