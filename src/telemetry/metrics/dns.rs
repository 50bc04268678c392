//! Applications' DNS questions.

use super::{
    Metrics,
    counts::Tally,
    family::{Family, Page},
};
use std::sync::Arc;

#[derive(Debug)]
pub struct DnsMetrics {
    pub queries: Tally,
}

impl Metrics {
    /// The handle of who answers them.
    pub fn dns(&self) -> Arc<DnsMetrics> {
        self.dns.find_or_add(|_| true, || DnsMetrics { queries: Tally::new(self.words.dns) })
    }
}

impl DnsMetrics {
    pub(super) fn collect(&self, page: &mut Page) {
        for (outcome, count) in self.queries.each() {
            page.add(Family::DnsQueries, &[("outcome", outcome)], count as f64);
        }
    }
}
