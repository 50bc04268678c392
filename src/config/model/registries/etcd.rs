//! How to reach etcd.

use super::{
    super::{Secret, Tls},
    Layout, Scope,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// etcd, version 3.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct EtcdRegistry {
    /// `http://HOST:PORT` or `https://HOST:PORT`, several for one cluster.
    pub endpoints: Vec<String>,
    /// How keys and values are written.
    pub layout: Layout,
    /// The part of the key before the service name. Each layout has its framework's own as default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
    /// Goes with `password`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password: Option<Secret>,
    #[serde(skip_serializing_if = "Tls::is_default")]
    pub tls: Tls,
    #[serde(skip_serializing_if = "Scope::is_default")]
    pub scope: Scope,
}

impl Default for EtcdRegistry {
    fn default() -> Self {
        Self {
            endpoints: vec!["http://127.0.0.1:2379".into()],
            layout: Layout::default(),
            prefix: None,
            user: None,
            password: None,
            tls: Tls::default(),
            scope: Scope::default(),
        }
    }
}
