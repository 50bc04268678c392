//! Settings that nothing would ever go by: what is about requests where none come in, and what is about connections, datagrams
//! or addresses that no listener takes. Only what certainly counts for nothing is an error, and `defaults` never are: they are
//! for whatever is there.

use super::{Check, Spot};
use crate::config::{
    App, Config, Connect, Direction, Limits, Listener, ListenerLimits, ListenerProtocol, Retry, Service, Tcp, Timeouts,
    Transparent, Unknown,
    error::shorten,
    tree::{Fate, Node},
};
use std::collections::HashSet;

const ABOUT_REQUESTS: &str = "it is about requests; expected only with `protocol: http` or `auto`";

impl<'t> Check<'_, 't> {
    /// A listener's own settings.
    pub(super) fn used_by_listener(&mut self, spot: &Spot<'t>, listener: &Listener) {
        let (default, limits, at) = (ListenerLimits::default(), &listener.limits, spot.key("limits"));
        let redirects_inbound = redirects(listener, Direction::Inbound);
        let takes_requests = may_be_http(listener) && !redirects_inbound;
        let for_requests = [
            ("head_bytes", limits.head_bytes != default.head_bytes),
            ("head_lines", limits.head_lines != default.head_lines),
            ("idle_timeout", limits.idle_timeout != default.idle_timeout),
            ("h2_streams", limits.h2_streams != default.h2_streams),
        ];
        let why = if redirects_inbound { HANDED_ON } else { ABOUT_REQUESTS };
        self.none_set(&at, for_requests, !takes_requests, why);
        let waits_for_head = takes_requests || listener.protocol == ListenerProtocol::Tls || listener.proxy_protocol;
        self.none_set(
            &at,
            [("head_timeout", limits.head_timeout != default.head_timeout)],
            !waits_for_head,
            "nothing is to come first here; expected only with requests, `protocol: tls` or `proxy_protocol`",
        );
        let detects = listener.protocol == ListenerProtocol::Auto && !redirects_inbound;
        let why = if redirects_inbound { HANDED_ON } else { "expected only with `protocol: auto`" };
        self.none_set(&at, [("detect_timeout", limits.detect_timeout != default.detect_timeout)], !detects, why);
        if redirects_inbound {
            let for_names = [
                ("service_header", listener.service_header.is_some()),
                ("host_suffixes", !listener.host_suffixes.is_empty()),
                ("preserve_header_case", listener.preserve_header_case),
                ("connect", listener.connect.is_some()),
            ];
            self.none_set(spot, for_names, true, HANDED_ON);
            let set =
                listener.transparent.as_ref().is_some_and(|it| it.opaque_ports != Transparent::default().opaque_ports);
            self.none_set(
                &spot.key("transparent"),
                [("opaque_ports", set)],
                true,
                "it is about what applications here call; expected only with `direction: outbound`",
            );
        }
        let goes_by_names = listener.service.is_none() || !may_be_http(listener);
        let suffixes = [("host_suffixes", !listener.host_suffixes.is_empty())];
        self.none_set(spot, suffixes, !goes_by_names, "`service` decides already; expected only one of the two");
        if let Some(connect) = &listener.connect {
            let default = Connect::default();
            let for_passing = [
                ("timeout", connect.timeout != default.timeout),
                ("idle_timeout", connect.idle_timeout != default.idle_timeout),
            ];
            let why = "it is about what is passed on; expected only with `unknown: pass`";
            let at = spot.key("connect");
            let passes_nothing = connect.unknown == Unknown::Refuse && !at.key("unknown").dead;
            self.none_set(&at, for_passing, passes_nothing, why);
        }
        if let (Some(app), ListenerProtocol::Tcp) = (&listener.app, listener.protocol) {
            self.used_by_tcp_app(&spot.key("app"), app);
        }
    }

    /// An application that is sent connections, and no requests.
    fn used_by_tcp_app(&mut self, spot: &Spot<'t>, app: &App) {
        let default = App::at(app.address);
        let is_asked = app.health_check.as_ref().is_some_and(|check| check.http.is_some());
        let own = [
            // Checks over HTTP go by it, too.
            ("protocol", app.protocol != default.protocol && !is_asked),
            ("pool", app.pool != default.pool),
            ("callers", app.callers != default.callers),
            ("version_baggage", app.version_baggage != default.version_baggage),
        ];
        self.none_set(spot, own, true, ABOUT_REQUESTS);
        let limits = limits_of_requests(&app.limits, &default.limits);
        let timeouts = timeouts_of_requests(&app.timeouts, &default.timeouts);
        self.none_set(&spot.key("limits"), limits, true, ABOUT_REQUESTS);
        self.none_set(&spot.key("timeouts"), timeouts, true, ABOUT_REQUESTS);
    }

    /// Redirected connections find the application by its port alone.
    pub(super) fn apps_by_port(&mut self, listeners: &Spot<'t>, config: &Config) {
        if !config.listeners.iter().any(|listener| redirects(listener, Direction::Inbound)) {
            return;
        }
        let has_app = |index| listeners.live_item(index).key("app").node.is_some();
        if !(0..config.listeners.len()).any(has_app) {
            let refuses = |listener: &Listener| {
                let transparent = listener.transparent.as_ref();
                transparent.is_some_and(|it| it.direction == Direction::Inbound && it.unknown() == Unknown::Refuse)
            };
            for (index, _) in config.listeners.iter().enumerate().filter(|(_, listener)| refuses(listener)) {
                let at = listeners.live_item(index).key("transparent");
                self.fail(&at, "all connections would be refused, as no listener has an `app`; expected one that has");
            }
        }
        for (index, listener) in config.listeners.iter().enumerate() {
            let Some(app) = &listener.app else { continue };
            // One of either family goes by the caller's; and of two listeners for one address, the first takes them.
            let is_hidden = |other: &&Listener| {
                let differs = |it: &App| it.address != app.address && it.address.is_ipv4() == app.address.is_ipv4();
                other.app.as_ref().is_some_and(|it| it.address.port() == app.address.port() && differs(it))
            };
            if let Some(first) = config.listeners[..index].iter().find(is_hidden) {
                let (port, first) = (app.address.port(), shorten(&first.name));
                let message = format!(
                    "redirected connections to port {port} go to the `app` of the listener `{first}`; expected another port"
                );
                self.fail(&super::app::address(&listeners.live_item(index).key("app")), message);
            }
        }
    }

    /// What services have for traffic that no listener takes to them.
    pub(super) fn used_by_services(&mut self, services: &Spot<'t>, listeners: &Spot<'t>, config: &Config) {
        // What a listener with a mistake is for nobody knows.
        if listeners.node.is_some_and(|node| !is_whole(node)) {
            return;
        }
        let mut effective = config.listeners.clone();
        if effective.is_empty() {
            effective.push(Listener::egress());
        }
        let (asked, builtin) = (Asked::new(&effective, config), Service::default());
        let is_redirected = effective.iter().any(|listener| redirects(listener, Direction::Outbound));
        for (name, service) in &config.services {
            let (spot, defaults) = (services.key(name), &config.defaults);
            let (limits, timeouts, retry) = (spot.key("limits"), spot.key("timeouts"), spot.key("retry"));
            let own_limits = own(&service.limits, &defaults.limits, &builtin.limits, limits_of_requests);
            let own_timeouts = own(&service.timeouts, &defaults.timeouts, &builtin.timeouts, timeouts_of_requests);
            let own_retry = own(&service.retry, &defaults.retry, &builtin.retry, retries_of_requests);
            let no_requests = !asked.takes_requests(name);
            self.none_set(&spot, own(service, defaults, &builtin, for_requests), no_requests, NO_REQUESTS);
            self.none_set(&limits, own_limits, no_requests, NO_REQUESTS);
            self.none_set(&timeouts, own_timeouts, no_requests, NO_REQUESTS);
            self.none_set(&retry, own_retry, no_requests, NO_REQUESTS);
            let (tcp, own_tcp) = (spot.key("tcp"), own(&service.tcp, &defaults.tcp, &builtin.tcp, for_bytes));
            self.none_set(&tcp, own_tcp, !asked.takes_bytes(name), NO_BYTES);
            let direct = own(&service.tcp, &defaults.tcp, &builtin.tcp, |a, b| [("direct", a.direct != b.direct)]);
            self.none_set(&tcp, direct, !is_redirected, NOT_REDIRECTED);
            self.none_set(&spot, [("addresses", !service.addresses.is_empty())], !is_redirected, NOT_REDIRECTED);
            let udp = own(service, defaults, &builtin, |a, b| [("udp", a.udp != b.udp)]);
            let takes_datagrams = effective.iter().any(|it| is_for(it, &[ListenerProtocol::Udp], name));
            self.none_set(&spot, udp, !takes_datagrams, NO_DATAGRAMS);
        }
    }

    /// That none of these keys is there, if they are `useless`.
    fn none_set<const N: usize>(&mut self, spot: &Spot<'t>, keys: [Unlike; N], useless: bool, why: &str) {
        for (key, _) in keys.into_iter().filter(|(_, is_set)| useless && *is_set) {
            self.fail(&spot.key(key), why);
        }
    }
}

const HANDED_ON: &str =
    "redirected inbound connections go on by the listener whose `app` they are for; expected only there";
const NO_REQUESTS: &str =
    "it is about requests, and no listener takes any to this service; expected only where one does";
const NO_BYTES: &str = "no listener carries connections to this service; expected only beside one with `protocol: tcp`, \
                        `tls` or `auto`, or with `connect`";
const NO_DATAGRAMS: &str = "no listener with `protocol: udp` has this `service`; expected only beside one";
const NOT_REDIRECTED: &str = "it is about redirected connections; expected only beside a listener with `transparent`";

fn may_be_http(listener: &Listener) -> bool {
    matches!(listener.protocol, ListenerProtocol::Http | ListenerProtocol::Auto)
}

pub(super) fn redirects(listener: &Listener, direction: Direction) -> bool {
    listener.transparent.as_ref().is_some_and(|transparent| transparent.direction == direction)
}

/// Whether all that comes in by this listener goes to that service, by one of these protocols.
fn is_for(listener: &Listener, protocols: &[ListenerProtocol], service: &str) -> bool {
    protocols.contains(&listener.protocol) && listener.service.as_deref() == Some(service)
}

pub(super) fn is_whole(node: &Node) -> bool {
    node.fate == Fate::Live
        && node.entries().iter().all(|entry| is_whole(&entry.node))
        && node.elements().iter().all(is_whole)
}

/// Which services the listeners lead to.
struct Asked<'c> {
    /// Those that get requests. `None`: a request can name any.
    by_request: Option<HashSet<&'c str>>,
    /// Whether a connection can name any.
    any_by_bytes: bool,
    listeners: &'c [Listener],
}

impl<'c> Asked<'c> {
    fn new(listeners: &'c [Listener], config: &'c Config) -> Self {
        let names_service = |listener: &&Listener| !listener.is_inbound() && listener.service.is_none();
        let any_by_bytes = listeners.iter().filter(names_service).any(|listener| {
            matches!(listener.protocol, ListenerProtocol::Tls | ListenerProtocol::Auto) || listener.connect.is_some()
        });
        let takes_requests = || listeners.iter().filter(|listener| may_be_http(listener));
        let by_request = (!takes_requests().any(|listener| names_service(&listener)))
            .then(|| reached(takes_requests().filter_map(|listener| listener.service.as_deref()), config))
            .flatten();
        Self { by_request, any_by_bytes, listeners }
    }

    fn takes_requests(&self, service: &str) -> bool {
        self.by_request.as_ref().is_none_or(|services| services.contains(service))
    }

    fn takes_bytes(&self, service: &str) -> bool {
        let protocols = [ListenerProtocol::Tcp, ListenerProtocol::Auto];
        self.any_by_bytes || self.listeners.iter().any(|listener| is_for(listener, &protocols, service))
    }
}

/// These services, and those to which they hand requests on. `None`: it could be any.
fn reached<'c>(services: impl Iterator<Item = &'c str>, config: &'c Config) -> Option<HashSet<&'c str>> {
    let mut next: Vec<_> = services.collect();
    // What is there to come from a store can name any.
    if !next.is_empty() && config.routing.store.is_some() {
        return None;
    }
    let mut reached = HashSet::new();
    while let Some(name) = next.pop() {
        if reached.insert(name) {
            let service = config.services.get(name).unwrap_or(&config.defaults);
            let fallbacks = service.routes.iter().filter_map(|route| route.fallback.as_ref()).chain(&service.fallback);
            next.extend(fallbacks.filter_map(|fallback| fallback.service.as_deref()));
            let targets = service.routes.iter().flat_map(|route| {
                let mirror = route.mirror.as_ref().and_then(|mirror| mirror.to.service.as_deref());
                let targets = route.to.iter().chain(route.split.keys());
                targets.filter_map(|target| target.service.as_deref()).chain(mirror)
            });
            next.extend(targets);
        }
    }
    Some(reached)
}

/// A setting's key, and whether two have it otherwise.
type Unlike = (&'static str, bool);

/// What a service sets itself: what it has from `defaults`, or has not, is not its own.
fn own<T, const N: usize>(service: &T, defaults: &T, builtin: &T, unlike: fn(&T, &T) -> [Unlike; N]) -> [Unlike; N] {
    let (mut own, otherwise) = (unlike(service, defaults), unlike(service, builtin));
    own.iter_mut().zip(otherwise).for_each(|((_, is_own), (_, other))| *is_own &= other);
    own
}

fn for_requests(one: &Service, other: &Service) -> [Unlike; 9] {
    [
        ("hedge", one.hedge != other.hedge),
        ("pool", one.pool != other.pool),
        ("fallback", one.fallback != other.fallback),
        ("faults", one.faults != other.faults),
        ("subsets", one.subsets != other.subsets),
        ("when_empty", one.when_empty != other.when_empty),
        ("version_override", one.version_override != other.version_override),
        ("routes", one.routes != other.routes),
        ("rollout", one.rollout != other.rollout),
    ]
}

fn limits_of_requests(one: &Limits, other: &Limits) -> [Unlike; 5] {
    [
        ("requests", one.requests != other.requests),
        ("pending", one.pending != other.pending),
        ("queue_timeout", one.queue_timeout != other.queue_timeout),
        ("adaptive", one.adaptive != other.adaptive),
        ("rate", one.rate != other.rate),
    ]
}

fn timeouts_of_requests(one: &Timeouts, other: &Timeouts) -> [Unlike; 3] {
    [
        ("request", one.request != other.request),
        ("idle", one.idle != other.idle),
        ("stream", one.stream != other.stream),
    ]
}

fn retries_of_requests(one: &Retry, other: &Retry) -> [Unlike; 5] {
    [
        ("on", one.on != other.on),
        ("per_try_timeout", one.per_try_timeout != other.per_try_timeout),
        ("backoff", one.backoff != other.backoff),
        ("buffer", one.buffer != other.buffer),
        ("budget", one.budget != other.budget),
    ]
}

fn for_bytes(one: &Tcp, other: &Tcp) -> [Unlike; 5] {
    [
        ("idle_timeout", one.idle_timeout != other.idle_timeout),
        ("max_age", one.max_age != other.max_age),
        ("when_gone", one.when_gone != other.when_gone),
        ("drain", one.drain != other.drain),
        ("proxy_protocol", one.proxy_protocol != other.proxy_protocol),
    ]
}
