//! Which endpoint takes the next request. A [`Selector`] is built before a set is published; picking from it takes
//! `&self`, no lock and no allocation.

use super::{endpoint::Endpoint, health::Choice};
use crate::config::Policy;
use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
};
use tokio::time::Instant;

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
        let Some(second) = self.draw.draw_other(first) else { return first };
        if ratio(first, second) > if self.even { 1.0 } else { MUCH } { second } else { first }
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

/// Draws by weight in constant time. (M. D. Vose, "A linear algorithm for generating random numbers with a given
/// distribution", 1991.)
#[derive(Debug)]
struct WeightedDraw {
    usable: Box<[usize]>,
    /// Per usable endpoint: the share of its slot that is its own, and the one that has the rest.
    slots: Box<[(f64, usize)]>,
}

impl WeightedDraw {
    fn new(weights: &[u32]) -> Self {
        let usable: Box<[usize]> = (0..weights.len()).filter(|index| weights[*index] > 0).collect();
        let sum: f64 = usable.iter().map(|index| f64::from(weights[*index])).sum();
        let mut scaled: Vec<f64> =
            usable.iter().map(|index| f64::from(weights[*index]) * usable.len() as f64 / sum).collect();
        let mut slots: Box<[(f64, usize)]> = usable.iter().map(|index| (1.0, *index)).collect();
        let (mut small, mut large): (Vec<usize>, Vec<usize>) = (0..usable.len()).partition(|slot| scaled[*slot] < 1.0);
        while let (Some(under), Some(over)) = (small.pop(), large.last().copied()) {
            slots[under] = (scaled[under], usable[over]);
            scaled[over] -= 1.0 - scaled[under];
            if scaled[over] < 1.0 {
                large.pop();
                small.push(over);
            }
        }
        Self { usable, slots }
    }

    fn draw(&self) -> usize {
        let slot = fastrand::usize(..self.slots.len());
        let (own, other) = self.slots[slot];
        if own >= 1.0 || fastrand::f64() < own { self.usable[slot] } else { other }
    }

    /// Another than `first`, if there is one.
    fn draw_other(&self, first: usize) -> Option<usize> {
        if self.usable.len() < 2 {
            return None;
        }
        // Where one endpoint has nearly all the weight, drawing until it differs would take long.
        (0..4).map(|_| self.draw()).find(|index| *index != first).or_else(|| {
            let at = fastrand::usize(..self.usable.len());
            let index = self.usable[at];
            Some(if index == first { self.usable[(at + 1) % self.usable.len()] } else { index })
        })
    }
}

/// Smooth weighted round robin (as in nginx), worked out in advance for one whole period.
#[derive(Debug, Default)]
struct Turn {
    sequence: Box<[u32]>,
    next: AtomicUsize,
}

impl Turn {
    /// A period longer than this is shortened by scaling the weights, each of which stays at least 1.
    const MAX_PERIOD: u64 = 8192;

    fn new(weights: &[u32]) -> Self {
        let divisor = weights.iter().filter(|w| **w > 0).fold(0, |a, b| gcd(a, *b)).max(1);
        let mut weights: Vec<u64> = weights.iter().map(|w| u64::from(*w / divisor)).collect();
        let period: u64 = weights.iter().sum();
        if period > Self::MAX_PERIOD {
            for weight in weights.iter_mut().filter(|w| **w > 0) {
                *weight = (*weight * Self::MAX_PERIOD / period).max(1);
            }
        }
        let period: u64 = weights.iter().sum();
        let mut current = vec![0i64; weights.len()];
        let sequence = (0..period)
            .filter_map(|_| {
                for (current, weight) in current.iter_mut().zip(&weights) {
                    *current += i64::try_from(*weight).unwrap_or(i64::MAX);
                }
                // The first of equals, so that equal weights go round in order.
                let best = (0..current.len()).filter(|i| weights[*i] > 0).rev().max_by_key(|i| current[*i])?;
                current[best] -= i64::try_from(period).unwrap_or(i64::MAX);
                u32::try_from(best).ok()
            })
            .collect();
        // Many sidecars that start together must not all begin with the same endpoint.
        Self { sequence, next: AtomicUsize::new(fastrand::usize(..)) }
    }

    fn next(&self) -> Option<usize> {
        if self.sequence.is_empty() {
            return None;
        }
        let turn = self.next.fetch_add(1, Relaxed) % self.sequence.len();
        Some(self.sequence[turn] as usize)
    }
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
#[path = "balance_tests.rs"]
mod tests;
