//! Connections that say for whom they are, or whom they come from: by TLS and by the PROXY protocol.

use crate::{
    peer::Peer,
    pillion::Setup,
    tcp::{Backend, is_reset},
};
use rustls::pki_types::PrivateKeyDer;
use std::{sync::Arc, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// A TLS server of this name, and a client's settings that trust it.
pub fn tls(name: &str) -> (TlsAcceptor, TlsConnector) {
    tls_of(rcgen::generate_simple_self_signed([name.to_owned()]).unwrap())
}

/// With a certificate that is its own authority.
pub fn tls_of(made: rcgen::CertifiedKey<rcgen::KeyPair>) -> (TlsAcceptor, TlsConnector) {
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let server = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let mut trusted = rustls::RootCertStore::empty();
    trusted.add(made.cert.der().clone()).unwrap();
    let client = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(trusted)
        .with_no_client_auth();
    (Arc::new(server).into(), Arc::new(client).into())
}

/// What a TLS client of the server `name` sends first.
pub fn client_hello(name: &'static str) -> Vec<u8> {
    let (_, connector) = tls("a.example");
    let mut client = rustls::ClientConnection::new(connector.config().clone(), name.try_into().unwrap()).unwrap();
    let mut hello = Vec::new();
    client.write_tls(&mut hello).unwrap();
    hello
}

#[tokio::test]
async fn the_server_s_name_says_which_service_and_nothing_is_decrypted() {
    let (mut users, mut orders) = (Backend::start().await, Backend::start().await);
    let pillion = Setup::default()
        .instances("users", [users.address])
        // That it wants TLS is why its clients speak it.
        .instances("orders", [format!("{{ address: \"{}\", tls: true }}", orders.address)])
        .listener("tls", "protocol: tls, host_suffixes: [.example], limits: { head_timeout: 5s }")
        .access_log()
        .start()
        .await;
    for (name, backend) in [("users.example", &mut users), ("orders.example", &mut orders)] {
        let (acceptor, connector) = tls(name);
        let client = TcpStream::connect(pillion.address("tls")).await.unwrap();
        let connecting = tokio::spawn(async move { connector.connect(name.try_into().unwrap(), client).await });
        let server = backend.next().await;
        let mut server = acceptor.accept(server.stream).await.unwrap();
        let mut client = connecting.await.unwrap().expect("the server's own certificate");
        client.write_all(b"question").await.unwrap();
        let mut read = [0; 8];
        server.read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"question");
        server.write_all(b"response").await.unwrap();
        client.read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"response");
        drop((client, server));
        let line = pillion.access_line(&format!(" {name} ")).await;
        assert!(line.contains(&format!("service={}", name.strip_suffix(".example").unwrap())), "{line}");
    }
    // Byte by byte.
    let hello = client_hello("users.example");
    let mut slow = Peer::connect(pillion.address("tls")).await;
    for byte in &hello {
        slow.send([*byte]).await;
        tokio::task::yield_now().await;
    }
    let mut server = users.next().await;
    assert_eq!(server.take(hello.len()).await, hello);
    // Those that name nobody, a server that nobody knows, or speak something else, or not at all.
    let named_nobody = client_hello("127.0.0.1");
    for (start, reason, count) in [
        (&named_nobody[..], "unknown_service", 1.0),
        (b"GET / HTTP/1.1\r\n", "bad_request", 1.0),
        (&hello[..10], "head_timeout", 1.0),
    ] {
        let mut client = Peer::connect(pillion.address("tls")).await;
        client.send(start).await;
        assert!(is_reset(&mut client).await, "{reason}");
        let line = pillion.access_line(reason).await;
        assert!(line.contains("service=- endpoint=- attempts=0"), "{line}");
        let labels = ["listener=\"tls\"", &format!("reason=\"{reason}\"")];
        pillion.until_metric("pillion_requests_rejected_total", &labels, count).await;
    }
    let mut client = Peer::connect(pillion.address("tls")).await;
    client.send(client_hello("nobody.example")).await;
    assert!(is_reset(&mut client).await);
    assert!(pillion.access_line(" nobody.example ").await.contains(" unknown_service "));
}

#[tokio::test]
async fn whom_a_connection_comes_from_is_heard_and_told() {
    let mut backend = Backend::start().await;
    let pillion = Setup::default()
        .instances("db", [backend.address])
        .listener("db", "protocol: tcp, service: db, proxy_protocol: true, limits: { head_timeout: 5s }")
        .listener("plain", "protocol: tcp, service: db")
        .service("db: { tcp: { proxy_protocol: v2 } }")
        .access_log()
        .start()
        .await;
    let header = |source: [u8; 4], destination: [u8; 4], ports: [u16; 2]| {
        let ports = ports.map(u16::to_be_bytes).concat();
        [&b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c"[..], &source, &destination, &ports].concat()
    };
    let mut client = Peer::connect(pillion.address("db")).await;
    for piece in ["PROX", "Y TCP4 192.0.2.7 198.51.100.1 ", "4711 5432\r", "\nhello"] {
        client.send(piece).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let mut server = backend.next().await;
    let expected = header([192, 0, 2, 7], [198, 51, 100, 1], [4711, 5432]);
    assert_eq!(server.take(expected.len() + 5).await, [&expected[..], b"hello"].concat());
    drop((client, server));
    let line = pillion.access_line("192.0.2.7:4711").await;
    assert!(line.contains("in=5 out=0"), "{line}");
    // Without one before, it is the connection's own addresses.
    let (address, mut client) = (pillion.address("plain"), Peer::connect(pillion.address("plain")).await);
    let own = client.stream.local_addr().unwrap();
    client.send("x").await;
    let expected = header([127, 0, 0, 1], [127, 0, 0, 1], [own.port(), address.port()]);
    let mut server = backend.next().await;
    assert_eq!(server.take(expected.len() + 1).await, [&expected[..], b"x"].concat());
    // Who leaves it out is not let in.
    for (start, reason) in [("GET / HTTP/1.1\r\n\r\n", "bad_request"), ("PROXY TCP4", "head_timeout")] {
        let mut client = Peer::connect(pillion.address("db")).await;
        client.send(start).await;
        assert!(is_reset(&mut client).await, "{reason}");
        pillion.access_line(reason).await;
    }
}

#[tokio::test]
async fn requests_come_from_whom_the_proxy_before_says() {
    let mut backend = Backend::start().await;
    let pillion = Setup::users([backend.address]).egress("proxy_protocol: true").access_log().start().await;
    let mut client = pillion.connect().await;
    client.send("PROXY TCP6 2001:db8::1 2001:db8::2 1 2\r\nGET /a HTTP/1.1\r\nhost: user-service\r\n\r\n").await;
    let mut server = backend.next().await;
    let head = server.head().await;
    assert_eq!((head.start.as_str(), head.get("x-forwarded-for")), ("GET /a HTTP/1.1", Some("2001:db8::1")));
    server.send("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    assert_eq!(client.response().await.status(), 200);
    client.send("GET /b HTTP/1.1\r\nhost: user-service\r\n\r\n").await;
    assert_eq!(server.head().await.get("x-forwarded-for"), Some("2001:db8::1"));
    pillion.access_line("[2001:db8::1]:1").await;
    let mut client = pillion.connect().await;
    client.send("GET / HTTP/1.1\r\nhost: user-service\r\n\r\n").await;
    assert_eq!(client.rest().await, b"", "it is closed");
    pillion.until_metric("pillion_requests_rejected_total", &["reason=\"bad_request\""], 1.0).await;
}
