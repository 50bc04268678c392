use super::{check, imported};

fn rule(spec: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{ name: web }}\nspec: {{ host: web, {spec} }}"
    )
}

#[test]
fn subsets_fail_when_empty_and_no_header_leads_there() {
    let text = rule(
        "subsets: [{ name: v1, labels: { version: v1 } }, { name: v2, labels: { version: v2, tier: gold }, trafficPolicy: {} }]",
    );
    let expected = [
        "web:",
        "subsets: { v1: { version: v1 }, v2: { version: v2, tier: gold } }",
        "when_empty: { v1: fail, v2: fail }",
        "version_override: { enabled: false }",
    ];
    check(&text, &imported(&text), &expected, &["subsets[1].trafficPolicy: not carried over"]);
}

#[test]
fn a_subset_that_is_none_is_left_out() {
    for (subset, notes) in [
        ("{ name: all }", &["without labels", "left out, because pillion does not take it"][..]),
        ("{ name: fail, labels: { a: b } }", &["a word of `when_empty`"]),
        ("{ name: v1, labels: { a: b } }", &["there is a subset `v1` of `web` already"]),
    ] {
        let text = rule(&format!("subsets: [{{ name: v1, labels: {{ version: v1 }} }}, {subset}]"));
        let expected = [
            "web:",
            "subsets: { v1: { version: v1 } }",
            "when_empty: { v1: fail }",
            "version_override: { enabled: false }",
        ];
        check(&text, &imported(&text), &expected, notes);
    }
}

#[test]
fn traffic_policies() {
    for (given, expected, notes) in [
        ("loadBalancer: { simple: ROUND_ROBIN }", &["balance: { policy: round-robin }"][..], &[][..]),
        ("loadBalancer: { simple: LEAST_CONN }", &["balance: { policy: least-request }"], &[]),
        (
            "loadBalancer: { simple: RANDOM, warmup: { duration: 30s, minimumPercent: 20, aggression: 2 } }",
            &["balance: { policy: random, slow_start: { window: 30s, aggression: 2.0, min_weight_percent: 20 } }"],
            &[],
        ),
        (
            "loadBalancer: { consistentHash: { httpHeaderName: x-user } }",
            &["balance: { policy: ring-hash, hash: { header: x-user, balance_factor: 0 } }"],
            &[],
        ),
        (
            "loadBalancer: { consistentHash: { useSourceIp: true, maglev: { tableSize: 101 } } }",
            &["balance: { policy: maglev, hash: { source: true, balance_factor: 0 } }"],
            &["maglev.tableSize: not carried over"],
        ),
        (
            "loadBalancer: { consistentHash: { httpCookie: { name: user, ttl: 0s } } }",
            &["balance: { policy: ring-hash, hash: { cookie: user, balance_factor: 0 } }"],
            &["httpCookie.ttl: pillion gives no cookie"],
        ),
        (
            "connectionPool: { tcp: { maxConnections: 100, connectTimeout: 30ms, maxConnectionDuration: 1h } }",
            &["timeouts: { connect: 30ms }", "pool: { max_age: 1h }", "limits: { connections: 100 }"],
            &[],
        ),
        (
            "connectionPool: { http: { http2MaxRequests: 50, idleTimeout: 90s, h2UpgradePolicy: UPGRADE } }",
            &["protocol: http2", "pool: { idle_timeout: 1m 30s }", "limits: { requests: 50 }"],
            &[],
        ),
        (
            "outlierDetection: { consecutive5xxErrors: 7, baseEjectionTime: 15m, maxEjectionPercent: 100, minHealthPercent: 30 }",
            &[
                "breaker: { consecutive_failures: 7, open: { base: 15m, max: 15m }, max_ejected: 100 }",
                "panic_threshold: 30",
            ],
            &["baseEjectionTime: each further", "maxEjectionPercent: "],
        ),
        (
            "outlierDetection: { consecutive5xxErrors: 0, consecutiveGatewayErrors: 3 }",
            &["breaker: { consecutive_failures: 3 }"],
            &["consecutiveGatewayErrors: pillion counts every 5xx"],
        ),
        ("tls: { mode: SIMPLE, sni: web.example.com }", &["tls: { server_name: web.example.com }"], &[]),
        (
            "tls: { mode: MUTUAL, caCertificates: /no/ca.pem, subjectAltNames: [web.example.com] }, loadBalancer: { simple: UNSPECIFIED }",
            &["tls: { server_name: web.example.com }"],
            &["`/no/ca.pem` is not there"],
        ),
        (
            "loadBalancer: { simple: RANDOM }, retryBudget: { percent: 25 }",
            &["balance: { policy: random }", "retry: { budget: { percent: 25 } }"],
            &[],
        ),
        // What pillion's own loader refuses goes, and nothing else.
        (
            "loadBalancer: { simple: RANDOM, warmupDurationSecs: 0s }, connectionPool: { tcp: { maxConnections: 0 } }",
            &["balance: { policy: random }"],
            &["`balance.slow_start.window` is left out", "`limits.connections` is left out"],
        ),
    ] {
        let text = rule(&format!("trafficPolicy: {{ {given} }}"));
        let found = imported(&text);
        let expected: Vec<_> = ["web:"].iter().chain(expected).copied().collect();
        check(&text, &found, &expected, notes);
    }
}

#[test]
fn what_a_service_cannot_have() {
    for (given, note) in [
        ("trafficPolicy: { loadBalancer: { simple: PASSTHROUGH } }", "simple: not carried over"),
        (
            "trafficPolicy: { loadBalancer: { consistentHash: { httpQueryParameterName: a } } }",
            "httpQueryParameterName: not",
        ),
        ("trafficPolicy: { loadBalancer: { localityLbSetting: { enabled: true } } }", "`balance.zone`"),
        ("trafficPolicy: { connectionPool: { tcp: { tcpKeepalive: {} } } }", "tcpKeepalive: not"),
        ("trafficPolicy: { connectionPool: { http: { http1MaxPendingRequests: 1 } } }", "`limits.queue_timeout`"),
        ("trafficPolicy: { connectionPool: { http: { maxRequestsPerConnection: 1 } } }", "`pool.max_idle: 0`"),
        ("trafficPolicy: { connectionPool: { http: { maxRetries: 1 } } }", "`retry.budget`"),
        ("trafficPolicy: { outlierDetection: { interval: 5s } }", "interval: not"),
        ("trafficPolicy: { outlierDetection: { splitExternalLocalOriginErrors: true } }", "failures to connect"),
        ("trafficPolicy: { tls: { mode: ISTIO_MUTUAL } }", "tls.mode: not carried over"),
        ("trafficPolicy: { portLevelSettings: [] }", "for all ports"),
        ("trafficPolicy: { novelty: 1 }", "does not know this field"),
        ("workloadSelector: {}", "workloadSelector: not"),
    ] {
        let text = rule(given);
        check(&text, &imported(&text), &["{}"], &[note]);
    }
    let text = rule("subsets: []").replace("host: web", "host: '*.local'");
    check(&text, &imported(&text), &["{}"], &["`*.local` is many services"]);
}
