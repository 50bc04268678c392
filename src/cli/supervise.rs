//! A running pillion until its end: signals, changes of the config file, and who asks for the end.

use super::EXIT_FAILED;
use crate::{
    app::{App, ConfigFile},
    config::{Config, Errors},
    drain::End,
};
use anyhow::Context;
use std::{future::pending, net::SocketAddr, process::ExitCode};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// What the config is loaded from, again and again.
pub struct Source<'s> {
    pub load: &'s dyn Fn() -> Result<Config, Errors>,
    /// Whose changes are noticed.
    pub file: Option<ConfigFile>,
}

pub struct Supervisor {
    signals: Signals,
}

impl Supervisor {
    /// From here on, signals are kept for [`Self::supervise`].
    pub fn new() -> anyhow::Result<Self> {
        Ok(Self { signals: Signals::new()? })
    }

    /// Returns at a signal to end, with its name.
    pub async fn ended(&mut self) -> &'static str {
        self.signals.second(true).await
    }

    /// Until it has ended because of a signal, of a request to the admin interface, or because another pillion took its
    /// place.
    pub async fn supervise(&mut self, mut app: App, mut source: Source<'_>) -> ExitCode {
        say_changes(&[], &app.listeners());
        tracing::info!(address = %app.admin(), version = env!("CARGO_PKG_VERSION"), "pillion is up; this is its admin interface");
        let drain = app.drain().clone();
        let mut by_signal = false;
        let successor = loop {
            // During an upgrade it would be refused; should that fail, the change is noticed then.
            let is_upgrading = app.is_upgrading();
            let changed = async {
                match &mut source.file {
                    Some(file) if !is_upgrading => file.changed().await,
                    _ => pending().await,
                }
            };
            tokio::select! {
                // A signal that comes after a request to drain is not the one that began the end.
                biased;
                _ = drain.asked(End::Drain) => break None,
                successor = app.successor() => if let Some(successor) = successor {
                    break Some(successor);
                },
                signal = self.signals.next() => match signal {
                    Asked::Reload => {
                        app.reopen_logs();
                        if let Some(file) = &mut source.file
                            && !is_upgrading
                        {
                            file.seen();
                        }
                        reload(&mut app, &source, "SIGHUP").await;
                    }
                    Asked::End(name) => {
                        app.ask_to_end(name);
                        by_signal = true;
                        break None;
                    }
                },
                () = changed => reload(&mut app, &source, "the config file changed").await,
            }
        };
        let telemetry = app.telemetry().clone();
        let ending = async {
            match successor {
                Some(successor) => app.hand_over(successor).await,
                None => app.end().await,
            }
        };
        tokio::select! {
            () = ending => ExitCode::SUCCESS,
            name = self.signals.second(by_signal) => {
                let requests = telemetry.metrics.traffic().in_flight;
                tracing::error!(requests, "stopped at once by another {name}; requests in progress are cut off");
                ExitCode::from(EXIT_FAILED)
            }
        }
    }
}

async fn reload(app: &mut App, source: &Source<'_>, why: &str) {
    app.reload_begins();
    let worked = try_reload(app, source, why).await;
    app.reload_ended(worked);
}

async fn try_reload(app: &mut App, source: &Source<'_>, why: &str) -> bool {
    let config = match (source.load)() {
        Ok(config) => config,
        Err(errors) => {
            app.telemetry().metrics.reloads.failed.inc();
            tracing::error!("{why}, but the new config is bad and the old one stays in force:\n{errors}");
            return false;
        }
    };
    let before = app.listeners();
    match app.reload(config).await {
        Ok(()) => {
            say_changes(&before, &app.listeners());
            tracing::info!("{why}; the new config is in force");
        }
        Err(error) => {
            tracing::error!("{why}, but the new config cannot be used and the old one stays in force: {error:#}");
            return false;
        }
    }
    true
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
    /// With its name.
    End(&'static str),
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
            _ = self.terminate.recv() => Asked::End("SIGTERM"),
            _ = self.interrupt.recv() => Asked::End("SIGINT"),
        }
    }

    /// Returns at the second signal to end; the first of them may have come already. Where the admin interface was asked,
    /// the first one changes nothing: Kubernetes sends it when a hook that did so is over.
    async fn second(&mut self, mut first: bool) -> &'static str {
        loop {
            match self.next().await {
                Asked::End(name) if first => return name,
                Asked::End(name) => {
                    tracing::info!("{name}: pillion is stopping already; another one cuts requests off");
                    first = true;
                }
                Asked::Reload => {}
            }
        }
    }
}
