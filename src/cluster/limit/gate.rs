//! The limits of one route, besides those of its service.

use super::{RateLimit, TooFast};
use crate::config;
use http::HeaderMap;
use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering::Relaxed},
};
use tokio::time::Instant;

/// How many requests may be on one route.
#[derive(Debug)]
pub struct Gate {
    config: config::RouteLimits,
    requests: AtomicU32,
    rate: Option<RateLimit>,
}

/// Why a request may not take the route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// So many are on it already.
    Full(u32),
    TooFast(TooFast),
}

/// Counts a request as on the route for as long as it lives.
#[derive(Debug)]
pub struct Passed(Arc<Gate>);

impl Gate {
    pub fn new(config: &config::RouteLimits) -> Self {
        let rate = config.rate.clone().map(RateLimit::new);
        Self { config: config.clone(), requests: AtomicU32::new(0), rate }
    }

    /// Whether these are its limits.
    pub fn has(&self, limits: &config::RouteLimits) -> bool {
        self.config == *limits
    }

    /// How many are on it.
    pub fn requests(&self) -> u32 {
        self.requests.load(Relaxed)
    }

    pub fn pass(self: &Arc<Self>, headers: &HeaderMap, now: Instant) -> Result<Passed, Refusal> {
        let number = self.requests.fetch_add(1, Relaxed) + 1;
        let passed = Passed(self.clone());
        if let Some(limit) = self.config.requests.filter(|limit| number > *limit) {
            return Err(Refusal::Full(limit));
        }
        if let Some(rate) = &self.rate {
            rate.take(headers, now).map_err(Refusal::TooFast)?;
        }
        Ok(passed)
    }
}

impl Drop for Passed {
    fn drop(&mut self) {
        self.0.requests.fetch_sub(1, Relaxed);
    }
}
