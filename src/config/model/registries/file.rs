//! Instances in a file.

use super::Scope;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Instances listed in a YAML or JSON file, which is watched.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FileRegistry {
    /// Relative paths are relative to the config file's folder, here and everywhere in it.
    pub path: PathBuf,
    #[serde(default, skip_serializing_if = "Scope::is_default")]
    pub scope: Scope,
}
