//! DNS: one name per service, with SRV records or addresses.
//!
//! The messages are read by code of our own: five types of records are needed, and the usual crate for all of them brings
//! the tables of international domain names with it, forty crates in all.

pub mod answer;
mod exchange;
#[cfg(fuzzing)]
pub mod fuzzing;
pub mod message;
mod resolver;
pub mod servers;
mod watch;

use super::{Registry, RegistryError, SetupError, Sink, watch::follow};
use crate::config::DnsRegistry;
use futures_util::future::BoxFuture;
use resolver::Resolver;
use servers::Servers;
use std::{path::Path, sync::Arc, time::Duration};
use watch::Lookups;

/// Where systems list their servers.
const SYSTEM: &str = "/etc/resolv.conf";

/// DNS servers that know the same names.
pub struct Dns {
    name: String,
    config: DnsRegistry,
    resolver: Resolver,
}

impl Dns {
    /// A client for the servers in `config`, known as `name`. Does not ask them yet.
    ///
    /// Fails if a server is no address, or the system has to say them and does not.
    pub fn new(name: &str, config: &DnsRegistry) -> Result<Self, SetupError> {
        let address = |text: &String| {
            let bad = || SetupError::Address { text: text.clone(), expected: "`IP` or `IP:PORT`" };
            DnsRegistry::server(text).ok_or_else(bad)
        };
        let servers = match &config.servers[..] {
            [] => Servers::of_file(Path::new(SYSTEM)).ok_or(SetupError::NoServers { file: SYSTEM })?,
            servers => Servers::fixed(servers.iter().map(address).collect::<Result<_, _>>()?),
        };
        Ok(Self { name: name.into(), config: config.clone(), resolver: Resolver::new(servers, config.timeout) })
    }
}

impl Registry for Dns {
    fn name(&self) -> &str {
        &self.name
    }

    fn kind(&self) -> &'static str {
        "dns"
    }

    fn follow(self: Arc<Self>, service: String, sink: Sink) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            let lookups = Lookups::new(self.clone(), &service);
            follow(&self.name, &service, sink, lookups).await;
        })
    }

    fn list(self: Arc<Self>) -> BoxFuture<'static, Result<Vec<String>, RegistryError>> {
        let cause = "DNS has no list of services; only those that are named can be followed";
        Box::pin(async move { Err(RegistryError::Impossible { cause: cause.into() }) })
    }

    fn silence_limit(&self) -> Duration {
        // Answers hold for so long at most. Then each try ends, but many may wait for their turn while no server answers.
        self.config.max_ttl + Duration::from_secs(180)
    }
}
