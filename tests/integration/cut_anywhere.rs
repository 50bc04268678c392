//! Connections that end at any byte: of a request and of a response, in order and by a reset, with HTTP/1.1 and HTTP/2 on
//! either side. What was cut off never looks whole, nothing runs twice, and nothing is left behind.

use crate::{
    e2e,
    faulty_connections::{Asker, Outcome},
    http2_peer::request,
    peer::{PATIENCE, Peer, Upstream, post},
    pillion::Setup,
    relay::{Fault, Faults, Relay, Way},
};
use bytes::Bytes;
use http::Version;
use std::net::SocketAddr;
use tokio::{
    io::AsyncReadExt,
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinHandle,
    time::timeout,
};

const VERSIONS: [Version; 2] = [Version::HTTP_11, Version::HTTP_2];
const ENDS: [Fault; 2] = [Fault::Close, Fault::Reset];
/// Bodies of responses and requests, with the field that frames them.
const BODIES: [&str; 2] = [
    "content-length: 11\r\n\r\nhello world",
    "transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n6;x=y\r\n world\r\n0\r\nx-sum: 11\r\n\r\n",
];

#[tokio::test]
async fn a_response_is_whole_or_says_that_it_is_not() {
    for (body, end, version) in
        BODIES.iter().flat_map(|body| ENDS.iter().flat_map(move |end| VERSIONS.map(|version| (body, *end, version))))
    {
        let response = format!("HTTP/1.1 200 OK\r\nx-a: b\r\n{body}");
        let (length, head) = (response.len(), response.find("\r\n\r\n").unwrap() + 4);
        let mut upstream = Upstream::bind().await.answering(move |_| response.clone());
        // Each connection ends one byte later than the one before.
        let relay = Relay::with(upstream.address.port(), move |number| Faults::down(Way::after(number + 1, end))).await;
        let pillion = Setup::users([relay.address()]).start().await;
        let idle = pillion.idle_tasks().await;
        let mut asker = Asker::new(pillion.egress(), version);
        for cut in 1..=length {
            let expected = match cut {
                _ if cut < head => Outcome::Failed(502, "upstream_protocol".into()),
                _ if cut < length => Outcome::Cut,
                _ => Outcome::Whole("hello world".into()),
            };
            let outcome = asker.get(&format!("/{cut}")).await;
            assert_eq!(outcome, expected, "{version:?}, {end:?} after {cut} bytes of {length}");
        }
        drop(asker);
        let paths: Vec<_> = upstream.unseen().into_iter().map(|request| request.start).collect();
        let once: Vec<_> = (1..=length).map(|cut| format!("GET /{cut} HTTP/1.1")).collect();
        assert_eq!(paths, once, "each came once");
        pillion.until_idle(idle).await;
    }
}

#[tokio::test]
async fn a_response_over_http_2_is_whole_or_says_that_it_is_not() {
    for (end, version) in ENDS.iter().flat_map(|end| VERSIONS.map(|version| (*end, version))) {
        let upstream = e2e::Upstream::start("hello world").await;
        let relay = Relay::with(upstream.address.port(), move |number| Faults::down(Way::after(number, end))).await;
        let instance = format!("{{ address: {}, protocol: http2 }}", relay.address());
        let pillion = Setup::users([instance]).start().await;
        let idle = pillion.idle_tasks().await;
        let mut asker = Asker::new(pillion.egress(), version);
        let (mut posts, mut whole, mut cut) = (0, 0, 0);
        // A response takes some 150 bytes; a connection that lasts longer carries several.
        while relay.connections() < 250 {
            posts += 1;
            match asker.post("/", "order").await {
                Outcome::Whole(body) => {
                    assert_eq!(body, "hello world");
                    whole += 1;
                }
                Outcome::Cut => cut += 1,
                Outcome::Failed(status, reason) => {
                    let known = ["connect_failed", "upstream_closed", "upstream_protocol", "upstream_refused"];
                    assert!(status == 502 && known.contains(&reason.as_str()), "{status} {reason}");
                }
            }
        }
        println!("{version:?}, {end:?}: of {posts} requests {whole} were answered and {cut} cut off");
        assert!(whole > 50 && cut > 3, "{whole} whole, {cut} cut off");
        assert!(upstream.requests() <= posts, "{} of {posts} POSTs", upstream.requests());
        drop(asker);
        relay.cut();
        pillion.until_idle(idle).await;
    }
}

/// A server that never answers, and tells what came on each connection once it has ended.
struct Collector {
    address: SocketAddr,
    ended: mpsc::UnboundedReceiver<Vec<u8>>,
    task: JoinHandle<()>,
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Collector {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (tell, ended) = mpsc::unbounded_channel();
        let task = tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let tell = tell.clone();
                tokio::spawn(async move {
                    let mut bytes = Vec::new();
                    // However it ended, what came before counts.
                    let _ = stream.read_to_end(&mut bytes).await;
                    let _ = tell.send(bytes);
                });
            }
        });
        Self { address, ended, task }
    }

    /// What came on so many connections.
    async fn all(&mut self, connections: usize) -> Vec<String> {
        let mut all = Vec::new();
        for _ in 0..connections {
            let next = timeout(PATIENCE, self.ended.recv()).await;
            all.push(String::from_utf8(next.expect("a connection to end").unwrap()).unwrap());
        }
        all
    }
}

/// Whether a request's body is at its end.
fn is_whole(request: &str) -> bool {
    let Some((head, body)) = request.split_once("\r\n\r\n") else { return false };
    if head.contains("transfer-encoding: chunked") { body.ends_with("\r\n\r\n") } else { body.len() == 11 }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leaving {
    Close,
    Reset,
    /// Its sending side only.
    Half,
}

#[tokio::test]
async fn a_request_that_was_cut_off_is_not_whole_for_the_upstream_either() {
    let mut collector = Collector::start().await;
    let pillion = Setup::users([collector.address]).start().await;
    let idle = pillion.idle_tasks().await;
    let mut lengths = Vec::new();
    for body in BODIES {
        for leaving in [Leaving::Close, Leaving::Reset, Leaving::Half] {
            let request = |cut: usize| format!("PUT / HTTP/1.1\r\nhost: user-service\r\nx-cut: {cut:03}\r\n{body}");
            let length = request(0).len();
            let mut half = Vec::new();
            for cut in 0..=length {
                let mut client = pillion.connect().await;
                client.send(&request(cut).as_bytes()[..cut]).await;
                match leaving {
                    Leaving::Close => drop(client),
                    Leaving::Reset => client.reset(),
                    Leaving::Half => {
                        client.shutdown().await;
                        half.push(client);
                    }
                }
            }
            // Who has ended its side gets no answer to what it has not said, and is closed.
            for mut client in half {
                client.rest().await;
            }
            lengths.push(length);
        }
    }
    pillion.until_idle(idle).await;
    let opened = pillion.metric("pillion_pool_opened_total", &[]).await as usize;
    let requests = collector.all(opened).await;
    println!("{} requests, {opened} of them reached the upstream", lengths.iter().sum::<usize>() + lengths.len());
    assert!(opened > 50, "{opened}");
    for request in requests.iter().filter(|request| is_whole(request)) {
        let cut = lengths.iter().any(|length| request.contains(&format!("x-cut: {length:03}\r\n")));
        assert!(cut, "it was cut off and looks whole: {request}");
    }
    assert_eq!(pillion.metric("pillion_retries_total", &[]).await, 0.0, "who has left needs no second try");
}

/// Sends a request in two pieces and waits for the end; on a connection that may end anywhere.
async fn h2_request(address: SocketAddr, cut: usize) -> Result<(), Box<dyn std::error::Error>> {
    let (send, connection) = h2::client::handshake(TcpStream::connect(address).await?).await?;
    let driver = tokio::spawn(connection);
    let (response, mut stream) = send.ready().await?.send_request(request("PUT", &format!("/{cut}")), false)?;
    stream.send_data(Bytes::from_static(b"hello "), false)?;
    tokio::task::yield_now().await;
    stream.send_data(Bytes::from_static(b"world"), true)?;
    let ended = response.await.map(drop);
    driver.abort();
    Ok(ended?)
}

#[tokio::test]
async fn a_client_s_http_2_connection_may_end_anywhere() {
    // As many as a request takes on a new connection, and some more.
    const BYTES: usize = 180;
    for end in ENDS {
        let mut collector = Collector::start().await;
        let pillion = Setup::users([collector.address]).start().await;
        let idle = pillion.idle_tasks().await;
        let relay = Relay::with(pillion.egress().port(), move |number| Faults::up(Way::after(number, end))).await;
        let address = relay.address().parse().unwrap();
        // Some are over before the bytes are; those are ended by the cut below.
        let clients: Vec<_> = (0..BYTES)
            .map(|cut| tokio::spawn(async move { h2_request(address, cut).await.map_err(|error| error.to_string()) }))
            .collect();
        for cut in 0..100 {
            relay.until(cut, |passed| passed.closed).await;
        }
        pillion.until_metric("pillion_connections_accepted_total", &[], 1.0 + BYTES as f64).await;
        relay.cut();
        for client in clients {
            assert!(client.await.unwrap().is_err(), "nobody is answered");
        }
        pillion.until_idle(idle).await;
        let opened = pillion.metric("pillion_pool_opened_total", &[]).await as usize;
        println!("{end:?}: {opened} of {BYTES} requests reached the upstream");
        assert!(opened > 0);
        for request in collector.all(opened).await {
            assert!(!is_whole(&request) || request.contains("hello ") && request.contains("world"), "{request}");
        }
    }
}

#[tokio::test]
async fn a_connection_in_use_that_ends_anywhere_costs_only_those_on_it() {
    // The second request on a connection is the one that is cut off: a pooled connection that dies is no news of its
    // endpoint, but a POST that may have been executed is not sent again.
    let response = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
    for end in ENDS {
        let mut upstream = Upstream::bind().await.answering(move |_| response.into());
        let relay = Relay::with(upstream.address.port(), move |number| {
            Faults::down(Way::after(response.len() + number + 1, end))
        })
        .await;
        let pillion = Setup::users([relay.address()]).start().await;
        let idle = pillion.idle_tasks().await;
        let mut client = Peer::connect(pillion.egress()).await;
        for cut in 1..response.len() {
            client.send(post("/first", "x")).await;
            assert_eq!(client.response().await.text(), "ok", "{cut}");
            // (Which of its connections were there before does not matter: it has one at a time.)
            client.send(post("/second", "x")).await;
            match client.try_response().await {
                Ok(response) => assert_eq!(response.status(), 502, "{cut}"),
                Err(_) => client = Peer::connect(pillion.egress()).await,
            }
        }
        let seen = upstream.unseen();
        let count = |path: &str| seen.iter().filter(|request| request.start.contains(path)).count();
        assert_eq!((count("/first"), count("/second")), (response.len() - 1, response.len() - 1));
        assert_eq!(pillion.metric("pillion_retries_total", &[]).await, 0.0);
        drop(client);
        pillion.until_idle(idle).await;
    }
}
