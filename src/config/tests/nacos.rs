//! What can be wrong with a Nacos registry.

use super::{errors_of, load_text};

#[test]
fn settings_of_nacos() {
    for (settings, expected) in [
        ("servers: []", "servers: the list is empty; expected at least one `http://HOST:PORT` or `https://HOST:PORT`"),
        ("servers: [a:8848]", "servers[0]: found `a:8848`; expected `http://HOST:PORT` or `https://HOST:PORT`"),
        (
            "servers: ['http://a:65000']",
            "servers: gRPC is at the port 1000 above, and there is none; expected `grpc_port` as well",
        ),
        ("context: nacos", "context: found `nacos`; expected a path like `/nacos`"),
        ("namespace: ''", "namespace: found an empty text; leave it out for the default"),
        ("group: ''", "group: found an empty text; leave it out for the default"),
        ("clusters: ['']", "clusters[0]: found an empty text; expected some text"),
        ("transport: udp", "transport: found `udp`; expected `auto`, `grpc` or `http`"),
        ("grpc_port: 0", "grpc_port: expected a port from 1 to 65535"),
        ("poll: 10m", "poll: expected at most `5m`"),
        ("user: nacos", "user: `user` goes with `password`, which is missing"),
        ("tls: { server_name: a }", "tls: used only with `https://` addresses; found `http://`"),
    ] {
        let found = errors_of(&format!("registries: {{ n: {{ kind: nacos, {settings} }} }}"));
        let found: Vec<_> =
            found.iter().map(|error| error.split_once("registries.n.").map_or("", |(_, rest)| rest)).collect();
        assert_eq!(found, [expected], "{settings}");
    }
    for settings in [
        "servers: ['http://a:65000'], transport: http",
        "servers: ['http://a:65000'], grpc_port: 1",
        "grpc_tls: true, tls: { server_name: a }",
        "context: ''",
    ] {
        let loaded = load_text(&format!("registries: {{ n: {{ kind: nacos, {settings} }} }}"));
        assert!(loaded.is_ok(), "{settings}: {loaded:?}");
    }
}
