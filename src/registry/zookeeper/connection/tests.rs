use super::{super::proto::EventKind, *};
use crate::registry::link::Connection as _;
use bytes::{Buf, BufMut};
use tokio::{
    io::DuplexStream,
    time::{sleep, timeout as within},
};

/// The server's end of a connection, which says what a test wants.
struct Peer {
    io: DuplexStream,
    suspended: Arc<ArcSwapOption<Suspended>>,
}

/// An open session with a timeout of 9 s.
fn connected() -> (Connection, Peer) {
    connected_with(true)
}

fn connected_with(pings: bool) -> (Connection, Peer) {
    let (ours, io) = tokio::io::duplex(1 << 20);
    let suspended = Arc::<ArcSwapOption<Suspended>>::default();
    let session = Session { id: 7, password: Bytes::from_static(b"secret"), timeout_ms: 9000 };
    let opened = Opened { stream: Box::new(ours), session, recursive: true };
    (Connection::start("server".into(), opened, (40, pings), suspended.clone()), Peer { io, suspended })
}

impl Peer {
    /// The next request: its number, its code, and the rest.
    async fn hears(&mut self) -> (i32, i32, Bytes) {
        let mut frame = vec![0; self.io.read_i32().await.unwrap().try_into().unwrap()];
        self.io.read_exact(&mut frame).await.unwrap();
        let mut frame = Bytes::from(frame);
        (frame.get_i32(), frame.get_i32(), frame)
    }

    async fn says(&mut self, xid: i32, zxid: i64, code: i32, body: &[u8]) {
        let mut out = BytesMut::new();
        out.put_i32((16 + body.len()).try_into().unwrap());
        out.put_i32(xid);
        out.put_i64(zxid);
        out.put_i32(code);
        out.put_slice(body);
        self.io.write_all(&out).await.unwrap();
    }

    async fn tells(&mut self, kind: i32, path: &str) {
        let mut body = BytesMut::new();
        body.put_i32(kind);
        body.put_i32(3);
        body.put_i32(path.len().try_into().unwrap());
        body.put_slice(path.as_bytes());
        self.says(proto::NOTIFICATION, -1, 0, &body).await;
    }
}

/// Subscribes, with the server's consent.
async fn subscribed(connection: &Connection, peer: &mut Peer, path: &str) -> Subscription {
    let consent = async {
        let (xid, code, _) = peer.hears().await;
        assert_eq!(code, 106);
        peer.says(xid, 41, 0, &[0; 4]).await;
    };
    tokio::join!(connection.subscribe(path), consent).0.unwrap()
}

const NONE: Option<Event> = None;

#[tokio::test(start_paused = true)]
async fn a_quiet_connection_pings_and_a_silent_one_ends() {
    let (connection, mut peer) = connected();
    let start = Instant::now();
    for _ in 0..10 {
        assert_eq!(peer.hears().await.1, 11);
        peer.says(proto::PING, 0, 0, &[]).await;
    }
    assert_eq!(start.elapsed().as_secs(), 30, "one in a third of the session's timeout");
    assert!(!connection.is_closed());
    assert!(!connection.has_worked(), "pings are no work");
    // From now on the server says nothing.
    let error = connection.exists("/a", false).await.unwrap_err();
    let CallError::Broken(error) = error else { panic!("{error:?}") };
    assert_eq!(error.to_string(), "cannot reach server: nothing was heard for 6s");
    assert_eq!(start.elapsed().as_secs(), 36);
    assert!(connection.is_closed());
    let suspended = peer.suspended.load_full().unwrap();
    assert_eq!((suspended.session.id, suspended.zxid), (7, 40));
    assert_eq!(suspended.until - start, Duration::from_secs(39), "from when the server was last heard");
}

#[tokio::test(start_paused = true)]
async fn an_unattended_session_lives_by_what_is_asked_in_it() {
    let (connection, mut peer) = connected_with(false);
    let start = Instant::now();
    for xid in 1..=3 {
        sleep(Duration::from_secs(5)).await;
        let answer = async {
            // Nothing was said in between.
            assert_eq!(peer.hears().await.0, xid);
            peer.says(xid, 41, 0, &[0; 68]).await;
        };
        tokio::join!(connection.exists("/a", false), answer).0.unwrap();
    }
    connection.calls.closed().await;
    assert_eq!(start.elapsed().as_secs(), 3 * 5 + 6, "nobody asked any more");
    let suspended = peer.suspended.load_full().unwrap();
    assert_eq!((suspended.until - start).as_secs(), 3 * 5 + 9, "and it can be taken up until it ends");
}

#[tokio::test(start_paused = true)]
async fn answers_come_in_order() {
    let (connection, mut peer) = connected();
    let serve = async {
        let mut asked = Vec::new();
        for _ in 0..2 {
            asked.push(peer.hears().await.0);
        }
        peer.says(asked[0], 50, 0, b"\0\0\0\x01\0\0\0\x01a").await;
        peer.says(asked[1], 51, -101, &[]).await;
    };
    let (children, missing, ()) = tokio::join!(connection.children("/a", false), connection.exists("/b", false), serve);
    assert_eq!(children.unwrap(), ["a"]);
    assert!(matches!(missing, Err(CallError::Code(Code::NO_NODE))));
    assert!(connection.has_worked());

    // Another order is a mistake that cannot be made good.
    let confuse = async {
        let (xid, ..) = peer.hears().await;
        peer.says(xid + 1, 52, 0, &[]).await;
    };
    let (answer, ()) = tokio::join!(connection.exists("/c", false), confuse);
    assert!(matches!(answer, Err(CallError::Broken(_))), "{answer:?}");
    assert_eq!(peer.suspended.load_full().unwrap().zxid, 52);
}

#[tokio::test(start_paused = true)]
async fn events_go_to_whom_they_concern_and_the_last_to_leave_ends_the_watch() {
    let (connection, mut peer) = connected();
    let mut users = subscribed(&connection, &mut peer, "/pillion/users").await;
    let mut again = subscribed(&connection, &mut peer, "/pillion/users").await;
    let mut admin = subscribed(&connection, &mut peer, "/pillion/users/admin").await;
    for (kind, path) in
        [(1, "/pillion/users-admin/a"), (1, "/pillion/users/a"), (2, "/pillion"), (3, "/pillion/users/admin/b")]
    {
        peer.tells(kind, path).await;
    }
    let created = Event { kind: EventKind::Created, path: "/pillion/users/a".into() };
    let below = Event { kind: EventKind::DataChanged, path: "/pillion/users/admin/b".into() };
    for subscription in [&mut users, &mut again] {
        assert_eq!(subscription.next().await, Some(created.clone()));
        assert_eq!(subscription.next().await, Some(below.clone()));
        assert_eq!(subscription.another(), NONE);
    }
    assert_eq!((admin.next().await, admin.another()), (Some(below), NONE));

    drop(users);
    assert!(within(Duration::from_secs(1), peer.hears()).await.is_err(), "there is another one");
    drop(again);
    let (xid, code, rest) = peer.hears().await;
    assert_eq!((code, &rest[..]), (18, &b"\0\0\0\x0e/pillion/users\0\0\0\x03"[..]));
    // Its answer concerns nobody; the next one's asker hears it all the same.
    let serve = async {
        peer.says(xid, 60, 0, &[]).await;
        let (xid, ..) = peer.hears().await;
        peer.says(xid, 60, -101, &[]).await;
    };
    let (answer, ()) = tokio::join!(connection.exists("/c", false), serve);
    assert!(matches!(answer, Err(CallError::Code(Code::NO_NODE))), "{answer:?}");
}

#[tokio::test(start_paused = true)]
async fn a_follower_that_is_too_slow_hears_the_end_of_its_events_and_others_do_not() {
    let (connection, mut peer) = connected();
    let mut slow = subscribed(&connection, &mut peer, "/pillion/users").await;
    let mut other = subscribed(&connection, &mut peer, "/pillion/orders").await;
    for n in 0..=EVENTS {
        peer.tells(1, &format!("/pillion/users/{n}")).await;
    }
    peer.tells(1, "/pillion/orders/a").await;
    assert!(other.next().await.is_some());
    let mut kept = 0;
    while slow.next().await.is_some() {
        kept += 1;
    }
    assert_eq!(kept, EVENTS);
    assert!(!connection.is_closed());
    // It may come back, and is told again.
    drop(slow);
    let (xid, code, _) = peer.hears().await;
    assert_eq!(code, 18);
    peer.says(xid, 61, 0, &[]).await;
    let mut again = subscribed(&connection, &mut peer, "/pillion/users").await;
    peer.tells(1, "/pillion/users/a").await;
    assert!(again.next().await.is_some());
}

#[tokio::test(start_paused = true)]
async fn a_session_that_nobody_wants_is_closed() {
    let (connection, mut peer) = connected();
    let subscription = subscribed(&connection, &mut peer, "/pillion/users").await;
    drop(connection);
    sleep(Duration::from_secs(1)).await;
    drop(subscription);
    assert_eq!(peer.hears().await.1, 18);
    assert_eq!(peer.hears().await.1, -11);
    assert!(peer.io.read_i32().await.is_err(), "and then it hangs up");
    assert!(peer.suspended.load_full().is_none());
}
