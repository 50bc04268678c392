//! Listeners that find out what each connection speaks.

use crate::{
    e2e::{Client, Upstream as HttpUpstream, soon},
    peer::{Peer, Upstream, get},
    pillion::{Pillion, Setup},
    tcp_names::tls_of,
};
use http::Version;
use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::Instant,
};
use tokio_rustls::TlsConnector;

/// For so many seconds what may still become HTTP is waited for: long, so that a busy machine is not taken for a silent client.
const UNSURE: u64 = 5;

/// A pillion with a listener `auto` for the service at these addresses.
async fn before(addresses: &[String]) -> Pillion {
    let setup = Setup::users(addresses).service("user-service: { balance: { policy: round-robin } }");
    let settings = format!("protocol: auto, service: user-service, limits: {{ detect_timeout: {UNSURE}s }}");
    setup.listener("auto", &settings).start().await
}

fn quoted(address: std::net::SocketAddr) -> String {
    format!("\"{address}\"")
}

async fn open(pillion: &Pillion) -> TcpStream {
    TcpStream::connect(pillion.address("auto")).await.unwrap()
}

#[tokio::test]
async fn http_is_carried_by_request() {
    let (a, b) = (HttpUpstream::start("a").await, HttpUpstream::start("b").await);
    let pillion = before(&[quoted(a.address), quoted(b.address)]).await;
    for version in [Version::HTTP_11, Version::HTTP_2] {
        let mut client = Client::connect(pillion.address("auto"), version).await.unwrap();
        let had = (a.requests(), b.requests());
        for _ in 0..40 {
            let (status, _) = client.get("anybody", "/").await.unwrap();
            assert_eq!(status, 200);
        }
        assert!(a.requests() > had.0 && b.requests() > had.1, "{version:?}: one connection, both endpoints");
    }
    pillion.until_metric("pillion_requests_total", &["user-service", "200"], 80.0).await;
}

#[tokio::test]
async fn a_request_may_come_in_pieces_and_late() {
    let upstream = HttpUpstream::start("a").await;
    let pillion = before(&[quoted(upstream.address)]).await;
    // Late: the way to the endpoint was opened meanwhile, and is not needed.
    let mut client = Peer::new(open(&pillion).await);
    tokio::time::sleep(Duration::from_millis(100)).await;
    for byte in get("/").bytes() {
        client.send([byte]).await;
    }
    assert_eq!(client.response().await.status(), 200);
    // Two in one segment.
    client.send(format!("{}{}", get("/"), get("/"))).await;
    assert_eq!([client.response().await.status(), client.response().await.status()], [200, 200]);
    pillion.until_metric("pillion_requests_total", &["user-service", "200"], 3.0).await;
    assert!(!pillion.metrics().await.contains("pillion_tcp_closed_total{"), "it was none");
}

#[tokio::test]
async fn anything_else_is_carried_by_byte_with_what_was_said_already() {
    let upstream = Upstream::bind().await;
    let pillion = before(&[quoted(upstream.address)]).await;
    for said in [&b"PING\r\n"[..], b"\0\0\0\x08\x04\xd2\x16\x2f", b"*1\r\n$4\r\nPING\r\n", b"GET"] {
        let begun = Instant::now();
        let mut client = open(&pillion).await;
        client.write_all(said).await.unwrap();
        let mut server = upstream.accept().await;
        assert_eq!(server.take(said.len()).await, said);
        // Only what could still become HTTP is waited for.
        assert_eq!(begun.elapsed() > Duration::from_secs(UNSURE), said == b"GET", "{said:?}");
        server.send("PONG").await;
        let mut answer = [0; 4];
        soon("an answer", client.read_exact(&mut answer)).await.unwrap();
        assert_eq!(&answer, b"PONG");
    }
}

#[tokio::test]
async fn a_server_may_speak_first_and_the_next_time_nobody_waits() {
    let upstream = Upstream::bind().await;
    let pillion = before(&[quoted(upstream.address)]).await;
    for round in 0..5 {
        let mut client = open(&pillion).await;
        let mut server = upstream.accept().await;
        server.send("220 ready\r\n").await;
        let mut greeting = [0; 11];
        soon("a greeting", client.read_exact(&mut greeting)).await.unwrap();
        assert_eq!(&greeting, b"220 ready\r\n", "{round}");
        // What the client says then may look like HTTP.
        client.write_all(get("/").as_bytes()).await.unwrap();
        assert_eq!(server.take(get("/").len()).await, get("/").as_bytes());
        client.shutdown().await.unwrap();
        assert_eq!(server.rest().await, b"");
        server.shutdown().await;
        let mut rest = Vec::new();
        soon("the end", client.read_to_end(&mut rest)).await.unwrap();
    }
    pillion.until_metric("pillion_tcp_closed_total", &["user-service", "done"], 5.0).await;
}

/// A server within TLS that greets, and then echoes; the file with its authority, and what connects to it by itself.
async fn greeter_within_tls(dir: &Path) -> (SocketAddr, PathBuf, TlsConnector) {
    let made = rcgen::generate_simple_self_signed(["mail.example".to_owned()]).unwrap();
    let authority = dir.join("ca.pem");
    fs::write(&authority, made.cert.pem()).unwrap();
    let (acceptor, connector) = tls_of(made);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                // Who goes away meanwhile is none of its business.
                let Ok(mut stream) = acceptor.accept(stream).await else { return };
                if stream.write_all(b"220 ready\r\n").await.is_ok() {
                    let (mut from, mut to) = tokio::io::split(stream);
                    let _ = tokio::io::copy(&mut from, &mut to).await;
                }
            });
        }
    });
    (address, authority, connector)
}

#[tokio::test]
async fn a_server_may_speak_first_within_the_tls_that_pillion_speaks_to_it() {
    let dir = TempDir::new().unwrap();
    let (address, authority, connector) = greeter_within_tls(dir.path()).await;
    let service = format!("mail: {{ tls: {{ ca: '{}', server_name: mail.example }} }}", authority.display());
    let setup = Setup::default().instances("mail", [quoted(address)]).service(&service);
    let pillion = setup.listener("auto", "protocol: auto, service: mail").start().await;
    for round in 0..5 {
        let mut client = open(&pillion).await;
        let mut greeting = [0; 11];
        soon("a greeting", client.read_exact(&mut greeting)).await.unwrap();
        assert_eq!(&greeting, b"220 ready\r\n", "{round}");
        client.write_all(b"QUIT\r\n").await.unwrap();
        let mut echo = [0; 6];
        soon("an echo", client.read_exact(&mut echo)).await.unwrap();
        assert_eq!(&echo, b"QUIT\r\n");

        // Another client of the same service may speak TLS itself, which is not put into TLS once more.
        let connecting = connector.connect("mail.example".try_into().unwrap(), open(&pillion).await);
        let mut client = soon("a handshake with the server itself", connecting).await.unwrap();
        soon("a greeting", client.read_exact(&mut greeting)).await.unwrap();
        assert_eq!(&greeting, b"220 ready\r\n", "{round}");
    }
}

#[tokio::test]
async fn a_server_that_only_ends_has_not_spoken() {
    let upstream = Upstream::bind().await;
    let pillion = before(&[quoted(upstream.address)]).await;
    let mut silent = open(&pillion).await;
    drop(upstream.accept().await);
    let mut rest = Vec::new();
    // A reset is an end as well.
    let _ = soon("the end", silent.read_to_end(&mut rest)).await;
    let mut client = Peer::new(open(&pillion).await);
    client.send(get("/")).await;
    let mut server = upstream.accept().await;
    assert!(server.request().await.get("x-forwarded-for").is_some(), "it was read");
    server.send("HTTP/1.1 204 No Content\r\n\r\n").await;
    assert_eq!(client.response().await.status(), 204);
}

#[tokio::test]
async fn one_who_speaks_first_does_not_stop_those_who_wait_for_the_server() {
    let upstream = Upstream::bind().await;
    let pillion = before(&[quoted(upstream.address)]).await;
    let mut scanner = Peer::new(open(&pillion).await);
    scanner.send(get("/")).await;
    let mut server = upstream.accept().await;
    server.request().await;
    server.send("220 this is no HTTP\r\n\r\n").await;
    assert_eq!(scanner.response().await.status(), 502);
    let mut client = open(&pillion).await;
    let mut server = upstream.accept().await;
    server.send("220 ready\r\n").await;
    let mut greeting = [0; 11];
    soon("a greeting", client.read_exact(&mut greeting)).await.unwrap();
    assert_eq!(&greeting, b"220 ready\r\n");
}

#[tokio::test]
async fn a_late_request_is_answered_though_nobody_takes_connections() {
    let upstream = Upstream::bind().await;
    let address = upstream.address;
    drop(upstream);
    let pillion = before(&[quoted(address)]).await;
    let mut client = Peer::new(open(&pillion).await);
    tokio::time::sleep(Duration::from_millis(100)).await;
    client.send(get("/")).await;
    let response = client.response().await;
    assert_eq!(response.error(), (502, Some("connect_failed")), "{response:?}");
    // Who says nothing has his connection ended, as nobody is there.
    let mut silent = open(&pillion).await;
    let mut rest = Vec::new();
    let _ = soon("the end", silent.read_to_end(&mut rest)).await;
    assert_eq!(rest, b"");
}

#[tokio::test]
async fn a_client_that_only_listens_hears_everything() {
    let upstream = Upstream::bind().await;
    let pillion = before(&[quoted(upstream.address)]).await;
    let mut client = open(&pillion).await;
    client.shutdown().await.unwrap();
    let mut server = upstream.accept().await;
    assert_eq!(server.rest().await, b"");
    server.send("Sun Nov 22 2026").await;
    server.shutdown().await;
    let mut heard = String::new();
    soon("the time", client.read_to_string(&mut heard)).await.unwrap();
    assert_eq!(heard, "Sun Nov 22 2026");
}

#[tokio::test]
async fn who_says_nothing_does_not_hold_up_the_end() {
    let upstream = Upstream::bind().await;
    let pillion = before(&[quoted(upstream.address)]).await;
    let mut silent = open(&pillion).await;
    let _server = upstream.accept().await;
    // Less than the time that is given to what is in progress.
    pillion.stop().await;
    let mut rest = Vec::new();
    // A reset is an end as well.
    let _ = soon("the end", silent.read_to_end(&mut rest)).await;
    assert_eq!(rest, b"");
}

#[tokio::test]
async fn an_application_behind_it_gets_bytes_and_requests() {
    let upstream = Upstream::bind().await;
    let settings = format!("protocol: auto, app: \"{}\"", upstream.address);
    let pillion = Setup::default().listener("auto", &settings).start().await;
    let mut client = open(&pillion).await;
    client.write_all(b"PING\r\n").await.unwrap();
    assert_eq!(upstream.accept().await.take(6).await, b"PING\r\n");
    let mut client = Peer::new(open(&pillion).await);
    client.send(get("/x")).await;
    let mut server = upstream.accept().await;
    let request = server.request().await;
    assert!(request.get("x-forwarded-for").is_some(), "it was read: {request:?}");
    server.send("HTTP/1.1 204 No Content\r\n\r\n").await;
    assert_eq!(client.response().await.status(), 204);
}
