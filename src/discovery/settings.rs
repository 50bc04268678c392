//! From the config to what a service's follower and cluster work with.

use super::{
    scope::Scope,
    sources::{Asked, Plan},
};
use crate::{
    cluster::{
        limit::Gate,
        table::{Settings, UpstreamTls},
    },
    config::{Config, Route, Service, Source, StoredRoutes, Tls},
    net::tls::{self, TlsError},
    registry::Instance,
    rollout::{self, State},
    route,
};
use std::{collections::HashMap, sync::Arc};

/// Settings that cannot be used, and whose.
#[derive(Debug, Clone, thiserror::Error)]
#[error("services.{service}.tls: {cause}")]
pub struct SettingsError {
    pub service: String,
    pub cause: TlsError,
}

/// What goes before the config, for one service.
#[derive(Clone, Copy, Default)]
pub struct Over<'o> {
    pub routes: Option<&'o StoredRoutes>,
    /// What its splits weigh.
    pub rollout: Option<&'o State>,
}

impl Over<'_> {
    /// The service with that, if there is anything.
    fn over(self, service: &Service) -> Option<Service> {
        let mut with = match self.routes {
            Some(routes) => routes.clone().over(service),
            None => self.rollout.map(|_| service.clone())?,
        };
        if let Some(state) = self.rollout {
            rollout::weigh(&mut with, state);
        }
        Some(with)
    }
}

/// All that concerns one service.
#[derive(Debug, Clone)]
pub struct SettingsFor {
    pub settings: Arc<Settings>,
    /// Which registries are asked for it, and how.
    pub plan: Plan,
    /// Whether the config names it, so that it is followed always and exists even without endpoints.
    pub pinned: bool,
}

impl SettingsFor {
    /// Those of every service that the config names. `over`: what goes before the config.
    pub fn all<'o>(config: &Config, over: impl Fn(&str) -> Over<'o>) -> Result<HashMap<String, Self>, SettingsError> {
        let one = |service: String| {
            let settings = Self::one(config, &service, over(&service))?;
            Ok((service, settings))
        };
        named(config).into_iter().map(one).collect()
    }

    pub fn one(config: &Config, service: &str, over: Over<'_>) -> Result<Self, SettingsError> {
        let pinned = config.services.contains_key(service) || named_elsewhere(config).any(|named| named == service);
        let own: &Service = config.services.get(service).unwrap_or(&config.defaults);
        let with = over.over(own);
        let own = with.as_ref().unwrap_or(own);
        let all = || config.registries.keys().map(|name| Source::Registry(name.clone())).collect();
        let sources = [&own.sources, &config.discovery.sources].into_iter().find(|sources| !sources.is_empty());
        let sources: Vec<Source> = sources.cloned().unwrap_or_else(all);
        let registered_as = own.registered_as.as_deref().unwrap_or(service);
        let plan = Plan::new(&sources, &config.discovery.failover, |registry| {
            let scope = Scope::of(config, registry);
            Asked { registry: registry.into(), name: scope.name_of(service, registered_as), scope }
        });
        let upstream_tls = match &own.tls {
            Some(tls) => Some(upstream_tls(tls).map_err(|cause| SettingsError { service: service.into(), cause })?),
            None => None,
        };
        Ok(Self {
            settings: Arc::new(Settings {
                service: own.clone(),
                tls: upstream_tls,
                zone: config.node.zone.clone(),
                same_protocol: false,
                keeps_source: false,
                routes: route::Table::new(service, own).map(Arc::new),
                gates: gates(own),
            }),
            plan,
            pinned,
        })
    }

    /// Keeps the limits of those routes that have the same as `before`, with what was counted: else each change of a split would
    /// let a whole rate in once more.
    pub fn keep_gates(&mut self, before: &Settings) {
        let Some(settings) = Arc::get_mut(&mut self.settings) else { return };
        let (Some(now), Some(then)) = (&settings.routes, &before.routes) else { return };
        for ((route, limits), gate) in now.routes.iter().zip(&settings.service.routes).zip(&mut settings.gates) {
            let Some(limits) = &limits.limits else { continue };
            let same = then.routes.iter().position(|there| there.name == route.name);
            let kept = same.and_then(|number| before.gates.get(number)?.as_ref()).filter(|gate| gate.has(limits));
            if let Some(kept) = kept {
                *gate = Some(kept.clone());
            }
        }
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

/// The limits of each route; nothing where none has any.
fn gates(service: &Service) -> Box<[Option<Arc<Gate>>]> {
    if service.routes.iter().all(|route| route.limits.is_none()) {
        return Box::default();
    }
    let gate = |route: &Route| route.limits.as_ref().map(|limits| Arc::new(Gate::new(limits)));
    service.routes.iter().map(gate).collect()
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
        bare: offering(&[]),
        server_name: config.server_name.clone(),
        either: Arc::new(either),
    }))
}
