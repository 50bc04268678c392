use super::*;
use crate::registry::sink;
use axum::{
    Router,
    body::Body,
    http::{Method, Request, StatusCode},
};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use std::path::Path;
use tokio::time::advance;
use tower::ServiceExt;

fn open(persist: Option<&Path>) -> Arc<Embedded> {
    let config = EmbeddedRegistry { persist: persist.map(Into::into), ..Default::default() };
    let (registry, task) = Embedded::open("local", &config).unwrap();
    tokio::spawn(task);
    registry
}

fn users(address: &str, ttl: u64) -> Registration {
    Registration { name: "users".into(), entry: Entry::new(address), ttl: Some(Duration::from_secs(ttl)) }
}

async fn call(router: &Router, method: Method, path: &str, body: impl Into<Body>) -> (StatusCode, Value) {
    let request = Request::builder().method(method).uri(path).body(body.into()).unwrap();
    let answer = router.clone().oneshot(request).await.unwrap();
    let status = answer.status();
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    (status, serde_json::from_slice(&body).unwrap_or_else(|error| panic!("{error}: {body:?}")))
}

async fn post(router: &Router, path: &str, body: &Value) -> (StatusCode, Value) {
    call(router, Method::POST, path, body.to_string()).await
}

async fn get(router: &Router, path: &str) -> (StatusCode, Value) {
    call(router, Method::GET, path, "").await
}

#[tokio::test]
async fn register_discover_renew_deregister() {
    let router = router(open(None));
    let full = json!({
        "name": "users", "id": "a", "address": "10.0.0.7:80", "weight": 50, "zone": "az-1", "protocol": "http2",
        "tls": true, "labels": {"version": "v2"}, "ttl": "45s",
    });
    assert_eq!(post(&router, "/register", &full).await, (StatusCode::OK, json!({"name":"users","id":"a","ttl":"45s"})));
    let bare = json!({"name": "users", "address": "10.0.0.8:80"});
    let id = "10.0.0.8:80";
    assert_eq!(post(&router, "/register", &bare).await, (StatusCode::OK, json!({"name":"users","id":id,"ttl":"30s"})));
    let mut first = full.clone();
    for key in ["name", "ttl"] {
        first.as_object_mut().unwrap().remove(key);
    }
    let second = json!({"address": id, "id": id, "weight": 100});
    assert_eq!(get(&router, "/discover?name=users").await, (StatusCode::OK, json!([second, first])));
    assert_eq!(get(&router, "/discover?name=nobody").await, (StatusCode::OK, json!([])));
    assert_eq!(get(&router, "/services").await, (StatusCode::OK, json!(["users"])));
    let which = json!({"name": "users", "id": "a"});
    assert_eq!(post(&router, "/renew", &which).await, (StatusCode::OK, json!({"name":"users","id":"a","ttl":"45s"})));
    assert_eq!(post(&router, "/deregister", &which).await, (StatusCode::OK, which.clone()));
    for path in ["/renew", "/deregister"] {
        let (status, body) = post(&router, path, &which).await;
        assert_eq!(status, StatusCode::NOT_FOUND);
        assert_eq!(body["error"], "service `users` has no instance `a`");
    }
    assert_eq!(get(&router, "/discover?name=users").await.1, json!([second]));
}

#[tokio::test]
async fn mistakes_are_named_with_what_was_expected() {
    let router = router(open(None));
    let long = "x".repeat(5000);
    for (body, status, error) in [
        (json!({"name": "a", "address": "h:1", "wieght": 1}), 400, "unknown field `wieght`"),
        (json!({"name": "a"}), 400, "missing field `address`"),
        (json!({"name": "a", "address": "h"}), 400, "`h` is not an address"),
        (json!({"name": "a", "address": "h:1", "ttl": "30"}), 400, "`30` is not a duration"),
        (json!({"name": "a", "address": "h:1", "ttl": "1ms"}), 400, "a ttl of 1ms is out of range"),
        (json!({"name": "", "address": "h:1"}), 400, "`` is not usable as name"),
        (json!({"name": "a\nb", "address": "h:1"}), 400, "`a\\nb` is not usable as name"),
        (json!({"name": "a", "id": "", "address": "h:1"}), 400, "`` is not usable as id"),
        (json!({"name": "a", "address": "h:1", "labels": {"x": long}}), 413, "the instance has 5"),
        (json!({"name": "a", "address": "h:1", "labels": {"x": "x".repeat(70_000)}}), 413, "the body is too large"),
        (json!([]), 400, "invalid length 0"),
    ] {
        let (got, answer) = post(&router, "/register", &body).await;
        assert_eq!(got.as_u16(), status, "{answer}");
        assert!(answer["error"].as_str().unwrap().contains(error), "{error}: {answer}");
        assert!(!answer["expected"].as_str().unwrap().is_empty(), "{answer}");
    }
    for (method, path, status) in [
        (Method::GET, "/discover", 400),
        (Method::GET, "/discover?nam=a", 400),
        (Method::GET, "/discover?name=a&more=b", 400),
        (Method::GET, "/watch", 400),
        (Method::GET, "/register", 405),
        (Method::POST, "/discover?name=a", 405),
        (Method::POST, "/register", 400),
        (Method::GET, "/", 404),
    ] {
        let (got, answer) = call(&router, method.clone(), path, "").await;
        assert_eq!(got.as_u16(), status, "{method} {path}: {answer}");
        assert!(answer["expected"].is_string(), "{answer}");
    }
    assert_eq!(get(&router, "/services").await.1, json!([]));
}

#[tokio::test]
async fn web_pages_cannot_register_anything() {
    let router = router(open(None));
    let request = Request::post("/register").header("origin", "https://evil.example");
    let request = request.body(Body::from(r#"{"name":"users","address":"10.0.0.7:80"}"#)).unwrap();
    assert_eq!(router.clone().oneshot(request).await.unwrap().status(), StatusCode::FORBIDDEN);
    assert_eq!(get(&router, "/services").await.1, json!([]));
}

#[tokio::test(start_paused = true)]
async fn what_is_not_renewed_in_time_expires_by_itself() {
    let registry = open(None);
    let mut set = registry.watch_instances("users").await.unwrap();
    let start = Instant::now();
    registry.register(users("10.0.0.1:80", 10)).await.unwrap();
    registry.register(users("10.0.0.2:80", 20)).await.unwrap();
    let both = |set: &Arc<[Instance]>| set.len() == 2;
    set.wait_for(both).await.unwrap();
    advance(Duration::from_secs(9)).await;
    registry.renew("users", "10.0.0.1:80").await.unwrap();
    set.wait_for(|set| set.len() == 1).await.unwrap();
    assert!(start.elapsed() >= Duration::from_secs(19) && start.elapsed() < Duration::from_millis(19_010));
    assert_eq!(set.borrow()[0].id, "10.0.0.2:80");
    set.wait_for(|set| set.is_empty()).await.unwrap();
    assert!(start.elapsed() < Duration::from_millis(20_010));
    let unknown = registry.renew("users", "10.0.0.2:80").await.unwrap_err();
    assert!(matches!(unknown, Refusal::Unknown { .. }), "{unknown:?}");
}

#[tokio::test(start_paused = true)]
async fn a_renewal_that_is_in_the_queue_counts_also_when_the_registry_was_late() {
    let (registry, mut task) = Embedded::open("local", &EmbeddedRegistry::default()).unwrap();
    tokio::select! {
        () = &mut task => unreachable!(),
        lease = registry.register(users("10.0.0.1:80", 1)) => assert!(lease.is_ok()),
    }
    // Nobody runs the task while the TTL passes.
    advance(Duration::from_secs(5)).await;
    tokio::select! {
        biased;
        lease = registry.renew("users", "10.0.0.1:80") => assert!(lease.is_ok()),
        () = &mut task => unreachable!(),
    }
}

#[tokio::test(start_paused = true)]
async fn followers_are_pushed_every_change_and_signs_of_life() {
    let registry = open(None);
    let (sink, mut seen) = sink();
    let follower = tokio::spawn(registry.clone().follow("users".into(), sink));
    seen.wait_for(|seen| seen.instances.as_ref().is_some_and(|set| set.is_empty())).await.unwrap();
    let start = Instant::now();
    registry.register(users("10.0.0.1:80", 3600)).await.unwrap();
    seen.wait_for(|seen| seen.instances.as_ref().is_some_and(|set| set.len() == 1)).await.unwrap();
    assert_eq!(start.elapsed(), Duration::ZERO, "nothing waits for a timer");
    let mut entry = Entry::new("10.0.0.1:80");
    entry.weight = Some(7);
    registry.register(Registration { name: "users".into(), entry, ttl: None }).await.unwrap();
    seen.wait_for(|seen| seen.instances.as_ref().is_some_and(|set| set[0].weight == 7)).await.unwrap();
    for _ in 0..20 {
        tokio::time::sleep(registry.silence_limit() / 2).await;
        registry.renew("users", "10.0.0.1:80").await.ok();
        assert!(seen.borrow().heard.unwrap().elapsed() < registry.silence_limit());
    }
    follower.abort();
    assert!(follower.await.unwrap_err().is_cancelled());
    assert!(seen.changed().await.is_err(), "its sink is gone with it");
}

#[tokio::test]
async fn a_registry_that_stopped_says_so() {
    let (registry, task) = Embedded::open("local", &EmbeddedRegistry::default()).unwrap();
    drop(task);
    assert_eq!(registry.discover("users").await, Err(Refusal::Stopped));
    assert!(registry.clone().list().await.is_err());
    let (status, body) = get(&router(registry), "/services").await;
    assert_eq!((status, body["error"].as_str()), (StatusCode::SERVICE_UNAVAILABLE, Some("the registry has stopped")));
}

#[tokio::test(start_paused = true)]
async fn a_watch_begins_with_the_set_and_tells_each_change() {
    let registry = open(None);
    registry.register(users("10.0.0.1:80", 3600)).await.unwrap();
    let router = router(registry.clone());
    let answer = router.oneshot(Request::get("/watch?name=users").body(Body::empty()).unwrap()).await.unwrap();
    assert_eq!(answer.headers()["content-type"], "text/event-stream");
    let mut body = answer.into_body();
    let mut next = async || {
        let frame = body.frame().await.unwrap().unwrap().into_data().unwrap();
        String::from_utf8(frame.to_vec()).unwrap()
    };
    let set = |text: String| -> Value {
        let data = text.strip_prefix("event: instances\ndata: ").and_then(|rest| rest.strip_suffix("\n\n"));
        serde_json::from_str(data.unwrap_or_else(|| panic!("{text}"))).unwrap()
    };
    let start = Instant::now();
    assert_eq!(set(next().await), json!([{"address": "10.0.0.1:80", "id": "10.0.0.1:80", "weight": 100}]));
    registry.register(users("10.0.0.2:80", 3600)).await.unwrap();
    assert_eq!(set(next().await).as_array().unwrap().len(), 2);
    assert_eq!(start.elapsed(), Duration::ZERO);
    assert_eq!(next().await, ": alive\n\n");
    assert!((15..16).contains(&start.elapsed().as_secs()));
    registry.deregister("users", "10.0.0.1:80").await.unwrap();
    assert_eq!(set(next().await)[0]["id"], "10.0.0.2:80");
}

#[tokio::test]
async fn what_is_saved_comes_back_with_a_full_ttl() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state");
    let registry = open(Some(&path));
    for last in 1..=50 {
        registry.register(users(&format!("10.0.0.{last}:80"), 60)).await.unwrap();
    }
    registry.deregister("users", "10.0.0.7:80").await.unwrap();
    registry.flush().await.unwrap();
    let before = registry.discover("users").await.unwrap();

    let again = open(Some(&path));
    assert_eq!(again.discover("users").await.unwrap(), before);
    assert_eq!(again.renew("users", "10.0.0.1:80").await.unwrap().ttl, Duration::from_secs(60));
    drop((registry, again));
}

#[tokio::test]
async fn the_last_change_is_saved_when_the_registry_ends() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state");
    let config = EmbeddedRegistry { persist: Some(path.clone()), ..Default::default() };
    let (registry, task) = Embedded::open("local", &config).unwrap();
    let task = tokio::spawn(task);
    registry.register(users("10.0.0.1:80", 60)).await.unwrap();
    drop(registry);
    task.await.unwrap();
    assert_eq!(open(Some(&path)).discover("users").await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_damaged_state_is_put_aside_and_the_registry_works() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state");
    std::fs::write(&path, "services: {}\n").unwrap();
    let registry = open(Some(&path));
    registry.register(users("10.0.0.1:80", 60)).await.unwrap();
    registry.flush().await.unwrap();
    let names = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name());
    assert_eq!(names.filter(|name| name.to_string_lossy().contains(".corrupt-")).count(), 1);
    assert_eq!(open(Some(&path)).discover("users").await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_place_that_cannot_be_written_does_not_stop_the_registry() {
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().join("later");
    let registry = open(Some(&place.join("state")));
    registry.register(users("10.0.0.1:80", 60)).await.unwrap();
    assert_eq!(registry.discover("users").await.unwrap().len(), 1);
    std::fs::create_dir(&place).unwrap();
    registry.flush().await.unwrap();
    assert!(place.join("state").exists());
}
