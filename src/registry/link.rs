//! The way to a registry of several servers: which one is talked to, and when the next one is tried.
//!
//! All followers of a registry share one connection, and they share the failure when it cannot be made: however many
//! there are, the registry sees one attempt per back-off.

use super::{
    RegistryError,
    server::Server,
    watch::{LONGEST_WAIT, SHORTEST_WAIT},
};
use crate::backoff::Backoff;
use arc_swap::ArcSwap;
use std::{future::Future, sync::Arc, time::Duration};
use tokio::sync::OnceCell;

/// How a backend connects to one of its servers.
pub trait Connect: Send + Sync + 'static {
    type Connection: Connection;

    fn connect(&self, server: &Server) -> impl Future<Output = Result<Self::Connection, RegistryError>> + Send;
}

/// What a link wants to know of a connection.
pub trait Connection: Send + Sync + 'static {
    fn is_closed(&self) -> bool;

    /// Whether anything was ever answered on it.
    fn has_worked(&self) -> bool;
}

/// The servers, and the connection to one of them.
pub struct Link<C: Connect> {
    servers: Vec<Server>,
    connect: C,
    slot: ArcSwap<Slot<C::Connection>>,
}

/// One attempt at a connection, made by whoever comes first and shared by all. Replaced when it has failed.
struct Slot<C> {
    /// Which server's turn it is.
    turn: usize,
    /// How long to wait before this attempt.
    wait: Duration,
    backoff: Backoff,
    /// Attempts since the last connection that worked.
    failures: usize,
    made: OnceCell<Result<Arc<C>, RegistryError>>,
}

impl<C: Connect> Link<C> {
    /// `servers` must not be empty.
    pub fn new(servers: Vec<Server>, connect: C) -> Self {
        let first = Slot {
            // Anywhere, so that a fleet is spread over the servers.
            turn: fastrand::usize(..servers.len().max(1)),
            wait: Duration::ZERO,
            backoff: Backoff::new(SHORTEST_WAIT, LONGEST_WAIT),
            failures: 0,
            made: OnceCell::new(),
        };
        Self { servers, connect, slot: ArcSwap::from_pointee(first) }
    }

    /// A link to the same servers that shares nothing with this one.
    pub fn another(&self, connect: impl FnOnce(&C) -> C) -> Self {
        Self::new(self.servers.clone(), connect(&self.connect))
    }

    /// The connection that there is, or the next attempt at one, which may wait before it starts.
    pub async fn connection(&self) -> Result<Arc<C::Connection>, RegistryError> {
        let mut slot = self.slot.load_full();
        if let Some(Ok(connection)) = slot.made.get()
            && connection.is_closed()
        {
            self.replace(&slot, connection.has_worked());
            slot = self.slot.load_full();
        }
        let made = slot.made.get_or_init(|| async {
            tokio::time::sleep(slot.wait).await;
            self.connect.connect(&self.servers[slot.turn]).await.map(Arc::new)
        });
        let made = made.await.clone();
        if made.is_err() {
            self.replace(&slot, false);
        }
        made
    }

    /// Whoever asks for a connection from now on gets another one: `failed` broke, or its server cannot serve.
    pub fn give_up(&self, failed: &Arc<C::Connection>) {
        let slot = self.slot.load_full();
        if let Some(Ok(current)) = slot.made.get()
            && Arc::ptr_eq(current, failed)
        {
            self.replace(&slot, failed.has_worked());
        }
    }

    /// Puts the next attempt in the place of `old`, unless another follower has done so already.
    fn replace(&self, old: &Arc<Slot<C::Connection>>, had_worked: bool) {
        let mut next = Slot {
            turn: (old.turn + 1) % self.servers.len(),
            wait: Duration::ZERO,
            backoff: old.backoff.clone(),
            failures: old.failures + 1,
            made: OnceCell::new(),
        };
        if had_worked {
            // A whole fleet sees a server go at the same moment: even the first wait is a random one.
            next.failures = 0;
            next.backoff.reset();
            next.wait = next.backoff.next_wait();
        } else if next.failures.is_multiple_of(self.servers.len()) {
            // All servers were tried in turn; only then is it time to wait.
            next.wait = next.backoff.next_wait();
        }
        self.slot.compare_and_swap(old, Arc::new(next));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Refuses all.
    struct Refuse;

    struct Never;

    impl Connection for Never {
        fn is_closed(&self) -> bool {
            false
        }

        fn has_worked(&self) -> bool {
            false
        }
    }

    impl Connect for Refuse {
        type Connection = Never;

        async fn connect(&self, server: &Server) -> Result<Never, RegistryError> {
            tokio::task::yield_now().await;
            Err(RegistryError::Unreachable { server: server.text.clone(), cause: "refused".into() })
        }
    }

    fn link(servers: &[&str]) -> Link<Refuse> {
        Link::new(servers.iter().map(|text| Server::parse(text).unwrap()).collect(), Refuse)
    }

    #[tokio::test(start_paused = true)]
    async fn servers_are_tried_in_turn_and_all_callers_share_an_attempt() {
        let link = Arc::new(link(&["http://127.0.0.1:1", "http://127.0.0.2:1"]));
        let callers: Vec<_> = (0..10)
            .map(|_| {
                tokio::spawn({
                    let link = link.clone();
                    async move { link.connection().await }
                })
            })
            .collect();
        let mut errors = Vec::new();
        for caller in callers {
            errors.push(caller.await.unwrap().err().unwrap().to_string());
        }
        errors.dedup();
        assert_eq!(errors.len(), 1, "{errors:?}");
        let second = link.connection().await.err().unwrap().to_string();
        assert_ne!(errors[0], second, "the other server's turn");
    }

    #[tokio::test(start_paused = true)]
    async fn a_registry_that_is_down_is_tried_ever_less_often() {
        let link = link(&["http://127.0.0.1:1"]);
        let start = tokio::time::Instant::now();
        for _ in 0..40 {
            assert!(link.connection().await.is_err());
        }
        // The first seven double from 0.1 s, the others are uniform below 10 s: 165 s in the mean.
        let took = start.elapsed();
        assert!(took > Duration::from_secs(60) && took < Duration::from_secs(500), "{took:?}");
    }
}
