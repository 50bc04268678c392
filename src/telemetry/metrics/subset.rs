//! The numbers of a service's subsets.

use super::{Counter, Family, Gauge, Page, Red};
use std::sync::{Arc, atomic::AtomicBool};

/// One subset's numbers.
#[derive(Debug)]
pub struct SubsetMetrics {
    pub subset: Arc<str>,
    /// Requests that went to its endpoints.
    pub red: Red,
    /// Requests that were for it and went elsewhere, because it was empty.
    pub fallbacks: Counter,
    /// Its endpoints that can take requests; −1 as long as that is not known.
    pub available: Gauge,
    /// Whether one of its endpoints is kept out and waits for the request that finds out how it is. Not shown.
    pub probe_is_due: AtomicBool,
}

impl SubsetMetrics {
    pub(super) fn new(subset: &str) -> Self {
        let available = Gauge::default();
        available.set(-1);
        Self {
            subset: subset.into(),
            red: Red::default(),
            fallbacks: Counter::default(),
            available,
            probe_is_due: AtomicBool::new(false),
        }
    }

    pub(super) fn collect(&self, service: &str, page: &mut Page) {
        let labels = [("service", service), ("subset", &*self.subset)];
        let families = [Family::SubsetRequests, Family::SubsetErrors, Family::SubsetDuration];
        self.red.collect(page, families, &labels);
        page.add(Family::SubsetFallbacks, &labels, self.fallbacks.get() as f64);
        if self.available.get() >= 0 {
            page.add(Family::SubsetEndpoints, &labels, self.available.get() as f64);
        }
    }
}
