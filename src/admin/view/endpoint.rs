//! One endpoint, and how it is.

use super::thousandths;
use crate::{
    cluster::{
        self, Endpoint,
        check::{self, Checked},
        health::{Cause, Standing},
    },
    registry::{Instance, Protocol},
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use tokio::time::Instant;

/// One endpoint: what its registry says, and what its traffic showed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EndpointDetail {
    pub id: String,
    pub address: String,
    pub weight: u32,
    pub zone: Option<String>,
    pub labels: BTreeMap<String, String>,
    pub protocol: Option<Protocol>,
    pub tls: Option<bool>,
    /// What its registry says.
    pub registry_healthy: bool,
    /// Whether its registry no longer lists it, and it stays in use only for as long as its checks pass, and not for long.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub gone: bool,
    pub health: Health,
    /// What active checks have shown, if there are any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checks: Option<Checks>,
    pub in_flight: u32,
    pub requests: u64,
    /// Those of them that failed: a 5xx other than 501, no response, one that broke off, or a gRPC status that says so.
    pub failures: u64,
    /// The estimate that the balancer works with. It decays while nothing is sent.
    pub latency_ms: Option<f64>,
    /// For so long it gets less than its share, because it asked for that (429, `Retry-After`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub penalty_seconds: Option<f64>,
}

/// Whether an endpoint takes requests, and why.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Health {
    pub state: Condition,
    /// Why it is ejected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// Until it gets one request as a probe.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe_in_seconds: Option<f64>,
    pub consecutive_failures: u32,
    pub ejections: u64,
    /// In the last ten seconds.
    pub recent_requests: u32,
    /// The share of them that did not fail, from 0 to 1.
    pub recent_success_rate: Option<f64>,
}

/// What active checks have shown of an endpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Checks {
    pub state: CheckState,
    /// Why the last one failed, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
    /// Since the last one ended; `None` before there was one.
    pub age_seconds: Option<f64>,
    /// How long the last one took.
    pub took_ms: Option<f64>,
    pub next_in_seconds: f64,
}

/// As [`check::State`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CheckState {
    /// Not checked yet.
    Unknown,
    Healthy,
    /// Its last checks failed, and more have to for it to be unhealthy.
    Suspect,
    Unhealthy,
}

/// What an endpoint is at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Condition {
    Available,
    /// It fails, and takes requests only because no more may be ejected.
    Failing,
    /// Kept out because of what its traffic showed.
    Ejected,
    /// Ejected until now; one request is finding out how it is.
    Probing,
    /// Its active checks fail.
    Unhealthy,
    /// Its registry calls it unhealthy.
    Withdrawn,
    /// Its registry gives it no weight.
    NoWeight,
}

impl EndpointDetail {
    pub(super) fn new(Endpoint { instance, live }: &Endpoint, now: Instant) -> Self {
        Self {
            id: instance.id.clone(),
            address: instance.address.to_string(),
            weight: instance.weight,
            zone: instance.zone.clone(),
            labels: instance.labels.clone(),
            protocol: instance.protocol,
            tls: instance.tls,
            registry_healthy: instance.healthy,
            gone: live.is_gone(),
            health: Health::new(instance, &live.health, now),
            checks: live.checked().map(|checked| Checks::new(&checked, now)),
            in_flight: live.in_flight(),
            requests: live.requests(),
            failures: live.failures(),
            latency_ms: live.latency(now).map(|latency| thousandths(latency.as_secs_f64() * 1000.0)),
            penalty_seconds: live.penalty_left(now).map(|left| thousandths(left.as_secs_f64())),
        }
    }

    /// Whether the balancer may choose it.
    pub fn is_available(&self) -> bool {
        matches!(self.health.state, Condition::Available | Condition::Failing)
    }
}

impl Health {
    pub fn new(instance: &Instance, health: &cluster::health::Health, now: Instant) -> Self {
        let (requests, rate) = health.window().map_or((0, None), |(requests, rate)| (requests, Some(rate)));
        let why = |cause: Cause| Some(cause.as_str().to_owned());
        let (state, cause, left) = match health.standing(now) {
            _ if !instance.healthy => (Condition::Withdrawn, None, None),
            _ if instance.weight == 0 => (Condition::NoWeight, None, None),
            Standing::Available => (Condition::Available, None, None),
            Standing::Failing { cause } => (Condition::Failing, why(cause), None),
            Standing::Ejected { cause, left } => (Condition::Ejected, why(cause), Some(left)),
            Standing::Probing { cause } => (Condition::Probing, why(cause), None),
            Standing::Unhealthy => (Condition::Unhealthy, None, None),
        };
        Self {
            state,
            cause,
            probe_in_seconds: left.map(|left| thousandths(left.as_secs_f64())),
            consecutive_failures: health.consecutive_failures(),
            ejections: health.ejections(),
            recent_requests: requests,
            recent_success_rate: rate.map(thousandths),
        }
    }
}

impl Checks {
    fn new(checked: &Checked, now: Instant) -> Self {
        let last = checked.last.as_ref();
        let seconds = |from: Instant, to: Instant| thousandths(to.saturating_duration_since(from).as_secs_f64());
        Self {
            state: match checked.state {
                check::State::Unknown => CheckState::Unknown,
                check::State::Healthy => CheckState::Healthy,
                check::State::Suspect { .. } => CheckState::Suspect,
                check::State::Unhealthy { .. } => CheckState::Unhealthy,
            },
            failure: last.and_then(|last| last.failure.as_ref()).map(ToString::to_string),
            age_seconds: last.map(|last| seconds(last.at, now)),
            took_ms: last.map(|last| thousandths(last.took.as_secs_f64() * 1000.0)),
            next_in_seconds: seconds(now, checked.next),
        }
    }
}
