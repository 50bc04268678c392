//! How many descriptors this process may have: a connection that is carried takes two.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::sync::OnceLock;

/// As it was when the program started.
static FOUND: OnceLock<Rlimit> = OnceLock::new();

/// Takes all that may be had. The soft limit is 1,024 nearly everywhere, for the sake of programs that use `select`; one of many
/// connections is meant to raise it.
pub fn raise() {
    let found = FOUND.get_or_init(|| getrlimit(Resource::Nofile));
    if found.current == found.maximum {
        return;
    }
    match setrlimit(Resource::Nofile, Rlimit { current: found.maximum, ..*found }) {
        Ok(()) => tracing::debug!(from = ?found.current, to = ?found.maximum, "more open files are allowed"),
        Err(error) => tracing::warn!(%error, limit = ?found.current, "the limit of open files could not be raised"),
    }
}

/// Starts a child with the limit with which this process was started: it may be one that uses `select`.
pub fn with_the_limit_found<T>(start: impl FnOnce() -> T) -> T {
    if let Some(found) = FOUND.get() {
        // It is not above the present one, so nothing forbids it.
        let _ = setrlimit(Resource::Nofile, *found);
    }
    let started = start();
    if FOUND.get().is_some() {
        raise();
    }
    started
}
