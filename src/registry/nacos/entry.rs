//! Our own instance: registered on the connection, which its end takes out, or over HTTP, where it is kept alive by beats.
//!
//! Nacos makes the id of an instance of its address and cluster, so that nobody else can have ours at another address.

use super::{Nacos, connection::Connection, encode::Host, message::Key};
use crate::registry::{self, Registration, RegistryError, Renewal};
use futures_util::future::BoxFuture;
use serde_json::Value;
use std::{future::pending, sync::Arc, time::Duration};
use tokio::time::{Instant, sleep};
use tracing::warn;

/// Before that the server may answer what was there before: it gathers changes, for 500 ms by default.
const SETTLED: Duration = Duration::from_secs(3);

/// How often it is asked whether it is really out.
const LOOK: Duration = Duration::from_millis(50);

/// One instance of ours.
pub(super) struct OwnEntry {
    nacos: Arc<Nacos>,
    registration: Arc<Registration>,
    key: Key,
    /// As it was last put.
    host: Host,
    /// Where it may be registered; the last one is where it was put last. A connection is held until it is registered on
    /// another one, so that there is no gap when the server wants it to be closed.
    on: Vec<Arc<Connection>>,
    put: Instant,
    seen: Seen,
}

/// What the server says that it has of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    Right,
    /// Not what was put, which was then put again.
    Other,
    /// Not what was put again, either: somebody who may do that wants it otherwise.
    Overridden,
}

impl OwnEntry {
    pub(super) fn new(nacos: Arc<Nacos>, registration: Arc<Registration>) -> Self {
        let key = Key::parse(&registration.service, &nacos.group);
        let host = Host::new(&registration);
        Self { nacos, registration, key, host, on: Vec::new(), put: Instant::now(), seen: Seen::Right }
    }

    async fn write(&mut self) -> Result<(), RegistryError> {
        let connection = self.nacos.link.connection().await?;
        if !self.is_on(&connection) {
            self.on.push(connection.clone());
            self.seen = Seen::Right;
        }
        let written = match &*connection {
            Connection::Grpc(session) => session.publish(&self.key, self.host.id(), Some(self.host.json())).await,
            Connection::Http { api, .. } => api.register(&self.key, &self.with_beats()).await,
        };
        written.map_err(|error| self.nacos.failed(&connection, error))?;
        self.put = Instant::now();
        while self.on.len() > 1 {
            if let (Connection::Grpc(_), Connection::Http { api, .. }) = (&*connection, &*self.on[0]) {
                // Should that fail, it goes when it has had no beats for long enough.
                let _ = api.deregister(&self.key, &self.host).await;
            }
            self.on.remove(0);
        }
        Ok(())
    }

    fn is_on(&self, connection: &Arc<Connection>) -> bool {
        self.on.last().is_some_and(|on| Arc::ptr_eq(on, connection))
    }

    /// As it is registered over HTTP. A beat makes an unhealthy instance healthy, so one that is not fit is disabled.
    fn with_beats(&self) -> Host {
        let fit = self.host.healthy;
        Host { healthy: true, enabled: fit, ..self.host.clone() }.with_ttl(self.registration.ttl)
    }

    async fn renewed(&mut self) -> Result<Renewal, RegistryError> {
        let connection = self.nacos.link.connection().await?;
        let Some(on) = self.on.last() else { return Ok(Renewal::Lost("it was not put yet".into())) };
        match (&*connection, &**on) {
            (Connection::Grpc(session), Connection::Grpc(_)) if Arc::ptr_eq(&connection, on) => {
                let answer = session.query(&self.key).await;
                let info = answer.map_err(|error| self.nacos.failed(&connection, error))?;
                let host = self.host.clone();
                Ok(self.compare(&host, &info.hosts))
            }
            (_, Connection::Grpc(_)) => Ok(Renewal::Lost("the connection on which it was registered ended".into())),
            (Connection::Http { api, .. }, Connection::Http { .. }) => {
                let host = self.with_beats();
                let failed = |error| self.nacos.failed(&connection, error);
                if !api.beat(&self.key, &host).await.map_err(failed)? {
                    return Ok(Renewal::Lost("it is not there".into()));
                }
                if !host.enabled {
                    // That is not told to anybody.
                    return Ok(Renewal::Kept);
                }
                let hosts = api.beside(&self.key, &host).await.map_err(failed)?;
                Ok(self.compare(&host, &hosts))
            }
            // There is gRPC again.
            (Connection::Grpc(_), Connection::Http { .. }) => self.write().await.map(|()| Renewal::Kept),
        }
    }

    fn compare(&mut self, ours: &Host, hosts: &[Value]) -> Renewal {
        if self.put.elapsed() < SETTLED {
            return Renewal::Kept;
        }
        // It can be there twice, registered by somebody else as well.
        let mut there = hosts.iter().filter(|there| ours.is_at(there)).peekable();
        let lost = if there.peek().is_none() { "it is not there" } else { "somebody changed it" };
        match self.seen {
            _ if there.any(|there| ours.is_like(there)) => self.seen = Seen::Right,
            Seen::Right => {
                self.seen = Seen::Other;
                return Renewal::Lost(lost.into());
            }
            Seen::Other => {
                self.seen = Seen::Overridden;
                let (registry, service, id) = (&self.nacos.name, &self.registration.service, ours.id());
                warn!(registry, service, id, "the server keeps to what somebody else has set for our instance: {lost}");
            }
            Seen::Overridden => {}
        }
        Renewal::Kept
    }

    async fn removed(&mut self) -> Result<(), RegistryError> {
        while let Some(on) = self.on.last() {
            let removed = match &**on {
                Connection::Grpc(session) => match session.publish(&self.key, self.host.id(), None).await {
                    // It went with its connection.
                    Err(_) if session.is_over() => Ok(()),
                    removed => removed,
                },
                Connection::Http { api, .. } => api.deregister(&self.key, &self.host).await,
            };
            removed.map_err(|error| self.nacos.failed(on, error))?;
            self.until_untold(on).await;
            self.on.pop();
        }
        Ok(())
    }

    /// Waits until the server itself does not tell it any more, since callers may be told only then; not for ever, for
    /// somebody else may have registered the same.
    async fn until_untold(&self, on: &Connection) {
        let start = Instant::now();
        while start.elapsed() < SETTLED {
            let hosts = match on {
                Connection::Grpc(session) => session.query(&self.key).await.map(|info| info.hosts),
                Connection::Http { api, .. } => api.beside(&self.key, &self.host).await,
            };
            match hosts {
                Ok(hosts) if hosts.iter().any(|there| self.host.is_at(there)) => sleep(LOOK).await,
                // What cannot be asked any more is out with its connection.
                Ok(_) | Err(_) => return,
            }
        }
    }
}

impl registry::Entry for OwnEntry {
    fn put(&mut self, healthy: bool) -> BoxFuture<'_, Result<(), RegistryError>> {
        self.host.healthy = healthy;
        Box::pin(self.write())
    }

    fn renew(&mut self) -> BoxFuture<'_, Result<Renewal, RegistryError>> {
        Box::pin(self.renewed())
    }

    fn remove(&mut self) -> BoxFuture<'_, Result<(), RegistryError>> {
        Box::pin(self.removed())
    }

    fn lost(&mut self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            match self.on.last().map(|on| &**on) {
                Some(Connection::Grpc(session)) => session.ended().await,
                _ => pending().await,
            }
        })
    }

    fn shows_health(&self) -> bool {
        true
    }
}
