//! HTTP/2 upstreams that refuse, say goodbye, or die: what is tried again, and what must not be.

use crate::{
    http2_peer::{Client, END_STREAM, H2Upstream, HEADERS, RST_STREAM, collect, request, soon},
    peer::{Peer, get, post},
    pillion::{Pillion, Setup},
};
use futures_util::{FutureExt, future::join_all};
use h2::Reason;
use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

/// Starts a POST on a connection of its own.
async fn order(pillion: &Pillion) -> Peer {
    let mut client = pillion.connect().await;
    client.send(post("/", "order")).await;
    client
}

#[tokio::test]
async fn a_refused_stream_is_tried_again_even_for_a_post() {
    // On the only endpoint that there is, and on another.
    for endpoints in [1, 2] {
        let upstreams = [H2Upstream::bind().await, H2Upstream::bind().await];
        let pillion = Setup::users(upstreams[..endpoints].iter().map(H2Upstream::instance)).start().await;
        let mut client = order(&pillion).await;
        let (first, second) = if endpoints == 1 {
            (upstreams[0].accept_raw().await, None)
        } else {
            tokio::select! {
                first = upstreams[0].accept_raw() => (first, Some(&upstreams[1])),
                first = upstreams[1].accept_raw() => (first, Some(&upstreams[0])),
            }
        };
        let mut first = first;
        let stream = first.request().await;
        first.send(RST_STREAM, 0, stream, &u32::from(Reason::REFUSED_STREAM).to_be_bytes()).await;
        match second {
            // The connection is as good as before.
            None => {
                let again = first.request().await;
                first.respond(again, b"done").await;
            }
            Some(upstream) => {
                let mut second = upstream.accept_raw().await;
                let again = second.request().await;
                second.respond(again, b"done").await;
            }
        }
        assert_eq!(client.response().await.text(), "done", "{endpoints}");
        assert_eq!(pillion.metric("pillion_retries_total", &["reason=\"upstream_refused\""]).await, 1.0);
    }
}

#[tokio::test]
async fn a_refusal_without_end_ends() {
    let upstream = H2Upstream::bind().await;
    let pillion = Setup::users([upstream.instance()]).start().await;
    let mut client = order(&pillion).await;
    let mut server = upstream.accept_raw().await;
    let refusing = async {
        let mut count = 0;
        while let Some(frame) = server.next().await {
            if frame.flags & END_STREAM != 0 {
                count += 1;
                server.send(RST_STREAM, 0, frame.stream, &u32::from(Reason::REFUSED_STREAM).to_be_bytes()).await;
            }
            if count == 3 {
                break;
            }
        }
    };
    soon("three tries", refusing).await;
    assert_eq!(client.response().await.error(), (502, Some("upstream_refused")));
}

#[tokio::test]
async fn what_a_goodbye_leaves_out_is_sent_again_and_what_it_includes_is_not() {
    let upstream = H2Upstream::bind().await;
    let pillion = Setup::users([upstream.instance()]).start().await;
    // Two requests on one connection; the goodbye says that the first may have been executed. Then it closes at once, or
    // the first is still answered.
    for closes in [false, true] {
        let (mut first, mut second);
        first = order(&pillion).await;
        let mut server = upstream.accept_raw().await;
        let executed = server.request().await;
        second = order(&pillion).await;
        assert_eq!(server.request().await, executed + 2);
        if closes {
            server.goaway_and_close(executed, 0).await;
        } else {
            server.goaway(executed, 0).await;
            server.respond(executed, b"first").await;
            assert_eq!(first.response().await.text(), "first");
        }
        let mut fresh = upstream.accept_raw().await;
        let again = fresh.request().await;
        fresh.respond(again, b"second").await;
        assert_eq!(second.response().await.text(), "second");
        if closes {
            assert_eq!(first.response().await.error(), (502, Some("upstream_closed")), "it may have been executed");
        }
        assert!(upstream.is_left_alone());
        // The next round is to begin with a new connection.
        fresh.goaway(again, 0).await;
        while fresh.next().await.is_some() {}
    }
}

#[tokio::test]
async fn after_a_goodbye_with_an_error_only_idempotent_requests_are_sent_again() {
    let upstream = H2Upstream::bind().await;
    let pillion = Setup::users([upstream.instance()]).start().await;
    let mut client = order(&pillion).await;
    let mut server = upstream.accept_raw().await;
    let stream = server.request().await;
    server.goaway_and_close(stream, Reason::INTERNAL_ERROR.into()).await;
    assert_eq!(client.response().await.error(), (502, Some("upstream_closed")));
    assert!(upstream.is_left_alone());
}

#[tokio::test]
async fn a_connection_that_dies_takes_posts_along_and_gets_are_sent_again() {
    let upstream = H2Upstream::bind().await;
    let pillion = Setup::users([upstream.instance()]).start().await;
    for reset in [false, true] {
        let mut client = order(&pillion).await;
        let mut server = upstream.accept_raw().await;
        server.request().await;
        let mut getting = pillion.connect().await;
        getting.send(get("/")).await;
        server.request().await;
        if reset {
            server.reset();
        } else {
            drop(server);
        }
        assert_eq!(client.response().await.error(), (502, Some("upstream_closed")), "it may have been executed");
        // The only endpoint there is gets one more chance, on a fresh connection.
        let mut fresh = upstream.accept_raw().await;
        let again = fresh.request().await;
        fresh.respond(again, b"got").await;
        assert_eq!(getting.response().await.text(), "got");
        drop(fresh);
        // Or the next order would be lost with it.
        pillion.until_metric("pillion_pool_connections", &[], 0.0).await;
    }
}

#[tokio::test]
async fn a_response_that_began_is_not_begun_again() {
    let upstream = H2Upstream::bind().await;
    let pillion = Setup::users([upstream.instance()]).start().await;
    let mut client = pillion.connect().await;
    client.send(get("/")).await;
    let mut server = upstream.accept_raw().await;
    let stream = server.request().await;
    server.send(HEADERS, 4, stream, &[0x88]).await;
    assert_eq!(client.head().await.status(), 200);
    server.send(RST_STREAM, 0, stream, &u32::from(Reason::INTERNAL_ERROR).to_be_bytes()).await;
    assert_eq!(client.rest().await, b"", "cut off without a last chunk");
    assert!(upstream.is_left_alone());
    pillion.until_metric("pillion_errors_total", &["reason=\"upstream_truncated\""], 1.0).await;
}

#[tokio::test]
async fn goodbyes_in_the_middle_of_traffic_fail_nothing() {
    const REQUESTS: usize = 3000;
    let upstream = H2Upstream::bind().await;
    let pillion = Setup::users([upstream.instance()]).start().await;
    let served = Arc::new(AtomicUsize::new(0));
    // Every connection says goodbye after its hundredth request, while others are on their way to it.
    let serving = tokio::spawn({
        let served = served.clone();
        async move {
            loop {
                let mut connection = upstream.accept().await;
                let served = served.clone();
                tokio::spawn(async move {
                    let mut count = 0;
                    while let Some(mut exchange) = connection.try_next().await {
                        count += 1;
                        if count == 100 {
                            connection.goaway();
                        }
                        served.fetch_add(1, Relaxed);
                        tokio::spawn(async move {
                            let (body, _) = crate::http2_peer::read(&mut exchange.body).await.unwrap();
                            tokio::task::yield_now().await;
                            exchange.ok(std::str::from_utf8(&body).unwrap());
                        });
                    }
                });
            }
        }
    });
    let client = Client::connect(pillion.egress()).await;
    let next = AtomicUsize::new(0);
    join_all((0..50).map(async |_| {
        loop {
            let n = next.fetch_add(1, Relaxed);
            if n >= REQUESTS {
                return;
            }
            let answer = client.post("/", &format!("order {n}")).await.unwrap();
            assert_eq!((answer.status.as_u16(), answer.text()), (200, format!("order {n}")));
        }
    }))
    .await;
    serving.abort();
    assert_eq!(served.load(Relaxed), REQUESTS, "each was executed once");
    let opened = pillion.metric("pillion_pool_opened_total", &[]).await;
    assert!(opened >= 25.0, "{opened}");
}

#[tokio::test]
async fn a_client_that_dies_frees_everything() {
    let upstream = H2Upstream::bind().await;
    let pillion = Setup::users([upstream.instance()]).start().await;
    let client = Client::connect(pillion.egress()).await;
    let mut started = Vec::new();
    for _ in 0..20 {
        started.push(client.start(request("POST", "/"), false).await);
    }
    let mut connection = upstream.accept().await;
    let mut exchanges = Vec::new();
    for _ in 0..20 {
        exchanges.push(connection.next().await);
    }
    pillion.until_metric("pillion_requests_in_flight", &[], 20.0).await;
    client.kill();
    for exchange in &mut exchanges {
        soon("a reset", std::future::poll_fn(|cx| exchange.respond.poll_reset(cx))).await.unwrap();
    }
    pillion.until_metric("pillion_requests_in_flight", &[], 0.0).await;
    pillion.until_metric("pillion_connections", &["listener=\"egress\""], 0.0).await;
    // The upstream's connection serves on.
    let other = Client::connect(pillion.egress()).await;
    let (response, _) = other.start(request("GET", "/"), true).await;
    connection.next().await.ok("fine");
    assert_eq!(collect(response).await.unwrap().text(), "fine");
    assert!(upstream.accept().now_or_never().is_none());
}
