//! A request that takes long is sent to a second instance as well.

use crate::{
    http2_peer,
    peer::{Answering, Upstream, get, ok, post},
    pillion::Setup,
};
const TURN: &str = "balance: { policy: round-robin }";

#[tokio::test]
async fn the_faster_one_answers_and_the_other_is_cancelled() {
    let (slow, mut fast) = (Upstream::bind().await, Answering::ok().await);
    let settings = format!("user-service: {{ {TURN}, hedge: {{ after: 500ms }} }}");
    let pillion = Setup::users([slow.address, fast.address]).service(&settings).access_log().start().await;
    let mut client = pillion.connect().await;
    let mut hedged = 0u32;
    for _ in 0..4 {
        client.send(get("/")).await;
        // The other one never answers.
        assert_eq!(client.response().await.text(), "ok");
        if fast.seen().await.get("x-pillion-attempt") == Some("2") {
            hedged += 1;
            // It had the request, and its connection is cut.
            let mut peer = slow.accept().await;
            peer.request().await;
            peer.closed().await;
        }
    }
    assert!(hedged > 0, "not all begin at the fast one");
    pillion.until_metric("pillion_hedges_won_total", &[], f64::from(hedged)).await;
    // On a busy machine even the fast one is slow at times, and the other one is asked in vain.
    assert!(pillion.metric("pillion_hedges_total", &[]).await >= f64::from(hedged));
    let line = pillion.access_line(" flags=hedged").await;
    assert!(line.contains(&format!("endpoint={} attempts=2 ", fast.address)), "{line}");
    drop(client);
    pillion.until_free().await;
}

#[tokio::test]
async fn the_first_one_may_still_win() {
    let (slow, other) = (Upstream::bind().await, Upstream::bind().await);
    let settings = "user-service: { hedge: { after: 100ms } }";
    let pillion = Setup::users([slow.address, other.address]).service(settings).start().await;
    let mut client = pillion.connect().await;
    client.send(get("/")).await;
    let (mut one, mut two) = (slow.accept().await, other.accept().await);
    let requests = [one.request().await, two.request().await];
    let (first, second) = if requests[0].get("x-pillion-attempt").is_none() { (one, two) } else { (two, one) };
    let (mut first, mut second) = (first, second);
    first.send(ok("first")).await;
    assert_eq!(client.response().await.text(), "first");
    second.closed().await;
    assert_eq!(pillion.metric("pillion_hedges_total", &[]).await, 1.0);
    assert_eq!(pillion.metric("pillion_hedges_won_total", &[]).await, 0.0);
}

#[tokio::test]
async fn what_must_not_run_twice_or_has_no_budget_is_not_hedged() {
    for (settings, request) in [
        ("hedge: { after: 50ms }", post("/", "x")),
        ("hedge: { after: 50ms }, retry: { budget: { percent: 0, per_second: 0 } }", get("/")),
        ("retry: { attempts: 2 }", get("/")),
    ] {
        let (one, two) = (Upstream::bind().await, Upstream::bind().await);
        let pillion = Setup::users([one.address, two.address])
            .service(&format!("user-service: {{ {settings}, timeouts: {{ request: 400ms }} }}"))
            .start()
            .await;
        let mut client = pillion.connect().await;
        client.send(request).await;
        assert_eq!(client.response().await.error(), (504, Some("request_timeout")), "{settings}");
        assert!(one.is_left_alone() || two.is_left_alone(), "{settings}");
        assert_eq!(pillion.metric("pillion_hedges_total", &[]).await, 0.0, "{settings}");
    }
}

#[tokio::test]
async fn both_fail_and_the_request_is_tried_elsewhere() {
    let down = "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n";
    let (one, two, three) = (Upstream::bind().await, Upstream::bind().await, Upstream::bind().await);
    let settings = "user-service: { hedge: { after: 50ms } }";
    let all = [one, two, three];
    let pillion = Setup::users(all.each_ref().map(|upstream| upstream.address)).service(settings).start().await;
    let mut client = pillion.connect().await;
    client.send(get("/")).await;
    let accept = async || {
        let (mut peer, ..) =
            futures_util::future::select_all(all.iter().map(|upstream| Box::pin(upstream.accept()))).await;
        let request = peer.request().await;
        (peer, request)
    };
    // The first one is held until the second one has it, too.
    let ((mut first, _), (mut second, _)) = (accept().await, accept().await);
    first.send(down).await;
    second.send(down).await;
    let (mut third, request) = accept().await;
    assert_eq!(request.get("x-pillion-attempt"), Some("3"), "after the first two");
    third.send(ok("third")).await;
    assert_eq!(client.response().await.text(), "third");
}

#[tokio::test]
async fn a_percentile_is_learnt_from_a_hundred_responses() {
    let (slow, mut fast) = (Upstream::bind().await, Answering::ok().await);
    let settings = "user-service: { balance: { policy: least-request }, hedge: { percentile: 90 } }";
    let pillion = Setup::users([fast.address]).service(settings).start().await;
    let mut client = pillion.connect().await;
    for _ in 0..100 {
        client.send(get("/")).await;
        client.response().await;
    }
    assert_eq!(pillion.metric("pillion_hedges_total", &[]).await, 0.0, "there was nobody else, and no percentile");
    fast.unseen();
    pillion.write_instances(&format!("services:\n  user-service: [{}, {}]\n", slow.address, fast.address));
    pillion.until_metric("pillion_endpoints", &["state=\"available\""], 2.0).await;
    let hedged = async {
        while pillion.metric("pillion_hedges_won_total", &[]).await == 0.0 {
            client.send(get("/")).await;
            assert_eq!(client.response().await.text(), "ok");
        }
    };
    http2_peer::soon("a hedge to win", hedged).await;
}
