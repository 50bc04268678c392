//! The numbers of copies of requests.

use super::{Codes, Counter, Family, Gauge, Latency, Page, Ratio, Tally};
use std::sync::OnceLock;

/// Those that one route's mirror made.
#[derive(Debug)]
pub struct MirrorMetrics {
    pub route: Box<str>,
    /// Where they go, as the config has it.
    pub to: Box<str>,
    pub requests: Codes,
    /// From when a copy was sent to the end of its response.
    pub duration: Latency,
    pub in_flight: Gauge,
    /// Those that were not made.
    pub skipped: Tally,
    compared: OnceLock<Compared>,
}

/// What copies were like beside their requests.
#[derive(Debug, Default)]
pub struct Compared {
    pub same: Counter,
    pub status_differs: Counter,
    /// How long a copy's response took to begin, relative to the request's own.
    pub latency: Ratio,
}

impl MirrorMetrics {
    pub(super) fn new(route: &str, to: &str, skipped: &'static [&'static str]) -> Self {
        Self {
            route: route.into(),
            to: to.into(),
            requests: Codes::default(),
            duration: Latency::default(),
            in_flight: Gauge::default(),
            skipped: Tally::new(skipped),
            compared: OnceLock::new(),
        }
    }

    /// Made when they are first wanted: not every mirror compares.
    pub fn compared(&self) -> &Compared {
        self.compared.get_or_init(Compared::default)
    }

    pub(super) fn collect(&self, service: &str, page: &mut Page) {
        let labels = [("service", service), ("route", &*self.route), ("to", &*self.to)];
        for (code, count) in self.requests.each() {
            page.add(Family::MirrorRequests, &[&labels[..], &[("code", &code)]].concat(), count as f64);
        }
        page.add_histogram(Family::MirrorDuration, &labels, self.duration.read());
        page.add(Family::MirrorInFlight, &labels, self.in_flight.get() as f64);
        for (reason, count) in self.skipped.each() {
            page.add(Family::MirrorSkipped, &[&labels[..], &[("reason", reason)]].concat(), count as f64);
        }
        if let Some(Compared { same, status_differs, latency }) = self.compared.get() {
            for (result, counter) in [("same", same), ("status_differs", status_differs)] {
                page.add(Family::MirrorCompared, &[&labels[..], &[("result", result)]].concat(), counter.get() as f64);
            }
            page.add_histogram(Family::MirrorLatency, &labels, latency.read());
        }
    }
}
