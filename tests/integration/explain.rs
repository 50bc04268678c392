//! `pillion explain`: what it says, and that the request path does the same.

use crate::{
    e2e::until,
    peer::{Answering, get, ok, post},
    pillion::{Pillion, Setup, tested},
    routing::{SUBSETS, asked, labelled, routed, versions},
};
use serde_json::Value;
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::Relaxed},
};

/// What `pillion explain` prints.
pub async fn explained(pillion: &Pillion, args: &[&str]) -> String {
    let admin = pillion.admin().to_string();
    let mut command = tokio::process::Command::new(tested());
    let output = command.arg("explain").args(args).args(["--admin", &admin]).output().await.unwrap();
    String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap()
}

#[tokio::test]
async fn explain_says_which_way_a_request_goes_and_that_is_the_way_it_goes() {
    let settings = "routes: [\
        { name: testers, match: { headers: { x-tester: '1' } }, to: canary }, \
        { match: { path: { exact: /ping } }, respond: { status: 204 } }, \
        { match: { method: GET }, split: { stable: 50, canary: 50 }, sticky: { header: x-user } }]";
    let (stable, canary, pillion) = routed(settings).await;
    let mut client = pillion.connect().await;
    for user in 0..20 {
        let version = asked(&mut client, "/x", &format!("x-user: {user}\r\n")).await;
        let said = explained(&pillion, &["GET", "http://user-service/x", "-H", &format!("x-user: {user}")]).await;
        let subset = if version == "v1" { "stable" } else { "canary" };
        assert!(said.contains(&format!("by header x-user: {subset}\n→ user-service, subset `{subset}`\n")), "{said}");
        let address = if version == "v1" { stable.address } else { canary.address };
        let line = said.lines().find(|line| line.contains("eligible")).unwrap_or_else(|| panic!("{said}"));
        assert!(line.starts_with(&address.to_string()), "{said}");
        assert!(
            said.contains("route 0 `testers`: no: header `x-tester`\n  route 1: no: path\n  route 2: takes it\n"),
            "{said}"
        );
    }
    let by_header = explained(&pillion, &["GET", "/x", "-H", "host: user-service", "-H", "x-tester: 1"]).await;
    assert!(by_header.contains("  route 0 `testers`: takes it\n  route 1: no: path\n  route 2: no: route 0 takes it before\n→ user-service, subset `canary`\n"), "{by_header}");
    let own = explained(&pillion, &["GET", "http://user-service/ping"]).await;
    assert!(own.ends_with("→ pillion answers 204 itself\n"), "{own}");
    let whole = explained(&pillion, &["POST", "http://user-service/x"]).await;
    assert!(
        whole.contains("no route takes it, so it goes to the whole service\n→ user-service, any endpoint\n"),
        "{whole}"
    );
    let wanted = explained(&pillion, &["POST", "http://user-service/x", "-H", "x-version: stable"]).await;
    assert!(
        wanted.contains("asks for the subset `stable` by itself, and gets it\n→ user-service, subset `stable`"),
        "{wanted}"
    );
    let missing = explained(&pillion, &["POST", "http://user-service/x", "-H", "x-version: beta"]).await;
    let none = "asks for the subset `beta` by itself, but the service has none of that name, so its routes count\n→ user-service, any";
    assert!(missing.contains(none), "{missing}");
    let unknown = explained(&pillion, &["GET", "http://nobody/"]).await;
    assert!(unknown.contains("→ refused, unknown_service: "), "{unknown}");
    let wrong = explained(&pillion, &["GET", "http://a b/"]).await;
    assert!(wrong.contains("`http://a b/` is no URL"), "{wrong}");
}

#[tokio::test]
async fn explain_shows_copies_marks_and_inbound_listeners() {
    let (stable, canary) = versions().await;
    let addresses = [labelled(stable.address, "v1"), labelled(canary.address, "v2")];
    let routes = "routes: [{ to: stable, mark: true, mirror: { to: canary, percent: 25 } }]";
    let setup = Setup::users(addresses)
        .service(&format!("user-service: {{ {SUBSETS}, {routes} }}"))
        .service("web: { routes: [{ to: user-service/canary, mark: true }] }")
        .listener("inbound", "app: 127.0.0.1:9");
    let pillion = setup.start().await;
    let said = explained(&pillion, &["GET", "http://user-service/"]).await;
    let steps = "  marked with `stable` for the services behind\n  25 % of such requests are copied to canary\n";
    assert!(said.contains(steps), "{said}");
    // What the first service's route marks it with, the next one is asked for.
    let said = explained(&pillion, &["GET", "http://web/"]).await;
    assert!(said.contains("asks for the subset `canary` by itself, and gets it\n"), "{said}");
    let said = explained(&pillion, &["GET", "http://any/", "--listener", "inbound"]).await;
    assert_eq!(said, "listener inbound\n→ the local application at 127.0.0.1:9\n");
    let said = explained(&pillion, &["GET", "http://any/", "--listener", "other"]).await;
    assert!(said.contains("no listener is called `other`; there are: egress, inbound"), "{said}");
}

/// What the API says.
async fn told(pillion: &Pillion, query: &str) -> Value {
    let (status, text) =
        crate::e2e::get_path(pillion.admin(), "admin", &format!("/api/explain?{query}")).await.unwrap();
    assert_eq!(status, 200, "{text}");
    serde_json::from_str(&text).unwrap()
}

#[tokio::test]
async fn each_target_of_a_draw_is_explained_with_its_own_service_and_endpoints() {
    let (stable, canary) = versions().await;
    let orders = Answering::ok().await;
    let split = "routes: [{ split: { stable: 60, orders/: 30, canary: 10, unused/: 0 }, mark: true }]";
    let pillion = Setup::users([labelled(stable.address, "v1"), labelled(canary.address, "v2")])
        .instances("orders", [orders.address])
        .service(&format!("user-service: {{ {SUBSETS}, {split} }}"))
        .start()
        .await;
    let said = explained(&pillion, &["GET", "http://user-service/"]).await;
    let shares = "split `user-service`: canary 10 %, orders/ 30 %, stable 60 %, unused/ 0 %; each request is drawn\n";
    assert!(said.contains(shares), "{said}");
    let (stable, canary, orders) = (stable.address, canary.address, orders.address);
    let lots: Vec<&str> = said.split("\n\n  ").filter(|part| part.contains(" %: ")).collect();
    let [first, second, third] = lots[..] else { panic!("{said}") };
    assert!(first.starts_with("60 %: stable\n      marked with `stable` for the services behind\n"), "{said}");
    assert!(first.contains("    → user-service, subset `stable`\n"), "{said}");
    assert!(second.starts_with("30 %: orders/\n    service orders (known)\n    → orders, any endpoint\n"), "{said}");
    assert!(third.contains("    → user-service, subset `canary`\n"), "{said}");
    // By what is asked of the API: who is eligible for whom.
    let told = told(&pillion, "url=http://user-service/&header=x-version:canary").await;
    let lots = told["outcome"]["drawn"]["lots"].as_array().unwrap();
    let eligible = |lot: &Value| -> Vec<String> {
        let endpoints = lot["endpoints"].as_array().unwrap().iter().filter(|endpoint| endpoint["eligible"] == true);
        endpoints.map(|endpoint| endpoint["address"].as_str().unwrap().to_owned()).collect()
    };
    let found: Vec<_> = lots.iter().map(|lot| (lot["percent"].as_f64().unwrap(), eligible(lot))).collect();
    // It asks for a subset of this service; the other service has none of the kind.
    let (canary, orders) = (vec![canary.to_string()], vec![orders.to_string()]);
    assert_eq!(found, [(60.0, canary.clone()), (30.0, orders), (10.0, canary)], "{told}, {stable}");
    let asked: Vec<&Value> = lots.iter().map(|lot| &lot["asked_for"]["subset"]).collect();
    assert_eq!(asked, ["canary".into(), Value::Null, "canary".into()].each_ref(), "{told}");
    assert_eq!((&told["endpoints"], &told["asked_for"]), (&Value::Null, &Value::Null), "nobody's before the draw");
}

#[tokio::test]
async fn an_empty_subset_that_is_to_fail_is_explained_as_what_callers_get() {
    let (stable, _) = versions().await;
    let settings = format!("user-service: {{ {SUBSETS}, when_empty: {{ canary: fail }}, routes: [{{ to: canary }}] }}");
    let pillion = Setup::users([labelled(stable.address, "v1")]).service(&settings).start().await;
    let mut client = pillion.connect().await;
    client.send(get("/")).await;
    let answer = client.response().await;
    assert_eq!(answer.error(), (503, Some("no_endpoints")));
    let detail = "none of the 0 endpoints in the subset `canary` can take requests, and `when_empty` is `fail`";
    assert!(answer.text().contains(detail), "{}", answer.text());
    let said = explained(&pillion, &["GET", "http://user-service/"]).await;
    assert!(said.contains(&format!("→ refused, no_endpoints: {detail}\n")), "{said}");
    assert!(said.contains("  subsets: stable (1 of 1 available), canary (empty; then: fail)\n"), "{said}");
    let line = said.lines().find(|line| line.starts_with(&stable.address.to_string())).unwrap();
    assert!(line.contains("not in the subset"), "{said}");
}

#[tokio::test]
async fn a_subset_that_waits_for_a_probe_is_granted_to_who_asks_for_it() {
    let ill = Arc::new(AtomicBool::new(true));
    let (stable, _) = versions().await;
    let seen = ill.clone();
    let canary = crate::peer::Upstream::bind().await.answering(move |_| {
        if seen.load(Relaxed) { "HTTP/1.1 500 Ill\r\ncontent-length: 0\r\n\r\n".into() } else { ok("v2") }
    });
    let settings = format!(
        "user-service: {{ {SUBSETS}, routes: [{{ match: {{ method: GET }}, to: stable }}, {{ to: canary }}] }}"
    );
    let addresses = [labelled(stable.address, "v1"), labelled(canary.address, "v2")];
    let mut pillion = Setup::users(addresses).service(&settings).start().await;
    let mut client = pillion.connect().await;
    for _ in 0..5 {
        client.send(post("/", "x")).await;
        assert_eq!(client.response().await.status(), 500);
    }
    pillion.logged("a subset is empty").await;
    let wanted = ["GET", "http://user-service/", "-H", "x-version: canary"];
    let granted = "asks for the subset `canary` by itself, and gets it\n";
    // While it is kept out, its routes count; then until a request comes, which is the probe.
    let said = explained(&pillion, &wanted).await;
    let kept_out = "asks for the subset `canary` by itself, but nobody in it can take requests, so its routes count\n";
    assert!(said.contains(&format!("{kept_out}→ user-service, subset `stable`\n")) || said.contains(granted), "{said}");
    ill.store(false, Relaxed);
    until("the probe to be due", async || explained(&pillion, &wanted).await.contains(granted)).await;
    let said = explained(&pillion, &wanted).await;
    let line = said.lines().find(|line| line.starts_with(&canary.address.to_string())).unwrap();
    assert!(line.contains("eligible"), "{said}");
    assert_eq!(asked(&mut client, "/", "x-version: canary\r\n").await, "v2", "as it was said");
}

#[tokio::test]
async fn grpc_calls_and_redirects_are_explained_as_they_are_made() {
    let of = |address: std::net::SocketAddr, scheme: &str| {
        format!("{{ address: \"{address}\", labels: {{ scheme: {scheme} }} }}")
    };
    let (plain, grpc) = (Answering::ok().await, Answering::ok().await);
    let pillion = Setup::users([of(plain.address, "http"), of(grpc.address, "grpc")])
        .service("web: { routes: [{ redirect: { port: 8443 } }] }")
        .start()
        .await;
    for (header, plain_word, grpc_word) in
        [("content-type: application/grpc", "not for gRPC", "eligible"), ("x-other: 1", "eligible", "for gRPC only")]
    {
        let said = explained(&pillion, &["POST", "http://user-service/", "-H", header]).await;
        for (address, word) in [(plain.address, plain_word), (grpc.address, grpc_word)] {
            let line = said.lines().find(|line| line.starts_with(&address.to_string())).unwrap();
            assert!(line.contains(&format!(" {word} ")), "{said}");
        }
    }
    let mut client = pillion.connect().await;
    for (proto, location) in
        [("https", "https://web:8443/x"), ("http", "http://web:8443/x"), ("ftp", "http://web:8443/x")]
    {
        client.send(format!("GET /x HTTP/1.1\r\nhost: web\r\nx-forwarded-proto: {proto}\r\n\r\n")).await;
        assert_eq!(client.response().await.get("location"), Some(location));
        let said = explained(&pillion, &["GET", "http://web/x", "-H", &format!("x-forwarded-proto: {proto}")]).await;
        assert!(said.contains(&format!("with location: {location}\n")), "{said}");
    }
}

#[tokio::test]
async fn routes_after_the_one_taken_limits_and_other_subsets_are_explained() {
    let settings = "limits: { requests: 7 }, routes: [\
        { name: first, match: { path: { prefix: /a } }, to: stable, \
          limits: { requests: 3, rate: { per_second: 10, per_caller: { header: x-caller, per_second: 5 } } } }, \
        { name: second, match: { path: { prefix: /a/b } }, limits: { requests: 1 }, respond: { status: 204 } }, \
        { name: third }]";
    // `second` could not be reached otherwise.
    let settings = settings.replace("prefix: /a } }", "prefix: /a }, method: GET }");
    let (_a, _b, pillion) = routed(&settings).await;
    let said = explained(&pillion, &["GET", "http://user-service/a/b"]).await;
    let expected = "service user-service (known)\n  subsets: stable (1 of 1 available), canary (1 of 1 available)\n  \
        route 0 `first`: takes it, within its limits: 0 of 3 requests in flight, 10 per second, 5 per second with the same \
        x-caller\n  route 1 `second`: no: route 0 takes it before\n  route 2 `third`: no: route 0 takes it before\n\
        → user-service, subset `stable`\n  within the service's limits: 0 of 7 requests in flight\n";
    assert!(said.contains(expected), "{said}");
    let said = explained(&pillion, &["GET", "http://user-service/b"]).await;
    assert!(said.contains("`first`: no: path\n  route 1 `second`: no: path\n  route 2 `third`: takes it\n"), "{said}");
    let told = told(&pillion, "url=http://user-service/a").await;
    let subsets: Vec<_> =
        told["services"][0]["subsets"].as_array().unwrap().iter().map(|subset| &subset["name"]).collect();
    assert_eq!(subsets, ["stable", "canary"]);
}

#[tokio::test]
async fn who_calls_is_explained_as_routes_see_it() {
    let (stable, canary) = versions().await;
    let addresses = [labelled(stable.address, "v1"), labelled(canary.address, "v2")];
    let routes = "routes: [{ match: { caller: shop }, to: stable }, { match: { caller: web }, to: canary }, { respond: { body: nobody } }]";
    let service = format!("user-service: {{ {SUBSETS}, {routes} }}");
    for (own, named, expected) in [
        (None, "x-pillion-caller: web", "v2"),
        (None, "x-other: 1", "nobody"),
        // What the application beside us says it is called does not count.
        (Some("shop"), "x-pillion-caller: web", "v1"),
        (Some("shop"), "x-other: 1", "v1"),
    ] {
        let setup = Setup::users(&addresses).service(&service);
        let pillion = if let Some(own) = own { setup.named(own) } else { setup }.start().await;
        let mut client = pillion.connect().await;
        assert_eq!(asked(&mut client, "/", &format!("{named}\r\n")).await, expected, "{own:?} {named}");
        let said = explained(&pillion, &["GET", "http://user-service/", "-H", named]).await;
        let way = match expected {
            "v1" => "→ user-service, subset `stable`\n",
            "v2" => "→ user-service, subset `canary`\n",
            _ => "→ pillion answers 200 itself\n",
        };
        assert!(said.contains(way), "{own:?} {named}: {said}");
    }
}
