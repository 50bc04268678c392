//! Which of a service's sources are believed: by priority, several merged, or the nearest of several; with failover to
//! the next and a hold before the way back.

use super::scope::Scope;
use crate::{
    config::{Failover, Source},
    registry::{Address, Instance, Observation},
};
use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};
use tokio::time::Instant;

/// At the start, one that answers sooner than those before it in order waits for them, but no longer than this.
const PATIENCE: Duration = Duration::from_millis(200);
/// Datacenters that are farther away than the nearest by so much, as a factor and in seconds, are as good as that one; then
/// their order counts. One that is in use may be as far as the second says: what is measured varies.
const AS_NEAR: (f64, f64) = (1.1, 0.0005);
const NEAR_ENOUGH: (f64, f64) = (1.3, 0.001);

/// A whole set as it came, and what of it counts.
type Set = (Arc<[Instance]>, Arc<[Instance]>);

/// What is asked for one service, and how the answers are put together.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    pub asked: Vec<Asked>,
    /// In order of priority.
    steps: Vec<Step>,
    failover: Failover,
}

/// One registry, and what the service is called there.
#[derive(Debug, Clone, PartialEq)]
pub struct Asked {
    pub registry: String,
    pub name: String,
    pub scope: Scope,
}

/// Places in [`Plan::asked`].
#[derive(Debug, Clone, PartialEq)]
enum Step {
    One(usize),
    Merge(Vec<usize>),
    Nearest(Vec<usize>),
}

impl Plan {
    /// `ask` works out what the service is called in a registry.
    pub fn new(sources: &[Source], failover: &Failover, ask: impl Fn(&str) -> Asked) -> Self {
        let (mut asked, mut steps) = (Vec::new(), Vec::new());
        for source in sources {
            let first = asked.len();
            asked.extend(source.registries().iter().map(|name| ask(name)));
            let places = first..asked.len();
            steps.push(match source {
                Source::Registry(_) => Step::One(first),
                Source::Merge(_) => Step::Merge(places.collect()),
                Source::Nearest(_) => Step::Nearest(places.collect()),
            });
        }
        Self { asked, steps, failover: failover.clone() }
    }

    pub fn is_by_nearness(&self) -> bool {
        self.steps.iter().any(|step| matches!(step, Step::Nearest(_)))
    }

    /// The places of those whose nearness matters.
    pub fn to_measure(&self) -> Vec<usize> {
        let nearest = |step: &Step| match step {
            Step::Nearest(places) => places.clone(),
            _ => Vec::new(),
        };
        self.steps.iter().flat_map(nearest).collect()
    }
}

/// What the sources have said so far, and who of them is believed.
#[derive(Debug)]
pub struct Sources {
    plan: Plan,
    heard: Vec<Heard>,
    /// Until when those that answer wait for those before them; `None` once it is over.
    patience: Option<Instant>,
    /// The step in force.
    step: Option<usize>,
    /// In each step that chooses by nearness: who is chosen.
    near: HashMap<usize, usize>,
}

/// One source.
#[derive(Debug, Default)]
struct Heard {
    /// Its newest.
    set: Option<Set>,
    failing_since: Option<Instant>,
    well_since: Option<Instant>,
    /// It failed for so long that the next one may take its place, and has not been well for long enough since.
    given_up: bool,
    /// `None`: not measured. `Some(None)`: nothing there can be reached.
    latency: Option<Option<Duration>>,
}

impl Heard {
    fn is_out_of_reach(&self) -> bool {
        self.latency == Some(None)
    }

    /// Notes since when it is well.
    fn look_well(&mut self, now: Instant) {
        let well = self.set.is_some() && self.failing_since.is_none() && !self.is_out_of_reach();
        self.well_since = well.then(|| self.well_since.unwrap_or(now));
    }
}

/// What the sources say, taken together.
#[derive(Debug, Clone, PartialEq)]
pub struct Said {
    pub instances: Arc<[Instance]>,
    /// Whose instances these are.
    pub from: Vec<usize>,
    /// How many sources have answered at all.
    pub answered: usize,
    /// How many have answered, or failed for so long that nobody waits for them any more.
    pub settled: usize,
    /// Of sources that are merged: which it is, and how many it lists.
    pub parts: Vec<(usize, usize)>,
    /// Addresses that some source lists, and that do not count with it.
    pub withdrawn: HashSet<Address>,
}

impl Sources {
    pub fn new(plan: Plan, now: Instant) -> Self {
        let heard = plan.asked.iter().map(|_| Heard::default()).collect();
        Self { plan, heard, patience: Some(now + PATIENCE), step: None, near: HashMap::new() }
    }

    pub fn count(&self) -> usize {
        self.heard.len()
    }

    /// Takes note of what a source has said.
    pub fn hear(&mut self, place: usize, observed: &Observation, now: Instant) {
        let heard = &mut self.heard[place];
        if let Some(set) = &observed.instances
            && heard.set.as_ref().is_none_or(|(old, _)| !Arc::ptr_eq(old, set))
        {
            heard.set = Some((set.clone(), self.plan.asked[place].scope.filter(set)));
        }
        match observed.failure {
            Some(_) => drop(heard.failing_since.get_or_insert(now)),
            None => heard.failing_since = None,
        }
        heard.look_well(now);
    }

    /// Takes note of how far away a source's instances are; `None`: none of them can be reached.
    pub fn measured(&mut self, place: usize, latency: Option<Duration>, now: Instant) {
        let heard = &mut self.heard[place];
        heard.latency = Some(latency);
        heard.look_well(now);
    }

    /// What counts of a source's newest set.
    pub fn set(&self, place: usize) -> Option<&Arc<[Instance]>> {
        self.heard[place].set.as_ref().map(|(_, counts)| counts)
    }

    pub fn is_given_up(&self, place: usize) -> bool {
        // For nobody, where there is no other.
        self.heard.len() > 1 && self.heard[place].given_up
    }

    pub fn is_measured(&self, place: usize) -> bool {
        self.heard[place].latency.is_some()
    }

    pub fn latency(&self, place: usize) -> Option<Duration> {
        self.heard[place].latency.flatten()
    }

    /// Decides who is believed now.
    pub fn decide(&mut self, now: Instant) -> Said {
        let failover = &self.plan.failover;
        for heard in &mut self.heard {
            let failed = heard.failing_since.is_some_and(|since| now >= since + failover.after);
            if failed || heard.is_out_of_reach() {
                heard.given_up = true;
            } else if heard.well_since.is_some_and(|since| now >= since + failover.hold) {
                heard.given_up = false;
            }
        }
        let answered = self.heard.iter().filter(|heard| heard.set.is_some()).count();
        self.patience = self.patience.filter(|end| now < *end && self.steps_heard() < self.plan.steps.len());
        let steps = if self.patience.is_some() { self.steps_heard() } else { self.plan.steps.len() };
        let candidates: Vec<Vec<usize>> = (0..steps).map(|step| self.of_step(step)).collect();
        let lists = |places: &Vec<usize>| places.iter().any(|place| !self.instances(*place).is_empty());
        let trusted = |places: &Vec<usize>| {
            places.iter().any(|place| !self.heard[*place].given_up && !self.instances(*place).is_empty())
        };
        // Where none is well, a change from one that fails to another would gain nothing.
        let current = self.step.filter(|step| candidates.get(*step).is_some_and(lists));
        let first =
            |fits: &dyn Fn(&Vec<usize>) -> bool| candidates.iter().position(|places| lists(places) && fits(places));
        // Nor a change to one that just began to fail: either it is well soon, or the next one takes its place as well.
        let fails = |step: &usize| candidates[*step].iter().all(|place| self.heard[*place].failing_since.is_some());
        let wanted = first(&trusted).filter(|step| current.is_none() || current == Some(*step) || !fails(step));
        let step = wanted.or(current).or_else(|| first(&|_| true));
        self.step = step;
        let settled = self.heard.iter().filter(|heard| heard.set.is_some() || heard.given_up).count();
        let withdrawn = self.withdrawn();
        let Some(step) = step else {
            let (instances, from, parts) = (Arc::new([]) as Arc<[Instance]>, Vec::new(), Vec::new());
            return Said { instances, from, answered, settled, parts, withdrawn };
        };
        let parts = match &self.plan.steps[step] {
            Step::Merge(places) => places.iter().filter_map(|place| Some((*place, self.set(*place)?.len()))).collect(),
            _ => Vec::new(),
        };
        let from: Vec<usize> =
            candidates[step].iter().copied().filter(|place| !self.instances(*place).is_empty()).collect();
        let instances = match from[..] {
            [only] => self.heard[only].set.as_ref().map(|(_, counts)| counts.clone()).unwrap_or_default(),
            _ => self.merged(&from),
        };
        Said { instances, from, answered, settled, parts, withdrawn }
    }

    /// When time alone changes who is believed.
    pub fn next(&self) -> Option<Instant> {
        if self.heard.len() < 2 {
            return None;
        }
        let next = |heard: &Heard| match (heard.failing_since, heard.well_since) {
            (Some(since), _) if !heard.given_up => Some(since + self.plan.failover.after),
            (None, Some(since)) if heard.given_up => Some(since + self.plan.failover.hold),
            _ => None,
        };
        self.heard.iter().filter_map(next).chain(self.patience).min()
    }

    /// How many steps can be judged: all up to the first that nothing was heard of yet, and that one.
    fn steps_heard(&self) -> usize {
        let silent = |step: &Step| {
            let places: &[usize] = match step {
                Step::One(place) => std::slice::from_ref(place),
                Step::Merge(places) | Step::Nearest(places) => places,
            };
            places.iter().all(|place| self.heard[*place].set.is_none() && self.heard[*place].failing_since.is_none())
        };
        let steps = &self.plan.steps;
        steps.iter().position(silent).map_or(steps.len(), |first| first + 1)
    }

    fn withdrawn(&self) -> HashSet<Address> {
        let sets = self.heard.iter().filter_map(|heard| heard.set.as_ref());
        let some_do_not = sets.filter(|(all, counts)| all.len() != counts.len());
        let mut withdrawn = HashSet::new();
        for (all, counts) in some_do_not {
            let counting: HashSet<_> = counts.iter().map(|instance| &instance.address).collect();
            let others = all.iter().filter(|instance| !counting.contains(&instance.address));
            withdrawn.extend(others.map(|instance| instance.address.clone()));
        }
        withdrawn
    }

    /// Whether an instance would count with any source.
    pub fn is_in_scope(&self, instance: &Instance) -> bool {
        self.plan.asked.iter().any(|asked| asked.scope.counts(instance))
    }

    /// Those of what was kept on disk that count: its source must be one that is asked now, and its scope is that of now.
    pub fn in_scope(&self, saved_of: &str, saved: &Arc<[Instance]>) -> Arc<[Instance]> {
        let asked = self.plan.asked.iter().filter(|asked| saved_of.split(", ").any(|name| name == asked.registry));
        let scopes: Vec<_> = asked.map(|asked| &asked.scope).collect();
        saved.iter().filter(|instance| scopes.iter().any(|scope| scope.counts(instance))).cloned().collect()
    }

    fn instances(&self, place: usize) -> &[Instance] {
        self.set(place).map_or(&[], |set| set)
    }

    /// Who speaks for a step.
    fn of_step(&mut self, step: usize) -> Vec<usize> {
        match &self.plan.steps[step] {
            Step::One(place) => vec![*place],
            Step::Merge(places) => places.clone(),
            Step::Nearest(places) => {
                let places = places.clone();
                self.nearest(step, &places).into_iter().collect()
            }
        }
    }

    /// The nearest that lists anything and does well; of several that are as near, the first, unless another is in use.
    fn nearest(&mut self, step: usize, places: &[usize]) -> Option<usize> {
        let seconds = |place: usize| self.latency(place).unwrap_or(Duration::MAX).as_secs_f64();
        let listing: Vec<usize> = places.iter().copied().filter(|place| !self.instances(*place).is_empty()).collect();
        let well: Vec<usize> = listing.iter().copied().filter(|place| !self.heard[*place].given_up).collect();
        let best = well.iter().map(|place| seconds(*place)).fold(f64::INFINITY, f64::min);
        let is_near = |place: usize, (factor, more): (f64, f64)| seconds(place) <= best * factor + more;
        let before = self.near.get(&step).copied().filter(|place| listing.contains(place));
        let first = well.iter().copied().find(|place| is_near(*place, AS_NEAR));
        let stays = |place: &usize| {
            let goes_before = |other: usize| places.iter().position(|place| *place == other);
            well.contains(place)
                && is_near(*place, NEAR_ENOUGH)
                && first.is_none_or(|first| goes_before(first) >= goes_before(*place))
        };
        // Where none does well, who was in use stays in use.
        let chosen = before.filter(stays).or(first).or(before).or_else(|| listing.first().copied())?;
        self.near.insert(step, chosen);
        Some(chosen)
    }

    /// All instances of several sources, their weights in each such that 100 is the mean: one registry's usual weight is
    /// another's hundredfold. Of one address that several list, the first is believed; ids stay unique.
    fn merged(&self, from: &[usize]) -> Arc<[Instance]> {
        let (mut addresses, mut ids) = (HashSet::<&Address>::new(), HashSet::<&str>::new());
        let mut merged = Vec::new();
        for place in from {
            let instances = self.instances(*place);
            let sum: f64 = instances.iter().map(|instance| f64::from(instance.weight)).sum();
            let scale = f64::from(Instance::DEFAULT_WEIGHT) * instances.len() as f64 / sum.max(1.0);
            for instance in instances {
                if !addresses.insert(&instance.address) {
                    continue;
                }
                let mut instance_here = instance.clone();
                if instance.weight > 0 {
                    instance_here.weight = (f64::from(instance.weight) * scale).round().max(1.0) as u32;
                }
                if !ids.insert(&instance.id) {
                    instance_here.id = format!("{}/{}", self.plan.asked[*place].registry, instance.id);
                }
                merged.push(instance_here);
            }
        }
        merged.into()
    }
}

#[cfg(test)]
#[path = "sources_tests.rs"]
mod tests;
