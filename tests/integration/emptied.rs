//! A registry that suddenly lists far fewer instances: emptied by mistake, or because the service was stopped.

use crate::{
    e2e::{Load, Upstream, until},
    pillion::{Pillion, Setup},
};
use http::Version;
use serde_json::Value;
use std::time::Duration;
use tokio::time::Instant;

const HELD: &str = "pillion_discovery_held";

async fn started(count: usize) -> (Vec<Upstream>, Pillion) {
    let mut upstreams = Vec::new();
    for number in 0..count {
        upstreams.push(Upstream::start(&format!("u{number}")).await);
    }
    let pillion =
        // Each in its turn, so that one that was slow for a moment is asked as well.
        Setup::users(upstreams.iter().map(|upstream| upstream.address))
            .service("user-service: { balance: { policy: round-robin } }")
            .start()
            .await;
    (upstreams, pillion)
}

fn listing(upstreams: &[Upstream]) -> String {
    let addresses: Vec<_> = upstreams.iter().map(|upstream| format!("'{}'", upstream.address)).collect();
    format!("services: {{ user-service: [{}] }}", addresses.join(", "))
}

async fn detail(pillion: &Pillion) -> Value {
    let mut admin = crate::peer::Peer::connect(pillion.admin()).await;
    admin.send("GET /api/services/user-service HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n").await;
    serde_json::from_str(&admin.response().await.text()).unwrap()
}

#[tokio::test]
async fn an_empty_list_empties_nothing_while_the_instances_answer() {
    let (upstreams, mut pillion) = started(5).await;
    let mut loads =
        [Version::HTTP_11, Version::HTTP_2].map(|version| Load::start(pillion.egress(), version, "user-service", 3));
    for load in &mut loads {
        load.more(50).await;
    }
    pillion.write_instances("services: {}");
    pillion.until_metric(HELD, &[], 5.0).await;
    pillion.logged("far fewer instances are listed at once").await;
    let seen = detail(&pillion).await;
    assert_eq!((seen["held"]["endpoints"].as_u64(), seen["held"]["before"].as_u64()), (Some(5), Some(5)), "{seen:#}");
    assert_eq!(seen["sources"][0]["instances"], 0, "what the registry says is not hidden");
    // Each has been asked by now, and answered; all of them carry on.
    pillion.until_metric_has_reached("pillion_health_checks_total", &["result=\"passed\""], 5.0).await;
    let before: Vec<_> = upstreams.iter().map(Upstream::requests).collect();
    for load in &mut loads {
        load.more(300).await;
    }
    for (upstream, before) in upstreams.iter().zip(before) {
        assert!(upstream.requests() > before, "{} gets no more", upstream.name);
    }
    pillion.write_instances(&listing(&upstreams));
    pillion.until_metric(HELD, &[], 0.0).await;
    assert!(detail(&pillion).await.get("held").is_none());
    for mut load in loads {
        load.more(50).await;
        load.end_without_failure().await;
    }
}

#[tokio::test]
async fn a_service_that_was_really_stopped_is_gone_in_a_second() {
    // What else the machine does may take its time, but not each time.
    let mut took = Vec::new();
    while took.last().is_none_or(|took| *took >= Duration::from_secs(3)) && took.len() < 5 {
        took.push(until_a_stopped_service_is_gone().await);
    }
    println!("all 5 were gone {took:.1?} after the registry had said so");
    assert!(took.last().is_some_and(|took| *took < Duration::from_secs(3)), "{took:?}");
}

async fn until_a_stopped_service_is_gone() -> Duration {
    let (upstreams, pillion) = started(5).await;
    let mut client = pillion.connect().await;
    client.send("GET / HTTP/1.1\r\nhost: user-service\r\n\r\n").await;
    assert_eq!(client.response().await.status(), 200);
    for upstream in upstreams {
        upstream.leave().await;
    }
    pillion.write_instances("services: {}");
    let stopped = Instant::now();
    until("no endpoint to be left", async || detail(&pillion).await["endpoints"] == serde_json::json!([])).await;
    let took = stopped.elapsed();
    assert_eq!(pillion.metric(HELD, &[]).await, 0.0);
    client.send("GET / HTTP/1.1\r\nhost: user-service\r\n\r\n").await;
    assert_eq!(client.response().await.error(), (503, Some("no_endpoints")));
    took
}

#[tokio::test]
async fn of_those_that_are_gone_only_the_ones_that_answer_stay() {
    let (mut upstreams, pillion) = started(4).await;
    let mut load = Load::start(pillion.egress(), Version::HTTP_11, "user-service", 2);
    load.more(20).await;
    let gone = [upstreams.pop().unwrap(), upstreams.pop().unwrap()];
    // First out of the list with all but one of the others, then out of the world.
    pillion.write_instances(&listing(&upstreams[..1]));
    pillion.until_metric(HELD, &[], 3.0).await;
    for upstream in gone {
        upstream.leave().await;
    }
    pillion.until_metric(HELD, &[], 1.0).await;
    load.more(100).await;
    load.end_without_failure().await;
}

/// Who left as one should is back on the list of those to be asked once far too many go, and gets no request until it answers.
#[tokio::test]
async fn those_that_left_before_get_no_request_unless_they_answer() {
    let (mut upstreams, pillion) = started(6).await;
    let mut load = Load::start(pillion.egress(), Version::HTTP_11, "user-service", 2);
    load.more(50).await;
    for left in [5, 4] {
        let leaves = upstreams.pop().unwrap();
        pillion.write_instances(&listing(&upstreams));
        let endpoints = async || detail(&pillion).await["endpoints"].as_array().unwrap().len();
        until("it to be out of use", async || endpoints().await == left).await;
        leaves.leave().await;
    }
    pillion.write_instances(&listing(&upstreams[..1]));
    pillion.until_metric_has_reached("pillion_health_checks_total", &["result=\"failed\""], 2.0).await;
    pillion.until_metric(HELD, &[], 3.0).await;
    load.more(200).await;
    load.end_without_failure().await;
    assert_eq!(pillion.metric("pillion_pool_connect_failures_total", &[]).await, 0.0);
}
