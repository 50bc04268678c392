//! Where routes come from, besides this file, and what a fleet has in common of its rollouts.

use super::{Labels, Rollout, Route, VersionOverride, WhenEmpty};
use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Where routes come from, besides this file, and where rollouts keep their state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(deny_unknown_fields, default)]
pub struct Routing {
    /// A registry's own key-value store. Without it there are only the routes in this file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub store: Option<RouteStore>,
    /// Where rollouts keep the state that all pillions follow. By default in the registry of `store`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rollouts: Option<RolloutStore>,
}

/// Routes in a registry's own key-value store, one key per service. What is there goes before what this file says: the keys
/// `subsets`, `when_empty`, `version_override`, `routes` and `rollout` of that service, as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RouteStore {
    /// One of `registries`, of a kind that has a store: consul, embedded, etcd, file, kubernetes, nacos or zookeeper.
    pub registry: String,
    /// What the keys begin with: `pillion/routes` for the keys `pillion/routes/SERVICE`.
    #[serde(default = "RouteStore::default_path")]
    pub path: String,
}

/// The state of rollouts in a registry's own key-value store, one key per service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RolloutStore {
    /// One of `registries`, of a kind that has a store: consul, embedded, etcd, file, kubernetes, nacos or zookeeper.
    pub registry: String,
    /// What the keys begin with: `pillion/rollouts` for the keys `pillion/rollouts/SERVICE`. Locks are at
    /// `pillion/rollouts-locks/SERVICE`.
    #[serde(default = "RolloutStore::default_path")]
    pub path: String,
}

/// What is under a service's key in the store. Each key means what it means in `services`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub struct StoredRoutes {
    pub subsets: IndexMap<String, Labels>,
    pub when_empty: IndexMap<String, WhenEmpty>,
    pub version_override: VersionOverride,
    pub routes: Vec<Route>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rollout: Option<Rollout>,
}

impl Routing {
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Where rollouts keep their state: said, or as it is where nothing is said.
    pub fn rollout_store(&self) -> Option<RolloutStore> {
        let beside =
            |store: &RouteStore| RolloutStore { registry: store.registry.clone(), path: RolloutStore::default_path() };
        self.rollouts.clone().or_else(|| self.store.as_ref().map(beside))
    }
}

impl RolloutStore {
    fn default_path() -> String {
        "pillion/rollouts".into()
    }
}

impl RouteStore {
    fn default_path() -> String {
        "pillion/routes".into()
    }
}
