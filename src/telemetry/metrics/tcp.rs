//! One service's TCP connections.

use super::{
    counts::Counter,
    family::{Family, Page},
    lives::Lives,
};

#[derive(Debug)]
pub struct TcpMetrics {
    /// Connections. Done are those that both sides have ended.
    pub lives: Lives,
    /// Bytes to the endpoints. Added up once a second.
    pub sent: Counter,
    /// Bytes from the endpoints.
    pub received: Counter,
}

impl TcpMetrics {
    /// `reasons`: the words for connections that failed.
    pub(super) fn new(reasons: &'static [&'static str]) -> Self {
        Self { lives: Lives::new(reasons), sent: Counter::default(), received: Counter::default() }
    }

    /// Shows them, if there ever was a connection.
    pub(super) fn collect(&self, service: &[(&str, &str)], page: &mut Page) {
        if self.lives.collect([Family::TcpOpen, Family::TcpClosed, Family::TcpDuration], service, page) {
            page.add(Family::TcpSent, service, self.sent.get() as f64);
            page.add(Family::TcpReceived, service, self.received.get() as f64);
        }
    }
}
