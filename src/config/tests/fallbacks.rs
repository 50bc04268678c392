//! `fallback` and `faults`: what is refused, and what a service takes from `defaults`.

use super::{REGISTRY, errors_of, faults::table, load_text};
use crate::config::{Config, Fallback, FallbackOn, LastGood, Origin, load, print};
use std::time::Duration;

#[track_caller]
fn config(text: &str) -> Config {
    load_text(&format!("{REGISTRY}{text}")).unwrap_or_else(|errors| panic!("{errors}")).config
}

#[test]
fn a_fallback_is_exactly_one_thing() {
    let one = "expected `response`, `service` or `last_good`";
    table(&[
        ("services: { a: { fallback: {} } }", &[&format!("2:28: services.a.fallback: {one}")]),
        ("services: { a: { fallback: { last_good: } } }", &[&format!("2:18: services.a.fallback: {one}")]),
        (
            "services: { a: { fallback: { service: b, last_good: { max_age: 1m } } } }",
            &["2:42: services.a.fallback.last_good: `service` is there already; expected only one of `response`, \
             `service` or `last_good`"],
        ),
        (
            "services: { a: { fallback: { service: [], on: [] } } }",
            &[
                "2:39: services.a.fallback.service: found a list; expected text",
                "2:47: services.a.fallback.on: the list is empty; expected `error` or `gateway-error`",
            ],
        ),
        (
            "services: { a: { fallback: { service: 'b c', on: [503] } } }",
            &[
                "2:39: services.a.fallback.service: `b c` is no name for a service; expected 1 to 253 bytes without spaces",
                "2:51: services.a.fallback.on[0]: found `503`; expected `error` or `gateway-error`",
            ],
        ),
    ]);
}

#[test]
fn a_fixed_response_is_one_that_can_be_sent() {
    table(&[
        (
            "services: { a: { fallback: { response: { status: 100, content_type: \"a\\nb\", \
             headers: { x y: z, Content-Length: 3, content-type: a } } } } }",
            &[
                "2:50: services.a.fallback.response.status: found `100`; expected a number from 200 to 599",
                "2:69: services.a.fallback.response.content_type: found `a\\nb`; expected characters that a header can carry",
                "2:93: services.a.fallback.response.headers.\"x y\": found `x y`; expected a header's name",
                "2:112: services.a.fallback.response.headers.Content-Length: `Content-Length` is pillion's to write; \
                 expected none",
                "2:129: services.a.fallback.response.headers.content-type: `content-type` is pillion's to write; \
                 expected `content_type`",
            ],
        ),
        (
            "services: { a: { fallback: { response: { status: 204, body: x } } } }",
            &["2:61: services.a.fallback.response.body: a response with status 204 has no body"],
        ),
        (
            "defaults: { fallback: { response: { body: x, file: /nonexistent/x } } }\nservices: { a: }",
            &[
                "2:52: defaults.fallback.response.file: `/nonexistent/x` cannot be read: No such file or directory (os error 2)",
                "2:52: defaults.fallback.response.file: `body` is there already; expected only one of the two",
            ],
        ),
    ]);
}

#[test]
fn a_response_s_file_is_found_beside_the_config_and_read_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pillion.yaml");
    std::fs::write(folder.path().join("down.html"), "<p>down</p>").unwrap();
    std::fs::write(
        &file,
        format!("{REGISTRY}services: {{ a: {{ fallback: {{ response: {{ file: down.html }} }} }} }}"),
    )
    .unwrap();
    let content = || {
        let loaded = load(Origin::file(&file), &|_| None).unwrap_or_else(|errors| panic!("{errors}"));
        loaded.config.services["a"].fallback.clone().unwrap().response.unwrap().content
    };
    assert_eq!(content(), "<p>down</p>");
    std::fs::write(folder.path().join("down.html"), "x".repeat(1024 * 1024 + 1)).unwrap();
    let errors = load(Origin::file(&file), &|_| None).unwrap_err().to_string();
    let expected = ":2:48: services.a.fallback.response.file: found 1048577 bytes; expected at most 1048576\n";
    assert!(errors.contains(expected), "{errors}");
}

#[test]
fn sizes_percentages_and_conditions_have_their_ranges() {
    table(&[
        (
            "services: { a: { fallback: { last_good: { max_bytes: 1, max_body: 9, max_age: 0s } } } }",
            &[
                "2:54: services.a.fallback.last_good.max_bytes: found `1`; expected a number from 4096 to 1073741824",
                "2:67: services.a.fallback.last_good.max_body: found `9`; expected a number from 0 to 1",
                "2:79: services.a.fallback.last_good.max_age: found `0s`; expected at least `1ms`",
            ],
        ),
        (
            "services: { a: { faults: { delay: { percent: 100.5, duration: 0s }, abort: { percent: .nan, status: 200, grpc_status: 17 } } } }",
            &[
                "2:46: services.a.faults.delay.percent: found `100.5`; expected a number from 0 to 100",
                "2:63: services.a.faults.delay.duration: found `0s`; expected at least `1ms`",
                "2:87: services.a.faults.abort.percent: found `NaN`; expected a number from 0 to 100",
                "2:101: services.a.faults.abort.status: found `200`; expected a number from 400 to 599",
                "2:119: services.a.faults.abort.grpc_status: found `17`; expected a number from 1 to 16",
            ],
        ),
        (
            "services: { a: { faults: { delay: { duration: 1s, value: x }, abort: { percent: 1, header: 'x y', value: \"\\n\" } } } }",
            &[
                "2:35: services.a.faults.delay: `percent` is missing",
                "2:58: services.a.faults.delay.value: `value` goes with `header`, which is missing",
                "2:92: services.a.faults.abort.header: found `x y`; expected a header's name",
                "2:106: services.a.faults.abort.value: found `\\n`; expected characters that a header can carry",
            ],
        ),
    ]);
}

#[test]
fn fallbacks_do_not_go_in_circles() {
    table(&[
        (
            "services: { a: { fallback: { service: a } } }",
            &["2:39: services.a.fallback.service: a circle of fallbacks: `a` → `a`"],
        ),
        (
            "services:\n  a: { fallback: { service: b } }\n  b: { fallback: { service: c } }\n  c: { fallback: { service: b } }",
            &[
                "4:29: services.b.fallback.service: a circle of fallbacks: `b` → `c` → `b`",
                "5:29: services.c.fallback.service: a circle of fallbacks: `c` → `b` → `c`",
            ],
        ),
        (
            "defaults: { fallback: { service: b } }\nservices: { b: { fallback: { service: other } } }",
            &["3:39: services.b.fallback.service: a circle of fallbacks: `b` → `other` → `b`"],
        ),
    ]);
    // What `defaults` say for all means the others; a chain is none.
    config("defaults: { fallback: { service: b } }\nservices: { a: , b: }");
    config("services: { a: { fallback: { service: b } }, b: { fallback: { service: c } } }");
}

#[test]
fn a_service_s_own_fallback_takes_the_place_of_that_in_defaults() {
    let text = "\
defaults: { fallback: { on: [error], service: standby } }
services:
  plain:
  own: { fallback: { last_good: { max_age: 1m } } }
  on: { fallback: { on: [gateway-error] } }
  none: { fallback: null }
";
    let config = config(text);
    let fallback = |name: &str| config.services[name].fallback.clone();
    let standby = Fallback { service: Some("standby".into()), ..Fallback::default() };
    assert_eq!(fallback("plain"), Some(Fallback { on: vec![FallbackOn::Error], ..standby.clone() }));
    assert_eq!(fallback("on"), Some(Fallback { on: vec![FallbackOn::GatewayError], ..standby }));
    let last_good = LastGood { max_age: Duration::from_secs(60), ..LastGood::default() };
    assert_eq!(fallback("own"), Some(Fallback { last_good: Some(last_good), ..Fallback::default() }));
    assert_eq!(fallback("none"), None);
    let printed = print(&config);
    assert_eq!(load_text(&printed).unwrap_or_else(|errors| panic!("{errors}\n{printed}")).config, config);
}

#[test]
fn a_bad_fallback_in_defaults_is_told_once() {
    let errors = errors_of(&format!("{REGISTRY}defaults: {{ fallback: {{}} }}\nservices: {{ a: , b: }}"));
    assert_eq!(errors, ["2:23: defaults.fallback: expected `response`, `service` or `last_good`"]);
}
