//! Each kind of error, word for word.

use super::{REGISTRY, errors_of};

/// Checks texts that start with a registry in line 1, so that their own lines count from 2.
#[track_caller]
pub(super) fn table(cases: &[(&str, &[&str])]) {
    let mut wrong = String::new();
    for (text, expected) in cases {
        let found = errors_of(&format!("{REGISTRY}{text}"));
        if found != *expected {
            wrong += &format!("\n--- {text}\n  found    {found:#?}\n  expected {expected:#?}");
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn values_of_the_wrong_type() {
    table(&[
        ("workers: 300", &["2:10: workers: found `300`; expected a number from 1 to 256 or `auto`"]),
        ("workers: many", &["2:10: workers: found `many`; expected a number from 1 to 256 or `auto`"]),
        ("workers: [1]", &["2:10: workers: found a list; expected a number from 1 to 256 or `auto`"]),
        ("workers:", &["2:1: workers: found nothing; expected a number from 1 to 256 or `auto`"]),
        ("node: web", &["2:7: node: found `web`; expected a map with keys like `service`, `env`, `zone`"]),
        ("node: [web]", &["2:7: node: found a list; expected a map with keys like `service`, `env`, `zone`"]),
        ("listeners: 4140", &["2:12: listeners: found `4140`; expected a list"]),
        (
            "admin: { listen: localhost:4191 }",
            &["2:18: admin.listen: found `localhost:4191`; expected `IP:PORT`, like `127.0.0.1:4140` or `[::1]:4140`"],
        ),
        (
            "admin: { listen: [] }",
            &["2:18: admin.listen: found a list; expected `IP:PORT`, like `127.0.0.1:4140` or `[::1]:4140`"],
        ),
        (
            "discovery: { max_services: \"7\" }",
            &[
                "2:28: discovery.max_services: found `\"7\"`, which the quotes make a text; expected a whole number, 0 or more",
            ],
        ),
        (
            "discovery: { max_services: -7 }",
            &["2:28: discovery.max_services: found `-7`; expected a whole number, 0 or more"],
        ),
        (
            "discovery: { idle: 5 }",
            &[
                "2:20: discovery.idle: `5` is not a duration; expected a number with a unit, like `250ms`, `15s` or `1h 30m`",
            ],
        ),
        ("discovery: { idle: { minutes: 5 } }", &["2:20: discovery.idle: found a map; expected text"]),
        (
            "listeners: [{ name: a, listen: 127.0.0.1:0, preserve_header_case: yes }]",
            &["2:67: listeners[0].preserve_header_case: found `yes`; expected `true` or `false`"],
        ),
        (
            "services: { web.example: { balance: { policy: peak_ewma } } }",
            &[
                "2:47: services.\"web.example\".balance.policy: found `peak_ewma`; expected `peak-ewma`, `least-request`, \
             `least-connections`, `round-robin`, `random`, `response-time`, `maglev` or `ring-hash`; did you mean `peak-ewma`?",
            ],
        ),
        ("services: { web: { hedge: {} } }", &["2:27: services.web.hedge: expected either `after` or `percentile`"]),
        (
            "services: { web: { protocol: { kind: http1 } } }",
            &["2:30: services.web.protocol: found a map; expected `http1` or `http2`"],
        ),
        ("access_log: { sample: all }", &["2:23: access_log.sample: found `all`; expected a number"]),
        ("log: { level:  }", &["2:8: log.level: found nothing; expected text"]),
    ]);
}

#[test]
fn keys_that_are_unknown_missing_or_doubled() {
    table(&[
        (
            "worker: 1",
            &[
                "2:1: worker: unknown key; did you mean `workers`? known here: `node`, `workers`, `admin`, `registries`, \
             `discovery`, `register`, `listeners`, `dns`, `defaults`, `services`, `routing`, `drain`, `access_log`, `log`, `upgrade`",
            ],
        ),
        (
            "services:\n  user-service:\n    timeouts:\n      conect: 1s\n",
            &["5:7: services.user-service.timeouts.conect: unknown key; did you mean `connect`? \
             known here: `connect`, `request`, `idle`, `stream`"],
        ),
        ("log: { zebra: 1 }", &["2:8: log.zebra: unknown key; known here: `level`, `format`"]),
        ("workers: 1\nworkers: 2", &["3:1: workers: the key is there twice; the first is in line 2"]),
        (
            "listeners:\n  - listen: 127.0.0.1:1\n    name: a\n    listen: 127.0.0.1:2",
            &["5:5: listeners[0].listen: the key is there twice; the first is in line 3"],
        ),
        (
            "listeners:\n  - protocol: http\n",
            &["3:5: listeners[0]: `name` is missing", "3:5: listeners[0]: `listen` is missing"],
        ),
        (
            "services: { a: { limits: { rate: { per_caller: {} } } } }",
            &[
                "2:48: services.a.limits.rate.per_caller: `header` is missing",
                "2:48: services.a.limits.rate.per_caller: `per_second` is missing",
            ],
        ),
        (
            "defaults: { limits: { rate: { burst: 5 } } }\nservices: { a: { limits: { rate: { burst: null } } } }",
            &[
                "2:38: defaults.limits.rate.burst: `burst` goes with `per_second`, which is missing",
                "3:28: services.a.limits.rate: expected `per_second`, `per_caller` or both",
            ],
        ),
        ("listeners:\n  -\n", &["3:4: listeners[0]: `name` is missing", "3:4: listeners[0]: `listen` is missing"]),
        // A bad value does not count as missing too.
        (
            "listeners:\n  - { name: [], listen: x }\n",
            &[
                "3:13: listeners[0].name: found a list; expected text",
                "3:25: listeners[0].listen: found `x`; expected `IP:PORT`, like `127.0.0.1:4140` or `[::1]:4140`",
            ],
        ),
    ]);
}

#[test]
fn three_mistakes_make_three_errors_sorted_by_position() {
    let text = "\
listeners:
  - { name: egress, listen: 127.0.0.1 }
services:
  user-service:
    timeouts: { connect: soon }
discovery: { sources: [mian] }
registries: { main: { kind: consul } }
";
    assert_eq!(
        errors_of(text),
        [
            "2:29: listeners[0].listen: found `127.0.0.1`; expected `IP:PORT`, like `127.0.0.1:4140` or `[::1]:4140`",
            "5:26: services.user-service.timeouts.connect: `soon` is not a duration; expected a number with a unit, \
         like `250ms`, `15s` or `1h 30m`",
            "6:24: discovery.sources[0]: no registry is named `mian`; expected `main`; did you mean `main`?",
        ]
    );
}

#[test]
fn what_is_not_yaml_or_not_one_document() {
    for (text, expected) in [
        ("a: [1", "not valid YAML: "),
        ("a: 1\n---\nb: 2", "2:1: a second document; expected one per file"),
        ("workers: !x 1", "1:10: the tag `!x` has no meaning here"),
        ("? [a]\n: b", "1:3: a map or list as a key; expected a word"),
        ("workers: &a [*a]", "1:14: an alias inside of what it stands for"),
        ("- 1", "1:1: found a list; expected a map with keys like `node`, `workers`, `admin`"),
        ("node: { env: ${ENV} }", "inside `{ }` and `[ ]` a value with `${…}` needs quotes"),
    ] {
        let found = errors_of(text);
        assert!(found.len() == 1 && found[0].contains(expected), "{text}: {found:?}");
    }
    let binary = super::load(super::Origin::text("f", b"node:\n  env: \xff".to_vec()), &|_| None);
    assert_eq!(binary.unwrap_err().to_string(), "f:2:8: not a text in UTF-8\n1 error in f");
    let bomb = "a: &a [x,x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b,*b]\n\
                d: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d,*d]\n";
    assert_eq!(errors_of(bomb), ["5:29: the aliases make the document too large"]);
    let deep = "[".repeat(100);
    assert_eq!(errors_of(&deep), ["1:65: more than 64 maps and lists in one another"]);
    let missing = super::load(super::Origin::file("/nonexistent/pillion.yaml"), &|_| None).unwrap_err().to_string();
    assert!(missing.starts_with("/nonexistent/pillion.yaml: cannot be read: "), "{missing}");
}

#[test]
fn ranges() {
    table(&[
        (
            "services: { a: { timeouts: { connect: 0s } } }",
            &["2:39: services.a.timeouts.connect: found `0s`; expected at least `1ms`"],
        ),
        (
            "services: { a: { limits: { requests: 0, queue_timeout: 16s, adaptive: { min: 5, max: 4, tolerance: .nan, window: 1h } } } }",
            &[
                "2:38: services.a.limits.requests: found `0`; expected a number from 1 to 10000000",
                "2:56: services.a.limits.queue_timeout: found `16s`; expected at most `15s`, which is `timeouts.request`",
                "2:86: services.a.limits.adaptive.max: found `4`; expected a number from 5 to 10000000",
                "2:100: services.a.limits.adaptive.tolerance: found `NaN`; expected a number from 1.0 to 10.0",
                "2:114: services.a.limits.adaptive.window: found `1h`; expected at most `1m`",
            ],
        ),
        (
            "services: { a: { limits: { rate: { per_caller: { header: x y, per_second: 0, max_callers: 0 } } } } }",
            &[
                "2:58: services.a.limits.rate.per_caller.header: found `x y`; expected a header's name",
                "2:75: services.a.limits.rate.per_caller.per_second: found `0`; expected a number from 1 to 1000000",
                "2:91: services.a.limits.rate.per_caller.max_callers: found `0`; expected a number from 1 to 1000000",
            ],
        ),
        (
            "services: { a: { pool: { max_idle: 99999999 } } }",
            &["2:36: services.a.pool.max_idle: found `99999999`; expected a number from 0 to 65536"],
        ),
        (
            "services: { a: { breaker: { failure_percent: 0, open: { base: 2m } }, panic_threshold: 101 } }",
            &[
                "2:46: services.a.breaker.failure_percent: found `0`; expected a number from 1 to 100",
                "2:49: services.a.breaker.open.max: found `1m`; expected at least `2m`",
                "2:88: services.a.panic_threshold: found `101`; expected a number from 0 to 100",
            ],
        ),
        (
            "services: { a: { outlier: { deviations: 0, min_endpoints: 2 }, hedge: { percentile: 100 } } }",
            &[
                "2:41: services.a.outlier.deviations: found `0`; expected a number from 0.1 to 10",
                "2:59: services.a.outlier.min_endpoints: found `2`; expected a number from 3 to 1000",
                "2:85: services.a.hedge.percentile: found `100`; expected a number from 50 to 99",
            ],
        ),
        (
            "services: { a: { timeouts: { request: 1s }, retry: { per_try_timeout: 2s }, hedge: { after: 3s } } }",
            &[
                "2:71: services.a.retry.per_try_timeout: found `2s`; expected at most `1s`, which is `timeouts.request`",
                "2:93: services.a.hedge.after: found `3s`; expected at most `1s`, which is `timeouts.request`",
            ],
        ),
        (
            "services: { a: { outlier: { deviations: .nan }, balance: { zone: { aware: true }, slow_start: { aggression: 2 } } } }",
            &[
                "2:41: services.a.outlier.deviations: found `NaN`; expected a number from 0.1 to 10",
                "2:75: services.a.balance.zone.aware: it goes with `node.zone`, which is missing",
                "2:83: services.a.balance.slow_start: `window` is missing, without which there is no slow start",
            ],
        ),
        (
            "discovery: { snapshot: { dir: '', max_age: 59s, max_services: 0 } }",
            &[
                "2:31: discovery.snapshot.dir: found an empty text; expected a path",
                "2:44: discovery.snapshot.max_age: found `59s`; expected at least `1m`",
                "2:63: discovery.snapshot.max_services: found `0`; expected a number from 1 to 100000",
            ],
        ),
        ("discovery: { snapshot: { max_age: 1h } }", &["2:24: discovery.snapshot: `dir` is missing"]),
        ("discovery: { idle: 1000000d }", &["2:20: discovery.idle: found `1000000d`; expected at most a year"]),
        (
            "listeners: [{ name: a, listen: 127.0.0.1:1, limits: { head_bytes: 100, h2_streams: 0 } }]",
            &[
                "2:67: listeners[0].limits.head_bytes: found `100`; expected a number from 1024 to 1048576",
                "2:84: listeners[0].limits.h2_streams: found `0`; expected a number from 1 to 2147483647",
            ],
        ),
        ("upgrade: { socket: '' }", &["2:20: upgrade.socket: found an empty text; expected a path"]),
        ("upgrade: { socket: a, timeout: 0s }", &["2:32: upgrade.timeout: found `0s`; expected at least `1ms`"]),
        (
            "upgrade: { socket: /run/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa }",
            &["2:20: upgrade.socket: the path has 108 bytes; expected at most 107, the most for a unix socket"],
        ),
        ("access_log: { sample: 1.5 }", &["2:23: access_log.sample: found `1.5`; expected a number from 0.0 to 1.0"]),
        ("access_log: { sample: .nan }", &["2:23: access_log.sample: found `NaN`; expected a number from 0.0 to 1.0"]),
        (
            "log: { level: inof }",
            &["2:15: log.level: found `inof`; expected `off`, `error`, `warn`, `info`, `debug` or `trace`, \
             or per module like `info,pillion::registry=debug`; did you mean `info`?"],
        ),
        (
            "log: { level: \"info,pillion=loud\" }",
            &["2:15: log.level: found `loud`; expected `off`, `error`, `warn`, `info`, `debug` or `trace`, \
             or per module like `info,pillion::registry=debug`"],
        ),
    ]);
}

#[test]
fn balancing() {
    let one_of = "expected one of `header`, `cookie`, `source: true` and `path: true`";
    let needs = format!("2:37: services.a.balance.policy: `maglev` goes with `hash`, which says nothing; {one_of}");
    let several = format!("2:29: services.a.balance.hash: there are several; {one_of}");
    table(&[
        ("services: { a: { balance: { policy: maglev } } }", &[&needs]),
        ("services: { a: { balance: { hash: { header: x, path: true } } } }", &[&several]),
        (
            "services: { a: { balance: { hash: { header: 'x y', balance_factor: 90 } } } }",
            &[
                "2:45: services.a.balance.hash.header: found `x y`; expected a header's name",
                "2:68: services.a.balance.hash.balance_factor: found `90`; expected 0 for none, or more than 100",
            ],
        ),
        (
            "services: { a: { balance: { hash: { cookie: 'a;b' } } } }",
            &["2:45: services.a.balance.hash.cookie: found `a;b`; expected a cookie's name"],
        ),
        (
            "services: { a: { balance: { slow_start: { window: 0s, aggression: 0, min_weight_percent: 0 } } } }",
            &[
                "2:51: services.a.balance.slow_start.window: found `0s`; expected at least `1ms`",
                "2:67: services.a.balance.slow_start.aggression: found `0`; expected a number from 0.1 to 10",
                "2:90: services.a.balance.slow_start.min_weight_percent: found `0`; expected a number from 1 to 100",
            ],
        ),
        (
            "services: { a: { balance: { penalty: { max: 1000d } } } }",
            &["2:45: services.a.balance.penalty.max: found `1000d`; expected at most a year"],
        ),
        (
            "services: { a: { balance: { zone: { min_endpoints: 1 } } } }",
            &["2:52: services.a.balance.zone.min_endpoints: found `1`; expected a number from 2 to 10000"],
        ),
        (
            "services: { a: { balance: { priority: { label: tier } } } }",
            &["2:48: services.a.balance.priority.label: `label` goes with `order`, which is missing"],
        ),
        (
            "services: { a: { balance: { priority: { order: [x, '', x] } } } }",
            &[
                "2:52: services.a.balance.priority.order[1]: found an empty text; expected some text",
                "2:56: services.a.balance.priority.order[2]: `x` is there twice",
            ],
        ),
    ]);
}

#[test]
fn names_and_addresses() {
    table(&[
        (
            "listeners:\n  - { name: a, listen: 127.0.0.1:1 }\n  - { name: a, listen: 0.0.0.0:1 }",
            &[
                "4:13: listeners[1].name: another listener is named `a` too",
                "4:24: listeners[1].listen: the listener `a` listens on `127.0.0.1:1` already",
            ],
        ),
        // The admin's address is a default here, so the listener's is the one to change.
        (
            "listeners: [{ name: a, listen: 127.0.0.1:4191 }]",
            &["2:32: listeners[0].listen: `admin` listens on `127.0.0.1:4191` already"],
        ),
        (
            "admin: { listen: 127.0.0.1:4140 }",
            &["2:18: admin.listen: the listener `egress` listens on `127.0.0.1:4140` already"],
        ),
        (
            "listeners: [{ name: a, listen: 127.0.0.1:1, service: 'a b', service_header: 'x y' }, { name: b, listen: 127.0.0.1:2, host_suffixes: ['', svc] }]",
            &[
                "2:54: listeners[0].service: `a b` is no name for a service; expected 1 to 253 bytes without spaces",
                "2:77: listeners[0].service_header: found `x y`; expected a header's name",
                "2:134: listeners[1].host_suffixes[0]: found an empty text; expected some text",
                "2:138: listeners[1].host_suffixes[1]: found `svc`; expected it to begin with a dot: `.svc`",
            ],
        ),
        (
            "listeners: [{ name: a, listen: 127.0.0.1:1, service: a, service_header: x-to }]",
            &["2:73: listeners[0].service_header: `service` decides already; expected only one of the two"],
        ),
        (
            "services: { a: { sources: [main, other, main] } }",
            &[
                "2:34: services.a.sources[1]: no registry is named `other`; expected `main`",
                "2:41: services.a.sources[2]: `main` is there twice",
            ],
        ),
        (
            "services: { 'a b': {} }",
            &["2:20: services.\"a b\": `a b` is no name for a service; expected 1 to 253 bytes without spaces"],
        ),
    ]);
    // Port 0 takes a free one each time.
    let two = format!("{REGISTRY}listeners: [{{ name: a, listen: 127.0.0.1:0 }}, {{ name: b, listen: 127.0.0.1:0 }}]");
    super::load_text(&two).unwrap();
    assert_eq!(errors_of(""), ["1:1: registries: there is none; expected at least one registry, or `--registry`"]);
}

#[test]
fn health_checks() {
    let checked = |check: &str| format!("services: {{ a: {{ health_check: {check} }} }}");
    let place = "services.a.health_check";
    for (check, expected) in [
        (
            "/health",
            vec![format!("2:32: {place}: found `/health`; expected a map with keys like `http`, `grpc`, `port`")],
        ),
        ("{ http: health }", vec![format!("2:40: {place}.http: found `health`; expected a path, like `/health`")]),
        ("{ http: [] }", vec![format!("2:40: {place}.http: found a list; expected a path, like `/health`, or a map")]),
        (
            "{ http: { path: x, status: 200 } }",
            vec![
                format!("2:48: {place}.http.path: found `x`; expected a path, like `/health`"),
                format!(
                    "2:51: {place}.http.status: unknown key; did you mean `statuses`? \
                     known here: `path`, `host`, `method`, `statuses`, `body`"
                ),
            ],
        ),
        (
            "{ http: { statuses: [200, 99, 300-200, 2xx] } }",
            ["2:58: S[1]: found `99`", "2:62: S[2]: found `300-200`", "2:71: S[3]: found `2xx`"]
                .map(|found| {
                    let found = found.replace('S', &format!("{place}.http.statuses"));
                    format!("{found}; expected a status or a range of them, like `204` or `200-399`")
                })
                .to_vec(),
        ),
        (
            "{ http: { statuses: [] } }",
            vec![format!(
                "2:52: {place}.http.statuses: the list is empty; expected at least one status or range, like `200-399`"
            )],
        ),
        (
            "{ http: { method: HEAD, body: ok, host: a b } }",
            vec![
                format!("2:62: {place}.http.body: a response to `HEAD` has no body that could contain it"),
                format!("2:72: {place}.http.host: found `a b`; expected a host, like `users.example`"),
            ],
        ),
        (
            "{ http: { method: CONNECT } }",
            vec![format!("2:50: {place}.http.method: found `CONNECT`; expected a method, like `GET`")],
        ),
        ("{ grpc: x }", vec![format!("2:40: {place}.grpc: found `x`; expected a map with the key `service`")]),
        (
            "{ rise: 0, interval: 1ms, port: 0 }",
            vec![
                format!("2:40: {place}.rise: found `0`; expected a number from 1 to 100"),
                format!("2:53: {place}.interval: found `1ms`; expected at least `10ms`"),
                format!("2:64: {place}.port: found `0`; expected a whole number from 1 to 65535"),
            ],
        ),
    ] {
        let mut found = errors_of(&format!("{REGISTRY}{}", checked(check)));
        let mut expected = expected;
        found.sort();
        expected.sort();
        assert_eq!(found, expected, "{check}");
    }
}

#[test]
fn a_file_that_is_wholly_wrong_is_given_up_after_a_hundred() {
    let text: String = (0..1000).map(|n| format!("key{n}: 1\n")).collect();
    let shown = super::load_text(&text).unwrap_err();
    assert!(shown.ends_with("\n100 or more errors in f"), "{shown}");
}

#[test]
fn what_was_found_cannot_forge_a_line() {
    let found = errors_of(&format!("{REGISTRY}workers: \"1\\n9:9: x\\e[2J\""));
    assert_eq!(found, ["2:10: workers: found `1\\n9:9: x\\u{1b}[2J`; expected a number from 1 to 256 or `auto`"]);
}
