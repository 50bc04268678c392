//! Mistakes in what is said of registries.

use super::{REGISTRY, errors_of};

#[test]
fn kinds_of_registries() {
    let kinds = "expected `embedded`, `file`, `consul`, `etcd`, `redis`, `xds`, `dns`, `zookeeper`, `kubernetes`, `eureka` or `nacos`";
    for (text, expected) in [
        ("{ path: x }", format!("1:20: registries.a: `kind` is missing; {kinds}")),
        ("{ kind: consull }", format!("1:28: registries.a.kind: found `consull`; {kinds}; did you mean `consul`?")),
        ("{ kind: [] }", format!("1:28: registries.a.kind: found a list; {kinds}")),
        ("{ kind: }", format!("1:22: registries.a.kind: found nothing; {kinds}")),
        (
            "consul",
            "1:20: registries.a: found `consul`; expected a map with `kind`: `embedded`, `file`, `consul`, `etcd`, `redis`, `xds`, `dns`, `zookeeper`, `kubernetes`, `eureka` or `nacos`"
                .into(),
        ),
        ("{ kind: file }", "1:20: registries.a: `path` is missing".into()),
    ] {
        // What follows from the first error is not told as another.
        let text = format!("registries: {{ a:   {text} }}\ndiscovery: {{ sources: [a] }}");
        let found = errors_of(&text);
        assert_eq!(found, [expected], "{text}");
    }
}

#[test]
fn a_cluster_is_named_once_and_whole() {
    for (text, expected) in [
        (
            "{ kind: kubernetes, port: Web, ip_family: ipv5 }",
            &[
                "1:46: registries.a.port: found `Web`; expected a port's name, or a number from 1 to 65535",
                "1:62: registries.a.ip_family: found `ipv5`; expected `ipv4` or `ipv6`; did you mean `ipv4`?",
            ][..],
        ),
        (
            "{ kind: kubernetes, port: 0 }",
            &["1:46: registries.a.port: found `0`; expected a port's name, or a number from 1 to 65535"],
        ),
        (
            "{ kind: kubernetes, context: dev }",
            &["1:49: registries.a.context: `context` goes with `kubeconfig`, which is missing"],
        ),
        (
            "{ kind: kubernetes, token: x, namespace: My Shop }",
            &[
                "1:47: registries.a.token: `token` goes with `servers`, which is missing",
                "1:61: registries.a.namespace: found `My Shop`; expected a namespace: small letters, digits and `-`",
            ],
        ),
        (
            "{ kind: kubernetes, servers: ['https://a:1'], kubeconfig: /no/such }",
            &[
                "1:78: registries.a.kubeconfig: `servers` says where the cluster is already; expected only one of the two",
                "1:78: registries.a.kubeconfig: `/no/such` cannot be read: No such file or directory (os error 2)",
            ],
        ),
        (
            "{ kind: kubernetes, servers: ['https://a:1', 'http://b:1'], token: x, token_file: / }",
            &[
                "1:65: registries.a.servers[1]: `http://b:1` and the first of them differ; expected all `http` or all `https`",
                "1:102: registries.a.token_file: `token` is there already; expected only one of the two",
                "1:102: registries.a.token_file: `/` is a folder; expected a file with a token",
            ],
        ),
    ] {
        let text = format!("registries: {{ a:   {text} }}\ndiscovery: {{ sources: [a] }}");
        assert_eq!(errors_of(&text), expected, "{text}");
    }
}

#[test]
fn registries_and_tls() {
    let consul = |rest: &str| errors_of(&format!("registries:\n  c:\n    kind: consul\n    {rest}\n"));
    let etcd = |rest: &str| errors_of(&format!("registries:\n  e:\n    kind: etcd\n    {rest}\n"));
    let url = "expected `http://HOST:PORT` or `https://HOST:PORT`";
    for bad in
        ["127.0.0.1:8500", "tcp://127.0.0.1:8500", "http://a:0", "http://a:99999", "http://a/b", "http://", "x y"]
    {
        assert_eq!(consul(&format!("address: {bad}")), [format!("4:14: registries.c.address: found `{bad}`; {url}")]);
    }
    for good in ["http://127.0.0.1:8500", "https://consul.example:8501", "http://[::1]:8500/", "http://consul.example"]
    {
        super::load_text(&format!("registries: {{ c: {{ kind: consul, address: '{good}' }} }}")).unwrap();
    }
    assert_eq!(
        consul("wait: 11m"),
        ["4:11: registries.c.wait: expected at most `10m`, which is the most that Consul grants"]
    );
    assert_eq!(consul("wait: 10ms"), ["4:11: registries.c.wait: found `10ms`; expected at least `1s`"]);
    assert_eq!(
        consul("tls: { server_name: consul.example }"),
        ["4:5: registries.c.tls: used only with `https://` addresses; found `http://`"]
    );
    assert_eq!(
        consul("token: \"se\\ncret\""),
        ["4:12: registries.c.token: expected a token: not empty, and of characters that a header can carry"]
    );
    assert_eq!(
        etcd("endpoints: []"),
        [
            "4:16: registries.e.endpoints: the list is empty; expected at least one `http://HOST:PORT` or `https://HOST:PORT`"
        ]
    );
    assert_eq!(
        etcd("endpoints: ['http://a:1', 'https://b:1']"),
        [
            "4:31: registries.e.endpoints[1]: `https://b:1` and the first of them differ; expected all `http` or all `https`"
        ]
    );
    assert_eq!(
        etcd("endpoints: ['http://user:secret@a:1']"),
        [format!("4:17: registries.e.endpoints[0]: a user in the address; {url}")]
    );
    let eureka = |rest: &str| errors_of(&format!("registries:\n  e:\n    kind: eureka\n    {rest}\n"));
    let with_path = "expected `http://HOST:PORT/PATH` or `https://HOST:PORT/PATH`";
    for bad in ["127.0.0.1:8761/eureka", "http://a:1/eureka?x=y"] {
        assert_eq!(
            eureka(&format!("servers: ['{bad}']")),
            [format!("4:15: registries.e.servers[0]: found `{bad}`; {with_path}")]
        );
    }
    assert_eq!(
        eureka("servers: ['http://me:secret@a:1/eureka']"),
        [format!("4:15: registries.e.servers[0]: a user in the address; {with_path}")]
    );
    assert_eq!(eureka("interval: 0s"), ["4:15: registries.e.interval: found `0s`; expected at least `1s`"]);
    assert_eq!(eureka("by: application"), ["4:9: registries.e.by: found `application`; expected `app` or `vip`"]);
    assert_eq!(
        eureka("password: secret"),
        ["4:15: registries.e.password: `password` goes with `user`, which is missing"]
    );
    assert_eq!(etcd("user: root"), ["4:11: registries.e.user: `user` goes with `password`, which is missing"]);
    assert_eq!(
        etcd("password: secret"),
        ["4:15: registries.e.password: `password` goes with `user`, which is missing"]
    );
    let xds = |rest: &str| errors_of(&format!("registries:\n  x:\n    kind: xds\n    {rest}\n"));
    assert_eq!(xds("servers: [istiod:15010]"), [format!("4:15: registries.x.servers[0]: found `istiod:15010`; {url}")]);
    assert_eq!(
        xds("protocol: incremental"),
        ["4:15: registries.x.protocol: found `incremental`; expected `auto`, `delta` or `sotw`"]
    );
    assert_eq!(xds("keepalive: 10ms"), ["4:16: registries.x.keepalive: found `10ms`; expected at least `1s`"]);
    assert_eq!(xds("node: { id: '' }"), ["4:17: registries.x.node.id: found an empty text; expected a node's id"]);
    let header = "expected the name of a header, in lower case, that is not gRPC's own";
    for name in ["grpc-timeout", "x-bin", "te", "A", "a b"] {
        let at = format!("4:{}: registries.x.metadata", 21 + name.len());
        let shown = xds(&format!("metadata: {{ '{name}': x }}"));
        assert!(shown.len() == 1 && shown[0].starts_with(&at) && shown[0].ends_with(header), "{at}: {shown:?}");
    }
    assert_eq!(
        xds("token: a\n    metadata: { authorization: b }"),
        ["5:32: registries.x.metadata.authorization: there is a `token` already, which is sent in this header"]
    );
    let tls = errors_of(&format!(
        "{REGISTRY}services: {{ a: {{ tls: {{ cert: /nonexistent/c.pem, server_name: 'a b' }} }} }}"
    ));
    assert_eq!(
        tls,
        [
            "2:31: services.a.tls.cert: `cert` goes with `key`, which is missing",
            "2:31: services.a.tls.cert: `/nonexistent/c.pem` cannot be read: No such file or directory (os error 2)",
            "2:64: services.a.tls.server_name: found `a b`; expected a host name",
        ]
    );
}
