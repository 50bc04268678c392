//! What a fleet has in common of a rollout: the document in the registry's store.

use super::{
    At, Decision,
    decision::{Figures, Verdict},
    guards::Guards,
};
use crate::config::{Rollout, human};
use serde::{Deserialize, Serialize};
use std::{collections::VecDeque, fmt, time::Duration};

/// Of the document. Whoever meets another one leaves it alone.
const VERSION: u32 = 2;
/// Decisions that are kept.
const KEPT: usize = 20;

/// One rollout, from its start to its end and after. Whoever holds the lock changes it, by compare-and-set; all others only
/// read the [`weights`](Self::weights).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    pub version: u32,
    /// What is rolled out.
    pub release: String,
    pub phase: Phase,
    /// The canary's share in force.
    pub percent: f64,
    /// The how-manieth try of this release, from 1; 0 where it was aborted before there was any.
    pub attempt: u32,
    /// What was rolled out before, the latest last. Where pillions differ in their configs for a while, none of them takes
    /// the fleet back to one of these by itself.
    pub earlier: VecDeque<Earlier>,
    pub started_at: At,
    pub step_since: At,
    /// How much of the step was looked at: time in which nobody decided, or nothing was to be seen, is no trial.
    #[serde(with = "human")]
    pub watched: Duration,
    /// Counts up with each version of the document, so that an older one is known as such.
    pub revision: u64,
    /// Until when what came was looked at, and by which pillion.
    pub looked_at: At,
    pub by: String,
    /// Why there are no figures, while there are none.
    pub last_error: Option<String>,
    /// The latest last. Waits are kept only after a reason to hold, and the same reason not twice in a row.
    pub decisions: VecDeque<Decision>,
    pub(super) guards: Guards,
}

/// A release of before, for pillions whose config still has it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Earlier {
    pub release: String,
    /// The share that it had when the next one took its place.
    pub percent: f64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Phase {
    Running,
    /// No next step. A bad canary is taken back all the same.
    Paused,
    /// It did badly, and gets nothing.
    RolledBack {
        at: At,
    },
    /// Somebody wants it to get nothing, and not to be tried again by itself. Since when it was taken back, if it had
    /// anything.
    Aborted {
        taken_back: Option<At>,
    },
    /// The last step is over, and its share stays.
    Done,
}

impl State {
    /// A rollout that begins now.
    pub fn begin(release: &str, attempt: u32, config: &Rollout, by: &str, now: At) -> Self {
        let first = config.steps.first().map_or(0.0, |step| step.0);
        let mut state = Self { percent: first, attempt, ..Self::new(release, Phase::Running, by, now) };
        state.decide(Verdict::Start { to: first, attempt }, None, by, now);
        state
    }

    /// The canary has nothing and was not tried, and nothing was decided.
    pub(super) fn new(release: &str, phase: Phase, by: &str, now: At) -> Self {
        Self {
            version: VERSION,
            release: release.to_owned(),
            phase,
            percent: 0.0,
            attempt: 0,
            earlier: VecDeque::new(),
            started_at: now,
            step_since: now,
            watched: Duration::ZERO,
            revision: 0,
            looked_at: now,
            by: by.to_owned(),
            last_error: None,
            decisions: VecDeque::new(),
            guards: Guards::new(now),
        }
    }

    /// Of the document's text. One that another version of pillion wrote is refused.
    pub fn read(text: &[u8]) -> Result<Self, String> {
        let version = version_of(text)?;
        if version != u64::from(VERSION) {
            return Err(format!("it has version {version}; this pillion knows version {VERSION}"));
        }
        let state: Self = serde_json::from_slice(text).map_err(no_state)?;
        let most = if matches!(state.phase, Phase::RolledBack { .. } | Phase::Aborted { .. }) { 0.0 } else { 100.0 };
        if !(0.0..=most).contains(&state.percent) {
            return Err(format!("`percent` is {}; expected at most {most} in this phase", state.percent));
        }
        Ok(state)
    }

    /// The document's text.
    pub fn write(&self) -> Result<Vec<u8>, String> {
        let text = serde_json::to_vec(self).map_err(|error| format!("it cannot be written: {error}"))?;
        // What nobody could read would leave the whole fleet with what was before.
        Self::read(&text)?;
        Ok(text)
    }

    /// Whether `other` is of the same rollout, and was written before this.
    pub fn is_newer_than(&self, other: &Self) -> bool {
        let run = |state: &Self| (state.release.clone(), state.attempt, state.started_at);
        run(self) == run(other) && self.revision > other.revision
    }

    /// The canary's share where this release is the one in the config: in force, or what it had when another took its place.
    /// Without it the splits would lead back to what was there before that, which may be gone.
    pub fn percent_of(&self, release: &str) -> Option<f64> {
        if self.release == release {
            return Some(self.percent);
        }
        self.earlier.iter().find(|earlier| earlier.release == release).map(|earlier| earlier.percent)
    }

    /// Whether a document of this text is one of another version, of which nothing is known here.
    pub fn is_of_another_version(text: &[u8]) -> bool {
        version_of(text).is_ok_and(|version| version != u64::from(VERSION))
    }

    /// What the splits between baseline and canary weigh now, in thousandths of a percent.
    pub fn weights(&self) -> Weights {
        Weights::of(self.percent)
    }

    /// How many requests of canary and baseline were looked at in this step.
    pub fn requests(&self) -> (u64, u64) {
        self.guards.requests()
    }

    /// Whether there is something to decide.
    pub fn is_live(&self) -> bool {
        matches!(self.phase, Phase::Running | Phase::Paused)
    }

    /// Whether somebody wants this release to get nothing.
    pub fn is_aborted(&self, release: &str) -> bool {
        matches!(self.phase, Phase::Aborted { .. }) && self.release == release
    }

    /// How long no rollout may begin yet.
    pub fn cooling_down(&self, config: &Rollout, now: At) -> Duration {
        match self.phase {
            Phase::RolledBack { at } | Phase::Aborted { taken_back: Some(at) } => {
                config.cool_down.saturating_sub(now.since(at))
            }
            _ => Duration::ZERO,
        }
    }

    /// Takes note of what is decided now.
    pub(super) fn decide(&mut self, verdict: Verdict, figures: Option<Figures>, by: &str, now: At) -> Decision {
        let decision = Decision { at: now, release: self.release.clone(), by: by.into(), verdict, figures };
        self.record(decision.clone());
        decision
    }

    pub(super) fn record(&mut self, decision: Decision) {
        let last = self.decisions.back().map(|last| &last.verdict);
        let holds = |verdict: &Verdict| matches!(verdict, Verdict::Hold { .. });
        let says_nothing_new = match &decision.verdict {
            // But that it no longer holds is told.
            Verdict::Wait => !last.is_some_and(holds),
            verdict => holds(verdict) && last == Some(verdict),
        };
        if says_nothing_new {
            return;
        }
        self.decisions.push_back(decision);
        while self.decisions.len() > KEPT {
            self.decisions.pop_front();
        }
    }
}

/// What documents of all versions have.
fn version_of(text: &[u8]) -> Result<u64, String> {
    // (Into a type of its own, a list would be read as well.)
    let document: serde_json::Value = serde_json::from_slice(text).map_err(no_state)?;
    let version = document.get("version").and_then(serde_json::Value::as_u64);
    version.ok_or_else(|| no_state("it has no `version`"))
}

fn no_state(error: impl fmt::Display) -> String {
    format!("it is no rollout's state: {error}")
}

/// The weights of a split's two targets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Weights {
    pub baseline: u32,
    pub canary: u32,
}

impl Weights {
    /// Where the canary has so many percent.
    pub fn of(percent: f64) -> Self {
        let canary = (percent.clamp(0.0, 100.0) * 1000.0).round() as u32;
        Self { baseline: 100_000 - canary, canary }
    }
}
