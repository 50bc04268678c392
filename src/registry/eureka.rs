//! Eureka: all that a server lists, fetched once for all followers, then what changed; and instances of our own in it.

mod applications;
mod decode;
mod entry;
#[cfg(fuzzing)]
pub mod fuzzing;
mod gzip;
mod own;
mod peer;
#[cfg(test)]
mod tests;

use super::{
    Entry, Registration, Registry, RegistryError, SetupError, Sink, link::Link, server::Server, shared::Shared,
    watch::LONGEST_WAIT,
};
use crate::config::{EurekaName, EurekaRegistry};
use applications::Applications;
use entry::OwnEntry;
use futures_util::future::BoxFuture;
use peer::{ANSWER_LIMIT, Connect, Peer};
use std::{sync::Arc, time::Duration};
use tokio::time::{Instant, sleep};
use tracing::debug;

/// Servers keep changes for three minutes. What was fetched longer ago than this is fetched as a whole again.
const DELTA_REACH: Duration = Duration::from_secs(150);
/// So is each so manieth time, because the hash only counts.
const FULL_EVERY: u32 = 20;
/// Polls are early or late by up to this part of the interval, so that a fleet that started at one moment spreads out.
const JITTER: f64 = 0.1;

/// One or several Eureka servers that know the same.
pub struct Eureka {
    name: String,
    by: EurekaName,
    interval: Duration,
    link: Link<Connect>,
    shared: Shared<Applications>,
}

/// What was fetched last, and from where.
struct Fetched {
    peer: Arc<Peer>,
    applications: Arc<Applications>,
    at: Instant,
    /// Since the last full answer.
    deltas: u32,
}

impl Eureka {
    /// A client for the servers in `config`, known as `name`. Does not connect yet.
    ///
    /// Fails if a server is no URL, or if TLS is asked for and its files cannot be used.
    pub fn new(name: &str, config: &EurekaRegistry) -> Result<Self, SetupError> {
        let expected = "`http://HOST:PORT/eureka` or `https://HOST:PORT/eureka`";
        let servers: Vec<_> =
            config.servers.iter().map(|server| Server::with_base(server, expected)).collect::<Result<_, _>>()?;
        let connect = Connect::new(&servers, config)?;
        Ok(Self {
            name: name.into(),
            by: config.by,
            interval: config.interval,
            link: Link::new(servers, connect),
            shared: Shared::default(),
        })
    }

    /// Tells every follower what the server lists, for as long as it is polled.
    async fn poll(&self) {
        let mut last = None;
        loop {
            match self.fetch(&mut last).await {
                Ok(applications) => {
                    self.shared.set(applications);
                    sleep(self.interval.mul_f64(1.0 - JITTER + 2.0 * JITTER * fastrand::f64())).await;
                }
                Err(error) => {
                    debug!(registry = self.name, %error, "no answer to a poll");
                    // The link waits before the next attempt.
                    self.shared.failed(error);
                }
            }
        }
    }

    /// What is there now; the same `Arc` as the last one if nothing changed.
    async fn fetch(&self, last: &mut Option<Fetched>) -> Result<Arc<Applications>, RegistryError> {
        let peer = self.link.connection().await?;
        let fetched = match self.fetch_from(&peer, last.take()).await {
            Ok(fetched) => fetched,
            Err(error) => {
                self.link.give_up(&peer);
                return Err(error);
            }
        };
        let applications = fetched.applications.clone();
        *last = Some(fetched);
        Ok(applications)
    }

    async fn fetch_from(&self, peer: &Arc<Peer>, last: Option<Fetched>) -> Result<Fetched, RegistryError> {
        let at = Instant::now();
        let (changed, deltas) = match &last {
            Some(last) => (self.changed(peer, last).await?, last.deltas + 1),
            None => (None, 0),
        };
        let (applications, deltas) = match changed {
            Some(applications) => (applications, deltas),
            None => (Applications::new(peer.all().await?), 0),
        };
        // So that followers are told of changes only.
        let same = last.map(|last| last.applications).filter(|old| **old == applications);
        let applications = same.unwrap_or_else(|| Arc::new(applications));
        Ok(Fetched { peer: peer.clone(), applications, at, deltas })
    }

    /// What `last` has become. `None` if only a full answer can tell.
    async fn changed(&self, peer: &Arc<Peer>, last: &Fetched) -> Result<Option<Applications>, RegistryError> {
        // What another server does not know yet must not come and go.
        if !Arc::ptr_eq(&last.peer, peer) || last.at.elapsed() >= DELTA_REACH || last.deltas + 1 >= FULL_EVERY {
            return Ok(None);
        }
        let Some(delta) = peer.delta().await? else { return Ok(None) };
        let mut applications = Applications::clone(&last.applications);
        applications.apply(delta.listed);
        let (ours, theirs) = (applications.hash(), delta.hash);
        if ours != theirs {
            debug!(registry = self.name, ours, theirs, "fetching all: a change was missed");
            return Ok(None);
        }
        Ok(Some(applications))
    }

    async fn services(&self) -> Result<Vec<String>, RegistryError> {
        let peer = self.link.connection().await?;
        match peer.all().await {
            Ok(answer) => Ok(Applications::new(answer).names(self.by)),
            Err(error) => {
                self.link.give_up(&peer);
                Err(error)
            }
        }
    }
}

impl Registry for Eureka {
    fn name(&self) -> &str {
        &self.name
    }

    fn kind(&self) -> &'static str {
        "eureka"
    }

    fn follow(self: Arc<Self>, service: String, sink: Sink) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            let find = |applications: &Applications| applications.find(&service, self.by);
            self.shared.follow(&self.name, &service, sink, find, self.poll()).await;
        })
    }

    fn list(self: Arc<Self>) -> BoxFuture<'static, Result<Vec<String>, RegistryError>> {
        Box::pin(async move { self.services().await })
    }

    fn entry(self: Arc<Self>, registration: Arc<Registration>) -> Result<Box<dyn Entry>, RegistryError> {
        Ok(Box::new(OwnEntry::new(self, &registration)))
    }

    fn silence_limit(&self) -> Duration {
        // A delta and a full answer that take as long as they may, after a failure.
        self.interval.mul_f64(1.0 + JITTER) + LONGEST_WAIT + 2 * ANSWER_LIMIT + Duration::from_secs(30)
    }
}
