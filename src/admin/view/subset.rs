//! A service's subsets.

use crate::cluster::{Snapshot, subset::Subset};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A part of a service's endpoints.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SubsetDetail {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    /// Endpoints that its registry lets take requests.
    pub endpoints: usize,
    /// Those of them that can take requests now.
    pub available: usize,
    /// What becomes of its requests while that is 0: `fail`, `service` or another subset.
    pub when_empty: String,
    /// Requests that went to it, and those of them that failed.
    pub requests: u64,
    pub failures: u64,
    /// Requests that were for it and went elsewhere, because it was empty.
    pub fallbacks: u64,
}

impl SubsetDetail {
    pub fn all(snapshot: &Snapshot) -> Vec<Self> {
        let one = |subset: &Subset| {
            let (requests, failures) = subset.metrics.red.totals();
            Self {
                name: subset.name.to_string(),
                labels: subset.labels().iter().map(|(name, value)| (name.clone(), value.clone())).collect(),
                endpoints: subset.selectors.usable(),
                available: subset.available(),
                when_empty: subset.when_empty(&snapshot.subsets).into(),
                requests,
                failures,
                fallbacks: subset.metrics.fallbacks.get(),
            }
        };
        snapshot.subsets.iter().map(one).collect()
    }
}
