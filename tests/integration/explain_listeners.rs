//! `pillion explain` of listeners that carry more than requests, or nothing of them but bytes.

use crate::{
    explain::explained,
    peer::{Answering, Peer, get},
    pillion::{Pillion, Setup},
    routing::{SUBSETS, labelled, versions},
};
use std::{collections::BTreeSet, net::SocketAddr};

/// Two versions of `user-service` whose requests all go to one of them, and `orders`.
struct Scene {
    stable: Answering,
    canary: Answering,
    orders: Answering,
    pillion: Pillion,
}

impl Scene {
    async fn start(listeners: &[(&str, &str)]) -> Self {
        let ((stable, canary), orders) = (versions().await, Answering::ok().await);
        let is_redirected = |settings: &str| settings.contains("transparent") && !settings.contains("inbound");
        let addresses = match listeners.iter().any(|(_, settings)| is_redirected(settings)) {
            true => ", addresses: ['10.96.0.20:5432']",
            false => "",
        };
        let users = format!(
            "user-service: {{ {SUBSETS}, routes: [{{ to: canary }}], balance: {{ policy: round-robin }}{addresses} }}"
        );
        let setup = Setup::users([labelled(stable.address, "v1"), labelled(canary.address, "v2")])
            .instances("orders", [orders.address])
            .service("orders: {}")
            .service(&users);
        let setup = listeners.iter().fold(setup, |setup, (name, settings)| setup.listener(name, settings));
        Self { stable, canary, orders, pillion: setup.start().await }
    }

    async fn explained(&self, listener: &str, url: &str, more: &[&str]) -> String {
        explained(&self.pillion, &[&["GET", url, "--listener", listener], more].concat()).await
    }
}

/// Those of whom it is said.
fn with_word(said: &str, word: &str) -> BTreeSet<SocketAddr> {
    said.lines()
        .filter(|line| line.contains(&format!(" {word} ")))
        .filter_map(|line| line.split_whitespace().next()?.parse().ok())
        .collect()
}

#[tokio::test]
async fn a_listener_for_tcp_sends_bytes_to_any_endpoint_and_explain_says_so() {
    let scene = Scene::start(&[("db", "protocol: tcp, service: user-service")]).await;
    let said = scene.explained("db", "http://any/", &[]).await;
    let start = "listener db\n  it carries TCP, byte for byte: method, path and headers are not seen, so routes and subsets do not \
                 count\nservice user-service (known)\n→ user-service, any endpoint\n";
    assert!(said.starts_with(start), "{said}");
    let both = BTreeSet::from([scene.stable.address, scene.canary.address]);
    assert_eq!(with_word(&said, "eligible"), both, "{said}");
    let mut versions = BTreeSet::new();
    for _ in 0..2 {
        let mut client = Peer::connect(scene.pillion.address("db")).await;
        client.send(get("/")).await;
        versions.insert(client.response().await.text());
    }
    assert_eq!(versions, BTreeSet::from(["v1".into(), "v2".into()]), "as it was said");
    // By request, the route counts.
    let said = explained(&scene.pillion, &["GET", "http://user-service/"]).await;
    assert!(said.contains("→ user-service, subset `canary`\n"), "{said}");
}

#[tokio::test]
async fn listeners_for_datagrams_and_for_tls_are_explained() {
    let listeners = [("dns", "protocol: udp, service: user-service"), ("tls", "protocol: tls, host_suffixes: [.mesh]")];
    let scene = Scene::start(&listeners).await;
    let said = scene.explained("dns", "http://any/", &[]).await;
    assert!(said.starts_with("listener dns\n  it carries datagrams: "), "{said}");
    assert!(said.contains("\n→ user-service, any endpoint\n"), "{said}");
    let said = scene.explained("tls", "https://orders.mesh/", &[]).await;
    assert!(
        said.starts_with("listener tls\n  it carries TLS, byte for byte, to the service that is named (SNI): "),
        "{said}"
    );
    assert!(said.contains("\nservice orders (known)\n→ orders, any endpoint\n"), "{said}");
    let said = scene.explained("tls", "https://nobody.mesh/", &[]).await;
    assert!(said.contains("→ refused, unknown_service: no registry knows a service `nobody`\n"), "{said}");
}

#[tokio::test]
async fn a_listener_that_finds_out_what_is_spoken_is_explained_for_both() {
    let scene = Scene::start(&[("any", "protocol: auto, service: user-service")]).await;
    let said = scene.explained("any", "http://any/", &[]).await;
    let start = "listener any\n  it carries requests if a connection speaks HTTP, and else bytes\nservice user-service (known)\n";
    assert!(said.starts_with(start), "{said}");
    let (requests, bytes) = said.split_once("\nwhat is neither HTTP nor TLS is carried byte for byte:\n").expect(&said);
    assert!(requests.contains("→ user-service, subset `canary`\n"), "{said}");
    assert_eq!(with_word(requests, "eligible"), BTreeSet::from([scene.canary.address]), "{said}");
    assert!(bytes.starts_with("service user-service (known)\n→ user-service, any endpoint\n"), "{said}");
    assert_eq!(with_word(bytes, "eligible").len(), 2, "{said}");
    // The client's own TLS is not looked into.
    let said = scene.explained("any", "https://any/", &[]).await;
    assert!(said.contains("→ user-service, any endpoint\n") && !said.contains("route"), "{said}");
}

#[tokio::test]
async fn what_the_kernel_redirects_is_explained_by_the_address_that_was_called() {
    let listeners = [
        ("pass", "protocol: auto, transparent: {}, host_suffixes: [.mesh]"),
        ("refuse", "protocol: auto, transparent: { unknown: refuse }"),
    ];
    let scene = Scene::start(&listeners).await;
    let (stable, orders) = (scene.stable.address, scene.orders.address);
    // An endpoint's own address: requests are balanced, bytes stay with it.
    let said = scene.explained("pass", &format!("http://{stable}/"), &["-H", "host: orders"]).await;
    let called = format!("  called was {stable}, which an endpoint of user-service has\n");
    assert!(said.contains(&called), "{said}");
    let (requests, bytes) = said.split_once("\nwhat is neither").expect(&said);
    assert!(requests.contains("→ user-service, subset `canary`\n"), "{said}");
    assert!(bytes.contains(&format!("→ {stable} itself, an endpoint of user-service\n")), "{said}");
    assert_eq!(with_word(bytes, "eligible"), BTreeSet::from([stable]), "{said}");
    assert_eq!(with_word(bytes, "another was called"), BTreeSet::from([scene.canary.address]), "{said}");
    // TLS too, unless it names the service.
    let said = scene.explained("pass", &format!("https://{stable}/"), &[]).await;
    assert!(said.contains(&format!("→ {stable} itself")), "{said}");
    let called = stable.to_string();
    let said = scene.explained("pass", "https://user-service.mesh/", &["--called", &called]).await;
    assert!(said.contains("→ user-service, any endpoint\n"), "{said}");
    let said = scene.explained("pass", "https://orders.mesh/", &["--called", &called]).await;
    assert!(said.contains(&format!("→ {stable} itself")), "the address has more to say: {said}");
    // A virtual one.
    let said = scene.explained("pass", "http://10.96.0.20:5432/", &[]).await;
    assert!(said.contains("  called was 10.96.0.20:5432, which user-service has by `addresses`\n"), "{said}");
    assert!(said.split_once("\nwhat is neither").expect(&said).1.contains("→ user-service, any endpoint\n"), "{said}");
    // Nobody's: the name counts, and where that is nobody's either, it passes or not.
    for (listener, url, expected) in [
        ("pass", "http://orders/", "→ orders, any endpoint\n"),
        ("pass", "http://www.example.com/", "→ 192.0.2.1:80, untouched\n"),
        ("refuse", "http://orders/", "→ orders, any endpoint\n"),
        ("refuse", "http://www.example.com/", "→ refused, unknown_service: "),
    ] {
        let said = scene.explained(listener, url, &["--called", "192.0.2.1:80"]).await;
        assert!(said.contains("  called was 192.0.2.1:80, which no service has that is followed, so it"), "{said}");
        let first = said.split("\nwhat is neither").next().unwrap();
        assert!(first.contains(expected), "{listener} {url}: {said}");
    }
    let said = scene.explained("pass", "http://orders/", &[]).await;
    assert!(
        said.contains("  called was (as far as is said: `--called IP:PORT`) an address that no service has"),
        "{said}"
    );
    assert!(said.contains(&orders.to_string()), "{said}");
    let said = scene.explained("pass", "http://orders/", &["--called", "orders"]).await;
    assert!(said.contains("`orders` is no address with a port"), "{said}");
}

#[tokio::test]
async fn what_the_kernel_redirects_inbound_goes_on_by_the_port() {
    let listeners = [
        ("web", "app: 127.0.0.1:8080"),
        ("in", "protocol: auto, transparent: { direction: inbound }"),
        ("open", "protocol: auto, transparent: { direction: inbound, unknown: pass }"),
    ];
    let scene = Scene::start(&listeners).await;
    let said = scene.explained("in", "http://web:8080/", &[]).await;
    let expected = "  the port that was called, 8080, says which application is meant\n  it goes on by the listener web, whose \
                    application has the port\n→ the local application at 127.0.0.1:8080\n";
    assert!(said.ends_with(expected), "{said}");
    let said = scene.explained("in", "http://web/", &[]).await;
    assert!(said.contains("called, 80, ") && said.contains("→ refused, unknown_service: "), "{said}");
    let said = scene.explained("open", "http://web/", &["--called", "10.0.0.1:9999"]).await;
    assert!(said.contains("called, 9999, ") && said.ends_with("→ 10.0.0.1:9999, untouched\n"), "{said}");
    // By default it is about what applications here ask for.
    let said = explained(&scene.pillion, &["GET", "http://orders/"]).await;
    assert!(said.starts_with("listener egress\n"), "{said}");
}
