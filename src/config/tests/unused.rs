//! Settings that nothing would ever go by.

use super::{REGISTRY, config_of, faults::table};

/// A listener for connections to `db`, and so no other.
const DB: &str = "listeners: [{ name: db, listen: 127.0.0.1:1, protocol: tcp, service: db }]\n";

#[test]
fn what_a_listener_takes_no_requests_for() {
    let l = "listeners: [{ name: db, listen: 127.0.0.1:1, service: db, protocol:";
    let about = "it is about requests; expected only with `protocol: http` or `auto`";
    let idle = format!("2:98: listeners[0].limits.idle_timeout: {about}");
    table(&[
        (
            &format!("{l} tcp, limits: {{ head_bytes: 2048, head_lines: 9, h2_streams: 3 }} }}]"),
            &[
                &format!("2:96: listeners[0].limits.head_bytes: {about}"),
                &format!("2:114: listeners[0].limits.head_lines: {about}"),
                &format!("2:129: listeners[0].limits.h2_streams: {about}"),
            ],
        ),
        (&format!("{l} udp, limits: {{ idle_timeout: 1m }} }}]"), &[&idle]),
        (
            &format!("{l} tcp, limits: {{ head_timeout: 1s, detect_timeout: 2s }} }}]"),
            &[
                "2:98: listeners[0].limits.head_timeout: nothing is to come first here; expected only with requests, `protocol: tls` or `proxy_protocol`",
                "2:118: listeners[0].limits.detect_timeout: expected only with `protocol: auto`",
            ],
        ),
        (
            &format!("{l} http, limits: {{ detect_timeout: 2s }}, host_suffixes: [.x] }}]"),
            &[
                "2:101: listeners[0].limits.detect_timeout: expected only with `protocol: auto`",
                "2:122: listeners[0].host_suffixes: `service` decides already; expected only one of the two",
            ],
        ),
        (
            "listeners: [{ name: a, listen: 127.0.0.1:1, connect: { timeout: 1s, idle_timeout: 1m } }]",
            &[
                "2:65: listeners[0].connect.timeout: it is about what is passed on; expected only with `unknown: pass`",
                "2:83: listeners[0].connect.idle_timeout: it is about what is passed on; expected only with `unknown: pass`",
            ],
        ),
    ]);
    for good in [
        "{ protocol: tcp, service: db, proxy_protocol: true, limits: { head_timeout: 1s, connections: 5 } }",
        "{ protocol: tls, limits: { head_timeout: 1s } }",
        "{ protocol: auto, service: db, limits: { head_bytes: 2048, detect_timeout: 2s, idle_timeout: 1m } }",
        // As when a config was printed.
        "{ protocol: udp, service: db, limits: { head_bytes: 65536, idle_timeout: 5m } }",
    ] {
        config_of(&format!("{REGISTRY}listeners: [{}]", good.replacen('{', "{ name: a, listen: 127.0.0.1:1, ", 1)));
    }
}

#[test]
fn what_redirected_inbound_connections_do_not_go_by() {
    let handed_on =
        "redirected inbound connections go on by the listener whose `app` they are for; expected only there";
    let line = |number, key| format!("{number}: listeners[0].{key}: {handed_on}");
    table(&[(
        "listeners:\n- name: in\n  listen: 127.0.0.1:1\n  protocol: auto\n  transparent: { direction: inbound, opaque_ports: [1], unknown: pass }\n  \
         service_header: x\n  host_suffixes: [.x]\n  preserve_header_case: true\n  connect: {}\n  \
         limits: { idle_timeout: 1m, detect_timeout: 2s, connections: 5 }\n",
        &[
            "6:52: listeners[0].transparent.opaque_ports: it is about what applications here call; expected only with `direction: outbound`",
            &line("7:19", "service_header"),
            &line("8:18", "host_suffixes"),
            &line("9:25", "preserve_header_case"),
            &line("10:12", "connect"),
            &line("11:27", "limits.idle_timeout"),
            &line("11:47", "limits.detect_timeout"),
        ],
    )]);
}

#[test]
fn redirected_inbound_connections_need_an_application() {
    let l = "listeners: [{ name: in, listen: 127.0.0.1:1, protocol: auto, transparent: { direction: inbound";
    table(&[(
        &format!("{l} }} }}]"),
        &[
            "2:62: listeners[0].transparent: all connections would be refused, as no listener has an `app`; expected one that has",
        ],
    )]);
    config_of(&format!("{REGISTRY}{l}, unknown: pass }} }}]"));
    // They ask no registry.
    config_of(&format!("{l} }} }}, {{ name: app, listen: 127.0.0.1:2, app: 80 }}]"));
}

#[test]
fn redirected_connections_find_an_application_by_its_port() {
    let apps = "listeners:\n- { name: a, listen: 127.0.0.1:1, app: 80 }\n- { name: b, listen: 127.0.0.1:2, app: '127.0.0.2:80' }\n";
    let by = "- { name: in, listen: 127.0.0.1:3, protocol: auto, transparent: { direction: inbound } }\n";
    table(&[(
        &format!("{apps}{by}"),
        &[
            "4:40: listeners[1].app: redirected connections to port 80 go to the `app` of the listener `a`; expected another port",
        ],
    )]);
    for other in ["'[::1]:80'", "'127.0.0.1:80'"] {
        config_of(&format!("{REGISTRY}{}{by}", apps.replace("'127.0.0.2:80'", other)));
    }
    config_of(&format!("{REGISTRY}{apps}"));
    config_of(&format!("{REGISTRY}{apps}{}", by.replace("direction: inbound", "")));
}

#[test]
fn an_application_without_requests() {
    let about = "it is about requests; expected only with `protocol: http` or `auto`";
    let line = |number, key| format!("{number}: listeners[0].app.{key}: {about}");
    table(&[(
        "listeners:\n- name: in\n  listen: 127.0.0.1:1\n  protocol: tcp\n  app:\n    address: 80\n    protocol: same\n    \
         pool: { max_idle: 3 }\n    callers: { max: 3 }\n    version_baggage: { mode: passed }\n    \
         limits: { requests: 3, rate: { per_second: 1 }, connections: 5 }\n    timeouts: { request: 1s, connect: 2s }\n",
        &[
            &line("8:15", "protocol"),
            &line("9:5", "pool"),
            &line("10:5", "callers"),
            &line("11:5", "version_baggage"),
            &line("12:25", "limits.requests"),
            &line("12:28", "limits.rate"),
            &line("13:26", "timeouts.request"),
        ],
    )]);
}

#[test]
fn what_a_service_gets_no_requests_for() {
    let about = "it is about requests, and no listener takes any to this service; expected only where one does";
    let line = |number, key| format!("{number}: services.db.{key}: {about}");
    let service = "services:\n  db:\n    routes: [{ mirror: { to: { service: x } } }]\n    faults: { abort: { percent: 1 } }\n    \
                   subsets: { a: { b: c } }\n    limits: { connections: 5, rate: { per_second: 1 } }\n    \
                   timeouts: { connect: 2s, request: 1s }\n    retry: { attempts: 1, buffer: 3 }\n";
    let service = service.replace("{ service: x }", "x/");
    table(&[
        (
            &format!("{DB}{service}"),
            &[
                &line("5:13", "routes"),
                &line("6:5", "faults"),
                &line("7:5", "subsets"),
                &line("8:31", "limits.rate"),
                &line("9:39", "timeouts.request"),
                &line("10:35", "retry.buffer"),
            ],
        ),
        // What asks for a service by its name may ask for any; what has no name, for its own.
        (
            &format!(
                "{}services: {{ db: {{ hedge: {{ after: 1s }} }} }}",
                DB.replace("}]", "}, { name: b, listen: 127.0.0.1:2, service: web }]")
            ),
            &[&line("3:19", "hedge")],
        ),
    ]);
    let beside = |listener: &str, more: &str| {
        let listeners = DB.replace("}]", &format!("}}, {{ name: b, listen: 127.0.0.1:2, {listener} }}]"));
        config_of(&format!("{REGISTRY}{listeners}{service}{more}"));
    };
    beside("protocol: http", "");
    beside("protocol: auto, transparent: {}", "");
    beside("protocol: auto, service: db", "");
    beside("service: web", "  web: { routes: [{ split: { db/: 1, web/: 1 } }] }\n");
    beside("service: web", "  web: { fallback: { service: mid } }\n  mid: { routes: [{ mirror: { to: db/ } }] }\n");
    beside("service: web", "routing: { store: { registry: main } }\n");
    // What is for all services is for those, too, that get requests one day.
    config_of(&format!(
        "{REGISTRY}{DB}defaults: {{ hedge: {{ after: 1s }}, limits: {{ requests: 5 }} }}\nservices: {{ db: }}"
    ));
    // No listener at all means the one for requests to all.
    config_of(&format!("{REGISTRY}{service}"));
}

#[test]
fn what_a_service_gets_no_connections_or_datagrams_for() {
    let bytes = "no listener carries connections to this service; expected only beside one with `protocol: tcp`, `tls` or `auto`, or with `connect`";
    let redirected = "it is about redirected connections; expected only beside a listener with `transparent`";
    let service = "services: { x: { tcp: { max_age: 1m } } }";
    let error = format!("services.x.tcp.max_age: {bytes}");
    table(&[
        (service, &[&format!("2:34: {error}")]),
        (&format!("{DB}{service}"), &[&format!("3:34: {error}")]),
        (
            "services: { x: { tcp: { direct: balance }, addresses: [10.0.0.1], udp: { responses: 1 } } }",
            &[
                &format!("2:33: services.x.tcp.direct: {redirected}"),
                &format!("2:55: services.x.addresses: {redirected}"),
                "2:67: services.x.udp: no listener with `protocol: udp` has this `service`; expected only beside one",
            ],
        ),
    ]);
    for listener in ["protocol: tcp, service: x", "protocol: tls", "connect: {}", "protocol: auto, transparent: {}"] {
        config_of(&format!("{REGISTRY}listeners: [{{ name: a, listen: 127.0.0.1:1, {listener} }}]\n{service}"));
    }
    config_of(&format!(
        "{REGISTRY}defaults: {{ tcp: {{ max_age: 1m }}, udp: {{ responses: 1 }} }}\nservices: {{ x: }}"
    ));
}

#[test]
fn a_mistake_in_a_listener_makes_no_others() {
    table(&[(
        "listeners: [{ name: a, listen: 127.0.0.1:1, protocol: udq, service: x }]\nservices: { x: { udp: { responses: 1 } } }",
        &[
            "2:55: listeners[0].protocol: found `udq`; expected `http`, `tcp`, `tls`, `auto` or `udp`; did you mean `udp`?",
        ],
    )]);
}

#[test]
fn one_port_is_listened_at_once() {
    let with = |one: &str, other: &str| {
        format!("listeners:\n- {{ name: a, listen: '{one}' }}\n- {{ name: b, listen: '{other}' }}\n")
    };
    for (one, other) in [
        ("[::]:1", "127.0.0.1:1"),
        ("10.0.0.1:1", "[::]:1"),
        ("[::]:1", "0.0.0.0:1"),
        ("0.0.0.0:1", "[::ffff:10.0.0.1]:1"),
        ("[::]:1", "[::1]:1"),
    ] {
        let error = format!("4:22: listeners[1].listen: the listener `a` listens on `{one}` already");
        table(&[(&with(one, other), &[&error])]);
    }
    for (one, other) in [("0.0.0.0:1", "[::1]:1"), ("[::1]:1", "127.0.0.1:1"), ("[::]:1", "127.0.0.1:2")] {
        config_of(&format!("{REGISTRY}{}", with(one, other)));
    }
}
