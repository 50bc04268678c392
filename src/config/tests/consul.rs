//! What only Consul has of a registration.

use super::{REGISTRY, errors_of, load_text};

#[test]
fn its_check_is_one_that_consul_can_make() {
    for (register, expected) in [
        (
            "register: [{ service: web, port: 80, consul: { check: http, deregister_critical_after: 30s } }]",
            &[
                "2:55: register[0].consul.check: `http` goes with `health.http`, which is missing",
                "2:88: register[0].consul.deregister_critical_after: found `30s`; expected at least `1m`",
            ][..],
        ),
        (
            "register: [{ service: web, port: 80, consul: { check: grpc }, health: { http: / } }]",
            &["2:55: register[0].consul.check: `grpc` goes with `health.grpc`, which is missing"],
        ),
        (
            "register: [{ service: web, port: 80, consul: { check: script } }]",
            &["2:55: register[0].consul.check: found `script`; expected `ttl`, `http`, `tcp` or `grpc`"],
        ),
    ] {
        assert_eq!(errors_of(&format!("{REGISTRY}{register}")), expected, "{register}");
    }
    for register in [
        "register: [{ service: web, port: 80, consul: { check: tcp, deregister_critical_after: 1m } }]",
        "register: [{ service: web, port: 80, consul: { check: http }, health: { http: /health } }]",
    ] {
        load_text(&format!("{REGISTRY}{register}")).unwrap();
    }
}

#[test]
fn it_stands_only_where_consul_is() {
    let with = |registry: &str, more: &str| {
        format!(
            "registries: {{ r: {{ kind: {registry} }} }}\nregister: [{{ service: web, port: 80, {more}consul: {{}} }}]"
        )
    };
    load_text(&with("consul", "")).unwrap();
    load_text(&with("consul", "registry: r, ")).unwrap();
    assert_eq!(errors_of(&with("eureka", "")), ["2:46: register[0].consul: none of its registries is of kind consul"]);
}
