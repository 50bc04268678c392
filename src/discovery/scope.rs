//! What of a registry counts: the names that services have there, and the instances that are meant.

use crate::{
    config::{self, Config},
    registry::Instance,
};
use std::{collections::HashMap, sync::Arc};

/// One registry's scope, worked out.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Scope {
    prefix: String,
    suffix: String,
    /// By the name that callers use.
    names: HashMap<String, String>,
    labels: Vec<(String, String)>,
}

impl Scope {
    /// That of the registry `name`; of one that the config does not have, everything counts.
    pub fn of(config: &Config, name: &str) -> Self {
        let Some(config::Scope { prefix, suffix, names, labels, env_label }) =
            config.registries.get(name).map(config::Registry::scope)
        else {
            return Self::default();
        };
        let env = env_label.as_ref().zip(config.node.env.as_ref());
        let labels = labels.iter().chain(env).map(|(label, value)| (label.clone(), value.clone()));
        Self {
            prefix: prefix.clone(),
            suffix: suffix.clone(),
            names: names.iter().map(|(service, name)| (service.clone(), name.clone())).collect(),
            labels: labels.collect(),
        }
    }

    /// What `service` is called in this registry. `registered_as`: where registries have another name for it.
    pub fn name_of(&self, service: &str, registered_as: &str) -> String {
        match self.names.get(service) {
            Some(name) => name.clone(),
            None => format!("{}{registered_as}{}", self.prefix, self.suffix),
        }
    }

    /// Under which name callers know what is called `name` there; `None` if they cannot ask for it.
    pub fn service_of<'n>(&'n self, name: &'n str) -> Option<&'n str> {
        if let Some((service, _)) = self.names.iter().find(|(_, there)| *there == name) {
            return Some(service);
        }
        let service = name.strip_prefix(self.prefix.as_str())?.strip_suffix(self.suffix.as_str())?;
        (!service.is_empty() && !self.names.contains_key(service)).then_some(service)
    }

    pub fn counts(&self, instance: &Instance) -> bool {
        self.labels.iter().all(|(label, value)| instance.labels.get(label) == Some(value))
    }

    /// Those of `instances` that count.
    pub fn filter(&self, instances: &Arc<[Instance]>) -> Arc<[Instance]> {
        let counts = |instance: &&Instance| self.counts(instance);
        if instances.iter().all(|instance| counts(&instance)) {
            return instances.clone();
        }
        instances.iter().filter(counts).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scope(yaml: &str) -> Scope {
        let text =
            format!("node: {{ env: prod }}\nregistries:\n  main: {{ kind: file, path: x, scope: {{ {yaml} }} }}\n");
        let loaded = config::load(config::Origin::text("f", text), &|_| None).unwrap();
        Scope::of(&loaded.config, "main")
    }

    #[test]
    fn names_there_and_back() {
        let scope = scope("prefix: team-, suffix: .v1, names: { users: people, old: team-new.v1 }");
        for (service, name) in [("orders", "team-orders.v1"), ("users", "people"), ("old", "team-new.v1")] {
            assert_eq!(scope.name_of(service, service), name);
            assert_eq!(scope.service_of(name), Some(service));
        }
        assert_eq!(scope.name_of("orders", "orders-2"), "team-orders-2.v1");
        // `users` is asked for as `people`, so what is called like this is out of reach.
        for unreachable in ["orders", "team-.v1", "team-users.v1"] {
            assert_eq!(scope.service_of(unreachable), None, "{unreachable}");
        }
        assert_eq!(Scope::default().service_of("orders"), Some("orders"));
    }

    #[test]
    fn only_instances_with_all_labels_and_of_this_environment() {
        let scope = scope("labels: { tier: gold }, env_label: stage");
        let instance = |id: &str, labels: &[(&str, &str)]| Instance {
            labels: labels.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect(),
            ..Instance::new(id, "10.0.0.1:80".parse().unwrap())
        };
        let all: Arc<[Instance]> = [
            instance("both", &[("tier", "gold"), ("stage", "prod"), ("more", "x")]),
            instance("dev", &[("tier", "gold"), ("stage", "dev")]),
            instance("without", &[("tier", "gold")]),
        ]
        .into();
        let ids: Vec<_> = scope.filter(&all).iter().map(|instance| instance.id.clone()).collect();
        assert_eq!(ids, ["both"]);
        assert!(Arc::ptr_eq(&Scope::default().filter(&all), &all), "nothing is copied where everything counts");
    }
}
