//! From the config to what a service's follower and cluster work with.

use crate::{
    cluster::table::{Settings, UpstreamTls},
    config::{Config, Service, Tls},
    net::tls::{self, TlsError},
    registry::Instance,
};
use std::{collections::HashMap, sync::Arc};

/// Settings that cannot be used, and whose.
#[derive(Debug, Clone, thiserror::Error)]
#[error("services.{service}.tls: {cause}")]
pub struct SettingsError {
    pub service: String,
    pub cause: TlsError,
}

/// All that concerns one service.
#[derive(Debug, Clone)]
pub struct SettingsFor {
    pub settings: Arc<Settings>,
    /// Names of registries in order of priority.
    pub sources: Vec<String>,
    /// The name under which the registries know it.
    pub registered_as: String,
    /// Whether the config names it, so that it is followed always and exists even without endpoints.
    pub pinned: bool,
}

impl SettingsFor {
    /// Those of every service that the config names.
    pub fn all(config: &Config) -> Result<HashMap<String, Self>, SettingsError> {
        named(config).into_iter().map(|service| Ok((service.clone(), Self::one(config, &service)?))).collect()
    }

    pub fn one(config: &Config, service: &str) -> Result<Self, SettingsError> {
        let pinned = config.services.contains_key(service) || named_elsewhere(config).any(|named| named == service);
        let own: &Service = config.services.get(service).unwrap_or(&config.defaults);
        let sources = [&own.sources, &config.discovery.sources].into_iter().find(|sources| !sources.is_empty());
        let upstream_tls = match &own.tls {
            Some(tls) => Some(upstream_tls(tls).map_err(|cause| SettingsError { service: service.into(), cause })?),
            None => None,
        };
        Ok(Self {
            settings: Arc::new(Settings { service: own.clone(), tls: upstream_tls, zone: config.node.zone.clone() }),
            sources: sources.cloned().unwrap_or_else(|| config.registries.keys().cloned().collect()),
            registered_as: own.registered_as.clone().unwrap_or_else(|| service.into()),
            pinned,
        })
    }

    /// Adds TLS with the system's authorities once an instance asks for TLS and the config says nothing of it. Not before:
    /// the authorities take memory that most sidecars do not need.
    pub fn with_tls_for(&mut self, instances: &[Instance]) -> Result<(), TlsError> {
        if self.settings.tls.is_none() && instances.iter().any(|instance| instance.tls == Some(true)) {
            let tls = Some(upstream_tls(&Tls::default())?);
            self.settings = Arc::new(Settings { tls, ..Settings::clone(&self.settings) });
        }
        Ok(())
    }
}

/// The services that the config names, by themselves, for a listener or as a fallback.
pub fn named(config: &Config) -> Vec<String> {
    let elsewhere = named_elsewhere(config).map(ToOwned::to_owned);
    let mut named: Vec<String> = config.services.keys().cloned().chain(elsewhere).collect();
    named.sort_unstable();
    named.dedup();
    named
}

fn named_elsewhere(config: &Config) -> impl Iterator<Item = &str> {
    let services = config.services.values().chain([&config.defaults]);
    let fallbacks = services.filter_map(|service| service.fallback.as_ref()?.service.as_deref());
    config.listeners.iter().filter_map(|listener| listener.service.as_deref()).chain(fallbacks)
}

fn upstream_tls(config: &Tls) -> Result<Arc<UpstreamTls>, TlsError> {
    let either = tls::client_config(config, &["h2", "http/1.1"])?;
    let offering = |protocols: &[&[u8]]| {
        let mut one = either.clone();
        one.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        Arc::new(one)
    };
    Ok(Arc::new(UpstreamTls {
        http1: offering(&[b"http/1.1"]),
        http2: offering(&[b"h2"]),
        server_name: config.server_name.clone(),
        either: Arc::new(either),
    }))
}
