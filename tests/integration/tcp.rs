//! Connections of which pillion knows nothing but the bytes.

use crate::{
    peer::{PATIENCE, Peer},
    pillion::{Pillion, Setup},
    socket::Socket,
};
use rustls::pki_types::PrivateKeyDer;
use socket2::SockRef;
use std::{net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    sync::mpsc,
    task::JoinHandle,
    time::{Instant, timeout},
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// Takes connections, and hands them over.
struct Backend {
    address: SocketAddr,
    taken: mpsc::UnboundedReceiver<Peer>,
    task: JoinHandle<()>,
}

impl Backend {
    async fn start() -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        // Where there is no room for one that is to be accepted, the kernel resets it later.
        let listener = Socket(socket.listen(4096).unwrap());
        let address = listener.local_addr().unwrap();
        let (tell, taken) = mpsc::unbounded_channel();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let _ = tell.send(Peer::new(stream));
            }
        });
        Self { address, taken, task }
    }

    async fn next(&mut self) -> Peer {
        timeout(PATIENCE, self.taken.recv()).await.expect("a connection").unwrap()
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn db<A: ToString>(addresses: impl IntoIterator<Item = A>) -> Setup {
    let addresses: Vec<_> = addresses.into_iter().map(|address| address.to_string()).collect();
    Setup::default().instances("db", addresses).listener("db", "protocol: tcp, service: db")
}

/// A connection through pillion, and its other end.
async fn through(pillion: &Pillion, backend: &mut Backend) -> (Peer, Peer) {
    let mut client = Peer::connect(pillion.address("db")).await;
    client.send("?").await;
    let mut server = backend.next().await;
    assert_eq!(server.take(1).await, b"?");
    (client, server)
}

/// Whether a connection is reset at once, perhaps before its client has noticed that it is there.
async fn is_turned_away(address: SocketAddr) -> bool {
    match TcpStream::connect(address).await {
        Ok(stream) => is_reset(&mut Peer::new(stream)).await,
        Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
    }
}

async fn is_reset(peer: &mut Peer) -> bool {
    let mut byte = [0];
    let read = timeout(PATIENCE, peer.stream.read(&mut byte)).await.expect("the connection ends");
    read.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset)
}

fn pattern(length: usize, seed: u64) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    std::iter::repeat_with(|| random.u8(..)).take(length).collect()
}

#[tokio::test]
async fn bytes_arrive_as_they_were_sent_and_each_side_ends_by_itself() {
    let mut backend = Backend::start().await;
    let pillion = db([backend.address]).access_log().start().await;
    let (mut client, mut server) = through(&pillion, &mut backend).await;
    // The server may be the first to say something.
    server.send("welcome").await;
    assert_eq!(client.take(7).await, b"welcome");
    client.send("a question").await;
    assert_eq!(server.take(10).await, b"a question");
    client.stream.shutdown().await.unwrap();
    assert_eq!(server.rest().await, b"", "the end of one direction");
    server.send("the answer").await;
    assert_eq!(client.take(10).await, b"the answer", "is not the end of the other");
    drop(server);
    assert_eq!(client.rest().await, b"");
    pillion.until_metric("pillion_tcp_closed_total", &["service=\"db\"", "outcome=\"done\""], 1.0).await;
    pillion.until_metric("pillion_tcp_connections", &["service=\"db\""], 0.0).await;
    assert_eq!(pillion.metric("pillion_tcp_sent_bytes_total", &["service=\"db\""]).await, 11.0);
    assert_eq!(pillion.metric("pillion_tcp_received_bytes_total", &["service=\"db\""]).await, 17.0);
    assert_eq!(pillion.metric("pillion_tcp_duration_seconds_count", &["service=\"db\""]).await, 1.0);
    let line = pillion.access_line(" db ").await;
    let endpoint = format!("service=db endpoint={} attempts=1", backend.address);
    assert!(line.contains("\"- - TCP\" - 0 - in=11 out=17") && line.contains(&endpoint), "{line}");
}

/// So much that it takes the way through the kernel.
#[tokio::test]
async fn much_both_ways_at_once_arrives_whole() {
    let mut backend = Backend::start().await;
    let pillion = db([backend.address]).start().await;
    let connections = (0..4).map(|number| (number, Peer::connect(pillion.address("db"))));
    let mut running = Vec::new();
    for (number, connecting) in connections {
        let (client, server) = (connecting.await, backend.next().await);
        for (end, sends, expects) in [(client, number * 2, number * 2 + 1), (server, number * 2 + 1, number * 2)] {
            running.push(tokio::spawn(async move {
                // Whose end is not a multiple of anything.
                let (sent, expected) = (pattern((8 << 20) + 4321, sends), pattern((8 << 20) + 4321, expects));
                let (mut read, mut write) = tokio::io::split(end.stream);
                let sending = tokio::spawn(async move {
                    // By turns in large pieces and many small ones.
                    for piece in sent.chunks(3 << 20) {
                        let (large, small) = piece.split_at(piece.len() - 4000);
                        write.write_all(large).await.unwrap();
                        for one in small.chunks(50) {
                            write.write_all(one).await.unwrap();
                            tokio::task::yield_now().await;
                        }
                    }
                    write.shutdown().await.unwrap();
                });
                let mut received = Vec::new();
                timeout(PATIENCE * 3, read.read_to_end(&mut received)).await.expect("it ends").unwrap();
                sending.await.unwrap();
                assert_eq!(received.len(), expected.len());
                assert!(received == expected, "bytes were changed");
            }));
        }
    }
    for one in running {
        one.await.unwrap();
    }
    pillion.until_metric("pillion_tcp_closed_total", &["outcome=\"done\""], 4.0).await;
}

/// Whoever does not read holds up the sender, and pillion keeps no more than its buffers.
#[tokio::test]
async fn a_slow_reader_holds_up_the_sender() {
    let mut backend = Backend::start().await;
    let pillion = db([backend.address]).start().await;
    let (mut client, mut server) = through(&pillion, &mut backend).await;
    let data = pattern(64 << 20, 7);
    let expected = data.clone();
    let sending = tokio::spawn(async move {
        server.stream.write_all(&data).await.unwrap();
        server.stream.shutdown().await.unwrap();
        server
    });
    // It comes to a stop.
    let mut moved = -1.0;
    loop {
        tokio::time::sleep(Duration::from_millis(1500)).await;
        let now = pillion.metric("pillion_tcp_received_bytes_total", &[]).await;
        if now == moved {
            break;
        }
        moved = now;
    }
    assert!(moved < 40e6, "{moved} bytes went to somebody who reads nothing");
    assert!(pillion.peak_memory() < 60 << 20, "{}", pillion.peak_memory());
    assert!(client.take(expected.len()).await == expected, "bytes were changed");
    sending.await.unwrap();
}

#[tokio::test]
async fn an_endpoint_that_refuses_costs_no_connection() {
    let (mut one, mut other, gone) = (Backend::start().await, Backend::start().await, Backend::start().await);
    let refusing = gone.address;
    drop(gone);
    let pillion = db([refusing, one.address, other.address]).access_log().start().await;
    let mut open = Vec::new();
    for _ in 0..20 {
        let mut client = Peer::connect(pillion.address("db")).await;
        client.send("?").await;
        let server = tokio::select! {
            server = one.next() => server,
            server = other.next() => server,
        };
        open.push((client, server));
    }
    drop(open);
    let line = pillion.access_line("attempts=2").await;
    assert!(line.contains("flags=retried:connect_failed"), "{line}");
    let failed = pillion.metric("pillion_tcp_closed_total", &["outcome=\"connect_failed\""]).await;
    assert_eq!(failed, 0.0);
}

#[tokio::test]
async fn where_nobody_takes_it_the_client_is_told_by_a_reset() {
    let gone = Backend::start().await;
    let refusing = gone.address;
    drop(gone);
    let pillion = db([refusing]).access_log().start().await;
    assert!(is_turned_away(pillion.address("db")).await);
    pillion.until_metric("pillion_tcp_closed_total", &["outcome=\"connect_failed\""], 1.0).await;
    let line = pillion.access_line(" db ").await;
    assert!(line.contains("connect_failed") && line.contains(&refusing.to_string()), "{line}");
}

/// What breaks on one side breaks on the other, and looks like no orderly end.
#[tokio::test]
async fn resets_are_passed_on() {
    let mut backend = Backend::start().await;
    let pillion = db([backend.address]).start().await;
    let (mut client, server) = through(&pillion, &mut backend).await;
    SockRef::from(&*server.stream).set_linger(Some(Duration::ZERO)).unwrap();
    drop(server);
    assert!(is_reset(&mut client).await);
    let (client, mut server) = through(&pillion, &mut backend).await;
    SockRef::from(&*client.stream).set_linger(Some(Duration::ZERO)).unwrap();
    drop(client);
    assert!(is_reset(&mut server).await);
    pillion.until_metric("pillion_tcp_closed_total", &["outcome=\"upstream_closed\""], 1.0).await;
    pillion.until_metric("pillion_tcp_closed_total", &["outcome=\"downstream_closed\""], 1.0).await;
    pillion.until_metric("pillion_tcp_connections", &["service=\"db\""], 0.0).await;
}

/// Though it is by writing to it that one side is found to be gone.
#[tokio::test]
async fn a_reset_is_passed_on_while_the_other_side_sends() {
    let mut backend = Backend::start().await;
    let pillion = db([backend.address]).start().await;
    for _ in 0..10 {
        let (client, mut server) = through(&pillion, &mut backend).await;
        let (mut read, mut write) = tokio::io::split(client.stream);
        let sending = tokio::spawn(async move {
            loop {
                if let Err(error) = write.write_all(&[b'x'; 10_000]).await {
                    return error.kind();
                }
            }
        });
        server.take(100_000).await;
        server.send("partial").await;
        SockRef::from(&*server.stream).set_linger(Some(Duration::ZERO)).unwrap();
        drop(server);
        let mut received = Vec::new();
        let ended = timeout(PATIENCE, read.read_to_end(&mut received)).await.expect("it ends");
        let sent = timeout(PATIENCE, sending).await.expect("it ends").unwrap();
        // The kernel tells it once: who writes, or who reads. After an orderly end it would be another error.
        let kinds = [ended.err().map(|error| error.kind()), Some(sent)];
        assert!(kinds.contains(&Some(std::io::ErrorKind::ConnectionReset)), "{kinds:?} after {received:?}");
    }
}

/// Whom nobody reads, because the other side takes nothing.
#[tokio::test]
async fn one_that_leaves_is_noticed_though_the_other_does_not_read() {
    let mut backend = Backend::start().await;
    let pillion = db([backend.address]).start().await;
    let (mut client, _server) = through(&pillion, &mut backend).await;
    let full = async { while client.stream.write_all(&[b'x'; 100_000]).await.is_ok() {} };
    timeout(Duration::from_secs(3), full).await.expect_err("it comes to a stop");
    SockRef::from(&*client.stream).set_linger(Some(Duration::ZERO)).unwrap();
    drop(client);
    pillion.until_metric("pillion_tcp_closed_total", &["outcome=\"downstream_closed\""], 1.0).await;
    pillion.until_metric("pillion_tcp_connections", &["service=\"db\""], 0.0).await;
}

/// Else nobody could tell a part of it from all of it.
#[tokio::test]
async fn a_connection_that_is_closed_while_bytes_move_is_reset() {
    let mut backend = Backend::start().await;
    let pillion = db([backend.address]).service("db: { tcp: { max_age: 2s } }").start().await;
    let (client, server) = through(&pillion, &mut backend).await;
    let (mut read, _write) = tokio::io::split(client.stream);
    let Peer { mut stream, .. } = server;
    let sending = tokio::spawn(async move { while stream.write_all(&[b'x'; 100_000]).await.is_ok() {} });
    let (mut space, reading) = (vec![0; 1 << 20], Instant::now());
    let error = loop {
        match timeout(PATIENCE, read.read(&mut space)).await.expect("it goes on") {
            Ok(0) => panic!("an orderly end after {:?}", reading.elapsed()),
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    sending.await.unwrap();
    pillion.until_metric("pillion_tcp_closed_total", &["outcome=\"stream_timeout\""], 1.0).await;
}

/// Whoever is kept out is let in by one connection, which must not get lost.
#[tokio::test]
async fn a_limit_that_is_reached_keeps_nobody_out_for_good() {
    let mut one = Backend::start().await;
    let service = "db: { limits: { connections: 2 }, breaker: { open: { base: 1s, max: 1s } } }";
    let pillion = db([one.address]).service(service).start().await;
    let gone = Backend::start().await;
    let refusing = gone.address;
    drop(gone);
    pillion.write_instances(&format!("services:\n  db: [{}, {refusing}]\n", one.address));
    // Until it is known that it refuses.
    let deadline = Instant::now() + PATIENCE;
    while pillion.metric("pillion_endpoints", &["state=\"ejected\""]).await == 0.0 {
        drop(through(&pillion, &mut one).await);
        assert!(Instant::now() < deadline);
    }
    // It is back; but for a while there is room for nobody.
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.bind(refusing).unwrap();
    let back = Socket(socket.listen(16).unwrap());
    let full = [through(&pillion, &mut one).await, through(&pillion, &mut one).await];
    for _ in 0..60 {
        assert!(is_turned_away(pillion.address("db")).await);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    drop(full);
    pillion.until_metric("pillion_tcp_connections", &["service=\"db\""], 0.0).await;
    let trying = async {
        loop {
            drop(TcpStream::connect(pillion.address("db")).await);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let taken = async { back.accept().await.unwrap() };
    tokio::select! {
        _ = trying => {}
        taken = timeout(PATIENCE, taken) => drop(taken.expect("it is tried again")),
    }
}

/// A server that refuses says why and closes at once, though the client is still sending.
#[tokio::test]
async fn the_last_words_of_a_server_arrive() {
    let mut backend = Backend::start().await;
    let pillion = db([backend.address]).start().await;
    for _ in 0..20 {
        let (mut client, mut server) = through(&pillion, &mut backend).await;
        server.send("too many connections").await;
        drop(server);
        // It may be too late for these.
        let _ = client.stream.write_all(&[b'x'; 1000]).await;
        assert_eq!(client.take(20).await, b"too many connections");
    }
}

#[tokio::test]
async fn an_idle_connection_is_closed_and_a_busy_one_is_not() {
    let mut backend = Backend::start().await;
    let pillion = db([backend.address]).service("db: { tcp: { idle_timeout: 2s } }").start().await;
    let (mut idle, _server) = through(&pillion, &mut backend).await;
    let (mut busy, mut echo) = through(&pillion, &mut backend).await;
    let start = Instant::now();
    let ended = tokio::spawn(async move {
        assert_eq!(idle.rest().await, b"");
        start.elapsed()
    });
    while !ended.is_finished() {
        busy.send("x").await;
        assert_eq!(echo.take(1).await, b"x");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let took = ended.await.unwrap();
    assert!(took >= Duration::from_millis(1900) && took < Duration::from_secs(10), "{took:?}");
    busy.send("x").await;
    assert_eq!(echo.take(1).await, b"x");
    pillion.until_metric("pillion_tcp_closed_total", &["outcome=\"idle_timeout\""], 1.0).await;
}

#[tokio::test]
async fn a_connection_has_its_time() {
    let mut backend = Backend::start().await;
    let pillion = db([backend.address]).service("db: { tcp: { max_age: 2s } }").start().await;
    let start = Instant::now();
    let (mut client, mut server) = through(&pillion, &mut backend).await;
    assert_eq!(client.rest().await, b"");
    assert!(start.elapsed() >= Duration::from_millis(1900), "{:?}", start.elapsed());
    assert_eq!(server.rest().await, b"");
    pillion.until_metric("pillion_tcp_closed_total", &["outcome=\"stream_timeout\""], 1.0).await;
}

/// By `tcp.when_gone`.
#[tokio::test]
async fn connections_to_an_endpoint_that_leaves_are_kept_drained_or_cut() {
    for (settings, closes) in [("keep", None), ("drain, drain: 3s", Some(2900)), ("cut", Some(0))] {
        let (mut leaving, mut staying) = (Backend::start().await, Backend::start().await);
        let service = format!("db: {{ guard: {{ enabled: false }}, tcp: {{ when_gone: {settings} }} }}");
        let pillion = db([leaving.address]).service(&service).start().await;
        let (mut client, mut server) = through(&pillion, &mut leaving).await;
        pillion.write_instances(&format!("services:\n  db: [{}]\n", staying.address));
        // Once it is known, new ones go to the other.
        let deadline = Instant::now() + PATIENCE;
        let mut other = loop {
            let other = Peer::connect(pillion.address("db")).await;
            let taken = tokio::select! {
                _ = staying.next() => true,
                _ = leaving.next() => false,
            };
            if taken {
                break other;
            }
            assert!(Instant::now() < deadline);
        };
        let start = Instant::now();
        match closes {
            None => {
                // For longer than it would take.
                tokio::time::sleep(Duration::from_secs(3)).await;
                client.send("x").await;
                assert_eq!(server.take(1).await, b"x");
            }
            Some(least) => {
                assert_eq!(client.rest().await, b"");
                let took = start.elapsed();
                assert!(took >= Duration::from_millis(least) && took < Duration::from_millis(least + 5000), "{took:?}");
                pillion.until_metric("pillion_tcp_closed_total", &["outcome=\"endpoint_gone\""], 1.0).await;
            }
        }
        other.send("y").await;
    }
}

#[tokio::test]
async fn new_ones_go_where_fewest_are() {
    let (mut one, mut other) = (Backend::start().await, Backend::start().await);
    let pillion = db([one.address, other.address]).start().await;
    let (mut first, mut second) = (Vec::new(), Vec::new());
    for _ in 0..20 {
        let client = Peer::connect(pillion.address("db")).await;
        tokio::select! {
            server = one.next() => first.push((client, server)),
            server = other.next() => second.push((client, server)),
        }
    }
    assert_eq!((first.len(), second.len()), (10, 10));
    // Ten of one leave; the next ten go there.
    drop(first);
    let mut first_again = Vec::new();
    pillion.until_metric("pillion_tcp_connections", &["service=\"db\""], 10.0).await;
    for _ in 0..10 {
        let client = Peer::connect(pillion.address("db")).await;
        first_again.push((client, timeout(PATIENCE, one.next()).await.expect("the one with fewer")));
    }
}

#[tokio::test]
async fn no_more_connections_than_allowed_are_open() {
    let mut backend = Backend::start().await;
    let pillion = db([backend.address]).service("db: { limits: { connections: 2 } }").start().await;
    let (first, _first) = through(&pillion, &mut backend).await;
    let _second = through(&pillion, &mut backend).await;
    assert!(is_turned_away(pillion.address("db")).await);
    pillion.until_metric("pillion_tcp_closed_total", &["outcome=\"connection_limit\""], 1.0).await;
    drop((first, _first));
    pillion.until_metric("pillion_tcp_connections", &["service=\"db\""], 1.0).await;
    let _fourth = through(&pillion, &mut backend).await;
}

/// They are what the end waits for, as requests are.
#[tokio::test]
async fn open_connections_go_on_while_pillion_drains() {
    let mut backend = Backend::start().await;
    let pillion = db([backend.address]).start().await;
    let (mut client, mut server) = through(&pillion, &mut backend).await;
    let stopping = tokio::spawn(pillion.stop());
    for _ in 0..10 {
        client.send("x").await;
        assert_eq!(server.take(1).await, b"x");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(!stopping.is_finished());
    drop(client);
    assert_eq!(server.rest().await, b"");
    drop(server);
    timeout(PATIENCE, stopping).await.expect("it ends with the last connection").unwrap();
}

#[tokio::test]
async fn a_thousand_connections_come_and_go_without_a_trace() {
    let mut backend = Backend::start().await;
    let pillion = db([backend.address])
        .service("db: { limits: { connections: 5000 }, timeouts: { connect: 10s } }")
        .start()
        .await;
    let address = pillion.address("db");
    let tasks = pillion.idle_tasks().await;
    let clients = (0..1000).map(|number| {
        tokio::spawn(async move {
            let mut client = TcpStream::connect(address).await.unwrap();
            client.write_all(&[b'x'; 100]).await.unwrap();
            // A third of them leave in the middle.
            if number % 3 == 0 {
                return;
            }
            client.shutdown().await.unwrap();
            let mut answer = Vec::new();
            client.read_to_end(&mut answer).await.unwrap();
            assert_eq!(answer, [b'x'; 100]);
        })
    });
    let serving = tokio::spawn(async move {
        for _ in 0..1000 {
            let mut server = backend.next().await;
            tokio::spawn(async move {
                let mut data = Vec::new();
                if server.stream.read_to_end(&mut data).await.is_ok() {
                    let _ = server.stream.write_all(&data).await;
                }
            });
        }
        backend
    });
    for client in clients.collect::<Vec<_>>() {
        assert!(client.await.is_ok(), "{}\n{}", pillion.log(), pillion.metrics().await);
    }
    let _backend = serving.await.unwrap();
    pillion.until_metric("pillion_tcp_connections", &["service=\"db\""], 0.0).await;
    pillion.until_metric("pillion_tcp_duration_seconds_count", &["service=\"db\""], 1000.0).await;
    pillion.until_metric("pillion_connections", &["listener=\"db\""], 0.0).await;
    pillion.until_metric("pillion_tasks", &[], tasks).await;
}

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
        .listener("tls", "protocol: tls, host_suffixes: [.example], limits: { head_timeout: 2s }")
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
        .listener("db", "protocol: tcp, service: db, proxy_protocol: true, limits: { head_timeout: 2s }")
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
