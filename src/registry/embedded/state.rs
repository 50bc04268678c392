//! What the registry holds. Owned by one task; time is given from outside.

use super::values::{self, Change, Condition, Values};
use crate::registry::Instance;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::{oneshot, watch},
    time::Instant,
};

/// Instances over all services; more are refused.
pub(super) const MAX_INSTANCES: usize = 10_000;

#[derive(Debug, Default)]
pub(super) struct State {
    services: BTreeMap<Arc<str>, Service>,
    /// One timer watches the first of these.
    expiries: BTreeSet<(Instant, Arc<str>, Arc<str>)>,
    count: usize,
    /// Services that changed since the last [`State::publish`].
    changed: BTreeSet<Arc<str>>,
    pub(super) values: Values,
    /// Counts what a saved state would have to have. A renewal is not among it: whoever is restored gets a full TTL.
    pub(super) revision: u64,
    /// When there are this many services, those without instances and followers are removed.
    sweep_at: usize,
    /// Another process has the registry still: nothing expires here and nothing is saved.
    pub(super) borrowed: bool,
    /// Who gets the registry. It ends here then.
    pub(super) heir: Option<oneshot::Sender<Contents>>,
}

#[derive(Debug)]
struct Service {
    leases: BTreeMap<Arc<str>, Lease>,
    set: watch::Sender<Arc<[Instance]>>,
}

#[derive(Debug)]
struct Lease {
    instance: Instance,
    ttl: Duration,
    expires: Instant,
}

/// There is no room for another instance.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Full;

/// One instance with all that has to outlive the process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Kept {
    pub(super) name: String,
    pub(super) instance: Instance,
    pub(super) ttl: Duration,
}

/// Everything that has to outlive the process.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Contents {
    pub(super) instances: Vec<Kept>,
    pub(super) values: values::Kept,
}

impl State {
    pub(super) fn borrowed() -> Self {
        Self { borrowed: true, ..Self::default() }
    }

    /// Puts an instance in, in place of one with the same id.
    pub(super) fn register(&mut self, kept: Kept, now: Instant) -> Result<(), Full> {
        let Kept { name, instance, ttl } = kept;
        let id = instance.id.as_str();
        let known = self.services.get_key_value(&*name).is_some_and(|(_, service)| service.leases.contains_key(id));
        if !known && self.count >= MAX_INSTANCES {
            return Err(Full);
        }
        let (name, id): (Arc<str>, Arc<str>) = (name.into(), id.into());
        let service = self.services.entry(name.clone()).or_default();
        let expires = now + ttl;
        let same = match service.leases.get(&id) {
            Some(old) => {
                self.expiries.remove(&(old.expires, name.clone(), id.clone()));
                old.instance == instance && old.ttl == ttl
            }
            None => {
                self.count += 1;
                false
            }
        };
        self.expiries.insert((expires, name.clone(), id.clone()));
        service.leases.insert(id, Lease { instance, ttl, expires });
        if !same {
            self.touch(name);
        }
        Ok(())
    }

    /// Gives the TTL that runs anew, or `None` if there is no such instance.
    pub(super) fn renew(&mut self, name: &str, id: &str, now: Instant) -> Option<Duration> {
        let (name, service) = self.services.get_key_value(name)?;
        let name = name.clone();
        let (id, lease) = service.leases.get_key_value(id)?;
        let (id, ttl, expires) = (id.clone(), lease.ttl, lease.expires);
        self.expiries.remove(&(expires, name.clone(), id.clone()));
        self.services.get_mut(&name)?.leases.get_mut(&id)?.expires = now + ttl;
        self.expiries.insert((now + ttl, name, id));
        Some(ttl)
    }

    /// Says whether there was such an instance.
    pub(super) fn deregister(&mut self, name: &str, id: &str) -> bool {
        let Some((name, _)) = self.services.get_key_value(name) else { return false };
        let name = name.clone();
        let Some((id, lease)) = self.services.get_mut(&name).and_then(|service| service.leases.remove_entry(id)) else {
            return false;
        };
        self.count -= 1;
        self.expiries.remove(&(lease.expires, name.clone(), id));
        self.touch(name);
        true
    }

    /// Takes out what was not renewed in time.
    pub(super) fn expire(&mut self, now: Instant) {
        while self.next_expiry().is_some_and(|first| first <= now) {
            if let Some((_, name, id)) = self.expiries.pop_first() {
                tracing::info!(service = &*name, instance = &*id, "an instance was not renewed in time");
                self.deregister(&name, &id);
            }
        }
    }

    pub(super) fn next_expiry(&self) -> Option<Instant> {
        self.expiries.first().map(|(expires, ..)| *expires)
    }

    pub(super) fn discover(&self, name: &str) -> Vec<Instance> {
        self.services.get(name).map(Service::instances).unwrap_or_default()
    }

    /// The names of the services that have instances.
    pub(super) fn services(&self) -> Vec<String> {
        let used = self.services.iter().filter(|(_, service)| !service.leases.is_empty());
        used.map(|(name, _)| name.to_string()).collect()
    }

    /// The service's set, now and whenever it changes.
    pub(super) fn follow(&mut self, name: &str) -> watch::Receiver<Arc<[Instance]>> {
        // Or names that were once asked for would stay for ever.
        if self.services.len() >= self.sweep_at {
            self.services.retain(|_, service| !service.leases.is_empty() || service.set.receiver_count() > 0);
            self.sweep_at = 2 * self.services.len() + 64;
        }
        self.services.entry(name.into()).or_default().set.subscribe()
    }

    /// Tells the followers of all services that changed.
    pub(super) fn publish(&mut self) {
        for name in std::mem::take(&mut self.changed) {
            if let Some(service) = self.services.get(&name) {
                service.set.send_replace(service.instances().into());
            }
        }
    }

    pub(super) fn put_value(&mut self, key: &str, condition: Condition, text: String) -> Change {
        let change = self.values.put(key, condition, text);
        self.revision += u64::from(matches!(change, Change::Done(_)));
        change
    }

    pub(super) fn delete_value(&mut self, key: &str, condition: Condition) -> Change {
        let change = self.values.delete(key, condition);
        self.revision += u64::from(matches!(change, Change::Done(_)));
        change
    }

    pub(super) fn contents(&self) -> Contents {
        Contents { instances: self.instances(), values: self.values.kept() }
    }

    pub(super) fn instances(&self) -> Vec<Kept> {
        let of_service = |(name, service): (&Arc<str>, &Service)| {
            let name = name.to_string();
            let kept = |lease: &Lease| Kept { name: name.clone(), instance: lease.instance.clone(), ttl: lease.ttl };
            service.leases.values().map(kept).collect::<Vec<_>>()
        };
        self.services.iter().flat_map(of_service).collect()
    }

    fn touch(&mut self, name: Arc<str>) {
        self.changed.insert(name);
        self.revision += 1;
    }
}

impl Default for Service {
    fn default() -> Self {
        Self { leases: BTreeMap::new(), set: watch::Sender::new(Arc::new([])) }
    }
}

impl Service {
    fn instances(&self) -> Vec<Instance> {
        self.leases.values().map(|lease| lease.instance.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(name: &str, id: &str, ttl: u64) -> Kept {
        let instance = Instance::new(id, "10.0.0.1:80".parse().unwrap());
        Kept { name: name.into(), instance, ttl: Duration::from_secs(ttl) }
    }

    #[test]
    fn the_number_of_instances_is_bounded() {
        let (mut state, now) = (State::default(), Instant::now());
        for id in 0..MAX_INSTANCES {
            state.register(kept("users", &id.to_string(), 30), now).unwrap();
        }
        assert_eq!(state.register(kept("users", "more", 30), now), Err(Full));
        state.register(kept("users", "7", 60), now).unwrap();
        assert!(state.deregister("users", "8"));
        state.register(kept("orders", "more", 30), now).unwrap();
        assert_eq!((state.instances().len(), state.expiries.len()), (MAX_INSTANCES, MAX_INSTANCES));
    }

    #[test]
    fn names_nobody_follows_any_more_are_forgotten() {
        let mut state = State::default();
        let followed = state.follow("followed");
        for name in 0..10_000 {
            drop(state.follow(&name.to_string()));
        }
        assert!(state.services.len() < 200, "{}", state.services.len());
        assert!(state.services.contains_key("followed"));
        drop(followed);
    }

    #[test]
    fn only_what_must_be_saved_counts_as_a_change() {
        let (mut state, now) = (State::default(), Instant::now());
        state.register(kept("users", "a", 30), now).unwrap();
        let revision = state.revision;
        state.register(kept("users", "a", 30), now + Duration::from_secs(1)).unwrap();
        assert!(state.renew("users", "a", now + Duration::from_secs(2)).is_some());
        assert_eq!((state.revision, state.expiries.len()), (revision, 1));
        state.register(kept("users", "a", 31), now).unwrap();
        assert!(state.revision > revision);
    }
}
