//! `pillion schema`: the shape of the config for editors.

use crate::config;
use clap::Args;

/// Print the JSON Schema of the config file.
#[derive(Debug, Args)]
pub struct Schema {}

impl Schema {
    pub fn run(self) -> anyhow::Result<()> {
        super::say(config::SCHEMA)
    }
}
