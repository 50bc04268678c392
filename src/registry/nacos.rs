//! Nacos, 2 and 3: subscriptions and registrations over one gRPC connection for all services; polls and beats over HTTP
//! where there is no gRPC. Its configs are a store.

mod beat;
mod calls;
mod configs;
mod connection;
mod decode;
mod encode;
mod entry;
mod follow;
#[cfg(fuzzing)]
pub mod fuzzing;
mod login;
mod message;
mod poll;
mod proto;
mod publish;
mod session;
mod store;

use super::{Entry, Registration, Registry, RegistryError, SetupError, Sink, in_time, link::Link, store::Store, watch};
use crate::config::NacosRegistry;
use calls::CallError;
use connection::{Connect, Connection};
use entry::OwnEntry;
use follow::Subscription;
use futures_util::future::BoxFuture;
use std::{sync::Arc, time::Duration};

/// One Nacos cluster.
pub struct Nacos {
    name: String,
    group: String,
    clusters: Vec<String>,
    poll: Duration,
    link: Link<Connect>,
}

impl Nacos {
    /// A client for the cluster in `config`, known as `name`. Does not connect yet.
    ///
    /// Fails if an address is no URL, or if TLS is asked for and its files cannot be used.
    pub fn new(name: &str, config: &NacosRegistry) -> Result<Self, SetupError> {
        let (connect, servers) = Connect::new(config)?;
        Ok(Self {
            name: name.into(),
            group: config.group.clone(),
            clusters: config.clusters.clone(),
            poll: config.poll,
            link: Link::new(servers, connect),
        })
    }

    async fn services(&self) -> Result<Vec<String>, RegistryError> {
        let connection = self.link.connection().await?;
        let services = match &*connection {
            Connection::Grpc(session) => session.services(&self.group).await,
            Connection::Http { api, .. } => api.services(&self.group).await,
        };
        services.map_err(|error| self.failed(&connection, error))
    }

    /// Sees to it that there will be another connection, if that is what failed.
    fn failed(&self, connection: &Arc<Connection>, error: CallError) -> RegistryError {
        if !matches!(error, CallError::Call(_)) {
            self.link.give_up(connection);
        }
        error.into_error()
    }
}

impl Registry for Nacos {
    fn name(&self) -> &str {
        &self.name
    }

    fn kind(&self) -> &'static str {
        "nacos"
    }

    fn follow(self: Arc<Self>, service: String, sink: Sink) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            let subscription = Subscription::new(self.clone(), &service);
            watch::follow(&self.name, &service, sink, subscription).await;
        })
    }

    fn list(self: Arc<Self>) -> BoxFuture<'static, Result<Vec<String>, RegistryError>> {
        Box::pin(async move { in_time(&self.name, self.services()).await })
    }

    fn entry(self: Arc<Self>, registration: Arc<Registration>) -> Result<Box<dyn Entry>, RegistryError> {
        Ok(Box::new(OwnEntry::new(self, registration)))
    }

    fn store(self: Arc<Self>) -> Result<Arc<dyn Store>, RegistryError> {
        Ok(self)
    }

    fn silence_limit(&self) -> Duration {
        // Two queries of a quiet service that were not answered, or two polls.
        Duration::from_secs(150).max(self.poll * 3)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_config_that_cannot_work_is_refused_at_once() {
        let with = |servers: &[&str], more: NacosRegistry| {
            let servers = servers.iter().map(ToString::to_string).collect();
            Nacos::new("main", &NacosRegistry { servers, ..more }).err().map(|error| error.to_string())
        };
        let error = with(&["127.0.0.1:8848"], NacosRegistry::default()).unwrap();
        assert!(error.contains("expected `http://HOST:PORT`"), "{error}");
        assert!(with(&[], NacosRegistry::default()).unwrap().contains("at least one address"));
        let error = with(&["http://a:65000"], NacosRegistry::default()).unwrap();
        assert!(error.contains("`grpc_port`"), "{error}");
        assert_eq!(with(&["http://a:65000"], NacosRegistry { grpc_port: Some(1), ..Default::default() }), None);
        let tls = crate::config::Tls { ca: Some("/no/such/ca.pem".into()), ..Default::default() };
        let error = with(&["https://a:8848"], NacosRegistry { tls, ..Default::default() }).unwrap();
        assert!(error.contains("/no/such/ca.pem"), "{error}");
    }
}
