//! Where services live, as registries tell it: [`Instance`], [`Registry`], and one file per backend.
//!
//! A backend turns its registry's protocol into calls on a [`Sink`]: whole sets of instances, signs of life, and
//! failures. It reconnects by itself and never reports an empty set because of an error. Everything above this floor
//! (priority of sources, last known good, publishing) is the same for all of them and lives in `discovery`.

mod consul;
pub mod dns;
pub mod embedded;
mod etcd;
mod eureka;
pub mod file;
#[cfg(fuzzing)]
pub mod fuzzing;
mod grpc;
mod http;
mod http2;
mod instance;
mod kubernetes;
pub mod layout;
mod link;
mod nacos;
mod redis;
mod registration;
mod server;
mod shared;
mod sink;
pub mod store;
mod watch;
mod xds;
mod zookeeper;

pub use crate::config::Protocol;
pub use consul::Consul;
pub use dns::Dns;
pub use etcd::Etcd;
pub use eureka::Eureka;
pub use http::HttpClient;
pub use instance::{Address, AddressError, Instance};
pub use kubernetes::Kubernetes;
pub use nacos::Nacos;
pub use redis::Redis;
pub use registration::{Entry, Registration, Renewal, TAG};
pub use server::Server;
pub use sink::{Observation, Sink, sink};
pub use xds::Xds;
pub use zookeeper::Zookeeper;

use crate::{config, net::tls::TlsError};
use futures_util::future::BoxFuture;
use std::{sync::Arc, time::Duration};
use store::Store;

/// A source of instances. One value per entry under `registries:`; it is shared by all followers of its services.
pub trait Registry: Send + Sync + 'static {
    /// The name it has under `registries:`.
    fn name(&self) -> &str;

    /// The backend's kind as written in the config, e.g. `etcd`.
    fn kind(&self) -> &'static str;

    /// Follows `service` until the returned future is dropped, which must release everything it holds at the registry.
    /// The future never ends by itself: it reconnects with back-off, reporting each failure to `sink`.
    fn follow(self: Arc<Self>, service: String, sink: Sink) -> BoxFuture<'static, ()>;

    /// The names of all services that the registry has now, in no order.
    fn list(self: Arc<Self>) -> BoxFuture<'static, Result<Vec<String>, RegistryError>>;

    /// Our own entry for `registration`, which is not there before [`Entry::put`].
    ///
    /// Fails if this registry takes no registrations, or not this one.
    fn entry(self: Arc<Self>, registration: Arc<Registration>) -> Result<Box<dyn Entry>, RegistryError> {
        let (service, kind) = (&registration.service, self.kind());
        Err(RegistryError::Impossible {
            cause: format!("`{service}` cannot be registered in a registry of kind {kind}"),
        })
    }

    /// Its own key-value store.
    fn store(self: Arc<Self>) -> Result<Arc<dyn Store>, RegistryError> {
        let (kind, able) = (self.kind(), config::Registry::WITH_STORE);
        Err(RegistryError::Impossible {
            cause: format!("a registry of kind {kind} has no store of its own; expected one of kind {able}"),
        })
    }

    /// A follower, or the watch of a store, from which nothing was heard (no set, no sign of life, no failure) for this long is cut off and
    /// started afresh. Longer than the protocol's own longest silence.
    fn silence_limit(&self) -> Duration;
}

/// A listing is asked for by a person, who would rather have an error than wait for a registry to come back.
const LIST_TIMEOUT: Duration = Duration::from_secs(10);

/// What `listing` gives, or an error in the registry's name when it takes too long.
async fn in_time(
    registry: &str,
    listing: impl Future<Output = Result<Vec<String>, RegistryError>>,
) -> Result<Vec<String>, RegistryError> {
    let late =
        |_| RegistryError::Unreachable { server: registry.into(), cause: format!("no answer within {LIST_TIMEOUT:?}") };
    tokio::time::timeout(LIST_TIMEOUT, listing).await.map_err(late)?
}

/// Why a registry could not answer. Shown to the operator as is; followers retry whatever it was.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RegistryError {
    /// No connection, or it broke.
    #[error("cannot reach {server}: {cause}")]
    Unreachable { server: String, cause: String },
    /// The server answered and refused: wrong credentials, no rights, no such namespace.
    #[error("{server} refused: {cause}")]
    Refused { server: String, cause: String },
    /// The server is there but cannot serve now (no leader, rate limited, overloaded).
    #[error("{server} is not able to answer: {cause}")]
    Busy { server: String, cause: String },
    /// The answer was not what the protocol promises.
    #[error("{server} answered something unexpected: {cause}")]
    Protocol { server: String, cause: String },
    /// Somebody else is registered with our id.
    #[error("{server} has another one: {cause}")]
    Clash { server: String, cause: String },
    /// No registry of this kind can do it.
    #[error("{cause}")]
    Impossible { cause: String },
}

/// Why a registry cannot be set up from its settings. Nothing has been connected to yet.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SetupError {
    #[error("`{text}` is not an address of this registry; expected {expected}")]
    Address { text: String, expected: &'static str },
    #[error("the token has characters in it that cannot be sent in a header")]
    Token,
    #[error("`{file}` names no server; set `servers`")]
    NoServers { file: &'static str },
    /// Where the registry is, or who we are to it, cannot be told.
    #[error("{0}")]
    Access(String),
    #[error(transparent)]
    Tls(#[from] TlsError),
}
