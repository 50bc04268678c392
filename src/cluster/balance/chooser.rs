//! One policy over one set of endpoints.

use super::{
    discount::Discount,
    draw::WeightedDraw,
    hash::{HashTable, Key, What},
    turn::Turn,
};
use crate::{
    cluster::endpoint::Endpoint,
    config::{Balance, Policy},
};
use std::sync::Arc;
use tokio::time::Instant;

#[derive(Debug)]
pub struct Chooser {
    policy: Policy,
    /// Whether all have the same weight.
    even: bool,
    draw: WeightedDraw,
    /// Weight of each endpoint over the mean of those that can be chosen.
    share: Box<[f64]>,
    turn: Turn,
    table: Option<HashTable>,
    /// See [`is_full`](Self::is_full).
    bound: f64,
}

/// What a choice is made from.
#[derive(Clone, Copy)]
pub struct View<'v> {
    pub endpoints: &'v [Arc<Endpoint>],
    /// If some get less than their share now.
    pub discount: Option<&'v Discount>,
    pub key: Option<Key>,
    pub now: Instant,
}

impl View<'_> {
    /// The part of its share that an endpoint gets now.
    #[inline]
    fn factor(&self, index: usize) -> f64 {
        self.discount.map_or(1.0, |discount| discount.factor(&self.endpoints[index].live, self.now))
    }
}

impl Chooser {
    /// With more endpoints than this `least-connections` does not look at each.
    const SCANNED: usize = 64;
    /// So often it is drawn again for an endpoint that gets less than its share.
    const REDRAWS: u32 = 8;

    /// Those with weight 0 are never chosen.
    pub fn new(balance: &Balance, endpoints: &[Arc<Endpoint>], weights: &[u32]) -> Self {
        let mut positive = weights.iter().filter(|w| **w > 0);
        let first = positive.next();
        let even = positive.all(|w| Some(w) == first);
        let draw = WeightedDraw::new(weights);
        let sum: f64 = weights.iter().map(|w| f64::from(*w)).sum();
        let mean = sum / draw.usable.len().max(1) as f64;
        Self {
            policy: balance.policy,
            even,
            draw,
            share: weights.iter().map(|w| f64::from(*w) / mean).collect(),
            turn: if balance.policy == Policy::RoundRobin { Turn::new(weights) } else { Turn::default() },
            table: HashTable::new(balance.policy, endpoints, weights),
            bound: f64::from(balance.hash.balance_factor) / 100.0,
        }
    }

    /// Those that can be chosen.
    pub fn usable(&self) -> &[usize] {
        &self.draw.usable
    }

    /// Those that can be chosen, for policies that hash in an order that is the same everywhere.
    pub fn in_order(&self) -> &[usize] {
        self.table.as_ref().map_or(self.usable(), |table| &table.in_order)
    }

    /// The choice for a request, or where that one would not do, the `attempt`-th further one.
    #[inline]
    pub fn choose(&self, view: &View<'_>, attempt: u32) -> usize {
        match self.policy {
            Policy::PeakEwma => self.better_of_two(view, |first, second| {
                let (one, other) = (&view.endpoints[first].live, &view.endpoints[second].live);
                one.estimate(view.now).relative_to(other.estimate(view.now)) * self.load(view, first)
                    / self.load(view, second)
            }),
            Policy::LeastRequest => {
                self.better_of_two(view, |first, second| self.load(view, first) / self.load(view, second))
            }
            Policy::LeastConnections => self.least_of_all(view),
            Policy::RoundRobin => self.accept(view, || self.turn.next().unwrap_or_else(|| self.draw.draw())),
            Policy::Random => self.draw(view),
            Policy::ResponseTime => self.fast_of_some(view),
            Policy::Maglev | Policy::RingHash => match (&self.table, view.key) {
                (Some(table), Some(key)) => self.by_hash(table, key, view, attempt),
                _ => self.draw(view),
            },
        }
    }

    #[inline]
    fn draw(&self, view: &View<'_>) -> usize {
        self.accept(view, || self.draw.draw())
    }

    /// What `draw` draws; again where an endpoint gets less than its share.
    #[inline]
    fn accept(&self, view: &View<'_>, draw: impl Fn() -> usize) -> usize {
        let index = draw();
        if view.discount.is_none() {
            return index;
        }
        self.accept_discounted(index, view, draw)
    }

    #[cold]
    fn accept_discounted(&self, mut index: usize, view: &View<'_>, draw: impl Fn() -> usize) -> usize {
        for _ in 0..Self::REDRAWS {
            let factor = view.factor(index);
            if factor >= 1.0 || fastrand::f64() < factor {
                return index;
            }
            index = draw();
        }
        index
    }

    /// Requests in flight with one more, relative to the share that it has now.
    #[inline]
    fn load(&self, view: &View<'_>, index: usize) -> f64 {
        view.endpoints[index].live.load(self.share[index] * view.factor(index))
    }

    /// Power of two choices: two different ones, drawn by weight; the cheaper is taken, of equals the first. (M.
    /// Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", 2001.) `ratio` gives the first's cost over
    /// the second's.
    ///
    /// With unequal shares the first draw stands unless the second is much cheaper: otherwise noise in the cost would
    /// decide every comparison, and weights of 90 and 10 would come out as 50 and 50.
    #[inline]
    fn better_of_two(&self, view: &View<'_>, ratio: impl Fn(usize, usize) -> f64) -> usize {
        const MUCH: f64 = 2.0;
        let first = self.draw(view);
        let Some(second) = self.draw.draw_other(first, || self.draw(view)) else { return first };
        let even = self.even && view.discount.is_none();
        if ratio(first, second) > if even { 1.0 } else { MUCH } { second } else { first }
    }

    /// The one with the least load; of equals one drawn by weight, or those that follow on it. All are looked at as long
    /// as that takes less time than it saves; of more than [`SCANNED`](Self::SCANNED), the least of some.
    fn least_of_all(&self, view: &View<'_>) -> usize {
        const SOME: usize = 8;
        let first = self.draw(view);
        // One that is new and idle would be the least each time.
        if view.factor(first) < 1.0 {
            return first;
        }
        let least = |best: (usize, f64), index: usize| {
            let load = self.load(view, index);
            if load < best.1 && view.factor(index) >= 1.0 { (index, load) } else { best }
        };
        let start = (first, self.load(view, first));
        let usable = self.usable();
        if usable.len() > Self::SCANNED {
            return (1..SOME).map(|_| self.draw.draw()).fold(start, least).0;
        }
        let (before, after) = usable.split_at(usable.partition_point(|index| *index <= first));
        after.iter().chain(before).copied().fold(start, least).0
    }

    /// Chooses with probability ∝ weight / response time: a group drawn by weight, then one of it by 1 / time. (With the
    /// group's size the result approaches the exact ratio; 16 keeps the work constant for any number of endpoints.)
    fn fast_of_some(&self, view: &View<'_>) -> usize {
        const GROUP: usize = 16;
        let mut group = [(0, 0.0); GROUP];
        let (mut sum, mut known) = (0.0, 0);
        for (index, _) in &mut group {
            *index = self.draw(view);
            if let Some(speed) = view.endpoints[*index].live.estimate(view.now).speed() {
                (sum, known) = (sum + speed, known + 1);
            }
        }
        let usual = if known > 0 { sum / f64::from(known) } else { 1.0 };
        let mut sum = 0.0;
        for (index, speed) in &mut group {
            let live = &view.endpoints[*index].live;
            // One that has not answered yet counts as one like the others, and as less for each request that it has.
            *speed = live.estimate(view.now).hoped_speed(usual).unwrap_or_else(|| usual / live.load(1.0));
            sum += *speed;
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

    /// The key's own endpoint, unless it is full or gets less than its share; then the next in the key's order, which is
    /// the same everywhere.
    fn by_hash(&self, table: &HashTable, key: Key, view: &View<'_>, attempt: u32) -> usize {
        const ORDER: u32 = 16;
        let will_do = |index: &usize| {
            let factor = view.factor(*index);
            // By the key and not by chance: as the share grows, one key after the other moves there and stays.
            (factor >= 1.0 || key.fraction(What::Discount) < factor) && !self.is_full(*index, key, view)
        };
        let mut order = (attempt..attempt + ORDER).map(|attempt| table.find(key.nth(attempt)));
        // Those draws may miss the one that has room left.
        let walk = || {
            let (before, after) = table.in_order.split_at((key.hash % table.in_order.len() as u64) as usize);
            after.iter().chain(before).copied().find(will_do)
        };
        order.find(will_do).or_else(walk).unwrap_or_else(|| table.find(key.nth(attempt)))
    }

    /// Whether it has as many requests in flight as it may: its share of all of them, times the bound. (V. Mirrokni et al.,
    /// "Consistent Hashing with Bounded Loads", 2018.)
    fn is_full(&self, index: usize, key: Key, view: &View<'_>) -> bool {
        /// So few on one endpoint say nothing about its load: a browser alone makes as many.
        const FEW: u32 = 8;
        let in_flight = view.endpoints[index].live.in_flight();
        if self.bound <= 0.0 || in_flight < FEW {
            return false;
        }
        let share = f64::from(key.in_flight()) / self.usable().len() as f64 * self.share[index];
        f64::from(in_flight) >= (share * self.bound).ceil()
    }
}
