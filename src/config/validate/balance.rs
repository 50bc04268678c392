//! What `balance` may have in it.

use super::{Check, Spot, shorten};
use crate::config::{Balance, SlowStart};

impl<'t> Check<'_, 't> {
    pub(super) fn balance(&mut self, spot: &Spot<'t>, balance: &Balance) {
        let at = spot.key("slow_start");
        let slow_start = &balance.slow_start;
        if let Some(window) = slow_start.window {
            self.positive(&at.key("window"), window);
        }
        self.range(&at.key("aggression"), slow_start.aggression.0, 0.1, 10.0);
        self.range(&at.key("min_weight_percent"), slow_start.min_weight_percent, 1, 100);
        if slow_start.window.is_none() && *slow_start != SlowStart::default() {
            self.fail(&at, "`window` is missing, without which there is no slow start");
        }
        let at = spot.key("penalty");
        self.at_most(&at.key("base"), balance.penalty.base);
        self.at_least(&at.key("max"), balance.penalty.max, balance.penalty.base);
        self.hash(spot, balance);
        let aware = spot.key("zone").key("aware");
        if balance.zone.aware && !self.has_zone {
            self.fail(&aware, "it goes with `node.zone`, which is missing");
        }
        self.range(&spot.key("zone").key("min_endpoints"), balance.zone.min_endpoints, 2, 10_000);
        let (at, priority) = (spot.key("priority"), &balance.priority);
        let order = at.key("order");
        self.none_empty(&order, &priority.order);
        if priority.label.as_deref() == Some("") {
            self.fail(&at.key("label"), "found an empty text; expected a label's name");
        }
        if priority.label.is_some() && priority.order.is_empty() && !order.dead {
            self.fail(&at.key("label"), "`label` goes with `order`, which is missing");
        }
        for (index, value) in priority.order.iter().enumerate() {
            if priority.order[..index].contains(value) {
                self.fail(&order.live_item(index), format!("`{}` is there twice", shorten(value)));
            }
        }
    }

    fn hash(&mut self, spot: &Spot<'t>, balance: &Balance) {
        let (at, hash) = (spot.key("hash"), &balance.hash);
        let expected = "expected one of `header`, `cookie`, `source: true` and `path: true`";
        let given = [hash.header.is_some(), hash.cookie.is_some(), hash.source, hash.path];
        match given.iter().filter(|given| **given).count() {
            0 if balance.policy.hashes() && !at.dead => {
                let policy = balance.policy.as_str();
                self.fail(&spot.key("policy"), format!("`{policy}` goes with `hash`, which says nothing; {expected}"));
            }
            0 | 1 => {}
            _ => self.fail(&at, format!("there are several; {expected}")),
        }
        if let Some(header) = &hash.header
            && http::HeaderName::from_bytes(header.as_bytes()).is_err()
        {
            self.fail(&at.key("header"), format!("found `{}`; expected a header's name", shorten(header)));
        }
        let is_token = |name: &str| http::HeaderName::from_bytes(name.as_bytes()).is_ok();
        if let Some(cookie) = hash.cookie.as_ref().filter(|cookie| !is_token(cookie)) {
            self.fail(&at.key("cookie"), format!("found `{}`; expected a cookie's name", shorten(cookie)));
        }
        if hash.balance_factor > 0 && hash.balance_factor <= 100 {
            let found = hash.balance_factor;
            self.fail(&at.key("balance_factor"), format!("found `{found}`; expected 0 for none, or more than 100"));
        }
    }
}
