//! A registry's own store, and whether it answers.

use crate::discovery::StoreStatus;
use serde::{Deserialize, Serialize};

/// A registry's own store.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Store {
    pub registry: String,
    pub path: String,
    pub state: StoreState,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
    /// Since it last confirmed what it said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub age_seconds: Option<f64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StoreState {
    /// It has not answered yet.
    Waiting,
    Answering,
    /// It fails now. What it said last counts.
    Failing,
}

impl From<StoreStatus> for Store {
    fn from(StoreStatus { place, answered, failure, age }: StoreStatus) -> Self {
        let state = match (&failure, answered) {
            (Some(_), _) => StoreState::Failing,
            (None, true) => StoreState::Answering,
            (None, false) => StoreState::Waiting,
        };
        let age_seconds = age.map(|age| age.as_secs_f64());
        Self { registry: place.registry, path: place.path, state, failure, age_seconds }
    }
}
