//! What is registered: what is right, and what is said of the rest.

use super::{errors_of, load_text};
use crate::config::{Node, Register, RegisterAddress, RegisterPort};

const REGISTRIES: &str = "node: { service: web, env: dev }\n\
    registries: { a: { kind: file, path: a }, b: { kind: etcd }, c: { kind: dns, name: '{service}.x.example' } }\n";

fn read(register: &str) -> Register {
    let text = format!("{REGISTRIES}register: [{register}]\n");
    load_text(&text).unwrap_or_else(|errors| panic!("{errors}")).config.register.remove(0)
}

/// What is said of one registration, without where in the text.
fn said(register: &str) -> Vec<String> {
    let lines = errors_of(&format!("{REGISTRIES}register: [{register}]\n")).into_iter();
    lines.map(|line| line.split_once(": ").map_or(line.clone(), |(_, rest)| rest.to_owned())).collect()
}

#[test]
fn what_is_registered_has_short_forms() {
    let register = read("{ port: 8080, registry: a }");
    assert_eq!(
        (register.registry.as_slice(), register.address),
        (["a".to_owned()].as_slice(), RegisterAddress::Outgoing)
    );
    let register =
        read("{ port: { env: PORT }, registry: [a, b], address: { network: 10.0.0.0/8 }, health: { http: /up } }");
    assert_eq!(register.port, Some(RegisterPort::Env("PORT".into())));
    assert_eq!(register.registry, ["a", "b"]);
    assert!(
        matches!(register.address, RegisterAddress::Network(network) if network.contains("10.1.2.3".parse().unwrap()))
    );
    assert_eq!(register.health.http.unwrap().path, "/up");
    let text = "registries: { a: { kind: etcd }, c: { kind: dns, name: '{service}.x.example' } }\nregister: [{ service: web, port: 1 }]";
    assert!(load_text(text).is_ok(), "the only one that takes registrations");
}

#[test]
fn names_are_made_of_what_there_is() {
    let register = |name: &str| Register { name: name.into(), domain: Some("shop".into()), ..Register::default() };
    let node = Node { service: Some("web".into()), env: Some("dev".into()), ..Node::default() };
    assert_eq!(register("{env}-{domain}-{service}").full_name(&node).unwrap(), "dev-shop-web");
    for (name, problem) in [
        ("{version}", "`{version}` has no value; expected `version`"),
        (
            "{host}",
            "`{host}` is nothing that a name is made of; expected {service}, {env}, {domain}, {version} or {zone}",
        ),
        ("{service", "a `{` is without its `}`"),
    ] {
        assert_eq!(register(name).full_name(&node).unwrap_err().to_string(), problem);
    }
    let nobody = register("{service}").full_name(&Node::default()).unwrap_err().to_string();
    assert_eq!(nobody, "`{service}` has no value; expected `service`, or `node.service`");
}

#[test]
fn what_is_wrong_with_a_registration_is_said_where_it_is() {
    for (register, expected) in [
        (
            "{ registry: a }",
            "register[0]: `port` is missing; expected a number, or a map that tells where it comes from",
        ),
        ("{ port: 80 }", "register[0]: `registry` is missing; expected `a` or `b`, or a list of them"),
        ("{ port: 80, registry: x }", "register[0].registry: no registry is named `x`; expected `a`, `b` or `c`"),
        ("{ port: 80, registry: [a, c] }", "register[0].registry[1]: `c` is of kind dns, which takes no registrations"),
        ("{ port: 80, registry: [a, a] }", "register[0].registry[1]: `a` is there twice"),
        (
            "{ port: 0, registry: a }",
            "register[0].port: found `0`; expected a number from 1 to 65535, `{ env: NAME }`, `{ file: PATH }`, \
             `{ listener: NAME }`, `{ pid_file: PATH }`, `{ pid: NUMBER }` or `command`",
        ),
        (
            "{ port: http, registry: a }",
            "register[0].port: found `http`; expected a number from 1 to 65535, `{ env: NAME }`, `{ file: PATH }`, \
             `{ listener: NAME }`, `{ pid_file: PATH }`, `{ pid: NUMBER }` or `command`",
        ),
        (
            "{ port: { env: A, file: b }, registry: a }",
            "register[0].port: expected only one of env, file, listener, pid_file, pid",
        ),
        (
            "{ port: { listener: inbound }, registry: a }",
            "register[0].port.listener: no listener is named `inbound`; expected `egress`",
        ),
        (
            "{ port: { listener: egress }, registry: a }",
            "register[0].port.listener: `egress` is not in front of the application; expected one with `app`",
        ),
        (
            "{ port: 80, registry: a, address: { network: 10.0.0.0/33 } }",
            "register[0].address: found `10.0.0.0/33`; expected a network, like `10.0.0.0/8`",
        ),
        (
            "{ port: 80, registry: a, address: '10.0.0.7:80' }",
            "register[0].address: found `10.0.0.7:80`; expected an IP address or a host name, without a port",
        ),
        (
            "{ port: 80, registry: a, name: '{env}_{service}!' }",
            "register[0]: the name `dev_web!` does not match `[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?`",
        ),
        ("{ port: 80, registry: a, name: '{zone}' }", "register[0].name: `{zone}` has no value; expected `zone`"),
        ("{ port: 80, registry: a, ttl: 100ms }", "register[0].ttl: found `100ms`; expected `1s` to `1h`"),
        ("{ port: 80, registry: a, weight: 0 }", "register[0].weight: found `0`; expected a number from 1 to 1000000"),
        (
            "{ port: 80, registry: a, health: { http: up } }",
            "register[0].health.http: found `up`; expected a path, like `/health`",
        ),
    ] {
        assert_eq!(said(register), [expected], "{register}");
    }
    let twice = said("{ port: 80, registry: a }, { port: 80, registry: b }");
    assert_eq!(twice, ["register[1]: `web` is there with the same `id` and `port` already"]);
    let pattern = said("{ port: 80, registry: a, name_pattern: '[' }");
    assert!(pattern[0].starts_with("register[0].name_pattern: it is no regular expression: "), "{pattern:?}");
    let inbound = |listen: &str| {
        let listener = format!("{{ name: inbound, listen: '{listen}', app: 8080 }}");
        format!("{REGISTRIES}listeners: [{listener}]\nregister: [{{ port: {{ listener: inbound }}, registry: a }}]\n")
    };
    assert!(load_text(&inbound("0.0.0.0:4143")).is_ok());
    let loopback = errors_of(&inbound("127.0.0.1:4143"));
    assert!(loopback[0].contains("`inbound` listens on 127.0.0.1:4143, which others cannot reach"), "{loopback:?}");
}
