use super::super::router;
use crate::{
    config::EmbeddedRegistry,
    registry::{embedded::Embedded, store::Store},
};
use axum::{
    Router,
    body::Body,
    http::{Request, header::HeaderName},
};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};
use tokio::time::sleep;
use tower::ServiceExt;

fn registry() -> Arc<Embedded> {
    let (registry, task) = Embedded::open("local", &EmbeddedRegistry::default()).unwrap();
    tokio::spawn(task);
    registry
}

fn open() -> Router {
    router(registry())
}

const NONE: Option<(&str, &str)> = None;

/// The answer's status, `ETag` and body.
async fn ask(
    router: &Router,
    what: &str,
    condition: Option<(&str, &str)>,
    body: impl Into<Body>,
) -> (u16, String, String) {
    let (method, path) = what.split_once(' ').unwrap();
    let mut request = Request::builder().method(method).uri(path);
    if let Some((name, value)) = condition {
        request = request.header(name.parse::<HeaderName>().unwrap(), value);
    }
    let answer = router.clone().oneshot(request.body(body.into()).unwrap()).await.unwrap();
    let tag = answer.headers().get("etag").map_or("", |tag| tag.to_str().unwrap()).to_owned();
    let status = answer.status().as_u16();
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    (status, tag, String::from_utf8(body.to_vec()).unwrap())
}

/// A change's status, and the version at which it says that the value is now.
async fn change(router: &Router, what: &str, condition: Option<(&str, &str)>, value: &str) -> (u16, String) {
    let (status, tag, body) = ask(router, what, condition, value.to_owned()).await;
    let body: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(body["error"].is_string(), status != 200, "{body}");
    if status == 200 {
        assert_eq!(tag, format!("\"{}\"", body["version"]), "{body}");
    }
    (status, tag)
}

fn ok(version: u32) -> (u16, String) {
    (200, format!("\"{version}\""))
}

fn refused(status: u16) -> (u16, String) {
    (status, String::new())
}

#[tokio::test]
async fn a_value_is_a_body_and_its_version_the_etag() {
    let router = open();
    let value = "routes:\n  - to: ä\n";
    assert_eq!(change(&router, "PUT /kv/pillion/routes/users", NONE, value).await, ok(1));
    let (status, tag, body) = ask(&router, "GET /kv/pillion/routes/users", NONE, "").await;
    assert_eq!((status, tag.as_str(), body.as_str()), (200, "\"1\"", value));
    assert_eq!(change(&router, "DELETE /kv/pillion/routes/users", NONE, "").await, ok(1));
    for what in ["GET /kv/pillion/routes/users", "DELETE /kv/pillion/routes/users"] {
        assert_eq!(change(&router, what, NONE, "").await, refused(404));
    }
}

#[tokio::test]
async fn a_change_can_depend_on_the_version() {
    let router = open();
    let (absent, key) = (Some(("if-none-match", "*")), "PUT /kv/a");
    assert_eq!(change(&router, key, Some(("if-match", "\"1\"")), "x").await, refused(412));
    assert_eq!(change(&router, key, absent, "1").await, ok(1));
    assert_eq!(change(&router, key, absent, "2").await, refused(412));
    assert_eq!(change(&router, key, Some(("if-match", "\"1\"")), "2").await, ok(2));
    assert_eq!(change(&router, key, Some(("if-match", "\"1\"")), "3").await, refused(412));
    assert_eq!(change(&router, "DELETE /kv/a", Some(("if-match", "\"1\"")), "").await, refused(412));
    assert_eq!(ask(&router, "GET /kv/a", NONE, "").await.2, "2", "nothing that was refused was done");
    assert_eq!(change(&router, "DELETE /kv/a", Some(("if-match", "\"2\"")), "").await, ok(2));
    assert_eq!(change(&router, key, absent, "4").await, ok(3), "no version comes twice");
}

#[tokio::test]
async fn mistakes_are_named_and_change_nothing() {
    let router = open();
    let long = format!("PUT /kv/{}", "x".repeat(513));
    for (what, condition, body, status, error) in [
        ("PUT /kv/a//b", NONE, Body::from("x"), 400, "`a//b` is not usable as a key"),
        ("PUT /kv/a/", NONE, Body::from("x"), 400, "`a/` is not usable as a key"),
        ("PUT /kv/a%20b", NONE, Body::from("x"), 400, "`a b` is not usable as a key"),
        (&long, NONE, Body::from("x"), 400, "at most 512 bytes"),
        ("PUT /kv/a", NONE, Body::from(&b"\xff"[..]), 400, "invalid utf-8"),
        ("PUT /kv/a", NONE, Body::from("x".repeat(64 * 1024 + 1)), 413, "length limit"),
        ("PUT /kv/a", Some(("if-match", "new")), Body::from("x"), 400, "`new` is no version"),
        ("PUT /kv/a", Some(("if-match", "*")), Body::from("x"), 400, "`*` is no version"),
        ("PUT /kv/a", Some(("if-none-match", "\"1\"")), Body::from("x"), 400, "this condition cannot be checked"),
        ("PUT /kv/a", Some(("origin", "https://evil.example")), Body::from("x"), 403, "web pages"),
        ("GET /kv?paht=a", NONE, Body::empty(), 400, "unknown field `paht`"),
        ("GET /kv?watch=perhaps", NONE, Body::empty(), 400, "true"),
        ("POST /kv/a", NONE, Body::from("x"), 405, "does not take this method"),
    ] {
        let (got, _, body) = ask(&router, what, condition, body).await;
        assert!(got == status && body.contains(error) && body.contains("expected"), "{what}: {got} {body}");
    }
    assert_eq!(ask(&router, "GET /kv", NONE, "").await.2, "[]");
}

#[tokio::test]
async fn what_is_below_a_path_is_listed_and_watched() {
    let router = open();
    let put = async |key: &str, value: &str| change(&router, &format!("PUT /kv/{key}"), NONE, value).await;
    put("pillion/routes/users", "{}").await;
    put("pillion/routes2/users", "{}").await;
    let users = json!([{ "key": "pillion/routes/users", "version": 1, "value": "{}" }]);
    for path in ["pillion/routes", "pillion/routes/"] {
        let (status, _, body) = ask(&router, &format!("GET /kv?path={path}"), NONE, "").await;
        assert_eq!((status, serde_json::from_str::<Value>(&body).unwrap()), (200, users.clone()));
    }
    let request = Request::get("/kv?path=pillion/routes&watch=true").body(Body::empty()).unwrap();
    let answer = router.clone().oneshot(request).await.unwrap();
    assert_eq!(answer.headers()["content-type"], "text/event-stream");
    let mut body = answer.into_body();
    let mut next = async || -> Value {
        let frame = body.frame().await.unwrap().unwrap().into_data().unwrap();
        let text = String::from_utf8(frame.to_vec()).unwrap();
        let data = text.strip_prefix("event: values\ndata: ").unwrap_or_else(|| panic!("{text}"));
        serde_json::from_str(data).unwrap()
    };
    assert_eq!(next().await, users);
    // Of what changes elsewhere nothing is told.
    put("pillion/routes2/users", "{ }").await;
    put("pillion/routes/orders", "x").await;
    let two = next().await;
    assert_eq!((two[0]["key"].as_str(), two[0]["version"].as_u64()), (Some("pillion/routes/orders"), Some(4)));
    assert_eq!(two[1], users[0]);
    ask(&router, "DELETE /kv/pillion/routes/orders", NONE, "").await;
    assert_eq!(next().await, users);
}

#[tokio::test(start_paused = true)]
async fn a_lock_can_be_held_over_http() {
    let registry = registry();
    let router = router(registry.clone());
    let ttl = Duration::from_secs(15);
    let mut ours = registry.clone().claim("pillion/lock".into(), "us".into(), ttl);
    let theirs = |renewals: u32| json!({ "holder": "them", "ttl_ms": 9000, "renewals": renewals }).to_string();
    let key = "PUT /kv/pillion/lock";
    let (status, mut tag) = change(&router, key, Some(("if-none-match", "*")), &theirs(1)).await;
    assert_eq!(status, 200);
    for renewals in 2..9 {
        assert!(!ours.take().await.unwrap());
        sleep(Duration::from_secs(5)).await;
        tag = change(&router, key, Some(("if-match", &tag)), &theirs(renewals)).await.1;
    }
    // It is not renewed any more.
    assert!(!ours.take().await.unwrap());
    sleep(Duration::from_secs(8)).await;
    assert!(!ours.take().await.unwrap());
    sleep(Duration::from_secs(1)).await;
    assert!(ours.take().await.unwrap());
    assert_eq!(change(&router, key, Some(("if-match", &tag)), &theirs(9)).await, refused(412), "it is told");
    assert!(ours.renew().await.unwrap());
    ours.release().await.unwrap();
    let document: Value = serde_json::from_str(&ask(&router, "GET /kv/pillion/lock", NONE, "").await.2).unwrap();
    assert_eq!(document["holder"], "");
}
