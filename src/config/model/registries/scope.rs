//! What of a registry is looked at.

use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What of a registry is looked at, and under which names.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Scope {
    /// Stands before services' names in this registry.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub prefix: String,
    /// Stands behind them.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub suffix: String,
    /// Services that are called otherwise in this registry: the name that callers use, and the whole name there.
    #[serde(skip_serializing_if = "IndexMap::is_empty")]
    pub names: IndexMap<String, String>,
    /// Only instances with all of these labels: metadata, and `tag.NAME: "true"` for tags.
    #[serde(skip_serializing_if = "IndexMap::is_empty")]
    pub labels: IndexMap<String, String>,
    /// Only instances whose label of this name is what `node.env` says; one without the label is of no environment.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub env_label: Option<String>,
}

impl Scope {
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}
