//! HTTP/2 clients with prior knowledge, mostly in front of HTTP/1.1 upstreams.

use crate::{
    http2_peer::{
        Client, END_HEADERS, END_STREAM, GOAWAY, H2Upstream, HEADERS, RST_STREAM, SETTINGS, collect, frame, read,
        request, send_all, soon,
    },
    peer::{Answering, Peer, Upstream, ok},
    pillion::Setup,
};
use bytes::Bytes;
use futures_util::future::join_all;
use http::{HeaderMap, HeaderValue, Request, Response};
use std::time::Duration;
use tokio::io::AsyncWriteExt;

#[tokio::test]
async fn many_requests_share_a_connection() {
    let upstream = Upstream::bind().await.answering(|request| ok(&format!("{} {}", request.start, request.text())));
    let pillion = Setup::users([upstream.address]).start().await;
    let client = Client::connect(pillion.egress()).await;
    let all = join_all((0..500).map(async |n| {
        let (path, body) = (format!("/{n}"), format!("body {n}"));
        if n % 2 == 0 {
            assert_eq!(client.get(&path).await.unwrap().text(), format!("GET {path} HTTP/1.1 "));
        } else {
            assert_eq!(client.post(&path, &body).await.unwrap().text(), format!("POST {path} HTTP/1.1 {body}"));
        }
    }));
    all.await;
    assert_eq!(pillion.metric("pillion_connections_accepted_total", &[]).await, 1.0);
    drop(client);
    pillion.until_free().await;
}

#[tokio::test]
async fn a_request_becomes_http_1_and_its_response_http_2() {
    let mut upstream = Upstream::bind().await.answering(|_| {
        "HTTP/1.1 200 OK\r\nconnection: x-private\r\nx-private: 1\r\nkeep-alive: timeout=5\r\nx-a: b\r\n\
         transfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nx-status: fine\r\n\r\n"
            .into()
    });
    let pillion = Setup::users([upstream.address]).start().await;
    let client = Client::connect(pillion.egress()).await;
    let request = Request::post("http://user-service:80/p?q")
        .header("cookie", "a=1")
        .header("cookie", "b=2")
        .header("te", "trailers")
        .body(())
        .unwrap();
    let (response, mut stream) = client.start(request, false).await;
    stream.send_data("hello".into(), false).unwrap();
    stream.send_trailers(HeaderMap::from_iter([("x-sum".parse().unwrap(), HeaderValue::from_static("5"))])).unwrap();
    let answer = collect(response).await.unwrap();
    assert_eq!(
        (answer.status.as_u16(), answer.text().as_str(), &answer.headers["x-a"]),
        (200, "ok", &HeaderValue::from_static("b"))
    );
    for gone in ["connection", "x-private", "keep-alive", "transfer-encoding"] {
        assert!(!answer.headers.contains_key(gone), "{gone}");
    }
    assert_eq!(answer.trailers.unwrap()["x-status"], "fine");
    let seen = upstream.seen().await;
    assert_eq!(seen.start, "POST /p?q HTTP/1.1");
    assert_eq!((seen.get("host"), seen.get("x-forwarded-host")), (Some("user-service:80"), Some("user-service:80")));
    assert_eq!((seen.get("x-forwarded-for"), seen.get("x-forwarded-proto")), (Some("127.0.0.1"), Some("http")));
    assert_eq!((seen.get("transfer-encoding"), seen.get("te")), (Some("chunked"), Some("trailers")));
    assert_eq!((seen.text().as_str(), seen.trailers), ("hello", vec![("x-sum".to_owned(), "5".to_owned())]));
    // HTTP/1.1 knows one field only (RFC 9113, section 8.2.3).
    assert_eq!(
        seen.fields.iter().filter(|(name, _)| name == "cookie").map(|(_, v)| v.as_str()).collect::<Vec<_>>(),
        ["a=1; b=2"]
    );
}

#[tokio::test]
async fn head_204_304_and_a_known_length() {
    let mut upstream = Upstream::bind().await.answering(|request| match request.start.as_str() {
        "GET /204 HTTP/1.1" => "HTTP/1.1 204 No Content\r\n\r\n".into(),
        "GET /304 HTTP/1.1" => "HTTP/1.1 304 Not Modified\r\ncontent-length: 7\r\n\r\n".into(),
        "HEAD / HTTP/1.1" => "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n".into(),
        _ => ok("five5"),
    });
    let pillion = Setup::users([upstream.address]).start().await;
    let client = Client::connect(pillion.egress()).await;
    for (method, path, status, length, body) in [
        ("GET", "/204", 204, None, ""),
        ("GET", "/304", 304, Some("7"), ""),
        ("HEAD", "/", 200, Some("5"), ""),
        ("GET", "/", 200, Some("5"), "five5"),
    ] {
        let (response, _) = client.start(request(method, path), true).await;
        let answer = collect(response).await.unwrap();
        let told = answer.headers.get("content-length").map(|length| length.to_str().unwrap());
        assert_eq!((answer.status.as_u16(), told, answer.text().as_str()), (status, length, body), "{method} {path}");
    }
    // A request without a body does not get chunks.
    let seen = upstream.unseen();
    assert!(seen.iter().all(|request| request.get("transfer-encoding").is_none()), "{seen:?}");
}

#[tokio::test]
async fn pillion_s_own_answers_and_connect() {
    let pillion = Setup::users(["127.0.0.1:1"]).start().await;
    let client = Client::connect(pillion.egress()).await;
    let (response, _) = client.start(Request::get("http://nobody/").body(()).unwrap(), true).await;
    let answer = collect(response).await.unwrap();
    assert_eq!(
        (answer.status.as_u16(), &answer.headers["x-pillion-error"]),
        (404, &HeaderValue::from_static("unknown_service"))
    );
    let answer = client.get("/").await.unwrap();
    assert_eq!(
        (answer.status.as_u16(), &answer.headers["x-pillion-error"]),
        (502, &HeaderValue::from_static("connect_failed"))
    );
    let grpc = Request::post("http://user-service/a.B/C").header("content-type", "application/grpc").body(()).unwrap();
    let (response, _) = client.start(grpc, true).await;
    let answer = collect(response).await.unwrap();
    assert_eq!((answer.status.as_u16(), &answer.headers["grpc-status"]), (200, &HeaderValue::from_static("14")));
    let connect = Request::connect("user-service:80").body(()).unwrap();
    let (response, _) = client.start(connect, false).await;
    assert_eq!(collect(response).await.unwrap().status, 501);
}

#[tokio::test]
async fn interim_responses_come_before_the_final_one() {
    let upstream = Upstream::bind().await;
    let pillion = Setup::users([upstream.address]).start().await;
    let client = Client::connect(pillion.egress()).await;
    let (mut response, _) = client.start(request("GET", "/"), true).await;
    let mut server = upstream.accept().await;
    server.request().await;
    server.send("HTTP/1.1 103 Early Hints\r\nlink: </a.css>\r\n\r\n").await;
    let hints = soon("hints", std::future::poll_fn(|cx| response.poll_informational(cx))).await.unwrap().unwrap();
    assert_eq!((hints.status().as_u16(), &hints.headers()["link"]), (103, &HeaderValue::from_static("</a.css>")));
    server.send(ok("page")).await;
    assert_eq!(collect(response).await.unwrap().text(), "page");
}

#[tokio::test]
async fn a_client_that_resets_its_stream_cancels_upstream() {
    let (upstream, modern) = (Upstream::bind().await, H2Upstream::bind().await);
    let pillion = Setup::users([upstream.address]).instances("modern", [modern.instance()]).start().await;
    let client = Client::connect(pillion.egress()).await;
    // Before the response, and in its middle.
    for begun in [false, true] {
        let (mut response, mut stream) = client.start(request("POST", "/"), false).await;
        let mut server = upstream.accept().await;
        server.head().await;
        if begun {
            server.send("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello").await;
            soon("a response", &mut response).await.unwrap();
        }
        stream.send_reset(h2::Reason::CANCEL);
        server.rest().await;
    }
    let mut connection = None;
    for begun in [false, true] {
        let (mut response, mut stream) = client.start(Request::post("http://modern/").body(()).unwrap(), false).await;
        if connection.is_none() {
            connection = Some(modern.accept().await);
        }
        let mut exchange = connection.as_mut().unwrap().next().await;
        let reason = if begun {
            let mut down = exchange.respond.send_response(Response::new(()), false).unwrap();
            soon("a response", &mut response).await.unwrap();
            stream.send_reset(h2::Reason::CANCEL);
            soon("a reset", std::future::poll_fn(|cx| down.poll_reset(cx))).await.unwrap()
        } else {
            stream.send_reset(h2::Reason::CANCEL);
            soon("a reset", std::future::poll_fn(|cx| exchange.respond.poll_reset(cx))).await.unwrap()
        };
        assert!(matches!(reason, h2::Reason::CANCEL | h2::Reason::INTERNAL_ERROR), "{reason:?}");
    }
    pillion.until_metric("pillion_requests_in_flight", &[], 0.0).await;
    pillion.until_metric("pillion_errors_total", &["reason=\"downstream_closed\""], 4.0).await;
    assert_eq!(
        client.send.clone().ready().await.map(drop).map_err(|error| error.to_string()),
        Ok(()),
        "the connection lives"
    );
}

#[tokio::test]
async fn an_upstream_that_cuts_its_response_off_resets_the_stream_only() {
    let upstream = Upstream::bind().await;
    let pillion = Setup::users([upstream.address]).start().await;
    let client = Client::connect(pillion.egress()).await;
    let (response, _) = client.start(request("GET", "/"), true).await;
    let mut server = upstream.accept().await;
    server.request().await;
    server.send("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello").await;
    let mut body = soon("a response", response).await.unwrap().into_body();
    drop(server);
    let error = read(&mut body).await.unwrap_err();
    assert_eq!((error.is_reset(), error.reason()), (true, Some(h2::Reason::INTERNAL_ERROR)));
    let (response, _) = client.start(request("GET", "/"), true).await;
    let mut server = upstream.accept().await;
    server.request().await;
    server.send(ok("fine")).await;
    assert_eq!(collect(response).await.unwrap().text(), "fine");
}

#[tokio::test]
async fn the_first_segment_may_be_one_byte() {
    let upstream = Answering::ok().await;
    let pillion = Setup::users([upstream.address]).start().await;
    // The client writes into a pipe, from which the bytes go on one by one.
    let (mut near, far) = tokio::io::duplex(64 * 1024);
    let mut socket = tokio::net::TcpStream::connect(pillion.egress()).await.unwrap();
    socket.set_nodelay(true).unwrap();
    let relay = tokio::spawn(async move {
        let (mut from_socket, mut to_socket) = socket.split();
        let (mut from_near, mut to_near) = tokio::io::split(&mut near);
        let up = async {
            for _ in 0..120 {
                let Ok(byte) = tokio::io::AsyncReadExt::read_u8(&mut from_near).await else { return };
                to_socket.write_u8(byte).await.unwrap();
                tokio::task::yield_now().await;
            }
            drop(tokio::io::copy(&mut from_near, &mut to_socket).await);
        };
        tokio::join!(up, async { drop(tokio::io::copy(&mut from_socket, &mut to_near).await) });
    });
    let (send, connection) = h2::client::handshake(far).await.unwrap();
    let driver = tokio::spawn(async move { drop(connection.await) });
    let (response, _) = send.ready().await.unwrap().send_request(request("GET", "/"), true).unwrap();
    assert_eq!(collect(response).await.unwrap().text(), "ok");
    driver.abort();
    relay.abort();
    // A method that begins like the preface is HTTP/1.1.
    let mut client = pillion.connect().await;
    client.send("P").await;
    client.send("RI / HTTP/1.1\r\nhost: user-service\r\n\r\n").await;
    assert_eq!(client.response().await.status(), 200);
}

#[tokio::test]
async fn a_client_gets_a_hundred_streams_and_no_more() {
    let upstream = Upstream::bind().await;
    let pillion = Setup::users([upstream.address]).start().await;
    // This one does not wait to be told how many it may open.
    let mut eager = h2::client::Builder::new();
    eager.initial_max_send_streams(1000);
    let client = Client::connect_as(pillion.egress(), &eager).await;
    let mut send = client.send.clone().ready().await.unwrap();
    let started: Vec<_> = (0..150).map(|_| send.send_request(request("GET", "/"), true).unwrap().0).collect();
    let answers = tokio::spawn(join_all(started.into_iter().map(collect)));
    let mut servers = Vec::new();
    for _ in 0..100 {
        servers.push(upstream.accept().await);
    }
    for server in &mut servers {
        server.request().await;
    }
    pillion.until_metric("pillion_requests_in_flight", &[], 100.0).await;
    assert!(upstream.is_left_alone());
    for server in &mut servers {
        server.send(ok("ok")).await;
    }
    let answers = soon("the answers", answers).await.unwrap();
    let refused = |answer: &Result<_, h2::Error>| {
        answer.as_ref().is_err_and(|error| error.reason() == Some(h2::Reason::REFUSED_STREAM))
    };
    assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 100);
    assert_eq!(answers.iter().filter(|answer| refused(answer)).count(), 50);
}

#[tokio::test]
async fn a_client_that_opens_and_resets_streams_without_end_is_cut_off() {
    const ENHANCE_YOUR_CALM: [u8; 4] = [0, 0, 0, 0xb];
    let mut upstream = Answering::ok().await;
    let pillion = Setup::users([upstream.address]).start().await;
    let mut client = pillion.connect().await;
    // `GET /` in HPACK, as short as can be: indexed fields, and a literal `:authority`.
    let head = [&[0x82, 0x86, 0x84, 0x41, 12][..], b"user-service"].concat();
    let mut bytes = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &frame(SETTINGS, 0, 0, &[])[..]].concat();
    for stream in (1..2000).step_by(2) {
        bytes.extend(frame(HEADERS, END_STREAM | END_HEADERS, stream, &head));
        bytes.extend(frame(RST_STREAM, 0, stream, &u32::from(h2::Reason::CANCEL).to_be_bytes()));
    }
    // It may be cut off before all of this is sent.
    let _ = client.stream.write_all(&bytes).await;
    let heard = client.rest().await;
    let (mut rest, mut goodbyes) = (&heard[..], Vec::new());
    while let [a, b, c, kind, _, _, _, _, _, after @ ..] = rest {
        let (payload, next) = after.split_at(after.len().min(u32::from_be_bytes([0, *a, *b, *c]) as usize));
        if *kind == GOAWAY {
            goodbyes.push(payload[4..8].to_vec());
        }
        rest = next;
    }
    assert_eq!(goodbyes, [ENHANCE_YOUR_CALM]);
    pillion.until_free().await;
    assert!(upstream.unseen().len() < 100);
}

#[tokio::test]
async fn a_slow_reader_holds_the_upstream_back() {
    let upstream = Upstream::bind().await;
    let pillion = Setup::users([upstream.address]).start().await;
    let client = Client::connect(pillion.egress()).await;
    let (response, _) = client.start(request("GET", "/"), true).await;
    let mut server = upstream.accept().await;
    server.request().await;
    server.send("HTTP/1.1 200 OK\r\ncontent-length: 1073741824\r\n\r\n").await;
    let mut body = soon("a response", response).await.unwrap().into_body();
    let piece = vec![b'x'; 64 * 1024];
    let mut sent = 0;
    // Until nothing more is taken for a while. The buffers of the kernel's sockets take a few megabytes.
    while let Ok(result) = tokio::time::timeout(Duration::from_millis(300), server.stream.write_all(&piece)).await {
        result.unwrap();
        sent += piece.len();
        assert!(sent < 32 << 20, "nobody holds it back");
    }
    // Another stream of the same connection is not held up by it.
    let (response, _) = client.start(request("GET", "/other"), true).await;
    let mut other = upstream.accept().await;
    other.request().await;
    other.send(ok("other")).await;
    assert_eq!(collect(response).await.unwrap().text(), "other");
    // And it flows on as soon as somebody reads.
    let mut taken = 0;
    while taken < 1 << 20 {
        let data = soon("more", body.data()).await.unwrap().unwrap();
        body.flow_control().release_capacity(data.len()).unwrap();
        taken += data.len();
    }
}

#[tokio::test]
async fn a_slow_upstream_holds_the_client_back() {
    let upstream = Upstream::bind().await;
    let pillion = Setup::users([upstream.address]).start().await;
    let client = Client::connect(pillion.egress()).await;
    let (response, mut stream) = client.start(request("POST", "/"), false).await;
    let mut server: Peer = upstream.accept().await;
    server.head().await;
    let mut sent = 0;
    let piece = Bytes::from(vec![b'x'; 64 * 1024]);
    let took = async |stream: &mut _| {
        tokio::time::timeout(Duration::from_millis(300), send_all(stream, piece.clone(), false)).await.is_ok()
    };
    while took(&mut stream).await {
        sent += piece.len();
        assert!(sent < 32 << 20, "nobody holds it back");
    }
    stream.send_reset(h2::Reason::CANCEL);
    drop(response);
    server.rest().await;
    pillion.until_metric("pillion_requests_in_flight", &[], 0.0).await;
}

#[tokio::test]
async fn what_http_1_clients_may_not_send_http_2_clients_may_not_either() {
    let upstream = Upstream::bind().await;
    let pillion = Setup::users([upstream.address]).egress("limits: { head_lines: 20 }").start().await;
    let client = Client::connect(pillion.egress()).await;
    let many: Vec<_> = (0..21).map(|n| (format!("x-{n}"), "1")).collect();
    let many: Vec<_> = many.iter().map(|(name, value)| (name.as_str(), *value)).collect();
    for (fields, status, reason) in [
        (&[("host", "user-service"), ("host", "evil")][..], 400, "ambiguous_request"),
        (&[("content-length", "0"), ("content-length", "0")], 400, "ambiguous_request"),
        (&many, 431, "head_too_large"),
    ] {
        let mut request = request("GET", "/");
        for (name, value) in fields {
            let name: http::HeaderName = name.parse().unwrap();
            request.headers_mut().append(name, value.parse().unwrap());
        }
        let (response, _) = client.start(request, true).await;
        let answer = collect(response).await.unwrap();
        assert_eq!((answer.status.as_u16(), &answer.headers["x-pillion-error"]), (status, &reason.parse().unwrap()));
    }
    assert!(upstream.is_left_alone());
}

#[tokio::test]
async fn interim_responses_lose_what_http_2_forbids() {
    let upstream = Upstream::bind().await;
    let pillion = Setup::users([upstream.address]).start().await;
    let client = Client::connect(pillion.egress()).await;
    let (mut response, _) = client.start(request("GET", "/"), true).await;
    let mut server = upstream.accept().await;
    server.request().await;
    server.send("HTTP/1.1 103 Early Hints\r\nkeep-alive: timeout=5\r\nlink: </a.css>\r\n\r\n").await;
    let interim = std::future::poll_fn(|cx| response.poll_informational(cx));
    let interim = soon("an interim response", interim).await.unwrap().unwrap();
    assert_eq!((interim.status().as_u16(), &interim.headers()["link"]), (103, &HeaderValue::from_static("</a.css>")));
    server.send("HTTP/1.1 200 OK\r\nupgrade: h2,h2c\r\nconnection: upgrade\r\ncontent-length: 2\r\n\r\nok").await;
    assert_eq!(collect(response).await.unwrap().text(), "ok", "nor does an offer to upgrade break it");
}
