//! The ranges of a service's limits.

use super::{Check, Spot};
use crate::config::{AdaptiveLimit, Limits, RateLimit, error::shorten, human};
use std::time::Duration;

/// More is a slip of the pen.
const MOST: u32 = 10_000_000;
/// Beyond this the time between two requests is too short to be counted well in nanoseconds.
const MOST_PER_SECOND: u32 = 1_000_000;

impl<'t> Check<'_, 't> {
    /// `request`: the service's `timeouts.request`.
    pub(super) fn limits(&mut self, spot: &Spot<'t>, limits: &Limits, request: Duration) {
        let Limits { requests, connections, pending, queue_timeout, .. } = *limits;
        for (key, limit) in [("requests", requests), ("connections", connections), ("pending", pending)] {
            self.range(&spot.key(key), limit, 1, MOST);
        }
        self.within_request(&spot.key("queue_timeout"), Some(queue_timeout), request);
        if let Some(adaptive) = &limits.adaptive {
            self.adaptive(&spot.key("adaptive"), adaptive);
        }
        if let Some(rate) = &limits.rate {
            self.rate(&spot.key("rate"), rate);
        }
    }

    fn adaptive(&mut self, spot: &Spot<'t>, adaptive: &AdaptiveLimit) {
        self.range(&spot.key("min"), adaptive.min, 1, MOST);
        self.range(&spot.key("max"), adaptive.max, adaptive.min.max(1), MOST);
        if !(1.0..=10.0).contains(&adaptive.tolerance) {
            let message = format!("found `{}`; expected a number from 1.0 to 10.0", adaptive.tolerance);
            self.fail(&spot.key("tolerance"), message);
        }
        let window = spot.key("window");
        self.at_least(&window, adaptive.window, Duration::from_millis(10));
        if adaptive.window > Duration::from_secs(60) {
            self.fail(&window, format!("found `{}`; expected at most `1m`", human::format(adaptive.window)));
        }
    }

    pub(super) fn rate(&mut self, spot: &Spot<'t>, rate: &RateLimit) {
        let (per_second, burst) = (spot.key("per_second"), spot.key("burst"));
        if let Some(count) = rate.per_second {
            self.range(&per_second, count, 1, MOST_PER_SECOND);
        }
        if let Some(count) = rate.burst {
            self.range(&burst, count, 1, MOST);
        }
        if rate.per_second.is_none() && !per_second.dead {
            if rate.burst.is_some() {
                self.fail(&burst, "`burst` goes with `per_second`, which is missing");
            } else if rate.per_caller.is_none() {
                self.fail(spot, "expected `per_second`, `per_caller` or both");
            }
        }
        let Some(caller) = &rate.per_caller else { return };
        let spot = spot.key("per_caller");
        if http::HeaderName::from_bytes(caller.header.as_bytes()).is_err() {
            let message = format!("found `{}`; expected a header's name", shorten(&caller.header));
            self.fail(&spot.key("header"), message);
        }
        self.range(&spot.key("per_second"), caller.per_second, 1, MOST_PER_SECOND);
        if let Some(count) = caller.burst {
            self.range(&spot.key("burst"), count, 1, MOST);
        }
        self.range(&spot.key("max_callers"), caller.max_callers, 1, 1_000_000);
    }
}
