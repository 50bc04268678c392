//! Rollouts that somebody steers by hand, by command and by the API.

use crate::{
    canaries::{FileStore, Fleet, HOLD, SHORTER_HOLD, load, nobody_is_sent_to, rollout, until_percent, until_state},
    e2e::{Pillion, output},
    peer::Peer,
};
use serde_json::Value;
use std::{fs, time::Duration};
use tokio::time::{Instant, sleep};

#[tokio::test]
async fn it_can_be_steered_by_hand() {
    let place = FileStore::new();
    let fleet = Fleet::start(&place, ", start: manual, cool_down: 1s").await;
    // Commands come one after the other, and each may take its time.
    let seconds = |time: Duration| format!("hold: {}s", time.as_secs());
    fleet.change(&seconds(HOLD), &seconds(SHORTER_HOLD));
    let (one, other) = (fleet.pillion().await, fleet.pillion().await);
    let loads = [load(&one), load(&other)];
    let told = async |pillion: &Pillion, args: &[&str]| {
        let admin = pillion.admin().to_string();
        let done = output(&mut crate::e2e::pillion(&[&["rollout", "--admin", &admin], args].concat())).await;
        let text = String::from_utf8(if done.status.success() { done.stdout } else { done.stderr }).unwrap();
        (done.status.success(), text)
    };
    let (ok, text) = told(&one, &[]).await;
    assert!(ok && text.contains("users") && text.contains("not begun"), "{text}");
    assert!(text.contains("version=v2 begins by hand: `pillion rollout start`"), "{text}");
    let (ok, text) = told(&one, &["pause", "users"]).await;
    assert!(!ok && text.contains("there is no rollout in progress"), "{text}");
    let (ok, text) = told(&one, &["start", "orders"]).await;
    assert!(!ok && text.contains("`orders` has no `rollout`; expected users"), "{text}");
    let (ok, text) = told(&one, &["start"]).await;
    assert!(!ok && text.contains("<SERVICE>"), "{text}");

    // What one is told, all do.
    let (ok, text) = told(&one, &["start", "users"]).await;
    assert!(ok && text == "users: the rollout of version=v2 starts with 20 %\n", "{text}");
    until_percent(&other, 20.0).await;
    let admin = other.admin().to_string();
    let explained = output(&mut crate::e2e::pillion(&["explain", "--admin", &admin, "GET", "http://users/"])).await;
    let explained = String::from_utf8(explained.stdout).unwrap();
    assert!(explained.contains("canary 20 %, stable 80 %, as the rollout of version=v2 has it;"), "{explained}");
    let (ok, text) = told(&other, &["pause", "users"]).await;
    assert!(ok && text.contains("pauses"), "{text}");
    until_state(&one, "a pause", |state| state["is"] == "paused").await;
    let (ok, text) = told(&other, &["promote", "users"]).await;
    assert!(ok && text.contains("promotes from 20 % to 50 %; it stays paused"), "{text}");
    until_percent(&one, 50.0).await;
    sleep(SHORTER_HOLD + Duration::from_secs(1)).await;
    let (ok, text) = told(&one, &["status", "users"]).await;
    assert!(ok && text.contains("paused, 50 % for") && text.contains("holds: paused"), "{text}");
    let last = text.lines().last().unwrap();
    assert!(last.contains("  version=v2  ") && text.contains("\ndecided by "), "{text}");
    let (ok, text) = told(&one, &["resume", "users"]).await;
    assert!(ok && text == "users: the rollout of version=v2 resumes\n", "{text}");
    until_state(&other, "the end of the pause", |state| state["is"] == "running").await;
    let (ok, text) = told(&other, &["resume", "users"]).await;
    assert!(!ok && text.contains("it is not paused"), "{text}");
    let (ok, text) = told(&one, &["abort", "users"]).await;
    assert!(ok && text == "users: the rollout of version=v2 is aborted by hand, from 50 %\n", "{text}");
    for pillion in [&one, &other] {
        until_percent(pillion, 0.0).await;
    }
    nobody_is_sent_to(&fleet.canary, &fleet.stable).await;
    // It does not begin again by itself; by hand it does, after the time to cool down.
    sleep(Duration::from_millis(1200)).await;
    assert_eq!(rollout(&one).await["state"]["is"], "aborted");
    let (ok, text) = told(&other, &["start", "users"]).await;
    assert!(ok && text == "users: the rollout of version=v2 starts with 20 %, attempt 2\n", "{text}");
    for load in loads {
        load.end_without_failure().await;
    }
}

/// What the admin interface says to a request without a body.
async fn steer(pillion: &Pillion, method: &str, what: &str) -> (u16, Value) {
    let mut client = Peer::connect(pillion.admin()).await;
    client.send(format!("{method} /api/rollouts/{what} HTTP/1.1\r\nhost: admin\r\ncontent-length: 0\r\n\r\n")).await;
    let answer = client.response().await;
    (answer.status(), serde_json::from_slice(&answer.body).unwrap_or_default())
}

#[tokio::test]
async fn the_api_steers_it_or_says_why_not() {
    let place = FileStore::new();
    let fleet = Fleet::start(&place, ", start: manual").await;
    let pillion = fleet.pillion().await;
    let load = load(&pillion);
    for (what, status, text) in [
        ("users/pause", 409, "there is no rollout in progress"),
        ("orders/start", 404, "`orders` has no `rollout`"),
        ("users/restart", 404, "nothing is called `restart` here"),
        ("%ff/start", 400, ""),
        ("users/start", 200, "running"),
        ("users/start", 409, "it is in progress already"),
        ("users/resume", 409, "it is not paused"),
        ("users/pause", 200, "paused"),
        ("users/pause", 409, "it is paused already"),
    ] {
        let (got, answer) = steer(&pillion, "POST", what).await;
        assert_eq!(got, status, "{what}: {answer}");
        assert!(answer.to_string().contains(text), "{what}: {answer}");
    }
    assert_eq!(steer(&pillion, "GET", "users/start").await.0, 405);
    // It stays where it is for longer than a step lasts, and goes on with a step of full length.
    sleep(HOLD + Duration::from_secs(1)).await;
    let state = rollout(&pillion).await["state"].clone();
    assert_eq!((state["is"].as_str(), state["percent"].as_f64()), (Some("paused"), Some(20.0)));
    let resumed = Instant::now();
    let (status, answer) = steer(&pillion, "POST", "users/resume").await;
    assert_eq!((status, answer["is"].as_str()), (200, Some("running")), "{answer}");
    until_percent(&pillion, 50.0).await;
    assert!(resumed.elapsed() >= HOLD - Duration::from_secs(1), "{:?}", resumed.elapsed());
    let (status, answer) = steer(&pillion, "POST", "users/abort").await;
    assert_eq!((status, answer["is"].as_str(), answer["percent"].as_f64()), (200, Some("aborted"), Some(0.0)));
    load.end_without_failure().await;
    // A store that cannot be had: a file where its folder was.
    let folder = place.0.path().join("kv.yaml.store");
    fs::remove_dir_all(&folder).unwrap();
    fs::write(&folder, "").unwrap();
    let (status, answer) = steer(&pillion, "POST", "users/start").await;
    assert_eq!(status, 503, "{answer}");
}
