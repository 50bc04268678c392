//! Requests that fail are tried again on another endpoint: as often as allowed, where that is safe, and no more than the
//! budget gives.

use crate::{
    http2_peer::{self, H2Upstream, soon},
    peer::{Answering, Upstream, get, ok, post},
    pillion::{Pillion, Setup},
};
use http::{HeaderMap, Response};
use std::time::Duration;
use tokio::time::Instant;

const TURN: &str = "balance: { policy: round-robin }";

fn unavailable(fields: &str) -> String {
    format!("HTTP/1.1 503 Service Unavailable\r\n{fields}content-length: 4\r\n\r\ndown")
}

async fn down() -> Answering {
    Upstream::bind().await.answering(|_| unavailable(""))
}

async fn metric(pillion: &Pillion, name: &str) -> f64 {
    pillion.metric(name, &[]).await
}

#[tokio::test]
async fn an_endpoint_that_answers_503_is_not_noticed_by_idempotent_requests() {
    let (mut bad, mut good) = (down().await, Answering::ok().await);
    let settings = format!("user-service: {{ {TURN}, breaker: {{ enabled: false }} }}");
    let pillion = Setup::users([bad.address, good.address]).service(&settings).start().await;
    let mut client = pillion.connect().await;
    for _ in 0..20 {
        client.send(get("/")).await;
        assert_eq!(client.response().await.text(), "ok");
    }
    let (bad, good) = (bad.unseen(), good.unseen());
    assert_eq!(good.len(), 20);
    assert!(bad.iter().all(|request| request.get("x-pillion-attempt").is_none()), "those were first tries");
    let again = good.iter().filter(|request| request.get("x-pillion-attempt") == Some("2")).count();
    assert_eq!(again, bad.len());
    assert!(again >= 9, "round robin: every second one, {again}");
    let counted = pillion.metric("pillion_retries_total", &["reason=\"upstream_unavailable\""]).await;
    assert!((counted - again as f64).abs() < 0.5, "{counted} for {again}");
    // The response that was given up was read, and its connection is used again.
    assert_eq!(metric(&pillion, "pillion_pool_opened_total").await, 2.0);
}

#[tokio::test]
async fn a_request_that_must_not_run_twice_gets_the_503() {
    let bad = [down().await, down().await];
    let pillion = Setup::users([bad[0].address, bad[1].address]).start().await;
    let mut client = pillion.connect().await;
    client.send(post("/", "x")).await;
    let response = client.response().await;
    assert_eq!((response.status(), response.text().as_str()), (503, "down"), "the upstream's own");
    assert_eq!(metric(&pillion, "pillion_retries_total").await, 0.0);
}

#[tokio::test]
async fn attempts_bounds_the_tries_and_the_last_answer_is_passed_on() {
    let mut bad = [down().await, down().await, down().await, down().await];
    let addresses = bad.each_ref().map(|upstream| upstream.address);
    for (attempts, expected) in [(0, 1), (2, 3)] {
        let settings = format!("user-service: {{ retry: {{ attempts: {attempts} }} }}");
        let pillion = Setup::users(addresses).service(&settings).access_log().start().await;
        let mut client = pillion.connect().await;
        client.send(get("/")).await;
        let response = client.response().await;
        assert_eq!((response.status(), response.text().as_str()), (503, "down"));
        let line = pillion.access_line(&format!(" attempts={expected} ")).await;
        assert_eq!(line.contains(" flags=retried:upstream_unavailable"), attempts > 0, "{line}");
        let seen: Vec<_> = bad.iter_mut().flat_map(Answering::unseen).collect();
        assert_eq!(seen.len(), expected, "{attempts}");
    }
}

#[tokio::test]
async fn without_budget_there_is_no_retry() {
    let mut bad = [down().await, down().await];
    let settings = "user-service: { retry: { budget: { percent: 0, per_second: 2 } } }";
    let pillion = Setup::users([bad[0].address, bad[1].address]).service(settings).start().await;
    let mut client = pillion.connect().await;
    let start = Instant::now();
    for _ in 0..100 {
        client.send(get("/")).await;
        assert_eq!(client.response().await.status(), 503);
    }
    let retries = bad.iter_mut().flat_map(Answering::unseen).count() - 100;
    // Ten seconds of the floor at once, and what came back of it meanwhile.
    let most = 20 + 2 * (start.elapsed().as_secs() as usize + 1);
    assert!((20..=most).contains(&retries), "{retries} retries of 100 requests in {:?}", start.elapsed());
    assert!(metric(&pillion, "pillion_retries_denied_total").await >= 100.0 - retries as f64);
}

#[tokio::test]
async fn an_upstream_that_says_when_to_come_again_is_obeyed() {
    let mut later = Upstream::bind().await.answering(|_| unavailable("retry-after: 4\r\n"));
    // There is no time for that, and what one endpoint says of itself the other did not say.
    let mut never = Upstream::bind().await.answering(|_| unavailable("retry-after: 3600\r\n"));
    let mut beyond = Upstream::bind().await.answering(|_| unavailable("retry-after: 18446744073709551615\r\n"));
    let good = Answering::ok().await;
    for (upstream, waits) in [(&mut later, true), (&mut never, false), (&mut beyond, false)] {
        let settings = format!("user-service: {{ {TURN} }}");
        let pillion = Setup::users([upstream.address, good.address]).service(&settings).start().await;
        let mut client = pillion.connect().await;
        // One of the two is at the other's turn.
        let mut met = None;
        for _ in 0..2 {
            let start = Instant::now();
            client.send(get("/")).await;
            let response = client.response().await;
            if !upstream.unseen().is_empty() {
                met = Some((response.status(), start.elapsed()));
            }
        }
        let (found, took) = met.expect("its turn came");
        assert_eq!(found, 200);
        assert_eq!(took >= Duration::from_secs(4), waits, "{took:?}");
    }
}

#[tokio::test]
async fn a_try_that_takes_too_long_is_followed_by_another_where_that_is_safe() {
    let (silent, good) = (Upstream::bind().await, Upstream::bind().await.answering(|_| ok("ok")));
    // Whoever is silent twice for two seconds would be out otherwise.
    let settings =
        format!("user-service: {{ {TURN}, breaker: {{ enabled: false }}, retry: {{ per_try_timeout: 2s }} }}");
    let pillion = Setup::users([silent.address, good.address]).service(&settings).start().await;
    let mut client = pillion.connect().await;
    for _ in 0..4 {
        client.send(get("/")).await;
        assert_eq!(client.response().await.text(), "ok");
    }
    let retries = pillion.metric("pillion_retries_total", &["reason=\"try_timeout\""]).await;
    // The retry takes a turn as well.
    assert!((3.0..=4.0).contains(&retries), "{retries}");
    let mut refused = 0;
    for _ in 0..2 {
        client.send(post("/", "x")).await;
        let response = client.response().await;
        refused += u32::from(response.error() == (504, Some("try_timeout")));
    }
    assert_eq!(refused, 1, "one of the two was at the silent one's turn");
}

#[tokio::test]
async fn grpc_unavailable_without_a_message_is_tried_again() {
    let (bad, good) = (H2Upstream::bind().await, H2Upstream::bind().await);
    let settings = format!("user-service: {{ {TURN} }}");
    let pillion = Setup::users([bad.instance(), good.instance()]).service(&settings).start().await;
    let client = http2_peer::Client::connect(pillion.egress()).await;
    let call = || async {
        let mut request = http2_peer::request("POST", "/echo.Echo/Say");
        request.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
        let (response, mut stream) = client.start(request, false).await;
        stream.send_data("message".into(), true).unwrap();
        http2_peer::collect(response).await.unwrap()
    };
    let trailers_only = |status: &str| {
        Response::builder().header("content-type", "application/grpc").header("grpc-status", status).body(()).unwrap()
    };
    let serve_bad = async {
        let mut connection = bad.accept().await;
        while let Some(mut exchange) = connection.try_next().await {
            assert_eq!(http2_peer::read(&mut exchange.body).await.unwrap().0, b"message");
            exchange.respond.send_response(trailers_only("14"), true).unwrap();
        }
    };
    let serve_good = async {
        let mut connection = good.accept().await;
        while let Some(mut exchange) = connection.try_next().await {
            assert_eq!(http2_peer::read(&mut exchange.body).await.unwrap().0, b"message");
            let head = Response::builder().header("content-type", "application/grpc").body(()).unwrap();
            let mut stream = exchange.respond.send_response(head, false).unwrap();
            stream.send_data("answer".into(), false).unwrap();
            stream
                .send_trailers(HeaderMap::from_iter([("grpc-status".parse().unwrap(), "0".parse().unwrap())]))
                .unwrap();
        }
    };
    let calls = async {
        for _ in 0..2 {
            assert_eq!(call().await.text(), "answer");
        }
    };
    soon("two calls", async {
        tokio::select! {
            () = calls => {}
            () = async { tokio::join!(serve_bad, serve_good); } => panic!("the servers ended"),
        }
    })
    .await;
    let retries = pillion.metric("pillion_retries_total", &["reason=\"upstream_unavailable\""]).await;
    assert!((1.0..=2.0).contains(&retries), "{retries}");
}
