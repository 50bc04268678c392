//! HTTP/1.1 through the running program: methods, statuses, the order of messages.

use crate::{
    peer::{Answering, Upstream, get, ok, post},
    pillion::Setup,
};

#[tokio::test]
async fn a_get_and_a_post_go_through_on_one_connection() {
    let mut upstream = Answering::ok().await;
    let pillion = Setup::users([upstream.address]).start().await;
    let mut client = pillion.connect().await;
    for _ in 0..2 {
        client.send(get("/a?b=c")).await;
        assert_eq!(client.response().await.text(), "ok");
        assert_eq!(upstream.seen().await.start, "GET /a?b=c HTTP/1.1");
        client.send(post("/p", "hello")).await;
        assert_eq!(client.response().await.status(), 200);
        assert_eq!(upstream.seen().await.text(), "hello");
    }
    drop(client);
    pillion.until_free().await;
    assert_eq!(pillion.metric("pillion_requests_total", &["code=\"200\""]).await, 4.0);
    assert_eq!(pillion.metric("pillion_pool_opened_total", &[]).await, 1.0, "one connection served all of them");
    pillion.stop().await;
}

#[tokio::test]
async fn head_has_the_length_and_no_body() {
    let upstream = Upstream::bind().await.answering(|_| "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n".into());
    let other = Upstream::bind().await;
    let pillion = Setup::users([upstream.address]).instances("other", [other.address]).start().await;
    let mut client = pillion.connect().await;
    client.send("HEAD / HTTP/1.1\r\nhost: user-service\r\n\r\n".repeat(2)).await;
    for _ in 0..2 {
        let response = client.head().await;
        assert_eq!((response.status(), response.get("content-length")), (200, Some("5")));
    }
    // Whatever had come of a body would stand in front of this.
    client.send("HEAD / HTTP/1.1\r\nhost: user-service\r\nconnection: close\r\n\r\n").await;
    client.head().await;
    client.closed().await;
    // Where the upstream does not tell the length, nobody makes one up.
    let mut client = pillion.connect().await;
    client.send("HEAD / HTTP/1.1\r\nhost: other\r\n\r\n").await;
    let mut server = other.accept().await;
    server.head().await;
    server.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await;
    assert_eq!(client.head().await.get("content-length"), None);
}

#[tokio::test]
async fn responses_without_a_body_end_where_their_head_ends() {
    let upstream = Upstream::bind().await.answering(|request| {
        let status = request.start.split([' ', '/']).nth(2).unwrap();
        match status {
            "304" => "HTTP/1.1 304 Not Modified\r\ncontent-length: 7\r\netag: \"x\"\r\n\r\n".into(),
            "204" => "HTTP/1.1 204 No Content\r\n\r\n".into(),
            _ => "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n".into(),
        }
    });
    let pillion = Setup::users([upstream.address]).start().await;
    let mut client = pillion.connect().await;
    for _ in 0..2 {
        client.send(get("/204")).await;
        let response = client.head().await;
        assert_eq!((response.status(), response.get("content-length")), (204, None));
        client.send(get("/304")).await;
        let response = client.head().await;
        assert_eq!((response.status(), response.get("etag")), (304, Some("\"x\"")));
        client.send(get("/200")).await;
        assert_eq!(client.head().await.get("content-length"), Some("0"));
    }
    assert!(client.buf.is_empty());
    assert_eq!(pillion.metric("pillion_pool_opened_total", &[]).await, 1.0);
}

#[tokio::test]
async fn an_http_1_0_client_is_closed_unless_it_asks_otherwise() {
    let upstream = Upstream::bind().await.answering(|request| match request.start.as_str() {
        "GET /length HTTP/1.1" => ok("hello"),
        _ => "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n".into(),
    });
    let pillion = Setup::users([upstream.address]).start().await;
    let mut client = pillion.connect().await;
    client.send("GET /length HTTP/1.0\r\nhost: user-service\r\n\r\n").await;
    assert_eq!(client.response().await.text(), "hello");
    client.closed().await;

    let mut client = pillion.connect().await;
    for _ in 0..2 {
        client.send("GET /length HTTP/1.0\r\nhost: user-service\r\nconnection: keep-alive\r\n\r\n").await;
        let response = client.response().await;
        assert_eq!((response.text().as_str(), response.get("connection")), ("hello", Some("keep-alive")));
    }
    // It knows no chunks, so a body of unknown length ends with the connection.
    client.send("GET /chunked HTTP/1.0\r\nhost: user-service\r\nconnection: keep-alive\r\n\r\n").await;
    let response = client.response().await;
    assert_eq!((response.get("transfer-encoding"), response.get("connection")), (None, Some("close")));
    assert_eq!(response.text(), "hello");
}

#[tokio::test]
async fn a_client_that_asks_for_close_is_closed() {
    let upstream = Answering::ok().await;
    let pillion = Setup::users([upstream.address]).start().await;
    let mut client = pillion.connect().await;
    client.send("GET / HTTP/1.1\r\nhost: user-service\r\nconnection: close\r\n\r\n").await;
    let response = client.response().await;
    assert_eq!((response.status(), response.get("connection")), (200, Some("close")));
    client.closed().await;
    // The upstream was not asked to close.
    let mut client = pillion.connect().await;
    client.send(get("/")).await;
    client.response().await;
    assert_eq!(pillion.metric("pillion_pool_opened_total", &[]).await, 1.0);
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let upstream = Upstream::bind().await.answering(|request| ok(&request.start));
    let pillion = Setup::users([upstream.address]).start().await;
    let mut client = pillion.connect().await;
    let requests: Vec<_> =
        (0..50).map(|n| if n % 2 == 0 { get(&format!("/{n}")) } else { post(&format!("/{n}"), "body") }).collect();
    client.send(requests.concat()).await;
    for n in 0..50 {
        let method = if n % 2 == 0 { "GET" } else { "POST" };
        assert_eq!(client.response().await.text(), format!("{method} /{n} HTTP/1.1"));
    }
}

#[tokio::test]
async fn expect_and_the_interim_response_to_it_go_through() {
    let upstream = Upstream::bind().await;
    let pillion = Setup::users([upstream.address]).start().await;
    let mut client = pillion.connect().await;
    client.send("POST / HTTP/1.1\r\nhost: user-service\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n").await;
    let mut server = upstream.accept().await;
    assert_eq!(server.head().await.get("expect"), Some("100-continue"));
    server.send("HTTP/1.1 100 Continue\r\n\r\n").await;
    assert_eq!(client.head().await.start, "HTTP/1.1 100 Continue");
    client.send("hi").await;
    assert_eq!(server.take(2).await, b"hi");
    server.send(ok("thanks")).await;
    assert_eq!(client.response().await.text(), "thanks");

    // One that is refused ends the connection: nobody knows whether the body still comes.
    client.send("POST / HTTP/1.1\r\nhost: user-service\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n").await;
    server.head().await;
    server.send("HTTP/1.1 417 Expectation Failed\r\ncontent-length: 0\r\n\r\n").await;
    let response = client.response().await;
    assert_eq!((response.status(), response.get("connection")), (417, Some("close")));
    client.closed().await;
    server.closed().await;
}

#[tokio::test]
async fn early_hints_come_before_the_response() {
    let upstream = Upstream::bind().await;
    let pillion = Setup::users([upstream.address]).start().await;
    let mut client = pillion.connect().await;
    client.send(get("/")).await;
    let mut server = upstream.accept().await;
    server.head().await;
    for n in 0..2 {
        server.send(format!("HTTP/1.1 103 Early Hints\r\nlink: </{n}.css>\r\n\r\n")).await;
        let hints = client.head().await;
        assert_eq!((hints.status(), hints.get("link")), (103, Some(format!("</{n}.css>").as_str())));
    }
    server.send(ok("page")).await;
    assert_eq!(client.response().await.text(), "page");
    // Clients of HTTP/1.0 do not know them.
    client.send("GET / HTTP/1.0\r\nhost: user-service\r\n\r\n").await;
    server.head().await;
    server.send(format!("HTTP/1.1 103 Early Hints\r\nlink: </a.css>\r\n\r\n{}", ok("page"))).await;
    let head = client.head().await;
    assert_eq!(head.status(), 200, "{head:?}");
}

#[tokio::test]
async fn targets_in_every_form() {
    let mut upstream = Answering::ok().await;
    let pillion = Setup::users([upstream.address]).start().await;
    let mut client = pillion.connect().await;
    for (line, host, expected, expected_host) in [
        ("GET http://user-service/a?b HTTP/1.1", "other", "GET /a?b HTTP/1.1", "user-service"),
        ("GET http://user-service:80 HTTP/1.1", "other", "GET / HTTP/1.1", "user-service:80"),
        ("GET http://user-service?q HTTP/1.1", "other", "GET /?q HTTP/1.1", "user-service"),
        ("OPTIONS * HTTP/1.1", "user-service", "OPTIONS * HTTP/1.1", "user-service"),
        ("OPTIONS http://user-service HTTP/1.1", "other", "OPTIONS * HTTP/1.1", "user-service"),
        ("OPTIONS http://user-service/ HTTP/1.1", "other", "OPTIONS / HTTP/1.1", "user-service"),
        ("BREW //a/../b//c%2f?x=%00 HTTP/1.1", "user-service", "BREW //a/../b//c%2f?x=%00 HTTP/1.1", "user-service"),
    ] {
        client.send(format!("{line}\r\nhost: {host}\r\n\r\n")).await;
        assert_eq!(client.response().await.status(), 200, "{line}");
        let seen = upstream.seen().await;
        assert_eq!((seen.start.as_str(), seen.get("host")), (expected, Some(expected_host)), "{line}");
    }
}

#[tokio::test]
async fn connect_is_not_carried() {
    let mut upstream = Answering::ok().await;
    let pillion = Setup::users([upstream.address]).start().await;
    let mut client = pillion.connect().await;
    client.send("CONNECT user-service:80 HTTP/1.1\r\nhost: user-service:80\r\n\r\n").await;
    assert_eq!(client.response().await.error(), (501, Some("unsupported")));
    client.closed().await;
    assert!(upstream.unseen().is_empty());
}

#[tokio::test]
async fn an_upgrade_leaves_http_behind_in_both_directions() {
    let upstream = Upstream::bind().await;
    let pillion = Setup::users([upstream.address]).start().await;
    let mut client = pillion.connect().await;
    // The first bytes of the other protocol may come with the head.
    let head = "GET /chat HTTP/1.1\r\nhost: user-service\r\nconnection: keep-alive, Upgrade\r\nupgrade: echo\r\n\r\n";
    client.send(format!("{head}early")).await;
    let mut server = upstream.accept().await;
    let request = server.head().await;
    assert_eq!((request.get("connection"), request.get("upgrade")), (Some("upgrade"), Some("echo")));
    server.send("HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: echo\r\n\r\nfirst").await;
    let response = client.head().await;
    assert_eq!(
        (response.status(), response.get("connection"), response.get("upgrade")),
        (101, Some("upgrade"), Some("echo"))
    );
    assert_eq!((server.take(5).await, client.take(5).await), (b"early".to_vec(), b"first".to_vec()));
    // Each side may end by itself.
    client.send("last words").await;
    client.shutdown().await;
    assert_eq!(server.rest().await, b"last words");
    server.send("answer").await;
    drop(server);
    assert_eq!(client.rest().await, b"answer");
    drop(client);
    pillion.until_free().await;
}

#[tokio::test]
async fn an_upgrade_that_is_refused_is_an_ordinary_exchange() {
    let upstream = Answering::ok().await;
    let pillion = Setup::users([upstream.address]).start().await;
    let mut client = pillion.connect().await;
    for _ in 0..2 {
        client.send("GET / HTTP/1.1\r\nhost: user-service\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n").await;
        assert_eq!(client.response().await.text(), "ok");
    }
}

#[tokio::test]
async fn a_client_that_shuts_its_sending_side_is_taken_for_gone() {
    // As nginx takes it: there is no other sign of a client that has left.
    let upstream = Upstream::bind().await;
    let pillion = Setup::users([upstream.address]).start().await;
    let mut client = pillion.connect().await;
    client.send(get("/")).await;
    let mut server = upstream.accept().await;
    server.head().await;
    client.shutdown().await;
    server.closed().await;
    client.closed().await;
    pillion.until_free().await;
}
