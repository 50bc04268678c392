//! DNS through a UDP listener: real servers, and one of them as the client.

use crate::{
    pillion::{Pillion, Setup},
    servers::dns::{DnsServer, Kind},
};
use std::{net::SocketAddr, time::Duration};
use tokio::{net::UdpSocket, time::timeout};

/// The address of `users.test`.
const ADDRESS: [u8; 4] = [192, 0, 2, 77];
const RECORDS: &str = "users 60 IN A 192.0.2.77";
/// Far more than an answer takes; only what is lost is waited for so long.
const PATIENCE: Duration = Duration::from_secs(30);

/// Asks for the address of `users.test`, as a client does that takes a new port for each question.
async fn ask(server: SocketAddr, id: u8) -> Result<(), String> {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(server).await.unwrap();
    let mut question = vec![0, id, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    question.extend_from_slice(b"\x05users\x04test\0\0\x01\0\x01");
    socket.send(&question).await.unwrap();
    let mut answer = [0; 1500];
    let length = timeout(PATIENCE, socket.recv(&mut answer)).await.map_err(|_| format!("{id}: no answer"))?;
    let answer = &answer[..length.map_err(|error| error.to_string())?];
    let is_it = answer[1] == id && answer[3] & 15 == 0 && answer.windows(4).any(|bytes| bytes == ADDRESS);
    is_it.then_some(()).ok_or_else(|| format!("{id}: {answer:x?}"))
}

async fn ask_all(pillion: &Pillion, ids: std::ops::Range<u8>) {
    for id in ids {
        if let Err(error) = ask(pillion.address("dns"), id).await {
            panic!("{error}\n{}", pillion.metrics().await);
        }
    }
}

#[tokio::test]
async fn dns_is_balanced_and_nothing_is_lost_when_a_server_dies() {
    let mut bind = DnsServer::start(Kind::Bind, RECORDS).await;
    let core = DnsServer::start(Kind::CoreDns, RECORDS).await;
    let masq = DnsServer::start(Kind::Dnsmasq, "host-record=users.test,192.0.2.77").await;
    let pillion = Setup::default()
        .instances("dns", [bind.address(), core.address(), masq.address()])
        .listener("dns", "protocol: udp, service: dns")
        .service("dns: { balance: { policy: round-robin }, udp: { responses: 1 } }")
        .access_log()
        .start()
        .await;
    ask_all(&pillion, 0..30).await;
    for server in [&bind, &core, &masq] {
        pillion.access_line(&format!("service=dns endpoint={} attempts=1", server.address())).await;
    }
    // Each session was over with its answer.
    pillion.until_metric("pillion_udp_sessions", &["service=\"dns\""], 0.0).await;
    pillion.until_metric("pillion_udp_sessions_ended_total", &["outcome=\"done\""], 30.0).await;
    bind.kill();
    ask_all(&pillion, 30..90).await;
    // A forwarder asks from few ports, and keeps to them.
    let forwarder =
        DnsServer::start(Kind::Dnsmasq, &format!("server=127.0.0.1#{}\ncache-size=0", pillion.address("dns").port()))
            .await;
    for id in 90..110 {
        ask(forwarder.address().parse().unwrap(), id).await.unwrap();
    }
    bind.restart().await;
    ask_all(&pillion, 110..140).await;
    pillion.until_metric("pillion_udp_sessions", &["service=\"dns\""], 0.0).await;
    assert_eq!(pillion.metric("pillion_udp_dropped_total", &[]).await, 0.0);
}
