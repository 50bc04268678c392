//! What was decided, and by which figures.

use super::At;
use crate::config::human;
use serde::{Deserialize, Serialize};
use std::{fmt, time::Duration};

/// A decision, as it is logged and kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Decision {
    pub at: At,
    pub release: String,
    /// Which pillion decided, or who asked for it.
    pub by: String,
    #[serde(flatten)]
    pub verdict: Verdict,
    /// Without them: nothing was looked at.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub figures: Option<Figures>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "verdict", rename_all = "kebab-case")]
pub enum Verdict {
    /// A rollout begins, with this share in percent.
    Start {
        to: f64,
        attempt: u32,
    },
    /// The step's time is not over, and nothing speaks against the canary.
    Wait,
    /// The step's time is over or does not count, and the next one has to wait.
    Hold {
        #[serde(flatten)]
        why: Why,
    },
    Promote {
        from: f64,
        to: f64,
    },
    RollBack {
        from: f64,
        #[serde(flatten)]
        cause: Cause,
    },
    /// Somebody asked for it: back, and not again by itself.
    Abort {
        from: f64,
    },
    /// The last step is over.
    Done {
        percent: f64,
    },
    Pause,
    Resume,
}

/// Why a step goes on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "why", rename_all = "kebab-case")]
pub enum Why {
    /// One of the sides has had fewer than `min_requests`.
    TooFewRequests,
    /// The baseline itself is beyond its `max`, so it shows nothing of the canary. The step's time begins anew.
    BaselineBad,
    /// What there is speaks against the canary, but not enough to take it back.
    Undecided {
        guard: String,
    },
    /// A query is bad, but not for long enough.
    QueryBad {
        guard: String,
    },
    /// A query gave no number.
    QueryFailed {
        guard: String,
        error: String,
    },
    /// The figures could not be had.
    NoEvidence {
        error: String,
    },
    /// None of the canary's endpoints can take requests.
    NoEndpoint,
    Paused,
}

/// Why a canary is taken back.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "cause", rename_all = "kebab-case")]
pub enum Cause {
    ErrorRate,
    P99,
    Query { guard: String },
}

/// What a decision is made of: all of this step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// The canary's share in percent.
    pub percent: f64,
    /// How long the step has lasted.
    #[serde(with = "human")]
    pub held: Duration,
    pub canary: SideFigures,
    pub baseline: SideFigures,
    pub guards: Vec<GuardFigures>,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct SideFigures {
    pub requests: u64,
    pub failures: u64,
    /// In percent.
    pub error_rate: f64,
    /// In milliseconds; of the canary without those of its warm-up. `None`: there were no responses.
    pub p99: Option<f64>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "guard", rename_all = "snake_case")]
pub enum GuardFigures {
    ErrorRate(Evidence),
    P99(Evidence),
    Query {
        name: String,
        /// `None`: the query gave none.
        value: Option<f64>,
        /// What is bad: `above 5`.
        bad: String,
        /// For how long it has been.
        #[serde(with = "human")]
        lasted: Duration,
    },
}

/// The evidence that the canary is beyond its limit.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Evidence {
    /// What the canary may show, by what the baseline shows: percent, or milliseconds.
    pub limit: f64,
    /// The e-value: what a stake of 1 on "it is beyond the limit" has become.
    pub e_value: f64,
    /// With this much it is taken back.
    pub needed: f64,
}

impl Verdict {
    /// The reason in one word, for metrics.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Start { .. } => "start",
            Self::Wait => "wait",
            Self::Hold { .. } => "hold",
            Self::Promote { .. } => "promote",
            Self::RollBack { .. } => "roll-back",
            Self::Abort { .. } => "abort",
            Self::Done { .. } => "done",
            Self::Pause => "pause",
            Self::Resume => "resume",
        }
    }
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.verdict)?;
        self.figures.as_ref().map_or(Ok(()), |figures| write!(f, "; {figures}"))
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Start { to, attempt: 1 } => write!(f, "starts with {to} %"),
            Self::Start { to, attempt } => write!(f, "starts with {to} %, attempt {attempt}"),
            Self::Wait => f.write_str("waits"),
            Self::Hold { why } => write!(f, "holds: {why}"),
            Self::Promote { from, to } => write!(f, "promotes from {from} % to {to} %"),
            Self::RollBack { from, cause } => write!(f, "rolls back from {from} %: {cause}"),
            Self::Abort { from: 0.0 } => f.write_str("is aborted by hand; the canary has nothing"),
            Self::Abort { from } => write!(f, "is aborted by hand, from {from} %"),
            Self::Done { percent } => write!(f, "is done, at {percent} %"),
            Self::Pause => f.write_str("pauses"),
            Self::Resume => f.write_str("resumes"),
        }
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooFewRequests => f.write_str("too few requests"),
            Self::BaselineBad => f.write_str("the baseline itself is beyond its limit"),
            Self::Undecided { guard } => write!(f, "`{guard}` speaks against the canary, and does not decide yet"),
            Self::QueryBad { guard } => write!(f, "`{guard}` is bad, and not for long enough yet"),
            Self::QueryFailed { guard, error } => write!(f, "`{guard}` gives no number: {error}"),
            Self::NoEvidence { error } => write!(f, "no figures: {error}"),
            Self::NoEndpoint => f.write_str("no endpoint of the canary can take requests"),
            Self::Paused => f.write_str("paused"),
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ErrorRate => f.write_str("the error rate is beyond its limit"),
            Self::P99 => f.write_str("the p99 latency is beyond its limit"),
            Self::Query { guard } => write!(f, "`{guard}` is bad"),
        }
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { percent, held, canary, baseline, guards } = self;
        // Whole seconds are enough for people.
        let held = human::format(Duration::from_secs(held.as_secs()));
        write!(f, "at {percent} % for {held}; canary: {canary}; baseline: {baseline}")?;
        guards.iter().try_for_each(|guard| write!(f, "; {guard}"))
    }
}

impl fmt::Display for SideFigures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { requests, failures, error_rate, p99 } = self;
        write!(f, "{failures} of {requests} failed ({error_rate} %)")?;
        p99.map_or(Ok(()), |p99| write!(f, ", p99 {p99} ms"))
    }
}

impl fmt::Display for GuardFigures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ErrorRate(evidence) => write!(f, "error_rate: at most {} %, {evidence}", evidence.limit),
            Self::P99(evidence) => write!(f, "p99: at most {} ms, {evidence}", evidence.limit),
            Self::Query { name, value: Some(value), bad, lasted } if lasted.is_zero() => {
                write!(f, "{name}: {value} (bad: {bad})")
            }
            Self::Query { name, value: Some(value), bad, lasted } => {
                write!(f, "{name}: {value} (bad: {bad}) for {}", human::format(*lasted))
            }
            Self::Query { name, value: None, .. } => write!(f, "{name}: no number"),
        }
    }
}

impl fmt::Display for Evidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "e-value {} of {}", self.e_value, self.needed)
    }
}
