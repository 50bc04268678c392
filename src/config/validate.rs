//! What the types alone cannot hold: names that must exist, addresses that must differ, ranges, files.

mod balance;
mod fallback;
mod health_check;
mod limits;

use super::{
    AccessLog, Breaker, Config, ConsulRegistry, Discovery, EtcdRegistry, Hedge, Listener, Log, Outlier, Pool, Registry,
    Retry, RetryBackoff, Service, Timeouts, Tls,
    error::{Faults, Path, Place, Step, did_you_mean, one_of, shorten},
    human, log_filter,
    tree::{Fate, Node},
};
use std::{collections::HashSet, net::SocketAddr, time::Duration};

/// Longer is a slip of the pen, and far from what clocks can add up.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 60 * 60);

/// Adds all that is wrong with `config`, which was read from `root`. Nodes that were reported before, and what was made
/// up for them, are passed over.
pub(super) fn check(config: &Config, root: &Node, faults: &mut Faults) {
    let spot = Spot::root(root);
    let has_zone = config.node.zone.as_ref().is_some_and(|zone| !zone.is_empty());
    let mut check = Check { faults, registries: spot.key("registries"), has_zone };
    let registries = check.registries.clone();
    if registries.node.is_none_or(|node| node.entries().is_empty()) {
        check.fail(&registries, "there is none; expected at least one registry, or `--registry`");
    }
    for (name, registry) in &config.registries {
        check.registry(&registries.key(name), name, registry);
    }
    check.discovery(&spot.key("discovery"), &config.discovery);
    let listeners = spot.key("listeners");
    for (index, listener) in config.listeners.iter().enumerate() {
        check.listener(&listeners.live_item(index), listener);
    }
    check.addresses(config, &spot);
    check.service(&spot.key("defaults"), &config.defaults);
    let services = spot.key("services");
    for (name, service) in &config.services {
        let spot = services.key(name);
        check.service_name(&spot, name);
        check.service(&spot, service);
    }
    check.circles(&services, &spot.key("defaults"), config);
    check.access_log(&spot.key("access_log"), &config.access_log);
    check.log(&spot.key("log"), &config.log);
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
}

impl<'t> Check<'_, 't> {
    fn fail(&mut self, spot: &Spot<'_>, message: impl Into<String>) {
        if !spot.dead {
            self.faults.add(spot.place, spot.path.clone(), message);
        }
    }

    fn registry(&mut self, spot: &Spot<'t>, name: &str, registry: &Registry) {
        if name.is_empty() || name.chars().any(|c| c.is_control() || c.is_whitespace()) {
            self.fail(spot, "expected a name without spaces");
        }
        match registry {
            Registry::Embedded(embedded) => {
                self.at_least(&spot.key("ttl"), embedded.ttl, Duration::from_secs(1));
                self.path(&spot.key("persist"), embedded.persist.as_deref());
            }
            Registry::File(file) => self.path(&spot.key("path"), Some(&file.path)),
            Registry::Consul(consul) => self.consul(spot, consul),
            Registry::Etcd(etcd) => self.etcd(spot, etcd),
        }
    }

    fn consul(&mut self, spot: &Spot<'t>, consul: &ConsulRegistry) {
        let secure = self.url(&spot.key("address"), &consul.address);
        self.client_tls(&spot.key("tls"), &consul.tls, secure);
        if let Some(token) = &consul.token
            && (token.expose().is_empty() || http::HeaderValue::from_str(token.expose()).is_err())
        {
            self.fail(&spot.key("token"), "expected a token: not empty, and of characters that a header can carry");
        }
        if consul.dc.as_deref() == Some("") {
            self.fail(&spot.key("dc"), "found an empty text; expected a datacenter's name");
        }
        self.none_empty(&spot.key("tags"), &consul.tags);
        let wait = spot.key("wait");
        self.at_least(&wait, consul.wait, Duration::from_secs(1));
        if consul.wait > Duration::from_secs(600) {
            self.fail(&wait, "expected at most `10m`, which is the most that Consul grants");
        }
    }

    fn etcd(&mut self, spot: &Spot<'t>, etcd: &EtcdRegistry) {
        let endpoints = spot.key("endpoints");
        if etcd.endpoints.is_empty() && endpoints.elements().is_empty() {
            self.fail(&endpoints, "the list is empty; expected at least one `http://HOST:PORT` or `https://HOST:PORT`");
        }
        let mut secure = None;
        for (index, url) in etcd.endpoints.iter().enumerate() {
            let spot = endpoints.live_item(index);
            let this = self.url(&spot, url);
            if let (Some(first), Some(this)) = (secure, this)
                && first != this
            {
                self.fail(
                    &spot,
                    format!("`{}` and the first endpoint differ; expected all `http` or all `https`", shorten(url)),
                );
            }
            secure = secure.or(this);
        }
        self.client_tls(&spot.key("tls"), &etcd.tls, secure);
        match (&etcd.user, &etcd.password) {
            (Some(_), None) if !spot.key("password").dead => {
                self.fail(&spot.key("user"), "`user` goes with `password`, which is missing")
            }
            (None, Some(_)) if !spot.key("user").dead => {
                self.fail(&spot.key("password"), "`password` goes with `user`, which is missing")
            }
            _ => {}
        }
        if etcd.prefix.as_deref().is_some_and(|prefix| prefix.chars().any(char::is_control)) {
            self.fail(&spot.key("prefix"), "expected a prefix without control characters");
        }
    }

    /// Whether it is https, if it is a URL at all.
    fn url(&mut self, spot: &Spot<'t>, url: &str) -> Option<bool> {
        let expected = "expected `http://HOST:PORT` or `https://HOST:PORT`";
        // Whatever stands before an `@` may be a password.
        if url.contains('@') {
            self.fail(spot, format!("a user in the address; {expected}"));
            return None;
        }
        let parts = url.parse::<http::Uri>().ok().map(http::Uri::into_parts);
        let secure = match parts.as_ref().and_then(|parts| parts.scheme.as_ref()).map(http::uri::Scheme::as_str) {
            Some("http") => Some(false),
            Some("https") => Some(true),
            _ => None,
        };
        let authority = parts.as_ref().and_then(|parts| parts.authority.as_ref());
        let bare =
            parts.as_ref().and_then(|parts| parts.path_and_query.as_ref()).is_none_or(|rest| rest.as_str() == "/");
        // A port that is no number is left in the authority unread.
        let port = authority.is_some_and(|authority| match authority.as_str().rsplit_once(':') {
            Some((_, port)) if !port.ends_with(']') => port.parse().is_ok_and(|port: u16| port > 0),
            _ => true,
        });
        if secure.is_none() || authority.is_none_or(|authority| authority.host().is_empty()) || !bare || !port {
            self.fail(spot, format!("found `{}`; {expected}", shorten(url)));
            return None;
        }
        secure
    }

    /// TLS towards a registry, which only an https address uses.
    fn client_tls(&mut self, spot: &Spot<'t>, tls: &Tls, secure: Option<bool>) {
        if secure == Some(false) && *tls != Tls::default() {
            self.fail(spot, "used only with `https://` addresses; found `http://`");
        }
        self.tls(spot, tls);
    }

    fn tls(&mut self, spot: &Spot<'t>, tls: &Tls) {
        let (cert, key) = (spot.key("cert"), spot.key("key"));
        match (&tls.cert, &tls.key) {
            (Some(_), None) if !key.dead => self.fail(&cert, "`cert` goes with `key`, which is missing"),
            (None, Some(_)) if !cert.dead => self.fail(&key, "`key` goes with `cert`, which is missing"),
            _ => {}
        }
        for (spot, file) in [(spot.key("ca"), &tls.ca), (cert, &tls.cert), (key, &tls.key)] {
            let Some(file) = file else { continue };
            match std::fs::metadata(file) {
                Ok(found) if found.is_dir() => {
                    self.fail(&spot, format!("`{}` is a folder; expected a PEM file", file.display()))
                }
                Ok(_) => {}
                Err(error) => self.fail(&spot, format!("`{}` cannot be read: {error}", file.display())),
            }
        }
        if let Some(name) = &tls.server_name
            && rustls::pki_types::ServerName::try_from(name.as_str()).is_err()
        {
            self.fail(&spot.key("server_name"), format!("found `{}`; expected a host name", shorten(name)));
        }
    }

    fn discovery(&mut self, spot: &Spot<'t>, discovery: &Discovery) {
        self.sources(&spot.key("sources"), &discovery.sources);
        self.at_most(&spot.key("first_answer"), discovery.first_answer);
        self.positive(&spot.key("idle"), discovery.idle);
        self.at_most(&spot.key("coalesce"), discovery.coalesce);
        self.range(&spot.key("max_services"), discovery.max_services, 1, 1_000_000);
    }

    fn sources(&mut self, spot: &Spot<'t>, sources: &[String]) {
        let known: Vec<_> =
            self.registries.node.map_or(&[][..], Node::entries).iter().map(|e| e.key.as_str()).collect();
        let mut seen = HashSet::new();
        for (index, name) in sources.iter().enumerate() {
            let spot = spot.live_item(index);
            if !seen.insert(name) {
                self.fail(&spot, format!("`{}` is there twice", shorten(name)));
            }
            if self.registries.dead || known.contains(&name.as_str()) {
                continue;
            }
            let expected = match known[..] {
                [] => "`registries` has none".into(),
                _ => format!("expected {}", one_of(known.iter().copied())),
            };
            let near = did_you_mean(name, known.iter().copied());
            self.fail(&spot, format!("no registry is named `{}`; {expected}{near}", shorten(name)));
        }
    }

    fn listener(&mut self, spot: &Spot<'t>, listener: &Listener) {
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
        self.none_empty(&spot.key("host_suffixes"), &listener.host_suffixes);
        let (limits, at) = (&listener.limits, spot.key("limits"));
        self.range(&at.key("connections"), limits.connections, 1, 10_000_000);
        self.range(&at.key("head_bytes"), limits.head_bytes, 1024, 1024 * 1024);
        self.range(&at.key("head_lines"), limits.head_lines, 1, 10_000);
        self.range(&at.key("h2_streams"), limits.h2_streams, 1, i32::MAX.unsigned_abs());
        self.positive(&at.key("head_timeout"), limits.head_timeout);
        self.positive(&at.key("idle_timeout"), limits.idle_timeout);
    }

    /// Everything that listens does so under another name and at another address.
    fn addresses(&mut self, config: &Config, root: &Spot<'t>) {
        let mut names: Vec<(&str, Spot<'t>)> = Vec::new();
        let mut taken: Vec<(SocketAddr, String, Spot<'t>)> = Vec::new();
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
            taken.push((listener.listen, format!("the listener `{}`", shorten(&listener.name)), spot.key("listen")));
        }
        taken.push((config.admin.listen, "`admin`".into(), root.key("admin").key("listen")));
        for (name, registry) in &config.registries {
            if let Registry::Embedded(embedded) = registry {
                let spot = self.registries.key(name).key("listen");
                taken.push((embedded.listen, format!("the registry `{}`", shorten(name)), spot));
            }
        }
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

    fn service(&mut self, spot: &Spot<'t>, service: &Service) {
        self.sources(&spot.key("sources"), &service.sources);
        if let Some(name) = &service.registered_as {
            self.service_name(&spot.key("registered_as"), name);
        }
        if let Some(tls) = &service.tls {
            self.tls(&spot.key("tls"), tls);
        }
        self.balance(&spot.key("balance"), &service.balance);
        let at = spot.key("timeouts");
        let Timeouts { connect, request, idle, stream } = service.timeouts;
        let each = [("connect", Some(connect)), ("request", Some(request)), ("idle", Some(idle)), ("stream", stream)];
        for (key, timeout) in each {
            timeout.into_iter().for_each(|timeout| self.positive(&at.key(key), timeout));
        }
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
        let at = spot.key("pool");
        let Pool { max_idle, idle_timeout, max_age } = service.pool;
        self.range(&at.key("max_idle"), max_idle, 0, 65_536);
        self.positive(&at.key("idle_timeout"), idle_timeout);
        self.positive(&at.key("max_age"), max_age);
        self.limits(&spot.key("limits"), &service.limits, request);
        if let Some(fallback) = &service.fallback {
            self.fallback(&spot.key("fallback"), fallback);
        }
        if let Some(faults) = &service.faults {
            self.faults(&spot.key("faults"), faults);
        }
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

/// Whether two sockets would be in each other's way. Port 0 takes a free one.
fn overlap(a: SocketAddr, b: SocketAddr) -> bool {
    let everywhere = a.ip().is_unspecified() || b.ip().is_unspecified();
    a.port() != 0 && a.port() == b.port() && (a.ip() == b.ip() || (everywhere && a.is_ipv4() == b.is_ipv4()))
}
