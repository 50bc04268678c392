//! Active checks on the running program: who is checked how, what follows for requests, and for endpoints that their
//! registry no longer lists.

use crate::{
    http2_peer::{self, H2Upstream, soon},
    peer::{Answering, Message, PATIENCE, Peer, Upstream, get, ok},
    pillion::{Pillion, Setup},
};
use http::{HeaderMap, Response};
use serde_json::Value;
use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::time::{Instant, sleep};

/// Fast, so that tests need not wait; but nobody fails because the machine is busy.
const FAST: &str = "interval: 50ms, max_interval: 100ms, timeout: 10s";

fn unavailable() -> String {
    "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n".into()
}

fn is_check(request: &Message) -> bool {
    request.get("user-agent").is_some_and(|agent| agent.starts_with("pillion-health-check/"))
}

/// An upstream that passes its checks as long as it is told to, and answers everything else in any case.
struct Checked {
    upstream: Answering,
    well: Arc<AtomicBool>,
}

impl Checked {
    async fn start(well: bool, name: &'static str) -> Self {
        let well = Arc::new(AtomicBool::new(well));
        let now = well.clone();
        let upstream = Upstream::bind().await.answering(move |request| match is_check(request) {
            true if !now.load(Relaxed) => unavailable(),
            true => ok("up"),
            false => ok(name),
        });
        Self { upstream, well }
    }

    fn address(&self) -> SocketAddr {
        self.upstream.address
    }

    fn set(&self, well: bool) {
        self.well.store(well, Relaxed);
    }
}

fn service(check: &str, more: &str) -> String {
    format!("user-service: {{ health_check: {{ {check}, {FAST} }}, balance: {{ policy: round-robin }}{more} }}")
}

/// What the API says of the endpoint at `address`; `None` if it is not there.
async fn endpoint(pillion: &Pillion, address: SocketAddr) -> Option<Value> {
    let mut admin = Peer::connect(pillion.admin()).await;
    admin.send("GET /api/services/user-service HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n").await;
    let detail: Value = serde_json::from_str(&admin.response().await.text()).unwrap();
    let mut endpoints = detail["endpoints"].as_array().unwrap().clone().into_iter();
    endpoints.find(|endpoint| endpoint["address"] == address.to_string())
}

/// Waits until the checks have brought the endpoint to `state`.
async fn until_state(pillion: &Pillion, address: SocketAddr, state: &str) -> Value {
    let start = Instant::now();
    loop {
        let seen = endpoint(pillion, address).await;
        match seen {
            Some(seen) if seen["checks"]["state"] == state => return seen,
            _ => assert!(start.elapsed() < PATIENCE, "not {state}: {seen:#?}"),
        }
        sleep(Duration::from_millis(5)).await;
    }
}

/// Who answered so many requests.
async fn answers(pillion: &Pillion, count: usize) -> Vec<String> {
    let mut client = pillion.connect().await;
    let mut names = Vec::new();
    for _ in 0..count {
        client.send(get("/")).await;
        names.push(client.response().await.text());
    }
    names
}

#[tokio::test]
async fn one_that_fails_its_checks_gets_no_requests_until_it_passes() {
    let (good, bad) = (Checked::start(true, "good").await, Checked::start(false, "bad").await);
    let mut pillion =
        Setup::users([good.address(), bad.address()]).service(&service("http: /health", "")).start().await;
    let seen = until_state(&pillion, bad.address(), "unhealthy").await;
    assert_eq!(seen["checks"]["failure"], "HTTP: status 503; expected 200-399");
    assert_eq!(seen["health"]["state"], "unhealthy");
    assert!(seen["checks"]["age_seconds"].is_number() && seen["checks"]["next_in_seconds"].is_number());
    until_state(&pillion, good.address(), "healthy").await;
    assert_eq!(answers(&pillion, 10).await, ["good"; 10]);
    pillion.until_metric("pillion_endpoints", &["state=\"unhealthy\""], 1.0).await;
    assert!(pillion.metric("pillion_health_checks_total", &["result=\"failed\""]).await >= 1.0);
    bad.set(true);
    until_state(&pillion, bad.address(), "healthy").await;
    assert!(answers(&pillion, 10).await.contains(&"bad".to_owned()));
    pillion.logged("healthy again").await;
    let told = pillion.log().matches(" unhealthy ").count();
    assert_eq!(told, 1, "not each check:\n{}", pillion.log());
}

#[tokio::test]
async fn the_body_decides_where_it_is_asked_to() {
    let answering = async |body: &'static str| {
        Upstream::bind().await.answering(move |request| ok(if is_check(request) { body } else { "served" }))
    };
    let (mut up, down) = (answering("{\"status\":\"up\"}").await, answering("{\"status\":\"down\"}").await);
    let check = "http: { path: /health?full, body: '\"status\":\"up\"', statuses: [200], host: users.example }";
    let pillion = Setup::users([up.address, down.address]).service(&service(check, "")).start().await;
    until_state(&pillion, up.address, "healthy").await;
    let seen = until_state(&pillion, down.address, "unhealthy").await;
    assert_eq!(seen["checks"]["failure"], "HTTP: the body does not contain `\"status\":\"up\"`");
    let request = up.seen().await;
    assert_eq!((request.start.as_str(), request.get("host")), ("GET /health?full HTTP/1.1", Some("users.example")));
}

#[tokio::test]
async fn rise_and_fall_are_counted_in_checks() {
    let mut checked = Checked::start(true, "name").await;
    let other = Checked::start(true, "other").await;
    let pillion = Setup::users([checked.address(), other.address()])
        .service(&service("http: /, rise: 3, fall: 4", ""))
        .start()
        .await;
    until_state(&pillion, checked.address(), "healthy").await;
    checked.upstream.unseen();
    // The one that may be on its way passes yet.
    checked.set(false);
    until_state(&pillion, checked.address(), "suspect").await;
    assert!(endpoint(&pillion, checked.address()).await.unwrap()["health"]["state"] == "available");
    until_state(&pillion, checked.address(), "unhealthy").await;
    // More may follow before anybody looks; fewer were not enough.
    let checks = checked.upstream.unseen().len();
    assert!(checks >= 4, "{checks} until it was unhealthy");
    checked.set(true);
    until_state(&pillion, checked.address(), "healthy").await;
    let checks = checked.upstream.unseen().len();
    assert!(checks >= 3, "{checks} until it was healthy");
}

#[tokio::test]
async fn one_that_accepts_and_never_answers_fails_in_time() {
    let (good, silent) = (Checked::start(true, "good").await, Upstream::bind().await);
    let check = "user-service: { health_check: { http: /, timeout: 100ms } }";
    let pillion = Setup::users([good.address(), silent.address]).service(check).start().await;
    let seen = until_state(&pillion, silent.address, "unhealthy").await;
    assert_eq!(seen["checks"]["failure"], "HTTP: no answer within 100ms");
    let took = seen["checks"]["took_ms"].as_f64().unwrap();
    assert!((100.0..10_000.0).contains(&took), "{took} ms");
    // Its connection is closed, and was only asked for its health.
    let mut connection = silent.accept().await;
    assert!(is_check(&connection.request().await));
    connection.closed().await;
}

#[tokio::test]
async fn when_all_fail_all_are_used_unless_that_is_forbidden() {
    for (panic, expected) in [("", (200, None)), (", panic_threshold: 0", (503, Some("no_endpoints")))] {
        let all = [Checked::start(false, "a").await, Checked::start(false, "b").await];
        let addresses = all.each_ref().map(Checked::address);
        let mut pillion = Setup::users(addresses).service(&service("http: /", panic)).start().await;
        for address in addresses {
            until_state(&pillion, address, "unhealthy").await;
        }
        let mut client = pillion.connect().await;
        client.send(get("/")).await;
        let response = client.response().await;
        assert_eq!(response.error(), expected, "{response:?}");
        if expected.0 == 503 {
            assert_eq!(pillion.metric("pillion_retries_total", &[]).await, 0.0, "at once");
            let text = response.text();
            assert!(
                text.contains("none of the service's 2 endpoints can take requests; 2 fail their health checks"),
                "{text}"
            );
        } else {
            pillion.logged("panic: too few endpoints").await;
        }
    }
}

/// A server of the gRPC health protocol, which answers the calls of `grpc.health.v1.Health/Check` with what is asked for
/// as its service: a number is the code, anything else the health.
async fn grpc_server() -> (String, SocketAddr, tokio::task::JoinHandle<()>) {
    let upstream = H2Upstream::bind().await;
    let instance = upstream.instance();
    let address = instance.split_once("address: ").unwrap().1.split_once(',').unwrap().0.parse().unwrap();
    let task = tokio::spawn(async move {
        loop {
            let mut connection = upstream.accept().await;
            while let Some(mut exchange) = connection.try_next().await {
                assert_eq!(exchange.request.uri.path(), "/grpc.health.v1.Health/Check");
                assert_eq!(exchange.request.headers["content-type"], "application/grpc");
                let Ok((body, _)) = http2_peer::read(&mut exchange.body).await else { break };
                // Its frame's head, the field's, the service.
                let service = String::from_utf8(body[5..].get(2..).unwrap_or_default().to_vec()).unwrap();
                let head = Response::builder().header("content-type", "application/grpc");
                if let Ok(code) = service.parse::<u16>() {
                    let head = head.header("grpc-status", code).body(()).unwrap();
                    exchange.respond.send_response(head, true).unwrap();
                    continue;
                }
                let health = if service == "sick" { 2 } else { 1 };
                let mut stream = exchange.respond.send_response(head.body(()).unwrap(), false).unwrap();
                stream.send_data([0, 0, 0, 0, 2, 8, health].to_vec().into(), false).unwrap();
                let status = [("grpc-status".parse().unwrap(), "0".parse().unwrap())];
                stream.send_trailers(HeaderMap::from_iter(status)).unwrap();
            }
        }
    });
    (instance, address, task)
}

#[tokio::test]
async fn the_grpc_health_protocol_is_spoken() {
    for (service_asked, state, failure) in [
        ("", "healthy", Value::Null),
        ("a.Service", "healthy", Value::Null),
        ("sick", "unhealthy", "gRPC: NOT_SERVING".into()),
        ("5", "unhealthy", "gRPC: NOT_FOUND: its health service does not know `5`".into()),
        ("14", "unhealthy", "gRPC: code 14: ".into()),
        (
            "12",
            "unhealthy",
            "gRPC: UNIMPLEMENTED: the server has no grpc.health.v1.Health; add it there, or check in another way"
                .into(),
        ),
    ] {
        let (instance, address, task) = grpc_server().await;
        let check = service(&format!("grpc: {{ service: '{service_asked}' }}"), "");
        let pillion = Setup::users([instance]).service(&check).start().await;
        let seen = soon("the checks", until_state(&pillion, address, state)).await;
        assert_eq!(seen["checks"]["failure"], failure, "{service_asked}");
        task.abort();
    }
}

#[tokio::test]
async fn gone_and_passing_stays_in_use_and_gone_and_failing_does_not() {
    let (stays, leaves) = (Checked::start(true, "stays").await, Checked::start(true, "leaves").await);
    let check = service("http: /, linger: 1h", "");
    let mut pillion = Setup::users([stays.address(), leaves.address()]).service(&check).start().await;
    for address in [stays.address(), leaves.address()] {
        until_state(&pillion, address, "healthy").await;
    }
    let only = format!("services: {{ user-service: [{}] }}", stays.address());
    pillion.write_instances(&only);
    let start = Instant::now();
    while endpoint(&pillion, leaves.address()).await.unwrap()["gone"] != true {
        assert!(start.elapsed() < PATIENCE, "the change is seen");
        sleep(Duration::from_millis(5)).await;
    }
    assert!(answers(&pillion, 10).await.contains(&"leaves".to_owned()), "it is in use");
    leaves.set(false);
    pillion.until_metric("pillion_endpoints", &["service=\"user-service\""], 1.0).await;
    assert_eq!(endpoint(&pillion, leaves.address()).await, None);
    assert_eq!(answers(&pillion, 10).await, ["stays"; 10]);
    assert!(!pillion.log().contains(" unhealthy "), "one failure was enough");
    // One that fails when it goes is dropped at once, and with it what was known of it.
    pillion.logged("endpoints changed").await;
    pillion.write_instances(&format!("services: {{ user-service: [{}, {}] }}", stays.address(), leaves.address()));
    let start = Instant::now();
    while endpoint(&pillion, leaves.address()).await.is_none() {
        assert!(start.elapsed() < PATIENCE, "the change is seen");
        sleep(Duration::from_millis(5)).await;
    }
    until_state(&pillion, leaves.address(), "unhealthy").await;
    pillion.write_instances(&only);
    pillion.until_metric("pillion_endpoints", &["service=\"user-service\""], 1.0).await;
}

#[tokio::test]
async fn gone_and_passing_goes_when_its_time_is_over() {
    let (stays, leaves) = (Checked::start(true, "stays").await, Checked::start(true, "leaves").await);
    let check = service("http: /, linger: 300ms", "");
    let pillion = Setup::users([stays.address(), leaves.address()]).service(&check).start().await;
    for address in [stays.address(), leaves.address()] {
        until_state(&pillion, address, "healthy").await;
    }
    pillion.write_instances(&format!("services: {{ user-service: [{}] }}", stays.address()));
    pillion.until_metric("pillion_endpoints", &["service=\"user-service\""], 1.0).await;
    assert_eq!(answers(&pillion, 10).await, ["stays"; 10]);
}

#[tokio::test]
async fn one_that_is_gone_goes_at_the_first_request_that_fails_and_nobody_notices() {
    // Their health is somewhere else, and stays good.
    let health = Checked::start(true, "health").await;
    let (stays, leaves) = (Checked::start(true, "stays").await, Checked::start(true, "leaves").await);
    let check = service(&format!("http: /, port: {}, linger: 1h", health.address().port()), "");
    let pillion = Setup::users([stays.address(), leaves.address()]).service(&check).start().await;
    for address in [stays.address(), leaves.address()] {
        until_state(&pillion, address, "healthy").await;
    }
    assert!(answers(&pillion, 10).await.contains(&"leaves".to_owned()));
    pillion.write_instances(&format!("services: {{ user-service: [{}] }}", stays.address()));
    let start = Instant::now();
    while endpoint(&pillion, leaves.address()).await.unwrap()["gone"] != true {
        assert!(start.elapsed() < PATIENCE, "the change is seen");
        sleep(Duration::from_millis(5)).await;
    }
    let address = leaves.address();
    drop(leaves);
    assert_eq!(answers(&pillion, 10).await, ["stays"; 10]);
    pillion.until_metric("pillion_endpoints", &["service=\"user-service\""], 1.0).await;
    assert_eq!(endpoint(&pillion, address).await, None);
}
