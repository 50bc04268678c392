//! How to reach a control plane that speaks xDS.

use super::{
    super::{super::human, Secret, Tls},
    Scope,
};
use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// A control plane for Envoy or gRPC: xDS version 3, aggregated (ADS). A service is a cluster of its.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct XdsRegistry {
    /// `http://HOST:PORT` or `https://HOST:PORT`, several for one control plane.
    pub servers: Vec<String>,
    /// Which variant of the protocol.
    pub protocol: XdsProtocol,
    /// How a service's endpoints are found.
    pub discover: XdsDiscover,
    /// Who pillion says it is. Control planes may give each node something else.
    #[serde(skip_serializing_if = "XdsNode::is_default")]
    pub node: XdsNode,
    /// Sent as `authorization: Bearer TOKEN`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<Secret>,
    /// Further headers of the stream.
    #[serde(skip_serializing_if = "IndexMap::is_empty")]
    pub metadata: IndexMap<String, Secret>,
    /// A server that has nothing to say is asked so often whether it is still there.
    #[serde(with = "human")]
    #[schemars(with = "human::Text")]
    pub keepalive: Duration,
    #[serde(skip_serializing_if = "Tls::is_default")]
    pub tls: Tls,
    #[serde(skip_serializing_if = "Scope::is_default")]
    pub scope: Scope,
}

/// A variant of the xDS protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "kebab-case")]
pub enum XdsProtocol {
    /// Incremental if the server knows it, or else state of the world.
    #[default]
    Auto,
    /// Incremental: only what changes is sent.
    Delta,
    /// State of the world: all clusters are sent at each change of one.
    Sotw,
}

/// What a control plane is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "kebab-case")]
pub enum XdsDiscover {
    /// All clusters (CDS), as Envoy does, and the endpoints (EDS) of those that are called.
    #[default]
    Cds,
    /// Only the endpoints (EDS), by the service's name: for servers without clusters, or with very many.
    Eds,
}

/// A node as xDS has it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct XdsNode {
    /// The host's name by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// What nodes of one kind have in common; nothing to do with the clusters that are asked for.
    pub cluster: String,
    /// Of the node's locality.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// Of the node's locality.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// Of the node's locality.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sub_zone: Option<String>,
    /// What else the control plane is told of the node.
    #[serde(skip_serializing_if = "IndexMap::is_empty")]
    pub metadata: IndexMap<String, String>,
}

impl XdsNode {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl Default for XdsRegistry {
    fn default() -> Self {
        Self {
            servers: vec!["http://127.0.0.1:18000".into()],
            protocol: XdsProtocol::default(),
            discover: XdsDiscover::default(),
            node: XdsNode::default(),
            token: None,
            metadata: IndexMap::new(),
            keepalive: Duration::from_secs(30),
            tls: Tls::default(),
            scope: Scope::default(),
        }
    }
}

impl Default for XdsNode {
    fn default() -> Self {
        Self {
            id: None,
            cluster: "pillion".into(),
            region: None,
            zone: None,
            sub_zone: None,
            metadata: IndexMap::new(),
        }
    }
}
