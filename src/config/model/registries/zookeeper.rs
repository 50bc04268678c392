//! How to reach ZooKeeper.

use super::{
    super::{super::human, Secret, Tls},
    Layout, Scope,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// ZooKeeper, version 3.4 and later.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ZookeeperRegistry {
    /// `HOST:PORT`, or `tls://HOST:PORT` for a secure client port; several for one ensemble.
    pub endpoints: Vec<String>,
    /// The node that all others are below, as at the end of ZooKeeper's own connect strings.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chroot: Option<String>,
    /// How nodes are named and written.
    pub layout: Layout,
    /// The path before the service name. Each layout has its framework's own as default; `go-micro` has
    /// `/micro-registry` here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
    /// For the scheme `digest`; goes with `password`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password: Option<Secret>,
    /// How long a session lives without a connection; servers have limits of their own, by default 4s and 40s. A
    /// connection that fell silent is noticed after two thirds of it.
    #[serde(with = "human")]
    #[schemars(with = "human::Text")]
    pub session_timeout: Duration,
    #[serde(skip_serializing_if = "Tls::is_default")]
    pub tls: Tls,
    #[serde(skip_serializing_if = "Scope::is_default")]
    pub scope: Scope,
}

impl Default for ZookeeperRegistry {
    fn default() -> Self {
        Self {
            endpoints: vec!["127.0.0.1:2181".into()],
            chroot: None,
            layout: Layout::default(),
            prefix: None,
            user: None,
            password: None,
            session_timeout: Duration::from_secs(15),
            tls: Tls::default(),
            scope: Scope::default(),
        }
    }
}
