//! The way to the cluster: which member is talked to, and when the next one is tried.
//!
//! All followers of a registry share one [`Connection`], and they share the failure when it cannot be made: however many
//! there are, the cluster sees one attempt per back-off.

use super::connection::{Connection, Credentials};
use crate::{
    backoff::Backoff,
    config::Tls,
    net::tls,
    registry::{RegistryError, SetupError},
};
use arc_swap::ArcSwap;
use http::Uri;
use std::{sync::Arc, time::Duration};
use tokio::sync::OnceCell;

/// Long enough that a fleet does not hammer a cluster that is down, short enough that it is back soon after it is up.
const LONGEST_WAIT: Duration = Duration::from_secs(10);
const SHORTEST_WAIT: Duration = Duration::from_millis(100);

/// One member of the cluster.
#[derive(Debug, Clone)]
pub struct Member {
    /// As the operator wrote it: what errors name.
    pub text: String,
    pub origin: Uri,
    pub host: String,
    pub port: u16,
    pub secure: bool,
}

impl Member {
    pub fn parse(text: &str) -> Result<Self, SetupError> {
        let bad = || SetupError::Address { text: text.into(), expected: "`http://HOST:PORT` or `https://HOST:PORT`" };
        let uri: Uri = text.parse().map_err(|_| bad())?;
        let (Some(scheme), Some(host), Some(port)) = (uri.scheme_str(), uri.host(), uri.port_u16()) else {
            return Err(bad());
        };
        let secure = match scheme {
            "http" => false,
            "https" => true,
            _ => return Err(bad()),
        };
        if uri.path() != "/" || uri.query().is_some() {
            return Err(bad());
        }
        let origin = format!("{scheme}://{host}:{port}").parse().map_err(|_| bad())?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        Ok(Self { text: text.into(), origin, host, port, secure })
    }
}

/// The members, and the connection to one of them.
pub struct Link {
    members: Vec<Member>,
    tls: Tls,
    credentials: Option<Credentials>,
    slot: ArcSwap<Slot>,
}

/// One attempt at a connection, made by whoever comes first and shared by all. Replaced when it has failed.
struct Slot {
    member: usize,
    /// How long to wait before this attempt.
    wait: Duration,
    backoff: Backoff,
    /// Attempts since the last connection that worked.
    failures: usize,
    made: OnceCell<Result<Arc<Connection>, RegistryError>>,
}

impl Link {
    pub fn new(endpoints: &[String], tls: &Tls, credentials: Option<Credentials>) -> Result<Self, SetupError> {
        let members = endpoints.iter().map(|text| Member::parse(text)).collect::<Result<Vec<_>, _>>()?;
        if members.is_empty() {
            return Err(SetupError::Address { text: String::new(), expected: "at least one endpoint" });
        }
        // Said now, by name of the file, rather than as a failure to connect.
        for member in members.iter().filter(|member| member.secure) {
            tls::client_config(tls, &[])?;
            tls::server_name(tls, &member.host)?;
        }
        let first = Slot {
            // Anywhere, so that a fleet is spread over the members.
            member: fastrand::usize(..members.len()),
            wait: Duration::ZERO,
            backoff: Backoff::new(SHORTEST_WAIT, LONGEST_WAIT),
            failures: 0,
            made: OnceCell::new(),
        };
        Ok(Self { members, tls: tls.clone(), credentials, slot: ArcSwap::from_pointee(first) })
    }

    /// The connection that there is, or the next attempt at one, which may wait before it starts.
    pub async fn connection(&self) -> Result<Arc<Connection>, RegistryError> {
        let mut slot = self.slot.load_full();
        if let Some(Ok(connection)) = slot.made.get()
            && connection.is_closed()
        {
            self.replace(&slot, connection.has_worked());
            slot = self.slot.load_full();
        }
        let made = slot.made.get_or_init(|| async {
            tokio::time::sleep(slot.wait).await;
            Connection::open(&self.members[slot.member], &self.tls, self.credentials.clone()).await.map(Arc::new)
        });
        let made = made.await.clone();
        if made.is_err() {
            self.replace(&slot, false);
        }
        made
    }

    /// Whoever asks for a connection from now on gets another one: `failed` broke, or its member cannot serve.
    pub fn give_up(&self, failed: &Arc<Connection>) {
        let slot = self.slot.load_full();
        if let Some(Ok(current)) = slot.made.get()
            && Arc::ptr_eq(current, failed)
        {
            self.replace(&slot, failed.has_worked());
        }
    }

    /// Puts the next attempt in the place of `old`, unless another follower has done so already.
    fn replace(&self, old: &Arc<Slot>, had_worked: bool) {
        let mut next = Slot {
            member: (old.member + 1) % self.members.len(),
            wait: Duration::ZERO,
            backoff: old.backoff.clone(),
            failures: old.failures + 1,
            made: OnceCell::new(),
        };
        if had_worked {
            // A whole fleet sees a member go at the same moment: even the first wait is a random one.
            next.failures = 0;
            next.backoff.reset();
            next.wait = next.backoff.next_wait();
        } else if next.failures.is_multiple_of(self.members.len()) {
            // All members were tried in turn; only then is it time to wait.
            next.wait = next.backoff.next_wait();
        }
        self.slot.compare_and_swap(old, Arc::new(next));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_urls() {
        let member = Member::parse("https://[::1]:2379").unwrap();
        assert_eq!((member.host.as_str(), member.port, member.secure), ("::1", 2379, true));
        assert_eq!(Member::parse("http://etcd-0.etcd:2379/").unwrap().origin, "http://etcd-0.etcd:2379");
        for text in ["", "127.0.0.1:2379", "etcd://a:1", "http://a", "http://a:1/path", "http://a:1?x=y"] {
            let error = Member::parse(text).unwrap_err().to_string();
            assert!(error.contains("expected `http://HOST:PORT`"), "{text}: {error}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn members_are_tried_in_turn_and_all_callers_share_an_attempt() {
        // Port 1 refuses at once.
        let endpoints = ["http://127.0.0.1:1".to_owned(), "http://127.0.0.2:1".to_owned()];
        let link = Arc::new(Link::new(&endpoints, &Tls::default(), None).unwrap());
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
        assert_ne!(errors[0], second, "the other member's turn");
    }

    #[tokio::test(start_paused = true)]
    async fn a_cluster_that_is_down_is_tried_ever_less_often() {
        let link = Link::new(&["http://127.0.0.1:1".to_owned()], &Tls::default(), None).unwrap();
        let start = tokio::time::Instant::now();
        for _ in 0..40 {
            assert!(link.connection().await.is_err());
        }
        // The first seven double from 0.1 s, the others are uniform below 10 s: 165 s in the mean.
        let took = start.elapsed();
        assert!(took > Duration::from_secs(60) && took < Duration::from_secs(500), "{took:?}");
    }
}
