//! Where a listener's tunnels may go.

use super::{Check, Spot};
use crate::config::{Connect, Listener, Unknown};
use std::time::Duration;

impl<'t> Check<'_, 't> {
    /// Where tunnels go is what their clients say.
    pub(super) fn connect(&mut self, spot: &Spot<'t>, connect: &Connect, listener: &Listener) {
        let at = spot.key("connect");
        for (key, is_set) in [("service", listener.service.is_some()), ("app", listener.app.is_some())] {
            if is_set {
                self.fail(&at, format!("`{key}` decides already where all goes; expected only one of the two"));
            }
        }
        self.at_least(&at.key("timeout"), connect.timeout, Duration::from_millis(1));
        self.at_least(&at.key("idle_timeout"), connect.idle_timeout, Duration::from_secs(1));
        let ports = at.key("ports");
        if connect.ports.is_empty() || connect.ports.contains(&0) {
            self.fail(&ports, "expected at least one port, from 1 to 65535");
        } else if connect.unknown == Unknown::Refuse && connect.ports != Connect::default().ports {
            self.fail(&ports, "it is about what is passed on; expected only with `unknown: pass`");
        }
    }
}
