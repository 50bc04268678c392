//! Which service a request is for, and what the client gets when there is none.

use crate::{
    peer::{Answering, Upstream, get, ok},
    pillion::Setup,
};
use std::time::Duration;
use tokio::time::Instant;

#[tokio::test]
async fn an_unknown_service_and_one_without_endpoints_are_answered_at_once() {
    let upstream = Answering::ok().await;
    let pillion = Setup::users([upstream.address]).instances("empty", [""; 0]).service("configured: {}").start().await;
    let mut client = pillion.connect().await;
    for (host, status, reason) in
        [("nobody", 404, "unknown_service"), ("a/b", 404, "unknown_service"), ("configured", 503, "no_endpoints")]
    {
        let request = format!("GET / HTTP/1.1\r\nhost: {host}\r\n\r\n");
        // The first request for a service starts to follow it.
        client.send(&request).await;
        client.response().await;
        let start = Instant::now();
        client.send(&request).await;
        let response = client.response().await;
        assert_eq!(response.error(), (status, Some(reason)), "{host}");
        assert!(start.elapsed() < Duration::from_millis(100), "{host}: {:?}", start.elapsed());
        assert!(response.text().starts_with(&format!("pillion: {reason}: ")), "{}", response.text());
    }
    // The connection serves on.
    client.send(get("/")).await;
    assert_eq!(client.response().await.status(), 200);
    // A gRPC client is told in its own way, with the status that HTTP's 404 stands for.
    client
        .send("POST /a.B/C HTTP/1.1\r\nhost: nobody\r\ncontent-type: application/grpc\r\ncontent-length: 0\r\n\r\n")
        .await;
    let response = client.response().await;
    assert_eq!((response.status(), response.get("grpc-status")), (200, Some("12")));
    pillion.until_metric("pillion_errors_total", &["reason=\"no_endpoints\""], 2.0).await;
}

#[tokio::test]
async fn a_service_that_loses_its_endpoints_and_gets_them_back() {
    let upstream = Answering::ok().await;
    let pillion = Setup::users([upstream.address]).service("user-service: {}").start().await;
    let mut client = pillion.connect().await;
    client.send(get("/")).await;
    assert_eq!(client.response().await.status(), 200);
    let mut until = async |instances: String, status: u16| {
        pillion.write_instances(&instances);
        let start = Instant::now();
        loop {
            client.send(get("/")).await;
            let response = client.response().await;
            if response.status() == status {
                return;
            }
            assert!(start.elapsed() < crate::peer::PATIENCE, "{response:?}");
        }
    };
    until("services: { user-service: [] }".into(), 503).await;
    until(format!("services: {{ user-service: [{}] }}", upstream.address), 200).await;
    until(format!("services: {{ user-service: [{{ address: {}, weight: 0 }}] }}", upstream.address), 503).await;
}

#[tokio::test]
async fn a_listener_header_or_suffix_names_the_service() {
    let named = |name: &'static str| async move { Upstream::bind().await.answering(move |_| ok(name)) };
    let (users, orders) = (named("users").await, named("orders").await);
    let pillion = Setup::users([users.address])
        .instances("orders", [orders.address])
        .egress("host_suffixes: [.svc.cluster.local, .local]")
        .listener("fixed", "service: orders")
        .listener("by-header", "service_header: x-service")
        .start()
        .await;
    for (listener, head, body) in [
        ("egress", "host: user-service", "users"),
        ("egress", "host: user-service:80", "users"),
        ("egress", "host: orders.svc.cluster.local", "orders"),
        ("egress", "host: orders.LOCAL:9", "orders"),
        ("egress", "host: orders.", "orders"),
        ("egress", "host: orders\r\nx-service: user-service", "orders"),
        ("fixed", "host: user-service", "orders"),
        ("fixed", "host: ", "orders"),
        ("by-header", "host: user-service\r\nx-service: orders", "orders"),
        ("by-header", "host: user-service", "users"),
    ] {
        let mut client = crate::peer::Peer::connect(pillion.address(listener)).await;
        client.send(format!("GET / HTTP/1.1\r\n{head}\r\n\r\n")).await;
        assert_eq!(client.response().await.text(), body, "{listener}: {head}");
    }
}
