//! What speaks against the canary: the tests of its error rate and of its p99, and the queries.

use super::{
    At, Look, Side,
    decision::{Cause, Evidence, Figures, GuardFigures, SideFigures, Why},
    evidence::Histogram,
    sequential::{Count, Limit, Stake, mean_log},
};
use crate::{
    config::{QueryGuard, Rollout},
    telemetry::metrics::{LATENCY_BOUNDS, LATENCY_BUCKETS},
};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The share of responses that are slower than the p99.
const SLOWEST: f64 = 0.01;
/// A block has so many requests of each side at least, so that few are without another side to compare with.
const BLOCK: u64 = 5;
/// The baseline is known by what it did lately: what is older counts half after this time, as long as there is as much left
/// as this many requests.
const HALF_LIFE: Duration = Duration::from_secs(60);
const REMEMBERED: f64 = 1000.0;
/// So many responses of the baseline are needed to know where its p99 is.
const FOR_P99: f64 = 200.0;
/// No single look decides, whatever it shows: it is worth at most such a part of what is needed.
const LOOKS: f64 = 3.0;
/// Three parts of a number add up to a little less.
const ROUNDING: f64 = 1e-9;
/// A stake that has grown by more, as a logarithm, speaks against the canary.
const LEANS: f64 = 0.1;
/// A stake that is larger, or smaller than 1 by more, is written as this, in logarithms: a number is to be read by people.
const LARGEST: f64 = 27.0;

/// What the guards have seen in one step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Guards {
    canary: Side,
    baseline: Side,
    /// Seen, and not yet played: see [`BLOCK`].
    pending: Pending,
    lately: Lately,
    errors: Stake,
    /// On the share that is slower than a bound, for each of [`Guards::slow_limits`].
    slow: [Stake; 3],
    /// Since when each query is bad.
    bad_since: Vec<Option<At>>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Pending {
    since: At,
    canary: Side,
    baseline: Side,
}

/// What is known of the baseline from before the block that is played: weights that fade.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Lately {
    requests: f64,
    failures: f64,
    latencies: Histogram,
}

/// What a look showed.
pub struct Standing {
    pub figures: Figures,
    /// Why the canary is to be taken back at once.
    pub against: Option<Cause>,
    /// Why there is to be no next step now.
    pub not_yet: Option<Why>,
}

/// Where a step stands: what is the same for all guards.
pub struct Step<'c> {
    pub config: &'c Rollout,
    /// The canary's share.
    pub percent: f64,
    pub held: Duration,
    pub now: At,
}

impl Step<'_> {
    /// Whether there is no baseline to compare with.
    pub fn is_alone(&self) -> bool {
        self.percent >= 100.0
    }

    /// Looks that it takes at least.
    fn looks(&self) -> f64 {
        self.config.hold.as_secs_f64() / self.config.interval.as_secs_f64()
    }

    /// The logarithm of the e-value that takes a canary back: each guard has the same part of `false_rollbacks` in each
    /// step.
    fn needed(&self) -> f64 {
        let Rollout { error_rate, p99, steps, false_rollbacks, .. } = self.config;
        let guards = usize::from(error_rate.enabled) + usize::from(p99.enabled);
        ((guards * steps.len()).max(1) as f64 / (false_rollbacks.0 / 100.0)).ln()
    }
}

impl Guards {
    pub fn new(now: At) -> Self {
        Self {
            canary: Side::default(),
            baseline: Side::default(),
            pending: Pending { since: now, canary: Side::default(), baseline: Side::default() },
            lately: Lately { requests: 0.0, failures: 0.0, latencies: Histogram([0.0; LATENCY_BUCKETS]) },
            errors: Stake::default(),
            slow: [const { Stake::NEW }; 3],
            bad_since: Vec::new(),
        }
    }

    pub fn requests(&self) -> (u64, u64) {
        (self.canary.requests, self.baseline.requests)
    }

    /// For the next step. What the baseline is like is known already.
    pub fn next(&self, now: At) -> Self {
        Self { lately: self.lately.clone(), ..Self::new(now) }
    }

    pub fn look(&mut self, look: &Look, step: &Step<'_>) -> Standing {
        let mut canary = look.canary.clone();
        if step.held < step.config.p99.warm_up(step.config.hold) {
            canary.latencies = [0; LATENCY_BUCKETS];
        }
        self.canary.add(&canary);
        self.baseline.add(&look.baseline);
        self.pending.canary.add(&canary);
        self.pending.baseline.add(&look.baseline);
        let Pending { canary, baseline, .. } = &self.pending;
        if canary.requests >= BLOCK && (baseline.requests >= BLOCK || step.is_alone()) {
            self.play(step);
        }
        self.stand(look, step)
    }

    fn play(&mut self, step: &Step<'_>) {
        let next = Pending { since: step.now, canary: Side::default(), baseline: Side::default() };
        let Pending { since, canary, baseline } = std::mem::replace(&mut self.pending, next);
        let bounds = (step.needed() / LOOKS, step.looks());
        if let Some((expected, limit)) = self.error_limit(step) {
            let count = |side: &Side| Count { of: side.requests, hits: side.failures };
            self.errors.play((count(&canary), count(&baseline)), expected, limit, bounds);
        }
        let limits = self.slow_limits(step);
        for (stake, limit) in self.slow.iter_mut().zip(limits) {
            let Some((bound, expected, limit)) = limit else {
                stake.give_back();
                continue;
            };
            let count = |side: &Side| {
                let (of, hits) = side.slower_than(bound);
                Count { of, hits }
            };
            stake.play((count(&canary), count(&baseline)), expected, limit, bounds);
        }
        self.lately.fade(step.now.since(since));
        self.lately.add(&baseline);
    }

    /// What the baseline's error rate is expected to be, and what the canary's may be.
    fn error_limit(&self, step: &Step<'_>) -> Option<(f64, Limit)> {
        let guard = &step.config.error_rate;
        let limit = match step.is_alone() {
            false => Limit { factor: guard.ratio, more: guard.margin.0 / 100.0 },
            true => Limit { factor: 0.0, more: guard.max.0 / 100.0 },
        };
        guard.enabled.then(|| (self.lately.error_rate(), limit))
    }

    /// For the end of the bucket with the baseline's p99, and the start and the end of that with what the canary's may be: the
    /// bound, what share of the baseline is expected beyond it, and what share of the canary may be. (The first tells best when all
    /// responses are slower, the others when only the slowest are.)
    ///
    /// The canary may be slower by so much; so beyond a bound there may be of it what there is of the baseline beyond a
    /// bound that is lower by as much. That is estimated from the baseline's histogram, and put on top of what the baseline
    /// shows at the same time. A canary that is like the baseline is within the limit however the estimate turns out.
    fn slow_limits(&self, step: &Step<'_>) -> [Option<(usize, f64, Limit)>; 3] {
        let guard = &step.config.p99;
        if !guard.enabled {
            return [None; 3];
        }
        if step.is_alone() {
            let limit = Limit { factor: 0.0, more: SLOWEST };
            let bound = guard.max.and_then(|max| LATENCY_BOUNDS.iter().position(|bound| micros(*bound) >= max));
            return [bound.map(|bound| (bound, SLOWEST, limit)), None, None];
        }
        let Some(p99) = self.lately.p99() else { return [None; 3] };
        let allowed = allowed(step.config, p99);
        let slower = allowed.as_secs_f64() / p99.as_secs_f64();
        let lately = &self.lately.latencies;
        let end = Histogram::bucket_of(allowed);
        let bounds = [Some(Histogram::bucket_of(p99)), end.checked_sub(1), Some(end)];
        bounds.map(|bound| {
            let bound = bound.filter(|bound| *bound < LATENCY_BOUNDS.len())?;
            let share = lately.above(bound);
            let more = lately.slower_than(micros(LATENCY_BOUNDS[bound]).div_f64(slower)) - share;
            // As if there had been half of one: what was never seen is not impossible.
            let expected = (share * lately.total() + 0.5) / (lately.total() + 1.0);
            Some((bound, expected, Limit { factor: 1.0, more: more.max(0.0) }))
        })
    }

    fn stand(&mut self, look: &Look, step: &Step<'_>) -> Standing {
        let config = step.config;
        let (mut against, mut not_yet) = (None, self.baseline_bad(step));
        let mut guards = Vec::new();
        let needed = step.needed();
        let slow = mean_log(&self.slow.each_ref().map(Stake::log));
        let (errors, error_limit) = (self.errors.log(), self.error_limit(step));
        let p99_limit = if step.is_alone() {
            config.p99.max
        } else {
            Some(allowed(config, self.baseline.histogram().quantile(1.0 - SLOWEST)))
        };
        let mut undecided = None;
        if let Some((_, limit)) = error_limit {
            let limit = (limit.of(self.baseline.error_rate()) * 100.0).min(100.0);
            guards.push(GuardFigures::ErrorRate(evidence(limit, errors, needed)));
            against = (errors >= needed - ROUNDING).then_some(Cause::ErrorRate);
            undecided = (errors > LEANS).then(|| Why::Undecided { guard: "error_rate".into() });
        }
        if let Some(limit) = p99_limit.filter(|_| config.p99.enabled) {
            guards.push(GuardFigures::P99(evidence(millis(limit), slow, needed)));
            against = against.or((slow >= needed - ROUNDING).then_some(Cause::P99));
            undecided = undecided.or((slow > LEANS).then(|| Why::Undecided { guard: "p99".into() }));
        }
        not_yet = not_yet.or(undecided).or((!self.has_enough(step)).then_some(Why::TooFewRequests));
        self.bad_since.resize(config.queries.len(), None);
        for (number, query) in config.queries.iter().enumerate() {
            let missing = Err("it was not asked".to_owned());
            let value = look.queries.get(number).unwrap_or(&missing);
            let (figures, why) = query_stands(query, value, &mut self.bad_since[number], step.now);
            if self.bad_since[number].is_some_and(|since| step.now.since(since) >= query.lasting) {
                against = against.or_else(|| Some(Cause::Query { guard: query.name().into() }));
            }
            not_yet = not_yet.or(why);
            guards.push(figures);
        }
        let figures = Figures {
            percent: step.percent,
            held: step.held,
            canary: side(&self.canary),
            baseline: side(&self.baseline),
            guards,
        };
        Standing { figures, against, not_yet }
    }

    /// Whether there was enough of both sides for a step to end.
    fn has_enough(&self, step: &Step<'_>) -> bool {
        let Rollout { p99, min_requests, .. } = step.config;
        let comparable = self.baseline.requests >= *min_requests && (!p99.enabled || self.lately.p99().is_some());
        self.canary.requests >= *min_requests && (comparable || step.is_alone())
    }

    /// Whether the baseline itself is beyond what the config calls the most.
    fn baseline_bad(&self, step: &Step<'_>) -> Option<Why> {
        let Rollout { error_rate, p99, .. } = step.config;
        let fails = error_rate.enabled && self.lately.error_rate() * 100.0 > error_rate.max.0;
        let is_slow = p99.enabled && p99.max.is_some_and(|max| self.lately.p99().is_some_and(|found| found > max));
        (!step.is_alone() && (fails || is_slow)).then_some(Why::BaselineBad)
    }
}

impl Lately {
    fn fade(&mut self, time: Duration) {
        let left = 0.5f64.powf(time.as_secs_f64() / HALF_LIFE.as_secs_f64());
        let left = left.max(REMEMBERED / self.requests.max(REMEMBERED));
        self.requests *= left;
        self.failures *= left;
        self.latencies.0.iter_mut().for_each(|weight| *weight *= left);
    }

    fn add(&mut self, side: &Side) {
        self.requests += side.requests as f64;
        self.failures += side.failures.min(side.requests) as f64;
        self.latencies.0.iter_mut().zip(side.latencies).for_each(|(weight, count)| *weight += count as f64);
    }

    /// As if there had been one failure in two hundred requests before, so that the first block has something to go by.
    fn error_rate(&self) -> f64 {
        (self.failures + 1.0) / (self.requests + 200.0)
    }

    fn p99(&self) -> Option<Duration> {
        let found = self.latencies.quantile(1.0 - SLOWEST);
        (self.latencies.total() >= FOR_P99 && !found.is_zero()).then_some(found)
    }
}

/// What a query's value means, and since when it has meant something bad.
fn query_stands(
    query: &QueryGuard,
    value: &Result<f64, String>,
    bad_since: &mut Option<At>,
    now: At,
) -> (GuardFigures, Option<Why>) {
    let name = query.name().to_owned();
    let bad = match (query.above, query.below) {
        (Some(bound), _) => format!("above {bound}"),
        (None, Some(bound)) => format!("below {bound}"),
        (None, None) => String::new(),
    };
    let number = value.clone().and_then(|value| match value.is_nan() {
        true => Err("the result is not a number".to_owned()),
        false => Ok(value),
    });
    let value = match number {
        Ok(value) => value,
        Err(error) => {
            *bad_since = None;
            let figures = GuardFigures::Query { name: name.clone(), value: None, bad, lasted: Duration::ZERO };
            return (figures, Some(Why::QueryFailed { guard: name, error }));
        }
    };
    let is_bad = query.above.is_some_and(|bound| value > bound) || query.below.is_some_and(|bound| value < bound);
    *bad_since = is_bad.then(|| bad_since.unwrap_or(now));
    let lasted = bad_since.map_or(Duration::ZERO, |since| now.since(since));
    let why = is_bad.then(|| Why::QueryBad { guard: name.clone() });
    (GuardFigures::Query { name, value: Some(value).filter(|value| value.is_finite()), bad, lasted }, why)
}

/// What the canary's p99 may be where this is the baseline's.
fn allowed(config: &Rollout, p99: Duration) -> Duration {
    p99.mul_f64(config.p99.ratio) + config.p99.margin
}

fn evidence(limit: f64, log: f64, needed: f64) -> Evidence {
    Evidence { limit: short(limit), e_value: short(log.clamp(-LARGEST, LARGEST).exp()), needed: short(needed.exp()) }
}

fn side(side: &Side) -> SideFigures {
    let latencies = side.histogram();
    SideFigures {
        requests: side.requests,
        failures: side.failures,
        error_rate: short(side.error_rate() * 100.0),
        p99: (latencies.total() > 0.0).then(|| short(millis(latencies.quantile(1.0 - SLOWEST)))),
    }
}

/// With three digits that count, for people.
fn short(number: f64) -> f64 {
    if number == 0.0 || !number.is_finite() {
        return number;
    }
    let scale = 10f64.powi(2 - number.abs().log10().floor() as i32);
    (number * scale).round() / scale
}

fn micros(bound: u64) -> Duration {
    Duration::from_micros(bound)
}

fn millis(latency: Duration) -> f64 {
    latency.as_secs_f64() * 1000.0
}
