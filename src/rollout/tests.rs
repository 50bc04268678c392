//! Whole rollouts, look by look, with figures that are what is expected on average.

mod steering;

use super::{
    At, Cause, Command, Decision, Look, Phase, Side, State, Verdict, Weights, Why, command, decision::GuardFigures, due,
};
use crate::{
    config::{Percent, QueryGuard, Rollout, RolloutStart},
    telemetry::metrics::LATENCY_BOUNDS,
};
use std::time::{Duration, SystemTime};

const MINUTE: Duration = Duration::from_secs(60);
/// Of all looks: requests of both sides together.
const PER_LOOK: f64 = 2000.0;

/// How one side behaves.
#[derive(Clone, Copy)]
struct Behaviour {
    /// The share that fails.
    failing: f64,
    /// The share that takes half a second, of responses that take 20 ms else.
    slow: f64,
}

const GOOD: Behaviour = Behaviour { failing: 0.002, slow: 0.005 };

struct Course {
    config: Rollout,
    state: State,
    now: At,
    /// What does not make a whole request yet.
    rest: [Rest; 2],
    queries: Vec<Result<f64, String>>,
    canary_is_gone: bool,
}

fn at(seconds: u64) -> At {
    At::from(SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000 + seconds))
}

impl Course {
    fn new(edit: impl FnOnce(&mut Rollout)) -> Self {
        let mut config = Rollout::default();
        edit(&mut config);
        let state = State::begin("v2", 1, &config, "web-1", at(0));
        Self { config, state, now: at(0), rest: Default::default(), queries: Vec::new(), canary_is_gone: false }
    }

    /// One look, after its time.
    fn look(&mut self, canary: Behaviour, baseline: Behaviour, requests: f64) -> Decision {
        self.now = self.now + self.config.interval;
        let share = self.state.percent / 100.0;
        let look = Look {
            canary: side(requests * share, canary, &mut self.rest[0]),
            baseline: side(requests * (1.0 - share), baseline, &mut self.rest[1]),
            queries: self.queries.clone(),
            canary_is_gone: self.canary_is_gone,
        };
        self.state.look(&look, &self.config, "web-1", self.now)
    }

    /// Looks until something else than waiting is decided, for a day at most.
    fn until_decided(&mut self, canary: Behaviour, baseline: Behaviour) -> (Decision, Duration) {
        let from = self.now;
        loop {
            let decision = self.look(canary, baseline, PER_LOOK);
            if decision.verdict != Verdict::Wait {
                return (decision, self.now.since(from));
            }
            assert!(self.now.since(from) < MINUTE * 60 * 24, "it waits for ever");
        }
    }

    fn command(&mut self, asked: Command) -> Result<(), String> {
        self.state = command(Some(&self.state), asked, &self.config, "v2", "ann", self.now)?;
        Ok(())
    }

    fn rolled_back(mut self) -> Self {
        let bad = Behaviour { failing: 0.5, ..GOOD };
        let (decision, _) = self.until_decided(bad, GOOD);
        assert!(matches!(decision.verdict, Verdict::RollBack { cause: Cause::ErrorRate, .. }), "{decision}");
        self
    }
}

/// Of requests, failures and slow responses.
type Rest = [f64; 3];

/// What there is on average; what is left over is kept for the next time.
fn side(requests: f64, behaviour: Behaviour, rest: &mut Rest) -> Side {
    let each = [requests, requests * behaviour.failing, requests * behaviour.slow];
    let [requests, failures, slow] = std::array::from_fn(|kind| {
        rest[kind] += each[kind];
        let whole = (rest[kind] + 1e-9).floor();
        rest[kind] -= whole;
        whole as u64
    });
    let mut side = Side { requests, failures: failures.min(requests), ..Side::default() };
    let to = |milliseconds: u64| LATENCY_BOUNDS.iter().position(|bound| *bound == milliseconds * 1000).unwrap();
    side.latencies[to(500)] = slow.min(requests);
    side.latencies[to(20)] = requests - side.latencies[to(500)];
    side
}

#[test]
fn a_good_canary_gets_all_in_the_end() {
    let mut course = Course::new(|_| ());
    let mut percents = vec![course.state.percent];
    for _ in 0..4 {
        let (decision, time) = course.until_decided(GOOD, GOOD);
        assert!(matches!(decision.verdict, Verdict::Promote { .. }), "{decision}");
        assert_eq!(time, 5 * MINUTE, "{decision}");
        percents.push(course.state.percent);
    }
    assert_eq!(percents, [1.0, 5.0, 25.0, 50.0, 100.0]);
    let (decision, time) = course.until_decided(GOOD, GOOD);
    assert_eq!((decision.verdict, time), (Verdict::Done { percent: 100.0 }, 5 * MINUTE));
    assert_eq!(course.state.weights(), Weights { baseline: 0, canary: 100_000 });
    assert!(!course.state.is_live());
    assert_eq!(due(Some(&course.state), &course.config, "v2", "web-1", course.now), None, "it is done once");
}

#[test]
fn a_canary_that_fails_more_often_is_taken_back_within_the_first_step() {
    let mut course = Course::new(|_| ());
    let (decision, time) = course.until_decided(Behaviour { failing: 0.052, ..GOOD }, GOOD);
    assert_eq!(decision.verdict, Verdict::RollBack { from: 1.0, cause: Cause::ErrorRate });
    assert!(time < MINUTE, "{time:?}");
    assert_eq!(course.state.weights(), Weights { baseline: 100_000, canary: 0 });
    assert_eq!(course.state.phase, Phase::RolledBack { at: course.now });
    assert_eq!(course.state.decisions.back(), Some(&decision));
}

#[test]
fn a_slower_canary_is_taken_back_after_its_warm_up() {
    let slow = Behaviour { slow: 0.3, ..GOOD };
    let mut course = Course::new(|_| ());
    let (decision, time) = course.until_decided(slow, GOOD);
    assert_eq!(decision.verdict, Verdict::RollBack { from: 1.0, cause: Cause::P99 }, "{decision}");
    assert!((MINUTE / 2..3 * MINUTE).contains(&time), "{time:?}");
    let mut unguarded = Course::new(|config| config.p99.enabled = false);
    let (decision, _) = unguarded.until_decided(slow, GOOD);
    assert!(matches!(decision.verdict, Verdict::Promote { .. }), "{decision}");
}

#[test]
fn one_that_breaks_at_half_of_the_traffic_is_taken_back_there() {
    let mut course = Course::new(|_| ());
    while course.state.percent < 50.0 {
        course.until_decided(GOOD, GOOD);
    }
    let (decision, time) = course.until_decided(Behaviour { failing: 0.05, ..GOOD }, GOOD);
    assert_eq!(decision.verdict, Verdict::RollBack { from: 50.0, cause: Cause::ErrorRate }, "{decision}");
    assert!(time <= MINUTE / 2, "{time:?}");
}

#[test]
fn alone_it_is_measured_by_what_the_config_calls_the_most() {
    let alone = |failing| {
        let mut course = Course::new(|config| config.steps = vec![Percent(100.0)]);
        course.until_decided(Behaviour { failing, ..GOOD }, GOOD).0.verdict
    };
    assert_eq!(alone(0.1), Verdict::RollBack { from: 100.0, cause: Cause::ErrorRate });
    assert_eq!(alone(0.03), Verdict::Done { percent: 100.0 });
    let slow = Behaviour { slow: 0.05, ..GOOD };
    let mut course = Course::new(|config| {
        config.steps = vec![Percent(100.0)];
        config.p99.max = Some(Duration::from_millis(100));
    });
    let (decision, _) = course.until_decided(slow, GOOD);
    assert_eq!(decision.verdict, Verdict::RollBack { from: 100.0, cause: Cause::P99 }, "{decision}");
}

#[test]
fn a_hiccup_decides_nothing() {
    let mut course = Course::new(|_| ());
    for _ in 0..12 {
        course.look(GOOD, GOOD, PER_LOOK);
    }
    for _ in 0..2 {
        let all_fail = Behaviour { failing: 1.0, slow: 1.0 };
        let decision = course.look(all_fail, GOOD, PER_LOOK);
        assert_eq!(decision.verdict, Verdict::Wait, "{decision}");
    }
    let (decision, _) = course.until_decided(GOOD, GOOD);
    assert!(!matches!(decision.verdict, Verdict::RollBack { .. }), "{decision}");
}

#[test]
fn both_getting_bad_together_is_not_the_canarys_fault() {
    let mut course = Course::new(|_| ());
    course.until_decided(GOOD, GOOD);
    let bad = Behaviour { failing: 0.3, slow: 0.4 };
    let (decision, _) = course.until_decided(bad, bad);
    assert_eq!(decision.verdict, Verdict::Hold { why: Why::BaselineBad }, "{decision}");
    for _ in 0..200 {
        let decision = course.look(bad, bad, PER_LOOK);
        assert_eq!(decision.verdict, Verdict::Hold { why: Why::BaselineBad }, "{decision}");
    }
    let holds = course.state.decisions.iter().filter(|decision| matches!(decision.verdict, Verdict::Hold { .. }));
    assert_eq!(holds.count(), 1, "the same reason is told once");
    // The step begins anew once that is over.
    let (mut decision, mut time) = course.until_decided(GOOD, GOOD);
    while matches!(decision.verdict, Verdict::Hold { .. }) {
        (decision, time) = course.until_decided(GOOD, GOOD);
    }
    assert_eq!((decision.verdict, time), (Verdict::Promote { from: 5.0, to: 25.0 }, 5 * MINUTE));
}

#[test]
fn with_too_few_requests_it_holds() {
    let mut course = Course::new(|config| config.min_requests = 300);
    // Two of the canary per look, so 120 in five minutes.
    for _ in 0..59 {
        assert_eq!(course.look(GOOD, GOOD, 200.0).verdict, Verdict::Wait);
    }
    for _ in 59..149 {
        let decision = course.look(GOOD, GOOD, 200.0);
        assert_eq!(decision.verdict, Verdict::Hold { why: Why::TooFewRequests }, "{decision}");
    }
    let decision = course.look(GOOD, GOOD, 200.0);
    assert_eq!(decision.verdict, Verdict::Promote { from: 1.0, to: 5.0 }, "{decision}");
}

#[test]
fn what_speaks_against_a_canary_keeps_it_from_the_next_step() {
    // 1.5 % where 0.74 % may be: it takes thousands of requests to tell.
    let mut course = Course::new(|config| {
        (config.hold, config.interval) = (Duration::from_secs(10), Duration::from_secs(1));
        config.p99.warm_up = Some(Duration::ZERO);
    });
    let bad = Behaviour { failing: 0.015, ..GOOD };
    let mut held = 0;
    loop {
        let decision = course.look(bad, GOOD, 20_000.0);
        match decision.verdict {
            Verdict::Wait => {}
            Verdict::Hold { why: Why::Undecided { guard } } => {
                assert_eq!(guard, "error_rate");
                held += 1;
            }
            Verdict::RollBack { from: 1.0, cause: Cause::ErrorRate } => break,
            _ => panic!("{decision}"),
        }
    }
    assert!(held > 0);
}

fn query(above: Option<f64>, below: Option<f64>) -> QueryGuard {
    QueryGuard { query: "queue_length".into(), name: Some("queue".into()), above, below, lasting: MINUTE }
}

#[test]
fn a_query_takes_the_canary_back_when_it_is_bad_for_long_enough() {
    let mut course = Course::new(|config| config.queries = vec![query(Some(5.0), None)]);
    course.queries = vec![Ok(6.0)];
    for _ in 0..12 {
        assert_eq!(course.look(GOOD, GOOD, PER_LOOK).verdict, Verdict::Wait);
    }
    // A break, and from the start.
    course.queries = vec![Ok(5.0)];
    assert_eq!(course.look(GOOD, GOOD, PER_LOOK).verdict, Verdict::Wait);
    course.queries = vec![Ok(6.0)];
    let (decision, time) = course.until_decided(GOOD, GOOD);
    let cause = Cause::Query { guard: "queue".into() };
    assert_eq!(decision.verdict, Verdict::RollBack { from: 1.0, cause }, "{decision}");
    assert_eq!(time, MINUTE + course.config.interval);
    assert!(decision.to_string().ends_with("; queue: 6 (bad: above 5) for 1m"), "{decision}");
}

#[test]
fn a_query_without_a_number_only_holds() {
    for (value, reason) in [(Err("no answer".to_owned()), "no answer"), (Ok(f64::NAN), "the result is not a number")] {
        let mut course = Course::new(|config| config.queries = vec![query(None, Some(1.0))]);
        course.queries = vec![value];
        let (decision, time) = course.until_decided(GOOD, GOOD);
        let why = Why::QueryFailed { guard: "queue".into(), error: reason.into() };
        assert_eq!((decision.verdict, time), (Verdict::Hold { why }, 5 * MINUTE));
        course.queries = vec![Ok(1.0)];
        let (decision, _) = course.until_decided(GOOD, GOOD);
        assert_eq!(decision.verdict, Verdict::Promote { from: 1.0, to: 5.0 }, "{decision}");
    }
}

#[test]
fn without_figures_nothing_moves() {
    let mut course = Course::new(|_| ());
    course.until_decided(GOOD, GOOD);
    let before = course.state.looked_at;
    let later = course.now + 60 * MINUTE;
    let decision = course.state.blind("connection refused".into(), "web-1", later);
    let why = Why::NoEvidence { error: "connection refused".into() };
    assert_eq!(decision.verdict, Verdict::Hold { why });
    assert_eq!((course.state.percent, course.state.last_error.as_deref()), (5.0, Some("connection refused")));
    assert_eq!(course.state.looked_at, before, "what came meanwhile is still to be looked at");
    course.look(GOOD, GOOD, PER_LOOK);
    assert_eq!(course.state.last_error, None);
}

#[test]
fn paused_it_stays_and_a_bad_canary_goes_all_the_same() {
    let mut course = Course::new(|_| ());
    course.command(Command::Pause).unwrap();
    assert_eq!(course.command(Command::Pause), Err("it is paused already".into()));
    for _ in 0..100 {
        assert_eq!(course.look(GOOD, GOOD, PER_LOOK).verdict, Verdict::Hold { why: Why::Paused });
    }
    course.command(Command::Resume).unwrap();
    assert_eq!(course.command(Command::Resume), Err("it is not paused".into()));
    let (decision, time) = course.until_decided(GOOD, GOOD);
    assert_eq!((decision.verdict, time), (Verdict::Promote { from: 1.0, to: 5.0 }, 5 * MINUTE));
    course.command(Command::Pause).unwrap();
    loop {
        let decision = course.look(Behaviour { failing: 0.5, ..GOOD }, GOOD, PER_LOOK);
        if decision.verdict == (Verdict::RollBack { from: 5.0, cause: Cause::ErrorRate }) {
            break;
        }
        assert_eq!(decision.verdict, Verdict::Hold { why: Why::Paused }, "{decision}");
    }
}

#[test]
fn what_is_done_or_was_taken_back_can_be_aborted() {
    let mut course = Course::new(|config| config.steps = vec![Percent(100.0)]);
    course.until_decided(GOOD, GOOD);
    assert_eq!(course.state.phase, Phase::Done);
    course.command(Command::Abort).unwrap();
    assert_eq!((course.state.percent, course.state.is_live()), (0.0, false));
    let mut course = Course::new(|config| config.attempts = 3).rolled_back();
    course.command(Command::Abort).unwrap();
    let much_later = course.now + 600 * MINUTE;
    assert_eq!(due(Some(&course.state), &course.config, "v2", "web-1", much_later), None, "not again by itself");
    // Nor does one that never began.
    let never = command(None, Command::Abort, &course.config, "v2", "ann", course.now).unwrap();
    assert_eq!(due(Some(&never), &course.config, "v2", "web-1", much_later), None);
}

/// For as long as it was good, so much had been lost by betting against it, once.
#[test]
fn one_that_breaks_late_in_a_step_is_taken_back_soon() {
    for (step, requests) in [(25.0, PER_LOOK), (100.0, PER_LOOK), (50.0, 10.0 * PER_LOOK)] {
        let mut course = Course::new(|_| ());
        while course.state.percent < step {
            course.until_decided(GOOD, GOOD);
        }
        for _ in 0..48 {
            course.look(GOOD, GOOD, requests);
        }
        let dead = Behaviour { failing: 1.0, ..GOOD };
        let decisions: Vec<_> = (0..8).map(|_| course.look(dead, GOOD, requests).verdict).collect();
        let back = Verdict::RollBack { from: step, cause: Cause::ErrorRate };
        let after = decisions.iter().position(|decision| *decision == back);
        assert!(after.is_some_and(|after| after <= 5), "{step} %: {decisions:?}");
    }
    // And not promoted, where that begins right before the end of the step.
    let mut course = Course::new(|_| ());
    while course.state.percent < 50.0 {
        course.until_decided(GOOD, GOOD);
    }
    for _ in 0..58 {
        course.look(GOOD, GOOD, PER_LOOK);
    }
    let dead = Behaviour { failing: 1.0, ..GOOD };
    for _ in 0..8 {
        course.look(dead, GOOD, PER_LOOK);
    }
    assert_eq!(course.state.percent, 0.0);
}

#[test]
fn time_in_which_nobody_looks_is_no_trial() {
    let mut course = Course::new(|_| ());
    for _ in 0..30 {
        course.look(GOOD, GOOD, PER_LOOK);
    }
    // Ten minutes without a look, or a clock that was put on by so much.
    course.now = course.now + 10 * MINUTE;
    for _ in 0..20 {
        assert_eq!(course.look(GOOD, GOOD, PER_LOOK).verdict, Verdict::Wait);
    }
}

/// Figures of any size can be written, and read again.
#[test]
fn every_state_can_be_read() {
    for requests in [10.0, 100.0, 500.0, 2000.0, 5000.0, 20_000.0] {
        let mut course = Course::new(|_| ());
        for _ in 0..400 {
            course.look(GOOD, GOOD, requests);
            let text = course.state.write().unwrap();
            assert_eq!(State::read(&text).unwrap(), course.state);
        }
    }
}

/// Who decided has died, and another one goes on.
#[test]
fn time_in_which_nobody_looked_is_no_part_of_a_step() {
    let mut course = Course::new(|_| ());
    let hold = course.config.hold;
    while course.state.watched + course.config.interval < hold {
        assert_eq!(course.look(GOOD, GOOD, PER_LOOK).verdict, Verdict::Wait);
    }
    let watched = course.state.watched;
    course.now = course.now + MINUTE;
    assert_eq!(course.look(GOOD, GOOD, PER_LOOK).verdict, Verdict::Wait, "the first look after that");
    assert_eq!(course.state.watched, watched);
    assert!(matches!(course.look(GOOD, GOOD, PER_LOOK).verdict, Verdict::Promote { .. }));
}

/// It would be promoted for having no failures.
#[test]
fn a_canary_that_is_gone_is_waited_for_and_that_is_told_once() {
    let mut course = Course::new(|_| ());
    course.canary_is_gone = true;
    for _ in 0..100 {
        let decision = course.look(GOOD, GOOD, PER_LOOK);
        assert_eq!(decision.verdict, Verdict::Hold { why: Why::NoEndpoint });
    }
    assert_eq!((course.state.percent, course.state.decisions.len()), (1.0, 2), "{:?}", course.state.decisions);
    course.canary_is_gone = false;
    assert!(matches!(course.look(GOOD, GOOD, PER_LOOK).verdict, Verdict::Promote { .. }));
    course.canary_is_gone = true;
    course.look(GOOD, GOOD, PER_LOOK);
    course.canary_is_gone = false;
    for _ in 0..3 {
        assert_eq!(course.look(GOOD, GOOD, PER_LOOK).verdict, Verdict::Wait);
    }
    let words: Vec<_> = course.state.decisions.iter().map(|decision| decision.verdict.as_str()).collect();
    assert_eq!(words, ["start", "hold", "promote", "hold", "wait"], "that it goes on is told, too");
    // What is bad is taken back all the same.
    course.canary_is_gone = true;
    let bad = Behaviour { failing: 0.5, ..GOOD };
    let verdicts: Vec<_> = (0..10).map(|_| course.look(bad, GOOD, PER_LOOK).verdict).collect();
    assert!(verdicts.iter().any(|verdict| matches!(verdict, Verdict::RollBack { .. })), "{verdicts:?}");
}

#[test]
fn steps_that_change_meanwhile_go_on_from_the_share_there_is() {
    let mut course = Course::new(|_| ());
    course.until_decided(GOOD, GOOD);
    course.config.steps = [2.0, 10.0].map(Percent).into();
    let (decision, _) = course.until_decided(GOOD, GOOD);
    assert_eq!(decision.verdict, Verdict::Promote { from: 5.0, to: 10.0 }, "{decision}");
    let (decision, _) = course.until_decided(GOOD, GOOD);
    assert_eq!(decision.verdict, Verdict::Done { percent: 10.0 });
    assert_eq!(course.state.weights(), Weights { baseline: 90_000, canary: 10_000 });
}

#[test]
fn the_document_reads_as_it_was_written() {
    let mut course = Course::new(|config| config.queries = vec![query(Some(5.0), None)]);
    course.queries = vec![Ok(6.0)];
    course.until_decided(GOOD, GOOD);
    course.command(Command::Start).unwrap_err();
    for state in [course.state.clone(), Course::new(|_| ()).rolled_back().state] {
        let text = state.write().unwrap();
        assert_eq!(State::read(&text), Ok(state.clone()), "{}", String::from_utf8_lossy(&text));
        assert!(text.len() < 64 * 1024, "{}", text.len());
    }
    let text = String::from_utf8(course.state.write().unwrap()).unwrap();
    assert!(text.starts_with(r#"{"version":2,"release":"v2","phase":{"is":"#), "{text}");
    assert!(text.contains(r#""started_at":"2023-11-14T22:13:20.000Z""#), "{text}");
    let refused = |text: &str| State::read(text.as_bytes()).unwrap_err();
    let newer = text.replacen(r#""version":2"#, r#""version":3,"new":{}"#, 1);
    assert_eq!(refused(&newer), "it has version 3; this pillion knows version 2");
    for (text, expected) in [
        ("", "it is no rollout's state: EOF while parsing"),
        ("[]", "it is no rollout's state: "),
        (&text.replacen(r#""percent":0.0"#, r#""percent":10.0"#, 1), "`percent` is 10; expected at most 0 in this"),
        (&text.replacen(r#""percent""#, r#""share""#, 1), "it is no rollout's state: unknown field `share`"),
    ] {
        assert!(refused(text).starts_with(expected), "{}", refused(text));
    }
}

#[test]
fn decisions_read_as_sentences_with_their_figures() {
    let mut course = Course::new(|_| ());
    let (decision, _) = course.until_decided(GOOD, GOOD);
    let figures = decision.figures.as_ref().unwrap();
    assert_eq!((figures.canary.requests, figures.baseline.requests), (1200, 118_800));
    let e_values: Vec<f64> = figures
        .guards
        .iter()
        .map(|guard| match guard {
            GuardFigures::ErrorRate(evidence) | GuardFigures::P99(evidence) => evidence.e_value,
            GuardFigures::Query { .. } => f64::NAN,
        })
        .collect();
    assert!(e_values.len() == 2 && e_values.iter().all(|e_value| *e_value < 1.0), "{e_values:?}");
    assert_eq!(
        decision.to_string(),
        format!(
            "promotes from 1 % to 5 %; at 1 % for 5m; canary: 2 of 1200 failed (0.167 %), p99 {} ms; \
             baseline: 237 of 118800 failed (0.199 %), p99 {} ms; \
             error_rate: at most 0.739 %, e-value {} of 1000; p99: at most {} ms, e-value {} of 1000",
            figures.canary.p99.unwrap(),
            figures.baseline.p99.unwrap(),
            e_values[0],
            match &figures.guards[1] {
                GuardFigures::P99(evidence) => evidence.limit,
                _ => 0.0,
            },
            e_values[1]
        )
    );
}
