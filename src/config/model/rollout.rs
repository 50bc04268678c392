//! How a canary gets more and more of a service's requests, and what takes it back.

use super::{super::human, Percent, Route, Secret, Tls};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Moves a service's requests step by step from one subset to another, and back at once if that one does worse than the
/// other at the same time. It governs the service's `split`s between the two. `docs/rollouts.md` says how it decides.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Rollout {
    /// The subset that is new.
    pub canary: String,
    /// The subset that it is compared with, and that takes over if it fails.
    pub baseline: String,
    /// What is rolled out, such as a version: when it changes, a new rollout begins. By default the canary's labels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub release: Option<String>,
    /// Whether a rollout begins by itself.
    pub start: RolloutStart,
    /// The canary's shares in percent, one after the other, the last included.
    #[schemars(with = "Vec<f64>", inner(range(min = 0.001, max = 100.0)))]
    pub steps: Vec<Percent>,
    /// How long each step lasts at least, without anything against the canary.
    #[serde(with = "human")]
    #[schemars(with = "human::Text")]
    pub hold: Duration,
    /// Requests that each side must have had in a step for it to end. With fewer it goes on.
    #[schemars(range(min = 1))]
    pub min_requests: u64,
    pub error_rate: ErrorRateGuard,
    pub p99: LatencyGuard,
    /// Queries to Prometheus, which take the canary back as well.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub queries: Vec<QueryGuard>,
    /// Of a hundred rollouts of a canary that is within the limits of `error_rate` and `p99`, so many at most are taken back
    /// by these, over all their steps together.
    #[schemars(with = "f64", range(min = 0.001, max = 10.0))]
    pub false_rollbacks: Percent,
    /// How often the figures are looked at; at most a third of `hold`. It takes three looks at least to take a canary back.
    #[serde(with = "human")]
    #[schemars(with = "human::Text")]
    pub interval: Duration,
    /// After a canary was taken back, no rollout begins for so long.
    #[serde(with = "human")]
    #[schemars(with = "human::Text")]
    pub cool_down: Duration,
    /// How often the same release is tried. Further tries follow after `cool_down`; never after an abort by hand.
    #[schemars(range(min = 1, max = 100))]
    pub attempts: u32,
    /// Whose figures count.
    pub evidence: RolloutEvidence,
    /// The server for `queries` and for `evidence: prometheus`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prometheus: Option<Prometheus>,
}

/// Whether a rollout begins by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RolloutStart {
    /// As soon as there is a release that was not rolled out yet.
    Automatic,
    /// By `pillion rollout start`.
    Manual,
}

/// Whose figures count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RolloutEvidence {
    /// Those of the pillion that decides.
    Own,
    /// Those of all pillions that Prometheus scrapes.
    Prometheus,
}

/// The share of requests that fail: those that the breaker counts as failures.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ErrorRateGuard {
    /// Whether errors are looked at.
    pub enabled: bool,
    /// The canary's may be so many times the baseline's, plus `margin`. From 1.0 to 100.0.
    pub ratio: f64,
    /// In percentage points.
    pub margin: Percent,
    /// While more than so many percent of the baseline's requests fail, nothing is promoted. Where all requests go to the
    /// canary, with no baseline to compare, it is the canary's limit. 100 means there is none.
    pub max: Percent,
}

/// The latency that 99 of 100 responses stay under.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LatencyGuard {
    /// Whether latencies are looked at.
    pub enabled: bool,
    /// The canary's may be so many times the baseline's, plus `margin`. From 1.0 to 100.0.
    pub ratio: f64,
    /// What the canary's may be longer besides.
    #[serde(with = "human")]
    #[schemars(with = "human::Text")]
    pub margin: Duration,
    /// While the baseline's is longer, nothing is promoted. Where all requests go to the canary, it is the canary's limit.
    /// Without it there is none.
    #[serde(with = "human::optional", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<human::Text>")]
    pub max: Option<Duration>,
    /// At the start of each step latencies do not count for so long, while caches fill. Less than `hold`; 30s by default, or a
    /// quarter of `hold` where that is less.
    #[serde(with = "human::optional", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<human::Text>")]
    pub warm_up: Option<Duration>,
}

/// A query to Prometheus whose value takes the canary back. One of `above` and `below` is needed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct QueryGuard {
    /// In PromQL; its result is one number. While it has none, nothing is promoted.
    pub query: String,
    /// What it is called in the log; by default the query itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// More than this is bad.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub above: Option<f64>,
    /// Less than this is bad.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub below: Option<f64>,
    /// For so long without a break it must be bad.
    #[serde(default = "half_a_minute", rename = "for", with = "human")]
    #[schemars(with = "human::Text")]
    pub lasting: Duration,
}

/// A Prometheus server.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Prometheus {
    /// `http://HOST:PORT` or `https://HOST:PORT`, with a path before `/api/v1` if it has one.
    pub address: String,
    /// Sent as a bearer token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<Secret>,
    #[serde(default, skip_serializing_if = "Tls::is_default")]
    pub tls: Tls,
}

impl Rollout {
    /// Whether the rollout decides how this route of its service splits.
    pub fn governs(&self, route: &Route) -> bool {
        self.governs_split(route.split.keys().map(|target| (target.service.as_deref(), target.subset.as_deref())))
    }

    /// Whether it decides how its service splits between these: each a service, unless it is that one, and a subset.
    pub fn governs_split<'t>(&self, targets: impl Iterator<Item = (Option<&'t str>, Option<&'t str>)>) -> bool {
        let targets: Vec<_> = targets.collect();
        targets.len() == 2 && [&self.canary, &self.baseline].iter().all(|side| targets.contains(&(None, Some(side))))
    }
}

impl QueryGuard {
    pub fn name(&self) -> &str {
        self.name.as_deref().unwrap_or(&self.query)
    }
}

fn half_a_minute() -> Duration {
    Duration::from_secs(30)
}

impl Default for Rollout {
    fn default() -> Self {
        Self {
            canary: "canary".into(),
            baseline: "stable".into(),
            release: None,
            start: RolloutStart::Automatic,
            steps: [1.0, 5.0, 25.0, 50.0, 100.0].map(Percent).into(),
            hold: Duration::from_secs(5 * 60),
            min_requests: 100,
            error_rate: ErrorRateGuard::default(),
            p99: LatencyGuard::default(),
            queries: Vec::new(),
            false_rollbacks: Percent(1.0),
            interval: Duration::from_secs(5),
            cool_down: Duration::from_secs(30 * 60),
            attempts: 1,
            evidence: RolloutEvidence::Own,
            prometheus: None,
        }
    }
}

impl Default for ErrorRateGuard {
    fn default() -> Self {
        Self { enabled: true, ratio: 1.2, margin: Percent(0.5), max: Percent(5.0) }
    }
}

impl LatencyGuard {
    /// How long latencies do not count, of a step of `hold`.
    pub fn warm_up(&self, hold: Duration) -> Duration {
        self.warm_up.unwrap_or_else(|| Duration::from_secs(30).min(hold / 4))
    }
}

impl Default for LatencyGuard {
    fn default() -> Self {
        Self { enabled: true, ratio: 1.25, margin: Duration::from_millis(5), max: None, warm_up: None }
    }
}
