//! Starts a watch afresh whenever it was silent for longer than its protocol allows: a connection that was cut without a word
//! looks just like a quiet one.

use crate::registry::{Registry, RegistryError};
use futures_util::future::BoxFuture;
use std::time::Duration;
use tokio::time::{Instant, sleep_until};

/// Follows for ever what `follow` follows at `registry`. `heard`: when anything at all was heard; `failed`: takes note of a
/// failure. `what` it is, as the log calls it.
pub async fn follow(
    what: &str,
    registry: &dyn Registry,
    follow: impl Fn() -> BoxFuture<'static, ()>,
    heard: impl Fn() -> Option<Instant>,
    failed: impl Fn(RegistryError),
) {
    loop {
        tokio::select! {
            () = follow() => {}
            () = silence(&heard, registry.silence_limit()) => {
                let cause = format!("nothing was heard for {:?}; starting afresh", registry.silence_limit());
                tracing::warn!(what, registry = registry.name(), "{cause}");
                failed(RegistryError::Unreachable { server: registry.name().into(), cause });
            }
        }
    }
}

/// Returns when nothing was heard for `limit`.
async fn silence(heard: &impl Fn() -> Option<Instant>, limit: Duration) {
    let mut since = Instant::now();
    loop {
        sleep_until(since + limit).await;
        match heard() {
            Some(heard) if heard > since => since = heard,
            _ => return,
        }
    }
}
