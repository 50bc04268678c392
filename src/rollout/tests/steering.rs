//! What begins by itself, and what people ask for.

use super::{
    super::{Earlier, due},
    *,
};

#[test]
fn by_hand_it_goes_on_or_back_at_once() {
    let mut course = Course::new(|_| ());
    course.command(Command::Promote).unwrap();
    assert_eq!(course.state.percent, 5.0);
    assert_eq!(course.state.decisions.back().unwrap().by, "ann");
    course.command(Command::Abort).unwrap();
    assert_eq!(course.state.weights().canary, 0);
    for asked in [Command::Pause, Command::Resume, Command::Promote] {
        assert_eq!(course.command(asked), Err("there is no rollout in progress".into()), "{asked:?}");
    }
    assert_eq!(course.command(Command::Abort), Err("it was aborted already".into()));
    course.config.attempts = 3;
    let much_later = course.now + 600 * MINUTE;
    assert_eq!(due(Some(&course.state), &course.config, "v2", "web-1", much_later), None, "not again by itself");
    for step in [5.0, 25.0, 50.0, 100.0] {
        course.now = much_later;
        if !course.state.is_live() {
            course.command(Command::Start).unwrap();
        }
        course.command(Command::Promote).unwrap();
        assert_eq!(course.state.percent, step);
    }
    assert_eq!(course.command(Command::Start), Err("it is in progress already".into()));
    course.command(Command::Promote).unwrap();
    assert_eq!(course.state.phase, Phase::Done);
    let refused = "it is done, and the canary has all; `abort` takes it back";
    assert_eq!(course.command(Command::Start), Err(refused.into()));
    assert_eq!((&course.state.phase, course.state.percent), (&Phase::Done, 100.0));
}

#[test]
fn after_a_roll_back_it_cools_down_before_another_try() {
    let mut course = Course::new(|config| config.attempts = 2).rolled_back();
    let ended = course.now;
    course.now = ended + 20 * MINUTE;
    let refused = "the canary was taken back; `cool_down` lasts for another 10m";
    assert_eq!(course.command(Command::Start), Err(refused.into()));
    for release in ["v2", "v3"] {
        assert_eq!(due(Some(&course.state), &course.config, release, "web-1", course.now), None, "{release}");
    }
    course.now = ended + 30 * MINUTE;
    let next = |course: &Course, release| due(Some(&course.state), &course.config, release, "web-1", course.now);
    assert_eq!(next(&course, "v3").map(|state| (state.release, state.attempt)), Some(("v3".into(), 1)));
    let second = next(&course, "v2").unwrap();
    assert_eq!((second.attempt, second.percent, second.decisions.len()), (2, 1.0, 3), "{:?}", second.decisions);
    course.state = second;
    let mut course = course.rolled_back();
    course.now = course.now + 60 * MINUTE;
    assert_eq!(next(&course, "v2"), None, "two attempts are all");
    course.config.start = RolloutStart::Manual;
    assert_eq!(next(&course, "v3"), None);
    course.command(Command::Start).unwrap();
    assert_eq!((course.state.attempt, course.state.is_live()), (3, true));
}

#[test]
fn what_begins_by_itself() {
    let config = Rollout::default();
    let first = due(None, &config, "v2", "web-1", at(0)).unwrap();
    assert_eq!((first.percent, first.phase.clone(), first.attempt), (1.0, Phase::Running, 1));
    assert_eq!(due(Some(&first), &config, "v2", "web-1", at(10)), None);
    let other = due(Some(&first), &config, "v3", "web-1", at(10)).unwrap();
    assert_eq!((other.release.as_str(), other.started_at), ("v3", at(10)), "another release takes its place");
    let manual = Rollout { start: RolloutStart::Manual, ..config };
    assert_eq!(due(None, &manual, "v2", "web-1", at(0)), None);
    assert_eq!(due(Some(&first), &manual, "v3", "web-1", at(10)), None);
    assert!(command(None, Command::Start, &manual, "v2", "ann", at(0)).unwrap().is_live());
}

/// Whoever aborts wants the canary to get nothing, also where it has nothing yet.
#[test]
fn one_that_has_not_begun_is_aborted_without_a_roll_back() {
    let config = Rollout::default();
    let abort = |state: Option<&State>, release, seconds| {
        command(state, Command::Abort, &config, release, "ann", at(seconds)).unwrap()
    };
    let aborted = abort(None, "v2", 0);
    assert_eq!((aborted.percent, aborted.phase.clone()), (0.0, Phase::Aborted { taken_back: None }));
    let told: Vec<_> = aborted.decisions.iter().map(ToString::to_string).collect();
    assert_eq!(told, ["is aborted by hand; the canary has nothing"]);
    assert_eq!(due(Some(&aborted), &config, "v2", "web-1", at(100_000)), None, "not by itself");
    let begun = command(Some(&aborted), Command::Start, &config, "v2", "ann", at(1)).unwrap();
    assert_eq!((begun.is_live(), begun.attempt), (true, 1), "there is nothing to cool down from");
    assert_eq!(due(Some(&aborted), &config, "v3", "web-1", at(1)).unwrap().release, "v3");

    // The next one, while the one before is done.
    let done = State { phase: Phase::Done, percent: 100.0, ..begun };
    let next = abort(Some(&done), "v3", 10);
    assert_eq!((next.release.as_str(), next.percent, next.phase.clone()), ("v3", 0.0, aborted.phase));
    assert_eq!(next.earlier, [Earlier { release: "v2".into(), percent: 100.0 }]);
    assert_eq!(["v2", "v3", "v4"].map(|release| next.percent_of(release)), [Some(100.0), Some(0.0), None]);
    assert_eq!(next.decisions.back().unwrap().release, "v3");
    // The one before, where the next one is not known yet.
    let before = abort(Some(&next), "v2", 20);
    assert_eq!((before.percent_of("v2"), before.phase), (Some(0.0), Phase::Aborted { taken_back: Some(at(20)) }));
    assert_eq!(before.decisions.back().unwrap().to_string(), "is aborted by hand, from 100 %");
    // And the one that is done.
    let back = abort(Some(&done), "v2", 10);
    assert_eq!((back.percent, back.phase), (0.0, Phase::Aborted { taken_back: Some(at(10)) }));
}

/// A config that lags behind does not take a rollout from the pillions that have a newer one.
#[test]
fn what_was_rolled_out_before_does_not_displace_what_is_in_progress() {
    let config = Rollout::default();
    let start = |state: &State, release| command(Some(state), Command::Start, &config, release, "ann", at(20));
    let done = State { phase: Phase::Done, percent: 100.0, ..due(None, &config, "v2", "web-1", at(0)).unwrap() };
    let next = due(Some(&done), &config, "v3", "web-1", at(10)).unwrap();
    let refused = start(&next, "v2").unwrap_err();
    assert!(refused.starts_with("release `v3` is in progress, and `v2`"), "{refused}");
    assert_eq!(start(&next, "v4").unwrap().release, "v4", "one that is newer may");
    let aborted = command(Some(&next), Command::Abort, &config, "v3", "ann", at(20)).unwrap();
    let again = State { phase: Phase::Aborted { taken_back: None }, ..aborted };
    assert_eq!(start(&again, "v2").unwrap().release, "v2", "after an abort, too");
}

#[test]
fn one_that_was_taken_back_and_is_aborted_cools_down_as_before() {
    let mut course = Course::new(|config| config.attempts = 3).rolled_back();
    let taken_back = course.now;
    course.now = taken_back + 10 * MINUTE;
    course.command(Command::Abort).unwrap();
    assert_eq!(course.state.phase, Phase::Aborted { taken_back: Some(taken_back) });
    assert_eq!(course.state.decisions.back().unwrap().to_string(), "is aborted by hand; the canary has nothing");
    assert_eq!(course.state.cooling_down(&course.config, course.now), 20 * MINUTE);
    assert_eq!(due(Some(&course.state), &course.config, "v2", "web-1", course.now + 60 * MINUTE), None);
}
