//! Which endpoint takes the next request. A [`Selector`] is built before a set is published; picking from it takes
//! `&self`, no lock and no allocation.

mod draw;
mod turn;

use super::{endpoint::Endpoint, health::Choice};
use crate::config::Policy;
use draw::WeightedDraw;
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::Relaxed},
};
use tokio::time::Instant;
use turn::Turn;

/// Chooses among the endpoints of one set by one policy.
#[derive(Debug)]
pub struct Selector {
    policy: Policy,
    /// Whether all that can be chosen have the same weight.
    even: bool,
    draw: WeightedDraw,
    /// Weight of each endpoint over the mean of those that can be chosen.
    share: Box<[f64]>,
    turn: Turn,
    /// Whether so few are available that all are used.
    panicking: AtomicBool,
}

impl Selector {
    /// With more endpoints than this `least-connections` does not look at each.
    const SCANNED: usize = 64;

    /// Chooses among the `wanted` ones. Endpoints with weight 0, and those that their registry calls unhealthy, are never
    /// chosen; those that are ejected or fail their checks are not as long as enough others are left.
    pub fn new(policy: Policy, endpoints: &[Arc<Endpoint>], wanted: impl Fn(&Endpoint) -> bool) -> Self {
        let weight = |e: &Arc<Endpoint>| if e.is_usable() && wanted(e) { e.instance.weight } else { 0 };
        let weights: Vec<u32> = endpoints.iter().map(weight).collect();
        let usable = weights.iter().filter(|w| **w > 0).count();
        let sum: f64 = weights.iter().map(|w| f64::from(*w)).sum();
        let mean = sum / usable.max(1) as f64;
        let mut positive = weights.iter().filter(|w| **w > 0);
        let first = positive.next();
        Self {
            policy,
            even: positive.all(|w| Some(w) == first),
            draw: WeightedDraw::new(&weights),
            share: weights.iter().map(|w| f64::from(*w) / mean).collect(),
            turn: if policy == Policy::RoundRobin { Turn::new(&weights) } else { Turn::default() },
            panicking: AtomicBool::new(false),
        }
    }

    /// Whether there is anything to choose.
    pub fn is_empty(&self) -> bool {
        self.draw.usable.is_empty()
    }

    /// The number of endpoints that can be chosen.
    pub fn usable(&self) -> usize {
        self.draw.usable.len()
    }

    /// Counts those that are available, and decides from that whether to panic: whether they are less than
    /// `threshold_percent` of all.
    pub fn recount(&self, endpoints: &[Arc<Endpoint>], threshold_percent: u32) -> usize {
        let usable = &self.draw.usable;
        let available = usable.iter().filter(|index| endpoints[**index].live.health.is_available()).count();
        let panicking = (available as u64) * 100 < usable.len() as u64 * u64::from(threshold_percent);
        self.panicking.store(panicking, Relaxed);
        available
    }

    pub fn is_panicking(&self) -> bool {
        self.panicking.load(Relaxed)
    }

    /// The index of the endpoint for the next request, none of those in `tried`, and how it comes to be chosen.
    pub fn pick(&self, endpoints: &[Arc<Endpoint>], tried: &[Arc<Endpoint>], now: Instant) -> Option<(usize, Choice)> {
        if self.is_empty() {
            return None;
        }
        let first = self.pick_any(endpoints, now);
        if tried.is_empty() && endpoints[first].live.health.is_available() {
            return Some((first, Choice::Available));
        }
        self.pick_another(first, endpoints, tried, now)
    }

    /// Where the policy's first choice will not do: the next of its choices that will, or any.
    #[cold]
    fn pick_another(
        &self,
        first: usize,
        endpoints: &[Arc<Endpoint>],
        tried: &[Arc<Endpoint>],
        now: Instant,
    ) -> Option<(usize, Choice)> {
        let panicking = self.is_panicking();
        // A retry is made to succeed, not to find something out.
        if tried.is_empty() && !panicking && endpoints[first].live.health.take_probe(now) {
            return Some((first, Choice::Probe));
        }
        let untried = |index: usize| {
            let live = &endpoints[index].live;
            !tried.iter().any(|tried| Arc::ptr_eq(&tried.live, live))
        };
        let fits = |index: usize| {
            let choice = match (endpoints[index].live.health.is_available(), panicking) {
                (true, _) => Choice::Available,
                (false, true) => Choice::LastResort,
                (false, false) => return None,
            };
            untried(index).then_some((index, choice))
        };
        let (before, after) = self.draw.usable.split_at(fastrand::usize(..self.usable()));
        let mut all = after.iter().chain(before).copied();
        fits(first)
            .or_else(|| (0..8).find_map(|_| fits(self.pick_any(endpoints, now))))
            .or_else(|| all.clone().find_map(fits))
            // A request that failed once, as in a rolling restart, has nothing to lose.
            .or_else(|| all.find(|index| !tried.is_empty() && untried(*index)).map(|index| (index, Choice::LastResort)))
    }

    fn pick_any(&self, endpoints: &[Arc<Endpoint>], now: Instant) -> usize {
        match self.policy {
            Policy::PeakEwma => self.better_of_two(|first, second| {
                let (one, other) = (&endpoints[first].live, &endpoints[second].live);
                one.estimate(now).relative_to(other.estimate(now)) * one.load(self.share[first])
                    / other.load(self.share[second])
            }),
            Policy::LeastRequest => self.better_of_two(|first, second| {
                endpoints[first].live.load(self.share[first]) / endpoints[second].live.load(self.share[second])
            }),
            Policy::LeastConnections => self.least_of_all(|index| endpoints[index].live.load(self.share[index])),
            Policy::RoundRobin => self.turn.next().unwrap_or_else(|| self.draw.draw()),
            Policy::Random => self.draw.draw(),
            Policy::ResponseTime => self
                .fast_of_some(|index| endpoints[index].live.latency(now).map_or(0.0, |latency| latency.as_secs_f64())),
        }
    }

    /// Power of two choices: two different ones, drawn by weight; the cheaper is taken, of equals the first. (M.
    /// Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", 2001.) `ratio` gives the first's cost over
    /// the second's.
    ///
    /// With unequal weights the first draw stands unless the second is much cheaper: otherwise noise in the cost would
    /// decide every comparison, and weights of 90 and 10 would come out as 50 and 50.
    fn better_of_two(&self, ratio: impl Fn(usize, usize) -> f64) -> usize {
        const MUCH: f64 = 2.0;
        let first = self.draw.draw();
        let Some(second) = self.draw.draw_other(first, || self.draw.draw()) else { return first };
        if ratio(first, second) > if self.even { 1.0 } else { MUCH } { second } else { first }
    }

    /// The one that costs least, by `cost`; of equals one drawn by weight, or those that follow on it. All are looked at
    /// as long as that takes less time than it saves; of more than [`SCANNED`](Self::SCANNED), the least of some.
    fn least_of_all(&self, cost: impl Fn(usize) -> f64) -> usize {
        const SOME: usize = 8;
        let first = self.draw.draw();
        let least = |best: (usize, f64), index: usize| {
            let cost = cost(index);
            if cost < best.1 { (index, cost) } else { best }
        };
        let start = (first, cost(first));
        let usable = &self.draw.usable;
        if usable.len() > Self::SCANNED {
            return (1..SOME).map(|_| self.draw.draw()).fold(start, least).0;
        }
        let (before, after) = usable.split_at(usable.partition_point(|index| *index <= first));
        after.iter().chain(before).copied().fold(start, least).0
    }

    /// Chooses with probability ∝ weight / response time: a group drawn by weight, then one of it by 1 / time. (With the
    /// group's size the result approaches the exact ratio; 16 keeps the work constant for any number of endpoints.)
    fn fast_of_some(&self, seconds: impl Fn(usize) -> f64) -> usize {
        const GROUP: usize = 16;
        let mut group = [(0, 0.0); GROUP];
        let mut sum = 0.0;
        for member in &mut group {
            let index = self.draw.draw();
            // Nothing known yet: as fast as a millisecond, so that it is tried. The same floor keeps noise out.
            let speed = 1.0 / seconds(index).max(1e-3);
            *member = (index, speed);
            sum += speed;
        }
        let mut left = fastrand::f64() * sum;
        for (index, speed) in group {
            left -= speed;
            if left <= 0.0 {
                return index;
            }
        }
        group[0].0
    }
}

#[cfg(test)]
mod tests;
