//! Whether a route can be reached: whether there are requests that match it and no route before it.

use crate::{
    config::{PathMatch, RouteMatch, ValueMatch},
    pattern::Pattern,
};
use indexmap::IndexMap;
use std::collections::HashMap;

/// Regular expressions that were compiled once, for all the texts that they are held against.
#[derive(Default)]
pub struct Patterns {
    known: HashMap<String, Option<Pattern>>,
}

impl Patterns {
    fn fits(&mut self, regex: &str, text: &str) -> bool {
        if !self.known.contains_key(regex) {
            self.known.insert(regex.into(), Pattern::new(regex).ok());
        }
        self.known.get(regex).and_then(Option::as_ref).is_some_and(|regex| regex.fits(text.as_bytes()))
    }
}

/// Whether every request that `later` matches is matched by `earlier` as well. Where that cannot be told (of two regular
/// expressions that are not the same text), it is taken to be not so.
pub fn covers(earlier: &RouteMatch, later: &RouteMatch, patterns: &mut Patterns) -> bool {
    let RouteMatch { host, path, method, headers, query, caller } = earlier;
    let among = |all: &[String], some: &[String], covers: fn(&str, &str) -> bool| {
        let is_covered = |one: &String| all.iter().any(|of| covers(of, one));
        all.is_empty() || (!some.is_empty() && some.iter().all(is_covered))
    };
    among(host, &later.host, host_covers)
        && among(method, &later.method, |one, other| one == other)
        && among(caller, &later.caller, |one, other| one == other)
        && values_cover(headers, &later.headers, |one, other| one.eq_ignore_ascii_case(other), patterns)
        && values_cover(query, &later.query, |one, other| one == other, patterns)
        && path.as_ref().is_none_or(|path| later.path.as_ref().is_some_and(|later| path_covers(path, later, patterns)))
}

fn host_covers(host: &str, other: &str) -> bool {
    if host.eq_ignore_ascii_case(other) {
        return true;
    }
    // `*.b.c` has `a.b.c` and `*.a.b.c` in it.
    let Some(end) = host.strip_prefix('*') else { return false };
    let other = other.strip_prefix('*').unwrap_or(other);
    other.len() > end.len()
        && other.is_char_boundary(other.len() - end.len())
        && other[other.len() - end.len()..].eq_ignore_ascii_case(end)
}

fn path_covers(path: &PathMatch, other: &PathMatch, patterns: &mut Patterns) -> bool {
    let starts = |whole: &str, prefix: &str| {
        let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
        whole.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    match (path, other) {
        (PathMatch { exact: Some(exact), .. }, PathMatch { exact: Some(other), .. }) => exact == other,
        (PathMatch { prefix: Some(prefix), .. }, PathMatch { exact: Some(other), .. }) => starts(other, prefix),
        (PathMatch { prefix: Some(prefix), .. }, PathMatch { prefix: Some(other), .. }) => {
            starts(other.strip_suffix('/').unwrap_or(other), prefix)
        }
        // Every path has it.
        (PathMatch { prefix: Some(prefix), .. }, _) => prefix == "/",
        (PathMatch { regex: Some(regex), .. }, PathMatch { exact: Some(other), .. }) => patterns.fits(regex, other),
        (PathMatch { regex: Some(regex), .. }, PathMatch { regex: Some(other), .. }) => regex == other,
        _ => false,
    }
}

/// Whether each of `values` is asked for by one of `others`.
fn values_cover(
    values: &IndexMap<String, ValueMatch>,
    others: &IndexMap<String, ValueMatch>,
    same_name: fn(&str, &str) -> bool,
    patterns: &mut Patterns,
) -> bool {
    values.iter().all(|(name, value)| {
        others.iter().any(|(other_name, other)| same_name(name, other_name) && value_covers(value, other, patterns))
    })
}

fn value_covers(value: &ValueMatch, other: &ValueMatch, patterns: &mut Patterns) -> bool {
    use ValueMatch::{Exact, Prefix, Present, Regex};
    match (value, other) {
        (Present(false), Present(false)) => true,
        (Present(false), _) | (_, Present(false)) => false,
        (Present(true), _) => true,
        (Exact(one), Exact(other)) | (Regex(one), Regex(other)) => one == other,
        (Prefix(one), Exact(other) | Prefix(other)) => other.starts_with(one.as_str()),
        (Regex(one), Exact(other)) => patterns.fits(one, other),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::read;

    #[test]
    fn what_an_earlier_route_takes_is_not_there_for_a_later_one() {
        let read = |text: &str| read::<RouteMatch>("match", text.as_bytes()).unwrap();
        for (earlier, later, expected) in [
            ("{}", "{ path: { exact: /a } }", true),
            ("{ path: { exact: /a } }", "{}", false),
            ("{ path: { prefix: / } }", "{ path: { regex: '/[a-z]+' } }", true),
            ("{ path: { prefix: /a } }", "{ path: { prefix: /a/b } }", true),
            ("{ path: { prefix: /a/ } }", "{ path: { exact: /a } }", true),
            ("{ path: { prefix: /a } }", "{ path: { exact: /ab } }", false),
            ("{ path: { prefix: /a/b } }", "{ path: { prefix: /a } }", false),
            ("{ path: { regex: '/[a-z]+' } }", "{ path: { exact: /abc } }", true),
            ("{ path: { regex: '/[a-z]+' } }", "{ path: { exact: /1 } }", false),
            ("{ host: '*.b.c' }", "{ host: A.b.C }", true),
            ("{ host: '*.b.c' }", "{ host: '*.a.b.c' }", true),
            ("{ host: '*.b.c' }", "{ host: b.c }", false),
            ("{ host: '*.b.c' }", "{ host: [a.b.c, other] }", false),
            ("{ host: a }", "{}", false),
            ("{ method: [GET, POST] }", "{ method: GET }", true),
            ("{ method: GET }", "{ method: [GET, POST] }", false),
            ("{ headers: { X-A: { present: true } } }", "{ headers: { x-a: '1', x-b: '2' } }", true),
            ("{ headers: { x-a: { prefix: v1 } } }", "{ headers: { x-a: v1.2 } }", true),
            ("{ headers: { x-a: { regex: 'v[0-9]' } } }", "{ headers: { x-a: v1 } }", true),
            ("{ headers: { x-a: '1', x-b: '2' } }", "{ headers: { x-a: '1' } }", false),
            ("{ headers: { x-a: { present: false } } }", "{ headers: { x-a: '1' } }", false),
            ("{ query: { a: '1' } }", "{ query: { A: '1' } }", false),
            ("{ caller: [web, api] }", "{ caller: web }", true),
            ("{ caller: web }", "{}", false),
        ] {
            let found = covers(&read(earlier), &read(later), &mut Patterns::default());
            assert_eq!(found, expected, "{earlier} before {later}");
        }
    }
}
