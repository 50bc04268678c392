//! The end of the process as the API shows it.

use crate::drain::{self, End, Step};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

/// `/api/drain`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Draining {
    pub step: Step,
    /// The step, for people.
    pub now: String,
    /// Only once somebody has asked for the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked: Option<Asked>,
    /// What happened so far, the current step included.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<Begun>,
    pub requests_in_flight: i64,
}

/// Who asked for it, and for what.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Asked {
    pub by: String,
    /// Whether the application is done, so that only requests in progress are waited for.
    pub quit: bool,
    pub seconds_ago: f64,
    /// Until what is in progress is cut off.
    pub deadline_seconds: f64,
}

/// A step and when it began, counted from when somebody asked for the end.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Begun {
    pub step: Step,
    pub after_seconds: f64,
}

impl Draining {
    pub fn new(state: &drain::State, requests_in_flight: i64) -> Self {
        let now = Instant::now();
        let asked = state.asked;
        let seconds = |from: Instant, to: Instant| to.saturating_duration_since(from).as_secs_f64();
        let steps = asked.iter().flat_map(|asked| {
            state.steps.iter().map(|(step, at)| Begun { step: *step, after_seconds: seconds(asked.at, *at) })
        });
        Self {
            step: state.step,
            now: match (asked, state.step) {
                // It takes a moment until `app` acts upon it.
                (Some(_), Step::Running) => "pillion is about to stop".into(),
                (_, step) => step.what().into(),
            },
            asked: asked.map(|asked| Asked {
                by: asked.by.into(),
                quit: asked.end == End::Quit,
                seconds_ago: seconds(asked.at, now),
                deadline_seconds: seconds(now, asked.deadline),
            }),
            steps: steps.collect(),
            requests_in_flight,
        }
    }
}
