//! A request that takes long is sent to a second instance as well.

use crate::{
    peer::{Answering, Upstream, get, ok, post},
    pillion::Setup,
};
use std::time::Duration;
use tokio::time::{Instant, timeout};

const TURN: &str = "balance: { policy: round-robin }";

#[tokio::test]
async fn the_faster_one_answers_and_the_other_is_cancelled() {
    let (slow, mut fast) = (Upstream::bind().await, Answering::ok().await);
    let settings = format!("user-service: {{ {TURN}, hedge: {{ after: 100ms }} }}");
    let pillion = Setup::users([slow.address, fast.address]).service(&settings).access_log().start().await;
    let mut client = pillion.connect().await;
    let (mut took, mut hedged) = (Vec::new(), 0u32);
    for _ in 0..4 {
        let start = Instant::now();
        client.send(get("/")).await;
        assert_eq!(client.response().await.text(), "ok");
        took.push(start.elapsed());
        if fast.seen().await.get("x-pillion-attempt") == Some("2") {
            hedged += 1;
            // It had the request, and its connection is cut.
            let mut peer = timeout(Duration::from_secs(5), slow.accept()).await.unwrap();
            peer.request().await;
            peer.closed().await;
        }
    }
    assert!(hedged > 0, "not all begin at the fast one: {took:?}");
    assert!(took.iter().all(|took| *took < Duration::from_secs(2)), "{took:?}");
    let hedges = ["pillion_hedges_total", "pillion_hedges_won_total"];
    for name in hedges {
        assert_eq!(pillion.metric(name, &[]).await, f64::from(hedged), "{name}");
    }
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
        let (peer, ..) = futures_util::future::select_all(all.iter().map(|upstream| Box::pin(upstream.accept()))).await;
        peer
    };
    for number in 1..=3 {
        let mut peer = accept().await;
        let request = peer.request().await;
        if number < 3 {
            // Held until the second one has it, too.
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(300)).await;
                peer.send(down).await;
                peer.closed().await;
            });
        } else {
            assert_eq!(request.get("x-pillion-attempt"), Some("3"), "after the first two");
            peer.send(ok("third")).await;
        }
    }
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
    let start = Instant::now();
    while pillion.metric("pillion_hedges_won_total", &[]).await == 0.0 {
        client.send(get("/")).await;
        assert_eq!(client.response().await.text(), "ok");
    }
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}
