//! Putting an instance into a registry, for others to find: what is put there, and what a backend does for it.

use super::{Instance, RegistryError};
use crate::config::Register;
use futures_util::future::BoxFuture;
use std::time::{Duration, SystemTime};

/// What others are to find.
#[derive(Debug, Clone, PartialEq)]
pub struct Registration {
    /// The name that the registry is to know it by.
    pub service: String,
    /// Tags are labels `tag.NAME`. Its `healthy` says nothing: see [`Entry::put`].
    pub instance: Instance,
    /// The registry forgets the entry when it has not been renewed for so long. Each registry rounds it to what it can.
    pub ttl: Duration,
    /// What was asked for, for what only some registries have.
    pub asked: Register,
}

/// Our own entry in one registry. Calls follow one another; each may take as long as the backend's own time limits.
pub trait Entry: Send {
    /// Puts the entry in, or puts right what is there of it, and starts its TTL anew. What an earlier run of ours left, the
    /// same id at the same address, is taken over without a gap; the same id at *another* address is
    /// [`RegistryError::Clash`].
    ///
    /// `healthy`: whether the instance is fit to serve. Always true where [`Entry::shows_health`] is not.
    fn put(&mut self, healthy: bool) -> BoxFuture<'_, Result<(), RegistryError>>;

    /// Starts its TTL anew, and looks whether the registry really has it as it was last put.
    fn renew(&mut self) -> BoxFuture<'_, Result<Renewal, RegistryError>>;

    /// Takes it out. That it is not there, or is somebody else's by now, is a success.
    fn remove(&mut self) -> BoxFuture<'_, Result<(), RegistryError>>;

    /// Waits until it is known, without asking, that the registry has lost the entry: what it hung on ended. It is renewed at
    /// once then.
    fn lost(&mut self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::pending())
    }

    /// Whether the registry can hold an instance that is not fit to serve, as such. Where it cannot, such an instance is
    /// taken out.
    fn shows_health(&self) -> bool {
        false
    }

    /// Why the instance is not fit to serve, if it is not: told before each call, for registries that can show it.
    fn explain(&mut self, _failure: Option<&str>) {}
}

/// What a renewal found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Renewal {
    Kept,
    /// It is not there any more, or not as it was put; why, as far as that is known. It has to be put again.
    Lost(String),
}

/// The label of a tag.
pub const TAG: &str = "tag.";

impl Registration {
    /// The tags, without their prefix.
    pub fn tags(&self) -> impl Iterator<Item = &str> {
        self.instance.labels.keys().filter_map(|label| label.strip_prefix(TAG))
    }

    /// The labels that are no tags.
    pub fn metadata(&self) -> impl Iterator<Item = (&str, &str)> {
        let labels = self.instance.labels.iter().filter(|(label, _)| !label.starts_with(TAG));
        labels.map(|(label, value)| (label.as_str(), value.as_str()))
    }

    /// That `there` has our id.
    pub fn clash(&self, server: &str, there: &str) -> RegistryError {
        let (Self { service, instance, .. }, server) = (self, server.into());
        let cause = format!(
            "`{}` of `{service}` is at {there} already, and ours is at {}; expected an id of its own (`register[].id`), or \
             that the other one is gone",
            instance.id, instance.address
        );
        RegistryError::Clash { server, cause }
    }
}

/// Now, in milliseconds, as registries write times. 0 before 1970.
pub(super) fn since_1970() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}
