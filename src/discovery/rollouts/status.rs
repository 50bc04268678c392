//! How far rollouts are, for those who ask.

use super::{Governed, Rollouts, figures};
use crate::{
    config::{Rollout, RolloutEvidence, RolloutStart},
    discovery::following::{Following, StoreStatus},
    rollout::{At, State, due},
};
use serde::{Deserialize, Serialize};

/// All rollouts.
#[derive(Debug, Clone, Default)]
pub struct RolloutsStatus {
    pub store: Option<StoreStatus>,
    pub services: Vec<RolloutStatus>,
}

/// One service's rollout.
#[derive(Debug, Clone)]
pub struct RolloutStatus {
    pub service: String,
    pub rollout: Rollout,
    /// What is to be rolled out, as this pillion's config has it.
    pub release: String,
    /// The canary's share that follows from the state here: this release's own, or the one that it had when another took its
    /// place. Without it the splits are as they are written.
    pub percent: Option<f64>,
    /// Whether this pillion decides.
    pub leading: bool,
    pub state: Option<State>,
    pub from_disk: bool,
    /// In progress, and nobody has looked at it for longer than who decides takes.
    pub unattended: bool,
    /// What has to happen before it begins, where it may.
    pub waiting_for: Option<WaitingFor>,
    /// Why the value in the store is not in force.
    pub refused: Option<String>,
}

/// What has to happen before a release's rollout begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WaitingFor {
    /// It begins by hand only: the config says so.
    Hand,
    /// A newer config: it was rolled out before what the state is of, and begins again by hand only.
    Config,
    /// No endpoint of the canary can take requests.
    Canary,
    /// This pillion has had no requests for either side, and judges by those.
    Requests,
    /// Whoever decides, with this release in its config.
    Decider,
}

impl Rollouts {
    pub fn status(&self) -> RolloutsStatus {
        let of = |(service, governed): (&String, &Governed)| {
            let known = self.states.get(service);
            let good = known.and_then(|known| known.good.as_ref());
            RolloutStatus {
                service: service.clone(),
                rollout: governed.rollout.clone(),
                release: governed.release.clone(),
                percent: good.and_then(|good| good.state.percent_of(&governed.release)),
                leading: governed.metrics.leading.get() != 0,
                state: good.map(|good| good.state.clone()),
                from_disk: good.is_some_and(|good| good.from_disk),
                unattended: governed.metrics.unattended.get() != 0,
                waiting_for: self.waiting_for(service, governed, good.map(|good| &good.state)),
                refused: known.and_then(|known| Some(known.refused.as_ref()?.1.clone())),
            }
        };
        let store = self.following.as_ref().map(Following::status);
        RolloutsStatus { store, services: self.governed.iter().map(of).collect() }
    }

    /// Whether it is known what the store says.
    fn is_answered(&self) -> bool {
        self.following.as_ref().is_some_and(|following| following.status().answered)
    }

    fn waiting_for(&self, service: &str, governed: &Governed, state: Option<&State>) -> Option<WaitingFor> {
        let Governed { rollout, release, .. } = governed;
        if state.is_some_and(|state| state.release == *release) || !self.is_answered() {
            return None;
        }
        let [canary, baseline] = [&rollout.canary, &rollout.baseline].map(|subset| self.side(service, subset));
        if state.is_some_and(|state| state.percent_of(release).is_some()) {
            return Some(WaitingFor::Config);
        }
        let by_itself = RolloutStart::Automatic == rollout.start;
        if !by_itself || state.is_some_and(|state| due(Some(state), rollout, release, &self.by, At::now()).is_none()) {
            return Some(WaitingFor::Hand);
        }
        let no_requests = || [canary.clone(), baseline].iter().all(|side| side.red.totals().0 == 0);
        Some(match () {
            () if !figures::can_be_tried(&canary) => WaitingFor::Canary,
            () if rollout.evidence == RolloutEvidence::Own && no_requests() => WaitingFor::Requests,
            () => WaitingFor::Decider,
        })
    }
}
