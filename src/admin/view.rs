//! What the API shows, as types. The commands read with the same types that the admin interface writes with, so the two
//! cannot drift apart.

mod drain;
mod endpoint;
mod explain;
mod inbound;
mod origin;
mod rollouts;
mod routes;
mod store;
mod subset;

pub use drain::{Asked, Begun, Draining};
pub use endpoint::{CheckState, Checks, Condition, EndpointDetail, Health};
pub use explain::{
    AskedFor, CalledStep, CallerRate, Candidate, Carries, Explained, LimitsStep, Lot, MirrorStep, NotEligible, Outcome,
    RouteStep, ServiceStep, SplitStep, Way, Whose,
};
pub use inbound::{Caller, Inbound, InboundListener};
pub use origin::{Held, Origin, Snapshot, Source, SourceState};
pub use rollouts::{RolloutState, Rollouts, ServiceRollout, StepRequests};
pub use routes::{RefusedRoutes, Routes, RoutesFrom, ServiceRoutes};
pub use store::{Store, StoreState};
pub use subset::SubsetDetail;

use crate::{
    cluster::{Cluster, table},
    config::{self, Balance, Breaker, Fallback, FaultInjection, HealthCheck, Hedge, Outlier, Policy, Retry, Timeouts},
    discovery::Status,
    error::Reason,
    registry::Protocol,
    telemetry::metrics::ServiceMetrics,
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashSet};
use tokio::time::Instant;

/// `GET /api/services`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Services {
    pub services: Vec<Summary>,
    /// Only with `?all=1`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_followed: Option<NotFollowed>,
}

/// One followed service on one line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    pub name: String,
    pub state: State,
    pub endpoints: usize,
    /// Endpoints that take requests.
    pub available: usize,
    pub in_flight: i64,
    /// Requests sent to the endpoints that there are now.
    pub requests: u64,
    /// Those of them that failed.
    pub failures: u64,
    /// Requests that pillion answered itself or cut off, by reason.
    pub errors: BTreeMap<String, u64>,
    #[serde(flatten)]
    pub origin: Origin,
}

/// What is known about a service's existence. As [`table::State`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    Pending,
    Unknown,
    Known,
}

/// Services that are in the registries only.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct NotFollowed {
    pub services: Vec<Listed>,
    /// Registries that could not be asked.
    pub failures: Vec<ListFailure>,
}

/// A name, and the registries that know it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Listed {
    pub name: String,
    pub registries: Vec<String>,
}

/// A registry that did not say which services it has.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ListFailure {
    pub registry: String,
    pub failure: String,
}

/// `GET /api/services/NAME`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Detail {
    pub name: String,
    pub state: State,
    pub settings: Settings,
    pub limits: Limits,
    #[serde(default)]
    pub retries: Retries,
    #[serde(flatten)]
    pub origin: Origin,
    pub in_flight: i64,
    /// Whether so few endpoints are available that all are used.
    #[serde(default)]
    pub panicking: bool,
    pub errors: BTreeMap<String, u64>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub subsets: Vec<SubsetDetail>,
    pub endpoints: Vec<EndpointDetail>,
}

/// A service's settings in short. All of them are in `/api/config`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    pub policy: Policy,
    /// What the config says that the upstreams speak; `None` leaves it to the registry and the request.
    pub protocol: Option<Protocol>,
    /// Whether the config asks for TLS to all upstreams.
    pub tls: bool,
    pub registered_as: Option<String>,
    pub timeouts: Timeouts,
    pub balance: Balance,
    pub retry: Retry,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hedge: Option<Hedge>,
    pub breaker: Breaker,
    pub outlier: Outlier,
    pub panic_threshold: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health_check: Option<HealthCheck>,
    /// What callers get instead of an error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback: Option<String>,
    /// Faults that are put in for testing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub faults: Option<FaultInjection>,
}

/// Further tries of a service's requests.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Retries {
    /// Those that wait or run now.
    pub active: i64,
    pub made: u64,
    /// Those that the budget did not allow.
    pub denied: u64,
    /// Requests that went to a second endpoint while the first took long, and those of them that the second one answered.
    pub hedges: u64,
    pub hedges_won: u64,
}

/// A service's limits, and what is taken of them now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    pub settings: config::Limits,
    /// Requests that may be in flight now: what the config says, or what the adaptive limit has found.
    pub requests: i64,
    /// Requests that wait for their turn.
    pub waiting: i64,
    /// Connections that are open.
    pub connections: u32,
}

/// `GET` and `PUT /api/log`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LogLevel {
    pub level: String,
}

/// `GET /ready` when it is not.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NotReady {
    /// All that is missing, in one line.
    pub error: String,
    pub listening: bool,
    pub draining: bool,
    /// Services of the config about which no registry has answered.
    pub waiting: Vec<Waiting>,
    /// Local applications that do not pass their checks, or are not where they are to be registered, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub applications: Vec<String>,
}

/// A service without a first answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Waiting {
    pub service: String,
    pub sources: Vec<Source>,
}

/// Any answer that is an error.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Refused {
    pub error: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected: Option<String>,
    /// The names of all followed services, where one was asked for that is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub followed: Option<Vec<String>>,
}

impl Summary {
    pub fn new(cluster: &Cluster, status: Status) -> Self {
        let snapshot = cluster.load();
        // Instances at one address share its numbers, which count once.
        let mut seen = HashSet::new();
        let (requests, failures) = snapshot
            .endpoints
            .iter()
            .filter(|endpoint| seen.insert(endpoint.live.key))
            .fold((0, 0), |(requests, failures), e| (requests + e.live.requests(), failures + e.live.failures()));
        Self {
            name: cluster.name.to_string(),
            state: snapshot.state.into(),
            endpoints: snapshot.endpoints.len(),
            available: snapshot.available(),
            in_flight: cluster.metrics.in_flight.get(),
            requests,
            failures,
            errors: errors(&cluster.metrics),
            origin: status.into(),
        }
    }
}

impl Detail {
    pub fn new(cluster: &Cluster, status: Status, now: Instant) -> Self {
        let snapshot = cluster.load();
        let service = &snapshot.settings.service;
        Self {
            name: cluster.name.to_string(),
            state: snapshot.state.into(),
            settings: Settings {
                policy: service.balance.policy,
                protocol: service.protocol,
                tls: service.tls.is_some(),
                registered_as: service.registered_as.clone(),
                timeouts: service.timeouts.clone(),
                balance: service.balance.clone(),
                retry: service.retry.clone(),
                hedge: service.hedge.clone(),
                breaker: service.breaker.clone(),
                outlier: service.outlier.clone(),
                panic_threshold: service.panic_threshold,
                health_check: service.health_check.clone(),
                fallback: service.fallback.as_ref().map(fallback),
                faults: service.faults.clone(),
            },
            limits: Limits::new(cluster),
            retries: Retries::new(&cluster.metrics),
            origin: status.into(),
            in_flight: cluster.metrics.in_flight.get(),
            panicking: cluster.metrics.panicking.get() != 0,
            errors: errors(&cluster.metrics),
            subsets: SubsetDetail::all(&snapshot),
            endpoints: snapshot.endpoints.iter().map(|endpoint| EndpointDetail::new(endpoint, now)).collect(),
        }
    }
}

impl Limits {
    fn new(cluster: &Cluster) -> Self {
        Self {
            settings: cluster.load().settings.service.limits.clone(),
            requests: cluster.metrics.requests_limit.get(),
            waiting: cluster.metrics.waiting.get(),
            connections: cluster.limits.connections(),
        }
    }
}

impl Retries {
    fn new(metrics: &ServiceMetrics) -> Self {
        Self {
            active: metrics.retries_active.get(),
            made: Reason::ALL.into_iter().map(|reason| metrics.retries.get(reason as usize)).sum(),
            denied: metrics.retries_denied.get(),
            hedges: metrics.hedges.get(),
            hedges_won: metrics.hedges_won.get(),
        }
    }
}

impl From<table::State> for State {
    fn from(state: table::State) -> Self {
        match state {
            table::State::Pending => Self::Pending,
            table::State::Unknown => Self::Unknown,
            table::State::Known => Self::Known,
        }
    }
}

impl NotFollowed {
    /// From what each registry lists, without the names in `followed`.
    pub fn new(lists: Vec<(String, Result<Vec<String>, String>)>, followed: &HashSet<String>) -> Self {
        let mut services: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let mut failures = Vec::new();
        for (registry, list) in lists {
            match list {
                Ok(names) => {
                    for name in names.into_iter().filter(|name| !followed.contains(name)) {
                        let registries = services.entry(name).or_default();
                        if registries.last() != Some(&registry) {
                            registries.push(registry.clone());
                        }
                    }
                }
                Err(failure) => failures.push(ListFailure { registry, failure }),
            }
        }
        let services = services.into_iter().map(|(name, registries)| Listed { name, registries }).collect();
        Self { services, failures }
    }
}

/// A fallback in two words.
fn fallback(fallback: &Fallback) -> String {
    match (&fallback.response, &fallback.service) {
        (Some(response), _) => format!("response {}", response.status),
        (_, Some(service)) => format!("service {service}"),
        (None, None) => "last-good".into(),
    }
}

fn errors(metrics: &ServiceMetrics) -> BTreeMap<String, u64> {
    Reason::ALL
        .into_iter()
        .map(|reason| (reason.as_str().to_owned(), metrics.errors.get(reason as usize)))
        .filter(|(_, count)| *count > 0)
        .collect()
}

/// To three places: more is noise to whoever reads it.
fn thousandths(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_followed_is_listed_once_with_all_registries_that_know_it() {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let lists = vec![
            ("main".to_owned(), Ok(names(&["users", "orders", "mail", "mail"]))),
            ("old".to_owned(), Ok(names(&["mail", "billing"]))),
            ("down".to_owned(), Err("cannot reach it".to_owned())),
        ];
        let listed = |name: &str, by: &[&str]| Listed { name: name.into(), registries: names(by) };
        let failure = ListFailure { registry: "down".into(), failure: "cannot reach it".into() };
        let seen = NotFollowed::new(lists, &HashSet::from(["users".to_owned()]));
        let services = vec![listed("billing", &["old"]), listed("mail", &["main", "old"]), listed("orders", &["main"])];
        assert_eq!(seen, NotFollowed { services, failures: vec![failure] });
    }

    #[test]
    fn numbers_are_rounded() {
        assert_eq!(thousandths(1.234_567_89), 1.235);
        assert_eq!(thousandths(1e-8), 0.0);
    }
}
