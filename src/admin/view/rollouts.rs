//! How far rollouts are, and who decides about them.

use super::Store;
use crate::{
    config::human,
    discovery::{RolloutStatus, RolloutsStatus, WaitingFor},
    rollout::{At, Decision, Phase, State},
};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// `GET /api/rollouts`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rollouts {
    /// Where the states are, if any service has a rollout.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store: Option<Store>,
    /// The services with a rollout, by name.
    pub services: Vec<ServiceRollout>,
}

/// One service's rollout.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ServiceRollout {
    pub service: String,
    pub canary: String,
    pub baseline: String,
    /// What is to be rolled out, as this pillion's config has it.
    pub release: String,
    /// The canary's shares in percent.
    pub steps: Vec<f64>,
    /// Whether this pillion decides.
    pub leading: bool,
    /// In progress, and nobody has looked at it for longer than who decides takes.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unattended: bool,
    /// What has to happen before the release's rollout begins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting_for: Option<WaitingFor>,
    /// Whether the state is of this release.
    pub in_force: bool,
    /// The canary's share here: this release's own, or the one that it had when another took its place. Without it the splits
    /// are as they are written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub percent: Option<f64>,
    /// The state was read from the disk, and the store has not confirmed it since.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub from_disk: bool,
    /// What all pillions have in common; nothing before the first rollout.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<RolloutState>,
    /// How often a release is tried, and how long nothing begins after it was taken back.
    pub attempts: u32,
    #[serde(with = "human")]
    pub cool_down: Duration,
    /// Why the value that the store has now cannot be used, if it cannot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
}

/// The state in the store, without the evidence.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RolloutState {
    pub release: String,
    #[serde(flatten)]
    pub phase: Phase,
    /// The canary's share.
    pub percent: f64,
    pub attempt: u32,
    pub started_at: At,
    pub step_since: At,
    /// Until when what came was looked at, and by which pillion.
    pub looked_at: At,
    pub by: String,
    /// How much of the step was looked at, and what was seen in it; as it was written last.
    #[serde(with = "human")]
    pub watched: Duration,
    pub requests: StepRequests,
    /// Why there are no figures, while there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// The latest last.
    pub decisions: Vec<Decision>,
}

/// What counts for `min_requests`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct StepRequests {
    pub canary: u64,
    pub baseline: u64,
}

impl From<RolloutsStatus> for Rollouts {
    fn from(RolloutsStatus { store, services }: RolloutsStatus) -> Self {
        Self { store: store.map(Into::into), services: services.into_iter().map(Into::into).collect() }
    }
}

impl From<RolloutStatus> for ServiceRollout {
    fn from(status: RolloutStatus) -> Self {
        let RolloutStatus {
            service,
            rollout,
            release,
            percent,
            leading,
            state,
            from_disk,
            unattended,
            waiting_for,
            refused,
        } = status;
        Self {
            service,
            attempts: rollout.attempts,
            cool_down: rollout.cool_down,
            canary: rollout.canary,
            baseline: rollout.baseline,
            steps: rollout.steps.into_iter().map(|step| step.0).collect(),
            leading,
            unattended,
            waiting_for,
            in_force: state.as_ref().is_some_and(|state| state.release == release),
            release,
            percent,
            from_disk,
            state: state.map(Into::into),
            refused,
        }
    }
}

impl From<State> for RolloutState {
    fn from(state: State) -> Self {
        let (canary, baseline) = state.requests();
        Self {
            requests: StepRequests { canary, baseline },
            watched: state.watched,
            release: state.release,
            phase: state.phase,
            percent: state.percent,
            attempt: state.attempt,
            started_at: state.started_at,
            step_since: state.step_since,
            looked_at: state.looked_at,
            by: state.by,
            last_error: state.last_error,
            decisions: state.decisions.into(),
        }
    }
}
