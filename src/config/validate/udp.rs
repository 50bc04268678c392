//! What datagrams can have, and what they cannot.

use super::{Check, Spot};
use crate::config::{Config, Listener, ListenerProtocol, Udp};
use std::time::Duration;

impl<'t> Check<'_, 't> {
    pub(super) fn udp_listener(&mut self, spot: &Spot<'t>, listener: &Listener) {
        if listener.app.is_some() {
            self.fail(&spot.key("app"), "datagrams go to services alone; expected a `service`");
        } else if listener.service.is_none() && !spot.key("service").dead {
            let message = "`udp` says nothing of where datagrams are to go; expected a `service`";
            self.fail(&spot.key("protocol"), message);
        }
        if listener.proxy_protocol {
            self.fail(&spot.key("proxy_protocol"), "it is about connections; expected only without `protocol: udp`");
        }
    }

    pub(super) fn udp(&mut self, spot: &Spot<'t>, udp: &Udp) {
        self.at_least(&spot.key("idle_timeout"), udp.idle_timeout, Duration::from_secs(1));
        if let Some(responses) = udp.responses {
            self.range(&spot.key("responses"), responses, 1, 1_000_000);
        }
    }

    /// What goes together with no listener for datagrams.
    pub(super) fn beside_udp(&mut self, listeners: &Spot<'t>, config: &Config) {
        for (index, listener) in config.listeners.iter().enumerate() {
            if listener.protocol != ListenerProtocol::Udp {
                continue;
            }
            let spot = listeners.live_item(index);
            if config.upgrade.is_some() {
                let message = "sockets for datagrams are not handed over; expected only without `upgrade`";
                self.fail(&spot.key("protocol"), message);
            }
            let service = listener.service.as_ref().and_then(|name| config.services.get(name));
            if service.is_some_and(|service| service.tls.is_some()) {
                self.fail(&spot.key("service"), "the service has `tls`, which there is none of over UDP");
            }
        }
    }
}
