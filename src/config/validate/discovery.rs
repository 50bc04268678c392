//! Where services are looked for.

use super::{Check, Spot};
use crate::config::{
    Discovery, Guard, Scope, Source,
    error::{did_you_mean, one_of, shorten},
    tree::Node,
};
use std::{collections::HashSet, time::Duration};

impl<'t> Check<'_, 't> {
    pub(super) fn discovery(&mut self, spot: &Spot<'t>, discovery: &Discovery) {
        self.sources(&spot.key("sources"), &discovery.sources);
        let failover = spot.key("failover");
        self.at_most(&failover.key("after"), discovery.failover.after);
        self.at_most(&failover.key("hold"), discovery.failover.hold);
        self.at_most(&spot.key("first_answer"), discovery.first_answer);
        self.positive(&spot.key("idle"), discovery.idle);
        self.at_most(&spot.key("coalesce"), discovery.coalesce);
        self.range(&spot.key("max_services"), discovery.max_services, 1, 1_000_000);
        if let Some(snapshot) = &discovery.snapshot {
            let spot = spot.key("snapshot");
            self.path(&spot.key("dir"), Some(&snapshot.dir));
            self.at_least(&spot.key("max_age"), snapshot.max_age, Duration::from_secs(60));
            self.range(&spot.key("max_services"), snapshot.max_services, 1, 100_000);
        }
    }

    pub(super) fn sources(&mut self, spot: &Spot<'t>, sources: &[Source]) {
        let mut seen = HashSet::new();
        for (index, source) in sources.iter().enumerate() {
            let spot = spot.live_item(index);
            let (spot, names) = match source {
                Source::Registry(name) => {
                    self.source(&spot, name, &mut seen);
                    continue;
                }
                // Its key is unknown, which was told already.
                Source::Merge(names) if names.is_empty() && !has_key(&spot, "merge") && has_keys(&spot) => continue,
                Source::Merge(names) => (spot.key("merge"), names),
                Source::Nearest(names) => (spot.key("nearest"), names),
            };
            if names.len() < 2 {
                self.fail(&spot, "expected at least two registries; one alone stands in the list by its name");
            }
            for (index, name) in names.iter().enumerate() {
                self.source(&spot.live_item(index), name, &mut seen);
            }
        }
    }

    pub(super) fn source<'n>(&mut self, spot: &Spot<'t>, name: &'n str, seen: &mut HashSet<&'n str>) {
        let known: Vec<_> =
            self.registries.node.map_or(&[][..], Node::entries).iter().map(|e| e.key.as_str()).collect();
        if !seen.insert(name) {
            self.fail(spot, format!("`{}` is there twice", shorten(name)));
        }
        if self.registries.dead || known.contains(&name) {
            return;
        }
        let expected = match known[..] {
            [] => "`registries` has none".into(),
            _ => format!("expected {}", one_of(known.iter().copied())),
        };
        let near = did_you_mean(name, known.iter().copied());
        self.fail(spot, format!("no registry is named `{}`; {expected}{near}", shorten(name)));
    }

    /// What of a registry is looked at. `has_env`: there is a `node.env`.
    pub(super) fn scope(&mut self, spot: &Spot<'t>, scope: &Scope, has_env: bool) {
        for (key, part) in [("prefix", &scope.prefix), ("suffix", &scope.suffix)] {
            if part.len() > 100 || part.chars().any(|c| c.is_control() || c.is_whitespace()) {
                self.fail(&spot.key(key), "expected at most 100 bytes without spaces");
            }
        }
        let names = spot.key("names");
        for (service, name) in &scope.names {
            self.service_name(&names.key(service), name);
        }
        if scope.env_label.as_deref() == Some("") {
            self.fail(&spot.key("env_label"), "found an empty text; expected a label's name");
        } else if scope.env_label.is_some() && !has_env {
            self.fail(&spot.key("env_label"), "it is compared with `node.env`, which is not set");
        }
    }

    pub(super) fn guard(&mut self, spot: &Spot<'t>, guard: &Guard) {
        self.range(&spot.key("lost"), guard.lost, 1, 100);
        self.at_least(&spot.key("grace"), guard.grace, Duration::from_secs(1));
        self.at_least(&spot.key("longest"), guard.longest, guard.grace);
    }
}

fn has_key(spot: &Spot<'_>, key: &str) -> bool {
    spot.node.is_some_and(|node| node.get(key).is_some())
}

fn has_keys(spot: &Spot<'_>) -> bool {
    spot.node.is_some_and(|node| !node.entries().is_empty())
}
