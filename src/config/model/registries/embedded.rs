//! The registry inside this process.

use super::{
    super::{super::human, localhost},
    Scope,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{net::SocketAddr, path::PathBuf, time::Duration};

/// A registry inside this process, for a first look, development, and one machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct EmbeddedRegistry {
    /// Where its HTTP API listens.
    pub listen: SocketAddr,
    /// Keeps the instances and the key-value store in this file, so that they survive a restart.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub persist: Option<PathBuf>,
    /// How long an instance lives without a renewal when it names no `ttl` itself.
    #[serde(with = "human")]
    #[schemars(with = "human::Text")]
    pub ttl: Duration,
    #[serde(skip_serializing_if = "Scope::is_default")]
    pub scope: Scope,
}

impl Default for EmbeddedRegistry {
    fn default() -> Self {
        Self { listen: localhost(4192), persist: None, ttl: Duration::from_secs(30), scope: Scope::default() }
    }
}
