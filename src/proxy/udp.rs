//! The life of UDP sessions: what one client sends, to one endpoint of the service, and back. It reads downwards from [`run`].

mod record;
mod session;

use super::{
    http::Proxy,
    listener::{Connection, Listener},
};
use crate::{error::Reason, telemetry::labels::Refused};
use session::Session;
use std::{cell::RefCell, collections::HashMap, net::SocketAddr, rc::Rc, time::Duration};
use tokio::{
    net::UdpSocket,
    time::{Instant, MissedTickBehavior, interval, sleep},
};

/// How often sessions are looked at.
const PERIOD: Duration = Duration::from_secs(1);
/// No datagram is larger (IPv4: 65,507 bytes; IPv6: 65,527).
const LARGEST: usize = 65_536;
/// How long sessions in which something moves may go on when the listener is to end: its address may be wanted by another.
const LEAVING: Duration = Duration::from_secs(30);
/// Between two tries to read where that fails.
const PAUSE: Duration = Duration::from_millis(10);

/// Those that came in by one socket. The kernel gives all that one client sends to the same one.
#[derive(Debug)]
pub struct Sessions {
    socket: UdpSocket,
    listener: Rc<Listener>,
    proxy: Rc<Proxy>,
    by_client: RefCell<HashMap<SocketAddr, Rc<Session>>>,
}

/// Takes datagrams until the listener is to end, then those of sessions that go on, until the last is over.
pub async fn run(socket: UdpSocket, listener: Rc<Listener>, proxy: Rc<Proxy>) {
    // Until the event loop has looked at it, nothing could be sent by it.
    if let Err(error) = socket.writable().await {
        return listener.accept_failed(&error);
    }
    let sessions = Rc::new(Sessions { socket, listener, proxy, by_client: RefCell::default() });
    let listener = &sessions.listener;
    let (mut closing, mut closed) = (listener.closing(), None);
    let mut looks = interval(PERIOD);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut space = vec![0; LARGEST];
    while closed.is_none() || !sessions.by_client.borrow().is_empty() {
        let is_closing = closed.is_some();
        tokio::select! {
            received = sessions.socket.recv_from(&mut space) => match received {
                Ok((length, client)) => sessions.take(&space[..length], client, is_closing),
                Err(error) => {
                    listener.accept_failed(&error);
                    sleep(PAUSE).await;
                }
            },
            now = looks.tick() => match closed {
                Some(closed) if now.saturating_duration_since(closed) >= LEAVING => sessions.cut(),
                _ => sessions.look(now, is_closing),
            },
            // An error means that its owner is gone, which is the same.
            _ = closing.wait_for(|closing| *closing), if !is_closing => closed = Some(Instant::now()),
        }
    }
}

impl Sessions {
    /// A datagram, of a session that there is or of a new one.
    fn take(self: &Rc<Self>, data: &[u8], client: SocketAddr, is_closing: bool) {
        let known = self.by_client.borrow().get(&client).cloned();
        if let Some(session) = known {
            return session.offer(data);
        }
        let metrics = &self.listener.metrics;
        if is_closing {
            return metrics.rejected.inc(Reason::ShuttingDown as usize);
        }
        // All workers' sessions count against one limit.
        let limit = self.listener.settings().limits.connections;
        if metrics.connections.get() >= i64::try_from(limit).unwrap_or(i64::MAX) {
            return metrics.refused.inc(Refused::Limit as usize);
        }
        let session = Rc::new(Session::new(client));
        session.offer(data);
        self.by_client.borrow_mut().insert(client, session.clone());
        let counted = Connection::new(self.listener.clone());
        let sessions = self.clone();
        tokio::task::spawn_local(async move {
            session.live(&sessions).await;
            sessions.by_client.borrow_mut().remove(&client);
            drop(counted);
        });
    }

    fn cut(&self) {
        self.by_client.borrow().values().for_each(|session| session.cut());
    }

    /// Ends those in which nothing moves: for as long as their service allows, or when the listener is to end.
    fn look(&self, now: Instant, is_closing: bool) {
        self.by_client.borrow().values().for_each(|session| session.look(now, is_closing));
    }
}
