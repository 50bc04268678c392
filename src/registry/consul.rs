//! Consul: blocking queries on the health endpoint of an agent, services of our own registered with it, and its KV store.

mod agent;
mod client;
mod decode;
mod encode;
mod entry;
mod follow;
#[cfg(fuzzing)]
pub mod fuzzing;
mod kv;
mod limit;
mod store;

use super::{Entry, Registration, Registry, RegistryError, SetupError, Sink, store::Store, watch};
use crate::config::ConsulRegistry;
use client::Client;
use entry::OwnEntry;
use follow::Queries;
use futures_util::future::BoxFuture;
use std::{sync::Arc, time::Duration};

/// One Consul agent.
pub struct Consul {
    name: String,
    only_passing: bool,
    wait: Duration,
    client: Client,
}

impl Consul {
    /// A client for the agent in `config`, known as `name`. Does not connect yet.
    ///
    /// Fails if the address is no URL, the token cannot be sent in a header, or TLS is asked for and its files cannot be
    /// used.
    pub fn new(name: &str, config: &ConsulRegistry) -> Result<Self, SetupError> {
        Ok(Self {
            name: name.into(),
            only_passing: config.only_passing,
            wait: config.wait,
            client: Client::new(config)?,
        })
    }
}

impl Registry for Consul {
    fn name(&self) -> &str {
        &self.name
    }

    fn kind(&self) -> &'static str {
        "consul"
    }

    fn follow(self: Arc<Self>, service: String, sink: Sink) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            let queries = Queries::new(self.clone(), &service);
            watch::follow(&self.name, &service, sink, queries).await;
        })
    }

    fn list(self: Arc<Self>) -> BoxFuture<'static, Result<Vec<String>, RegistryError>> {
        Box::pin(async move { self.client.services().await })
    }

    fn entry(self: Arc<Self>, registration: Arc<Registration>) -> Result<Box<dyn Entry>, RegistryError> {
        Ok(Box::new(OwnEntry::new(self, registration)))
    }

    fn store(self: Arc<Self>) -> Result<Arc<dyn Store>, RegistryError> {
        Ok(self)
    }

    fn silence_limit(&self) -> Duration {
        // A query that is never answered is given up, and heard of, before that; unless this side hangs.
        client::answer_limit(self.wait) + Duration::from_secs(30)
    }
}
