//! What becomes of a rollout: by what a look shows, by time, and by hand. Nothing here asks anybody or waits for anything.

use super::{
    At, Decision, Earlier, Look, Phase, State,
    decision::{Cause, Verdict, Why},
    guards::{Standing, Step},
};
use crate::config::{Rollout, RolloutStart, human};
use std::time::Duration;

/// A longer time between two looks, as a number of intervals, is one in which nobody looked.
const LOOKS_MISSED: u32 = 3;

/// Releases of before that are remembered.
const RELEASES: usize = 10;

/// What somebody asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    Start,
    Pause,
    Resume,
    /// To the next step at once, whatever the figures are.
    Promote,
    /// Back, and not again by itself.
    Abort,
}

impl Command {
    pub const ALL: [Self; 5] = [Self::Start, Self::Pause, Self::Resume, Self::Promote, Self::Abort];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Promote => "promote",
            Self::Abort => "abort",
        }
    }
}

/// The rollout that is to begin now by itself, if one is.
pub fn due(state: Option<&State>, config: &Rollout, release: &str, by: &str, now: At) -> Option<State> {
    let begin = |attempt| State::begin(release, attempt, config, by, now);
    let Some(state) = state else {
        return (config.start == RolloutStart::Automatic).then(|| begin(1));
    };
    if !state.cooling_down(config, now).is_zero() {
        return None;
    }
    let next = match state.phase {
        _ if state.release != release => {
            let is_new = !state.earlier.iter().any(|earlier| earlier.release == release);
            (is_new && config.start == RolloutStart::Automatic).then(|| begin(1))
        }
        Phase::RolledBack { .. } if state.attempt < config.attempts => Some(begin(state.attempt + 1)),
        _ => None,
    };
    next.map(|next| next.after(state))
}

/// Does what somebody asks for; or says why not.
pub fn command(
    state: Option<&State>,
    command: Command,
    config: &Rollout,
    release: &str,
    by: &str,
    now: At,
) -> Result<State, String> {
    if command == Command::Start {
        return start(state, config, release, by, now);
    }
    if command == Command::Abort {
        return abort(state, release, by, now);
    }
    let Some(mut state) = state.filter(|state| state.is_live()).cloned() else {
        return Err("there is no rollout in progress".into());
    };
    if state.release != release {
        let of = &state.release;
        return Err(format!("release `{of}` is in progress, and this pillion's config has `{release}`"));
    }
    let verdict = match (command, &state.phase) {
        (Command::Pause, Phase::Paused) => return Err("it is paused already".into()),
        (Command::Resume, Phase::Running) => return Err("it is not paused".into()),
        (Command::Pause, _) => {
            state.phase = Phase::Paused;
            Verdict::Pause
        }
        (Command::Resume, _) => {
            state.phase = Phase::Running;
            state.begin_step(now);
            Verdict::Resume
        }
        (Command::Promote | Command::Start | Command::Abort, _) => state.next_step(config, now),
    };
    state.decide(verdict, None, by, now);
    Ok(state)
}

/// In any phase: one that is done goes back, too, and one that was taken back or never began is not tried by itself any more.
fn abort(state: Option<&State>, release: &str, by: &str, now: At) -> Result<State, String> {
    let never_began = |state: &&State| !state.is_live() && state.release != release;
    let mut state = match state {
        Some(state) if !never_began(&state) => state.clone(),
        earlier => {
            // Where a newer config has not come yet, it may be what has all.
            let from = earlier.and_then(|earlier| earlier.percent_of(release)).unwrap_or(0.0);
            let state = State::new(release, Phase::Aborted { taken_back: (from > 0.0).then_some(now) }, by, now);
            let mut state = earlier.map_or(state.clone(), |earlier| state.after(earlier));
            state.decide(Verdict::Abort { from }, None, by, now);
            return Ok(state);
        }
    };
    let from = std::mem::replace(&mut state.percent, 0.0);
    let taken_back = match state.phase {
        Phase::Aborted { .. } => return Err("it was aborted already".into()),
        Phase::RolledBack { at } => Some(at),
        Phase::Running | Phase::Paused | Phase::Done => (from > 0.0).then_some(now),
    };
    state.phase = Phase::Aborted { taken_back };
    state.decide(Verdict::Abort { from }, None, by, now);
    Ok(state)
}

fn start(state: Option<&State>, config: &Rollout, release: &str, by: &str, now: At) -> Result<State, String> {
    let Some(state) = state else { return Ok(State::begin(release, 1, config, by, now)) };
    if state.is_live() && state.release == release {
        return Err("it is in progress already".into());
    }
    // Whoever has not heard of the newer one would take it from all who have.
    if state.is_live() && state.release != release && state.percent_of(release).is_some() {
        let of = &state.release;
        return Err(format!(
            "release `{of}` is in progress, and `{release}`, which this pillion's config has, was rolled out before that; \
             is the config out of date? (`abort` ends the one in progress)"
        ));
    }
    if state.phase == Phase::Done && state.release == release {
        return Err("it is done, and the canary has all; `abort` takes it back".into());
    }
    let left = state.cooling_down(config, now);
    if !left.is_zero() {
        let left = human::format(Duration::from_secs(left.as_secs().max(1)));
        return Err(format!("the canary was taken back; `cool_down` lasts for another {left}"));
    }
    let attempt = if state.release == release { state.attempt.saturating_add(1) } else { 1 };
    Ok(State::begin(release, attempt, config, by, now).after(state))
}

impl State {
    /// Decides by what came since [`looked_at`](Self::looked_at).
    pub fn look(&mut self, look: &Look, config: &Rollout, by: &str, now: At) -> Decision {
        self.last_error = None;
        self.by = by.to_owned();
        let since = now.since(self.looked_at);
        if since <= LOOKS_MISSED * config.interval {
            self.watched += since;
        }
        self.looked_at = now;
        let step = Step { config, percent: self.percent, held: self.watched, now };
        let Standing { figures, against, not_yet } = self.guards.look(look, &step);
        let enough = step.held >= config.hold;
        let verdict = match (against, not_yet) {
            (Some(cause), _) => self.roll_back(cause, now),
            // There is nothing to see while the baseline is bad, so that time does not count.
            (None, Some(why @ Why::BaselineBad)) => {
                self.begin_step(now);
                Verdict::Hold { why }
            }
            // (One that fails a lot is kept out by the breaker, too.)
            (None, _) if look.canary_is_gone => Verdict::Hold { why: Why::NoEndpoint },
            (None, _) if self.phase == Phase::Paused => Verdict::Hold { why: Why::Paused },
            (None, _) if !enough => Verdict::Wait,
            (None, Some(why)) if !figures.guards.is_empty() => Verdict::Hold { why },
            (None, _) => self.next_step(config, now),
        };
        self.decide(verdict, Some(figures), by, now)
    }

    /// There are no figures since the last look, for this reason. Nothing is promoted, and nothing taken back.
    pub fn blind(&mut self, error: String, by: &str, now: At) -> Decision {
        self.last_error = Some(error.clone());
        self.by = by.to_owned();
        self.decide(Verdict::Hold { why: Why::NoEvidence { error } }, None, by, now)
    }

    fn roll_back(&mut self, cause: Cause, now: At) -> Verdict {
        let from = std::mem::replace(&mut self.percent, 0.0);
        self.phase = Phase::RolledBack { at: now };
        Verdict::RollBack { from, cause }
    }

    fn next_step(&mut self, config: &Rollout, now: At) -> Verdict {
        let from = self.percent;
        // By its share and not its number: the config may have got other steps meanwhile.
        let Some(to) = config.steps.iter().map(|step| step.0).find(|step| *step > from) else {
            self.phase = Phase::Done;
            return Verdict::Done { percent: from };
        };
        self.percent = to;
        self.begin_step(now);
        self.guards = self.guards.next(now);
        Verdict::Promote { from, to }
    }

    fn begin_step(&mut self, now: At) {
        // A command may come between two looks, and what was before it is no part of the step.
        (self.step_since, self.looked_at, self.watched) = (now, now, Duration::ZERO);
    }

    /// Takes over what an earlier rollout has decided, for people to read, and what was rolled out before.
    fn after(mut self, earlier: &Self) -> Self {
        let last = Earlier { release: earlier.release.clone(), percent: earlier.percent };
        let releases = earlier.earlier.iter().chain([&last]).filter(|it| it.release != self.release);
        self.earlier = releases.cloned().collect();
        while self.earlier.len() > RELEASES {
            self.earlier.pop_front();
        }
        let own = std::mem::replace(&mut self.decisions, earlier.decisions.clone());
        own.into_iter().for_each(|decision| self.record(decision));
        self
    }
}
