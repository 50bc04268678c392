//! Faults that the config asks for, for testing: delays and aborts.

use crate::{
    http2_peer::{self, H2Upstream},
    peer::{Answering, Peer, Upstream, get, timed},
    pillion::{Pillion, Setup},
};
use std::time::Duration;

const MS: Duration = Duration::from_millis(1);

async fn injected(pillion: &Pillion, kind: &str) -> f64 {
    pillion.metric("pillion_faults_total", &["service=\"user-service\"", &format!("kind=\"{kind}\"")]).await
}

fn with(header: &str) -> String {
    format!("GET / HTTP/1.1\r\nhost: user-service\r\n{header}\r\n\r\n")
}

#[tokio::test]
async fn as_many_are_aborted_and_delayed_as_the_config_says() {
    const REQUESTS: usize = 2000;
    let mut upstream = Answering::ok().await;
    let settings =
        "user-service: { faults: { abort: { percent: 20, status: 418 }, delay: { percent: 2.5, duration: 1ms } } }";
    let pillion = Setup::users([upstream.address]).service(settings).start().await;
    let mut client = pillion.connect().await;
    let mut aborted = 0;
    for _ in 0..REQUESTS {
        client.send(get("/")).await;
        let response = client.response().await;
        match response.status() {
            200 => assert_eq!(response.text(), "ok"),
            418 => {
                aborted += 1;
                assert_eq!(response.error(), (418, Some("fault_injected")));
            }
            other => panic!("{other}"),
        }
    }
    // Five standard deviations to either side.
    assert!((310..=490).contains(&aborted), "{aborted} of {REQUESTS}");
    assert_eq!(upstream.unseen().len(), REQUESTS - aborted);
    let counted = injected(&pillion, "abort").await;
    assert!((counted - aborted as f64).abs() < 0.5, "{counted} for {aborted}");
    let delayed = injected(&pillion, "delay").await;
    assert!((15.0..=85.0).contains(&delayed), "{delayed} of {REQUESTS}");
    pillion.until_metric("pillion_errors_total", &["reason=\"fault_injected\""], aborted as f64).await;
    assert_eq!(pillion.metric("pillion_retries_total", &[]).await, 0.0);
}

#[tokio::test]
async fn only_requests_with_the_header_are_meant() {
    let upstream = Answering::ok().await;
    let settings = "user-service: { faults: { abort: { percent: 100, status: 404, header: X-Fault, value: gone } } }";
    let pillion = Setup::users([upstream.address])
        .service(settings)
        .service("orders: { faults: { abort: { percent: 100, header: x-fault } } }")
        .start()
        .await;
    let mut client = pillion.connect().await;
    for (header, status) in [("x-other: gone", 200), ("x-fault: other", 200), ("x-fault: gone", 404)] {
        assert_eq!(timed(&mut client, with(header)).await.0, status, "{header}");
    }
    client.send("GET / HTTP/1.1\r\nhost: orders\r\nx-fault: whatever\r\n\r\n").await;
    assert_eq!(client.response().await.error(), (503, Some("fault_injected")));
    client.send("GET / HTTP/1.1\r\nhost: orders\r\n\r\n").await;
    assert_eq!(client.response().await.error(), (503, Some("no_endpoints")));
}

#[tokio::test]
async fn a_grpc_call_gets_a_grpc_status() {
    let upstream = H2Upstream::bind().await;
    for (fault, status) in [("status: 503", "14"), ("status: 401", "16"), ("status: 503, grpc_status: 8", "8")] {
        let settings = format!("user-service: {{ faults: {{ abort: {{ percent: 100, {fault} }} }} }}");
        let pillion = Setup::users([upstream.instance()]).service(&settings).start().await;
        let client = http2_peer::Client::connect(pillion.egress()).await;
        let mut request = http2_peer::request("POST", "/echo.Echo/Say");
        request.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
        let (response, mut stream) = client.start(request, false).await;
        stream.send_data("message".into(), true).unwrap();
        let answer = http2_peer::collect(response).await.unwrap();
        assert_eq!((answer.status.as_u16(), answer.body.as_slice(), answer.trailers), (200, &b""[..], None));
        assert_eq!(answer.headers["grpc-status"], status);
        assert_eq!(answer.headers["x-pillion-error"], "fault_injected");
    }
    assert!(upstream.is_left_alone());
}

#[tokio::test]
async fn a_delayed_request_is_late_and_its_endpoint_is_not_blamed() {
    let mut upstream = Answering::ok().await;
    let settings = "user-service: { faults: { delay: { percent: 100, duration: 3s, header: x-slow } } }";
    let pillion = Setup::users([upstream.address]).service(settings).access_log().start().await;
    let mut client = pillion.connect().await;
    let (status, _, took) = timed(&mut client, with("x-slow: 1")).await;
    assert_eq!(status, 200);
    assert!((3000 * MS..12_000 * MS).contains(&took), "{took:?}");
    assert_eq!(upstream.seen().await.get("x-slow"), Some("1"));
    assert_eq!(injected(&pillion, "delay").await, 1.0);
    let line = pillion.access_line(" fault=delay").await;
    assert!(line.contains(" 200 - "), "{line}");
    let mut admin = Peer::connect(pillion.admin()).await;
    admin.send("GET /api/services/user-service HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n").await;
    let detail: serde_json::Value = serde_json::from_slice(&admin.response().await.body).unwrap();
    let latency = detail["endpoints"][0]["latency_ms"].as_f64().unwrap();
    assert!(latency < 2500.0, "{detail}");
    assert_eq!(detail["settings"]["faults"]["delay"]["duration"], "3s");
    // Others are as quick as ever.
    let (status, _, took) = timed(&mut client, get("/")).await;
    assert_eq!((status, injected(&pillion, "delay").await), (200, 1.0), "{took:?}");
}

#[tokio::test]
async fn a_deadline_that_ends_within_the_delay_is_held() {
    let upstream = Upstream::bind().await;
    let settings = "user-service: { timeouts: { request: 1s }, faults: { delay: { percent: 100, duration: 1m } } }";
    let pillion = Setup::users([upstream.address]).service(settings).start().await;
    let mut client = pillion.connect().await;
    for (header, least, reason) in
        [("x-request-timeout: 300ms", 300 * MS, "deadline_exceeded"), ("x-none: 1", 1000 * MS, "request_timeout")]
    {
        let (status, error, took) = timed(&mut client, with(header)).await;
        assert_eq!((status, error.as_deref()), (504, Some(reason)));
        assert!((least..least + 20_000 * MS).contains(&took), "{took:?}");
    }
    assert!(upstream.is_left_alone());
    // A client that leaves meanwhile leaves nothing behind.
    client.send(get("/")).await;
    pillion.until_metric("pillion_faults_total", &["kind=\"delay\""], 3.0).await;
    drop(client);
    pillion.until_free().await;
}

#[tokio::test]
async fn the_log_of_requests_tells_an_abort() {
    let upstream = Answering::ok().await;
    let settings = "user-service: { faults: { abort: { percent: 100, status: 500 } } }";
    let pillion = Setup::users([upstream.address]).service(settings).access_log().start().await;
    let mut client = pillion.connect().await;
    client.send(get("/")).await;
    client.response().await;
    let line = pillion.access_line(" fault=abort").await;
    assert!(line.contains(" 500 fault_injected ") && line.contains(" endpoint=- attempts=0 "), "{line}");
}
