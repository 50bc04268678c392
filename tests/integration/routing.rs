//! Routes, subsets and splits, on the real program.

use crate::{
    peer::{Answering, Peer, get, ok, until_rated},
    pillion::{Pillion, Setup},
};
use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

/// An instance of a version, as the file registry lists it.
pub fn labelled(address: SocketAddr, version: &str) -> String {
    format!("{{ address: \"{address}\", labels: {{ version: {version} }} }}")
}

pub const SUBSETS: &str = "subsets: { stable: { version: v1 }, canary: { version: v2 } }";

/// Two instances, which answer with their version.
pub async fn versions() -> (Answering, Answering) {
    let answering =
        |name: &'static str| async move { crate::peer::Upstream::bind().await.answering(move |_| ok(name)) };
    (answering("v1").await, answering("v2").await)
}

/// `user-service` in two versions with these settings.
pub async fn routed(settings: &str) -> (Answering, Answering, Pillion) {
    let (stable, canary) = versions().await;
    let addresses = [labelled(stable.address, "v1"), labelled(canary.address, "v2")];
    let setup = Setup::users(addresses).service(&format!("user-service: {{ {SUBSETS}, {settings} }}"));
    let pillion = setup.access_log().start().await;
    (stable, canary, pillion)
}

/// The body of the answer to a GET with these lines of header.
pub async fn asked(client: &mut Peer, path: &str, lines: &str) -> String {
    client.send(format!("GET {path} HTTP/1.1\r\nhost: user-service\r\n{lines}\r\n")).await;
    client.response().await.text()
}

#[tokio::test]
async fn a_split_divides_users_and_keeps_each_where_it_is() {
    let split = "routes: [{ split: { stable: 90, canary: 10 }, sticky: { header: x-user } }]";
    let (_a, _b, one) = routed(split).await;
    let (_c, _d, other) = routed(split).await;
    let (mut first, mut second) = (one.connect().await, other.connect().await);
    let mut canaries = 0;
    const USERS: u32 = 10_000;
    for user in 0..USERS {
        let line = format!("x-user: {user}\r\n");
        let version = asked(&mut first, "/", &line).await;
        assert_eq!(asked(&mut second, "/", &line).await, version, "user {user} on another pillion");
        canaries += u32::from(version == "v2");
    }
    // Five standard deviations.
    assert!((850..=1150).contains(&canaries), "{canaries} of {USERS}");
    one.until_metric("pillion_subset_requests_total", &["subset=\"canary\""], f64::from(canaries)).await;
    one.until_metric("pillion_subset_requests_total", &["subset=\"stable\""], f64::from(USERS - canaries)).await;
    assert_eq!(one.metric("pillion_subset_errors_total", &[]).await, 0.0);
    let line = one.access_line("subset=canary").await;
    assert!(line.contains(" route=0 "), "{line}");
}

#[tokio::test]
async fn a_change_of_weights_moves_exactly_those_users_that_must_move() {
    let split = "routes: [{ split: { stable: 90, canary: 10 }, sticky: { header: x-user } }]";
    let (_a, _b, mut pillion) = routed(split).await;
    let canaries = async |pillion: &Pillion| {
        let mut client = pillion.connect().await;
        let mut found = BTreeSet::new();
        for user in 0..2000 {
            if asked(&mut client, "/", &format!("x-user: {user}\r\n")).await == "v2" {
                found.insert(user);
            }
        }
        found
    };
    let before = canaries(&pillion).await;
    pillion.change_config("stable: 90, canary: 10", "stable: 80, canary: 20").await;
    let after = canaries(&pillion).await;
    assert!(before.is_subset(&after), "nobody goes back");
    let moved = after.len() - before.len();
    assert!((130..=270).contains(&moved), "{moved} of 2000 moved, and 10 % had to");
}

#[tokio::test]
async fn without_a_key_each_request_is_drawn_and_a_cookie_makes_one() {
    let settings = "routes: [{ match: { path: { prefix: /c } }, split: { stable: 50, canary: 50 }, \
                    sticky: { cookie: uid, set_cookie: {} } }, { split: { stable: 50, canary: 50 } }]";
    let (_a, _b, pillion) = routed(settings).await;
    let mut client = pillion.connect().await;
    let mut drawn = BTreeSet::new();
    for _ in 0..100 {
        drawn.insert(asked(&mut client, "/", "").await);
    }
    assert_eq!(drawn.len(), 2);
    client.send("GET /c HTTP/1.1\r\nhost: user-service\r\n\r\n").await;
    let first = client.response().await;
    let cookie = first.get("set-cookie").expect("a cookie").to_owned();
    assert!(cookie.contains("; Path=/; Max-Age=2592000; HttpOnly; SameSite=Lax"), "{cookie}");
    let (pair, version) = (cookie.split(';').next().unwrap(), first.text());
    for _ in 0..20 {
        client.send(format!("GET /c HTTP/1.1\r\nhost: user-service\r\ncookie: {pair}\r\n\r\n")).await;
        let again = client.response().await;
        assert_eq!((again.text(), again.get("set-cookie")), (version.clone(), None));
    }
}

#[tokio::test]
async fn a_request_may_ask_for_a_version() {
    let (_a, _b, pillion) = routed("routes: [{ to: stable }]").await;
    let mut client = pillion.connect().await;
    for (lines, version) in [
        ("", "v1"),
        ("x-version: canary\r\n", "v2"),
        ("baggage: a=b, pillion.version=canary\r\n", "v2"),
        ("x-version: unknown\r\n", "v1"),
    ] {
        assert_eq!(asked(&mut client, "/", lines).await, version, "{lines}");
    }
}

#[tokio::test]
async fn an_empty_subset_falls_back_as_configured_and_is_told() {
    let (stable, canary, mut pillion) =
        routed("routes: [{ match: { path: { prefix: /c } }, to: canary }, { to: stable }]").await;
    let mut client = pillion.connect().await;
    assert_eq!(asked(&mut client, "/c", "").await, "v2");
    drop(canary);
    pillion.write_instances(&format!("services: {{ user-service: [{}] }}", labelled(stable.address, "v1")));
    pillion.logged("a subset is empty").await;
    assert_eq!(asked(&mut client, "/c", "").await, "v1", "to any of the service's endpoints");
    assert_eq!(asked(&mut client, "/", "x-version: canary\r\n").await, "v1", "and who asks for it goes on as others");
    pillion.until_metric("pillion_subset_fallbacks_total", &["subset=\"canary\""], 1.0).await;
    let line = pillion.access_line("flags=subset_fallback").await;
    assert!(line.contains("\"GET /c "), "{line}");

    pillion.change_config(SUBSETS, &format!("{SUBSETS}, when_empty: {{ canary: fail }}")).await;
    client.send("GET /c HTTP/1.1\r\nhost: user-service\r\n\r\n").await;
    assert_eq!(client.response().await.error(), (503, Some("no_endpoints")));
}

#[tokio::test]
async fn an_empty_subset_is_seen_wherever_its_requests_go() {
    for (when_empty, instead, status, fallbacks) in [
        ("when_empty: { canary: fail }, ", "fail", 503, 0.0),
        ("when_empty: { canary: stable }, ", "stable", 200, 1.0),
        ("", "service", 200, 1.0),
    ] {
        let (stable, canary, mut pillion) = routed(&format!("{when_empty}routes: [{{ to: canary }}]")).await;
        let mut client = pillion.connect().await;
        assert_eq!(asked(&mut client, "/", "").await, "v2");
        drop(canary);
        pillion.write_instances(&format!("services: {{ user-service: [{}] }}", labelled(stable.address, "v1")));
        let line = pillion.logged("a subset is empty").await;
        for field in ["service=user-service", "subset=canary", &format!("when_empty=\"{instead}\"")] {
            assert!(line.contains(field), "{field}: {line}");
        }
        client.send(crate::peer::get("/")).await;
        let answer = client.response().await;
        let reason = (status == 503).then_some("no_endpoints");
        assert_eq!(answer.error(), (status, reason), "{instead}");
        let line = pillion.access_line(if status == 503 { "no_endpoints" } else { "flags=subset_fallback" }).await;
        assert_eq!(line.contains("subset_fallback"), status == 200, "{line}");
        let canary = ["service=\"user-service\"", "subset=\"canary\""];
        pillion.until_metric("pillion_subset_fallbacks_total", &canary, fallbacks).await;
        pillion.until_metric("pillion_subset_endpoints", &canary, 0.0).await;
        let failed = if status == 503 { 1.0 } else { 0.0 };
        pillion.until_metric("pillion_errors_total", &["reason=\"no_endpoints\""], failed).await;
        let (_, text) = crate::e2e::get_path(pillion.admin(), "admin", "/api/services/user-service").await.unwrap();
        let service: serde_json::Value = serde_json::from_str(&text).unwrap();
        let subsets = service["subsets"].as_array().unwrap_or_else(|| panic!("{text}"));
        let shown = subsets.iter().find(|subset| subset["name"] == "canary").unwrap();
        let expected = serde_json::json!({
            "name": "canary", "labels": { "version": "v2" }, "endpoints": 0, "available": 0, "when_empty": instead,
            "requests": 1 + u64::from(status == 503), "failures": u64::from(status == 503), "fallbacks": fallbacks as u64,
        });
        assert_eq!(*shown, expected, "{text}");
    }
}

#[tokio::test]
async fn an_ejected_canary_comes_back_although_its_requests_go_elsewhere_meanwhile() {
    let ill = Arc::new(AtomicBool::new(true));
    let (stable, _) = versions().await;
    let seen = ill.clone();
    let canary = crate::peer::Upstream::bind().await.answering(move |_| {
        if seen.load(Relaxed) { "HTTP/1.1 500 Ill\r\ncontent-length: 0\r\n\r\n".into() } else { ok("v2") }
    });
    let settings = format!(
        "user-service: {{ {SUBSETS}, when_empty: {{ canary: stable, stable: fail }}, \
         routes: [{{ match: {{ method: GET }}, to: stable }}, {{ to: canary }}] }}"
    );
    let addresses = [labelled(stable.address, "v1"), labelled(canary.address, "v2")];
    let mut pillion = Setup::users(addresses).service(&settings).start().await;
    let mut client = pillion.connect().await;
    let mut post = async || {
        client.send(crate::peer::post("/", "x")).await;
        client.response().await
    };
    for _ in 0..5 {
        assert_eq!(post().await.status(), 500);
    }
    pillion.logged("a subset is empty").await;
    assert_eq!(post().await.text(), "v1");
    ill.store(false, Relaxed);
    // Nobody but its own requests comes to it.
    crate::e2e::until("the canary to be back", async || post().await.text() == "v2").await;
    pillion.logged("a subset can take requests again").await;
}

#[tokio::test]
async fn routes_answer_rewrite_and_change_headers() {
    let settings = "routes: [\
        { match: { path: { exact: /ping } }, respond: { status: 202, body: pong } }, \
        { match: { path: { prefix: /old } }, redirect: { status: 308, prefix: /new } }, \
        { match: { path: { prefix: /api } }, rewrite: { prefix: /v2, host: inner }, \
          headers: { request: { set: { x-a: '1' }, remove: [x-b] }, response: { set: { x-c: '2' } } } }, \
        { match: { path: { prefix: /slow } }, timeouts: { request: 100ms } }]";
    let (mut stable, mut canary, pillion) = routed(settings).await;
    let mut client = pillion.connect().await;
    client.send(get("/ping")).await;
    let answer = client.response().await;
    assert_eq!((answer.status(), answer.text().as_str()), (202, "pong"));
    client.send(get("/old/x?q=1")).await;
    let answer = client.response().await;
    assert_eq!((answer.status(), answer.get("location")), (308, Some("/new/x?q=1")));
    client.send("GET /api/x?q=1 HTTP/1.1\r\nhost: user-service\r\nx-b: 1\r\n\r\n").await;
    let answer = client.response().await;
    assert_eq!((answer.status(), answer.get("x-c")), (200, Some("2")));
    let seen: Vec<_> = stable.unseen().into_iter().chain(canary.unseen()).collect();
    assert_eq!(seen.len(), 1, "answers of pillion's own reach nobody");
    assert_eq!(seen[0].start, "GET /v2/x?q=1 HTTP/1.1");
    let field = |name| seen[0].get(name);
    assert_eq!((field("host"), field("x-forwarded-host")), (Some("inner"), Some("user-service")));
    assert_eq!((field("x-a"), field("x-b")), (Some("1"), None));
}

#[tokio::test]
async fn a_route_has_timeouts_and_limits_of_its_own() {
    let upstream = crate::peer::Upstream::bind().await;
    let settings = "user-service: { routes: [\
        { match: { path: { prefix: /slow } }, timeouts: { request: 3s }, limits: { requests: 1 } }, \
        { match: { path: { prefix: /rated } }, limits: { rate: { per_second: 1 } }, respond: { status: 200 } }] }";
    let pillion = Setup::users([upstream.address]).service(settings).start().await;
    let (mut first, mut second) = (pillion.connect().await, pillion.connect().await);
    first.send(get("/slow")).await;
    let mut held = upstream.accept().await;
    held.request().await;
    second.send(get("/slow")).await;
    assert_eq!(second.response().await.error(), (503, Some("overloaded")));
    assert_eq!(first.response().await.error(), (504, Some("request_timeout")));
    second.send(get("/rated")).await;
    assert_eq!(second.response().await.status(), 200);
    let answer = until_rated(&mut second, get("/rated"), 0).await;
    assert_eq!((answer.error(), answer.get("retry-after")), ((429, Some("rate_limited")), Some("1")));
}

#[tokio::test]
async fn a_service_hands_requests_on_to_others() {
    let (stable, canary) = versions().await;
    let pillion = Setup::users([labelled(stable.address, "v1"), labelled(canary.address, "v2")])
        .service(&format!("user-service: {{ {SUBSETS}, routes: [{{ match: {{ method: GET }}, to: stable }}] }}"))
        .service("api.example: { routes: [{ match: { path: { prefix: /c } }, to: user-service/canary }, { to: user-service/ }] }")
        .service("a: { routes: [{ to: b/ }] }")
        .service("b: { routes: [{ to: a/ }] }")
        .start()
        .await;
    let mut client = pillion.connect().await;
    for (path, lines, expected) in [("/", "", "v1"), ("/c", "", "v2"), ("/", "x-version: canary\r\n", "v2")] {
        client.send(format!("GET {path} HTTP/1.1\r\nhost: api.example\r\n{lines}\r\n")).await;
        assert_eq!(client.response().await.text(), expected, "{path} {lines}");
    }
    pillion.until_metric("pillion_requests_total", &["service=\"user-service\""], 3.0).await;
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let answer = client.response().await;
    assert_eq!(answer.error(), (508, Some("route_loop")), "{}", answer.text());
}

#[tokio::test]
async fn a_service_that_gets_requests_from_anothers_routes_keeps_its_own_settings() {
    let mut ill =
        crate::peer::Upstream::bind().await.answering(|_| "HTTP/1.1 503 Ill\r\ncontent-length: 0\r\n\r\n".into());
    let other = crate::peer::Upstream::bind().await;
    let pillion = Setup::default()
        .instances("payments", [ill.address, other.address])
        .service("payments: { balance: { policy: round-robin }, retry: { attempts: 0 } }")
        .service("api.example: { routes: [{ to: payments/, timeouts: { request: 3s } }] }")
        .start()
        .await;
    let mut client = pillion.connect().await;
    let mut ask = async || {
        client.send("PUT / HTTP/1.1\r\nhost: api.example\r\ncontent-length: 0\r\n\r\n").await;
        client.response().await
    };
    let answers = [ask().await, ask().await];
    let statuses: BTreeSet<u16> = answers.iter().map(crate::peer::Message::status).collect();
    assert_eq!(statuses, BTreeSet::from([503, 504]), "the route's time limit, and no retry");
    assert_eq!(ill.unseen().len(), 1);
}

#[tokio::test]
async fn a_caller_cannot_take_away_what_a_route_puts_in() {
    let settings = "routes: [{ headers: { request: { set: { x-tier: limited } } } }]";
    let (mut stable, mut canary, pillion) = routed(settings).await;
    let mut client = pillion.connect().await;
    asked(&mut client, "/", "x-own: 1\r\nconnection: x-tier, x-own\r\n").await;
    let seen: Vec<_> = stable.unseen().into_iter().chain(canary.unseen()).collect();
    assert_eq!((seen[0].get("x-tier"), seen[0].get("x-own")), (Some("limited"), None));
}
