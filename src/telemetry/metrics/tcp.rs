//! One service's TCP connections.

use super::{
    counts::{Counter, Gauge, Latency, Tally},
    family::{Family, Page},
};

/// The label value of connections that both sides have ended.
const DONE: &str = "done";

#[derive(Debug)]
pub struct TcpMetrics {
    /// Connections that have not ended, those included that no endpoint has yet.
    pub open: Gauge,
    /// Those that both sides have ended.
    pub done: Counter,
    /// Those that ended otherwise.
    pub failed: Tally,
    pub duration: Latency,
    /// Bytes to the endpoints. Added up once a second.
    pub sent: Counter,
    /// Bytes from the endpoints.
    pub received: Counter,
}

impl TcpMetrics {
    /// `reasons`: the words for [`Self::failed`].
    pub(super) fn new(reasons: &'static [&'static str]) -> Self {
        Self {
            open: Gauge::default(),
            done: Counter::default(),
            failed: Tally::new(reasons),
            duration: Latency::default(),
            sent: Counter::default(),
            received: Counter::default(),
        }
    }

    /// Shows them, if there ever was a connection.
    pub(super) fn collect(&self, service: &[(&str, &str)], page: &mut Page) {
        let open = self.open.get();
        if open == 0 && self.duration.count() == 0 {
            return;
        }
        let with = |label| [service, &[label]].concat();
        page.add(Family::TcpOpen, service, open as f64);
        page.add(Family::TcpClosed, &with(("outcome", DONE)), self.done.get() as f64);
        for (reason, count) in self.failed.each() {
            page.add(Family::TcpClosed, &with(("outcome", reason)), count as f64);
        }
        page.add_histogram(Family::TcpDuration, service, self.duration.read());
        page.add(Family::TcpSent, service, self.sent.get() as f64);
        page.add(Family::TcpReceived, service, self.received.get() as f64);
    }
}
