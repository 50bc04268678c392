//! Tunnels by `CONNECT`: what clients ask for that have pillion as their proxy.

use crate::{
    http2_peer::{self, Client},
    peer::{Answering, PATIENCE, Peer, Upstream},
    pillion::{Pillion, Setup},
};
use http::{Method, Request};
use std::net::SocketAddr;
use tokio::time::{Instant, timeout};

const OPEN: &str = "connect: {}";

fn db<A: ToString>(addresses: impl IntoIterator<Item = A>) -> Setup {
    Setup::default().instances("db", addresses.into_iter().map(|address| address.to_string())).egress(OPEN)
}

fn asks_for(target: &str) -> String {
    format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\nProxy-Connection: Keep-Alive\r\n\r\n")
}

/// A tunnel to there, and its other end.
async fn through(pillion: &Pillion, target: &str, upstream: &Upstream) -> (Peer, Peer) {
    let mut client = pillion.connect().await;
    client.send(asks_for(target)).await;
    let server = upstream.accept().await;
    is_open(&mut client).await;
    (client, server)
}

/// The answer is there, and nothing in it says that a body comes (RFC 9110, section 9.3.6).
async fn is_open(client: &mut Peer) {
    let head = client.head().await;
    assert_eq!((head.status(), &head.fields[..]), (200, &[][..]), "{head:?}");
}

/// What is answered instead. Then the connection ends.
async fn refused(pillion: &Pillion, request: &str) -> (u16, String, String) {
    let mut client = pillion.connect().await;
    client.send(request).await;
    let response = client.response().await;
    client.closed().await;
    let (status, reason) = response.error();
    (status, reason.unwrap_or_default().to_owned(), response.text())
}

/// Nobody listens there.
async fn nobody() -> SocketAddr {
    Upstream::bind().await.address
}

#[tokio::test]
async fn a_tunnel_is_a_connection_to_a_service() {
    let upstream = Upstream::bind().await;
    let pillion = db([upstream.address]).access_log().start().await;
    let mut client = pillion.connect().await;
    // Whoever is sure of it does not wait for the answer.
    client.send(asks_for("db:5432") + "early").await;
    let mut server = upstream.accept().await;
    assert_eq!(server.take(5).await, b"early");
    is_open(&mut client).await;
    server.send("GET / HTTP/1.1\r\n\r\n").await;
    assert_eq!(client.take(18).await, b"GET / HTTP/1.1\r\n\r\n");
    client.send("more").await;
    assert_eq!(server.take(4).await, b"more");
    client.shutdown().await;
    assert_eq!(server.rest().await, b"", "the end of one direction");
    server.send("the answer").await;
    assert_eq!(client.take(10).await, b"the answer", "is not the end of the other");
    drop(server);
    client.closed().await;
    pillion.until_metric("pillion_tcp_closed_total", &["service=\"db\"", "outcome=\"done\""], 1.0).await;
    pillion.until_metric("pillion_tcp_connections", &["service=\"db\""], 0.0).await;
    assert_eq!(pillion.metric("pillion_tcp_sent_bytes_total", &["service=\"db\""]).await, 9.0);
    assert_eq!(pillion.metric("pillion_tcp_received_bytes_total", &["service=\"db\""]).await, 28.0);
    let line = pillion.access_line("CONNECT").await;
    let endpoint = format!("service=db endpoint={} attempts=1", upstream.address);
    assert!(line.contains("\"CONNECT - HTTP/1.1\" db:5432 200 - in=9 out=28") && line.contains(&endpoint), "{line}");
}

/// Each byte in a segment of its own, and requests before it on the connection.
#[tokio::test]
async fn the_head_may_come_in_pieces_and_behind_other_requests() {
    let (upstream, web) = (Upstream::bind().await, Answering::ok().await);
    let pillion = db([upstream.address]).instances("web", [web.address]).start().await;
    let mut client = pillion.connect().await;
    client.send("GET / HTTP/1.1\r\nhost: web\r\n\r\n").await;
    assert_eq!(client.response().await.status(), 200);
    for byte in (asks_for("db:1") + "x").bytes() {
        client.send([byte]).await;
    }
    let mut server = upstream.accept().await;
    assert_eq!(server.take(1).await, b"x");
    is_open(&mut client).await;
    let mut client = pillion.connect().await;
    client.send(format!("GET / HTTP/1.1\r\nhost: web\r\n\r\n{}x", asks_for("db:1"))).await;
    assert_eq!(client.response().await.status(), 200);
    let mut server = upstream.accept().await;
    assert_eq!(server.take(1).await, b"x");
    is_open(&mut client).await;
}

#[tokio::test]
async fn services_are_found_as_by_host() {
    let (one, other) = (Upstream::bind().await, Upstream::bind().await);
    let versions = [(one.address, "a"), (other.address, "b")];
    let instances =
        versions.map(|(address, version)| format!("{{ address: {address}, labels: {{ version: {version} }} }}"));
    let pillion = Setup::default()
        .instances("db", [one.address])
        .instances("two", instances)
        .service("shop.example: { routes: [{ match: { headers: { x-canary: { present: true } } }, to: two/b }, { to: db/ }] }")
        .service("closed: { routes: [{ name: gone, respond: { status: 410 } }] }")
        .service("two: { subsets: { a: { version: a }, b: { version: b } }, routes: [{ to: a }] }")
        .egress("connect: {}, service_header: x-service, host_suffixes: [.mesh]")
        .start()
        .await;
    for (target, field, upstream) in [
        ("db:1", "", &one),
        ("db.:65535", "", &one),
        ("db.mesh:443", "", &one),
        ("nobody:443", "x-service: db\r\n", &one),
        ("10.0.0.1:443", "x-service: db\r\n", &one),
        ("shop.example:443", "", &one),
        ("shop.example:443", "x-canary: 1\r\n", &other),
        ("two:443", "", &one),
    ] {
        let mut client = pillion.connect().await;
        // The target counts, not `Host`.
        client.send(format!("CONNECT {target} HTTP/1.1\r\nhost: elsewhere:1\r\n{field}\r\nhello")).await;
        let mut server = upstream.accept().await;
        assert_eq!(server.take(5).await, b"hello", "{target}");
        is_open(&mut client).await;
    }
    let mut client = pillion.connect().await;
    client.send("CONNECT db:1 HTTP/1.0\r\n\r\n").await;
    one.accept().await;
    is_open(&mut client).await;
    // What answers by itself keeps others from the endpoints.
    let (status, reason, text) = refused(&pillion, &asks_for("closed:443")).await;
    assert_eq!((status, &reason[..]), (403, "destination_refused"));
    assert!(text.contains("route `gone` of `closed` answers by itself"), "{text}");
}

#[tokio::test]
async fn an_endpoint_that_refuses_costs_no_tunnel() {
    let (one, other) = (Upstream::bind().await, Upstream::bind().await);
    let pillion = db([nobody().await, one.address, other.address]).access_log().start().await;
    let mut open = Vec::new();
    for _ in 0..20 {
        let mut client = pillion.connect().await;
        client.send(asks_for("db:1")).await;
        is_open(&mut client).await;
        open.push(client);
    }
    open.into_iter().for_each(Peer::reset);
    let line = pillion.access_line("attempts=2").await;
    assert!(line.contains("\" db:1 200 ") && line.contains("flags=retried:connect_failed"), "{line}");
}

#[tokio::test]
async fn errors_are_told_as_those_of_requests_are() {
    let web = Upstream::bind().await;
    let pillion = db([nobody().await])
        .service("empty: {}")
        .service("full: { limits: { connections: 1 } }")
        .instances("full", [web.address])
        .access_log()
        .start()
        .await;
    // What comes behind it may be no HTTP, and nobody looks at it.
    let got = refused(&pillion, &(asks_for("db:1") + "\x16\x03\x01\x02\x00")).await;
    assert_eq!((got.0, &got.1[..]), (502, "connect_failed"), "{got:?}");
    let got = refused(&pillion, &asks_for("empty:1")).await;
    assert_eq!((got.0, &got.1[..]), (503, "no_endpoints"), "{got:?}");
    let (_client, _server) = through(&pillion, "full:1", &web).await;
    let got = refused(&pillion, &asks_for("full:1")).await;
    assert_eq!((got.0, &got.1[..]), (503, "connection_limit"), "{got:?}");
    for (request, what) in [
        ("CONNECT db HTTP/1.1\r\nhost: db\r\n\r\n", "HOST:PORT"),
        ("CONNECT db:0 HTTP/1.1\r\nhost: db\r\n\r\n", "HOST:PORT"),
        ("CONNECT db:65536 HTTP/1.1\r\nhost: db\r\n\r\n", "HOST:PORT"),
        ("CONNECT /db:1 HTTP/1.1\r\nhost: db\r\n\r\n", "HOST:PORT"),
        ("CONNECT http://db:1/ HTTP/1.1\r\nhost: db\r\n\r\n", "HOST:PORT"),
        ("CONNECT me@db:1 HTTP/1.1\r\nhost: db\r\n\r\n", "HOST:PORT"),
        ("CONNECT db:1 HTTP/1.1\r\n\r\n", "no Host"),
        ("CONNECT db:1 HTTP/1.1\r\nhost: db\r\ncontent-length: 3\r\n\r\nabc", "a CONNECT with a body"),
        ("CONNECT db:1 HTTP/1.1\r\nhost: db\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", "a CONNECT with a body"),
    ] {
        let (status, reason, text) = refused(&pillion, request).await;
        assert_eq!((status, &reason[..]), (400, "bad_request"), "{request}: {text}");
        assert!(text.contains(what), "{request}: {text}");
    }
    pillion.until_metric("pillion_tcp_closed_total", &["service=\"db\"", "outcome=\"connect_failed\""], 1.0).await;
    pillion.until_metric("pillion_requests_rejected_total", &["reason=\"bad_request\""], 9.0).await;
    let line = pillion.access_line(" empty:1 ").await;
    assert!(line.contains("\"CONNECT - HTTP/1.1\" empty:1 503 no_endpoints in=0 out=0"), "{line}");
}

#[tokio::test]
async fn what_is_no_service_is_refused() {
    let upstream = Upstream::bind().await;
    let pillion = db([upstream.address]).start().await;
    let address = upstream.address.to_string();
    // An endpoint's address is not its service's name.
    for target in ["nobody.example:443", "127.0.0.1:443", "[::1]:443", "[2001:db8::1]:443", &address] {
        let (status, reason, text) = refused(&pillion, &asks_for(target)).await;
        assert_eq!((status, &reason[..]), (403, "destination_refused"), "{target}: {text}");
        assert!(text.contains(&format!("`{target}` is no service")), "{text}");
    }
    assert!(upstream.is_left_alone());
    pillion.until_metric("pillion_requests_rejected_total", &["reason=\"destination_refused\""], 5.0).await;
    // No name that somebody made up becomes a label.
    assert_eq!(pillion.metric("pillion_tcp_closed_total", &[]).await, 0.0);
}

/// Neither to pillion's own listeners, which would be a circle, nor to what listens for this machine alone.
#[tokio::test]
async fn nothing_is_passed_on_to_this_machine() {
    let upstream = Upstream::bind().await;
    let port = upstream.address.port();
    let mut pillion = db([upstream.address]).start().await;
    let (egress, admin) = (pillion.egress().port(), pillion.admin().port());
    let pass = format!("connect: {{ unknown: pass, ports: [{port}, {egress}, {admin}] }}");
    pillion.change_config(OPEN, &pass).await;
    for host in ["127.0.0.1", "127.8.9.10", "0.0.0.0", "[::1]", "[::]", "[::ffff:127.0.0.1]", "localhost"] {
        for port in [port, egress, admin] {
            let (status, reason, text) = refused(&pillion, &asks_for(&format!("{host}:{port}"))).await;
            assert_eq!((status, &reason[..]), (403, "destination_refused"), "{host}: {text}");
            assert!(text.contains("is this machine itself"), "{host}: {text}");
        }
    }
    let (status, reason, text) = refused(&pillion, &asks_for("192.0.2.1:22")).await;
    assert_eq!((status, &reason[..]), (403, "destination_refused"));
    assert!(text.contains("`connect.ports` has no 22"), "{text}");
    let (status, reason, _) = refused(&pillion, &asks_for(&format!("nobody.invalid:{port}"))).await;
    assert_eq!((status, &reason[..]), (502, "connect_failed"));
    assert!(upstream.is_left_alone());
    // Services are reached as before, on any port.
    through(&pillion, "db:22", &upstream).await;
}

#[tokio::test]
async fn only_listeners_that_say_so_take_it_and_only_over_http_1() {
    let upstream = Upstream::bind().await;
    let pillion = db([upstream.address]).listener("closed", "protocol: http").start().await;
    let mut client = Peer::connect(pillion.address("closed")).await;
    client.send(asks_for("db:1")).await;
    assert_eq!(client.response().await.error(), (501, Some("unsupported")));
    client.closed().await;
    let client = Client::connect(pillion.egress()).await;
    let request = Request::builder().method(Method::CONNECT).uri("db:1").body(()).unwrap();
    let (response, _stream) = client.start(request, false).await;
    let answer = http2_peer::collect(response).await.unwrap();
    assert_eq!((answer.status.as_u16(), &answer.headers["x-pillion-error"]), (501, &"unsupported".parse().unwrap()));
    assert!(String::from_utf8_lossy(&answer.body).contains("over HTTP/1"));
    assert!(upstream.is_left_alone());
}

#[tokio::test]
async fn whoever_goes_takes_the_other_side_along() {
    let upstream = Upstream::bind().await;
    let pillion = db([upstream.address]).start().await;
    let (client, mut server) = through(&pillion, "db:1", &upstream).await;
    client.reset();
    assert!(!server.fill().await);
    let (mut client, server) = through(&pillion, "db:1", &upstream).await;
    server.reset();
    assert!(!client.fill().await);
    for outcome in ["upstream_closed", "downstream_closed"] {
        pillion.until_metric("pillion_tcp_closed_total", &[&format!("outcome=\"{outcome}\"")], 1.0).await;
    }
    pillion.until_metric("pillion_tcp_connections", &["service=\"db\""], 0.0).await;
    pillion.until_free().await;
}

#[tokio::test]
async fn tunnels_have_the_limits_of_connections() {
    let (upstream, gone) = (Upstream::bind().await, Upstream::bind().await);
    let pillion = db([upstream.address])
        .instances("leaving", [gone.address])
        .service("db: { tcp: { idle_timeout: 1s } }")
        .service("leaving: { guard: { enabled: false }, tcp: { when_gone: cut } }")
        .start()
        .await;
    let (mut client, _server) = through(&pillion, "db:1", &upstream).await;
    let start = Instant::now();
    client.closed().await;
    assert!(start.elapsed().as_millis() >= 900, "{:?}", start.elapsed());
    pillion.until_metric("pillion_tcp_closed_total", &["outcome=\"idle_timeout\""], 1.0).await;
    let (mut client, _server) = through(&pillion, "leaving:1", &gone).await;
    pillion.write_instances(&format!("services:\n  db: [{}]\n  leaving: []\n", upstream.address));
    client.closed().await;
    pillion.until_metric("pillion_tcp_closed_total", &["outcome=\"endpoint_gone\""], 1.0).await;
}

#[tokio::test]
async fn nothing_is_left_of_many() {
    let upstream = Upstream::bind().await;
    let pillion = db([upstream.address]).instances("user-service", [upstream.address]).start().await;
    let tasks = pillion.idle_tasks().await;
    for round in 0..200 {
        let (mut client, mut server) = through(&pillion, "db:1", &upstream).await;
        client.send("x").await;
        server.take(1).await;
        match round % 3 {
            0 => drop((client, server)),
            1 => client.reset(),
            _ => server.reset(),
        }
    }
    pillion.until_metric("pillion_tcp_connections", &["service=\"db\""], 0.0).await;
    pillion.until_free().await;
    pillion.until_metric("pillion_tasks", &[], tasks).await;
}

/// With pillion as their proxy, clients name the whole URL.
#[tokio::test]
async fn an_upgrade_may_be_asked_for_by_its_whole_url() {
    let upstream = Upstream::bind().await;
    let pillion = db([upstream.address]).start().await;
    let mut client = pillion.connect().await;
    let fields = "host: db\r\nproxy-connection: keep-alive\r\nconnection: upgrade\r\nupgrade: websocket\r\n";
    client.send(format!("GET http://db:8080/chat HTTP/1.1\r\n{fields}\r\n")).await;
    let mut server = upstream.accept().await;
    let request = server.head().await;
    assert_eq!(request.start, "GET /chat HTTP/1.1");
    assert_eq!((request.get("host"), request.get("upgrade")), (Some("db:8080"), Some("websocket")));
    assert_eq!(request.get("proxy-connection"), None);
    server.send("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nhello").await;
    assert_eq!(client.head().await.status(), 101);
    assert_eq!(timeout(PATIENCE, client.take(5)).await.unwrap(), b"hello");
}
