//! Datagrams, in sessions.

use crate::{
    peer::PATIENCE,
    pillion::{Pillion, Setup},
};
use std::{net::SocketAddr, time::Duration};
use tokio::{
    net::UdpSocket,
    time::{Instant, timeout},
};

/// Either end.
struct End(UdpSocket);

impl End {
    async fn bind(address: &str) -> Self {
        Self(UdpSocket::bind(address).await.unwrap())
    }

    async fn new() -> Self {
        Self::bind("127.0.0.1:0").await
    }

    /// A client of this listener, which hears of nobody else.
    async fn of(pillion: &Pillion) -> Self {
        let end = Self::new().await;
        end.0.connect(pillion.address("dns")).await.unwrap();
        end
    }

    fn address(&self) -> SocketAddr {
        self.0.local_addr().unwrap()
    }

    async fn send(&self, data: impl AsRef<[u8]>) {
        self.0.send(data.as_ref()).await.unwrap();
    }

    async fn next(&self) -> (Vec<u8>, SocketAddr) {
        let mut space = vec![0; 65_536];
        let (length, from) = timeout(PATIENCE, self.0.recv_from(&mut space)).await.expect("a datagram").unwrap();
        space.truncate(length);
        (space, from)
    }

    async fn answer(&self, data: impl AsRef<[u8]>, to: SocketAddr) {
        self.0.send_to(data.as_ref(), to).await.unwrap();
    }
}

fn dns<A: ToString>(addresses: impl IntoIterator<Item = A>) -> Setup {
    let addresses: Vec<_> = addresses.into_iter().map(|address| address.to_string()).collect();
    Setup::default().instances("dns", addresses).listener("dns", "protocol: udp, service: dns")
}

const SERVICE: &[&str] = &["service=\"dns\""];

#[tokio::test]
async fn datagrams_go_to_and_fro() {
    let server = End::new().await;
    let pillion = dns([server.address()]).service("dns: { udp: { idle_timeout: 5s } }").access_log().start().await;
    let (one, other) = (End::of(&pillion).await, End::of(&pillion).await);
    one.send("one").await;
    let (data, from_one) = server.next().await;
    assert_eq!(data, b"one");
    other.send("other").await;
    let (data, from_other) = server.next().await;
    assert_eq!(data, b"other");
    assert_ne!(from_one, from_other, "each client has its own session");
    // In any order, any number of them, empty ones too. A client that is connected hears of the listener's own address alone.
    for data in ["second", ""] {
        server.answer(data, from_other).await;
        assert_eq!(other.next().await, (data.into(), pillion.address("dns")));
    }
    server.answer("first", from_one).await;
    assert_eq!(one.next().await.0, b"first");
    one.send("more").await;
    assert_eq!(server.next().await, (b"more".to_vec(), from_one), "it is still the same session");
    pillion.until_metric("pillion_udp_sessions", SERVICE, 0.0).await;
    let done = ["service=\"dns\"", "outcome=\"done\""];
    pillion.until_metric("pillion_udp_sessions_ended_total", &done, 2.0).await;
    for (name, value) in [
        ("sent_datagrams", 3.0),
        ("sent_bytes", 12.0),
        ("received_datagrams", 3.0),
        ("received_bytes", 11.0),
        ("dropped", 0.0),
    ] {
        assert_eq!(pillion.metric(&format!("pillion_udp_{name}_total"), SERVICE).await, value, "{name}");
    }
    let line = pillion.access_line("in=7 out=5").await;
    let endpoint = format!("service=dns endpoint={} attempts=1", server.address());
    assert!(line.contains(&format!(" dns {} \"- - UDP\" - 0 - ", one.address())) && line.contains(&endpoint), "{line}");
    pillion.until_metric("pillion_connections", &["listener=\"dns\""], 0.0).await;
}

#[tokio::test]
async fn the_largest_datagrams_arrive_whole() {
    let server = End::new().await;
    let pillion = dns([server.address()]).start().await;
    let client = End::of(&pillion).await;
    for length in [1, 1500, 9000, 65_507] {
        let data: Vec<u8> = (0..length).map(|at: usize| (at % 251) as u8).collect();
        client.send(&data).await;
        let (got, from) = server.next().await;
        assert!(got == data, "{} of {length} bytes", got.len());
        server.answer(&data, from).await;
        assert!(client.next().await.0 == data);
    }
}

/// As DNS has it: one datagram, one answer.
#[tokio::test]
async fn a_session_ends_when_all_answers_have_come() {
    let server = End::new().await;
    let pillion = dns([server.address()]).service("dns: { udp: { responses: 2, idle_timeout: 1h } }").start().await;
    let client = End::of(&pillion).await;
    let mut sources = Vec::new();
    for _ in 0..3 {
        client.send("?").await;
        let (_, from) = server.next().await;
        server.answer("!", from).await;
        client.next().await;
        pillion.until_metric("pillion_udp_sessions", SERVICE, 1.0).await;
        server.answer("!", from).await;
        client.next().await;
        pillion.until_metric("pillion_udp_sessions", SERVICE, 0.0).await;
        sources.push(from);
    }
    sources.dedup();
    assert_eq!(sources.len(), 3, "each is a session of its own");
}

/// One that is there costs none of them, whoever else refuses.
#[tokio::test]
async fn what_comes_back_goes_elsewhere() {
    let (server, gone) = (End::new().await, End::new().await.address());
    let pillion = dns([gone, server.address()]).service("dns: { udp: { responses: 1 } }").start().await;
    let mut clients = Vec::new();
    for number in 0..20 {
        let client = End::of(&pillion).await;
        let question = format!("question {number}");
        client.send(&question).await;
        let (data, from) = server.next().await;
        assert_eq!(data, question.as_bytes());
        server.answer("answer", from).await;
        assert_eq!(client.next().await.0, b"answer");
        clients.push(client);
    }
    let retried = ["service=\"dns\"", "reason=\"connect_failed\""];
    assert!(pillion.metric("pillion_retries_total", &retried).await >= 1.0);
    // What was sent in vain is owed no answer.
    pillion.until_metric("pillion_udp_sessions", SERVICE, 0.0).await;
    assert_eq!(pillion.metric("pillion_udp_dropped_total", SERVICE).await, 0.0);
}

#[tokio::test]
async fn where_nobody_is_it_is_dropped_and_told() {
    let gone = End::new().await.address();
    let pillion = dns([gone]).service("none: {}").listener("none", "protocol: udp, service: none").start().await;
    End::of(&pillion).await.send("?").await;
    pillion.until_metric("pillion_udp_sessions_ended_total", &["outcome=\"connect_failed\""], 1.0).await;
    assert_eq!(pillion.metric("pillion_udp_dropped_total", &["reason=\"undeliverable\""]).await, 1.0);
    let client = End::new().await;
    client.answer("?", pillion.address("none")).await;
    pillion.until_metric("pillion_udp_sessions_ended_total", &["outcome=\"no_endpoints\""], 1.0).await;
    pillion.until_metric("pillion_udp_sessions", &[], 0.0).await;
}

#[tokio::test]
async fn a_session_moves_when_its_endpoint_leaves() {
    let (one, other) = (End::new().await, End::new().await);
    let pillion = dns([one.address()]).service("dns: { guard: { enabled: false } }").start().await;
    let client = End::of(&pillion).await;
    client.send("1").await;
    let (_, from) = one.next().await;
    pillion.write_instances(&format!("services:\n  dns: [{}]\n", other.address()));
    let deadline = Instant::now() + PATIENCE;
    let (data, again) = loop {
        client.send("2").await;
        if let Ok(got) = timeout(Duration::from_millis(100), other.next()).await {
            break got;
        }
        assert!(Instant::now() < deadline, "it does not move");
    };
    assert_eq!(data, b"2");
    assert_ne!(from, again);
    other.answer("here", again).await;
    assert_eq!(client.next().await.0, b"here");
    assert_eq!(pillion.metric("pillion_udp_sessions", SERVICE).await, 1.0, "it is the same session for its client");
}

/// When its endpoint dies.
#[tokio::test]
async fn a_session_moves_when_its_endpoint_is_gone() {
    let servers = [End::new().await, End::new().await];
    let pillion = dns(servers.iter().map(End::address)).start().await;
    let client = End::of(&pillion).await;
    client.send("1").await;
    let [one, other] = servers;
    let (used, staying) = tokio::select! {
        (_, from) = one.next() => { one.answer("one", from).await; (one, other) }
        (_, from) = other.next() => { other.answer("other", from).await; (other, one) }
    };
    client.next().await;
    drop(used);
    client.send("2").await;
    assert_eq!(staying.next().await.0, b"2", "what was not taken is sent again");
}

#[tokio::test]
async fn sessions_are_limited() {
    let server = End::new().await;
    let pillion = dns([server.address()])
        .listener("few", "protocol: udp, service: dns, limits: { connections: 2 }")
        .service("dns: { limits: { connections: 3 } }")
        .start()
        .await;
    let few = pillion.address("few");
    let clients = [End::new().await, End::new().await, End::new().await];
    for (client, text) in clients.iter().zip(["1", "2"]) {
        client.answer(text, few).await;
        assert_eq!(server.next().await.0, text.as_bytes());
    }
    clients[2].answer("3", few).await;
    pillion.until_metric("pillion_connections_refused_total", &["listener=\"few\"", "reason=\"limit\""], 1.0).await;
    let (third, fourth) = (End::of(&pillion).await, End::of(&pillion).await);
    third.send("third").await;
    assert_eq!(server.next().await.0, b"third");
    fourth.send("fourth").await;
    pillion.until_metric("pillion_udp_sessions_ended_total", &["outcome=\"connection_limit\""], 1.0).await;
    assert_eq!(pillion.metric("pillion_udp_dropped_total", &["reason=\"undeliverable\""]).await, 1.0);
}

/// Clients are spread over workers by the kernel, and each stays with its own.
#[tokio::test]
async fn many_clients_on_several_workers() {
    let servers = [End::new().await, End::new().await, End::new().await];
    let addresses: Vec<_> = servers.iter().map(End::address).collect();
    for server in servers {
        tokio::spawn(async move {
            loop {
                let (data, from) = server.next().await;
                server.answer(data, from).await;
            }
        });
    }
    let pillion = dns(addresses).workers(3).start().await;
    let mut clients = Vec::new();
    for _ in 0..100 {
        clients.push(End::of(&pillion).await);
    }
    for round in 0..10 {
        for (number, client) in clients.iter().enumerate() {
            client.send(format!("{number} {round}")).await;
        }
        for (number, client) in clients.iter().enumerate() {
            assert_eq!(client.next().await.0, format!("{number} {round}").as_bytes());
        }
    }
    assert_eq!(pillion.metric("pillion_udp_sessions", SERVICE).await, 100.0);
    pillion.until_metric("pillion_udp_received_datagrams_total", SERVICE, 1000.0).await;
    assert_eq!(pillion.metric("pillion_udp_dropped_total", SERVICE).await, 0.0);
}

#[tokio::test]
async fn over_ipv6_and_between_both() {
    let (four, six) = (End::new().await, End::bind("[::1]:0").await);
    let pillion = dns([format!("'{}'", six.address())])
        .instances("four", [four.address()])
        .listener_at("six", "[::1]:0", "protocol: udp, service: four")
        .start()
        .await;
    for (listener, own, server) in [("dns", "127.0.0.1:0", &six), ("six", "[::1]:0", &four)] {
        let client = End::bind(own).await;
        client.0.connect(pillion.address(listener)).await.unwrap();
        client.send("?").await;
        let (data, from) = server.next().await;
        assert_eq!(data, b"?");
        server.answer("!", from).await;
        assert_eq!(client.next().await.0, b"!");
    }
}

#[tokio::test]
async fn settings_change_while_sessions_go_on() {
    let (server, other) = (End::new().await, End::new().await);
    let mut pillion = dns([server.address()])
        .instances("other", [other.address()])
        .service("dns: { udp: { idle_timeout: 1h } }")
        // Without any for it, what the config says of its sessions would be a mistake.
        .listener("another", "service: dns, protocol: udp")
        .start()
        .await;
    let (client, second) = (End::of(&pillion).await, End::of(&pillion).await);
    client.send("1").await;
    server.next().await;
    pillion.change_config("protocol: udp, service: dns", "protocol: udp, service: other").await;
    client.send("2").await;
    assert_eq!(server.next().await.0, b"2", "it goes on");
    second.send("3").await;
    assert_eq!(other.next().await.0, b"3", "new ones go by the new settings");
    pillion.change_config("idle_timeout: 1h", "idle_timeout: 1s").await;
    pillion.until_metric("pillion_udp_sessions", SERVICE, 0.0).await;
}

/// Quiet sessions do not hold up the end, and those that go on have their time.
#[tokio::test]
async fn sessions_end_with_pillion() {
    let server = End::new().await;
    let pillion = dns([server.address()]).start().await;
    let client = End::of(&pillion).await;
    client.send("?").await;
    server.next().await;
    // Less than what is given to those in progress.
    pillion.stop().await;
}
