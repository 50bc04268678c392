//! The times of the end.

use super::{Check, Spot};
use crate::config::{Drain, human};
use std::time::Duration;

impl<'t> Check<'_, 't> {
    pub(super) fn drain(&mut self, spot: &Spot<'t>, drain: &Drain) {
        self.at_least(&spot.key("timeout"), drain.timeout, Duration::from_secs(1));
        let spread = spot.key("spread");
        // The default is cut to it.
        if spread.node.is_some() && drain.spread > drain.timeout / 2 {
            let (found, most) = (human::format(drain.spread), human::format(drain.timeout / 2));
            let message = format!("found `{found}`; expected at most `{most}`, which is half of `drain.timeout`");
            self.fail(&spread, message);
        }
    }
}
