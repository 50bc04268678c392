//! Endpoints that their registry no longer lists, though their checks pass. A registry that forgot an instance, and one that
//! lost many at once, look just like one from which they were taken; the instances themselves know better. So these stay
//! in use for `health_check.linger`, or until a check or a request fails.

use crate::{
    cluster::{Endpoint, Live, check::State},
    config::HealthCheck,
    registry::Instance,
};
use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};
use tokio::time::Instant;

/// Those of one service that are gone and in use.
#[derive(Debug, Default)]
pub struct Linger {
    /// Until when, by the endpoint's key.
    until: HashMap<u64, Instant>,
}

impl Linger {
    /// What is to be in force after `before`: what is `listed`, and those of `before` that may stay. And how many of these
    /// were listed until now.
    pub fn keep(
        &mut self,
        before: &[Arc<Endpoint>],
        listed: Arc<[Instance]>,
        check: Option<&HealthCheck>,
        now: Instant,
    ) -> (Arc<[Instance]>, usize) {
        let addresses: HashSet<_> = listed.iter().map(|instance| &instance.address).collect();
        let (mut staying, mut until) = (Vec::new(), HashMap::new());
        for endpoint in before {
            let live = &endpoint.live;
            let gone = !addresses.contains(&endpoint.instance.address);
            live.set_gone(gone);
            let Some(check) = check.filter(|_| gone && endpoint.is_usable()) else { continue };
            let end = self.until.get(&live.key).copied().unwrap_or(now + check.linger);
            let passes = live.checked().is_some_and(|checked| checked.state == State::Healthy);
            if now < end && passes && !has_failed(live) {
                until.insert(live.key, end);
                staying.push(endpoint.instance.clone());
            }
        }
        let new = until.keys().filter(|key| !self.until.contains_key(key)).count();
        self.until = until;
        let kept = if staying.is_empty() { listed } else { listed.iter().cloned().chain(staying).collect() };
        (kept, new)
    }

    /// When the first of them has to go.
    pub fn end(&self) -> Option<Instant> {
        self.until.values().min().copied()
    }
}

/// Whether a request has failed there, and none has succeeded since.
pub fn has_failed(live: &Live) -> bool {
    live.health.consecutive_failures() > 0
}

#[cfg(test)]
#[path = "linger_tests.rs"]
mod tests;
