//! What came of routes in a registry's store.

use super::{Gauge, Metrics, Tally, family::Family, family::Page};
use std::sync::Arc;

/// The routes of one service.
#[derive(Debug)]
pub struct RoutesMetrics {
    service: Box<str>,
    /// Values that were read, by what came of them.
    pub updates: Tally,
    /// 1 while the store has a value that is refused.
    pub rejected: Gauge,
}

impl Metrics {
    /// The handle of a service's routes in the store: the one that others hold already, or a new one from zero.
    pub fn routes(&self, service: &str) -> Arc<RoutesMetrics> {
        self.routes.find_or_add(
            |there| *there.service == *service,
            || RoutesMetrics {
                service: service.into(),
                updates: Tally::new(self.words.route_updates),
                rejected: Gauge::default(),
            },
        )
    }
}

impl RoutesMetrics {
    pub(super) fn collect(&self, page: &mut Page) {
        let service = ("service", &*self.service);
        for (result, count) in self.updates.each() {
            page.add(Family::RoutesUpdates, &[service, ("result", result)], count as f64);
        }
        page.add(Family::RoutesRejected, &[service], self.rejected.get() as f64);
    }
}
