//! What there is to check of a listener's `app`.

use super::{Check, Spot, overlap};
use crate::config::{
    App, AppSource, Config, HealthCheck, Listener, ListenerProtocol, VersionBaggage, VersionBaggageMode, error::shorten,
};

impl<'t> Check<'_, 't> {
    pub(super) fn app(&mut self, listener: &Spot<'t>, app: &App, config: &Listener) {
        let spot = listener.key("app");
        // With `app`, nothing is left to decide about whom a request is for.
        for (key, given) in [
            ("service", config.service.is_some()),
            ("service_header", config.service_header.is_some()),
            ("host_suffixes", !config.host_suffixes.is_empty()),
        ] {
            if given {
                self.fail(&listener.key(key), "`app` decides already; expected only one of the two");
            }
        }
        if app.address.port() == 0 || app.address.ip().is_unspecified() {
            let message = format!("found `{}`; expected an address to connect to, like `127.0.0.1:8080`", app.address);
            self.fail(&address(&spot), message);
        }
        if app.source == AppSource::Client {
            if config.protocol == ListenerProtocol::Udp {
                self.fail(&spot.key("source"), "`client` is for connections; expected `pillion` with `protocol: udp`");
            } else if !app.address.ip().is_loopback() {
                let message = format!(
                    "with `client`, what the application at {} answers would go to the client, past pillion; expected it at a \
                     loopback address, like `127.0.0.1:{}`",
                    app.address,
                    app.address.port()
                );
                self.fail(&spot.key("source"), message);
            }
        }
        self.timeouts(&spot.key("timeouts"), &app.timeouts);
        self.limits(&spot.key("limits"), &app.limits, app.timeouts.request);
        self.pool(&spot.key("pool"), &app.pool);
        if let Some(check) = &app.health_check {
            let spot = spot.key("health_check");
            self.health_check(&spot, check);
            // Their defaults may be there, as when a config was printed.
            let HealthCheck { max_interval, linger, .. } = HealthCheck::default();
            for (key, is_set, why) in [
                (
                    "max_interval",
                    check.max_interval != max_interval,
                    "the application is checked every `interval`, also while it fails",
                ),
                (
                    "linger",
                    check.linger != linger,
                    "no registry lists the application here, so it does not outlive that",
                ),
            ] {
                if is_set {
                    self.fail(&spot.key(key), format!("not for `app`: {why}"));
                }
            }
        }
        let (at, callers) = (spot.key("callers"), &app.callers);
        if http::HeaderName::from_bytes(callers.header.as_bytes()).is_err() {
            let message = format!("found `{}`; expected a header's name", shorten(&callers.header));
            self.fail(&at.key("header"), message);
        }
        self.range(&at.key("max"), callers.max, 1, 10_000);
        self.positive(&at.key("idle"), callers.idle);
        self.version_baggage(&spot.key("version_baggage"), &app.version_baggage);
    }

    fn version_baggage(&mut self, spot: &Spot<'t>, config: &VersionBaggage) {
        let VersionBaggage { mode, header, baggage, value } = config;
        self.header_name(&spot.key("header"), header);
        self.word(&spot.key("baggage"), baggage, "a baggage member's name");
        let is_own = *mode == VersionBaggageMode::Own;
        if let Some(value) = value {
            self.subset_name(&spot.key("value"), value);
            if !is_own && !spot.key("mode").dead {
                self.fail(&spot.key("value"), "`value` goes with `mode: own`");
            }
        } else if is_own && !self.has_version && !spot.key("value").dead {
            self.fail(
                &spot.key("mode"),
                "this instance's version is not known; expected `node.version`, or `value` here",
            );
        }
    }

    /// Requests for the application that came back to pillion would go round and round.
    pub(super) fn apps_are_elsewhere(&mut self, config: &Config, listeners: &Spot<'t>) {
        for (index, listener) in config.listeners.iter().enumerate() {
            let Some(app) = &listener.app else { continue };
            let meets = |other: &&Listener| overlap(other.listen, app.address);
            if let Some(other) = config.listeners.iter().find(meets) {
                let message = format!("the listener `{}` listens there, and not the application", shorten(&other.name));
                self.fail(&address(&listeners.live_item(index).key("app")), message);
            } else if overlap(config.admin.listen, app.address) {
                self.fail(
                    &address(&listeners.live_item(index).key("app")),
                    "`admin` listens there, and not the application",
                );
            }
        }
    }
}

/// Where the address is written: in the short form it is all there is.
pub(super) fn address<'t>(app: &Spot<'t>) -> Spot<'t> {
    if app.node.is_some_and(|node| node.entries().is_empty()) { app.clone() } else { app.key("address") }
}
