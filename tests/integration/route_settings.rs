//! Retries, fallbacks and faults of one route, beside those of its service.

use crate::{
    peer::{Answering, Message, Peer, Upstream, get, ok, post, until_rated},
    pillion::Setup,
};

async fn ask(client: &mut Peer, path: &str) -> Message {
    client.send(get(path)).await;
    client.response().await
}

async fn down() -> Answering {
    Upstream::bind().await.answering(|_| "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 4\r\n\r\ndown".into())
}

#[tokio::test]
async fn a_route_has_retries_of_its_own() {
    const EACH: usize = 10;
    let (mut bad, mut good) = (down().await, Answering::ok().await);
    let settings = "user-service: { balance: { policy: round-robin }, breaker: { enabled: false }, \
        outlier: { enabled: false }, retry: { attempts: 0 }, routes: [\
        { name: again, match: { path: { prefix: /again } }, retry: { attempts: 1 } }, { name: once }] }";
    let pillion = Setup::users([bad.address, good.address]).service(settings).start().await;
    let mut client = pillion.connect().await;
    for _ in 0..EACH {
        assert_eq!(ask(&mut client, "/again").await.text(), "ok");
    }
    let retried = bad.unseen().len();
    assert!(retried >= EACH / 2 - 1, "each in its turn: {retried}");
    pillion.until_metric("pillion_retries_total", &["reason=\"upstream_unavailable\""], retried as f64).await;
    good.unseen();
    let mut texts = Vec::new();
    for _ in 0..EACH {
        texts.push(ask(&mut client, "/once").await.text());
    }
    let failed = texts.iter().filter(|text| *text == "down").count();
    assert_eq!((failed, bad.unseen().len(), good.unseen().len()), (EACH / 2, EACH / 2, EACH / 2), "{texts:?}");
    // What must not run twice is not tried again, whatever its route allows.
    let mut statuses = Vec::new();
    for _ in 0..2 {
        client.send(post("/again", "x")).await;
        statuses.push(client.response().await.status());
    }
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 503]);
}

#[tokio::test]
async fn a_route_has_a_fallback_of_its_own() {
    let (bad, other) = (down().await, Upstream::bind().await.answering(|_| ok("other")));
    let on = "on: [error, gateway-error]";
    let settings = format!(
        "user-service: {{ retry: {{ attempts: 0 }}, breaker: {{ enabled: false }}, \
         fallback: {{ {on}, response: {{ status: 203, body: service }} }}, routes: [\
         {{ match: {{ path: {{ prefix: /own }} }}, fallback: {{ {on}, response: {{ status: 202, body: route }} }} }}, \
         {{ match: {{ path: {{ prefix: /other }} }}, fallback: {{ {on}, service: orders }} }}, \
         {{ match: {{ path: {{ prefix: /limited }} }}, limits: {{ rate: {{ per_second: 1 }} }} }}] }}"
    );
    let pillion = Setup::users([bad.address]).instances("orders", [other.address]).service(&settings).start().await;
    let mut client = pillion.connect().await;
    for (path, status, body, kind) in
        [("/own", 202, "route", "response"), ("/other", 200, "other", "service"), ("/", 203, "service", "response")]
    {
        let answer = ask(&mut client, path).await;
        let got = (answer.status(), answer.text(), answer.get("x-pillion-fallback").map(str::to_owned));
        assert_eq!(got, (status, body.into(), Some(kind.into())), "{path}");
    }
    pillion.until_metric("pillion_fallbacks_total", &["kind=\"response\""], 2.0).await;
    pillion.until_metric("pillion_fallbacks_total", &["kind=\"service\""], 1.0).await;
    // A route's own limits are before all that: what they refuse is refused.
    assert_eq!(ask(&mut client, "/limited").await.status(), 203);
    let refused = until_rated(&mut client, get("/limited"), 0).await;
    assert_eq!((refused.error(), refused.get("x-pillion-fallback")), ((429, Some("rate_limited")), None));
}

#[tokio::test]
async fn a_route_has_faults_of_its_own() {
    let mut upstream = Answering::ok().await;
    let settings = "user-service: { faults: { abort: { percent: 100, status: 418, header: x-fault } }, routes: [\
        { match: { path: { prefix: /ill } }, faults: { abort: { percent: 100, status: 429 } } }, \
        { match: { path: { prefix: /well } }, faults: {} }, { name: rest }] }";
    let pillion = Setup::users([upstream.address]).service(settings).start().await;
    let mut client = pillion.connect().await;
    for (path, header, status) in [
        ("/ill", "x-other: 1", 429),
        ("/ill", "x-fault: 1", 429),
        ("/well", "x-fault: 1", 200),
        ("/", "x-fault: 1", 418),
        ("/", "x-other: 1", 200),
    ] {
        client.send(format!("GET {path} HTTP/1.1\r\nhost: user-service\r\n{header}\r\n\r\n")).await;
        let answer = client.response().await;
        let reason = (status != 200).then_some("fault_injected");
        assert_eq!(answer.error(), (status, reason), "{path} {header}");
    }
    assert_eq!(upstream.unseen().len(), 2, "faults do not reach it");
    pillion.until_metric("pillion_faults_total", &["service=\"user-service\"", "kind=\"abort\""], 3.0).await;
}
