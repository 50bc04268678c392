//! Whole files: how they are read, and what pillion makes of the result.

use super::{Options, import, load, options, source};
use crate::{
    config::{Route, Target, WhenEmpty},
    import::Source,
};

/// A service with a canary, as people have it: a rule for testers, a split for the others.
const CANARY: &str = "\
apiVersion: networking.istio.io/v1beta1
kind: VirtualService
metadata:
  name: checkout
  namespace: shop
spec:
  hosts:
    - checkout.shop.svc.cluster.local
  http:
    - name: testers
      match:
        - headers:
            x-tester:
              exact: 'yes'
        - uri:
            prefix: /beta
      route:
        - destination:
            host: checkout
            subset: canary
    - name: everybody
      route:
        - destination:
            host: checkout
            subset: stable
          weight: 90
        - destination:
            host: checkout
            subset: canary
          weight: 10
      timeout: 3s
---
apiVersion: networking.istio.io/v1beta1
kind: DestinationRule
metadata:
  name: checkout
  namespace: shop
spec:
  host: checkout
  trafficPolicy:
    loadBalancer:
      simple: LEAST_REQUEST
  subsets:
    - name: stable
      labels:
        version: v7
    - name: canary
      labels:
        version: v8
---
";

#[test]
fn a_canary_comes_out_as_people_would_write_it() {
    let options = Options { namespace: "shop".into(), registries: vec!["consul://127.0.0.1:8500".into()] };
    let imported = import(&[source(CANARY)], &options).unwrap();
    assert_eq!(
        imported.config,
        r#"# Imported from in.yaml.
# Where nothing is said, pillion's own defaults hold, which are not those of Istio or a gateway; see docs/import.md.
registries:
  consul: { kind: consul, address: http://127.0.0.1:8500 }
services:
  checkout:
    balance: { policy: least-request }
    subsets: { stable: { version: v7 }, canary: { version: v8 } }
    when_empty: { stable: fail, canary: fail }
    version_override: { enabled: false }
    routes:
      - name: testers
        match: { headers: { x-tester: "yes" } }
        to: canary
      - name: testers
        match: { path: { prefix: /beta } }
        to: canary
      - name: everybody
        split: { stable: 90, canary: 10 }
        timeouts: { request: 3s, stream: 3s }
"#
    );
    let notes: Vec<_> = imported.notes.iter().map(ToString::to_string).collect();
    assert_eq!(
        notes,
        [
            r"in.yaml:15:11: VirtualService shop/checkout: spec.http[0].match[1].uri: a prefix is by characters in Istio and by whole segments here: `/betax` is not taken any more; the same as before is `regex: /beta.*`"
        ]
    );
    let config = load(&imported.config);
    let checkout = &config.services["checkout"];
    assert_eq!(checkout.when_empty["canary"], WhenEmpty::Fail);
    let Route { split, .. } = &checkout.routes[2];
    let target = |subset: &str| Target { service: None, subset: Some(subset.into()) };
    assert_eq!(split.iter().collect::<Vec<_>>(), [(&target("stable"), &90), (&target("canary"), &10)]);
}

#[test]
fn registries_are_a_comment_where_none_are_given() {
    let imported = import(&[source(CANARY)], &options()).unwrap();
    assert!(imported.config.contains("#registries:\n#  main: { kind: kubernetes }\n"), "{}", imported.config);
    assert!(imported.config.contains("\n  checkout.shop:\n"), "of another namespace: {}", imported.config);
    let with_them = imported.config.replace("#registries:\n#  main", "registries:\n  main");
    crate::config::load(crate::config::Origin::text("out.yaml", with_them), &|_| None).unwrap();
}

#[test]
fn lists_json_and_several_files_are_read() {
    let list = r#"{"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "networking.istio.io/v1", "kind": "VirtualService", "metadata": {"name": "a"},
         "spec": {"hosts": ["a"], "http": [{"route": [{"destination": {"host": "a", "subset": "v1"}}]}]}},
        {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "a"}, "spec": {}}]}"#;
    let rule = "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nspec: { host: a, subsets: [{ name: v1, labels: { x: y } }] }";
    let sources = [source(list), Source { name: "rule.yaml".into(), text: rule.into() }];
    let imported = import(&sources, &options()).unwrap();
    assert_eq!(load(&imported.config).services["a"].subsets["v1"]["x"], "y");
    let notes: Vec<_> = imported.notes.iter().map(ToString::to_string).collect();
    assert_eq!(notes.len(), 1, "{notes:#?}");
    assert!(
        notes[0].starts_with("in.yaml:4:9: Deployment default/a: this kind of object is not imported"),
        "{notes:#?}"
    );
    assert!(imported.config.starts_with("# Imported from in.yaml, rule.yaml.\n"));
}

#[test]
fn a_subset_that_nobody_defines_is_assumed_and_told() {
    let alone = CANARY.split_once("---").unwrap().0;
    let imported = import(&[source(alone)], &Options { namespace: "shop".into(), registries: Vec::new() }).unwrap();
    assert_eq!(load(&imported.config).services["checkout"].subsets["stable"]["version"], "stable");
    let assumed = imported.notes.iter().filter(|note| note.message.contains("no DestinationRule defines the subset"));
    assert_eq!(assumed.count(), 2, "{:#?}", imported.notes);
}

#[test]
fn what_cannot_be_read_is_an_error_with_its_place() {
    let istio = |spec: &str| format!("apiVersion: networking.istio.io/v1\nkind: VirtualService\nspec: {spec}");
    for (text, expected) in [
        ("a: [".to_owned(), "in.yaml:2:1: not valid YAML"),
        ("just text".into(), "in.yaml:1:1: expected an object of Kubernetes"),
        ("kind: VirtualService".into(), "in.yaml:1:1: expected an object of Kubernetes"),
        ("".into(), "in.yaml: there is nothing to import"),
        ("apiVersion: v1\nkind: Service".into(), "in.yaml: there is nothing to import"),
        ("apiVersion: networking.istio.io/v2\nkind: VirtualService\nspec: {}".into(), "in.yaml:1:13: apiVersion: found `networking.istio.io/v2`; expected `networking.istio.io/v1`"),
        ("apiVersion: networking.istio.io/v1\nkind: VirtualService".into(), "`spec` is missing"),
        (istio("{ hosts: web }"), "in.yaml:3:16: spec.hosts: expected a list"),
        (istio("{ hosts: [{}] }"), "spec.hosts[0]: expected a text"),
        (istio("{ hosts: [web], http: [5] }"), "spec.http[0]: expected a map"),
        (istio("{ hosts: [web], http: [{ route: [{ weight: 1 }] }] }"), "spec.http[0].route[0]: `destination` is missing"),
        (istio("{ hosts: [web], http: [{ route: [{ destination: {} }] }] }"), "`host` is missing"),
        (istio("{ hosts: [web], http: [{ timeout: 5, route: [{ destination: { host: web } }] }] }"), "spec.http[0].timeout: expected a duration"),
        (istio("{ hosts: [web], http: [{ route: [{ destination: { host: web }, weight: -1 }] }] }"), "weight: expected a whole number"),
        (istio("{ hosts: [web], hosts: [web] }"), "the key is there twice"),
        ("apiVersion: networking.istio.io/v1\nkind: DestinationRule\nspec: { host: a, trafficPolicy: { loadBalancer: { simple: BEST } } }".into(), "found `BEST`; expected `ROUND_ROBIN`"),
        ("apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nspec: { rules: [{ filters: [{ type: URLRewrite }] }] }".into(), "`urlRewrite` is missing"),
    ] {
        let errors = import(&[source(&text)], &options()).expect_err(&text);
        let errors = errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
        assert!(errors.contains(expected), "{text}\nexpected: {expected}\nfound: {errors}");
    }
}

#[test]
fn a_registry_that_is_none_is_an_error() {
    let options = Options { registries: vec!["konsul://127.0.0.1".into()], ..options() };
    let errors = import(&[source(CANARY)], &options).unwrap_err();
    assert!(errors[0].to_string().contains("--registry: `konsul:` is no kind of registry"), "{}", errors[0]);
}

/// As many fields as there are, in both kinds of routes.
const MUCH: &str = "\
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata:
  name: much
spec:
  hosts: [much, '*.much.org']
  gateways: [mesh]
  http:
    - name: first
      match:
        - uri: { regex: '/a/[0-9]+' }
          ignoreUriCase: true
          method: { exact: GET }
          authority: { exact: a.much.org }
          headers: { x-a: { prefix: v } }
          withoutHeaders: { x-b: {} }
          queryParams: { q: { exact: '1' } }
      redirect:
        uri: /b
        authority: b.much.org
        port: 8080
        redirectCode: 307
    - match:
        - uri: { prefix: /c }
      directResponse:
        status: 418
        body: { string: teapot }
    - rewrite:
        uri: /d
        authority: d.much.org
      route:
        - destination: { host: much, subset: v1, port: { number: 80 } }
          weight: 99
          headers: { request: { set: { x-c: '1' } } }
        - destination: { host: other.ns.svc.cluster.local }
          weight: 1
      timeout: 2s
      retries: { attempts: 2, perTryTimeout: 1s, retryOn: 'reset,503', backoff: 10ms }
      fault: { delay: { fixedDelay: 1s, percentage: { value: 1 } }, abort: { httpStatus: 503, percentage: { value: 1 } } }
      mirror: { host: shadow }
      mirrorPercentage: { value: 5 }
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: { name: much }
spec:
  host: much
  trafficPolicy:
    loadBalancer: { consistentHash: { httpHeaderName: x-user } }
    connectionPool:
      tcp: { maxConnections: 10, connectTimeout: 1s }
      http: { http2MaxRequests: 10, idleTimeout: 1m }
    outlierDetection: { consecutive5xxErrors: 3, baseEjectionTime: 10s, maxEjectionPercent: 50 }
    tls: { mode: SIMPLE, sni: much.org }
  subsets:
    - name: v1
      labels: { version: v1 }
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { name: much }
spec:
  parentRefs: [{ name: edge }]
  hostnames: [c.much.org]
  rules:
    - matches:
        - path: { type: PathPrefix, value: /e }
          method: POST
          headers: [{ name: x-a, value: b }]
      filters:
        - type: URLRewrite
          urlRewrite: { path: { type: ReplacePrefixMatch, replacePrefixMatch: /f } }
        - type: RequestMirror
          requestMirror: { backendRef: { name: shadow, port: 80 }, percent: 10 }
      timeouts: { request: 3s, backendRequest: 1s }
      retry: { codes: [503], attempts: 2, backoff: 10ms }
      backendRefs:
        - name: a
          port: 80
          weight: 3
        - name: b
          port: 80
";

#[test]
fn whatever_is_written_is_refused_or_becomes_a_config_that_is_good() {
    let lines: Vec<_> = MUCH.lines().collect();
    load(&import(&[source(MUCH)], &options()).unwrap().config);
    let mut taken = 0;
    for (number, line) in lines.iter().enumerate() {
        let values =
            ["", " ~", " -1", " 1e300", " {}", " []", " 'x y'", " '*'", " '/\u{e9}?#%'", " '${A}'", " 99999999999"];
        let Some((key, _)) = line.rsplit_once(": ") else { continue };
        // In braces, what stood behind the value has to stay.
        let closing: String = line.chars().rev().take_while(|c| "]} ".contains(*c)).collect();
        let closing: String = closing.chars().rev().collect();
        for value in values {
            let mut text = lines.clone();
            let changed = format!("{key}:{value}{closing}");
            text[number] = &changed;
            if let Ok(imported) = import(&[source(&text.join("\n"))], &options()) {
                load(&imported.config);
                taken += 1;
            }
        }
    }
    assert!(taken > 100, "most are refused, and so show little: {taken}");
}
