//! HTTP/2 upstreams: what goes to them, and how many connections it takes.

use crate::{
    http2_peer::{Client, Exchange, H2Upstream, ServerConnection, collect, read, request, send_all, soon},
    peer::{Upstream, get, post},
    pillion::{Pillion, Setup},
};
use bytes::Bytes;
use futures_util::future::join_all;
use h2::{RecvStream, SendStream};
use http::{HeaderMap, HeaderValue, Request, Response, Version};
use std::time::Duration;

fn trailers(name: &'static str, value: &'static str) -> HeaderMap {
    HeaderMap::from_iter([(name.parse().unwrap(), HeaderValue::from_static(value))])
}

#[tokio::test]
async fn an_http_1_request_becomes_http_2_with_its_trailers() {
    let upstream = H2Upstream::bind().await;
    let pillion = Setup::users([upstream.instance()]).start().await;
    let mut client = pillion.connect().await;
    client
        .send(
            "POST /p?q HTTP/1.1\r\nhost: user-service:8080\r\nconnection: x-mine\r\nx-mine: 1\r\nte: trailers, gzip\r\n\
             transfer-encoding: chunked\r\nX-Case: A\r\n\r\n5\r\nhello\r\n0\r\nx-sum: 5\r\n\r\n",
        )
        .await;
    let mut connection = upstream.accept().await;
    let mut exchange = connection.next().await;
    let seen = &exchange.request;
    assert_eq!((seen.method.as_str(), seen.uri.path_and_query().unwrap().as_str()), ("POST", "/p?q"));
    assert_eq!((seen.uri.authority().unwrap().as_str(), seen.version), ("user-service:8080", Version::HTTP_2));
    for gone in ["host", "connection", "x-mine", "transfer-encoding"] {
        assert!(!seen.headers.contains_key(gone), "{gone}");
    }
    assert_eq!(
        (&seen.headers["te"], &seen.headers["x-case"]),
        (&HeaderValue::from_static("trailers"), &HeaderValue::from_static("A"))
    );
    assert_eq!(seen.headers["x-forwarded-host"], "user-service:8080");
    let (body, sent) = read(&mut exchange.body).await.unwrap();
    assert_eq!((body.as_slice(), &sent.unwrap()["x-sum"]), (&b"hello"[..], &HeaderValue::from_static("5")));
    let mut stream = exchange.respond.send_response(Response::builder().status(201).body(()).unwrap(), false).unwrap();
    stream.send_data("done".into(), false).unwrap();
    stream.send_trailers(trailers("x-status", "fine")).unwrap();
    let response = client.response().await;
    assert_eq!((response.status(), response.text().as_str()), (201, "done"));
    assert_eq!(response.trailers, [("x-status".to_owned(), "fine".to_owned())]);
    // HEAD, 204, and a length that is known.
    for (request, status, length, expected) in [
        ("HEAD / HTTP/1.1", 200, Some("7"), Some("7")),
        ("GET / HTTP/1.1", 204, None, None),
        ("GET / HTTP/1.1", 304, Some("7"), Some("7")),
        ("GET / HTTP/1.1", 200, Some("0"), Some("0")),
    ] {
        client.send(format!("{request}\r\nhost: user-service\r\n\r\n")).await;
        let mut exchange = connection.next().await;
        let mut response = Response::builder().status(status);
        if let Some(length) = length {
            response = response.header("content-length", length);
        }
        exchange.respond.send_response(response.body(()).unwrap(), true).unwrap();
        let head = client.head().await;
        assert_eq!((head.status(), head.get("content-length")), (status, expected), "{request} {status}");
        assert_eq!(head.get("transfer-encoding"), None);
    }
}

/// A stream on which both sides have begun to talk.
struct BothWays {
    up: SendStream<Bytes>,
    exchange: Exchange,
    down: SendStream<Bytes>,
    body: RecvStream,
    #[allow(dead_code, reason = "held for their drops")]
    held: (Pillion, Client, ServerConnection),
}

impl BothWays {
    async fn open() -> Self {
        let upstream = H2Upstream::bind().await;
        let pillion = Setup::users([upstream.instance()]).start().await;
        let client = Client::connect(pillion.egress()).await;
        let (response, up) = client.start(request("POST", "/bidi"), false).await;
        let mut connection = upstream.accept().await;
        let mut exchange = connection.next().await;
        let down = exchange.respond.send_response(Response::new(()), false).unwrap();
        let body = soon("a response", response).await.unwrap().into_body();
        Self { up, exchange, down, body, held: (pillion, client, connection) }
    }
}

#[tokio::test]
async fn both_sides_of_a_stream_flow_at_once() {
    let BothWays { mut up, mut exchange, mut down, mut body, held: _held } = BothWays::open().await;
    for n in 0..20 {
        up.send_data(format!("ping {n}").into(), false).unwrap();
        assert_eq!(soon("a ping", exchange.body.data()).await.unwrap().unwrap(), format!("ping {n}"));
        down.send_data(format!("pong {n}").into(), false).unwrap();
        assert_eq!(soon("a pong", body.data()).await.unwrap().unwrap(), format!("pong {n}"));
    }
    // The client ends its side; the server still talks.
    up.send_trailers(trailers("x-up", "1")).unwrap();
    assert_eq!(read(&mut exchange.body).await.unwrap().1.unwrap()["x-up"], "1");
    down.send_data("last".into(), false).unwrap();
    down.send_trailers(trailers("grpc-status", "0")).unwrap();
    let (rest, end) = read(&mut body).await.unwrap();
    assert_eq!((rest.as_slice(), &end.unwrap()["grpc-status"]), (&b"last"[..], &HeaderValue::from_static("0")));
}

#[tokio::test]
async fn a_response_that_is_not_read_does_not_keep_the_request_from_flowing() {
    let BothWays { mut up, mut exchange, mut down, body, held: _held } = BothWays::open().await;
    // More than all windows on the way hold; the client takes none of it.
    let mut flood = tokio::spawn(async move { send_all(&mut down, Bytes::from(vec![b'x'; 8 << 20]), true).await });
    let stuck = tokio::time::timeout(Duration::from_millis(300), &mut flood).await;
    assert!(stuck.is_err(), "nobody reads it");
    for n in 0..20 {
        let said = format!("said {n}");
        up.send_data(said.clone().into(), false).unwrap();
        let heard = soon("what the client said", exchange.body.data()).await.unwrap().unwrap();
        exchange.body.flow_control().release_capacity(heard.len()).unwrap();
        assert_eq!(heard, said);
    }
    flood.abort();
    drop(body);
}

#[tokio::test]
async fn grpc_needs_no_word_from_the_registry_to_be_http_2() {
    let (plain, upstream) = (Upstream::bind().await, H2Upstream::bind().await);
    drop(plain);
    let address = upstream.instance().replace(", protocol: http2", "");
    let pillion = Setup::users([address]).start().await;
    let client = Client::connect(pillion.egress()).await;
    let call = Request::post("http://user-service/a.B/C").header("content-type", "application/grpc").body(()).unwrap();
    let (response, _) = client.start(call, true).await;
    let mut connection = upstream.accept().await;
    let mut exchange = connection.next().await;
    // Trailers only.
    let only = Response::builder().header("grpc-status", "5").body(()).unwrap();
    exchange.respond.send_response(only, true).unwrap();
    let answer = collect(response).await.unwrap();
    assert_eq!((&answer.headers["grpc-status"], answer.trailers), (&HeaderValue::from_static("5"), None));
}

#[tokio::test]
async fn one_connection_is_opened_however_many_requests_start_at_once() {
    let upstream = H2Upstream::bind().await;
    let pillion = Setup::users([upstream.instance()]).start().await;
    let mut clients = Vec::new();
    for _ in 0..50 {
        clients.push(pillion.connect().await);
    }
    join_all(clients.iter_mut().map(|client| client.send(get("/")))).await;
    let mut connection = upstream.accept().await;
    let mut exchanges = Vec::new();
    for _ in 0..50 {
        exchanges.push(connection.next().await);
    }
    assert!(upstream.is_left_alone());
    for exchange in exchanges {
        exchange.ok("ok");
    }
    for client in &mut clients {
        assert_eq!(client.response().await.text(), "ok");
    }
    assert_eq!(pillion.metric("pillion_pool_opened_total", &[]).await, 1.0);
}

#[tokio::test]
async fn a_further_connection_is_opened_when_the_streams_of_the_first_are_used_up() {
    let upstream = H2Upstream::bind().await;
    let pillion = Setup::users([upstream.instance()]).start().await;
    let mut few = h2::server::Builder::new();
    few.max_concurrent_streams(10);
    // All start at once, before the upstream has said how many it takes.
    let mut clients = Vec::new();
    for _ in 0..25 {
        clients.push(pillion.connect().await);
    }
    join_all(clients.iter_mut().map(|client| client.send(get("/")))).await;
    let (mut exchanges, mut connections) = (Vec::new(), Vec::new());
    for expected in [10, 10, 5] {
        let mut connection = upstream.accept_as(&few).await;
        for _ in 0..expected {
            exchanges.push(connection.next().await);
        }
        connections.push(connection);
    }
    assert!(upstream.is_left_alone() && connections.iter_mut().all(|connection| connection.is_quiet()));
    // The last one has room for more.
    let mut next = pillion.connect().await;
    next.send(post("/next", "x")).await;
    let late = soon("the next request", async {
        let waits = connections.iter_mut().map(|connection| Box::pin(connection.try_next()));
        futures_util::future::select_all(waits).await.0.unwrap()
    });
    late.await.ok("next");
    assert_eq!(next.response().await.text(), "next");
    assert!(upstream.is_left_alone());
    for exchange in exchanges {
        exchange.ok("ok");
    }
    for client in &mut clients {
        assert_eq!(client.response().await.status(), 200);
    }
}

#[tokio::test]
async fn an_upstream_that_speaks_something_else_is_an_upstream_s_error() {
    let upstream = Upstream::bind().await;
    let pillion = Setup::users([format!("{{ address: {}, protocol: http2 }}", upstream.address)]).start().await;
    for answer in ["HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\r\n", ""] {
        let mut client = pillion.connect().await;
        client.send(post("/", "order")).await;
        let mut server = upstream.accept().await;
        server.take(24).await;
        server.send(answer).await;
        drop(server);
        let response = client.response().await;
        assert_eq!(response.status(), 502, "{}", response.text());
    }
}

#[tokio::test]
async fn a_connection_that_nobody_waits_for_any_more_is_no_trap_for_the_next_request() {
    let upstream = Upstream::bind().await;
    let instance = format!("{{ address: {}, protocol: http2 }}", upstream.address);
    let pillion = Setup::users([instance]).service("user-service: { timeouts: { connect: 400ms } }").start().await;
    // It connects, and says nothing.
    let mut first = pillion.connect().await;
    first.send(get("/")).await;
    let mut silent = upstream.accept().await;
    drop(first);
    pillion.until_metric("pillion_requests_in_flight", &[], 0.0).await;
    // Until it is given up.
    silent.rest().await;
    let mut next = pillion.connect().await;
    next.send(get("/")).await;
    let fresh = upstream.accept().await;
    drop((silent, fresh));
    assert_eq!(next.response().await.status(), 502);
}

/// A server resets what has taken too long by the time that it was told, and may be heard before pillion looks at its own clock:
/// here pillion stands still meanwhile.
#[tokio::test]
async fn what_the_upstream_gives_up_at_the_deadline_is_past_its_deadline() {
    let upstream = H2Upstream::bind().await;
    let pillion = Setup::users([upstream.instance()]).start().await;
    let client = Client::connect(pillion.egress()).await;
    let mut connection = None;
    for (timeout, past) in [("5S", true), ("60S", false)] {
        let call = Request::post("http://user-service/a.B/C").header("content-type", "application/grpc");
        let (response, _) = client.start(call.header("grpc-timeout", timeout).body(()).unwrap(), true).await;
        if connection.is_none() {
            connection = Some(upstream.accept().await);
        }
        let mut exchange = connection.as_mut().unwrap().next().await;
        if past {
            pillion.signal("STOP").await;
            tokio::time::sleep(Duration::from_secs(5)).await;
            exchange.respond.send_reset(h2::Reason::CANCEL);
            // Until that is there.
            tokio::time::sleep(Duration::from_millis(500)).await;
            pillion.signal("CONT").await;
        } else {
            exchange.respond.send_reset(h2::Reason::CANCEL);
        }
        let answer = soon("a response", collect(response)).await.unwrap();
        let found = ["grpc-status", "x-pillion-error"].map(|name| answer.headers[name].to_str().unwrap());
        let expected = if past { ["4", "deadline_exceeded"] } else { ["14", "upstream_closed"] };
        assert_eq!(found, expected, "{timeout}");
    }
}
