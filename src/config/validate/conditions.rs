//! Checks of a route's `match`.

use super::{Check, Spot};
use crate::{
    config::{
        PathMatch, RouteMatch, ValueMatch,
        error::{one_of, shorten},
    },
    pattern::Pattern,
};
use http::Method;

impl<'t> Check<'_, 't> {
    pub(super) fn conditions(&mut self, spot: &Spot<'t>, matches: &RouteMatch) {
        let RouteMatch { host, path, method, headers, query, caller } = matches;
        for (index, host) in host.iter().enumerate() {
            self.host(&one_or_item(&spot.key("host"), index), host);
        }
        if let Some(path) = path {
            self.path_match(&spot.key("path"), path);
        }
        for (index, method) in method.iter().enumerate() {
            let is_method = Method::from_bytes(method.as_bytes()).is_ok();
            if !is_method || method.bytes().any(|b| b.is_ascii_lowercase()) {
                let at = one_or_item(&spot.key("method"), index);
                self.fail(&at, format!("found `{}`; expected a method, like `GET`", shorten(method)));
            }
        }
        for (name, value) in headers {
            let at = spot.key("headers").key(name);
            self.header_name(&at, name);
            self.value_match(&at, value);
        }
        for (name, value) in query {
            let at = spot.key("query").key(name);
            if name.is_empty() || name.contains(['&', '=', '#']) {
                self.fail(&at, format!("found `{}`; expected a parameter's name", shorten(name)));
            }
            self.value_match(&at, value);
        }
        for (index, caller) in caller.iter().enumerate() {
            self.service_name(&one_or_item(&spot.key("caller"), index), caller);
        }
    }

    fn host(&mut self, spot: &Spot<'t>, host: &str) {
        let name = host.strip_prefix("*.").unwrap_or(host);
        let fits = |b: u8| b.is_ascii_alphanumeric() || b"-_.:[]".contains(&b);
        if name.is_empty() || !name.bytes().all(fits) {
            let host = shorten(host);
            self.fail(spot, format!("found `{host}`; expected a host, like `api.example.com` or `*.example.com`"));
        } else if name.rsplit_once(':').is_some_and(|(name, port)| !name.contains(':') && port.parse::<u16>().is_ok()) {
            self.fail(spot, format!("found `{}`; expected a host without its port", shorten(host)));
        }
    }

    fn path_match(&mut self, spot: &Spot<'t>, path: &PathMatch) {
        let PathMatch { exact, prefix, regex } = path;
        let given = [("exact", exact), ("prefix", prefix), ("regex", regex)];
        let expected = one_of(given.iter().map(|(key, _)| *key));
        match given.iter().filter(|(_, text)| text.is_some()).count() {
            1 => {}
            0 if given.iter().any(|(key, _)| spot.key(key).dead) => {}
            0 => self.fail(spot, format!("expected {expected}")),
            _ => self.fail(spot, format!("there are several; expected only one of {expected}")),
        }
        for (key, text) in [("exact", exact), ("prefix", prefix)] {
            text.iter().for_each(|text| self.a_path(&spot.key(key), text));
        }
        if let Some(regex) = regex {
            self.regex(&spot.key("regex"), regex);
        }
    }

    fn value_match(&mut self, spot: &Spot<'t>, value: &ValueMatch) {
        match value {
            ValueMatch::Exact(_) | ValueMatch::Present(_) => {}
            ValueMatch::Prefix(prefix) if prefix.is_empty() => {
                self.fail(&spot.key("prefix"), "found an empty text; expected `present: true` for any value");
            }
            ValueMatch::Prefix(_) => {}
            ValueMatch::Regex(regex) => self.regex(&spot.key("regex"), regex),
        }
    }

    fn regex(&mut self, spot: &Spot<'t>, text: &str) {
        if let Err(error) = Pattern::new(text) {
            self.fail(spot, format!("found `{}`, which is no regular expression here: {error}", shorten(text)));
        }
    }
}

/// The place of the `index`-th value of what may be one value or a list.
fn one_or_item<'t>(spot: &Spot<'t>, index: usize) -> Spot<'t> {
    if spot.elements().is_empty() { spot.clone() } else { spot.live_item(index) }
}
