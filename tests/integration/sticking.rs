//! What keeps a user where a split has put it, on the wire.

use crate::{
    peer::Peer,
    pillion::Pillion,
    routing::{asked, routed},
};
use std::{collections::BTreeSet, net::SocketAddr};
use tokio::net::TcpSocket;

/// A connection from this address of the loopback network.
async fn connect_from(pillion: &Pillion, source: [u8; 4]) -> Peer {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::from((source, 0))).unwrap();
    Peer::new(socket.connect(pillion.egress()).await.unwrap())
}

#[tokio::test]
async fn an_address_stays_where_it_is_on_every_pillion() {
    let split = "routes: [{ split: { stable: 50, canary: 50 }, sticky: { source: true } }]";
    let (_a, _b, one) = routed(split).await;
    let (_c, _d, other) = routed(split).await;
    let mut found = BTreeSet::new();
    for last in 1..=30 {
        let source = [127, 0, 7, last];
        let mut client = connect_from(&one, source).await;
        let version = asked(&mut client, "/", "").await;
        // Whatever the request says, on another connection, on another pillion.
        assert_eq!(asked(&mut client, "/x", "x-user: 1\r\nx-forwarded-for: 10.0.0.1\r\n").await, version);
        assert_eq!(asked(&mut connect_from(&one, source).await, "/", "").await, version);
        assert_eq!(asked(&mut connect_from(&other, source).await, "/", "").await, version, "{source:?}");
        found.insert(version);
    }
    assert_eq!(found.len(), 2, "not all are at one");
}

#[tokio::test]
async fn a_member_of_the_baggage_keeps_a_user_where_it_is() {
    let split = "routes: [{ split: { stable: 50, canary: 50 }, sticky: { baggage: user } }]";
    let (_a, _b, one) = routed(split).await;
    let (_c, _d, other) = routed(split).await;
    let (mut first, mut second) = (one.connect().await, other.connect().await);
    let mut found = BTreeSet::new();
    for user in 100..130 {
        let version = asked(&mut first, "/", &format!("baggage: user={user}\r\n")).await;
        // However it is written, and whatever else is there.
        let encoded = format!("baggage: a=b, user = %31{};p=q ,user=7\r\n", &user.to_string()[1..]);
        assert_eq!(asked(&mut first, "/x", &encoded).await, version, "user {user}");
        assert_eq!(asked(&mut second, "/", &format!("baggage: a=b\r\nbaggage: user={user}\r\n")).await, version);
        found.insert(version);
    }
    assert_eq!(found.len(), 2, "not all are at one");
    let mut drawn = BTreeSet::new();
    for _ in 0..100 {
        drawn.insert(asked(&mut first, "/", "baggage: other=1\r\n").await);
    }
    assert_eq!(drawn.len(), 2, "without the member each request is drawn");
}
