//! `rollout`: what it needs around it, and what it refuses.

use super::{errors_of, load_text};
use crate::config::{Percent, RolloutEvidence, RolloutStart};
use std::time::Duration;

/// A config of line 1 with a service that has two subsets, a split between them, and this rollout.
fn service(rollout: &str) -> String {
    format!(
        "registries: {{ main: {{ kind: consul }} }}\nservices: {{ users: {{ subsets: {{ stable: {{ v: a }}, canary: {{ v: b }} }}, \
         routes: [{{ split: {{ stable: 100, canary: 0 }} }}],\n rollout: {rollout} }} }}\nrouting: {{ rollouts: {{ registry: main }} }}"
    )
}

#[track_caller]
fn table(cases: &[(&str, &[&str])]) {
    for (rollout, expected) in cases {
        let expected: Vec<_> = expected.iter().map(|line| line.replace('@', "services.users.rollout")).collect();
        assert_eq!(errors_of(&service(rollout)), expected, "{rollout}");
    }
}

#[test]
fn nothing_but_the_word_is_needed() {
    let loaded = load_text(&service("{}")).unwrap();
    let service = &loaded.config.services["users"];
    let rollout = service.rollout.as_ref().unwrap();
    assert_eq!(rollout.steps, [1.0, 5.0, 25.0, 50.0, 100.0].map(Percent));
    assert_eq!((rollout.hold, rollout.min_requests), (Duration::from_secs(300), 100));
    assert_eq!((rollout.start, rollout.evidence), (RolloutStart::Automatic, RolloutEvidence::Own));
    assert!(rollout.governs(&service.routes[0]));
}

#[test]
fn the_warm_up_fits_into_a_step() {
    for (written, warm_up) in [("{}", 30), ("{ hold: 20s }", 5), ("{ hold: 20s, p99: { warm_up: 19s } }", 19)] {
        let loaded = load_text(&service(written)).unwrap();
        let rollout = loaded.config.services["users"].rollout.as_ref().unwrap();
        assert_eq!(rollout.p99.warm_up, Some(Duration::from_secs(warm_up)), "{written}");
    }
}

#[test]
fn a_rollout_needs_two_subsets_and_a_split() {
    table(&[
        (
            "{ canary: canry }",
            &[
                "3:21: @.canary: `canry` is no subset of the service; expected `stable` or `canary`; did you mean `canary`?",
            ],
        ),
        ("{ canary: stable }", &["3:21: @.canary: `stable` is the baseline too; expected another subset"]),
    ]);
    let split = |split| {
        let text = service("{}").replace("{ stable: 100, canary: 0 }", split);
        errors_of(&text)
    };
    let expected = "3:11: services.users.rollout: no route splits between the two; expected one with `split: { stable: 100, canary: 0 }`";
    assert_eq!(split("{ stable: 100 }"), [expected]);
    assert_eq!(split("{ stable: 80, canary: 10, other/: 10 }"), [expected]);
    assert_eq!(
        errors_of("registries: { main: { kind: consul } }\ndefaults: { rollout: {} }"),
        ["2:22: defaults.rollout: a rollout belongs to one service; expected it in `services`"]
    );
}

#[test]
fn steps_go_up() {
    table(&[
        (
            "{ steps: [] }",
            &["3:20: @.steps: the list is empty; expected shares in percent, like `[1, 5, 25, 50, 100]`"],
        ),
        ("{ steps: [5, 5] }", &["3:24: @.steps[1]: found `5`; expected more than the step before, which is `5`"]),
        (
            "{ steps: [0, 101] }",
            &[
                "3:21: @.steps[0]: found `0`; expected a number from 0.001 to 100",
                "3:24: @.steps[1]: found `101`; expected a number from 0.001 to 100",
            ],
        ),
    ]);
}

#[test]
fn times_fit_into_each_other() {
    table(&[
        (
            "{ hold: 500ms, p99: { enabled: false }, interval: 100ms }",
            &["3:19: @.hold: found `500ms`; expected at least `1s`"],
        ),
        ("{ interval: 2m }", &["3:23: @.interval: found `2m`; expected at most `1m 40s`, a third of `hold`"]),
        ("{ hold: 1ms }", &["3:19: @.hold: found `1ms`; expected at least `1s`"]),
        ("{ hold: 10s }", &["3:2: @.interval: found `5s`; expected at most `3s 333ms`, a third of `hold`"]),
        ("{ interval: 1ms }", &["3:23: @.interval: found `1ms`; expected at least `100ms`"]),
        ("{ p99: { warm_up: 5m } }", &["3:29: @.p99.warm_up: found `5m`; expected less than `hold`, which is `5m`"]),
    ]);
}

#[test]
fn guards_have_sensible_bounds() {
    table(&[
        (
            "{ error_rate: { ratio: 0.9 } }",
            &["3:34: @.error_rate.ratio: found `0.9`; expected a number from 1.0 to 100.0"],
        ),
        ("{ error_rate: { max: 200 } }", &["3:32: @.error_rate.max: found `200`; expected a number from 0 to 100"]),
        (
            "{ p99: { max: 11s } }",
            &["3:25: @.p99.max: found `11s`; expected at most `10s`, where pillion's histograms end"],
        ),
        ("{ false_rollbacks: 50 }", &["3:30: @.false_rollbacks: found `50`; expected a number from 0.001 to 10"]),
        ("{ min_requests: 0 }", &["3:27: @.min_requests: found `0`; expected a number from 1 to 1000000000"]),
        ("{ attempts: 0 }", &["3:23: @.attempts: found `0`; expected a number from 1 to 100"]),
        (
            "{ error_rate: { enabled: false }, p99: { enabled: false } }",
            &["3:2: @: nothing would take a bad canary back; expected `error_rate`, `p99` or `queries`"],
        ),
        ("{ release: '' }", &["3:22: @.release: found ``; expected 1 to 253 bytes without control characters"]),
    ]);
}

#[test]
fn queries_need_a_bound_and_a_server() {
    let server = "prometheus: { address: http://127.0.0.1:9090/prom }";
    table(&[
        (
            &format!("{{ {server}, queries: [{{ query: up, above: 1 }}] }}").replace("above: 1", "x: 1"),
            &[
                "3:76: @.queries[0]: expected `above` or `below`",
                "3:89: @.queries[0].x: unknown key; known here: `query`, `name`, `above`, `below`, `for`",
            ],
        ),
        (&format!("{{ {server}, queries: [{{ query: up }}] }}"), &["3:76: @.queries[0]: expected `above` or `below`"]),
        (
            &format!("{{ {server}, queries: [{{ query: up, above: 2, below: 1 }}] }}"),
            &["3:106: @.queries[0].below: `above` is there already; expected only one of the two"],
        ),
        (
            &format!("{{ {server}, queries: [{{ query: '', above: 2 }}] }}"),
            &["3:85: @.queries[0].query: found an empty text; expected a query in PromQL"],
        ),
        (
            "{ queries: [{ query: up, above: 1 }] }",
            &["3:22: @.queries: `queries` goes with `prometheus`, which is missing"],
        ),
        (
            "{ evidence: prometheus }",
            &["3:23: @.evidence: `evidence: prometheus` goes with `prometheus`, which is missing"],
        ),
        (
            &format!("{{ {server} }}"),
            &["3:13: @.prometheus: nothing would be asked there; expected `queries`, or `evidence: prometheus`"],
        ),
        (
            "{ evidence: prometheus, prometheus: { address: 'ftp://a' } }",
            &[
                "3:58: @.prometheus.address: found `ftp://a`; expected `http://HOST:PORT` or `https://HOST:PORT`, with a path or without",
            ],
        ),
    ]);
}
