//! Listeners and services for TCP.

use super::{REGISTRY, config_of, faults::table};
use crate::config::{Connect, Policy, Transparent, Unknown};

#[test]
fn what_has_no_requests_cannot_go_by_them() {
    let l = "listeners: [{ name: db, listen: 127.0.0.1:1, protocol: tcp";
    table(&[
        (
            &format!("{l} }}]"),
            &[
                "2:56: listeners[0].protocol: `tcp` says nothing of where a connection is to go; expected a `service` or an `app`",
            ],
        ),
        (
            &format!("{l}, service: db, host_suffixes: [.x], preserve_header_case: true }}]"),
            &[
                "2:89: listeners[0].host_suffixes: it is about requests; expected only with `protocol: http`",
                "2:117: listeners[0].preserve_header_case: it is about requests; expected only with `protocol: http`",
            ],
        ),
        (
            &format!("{}, service: db }}]", l.replace("tcp", "tls")),
            &["2:70: listeners[0].service: with `protocol: tls` the server's name says it; expected only with `tcp`"],
        ),
        (
            "listeners: [{ name: a, listen: 127.0.0.1:1, protocol: tls }]\nservices: { a: { tcp: { idle_timeout: 10ms, max_age: 0s, when_gone: leave, drain: 1ms } } }",
            &[
                "3:39: services.a.tcp.idle_timeout: found `10ms`; expected at least `1s`",
                "3:54: services.a.tcp.max_age: found `0s`; expected at least `1s`",
                "3:69: services.a.tcp.when_gone: found `leave`; expected `keep`, `drain` or `cut`",
                "3:83: services.a.tcp.drain: found `1ms`; expected at least `1s`",
            ],
        ),
    ]);
    let tls = config_of(&format!("{REGISTRY}{}, host_suffixes: [.x] }}]", l.replace("tcp", "tls")));
    assert_eq!(tls.listeners[0].host_suffixes, [".x"]);
}

#[test]
fn what_is_found_out_needs_somewhere_to_go() {
    let l = "listeners: [{ name: t, listen: 127.0.0.1:1, protocol: auto";
    table(&[
        (
            &format!("{l} }}]"),
            &[
                "2:55: listeners[0].protocol: `auto` says nothing of where a connection is to go; expected `transparent`, a `service` or an `app`",
            ],
        ),
        (
            &format!("{l}, transparent: {{ unknown: drop, opaque_ports: [70000] }} }}]"),
            &[
                "2:85: listeners[0].transparent.unknown: found `drop`; expected `pass` or `refuse`",
                "2:106: listeners[0].transparent.opaque_ports[0]: found `70000`; expected a whole number from 0 to 65535",
            ],
        ),
        (
            &format!("{l}, transparent: {{}}, service: a }}]"),
            &["2:87: listeners[0].service: the address that was called says it; expected only without `transparent`"],
        ),
        (
            &format!("{l}, transparent: {{}}, app: 80 }}]"),
            &["2:74: listeners[0].transparent: all goes to the `app` anyway; expected only without it"],
        ),
        (
            &format!("{}, transparent: {{}}, service: a }}]", l.replace("auto", "http")),
            &["2:74: listeners[0].transparent: anything may be redirected; expected only with `protocol: auto`"],
        ),
        (
            &format!("{l}, transparent: {{}}, limits: {{ detect_timeout: 0s }} }}]"),
            &["2:104: listeners[0].limits.detect_timeout: found `0s`; expected at least `1ms`"],
        ),
    ]);
    let config = config_of(&format!("{REGISTRY}{l}, transparent: {{}}, host_suffixes: [.mesh], service_header: x }}]"));
    assert_eq!(config.listeners[0].transparent, Some(Transparent::default()));
    assert_eq!(config.listeners[0].transparent.as_ref().unwrap().unknown(), Unknown::Pass);
    let inbound = config_of(&format!(
        "{REGISTRY}{l}, transparent: {{ direction: inbound }} }}, {{ name: app, listen: 127.0.0.1:9, app: 80 }}]"
    ));
    assert_eq!(inbound.listeners[0].transparent.as_ref().unwrap().unknown(), Unknown::Refuse);
}

#[test]
fn virtual_addresses_mean_one_service_each() {
    table(&[
        (
            "listeners: [{ name: t, listen: 127.0.0.1:1, protocol: auto, transparent: {} }]\nservices: { a: { addresses: [10.96.0.1, \"10.96.0.1:80\", \"[fd00::1]:80\"] }, b: { addresses: [fd00::1, \"10.96.0.1:80\"] } }",
            &["3:102: services.b.addresses[1]: `10.96.0.1:80` is the address of `a` already"],
        ),
        (
            "services: { a: { addresses: [db, \"10.0.0.1:0\", 127.0.0.1] } }",
            &[
                "2:30: services.a.addresses[0]: found `db`; expected `IP`, `IP:PORT` or `[IPV6]:PORT`",
                "2:34: services.a.addresses[1]: found `10.0.0.1:0`; expected an address that can be called, no loopback, and a port from 1 to 65535",
                "2:48: services.a.addresses[2]: found `127.0.0.1`; expected an address that can be called, no loopback, and a port from 1 to 65535",
            ],
        ),
        (
            "defaults: { addresses: [10.96.0.1] }",
            &["2:24: defaults.addresses: each means one service; expected only below `services`"],
        ),
    ]);
    let listener = "listeners: [{ name: t, listen: 127.0.0.1:1, protocol: auto, transparent: {} }]\n";
    let config =
        config_of(&format!("{REGISTRY}{listener}services: {{ a: {{ addresses: [10.96.0.1, \"[fd00::1]:80\"] }} }}"));
    let addresses: Vec<_> = config.services["a"].addresses.iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["10.96.0.1", "[fd00::1]:80"]);
}

#[test]
fn datagrams_go_to_services() {
    let l = "listeners: [{ name: dns, listen: 127.0.0.1:1, protocol: udp";
    table(&[
        (
            &format!("{l} }}]"),
            &["2:57: listeners[0].protocol: `udp` says nothing of where datagrams are to go; expected a `service`"],
        ),
        (
            &format!("{l}, app: 53, proxy_protocol: true, preserve_header_case: true }}]"),
            &[
                "2:67: listeners[0].app: datagrams go to services alone; expected a `service`",
                "2:87: listeners[0].proxy_protocol: it is about connections; expected only without `protocol: udp`",
                "2:115: listeners[0].preserve_header_case: it is about requests; expected only with `protocol: http`",
            ],
        ),
        (
            &format!(
                "{l}, service: a }}]\nservices: {{ a: {{ tls: {{}}, udp: {{ idle_timeout: 1ms, responses: 0 }} }} }}"
            ),
            &[
                "2:71: listeners[0].service: the service has `tls`, which there is none of over UDP",
                "3:48: services.a.udp.idle_timeout: found `1ms`; expected at least `1s`",
                "3:64: services.a.udp.responses: found `0`; expected a number from 1 to 1000000",
            ],
        ),
        (
            &format!("{l}, service: a }}]\nupgrade: {{ socket: /tmp/x }}"),
            &[
                "2:57: listeners[0].protocol: sockets for datagrams are not handed over; expected only without `upgrade`",
            ],
        ),
        (
            &format!("{l}, service: a }}, {{ name: b, listen: 127.0.0.1:1, protocol: udp, service: a }}]"),
            &["2:95: listeners[1].listen: the listener `dns` listens on `127.0.0.1:1` already"],
        ),
    ]);
    // DNS has both on one port.
    let both = config_of(&format!(
        "{REGISTRY}{l}, service: a }}, {{ name: b, listen: 127.0.0.1:1, protocol: tcp, service: a }}]"
    ));
    assert_eq!(both.services["a"].balance.policy, Policy::LeastConnections);
    let udp = config_of(&format!("{REGISTRY}{l}, service: a }}]"));
    assert_eq!(udp.services["a"].balance.policy, Policy::LeastConnections);
}

#[test]
fn tunnels_go_where_their_clients_say() {
    let l = "listeners: [{ name: out, listen: 127.0.0.1:1, connect:";
    table(&[
        (
            &format!("{l} {{ unknown: allow, ports: [0], timeout: 0s, idle_timeout: 10ms }} }}]"),
            &[
                "2:67: listeners[0].connect.unknown: found `allow`; expected `pass` or `refuse`",
                "2:81: listeners[0].connect.ports: expected at least one port, from 1 to 65535",
                "2:95: listeners[0].connect.timeout: found `0s`; expected at least `1ms`",
                "2:113: listeners[0].connect.idle_timeout: found `10ms`; expected at least `1s`",
            ],
        ),
        (
            &format!("{l} {{ ports: [80] }}, service: a }}]"),
            &[
                "2:47: listeners[0].connect: `service` decides already where all goes; expected only one of the two",
                "2:65: listeners[0].connect.ports: it is about what is passed on; expected only with `unknown: pass`",
            ],
        ),
        (
            &format!("{l} {{}}, app: 8080 }}]"),
            &["2:56: listeners[0].connect: `app` decides already where all goes; expected only one of the two"],
        ),
        (
            &format!("{l} {{}}, protocol: tls }}]"),
            &["2:56: listeners[0].connect: it is about requests; expected only with `protocol: http`"],
        ),
    ]);
    let passing = config_of(&format!("{REGISTRY}{l} {{ unknown: pass, ports: [443, 8443] }} }}]"));
    assert_eq!(passing.listeners[0].connect.as_ref().unwrap().ports, [443, 8443]);
    let default = config_of(&format!("{REGISTRY}{l} {{}} }}]"));
    assert_eq!(default.listeners[0].connect, Some(Connect::default()));
}

#[test]
fn services_of_tcp_listeners_are_balanced_by_connections() {
    let listeners = "listeners:\n  - { name: a, listen: 127.0.0.1:1, protocol: tcp, service: a }\n  \
                     - { name: b, listen: 127.0.0.1:2, protocol: tcp, service: b }\n  \
                     - { name: c, listen: 127.0.0.1:3, service: c }\n";
    let policies = |text: &str| {
        let config = config_of(&format!("{REGISTRY}{listeners}{text}"));
        ["a", "b", "c"].map(|name| config.services.get(name).unwrap_or(&config.defaults).balance.policy)
    };
    use Policy::{LeastConnections, PeakEwma, Random, RoundRobin};
    assert_eq!(policies(""), [LeastConnections, LeastConnections, PeakEwma]);
    assert_eq!(
        policies("services: { a: { balance: { policy: random } }, c: {} }"),
        [Random, LeastConnections, PeakEwma]
    );
    let defaults =
        "defaults: { balance: { policy: round-robin } }\nservices: { a: , b: { tcp: { idle_timeout: 1m } } }";
    assert_eq!(policies(defaults), [RoundRobin; 3]);
}
