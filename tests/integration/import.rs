//! `pillion import`, and that a pillion with what it wrote does what the routes said before.

use crate::{
    e2e::{ANY, Pillion, output, pillion, soon},
    peer::{Answering, Peer, Upstream, ok},
};
use std::{
    fs,
    process::{Output, Stdio},
};
use tempfile::TempDir;
use tokio::{io::AsyncWriteExt, process::Command};

const ROUTES: &str = "\
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: { name: checkout, namespace: shop }
spec:
  hosts: [checkout]
  http:
    - match: [{ headers: { x-tester: { exact: 'yes' } } }]
      route: [{ destination: { host: checkout, subset: canary } }]
    - route:
        - { destination: { host: checkout, subset: stable }, weight: 90 }
        - { destination: { host: checkout, subset: canary }, weight: 10 }
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: { name: checkout, namespace: shop }
spec:
  host: checkout.shop.svc.cluster.local
  subsets: [{ name: stable, labels: { version: v1 } }, { name: canary, labels: { version: v2 } }]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { name: shop, namespace: shop }
spec:
  hostnames: [shop.example.com]
  rules:
    - matches: [{ path: { type: PathPrefix, value: /pay } }]
      filters:
        - { type: URLRewrite, urlRewrite: { path: { type: ReplacePrefixMatch, replacePrefixMatch: /v1 } } }
      backendRefs: [{ name: till, port: 80 }]
";

/// Exit code, standard output, standard error.
async fn run(command: &mut Command) -> (i32, String, String) {
    let Output { status, stdout, stderr } = output(command).await;
    (status.code().unwrap(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

async fn from_stdin(args: &[&str], text: &str) -> (i32, String, String) {
    let mut command = pillion(args);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(text.as_bytes()).await.unwrap();
    drop(stdin);
    let Output { status, stdout, stderr } = soon("the import", child.wait_with_output()).await.unwrap();
    (status.code().unwrap(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

async fn named(name: &'static str) -> Answering {
    Upstream::bind().await.answering(move |request| ok(&format!("{name} {}", request.start)))
}

#[tokio::test]
async fn a_canary_that_was_istios_and_a_gateways_path_work_on() {
    let (stable, canary, till) = (named("stable").await, named("canary").await, named("till").await);
    let folder = TempDir::new().unwrap();
    let instances = folder.path().join("instances.yaml");
    let text = format!(
        "services:\n  checkout:\n    - {{ address: {}, labels: {{ version: v1 }} }}\n    - {{ address: {}, labels: {{ version: v2 }} }}\n  till: [{}]\n",
        stable.address, canary.address, till.address,
    );
    fs::write(&instances, text).unwrap();
    let registry = format!("file:{}", instances.display());
    let (code, config, err) =
        from_stdin(&["import", "-", "--namespace", "shop", "--registry", &registry], ROUTES).await;
    assert_eq!((code, err.as_str()), (0, ""));
    let file = folder.path().join("pillion.yaml");
    fs::write(&file, config).unwrap();

    let args = ["run", "--listen", ANY, "--admin", ANY, file.to_str().unwrap()];
    let pillion = Pillion::start(&mut pillion(&args)).await;
    let mut client = Peer::connect(pillion.egress()).await;
    let mut ask = async |host: &str, path: &str, header: &str| {
        client.send(format!("GET {path} HTTP/1.1\r\nhost: {host}\r\n{header}\r\n")).await;
        let response = client.response().await;
        (response.status(), response.text())
    };
    for _ in 0..50 {
        let (status, body) = ask("checkout", "/", "x-tester: yes\r\n").await;
        assert!(status == 200 && body.starts_with("canary "), "{status} {body}");
    }
    let mut to_canary = 0;
    for _ in 0..2000 {
        let (status, body) = ask("checkout", "/", "").await;
        assert_eq!(status, 200, "{body}");
        to_canary += usize::from(body.starts_with("canary "));
    }
    // 200 are expected; six standard deviations (13.4) to either side.
    assert!((120..=280).contains(&to_canary), "{to_canary} of 2000 went to the canary");

    let (status, body) = ask("shop.example.com", "/pay/now", "").await;
    assert!(status == 200 && body.starts_with("till GET /v1/now "), "{status} {body}");
    assert_eq!(ask("shop.example.com", "/payment", "").await.0, 404, "no rule takes it");
}

#[tokio::test]
async fn what_is_not_carried_over_is_told_and_an_error_if_that_is_asked_for() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("routes.yaml");
    fs::write(&file, ROUTES.replace("weight: 10 }", "weight: 10 }\n      corsPolicy: {}")).unwrap();
    let file = file.to_str().unwrap();
    let note = format!(
        "{file}:12:7: VirtualService shop/checkout: spec.http[1].corsPolicy: not carried over: pillion answers no \
         preflight requests; let the application do that\n"
    );
    let (code, out, err) = run(&mut pillion(&["import", file])).await;
    assert_eq!((code, err.as_str()), (0, note.as_str()));
    assert!(out.contains("\n  checkout.shop:\n"), "{out}");
    let (code, out, err) = run(&mut pillion(&["import", "--strict", file])).await;
    assert_eq!((code, out.as_str(), err.as_str()), (1, "", note.as_str()));
}

#[tokio::test]
async fn what_cannot_be_read_exits_with_64() {
    let (code, out, err) = run(&mut pillion(&["import", "/no/such/file.yaml"])).await;
    assert_eq!((code, out.as_str()), (64, ""));
    assert!(err.starts_with("/no/such/file.yaml: cannot be read: "), "{err}");
    let (code, out, err) = from_stdin(&["import", "-"], "services: {}\n").await;
    assert_eq!((code, out.as_str()), (64, ""));
    assert!(err.starts_with("standard input:1:1: expected an object of Kubernetes"), "{err}");
    assert_eq!(run(&mut pillion(&["import"])).await.0, 64);
}
