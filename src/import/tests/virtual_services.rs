use super::{check, imported};

/// A VirtualService for `web` with these rules, and what becomes of it below `routes:`.
fn rules(rules: &str, expected: &[&str], notes: &[&str]) {
    let text = format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{ name: web }}\nspec:\n  hosts: [web]\n  http: [{rules}]\n"
    );
    let (services, found) = imported(&text);
    let services = match services.split_once("routes:\n") {
        Some((_, routes)) => routes.to_owned(),
        None => services,
    };
    check(rules, &(services, found), expected, notes);
}

const TO: &str = "route: [{ destination: { host: web } }]";
/// What stands at the end where there is no rule for all requests.
const REST: [&str; 2] = ["- name: no-route", "respond: { status: 404 }"];

#[test]
fn conditions() {
    for (given, expected, note) in [
        ("uri: { exact: /a }", "path: { exact: /a }", ""),
        (
            "uri: { prefix: /a }",
            "path: { prefix: /a }",
            "`/ax` is not taken any more; the same as before is `regex: /a.*`",
        ),
        (
            "uri: { prefix: /a.b/ }",
            "path: { prefix: /a.b/ }",
            r"`/a.b` itself is taken as well; the same as before is `regex: /a\.b/.*`",
        ),
        (r#"uri: { regex: "/a/\\d+" }"#, r#"path: { regex: "/a/\\d+" }"#, ""),
        ("uri: { exact: /A.b }, ignoreUriCase: true", r#"path: { regex: "(?i)/A\\.b" }"#, ""),
        ("uri: { prefix: /A }, ignoreUriCase: true", r#"path: { regex: "(?i)/A.*" }"#, ""),
        ("method: { exact: GET }", "method: [GET]", ""),
        ("method: { regex: GET|HEAD }", "method: [GET, HEAD]", ""),
        ("authority: { exact: a.example.com }", "host: [a.example.com]", ""),
        ("authority: { exact: \"a.example.com:80\" }", "host: [a.example.com]", "without their port"),
        ("headers: { x-a: { exact: \"1\" } }", "headers: { x-a: \"1\" }", ""),
        (
            "headers: { x-a: { prefix: v }, x-b: { regex: \"v.\" } }",
            "headers: { x-a: { prefix: v }, x-b: { regex: v. } }",
            "",
        ),
        ("headers: { x-a: {} }", "headers: { x-a: { present: true } }", ""),
        ("headers: { x-a: }", "headers: { x-a: { present: true } }", ""),
        ("withoutHeaders: { x-a: {} }", "headers: { x-a: { present: false } }", ""),
        ("queryParams: { a: { exact: \"\" } }", "query: { a: \"\" }", ""),
        ("queryParams: { a: { regex: \"\\\\d+\" } }", "query: { a: { regex: \"\\\\d+\" } }", ""),
        ("uri: { exact: /a }, gateways: [edge, mesh]", "path: { exact: /a }", ""),
        ("uri: { exact: /a }, statPrefix: a", "path: { exact: /a }", "statPrefix: not carried over"),
        (
            "uri: { exact: /a }, newField: a",
            "path: { exact: /a }",
            "newField: not carried over: the import does not know",
        ),
    ] {
        let notes: &[&str] = if note.is_empty() { &[] } else { &[note] };
        let matched = format!("- match: {{ {expected} }}");
        rules(&format!("{{ match: [{{ {given} }}], {TO} }}"), &[&matched, "to: web/", REST[0], REST[1]], notes);
    }
}

#[test]
fn an_alternative_with_a_condition_that_pillion_lacks_is_left_out_and_not_widened() {
    for (given, note) in [
        ("scheme: { exact: https }", "does not tell schemes apart"),
        ("port: 80", "match[0].port: "),
        ("sourceLabels: { app: x }", "`match.caller`"),
        ("sourceNamespace: x", "`match.caller`"),
        ("gateways: [x]", "no gateways"),
        ("method: { prefix: P }", "from a list"),
        ("method: { regex: \"P.*\" }", "from a list"),
        ("authority: { regex: \"a.*\" }", "by their end"),
        ("withoutHeaders: { x-a: { exact: \"1\" } }", "put a route for that value before it"),
        ("headers: { x-a: {} }, withoutHeaders: { x-a: {} }", "have a header and not have it"),
        ("uri: { regex: \"(?=a)b\" }", "look-around"),
        ("headers: { \"x a\": { exact: b } }", "left out, because pillion does not take it"),
    ] {
        let rule = format!("{{ match: [{{ {given} }}, {{ uri: {{ exact: /kept }} }}], {TO} }}");
        rules(&rule, &["- match: { path: { exact: /kept } }", "to: web/", REST[0], REST[1]], &[note]);
    }
}

#[test]
fn rules_keep_their_order_and_alternatives_their_names() {
    rules(
        &format!(
            "{{ name: a, match: [{{ name: one, uri: {{ exact: /1 }} }}, {{ uri: {{ exact: /2 }} }}], {TO} }}, {{ {TO} }}"
        ),
        &[
            "- name: a.one",
            "match: { path: { exact: /1 } }",
            "to: web/",
            "- name: a",
            "match: { path: { exact: /2 } }",
            "to: web/",
            "- to: web/",
        ],
        &[],
    );
    rules(
        &format!("{{ {TO} }}, {{ match: [{{ uri: {{ exact: /never }} }}], {TO} }}"),
        &["- to: web/"],
        &["http[1].match[0]: left out: a rule before it takes all requests that it would take"],
    );
}

#[test]
fn actions() {
    for (given, expected, notes) in [
        ("route: [{ destination: { host: other }, weight: 100 }]", &["- to: other/"][..], &[][..]),
        ("route: [{ destination: { host: a.b.svc.cluster.local } }]", &["- to: a.b/"], &[]),
        (
            "route: [{ destination: { host: web }, weight: 75 }, { destination: { host: other }, weight: 25 }]",
            &["- split: { web/: 75, other/: 25 }"],
            &[],
        ),
        (
            "route: [{ destination: { host: web, port: { number: 80 } }, weight: 1 }, { destination: { host: web, port: { number: 81 } }, weight: 2 }]",
            &["- split: { web/: 3 }"],
            &["on the ports 80 and 81"],
        ),
        (
            "redirect: { uri: /x, authority: a.com, port: 81 }",
            &["- redirect: { status: 301, host: a.com, path: /x, port: 81 }"],
            &[],
        ),
        (
            "redirect: { scheme: https, redirectCode: 308, derivePort: FROM_REQUEST_PORT }",
            &["- redirect: { status: 308, scheme: https }"],
            &["derivePort: not carried over"],
        ),
        (
            "directResponse: { status: 503, body: { string: \"a, ${b}\" } }",
            &["- respond: { status: 503, body: \"a, $${b}\" }"],
            &[],
        ),
        (
            "directResponse: { status: 200, body: { bytes: cG9uZw== } }",
            &["- respond: { status: 200, body: pong }"],
            &[],
        ),
        (
            "directResponse: { status: 200, body: { bytes: /w== } }",
            &["- respond: { status: 200 }"],
            &["`respond.file`"],
        ),
        (
            "directResponse: { status: 200 }, timeout: 5s",
            &["- respond: { status: 200 }"],
            &["timeout: not carried over: it has no effect"],
        ),
    ] {
        rules(&format!("{{ {given} }}"), expected, notes);
    }
}

#[test]
fn a_rule_that_cannot_be_carried_over_is_left_out() {
    for (given, note) in [
        ("delegate: { name: x }", "http[0].delegate: "),
        (&format!("{TO}, rewrite: {{ uriRegexRewrite: {{ match: /a, rewrite: /b }} }}"), "uriRegexRewrite"),
        ("name: x", "nothing is said of what becomes"),
        ("redirect: {}", "it would lead back here"),
        ("directResponse: { status: 100 }", "100"),
        ("redirect: { uri: \"/x?a=b\" }", "without `?`"),
    ] {
        rules(&format!("{{ match: [{{ uri: {{ exact: /x }} }}], {given} }}, {{ {TO} }}"), &["- to: web/"], &[note]);
    }
}

#[test]
fn rewrites() {
    for (matched, rewritten, expected, notes) in [
        ("uri: { exact: /a }", "uri: /b", &["- match: { path: { exact: /a } }", "rewrite: { path: /b }"][..], &[][..]),
        ("uri: { regex: /a.* }", "uri: /b", &["- match: { path: { regex: \"/a.*\" } }", "rewrite: { path: /b }"], &[]),
        (
            "uri: { prefix: /a/ }",
            "uri: /",
            &["- match: { path: { prefix: /a/ } }", "rewrite: { prefix: / }"],
            &["/a/.*"],
        ),
        (
            "uri: { prefix: /a/ }",
            "uri: /b",
            &["- match: { path: { prefix: /a/ } }", "rewrite: { prefix: /b }"],
            &["/a/.*", "keeps the slash"],
        ),
        (
            "method: { exact: GET }",
            "uri: /b/, authority: b.com",
            &["- match: { path: { prefix: / }, method: [GET] }", "rewrite: { host: b.com, prefix: /b/ }"],
            &[],
        ),
    ] {
        let rule = format!("{{ match: [{{ {matched} }}], {TO}, rewrite: {{ {rewritten} }} }}");
        rules(&rule, &[expected[0], "to: web/", expected[1], REST[0], REST[1]], notes);
    }
    let rule = format!(
        "{{ match: [{{ uri: {{ prefix: /a }}, ignoreUriCase: true }}], {TO}, rewrite: {{ uri: /b }} }}, {{ {TO} }}"
    );
    rules(&rule, &["- to: web/"], &["rewrite.uri: with `ignoreUriCase`"]);
}

#[test]
fn policies() {
    for (given, expected, notes) in [
        ("timeout: 1.5s", &["timeouts: { request: 1s 500ms, stream: 1s 500ms }"][..], &[][..]),
        ("timeout: 0s", &["timeouts: { request: 1d }"], &["timeout: there is always a limit"]),
        ("retries: { attempts: 0 }", &["retry: { attempts: 0 }"], &[]),
        (
            "retries: { attempts: 3 }",
            &["retry: { attempts: 3, \"on\": [connect-failure, refused-stream, grpc-unavailable] }"],
            &[],
        ),
        (
            "timeout: 5s, retries: { attempts: 1, perTryTimeout: 2s, retryOn: \"connect-failure,unavailable\", backoff: 50ms }",
            &[
                "timeouts: { request: 5s, stream: 5s }",
                "retry:",
                "attempts: 1",
                "\"on\": [connect-failure, grpc-unavailable]",
                "per_try_timeout: 2s",
                "backoff: { base: 50ms, max: 500ms }",
            ],
            &[],
        ),
        (
            "timeout: 2s, retries: { attempts: 1, perTryTimeout: 2s, retryOn: connect-failure }",
            &["timeouts: { request: 2s, stream: 2s }", "retry: { attempts: 1, \"on\": [connect-failure] }"],
            &["perTryTimeout: left out"],
        ),
        (
            "retries: { attempts: 1, perTryTimeout: 20s, retryOn: connect-failure }",
            &["timeouts: { request: 40s }", "retry: { attempts: 1, \"on\": [connect-failure], per_try_timeout: 20s }"],
            &["the time for all tries"],
        ),
        (
            "retries: { attempts: 1, retryOn: \"gateway-error,reset,cancelled,retriable-4xx\" }",
            &["retry: { attempts: 1, \"on\": [gateway-error, reset] }"],
            &["after `cancelled`, `retriable-4xx`", "no POST, no PATCH"],
        ),
        (
            "retries: { attempts: 1, retryOn: \"retriable-status-codes,503\", retryRemoteLocalities: true, retryIgnorePreviousHosts: false }",
            &["retry: { attempts: 1, \"on\": [gateway-error] }"],
            &["`503` becomes", "no POST", "retryRemoteLocalities", "retryIgnorePreviousHosts"],
        ),
        (
            "fault: { delay: { percentage: { value: 0.5 }, fixedDelay: 2s }, abort: { percentage: { value: 10 }, grpcStatus: UNAVAILABLE } }",
            &["faults: { delay: { percent: 0.5, duration: 2s }, abort: { percent: 10, grpc_status: 14 } }"],
            &[],
        ),
        ("fault: { delay: { percent: 5, fixedDelay: 2s } }", &["faults: { delay: { percent: 5, duration: 2s } }"], &[]),
        ("fault: { abort: { httpStatus: 500 } }", &[], &["without a percentage"]),
        ("fault: { abort: { httpStatus: 200, percentage: { value: 1 } } }", &[], &["from 400 to 599"]),
        ("fault: { abort: { grpcStatus: OK, percentage: { value: 1 } } }", &[], &["`OK` is no error"]),
        ("mirror: { host: shadow }", &["mirror: { to: shadow/, percent: 100 }"], &[]),
        (
            "mirror: { host: shadow }, mirrorPercentage: { value: 12.5 }",
            &["mirror: { to: shadow/, percent: 12.5 }"],
            &[],
        ),
        (
            "mirrors: [{ destination: { host: a }, percentage: { value: 1 } }, { destination: { host: b } }]",
            &["mirror: { to: a/, percent: 1 }"],
            &["mirrors[1]: not carried over"],
        ),
        (
            "headers: { request: { set: { x-a: \"1\", Host: b.com }, remove: [x-b] }, response: { add: { x-c: \"100%%\" } } }",
            &[
                "rewrite: { host: b.com }",
                "headers: { request: { set: { x-a: \"1\" }, remove: [x-b] }, response: { add: { x-c: \"100%\" } } }",
            ],
            &[],
        ),
        ("headers: { request: { set: { x-a: \"%REQ(x)%\" } } }", &[], &["set.x-a: not carried over"]),
        ("corsPolicy: { allowOrigins: [] }", &[], &["corsPolicy: not carried over"]),
    ] {
        let expected: Vec<_> = ["- to: web/"].iter().chain(expected).copied().collect();
        rules(&format!("{{ {TO}, {given} }}"), &expected, notes);
    }
}

#[test]
fn headers_of_a_destination_are_the_routes_where_it_is_alone() {
    let headers = "headers: { response: { remove: [x-a] } }";
    rules(
        &format!("{{ route: [{{ destination: {{ host: web }}, {headers} }}] }}"),
        &["- to: web/", "headers: { response: { remove: [x-a] } }"],
        &[],
    );
    rules(
        &format!(
            "{{ route: [{{ destination: {{ host: web }}, weight: 1, {headers} }}, {{ destination: {{ host: b }}, weight: 1 }}] }}"
        ),
        &["- split: { web/: 1, b/: 1 }"],
        &["route[0].headers: not carried over"],
    );
}

#[test]
fn hosts_of_many_kinds() {
    let text = "
apiVersion: networking.istio.io/v1alpha3
kind: VirtualService
metadata: { name: shop, namespace: prod }
spec:
  hosts: [web, web.prod.svc.cluster.local, shop.example.com, '*.shop.example.com']
  gateways: [mesh, edge]
  exportTo: ['.']
  tcp: [{ route: [] }]
  http: [{ route: [{ destination: { host: web } }] }]
";
    let expected = [
        "web.prod:",
        "routes:",
        "- to: web.prod/",
        "shop.example.com:",
        "routes:",
        "- to: web.prod/",
        "virtual-shop:",
        "routes:",
        "- match: { host: [\"*.shop.example.com\"] }",
        "to: web.prod/",
        "- name: no-route",
        "respond: { status: 404 }",
    ];
    let notes = [
        "spec.http[0]: `web.prod` has routes of its own",
        "spec: `*.shop.example.com` is no name of a service",
        "spec.gateways: pillion has no gateways",
        "spec.exportTo: not carried over",
        "spec.tcp: not carried over",
    ];
    let (services, mut found) = imported(text);
    found.sort();
    let mut notes = notes;
    notes.sort_unstable();
    check(text, &(services, found), &expected, &notes);
}

#[test]
fn a_second_virtual_service_comes_after_the_first() {
    let one = |name: &str, path: &str| {
        format!(
            "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{ name: {name} }}\n\
             spec: {{ hosts: [web], http: [{{ match: [{{ uri: {{ exact: {path} }} }}], {TO} }}] }}\n"
        )
    };
    let text = one("a", "/a") + &one("b", "/b");
    let expected = [
        "web:",
        "routes:",
        "- match: { path: { exact: /a } }",
        "to: web/",
        "- match: { path: { exact: /b } }",
        "to: web/",
        REST[0],
        REST[1],
    ];
    check(&text, &imported(&text), &expected, &["`web` has routes of another object already"]);
}

#[test]
fn one_that_others_delegate_to_is_told() {
    let text = format!("apiVersion: networking.istio.io/v1\nkind: VirtualService\nspec: {{ http: [{{ {TO} }}] }}");
    check(&text, &imported(&text), &["{}"], &["spec: not carried over: without `hosts`"]);
}
