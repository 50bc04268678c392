//! The inbound side on the running program: whatever callers ask of a listener with `app` reaches the local application, within
//! limits, and counted by caller.

use crate::{
    http2_peer::{self, H2Upstream, soon},
    peer::{Answering, Message, PATIENCE, Peer, Upstream, get, ok, timed, until_rated},
    pillion::{Pillion, Setup},
};
use bytes::Bytes;
use http::{HeaderMap, Response};
use serde_json::Value;
use std::{
    fmt::Display,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::time::{Instant, sleep};

const REQUESTS: &str = "pillion_inbound_requests_total";

/// An inbound listener in front of the application at this address, or with these settings.
fn inbound(app: impl Display) -> Setup {
    Setup::default().listener("inbound", &format!("app: {app}"))
}

async fn connect(pillion: &Pillion) -> Peer {
    Peer::connect(pillion.address("inbound")).await
}

/// A request of this caller.
fn from(caller: &str, path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: web\r\nx-pillion-caller: {caller}\r\n\r\n")
}

async fn exchange(client: &mut Peer, request: impl AsRef<[u8]>) -> Message {
    client.send(request).await;
    client.response().await
}

async fn admin(pillion: &Pillion, path: &str) -> (u16, String) {
    let mut admin = Peer::connect(pillion.admin()).await;
    let answer = exchange(&mut admin, format!("GET {path} HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n")).await;
    (answer.status(), answer.text())
}

/// What the API says of the only inbound listener.
async fn shown(pillion: &Pillion) -> Value {
    let all: Value = serde_json::from_str(&admin(pillion, "/api/inbound").await.1).unwrap();
    all["listeners"].as_array().unwrap()[0].clone()
}

/// Waits until `/ready` answers so, and gives what it says.
async fn until_ready(pillion: &Pillion, status: u16) -> String {
    let start = Instant::now();
    loop {
        let (now, text) = admin(pillion, "/ready").await;
        if now == status {
            return text;
        }
        assert!(start.elapsed() < PATIENCE, "{now}: {text}");
        sleep(Duration::from_millis(5)).await;
    }
}

fn grpc(path: &str) -> http::Request<()> {
    let mut call = http2_peer::request("POST", path);
    call.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
    call.headers_mut().insert("te", "trailers".parse().unwrap());
    call
}

#[tokio::test]
async fn everything_goes_to_the_application_whatever_the_host() {
    let mut app = Answering::ok().await;
    let pillion = inbound(app.address).start().await;
    let mut client = connect(&pillion).await;
    for host in ["user-service", "www.example.com:8080", "a/b", ""] {
        let answer =
            exchange(&mut client, format!("GET /a?b=c HTTP/1.1\r\nhost: {host}\r\nx-pillion-attempt: 2\r\n\r\n")).await;
        assert_eq!((answer.status(), answer.text()), (200, "ok".into()), "{host}");
        let seen = app.seen().await;
        assert_eq!((&*seen.start, seen.get("host")), ("GET /a?b=c HTTP/1.1", Some(host)));
        assert_eq!(seen.get("x-forwarded-for"), Some("127.0.0.1"));
        assert_eq!(seen.get("x-pillion-attempt"), Some("2"), "the caller's pillion says it to the application");
        assert!(seen.get("x-pillion-caller").is_none() && seen.get("x-request-id").is_some());
    }
    let body = "x".repeat(100_000);
    let post = format!("POST / HTTP/1.1\r\nhost: web\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    assert_eq!(exchange(&mut client, post).await.status(), 200);
    assert_eq!(app.seen().await.text(), body);
    // The other way, nothing has changed.
    let mut egress = pillion.connect().await;
    assert_eq!(exchange(&mut egress, get("/")).await.error(), (404, Some("unknown_service")));
}

#[tokio::test]
async fn http2_callers_reach_an_application_that_speaks_http1() {
    let mut app = Answering::ok().await;
    let pillion = inbound(app.address).start().await;
    let client = http2_peer::Client::connect(pillion.address("inbound")).await;
    assert_eq!(client.get("/x").await.unwrap().text(), "ok");
    assert_eq!(client.post("/y", "body").await.unwrap().text(), "ok");
    assert_eq!(app.seen().await.start, "GET /x HTTP/1.1");
    assert_eq!(app.seen().await.text(), "body");
}

#[tokio::test]
async fn grpc_calls_reach_the_application_by_http2_and_bring_their_trailers_back() {
    let app = H2Upstream::bind().await;
    let pillion = inbound(app.address()).start().await;
    let client = http2_peer::Client::connect(pillion.address("inbound")).await;
    for (status, failed) in [("0", 0.0), ("13", 1.0)] {
        let (response, mut stream) = client.start(grpc("/echo.Echo/Say"), false).await;
        let mut server = app.accept().await;
        let mut call = server.next().await;
        assert_eq!(call.request.headers["te"], "trailers");
        stream.send_data(Bytes::from_static(b"question"), true).unwrap();
        let (question, _) = http2_peer::read(&mut call.body).await.unwrap();
        assert_eq!(question, b"question");
        let head = Response::builder().header("content-type", "application/grpc").body(()).unwrap();
        let mut answer = call.respond.send_response(head, false).unwrap();
        answer.send_data(Bytes::from_static(b"answer"), false).unwrap();
        let trailers: HeaderMap = [("grpc-status".parse().unwrap(), status.parse().unwrap())].into_iter().collect();
        answer.send_trailers(trailers).unwrap();
        let answer = http2_peer::collect(response).await.unwrap();
        assert_eq!(
            (answer.text(), &answer.trailers.unwrap()["grpc-status"]),
            ("answer".into(), &status.parse().unwrap())
        );
        pillion.until_metric("pillion_inbound_errors_total", &["caller=\"unknown\""], failed).await;
        drop(server);
        pillion.until_metric("pillion_pool_connections", &["listener=\"inbound\""], 0.0).await;
    }
    pillion.until_metric(REQUESTS, &["code=\"200\""], 2.0).await;
}

#[tokio::test]
async fn each_request_reaches_the_application_by_the_protocol_by_which_it_came_if_so_wanted() {
    let app = Upstream::bind().await;
    let pillion = inbound(format!("{{ address: {}, protocol: same }}", app.address)).start().await;
    let mut http1 = connect(&pillion).await;
    http1.send(get("/one")).await;
    assert_eq!(app.accept().await.head().await.start, "GET /one HTTP/1.1");
    let http2 = http2_peer::Client::connect(pillion.address("inbound")).await;
    let (_response, _) = http2.start(http2_peer::request("GET", "/two"), true).await;
    assert_eq!(app.accept().await.take(14).await, b"PRI * HTTP/2.0");
}

#[tokio::test]
async fn all_requests_reach_an_application_that_speaks_http2_by_that() {
    let app = H2Upstream::bind().await;
    let pillion = inbound(format!("{{ address: {}, protocol: http2 }}", app.address())).start().await;
    let mut client = connect(&pillion).await;
    client.send(get("/one")).await;
    let mut server = app.accept().await;
    let call = server.next().await;
    assert_eq!((call.request.uri.path(), call.request.uri.authority().unwrap().as_str()), ("/one", "user-service"));
    call.ok("hello");
    assert_eq!(client.response().await.text(), "hello");
}

#[tokio::test]
async fn upgraded_connections_go_through_and_count_as_in_flight() {
    let app = Upstream::bind().await;
    let pillion = inbound(app.address).start().await;
    let mut client = connect(&pillion).await;
    client.send("GET /chat HTTP/1.1\r\nhost: web\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n").await;
    let mut server = app.accept().await;
    assert_eq!(server.head().await.get("upgrade"), Some("websocket"));
    server.send("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n").await;
    assert_eq!(client.head().await.status(), 101);
    client.send("ping").await;
    assert_eq!(server.take(4).await, b"ping");
    server.send("pong").await;
    assert_eq!(client.take(4).await, b"pong");
    assert_eq!(shown(&pillion).await["in_flight"], 1);
    drop((client, server));
    pillion.until_metric(REQUESTS, &["code=\"101\"", "caller=\"unknown\""], 1.0).await;
    pillion.until_free().await;
}

#[tokio::test]
async fn the_application_gets_no_more_at_one_time_than_it_may() {
    let app = Upstream::bind().await;
    let pillion =
        inbound(format!("{{ address: {}, limits: {{ requests: 1, pending: 1, queue_timeout: 10s }} }}", app.address));
    let pillion = pillion.start().await;
    let [mut first, mut second, mut third] =
        [connect(&pillion).await, connect(&pillion).await, connect(&pillion).await];
    first.send(get("/1")).await;
    let mut server = app.accept().await;
    server.request().await;
    second.send(get("/2")).await;
    let waiting = ["service=\"inbound\"", "listener=\"inbound\""];
    pillion.until_metric("pillion_requests_waiting", &waiting, 1.0).await;
    assert_eq!(exchange(&mut third, get("/3")).await.error(), (503, Some("overloaded")));
    server.send(ok("one")).await;
    assert_eq!(first.response().await.text(), "one");
    assert_eq!(server.request().await.start, "GET /2 HTTP/1.1");
    server.send(ok("two")).await;
    assert_eq!(second.response().await.text(), "two");
    assert!(app.is_left_alone());
    pillion.until_metric("pillion_inbound_errors_total", &[], 1.0).await;
    drop((first, second, third));
    pillion.until_free().await;
}

#[tokio::test]
async fn each_caller_has_its_own_rate() {
    let app = Answering::ok().await;
    let rate = "rate: { per_caller: { header: x-pillion-caller, per_second: 1, burst: 2 } }";
    let pillion = inbound(format!("{{ address: {}, limits: {{ {rate} }} }}", app.address)).start().await;
    let mut client = connect(&pillion).await;
    for _ in 0..2 {
        assert_eq!(exchange(&mut client, from("greedy", "/")).await.status(), 200);
    }
    until_rated(&mut client, from("greedy", "/"), 0).await;
    assert_eq!(exchange(&mut client, from("modest", "/")).await.status(), 200);
    pillion.until_metric(REQUESTS, &["caller=\"greedy\"", "code=\"429\""], 1.0).await;
    pillion.until_metric(REQUESTS, &["caller=\"modest\""], 1.0).await;
    assert_eq!(pillion.metric("pillion_inbound_errors_total", &[]).await, 0.0, "they are the caller's own");
}

#[tokio::test]
async fn a_slow_application_is_not_waited_for_longer_than_the_timeout() {
    let app = Upstream::bind().await;
    let pillion = inbound(format!("{{ address: {}, timeouts: {{ request: 100ms }} }}", app.address)).start().await;
    let mut client = connect(&pillion).await;
    let (status, reason, took) = timed(&mut client, from("web", "/")).await;
    assert_eq!((status, reason.as_deref()), (504, Some("request_timeout")));
    assert!(took < Duration::from_secs(12), "{took:?}");
    pillion.until_metric("pillion_inbound_errors_total", &["caller=\"web\""], 1.0).await;
}

#[tokio::test]
async fn while_the_application_is_down_callers_are_told_at_once_and_nothing_keeps_it_out_afterwards() {
    let app = Upstream::bind().await;
    let address = app.address;
    let pillion = inbound(address).start().await;
    drop(app);
    let mut client = connect(&pillion).await;
    for _ in 0..20 {
        let (status, reason, took) = timed(&mut client, get("/")).await;
        assert_eq!((status, reason.as_deref()), (502, Some("connect_failed")));
        assert!(took < Duration::from_secs(12), "{took:?}");
    }
    let caller = http2_peer::Client::connect(pillion.address("inbound")).await;
    let refused = http2_peer::collect(caller.start(grpc("/echo.Echo/Say"), true).await.0).await.unwrap();
    assert_eq!((refused.status.as_u16(), &refused.headers["grpc-status"]), (200, &"14".parse().unwrap()));
    assert_eq!((&refused.headers["x-pillion-error"], refused.body.len()), (&"connect_failed".parse().unwrap(), 0));
    let app = Upstream::bind_at(address).await.answering(|_| ok("back"));
    assert_eq!(exchange(&mut client, get("/")).await.text(), "back");
    drop(app);
}

#[tokio::test]
async fn requests_are_not_repeated() {
    let mut app =
        Upstream::bind().await.answering(|_| "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n".into());
    let pillion = inbound(app.address).start().await;
    let mut client = connect(&pillion).await;
    for _ in 0..20 {
        assert_eq!(exchange(&mut client, get("/")).await.error(), (503, None), "the application's own answer");
    }
    assert_eq!(app.unseen().len(), 20);
    assert_eq!(pillion.metric("pillion_retries_total", &["listener=\"inbound\""]).await, 0.0);
    assert_eq!(shown(&pillion).await["app"]["health"]["state"], "available", "it is all there is");
}

#[tokio::test]
async fn a_connection_that_the_application_closed_meanwhile_is_replaced() {
    let app = Upstream::bind().await;
    let pillion = inbound(app.address).start().await;
    let mut client = connect(&pillion).await;
    client.send(get("/1")).await;
    let mut server = app.accept().await;
    server.request().await;
    server.send(ok("one")).await;
    assert_eq!(client.response().await.text(), "one");
    client.send(get("/2")).await;
    server.request().await;
    drop(server);
    let mut server = app.accept().await;
    assert_eq!(server.request().await.start, "GET /2 HTTP/1.1");
    server.send(ok("two")).await;
    assert_eq!(client.response().await.text(), "two");
}

#[tokio::test]
async fn a_caller_behind_another_pillion_is_known_by_its_name() {
    let mut app = Answering::ok().await;
    let callee = inbound(app.address).named("users").access_log().start().await;
    let users = [callee.address("inbound")];
    let web = Setup::users(users).named("web").start().await;
    let mut client = web.connect().await;
    // What the application itself says of that does not count.
    let request = "GET / HTTP/1.1\r\nhost: user-service\r\nx-pillion-caller: admin\r\nx-pillion-attempt: 9\r\n\r\n";
    assert_eq!(exchange(&mut client, request).await.status(), 200);
    let seen = app.seen().await;
    assert_eq!((seen.get("host"), seen.all("x-pillion-caller")), (Some("user-service"), vec!["web"]));
    assert_eq!((seen.get("x-forwarded-for"), seen.get("x-pillion-attempt")), (Some("127.0.0.1, 127.0.0.1"), None));
    assert_eq!((seen.get("x-forwarded-host"), seen.get("x-forwarded-proto")), (Some("user-service"), Some("http")));
    let of_web = ["listener=\"inbound\"", "caller=\"web\"", "code=\"200\""];
    callee.until_metric(REQUESTS, &of_web, 1.0).await;
    callee.until_metric("pillion_inbound_request_duration_seconds_count", &of_web[..2], 1.0).await;
    let line = callee.access_line(" inbound ").await;
    assert!(line.contains(" service=users ") && line.ends_with(" caller=web"), "{line}");
    // And over HTTP/2.
    let http2 = http2_peer::Client::connect(web.egress()).await;
    assert_eq!(http2.get("/").await.unwrap().text(), "ok");
    callee.until_metric(REQUESTS, &of_web, 2.0).await;
    // One without a name leaves it to the application.
    let nobody = Setup::users(users).start().await;
    let mut client = nobody.connect().await;
    assert_eq!(exchange(&mut client, get("/")).await.status(), 200);
    callee.until_metric(REQUESTS, &["caller=\"unknown\""], 1.0).await;
    let callers = shown(&callee).await["callers"].clone();
    let expected = serde_json::json!([
        { "caller": "unknown", "requests": 1, "errors": 0 },
        { "caller": "web", "requests": 2, "errors": 0 },
    ]);
    assert_eq!(callers, expected);
}

#[tokio::test]
async fn callers_have_series_of_their_own_up_to_a_number_and_lose_them_when_they_stay_away() {
    let app = Answering::ok().await;
    let callers = "callers: { header: x-team, max: 3, idle: 8s }";
    let setup = inbound(format!("{{ address: {}, {callers} }}", app.address)).workers(2);
    let pillion = setup.start().await;
    for number in 0..50 {
        let mut client = connect(&pillion).await;
        let request = format!("GET / HTTP/1.1\r\nhost: web\r\nx-team: team-{number}\r\n\r\n");
        assert_eq!(exchange(&mut client, request).await.status(), 200);
    }
    let metrics = pillion.metrics().await;
    let named = metrics.lines().filter(|line| line.starts_with(REQUESTS) && line.contains("caller=\"team-")).count();
    assert!(named <= 3, "{metrics}");
    assert!(metrics.contains("caller=\"other\""), "{metrics}");
    pillion.until_metric(REQUESTS, &[], 0.0).await;
    assert!(!pillion.metrics().await.contains("caller=\""), "all are gone");
    let mut client = connect(&pillion).await;
    exchange(&mut client, "GET / HTTP/1.1\r\nhost: web\r\nx-team: late\r\n\r\n").await;
    pillion.until_metric(REQUESTS, &["caller=\"late\""], 1.0).await;
}

#[tokio::test]
async fn ready_follows_the_applications_checks() {
    let well = Arc::new(AtomicBool::new(false));
    let now = well.clone();
    let app = Upstream::bind().await;
    let address = app.address;
    let check = "health_check: { http: /health, interval: 20ms, timeout: 10s, fall: 2, rise: 2 }";
    let setup = inbound(format!("{{ address: {address}, {check} }}")).named("users");
    let answer = move |request: &Message| match request.start.contains("/health") && !now.load(Relaxed) {
        true => "HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\n\r\n".into(),
        false => ok("ok"),
    };
    let app = app.answering(answer.clone());
    let mut pillion = setup.start().await;
    let not_yet = until_ready(&pillion, 503).await;
    assert!(not_yet.contains(&format!("the application at {address} (listener `inbound`) ")), "{not_yet}");
    pillion.logged("the application fails its checks").await;
    let why = until_ready(&pillion, 503).await;
    assert!(why.contains("fails its checks: HTTP: status 500; expected 200-399"), "{why}");
    assert_eq!(pillion.metric("pillion_app_healthy", &["listener=\"inbound\""]).await, 0.0);
    assert_eq!(admin(&pillion, "/startup").await.0, 200, "pillion itself has started");
    // Its callers get what it answers, all the same.
    let mut client = connect(&pillion).await;
    assert_eq!(exchange(&mut client, get("/")).await.text(), "ok");
    well.store(true, Relaxed);
    until_ready(&pillion, 200).await;
    pillion.logged("the application passes its checks").await;
    pillion.until_metric("pillion_app_healthy", &["listener=\"inbound\""], 1.0).await;
    let seen = shown(&pillion).await;
    assert_eq!((&seen["ready"], &seen["service"]), (&true.into(), &"users".into()));
    assert_eq!(seen["app"]["checks"]["state"], "healthy");
    drop((app, client));
    let why = until_ready(&pillion, 503).await;
    assert!(why.contains("fails its checks: TCP: "), "{why}");
    assert_eq!(shown(&pillion).await["ready"], false);
    assert_eq!(admin(&pillion, "/live").await.0, 200);
    let _app = Upstream::bind_at(address).await.answering(answer);
    until_ready(&pillion, 200).await;
    assert!(pillion.metric("pillion_health_checks_total", &["listener=\"inbound\"", "result=\"failed\""]).await >= 2.0);
}

#[tokio::test]
async fn without_checks_pillion_is_ready_without_its_application() {
    let app = Upstream::bind().await;
    let address = app.address;
    drop(app);
    let pillion = inbound(address).start().await;
    until_ready(&pillion, 200).await;
    let seen = shown(&pillion).await;
    assert_eq!((&seen["ready"], &seen["app"]["address"]), (&true.into(), &address.to_string().into()));
}

#[tokio::test]
async fn other_settings_are_in_force_for_open_connections_at_once() {
    let (one, two) = (Upstream::bind().await.answering(|_| ok("one")), Upstream::bind().await.answering(|_| ok("two")));
    let mut pillion = inbound(one.address).named("users").access_log().start().await;
    let mut client = connect(&pillion).await;
    assert_eq!(exchange(&mut client, from("web", "/")).await.text(), "one");
    let app = |address| format!("app: {address}");
    pillion.change_config(&app(one.address), &app(two.address)).await;
    assert_eq!(exchange(&mut client, from("web", "/")).await.text(), "two");
    let more = format!(
        "app: {{ address: {}, limits: {{ rate: {{ per_second: 1 }} }}, callers: {{ header: x-who }} }}",
        two.address
    );
    pillion.change_config(&app(two.address), &more).await;
    let request = "GET / HTTP/1.1\r\nhost: web\r\nx-who: me\r\n\r\n";
    assert_eq!(exchange(&mut client, request).await.text(), "two");
    assert_eq!(until_rated(&mut client, request, 0).await.error(), (429, Some("rate_limited")));
    pillion.until_metric(REQUESTS, &["caller=\"me\"", "code=\"429\""], 1.0).await;
    pillion.until_metric(REQUESTS, &["caller=\"web\""], 2.0).await;
    // Under another name the application goes on.
    pillion.change_config("node: { service: users }", "node: { service: people }").await;
    assert_eq!(exchange(&mut client, from("web", "/")).await.text(), "two");
    pillion.access_line(" service=people ").await;
    // And what calls others says the new name.
    assert!(soon("the new name", pillion.metrics()).await.contains("service=\"people\",listener=\"inbound\""));
}
