//! Connections that die between two requests, and endpoints that are not there.

use crate::{
    peer::{Answering, Peer, Upstream, get, ok, post},
    pillion::{Pillion, Setup},
};

/// Lets one request pass, so that pillion has an idle connection; gives its upstream end.
async fn warm(client: &mut Peer, upstream: &Upstream) -> Peer {
    client.send(get("/warm")).await;
    let mut server = upstream.accept().await;
    server.request().await;
    server.send(ok("warm")).await;
    assert_eq!(client.response().await.text(), "warm");
    server
}

async fn retries(pillion: &Pillion) -> f64 {
    pillion.metric("pillion_retries_total", &["reason=\"upstream_closed\""]).await
}

#[tokio::test]
async fn a_get_on_a_connection_that_dies_at_that_moment_is_tried_once_more_on_a_fresh_one() {
    let upstream = Upstream::bind().await;
    let pillion = Setup::users([upstream.address]).start().await;
    let mut client = pillion.connect().await;
    for (count, reset) in [(1.0, false), (2.0, true)] {
        let mut server = warm(&mut client, &upstream).await;
        client.send(get("/again")).await;
        assert_eq!(server.request().await.start, "GET /again HTTP/1.1");
        if reset {
            server.reset();
        } else {
            drop(server);
        }
        let mut fresh = upstream.accept().await;
        assert_eq!(fresh.request().await.start, "GET /again HTTP/1.1");
        fresh.send("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 5\r\n\r\nfresh").await;
        assert_eq!(client.response().await.text(), "fresh");
        assert_eq!(retries(&pillion).await, count);
    }
}

#[tokio::test]
async fn a_get_is_not_tried_for_ever() {
    let upstream = Upstream::bind().await;
    let pillion = Setup::users([upstream.address]).start().await;
    let mut client = pillion.connect().await;
    let mut server = warm(&mut client, &upstream).await;
    client.send(get("/")).await;
    server.request().await;
    drop(server);
    // A fresh connection that dies, too, is the endpoint's failure, and there is no other endpoint.
    let mut fresh = upstream.accept().await;
    fresh.request().await;
    drop(fresh);
    assert_eq!(client.response().await.error(), (502, Some("upstream_closed")));
    assert!(upstream.is_left_alone());
}

#[tokio::test]
async fn a_post_that_may_have_been_executed_is_not_executed_again() {
    let upstream = Upstream::bind().await;
    let pillion = Setup::users([upstream.address]).start().await;
    let mut client = pillion.connect().await;
    for request in [post("/", "order"), post("/", "")] {
        let mut server = warm(&mut client, &upstream).await;
        client.send(request).await;
        server.request().await;
        drop(server);
        assert_eq!(client.response().await.error(), (502, Some("upstream_closed")));
        assert!(upstream.is_left_alone(), "nobody was asked to do it again");
    }
    assert_eq!(retries(&pillion).await, 0.0);
}

#[tokio::test]
async fn a_put_is_idempotent_and_its_body_is_sent_again() {
    let upstream = Upstream::bind().await;
    let pillion = Setup::users([upstream.address]).start().await;
    let mut client = pillion.connect().await;
    let mut server = warm(&mut client, &upstream).await;
    let body = "x".repeat(60_000);
    client.send(post("/", &body).replace("POST", "PUT")).await;
    assert_eq!(server.request().await.text(), body);
    drop(server);
    let mut fresh = upstream.accept().await;
    assert_eq!(fresh.request().await.text(), body);
    fresh.send(ok("done")).await;
    assert_eq!(client.response().await.text(), "done");
    // A body too large to keep is not.
    let mut client = pillion.connect().await;
    client.send(post("/", &"x".repeat(100_000)).replace("POST", "PUT")).await;
    fresh.request().await;
    drop(fresh);
    assert_eq!(client.response().await.error(), (502, Some("upstream_closed")));
    assert!(upstream.is_left_alone());
}

#[tokio::test]
async fn a_connection_that_was_closed_before_is_not_used_even_for_a_post() {
    let upstream = Upstream::bind().await;
    let pillion = Setup::users([upstream.address]).start().await;
    let mut client = pillion.connect().await;
    for n in 0..50 {
        let server = warm(&mut client, &upstream).await;
        if n % 2 == 0 {
            drop(server);
        } else {
            server.reset();
        }
        client.send(post("/", "order")).await;
        let mut fresh = upstream.accept().await;
        assert_eq!(fresh.request().await.text(), "order");
        fresh.send("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n").await;
        assert_eq!(client.response().await.status(), 200, "request {n}");
    }
    pillion.until_metric("pillion_pool_closed_total", &["reason=\"peer\""], 50.0).await;
}

#[tokio::test]
async fn an_endpoint_that_refuses_connections_is_passed_over() {
    let gone = Upstream::bind().await.address;
    let mut upstream = Answering::ok().await;
    let pillion = Setup::users([gone, upstream.address]).start().await;
    let mut client = pillion.connect().await;
    for n in 0..20 {
        client.send(post("/", "order")).await;
        assert_eq!(client.response().await.status(), 200, "request {n}");
        assert_eq!(upstream.seen().await.text(), "order");
    }
    assert!(upstream.unseen().is_empty());
    let failures = pillion.metric("pillion_pool_connect_failures_total", &[]).await;
    assert_eq!(pillion.metric("pillion_retries_total", &["reason=\"connect_failed\""]).await, failures);
}

#[tokio::test]
async fn when_all_endpoints_refuse_the_answer_is_502() {
    let gone = [Upstream::bind().await.address, Upstream::bind().await.address];
    let pillion = Setup::users(gone).start().await;
    let mut client = pillion.connect().await;
    for _ in 0..3 {
        client.send(get("/")).await;
        let response = client.response().await;
        assert_eq!(response.error(), (502, Some("connect_failed")));
        assert_eq!(response.get("connection"), None, "the client did nothing wrong");
    }
}

#[tokio::test]
async fn a_get_whose_fresh_connection_dies_goes_to_another_endpoint() {
    let (first, mut second) = (Upstream::bind().await, Answering::ok().await);
    let pillion = Setup::users([first.address, second.address])
        .service("user-service: { balance: { policy: round-robin } }")
        .start()
        .await;
    let mut client = pillion.connect().await;
    let mut died = 0;
    for _ in 0..4 {
        client.send(get("/")).await;
        let response = client.response();
        tokio::pin!(response);
        let response = tokio::select! {
            response = &mut response => response,
            mut server = first.accept() => {
                died += 1;
                server.request().await;
                drop(server);
                response.await
            }
        };
        assert_eq!(response.status(), 200);
        second.seen().await;
    }
    assert!(died >= 3, "it is the first one's turn again after each try of the second: {died}");
    assert_eq!(retries(&pillion).await, f64::from(died));
    assert!(second.unseen().is_empty());
}
