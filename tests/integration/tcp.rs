//! Connections of which pillion knows nothing but the bytes.

use crate::{
    peer::{PATIENCE, Peer},
    pillion::{Pillion, Setup},
    socket::Socket,
};
use std::{net::SocketAddr, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    sync::mpsc,
    task::JoinHandle,
    time::{Instant, timeout},
};

/// Takes connections, and hands them over.
pub struct Backend {
    pub address: SocketAddr,
    taken: mpsc::UnboundedReceiver<Peer>,
    task: JoinHandle<()>,
}

impl Backend {
    pub async fn start() -> Self {
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

    pub async fn next(&mut self) -> Peer {
        timeout(PATIENCE, self.taken.recv()).await.expect("a connection").unwrap()
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub fn db<A: ToString>(addresses: impl IntoIterator<Item = A>) -> Setup {
    let addresses: Vec<_> = addresses.into_iter().map(|address| address.to_string()).collect();
    Setup::default().instances("db", addresses).listener("db", "protocol: tcp, service: db")
}

/// A connection through pillion, and its other end.
pub async fn through(pillion: &Pillion, backend: &mut Backend) -> (Peer, Peer) {
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

pub async fn is_reset(peer: &mut Peer) -> bool {
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

/// Whoever is kept out is let in by one connection, which must not get lost.
#[tokio::test]
async fn a_limit_that_is_reached_keeps_nobody_out_for_good() {
    let mut one = Backend::start().await;
    let service = "db: { limits: { connections: 2 }, breaker: { open: { base: 4s, max: 4s } } }";
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
    // For longer than it is kept out.
    for _ in 0..100 {
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
