//! Which endpoint takes the next request. A [`Selector`] is built before a set is published; picking from it takes
//! `&self`, no lock and no allocation.

mod chooser;
mod discount;
mod draw;
mod hash;
mod split;
#[cfg(test)]
mod tests;
mod turn;

pub use discount::penalty;
pub use hash::{HashBy, Key};

use super::{endpoint::Endpoint, health::Choice, subset::Within};
use crate::config::Balance;
use chooser::{Chooser, View};
use discount::Discount;
use hash::What;
use split::{Capacity, Place};
use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering::Relaxed},
};
use tokio::time::Instant;

/// Chooses among the endpoints of one set by one policy.
#[derive(Debug)]
pub struct Selector {
    /// By priority and zone; one part where there are no such things.
    parts: Box<[Part]>,
    discount: Discount,
    /// Whether so few are available that all are used.
    panicking: AtomicBool,
    /// An endpoint whose probe is due. It gets the next request, whomever the policy would choose: to some policies it would
    /// not be good enough for a long time.
    due: AtomicUsize,
}

#[derive(Debug)]
struct Part {
    chooser: Chooser,
    priority: usize,
    place: Place,
    /// The numbers up to this one and above that of the part before draw this part.
    up_to: AtomicU32,
}

const NONE: usize = usize::MAX;

/// What a request asks of its endpoint.
#[derive(Debug, Clone, Copy, Default)]
pub struct Ask {
    /// What the endpoint is chosen by, if by something in the request.
    pub key: Option<Key>,
    /// It cannot be sent again if the endpoint fails, and so is a poor probe.
    pub only_once: bool,
    /// Which endpoints it may go to.
    pub within: Within,
    /// Who is asked first: the same, or others of whom one waits for a probe.
    pub first: Within,
}

impl Selector {
    /// Chooses among the `wanted` ones. Endpoints with weight 0, and those that their registry calls unhealthy, are never
    /// chosen; those that are ejected or fail their checks are not as long as enough others are left. `zone` is ours.
    pub fn new(
        balance: &Balance,
        zone: Option<&str>,
        endpoints: &[Arc<Endpoint>],
        wanted: impl Fn(&Endpoint) -> bool,
    ) -> Self {
        let weight = |e: &Arc<Endpoint>| if e.is_usable() && wanted(e) { e.instance.weight } else { 0 };
        let weights: Vec<u32> = endpoints.iter().map(weight).collect();
        let part = |part: split::Part| Part {
            chooser: Chooser::new(balance, endpoints, &part.weights),
            priority: part.priority,
            place: part.place,
            up_to: AtomicU32::new(u32::MAX),
        };
        let selector = Self {
            parts: split::split(balance, zone, endpoints, &weights).into_iter().map(part).collect(),
            discount: Discount::new(balance),
            panicking: AtomicBool::new(false),
            due: AtomicUsize::new(NONE),
        };
        selector.recount(endpoints, 0, Instant::now());
        selector
    }

    /// Whether there is anything to choose.
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// The number of endpoints that can be chosen.
    pub fn usable(&self) -> usize {
        self.parts.iter().map(|part| part.chooser.usable().len()).sum()
    }

    /// Whether it has parts, which have to be counted anew from time to time.
    pub fn is_split(&self) -> bool {
        self.parts.len() > 1
    }

    /// Counts those that are available, and decides from that how much each part gets, and whether to panic: whether they
    /// are less than `threshold_percent` of all, and no group of them can take the load.
    pub fn recount(&self, endpoints: &[Arc<Endpoint>], threshold_percent: u32, now: Instant) -> usize {
        let is_available = |index: &&usize| endpoints[**index].live.health.is_available();
        let available = self.each().filter(is_available).count();
        self.discount.recount(self.each().filter(is_available).map(|index| &endpoints[*index]), now);
        // Those that are gone and do not answer are on their way out: that they are missing is no reason to panic.
        let is_leaving = |index: &&usize| endpoints[**index].live.is_gone() && endpoints[**index].live.health.is_shut();
        let counted = self.usable() - self.each().filter(is_leaving).count();
        let few = (available as u64) * 100 < counted as u64 * u64::from(threshold_percent);
        let panicking = if self.is_split() { self.split(endpoints, few) } else { few };
        self.panicking.store(panicking, Relaxed);
        let is_due = |index: &&usize| endpoints[**index].live.health.is_probe_due(now);
        self.due.store(self.each().find(is_due).copied().unwrap_or(NONE), Relaxed);
        available
    }

    /// Decides how much each part gets. Returns whether to panic, where `few` are available.
    fn split(&self, endpoints: &[Arc<Endpoint>], few: bool) -> bool {
        let capacity = |part: &Part| {
            let weight = |index: &usize| f64::from(endpoints[*index].instance.weight);
            let is_available = |index: &&usize| endpoints[**index].live.health.is_available();
            let usable = part.chooser.usable();
            Capacity {
                priority: part.priority,
                place: part.place,
                all: usable.iter().map(weight).sum(),
                available: usable.iter().filter(is_available).map(weight).sum(),
            }
        };
        let capacities: Vec<Capacity> = self.parts.iter().map(capacity).collect();
        let covered: f64 = split::by_priority(&capacities).iter().sum();
        let has_groups = capacities.last().is_some_and(|part| part.priority > 0);
        let panicking = few && !(has_groups && covered > 1.0 - 1e-9);
        let (mut sum, mut last) = (0.0, 0);
        let shares = split::shares(&capacities, panicking);
        for (number, (part, share)) in self.parts.iter().zip(shares).enumerate() {
            sum += share;
            part.up_to.store((sum * f64::from(u32::MAX)) as u32, Relaxed);
            if share > 0.0 {
                last = number;
            }
        }
        // Rounding must not leave a number for a part that is to get nothing.
        self.parts[last..].iter().for_each(|part| part.up_to.store(u32::MAX, Relaxed));
        panicking
    }

    /// Whether an ejected endpoint waits for the request that finds out how it is.
    pub fn is_probe_due(&self) -> bool {
        self.due().is_some()
    }

    /// The endpoint that waits for it.
    pub fn due(&self) -> Option<usize> {
        Some(self.due.load(Relaxed)).filter(|index| *index != NONE)
    }

    /// Those that a request may go to now.
    pub fn eligible(&self, endpoints: &[Arc<Endpoint>]) -> impl Iterator<Item = usize> {
        let (panicking, due) = (self.is_panicking(), self.due());
        let is_eligible =
            move |index: &usize| panicking || due == Some(*index) || endpoints[*index].live.health.is_available();
        self.each().copied().filter(is_eligible)
    }

    pub fn is_panicking(&self) -> bool {
        self.panicking.load(Relaxed)
    }

    /// An endpoint is penalised until then.
    pub fn penalised(&self, until: u64) {
        self.discount.prolong(until);
    }

    /// The index of the endpoint for the next request, none of those in `tried`, and how it comes to be chosen.
    pub fn pick(
        &self,
        endpoints: &[Arc<Endpoint>],
        Ask { key, only_once, .. }: Ask,
        tried: &[Arc<Endpoint>],
        now: Instant,
    ) -> Option<(usize, Choice)> {
        let part = self.part(key)?;
        let discount = if self.discount.is_on(now) { Some(&self.discount) } else { None };
        let view = View { endpoints, discount, key, now };
        let first = part.choose(&view, 0);
        if tried.is_empty() && endpoints[first].live.health.is_available() && self.due.load(Relaxed) == NONE {
            return Some((first, Choice::Available));
        }
        self.pick_another(part, first, view, only_once, tried)
    }

    /// The part for a request: the key's, or drawn.
    fn part(&self, key: Option<Key>) -> Option<&Chooser> {
        match &*self.parts {
            [part] => Some(&part.chooser),
            _ => self.one_of_parts(key),
        }
    }

    #[cold]
    fn one_of_parts(&self, key: Option<Key>) -> Option<&Chooser> {
        let number = match key {
            Some(key) => (key.fraction(What::Part) * f64::from(u32::MAX)) as u32,
            None => fastrand::u32(..),
        };
        let part = self.parts.iter().find(|part| number <= part.up_to.load(Relaxed));
        part.or(self.parts.first()).map(|part| &part.chooser)
    }

    /// Where the policy's first choice will not do: the next of its choices that will, or any.
    #[cold]
    fn pick_another(
        &self,
        part: &Chooser,
        first: usize,
        view: View<'_>,
        only_once: bool,
        tried: &[Arc<Endpoint>],
    ) -> Option<(usize, Choice)> {
        let (panicking, endpoints) = (self.is_panicking(), view.endpoints);
        // A retry is made to succeed, not to find something out.
        if tried.is_empty() && !panicking {
            let due = self.due.load(Relaxed);
            for index in [due, first].into_iter().filter(|index| *index != NONE) {
                let health = &endpoints[index].live.health;
                let taken = health.take_probe(view.now, only_once);
                // One that waits for a request that can be repeated stays due.
                if index == due && !health.is_probe_due(view.now) {
                    self.due.store(NONE, Relaxed);
                }
                if taken {
                    return Some((index, Choice::Probe));
                }
            }
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
        // From a place of the key's own, or anywhere; then what other parts have.
        let usable = part.in_order();
        let start = match view.key {
            Some(key) => (key.hash % usable.len() as u64) as usize,
            None => fastrand::usize(..usable.len()),
        };
        let (before, after) = usable.split_at(start);
        let mut all = after.iter().chain(before).chain(self.each()).copied();
        fits(first)
            .or_else(|| (1..=8).find_map(|attempt| fits(part.choose(&view, attempt))))
            .or_else(|| all.clone().find_map(fits))
            // A request that failed once, as in a rolling restart, has nothing to lose.
            .or_else(|| all.find(|index| !tried.is_empty() && untried(*index)).map(|index| (index, Choice::LastResort)))
    }

    /// All that can be chosen.
    fn each(&self) -> impl Iterator<Item = &usize> + Clone {
        self.parts.iter().flat_map(|part| part.chooser.usable())
    }
}
