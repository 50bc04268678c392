//! One service's UDP sessions.

use super::{
    counts::{Counter, Gauge, Latency, Tally},
    family::{Family, Page},
};

/// The label value of sessions that were over.
const DONE: &str = "done";

#[derive(Debug)]
pub struct UdpMetrics {
    pub open: Gauge,
    /// Sessions that were over: all answers had come, or nothing came any more.
    pub done: Counter,
    /// Those that ended otherwise.
    pub failed: Tally,
    pub duration: Latency,
    /// Datagrams to the endpoints. This and the next are added up once a second.
    pub sent: Counter,
    pub sent_bytes: Counter,
    /// Datagrams from the endpoints.
    pub received: Counter,
    pub received_bytes: Counter,
    /// Datagrams that went nowhere.
    pub dropped: Tally,
}

impl UdpMetrics {
    /// `reasons`: the words for [`Self::failed`]; `dropped`: those for [`Self::dropped`].
    pub(super) fn new(reasons: &'static [&'static str], dropped: &'static [&'static str]) -> Self {
        Self {
            open: Gauge::default(),
            done: Counter::default(),
            failed: Tally::new(reasons),
            duration: Latency::default(),
            sent: Counter::default(),
            sent_bytes: Counter::default(),
            received: Counter::default(),
            received_bytes: Counter::default(),
            dropped: Tally::new(dropped),
        }
    }

    /// Shows them, if there ever was a session.
    pub(super) fn collect(&self, service: &[(&str, &str)], page: &mut Page) {
        let open = self.open.get();
        if open == 0 && self.duration.count() == 0 {
            return;
        }
        let with = |label| [service, &[label]].concat();
        page.add(Family::UdpOpen, service, open as f64);
        page.add(Family::UdpEnded, &with(("outcome", DONE)), self.done.get() as f64);
        for (reason, count) in self.failed.each() {
            page.add(Family::UdpEnded, &with(("outcome", reason)), count as f64);
        }
        page.add_histogram(Family::UdpDuration, service, self.duration.read());
        for (family, counter) in [
            (Family::UdpSent, &self.sent),
            (Family::UdpSentBytes, &self.sent_bytes),
            (Family::UdpReceived, &self.received),
            (Family::UdpReceivedBytes, &self.received_bytes),
        ] {
            page.add(family, service, counter.get() as f64);
        }
        for (reason, count) in self.dropped.each() {
            page.add(Family::UdpDropped, &with(("reason", reason)), count as f64);
        }
    }
}
