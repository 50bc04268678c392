//! `pillion demo`: a first look.

use crate::{config::human, demo};
use anyhow::Context;
use clap::Args;
use std::{net::SocketAddr, time::Duration};
use tokio::signal::unix::{SignalKind, signal};

/// Show what pillion does: a registry, three services, the proxy and some traffic, in one process.
#[derive(Debug, Args)]
pub struct Demo {
    /// Where the proxy listens. Port 0 takes any free one, here and below.
    #[arg(long, value_name = "IP:PORT", default_value_t = demo::Options::default().listen)]
    listen: SocketAddr,
    /// Where the admin interface listens.
    #[arg(long, value_name = "IP:PORT", default_value_t = demo::Options::default().admin)]
    admin: SocketAddr,
    /// Where the embedded registry listens.
    #[arg(long, value_name = "IP:PORT", default_value_t = demo::Options::default().registry)]
    registry_listen: SocketAddr,
    /// Stop after this time, e.g. 10s. Without it, Ctrl-C stops.
    #[arg(long = "for", value_name = "TIME", value_parser = human::parse)]
    run_for: Option<Duration>,
    /// An instance leaves or dies, and returns, once in this time.
    #[arg(long, value_name = "TIME", value_parser = human::parse, default_value = "5s")]
    churn: Duration,
}

impl Demo {
    pub fn run(self) -> anyhow::Result<()> {
        let options = demo::Options {
            listen: self.listen,
            admin: self.admin,
            registry: self.registry_listen,
            run_for: self.run_for,
            churn: self.churn,
            program: std::env::args_os()
                .next()
                .map_or("pillion".into(), |program| program.to_string_lossy().into_owned()),
        };
        let control = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        control.block_on(async {
            let on = |kind| signal(kind).context("cannot listen for signals");
            let (mut interrupt, mut terminate) = (on(SignalKind::interrupt())?, on(SignalKind::terminate())?);
            let stop = async {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
            };
            demo::run(options, stop).await
        })
    }
}
