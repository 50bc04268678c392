//! Registries that are killed, cut off, or not there yet.

use crate::{
    e2e::{Load, Pillion, Upstream, get, until, until_answer},
    relay::Relay,
    servers::AnyServer,
};
use futures_util::future::join_all;
use http::Version;
use std::time::Duration;
use tokio::time::Instant;

const FAILURES: &str = "pillion_discovery_failures_total";
const HELD: &str = "pillion_discovery_held";

async fn until_metric(pillion: &Pillion, name: &str, fits: impl Fn(f64) -> bool) {
    until(name, async || fits(pillion.metric(name).await)).await;
}

async fn register(server: &mut AnyServer, instance: &Upstream) {
    server.register("users", &instance.name, instance.address).await;
}

async fn deregister(server: &mut AnyServer, instance: &Upstream) {
    server.deregister("users", &instance.name, instance.address).await;
}

/// Over both versions of HTTP, and so that many can run beside each other.
fn loads(pillion: &Pillion) -> [Load; 2] {
    let pause = Duration::from_millis(20);
    [Version::HTTP_11, Version::HTTP_2].map(|version| Load::paced(pillion.egress(), version, "users", 2, pause))
}

/// Of a registry that is killed: how long it took until that was noticed, and until a change was seen once it was up; and
/// how many requests there were meanwhile.
async fn killed(server: &mut AnyServer) -> (Duration, Duration, u64) {
    let (first, second) = (Upstream::start("first").await, Upstream::start("second").await);
    register(server, &first).await;
    let pillion = Pillion::with_registry(&server.url(server.port())).await;
    until_answer(pillion.egress(), "users", |status, _| status == 200).await;
    let mut loads = loads(&pillion);
    let (mut noticed, mut right) = (Duration::ZERO, Duration::ZERO);
    let rounds = if server.is_quick() { 2 } else { 1 };
    for round in 1..=rounds {
        let failures = pillion.metric(FAILURES).await;
        let down = Instant::now();
        server.kill();
        until_metric(&pillion, FAILURES, |now| now > failures).await;
        noticed = noticed.max(down.elapsed());
        for load in &mut loads {
            load.more(100).await;
        }
        server.restart().await;
        let mut up = Instant::now();
        if server.forgets() {
            // It answers, and knows of nobody.
            until_metric(&pillion, HELD, |held| held == f64::from(round)).await;
            let before = first.requests();
            for load in &mut loads {
                load.more(50).await;
            }
            assert!(first.requests() > before, "{}: it is still used", server.name());
            up = Instant::now();
            register(server, &first).await;
        }
        if round == 1 || server.forgets() {
            register(server, &second).await;
        }
        if round == 1 {
            until_answer(pillion.egress(), "users", |_, name| name == "second").await;
        }
        until_metric(&pillion, HELD, |held| held == 0.0).await;
        until(&format!("{} to be followed again", server.name()), async || {
            let source = &pillion.json("/api/services/users").await["sources"][0];
            source["state"] == "answering" && source["instances"] == 2
        })
        .await;
        right = right.max(up.elapsed());
    }
    deregister(server, &first).await;
    until("the first to be left alone", async || {
        let before = first.requests();
        for load in &mut loads {
            load.more(20).await;
        }
        first.requests() == before
    })
    .await;
    let mut done = 0;
    for load in loads {
        done += load.end_without_failure().await;
    }
    deregister(server, &second).await;
    (noticed, right, done)
}

/// Of a registry to which nothing passes any more: how long it took until that was noticed, and until the table was right
/// once the way was free again.
async fn silenced(server: &mut AnyServer) -> (Duration, Duration) {
    let relay = Relay::to(server.port()).await;
    let (old, new) = (Upstream::start("old").await, Upstream::start("new").await);
    register(server, &old).await;
    let mut url = server.url(relay.port);
    if let AnyServer::Consul(_) = server {
        // Its watchdog's time hangs on this one.
        url += "?wait=2s";
    }
    let pillion = Pillion::with_registry(&url).await;
    until_answer(pillion.egress(), "users", |_, name| name == "old").await;
    let mut loads = loads(&pillion);
    relay.silence();
    let cut = Instant::now();
    register(server, &new).await;
    deregister(server, &old).await;
    until_metric(&pillion, FAILURES, |failures| failures > 0.0).await;
    let noticed = cut.elapsed();
    relay.mend();
    let mended = Instant::now();
    until_answer(pillion.egress(), "users", |_, name| name == "new").await;
    let right = mended.elapsed();
    for load in &mut loads {
        load.more(20).await;
    }
    for load in loads {
        load.end_without_failure().await;
    }
    (noticed, right)
}

#[tokio::test]
async fn each_registry_is_killed_and_cut_off_under_load_and_no_request_fails() {
    let stories = AnyServer::all().await.into_iter().map(|mut server| async move {
        let (noticed, right, requests) = killed(&mut server).await;
        let (cut_noticed, cut_right) = silenced(&mut server).await;
        (server, [noticed, right, cut_noticed, cut_right], requests)
    });
    let stories = join_all(stories).await;
    println!("registry  | killed: noticed | comes back with | right again | cut off: noticed | right again | requests");
    for (server, [noticed, right, cut_noticed, cut_right], requests) in &stories {
        let kept = if server.forgets() { "nothing" } else { "its data" };
        println!(
            "{:9} | {noticed:>15.1?} | {kept:15} | {right:>11.1?} | {cut_noticed:>16.1?} | {cut_right:>11.1?} | {requests}, none failed",
            server.name()
        );
    }
    // That it is right again at all is all that can be said here: attempts are up to 10 s apart by then, and a Eureka that
    // cached half of two changes says so for twenty polls.
    for (server, [noticed, _, cut_noticed, _], _) in &stories {
        let name = server.name();
        assert!(*noticed < Duration::from_secs(12), "{name}: {noticed:?}");
        assert!(*cut_noticed < Duration::from_secs(50), "{name}: {cut_noticed:?}");
    }
}

#[tokio::test]
async fn a_sidecar_that_starts_before_its_registry_says_so_fast_and_recovers() {
    for mut server in [AnyServer::etcd().await, AnyServer::consul().await] {
        let users = Upstream::start("users").await;
        register(&mut server, &users).await;
        server.kill();
        let pillion = Pillion::with_registry(&server.url(server.port())).await;
        let asked = Instant::now();
        let (status, body) = get(pillion.egress(), "users").await.unwrap();
        assert!(status == 503 && body.contains("discovery_timeout"), "{status} {body}");
        println!("{}: the first 503 after {:.1?}", server.name(), asked.elapsed());
        // Far sooner than the 15 s that a request may take.
        assert!(asked.elapsed() < Duration::from_secs(10), "{:?}", asked.elapsed());
        let asked = Instant::now();
        for _ in 0..10 {
            assert_eq!(get(pillion.egress(), "users").await.unwrap().0, 503);
        }
        // Each of them would wait for two seconds.
        assert!(asked.elapsed() < Duration::from_secs(10), "only the first waits: {:?}", asked.elapsed());
        server.restart().await;
        let up = Instant::now();
        until_answer(pillion.egress(), "users", |status, _| status == 200).await;
        println!("{}: recovered {:.1?} after it was up", server.name(), up.elapsed());
    }
}
