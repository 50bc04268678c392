//! Somebody else changes the state between the read and the write of whoever decides, or commands.

use super::*;
use crate::{rollout::Verdict, telemetry::labels::RolloutVerdict};
use std::sync::{Arc, atomic::AtomicUsize};

/// This state is written once, right before somebody puts one of which `before` is so.
fn written_before(
    store: &Memory,
    before: impl Fn(&State) -> bool + Send + Sync + 'static,
    there: State,
) -> Arc<AtomicUsize> {
    let times = Arc::new(AtomicUsize::new(0));
    let counted = times.clone();
    store.meanwhile(move |key, value| {
        let hits = key == KEY && counted.load(Relaxed) == 0 && before(&State::read(value).unwrap());
        hits.then(|| {
            counted.fetch_add(1, Relaxed);
            there.write().unwrap().into()
        })
    });
    times
}

fn in_store(store: &Memory) -> State {
    State::read(&store.value(KEY).unwrap()).unwrap()
}

fn decided(setup: &Setup, verdict: RolloutVerdict) -> u64 {
    setup.telemetry.metrics.rollout("users").decisions.get(verdict as usize)
}

/// Enough requests for a decision, and what the canary answers.
async fn carries_for(setup: &Setup, seconds: u64, canary_fails: bool) {
    let metrics = setup.telemetry.metrics.service("users");
    for _ in 0..seconds {
        for _ in 0..20 {
            metrics.subset("stable").red.count(200, false, Duration::from_millis(5));
            let code = if canary_fails { 500 } else { 200 };
            metrics.subset("canary").red.count(code, canary_fails, Duration::from_millis(5));
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_start_that_somebody_else_was_faster_with_is_not_made_twice() {
    let store = Arc::<Memory>::default();
    let mut paused = state(50.0);
    paused.phase = Phase::Paused;
    let times = written_before(&store, |_| true, paused);
    let setup = start(&store, "", None);
    settle().await;
    setup.carries(1);
    carries_for(&setup, 20, false).await;
    assert_eq!(times.load(Relaxed), 1);
    assert_eq!((in_store(&store).phase, in_store(&store).percent, setup.share()), (Phase::Paused, 50.0, 50.0));
    assert_eq!(decided(&setup, RolloutVerdict::Start), 0, "nobody is told of what did not happen");
}

#[tokio::test(start_paused = true)]
async fn a_bad_canary_goes_back_whatever_somebody_else_did_at_the_same_time() {
    let store = Arc::<Memory>::default();
    store.set(KEY, state(25.0).write().unwrap());
    let mut promoted = state(100.0);
    promoted.revision = 50;
    let times = written_before(&store, |put| matches!(put.phase, Phase::RolledBack { .. }), promoted);
    let setup = start(&store, "", None);
    settle().await;
    setup.carries(1);
    carries_for(&setup, 60, true).await;
    assert_eq!(times.load(Relaxed), 1);
    let there = in_store(&store);
    assert!(matches!(there.phase, Phase::RolledBack { .. }), "{there:?}");
    assert!(there.revision > 50, "it goes on from what was there: {}", there.revision);
    assert_eq!((there.percent, setup.share()), (0.0, 0.0));
    assert_eq!(decided(&setup, RolloutVerdict::RollBack), 1, "told once");
}

#[tokio::test(start_paused = true)]
async fn a_promotion_gives_way_to_what_somebody_else_wrote() {
    let store = Arc::<Memory>::default();
    // The clock of a state does not go on here.
    let mut held = state(25.0);
    held.watched = Duration::from_secs(3600);
    store.set(KEY, held.write().unwrap());
    let abort =
        rollout::command(Some(&state(25.0)), Command::Abort, &Rollout::default(), "version=v2", "me", At::now());
    let mut aborted = abort.unwrap();
    aborted.revision = 50;
    let times = written_before(&store, |put| put.percent == 50.0, aborted);
    let setup = start(&store, "", None);
    settle().await;
    setup.carries(1);
    carries_for(&setup, 60, false).await;
    assert_eq!(times.load(Relaxed), 1);
    let there = in_store(&store);
    assert!(matches!(there.phase, Phase::Aborted { .. }), "{there:?}");
    assert_eq!((there.revision, setup.share()), (50, 0.0), "and nothing more is written");
    assert_eq!(decided(&setup, RolloutVerdict::Promote), 0);
}

#[tokio::test(start_paused = true)]
async fn what_was_written_and_whose_answer_was_lost_is_told_once() {
    let store = Arc::<Memory>::default();
    store.set(KEY, state(25.0).write().unwrap());
    let setup = start(&store, "", None);
    settle().await;
    setup.carries(1);
    setup.until("the lead", |rollout| rollout.leading).await;
    // The roll-back comes sooner than any other write of a state.
    let watched = store.clone();
    store.meanwhile(move |key, value| {
        let goes_back = key == KEY && matches!(State::read(value).unwrap().phase, Phase::RolledBack { .. });
        watched.loses_answer.store(goes_back, Relaxed);
        None
    });
    carries_for(&setup, 60, true).await;
    let there = in_store(&store);
    assert!(matches!(there.phase, Phase::RolledBack { .. }), "{there:?}");
    assert_eq!(there.decisions.iter().filter(|it| matches!(it.verdict, Verdict::RollBack { .. })).count(), 1);
    assert_eq!((decided(&setup, RolloutVerdict::RollBack), setup.share()), (1, 0.0));
}

#[tokio::test(start_paused = true)]
async fn a_command_is_done_to_what_is_there_when_it_is_written() {
    let store = Arc::<Memory>::default();
    store.set(KEY, state(25.0).write().unwrap());
    let setup = start(&store, "start: manual", None);
    settle().await;
    let times = written_before(&store, |_| true, state(50.0));
    let done = setup.handle.command("users", Command::Pause).await.unwrap();
    assert_eq!((times.load(Relaxed), done.percent, done.phase), (1, 50.0, Phase::Paused));
    assert_eq!(in_store(&store).percent, 50.0);
    // One that makes no sense any more is refused.
    let mut running = state(50.0);
    running.revision = 9;
    written_before(&store, |_| true, running);
    let refused = setup.handle.command("users", Command::Resume).await.unwrap_err();
    assert_eq!(refused, NotDone::Refused("it is not paused".into()));
}

#[tokio::test(start_paused = true)]
async fn a_command_is_given_up_when_others_keep_changing_the_state_or_the_store_fails() {
    let store = Arc::<Memory>::default();
    store.set(KEY, state(25.0).write().unwrap());
    let setup = start(&store, "start: manual", None);
    settle().await;
    let puts = Arc::new(AtomicUsize::new(0));
    let counted = puts.clone();
    store.meanwhile(move |key, _| {
        let mut other = state(25.0);
        other.revision = 10 + counted.fetch_add(1, Relaxed) as u64;
        (key == KEY).then(|| other.write().unwrap().into())
    });
    let failed = setup.handle.command("users", Command::Pause).await.unwrap_err();
    assert_eq!(failed, NotDone::Failed("others keep changing the state".into()));
    assert_eq!((puts.load(Relaxed), in_store(&store).phase), (5, Phase::Running));
    store.fails.store(true, Relaxed);
    let failed = setup.handle.command("users", Command::Pause).await.unwrap_err();
    assert!(matches!(&failed, NotDone::Failed(why) if why.contains("told to fail")), "{failed:?}");
}
