//! From the config's registries to those that are up.

use super::{inherited::Inherited, interface::Interface};
use crate::{
    config::{self, Config},
    discovery::Registries,
    net::handover::States,
    registry::{
        Consul, Dns, Etcd, Eureka, Kubernetes, Nacos, Redis, Registry, Xds, Zookeeper,
        embedded::{self, Embedded},
        file::FileRegistry,
    },
};
use anyhow::{Context, bail};
use indexmap::IndexMap;
use std::sync::Arc;
use tokio::task::JoinSet;

/// All registries. Those that do not change over a reload stay as they are, with their connections and followers.
#[derive(Default)]
pub struct RegistrySet {
    built: IndexMap<String, Arc<Built>>,
}

struct Built {
    config: config::Registry,
    /// This node's, where the registry was told of it.
    zone: Option<String>,
    registry: Arc<dyn Registry>,
    embedded: Option<Own>,
    /// What the embedded registry needs run. Ends with it.
    _tasks: JoinSet<()>,
}

/// An embedded registry, and its API.
struct Own {
    registry: Arc<Embedded>,
    api: Interface,
}

/// What a pillion whose place we take has left for us so far.
#[derive(Default)]
pub struct Legacy {
    pub sockets: Inherited,
    /// Of embedded registries.
    pub states: States,
}

impl RegistrySet {
    pub fn handles(&self) -> Registries {
        self.built.iter().map(|(name, built)| (name.clone(), built.registry.clone())).collect()
    }

    pub fn embedded(&self, name: &str) -> Option<Arc<Embedded>> {
        Some(self.built.get(name)?.embedded.as_ref()?.registry.clone())
    }

    pub fn all_embedded(&self) -> Vec<(String, Arc<Embedded>)> {
        self.own().map(|(name, own)| (name.clone(), own.registry.clone())).collect()
    }

    pub fn interfaces(&self) -> impl Iterator<Item = &Interface> {
        self.own().map(|(_, own)| &own.api)
    }

    /// The set that `config` asks for. This one stays usable until it is dropped. What is new in it and embedded serves others
    /// from [`Self::open`] on.
    pub async fn changed_to(&self, config: &Config, legacy: &mut Legacy) -> anyhow::Result<Self> {
        let mut built = IndexMap::new();
        for (name, wanted) in &config.registries {
            let zone = config.node.zone.as_deref().filter(|_| matches!(wanted, config::Registry::Kubernetes(_)));
            let one = match self.built.get(name) {
                Some(there) if there.config == *wanted && there.zone.as_deref() == zone => there.clone(),
                // It holds its socket and its file, and what it knows.
                Some(there) if there.embedded.is_some() && matches!(wanted, config::Registry::Embedded(_)) => {
                    bail!("registries.{name}: an embedded registry cannot change while pillion runs; restart it")
                }
                _ => Arc::new(build(name, wanted, zone, legacy).await.with_context(|| format!("registries.{name}"))?),
            };
            built.insert(name.clone(), one);
        }
        Ok(Self { built })
    }

    /// Embedded registries serve others from now on: with the last states that the pillion before had, if there was one.
    pub async fn open(&self, states: &States) {
        for (name, own) in self.own() {
            if let Err(error) = own.registry.take_over(states.get(name).map(String::as_str)).await {
                tracing::error!(registry = name, %error, "its last state is lost");
            }
            own.api.open();
        }
    }

    /// Embedded registries serve others no more, and write nothing. Gives their last states.
    pub async fn give_up(&self) -> States {
        let mut states = States::new();
        for (name, own) in self.own() {
            own.api.close();
            match own.registry.give_up().await {
                Ok(state) => {
                    states.insert(name.clone(), state);
                }
                Err(error) => tracing::error!(registry = name, %error, "its last state is lost"),
            }
        }
        states
    }

    fn own(&self) -> impl Iterator<Item = (&String, &Own)> {
        self.built.iter().filter_map(|(name, built)| Some((name, built.embedded.as_ref()?)))
    }

    /// Waits until what the embedded registries were told is on disk.
    pub async fn flush(&self) {
        for (_, own) in self.own() {
            if let Err(error) = own.registry.flush().await {
                tracing::error!(?error, "the embedded registry's state was not saved");
            }
        }
    }
}

async fn build(
    name: &str,
    config: &config::Registry,
    zone: Option<&str>,
    legacy: &mut Legacy,
) -> anyhow::Result<Built> {
    let mut tasks = JoinSet::new();
    let mut own = None;
    let registry: Arc<dyn Registry> = match config {
        config::Registry::Embedded(settings) => {
            let (embedded, keeping) = match legacy.states.get(name) {
                Some(state) => Embedded::borrow(name, settings, state)?,
                None => Embedded::open(name, settings)?,
            };
            let interface = Interface::bind(format!("registries.{name}"), settings.listen, &mut legacy.sockets);
            let api = interface.await.with_context(|| {
                format!("cannot listen on {} for the embedded registry; choose another `listen`", settings.listen)
            })?;
            tasks.spawn(keeping);
            tasks.spawn(api.serve(embedded::router(embedded.clone()))?);
            own = Some(Own { registry: embedded.clone(), api });
            embedded
        }
        config::Registry::File(settings) => FileRegistry::new(name, settings),
        config::Registry::Consul(settings) => Arc::new(Consul::new(name, settings)?),
        config::Registry::Etcd(settings) => Arc::new(Etcd::new(name, settings)?),
        config::Registry::Redis(settings) => Arc::new(Redis::new(name, settings)?),
        config::Registry::Xds(settings) => Arc::new(Xds::new(name, settings)?),
        config::Registry::Dns(settings) => Arc::new(Dns::new(name, settings)?),
        config::Registry::Zookeeper(settings) => Arc::new(Zookeeper::new(name, settings)?),
        config::Registry::Kubernetes(settings) => Arc::new(Kubernetes::new(name, settings, zone)?),
        config::Registry::Eureka(settings) => Arc::new(Eureka::new(name, settings)?),
        config::Registry::Nacos(settings) => Arc::new(Nacos::new(name, settings)?),
    };
    Ok(Built { config: config.clone(), zone: zone.map(str::to_owned), registry, embedded: own, _tasks: tasks })
}
