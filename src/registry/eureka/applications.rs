//! All that a server lists, and what deltas make of it.

use super::decode::{Answer, Listed, Usage};
use crate::{
    config::EurekaName,
    registry::{Instance, watch::Found},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    sync::Arc,
};

/// Every instance, whatever its status, because the hash counts all of them. A copy shares the applications that did not
/// change.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Applications {
    /// By name, then by id.
    all: BTreeMap<String, Arc<BTreeMap<String, Listed>>>,
}

impl Applications {
    /// What a full answer lists.
    pub fn new(answer: Answer) -> Self {
        let mut applications = Self::default();
        applications.apply(answer.listed);
        applications
    }

    /// Adds, changes and removes what a delta lists.
    pub fn apply(&mut self, changed: Vec<Listed>) {
        for listed in changed {
            let application = Arc::make_mut(self.all.entry(listed.app.clone()).or_default());
            if listed.is_deleted {
                application.remove(&listed.id);
                if application.is_empty() {
                    self.all.remove(&listed.app);
                }
            } else {
                application.insert(listed.id.clone(), listed);
            }
        }
    }

    /// As the server writes it: `DOWN_2_UP_14_`. After a delta, another hash than the server's means that something was
    /// missed.
    pub fn hash(&self) -> String {
        let mut counts = BTreeMap::<&str, usize>::new();
        for listed in self.listed() {
            *counts.entry(&listed.status).or_default() += 1;
        }
        counts.into_iter().fold(String::new(), |mut hash, (status, count)| {
            // Writing to a text cannot fail.
            let _ = write!(hash, "{status}_{count}_");
            hash
        })
    }

    /// The instances of `service` that take requests. Names are the same in capitals and without.
    pub fn find(&self, service: &str, by: EurekaName) -> Found {
        let service = service.to_uppercase();
        let mut found = Found::default();
        match by {
            EurekaName::App => {
                for listed in self.all.get(&service).into_iter().flat_map(|application| application.values()) {
                    add(&mut found, listed, |instance| instance);
                }
            }
            EurekaName::Vip => {
                for listed in self.listed().filter(|listed| listed.vips.contains(&service)) {
                    // Ids are unique only within an application.
                    let named =
                        |instance: Instance| Instance { id: format!("{}/{}", listed.app, listed.id), ..instance };
                    add(&mut found, listed, named);
                }
            }
        }
        found
    }

    /// The names of all services.
    pub fn names(&self, by: EurekaName) -> Vec<String> {
        match by {
            EurekaName::App => self.all.keys().cloned().collect(),
            EurekaName::Vip => {
                let names: BTreeSet<_> = self.listed().flat_map(|listed| &listed.vips).cloned().collect();
                names.into_iter().collect()
            }
        }
    }

    fn listed(&self) -> impl Iterator<Item = &Listed> {
        self.all.values().flat_map(|application| application.values())
    }
}

fn add(found: &mut Found, listed: &Listed, named: impl Fn(Instance) -> Instance) {
    match &listed.usage {
        Usage::Use(instance) => found.instances.push(named(Instance::clone(instance))),
        Usage::Leave => {}
        Usage::Unreadable(cause) => found.unreadable.push(format!("{}/{}: {cause}", listed.app, listed.id)),
    }
}
