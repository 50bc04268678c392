//! What the types alone cannot hold: names that must exist, addresses that must differ, ranges, files.

mod app;
mod balance;
mod conditions;
mod connect;
mod discovery;
mod dns;
mod drain;
mod fallback;
mod health_check;
mod limits;
mod listener;
mod reach;
mod register;
mod registries;
mod rollout;
mod routes;
mod routing;
mod udp;
mod unused;

use super::{
    AccessLog, Breaker, Config, Hedge, ListenerProtocol, Log, Outlier, Pool, Registry, Retry, RetryBackoff,
    RolloutStore, RouteStore, Routing, Service, Tcp, Timeouts, Tls, Upgrade,
    error::{Faults, Path, Place, Step, shorten},
    human, log_filter,
    tree::{Fate, Node},
};
use routes::Whose;
use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

/// Longer is a slip of the pen, and far from what clocks can add up.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 60 * 60);

/// What fits into the address of a unix socket, with a zero byte behind it.
const LONGEST_SOCKET_PATH: usize = 107;

/// Adds all that is wrong with `config`, which was read from `root`. Nodes that were reported before, and what was made
/// up for them, are passed over.
pub(super) fn check(config: &Config, root: &Node, faults: &mut Faults) {
    let spot = Spot::root(root);
    let has_zone = config.node.zone.as_ref().is_some_and(|zone| !zone.is_empty());
    let has_version = config.node.version.as_ref().is_some_and(|version| !version.is_empty());
    let mut check = Check { faults, registries: spot.key("registries"), has_zone, has_version };
    let registries = check.registries.clone();
    // Traffic for the local application alone needs none.
    let listeners = spot.key("listeners");
    let is_inbound = |(index, listener): (usize, &super::Listener)| {
        listener.is_inbound() || listeners.live_item(index).key("app").node.is_some()
    };
    let only_inbound = !config.listeners.is_empty() && config.listeners.iter().enumerate().all(is_inbound);
    if registries.node.is_none_or(|node| node.entries().is_empty()) && !only_inbound {
        check.fail(&registries, "there is none; expected at least one registry, or `--registry`");
    }
    if let Some(service) = &config.node.service {
        check.service_name(&spot.key("node").key("service"), service);
    }
    for (name, registry) in &config.registries {
        check.scope(&registries.key(name).key("scope"), registry.scope(), config.node.env.is_some());
        check.registry(&registries.key(name), name, registry);
    }
    check.discovery(&spot.key("discovery"), &config.discovery);
    for (index, listener) in config.listeners.iter().enumerate() {
        check.listener(&listeners.live_item(index), listener);
    }
    check.beside_udp(&listeners, config);
    check.apps_are_elsewhere(config, &listeners);
    check.apps_by_port(&listeners, config);
    check.addresses(config, &spot);
    check.registrations(&spot.key("register"), config);
    check.service(&spot.key("defaults"), Whose { config, name: None, service: &config.defaults });
    let services = spot.key("services");
    for (name, service) in &config.services {
        let spot = services.key(name);
        check.service_name(&spot, name);
        check.service(&spot, Whose { config, name: Some(name), service });
    }
    check.used_by_services(&services, &listeners, config);
    check.virtual_addresses(&services, &spot.key("defaults"), config);
    check.dns_server(&spot, config);
    check.circles(&services, &spot.key("defaults"), config);
    let Routing { store, rollouts } = &config.routing;
    let routing = spot.key("routing");
    if let Some(RouteStore { registry, path }) = store {
        check.store_path(&routing.key("store"), registry, path, config);
    }
    if let Some(RolloutStore { registry, path }) = rollouts {
        check.store_path(&routing.key("rollouts"), registry, path, config);
    }
    check.paths_apart(&routing, config);
    check.drain(&spot.key("drain"), &config.drain);
    check.access_log(&spot.key("access_log"), &config.access_log);
    check.log(&spot.key("log"), &config.log);
    if let Some(upgrade) = &config.upgrade {
        check.upgrade(&spot.key("upgrade"), upgrade);
    }
}

/// The same for the routes of one service that were read from `root` alone. `service` is what it is with them.
pub(super) fn check_routes(config: &Config, name: &str, service: &Service, root: &Node, faults: &mut Faults) {
    let spot = Spot::root(root);
    let has_zone = config.node.zone.as_ref().is_some_and(|zone| !zone.is_empty());
    // Of no meaning here: there are no listeners.
    let has_version = false;
    let mut check = Check { faults, registries: spot.clone(), has_zone, has_version };
    check.service_name(&spot, name);
    let whose = Whose { config, name: Some(name), service };
    check.routing(&spot, whose);
    if let Some(rollout) = &service.rollout {
        check.rollout(&spot.key("rollout"), rollout, whose);
    }
}

/// A place in the config: where it is written, or where it would be.
#[derive(Clone)]
struct Spot<'t> {
    path: Path,
    /// `None` where the config leaves it to a default.
    node: Option<&'t Node>,
    place: Place,
    /// It, or what it is in, was reported already.
    dead: bool,
}

impl<'t> Spot<'t> {
    fn root(root: &'t Node) -> Self {
        Spot { path: Path::default(), node: Some(root), place: root.place, dead: false }
    }

    fn down(&self, step: Step, node: Option<&'t Node>) -> Self {
        Spot {
            path: self.path.with(step),
            node,
            place: node.map_or(self.place, |node| node.place),
            dead: self.dead || node.is_some_and(|node| node.fate != Fate::Live),
        }
    }

    fn key(&self, key: &str) -> Self {
        let entry = self.node.and_then(|node| node.entries().iter().find(|entry| entry.key == key));
        let mut spot = self.down(Step::Key(key.into()), entry.map(|entry| &entry.node));
        // For a whole map the key is where one looks first, not what happens to be written first in it.
        if let Some(entry) = entry
            && !entry.node.entries().is_empty()
        {
            spot.place = entry.place;
        }
        spot
    }

    /// The `index`-th element of those that were read.
    fn live_item(&self, index: usize) -> Self {
        let mut live = self.elements().iter().enumerate().filter(|(_, node)| node.fate != Fate::Pruned);
        match live.nth(index) {
            Some((index, node)) => self.down(Step::Index(index), Some(node)),
            None => self.down(Step::Index(index), None),
        }
    }

    fn elements(&self) -> &'t [Node] {
        self.node.map_or(&[], Node::elements)
    }
}

struct Check<'f, 't> {
    faults: &'f mut Faults,
    registries: Spot<'t>,
    /// Whether it is known which zone this node is in.
    has_zone: bool,
    /// Whether it is known which version of the application is beside this pillion.
    has_version: bool,
}

impl<'t> Check<'_, 't> {
    fn fail(&mut self, spot: &Spot<'_>, message: impl Into<String>) {
        if !spot.dead {
            self.faults.add(spot.place, spot.path.clone(), message);
        }
    }

    fn tls(&mut self, spot: &Spot<'t>, tls: &Tls) {
        let (cert, key) = (spot.key("cert"), spot.key("key"));
        match (&tls.cert, &tls.key) {
            (Some(_), None) if !key.dead => self.fail(&cert, "`cert` goes with `key`, which is missing"),
            (None, Some(_)) if !cert.dead => self.fail(&key, "`key` goes with `cert`, which is missing"),
            _ => {}
        }
        for (spot, file) in [(spot.key("ca"), &tls.ca), (cert, &tls.cert), (key, &tls.key)] {
            self.readable(&spot, file.as_deref(), "a PEM file");
        }
        if let Some(name) = &tls.server_name
            && rustls::pki_types::ServerName::try_from(name.as_str()).is_err()
        {
            self.fail(&spot.key("server_name"), format!("found `{}`; expected a host name", shorten(name)));
        }
    }

    fn readable(&mut self, spot: &Spot<'t>, file: Option<&std::path::Path>, expected: &str) {
        let Some(file) = file else { return };
        match std::fs::metadata(file) {
            Ok(found) if found.is_dir() => {
                self.fail(spot, format!("`{}` is a folder; expected {expected}", file.display()))
            }
            Ok(_) => {}
            Err(error) => self.fail(spot, format!("`{}` cannot be read: {error}", file.display())),
        }
    }

    /// Everything that listens does so under another name and at another address.
    fn addresses(&mut self, config: &Config, root: &Spot<'t>) {
        let mut names: Vec<(&str, Spot<'t>)> = Vec::new();
        let (mut taken, mut datagrams) = (Vec::new(), Vec::new());
        let listeners = root.key("listeners");
        for (index, listener) in config.listeners.iter().enumerate() {
            let spot = listeners.live_item(index);
            let name = spot.key("name");
            if !name.dead {
                if names.iter().any(|(known, _)| *known == listener.name) {
                    self.fail(&name, format!("another listener is named `{}` too", shorten(&listener.name)));
                }
                names.push((&listener.name, name));
            }
            let at = (listener.listen, format!("the listener `{}`", shorten(&listener.name)), spot.key("listen"));
            // Ports of TCP and UDP have only their numbers in common.
            if listener.protocol == ListenerProtocol::Udp { datagrams.push(at) } else { taken.push(at) }
        }
        taken.push((config.admin.listen, "`admin`".into(), root.key("admin").key("listen")));
        for (name, registry) in &config.registries {
            if let Registry::Embedded(embedded) = registry {
                let spot = self.registries.key(name).key("listen");
                taken.push((embedded.listen, format!("the registry `{}`", shorten(name)), spot));
            }
        }
        for (index, address) in config.dns.iter().flat_map(|dns| dns.listen.iter().enumerate()) {
            let at = (*address, "`dns`".to_owned(), root.key("dns").key("listen").live_item(index));
            taken.push(at.clone());
            datagrams.push(at);
        }
        self.differ(taken);
        self.differ(datagrams);
    }

    fn differ(&mut self, mut taken: Vec<(SocketAddr, String, Spot<'t>)>) {
        taken.retain(|(_, _, spot)| !spot.dead);
        for (later, (address, who, spot)) in taken.iter().enumerate() {
            for (other, whose, other_spot) in &taken[..later] {
                if !overlap(*address, *other) {
                    continue;
                }
                // The one that is written can be changed; a default cannot be pointed at.
                let (spot, other, whose) = if spot.node.is_none() && other_spot.node.is_some() {
                    (other_spot, address, who)
                } else {
                    (spot, other, whose)
                };
                self.fail(spot, format!("{whose} listens on `{other}` already"));
            }
        }
    }

    fn service_name(&mut self, spot: &Spot<'_>, name: &str) {
        if name.is_empty() || name.len() > 253 || name.chars().any(|c| c.is_control() || c.is_whitespace()) {
            let message =
                format!("`{}` is no name for a service; expected 1 to 253 bytes without spaces", shorten(name));
            self.fail(spot, message);
        }
    }

    fn service(&mut self, spot: &Spot<'t>, whose: Whose<'_>) {
        let service = whose.service;
        self.sources(&spot.key("sources"), &service.sources);
        if let Some(name) = &service.registered_as {
            self.service_name(&spot.key("registered_as"), name);
        }
        self.guard(&spot.key("guard"), &service.guard);
        if let Some(tls) = &service.tls {
            self.tls(&spot.key("tls"), tls);
        }
        self.balance(&spot.key("balance"), &service.balance);
        let request = service.timeouts.request;
        self.timeouts(&spot.key("timeouts"), &service.timeouts);
        self.retry(&spot.key("retry"), &service.retry);
        self.within_request(&spot.key("retry").key("per_try_timeout"), service.retry.per_try_timeout, request);
        self.within_request(
            &spot.key("hedge").key("after"),
            service.hedge.as_ref().and_then(|hedge| hedge.after),
            request,
        );
        if let Some(hedge) = &service.hedge {
            self.hedge(&spot.key("hedge"), hedge);
        }
        self.ejection(spot, &service.breaker, &service.outlier);
        if let Some(check) = &service.health_check {
            self.health_check(&spot.key("health_check"), check);
        }
        self.range(&spot.key("panic_threshold"), service.panic_threshold, 0, 100);
        self.pool(&spot.key("pool"), &service.pool);
        self.tcp(&spot.key("tcp"), &service.tcp);
        self.udp(&spot.key("udp"), &service.udp);
        self.limits(&spot.key("limits"), &service.limits, request);
        if let Some(fallback) = &service.fallback {
            self.fallback(&spot.key("fallback"), fallback);
        }
        if let Some(faults) = &service.faults {
            self.faults(&spot.key("faults"), faults);
        }
        self.routing(spot, whose);
        if let Some(rollout) = &service.rollout {
            self.rollout(&spot.key("rollout"), rollout, whose);
        }
    }

    fn timeouts(&mut self, spot: &Spot<'t>, timeouts: &Timeouts) {
        let Timeouts { connect, request, idle, stream } = *timeouts;
        let each = [("connect", Some(connect)), ("request", Some(request)), ("idle", Some(idle)), ("stream", stream)];
        for (key, timeout) in each {
            timeout.into_iter().for_each(|timeout| self.positive(&spot.key(key), timeout));
        }
    }

    fn tcp(&mut self, spot: &Spot<'t>, tcp: &Tcp) {
        let second = Duration::from_secs(1);
        // More often they are not looked at.
        self.at_least(&spot.key("idle_timeout"), tcp.idle_timeout, second);
        if let Some(age) = tcp.max_age {
            self.at_least(&spot.key("max_age"), age, second);
        }
        self.at_least(&spot.key("drain"), tcp.drain, second);
    }

    fn pool(&mut self, spot: &Spot<'t>, pool: &Pool) {
        let Pool { max_idle, idle_timeout, max_age } = *pool;
        self.range(&spot.key("max_idle"), max_idle, 0, 65_536);
        self.positive(&spot.key("idle_timeout"), idle_timeout);
        self.positive(&spot.key("max_age"), max_age);
    }

    fn retry(&mut self, spot: &Spot<'t>, retry: &Retry) {
        self.range(&spot.key("attempts"), retry.attempts, 0, 10);
        if let Some(timeout) = retry.per_try_timeout {
            self.positive(&spot.key("per_try_timeout"), timeout);
        }
        let at = spot.key("backoff");
        let RetryBackoff { base, max } = retry.backoff;
        self.positive(&at.key("base"), base);
        self.at_least(&at.key("max"), max, base);
        self.range(&spot.key("buffer"), retry.buffer, 0, 1024 * 1024);
        let at = spot.key("budget");
        self.range(&at.key("percent"), retry.budget.percent, 0, 100);
        self.range(&at.key("per_second"), retry.budget.per_second, 0, 100_000);
    }

    /// What would happen only when the request's time is over never happens.
    fn within_request(&mut self, spot: &Spot<'_>, time: Option<Duration>, request: Duration) {
        if let Some(time) = time.filter(|time| *time > request) {
            let (found, most) = (human::format(time), human::format(request));
            self.fail(spot, format!("found `{found}`; expected at most `{most}`, which is `timeouts.request`"));
        }
    }

    fn hedge(&mut self, spot: &Spot<'t>, hedge: &Hedge) {
        if hedge.after.is_some() == hedge.percentile.is_some() {
            self.fail(spot, "expected either `after` or `percentile`");
        }
        if let Some(after) = hedge.after {
            self.positive(&spot.key("after"), after);
        }
        if let Some(percentile) = hedge.percentile {
            self.range(&spot.key("percentile"), percentile, 50, 99);
        }
    }

    fn ejection(&mut self, spot: &Spot<'t>, breaker: &Breaker, outlier: &Outlier) {
        let at = spot.key("breaker");
        self.range(&at.key("consecutive_failures"), breaker.consecutive_failures, 0, 1000);
        self.range(&at.key("failure_percent"), breaker.failure_percent, 1, 100);
        self.range(&at.key("min_requests"), breaker.min_requests, 1, 1_000_000);
        self.range(&at.key("max_ejected"), breaker.max_ejected, 0, 100);
        let open = at.key("open");
        self.positive(&open.key("base"), breaker.open.base);
        self.at_least(&open.key("max"), breaker.open.max, breaker.open.base);
        let at = spot.key("outlier");
        self.range(&at.key("deviations"), outlier.deviations.0, 0.1, 10.0);
        self.range(&at.key("min_endpoints"), outlier.min_endpoints, 3, 1000);
        self.range(&at.key("min_requests"), outlier.min_requests, 1, 1_000_000);
        self.range(&at.key("max_ejected"), outlier.max_ejected, 0, 100);
    }

    fn access_log(&mut self, spot: &Spot<'t>, log: &AccessLog) {
        if !(0.0..=1.0).contains(&log.sample.0) {
            self.fail(&spot.key("sample"), format!("found `{}`; expected a number from 0.0 to 1.0", log.sample.0));
        }
        self.path(&spot.key("path"), log.path.as_deref());
    }

    fn log(&mut self, spot: &Spot<'t>, log: &Log) {
        if let Err(message) = log_filter(&log.level) {
            self.fail(&spot.key("level"), message);
        }
    }

    fn upgrade(&mut self, spot: &Spot<'t>, upgrade: &Upgrade) {
        let socket = spot.key("socket");
        self.path(&socket, Some(&upgrade.socket));
        let length = upgrade.socket.as_os_str().len();
        if length > LONGEST_SOCKET_PATH {
            let most = LONGEST_SOCKET_PATH;
            self.fail(
                &socket,
                format!("the path has {length} bytes; expected at most {most}, the most for a unix socket"),
            );
        }
        self.positive(&spot.key("timeout"), upgrade.timeout);
    }

    fn none_empty(&mut self, spot: &Spot<'t>, texts: &[String]) {
        for (index, text) in texts.iter().enumerate() {
            if text.is_empty() {
                self.fail(&spot.live_item(index), "found an empty text; expected some text");
            }
        }
    }

    fn path(&mut self, spot: &Spot<'t>, path: Option<&std::path::Path>) {
        if path.is_some_and(|path| path.as_os_str().is_empty()) {
            self.fail(spot, "found an empty text; expected a path");
        }
    }

    fn range<T: PartialOrd + std::fmt::Display>(&mut self, spot: &Spot<'t>, found: T, least: T, most: T) {
        // (Neither less nor more is what is no number, either.)
        if !(&least..=&most).contains(&&found) {
            self.fail(spot, format!("found `{found}`; expected a number from {least} to {most}"));
        }
    }

    fn positive(&mut self, spot: &Spot<'t>, duration: Duration) {
        self.at_least(spot, duration, Duration::from_millis(1));
    }

    fn at_least(&mut self, spot: &Spot<'t>, duration: Duration, least: Duration) {
        if duration < least {
            let (found, least) = (human::format(duration), human::format(least));
            self.fail(spot, format!("found `{found}`; expected at least `{least}`"));
        }
        self.at_most(spot, duration);
    }

    fn at_most(&mut self, spot: &Spot<'t>, duration: Duration) {
        if duration > LONGEST {
            self.fail(spot, format!("found `{}`; expected at most a year", human::format(duration)));
        }
    }
}

/// Whether two sockets would be in each other's way. Port 0 takes a free one, `[::]` takes IPv4 as well.
fn overlap(a: SocketAddr, b: SocketAddr) -> bool {
    let (one, other) = (a.ip().to_canonical(), b.ip().to_canonical());
    let covers = |all: IpAddr, one: IpAddr| all.is_unspecified() && (all.is_ipv6() || one.is_ipv4());
    a.port() != 0 && a.port() == b.port() && (one == other || covers(one, other) || covers(other, one))
}
