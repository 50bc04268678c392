//! Clients and upstreams that are slow, go silent, end one direction only, or answer before they were asked: each gets what
//! is due, and no connection, task or budget token is left behind. (`cut_anywhere` has connections that end.)

use crate::{
    http2_peer::{Client, H2Upstream, collect, read, request, soon},
    peer::{Answering, Peer, Upstream, get, ok, post},
    pillion::Setup,
    relay::{Fault, Faults, Relay, Way},
};
use http::{Response, Version};
use std::{net::SocketAddr, time::Duration};
use tokio::time::Instant;

const MS: Duration = Duration::from_millis(1);
const VERSIONS: [Version; 2] = [Version::HTTP_11, Version::HTTP_2];

/// What became of a request, as its caller sees it.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A response that is all there, with this body.
    Whole(String),
    /// A response that ended early, and the caller can tell.
    Cut,
    /// pillion's own answer: the status and the reason.
    Failed(u16, String),
}

/// A caller with one connection at a time.
pub struct Asker {
    address: SocketAddr,
    version: Version,
    h1: Option<Peer>,
    h2: Option<Client>,
}

impl Asker {
    pub fn new(address: SocketAddr, version: Version) -> Self {
        Self { address, version, h1: None, h2: None }
    }

    pub async fn get(&mut self, path: &str) -> Outcome {
        self.ask("GET", path, "").await
    }

    pub async fn post(&mut self, path: &str, body: &str) -> Outcome {
        self.ask("POST", path, body).await
    }

    pub async fn ask(&mut self, method: &str, path: &str, body: &str) -> Outcome {
        if self.version == Version::HTTP_2 {
            self.ask_h2(method, path, body).await
        } else {
            self.ask_h1(method, path, body).await
        }
    }

    async fn ask_h1(&mut self, method: &str, path: &str, body: &str) -> Outcome {
        let mut peer = match self.h1.take() {
            Some(peer) => peer,
            None => Peer::connect(self.address).await,
        };
        peer.send(if body.is_empty() { get(path) } else { post(path, body) }.replacen("GET", method, 1)).await;
        let Ok(response) = peer.try_response().await else { return Outcome::Cut };
        if response.get("connection") != Some("close") {
            self.h1 = Some(peer);
        }
        match response.error() {
            (status, Some(reason)) => Outcome::Failed(status, reason.into()),
            (_, None) => Outcome::Whole(response.text()),
        }
    }

    async fn ask_h2(&mut self, method: &str, path: &str, body: &str) -> Outcome {
        let client = match &mut self.h2 {
            Some(client) => client,
            none => none.insert(Client::connect(self.address).await),
        };
        let (response, mut stream) = client.start(request(method, path), body.is_empty()).await;
        if !body.is_empty() {
            stream.send_data(body.to_owned().into(), true).unwrap();
        }
        match collect(response).await {
            Err(_) => Outcome::Cut,
            Ok(answer) => match answer.headers.get("x-pillion-error") {
                Some(reason) => Outcome::Failed(answer.status.as_u16(), reason.to_str().unwrap().into()),
                None => Outcome::Whole(answer.text()),
            },
        }
    }
}

/// So many bytes that differ.
fn text(length: usize) -> String {
    (0..length).map(|n| char::from(b'a' + (n % 23) as u8)).collect()
}

fn failed(status: u16, reason: &str) -> Outcome {
    Outcome::Failed(status, reason.into())
}

#[tokio::test]
async fn a_slow_upstream_is_waited_for_and_keeps_nobody_else_waiting() {
    let body = text(10_000);
    let slow = {
        let body = body.clone();
        Upstream::bind().await.answering(move |_| ok(&body))
    };
    let fast = Answering::ok().await;
    // Both directions, so that even the request's head comes in pieces.
    let way = Way::slow(50, MS);
    let relay = Relay::with(slow.address.port(), move |_| Faults { up: way, down: way }).await;
    let pillion = Setup::users([relay.address()]).instances("fast", [fast.address]).start().await;
    let idle = pillion.idle_tasks().await;
    for version in VERSIONS {
        let mut asker = Asker::new(pillion.egress(), version);
        let asked = tokio::spawn(async move {
            let answers = [asker.get("/").await, asker.post("/", "order").await];
            (answers, asker)
        });
        let mut other = pillion.connect().await;
        let mut answered = 0;
        while !asked.is_finished() {
            other.send("GET / HTTP/1.1\r\nhost: fast\r\n\r\n").await;
            assert_eq!(other.response().await.text(), "ok");
            answered += 1;
        }
        // The slow one takes 400 ms and more for two answers.
        assert!(answered >= 10, "{answered}");
        let (answers, _asker) = asked.await.unwrap();
        assert_eq!(answers, [Outcome::Whole(body.clone()), Outcome::Whole(body.clone())], "{version:?}");
    }
    pillion.until_idle(idle).await;
}

#[tokio::test]
async fn a_slow_client_is_waited_for() {
    let body = text(300_000);
    let mut upstream = Upstream::bind().await.answering(|request| ok(&request.text()));
    let pillion = Setup::users([upstream.address]).start().await;
    let idle = pillion.idle_tasks().await;
    let way = Way::slow(3_000, MS);
    let relay = Relay::with(pillion.egress().port(), move |_| Faults { up: way, down: way }).await;
    for version in VERSIONS {
        let mut asker = Asker::new(relay.address().parse().unwrap(), version);
        // HTTP/2 lets a sender send as much as the other side has room for; a test's `send_data` takes it all the same.
        assert_eq!(asker.post("/", &body).await, Outcome::Whole(body.clone()), "{version:?}");
        assert!(upstream.seen().await.text() == body);
    }
    pillion.until_idle(idle).await;
}

#[tokio::test]
async fn a_head_that_comes_byte_by_byte_is_read_and_one_that_never_ends_is_not_waited_for() {
    let upstream = Answering::ok().await;
    let pillion = Setup::users([upstream.address]).egress("limits: { head_timeout: 5s }").start().await;
    let idle = pillion.idle_tasks().await;
    let relay = Relay::with(pillion.egress().port(), |number| match number {
        0 => Faults::up(Way::slow(1, MS)),
        // Within the head, and before the first byte of it that tells HTTP/1 from HTTP/2.
        1 => Faults::up(Way::after(20, Fault::Swallow)),
        _ => Faults::up(Way::after(1, Fault::Stall)),
    })
    .await;
    let address = relay.address().parse().unwrap();
    let mut client = Peer::connect(address).await;
    client.send(get("/")).await;
    assert_eq!(client.response().await.text(), "ok");
    for _ in 0..2 {
        let (mut client, start) = (Peer::connect(address).await, Instant::now());
        client.send(post("/", "x")).await;
        // A single `P` is not yet known for a request.
        let answer = client.rest().await;
        assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 408 "), "{}", String::from_utf8_lossy(&answer));
        assert!((4900 * MS..30_000 * MS).contains(&start.elapsed()), "{:?}", start.elapsed());
    }
    drop(client);
    relay.cut();
    pillion.until_idle(idle).await;
}

#[tokio::test]
async fn a_client_that_stops_reading_is_given_up() {
    for version in VERSIONS {
        let upstream = Upstream::bind().await;
        let settings = "user-service: { timeouts: { idle: 400ms } }";
        let pillion = Setup::users([upstream.address]).service(settings).start().await;
        let idle = pillion.idle_tasks().await;
        let relay = Relay::with(pillion.egress().port(), |_| Faults::down(Way::after(100_000, Fault::Stall))).await;
        let mut asker = Asker::new(relay.address().parse().unwrap(), version);
        let asked = tokio::spawn(async move { asker.get("/").await });
        let mut server = upstream.accept().await;
        server.request().await;
        // As much as anybody takes; pillion closes in the end, however much there is still to come.
        server.send("HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n").await;
        let piece = vec![b'x'; 64 << 10];
        let writing = async { while tokio::io::AsyncWriteExt::write_all(&mut *server.stream, &piece).await.is_ok() {} };
        soon("pillion to give up", writing).await;
        pillion.until_metric("pillion_requests_in_flight", &[], 0.0).await;
        pillion.until_metric("pillion_pool_connections", &["state=\"active\""], 0.0).await;
        pillion.until_metric("pillion_errors_total", &["reason=\"idle_timeout\""], 1.0).await;
        // Over HTTP/2 the client's connection is not the request's.
        drop(relay);
        asked.abort();
        pillion.until_idle(idle).await;
    }
}

#[tokio::test]
async fn an_upstream_that_goes_silent_is_given_up_wherever_it_was() {
    let response = ok("hello world");
    let head = response.find("\r\n\r\n").unwrap() + 4;
    let before_the_head = [
        Faults::up(Way::after(0, Fault::Swallow)),
        Faults::up(Way::after(30, Fault::Stall)),
        Faults::down(Way::after(0, Fault::Stall)),
        Faults::down(Way::after(20, Fault::Swallow)),
    ];
    let after_it = [Faults::down(Way::after(head, Fault::Stall)), Faults::down(Way::after(head + 3, Fault::Swallow))];
    // Where a head is to come, a busy machine has its time for it.
    for (version, silences, timeouts, expected) in VERSIONS.iter().flat_map(|version| {
        [
            (*version, &before_the_head[..], "request: 300ms, idle: 300ms", failed(504, "request_timeout")),
            (*version, &after_it[..], "request: 20s, idle: 1s", Outcome::Cut),
        ]
    }) {
        let response = response.clone();
        let upstream = Upstream::bind().await.answering(move |_| response.clone());
        let faults = silences.to_vec();
        let relay = Relay::with(upstream.address.port(), move |number| faults[number]).await;
        let settings = format!("user-service: {{ timeouts: {{ {timeouts} }} }}");
        let pillion = Setup::users([relay.address()]).service(&settings).start().await;
        let idle = pillion.idle_tasks().await;
        let mut asker = Asker::new(pillion.egress(), version);
        for faults in silences {
            let start = Instant::now();
            assert_eq!(asker.get("/").await, expected, "{version:?}, {faults:?}");
            assert!((200 * MS..12_000 * MS).contains(&start.elapsed()), "{faults:?}: {:?}", start.elapsed());
        }
        drop(asker);
        pillion.until_idle(idle).await;
        assert_eq!(pillion.metric("pillion_pool_connections", &[]).await, 0.0);
    }
}

#[tokio::test]
async fn an_http_2_upstream_that_goes_silent_in_its_handshake_holds_nothing() {
    let upstream = Upstream::bind().await;
    let instance = format!("{{ address: {}, protocol: http2 }}", upstream.address);
    let settings = "user-service: { timeouts: { connect: 500ms } }";
    let pillion = Setup::users([instance]).service(settings).start().await;
    let idle = pillion.idle_tasks().await;
    for version in VERSIONS {
        let mut asker = Asker::new(pillion.egress(), version);
        assert_eq!(asker.post("/", "order").await, failed(504, "connect_timeout"), "{version:?}");
        upstream.accept().await.rest().await;
    }
    // Who leaves meanwhile does not end the attempt, but its own time does.
    let mut client = pillion.connect().await;
    client.send(get("/")).await;
    let mut server = upstream.accept().await;
    client.reset();
    server.rest().await;
    pillion.until_idle(idle).await;
}

#[tokio::test]
async fn an_upstream_that_ends_its_side_only_is_at_its_end() {
    let response = "HTTP/1.1 200 OK\r\ncontent-length: 11\r\n\r\nhello world";
    for version in VERSIONS {
        let upstream = Upstream::bind().await.answering(|_| response.into());
        let relay = Relay::with(upstream.address.port(), |number| {
            Faults::down(Way::after([0, 20, response.len() - 5, response.len()][number.min(3)], Fault::End))
        })
        .await;
        let pillion = Setup::users([relay.address()]).start().await;
        let idle = pillion.idle_tasks().await;
        let mut asker = Asker::new(pillion.egress(), version);
        for (number, expected) in [
            failed(502, "upstream_closed"),
            failed(502, "upstream_protocol"),
            Outcome::Cut,
            Outcome::Whole("hello world".into()),
        ]
        .into_iter()
        .enumerate()
        {
            assert_eq!(asker.post("/", "order").await, expected, "{version:?}");
            // pillion does not leave it half-open.
            relay.until(number, |passed| passed.closed).await;
        }
        drop(asker);
        pillion.until_idle(idle).await;
    }
}

#[tokio::test]
async fn either_end_of_a_tunnel_may_end_first() {
    let upstream = Upstream::bind().await;
    let pillion = Setup::users([upstream.address]).start().await;
    let idle = pillion.idle_tasks().await;
    for client_first in [true, false] {
        let mut client = pillion.connect().await;
        client.send("GET / HTTP/1.1\r\nhost: user-service\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n").await;
        let mut server = upstream.accept().await;
        server.head().await;
        server.send("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n").await;
        assert_eq!(client.head().await.status(), 101);
        let (first, second) = if client_first { (&mut client, &mut server) } else { (&mut server, &mut client) };
        first.send("first").await;
        first.shutdown().await;
        assert_eq!(second.rest().await, b"first");
        let more = text(200_000);
        second.send(&more).await;
        second.shutdown().await;
        assert!(first.rest().await == more.as_bytes());
        pillion.until_idle(idle).await;
    }
    // A reset of one end ends the other.
    for client_first in [true, false] {
        let mut client = pillion.connect().await;
        client.send("GET / HTTP/1.1\r\nhost: user-service\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n").await;
        let mut server = upstream.accept().await;
        server.head().await;
        server.send("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n").await;
        client.head().await;
        let (first, mut second) = if client_first { (client, server) } else { (server, client) };
        first.reset();
        second.closed().await;
        pillion.until_idle(idle).await;
    }
}

#[tokio::test]
async fn an_answer_before_the_end_of_the_request_is_the_answer() {
    // A gateway error is tried again only with a request that is all there.
    for (status, fields) in
        [("413 Content Too Large", ""), ("503 Service Unavailable", ""), ("200 OK", "connection: close\r\n")]
    {
        for end in [None, Some(Fault::End), Some(Fault::Close), Some(Fault::Reset)] {
            let response = format!("HTTP/1.1 {status}\r\n{fields}content-length: 5\r\n\r\nearly");
            let length = response.len();
            let upstream = Upstream::bind().await;
            let faults = move |_| end.map_or_else(Faults::default, |end| Faults::down(Way::after(length, end)));
            let relays = two_relays(&upstream.address, faults).await;
            let pillion = Setup::users(relays.each_ref().map(Relay::address)).start().await;
            let idle = pillion.idle_tasks().await;
            let mut client = pillion.connect().await;
            client.send("PUT / HTTP/1.1\r\nhost: user-service\r\ncontent-length: 100000\r\n\r\nbegin").await;
            let mut server = upstream.accept().await;
            server.head().await;
            server.send(&response).await;
            let answer = client.response().await;
            assert_eq!((&answer.start[9..12], answer.text().as_str()), (&status[..3], "early"), "{end:?}");
            assert_eq!(answer.get("connection"), Some("close"), "the rest of the request is not read");
            drop((client, server));
            pillion.until_idle(idle).await;
            assert!(upstream.is_left_alone(), "{status}, {end:?}: nobody else was asked");
        }
    }
}

/// Two endpoints at which one server is.
async fn two_relays(
    server: &SocketAddr,
    faults: impl Fn(usize) -> Faults + Clone + Send + Sync + 'static,
) -> [Relay; 2] {
    [Relay::with(server.port(), faults.clone()).await, Relay::with(server.port(), faults).await]
}

#[tokio::test]
async fn an_http_2_answer_before_the_end_of_the_request_is_the_answer() {
    let (old, new) = (Upstream::bind().await, H2Upstream::bind().await);
    let pillion = Setup::users([old.address]).instances("new", [new.instance()]).start().await;
    let idle = pillion.idle_tasks().await;
    let client = Client::connect(pillion.egress()).await;
    let (response, mut up) = client.start(request("PUT", "/"), false).await;
    up.send_data("begin".into(), false).unwrap();
    let mut server = old.accept().await;
    server.head().await;
    server.send("HTTP/1.1 413 Content Too Large\r\ncontent-length: 5\r\n\r\nearly").await;
    let answer = collect(response).await.unwrap();
    assert_eq!((answer.status.as_u16(), answer.text().as_str()), (413, "early"));
    // An HTTP/1 upstream's connection that is in the middle of a request carries no other.
    server.rest().await;

    let mut request = request("PUT", "/");
    *request.uri_mut() = "http://new/".parse().unwrap();
    let (response, mut up) = client.start(request, false).await;
    up.send_data("begin".into(), false).unwrap();
    let mut connection = new.accept().await;
    let mut exchange = connection.next().await;
    let head = Response::builder().status(413).body(()).unwrap();
    exchange.respond.send_response(head, false).unwrap().send_data("early".into(), true).unwrap();
    let answer = collect(response).await.unwrap();
    assert_eq!((answer.status.as_u16(), answer.text().as_str()), (413, "early"));
    drop(client);
    // What was read of it, and what its client has left behind, is of no more interest to anybody.
    assert!(read(&mut exchange.body).await.is_err() || exchange.body.is_end_stream());
    drop(connection);
    pillion.until_metric("pillion_pool_connections", &[], 0.0).await;
    pillion.until_idle(idle).await;
}

/// Answers a first try with 503 and these fields, and a second not at all.
async fn never_better(fields: &'static str) -> (Answering, [Relay; 2]) {
    let upstream = Upstream::bind().await.answering(move |request| match request.get("x-pillion-attempt") {
        None => format!("HTTP/1.1 503 Service Unavailable\r\n{fields}content-length: 0\r\n\r\n"),
        Some(_) => String::new(),
    });
    let relays = two_relays(&upstream.address, |_| Faults::default()).await;
    (upstream, relays)
}

#[tokio::test]
async fn who_leaves_while_a_retry_waits_or_runs_gives_its_budget_back() {
    for (fields, waits) in [("retry-after: 10\r\n", true), ("", false)] {
        let (mut upstream, relays) = never_better(fields).await;
        let pillion = Setup::users(relays.each_ref().map(Relay::address)).start().await;
        let idle = pillion.idle_tasks().await;
        let mut retried = async || {
            assert_eq!(upstream.seen().await.get("x-pillion-attempt"), None);
            if !waits {
                assert_eq!(upstream.seen().await.get("x-pillion-attempt"), Some("2"));
            }
            pillion.until_metric("pillion_retries_active", &[], 1.0).await;
        };
        for reset in [false, true] {
            let mut client = pillion.connect().await;
            client.send(get("/")).await;
            retried().await;
            if reset {
                client.reset();
            } else {
                drop(client);
            }
            pillion.until_idle(idle).await;
        }
        for stream_only in [false, true] {
            let client = Client::connect(pillion.egress()).await;
            let (response, mut stream) = client.start(request("GET", "/"), true).await;
            retried().await;
            if stream_only {
                stream.send_reset(h2::Reason::CANCEL);
                pillion.until_metric("pillion_retries_active", &[], 0.0).await;
                pillion.until_metric("pillion_requests_in_flight", &[], 0.0).await;
                assert_eq!(pillion.metric("pillion_connections", &["listener=\"egress\""]).await, 1.0);
            }
            drop((client, response));
            pillion.until_idle(idle).await;
        }
        assert!(upstream.unseen().is_empty());
    }
}

#[tokio::test]
async fn a_retry_that_runs_out_of_time_gives_its_budget_back() {
    let (_upstream, relays) = never_better("").await;
    let settings = "user-service: { timeouts: { request: 3s } }";
    let pillion = Setup::users(relays.each_ref().map(Relay::address)).service(settings).start().await;
    let idle = pillion.idle_tasks().await;
    for version in VERSIONS {
        let mut asker = Asker::new(pillion.egress(), version);
        assert_eq!(asker.get("/").await, failed(504, "request_timeout"), "{version:?}");
    }
    assert_eq!(pillion.metric("pillion_retries_total", &["reason=\"upstream_unavailable\""]).await, 2.0);
    pillion.until_idle(idle).await;
}

#[tokio::test]
async fn a_network_that_loses_everything_for_a_while_leaves_nothing_behind() {
    let upstream = Answering::ok().await;
    let relay = Relay::to(upstream.address.port()).await;
    let settings = "user-service: { timeouts: { request: 5s, connect: 5s } }";
    let pillion = Setup::users([relay.address()]).service(settings).start().await;
    let idle = pillion.idle_tasks().await;
    let mut askers: Vec<_> = (0..10).map(|number| Asker::new(pillion.egress(), VERSIONS[number % 2])).collect();
    for asker in &mut askers {
        assert_eq!(asker.get("/").await, Outcome::Whole("ok".into()));
    }
    relay.silence();
    let lost = askers.into_iter().map(|mut asker| async move { (asker.post("/", "order").await, asker) });
    let mut askers = Vec::new();
    for (outcome, asker) in futures_util::future::join_all(lost).await {
        assert_eq!(outcome, failed(504, "request_timeout"));
        askers.push(asker);
    }
    relay.mend();
    for asker in &mut askers {
        assert_eq!(asker.get("/").await, Outcome::Whole("ok".into()));
    }
    drop(askers);
    pillion.until_idle(idle).await;
}
