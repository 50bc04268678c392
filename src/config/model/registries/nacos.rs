//! How to reach Nacos.

use super::{
    super::{super::human, Secret, Tls},
    Scope,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Nacos, versions 2 and 3 (and 1 over HTTP).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct NacosRegistry {
    /// `http://HOST:PORT` or `https://HOST:PORT`, several for one cluster. The port is the main one, usually 8848.
    pub servers: Vec<String>,
    /// What the paths of the HTTP API begin with.
    pub context: String,
    /// The id of the namespace.
    pub namespace: String,
    /// The group of services that do not name theirs, as `GROUP@@SERVICE` does.
    pub group: String,
    /// Only instances of these clusters; of all if empty.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub clusters: Vec<String>,
    /// How services are followed.
    pub transport: NacosTransport,
    /// Where gRPC is, if not at the main port and 1000.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grpc_port: Option<u16>,
    /// Whether gRPC is behind TLS; by default if the address is `https`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grpc_tls: Option<bool>,
    /// How often each service is asked for over HTTP, and a store for keys that are new.
    #[serde(with = "human")]
    #[schemars(with = "human::Text")]
    pub poll: Duration,
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

/// How a Nacos server is talked to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "lowercase")]
pub enum NacosTransport {
    /// gRPC, and HTTP as long as its port cannot be reached.
    #[default]
    Auto,
    /// Only gRPC, on which the server pushes changes.
    Grpc,
    /// Only HTTP, by polling.
    Http,
}

impl Default for NacosRegistry {
    fn default() -> Self {
        Self {
            servers: vec!["http://127.0.0.1:8848".into()],
            context: "/nacos".into(),
            namespace: "public".into(),
            group: "DEFAULT_GROUP".into(),
            clusters: Vec::new(),
            transport: NacosTransport::default(),
            grpc_port: None,
            grpc_tls: None,
            // Half of what Nacos' own clients are told.
            poll: Duration::from_secs(5),
            user: None,
            password: None,
            tls: Tls::default(),
            scope: Scope::default(),
        }
    }
}
