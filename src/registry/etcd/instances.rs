//! The instances of one service, as its keys say them.

use super::{Etcd, follow::Content, proto::KeyValue};
use crate::registry::{Instance, watch::Found};
use std::{collections::BTreeMap, sync::Arc};

/// What is known of one service.
pub struct Instances {
    etcd: Arc<Etcd>,
    service: String,
    /// What the service's keys begin with.
    prefix: String,
    /// What each key (without the prefix) says. Kept over reconnects for keys whose new value cannot be read.
    found: BTreeMap<String, Vec<Instance>>,
    /// What is wrong with the values that cannot be read, by key.
    unreadable: BTreeMap<String, String>,
}

impl Instances {
    pub fn new(etcd: Arc<Etcd>, service: &str) -> Self {
        Self {
            prefix: etcd.keys.of_service(service),
            service: service.into(),
            found: BTreeMap::new(),
            unreadable: BTreeMap::new(),
            etcd,
        }
    }

    /// What a key's value says, or what is wrong with it.
    fn decode(&self, suffix: &str, kv: &KeyValue) -> Result<Vec<Instance>, String> {
        let decoded = self.etcd.keys.decode(&self.service, suffix, &kv.value);
        decoded.map_err(|error| format!("{}: {error}", String::from_utf8_lossy(&kv.key)))
    }

    /// A key without the prefix.
    fn suffix(&self, key: &[u8]) -> Option<String> {
        std::str::from_utf8(key).ok()?.strip_prefix(&self.prefix).map(ToOwned::to_owned)
    }
}

impl Content for Instances {
    type Set = Found;

    fn replace(&mut self, all: Vec<KeyValue>) {
        let (mut fresh, mut unreadable) = (BTreeMap::new(), BTreeMap::new());
        for kv in all {
            let Some(suffix) = self.suffix(&kv.key) else { continue };
            let instances = match self.decode(&suffix, &kv) {
                Ok(instances) => instances,
                Err(complaint) => {
                    unreadable.insert(suffix.clone(), complaint);
                    self.found.get(&suffix).cloned().unwrap_or_default()
                }
            };
            fresh.insert(suffix, instances);
        }
        (self.found, self.unreadable) = (fresh, unreadable);
    }

    fn put(&mut self, kv: KeyValue) -> bool {
        let Some(suffix) = self.suffix(&kv.key) else { return false };
        match self.decode(&suffix, &kv) {
            Ok(instances) => {
                let was_unreadable = self.unreadable.remove(&suffix).is_some();
                was_unreadable | (self.found.insert(suffix, instances.clone()) != Some(instances))
            }
            Err(complaint) => {
                self.unreadable.insert(suffix, complaint);
                true
            }
        }
    }

    fn delete(&mut self, key: &[u8]) -> bool {
        let Some(suffix) = self.suffix(key) else { return false };
        self.unreadable.remove(&suffix);
        self.found.remove(&suffix).is_some_and(|instances| !instances.is_empty())
    }

    fn current(&self) -> Found {
        Found {
            instances: self.found.values().flatten().cloned().collect(),
            unreadable: self.unreadable.values().cloned().collect(),
        }
    }
}
