use super::{check, imported};

/// An HTTPRoute for `web.example.com` with these rules, and what becomes of it below `routes:`.
fn rules(rules: &str, expected: &[&str], notes: &[&str]) {
    let text = route("web", "hostnames: [web.example.com]", rules);
    let (services, found) = imported(&text);
    let (_, routes) = services.split_once("routes:\n").unwrap();
    check(rules, &(routes.to_owned(), found), expected, notes);
}

fn route(name: &str, spec: &str, rules: &str) -> String {
    format!(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{ name: {name} }}\n\
         spec: {{ {spec}, rules: [{rules}] }}\n"
    )
}

const TO: &str = "backendRefs: [{ name: web, port: 80 }]";
const REST: [&str; 2] = ["- name: no-route", "respond: { status: 404 }"];

#[test]
fn conditions() {
    for (given, expected) in [
        ("path: { type: Exact, value: /a }", "path: { exact: /a }"),
        ("path: { value: /a }", "path: { prefix: /a }"),
        ("path: { type: RegularExpression, value: \"/a/[0-9]+\" }", "path: { regex: \"/a/[0-9]+\" }"),
        ("method: POST", "method: [POST]"),
        ("headers: [{ name: X-A, value: \"1\" }, { name: x-a, value: \"2\" }]", "headers: { x-a: \"1\" }"),
        ("headers: [{ type: RegularExpression, name: x-a, value: \"v.\" }]", "headers: { x-a: { regex: v. } }"),
        ("queryParams: [{ name: A, value: b }]", "query: { A: b }"),
    ] {
        let matched = format!("- match: {{ {expected} }}");
        rules(&format!("{{ matches: [{{ {given} }}], {TO} }}"), &[&matched, "to: web/", REST[0], REST[1]], &[]);
    }
    let unknown = format!("{{ matches: [{{ path: {{ type: Glob, value: /a }} }}], {TO} }}, {{ {TO} }}");
    rules(&unknown, &["- to: web/"], &["paths of the type `Glob`"]);
}

#[test]
fn the_more_specific_rule_comes_first() {
    let rule = |matched: &str, to: &str| {
        format!("{{ matches: [{{ {matched} }}], backendRefs: [{{ name: {to}, port: 80 }}] }}")
    };
    let first = [
        rule("path: { value: / }", "all"),
        rule("path: { value: /a }, headers: [{ name: x-a, value: b }]", "header"),
        rule("path: { value: /a }, headers: [{ name: x-a, value: b }, { name: x-b, value: b }]", "headers"),
        rule("path: { value: /a }, queryParams: [{ name: a, value: b }]", "query"),
    ];
    let second = [
        rule("path: { value: /a }, method: GET", "method"),
        rule("path: { value: /a/b }", "longer"),
        rule("path: { type: Exact, value: /a }", "exact"),
        rule("path: { type: RegularExpression, value: \"/x.*\" }", "regex"),
        // As specific as one of the other object, which is older.
        rule("path: { value: /a }, headers: [{ name: x-c, value: b }]", "younger"),
    ];
    let hosts = "hostnames: [web.example.com]";
    let older = "metadata: { name: z, creationTimestamp: \"2024-01-01T00:00:00Z\" }";
    let text = route("z", hosts, &first.join(", ")).replace("metadata: { name: z }", older)
        + &route("a", hosts, &second.join(", "));
    let (services, notes) = imported(&text);
    assert_eq!(notes, [""; 0]);
    let order: Vec<_> =
        services.lines().filter_map(|line| line.trim().trim_start_matches("- ").strip_prefix("to: ")).collect();
    let expected = ["exact/", "regex/", "longer/", "method/", "headers/", "header/", "younger/", "query/", "all/"];
    assert_eq!(order, expected, "{services}");
}

#[test]
fn backends() {
    for (given, expected, notes) in [
        (
            "backendRefs: [{ name: a, port: 80, weight: 9 }, { name: b, namespace: x, port: 80 }]",
            "- split: { a/: 9, b.x/: 1 }",
            &[][..],
        ),
        ("backendRefs: [{ name: a, port: 80, weight: 0 }, { name: b, port: 80 }]", "- to: b/", &[]),
        ("backendRefs: [{ name: a, port: 80, weight: 0 }]", "- respond: { status: 500 }", &[]),
        ("backendRefs: []", "- respond: { status: 500 }", &[]),
        ("backendRefs: [{ name: a, kind: Bucket, group: x.io }]", "- respond: { status: 500 }", &["`Bucket` is none"]),
    ] {
        rules(&format!("{{ {given} }}"), &[expected], notes);
    }
}

#[test]
fn filters() {
    let headers = "{ set: [{ name: x-a, value: \"1\" }], add: [{ name: x-b, value: \"2\" }], remove: [x-c] }";
    for (filter, expected, notes) in [
        (
            format!("type: RequestHeaderModifier, requestHeaderModifier: {headers}"),
            &["to: web/", "headers: { request: { set: { x-a: \"1\" }, add: { x-b: \"2\" }, remove: [x-c] } }"][..],
            &[][..],
        ),
        (
            format!("type: ResponseHeaderModifier, responseHeaderModifier: {headers}"),
            &["to: web/", "headers: { response: { set: { x-a: \"1\" }, add: { x-b: \"2\" }, remove: [x-c] } }"],
            &[],
        ),
        (
            "type: RequestHeaderModifier, requestHeaderModifier: { set: [{ name: Host, value: b.com }] }".into(),
            &["to: web/", "rewrite: { host: b.com }"],
            &[],
        ),
        (
            "type: RequestRedirect, requestRedirect: { scheme: https, hostname: b.com, port: 8443, statusCode: 308 }".into(),
            &["redirect: { status: 308, scheme: https, host: b.com, port: 8443 }"],
            &[],
        ),
        (
            "type: RequestRedirect, requestRedirect: { path: { type: ReplacePrefixMatch, replacePrefixMatch: /b } }".into(),
            &["redirect: { status: 302, prefix: /b }"],
            &[],
        ),
        (
            "type: URLRewrite, urlRewrite: { hostname: b.com, path: { type: ReplaceFullPath, replaceFullPath: /b } }".into(),
            &["to: web/", "rewrite: { host: b.com, path: /b }"],
            &[],
        ),
        (
            "type: URLRewrite, urlRewrite: { path: { type: ReplacePrefixMatch, replacePrefixMatch: \"\" } }".into(),
            &["to: web/", "rewrite: { prefix: / }"],
            &[],
        ),
        (
            "type: RequestMirror, requestMirror: { backendRef: { name: b, port: 80 }, fraction: { numerator: 1, denominator: 8 } }".into(),
            &["to: web/", "mirror: { to: b/, percent: 12.5 }"],
            &[],
        ),
        ("type: CORS, cors: { allowOrigins: [] }".into(), &["to: web/"], &["preflight"]),
        ("type: ExtensionRef, extensionRef: { group: a, kind: B, name: c }".into(), &["to: web/"], &["`ExtensionRef` is an extension"]),
        ("type: ExternalAuth, externalAuth: {}".into(), &["to: web/"], &["`ExternalAuth`"]),
    ] {
        let rule = format!("{{ matches: [{{ path: {{ value: /a }} }}], filters: [{{ {filter} }}], {TO} }}");
        let expected: Vec<_> =
            ["- match: { path: { prefix: /a } }"].iter().chain(expected).chain(&REST).copied().collect();
        rules(&rule, &expected, notes);
    }
    let rule = format!(
        "{{ matches: [{{ path: {{ type: Exact, value: /a }} }}], filters: [{{ type: URLRewrite, urlRewrite: \
         {{ path: {{ type: ReplacePrefixMatch, replacePrefixMatch: /b }} }} }}], {TO} }}, {{ {TO} }}"
    );
    rules(&rule, &["- to: web/"], &["only where the path is matched by one"]);
}

#[test]
fn limits_and_sessions() {
    let split = "backendRefs: [{ name: a, port: 80 }, { name: b, port: 80 }]";
    for (given, expected, notes) in [
        (
            format!("{TO}, timeouts: {{ request: 10s, backendRequest: 2s }}"),
            &["- to: web/", "timeouts: { request: 10s, stream: 10s }", "retry: { per_try_timeout: 2s }"][..],
            &[][..],
        ),
        (
            format!("{TO}, timeouts: {{ request: 0s }}"),
            &["- to: web/", "timeouts: { request: 1d }"],
            &["always a limit"],
        ),
        (
            format!("{TO}, retry: {{ codes: [500, 503], attempts: 3, backoff: 100ms }}"),
            &["- to: web/", "retry: { attempts: 3, backoff: { base: 100ms, max: 1s } }"],
            &["after 500", "no POST"],
        ),
        (
            format!(
                "{split}, sessionPersistence: {{ sessionName: sid, absoluteTimeout: 1h, cookieConfig: {{ lifetimeType: Permanent }} }}"
            ),
            &["- split: { a/: 1, b/: 1 }", "sticky: { cookie: sid, set_cookie: { max_age: 1h } }"],
            &["the same backend, and not"],
        ),
        (
            format!("{split}, sessionPersistence: {{ sessionName: x-sid, type: Header }}"),
            &["- split: { a/: 1, b/: 1 }", "sticky: { header: x-sid }"],
            &["the same backend, and not"],
        ),
        (format!("{TO}, sessionPersistence: {{}}"), &["- to: web/"], &["`balance.hash`"]),
    ] {
        rules(&format!("{{ {given} }}"), expected, notes);
    }
}

#[test]
fn hosts_come_from_the_route_the_gateway_and_the_service() {
    let gateway = "
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: { name: edge }
spec: { listeners: [{ name: a, port: 80, hostname: '*.example.com' }, { name: b, port: 81, hostname: b.org }] }
";
    let only = "only the hosts of its listeners";
    for (spec, names, notes) in [
        ("parentRefs: [{ name: edge }], hostnames: [a.example.com, b.com]", &["a.example.com"][..], &[only][..]),
        ("parentRefs: [{ name: edge }], hostnames: [b.com]", &[], &[only, "no listener of the gateway `edge`"]),
        ("parentRefs: [{ name: edge, sectionName: b }]", &["b.org"], &[only, "sectionName: pillion's routes hold"]),
        (
            "parentRefs: [{ name: edge, port: 80 }]",
            &["virtual-web"],
            &[only, "`*.example.com` is no name of a service", "port: pillion's routes hold"],
        ),
        ("parentRefs: [{ name: other }], hostnames: [b.com]", &["b.com"], &[only]),
        ("parentRefs: [{ name: other }]", &["virtual-web"], &[only, "`*` is no name"]),
        (
            "parentRefs: [{ kind: Service, group: '', name: orders, port: 80 }]",
            &["orders"],
            &[only, "whatever its port"],
        ),
        ("parentRefs: [{ kind: Ship, name: x }]", &[], &[only, "no `Ship` as a parent"]),
    ] {
        let text = gateway.to_owned() + &route("web", spec, &format!("{{ {TO} }}"));
        let (services, found) = imported(&text);
        let known = |line: &&str| line.starts_with("  ") && !line.starts_with("   ");
        let services: Vec<_> = services.lines().filter(known).map(|line| line.trim().trim_end_matches(':')).collect();
        assert_eq!(services, names, "{spec}");
        let fit = found.len() == notes.len() && found.iter().zip(notes).all(|(found, part)| found.contains(part));
        assert!(fit, "{spec}\nexpected {notes:#?}, found {found:#?}");
    }
}
