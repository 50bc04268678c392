//! Bodies through the running program: every framing, both directions, whole and cut off.

use crate::{
    peer::{Answering, Upstream, get, ok, post},
    pillion::Setup,
};

#[tokio::test]
async fn chunked_bodies_and_trailers_in_both_directions() {
    let upstream = Upstream::bind().await;
    let pillion = Setup::users([upstream.address]).start().await;
    let mut client = pillion.connect().await;
    client
        .send("POST / HTTP/1.1\r\nhost: user-service\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\nte: trailers\r\n\r\n3;ext=1\r\nabc\r\n")
        .await;
    let mut server = upstream.accept().await;
    let head = server.head().await;
    assert_eq!((head.get("transfer-encoding"), head.get("te")), (Some("chunked"), Some("trailers")));
    // The first piece is passed on before the second has come.
    assert_eq!(server.take(8).await, b"3\r\nabc\r\n");
    client.send("0a\r\n0123456789\r\n0\r\nx-sum: 13\r\n\r\n").await;
    let rest = "a\r\n0123456789\r\n0\r\nx-sum: 13\r\n\r\n";
    assert_eq!(String::from_utf8(server.take(rest.len()).await).unwrap(), rest);

    server.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-status\r\n\r\n4\r\nbody\r\n").await;
    let response = client.head().await;
    assert_eq!((response.get("transfer-encoding"), response.get("trailer")), (Some("chunked"), Some("x-status")));
    assert_eq!(client.take(9).await, b"4\r\nbody\r\n");
    server.send("0\r\nx-status: fine\r\nx-more: 1\r\n\r\n").await;
    let rest = client.take("0\r\nx-status: fine\r\nx-more: 1\r\n\r\n".len()).await;
    assert_eq!(String::from_utf8(rest).unwrap(), "0\r\nx-status: fine\r\nx-more: 1\r\n\r\n");
    // The connections serve on, on both sides.
    client.send(get("/next")).await;
    assert_eq!(server.request().await.start, "GET /next HTTP/1.1");
    server.send(ok("next")).await;
    assert_eq!(client.response().await.text(), "next");
}

#[tokio::test]
async fn trailers_of_a_request_arrive() {
    let mut upstream = Answering::ok().await;
    let pillion = Setup::users([upstream.address]).start().await;
    let mut client = pillion.connect().await;
    client
        .send("POST / HTTP/1.1\r\nhost: user-service\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nX-Sum: 1\r\ncontent-length: 9\r\n\r\n")
        .await;
    assert_eq!(client.response().await.status(), 200);
    let seen = upstream.seen().await;
    assert_eq!(seen.text(), "hi");
    assert_eq!(seen.trailers, [("x-sum".to_owned(), "1".to_owned())], "framing fields are no trailers");
}

#[tokio::test]
async fn large_bodies_of_either_framing_arrive_as_they_were() {
    const SIZE: usize = 3 << 20;
    let data: String = (0..SIZE).map(|n| char::from(b'a' + (n % 23) as u8)).collect();
    let mut upstream = Upstream::bind().await.answering(|request| match request.start.as_str() {
        "POST /chunked HTTP/1.1" => {
            let pieces =
                request.body.chunks(50_000).map(|p| format!("{:x}\r\n{}\r\n", p.len(), String::from_utf8_lossy(p)));
            format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{}0\r\n\r\n", pieces.collect::<String>())
        }
        _ => ok(&request.text()),
    });
    let pillion = Setup::users([upstream.address]).start().await;
    let mut client = pillion.connect().await;
    for path in ["/length", "/chunked"] {
        client.send(post(path, &data)).await;
        assert!(client.response().await.text() == data, "{path}");
        let mut chunked = format!("POST {path} HTTP/1.1\r\nhost: user-service\r\ntransfer-encoding: chunked\r\n\r\n");
        for piece in data.as_bytes().chunks(70_001) {
            chunked += &format!("{:X}\r\n{}\r\n", piece.len(), std::str::from_utf8(piece).unwrap());
        }
        client.send(chunked + "0\r\n\r\n").await;
        assert!(client.response().await.text() == data, "{path}, chunked");
        assert!(upstream.seen().await.text() == data);
        assert!(upstream.seen().await.text() == data);
    }
    let bytes = 4.0 * SIZE as f64;
    pillion.until_metric("pillion_request_bytes_total", &[], bytes).await;
    pillion.until_metric("pillion_response_bytes_total", &[], bytes).await;
}

#[tokio::test]
async fn an_answer_before_the_request_is_complete_reaches_the_client() {
    let upstream = Upstream::bind().await;
    let pillion = Setup::users([upstream.address]).start().await;
    let mut client = pillion.connect().await;
    client.send("POST / HTTP/1.1\r\nhost: user-service\r\ncontent-length: 100000\r\n\r\nbegin").await;
    let mut server = upstream.accept().await;
    server.head().await;
    server.send("HTTP/1.1 413 Content Too Large\r\ncontent-length: 5\r\n\r\nsorry").await;
    let response = client.response().await;
    assert_eq!((response.status(), response.get("connection")), (413, Some("close")));
    assert_eq!(response.text(), "sorry");
    client.closed().await;
    drop(client);
    // The upstream's connection, in the middle of a request, carries no other.
    server.take(5).await;
    server.closed().await;
    pillion.until_free().await;

    // The same when the upstream closes hard, so that sending to it fails.
    let mut client = pillion.connect().await;
    client.send("POST / HTTP/1.1\r\nhost: user-service\r\ncontent-length: 10000000\r\n\r\nbegin").await;
    let mut server = upstream.accept().await;
    server.head().await;
    server.send("HTTP/1.1 413 Content Too Large\r\nconnection: close\r\ncontent-length: 5\r\n\r\nsorry").await;
    drop(server);
    // The client may be stopped by the reset; it sends until it is, or until the answer is here.
    let response = client.response().await;
    assert_eq!((response.status(), response.text().as_str()), (413, "sorry"));
}

#[tokio::test]
async fn both_sides_may_stream_at_once() {
    let upstream = Upstream::bind().await;
    let pillion = Setup::users([upstream.address]).start().await;
    let mut client = pillion.connect().await;
    client.send("POST / HTTP/1.1\r\nhost: user-service\r\ntransfer-encoding: chunked\r\n\r\n").await;
    let mut server = upstream.accept().await;
    server.head().await;
    server.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await;
    client.head().await;
    for _ in 0..10 {
        client.send("4\r\nping\r\n").await;
        assert_eq!(server.take(9).await, b"4\r\nping\r\n");
        server.send("4\r\npong\r\n").await;
        assert_eq!(client.take(9).await, b"4\r\npong\r\n");
    }
    client.send("0\r\n\r\n").await;
    assert_eq!(server.take(5).await, b"0\r\n\r\n");
    server.send("0\r\n\r\n").await;
    assert_eq!(client.take(5).await, b"0\r\n\r\n");
}

#[tokio::test]
async fn an_upstream_that_asks_for_close_is_not_used_again() {
    let upstream = Upstream::bind().await;
    let pillion = Setup::users([upstream.address]).start().await;
    let mut client = pillion.connect().await;
    for head in ["HTTP/1.1 200 OK\r\nconnection: close", "HTTP/1.0 200 OK"] {
        client.send(get("/")).await;
        let mut server = upstream.accept().await;
        server.request().await;
        server.send(format!("{head}\r\ncontent-length: 2\r\n\r\nok")).await;
        let response = client.response().await;
        assert_eq!((response.text().as_str(), response.get("connection")), ("ok", None), "that was for pillion");
        server.closed().await;
    }
}

#[tokio::test]
async fn a_body_that_ends_with_its_connection_is_whole_only_after_an_orderly_end() {
    let upstream = Upstream::bind().await;
    let pillion = Setup::users([upstream.address]).start().await;
    for reset in [false, true] {
        let mut client = pillion.connect().await;
        client.send(get("/")).await;
        let mut server = upstream.accept().await;
        server.request().await;
        server.send("HTTP/1.1 200 OK\r\nx-a: b\r\n\r\nhello").await;
        let head = client.head().await;
        assert_eq!(head.get("transfer-encoding"), Some("chunked"), "so that the client sees whether it is whole");
        assert_eq!(client.take(10).await, b"5\r\nhello\r\n");
        if reset {
            server.reset();
            assert_eq!(client.rest().await, b"", "no last chunk");
            pillion.until_metric("pillion_errors_total", &["upstream_truncated"], 1.0).await;
        } else {
            drop(server);
            assert_eq!(client.take(5).await, b"0\r\n\r\n");
            client.send(get("/")).await;
            let mut server = upstream.accept().await;
            server.request().await;
            server.send(ok("again")).await;
            assert_eq!(client.response().await.text(), "again");
        }
    }
}

#[tokio::test]
async fn a_response_that_is_cut_off_does_not_look_whole() {
    let upstream = Upstream::bind().await;
    let pillion = Setup::users([upstream.address]).start().await;
    for response in [
        "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhelloX\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\nZ\r\n\r\n",
    ] {
        let mut client = pillion.connect().await;
        client.send(get("/")).await;
        let mut server = upstream.accept().await;
        server.request().await;
        server.send(response).await;
        drop(server);
        let cut = client.try_response().await.expect_err(response);
        assert_eq!((cut.status(), cut.text().as_str()), (200, "hello"), "what came is passed on: {response}");
    }
    pillion.until_free().await;
    assert_eq!(pillion.metric("pillion_retries_total", &[]).await, 0.0, "a response that began is never tried again");
}

#[tokio::test]
async fn bytes_after_a_response_reach_nobody() {
    let upstream = Upstream::bind().await;
    let pillion = Setup::users([upstream.address]).start().await;
    let mut client = pillion.connect().await;
    client.send(get("/")).await;
    let mut server = upstream.accept().await;
    server.request().await;
    server.send(format!("{}HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil", ok("good"))).await;
    assert_eq!(client.response().await.text(), "good");
    client.send(get("/")).await;
    let mut fresh = upstream.accept().await;
    fresh.request().await;
    fresh.send(ok("fresh")).await;
    assert_eq!(client.response().await.text(), "fresh");
    // What comes on an idle connection, unasked, is likewise no answer to the next request.
    fresh.send("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil").await;
    client.send(get("/")).await;
    let mut fresh = upstream.accept().await;
    fresh.request().await;
    fresh.send(ok("fresh")).await;
    assert_eq!(client.response().await.text(), "fresh");
}

#[tokio::test]
async fn a_request_whose_body_is_cut_off_is_cut_off_upstream() {
    let upstream = Upstream::bind().await;
    let pillion = Setup::users([upstream.address]).start().await;
    for (head, piece) in [("content-length: 10", "hello"), ("transfer-encoding: chunked", "5\r\nhello\r\n")] {
        let mut client = pillion.connect().await;
        client.send(format!("POST / HTTP/1.1\r\nhost: user-service\r\n{head}\r\n\r\n{piece}")).await;
        let mut server = upstream.accept().await;
        server.head().await;
        assert_eq!(server.take(piece.len()).await, piece.as_bytes());
        drop(client);
        assert_eq!(server.rest().await, b"", "no end of the body");
    }
    pillion.until_free().await;
    assert_eq!(pillion.metric("pillion_errors_total", &["downstream_closed"]).await, 2.0);
}
