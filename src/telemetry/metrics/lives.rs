//! What is counted alike of TCP connections and of UDP sessions: how many there are, how they ended, and after how long.

use super::{
    counts::{Counter, Gauge, Latency, Tally},
    family::{Family, Page},
};
use std::time::Duration;

/// The label value of those that came to their own end.
const DONE: &str = "done";

#[derive(Debug)]
pub struct Lives {
    /// Those that have not ended, those included that no endpoint has yet.
    pub open: Gauge,
    /// Those that came to their own end.
    pub done: Counter,
    /// Those that ended otherwise.
    pub failed: Tally,
    pub duration: Latency,
}

impl Lives {
    /// `reasons`: the words for [`Self::failed`].
    pub(super) fn new(reasons: &'static [&'static str]) -> Self {
        Self {
            open: Gauge::default(),
            done: Counter::default(),
            failed: Tally::new(reasons),
            duration: Latency::default(),
        }
    }

    /// One has ended, with the number of its reason if it failed.
    pub fn ended(&self, outcome: Result<(), usize>, duration: Duration) {
        self.duration.observe(duration);
        match outcome {
            Ok(()) => self.done.inc(),
            Err(reason) => self.failed.inc(reason),
        }
        // Whoever sees that none is open sees how all of them ended.
        self.open.dec();
    }

    /// Shows them, if there ever was one; whether there was.
    pub(super) fn collect(
        &self,
        [open, ended, duration]: [Family; 3],
        service: &[(&str, &str)],
        page: &mut Page,
    ) -> bool {
        let now = self.open.get();
        if now == 0 && self.duration.count() == 0 {
            return false;
        }
        let with = |label| [service, &[label]].concat();
        page.add(open, service, now as f64);
        page.add(ended, &with(("outcome", DONE)), self.done.get() as f64);
        for (reason, count) in self.failed.each() {
            page.add(ended, &with(("outcome", reason)), count as f64);
        }
        page.add_histogram(duration, service, self.duration.read());
        true
    }
}
