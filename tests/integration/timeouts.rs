//! Whoever waits for too long is told so, and whoever leaves leaves nothing behind.

use crate::{
    http2_peer::H2Upstream,
    peer::{Upstream, get, ok, post, timed},
    pillion::Setup,
};
use std::{net::SocketAddr, time::Duration};
use tokio::{
    io::AsyncWriteExt,
    net::{TcpSocket, TcpStream},
    time::{Instant, timeout},
};

const MS: Duration = Duration::from_millis(1);

/// Sooner than any other limit that there is, and long after the one that is looked at: a busy machine is late.
const LATE: Duration = Duration::from_secs(12);

/// A listening socket that accepts nothing and whose queue is full, so that connecting to it takes for ever.
struct BlackHole {
    address: SocketAddr,
    #[allow(dead_code, reason = "held for their drops")]
    held: (tokio::net::TcpListener, Vec<TcpStream>),
}

impl BlackHole {
    async fn open() -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(1).unwrap();
        let address = listener.local_addr().unwrap();
        let mut waiting = Vec::new();
        while let Ok(Ok(stream)) = timeout(200 * MS, TcpStream::connect(address)).await {
            waiting.push(stream);
            assert!(waiting.len() < 100, "the queue has no end");
        }
        Self { address, held: (listener, waiting) }
    }
}

#[tokio::test]
async fn a_connection_that_does_not_come_about_is_given_up() {
    let hole = BlackHole::open().await;
    let pillion = Setup::users([hole.address]).service("user-service: { timeouts: { connect: 300ms } }").start().await;
    let mut client = pillion.connect().await;
    let (status, error, took) = timed(&mut client, get("/")).await;
    assert_eq!((status, error.as_deref()), (504, Some("connect_timeout")));
    assert!((300 * MS..LATE).contains(&took), "{took:?}");
}

#[tokio::test]
async fn the_request_s_own_time_bounds_connecting_too() {
    let hole = BlackHole::open().await;
    let settings = "user-service: { timeouts: { connect: 1m, request: 300ms } }";
    let pillion = Setup::users([hole.address]).service(settings).start().await;
    let mut client = pillion.connect().await;
    let start = Instant::now();
    client.send(get("/")).await;
    let response = client.response().await;
    assert_eq!(response.error(), (504, Some("request_timeout")));
    assert!(response.text().contains("no response in 300ms"), "not the caller's deadline: {}", response.text());
    assert!((300 * MS..LATE).contains(&start.elapsed()), "{:?}", start.elapsed());
}

#[tokio::test]
async fn another_endpoint_is_tried_after_a_connect_timeout() {
    let (hole, upstream) = (BlackHole::open().await, Upstream::bind().await.answering(|_| ok("ok")));
    let pillion = Setup::users([hole.address, upstream.address])
        .service("user-service: { timeouts: { connect: 100ms }, balance: { policy: round-robin } }")
        .start()
        .await;
    let mut client = pillion.connect().await;
    for _ in 0..4 {
        assert_eq!(timed(&mut client, post("/", "x")).await.0, 200);
    }
    // It is the first one's turn again after each try of the second.
    let retries = pillion.metric("pillion_retries_total", &["reason=\"connect_timeout\""]).await;
    assert!(retries >= 3.0, "{retries}");
}

#[tokio::test]
async fn a_caller_s_deadline_holds_while_connecting_too() {
    let hole = BlackHole::open().await;
    let pillion = Setup::users([hole.address]).service("user-service: { timeouts: { connect: 1m } }").start().await;
    let mut client = pillion.connect().await;
    let request = "GET / HTTP/1.1\r\nhost: user-service\r\nx-request-timeout: 300ms\r\n\r\n";
    let (status, error, took) = timed(&mut client, request.into()).await;
    assert_eq!((status, error.as_deref()), (504, Some("deadline_exceeded")));
    assert!((300 * MS..LATE).contains(&took), "{took:?}");
}

#[tokio::test]
async fn a_response_that_does_not_begin_is_given_up() {
    let upstream = Upstream::bind().await;
    let pillion = Setup::users([upstream.address]).service("user-service: { timeouts: { request: 3s } }").start().await;
    let mut client = pillion.connect().await;
    let start = Instant::now();
    client.send(get("/")).await;
    let mut server = upstream.accept().await;
    server.request().await;
    // An interim response, or a piece of the head, is not the response.
    server.send("HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\n").await;
    let response = client.response().await;
    assert_eq!(response.error(), (504, Some("request_timeout")));
    assert!((3000 * MS..LATE).contains(&start.elapsed()), "{:?}", start.elapsed());
    // The upstream is told by the end of its connection; the client may go on.
    server.closed().await;
    client.send(get("/")).await;
    let mut server = upstream.accept().await;
    server.request().await;
    server.send(ok("ok")).await;
    assert_eq!(client.response().await.text(), "ok");
    assert_eq!(pillion.metric("pillion_retries_total", &[]).await, 0.0);
}

#[tokio::test]
async fn a_caller_can_ask_for_less_time_and_it_is_passed_on_reduced() {
    let upstream = Upstream::bind().await;
    let pillion = Setup::users([upstream.address]).start().await;
    let mut client = pillion.connect().await;
    let mut server = None;
    for asked in ["3s", "3000"] {
        let start = Instant::now();
        client.send(format!("GET / HTTP/1.1\r\nhost: user-service\r\nx-request-timeout: {asked}\r\n\r\n")).await;
        let mut next = upstream.accept().await;
        let seen = next.request().await;
        let left: u64 = seen.get("x-request-timeout").unwrap().strip_suffix("ms").unwrap().parse().unwrap();
        assert!((1..3000).contains(&left), "{asked}: {left}");
        assert_eq!(client.response().await.error(), (504, Some("deadline_exceeded")), "{asked}");
        assert!((3000 * MS..LATE).contains(&start.elapsed()), "{asked}: {:?}", start.elapsed());
        server = Some(next);
    }
    drop(server);
    client.send("GET / HTTP/1.1\r\nhost: user-service\r\nx-request-timeout: soon\r\n\r\n").await;
    assert_eq!(client.response().await.error(), (400, Some("bad_request")));
    assert!(upstream.is_left_alone());
}

#[tokio::test]
async fn a_caller_cannot_ask_for_more_time() {
    let upstream = Upstream::bind().await;
    let pillion = Setup::users([upstream.address]).service("user-service: { timeouts: { request: 3s } }").start().await;
    let mut client = pillion.connect().await;
    let start = Instant::now();
    client.send("GET / HTTP/1.1\r\nhost: user-service\r\nx-request-timeout: 60s\r\n\r\n").await;
    let mut server = upstream.accept().await;
    server.request().await;
    assert_eq!(client.response().await.error(), (504, Some("request_timeout")));
    assert!(start.elapsed() < LATE, "{:?}", start.elapsed());
}

#[tokio::test]
async fn a_response_that_stalls_is_cut_off() {
    let upstream = Upstream::bind().await;
    let pillion = Setup::users([upstream.address]).service("user-service: { timeouts: { idle: 3s } }").start().await;
    let mut client = pillion.connect().await;
    client.send(get("/")).await;
    let mut server = upstream.accept().await;
    server.request().await;
    server.send("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n").await;
    client.head().await;
    // As long as something moves it may take as long as it likes.
    let mut start = Instant::now();
    for _ in 0..6 {
        tokio::time::sleep(700 * MS).await;
        start = Instant::now();
        server.send("x").await;
        assert_eq!(client.take(1).await, b"x");
    }
    client.closed().await;
    assert!((2500 * MS..LATE).contains(&start.elapsed()), "{:?}", start.elapsed());
    server.closed().await;
    pillion.until_metric("pillion_errors_total", &["reason=\"idle_timeout\""], 1.0).await;
    pillion.until_free().await;
}

#[tokio::test]
async fn a_response_does_not_stall_while_its_request_still_moves() {
    let upstream = Upstream::bind().await;
    let pillion = Setup::users([upstream.address]).service("user-service: { timeouts: { idle: 3s } }").start().await;
    let mut client = pillion.connect().await;
    client.send("POST / HTTP/1.1\r\nhost: user-service\r\ncontent-length: 8\r\n\r\n").await;
    let mut server = upstream.accept().await;
    server.head().await;
    server.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n").await;
    client.head().await;
    for _ in 0..8 {
        tokio::time::sleep(600 * MS).await;
        client.send("x").await;
        assert_eq!(server.take(1).await, b"x");
    }
    server.send("ok").await;
    assert_eq!(client.take(2).await, b"ok");
}

#[tokio::test]
async fn a_request_that_stalls_is_cut_off() {
    let upstream = Upstream::bind().await;
    let pillion = Setup::users([upstream.address]).service("user-service: { timeouts: { idle: 1s } }").start().await;
    let mut client = pillion.connect().await;
    client.send("POST / HTTP/1.1\r\nhost: user-service\r\ncontent-length: 10\r\n\r\nhello").await;
    let mut server = upstream.accept().await;
    server.head().await;
    assert_eq!(server.take(5).await, b"hello");
    assert_eq!(client.response().await.error(), (504, Some("idle_timeout")));
    client.closed().await;
    server.closed().await;
    pillion.until_free().await;
}

#[tokio::test]
async fn a_client_that_leaves_frees_everything() {
    let upstream = Upstream::bind().await;
    let pillion = Setup::users([upstream.address]).start().await;
    // Before the response, and in the middle of it.
    for response in ["", "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello"] {
        for reset in [false, true] {
            let mut client = pillion.connect().await;
            client.send(get("/")).await;
            let mut server = upstream.accept().await;
            server.request().await;
            if !response.is_empty() {
                server.send(response).await;
                client.head().await;
                client.take(5).await;
            }
            pillion.until_metric("pillion_requests_in_flight", &[], 1.0).await;
            if reset {
                client.reset();
            } else {
                drop(client);
            }
            server.closed().await;
            pillion.until_free().await;
        }
    }
    pillion.until_metric("pillion_errors_total", &["reason=\"downstream_closed\""], 4.0).await;
    assert_eq!(pillion.metric("pillion_pool_connections", &[]).await, 0.0);
}

#[tokio::test]
async fn an_idle_client_is_closed_after_its_time() {
    let upstream = Upstream::bind().await.answering(|_| ok("ok"));
    let pillion = Setup::users([upstream.address]).egress("limits: { idle_timeout: 3s }").start().await;
    let mut silent = pillion.connect().await;
    let mut client = pillion.connect().await;
    let start = Instant::now();
    client.send(get("/")).await;
    client.response().await;
    client.closed().await;
    silent.closed().await;
    assert!((2900 * MS..LATE).contains(&start.elapsed()), "{:?}", start.elapsed());
    pillion.until_free().await;
}

#[tokio::test]
async fn a_response_that_never_ends_is_ended_by_the_stream_s_time() {
    let upstream = Upstream::bind().await;
    let settings = "user-service: { timeouts: { stream: 3s } }";
    let pillion = Setup::users([upstream.address]).service(settings).start().await;
    let mut client = pillion.connect().await;
    let start = Instant::now();
    client.send(get("/")).await;
    let mut server = upstream.accept().await;
    server.request().await;
    server.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await;
    // A byte every now and then until it is cut.
    let trickle = async {
        loop {
            if server.stream.write_all(b"1\r\nx\r\n").await.is_err() {
                return;
            }
            tokio::time::sleep(20 * MS).await;
        }
    };
    let (cut, ()) = tokio::join!(client.try_response(), trickle);
    assert!(cut.is_err(), "{cut:?}");
    assert!((3000 * MS..LATE).contains(&start.elapsed()), "{:?}", start.elapsed());
    pillion.until_metric("pillion_errors_total", &["reason=\"stream_timeout\""], 1.0).await;
    pillion.until_free().await;
}

#[tokio::test]
async fn an_idle_upstream_connection_is_closed_after_its_time() {
    let upstream = Upstream::bind().await;
    let pillion =
        Setup::users([upstream.address]).service("user-service: { pool: { idle_timeout: 300ms } }").start().await;
    let mut client = pillion.connect().await;
    client.send(get("/")).await;
    let mut server = upstream.accept().await;
    server.request().await;
    server.send(ok("ok")).await;
    client.response().await;
    server.closed().await;
    pillion.until_metric("pillion_pool_closed_total", &["reason=\"idle\""], 1.0).await;
}

#[tokio::test]
async fn an_http_2_upstream_connection_is_counted_by_what_it_does() {
    let upstream = H2Upstream::bind().await;
    let settings = "user-service: { pool: { idle_timeout: 5s } }";
    let pillion = Setup::users([upstream.instance()]).service(settings).start().await;
    let mut client = pillion.connect().await;
    client.send(get("/")).await;
    let mut server = upstream.accept().await;
    let exchange = server.next().await;
    let counted = async |state: &str| pillion.metric("pillion_pool_connections", &[state]).await;
    assert_eq!((counted("state=\"active\"").await, counted("state=\"idle\"").await), (1.0, 0.0));
    exchange.ok("ok");
    client.response().await;
    pillion.until_metric("pillion_pool_connections", &["state=\"idle\""], 1.0).await;
    assert!(server.try_next().await.is_none(), "closed after its time");
    pillion.until_metric("pillion_pool_closed_total", &["reason=\"idle\""], 1.0).await;
    assert_eq!(pillion.metric("pillion_pool_connections", &[]).await, 0.0);
}

#[tokio::test]
async fn requests_in_progress_end_when_the_program_is_asked_to_stop() {
    let upstream = Upstream::bind().await;
    let pillion = Setup::users([upstream.address]).start().await;
    let (mut client, mut idle) = (pillion.connect().await, pillion.connect().await);
    client.send(get("/")).await;
    let mut server = upstream.accept().await;
    server.request().await;
    let egress = pillion.egress();
    let finish = async {
        idle.closed().await;
        // No new connections; idle ones may hear of it a moment earlier.
        while TcpStream::connect(egress).await.is_ok() {
            tokio::time::sleep(MS).await;
        }
        server.send(ok("done")).await;
        let response = client.response().await;
        assert_eq!((response.text().as_str(), response.get("connection")), ("done", Some("close")));
        client.closed().await;
    };
    tokio::join!(pillion.stop(), finish);
}
