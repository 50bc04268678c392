//! Endpoints that their registry no longer lists, and that stay in use all the same. A registry that forgot an instance,
//! and one that lost many at once, look just like one from which they were taken; the instances themselves know better.
//!
//! One whose checks pass stays for `health_check.linger`, or until a check or a request fails. When far too many are gone
//! at once ([`super::guard`]), each of them stays until its checks say otherwise.

use super::guard::{Alarm, Guard};
use crate::{
    cluster::{Endpoint, Live, check::State},
    config::Service,
    registry::{Address, Instance},
};
use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};
use tokio::time::Instant;

/// Those of one service that are gone and in use.
#[derive(Debug, Default)]
pub struct Linger {
    /// By the endpoint's key.
    staying: HashMap<u64, Stay>,
    guard: Guard,
    /// Of sources that are merged, each by itself: one that was emptied is not made up for by the others.
    guards: HashMap<usize, Guard>,
    /// Those that went of late, one by one perhaps, before it was known that too many go.
    left: Vec<(Instant, Instance)>,
}

/// What sources say now.
#[derive(Debug)]
pub struct View<'s> {
    pub listed: Arc<[Instance]>,
    /// Addresses that a source lists and that do not count: it is said plainly that they are not meant.
    pub withdrawn: &'s HashSet<Address>,
    /// Of sources that are merged: which it is, and how many it lists.
    pub parts: &'s [(usize, usize)],
    /// Others are believed now than before, though those before have lost nothing: who is not listed by them is not meant.
    pub moved: bool,
}

/// How long one may stay.
#[derive(Debug, Clone, Copy)]
struct Stay {
    end: Instant,
    /// Only while too many are gone: by then it must have passed a check.
    proof: Option<Instant>,
    passes: bool,
}

/// What is to be in force.
#[derive(Debug)]
pub struct Kept {
    pub instances: Arc<[Instance]>,
    /// How many of these are gone, and were listed until now.
    pub new: usize,
    /// How many of them are kept only because too many are gone at once.
    pub held: usize,
    /// Since when too many are gone.
    pub alarm: Option<Alarm>,
    /// Those that had gone and are back, because it is known now that too many go: look once more.
    pub back: HashSet<Address>,
}

impl Linger {
    /// Before anything was listed, these were in force, as is known from elsewhere.
    pub fn seed(&mut self, instances: &[Instance], now: Instant) {
        self.guard.seed(instances.len(), now);
        self.left.extend(instances.iter().map(|instance| (now, instance.clone())));
    }

    /// What is to be in force after `before`: what is listed, and those of `before` that may stay.
    pub fn keep(&mut self, before: &[Arc<Endpoint>], view: View<'_>, service: &Service, now: Instant) -> Kept {
        let View { listed, withdrawn, parts, moved } = view;
        if moved {
            *self = Self::default();
        }
        let addresses: HashSet<_> = listed.iter().map(|instance| &instance.address).collect();
        // Only those that counted: how many others a scope leaves out says nothing.
        let taken_back = |endpoint: &&Arc<Endpoint>| {
            let address = &endpoint.instance.address;
            withdrawn.contains(address) && !addresses.contains(address)
        };
        let taken_back = before.iter().filter(taken_back).count();
        let alarm = self.sense(addresses.len() + taken_back, parts, service, now);
        let is_gone = |address: &Address| !addresses.contains(address) && !withdrawn.contains(address);
        let (mut instances, mut staying) = (Vec::new(), HashMap::new());
        for endpoint in before {
            let (live, instance) = (&endpoint.live, &endpoint.instance);
            live.set_gone(!addresses.contains(&instance.address));
            if moved || !is_gone(&instance.address) || !endpoint.is_usable() {
                continue;
            }
            let known = self.staying.get(&live.key).copied();
            let stay = match alarm {
                Some(_) => held(known, live, service, now),
                None => lingering(known, live, service.health_check.as_ref().map(|check| check.linger), now),
            };
            match stay {
                Some(stay) => {
                    staying.insert(live.key, stay);
                    instances.push(instance.clone());
                }
                None if alarm.is_none() && service.guard.enabled => self.left.push((now, instance.clone())),
                None => {}
            }
        }
        let new = staying.keys().filter(|key| !self.staying.contains_key(key)).count();
        let held = staying.values().filter(|stay| stay.proof.is_some()).count();
        self.staying = staying;
        self.left.retain(|(time, left)| now.duration_since(*time) < service.guard.grace && is_gone(&left.address));
        let mut returned = HashSet::new();
        if alarm.is_some() {
            let there: HashSet<_> = before.iter().map(|endpoint| &endpoint.instance.address).collect();
            let mut back: Vec<_> = self.left.drain(..).map(|(_, instance)| instance).collect();
            back.retain(|instance| !there.contains(&instance.address));
            returned = back.iter().map(|instance| instance.address.clone()).collect();
            instances.extend(back);
        }
        if held == 0 && returned.is_empty() {
            self.guard.settle();
            self.guards.values_mut().for_each(Guard::settle);
        }
        let instances = if instances.is_empty() { listed } else { listed.iter().cloned().chain(instances).collect() };
        Kept { instances, new, held, alarm: alarm.filter(|_| held > 0), back: returned }
    }

    fn sense(&mut self, listed: usize, parts: &[(usize, usize)], service: &Service, now: Instant) -> Option<Alarm> {
        let whole = self.guard.sense(listed, &service.guard, now);
        self.guards.retain(|place, _| parts.iter().any(|(part, _)| part == place));
        let mut alarm = whole;
        for (place, size) in parts {
            let part = self.guards.entry(*place).or_default().sense(*size, &service.guard, now);
            alarm = alarm.or(part);
        }
        alarm
    }

    /// When it must be looked again who may stay.
    pub fn end(&self) -> Option<Instant> {
        let end = |stay: &Stay| match stay.proof {
            Some(proof) if !stay.passes => stay.end.min(proof),
            _ => stay.end,
        };
        self.staying.values().map(end).min()
    }
}

/// One of few that are gone: it passes its checks, and no request has failed there.
fn lingering(known: Option<Stay>, live: &Live, linger: Option<Duration>, now: Instant) -> Option<Stay> {
    // What was kept while too many were gone begins anew.
    let known = known.filter(|stay| stay.proof.is_none());
    let end = known.map_or(now + linger?, |stay| stay.end);
    let passes = live.checked().is_some_and(|checked| checked.state == State::Healthy);
    (now < end && passes && !has_failed(live)).then_some(Stay { end, proof: None, passes })
}

/// One of too many: it does not fail its checks, whatever requests meet, which the breaker sees to.
fn held(known: Option<Stay>, live: &Live, service: &Service, now: Instant) -> Option<Stay> {
    let known = known.filter(|stay| stay.proof.is_some());
    let (end, proof) = match known {
        Some(Stay { end, proof: Some(proof), .. }) => (end, proof),
        _ => (now + service.guard.longest, now + service.guard.grace),
    };
    let state = live.checked().map_or(State::Unknown, |checked| checked.state);
    let passes = matches!(state, State::Healthy | State::Suspect { .. });
    let stays = now < end && (passes || (state == State::Unknown && now < proof));
    stays.then_some(Stay { end, proof: Some(proof), passes })
}

/// Whether a request has failed there, and none has succeeded since.
pub fn has_failed(live: &Live) -> bool {
    live.health.consecutive_failures() > 0
}

#[cfg(test)]
#[path = "linger_tests.rs"]
mod tests;
