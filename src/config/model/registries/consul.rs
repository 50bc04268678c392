//! How to reach Consul.

use super::{
    super::{super::human, Secret, Tls},
    Scope,
};
use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{num::NonZeroU32, time::Duration};

/// Consul, through an agent's HTTP API.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ConsulRegistry {
    /// The agent: `http://HOST:PORT` or `https://HOST:PORT`.
    pub address: String,
    /// ACL token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<Secret>,
    /// Datacenter; the agent's own by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dc: Option<String>,
    /// Only instances that carry all of these tags.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// Only instances whose metadata has all of these values.
    #[serde(skip_serializing_if = "IndexMap::is_empty")]
    pub meta: IndexMap<String, String>,
    /// Only instances whose checks all pass. With `false`, those in warning are used too, with their warning weight.
    pub only_passing: bool,
    /// The longest time that one blocking query waits at the agent; at most 10m.
    #[serde(with = "human")]
    #[schemars(with = "human::Text")]
    pub wait: Duration,
    /// At most this many requests per second to the agent, over all services.
    pub max_requests_per_second: NonZeroU32,
    #[serde(skip_serializing_if = "Tls::is_default")]
    pub tls: Tls,
    #[serde(skip_serializing_if = "Scope::is_default")]
    pub scope: Scope,
}

impl Default for ConsulRegistry {
    fn default() -> Self {
        Self {
            address: "http://127.0.0.1:8500".into(),
            token: None,
            dc: None,
            tags: Vec::new(),
            meta: IndexMap::new(),
            only_passing: true,
            // What Consul's own documentation and most frameworks use: under the usual 60 s of middleboxes.
            wait: Duration::from_secs(55),
            max_requests_per_second: NonZeroU32::new(50).expect("not zero"),
            tls: Tls::default(),
            scope: Scope::default(),
        }
    }
}
