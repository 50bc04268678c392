//! Listeners in front of the local application.

use super::{REGISTRY, errors_of, faults::table, load_text};
use crate::config::{App, AppProtocol, AppSource, Callers, Config, Listener, Protocol, Service};

fn listener(app: &str) -> String {
    format!("listeners: [{{ name: in, listen: 0.0.0.0:4143, {app} }}]\n")
}

fn loaded(app: &str) -> Config {
    load_text(&listener(app)).unwrap_or_else(|errors| panic!("{errors}")).config
}

fn app(text: &str) -> App {
    loaded(&format!("app: {text}")).listeners.remove(0).app.unwrap()
}

#[test]
fn a_port_an_address_and_a_map_say_where_the_application_is() {
    for (text, address) in [
        ("8080", "127.0.0.1:8080"),
        ("10.0.0.7:80", "10.0.0.7:80"),
        ("'[::1]:80'", "[::1]:80"),
        ("{ address: 8080 }", "127.0.0.1:8080"),
        ("{ address: '127.0.0.2:81' }", "127.0.0.2:81"),
    ] {
        assert_eq!(app(text), App::at(address.parse().unwrap()), "{text}");
    }
    let all =
        app("{ address: 80, protocol: same, limits: { requests: 7 }, callers: { header: X-Who, max: 3, idle: 1m } }");
    let callers = Callers { header: "X-Who".into(), max: 3, idle: std::time::Duration::from_secs(60) };
    assert_eq!((all.protocol, all.limits.requests, all.callers), (Some(AppProtocol::Same), 7, callers));
}

#[test]
fn the_own_version_is_the_nodes_unless_another_is_given() {
    for text in ["{ mode: own, value: canary }", "{ mode: off }"] {
        assert_eq!(loaded(&format!("app: {{ address: 80, version_baggage: {text} }}")).node.version, None);
    }
    let text = format!("node: {{ version: v2 }}\n{}", listener("app: { address: 80, version_baggage: { mode: own } }"));
    assert!(load_text(&text).is_ok());
}

#[test]
fn only_a_listener_with_an_application_is_inbound() {
    assert!(loaded("app: 8080").listeners[0].is_inbound());
    assert!(!Listener::egress().is_inbound());
}

#[test]
fn without_any_other_listener_no_registry_is_needed() {
    assert!(loaded("app: 8080").registries.is_empty());
    let text = format!(
        "{}  - {{ name: out, listen: 127.0.0.1:4140 }}\n",
        listener("app: 8080").replace("[{", "\n  - {").replace("}]", "}")
    );
    assert_eq!(errors_of(&text), ["1:1: registries: there is none; expected at least one registry, or `--registry`"]);
}

#[test]
fn what_an_application_has_for_settings_is_no_services_default() {
    let app = app("{ address: 80, protocol: http2, health_check: { interval: 2s } }");
    let service = app.service();
    assert_eq!((service.protocol, service.retry.attempts, service.panic_threshold), (Some(Protocol::Http2), 0, 0));
    assert!(!service.breaker.enabled && !service.outlier.enabled && !service.guard.enabled);
    let check = service.health_check.unwrap();
    assert_eq!(check.max_interval, check.interval, "it is asked as often while it fails");
    assert_eq!((service.timeouts, service.limits), (Service::default().timeouts, Service::default().limits));
}

#[test]
fn a_clients_address_is_kept_only_towards_a_loopback_address() {
    for (text, source) in [
        ("{ address: 80, source: client }", AppSource::Client),
        ("{ address: '[::1]:80', source: client }", AppSource::Client),
        ("{ address: 10.0.0.7:80, source: pillion }", AppSource::Pillion),
        ("{ address: 10.0.0.7:80 }", AppSource::Pillion),
    ] {
        assert_eq!(app(text).source, source, "{text}");
    }

    for (text, error) in [
        (
            "{ address: 1.1.1.1:80, source: client }",
            "with `client`, what the application at 1.1.1.1:80 answers would go to the client, past pillion; expected it at a loopback address, like `127.0.0.1:80`",
        ),
        ("{ address: 80, source: server }", "found `server`; expected `pillion` or `client`"),
    ] {
        let found = errors_of(&listener(&format!("app: {text}")));
        assert!(found.iter().any(|found| found.contains(error)), "{text}: {found:?}");
    }
    let found = errors_of(&listener("protocol: udp, app: { address: 80, source: client }"));
    assert!(
        found.iter().any(|found| found.contains("listeners[0].app.source: `client` is for connections")),
        "{found:?}"
    );
}

#[test]
fn an_application_that_is_none() {
    let at = "listeners[0].app";
    for (text, error) in [
        ("app:", format!("1:53: {at}: found nothing; expected a port from 1 to 65535, `IP:PORT`, or a map")),
        ("app: 0", format!("1:53: {at}: found `0`; expected a port from 1 to 65535, `IP:PORT`, or a map")),
        ("app: 65536", format!("1:53: {at}: found `65536`; expected a port from 1 to 65535, `IP:PORT`, or a map")),
        ("app: web", format!("1:53: {at}: found `web`; expected a port from 1 to 65535, `IP:PORT`, or a map")),
        ("app: []", format!("1:53: {at}: found a list; expected a port from 1 to 65535, `IP:PORT`, or a map")),
        ("app: {}", format!("1:53: {at}: `address` is missing")),
        (
            "app: { address: web }",
            format!(
                "1:64: {at}.address: found `web`; expected a port from 1 to 65535 or `IP:PORT`, like `127.0.0.1:8080`"
            ),
        ),
        (
            "app: '0.0.0.0:80'",
            format!("1:53: {at}: found `0.0.0.0:80`; expected an address to connect to, like `127.0.0.1:8080`"),
        ),
        (
            "app: { address: '127.0.0.1:0' }",
            format!(
                "1:64: {at}.address: found `127.0.0.1:0`; expected an address to connect to, like `127.0.0.1:8080`"
            ),
        ),
        ("app: 4143", format!("1:53: {at}: the listener `in` listens there, and not the application")),
        ("app: 4191", format!("1:53: {at}: `admin` listens there, and not the application")),
    ] {
        let found = errors_of(&listener(text));
        assert_eq!(found.len(), 1, "{text}: {found:#?}");
        // (The first of the columns is that of the key's value, where there is one.)
        let strip = |error: &str| error.split_once(": ").unwrap().1.to_owned();
        assert_eq!(strip(&found[0]), strip(&error), "{text}");
    }
}

#[test]
fn what_does_not_go_with_an_application() {
    let both = "`app` decides already; expected only one of the two";
    for key in ["service: users", "service_header: x-service", "host_suffixes: [.local]"] {
        let found = errors_of(&format!("{REGISTRY}{}", listener(&format!("app: 8080, {key}"))));
        assert_eq!(found.len(), 1, "{found:#?}");
        assert!(
            found[0].ends_with(both) && found[0].contains(&format!("listeners[0].{}", key.split_once(':').unwrap().0))
        );
    }
    table(&[
        (
            "listeners:\n- name: in\n  listen: 0.0.0.0:4143\n  app:\n    address: 80\n    health_check:\n      linger: 1s\n      max_interval: 1m\n",
            &[
                "8:15: listeners[0].app.health_check.linger: not for `app`: no registry lists the application here, so it does not outlive that",
                "9:21: listeners[0].app.health_check.max_interval: not for `app`: the application is checked every `interval`, also while it fails",
            ],
        ),
        (
            "listeners:\n- name: in\n  listen: 0.0.0.0:4143\n  app:\n    address: 80\n    callers: { header: 'a b', max: 0, idle: 0s }\n    retry: {}\n",
            &[
                "7:24: listeners[0].app.callers.header: found `a b`; expected a header's name",
                "7:36: listeners[0].app.callers.max: found `0`; expected a number from 1 to 10000",
                "7:45: listeners[0].app.callers.idle: found `0s`; expected at least `1ms`",
                "8:5: listeners[0].app.retry: unknown key; known here: `address`, `protocol`, `source`, `timeouts`, `limits`, `pool`, `health_check`, `callers`, `version_baggage`",
            ],
        ),
        (
            "listeners:\n- name: in\n  listen: 0.0.0.0:4143\n  app:\n    address: 80\n    version_baggage: { mode: any, header: 'a b', baggage: '', value: a/b }\n",
            &[
                "7:30: listeners[0].app.version_baggage.mode: found `any`; expected `off`, `passed` or `own`",
                "7:43: listeners[0].app.version_baggage.header: found `a b`; expected a header's name",
                "7:59: listeners[0].app.version_baggage.baggage: found ``; expected a baggage member's name",
                "7:70: listeners[0].app.version_baggage.value: `a/b` is no name for a subset; expected characters that a header can carry, without spaces and `/`",
            ],
        ),
        (
            "listeners:\n- name: in\n  listen: 0.0.0.0:4143\n  app: { address: 80, version_baggage: { mode: passed, value: canary } }\n",
            &["5:63: listeners[0].app.version_baggage.value: `value` goes with `mode: own`"],
        ),
        (
            "listeners:\n- name: in\n  listen: 0.0.0.0:4143\n  app: { address: 80, version_baggage: { mode: own } }\n",
            &[
                "5:48: listeners[0].app.version_baggage.mode: this instance's version is not known; expected `node.version`, or `value` here",
            ],
        ),
        (
            "listeners:\n- name: in\n  listen: 0.0.0.0:4143\n  app:\n    address: 80\n    protocol: h2\n    limits: { requests: 0 }\n    timeouts: { request: 0s }\n    pool: { max_age: 0s }\n",
            &[
                "7:15: listeners[0].app.protocol: found `h2`; expected `http1`, `http2` or `same`",
                "8:25: listeners[0].app.limits.requests: found `0`; expected a number from 1 to 10000000",
                "9:26: listeners[0].app.timeouts.request: found `0s`; expected at least `1ms`",
                "10:22: listeners[0].app.pool.max_age: found `0s`; expected at least `1ms`",
            ],
        ),
        (
            "node: { service: 'my web' }\n",
            &["2:18: node.service: `my web` is no name for a service; expected 1 to 253 bytes without spaces"],
        ),
    ]);
}
