//! The last good response to the same request, where its service gives none.

use crate::{
    fallback::{ask, counted, from, good},
    http2_peer::Client,
    peer::{Upstream, get, ok, post},
    pillion::Setup,
};
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::Relaxed},
};

const LAST_GOOD: &str = "user-service: { fallback: { last_good: {} } }";

#[tokio::test]
async fn the_last_good_response_is_given_with_its_age() {
    let upstream = Upstream::bind().await.answering(|request| match request.start.split(' ').nth(1).unwrap() {
        "/private" => good("cache-control: private\r\n", "mine"),
        "/aged" => good("cache-control: max-age=60\r\nage: 100\r\ncontent-type: text/x\r\netag: \"1\"\r\n", "aged"),
        "/chunked" => "HTTP/1.1 200 OK\r\ncache-control: public\r\ntransfer-encoding: chunked\r\n\r\n3\r\nchu\r\n4\r\nnked\r\n0\r\n\r\n".into(),
        path => good("cache-control: max-age=60\r\n", path),
    });
    let pillion = Setup::users([upstream.address]).service(LAST_GOOD).access_log().start().await;
    let mut client = pillion.connect().await;
    for path in ["/private", "/aged", "/chunked", "/plain"] {
        assert_eq!(ask(&mut client, get(path)).await.get("x-pillion-fallback"), None);
    }
    ask(&mut client, post("/posted", "x")).await;
    drop(upstream);
    let response = ask(&mut client, get("/aged")).await;
    assert_eq!(from(&response), (200, "aged".into(), Some("last-good")));
    assert_eq!((response.get("content-type"), response.get("etag")), (Some("text/x"), Some("\"1\"")));
    assert_eq!(response.get("warning"), Some("110 - \"Response is Stale\""));
    let age: u32 = response.get("age").unwrap().parse().unwrap();
    assert!((100..120).contains(&age), "{age}");
    let line = pillion.access_line(" fallback=last-good").await;
    assert!(line.contains(" 200 connect_failed ") && line.contains(" out=4 "), "{line}");
    assert_eq!(from(&ask(&mut client, get("/chunked")).await), (200, "chunked".into(), Some("last-good")));
    // Over HTTP/2, and to HEAD.
    let answer = Client::connect(pillion.egress()).await.get("/plain").await.unwrap();
    assert_eq!(
        (answer.text().as_str(), &answer.headers["x-pillion-fallback"]),
        ("/plain", &"last-good".parse().unwrap())
    );
    client.send("HEAD /plain HTTP/1.1\r\nhost: user-service\r\n\r\n").await;
    let head = client.head().await;
    assert_eq!((head.status(), head.get("content-length")), (200, Some("6")));
    // What may not be given, or never was.
    for request in [get("/private"), get("/posted"), get("/never"), post("/plain", "x")] {
        assert_eq!(ask(&mut client, &request).await.error(), (502, Some("connect_failed")), "{request}");
    }
    counted(&pillion, "last-good", 4.0).await;
}

#[tokio::test]
async fn it_is_renewed_by_each_good_response_and_given_for_a_503_too() {
    let works = Arc::new(AtomicBool::new(true));
    let (is_up, number) = (works.clone(), std::sync::atomic::AtomicU32::new(0));
    let upstream = Upstream::bind().await.answering(move |_| match is_up.load(Relaxed) {
        true => good("cache-control: max-age=60\r\n", &format!("number {}", number.fetch_add(1, Relaxed))),
        false => "HTTP/1.1 503 Down\r\ncontent-length: 4\r\n\r\ndown".into(),
    });
    let pillion = Setup::users([upstream.address]).service(LAST_GOOD).start().await;
    let mut client = pillion.connect().await;
    for number in 0..3 {
        assert_eq!(ask(&mut client, get("/")).await.text(), format!("number {number}"));
    }
    works.store(false, Relaxed);
    assert_eq!(from(&ask(&mut client, get("/")).await), (200, "number 2".into(), Some("last-good")));
    assert_eq!(from(&ask(&mut client, get("/other")).await), (503, "down".into(), None));
    works.store(true, Relaxed);
    assert_eq!(from(&ask(&mut client, get("/")).await), (200, "number 3".into(), None));
}

#[tokio::test]
async fn a_response_passes_unchanged_and_at_once_while_it_is_kept() {
    let upstream = Upstream::bind().await;
    let pillion = Setup::users([upstream.address]).service(LAST_GOOD).start().await;
    let mut client = pillion.connect().await;
    client.send(get("/")).await;
    let mut server = upstream.accept().await;
    server.request().await;
    server.send("HTTP/1.1 200 OK\r\ncache-control: public\r\ncontent-length: 10\r\n\r\nfirst").await;
    client.head().await;
    assert_eq!(client.take(5).await, b"first", "before the rest is there");
    server.send("while").await;
    assert_eq!(client.take(5).await, b"while");
    // A large one passes, and is not kept.
    client.send(get("/large")).await;
    server.request().await;
    let large = "0123456789abcdef".repeat(64 * 1024);
    let (_, response) = tokio::join!(server.send(ok(&large)), client.response());
    assert!(response.text() == large);
    drop((server, upstream));
    assert_eq!(from(&ask(&mut client, get("/")).await), (200, "firstwhile".into(), Some("last-good")));
    assert_eq!(ask(&mut client, get("/large")).await.error(), (502, Some("connect_failed")));
}

#[tokio::test]
async fn a_response_that_was_cut_off_is_never_given() {
    let upstream = Upstream::bind().await;
    let pillion = Setup::users([upstream.address]).service(LAST_GOOD).start().await;
    for (path, response) in [
        ("/short", "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello"),
        ("/chunked", "HTTP/1.1 200 OK\r\ncache-control: public\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n"),
        // Nobody can tell whether this is all.
        ("/close", "HTTP/1.1 200 OK\r\n\r\nhello"),
    ] {
        let mut client = pillion.connect().await;
        client.send(get(path)).await;
        let mut server = upstream.accept().await;
        server.request().await;
        server.send(response).await;
        drop(server);
        let passed = client.try_response().await;
        assert_eq!(passed.is_ok(), path == "/close", "{path}");
    }
    // One that its client did not read to the end.
    let mut client = pillion.connect().await;
    client.send(get("/left")).await;
    let mut server = upstream.accept().await;
    server.request().await;
    server.send("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello").await;
    client.take(5).await;
    drop(client);
    server.closed().await;
    drop(upstream);
    let mut client = pillion.connect().await;
    for path in ["/short", "/chunked", "/close", "/left"] {
        assert_eq!(ask(&mut client, get(path)).await.error(), (502, Some("connect_failed")), "{path}");
    }
}

#[tokio::test]
async fn the_bytes_that_are_kept_are_bounded() {
    const BODY: usize = 4000;
    let upstream = Upstream::bind().await.answering(|_| good("cache-control: max-age=60\r\n", &"x".repeat(BODY)));
    let settings = "user-service: { fallback: { last_good: { max_bytes: 50000, max_body: 4000 } } }";
    let pillion = Setup::users([upstream.address]).service(settings).start().await;
    let mut client = pillion.connect().await;
    for number in 0..100 {
        ask(&mut client, get(&format!("/{number}"))).await;
    }
    drop(upstream);
    let mut kept = Vec::new();
    for number in (0..100).rev() {
        let response = ask(&mut client, get(&format!("/{number}"))).await;
        if response.get("x-pillion-fallback").is_some() {
            assert_eq!(response.body.len(), BODY);
            kept.push(number);
        }
    }
    let newest: Vec<_> = (0..100).rev().take(kept.len()).collect();
    assert_eq!(kept, newest, "the longest unused went first");
    assert!((9..=50_000 / BODY).contains(&kept.len()), "{}", kept.len());
}
