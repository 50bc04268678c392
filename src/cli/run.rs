//! `pillion run`: the proxy.

use super::{
    ConfigArgs,
    supervise::{Source, Supervisor},
};
use crate::{
    app::{App, ConfigFile},
    net::activation,
    telemetry::log,
};
use clap::Args;
use std::process::ExitCode;

/// Run the proxy.
#[derive(Debug, Args)]
pub struct Run {
    #[command(flatten)]
    config: ConfigArgs,
}

impl Run {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        // Before anything else is opened.
        let activated = activation::take()?;
        // Before it is loaded, so that no change goes unseen in between.
        let file = self.config.file().cloned().map(ConfigFile::new);
        let load = || self.config.load().map(|loaded| loaded.config);
        let config = load()?;
        let log = log::install(&config.log).map_err(anyhow::Error::msg)?;
        let control = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        control.block_on(async {
            let mut supervisor = Supervisor::new()?;
            // A new pillion may wait for registries before it takes over.
            let app = tokio::select! {
                app = App::start_on(config, log, activated) => app?,
                name = supervisor.ended() => {
                    tracing::info!("stopped by {name} before it was up");
                    return Ok(ExitCode::SUCCESS);
                }
            };
            Ok(supervisor.supervise(app, Source { load: &load, file }).await)
        })
    }
}
