//! How far a service's rollout is, and what this pillion has to do with it.

use super::{Counter, Gauge, Metrics, Tally, family::Family, family::Page};
use std::sync::Arc;

#[derive(Debug)]
pub struct RolloutMetrics {
    service: Box<str>,
    /// The canary's share, in thousandths of a percent.
    pub share: Gauge,
    /// 1 for the phase that it is in: [`Tally::set`].
    pub phase: Tally,
    /// 1 while this pillion decides.
    pub leading: Gauge,
    /// 1 while nobody decides, and somebody should.
    pub unattended: Gauge,
    pub decisions: Tally,
    pub failures: Counter,
}

impl Metrics {
    /// The handle of a service's rollout: the one that others hold already, or a new one from zero.
    pub fn rollout(&self, service: &str) -> Arc<RolloutMetrics> {
        self.rollouts.find_or_add(
            |there| *there.service == *service,
            || RolloutMetrics {
                service: service.into(),
                share: Gauge::default(),
                phase: Tally::new(self.words.rollout_phases),
                leading: Gauge::default(),
                unattended: Gauge::default(),
                decisions: Tally::new(self.words.rollout_decisions),
                failures: Counter::default(),
            },
        )
    }
}

impl RolloutMetrics {
    pub(super) fn collect(&self, page: &mut Page) {
        let service = ("service", &*self.service);
        page.add(Family::RolloutPercent, &[service], self.share.get() as f64 / 1000.0);
        for (phase, is_in_it) in self.phase.each() {
            page.add(Family::RolloutPhase, &[service, ("phase", phase)], is_in_it as f64);
        }
        page.add(Family::RolloutLeading, &[service], self.leading.get() as f64);
        page.add(Family::RolloutUnattended, &[service], self.unattended.get() as f64);
        for (verdict, count) in self.decisions.each() {
            page.add(Family::RolloutDecisions, &[service, ("verdict", verdict)], count as f64);
        }
        page.add(Family::RolloutFailures, &[service], self.failures.get() as f64);
    }
}
