//! What a request's and a response's headers become on their way through.

use crate::{
    peer::{Answering, Upstream, get, ok},
    pillion::Setup,
};

#[tokio::test]
async fn the_upstream_learns_who_asked_and_for_what() {
    let mut upstream = Answering::ok().await;
    let pillion = Setup::users([upstream.address]).start().await;
    let mut client = pillion.connect().await;
    client.send("GET / HTTP/1.1\r\nhost: user-service:8080\r\naccept: a\r\naccept: b\r\n\r\n").await;
    client.response().await;
    let seen = upstream.seen().await;
    assert_eq!(seen.get("host"), Some("user-service:8080"), "as it came");
    assert_eq!(seen.all("accept"), ["a", "b"]);
    assert_eq!(seen.get("x-forwarded-for"), Some("127.0.0.1"));
    assert_eq!(seen.get("x-forwarded-proto"), Some("http"));
    assert_eq!(seen.get("x-forwarded-host"), Some("user-service:8080"));
    let id = seen.get("x-request-id").unwrap().to_owned();
    assert!(id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit()), "{id}");

    client
        .send(
            "GET / HTTP/1.1\r\nhost: user-service\r\nx-forwarded-for: 1.1.1.1\r\nx-forwarded-for: 2.2.2.2, 3.3.3.3\r\n\
             x-forwarded-proto: https\r\nx-forwarded-host: shop\r\nx-request-id: mine\r\ntraceparent: 00-1-2-01\r\n\r\n",
        )
        .await;
    client.response().await;
    let seen = upstream.seen().await;
    assert_eq!(seen.all("x-forwarded-for").join(", "), "1.1.1.1, 2.2.2.2, 3.3.3.3, 127.0.0.1");
    assert_eq!(seen.get("x-forwarded-proto"), Some("https"));
    assert_eq!(seen.get("x-forwarded-host"), Some("shop"));
    assert_eq!((seen.get("x-request-id"), seen.get("traceparent")), (Some("mine"), Some("00-1-2-01")));

    client.send(get("/")).await;
    client.response().await;
    assert_ne!(upstream.seen().await.get("x-request-id"), Some(id.as_str()), "each request has its own");
}

#[tokio::test]
async fn hop_by_hop_fields_end_at_the_hop_in_both_directions() {
    let upstream = Upstream::bind().await;
    let pillion = Setup::users([upstream.address]).start().await;
    let mut client = pillion.connect().await;
    client
        .send(
            "GET / HTTP/1.1\r\nhost: user-service\r\nconnection: keep-alive, X-Mine\r\nx-mine: 1\r\nkeep-alive: timeout=5\r\n\
             proxy-connection: keep-alive\r\nte: gzip\r\nupgrade: h2c\r\nx-theirs: 1\r\n\r\n",
        )
        .await;
    let mut server = upstream.accept().await;
    let seen = server.request().await;
    for gone in ["connection", "x-mine", "keep-alive", "proxy-connection", "te", "upgrade"] {
        assert_eq!(seen.get(gone), None, "{gone}");
    }
    assert_eq!(seen.get("x-theirs"), Some("1"));
    server
        .send(
            "HTTP/1.1 200 OK\r\nconnection: X-Private, keep-alive\r\nx-private: 1\r\nkeep-alive: timeout=5\r\n\
             proxy-connection: close\r\nset-cookie: a=1\r\nset-cookie: b=2\r\nserver: me\r\ncontent-length: 2\r\n\r\nok",
        )
        .await;
    let response = client.response().await;
    for gone in ["connection", "x-private", "keep-alive", "proxy-connection"] {
        assert_eq!(response.get(gone), None, "{gone}");
    }
    assert_eq!((response.get("server"), response.all("set-cookie")), (Some("me"), vec!["a=1", "b=2"]));
}

#[tokio::test]
async fn nobody_can_have_the_framing_or_the_host_removed_by_naming_them_in_connection() {
    let mut upstream = Answering::ok().await;
    let pillion = Setup::users([upstream.address]).start().await;
    let mut client = pillion.connect().await;
    client
        .send("POST / HTTP/1.1\r\nhost: user-service\r\nconnection: host, content-length\r\ncontent-length: 5\r\n\r\nhello")
        .await;
    assert_eq!(client.response().await.status(), 200);
    let seen = upstream.seen().await;
    assert_eq!((seen.get("host"), seen.text().as_str()), (Some("user-service"), "hello"));
    client
        .send("POST / HTTP/1.1\r\nhost: user-service\r\nconnection: transfer-encoding\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n")
        .await;
    assert_eq!(client.response().await.status(), 200);
    assert_eq!(upstream.seen().await.text(), "hello");
}

#[tokio::test]
async fn names_keep_their_case_when_asked() {
    let upstream =
        Upstream::bind().await.answering(|_| "HTTP/1.1 200 OK\r\nX-ReSPonse: A\r\nContent-LENGTH: 2\r\n\r\nok".into());
    for (settings, names) in [
        ("preserve_header_case: true", ["X-ReQuest", "X-ReSPonse"]),
        ("preserve_header_case: false", ["x-request", "x-response"]),
    ] {
        let mut seen = Upstream::bind().await.answering(|_| ok("unused"));
        let pillion =
            Setup::users([upstream.address]).instances("other", [seen.address]).egress(settings).start().await;
        let mut client = pillion.connect().await;
        client.send("GET / HTTP/1.1\r\nHost: other\r\nX-ReQuest: Value\r\n\r\n").await;
        client.response().await;
        let request = seen.seen().await;
        assert!(request.fields.contains(&(names[0].into(), "Value".into())), "{request:?}");
        client.send(get("/")).await;
        let response = client.response().await;
        assert!(response.fields.contains(&(names[1].into(), "A".into())), "{response:?}");
    }
}
