//! A service gets no more than its limits say, and what is refused or has waited leaves nothing behind.

use crate::{
    http2_peer::{self, soon},
    peer::{Answering, PATIENCE, Peer, Upstream, get, ok, until_rated},
    pillion::{Pillion, Setup},
};
use futures_util::future::join_all;
use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};
use tokio::{
    sync::Semaphore,
    task::JoinSet,
    time::{Instant, sleep},
};

const MS: Duration = Duration::from_millis(1);
const OVERLOADED: (u16, Option<&str>) = (503, Some("overloaded"));

fn with(limits: &str) -> String {
    format!("user-service: {{ limits: {{ {limits} }} }}")
}

/// `user-service` at one address, with these limits.
async fn limited(address: SocketAddr, limits: &str) -> Pillion {
    Setup::users([address]).service(&with(limits)).start().await
}

/// An upstream that takes its time for each request, and knows how many it had at once.
struct Busy {
    address: SocketAddr,
    most: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

impl Busy {
    /// Works on `servers` requests at one time, each for `time`; others queue up in it.
    async fn start(servers: usize, time: Duration) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let [now, most] = [0, 0].map(|zero| Arc::new(AtomicUsize::new(zero)));
        let (counted, servers) = (most.clone(), Arc::new(Semaphore::new(servers)));
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (now, most, servers) = (now.clone(), counted.clone(), servers.clone());
                connections.spawn(async move {
                    let mut peer = Peer::new(stream);
                    while peer.next_request_or_idle().await.is_some() {
                        most.fetch_max(now.fetch_add(1, SeqCst) + 1, SeqCst);
                        {
                            let _server = servers.acquire().await.unwrap();
                            sleep(time).await;
                        }
                        now.fetch_sub(1, SeqCst);
                        peer.send(ok("ok")).await;
                    }
                });
            }
        });
        Self { address, most, _tasks: tasks }
    }

    fn most(&self) -> usize {
        self.most.load(SeqCst)
    }
}

/// The answers that each of `clients` got one after the other, as [`Message::error`](crate::peer::Message::error) tells them.
async fn flood(pillion: &Pillion, clients: usize, requests: usize) -> Vec<(u16, Option<String>)> {
    let answers = (0..clients).map(async |_| {
        let mut client = pillion.connect().await;
        let mut answers = Vec::new();
        for _ in 0..requests {
            client.send(get("/")).await;
            let answer = client.response().await;
            answers.push((answer.status(), answer.get("x-pillion-error").map(str::to_owned)));
        }
        answers
    });
    join_all(answers).await.concat()
}

#[tokio::test]
async fn what_is_over_the_limit_is_refused_at_once() {
    let upstream = Upstream::bind().await;
    let pillion = limited(upstream.address, "requests: 2").await;
    let mut clients = [pillion.connect().await, pillion.connect().await];
    let mut servers = Vec::new();
    for client in &mut clients {
        client.send(get("/")).await;
        let mut server = upstream.accept().await;
        server.request().await;
        servers.push(server);
    }
    let mut third = pillion.connect().await;
    third.send(get("/")).await;
    let refused = third.response().await;
    assert_eq!(refused.error(), OVERLOADED);
    assert!(refused.text().contains("2 requests to the service may be in flight"), "{}", refused.text());
    let grpc = http2_peer::Client::connect(pillion.egress()).await;
    let mut call = http2_peer::request("POST", "/echo.Echo/Say");
    call.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
    let refused = http2_peer::collect(grpc.start(call, true).await.0).await.unwrap();
    assert_eq!(
        (&refused.headers["grpc-status"], &refused.headers["x-pillion-error"]),
        (&"14".parse().unwrap(), &"overloaded".parse().unwrap())
    );
    assert!(upstream.is_left_alone());
    servers[0].send(ok("first")).await;
    assert_eq!(clients[0].response().await.text(), "first");
    pillion.until_metric("pillion_requests_in_flight", &[], 1.0).await;
    third.send(get("/")).await;
    servers[0].request().await;
    servers[0].send(ok("third")).await;
    assert_eq!(third.response().await.text(), "third");
    assert_eq!(pillion.metric("pillion_errors_total", &["reason=\"overloaded\""]).await, 2.0);
    assert_eq!(pillion.metric("pillion_retries_total", &[]).await, 0.0);
    drop((clients, third, grpc));
    pillion.until_free().await;
}

#[tokio::test]
async fn the_upstream_never_has_more_than_the_limit_from_all_workers() {
    let upstream = Busy::start(1000, 2 * MS).await;
    let pillion = Setup::users([upstream.address]).service(&with("requests: 5")).workers(2).start().await;
    let answers = flood(&pillion, 40, 50).await;
    let good = answers.iter().filter(|(status, _)| *status == 200).count();
    let shed = answers.iter().filter(|(status, error)| (*status, error.as_deref()) == OVERLOADED).count();
    assert_eq!(good + shed, 2000);
    assert!(good >= 50 && shed >= 50, "{good} answered, {shed} refused");
    assert_eq!(upstream.most(), 5);
    pillion.until_metric("pillion_errors_total", &["reason=\"overloaded\""], shed as f64).await;
    pillion.until_free().await;
}

#[tokio::test]
async fn with_a_queue_nobody_is_refused_in_a_burst() {
    let upstream = Busy::start(1000, 2 * MS).await;
    let limits = with("requests: 3, queue_timeout: 10s");
    let pillion = Setup::users([upstream.address]).service(&limits).workers(2).start().await;
    let answers = flood(&pillion, 40, 20).await;
    assert!(answers.iter().all(|(status, _)| *status == 200), "{answers:?}");
    assert_eq!(upstream.most(), 3);
    assert_eq!(pillion.metric("pillion_requests_waiting", &[]).await, 0.0);
    pillion.until_free().await;
}

/// `count` clients, of which one is served and the others wait, one after the other.
async fn waiting(pillion: &Pillion, upstream: &Upstream, count: usize) -> (Vec<Peer>, Peer) {
    let mut clients = vec![pillion.connect().await];
    clients[0].send(get("/0")).await;
    let mut server = upstream.accept().await;
    server.request().await;
    for number in 1..count {
        let mut client = pillion.connect().await;
        client.send(get(&format!("/{number}"))).await;
        clients.push(client);
        pillion.until_metric("pillion_requests_waiting", &[], number as f64).await;
    }
    (clients, server)
}

#[tokio::test]
async fn those_who_wait_are_served_in_their_order() {
    let upstream = Upstream::bind().await;
    let pillion = limited(upstream.address, "requests: 1, queue_timeout: 10s, pending: 4").await;
    let (mut clients, mut server) = waiting(&pillion, &upstream, 5).await;
    let mut one_more = pillion.connect().await;
    one_more.send(get("/")).await;
    let refused = one_more.response().await;
    assert_eq!(refused.error(), OVERLOADED, "more than `pending`");
    assert!(refused.text().contains("and 4 wait"), "{}", refused.text());
    for (number, client) in clients.iter_mut().enumerate() {
        if number > 0 {
            assert_eq!(server.request().await.start, format!("GET /{number} HTTP/1.1"));
        }
        server.send(ok("ok")).await;
        assert_eq!(client.response().await.text(), "ok");
    }
    drop((clients, one_more));
    pillion.until_free().await;
}

#[tokio::test]
async fn nobody_waits_longer_than_the_queue_timeout_or_its_own_deadline() {
    let upstream = Upstream::bind().await;
    let pillion = limited(upstream.address, "requests: 1, queue_timeout: 300ms").await;
    let (clients, _server) = waiting(&pillion, &upstream, 1).await;
    let mut client = pillion.connect().await;
    let start = Instant::now();
    client.send(get("/")).await;
    assert_eq!(client.response().await.error(), OVERLOADED);
    let took = start.elapsed();
    // Long before the request's own time is over.
    assert!((300 * MS..12_000 * MS).contains(&took), "{took:?}");
    let start = Instant::now();
    client.send("GET / HTTP/1.1\r\nhost: user-service\r\nx-request-timeout: 50ms\r\n\r\n").await;
    assert_eq!(client.response().await.error(), (504, Some("deadline_exceeded")));
    // Later it would have been told the other reason.
    assert!(start.elapsed() >= 50 * MS, "{:?}", start.elapsed());
    assert!(upstream.is_left_alone());
    drop((clients, client));
    pillion.until_free().await;
}

#[tokio::test]
async fn a_client_that_leaves_while_it_waits_frees_its_turn() {
    let upstream = Upstream::bind().await;
    let pillion = limited(upstream.address, "requests: 1, queue_timeout: 10s").await;
    let (mut clients, mut server) = waiting(&pillion, &upstream, 4).await;
    // The first that waits, and the last.
    drop(clients.remove(3));
    drop(clients.remove(1));
    pillion.until_metric("pillion_requests_waiting", &[], 1.0).await;
    server.send(ok("ok")).await;
    assert_eq!(server.request().await.start, "GET /2 HTTP/1.1");
    drop(clients);
    pillion.until_free().await;
    assert_eq!(pillion.metric("pillion_requests_waiting", &[]).await, 0.0);
}

#[tokio::test]
async fn an_upgraded_connection_counts_for_as_long_as_it_lives() {
    let upstream = Upstream::bind().await;
    let pillion = limited(upstream.address, "requests: 1").await;
    let mut upgraded = pillion.connect().await;
    upgraded.send("GET /chat HTTP/1.1\r\nhost: user-service\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n").await;
    let mut server = upstream.accept().await;
    server.request().await;
    server.send("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n").await;
    assert_eq!(upgraded.head().await.status(), 101);
    let mut client = pillion.connect().await;
    client.send(get("/")).await;
    assert_eq!(client.response().await.error(), OVERLOADED);
    drop((upgraded, server));
    pillion.until_metric("pillion_requests_in_flight", &[], 0.0).await;
    client.send(get("/")).await;
    let mut server = upstream.accept().await;
    server.request().await;
    server.send(ok("ok")).await;
    assert_eq!(client.response().await.text(), "ok");
}

#[tokio::test]
async fn a_request_that_needs_one_more_connection_than_allowed_is_refused() {
    let upstream = Upstream::bind().await;
    let pillion = limited(upstream.address, "connections: 1").await;
    let (mut clients, mut server) = waiting(&pillion, &upstream, 1).await;
    let mut client = pillion.connect().await;
    client.send(get("/")).await;
    assert_eq!(client.response().await.error(), (503, Some("connection_limit")));
    assert!(upstream.is_left_alone());
    for (name, labels) in [("pillion_retries_total", &[][..]), ("pillion_pool_connect_failures_total", &[])] {
        assert_eq!(pillion.metric(name, labels).await, 0.0, "{name}");
    }
    server.send(ok("ok")).await;
    assert_eq!(clients[0].response().await.text(), "ok");
    client.send(get("/")).await;
    server.request().await;
    server.send(ok("again")).await;
    assert_eq!(client.response().await.text(), "again", "on the connection that is there");
    drop((clients, client));
    pillion.until_free().await;
}

#[tokio::test]
async fn a_connection_that_idles_at_another_endpoint_makes_room() {
    let upstreams = [Answering::ok().await, Answering::ok().await, Answering::ok().await];
    let settings = "user-service: { balance: { policy: round-robin }, limits: { connections: 2 } }";
    let pillion = Setup::users(upstreams.each_ref().map(|upstream| upstream.address)).service(settings).start().await;
    let mut client = pillion.connect().await;
    for _ in 0..9 {
        client.send(get("/")).await;
        assert_eq!(client.response().await.text(), "ok");
    }
    let closed = pillion.metric("pillion_pool_closed_total", &["reason=\"full\""]).await;
    assert_eq!(closed, pillion.metric("pillion_pool_opened_total", &[]).await - 2.0);
    // Even the best choice of what to close leaves one in two turns without a connection.
    assert!(closed >= 3.0, "{closed}");
}

#[tokio::test]
async fn a_worker_leaves_idle_connections_to_another_that_needs_them() {
    let upstream = Answering::ok().await;
    let pillion = Setup::users([upstream.address]).service(&with("connections: 1")).workers(2).start().await;
    let (mut clients, mut others) = (Vec::new(), 0);
    // The kernel spreads them over the workers; one of these has the one connection.
    while others == 0 {
        let mut client = pillion.connect().await;
        client.send(get("/")).await;
        others += usize::from(client.response().await.error() == (503, Some("connection_limit")));
        clients.push(client);
        assert!(clients.len() < 100, "all are with one worker");
    }
    let mut other = clients.pop().unwrap();
    let served = async {
        loop {
            other.send(get("/")).await;
            match other.response().await.error() {
                (200, _) => break,
                refused => assert_eq!(refused, (503, Some("connection_limit"))),
            }
            sleep(20 * MS).await;
        }
    };
    soon("the idle connection to be closed", served).await;
}

#[tokio::test]
async fn as_many_per_second_get_through_as_the_rate_allows() {
    let mut upstream = Answering::ok().await;
    // So many that a machine which stops for seconds does not fill them up again.
    let limits = with("rate: { per_second: 50, burst: 400 }");
    let pillion = Setup::users([upstream.address]).service(&limits).workers(2).start().await;
    let start = Instant::now();
    let mut all = 0;
    let least = loop {
        let asked = start.elapsed();
        // Over both workers.
        let answers = flood(&pillion, 4, 25).await;
        all += answers.iter().filter(|(status, _)| *status == 200).count();
        assert!(answers.iter().all(|(status, error)| {
            matches!((status, error.as_deref()), (200, None) | (429, Some("rate_limited")))
        }));
        // Whoever is refused shows that nothing was left of what had come until it asked.
        if asked >= 1000 * MS && answers.iter().any(|(status, _)| *status == 429) {
            break 400.0 + 50.0 * asked.as_secs_f64() - 1.0;
        }
    };
    let most = 400.0 + 50.0 * start.elapsed().as_secs_f64() + 1.0;
    assert!((least..=most).contains(&(all as f64)), "{all} got through, {least} must and {most} may");
    assert_eq!(upstream.unseen().len(), all);
    let refused = pillion.metric("pillion_errors_total", &["reason=\"rate_limited\""]).await;
    assert!(refused > 0.0);
    pillion.until_free().await;
}

#[tokio::test]
async fn each_caller_has_a_rate_of_its_own_and_is_told_when_to_come_again() {
    let upstream = Answering::ok().await;
    let limits = "rate: { per_caller: { header: x-caller, per_second: 1, burst: 90 } }, requests: 1";
    let pillion = limited(upstream.address, limits).await;
    let mut client = pillion.connect().await;
    for caller in ["x-caller: a\r\n", "x-caller: b\r\n", ""] {
        let request = format!("GET / HTTP/1.1\r\nhost: user-service\r\n{caller}\r\n");
        for number in 1..=90 {
            client.send(&request).await;
            assert_eq!(client.response().await.status(), 200, "{number} of {caller:?}");
        }
        let refused = until_rated(&mut client, request, 0).await;
        assert_eq!((refused.error(), refused.get("retry-after")), ((429, Some("rate_limited")), Some("1")));
    }
    let grpc = http2_peer::Client::connect(pillion.egress()).await;
    let is_told = async {
        // As many as may come since the first ones.
        loop {
            let mut call = http2_peer::request("POST", "/echo.Echo/Say");
            call.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
            call.headers_mut().insert("x-caller", "a".parse().unwrap());
            let answer = http2_peer::collect(grpc.start(call, true).await.0).await.unwrap();
            assert_eq!(answer.status.as_u16(), 200);
            if let Some(status) = answer.headers.get("grpc-status") {
                return status.clone();
            }
        }
    };
    assert_eq!(soon("a refusal", is_told).await, "8");
    drop((client, grpc));
    pillion.until_free().await;
}

#[tokio::test]
async fn the_adaptive_limit_falls_when_requests_queue_up_in_the_service() {
    // One after the other, so that those who queue up are slower than any noise.
    let upstream = Busy::start(1, 20 * MS).await;
    let pillion = limited(upstream.address, "adaptive: { min: 1 }").await;
    assert_eq!(pillion.metric("pillion_requests_limit", &[]).await, 20.0);
    // One at a time shows what is usual.
    let quiet = flood(&pillion, 1, 120).await;
    assert!(quiet.iter().all(|(status, _)| *status == 200));
    assert_eq!(pillion.metric("pillion_requests_limit", &[]).await, 20.0);
    let start = Instant::now();
    loop {
        flood(&pillion, 30, 5).await;
        let limit = pillion.metric("pillion_requests_limit", &[]).await;
        if limit <= 10.0 {
            break;
        }
        assert!(start.elapsed() < PATIENCE, "{limit}");
    }
    assert!(upstream.most() <= 21, "{}", upstream.most());
    pillion.until_free().await;
}
