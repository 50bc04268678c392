//! What is printed loads again and is the same.

use super::{REGISTRY, load_text};
use crate::config::{Config, human, print, schema};
use proptest::prelude::*;
use serde_json::Value;
use std::time::Duration;

#[track_caller]
fn round_trip(config: &Config) {
    let printed = print(config);
    let again = load_text(&printed).unwrap_or_else(|errors| panic!("{errors}\n{printed}")).config;
    assert_eq!(again, *config, "{printed}");
    assert_eq!(print(&again), printed);
}

#[test]
fn every_default_is_printed() {
    let printed = print(&load_text(REGISTRY).unwrap().config);
    let expected = "\
node: {}
workers: 1
admin:
  listen: 127.0.0.1:4191
  remote_control: false
registries:
  main:
    kind: consul
    address: http://127.0.0.1:8500
    only_passing: true
    wait: 55s
    max_requests_per_second: 50
discovery:
  failover:
    after: 10s
    hold: 30s
  first_answer: 2s
  idle: 10m
  coalesce: 100ms
  max_services: 1000
listeners:
  - name: egress
    listen: 127.0.0.1:4140
    protocol: http
    preserve_header_case: false
    proxy_protocol: false
    limits:
      connections: 10000
";
    assert!(printed.starts_with(expected), "{printed}");
}

#[test]
fn order_priority_and_unset_values_survive() {
    let text = "\
workers: auto
registries:
  z: { kind: etcd, endpoints: ['https://a:1', 'https://b:1'], layout: go-zero, user: root, password: '***' }
  a: { kind: consul, token: '***', tags: [yes, '1'], meta: { k: v, '~': '' } }
  m: { kind: file, path: /x }
  x: { kind: xds, protocol: sotw, node: { zone: z, metadata: { b: '1', a: '2' } }, keepalive: 5s }
  d: { kind: dns, name: '{service}.test', servers: ['::1'], record: aaaa, port: 80, min_ttl: 200ms }
  e: { kind: embedded, persist: './a b' }
  w: { kind: file, path: y, scope: { prefix: p-, names: { x: y }, labels: { 'tag.a': 'true' } } }
discovery: { sources: [m, { merge: [z, a] }, { nearest: [e, w] }], snapshot: { dir: './a b', max_age: 1h } }
listeners:
  - { name: one, listen: '[::1]:0', service: web }
  - { name: two, listen: 0.0.0.0:0, service_header: x-service, host_suffixes: [.svc, '.a b'] }
defaults: { tls: { server_name: a.example }, sources: [a], protocol: http2, registered_as: x }
services: { b: { tls: null, sources: [m], protocol: ~ }, a: { registered_as: null, sources: [] }, 1.5: {} }
access_log: { mode: all, format: json, sample: 0.25, path: '-' }
log: { level: 'info,pillion=debug', format: json }
";
    let config = load_text(text).unwrap().config;
    assert!(config.registries.keys().eq(["z", "a", "m", "x", "d", "e", "w"]));
    round_trip(&config);
}

#[test]
fn health_checks_survive_in_their_short_form_and_in_full() {
    let text = format!(
        "{REGISTRY}defaults: {{ health_check: {{ http: /health, interval: 2s }} }}
services:
  a: {{ health_check: null }}
  b: {{ health_check: {{ http: {{ method: POST, statuses: [204, 200-299], body: ok }}, port: 81 }} }}
  c: {{ health_check: {{ http: null, grpc: {{}} }} }}
  d: {{}}
"
    );
    let config = load_text(&text).unwrap().config;
    round_trip(&config);
    let check = |service: &str| config.services[service].health_check.clone();
    assert!(check("a").is_none() && check("c").unwrap().http.is_none() && check("c").unwrap().grpc.is_some());
    assert_eq!(check("d").unwrap().http.unwrap().path, "/health");
    let statuses: Vec<_> = check("b").unwrap().http.unwrap().statuses.iter().map(ToString::to_string).collect();
    assert_eq!(
        (statuses, check("b").unwrap().interval),
        (vec!["204".into(), "200-299".into()], Duration::from_secs(2))
    );
}

#[test]
fn secrets_are_masked() {
    let text = "registries: { e: { kind: etcd, user: u, password: hunter2 }, c: { kind: consul, token: hunter2 }, x: { kind: xds, metadata: { k: hunter2 } } }";
    let loaded = load_text(text).unwrap();
    let printed = print(&loaded.config);
    assert!(
        !printed.contains("hunter2") && printed.contains("password: \"***\"\n") && printed.contains("token: \"***\"\n")
    );
    assert!(!format!("{:?}", loaded.config).contains("hunter2"));
}

proptest! {
    #[test]
    fn any_text_survives_being_printed(text in prop_oneof![any::<String>(), "[-${}:#'\"\\\\ a1.~!&*?|>%@`,\\[\\]\n\t]{0,12}"]) {
        let mut config = load_text(REGISTRY).unwrap().config;
        config.node.env = Some(text.clone());
        config.services.insert(format!("a{}", text.replace(|c: char| c.is_whitespace() || c.is_control(), "").chars().take(40).collect::<String>()),
            config.defaults.clone());
        round_trip(&config);
    }

    #[test]
    fn any_duration_survives_being_printed(millis in 1_u64..30_000_000_000) {
        let mut config = load_text(REGISTRY).unwrap().config;
        config.defaults.timeouts.request = Duration::from_millis(millis);
        round_trip(&config);
        let shown = serde_json::to_value(&config.defaults.timeouts).unwrap()["request"].as_str().unwrap().to_owned();
        prop_assert_eq!(human::parse(&shown).unwrap(), Duration::from_millis(millis));
    }
}

#[test]
fn the_schema_is_as_strict_as_the_loader() {
    let schema = schema();
    let kinds = schema["$defs"]["Registry"]["oneOf"].as_array().unwrap();
    let kind = |schema: &Value| schema["properties"]["kind"]["const"].as_str().unwrap().to_owned();
    assert_eq!(
        kinds.iter().map(kind).collect::<Vec<_>>(),
        ["embedded", "file", "consul", "etcd", "redis", "xds", "dns", "zookeeper", "kubernetes", "eureka", "nacos"]
    );
    let mut objects = 0;
    walk(&schema, &mut |node| {
        if node.get("properties").is_some_and(|keys| keys.is_object()) && node.get("type").is_some() {
            assert_eq!(node["additionalProperties"], false, "{node:#}");
            assert!(node.get("$ref").is_none(), "a `$ref` beside properties would refuse `kind`: {node:#}");
            objects += 1;
        }
    });
    assert!(objects > 15, "{objects}");
    // `user-service:` with nothing after it, `workers: ${N}` and `policy: ${POLICY}` load, so editors must not mark them.
    assert_eq!(schema["$defs"]["Service"]["type"], serde_json::json!(["object", "null"]));
    let policies = schema["$defs"]["Policy"]["oneOf"].as_array().unwrap();
    for value in [&schema["$defs"]["Workers"]["anyOf"][0], policies.last().unwrap()] {
        assert_eq!(value["pattern"], r"\$\{", "{value:#}");
    }
    assert_eq!(schema["type"], "object");
}

pub(super) fn walk(schema: &Value, see: &mut impl FnMut(&Value)) {
    see(schema);
    match schema {
        Value::Array(list) => list.iter().for_each(|value| walk(value, see)),
        Value::Object(map) => map.values().for_each(|value| walk(value, see)),
        _ => {}
    }
}
