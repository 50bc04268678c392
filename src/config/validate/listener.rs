//! Listeners by themselves, and the addresses by which services are called.

use super::{Check, Spot};
use crate::config::{Config, Listener, ListenerProtocol, VirtualAddress, error::shorten};
use std::collections::HashMap;

impl<'t> Check<'_, 't> {
    pub(super) fn listener(&mut self, spot: &Spot<'t>, listener: &Listener) {
        if listener.name.is_empty() || listener.name.chars().any(|c| c.is_control() || c.is_whitespace()) {
            self.fail(&spot.key("name"), "expected a name without spaces");
        }
        if let Some(service) = &listener.service {
            self.service_name(&spot.key("service"), service);
        }
        if let Some(header) = &listener.service_header {
            let spot = spot.key("service_header");
            if http::HeaderName::from_bytes(header.as_bytes()).is_err() {
                self.fail(&spot, format!("found `{}`; expected a header's name", shorten(header)));
            } else if listener.service.is_some() {
                self.fail(&spot, "`service` decides already; expected only one of the two");
            }
        }
        let suffixes = spot.key("host_suffixes");
        self.none_empty(&suffixes, &listener.host_suffixes);
        for (index, suffix) in listener.host_suffixes.iter().enumerate() {
            if !suffix.is_empty() && !suffix.starts_with('.') {
                let shown = shorten(suffix);
                self.fail(
                    &suffixes.live_item(index),
                    format!("found `{shown}`; expected it to begin with a dot: `.{shown}`"),
                );
            }
        }
        if let Some(app) = &listener.app {
            self.app(spot, app, listener);
        }
        self.listener_protocol(spot, listener);
        if let Some(connect) = &listener.connect {
            self.connect(spot, connect, listener);
        }
        let (limits, at) = (&listener.limits, spot.key("limits"));
        self.range(&at.key("connections"), limits.connections, 1, 10_000_000);
        self.range(&at.key("head_bytes"), limits.head_bytes, 1024, 1024 * 1024);
        self.range(&at.key("head_lines"), limits.head_lines, 1, 10_000);
        self.range(&at.key("h2_streams"), limits.h2_streams, 1, i32::MAX.unsigned_abs());
        self.positive(&at.key("head_timeout"), limits.head_timeout);
        self.positive(&at.key("detect_timeout"), limits.detect_timeout);
        self.positive(&at.key("idle_timeout"), limits.idle_timeout);
        self.used_by_listener(spot, listener);
    }

    /// What speaks of requests, or of where connections go, must fit to what comes in.
    fn listener_protocol(&mut self, spot: &Spot<'t>, listener: &Listener) {
        let (has_service, has_app) = (listener.service.is_some(), listener.app.is_some());
        let is_transparent = listener.transparent.is_some();
        let goes_nowhere = !has_service && !has_app && !spot.key("service").dead && !spot.key("app").dead;
        let protocol = spot.key("protocol");
        match listener.protocol {
            ListenerProtocol::Http => {}
            ListenerProtocol::Tls if has_service => self
                .fail(&spot.key("service"), "with `protocol: tls` the server's name says it; expected only with `tcp`"),
            ListenerProtocol::Tls if has_app => self.fail(
                &spot.key("app"),
                "with `protocol: tls` the server's name says where a connection goes; expected only with `tcp`",
            ),
            ListenerProtocol::Tcp if goes_nowhere => self
                .fail(&protocol, "`tcp` says nothing of where a connection is to go; expected a `service` or an `app`"),
            ListenerProtocol::Auto if goes_nowhere && !is_transparent && !spot.key("transparent").dead => self.fail(
                &protocol,
                "`auto` says nothing of where a connection is to go; expected `transparent`, a `service` or an `app`",
            ),
            ListenerProtocol::Tls | ListenerProtocol::Tcp | ListenerProtocol::Auto => {}
            ListenerProtocol::Udp => self.udp_listener(spot, listener),
        }
        if is_transparent {
            let transparent = spot.key("transparent");
            if listener.protocol != ListenerProtocol::Auto && !protocol.dead {
                self.fail(&transparent, "anything may be redirected; expected only with `protocol: auto`");
            } else if has_service {
                self.fail(
                    &spot.key("service"),
                    "the address that was called says it; expected only without `transparent`",
                );
            } else if has_app {
                self.fail(&transparent, "all goes to the `app` anyway; expected only without it");
            }
        }
        let is_fixed = matches!(listener.protocol, ListenerProtocol::Tcp | ListenerProtocol::Udp);
        let is_http = matches!(listener.protocol, ListenerProtocol::Http | ListenerProtocol::Auto);
        let about_requests = [
            ("service_header", !is_http && listener.service_header.is_some()),
            ("host_suffixes", is_fixed && !listener.host_suffixes.is_empty()),
            ("preserve_header_case", !is_http && listener.preserve_header_case),
            ("connect", !is_http && listener.connect.is_some()),
        ];
        for (key, _) in about_requests.into_iter().filter(|(_, is_set)| *is_set) {
            self.fail(&spot.key(key), "it is about requests; expected only with `protocol: http`");
        }
    }

    /// Each means one service.
    pub(super) fn virtual_addresses(&mut self, services: &Spot<'t>, defaults: &Spot<'t>, config: &Config) {
        if !config.defaults.addresses.is_empty() {
            self.fail(&defaults.key("addresses"), "each means one service; expected only below `services`");
            return;
        }
        let mut taken: HashMap<VirtualAddress, &str> = HashMap::new();
        for (name, service) in &config.services {
            let spot = services.key(name).key("addresses");
            for (index, address) in service.addresses.iter().enumerate() {
                if let Some(other) = taken.insert(*address, name) {
                    let message = format!("`{address}` is the address of `{}` already", shorten(other));
                    self.fail(&spot.live_item(index), message);
                }
            }
        }
    }
}
