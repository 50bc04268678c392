//! `pillion run`: the proxy.

use super::ConfigArgs;
use crate::{
    app::{App, ConfigFile},
    telemetry::log,
};
use anyhow::Context;
use clap::Args;
use std::{future::pending, net::SocketAddr, time::Duration};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// How long requests in progress may take to end after SIGTERM.
const DRAIN: Duration = Duration::from_secs(30);

/// Run the proxy.
#[derive(Debug, Args)]
pub struct Run {
    #[command(flatten)]
    config: ConfigArgs,
}

impl Run {
    pub fn run(self) -> anyhow::Result<()> {
        // Before it is loaded, so that no change goes unseen in between.
        let file = self.config.file().cloned().map(ConfigFile::new);
        let config = self.config.load()?.config;
        let log = log::install(&config.log).map_err(anyhow::Error::msg)?;
        let control = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        control.block_on(async {
            let mut signals = Signals::new()?;
            let app = App::start(config, log).await?;
            say_changes(&[], &app.listeners());
            tracing::info!(address = %app.admin(), version = env!("CARGO_PKG_VERSION"), "pillion is up; this is its admin interface");
            self.supervise(app, file, &mut signals).await;
            Ok(())
        })
    }

    /// Until a signal ends it.
    async fn supervise(&self, mut app: App, mut file: Option<ConfigFile>, signals: &mut Signals) {
        loop {
            let changed = async {
                match &mut file {
                    Some(file) => file.changed().await,
                    None => pending().await,
                }
            };
            tokio::select! {
                () = changed => self.reload(&mut app, "the config file changed").await,
                signal = signals.next() => match signal {
                    Asked::Reload => {
                        app.reopen_logs();
                        if let Some(file) = &mut file {
                            file.seen();
                        }
                        self.reload(&mut app, "SIGHUP").await;
                    }
                    Asked::End => break,
                }
            }
        }
        tracing::info!("stopping: requests in progress may end; a second signal cuts them off");
        tokio::select! {
            () = app.stop(DRAIN) => tracing::info!("stopped"),
            () = signals.ended() => tracing::warn!("stopped at once"),
        }
    }

    async fn reload(&self, app: &mut App, why: &str) {
        match self.config.load() {
            Err(errors) => {
                app.telemetry().metrics.reloads.failed.inc();
                tracing::error!("{why}, but the new config is bad and the old one stays in force:\n{errors}");
            }
            Ok(loaded) => {
                let before = app.listeners();
                match app.reload(loaded.config).await {
                    Ok(()) => {
                        say_changes(&before, &app.listeners());
                        tracing::info!("{why}; the new config is in force");
                    }
                    Err(error) => {
                        tracing::error!(
                            "{why}, but the new config cannot be used and the old one stays in force: {error:#}"
                        );
                    }
                }
            }
        }
    }
}

/// Says which listeners came and went. They have a name and an address each.
fn say_changes(before: &[(String, SocketAddr)], now: &[(String, SocketAddr)]) {
    for (name, address) in before.iter().filter(|listener| !now.contains(listener)) {
        tracing::info!(listener = name, %address, "no longer listening");
    }
    for (name, address) in now.iter().filter(|listener| !before.contains(listener)) {
        tracing::info!(listener = name, %address, "listening");
    }
}

/// What a signal asks for.
enum Asked {
    Reload,
    End,
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> anyhow::Result<Self> {
        let on = |kind| signal(kind).context("cannot listen for signals");
        Ok(Self {
            terminate: on(SignalKind::terminate())?,
            interrupt: on(SignalKind::interrupt())?,
            hangup: on(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Asked {
        tokio::select! {
            _ = self.hangup.recv() => Asked::Reload,
            _ = self.terminate.recv() => Asked::End,
            _ = self.interrupt.recv() => Asked::End,
        }
    }

    /// Returns at SIGTERM or SIGINT.
    async fn ended(&mut self) {
        while let Asked::Reload = self.next().await {}
    }
}
