//! Canaries on the real program: good ones come through, bad ones are taken back within one hold, and the end of who decides
//! changes nothing. Here the state is in a file; `real_canaries` has it in real stores.

mod fleet;

pub use fleet::{
    FileStore, Fleet, HOLD, Instance, Place, decision, load, nobody_is_sent_to, rollout, until_done, until_percent,
    until_state,
};

use crate::{
    e2e::{Load, Pillion, until},
    socket::free_port,
};
use fleet::{EmbeddedStore, Manners};
use http::Version;
use pillion::rollout::At;
use serde_json::Value;
use std::{fs, sync::atomic::Ordering::Relaxed, time::Duration};
use tokio::time::{Instant, sleep};

/// How long a step lasts where a bad canary is to be found in it: that takes requests, of which a busy machine has few. Where another
/// step comes before that one, and so is waited for, it is shorter.
const LONG_HOLD: Duration = Duration::from_secs(30);
pub const SHORTER_HOLD: Duration = Duration::from_secs(12);

/// A canary that goes bad is taken back within one hold because of that, and stays back.
pub async fn is_taken_back(fleet: &Fleet, pillion: &Pillion, bad: &Bad) {
    let spoiled = At::now();
    (bad.spoil)(&fleet.canary.manners);
    let state = until_state(pillion, "being taken back", |state| state["is"] == "rolled-back").await;
    let last = decision(&state, "roll-back");
    let at: At = serde_json::from_value(last["at"].clone()).unwrap();
    let took = at.since(spoiled);
    println!("{}: taken back after {took:.1?}: {last}", bad.cause);
    assert_eq!((last["cause"].as_str(), state["percent"].as_f64()), (Some(bad.cause), Some(0.0)));
    assert_eq!(last["from"].as_f64(), Some(bad.at), "{last:#}");
    assert!(last["figures"]["canary"]["requests"].as_u64().unwrap() > 0, "{last:#}");
    assert!(took < bad.hold(), "{took:?}");
    nobody_is_sent_to(&fleet.canary, &fleet.stable).await;
    let (asked, stable) = (fleet.canary.asked(), fleet.stable.asked());
    until("the baseline to have all", async || fleet.stable.asked() > stable + 300).await;
    assert_eq!(fleet.canary.asked(), asked);
}

/// It has all requests in the end.
pub async fn comes_through(fleet: &Fleet, pillion: &Pillion) {
    let state = until_done(pillion).await;
    assert_eq!((state["percent"].as_f64(), state["release"].as_str()), (Some(100.0), Some("version=v2")));
    let verdicts: Vec<_> = state["decisions"].as_array().unwrap().iter().map(|it| it["verdict"].as_str()).collect();
    for verdict in ["start", "promote", "done"] {
        assert!(verdicts.contains(&Some(verdict)), "{verdicts:?}");
    }
    nobody_is_sent_to(&fleet.stable, &fleet.canary).await;
    let (stable, canary) = (fleet.stable.asked(), fleet.canary.asked());
    until("the canary to have all", async || fleet.canary.asked() > canary + 300).await;
    assert_eq!(fleet.stable.asked(), stable);
}

/// It has all requests in the end, and none fails.
pub async fn a_good_canary_comes_through(place: &impl Place) {
    let fleet = Fleet::start(place, "").await;
    let mut pillion = fleet.pillion().await;
    assert_eq!(rollout(&pillion).await["state"], Value::Null, "nobody decides before there are requests");
    let load = load(&pillion);
    comes_through(&fleet, &pillion).await;
    load.end_without_failure().await;
    pillion.until_logged("the rollout promotes from 20 % to 50 %; at 20 % for").await;
    for (metric, value) in [
        ("pillion_rollout_canary_percent{service=\"users\"}", 100.0),
        ("pillion_rollout_phase{service=\"users\",phase=\"done\"}", 1.0),
        ("pillion_rollout_leading{service=\"users\"}", 1.0),
        ("pillion_rollout_decisions_total{service=\"users\",verdict=\"promote\"}", 2.0),
    ] {
        assert_eq!(pillion.metric(metric).await, value, "{metric}");
    }
}

/// How a canary goes bad, and from which share on.
pub struct Bad {
    pub at: f64,
    pub cause: &'static str,
    spoil: fn(&Manners),
}

impl Bad {
    pub const FIVE_PERCENT_MORE_ERRORS: Self =
        Self { at: 20.0, cause: "error-rate", spoil: |canary| canary.failing.store(5, Relaxed) };
    pub const DOUBLED_P99: Self = Self { at: 20.0, cause: "p99", spoil: |canary| canary.slower.store(2, Relaxed) };
    pub const ONLY_AT_HALF: Self = Self { at: 50.0, ..Self::FIVE_PERCENT_MORE_ERRORS };

    /// How long each step lasts.
    pub fn hold(&self) -> Duration {
        if self.at > 20.0 { SHORTER_HOLD } else { LONG_HOLD }
    }

    /// Before pillions are started.
    pub fn prepare(&self, fleet: &Fleet) {
        let seconds = |time: Duration| format!("hold: {}s", time.as_secs());
        fleet.change(&seconds(HOLD), &seconds(self.hold()));
    }
}

/// A canary that goes bad when it has a certain share is taken back because of that.
pub async fn a_bad_canary_is_taken_back(place: &impl Place, bad: Bad) {
    let fleet = Fleet::start(place, "").await;
    bad.prepare(&fleet);
    let pillion = fleet.pillion().await;
    let load = load(&pillion);
    until_percent(&pillion, bad.at).await;
    is_taken_back(&fleet, &pillion, &bad).await;
    load.end().await;
}

/// How far a rollout is: the canary's share, and how many of its requests were looked at in this step.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
struct Progress {
    percent: f64,
    looked_at: u64,
}

impl Progress {
    fn of(state: &Value) -> Self {
        let looked_at = state["requests"]["canary"].as_u64().unwrap();
        Self { percent: state["percent"].as_f64().unwrap(), looked_at }
    }
}

/// Another one goes on where the one that dies has stopped: the canary has its share all the time, and what was seen counts.
pub async fn who_decides_dies(place: &impl Place) {
    let fleet = Fleet::start(place, "").await;
    let (one, other) = (fleet.pillion().await, fleet.pillion().await);
    let loads = [load(&one), load(&other)];
    until_percent(&one, 20.0).await;
    until_percent(&other, 20.0).await;
    let leads = async |pillion: &Pillion| rollout(pillion).await["leading"] == true;
    let (dies, stays, [first, second]) = if leads(&one).await {
        (one, other, loads)
    } else {
        (other, one, {
            let [a, b] = loads;
            [b, a]
        })
    };
    assert!(leads(&dies).await && !leads(&stays).await, "one decides");
    let by = decision(&rollout(&stays).await["state"], "start")["by"].clone();
    // As the store has it, from where another one would take it.
    let seen = |state: &Value| Progress::of(state).looked_at >= 100;
    let mut last = Progress::of(&until_state(&stays, "something seen of the canary", seen).await);
    let killed = Instant::now();
    drop(dies);
    first.end().await;
    println!("it dies at {last:?}");
    let asked = || [fleet.canary.asked(), fleet.stable.asked()];
    let before = asked();
    let mut is_taken_over = false;
    loop {
        let rollout = rollout(&stays).await;
        let progress = Progress::of(&rollout["state"]);
        assert!(progress >= last, "{last:?}, and then {progress:?}\n{}", stays.log());
        last = progress;
        if !is_taken_over && rollout["leading"] == true {
            is_taken_over = true;
            let [canary, stable] = [asked()[0] - before[0], asked()[1] - before[1]];
            println!("another decides after {:.1?}; meanwhile {canary} to the canary, {stable} not", killed.elapsed());
            // Each request is drawn, so of few of them any number may be the canary's.
            let share = f64::from(canary) / f64::from((canary + stable).max(1));
            assert!(canary + stable < 300 || share > 0.12, "{share} of them, which should be 0.2 at least");
        }
        if rollout["state"]["is"] == "done" {
            assert!(is_taken_over);
            assert_ne!(decision(&rollout["state"], "done")["by"], by, "the other decided");
            break;
        }
        assert!(killed.elapsed() < Duration::from_secs(150), "it does not go on: {rollout:#}\n{}", stays.log());
        sleep(Duration::from_millis(20)).await;
    }
    second.end_without_failure().await;
}

/// Whoever has seen too little decides nothing.
pub async fn few_requests_hold(place: &impl Place) {
    let fleet = Fleet::start(place, "").await;
    let pillion = fleet.pillion().await;
    let load = Load::paced(pillion.egress(), Version::HTTP_11, "users", 1, Duration::from_millis(100));
    let is_held = |state: &Value| {
        let decisions = state["decisions"].as_array();
        decisions.is_some_and(|all| all.last().is_some_and(|last| last["why"] == "too-few-requests"))
    };
    let state = until_state(&pillion, "a hold", is_held).await;
    assert_eq!(state["percent"], 20.0);
    assert_eq!(state["is"], "running");
    sleep(HOLD).await;
    assert_eq!(rollout(&pillion).await["state"]["percent"], 20.0, "it goes on holding");
    load.end_without_failure().await;
}

#[tokio::test]
async fn a_canary_comes_through_or_is_taken_back() {
    let place = FileStore::new();
    a_good_canary_comes_through(&place).await;
    let place = FileStore::new();
    a_bad_canary_is_taken_back(&place, Bad::FIVE_PERCENT_MORE_ERRORS).await;
    a_bad_canary_is_taken_back(&FileStore::new(), Bad::DOUBLED_P99).await;
}

#[tokio::test]
async fn a_canary_comes_through_or_is_taken_back_with_the_embedded_registry() {
    a_good_canary_comes_through(&EmbeddedStore(free_port())).await;
    a_bad_canary_is_taken_back(&EmbeddedStore(free_port()), Bad::ONLY_AT_HALF).await;
}

/// The registry dies with it, and has kept the state.
#[tokio::test]
async fn a_rollout_in_the_embedded_registry_outlives_a_crash() {
    let place = EmbeddedStore(free_port());
    let fleet = Fleet::start(&place, "").await;
    let mut pillion = fleet.pillion().await;
    let first = load(&pillion);
    let before = until_percent(&pillion, 20.0).await;
    let saved = || fs::read_to_string(fleet.folder.path().join("kv.json")).unwrap_or_default();
    until("it to be on disk", async || saved().contains("pillion/rollouts/users")).await;
    pillion.signal("KILL");
    pillion.ended().await;
    first.end().await;
    let pillion = fleet.pillion().await;
    let second = load(&pillion);
    let after = until_state(&pillion, "the state", Value::is_object).await;
    assert_eq!(after["started_at"], before["started_at"], "it is the same rollout");
    assert!(after["percent"].as_f64() >= Some(20.0), "{after:#}");
    comes_through(&fleet, &pillion).await;
    second.end_without_failure().await;
}

/// With all defaults: its requests are tried again, it is kept out, and what is for it goes to the others, so hardly anything fails.
#[tokio::test]
async fn a_canary_that_is_kept_out_is_taken_back() {
    let place = FileStore::new();
    let fleet = Fleet::start(&place, "").await;
    fleet.change("    retry: { attempts: 1 }\n    breaker: { enabled: false }\n    outlier: { enabled: false }\n", "");
    let pillion = fleet.pillion().await;
    let load = load(&pillion);
    until_percent(&pillion, 20.0).await;
    fleet.canary.task.abort();
    let state = until_state(&pillion, "being taken back", |state| state["is"] == "rolled-back").await;
    let last = decision(&state, "roll-back");
    assert_eq!(last["cause"], "error-rate", "{last:#}");
    let failed = load.end().await;
    assert!(failed.len() < 20, "{} failed", failed.len());
}

/// Without a share it gets no request that could find out that it is well again; so the next try does.
#[tokio::test]
async fn a_canary_that_was_kept_out_is_tried_again() {
    let place = FileStore::new();
    let fleet = Fleet::start(&place, ", attempts: 2, cool_down: 2s").await;
    fleet.change("    retry: { attempts: 1 }\n    breaker: { enabled: false }\n    outlier: { enabled: false }\n", "");
    let pillion = fleet.pillion().await;
    let load = load(&pillion);
    until_percent(&pillion, 20.0).await;
    fleet.canary.manners.failing.store(100, Relaxed);
    until_state(&pillion, "being taken back", |state| state["is"] == "rolled-back").await;
    let standing = async || {
        let endpoints = pillion.json("/api/services/users").await["endpoints"].clone();
        let address = fleet.canary.address.to_string();
        endpoints.as_array().unwrap().iter().find(|endpoint| endpoint["address"] == address).unwrap()["health"]["state"]
            .clone()
    };
    assert_ne!(standing().await, "available");
    fleet.canary.manners.failing.store(0, Relaxed);
    comes_through(&fleet, &pillion).await;
    assert_eq!(rollout(&pillion).await["state"]["attempt"], 2);
    assert_eq!(standing().await, "available");
    load.end().await;
}

#[tokio::test]
async fn another_decides_when_the_one_that_did_dies() {
    who_decides_dies(&FileStore::new()).await;
}

#[tokio::test]
async fn too_few_requests_decide_nothing() {
    few_requests_hold(&FileStore::new()).await;
}

/// A new canary begins with nothing, whatever share the one before had, and an older config does not bring that back.
#[tokio::test]
async fn another_release_begins_anew() {
    let place = FileStore::new();
    let fleet = Fleet::start(&place, ", release: a").await;
    // With a file of its own: a change of the other one would be noticed soon.
    fs::copy(fleet.folder.path().join("pillion.yaml"), fleet.folder.path().join("old.yaml")).unwrap();
    let (pillion, old) = (fleet.pillion().await, fleet.pillion_with("old.yaml").await);
    let load = load(&pillion);
    until_percent(&pillion, 20.0).await;
    fleet.change("release: a", "release: b, start: manual");
    pillion.signal("HUP");
    until("the new config", async || pillion.metric("pillion_config_reloads_total{result=\"ok\"}").await == 1.0).await;
    nobody_is_sent_to(&fleet.canary, &fleet.stable).await;
    assert_eq!(rollout(&pillion).await["in_force"], false);
    until("the other to know it", async || rollout(&old).await["in_force"] == true).await;
    load.end_without_failure().await;
}

/// A pillion whose config still has the release of before keeps its share while the new one goes round: what the splits lead to as
/// they are written may be gone.
#[tokio::test]
async fn an_older_config_keeps_its_release_s_share() {
    let place = FileStore::new();
    let fleet = Fleet::start(&place, "").await;
    fleet.change("steps: [20, 50, 100]", "steps: [100]");
    fs::copy(fleet.folder.path().join("pillion.yaml"), fleet.folder.path().join("old.yaml")).unwrap();
    let (new, old) = (fleet.pillion().await, fleet.pillion_with("old.yaml").await);
    let loads = [load(&new), load(&old)];
    until_done(&new).await;
    until_done(&old).await;
    // What the next one begins from is the canary of before, and what was stable is gone.
    let next = Instance::start().await;
    fleet.list(&[("v2", &fleet.canary), ("v3", &next)]);
    fleet.stable.task.abort();
    fleet
        .change("stable: { version: v1 }, canary: { version: v2 }", "stable: { version: v2 }, canary: { version: v3 }");
    fleet.change("steps: [100]", "steps: [20, 100]");
    new.signal("HUP");
    let is_next = |state: &Value| state["release"] == "version=v3" && state["percent"] == 20.0;
    until_state(&new, "the next release", is_next).await;
    until_state(&old, "the next release, where the config has the one before", is_next).await;
    let (before, canary) = (next.asked(), fleet.canary.asked());
    until("requests to both", async || next.asked() > before + 20 && fleet.canary.asked() > canary + 100).await;
    assert_eq!(rollout(&old).await["percent"], 100.0, "of its own release");
    assert_eq!(rollout(&old).await["leading"], false, "it does not decide about another release");
    for load in loads {
        load.end_without_failure().await;
    }
}

/// Nobody has to wait until the lock of one that was told to end runs out.
#[tokio::test]
async fn whoever_ends_in_order_gives_the_lock_back() {
    let place = FileStore::new();
    let fleet = Fleet::start(&place, "").await;
    let mut pillion = fleet.pillion().await;
    let load = load(&pillion);
    until_percent(&pillion, 20.0).await;
    let lock = || fs::read_to_string(place.lock()).unwrap();
    let holder = || serde_json::from_str::<Value>(&lock()).unwrap()["holder"].clone();
    assert_ne!(holder(), "", "it has the lock");
    load.end_without_failure().await;
    pillion.signal("TERM");
    assert_eq!(pillion.ended().await, 0, "{}", pillion.log());
    assert_eq!(holder(), "", "{}", lock());
}
