//! Subsets and routes: how they are read, and what is said about mistakes.

use super::{REGISTRY, config_of, faults::table};
use crate::config::{HeaderEdit, Labels, PathMatch, Route, RouteMatch, Sticky, Target, ValueMatch, WhenEmpty, print};
use indexmap::indexmap;
use std::time::Duration;

fn labels(version: &str) -> Labels {
    indexmap! { "version".to_owned() => version.to_owned() }
}

fn target(text: &str) -> Target {
    text.parse().unwrap()
}

#[test]
fn short_and_long_forms_are_read_and_written_again() {
    let text = format!(
        "{REGISTRY}
services:
  users:
    timeouts: {{ request: 5s, idle: 20s }}
    retry: {{ attempts: 1 }}
    subsets: {{ stable: {{ version: v1 }}, canary: {{ version: 2 }} }}
    when_empty: {{ canary: stable, stable: fail }}
    routes:
      - name: testers
        match:
          host: [a.example, '*.b.example']
          path: {{ prefix: /api }}
          method: GET
          headers: {{ x-tester: yes, x-level: 07, x-any: {{ present: true }}, x-like: {{ regex: 'a|b' }} }}
          query: {{ debug: {{ prefix: o }} }}
          caller: web
        to: canary
        timeouts: {{ request: 1s }}
        retry: {{ per_try_timeout: 500ms }}
        headers: {{ request: {{ set: {{ x-a: 1 }}, remove: [x-b] }} }}
      - split: {{ stable: 90, canary: 10, other/: 0, other/v2: 0 }}
        sticky: {{ cookie: uid, set_cookie: {{ max_age: 1h }}, name: exp }}
  other: {{ subsets: {{ v2: {{ version: v2 }} }} }}
"
    );
    let config = config_of(&text);
    let users = &config.services["users"];
    assert_eq!(users.subsets, indexmap! { "stable".into() => labels("v1"), "canary".into() => labels("2") });
    assert_eq!(users.when_empty["canary"], WhenEmpty::Subset("stable".into()));
    assert_eq!(users.when_empty["stable"], WhenEmpty::Fail);
    let first = &users.routes[0];
    let present = |text: &str| ValueMatch::Exact(text.into());
    assert_eq!(
        first.matches,
        RouteMatch {
            host: vec!["a.example".into(), "*.b.example".into()],
            path: Some(PathMatch { prefix: Some("/api".into()), ..PathMatch::default() }),
            method: vec!["GET".into()],
            headers: indexmap! {
                "x-tester".into() => present("yes"),
                "x-level".into() => present("07"),
                "x-any".into() => ValueMatch::Present(true),
                "x-like".into() => ValueMatch::Regex("a|b".into()),
            },
            query: indexmap! { "debug".into() => ValueMatch::Prefix("o".into()) },
            caller: vec!["web".into()],
        }
    );
    assert_eq!(first.to, Some(target("canary")));
    let timeouts = first.timeouts.as_ref().unwrap();
    let seconds = Duration::from_secs;
    assert_eq!((timeouts.request, timeouts.idle), (seconds(1), seconds(20)), "over the service's");
    let retry = first.retry.as_ref().unwrap();
    assert_eq!((retry.attempts, retry.per_try_timeout), (1, Some(Duration::from_millis(500))));
    let edit = HeaderEdit {
        set: indexmap! { "x-a".into() => "1".into() },
        remove: vec!["x-b".into()],
        ..HeaderEdit::default()
    };
    assert_eq!(first.headers.request, edit);
    let Route { split, sticky, .. } = &users.routes[1];
    let expected = ["stable", "canary", "other/", "other/v2"].map(target);
    assert_eq!(split.keys().cloned().collect::<Vec<_>>(), expected);
    let Some(Sticky { cookie, set_cookie: Some(set_cookie), name, .. }) = sticky else { panic!("{sticky:?}") };
    assert_eq!(
        (cookie.as_deref(), name.as_deref(), set_cookie.max_age),
        (Some("uid"), Some("exp"), Some(seconds(3600)))
    );
    // What is printed can be read again.
    assert_eq!(config_of(&print(&config)), config);
}

#[test]
fn targets_name_a_subset_a_service_or_both() {
    for (text, service, subset) in
        [("canary", None, Some("canary")), ("users/", Some("users"), None), ("users/v2", Some("users"), Some("v2"))]
    {
        let expected = Target { service: service.map(Into::into), subset: subset.map(Into::into) };
        assert_eq!((target(text), target(text).to_string()), (expected, text.to_owned()));
    }
    for text in ["", "/", "/v2", "a/b/c"] {
        assert!(text.parse::<Target>().unwrap_err().contains("expected `SUBSET`, `SERVICE/` or `SERVICE/SUBSET`"));
    }
}

#[test]
fn mistakes_in_subsets() {
    table(&[
        (
            "services: { a: { subsets: { x/y: { v: 1 }, fail: { v: 1 }, none: {} } } }",
            &[
                "2:29: services.a.subsets.\"x/y\": `x/y` is no name for a subset; expected characters that a header can carry, without spaces and `/`",
                "2:44: services.a.subsets.fail: no subset can be called `fail`, which is a word of `when_empty`",
                "2:66: services.a.subsets.none: there are no labels; expected at least one, like `version: v2`",
            ],
        ),
        (
            "services: { a: { subsets: { x: { v: 1 }, y: { v: 2 } }, when_empty: { x: y, y: x } } }",
            &[
                "2:74: services.a.when_empty.x: a circle of subsets: `x` → `y` → `x`",
                "2:80: services.a.when_empty.y: a circle of subsets: `y` → `x` → `y`",
            ],
        ),
        (
            "services: { a: { subsets: { x: { v: 1 } }, when_empty: { x: z, w: fail } } }",
            &[
                "2:61: services.a.when_empty.x: found `z`; expected `x`, `fail` or `service`",
                "2:67: services.a.when_empty.w: `w` is no subset of the service; expected `x`",
            ],
        ),
        (
            "services: { a: { version_override: { header: 'x y', baggage: '' } } }",
            &[
                "2:46: services.a.version_override.header: found `x y`; expected a header's name",
                "2:62: services.a.version_override.baggage: found ``; expected a baggage member's name",
            ],
        ),
    ]);
}

#[test]
fn mistakes_in_what_becomes_of_requests() {
    table(&[
        (
            "services: { a: { subsets: { x: { v: 1 } }, routes: [{ to: y }] } }",
            &["2:59: services.a.routes[0].to: `y` is no subset of the service; expected `x`"],
        ),
        (
            "services: { a: { routes: [{ to: a/b/c }] } }",
            &["2:33: services.a.routes[0].to: found `a/b/c`; expected `SUBSET`, `SERVICE/` or `SERVICE/SUBSET`"],
        ),
        (
            "services: { a: { subsets: { x: { v: 1 } }, routes: [{ to: x, split: { x: 1 } }] } }",
            &[
                "2:62: services.a.routes[0].split: `to` is there already; expected only one of `to`, `split`, `redirect` or `respond`",
            ],
        ),
        (
            "services: { a: { subsets: { x: { v: 1 } }, routes: [{ to: b/, mark: true }] } }",
            &[
                "2:69: services.a.routes[0].mark: there is nothing to mark requests with; expected a subset in `to` or `split`",
            ],
        ),
        (
            "services: { a: { routes: [{ respond: { body: a }, mark: true }] } }",
            &["2:57: services.a.routes[0].mark: it has no effect beside `respond`, which answers the request itself"],
        ),
        (
            "services: { a: { subsets: { x: { v: 1 } }, routes: [{ split: { x: 0 } }] } }",
            &["2:55: services.a.routes[0].split: all weights are 0; expected at least one that is more"],
        ),
        (
            "services: { a: { routes: [{ split: {} }] } }",
            &[
                "2:36: services.a.routes[0].split: it divides requests among nobody; expected targets with their weights",
            ],
        ),
        (
            "services: { a: { routes: [{ sticky: { header: a, cookie: b, set_cookie: {} } }] } }",
            &[
                "2:29: services.a.routes[0].sticky: `sticky` goes with `split`, which is missing",
                "2:29: services.a.routes[0].sticky: there are several; expected one of `header`, `cookie`, `source: true` and `baggage`",
            ],
        ),
        (
            "services: { a: { routes: [{ redirect: {}, retry: {} }] } }",
            &[
                "2:39: services.a.routes[0].redirect: it would lead back here; expected `scheme`, `host`, `port`, `path` or `prefix`",
                "2:50: services.a.routes[0].retry: it has no effect beside `redirect`, which answers the request itself",
            ],
        ),
        (
            "services: { a: { routes: [{ redirect: { status: 305, scheme: ftp, prefix: b } }] } }",
            &[
                "2:49: services.a.routes[0].redirect.status: found `305`; expected 301, 302, 303, 307 or 308",
                "2:62: services.a.routes[0].redirect.scheme: found `ftp`; expected `http` or `https`",
                "2:75: services.a.routes[0].redirect.prefix: found `b`; expected a path that begins with `/`, without `?` and `#`",
                "2:75: services.a.routes[0].redirect.prefix: it goes with `match.path.prefix`, which is missing",
            ],
        ),
        (
            "services: { a: { routes: [{ headers: { request: { set: { Host: b, te: c }, remove: ['x y'] } } }] } }",
            &[
                "2:64: services.a.routes[0].headers.request.set.Host: expected `rewrite.host` for that",
                "2:71: services.a.routes[0].headers.request.set.te: `te` is about one connection, and pillion writes it itself",
                "2:85: services.a.routes[0].headers.request.remove[0]: found `x y`; expected a header's name",
            ],
        ),
        (
            "services: { a: { routes: [{ mirror: { percent: 200 } }] } }",
            &[
                "2:29: services.a.routes[0].mirror: `to` is missing",
                "2:48: services.a.routes[0].mirror.percent: found `200`; expected a number from 0 to 100",
            ],
        ),
        (
            "services: { a: { timeouts: { request: 2s }, routes: [{ retry: { per_try_timeout: 3s }, limits: {} }] } }",
            &[
                "2:82: services.a.routes[0].retry.per_try_timeout: found `3s`; expected at most `2s`, which is `timeouts.request`",
                "2:96: services.a.routes[0].limits: it says nothing; expected `requests`, `rate` or both",
            ],
        ),
    ]);
}

#[test]
fn mistakes_in_conditions() {
    table(&[
        (
            "services: { a: { routes: [{ match: { path: { exact: a, regex: 'a(' } } }] } }",
            &[
                "2:38: services.a.routes[0].match.path: there are several; expected only one of `exact`, `prefix` or `regex`",
                "2:53: services.a.routes[0].match.path.exact: found `a`; expected a path that begins with `/`, without `?` and `#`",
                "2:63: services.a.routes[0].match.path.regex: found `a(`, which is no regular expression here: unclosed group",
            ],
        ),
        (
            "services: { a: { routes: [{ match: { method: get, host: [a:80, 'b c'], headers: { x: { exact: a, prefix: b } } } }] } }",
            &[
                "2:46: services.a.routes[0].match.method: found `get`; expected a method, like `GET`",
                "2:58: services.a.routes[0].match.host[0]: found `a:80`; expected a host without its port",
                "2:64: services.a.routes[0].match.host[1]: found `b c`; expected a host, like `api.example.com` or `*.example.com`",
                "2:86: services.a.routes[0].match.headers.x: expected exactly one of `exact`, `prefix`, `regex` and `present`",
            ],
        ),
    ]);
}

#[test]
fn a_route_that_no_request_reaches_is_a_mistake() {
    table(&[
        (
            "services: { a: { subsets: { x: { v: 1 } }, routes: [{ match: { path: { prefix: /a } } }, { to: x }, { to: x }, { match: { method: GET } }] } }",
            &[
                "2:101: services.a.routes[2]: no request gets here: route 1 takes all that would match",
                "2:112: services.a.routes[3]: no request gets here: route 1 takes all that would match",
            ],
        ),
        (
            "services: { a: { routes: [{ name: api, match: { path: { prefix: /a } } }, { match: { path: { exact: /a/b }, method: GET } }] } }",
            &["2:75: services.a.routes[1]: no request gets here: route 0 (`api`) takes all that would match"],
        ),
    ]);
}
