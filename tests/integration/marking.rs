//! Requests are marked with their version, in the baggage that applications pass on: on their way to the local application,
//! and by routes.

use crate::{
    peer::{Answering, Peer},
    pillion::Setup,
};

/// What `baggage` is where a request with these fields arrives, of each line of it that there is.
async fn arrives(client: &mut Peer, upstream: &mut Answering, path: &str, fields: &str) -> Vec<String> {
    client.send(format!("GET {path} HTTP/1.1\r\nhost: user-service\r\n{fields}\r\n")).await;
    assert_eq!(client.response().await.status(), 200);
    upstream.seen().await.all("baggage").into_iter().map(Into::into).collect()
}

#[tokio::test]
async fn requests_for_the_application_are_marked_as_the_listener_says() {
    let mut app = Answering::ok().await;
    let inbound = |marking: &str| format!("app: {{ address: {}, version_baggage: {{ {marking} }} }}", app.address);
    let mut pillion = Setup::default()
        .node("service: web, version: v2")
        .listener("off", &format!("app: {}", app.address))
        .listener("passed", &inbound("mode: passed"))
        .listener("own", &inbound("mode: own"))
        .listener("lane", &inbound("mode: own, header: x-lane, baggage: lane, value: blue"))
        .start()
        .await;
    let (asked, other) = ("x-version: canary\r\n", "baggage: user=7\r\nbaggage: a=b;p=q\r\n");
    let (both, decided) = (format!("{asked}{other}"), format!("{asked}baggage: pillion.version=stable\r\n"));
    for (listener, fields, expected) in [
        ("off", &*both, &["user=7", "a=b;p=q"][..]),
        ("passed", "", &[]),
        ("passed", asked, &["pillion.version=canary"]),
        ("passed", other, &["user=7", "a=b;p=q"]),
        ("passed", &both, &["user=7,a=b;p=q,pillion.version=canary"]),
        ("passed", &decided, &["pillion.version=stable"]),
        ("own", "", &["pillion.version=v2"]),
        ("own", asked, &["pillion.version=canary"]),
        ("own", &decided, &["pillion.version=stable"]),
        ("lane", asked, &["lane=blue"]),
        ("lane", "x-lane: green\r\n", &["lane=green"]),
    ] {
        let mut client = Peer::connect(pillion.address(listener)).await;
        assert_eq!(arrives(&mut client, &mut app, "/", fields).await, expected, "{listener}: {fields}");
    }
    // A baggage that is as long as it may be is passed on as it is.
    let full = format!("x-version: canary\r\nbaggage: a={}\r\n", "x".repeat(8190));
    let mut client = Peer::connect(pillion.address("passed")).await;
    let arrived = arrives(&mut client, &mut app, "/", &full).await;
    assert_eq!(arrived, [format!("a={}", "x".repeat(8190))]);
    // Open connections learn of another config, too.
    pillion.change_config("mode: passed", "mode: own").await;
    assert_eq!(arrives(&mut client, &mut app, "/", "").await, ["pillion.version=v2"]);
}

#[tokio::test]
async fn a_route_marks_requests_with_the_subset_that_it_chose() {
    let (mut stable, mut canary) = (Answering::ok().await, Answering::ok().await);
    let instance =
        |of: &Answering, version| format!("{{ address: \"{}\", labels: {{ version: {version} }} }}", of.address);
    let pillion = Setup::users([instance(&stable, "v1"), instance(&canary, "v2")])
        .service(
            "user-service: { subsets: { stable: { version: v1 }, canary: { version: v2 }, next: { version: v3 } }, \
             when_empty: { next: canary }, routes: [\
             { match: { path: { prefix: /unmarked } }, to: canary }, \
             { match: { path: { prefix: /next } }, to: next, mark: true }, \
             { match: { path: { prefix: /stranger } }, to: stable, mark: true, \
               headers: { request: { remove: [x-version, baggage] } } }, \
             { split: { stable: 1, canary: 0 }, mark: true }] }",
        )
        .start()
        .await;
    let mut client = pillion.connect().await;
    let next = "baggage: pillion.version=next\r\n";
    for (path, fields, is_canary, expected) in [
        ("/", "", false, &["pillion.version=stable"][..]),
        ("/", "baggage: user=7\r\n", false, &["user=7,pillion.version=stable"]),
        ("/", "x-version: canary\r\n", true, &["pillion.version=canary"]),
        ("/", "baggage: pillion.version=canary\r\n", true, &["pillion.version=canary"]),
        // Nobody here has it, and others may: what was asked for stays.
        ("/", "x-version: next\r\n", false, &["pillion.version=next"]),
        ("/", next, false, &["pillion.version=next"]),
        ("/next", "", true, &["pillion.version=next"]),
        ("/unmarked", "", true, &[]),
        // What was taken away asks for nothing.
        ("/stranger", "x-version: canary\r\nbaggage: a=b\r\n", false, &["pillion.version=stable"]),
        ("/stranger", "baggage: pillion.version=canary\r\n", false, &["pillion.version=stable"]),
    ] {
        let upstream = if is_canary { &mut canary } else { &mut stable };
        assert_eq!(arrives(&mut client, upstream, path, fields).await, expected, "{path}: {fields}");
    }
}
