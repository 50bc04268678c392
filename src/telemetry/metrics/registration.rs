//! What became of one instance of ours in one registry.

use super::{Counter, Gauge, Metrics, Tally, family::Family, family::Page};
use std::{fmt, sync::Arc, time::Duration};

/// One registration in one registry.
pub struct RegistrationMetrics {
    service: Box<str>,
    registry: Box<str>,
    id: Box<str>,
    ttl_left: Box<dyn Fn() -> Option<Duration> + Send + Sync>,
    /// 1 for the state that it is in: [`Tally::set`].
    pub state: Tally,
    /// From the moment at which the last renewal was due to its end, in microseconds.
    pub renewal_delay: Gauge,
    pub renewals: Counter,
    /// Calls that the registry did not answer, or refused.
    pub failures: Counter,
    /// Times that the entry was found to be gone, or not as it was put.
    pub lost: Counter,
}

impl Metrics {
    /// A new handle for the instance `id` of `service` in `registry`; it takes the place of an older one. `ttl_left` is asked
    /// at each scrape for how long the registry would keep the entry, `None` while there is none.
    pub fn registration(
        &self,
        service: &str,
        registry: &str,
        id: &str,
        ttl_left: impl Fn() -> Option<Duration> + Send + Sync + 'static,
    ) -> Arc<RegistrationMetrics> {
        let handle = Arc::new(RegistrationMetrics {
            service: service.into(),
            registry: registry.into(),
            id: id.into(),
            ttl_left: Box::new(ttl_left),
            state: Tally::new(self.words.registrations),
            renewal_delay: Gauge::default(),
            renewals: Counter::default(),
            failures: Counter::default(),
            lost: Counter::default(),
        });
        let same = |there: &RegistrationMetrics| {
            *there.service == *service && *there.registry == *registry && *there.id == *id
        };
        self.registrations.replace(same, &handle);
        handle
    }
}

impl fmt::Debug for RegistrationMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegistrationMetrics")
            .field("service", &self.service)
            .field("registry", &self.registry)
            .finish_non_exhaustive()
    }
}

impl RegistrationMetrics {
    pub(super) fn collect(&self, page: &mut Page) {
        let labels = [("service", &*self.service), ("registry", &*self.registry), ("id", &*self.id)];
        for (state, value) in self.state.each() {
            page.add(Family::RegistrationState, &[labels[0], labels[1], labels[2], ("state", state)], value as f64);
        }
        if let Some(left) = (self.ttl_left)() {
            page.add(Family::RegistrationTtl, &labels, left.as_secs_f64());
        }
        page.add(Family::RegistrationDelay, &labels, self.renewal_delay.get() as f64 / 1e6);
        for (family, counter) in [
            (Family::RegistrationRenewals, &self.renewals),
            (Family::RegistrationFailures, &self.failures),
            (Family::RegistrationLost, &self.lost),
        ] {
            page.add(family, &labels, counter.get() as f64);
        }
    }
}
