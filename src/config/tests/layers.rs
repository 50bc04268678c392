//! The environment, flags, and `defaults` under the services.

use super::{REGISTRY, errors_of, load_text, load_with};
use crate::config::{Auto, Config, Overrides, Registry, Tls, Workers};
use std::time::Duration;

fn config(text: &str) -> Config {
    load_text(text).unwrap().config
}

#[test]
fn variables_are_expanded_and_typed_afterwards() {
    let text = format!(
        "{REGISTRY}workers: ${{N:-2}}\nnode: {{ env: \"${{ENV:-dev}}\", zone: '${{ZONE}}', version: \"v$${{x}} $5\" }}\n\
         access_log: {{ sample: \"${{SAMPLE}}\" }}\nlog:\n  level: ${{EMPTY:-warn}},pillion=${{LEVEL}}\n"
    );
    let env = [("ENV", ""), ("ZONE", "az: {1}"), ("SAMPLE", "0.5"), ("EMPTY", ""), ("LEVEL", "debug")];
    let loaded = load_with(&text, &env, Overrides::default()).unwrap().config;
    assert_eq!(loaded.workers, Workers::Count(2));
    assert_eq!(loaded.node.env.as_deref(), Some("dev"), "`:-` replaces an empty variable too");
    assert_eq!(loaded.node.zone.as_deref(), Some("az: {1}"), "a value never becomes structure");
    assert_eq!(loaded.node.version.as_deref(), Some("v${x} $5"));
    assert!((loaded.access_log.sample.0 - 0.5).abs() < f64::EPSILON);
    assert_eq!(loaded.log.level, "warn,pillion=debug");
}

#[test]
fn all_variables_that_are_not_set_are_told_with_their_place() {
    let text = format!(
        "{REGISTRY}node:\n  env: ${{A}}-${{B}}\n  zone: ${{C\nlisteners:\n  - name: ${{D}}\n    listen: 127.0.0.1:1\n\
         services:\n  x: {{ registered_as: '${{E:-${{F}}}}' }}\nworkers: zero\n"
    );
    let not_set =
        |name| format!("the environment variable `{name}` is not set; `${{{name}:-default}}` would give it a default");
    assert_eq!(
        errors_of(&text),
        [
            format!("3:8: node.env: {}", not_set("A")),
            format!("3:8: node.env: {}", not_set("B")),
            "4:9: node.zone: a `${` without its `}`; write `$${` for a plain `${`".into(),
            format!("6:11: listeners[0].name: {}", not_set("D")),
            "9:23: services.x.registered_as: `${E:-${F}` cannot be expanded; expected `${NAME}` or \
             `${NAME:-default}`, or `$${` for a plain `${`"
                .into(),
            "10:10: workers: found `zero`; expected a number from 1 to 256 or `auto`".into(),
        ]
    );
}

#[test]
fn a_flag_goes_before_the_environment_before_the_file_before_the_default() {
    let file = format!(
        "{REGISTRY}workers: 3\nadmin: {{ listen: 127.0.0.1:3 }}\nlog: {{ level: warn }}\n\
         listeners: [{{ name: in, listen: 127.0.0.1:33 }}, {{ name: egress, listen: 127.0.0.1:333 }}]\n"
    );
    let env = [
        ("PILLION_WORKERS", "2"),
        ("PILLION_ADMIN", "127.0.0.1:2"),
        ("PILLION_LOG", "error"),
        ("PILLION_LISTEN", "127.0.0.1:22"),
    ];
    let flags = Overrides {
        workers: Some("auto".into()),
        admin: Some("127.0.0.1:1".into()),
        log_level: Some("debug".into()),
        listen: Some("127.0.0.1:11".into()),
        ..Overrides::default()
    };
    let seen = |text: &str, env: &[(&str, &str)], flags: Overrides| {
        let config = load_with(text, env, flags).unwrap().config;
        let egress = config.listeners.iter().find(|listener| listener.name == "egress").unwrap().listen.port();
        (config.workers, config.admin.listen.port(), config.log.level, egress)
    };
    let none = Overrides::default;
    assert_eq!(seen(&file, &env, flags), (Workers::Auto(Auto::Auto), 1, "debug".into(), 11));
    assert_eq!(seen(&file, &env, none()), (Workers::Count(2), 2, "error".into(), 22));
    assert_eq!(seen(&file, &[("PILLION_WORKERS", " ")], none()), (Workers::Count(3), 3, "warn".into(), 333));
    assert_eq!(seen(REGISTRY, &[], none()), (Workers::Count(1), 4191, "info".into(), 4140));
    assert_eq!(seen(REGISTRY, &env, none()), (Workers::Count(2), 2, "error".into(), 22));
}

#[test]
fn without_a_file_a_registry_is_enough() {
    let env = |name: &str| (name == "PILLION_REGISTRY").then(|| "embedded: consul://127.0.0.1:8500".to_owned());
    let loaded = crate::config::load(crate::config::Origin::default(), &env).unwrap().config;
    assert_eq!(loaded.registries.keys().collect::<Vec<_>>(), ["embedded", "consul"]);
    let file = "registries: { embedded: { kind: embedded }, consul: { kind: consul } }";
    assert_eq!(loaded, config(file), "the same as from a file");
    let bare = crate::config::load(crate::config::Origin::default(), &|_| None).unwrap_err().to_string();
    assert_eq!(bare, "registries: there is none; expected at least one registry, or `--registry`\n1 error");
}

#[test]
fn settings_are_checked_like_the_file_and_named() {
    let flags = Overrides {
        registry: vec!["consul://127.0.0.1:8500?wiat=5s".into(), "rabbit://x".into(), "etcd://a:b@c".into()],
        workers: Some("0".into()),
        listen: Some("localhost:4140".into()),
        ..Overrides::default()
    };
    let env = [("PILLION_LOG", "loud"), ("PILLION_ADMIN", "127.0.0.1")];
    let shown = load_with("workers: none", &env, flags).unwrap_err();
    let expected = [
        "--listen: found `localhost:4140`; expected `IP:PORT`, like `127.0.0.1:4140` or `[::1]:4140`",
        "--registry: `rabbit:` is no kind of registry; expected `consul`, `etcd`, `zookeeper`, `nacos`, `eureka`, \
         `kubernetes`, `redis`, `dns`, `xds`, `file` or `embedded`",
        "--registry: registries.consul.wiat: unknown key; did you mean `wait`? known here: `address`, `token`, `dc`, \
         `tags`, `meta`, `only_passing`, `wait`, `max_requests_per_second`, `tls`, `scope`",
        "--workers: found `0`; expected a number from 1 to 256 or `auto`",
        "PILLION_ADMIN: found `127.0.0.1`; expected `IP:PORT`, like `127.0.0.1:4140` or `[::1]:4140`",
        "PILLION_LOG: found `loud`; expected `off`, `error`, `warn`, `info`, `debug` or `trace`, or per module like \
         `info,pillion::registry=debug`",
        "6 errors in f",
    ];
    assert_eq!(shown.lines().collect::<Vec<_>>(), expected);
}

#[test]
fn a_given_listen_address_needs_a_listener_to_go_to() {
    let listen = || Overrides { listen: Some("127.0.0.1:9".into()), ..Overrides::default() };
    let two = format!("{REGISTRY}listeners: [{{ name: a, listen: 127.0.0.1:1 }}, {{ name: b, listen: 127.0.0.1:2 }}]");
    assert_eq!(
        load_with(&two, &[], listen()).unwrap_err(),
        "--listen: which listener is meant? None is named `egress`; the file has `a` or `b`\n1 error in f"
    );
    let one = format!("{REGISTRY}listeners: [{{ name: a, listen: 127.0.0.1:1 }}]");
    assert_eq!(load_with(&one, &[], listen()).unwrap().config.listeners[0].listen.port(), 9);
}

#[test]
fn given_registries_take_the_place_of_the_files() {
    let text = "registries: { main: { kind: file, path: x }, bad: { kind: nothing } }\n\
                discovery: { sources: [main] }\ndefaults: { sources: [main] }\nservices: { a: { sources: [main] }, b: }\n";
    let flags = Overrides { registry: vec!["consul://a".into(), "consul://b".into()], ..Overrides::default() };
    let config = load_with(text, &[("PILLION_REGISTRY", "embedded:")], flags).unwrap().config;
    assert_eq!(config.registries.keys().collect::<Vec<_>>(), ["consul", "consul-2"]);
    let Registry::Consul(second) = &config.registries["consul-2"] else { panic!("consul") };
    assert_eq!(second.address, "http://b");
    assert!(config.discovery.sources.is_empty() && config.services["a"].sources.is_empty());
}

#[test]
fn a_service_takes_from_defaults_what_it_does_not_set() {
    let text = format!(
        "{REGISTRY}\
services:
  plain:
  own:
    timeouts: {{ connect: 2s }}
    pool:
    tls: null
    sources: []
defaults:
  timeouts: {{ connect: 3s, request: 30s }}
  pool: {{ max_idle: 7 }}
  tls: {{ server_name: a.example }}
  sources: [main]
  protocol: http2
"
    );
    let config = config(&text);
    assert_eq!(config.services["plain"], config.defaults);
    let own = &config.services["own"];
    assert_eq!((own.timeouts.connect, own.timeouts.request), (Duration::from_secs(2), Duration::from_secs(30)));
    assert_eq!(own.pool.max_idle, 7, "`pool:` and nothing more sets nothing");
    assert_eq!(own.tls, None, "`null` goes back to pillion's own default");
    assert!(own.sources.is_empty());
    assert_eq!(own.protocol, config.defaults.protocol);
    assert_eq!(config.defaults.tls, Some(Tls { server_name: Some("a.example".into()), ..Tls::default() }));
}

#[test]
fn what_is_wrong_in_defaults_is_told_once_and_there() {
    let text = format!(
        "{REGISTRY}services: {{ a: , b: {{ timeouts: {{ idle: 1s }} }} }}\n\
         defaults: {{ timeouts: {{ connect: 0s, request: soon, retry: 1 }}, sources: [other] }}\n"
    );
    assert_eq!(
        errors_of(&text),
        [
            "3:34: defaults.timeouts.connect: found `0s`; expected at least `1ms`",
            "3:47: defaults.timeouts.request: `soon` is not a duration; expected a number with a unit, like `250ms`, \
             `15s` or `1h 30m`",
            "3:53: defaults.timeouts.retry: unknown key; known here: `connect`, `request`, `idle`, `stream`",
            "3:75: defaults.sources[0]: no registry is named `other`; expected `main`",
        ]
    );
}
