//! What callers get instead of an error: a fixed response or another service's. (The last good one: `last_good`.)

use crate::{
    e2e,
    http2_peer::{self, Client, H2Upstream, soon},
    peer::{Answering, Message, Peer, Upstream, get, ok, post},
    pillion::{Pillion, Setup},
};
use http::{Request, Response};
use std::{fs, time::Duration};
use tokio::time::Instant;

const FIXED: &str = "user-service: { fallback: { response: { status: 203, body: later, content_type: text/x, \
                     headers: { retry-after: '5' } } } }";

pub async fn ask(client: &mut Peer, request: impl AsRef<[u8]>) -> Message {
    client.send(request).await;
    client.response().await
}

pub async fn counted(pillion: &Pillion, kind: &str, count: f64) {
    let labels = ["service=\"user-service\"", &format!("kind=\"{kind}\"")];
    pillion.until_metric("pillion_fallbacks_total", &labels, count).await;
}

/// The answer, and where it came from.
pub fn from(message: &Message) -> (u16, String, Option<&str>) {
    (message.status(), message.text(), message.get("x-pillion-fallback"))
}

pub fn good(fields: &str, body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\n{fields}content-length: {}\r\n\r\n{body}", body.len())
}

/// An address where nobody listens, and from which no connection is made.
const NOBODY: &str = "127.0.0.1:1";

#[tokio::test]
async fn a_fixed_response_stands_in_for_errors_of_pillion_s_own() {
    let silent = Upstream::bind().await;
    let slow = FIXED.replace("{ fallback", "{ timeouts: { request: 200ms }, fallback");
    for (addresses, settings, reason) in [
        (vec![], FIXED, "no_endpoints"),
        (vec![NOBODY.to_owned()], FIXED, "connect_failed"),
        (vec![silent.address.to_string()], slow.as_str(), "request_timeout"),
    ] {
        let pillion = Setup::users(addresses).service(settings).access_log().start().await;
        let response = ask(&mut pillion.connect().await, post("/", "x")).await;
        assert_eq!(from(&response), (203, "later".into(), Some("response")), "{reason}");
        assert_eq!((response.get("content-type"), response.get("retry-after")), (Some("text/x"), Some("5")));
        assert_eq!(response.get("x-pillion-error"), None);
        let line = pillion.access_line(" fallback=response").await;
        assert!(line.contains(&format!(" 203 {reason} ")), "{line}");
        counted(&pillion, "response", 1.0).await;
        assert_eq!(pillion.metric("pillion_errors_total", &[&format!("reason=\"{reason}\"")]).await, 1.0);
        // The same over HTTP/2, and without a body to HEAD.
        let h2 = Client::connect(pillion.egress()).await;
        let answer = h2.get("/").await.unwrap();
        assert_eq!((answer.status.as_u16(), answer.text().as_str()), (203, "later"));
        assert_eq!(answer.headers["x-pillion-fallback"], "response");
        let mut client = pillion.connect().await;
        client.send("HEAD / HTTP/1.1\r\nhost: user-service\r\n\r\n").await;
        assert_eq!(client.head().await.status(), 203);
        assert_eq!(ask(&mut client, get("/")).await.text(), "later", "the connection goes on");
        // The caller's own mistakes stay its own.
        let wrong = ask(&mut client, "GET / HTTP/1.1\r\nhost: user-service\r\nx-request-timeout: soon\r\n\r\n").await;
        assert_eq!(wrong.error(), (400, Some("bad_request")));
    }
}

#[tokio::test]
async fn a_registry_that_does_not_answer_is_an_error_too() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pillion.yaml");
    let text = format!(
        "registries: {{ main: {{ kind: consul, address: 'http://{NOBODY}' }} }}\n\
         discovery: {{ first_answer: 100ms }}\nadmin: {{ listen: {any} }}\n\
         listeners: [{{ name: egress, listen: {any} }}]\nservices:\n  {FIXED}\n",
        any = e2e::ANY
    );
    fs::write(&file, text).unwrap();
    let pillion = e2e::Pillion::with_config(&file).await;
    let mut client = Peer::connect(pillion.egress()).await;
    assert_eq!(from(&ask(&mut client, get("/")).await), (203, "later".into(), Some("response")));
    let errors = "pillion_errors_total{service=\"user-service\",reason=\"discovery_timeout\"}";
    e2e::until("it to be counted", async || pillion.metric(errors).await == 1.0).await;
}

#[tokio::test]
async fn the_upstream_s_own_answer_counts_as_the_config_says() {
    let answering =
        |status: &'static str| move |_: &Message| format!("HTTP/1.1 {status} Whatever\r\ncontent-length: 2\r\n\r\nno");
    for (status, on, expected) in [
        ("503", "error, gateway-error", (203, Some("response"))),
        ("504", "gateway-error", (203, Some("response"))),
        ("503", "error", (503, None)),
        ("500", "error, gateway-error", (500, None)),
        ("404", "error, gateway-error", (404, None)),
    ] {
        let upstream = Upstream::bind().await.answering(answering(status));
        let settings = FIXED.replace("fallback: {", &format!("fallback: {{ on: [{on}],"));
        let pillion = Setup::users([upstream.address]).service(&settings).start().await;
        let mut client = pillion.connect().await;
        let response = ask(&mut client, get("/")).await;
        assert_eq!((response.status(), response.get("x-pillion-fallback")), expected, "{status} {on}");
        // The connection whose answer was thrown away is used again.
        ask(&mut client, get("/")).await;
        assert_eq!(pillion.metric("pillion_pool_opened_total", &[]).await, 1.0);
    }
    // The endpoint failed, whatever its callers got.
    let upstream = Upstream::bind().await.answering(answering("503"));
    let pillion = Setup::users([upstream.address]).service(FIXED).start().await;
    ask(&mut pillion.connect().await, get("/")).await;
    let mut admin = Peer::connect(pillion.admin()).await;
    let detail = ask(&mut admin, "GET /api/services/user-service HTTP/1.1\r\nhost: admin\r\n\r\n").await;
    let detail: serde_json::Value = serde_json::from_slice(&detail.body).unwrap();
    assert_eq!(
        (&detail["endpoints"][0]["failures"], &detail["errors"]["upstream_unavailable"]),
        (&1.into(), &1.into())
    );
    assert_eq!(detail["settings"]["fallback"], "response 203");
}

#[tokio::test]
async fn another_service_gets_the_request_with_its_body() {
    let down = Upstream::bind().await.answering(|_| "HTTP/1.1 503 Down\r\ncontent-length: 0\r\n\r\n".into());
    let put = |path: &str, body: &str| post(path, body).replacen("POST", "PUT", 1);
    for (address, request) in
        [(NOBODY.to_owned(), post("/path?a=b", "the body")), (down.address.to_string(), put("/path?a=b", "the body"))]
    {
        let mut standby = Upstream::bind().await.answering(|_| good("x-from: standby\r\n", "here"));
        let pillion = Setup::users([address])
            .instances("standby", [standby.address])
            .service("user-service: { fallback: { service: standby } }")
            .access_log()
            .start()
            .await;
        let mut client = pillion.connect().await;
        let method = request.split_once(' ').unwrap().0.to_owned();
        let response = ask(&mut client, request).await;
        assert_eq!(from(&response), (200, "here".into(), Some("service")));
        assert_eq!(response.get("x-from"), Some("standby"));
        let seen = standby.seen().await;
        assert_eq!(
            (seen.start.as_str(), seen.text().as_str()),
            (format!("{method} /path?a=b HTTP/1.1").as_str(), "the body")
        );
        assert_eq!((seen.get("host"), seen.get("x-pillion-attempt")), (Some("user-service"), None));
        let line = pillion.access_line(" fallback=service").await;
        assert!(line.contains(&format!("service=user-service endpoint={} ", standby.address)), "{line}");
        counted(&pillion, "service", 1.0).await;
        if method == "PUT" {
            // It was answered, so it may have been executed.
            assert_eq!(ask(&mut client, post("/", "x")).await.status(), 503);
            continue;
        }
        let h2 = Client::connect(pillion.egress()).await;
        let answer = h2.post("/", "over HTTP/2").await.unwrap();
        assert_eq!(
            (answer.text().as_str(), &answer.headers["x-pillion-fallback"]),
            ("here", &"service".parse().unwrap())
        );
        assert_eq!(standby.seen().await.text(), "over HTTP/2");
    }
}

fn grpc(path: &str) -> Request<()> {
    let mut request = http2_peer::request("POST", path);
    request.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
    request
}

async fn call(client: &Client, path: &str) -> http2_peer::Answer {
    let (response, mut stream) = client.start(grpc(path), false).await;
    stream.send_data("message".into(), true).unwrap();
    http2_peer::collect(response).await.unwrap()
}

#[tokio::test]
async fn a_grpc_call_that_may_have_been_executed_is_not_made_once_more() {
    let (bad, standby) = (H2Upstream::bind().await, H2Upstream::bind().await);
    let pillion = Setup::users([bad.instance()])
        .instances("standby", [standby.instance()])
        .service("user-service: { fallback: { service: standby } }")
        .start()
        .await;
    let client = Client::connect(pillion.egress()).await;
    let cut = async {
        let mut server = bad.accept_raw().await;
        server.request().await;
        server.reset();
    };
    let (answer, ()) = soon("the call", async { tokio::join!(call(&client, "/echo.Echo/Say"), cut) }).await;
    assert_eq!(answer.headers["x-pillion-error"], "upstream_closed");
    assert!(standby.is_left_alone());
}

#[tokio::test]
async fn a_grpc_call_falls_back_to_another_service_and_to_nothing_else() {
    let (bad, standby) = (H2Upstream::bind().await, H2Upstream::bind().await);
    let pillion = Setup::users([bad.instance()])
        .instances("standby", [standby.instance()])
        .service("user-service: { fallback: { service: standby } }")
        .service("fixed: { fallback: { response: { body: x } } }")
        .start()
        .await;
    let client = Client::connect(pillion.egress()).await;
    let serve = async {
        let mut first = bad.accept().await;
        let mut exchange = first.next().await;
        let head = Response::builder().header("content-type", "application/grpc").header("grpc-status", "14");
        http2_peer::read(&mut exchange.body).await.unwrap();
        exchange.respond.send_response(head.body(()).unwrap(), true).unwrap();
        let mut connection = standby.accept().await;
        let mut exchange = connection.next().await;
        assert_eq!(http2_peer::read(&mut exchange.body).await.unwrap().0, b"message");
        exchange.ok("answer");
        // Its last bytes must leave.
        assert!(tokio::time::timeout(Duration::from_secs(60), connection.try_next()).await.is_ok());
    };
    let answer = soon("the call", async {
        tokio::select! {
            answer = call(&client, "/echo.Echo/Say") => answer,
            () = serve => panic!("the servers ended"),
        }
    })
    .await;
    assert_eq!(
        (answer.text().as_str(), &answer.headers["x-pillion-fallback"]),
        ("answer", &"service".parse().unwrap())
    );
    // A fixed response is nothing that a gRPC caller could read.
    let mut request = grpc("/echo.Echo/Say");
    *request.uri_mut() = "http://fixed/echo.Echo/Say".parse().unwrap();
    let (response, _) = client.start(request, true).await;
    let answer = http2_peer::collect(response).await.unwrap();
    assert_eq!(answer.headers["grpc-status"], "14");
    assert_eq!(answer.headers["x-pillion-error"], "no_endpoints");
    assert!(!answer.headers.contains_key("x-pillion-fallback"));
}

#[tokio::test]
async fn it_goes_no_further_than_one_service() {
    let mut last = Answering::ok().await;
    let pillion = Setup::users([NOBODY])
        .instances("standby", [NOBODY])
        .instances("last", [last.address])
        .service("user-service: { fallback: { service: standby } }")
        .service("standby: { fallback: { service: last } }")
        .start()
        .await;
    let mut client = pillion.connect().await;
    let response = ask(&mut client, get("/")).await;
    assert_eq!(response.error(), (502, Some("connect_failed")));
    assert!(response.text().ends_with("(from the fallback `standby`, after connect_failed)\n"), "{}", response.text());
    assert!(last.unseen().is_empty());
    counted(&pillion, "service", 1.0).await;
    let response = ask(&mut client, "GET / HTTP/1.1\r\nhost: standby\r\n\r\n").await;
    assert_eq!(from(&response), (200, "ok".into(), Some("service")), "its own callers have its fallback");
}

#[tokio::test]
async fn the_other_service_s_endpoints_are_judged_by_its_own_settings() {
    let failing =
        || async { Upstream::bind().await.answering(|_| "HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n".into()) };
    let (one, two) = (failing().await, failing().await);
    let pillion = Setup::users([NOBODY])
        .instances("standby", [one.address, two.address])
        .service("user-service: { breaker: { enabled: false }, fallback: { service: standby } }")
        .service("standby: { breaker: { consecutive_failures: 2 } }")
        .start()
        .await;
    let mut client = pillion.connect().await;
    for _ in 0..8 {
        assert_eq!(from(&ask(&mut client, get("/")).await), (500, String::new(), Some("service")));
    }
    pillion.until_metric("pillion_endpoints", &["service=\"standby\"", "state=\"ejected\""], 1.0).await;
    assert_eq!(pillion.metric("pillion_endpoints", &["service=\"user-service\"", "state=\"available\""]).await, 1.0);
}

#[tokio::test]
async fn what_its_own_service_has_no_room_for_takes_a_place_of_the_other() {
    let (busy, standby) = (Upstream::bind().await, Upstream::bind().await);
    let pillion = Setup::users([busy.address])
        .instances("standby", [standby.address])
        .service("user-service: { limits: { requests: 1 }, fallback: { service: standby } }")
        .service("standby: { limits: { requests: 1 } }")
        .start()
        .await;
    let in_flight =
        async |service: &str| pillion.metric("pillion_requests_in_flight", &[&format!("service=\"{service}\"")]).await;
    let mut clients = [pillion.connect().await, pillion.connect().await, pillion.connect().await];
    clients[0].send(get("/first")).await;
    let mut first = busy.accept().await;
    first.request().await;
    clients[1].send(get("/second")).await;
    let mut second = standby.accept().await;
    assert_eq!(second.request().await.start, "GET /second HTTP/1.1");
    assert_eq!((in_flight("user-service").await, in_flight("standby").await), (1.0, 1.0));
    let refused = ask(&mut clients[2], get("/third")).await;
    assert_eq!(refused.error(), (503, Some("overloaded")));
    assert!(refused.text().ends_with("(from the fallback `standby`, after overloaded)\n"), "{}", refused.text());
    first.send(ok("first")).await;
    second.send(ok("second")).await;
    assert_eq!(from(&clients[0].response().await), (200, "first".into(), None));
    assert_eq!(from(&clients[1].response().await), (200, "second".into(), Some("service")));
    pillion.until_metric("pillion_requests_in_flight", &[], 0.0).await;
    // One that was let in and then failed gives its place back before it takes the other's.
    drop((first, busy));
    clients[0].send(get("/fourth")).await;
    second.request().await;
    assert_eq!((in_flight("user-service").await, in_flight("standby").await), (0.0, 1.0));
    second.send(ok("fourth")).await;
    assert_eq!(from(&clients[0].response().await), (200, "fourth".into(), Some("service")));
    pillion.until_metric("pillion_requests_in_flight", &[], 0.0).await;
}

#[tokio::test]
async fn a_request_that_cannot_be_sent_again_or_is_too_late_keeps_its_error() {
    let (upstream, mut standby) = (Upstream::bind().await, Answering::ok().await);
    let pillion = Setup::users([upstream.address])
        .instances("standby", [standby.address])
        .service("user-service: { retry: { buffer: 10 }, fallback: { service: standby } }")
        .start()
        .await;
    let mut client = pillion.connect().await;
    client.send(post("/", "more than ten bytes")).await;
    let mut server = upstream.accept().await;
    server.request().await;
    drop(server);
    assert_eq!(client.response().await.error(), (502, Some("upstream_closed")));
    // One whose caller wanted its answer by now.
    let start = Instant::now();
    let late = "GET / HTTP/1.1\r\nhost: user-service\r\nx-request-timeout: 200ms\r\n\r\n";
    assert_eq!(ask(&mut client, late).await.error(), (504, Some("deadline_exceeded")));
    assert!(start.elapsed() >= Duration::from_millis(200));
    assert!(standby.unseen().is_empty());
    // The other service has what is left of the caller's time.
    drop(upstream);
    let later = "GET / HTTP/1.1\r\nhost: user-service\r\nx-request-timeout: 10s\r\n\r\n";
    assert_eq!(from(&ask(&mut client, later).await), (200, "ok".into(), Some("service")));
    let left = standby.seen().await.get("x-request-timeout").unwrap().to_owned();
    let left: u32 = left.trim_end_matches("ms").parse().unwrap();
    assert!((1..=10_000).contains(&left), "{left}");
}

#[tokio::test]
async fn an_abort_that_was_put_in_is_taken_for_the_service_s_answer() {
    let upstream = Answering::ok().await;
    for (status, expected) in [(503, (203, Some("response"))), (404, (404, None))] {
        let abort = format!("{{ faults: {{ abort: {{ percent: 100, status: {status} }} }}, fallback");
        let settings = FIXED.replace("{ fallback", &abort);
        let pillion = Setup::users([upstream.address]).service(&settings).access_log().start().await;
        let response = ask(&mut pillion.connect().await, get("/")).await;
        assert_eq!((response.status(), response.get("x-pillion-fallback")), expected);
        pillion.access_line(" fault=abort").await;
    }
}

#[tokio::test]
async fn a_service_that_is_only_named_as_a_fallback_is_followed_from_the_start() {
    let pillion = Setup::users([NOBODY])
        .instances("standby", [NOBODY])
        .service("user-service: { fallback: { service: standby } }")
        .start()
        .await;
    pillion.until_metric("pillion_endpoints", &["service=\"standby\"", "state=\"available\""], 1.0).await;
}

#[tokio::test]
async fn mistakes_are_told_with_their_places() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pillion.yaml");
    let text = "registries: { main: { kind: file, path: x.yaml } }\nservices:\n  a:\n    fallback: { service: b }\n  b:\n    \
                fallback: { service: a }\n    faults:\n      abort: { percent: 101, value: x }\n";
    fs::write(&file, text).unwrap();
    let output = e2e::output(&mut e2e::pillion(&["check", file.to_str().unwrap()])).await;
    let shown = String::from_utf8(output.stderr).unwrap();
    for line in [
        "4:26: services.a.fallback.service: a circle of fallbacks: `a` → `b` → `a`",
        "6:26: services.b.fallback.service: a circle of fallbacks: `b` → `a` → `b`",
        "8:25: services.b.faults.abort.percent: found `101`; expected a number from 0 to 100",
        "8:37: services.b.faults.abort.value: `value` goes with `header`, which is missing",
    ] {
        assert!(shown.lines().any(|there| there == format!("{}:{line}", file.display())), "{line}\n{shown}");
    }
    assert_eq!(output.status.code(), Some(64));
}
