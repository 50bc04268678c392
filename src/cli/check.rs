//! `pillion check`: is this config good?

use super::ConfigArgs;
use crate::config;
use clap::Args;

/// Check a config and report everything that is wrong with it, each with its place.
#[derive(Debug, Args)]
pub struct Check {
    #[command(flatten)]
    config: ConfigArgs,
    /// Print the config that is in force, with all defaults.
    #[arg(long)]
    print: bool,
}

impl Check {
    pub fn run(self) -> anyhow::Result<()> {
        let loaded = self.config.load()?;
        super::say(&if self.print { config::print(&loaded.config) } else { "the config is good\n".into() })
    }
}
