//! Priority groups and zones: into which parts a set of endpoints is split, and how much each part gets.

use crate::{cluster::endpoint::Endpoint, config::Balance};
use std::{collections::BTreeMap, sync::Arc};

/// Envoy's overprovisioning factor: a group can take the whole load as long as this many of its endpoints, by weight, are
/// enough for it: 1 / 1.4, so 72 percent.
const OVERPROVISIONING: f64 = 1.4;

/// Endpoints of one priority, and of one zone where zones matter.
#[derive(Debug, Clone, PartialEq)]
pub struct Part {
    pub priority: usize,
    pub place: Place,
    /// By index, 0 for endpoints of other parts.
    pub weights: Vec<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// Where zones do not matter.
    Anywhere,
    /// In this pillion's zone.
    Here,
    /// In another one.
    Elsewhere,
    /// In none, as far as its registry says.
    Unknown,
}

/// The parts in order of priority, none of them empty. One for all in most cases.
pub fn split(balance: &Balance, zone: Option<&str>, endpoints: &[Arc<Endpoint>], weights: &[u32]) -> Vec<Part> {
    let mut priorities: BTreeMap<(usize, u32), Vec<usize>> = BTreeMap::new();
    for index in (0..endpoints.len()).filter(|index| weights[*index] > 0) {
        priorities.entry(priority(balance, &endpoints[index])).or_default().push(index);
    }
    let mut parts = Vec::new();
    for (priority, members) in priorities.into_values().enumerate() {
        let mut part = |place, members: &[usize]| {
            let mut own = vec![0; weights.len()];
            members.iter().for_each(|index| own[*index] = weights[*index]);
            parts.push(Part { priority, place, weights: own });
        };
        let mut zones: BTreeMap<(Place, Option<&str>), Vec<usize>> = BTreeMap::new();
        for index in &members {
            let own = endpoints[*index].instance.zone.as_deref().filter(|zone| !zone.is_empty());
            let place = match own {
                None => Place::Unknown,
                own if own == zone => Place::Here,
                Some(_) => Place::Elsewhere,
            };
            zones.entry((place, own)).or_default().push(*index);
        }
        let matter = balance.zone.aware
            && members.len() >= balance.zone.min_endpoints as usize
            && zones.len() > 1
            && zones.keys().any(|(place, _)| *place == Place::Here);
        if matter {
            zones.iter().for_each(|((place, _), members)| part(*place, members));
        } else {
            part(Place::Anywhere, &members);
        }
    }
    parts
}

/// The place of its value in the order, after all of them if it is not there; and among equals what its registry says.
fn priority(balance: &Balance, endpoint: &Endpoint) -> (usize, u32) {
    let (priority, instance) = (&balance.priority, &endpoint.instance);
    let value = match &priority.label {
        Some(label) => instance.labels.get(label).map(String::as_str),
        None => instance.zone.as_deref(),
    };
    let place = priority.order.iter().position(|known| Some(known.as_str()) == value);
    (place.unwrap_or(priority.order.len()), instance.priority)
}

/// What a part could do, and what it can do now, by weight.
#[derive(Debug, Clone, Copy)]
pub struct Capacity {
    pub priority: usize,
    pub place: Place,
    pub all: f64,
    pub available: f64,
}

/// The parts of the whole load that groups of these capacities can take, in order of priority; less than 1 together where
/// they cannot take all of it.
pub fn by_priority(parts: &[Capacity]) -> Vec<f64> {
    let mut left = 1.0;
    let groups = parts.last().map_or(0, |part| part.priority + 1);
    let mut shares = Vec::with_capacity(groups);
    for priority in 0..groups {
        let group = parts.iter().filter(|part| part.priority == priority);
        let (available, all) =
            group.fold((0.0, 0.0), |(available, all), part| (available + part.available, all + part.all));
        let share = (available / all * OVERPROVISIONING).min(left);
        left -= share;
        shares.push(share);
    }
    shares
}

/// How much each part gets; 1 together.
pub fn shares(parts: &[Capacity], panicking: bool) -> Vec<f64> {
    let groups = by_priority(parts);
    let taken: f64 = groups.iter().sum();
    if panicking || taken <= 0.0 {
        let all: f64 = parts.iter().map(|part| part.all).sum();
        return parts.iter().map(|part| part.all / all).collect();
    }
    let of_group = |priority: usize| {
        let group: Vec<Capacity> = parts.iter().filter(|part| part.priority == priority).copied().collect();
        by_zone(&group).into_iter().map(move |share| (priority, share))
    };
    let within = (0..groups.len()).flat_map(of_group);
    within.map(|(priority, share)| share * groups[priority] / taken).collect()
}

/// Zone-aware routing as in Envoy, but that a sidecar does not know where the other callers are: they are taken to be spread
/// evenly over the zones. What is here takes everything while its part of the capacity is no less than its zone's part of
/// the callers. What is over goes to the zones that have more than their part, by how much they have more.
fn by_zone(group: &[Capacity]) -> Vec<f64> {
    let available: f64 = group.iter().map(|part| part.available).sum();
    if available <= 0.0 {
        return vec![0.0; group.len()];
    }
    let capacity = |part: &Capacity| part.available / available;
    let zones = group.iter().filter(|part| part.place != Place::Unknown).count();
    let callers = |part: &Capacity| if part.place == Place::Unknown { 0.0 } else { 1.0 / zones as f64 };
    let Some(here) = group.iter().find(|part| part.place == Place::Here) else {
        return group.iter().map(capacity).collect();
    };
    let local = (capacity(here) / callers(here)).min(1.0);
    let residual = |part: &Capacity| match part.place {
        Place::Here => 0.0,
        _ => (capacity(part) - callers(part)).max(0.0),
    };
    let over: f64 = group.iter().map(residual).sum();
    let share = |part: &Capacity| match part.place {
        Place::Here => local,
        _ if over > 0.0 => (1.0 - local) * residual(part) / over,
        _ => 0.0,
    };
    group.iter().map(share).collect()
}
