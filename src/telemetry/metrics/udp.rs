//! One service's UDP sessions.

use super::{
    counts::{Counter, Tally},
    family::{Family, Page},
    lives::Lives,
};

#[derive(Debug)]
pub struct UdpMetrics {
    /// Sessions. Done are those that were over: all answers had come, or nothing came any more.
    pub lives: Lives,
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
    /// `reasons`: the words for sessions that failed; `dropped`: those for [`Self::dropped`].
    pub(super) fn new(reasons: &'static [&'static str], dropped: &'static [&'static str]) -> Self {
        Self {
            lives: Lives::new(reasons),
            sent: Counter::default(),
            sent_bytes: Counter::default(),
            received: Counter::default(),
            received_bytes: Counter::default(),
            dropped: Tally::new(dropped),
        }
    }

    /// Shows them, if there ever was a session.
    pub(super) fn collect(&self, service: &[(&str, &str)], page: &mut Page) {
        if !self.lives.collect([Family::UdpOpen, Family::UdpEnded, Family::UdpDuration], service, page) {
            return;
        }
        for (family, counter) in [
            (Family::UdpSent, &self.sent),
            (Family::UdpSentBytes, &self.sent_bytes),
            (Family::UdpReceived, &self.received),
            (Family::UdpReceivedBytes, &self.received_bytes),
        ] {
            page.add(family, service, counter.get() as f64);
        }
        for (reason, count) in self.dropped.each() {
            page.add(Family::UdpDropped, &[service, &[("reason", reason)]].concat(), count as f64);
        }
    }
}
