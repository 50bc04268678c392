//! What is going on over all services, for the end of the process.

use super::{Metrics, ServiceMetrics};

/// Requests and TCP connections of all services.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Carried now, or waiting for that. Tunnels for as long as they live.
    pub in_flight: i64,
    /// Since the start, so that a request is seen that came and went between two looks.
    pub ended: u64,
}

impl Metrics {
    pub fn traffic(&self) -> Traffic {
        let mut traffic = Traffic::default();
        self.services.each(|service| {
            traffic.in_flight += in_progress(&service);
            traffic.ended =
                traffic.ended.wrapping_add(service.duration.count()).wrapping_add(service.tcp.lives.duration.count());
        });
        traffic
    }

    /// The services with requests in progress, and how many: `users 2, orders 1`.
    pub fn in_progress(&self) -> String {
        let mut busy = Vec::new();
        self.services.each(|service| {
            let count = in_progress(&service);
            if count > 0 {
                busy.push(format!("{} {count}", service.service()));
            }
        });
        busy.sort();
        busy.join(", ")
    }
}

fn in_progress(service: &ServiceMetrics) -> i64 {
    service.in_flight.get() + service.waiting.get() + service.tcp.lives.open.get() + service.udp.lives.open.get()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::labels::WORDS;
    use std::time::Duration;

    #[test]
    fn requests_count_over_all_services_while_they_wait_and_while_they_are_carried() {
        let metrics = Metrics::new(WORDS);
        assert_eq!((metrics.traffic(), metrics.in_progress()), (Traffic::default(), String::new()));
        let (users, orders, _idle) = (metrics.service("users"), metrics.service("orders"), metrics.service("idle"));
        users.in_flight.inc();
        users.waiting.inc();
        orders.in_flight.inc();
        users.duration.observe(Duration::from_secs(1));
        orders.duration.observe(Duration::from_secs(60));
        assert_eq!(metrics.traffic(), Traffic { in_flight: 3, ended: 2 });
        assert_eq!(metrics.in_progress(), "orders 1, users 2");
    }
}
