//! Checks of `subsets`, `when_empty`, `version_override` and `routes`.

use super::{Check, Spot, reach};
use crate::config::{
    Config, HeaderEdit, Mirror, Redirect, Rewrite, Route, RouteLimits, RouteMatch, Service, SetCookie, Sticky, Target,
    ValueMatch, VersionOverride, WhenEmpty,
    error::{did_you_mean, one_of, shorten},
    routes::{FAIL, SERVICE},
};
use http::{HeaderName, HeaderValue, uri::PathAndQuery};
use indexmap::IndexMap;

/// More parts than this are no versions.
const MOST_SUBSETS: usize = 64;
const MOST_ROUTES: usize = 10_000;
/// Each may take a quarter of a megabyte.
const MOST_REGEXES: usize = 256;
const MOST_WEIGHT: u32 = 1_000_000;
/// A copy is held in memory until it is sent.
const MOST_MIRRORED: usize = 16 * 1024 * 1024;
/// Fields that concern one connection or frame a message. pillion writes them itself.
const FRAMING: [&str; 9] = [
    "connection",
    "content-length",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "http2-settings",
];

/// Whose routes are looked at.
#[derive(Clone, Copy)]
pub(super) struct Whose<'c> {
    pub config: &'c Config,
    /// `None`: those in `defaults`.
    pub name: Option<&'c str>,
    pub service: &'c Service,
}

impl<'t> Check<'_, 't> {
    pub(super) fn routing(&mut self, spot: &Spot<'t>, whose: Whose<'_>) {
        self.subsets(&spot.key("subsets"), whose.service);
        self.when_empty(&spot.key("when_empty"), whose.service);
        let VersionOverride { header, baggage, .. } = &whose.service.version_override;
        let at = spot.key("version_override");
        self.header_name(&at.key("header"), header);
        self.word(&at.key("baggage"), baggage, "a baggage member's name");
        let at = spot.key("routes");
        let routes = &whose.service.routes;
        if routes.len() > MOST_ROUTES {
            self.fail(&at, format!("found {} routes; expected at most {MOST_ROUTES}", routes.len()));
            return;
        }
        let regexes = regexes(routes);
        if regexes > MOST_REGEXES {
            let message =
                format!("found {regexes} regular expressions; expected at most {MOST_REGEXES} for one service");
            self.fail(&at, message);
            return;
        }
        for (index, route) in routes.iter().enumerate() {
            self.route(&at.live_item(index), route, whose);
        }
        self.reachable(&at, routes);
    }

    fn subsets(&mut self, spot: &Spot<'t>, service: &Service) {
        if service.subsets.len() > MOST_SUBSETS {
            let found = service.subsets.len();
            self.fail(spot, format!("found {found} subsets; expected at most {MOST_SUBSETS}"));
        }
        for (name, labels) in &service.subsets {
            let at = spot.key(name);
            if self.subset_name(&at, name) && [FAIL, SERVICE].contains(&name.as_str()) {
                self.fail(&at, format!("no subset can be called `{name}`, which is a word of `when_empty`"));
            }
            if labels.is_empty() && at.node.is_none_or(|node| node.entries().is_empty()) {
                self.fail(&at, "there are no labels; expected at least one, like `version: v2`");
            }
        }
    }

    /// Whether a subset can be called so.
    pub(super) fn subset_name(&mut self, spot: &Spot<'t>, name: &str) -> bool {
        let bad = name.is_empty() || name.contains('/') || name.chars().any(|c| c.is_control() || c.is_whitespace());
        let fits = !bad && HeaderValue::from_str(name).is_ok();
        if !fits {
            let name = shorten(name);
            self.fail(spot, format!("`{name}` is no name for a subset; expected characters that a header can carry, without spaces and `/`"));
        }
        fits
    }

    fn when_empty(&mut self, spot: &Spot<'t>, service: &Service) {
        for (name, instead) in &service.when_empty {
            let at = spot.key(name);
            self.is_subset(&at, name, &service.subsets);
            let WhenEmpty::Subset(other) = instead else { continue };
            if !service.subsets.contains_key(other) {
                let words = service.subsets.keys().map(String::as_str).chain([FAIL, SERVICE]);
                let expected = one_of(words);
                self.fail(&at, format!("found `{}`; expected {expected}", shorten(other)));
                continue;
            }
            let mut way = vec![name.as_str()];
            let mut next = Some(other.as_str());
            while let Some(step) = next.filter(|step| !way.contains(step)) {
                way.push(step);
                next = match service.when_empty.get(step) {
                    Some(WhenEmpty::Subset(next)) => Some(next),
                    _ => None,
                };
            }
            if next == Some(name) {
                let way: Vec<_> =
                    way.iter().chain(&[name.as_str()]).map(|step| format!("`{}`", shorten(step))).collect();
                self.fail(&at, format!("a circle of subsets: {}", way.join(" → ")));
            }
        }
    }

    pub(super) fn is_subset<T>(&mut self, spot: &Spot<'t>, name: &str, subsets: &IndexMap<String, T>) {
        if !subsets.contains_key(name) {
            let hint = did_you_mean(name, subsets.keys().map(String::as_str));
            let expected = if subsets.is_empty() {
                "the service has no `subsets`".to_owned()
            } else {
                format!("expected {}", one_of(subsets.keys().map(String::as_str)))
            };
            self.fail(spot, format!("`{}` is no subset of the service; {expected}{hint}", shorten(name)));
        }
    }

    fn route(&mut self, spot: &Spot<'t>, route: &Route, whose: Whose<'_>) {
        if let Some(name) = &route.name
            && (name.is_empty() || HeaderValue::from_str(name).is_err())
        {
            let name = shorten(name);
            self.fail(&spot.key("name"), format!("found `{name}`; expected text without control characters"));
        }
        self.conditions(&spot.key("match"), &route.matches);
        let answers = self.kinds(spot, route);
        if let Some(to) = &route.to {
            self.target(&spot.key("to"), to, whose);
        }
        self.split(spot, route, whose);
        let mut targets = route.to.iter().chain(route.split.keys());
        if route.mark && answers.is_none() && targets.all(|target| target.subset.is_none()) {
            self.fail(
                &spot.key("mark"),
                "there is nothing to mark requests with; expected a subset in `to` or `split`",
            );
        }
        if let Some(redirect) = &route.redirect {
            self.redirect(&spot.key("redirect"), redirect, &route.matches);
        }
        if let Some(response) = &route.respond {
            self.fixed_response(&spot.key("respond"), response);
        }
        if let Some(rewrite) = &route.rewrite {
            self.rewrite(&spot.key("rewrite"), rewrite, &route.matches);
        }
        let at = spot.key("headers");
        self.edit(&at.key("request"), &route.headers.request, true);
        self.edit(&at.key("response"), &route.headers.response, false);
        if let Some(mirror) = &route.mirror {
            self.mirror(&spot.key("mirror"), mirror, whose);
        }
        self.settings(spot, route, whose.service);
        if let Some(kind) = answers {
            let given = [
                ("rewrite", route.rewrite.is_some()),
                ("mark", route.mark),
                ("mirror", route.mirror.is_some()),
                ("timeouts", route.timeouts.is_some()),
                ("retry", route.retry.is_some()),
                ("hedge", route.hedge.is_some()),
                ("fallback", route.fallback.is_some()),
                ("faults", route.faults.is_some()),
            ];
            for (key, _) in given.into_iter().filter(|(_, given)| *given) {
                self.fail(
                    &spot.key(key),
                    format!("it has no effect beside `{kind}`, which answers the request itself"),
                );
            }
        }
    }

    /// Of the things that can become of a request there is one. Gives its name if it is an answer of pillion's own.
    fn kinds(&mut self, spot: &Spot<'t>, route: &Route) -> Option<&'static str> {
        let kinds = [
            ("to", route.to.is_some()),
            ("split", !route.split.is_empty()),
            ("redirect", route.redirect.is_some()),
            ("respond", route.respond.is_some()),
        ];
        let mut given = kinds.iter().filter(|(_, given)| *given).map(|(kind, _)| *kind);
        let first = given.next()?;
        for second in given {
            let expected = one_of(kinds.iter().map(|(kind, _)| *kind));
            self.fail(&spot.key(second), format!("`{first}` is there already; expected only one of {expected}"));
        }
        ["redirect", "respond"].into_iter().find(|kind| *kind == first)
    }

    fn target(&mut self, spot: &Spot<'t>, target: &Target, Whose { config, name, service }: Whose<'_>) {
        let subsets = match target.service.as_deref().filter(|other| Some(*other) != name) {
            None => &service.subsets,
            Some(other) => {
                self.service_name(spot, other);
                &config.services.get(other).unwrap_or(&config.defaults).subsets
            }
        };
        if let Some(subset) = &target.subset {
            self.is_subset(spot, subset, subsets);
        }
    }

    fn split(&mut self, spot: &Spot<'t>, route: &Route, whose: Whose<'_>) {
        let at = spot.key("split");
        for (target, weight) in &route.split {
            let at = at.key(&target.to_string());
            self.target(&at, target, whose);
            self.range(&at, *weight, 0, MOST_WEIGHT);
        }
        if route.split.is_empty() && at.node.is_some() && !at.dead {
            self.fail(&at, "it divides requests among nobody; expected targets with their weights");
        }
        if !route.split.is_empty() && route.split.values().all(|weight| *weight == 0) {
            self.fail(&at, "all weights are 0; expected at least one that is more");
        }
        let Some(sticky) = &route.sticky else { return };
        let spot = spot.key("sticky");
        if route.split.is_empty() && !at.dead {
            self.fail(&spot, "`sticky` goes with `split`, which is missing");
        }
        self.sticky(&spot, sticky);
    }

    fn sticky(&mut self, spot: &Spot<'t>, sticky: &Sticky) {
        let Sticky { header, cookie, source, baggage, set_cookie, name } = sticky;
        let given = [header.is_some(), cookie.is_some(), *source, baggage.is_some()];
        let dead = ["header", "cookie", "source", "baggage"].iter().any(|key| spot.key(key).dead);
        let expected = "expected one of `header`, `cookie`, `source: true` and `baggage`";
        match given.iter().filter(|given| **given).count() {
            1 => {}
            0 if dead => {}
            0 => self.fail(spot, expected),
            _ => self.fail(spot, format!("there are several; {expected}")),
        }
        if let Some(header) = header {
            self.header_name(&spot.key("header"), header);
        }
        if let Some(cookie) = cookie {
            self.word(&spot.key("cookie"), cookie, "a cookie's name");
        }
        if let Some(baggage) = baggage {
            self.word(&spot.key("baggage"), baggage, "a baggage member's name");
        }
        if name.as_deref() == Some("") {
            self.fail(&spot.key("name"), "found an empty text; expected a name");
        }
        let Some(SetCookie { max_age, path, domain, .. }) = set_cookie else { return };
        let at = spot.key("set_cookie");
        if cookie.is_none() && !spot.key("cookie").dead {
            self.fail(&at, "`set_cookie` goes with `cookie`, which is missing");
        }
        if let Some(max_age) = max_age {
            self.at_least(&at.key("max_age"), *max_age, std::time::Duration::from_secs(1));
        }
        // What stands in an attribute of a cookie (RFC 6265, section 4.1.1).
        for (key, text) in [("path", Some(path)), ("domain", domain.as_ref())] {
            let Some(text) = text else { continue };
            if text.is_empty() || text.bytes().any(|b| !(0x20..0x7f).contains(&b) || b == b';') {
                self.fail(&at.key(key), format!("found `{}`; expected ASCII text without `;`", shorten(text)));
            }
        }
    }

    fn redirect(&mut self, spot: &Spot<'t>, redirect: &Redirect, matches: &RouteMatch) {
        let Redirect { status, scheme, host, port, path, prefix } = redirect;
        if ![301, 302, 303, 307, 308].contains(status) {
            self.fail(&spot.key("status"), format!("found `{status}`; expected 301, 302, 303, 307 or 308"));
        }
        if let Some(scheme) = scheme.as_deref().filter(|scheme| !["http", "https"].contains(scheme)) {
            self.fail(&spot.key("scheme"), format!("found `{}`; expected `http` or `https`", shorten(scheme)));
        }
        if *port == Some(0) {
            self.fail(&spot.key("port"), "found `0`; expected a number from 1 to 65535");
        }
        self.place(spot, host.as_deref(), path.as_deref(), prefix.as_deref(), matches);
        let says_nothing = [scheme, host, path, prefix].iter().all(|part| part.is_none()) && port.is_none();
        if says_nothing && !["scheme", "host", "port", "path", "prefix"].iter().any(|key| spot.key(key).dead) {
            self.fail(spot, "it would lead back here; expected `scheme`, `host`, `port`, `path` or `prefix`");
        }
    }

    fn rewrite(&mut self, spot: &Spot<'t>, rewrite: &Rewrite, matches: &RouteMatch) {
        let Rewrite { path, prefix, host } = rewrite;
        self.place(spot, host.as_deref(), path.as_deref(), prefix.as_deref(), matches);
        let says_nothing = path.is_none() && prefix.is_none() && host.is_none();
        if says_nothing && !["path", "prefix", "host"].iter().any(|key| spot.key(key).dead) {
            self.fail(spot, "it says nothing; expected `path`, `prefix` or `host`");
        }
    }

    /// Where a request goes instead.
    fn place(
        &mut self,
        spot: &Spot<'t>,
        host: Option<&str>,
        path: Option<&str>,
        prefix: Option<&str>,
        matches: &RouteMatch,
    ) {
        if let Some(host) = host.filter(|host| host.parse::<http::uri::Authority>().is_err() || host.contains('@')) {
            self.fail(&spot.key("host"), format!("found `{}`; expected a host, like `api.example.com`", shorten(host)));
        }
        for (key, text) in [("path", path), ("prefix", prefix)] {
            text.into_iter().for_each(|text| self.a_path(&spot.key(key), text));
        }
        if path.is_some() && prefix.is_some() {
            self.fail(&spot.key("prefix"), "`path` is there already; expected only one of the two");
        }
        let has_prefix = matches.path.as_ref().is_some_and(|path| path.prefix.is_some());
        if prefix.is_some() && !has_prefix {
            self.fail(&spot.key("prefix"), "it goes with `match.path.prefix`, which is missing");
        }
    }

    /// One without a query.
    pub(super) fn a_path(&mut self, spot: &Spot<'t>, text: &str) {
        if !text.starts_with('/') || text.contains(['?', '#']) || PathAndQuery::try_from(text).is_err() {
            let text = shorten(text);
            self.fail(spot, format!("found `{text}`; expected a path that begins with `/`, without `?` and `#`"));
        }
    }

    fn edit(&mut self, spot: &Spot<'t>, edit: &HeaderEdit, is_request: bool) {
        let HeaderEdit { set, add, remove } = edit;
        for (key, fields) in [("set", set), ("add", add)] {
            for (name, value) in fields {
                let at = spot.key(key).key(name);
                self.edited(&at, name, is_request);
                self.header_value(&at, value);
            }
        }
        for (index, name) in remove.iter().enumerate() {
            self.edited(&spot.key("remove").live_item(index), name, is_request);
        }
    }

    fn edited(&mut self, spot: &Spot<'t>, name: &str, is_request: bool) {
        self.header_name(spot, name);
        let lower = name.to_ascii_lowercase();
        if FRAMING.contains(&lower.as_str()) {
            self.fail(spot, format!("`{lower}` is about one connection, and pillion writes it itself"));
        } else if is_request && lower == "host" {
            self.fail(spot, "expected `rewrite.host` for that");
        }
    }

    fn mirror(&mut self, spot: &Spot<'t>, mirror: &Mirror, whose: Whose<'_>) {
        let Mirror { to, percent, max_in_flight, max_body, .. } = mirror;
        let at = spot.key("to");
        if to.service.is_none() && to.subset.is_none() {
            self.fail(if at.node.is_some() { &at } else { spot }, "`to` is missing");
        } else {
            self.target(&at, to, whose);
        }
        self.percent(&spot.key("percent"), *percent);
        self.range(&spot.key("max_in_flight"), *max_in_flight, 1, 100_000);
        self.range(&spot.key("max_body"), *max_body, 0, MOST_MIRRORED);
    }

    /// What goes before the service's own settings.
    fn settings(&mut self, spot: &Spot<'t>, route: &Route, service: &Service) {
        let request = route.timeouts.as_ref().unwrap_or(&service.timeouts).request;
        if let Some(timeouts) = &route.timeouts {
            let at = spot.key("timeouts");
            self.timeouts(&at, timeouts);
            if timeouts.connect != service.timeouts.connect {
                self.fail(
                    &at.key("connect"),
                    "connections belong to all routes; expected it in the service's own `timeouts`",
                );
            }
        }
        if let Some(retry) = &route.retry {
            let at = spot.key("retry");
            self.retry(&at, retry);
            self.within_request(&at.key("per_try_timeout"), retry.per_try_timeout, request);
        }
        if let Some(hedge) = &route.hedge {
            let at = spot.key("hedge");
            self.hedge(&at, hedge);
            self.within_request(&at.key("after"), hedge.after, request);
        }
        if let Some(RouteLimits { requests, rate }) = &route.limits {
            let at = spot.key("limits");
            if let Some(requests) = requests {
                self.range(&at.key("requests"), *requests, 1, 10_000_000);
            }
            if let Some(rate) = rate {
                self.rate(&at.key("rate"), rate);
            }
            if requests.is_none() && rate.is_none() && !at.key("requests").dead && !at.key("rate").dead {
                self.fail(&at, "it says nothing; expected `requests`, `rate` or both");
            }
        }
        if let Some(fallback) = &route.fallback {
            self.fallback(&spot.key("fallback"), fallback);
        }
        if let Some(faults) = &route.faults {
            self.faults(&spot.key("faults"), faults);
        }
    }

    pub(super) fn word(&mut self, spot: &Spot<'t>, text: &str, what: &str) {
        if HeaderName::from_bytes(text.as_bytes()).is_err() {
            self.fail(spot, format!("found `{}`; expected {what}", shorten(text)));
        }
    }

    fn reachable(&mut self, spot: &Spot<'t>, routes: &[Route]) {
        // Without conditions a route takes all that is left, which needs no comparing of each with each.
        let all = routes.iter().position(|route| route.matches.is_default());
        let mut patterns = reach::Patterns::default();
        for (index, route) in routes.iter().enumerate() {
            let before = &routes[..index];
            let taker = match all.filter(|all| *all < index) {
                Some(all) => Some(all),
                None if index > MOST_COMPARED => None,
                None => before.iter().position(|before| reach::covers(&before.matches, &route.matches, &mut patterns)),
            };
            if let Some(taker) = taker {
                let name = match &routes[taker].name {
                    Some(name) => format!(" (`{}`)", shorten(name)),
                    None => String::new(),
                };
                let message = format!("no request gets here: route {taker}{name} takes all that would match");
                self.fail(&spot.live_item(index), message);
            }
        }
    }
}

/// Beyond so many routes they are not all compared with each other: that takes longer with their square.
const MOST_COMPARED: usize = 2000;

fn regexes(routes: &[Route]) -> usize {
    let is_regex = |value: &&ValueMatch| matches!(value, ValueMatch::Regex(_));
    let in_one = |RouteMatch { path, headers, query, .. }: &RouteMatch| {
        let in_path = path.as_ref().is_some_and(|path| path.regex.is_some());
        usize::from(in_path) + headers.values().chain(query.values()).filter(is_regex).count()
    };
    routes.iter().map(|route| in_one(&route.matches)).sum()
}
