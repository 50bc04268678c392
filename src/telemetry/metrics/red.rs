//! Rate, errors, duration: what there is to know of one kind of requests.

use super::{Codes, Counter, Family, LATENCY_BUCKETS, Latency, Page};
use prometheus::proto;
use std::time::Duration;

#[derive(Debug, Default)]
pub struct Red {
    requests: Codes,
    errors: Counter,
    duration: Latency,
}

impl Red {
    /// A request has ended.
    pub fn count(&self, status: u16, failed: bool, duration: Duration) {
        self.requests.inc(status);
        self.duration.observe(duration);
        if failed {
            self.errors.inc();
        }
    }

    /// How many requests came, and how many of them failed.
    pub fn totals(&self) -> (u64, u64) {
        (self.requests.total(), self.errors.get())
    }

    /// How many took how long, in the buckets of [`LATENCY_BOUNDS`](super::LATENCY_BOUNDS).
    pub fn latencies(&self) -> [u64; LATENCY_BUCKETS] {
        self.duration.buckets()
    }

    /// How long they took, as a histogram with cumulative counts.
    pub fn durations(&self) -> proto::Histogram {
        self.duration.read()
    }

    /// Adds them to a page, as these families.
    pub(super) fn collect(&self, page: &mut Page, families: [Family; 3], labels: &[(&str, &str)]) {
        let [requests, errors, duration] = families;
        for (code, count) in self.requests.each() {
            page.add(requests, &[labels, &[("code", &code)]].concat(), count as f64);
        }
        page.add(errors, labels, self.errors.get() as f64);
        page.add_histogram(duration, labels, self.duration.read());
    }
}
