//! What two parsers could read differently, or no parser should read at all: raw bytes against the running program.

use crate::{
    peer::{Answering, Upstream, get},
    pillion::{Pillion, Setup},
};

/// Name, bytes, the status that they get, the reason.
type Case = (&'static str, String, u16, &'static str);

fn head(lines: &str) -> String {
    format!("POST / HTTP/1.1\r\nhost: user-service\r\n{lines}\r\n\r\n")
}

fn chunked(body: &str) -> String {
    head("transfer-encoding: chunked") + body
}

/// What an attacker hopes the upstream takes for a request of its own.
const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nhost: user-service\r\n\r\n";

fn heads() -> Vec<Case> {
    let ambiguous = |name, lines: &str| (name, head(lines) + SMUGGLED, 400, "ambiguous_request");
    let bad = |name, lines: &str| (name, head(lines) + SMUGGLED, 400, "bad_request");
    let start = |name, line: &str| (name, format!("{line}\r\nhost: user-service\r\n\r\n"), 400, "bad_request");
    vec![
        start("a URL of another scheme", "GET ftp://user-service/ HTTP/1.1"),
        start("a URL of a scheme that nobody knows", "GET httpx://user-service/ HTTP/1.1"),
        start("a scheme without a host", "GET mailto:a@user-service HTTP/1.1"),
        start("what only a CONNECT asks for", "GET user-service:80 HTTP/1.1"),
        ambiguous("TE and CL", "transfer-encoding: chunked\r\ncontent-length: 5"),
        ambiguous("CL and TE", "content-length: 5\r\ntransfer-encoding: chunked"),
        ambiguous("CL 0 and TE", "content-length: 0\r\nTransfer-Encoding: chunked"),
        ambiguous("two CLs that are equal", "content-length: 5\r\ncontent-length: 5"),
        ambiguous("two CLs that differ", "content-length: 5\r\ncontent-length: 6"),
        ambiguous("a CL with a plus", "content-length: +5"),
        ambiguous("a CL with a minus", "content-length: -5"),
        ambiguous("a CL with a space", "content-length: 5 5"),
        ambiguous("a CL that is a list", "content-length: 5, 5"),
        ambiguous("a CL in hexadecimal", "content-length: 0x5"),
        ambiguous("an empty CL", "content-length: "),
        ambiguous("a CL beyond all numbers", "content-length: 99999999999999999999"),
        ambiguous("a folded line", "x-a: b\r\n c"),
        ambiguous("a folded line with a tab", "x-a: b\r\n\tc"),
        ambiguous("a folded TE", "transfer-encoding:\r\n chunked"),
        ambiguous("a space before the colon", "content-length : 5"),
        ambiguous("a tab before the colon", "transfer-encoding\t: chunked"),
        ambiguous("a space in a name", "x a: b"),
        ambiguous("a line without a colon", "nonsense"),
        ambiguous("a line without a name", ": b"),
        ambiguous("a non-ASCII name", "x-ä: b"),
        ambiguous("a bare LF between lines", "x-a: b\ncontent-length: 5"),
        ambiguous("a bare LF at the end", "x-a: b\n\n"),
        ambiguous("two Hosts", "host: user-service"),
        ambiguous("two Hosts that differ", "host: other"),
        bad("a NUL in a value", "x-a: b\0c"),
        bad("a bare CR in a value", "x-a: b\rcontent-length: 5"),
        bad("a vertical tab before chunked", "transfer-encoding: \x0bchunked"),
        bad("a DEL in a value", "x-a: \x7f"),
        ("TE: gzip", head("transfer-encoding: gzip") + SMUGGLED, 501, "unsupported"),
        ("TE: gzip, chunked", head("transfer-encoding: gzip, chunked") + SMUGGLED, 501, "unsupported"),
        ("TE: chunked, gzip", head("transfer-encoding: chunked, gzip") + SMUGGLED, 501, "unsupported"),
        ("TE: chunked, chunked", head("transfer-encoding: chunked, chunked") + SMUGGLED, 501, "unsupported"),
        ("TE: xchunked", head("transfer-encoding: xchunked") + SMUGGLED, 501, "unsupported"),
        ("TE: quoted", head("transfer-encoding: \"chunked\"") + SMUGGLED, 501, "unsupported"),
        ("an empty TE", head("transfer-encoding: ") + SMUGGLED, 501, "unsupported"),
        ("two TEs", head("transfer-encoding: chunked\r\ntransfer-encoding: chunked") + SMUGGLED, 501, "unsupported"),
        ("two TEs, one odd", head("transfer-encoding: chunked\r\ntransfer-encoding: x") + SMUGGLED, 501, "unsupported"),
        (
            "TE in HTTP/1.0",
            "POST / HTTP/1.0\r\nhost: user-service\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n".into(),
            400,
            "ambiguous_request",
        ),
        ("no Host", "GET / HTTP/1.1\r\n\r\n".into(), 400, "bad_request"),
        start("a version of the future", "GET / HTTP/1.2"),
        start("HTTP/2 without its preface", "GET / HTTP/2.0"),
        start("no version", "GET /"),
        start("a lower-case version", "GET / http/1.1"),
        start("a space in the target", "GET /a b HTTP/1.1"),
        start("two spaces", "GET  / HTTP/1.1"),
        start("a tab for a space", "GET\t/ HTTP/1.1"),
        start("a method that is no token", "G(T / HTTP/1.1"),
        start("a line that begins with a space", " GET / HTTP/1.1"),
        start("a NUL in the target", "GET /\0 HTTP/1.1"),
        ("a bare LF after the start", "GET / HTTP/1.1\nhost: user-service\r\n\r\n".into(), 400, "ambiguous_request"),
        ("a TLS ClientHello", "\x16\x03\x01\x02\0\x01\0\x01\u{7c}\x03\x03".into(), 400, "bad_request"),
        ("101 header lines", head(&vec!["x-a: b"; 100].join("\r\n")), 431, "head_too_large"),
        ("a head of 70 KiB", head(&format!("x-a: {}", "b".repeat(70 * 1024))), 431, "head_too_large"),
        ("a start line of 70 KiB", format!("GET /{}", "b".repeat(70 * 1024)), 431, "head_too_large"),
    ]
}

fn bodies() -> Vec<Case> {
    let chunk = |name, body: &str| (name, chunked(body) + SMUGGLED, 400, "ambiguous_request");
    vec![
        chunk("a chunk size that is none", "zz\r\n"),
        chunk("an empty chunk size", "\r\nhello"),
        chunk("a chunk size with 0x", "0x5\r\nhello\r\n0\r\n\r\n"),
        chunk("a chunk size with a plus", "+5\r\nhello\r\n0\r\n\r\n"),
        chunk("a chunk size with a minus", "-5\r\nhello\r\n0\r\n\r\n"),
        chunk("a chunk size with a leading space", " 5\r\nhello\r\n0\r\n\r\n"),
        chunk("two chunk sizes", "5 5\r\nhello\r\n0\r\n\r\n"),
        chunk("a chunk size beyond all numbers", "fffffffffffffffff\r\nhello"),
        chunk("a chunk size that ends with LF", "5\nhello\r\n0\r\n\r\n"),
        chunk("an extension that ends with LF", "5;a\nhello\r\n0\r\n\r\n"),
        chunk("a chunk longer than its size", "4\r\nhello\r\n0\r\n\r\n"),
        chunk("a chunk that ends with LF", "5\r\nhello\n0\r\n\r\n"),
        chunk("an endless extension", &format!("5;{}", "a".repeat(5000))),
        chunk("a folded trailer", "0\r\nx-a: b\r\n c\r\n\r\n"),
        chunk("a trailer with a space before the colon", "0\r\nx-a : b\r\n\r\n"),
        chunk("a trailer section with a bare LF", "0\r\nx-a: b\nx-c: d\r\n\r\n"),
    ]
}

/// Sends the bytes; checks the answer, the end of the connection, and that nothing else came.
async fn is_refused(pillion: &Pillion, (name, bytes, status, reason): &Case) {
    let mut client = pillion.connect().await;
    client.send(bytes).await;
    let response = client.response().await;
    assert_eq!(response.error(), (*status, Some(*reason)), "{name}: {}", response.text());
    assert_eq!(response.get("connection"), Some("close"), "{name}");
    client.closed().await;
}

#[tokio::test]
async fn heads_that_must_not_be_read_are_refused_and_reach_no_upstream() {
    let mut upstream = Answering::ok().await;
    let pillion = Setup::users([upstream.address]).start().await;
    for case in heads() {
        is_refused(&pillion, &case).await;
        assert!(upstream.unseen().is_empty(), "{}", case.0);
    }
    assert_eq!(pillion.metric("pillion_pool_opened_total", &[]).await, 0.0, "no upstream was even connected to");
    pillion.until_metric("pillion_requests_rejected_total", &[], heads().len() as f64).await;
}

#[tokio::test]
async fn chunks_that_must_not_be_read_are_refused_and_no_upstream_gets_a_whole_request() {
    let upstream = Upstream::bind().await;
    let pillion = Setup::users([upstream.address]).start().await;
    for case in bodies() {
        is_refused(&pillion, &case).await;
        // The head may be on its way by the time that the chunks come; what counts is that it is never completed.
        let mut server = upstream.accept().await;
        let rest = String::from_utf8(server.rest().await).unwrap();
        assert!(!rest.contains("smuggled") && !rest.ends_with("0\r\n\r\n"), "{}: {rest:?}", case.0);
    }
    pillion.until_free().await;
}

#[tokio::test]
async fn what_is_odd_but_clear_is_taken() {
    let mut upstream = Answering::ok().await;
    let pillion = Setup::users([upstream.address]).start().await;
    let exact = |lines: usize| (0..lines).map(|n| format!("x-{n}: b")).collect::<Vec<_>>().join("\r\n");
    for (name, bytes) in [
        ("empty lines before a request", format!("\r\n\r\n{}", get("/"))),
        ("100 header lines", head(&exact(99))),
        ("a head of 63 KiB", head(&format!("x-a: {}", "b".repeat(63 * 1024)))),
        ("space around a value", head("content-length: \t0 \t")),
        ("an empty value", head("x-a:")),
        ("bytes beyond ASCII in a value", head("x-a: caf\u{e9}")),
        (
            "a TE in capitals",
            "POST / HTTP/1.1\r\nhost: user-service\r\nTRANSFER-ENCODING: Chunked\r\n\r\n0\r\n\r\n".into(),
        ),
        ("zeros before a chunk's size", chunked("0005;x=\"y\"\r\nhello\r\n000\r\n\r\n")),
        ("zeros before a length", head("content-length: 005") + "hello"),
        ("no Host in HTTP/1.0", "GET http://user-service/ HTTP/1.0\r\nconnection: keep-alive\r\n\r\n".into()),
    ] {
        let mut client = pillion.connect().await;
        client.send(&bytes).await;
        assert_eq!(client.response().await.status(), 200, "{name}");
        let seen = upstream.seen().await;
        assert_eq!(seen.get("host"), Some("user-service"), "{name}");
        // The next request on the connection begins where this one ended.
        client.send(get("/next")).await;
        assert_eq!(client.response().await.status(), 200, "after {name}");
        assert_eq!(upstream.seen().await.start, "GET /next HTTP/1.1", "after {name}");
    }
}

#[tokio::test]
async fn a_head_that_does_not_end_in_time_gets_408() {
    let mut upstream = Answering::ok().await;
    let pillion = Setup::users([upstream.address]).egress("limits: { head_timeout: 1s }").start().await;
    let mut slow = pillion.connect().await;
    slow.send("GET / HTTP/1.1\r\nhost: user").await;
    // One byte now and then does not prolong it.
    let response = loop {
        tokio::select! {
            biased;
            _ = slow.fill() => break slow.response().await,
            () = tokio::time::sleep(std::time::Duration::from_millis(40)) => slow.send("x").await,
        }
    };
    assert_eq!(response.error(), (408, Some("head_timeout")));
    // The same for the second request of a connection, while others are served.
    let mut client = pillion.connect().await;
    client.send(get("/") + "GET").await;
    assert_eq!(client.response().await.status(), 200);
    assert_eq!(client.response().await.error(), (408, Some("head_timeout")));
    client.closed().await;
    upstream.seen().await;
    assert!(upstream.unseen().is_empty());
}

#[tokio::test]
async fn responses_that_two_parsers_could_read_differently_become_502() {
    let upstream = Upstream::bind().await;
    let pillion = Setup::users([upstream.address]).start().await;
    let mut client = pillion.connect().await;
    for response in [
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 5\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\ncontent-length: 5, 5\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\nhello",
        "HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nx-a: b\r\n c\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length : 0\r\n\r\n",
        "HTTP/1.1 200 OK\ncontent-length: 0\n\n",
        "HTTP/1.1 20 OK\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 099 OK\r\ncontent-length: 0\r\n\r\n",
        "HTTP/2.0 200 OK\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n",
        "hello\r\n\r\n",
        "\0\0\0\r\n",
        "SSH-2.0-OpenSSH_9.6\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-len",
    ] {
        client.send(get("/")).await;
        let mut server = upstream.accept().await;
        server.request().await;
        server.send(response).await;
        drop(server);
        let answer = client.response().await;
        assert_eq!(answer.error(), (502, Some("upstream_protocol")), "{response:?}: {}", answer.text());
        assert!(upstream.is_left_alone(), "not tried again: {response:?}");
    }
    let endless = format!("HTTP/1.1 200 OK\r\nx-a: {}", "b".repeat(300 * 1024));
    client.send(get("/")).await;
    let mut server = upstream.accept().await;
    server.request().await;
    server.send(endless).await;
    assert_eq!(client.response().await.error(), (502, Some("upstream_protocol")));
}
