//! A rollout's part in its service's splits.

use super::{State, Weights};
use crate::config::{Labels, Rollout, Service, Target};

/// What is rolled out: what the config says, or else the canary's labels.
pub fn release(config: &Rollout, service: &Service) -> String {
    let of_labels = |labels: &Labels| {
        let mut labels: Vec<_> = labels.iter().map(|(label, value)| format!("{label}={value}")).collect();
        labels.sort_unstable();
        labels.join(",")
    };
    let labels = || service.subsets.get(&config.canary).map(of_labels).unwrap_or_default();
    config.release.clone().unwrap_or_else(labels)
}

/// Gives the service's splits between canary and baseline the weights that `state` says for the service's own release. Where
/// it says nothing of that, they stay as they are written.
pub fn weigh(service: &mut Service, state: &State) {
    let Some(rollout) = service.rollout.clone() else { return };
    let Some(percent) = state.percent_of(&release(&rollout, service)) else { return };
    let Weights { baseline, canary } = Weights::of(percent);
    for route in service.routes.iter_mut().filter(|route| rollout.governs(route)) {
        for (Target { subset, .. }, weight) in &mut route.split {
            *weight = if subset.as_deref() == Some(&*rollout.canary) { canary } else { baseline };
        }
    }
}
