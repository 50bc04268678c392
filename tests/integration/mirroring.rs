//! Copies of requests go to another subset or service: nobody waits for them, and they count for themselves.

use crate::{
    http2_peer::{self, Exchange, H2Upstream, ServerConnection, soon},
    peer::{Answering, Message, Peer, Upstream, get, ok, post},
    pillion::{Pillion, Setup},
};
use http::{HeaderMap, Response};
use std::{fmt::Display, time::Duration};
use tokio::time::Instant;

/// `user-service` in two versions. What `stable` gets is copied to `canary`, with these settings.
fn mirrored(stable: impl Display, canary: impl Display, settings: &str) -> Setup {
    let instance = |address: &dyn Display, version| {
        let address = address.to_string();
        let address = address.strip_prefix("{ address: ").map_or(address.as_str(), |rest| rest.trim_end_matches(" }"));
        format!("{{ address: {address}, labels: {{ version: {version} }} }}")
    };
    let service = format!(
        "user-service: {{ subsets: {{ stable: {{ version: v1 }}, canary: {{ version: v2 }} }}, \
         routes: [{{ name: shadow, to: stable, mirror: {{ to: canary, {settings} }} }}], timeouts: {{ request: 15s }} }}"
    );
    Setup::users([instance(&stable, "v1"), instance(&canary, "v2")]).service(&service).workers(1)
}

const TO_CANARY: [&str; 3] = ["service=\"user-service\"", "route=\"shadow\"", "to=\"canary\""];

async fn until_copies(pillion: &Pillion, code: u16, count: f64) {
    let code = format!("code=\"{code}\"");
    pillion.until_metric("pillion_mirror_requests_total", &[&TO_CANARY[..], &[&code]].concat(), count).await;
}

async fn skipped(pillion: &Pillion, reason: &str) -> f64 {
    let reason = format!("reason=\"{reason}\"");
    pillion.metric("pillion_mirror_skipped_total", &[&TO_CANARY[..], &[&reason]].concat()).await
}

async fn asked(client: &mut Peer, request: impl AsRef<[u8]>) -> Message {
    client.send(request).await;
    let response = client.response().await;
    assert_eq!(response.status(), 200, "{response:?}");
    response
}

#[tokio::test]
async fn every_request_is_copied_marked_and_counted_by_itself() {
    let (mut stable, mut canary) = (Answering::ok().await, Upstream::bind().await.answering(|_| ok("not for you")));
    let pillion = mirrored(stable.address, canary.address, "max_in_flight: 1000").start().await;
    let tasks = pillion.idle_tasks().await;
    let mut client = pillion.connect().await;
    for number in 0..50 {
        assert_eq!(asked(&mut client, get(&format!("/{number}?q"))).await.text(), "ok");
    }
    until_copies(&pillion, 200, 50.0).await;
    let path = |request: &Message| request.start.clone();
    let (mut originals, mut copies) = (stable.unseen(), canary.unseen());
    copies.sort_by_key(path);
    originals.sort_by_key(path);
    assert_eq!((originals.len(), copies.len()), (50, 50));
    for (original, copy) in originals.iter().zip(&copies) {
        assert_eq!((original.get("x-pillion-mirror"), copy.get("x-pillion-mirror")), (None, Some("shadow")));
        let unmarked = |message: &Message| {
            let fields = message.fields.iter().filter(|(name, _)| name != "x-pillion-mirror");
            (message.start.clone(), fields.cloned().collect::<Vec<_>>())
        };
        assert_eq!(unmarked(original), unmarked(copy));
        assert!(copy.get("x-request-id").is_some() && copy.get("host") == Some("user-service"), "{copy:?}");
    }
    pillion.until_metric("pillion_requests_total", &[], 50.0).await;
    pillion.until_metric("pillion_subset_requests_total", &["subset=\"canary\""], 0.0).await;
    pillion.until_metric("pillion_mirror_duration_seconds_count", &TO_CANARY, 50.0).await;
    assert_eq!(pillion.metric("pillion_mirror_compared_total", &[]).await, 0.0, "it was not asked for");
    drop(client);
    pillion.until_idle(tasks).await;
    assert_eq!(pillion.metric("pillion_mirror_in_flight", &[]).await, 0.0);
    // Connections are used again after copies, too.
    assert!(pillion.metric("pillion_pool_opened_total", &[]).await < 25.0);
}

#[tokio::test]
async fn a_share_is_drawn() {
    let (stable, mut canary) = (Answering::ok().await, Answering::ok().await);
    let pillion = mirrored(stable.address, canary.address, "percent: 20, max_in_flight: 1000").start().await;
    let mut client = pillion.connect().await;
    const REQUESTS: usize = 3000;
    for _ in 0..REQUESTS {
        asked(&mut client, get("/")).await;
    }
    pillion.until_metric("pillion_mirror_in_flight", &[], 0.0).await;
    let copies = canary.unseen().len();
    // Five standard deviations: the square root of 3000 × 0.2 × 0.8 is 22.
    assert!((490..=710).contains(&copies), "{copies} of {REQUESTS}");
    until_copies(&pillion, 200, copies as f64).await;
}

#[tokio::test]
async fn bodies_are_copied_whole_or_not_at_all() {
    let (mut stable, mut canary) = (Answering::ok().await, Answering::ok().await);
    let pillion = mirrored(stable.address, canary.address, "max_body: 1000").start().await;
    let mut client = pillion.connect().await;
    let chunked = |pieces: &[&str]| {
        let chunks: String = pieces.iter().map(|piece| format!("{:x}\r\n{piece}\r\n", piece.len())).collect();
        format!("POST /chunked HTTP/1.1\r\nhost: user-service\r\ntransfer-encoding: chunked\r\n\r\n{chunks}0\r\n\r\n")
    };
    let (most, more) = ("m".repeat(1000), "m".repeat(1001));
    for (request, body, is_copied) in [
        (post("/small", "hello"), "hello", true),
        (post("/empty", ""), "", true),
        (post("/most", &most), &*most, true),
        (post("/more", &more), &*more, false),
        (chunked(&["one", "two"]), "onetwo", true),
        (chunked(&[&most]), &*most, true),
        (chunked(&[&most, "x"]), &*format!("{most}x"), false),
        (chunked(&[]), "", true),
    ] {
        asked(&mut client, &request).await;
        assert_eq!(stable.seen().await.text(), body);
        if is_copied {
            let copy = canary.seen().await;
            assert_eq!((copy.text(), copy.get("transfer-encoding")), (body.to_owned(), None), "{request}");
        }
    }
    until_copies(&pillion, 200, 6.0).await;
    assert_eq!(skipped(&pillion, "too_large").await, 2.0);
    // Trailers of a request, which hardly anybody sends.
    let trailers = chunked(&["one"]).replace("0\r\n\r\n", "0\r\nx-sum: 1\r\n\r\n");
    asked(&mut client, trailers).await;
    assert_eq!(stable.seen().await.trailers, [("x-sum".to_owned(), "1".to_owned())]);
    assert_eq!((skipped(&pillion, "unfit").await, canary.unseen().len()), (1.0, 0));
}

#[tokio::test]
async fn a_body_streams_through_and_is_copied_at_its_end() {
    let (stable, mut canary) = (Upstream::bind().await, Answering::ok().await);
    let pillion = mirrored(stable.address, canary.address, "max_body: 1000").start().await;
    let mut client = pillion.connect().await;
    let head = "POST / HTTP/1.1\r\nhost: user-service\r\ncontent-length: 6\r\n\r\n";
    client.send(format!("{head}one")).await;
    let mut upstream = stable.accept().await;
    upstream.head().await;
    assert_eq!(upstream.take(3).await, b"one", "before the rest of it is there");
    assert!(canary.unseen().is_empty());
    client.send("two").await;
    assert_eq!(upstream.take(3).await, b"two");
    assert_eq!(canary.seen().await.text(), "onetwo");
    upstream.send(ok("ok")).await;
    client.response().await;
    // One that never comes to its end.
    client.send(format!("{head}one")).await;
    upstream.head().await;
    assert_eq!(upstream.take(3).await, b"one");
    drop(client);
    let incomplete = [&TO_CANARY[..], &["reason=\"incomplete\""]].concat();
    pillion.until_metric("pillion_mirror_skipped_total", &incomplete, 1.0).await;
    pillion.until_metric("pillion_mirror_in_flight", &[], 0.0).await;
    assert!(canary.unseen().is_empty());
}

/// Answers one call of a gRPC server with this status.
async fn answer_call(connection: &mut ServerConnection, status: &str) -> Vec<u8> {
    let Exchange { mut body, mut respond, .. } = connection.next().await;
    let message = http2_peer::read(&mut body).await.unwrap().0;
    let head = Response::builder().header("content-type", "application/grpc").body(()).unwrap();
    let mut stream = respond.send_response(head, false).unwrap();
    stream.send_data("answer".into(), false).unwrap();
    stream.send_trailers(HeaderMap::from_iter([("grpc-status".parse().unwrap(), status.parse().unwrap())])).unwrap();
    message
}

#[tokio::test]
async fn calls_are_copied_and_compared_by_their_own_status() {
    let (stable, canary) = (H2Upstream::bind().await, H2Upstream::bind().await);
    let pillion = mirrored(stable.instance(), canary.instance(), "compare: true").start().await;
    let tasks = pillion.idle_tasks().await;
    let client = http2_peer::Client::connect(pillion.egress()).await;
    let call = || async {
        let mut request = http2_peer::request("POST", "/echo.Echo/Say");
        request.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
        let (response, mut stream) = client.start(request, false).await;
        stream.send_data("mess".into(), false).unwrap();
        stream.send_data("age".into(), true).unwrap();
        http2_peer::collect(response).await.unwrap()
    };
    let serve = |upstream: H2Upstream, statuses: [&'static str; 2]| async move {
        let mut connection = upstream.accept().await;
        for status in statuses {
            assert_eq!(answer_call(&mut connection, status).await, b"message");
        }
        (upstream, connection)
    };
    let calls = async {
        for _ in 0..2 {
            let answer = call().await;
            assert_eq!(answer.text(), "answer");
            assert_eq!(answer.trailers.unwrap()["grpc-status"], "0");
        }
    };
    let (_stable, _canary, ()) =
        soon("two calls", async { tokio::join!(serve(stable, ["0", "0"]), serve(canary, ["0", "13"]), calls) }).await;
    until_copies(&pillion, 200, 2.0).await;
    for (result, count) in [("same", 1.0), ("status_differs", 1.0)] {
        let result = format!("result=\"{result}\"");
        pillion.until_metric("pillion_mirror_compared_total", &[&TO_CANARY[..], &[&result]].concat(), count).await;
    }
    drop(client);
    pillion.until_metric("pillion_mirror_in_flight", &[], 0.0).await;
    pillion.until_metric("pillion_connections", &["listener=\"egress\""], 0.0).await;
    assert!(pillion.metric("pillion_tasks", &[]).await <= tasks + 2.0 * 2.0, "two connections, and no copy");
}

#[tokio::test]
async fn requests_are_compared_with_their_copies() {
    let stable = Answering::ok().await;
    let canary = Upstream::bind().await.answering(|request| match request.start.contains("/broken") {
        true => "HTTP/1.1 500 Oh\r\ncontent-length: 0\r\n\r\n".to_owned(),
        false => ok("ok"),
    });
    let pillion = mirrored(stable.address, canary.address, "compare: true").start().await;
    let mut client = pillion.connect().await;
    for _ in 0..10 {
        asked(&mut client, get("/")).await;
    }
    for _ in 0..3 {
        asked(&mut client, post("/broken", "body")).await;
    }
    for (result, count) in [("same", 10.0), ("status_differs", 3.0)] {
        let result = format!("result=\"{result}\"");
        pillion.until_metric("pillion_mirror_compared_total", &[&TO_CANARY[..], &[&result]].concat(), count).await;
    }
    until_copies(&pillion, 500, 3.0).await;
    pillion.until_metric("pillion_mirror_latency_ratio_count", &TO_CANARY, 13.0).await;
}

#[tokio::test]
async fn a_target_that_never_answers_delays_nobody_and_holds_no_more_than_its_bound() {
    let (stable, silent) = (Answering::ok().await, Upstream::bind().await);
    let pillion = mirrored(stable.address, silent.address, "max_in_flight: 3").start().await;
    let tasks = pillion.idle_tasks().await;
    let mut client = pillion.connect().await;
    let start = Instant::now();
    for _ in 0..100 {
        asked(&mut client, get("/")).await;
    }
    // A single one that waited would take as long.
    assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
    assert_eq!(pillion.metric("pillion_mirror_in_flight", &TO_CANARY).await, 3.0);
    assert_eq!(skipped(&pillion, "busy").await, 97.0);
    // They take nobody's place.
    pillion.until_metric("pillion_requests_in_flight", &[], 0.0).await;
    // Then their time is over.
    until_copies(&pillion, 504, 3.0).await;
    drop(client);
    pillion.until_idle(tasks).await;
}

#[tokio::test]
async fn a_target_that_is_not_there_is_noticed_by_nobody() {
    let (mut stable, gone) = (Answering::ok().await, Upstream::bind().await.address);
    let pillion = mirrored(stable.address, gone, "max_body: 1000").start().await;
    let mut client = pillion.connect().await;
    for _ in 0..20 {
        asked(&mut client, post("/", "body")).await;
    }
    pillion.until_metric("pillion_mirror_in_flight", &[], 0.0).await;
    let (failed, left_out) =
        (pillion.metric("pillion_mirror_requests_total", &TO_CANARY).await, skipped(&pillion, "no_endpoints").await);
    assert!(failed >= 1.0 && failed + left_out == 20.0, "{failed} failed and {left_out} were left out");
    assert_eq!(stable.unseen().len(), 20, "and no copy goes to those who have the request already");
    assert_eq!(pillion.metric("pillion_errors_total", &[]).await, 0.0);
}

#[tokio::test]
async fn an_empty_subset_gets_no_copies_and_nobody_else_does() {
    let (mut stable, canary) = (Answering::ok().await, Answering::ok().await);
    let pillion = mirrored(stable.address, canary.address, "max_body: 1000").start().await;
    pillion.until_metric("pillion_subset_endpoints", &["subset=\"canary\""], 1.0).await;
    // Nobody is `v2` any more.
    let alone =
        format!("services: {{ user-service: [{{ address: \"{}\", labels: {{ version: v1 }} }}] }}", stable.address);
    pillion.write_instances(&alone);
    pillion.until_metric("pillion_subset_endpoints", &["subset=\"canary\""], 0.0).await;
    let mut client = pillion.connect().await;
    for _ in 0..5 {
        asked(&mut client, get("/")).await;
    }
    let no_endpoints = [&TO_CANARY[..], &["reason=\"no_endpoints\""]].concat();
    pillion.until_metric("pillion_mirror_skipped_total", &no_endpoints, 5.0).await;
    assert_eq!(stable.unseen().len(), 5);
    assert_eq!(pillion.metric("pillion_subset_fallbacks_total", &[]).await, 0.0);
}

#[tokio::test]
async fn another_service_can_get_the_copies() {
    let (mut users, mut shadow) = (Answering::ok().await, Answering::ok().await);
    let service = "user-service: { routes: [{ match: { path: { prefix: /v1 } }, rewrite: { prefix: /v2 }, \
                   mirror: { to: shadow-service/, max_body: 1000 } }] }";
    let setup = Setup::users([users.address]).instances("shadow-service", [shadow.address]).service(service);
    let pillion = setup.start().await;
    let mut client = pillion.connect().await;
    asked(&mut client, get("/v1/a")).await;
    asked(&mut client, get("/other")).await;
    let copy = shadow.seen().await;
    assert_eq!((copy.start.as_str(), copy.get("host")), ("GET /v2/a HTTP/1.1", Some("user-service")));
    assert_eq!(copy.get("x-pillion-mirror"), Some("0"));
    assert_eq!((users.unseen().len(), shadow.unseen().len()), (2, 0), "the other one is on no route");
    let to = ["service=\"user-service\"", "route=\"0\"", "to=\"shadow-service/\"", "code=\"200\""];
    pillion.until_metric("pillion_mirror_requests_total", &to, 1.0).await;
    assert_eq!(pillion.metric("pillion_requests_total", &["service=\"shadow-service\""]).await, 0.0);
    pillion.until_metric("pillion_requests_total", &["service=\"user-service\""], 2.0).await;
}

#[tokio::test]
async fn copies_and_upgrades_are_not_copied() {
    let (stable, mut canary) = (Answering::ok().await, Answering::ok().await);
    let pillion = mirrored(stable.address, canary.address, "max_body: 1000").start().await;
    let mut client = pillion.connect().await;
    for line in ["x-pillion-mirror: elsewhere", "connection: upgrade\r\nupgrade: websocket"] {
        asked(&mut client, format!("GET / HTTP/1.1\r\nhost: user-service\r\n{line}\r\n\r\n")).await;
    }
    assert_eq!((skipped(&pillion, "unfit").await, canary.unseen().len()), (2.0, 0));
    assert_eq!(pillion.metric("pillion_mirror_in_flight", &TO_CANARY).await, 0.0);
}

#[tokio::test]
async fn what_comes_of_copies_counts_for_the_health_of_who_gets_them() {
    let stable = Answering::ok().await;
    let canary = Upstream::bind().await.answering(|_| "HTTP/1.1 500 Oh\r\ncontent-length: 0\r\n\r\n".to_owned());
    let pillion = mirrored(stable.address, canary.address, "max_body: 1000").start().await;
    let mut client = pillion.connect().await;
    for _ in 0..4 {
        asked(&mut client, get("/")).await;
    }
    until_copies(&pillion, 500, 4.0).await;
    let mut admin = Peer::connect(pillion.admin()).await;
    admin.send("GET /api/services/user-service HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n").await;
    let detail: serde_json::Value = serde_json::from_str(&admin.response().await.text()).unwrap();
    let of = |address: String| {
        let all = detail["endpoints"].as_array().unwrap();
        let endpoint = all.iter().find(|endpoint| endpoint["address"] == *address).unwrap();
        (endpoint["requests"].as_u64().unwrap(), endpoint["failures"].as_u64().unwrap())
    };
    assert_eq!(of(canary.address.to_string()), (4, 4), "{detail:#}");
    assert_eq!(of(stable.address.to_string()), (4, 0), "{detail:#}");
}

#[tokio::test]
async fn the_end_of_the_process_does_not_wait_for_copies() {
    let (stable, silent) = (Answering::ok().await, Upstream::bind().await);
    let setup = mirrored(stable.address, silent.address, "max_body: 1000");
    let mut pillion = setup.start().await;
    pillion.change_config("request: 15s", "request: 300s").await;
    let mut client = pillion.connect().await;
    asked(&mut client, get("/")).await;
    let _held = silent.accept().await;
    assert_eq!(pillion.metric("pillion_mirror_in_flight", &TO_CANARY).await, 1.0);
    drop(client);
    // Less than its 30 s for what is in progress; `stop` itself does not wait for as long.
    pillion.stop().await;
}
