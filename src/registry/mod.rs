//! Where services live, as registries tell it: [`Instance`], [`Registry`], and one file per backend.
//!
//! A backend turns its registry's protocol into calls on a [`Sink`]: whole sets of instances, signs of life, and
//! failures. It reconnects by itself and never reports an empty set because of an error. Everything above this floor
//! (priority of sources, last known good, publishing) is the same for all of them and lives in `discovery`.

mod consul;
pub mod embedded;
mod etcd;
pub mod file;
mod instance;
pub mod layout;
mod sink;

pub use crate::config::Protocol;
pub use consul::Consul;
pub use etcd::Etcd;
pub use instance::{Address, AddressError, Instance};
pub use sink::{Observation, Sink, sink};

use crate::net::tls::TlsError;
use futures_util::future::BoxFuture;
use std::{sync::Arc, time::Duration};

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

    /// A follower from which nothing was heard (no set, no sign of life, no failure) for this long is cut off and
    /// started afresh. Longer than the protocol's own longest silence.
    fn silence_limit(&self) -> Duration;
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
}

/// Why a registry cannot be set up from its settings. Nothing has been connected to yet.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SetupError {
    #[error("`{text}` is not an address of this registry; expected {expected}")]
    Address { text: String, expected: &'static str },
    #[error("the token has characters in it that cannot be sent in a header")]
    Token,
    #[error(transparent)]
    Tls(#[from] TlsError),
}
