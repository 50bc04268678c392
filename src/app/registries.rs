//! From the config's registries to those that are up.

use crate::{
    config::{self, Config},
    discovery::Registries,
    registry::{
        Consul, Etcd, Registry,
        embedded::{self, Embedded},
        file::FileRegistry,
    },
};
use anyhow::{Context, bail};
use indexmap::IndexMap;
use std::sync::Arc;
use tokio::{net::TcpListener, task::JoinSet};

/// All registries. Those that do not change over a reload stay as they are, with their connections and followers.
#[derive(Default)]
pub struct RegistrySet {
    built: IndexMap<String, Arc<Built>>,
}

struct Built {
    config: config::Registry,
    registry: Arc<dyn Registry>,
    embedded: Option<Arc<Embedded>>,
    /// What the embedded registry needs run. Ends with it.
    _tasks: JoinSet<()>,
}

impl RegistrySet {
    pub fn handles(&self) -> Registries {
        self.built.iter().map(|(name, built)| (name.clone(), built.registry.clone())).collect()
    }

    pub fn embedded(&self, name: &str) -> Option<Arc<Embedded>> {
        self.built.get(name)?.embedded.clone()
    }

    /// The set that `config` asks for. This one stays usable until it is dropped.
    pub async fn changed_to(&self, config: &Config) -> anyhow::Result<Self> {
        let mut built = IndexMap::new();
        for (name, wanted) in &config.registries {
            let one = match self.built.get(name) {
                Some(there) if there.config == *wanted => there.clone(),
                // It holds its socket and its file, and what it knows.
                Some(there) if there.embedded.is_some() && matches!(wanted, config::Registry::Embedded(_)) => {
                    bail!("registries.{name}: an embedded registry cannot change while pillion runs; restart it")
                }
                _ => Arc::new(build(name, wanted).await.with_context(|| format!("registries.{name}"))?),
            };
            built.insert(name.clone(), one);
        }
        Ok(Self { built })
    }

    /// Waits until what the embedded registries were told is on disk.
    pub async fn flush(&self) {
        for embedded in self.built.values().filter_map(|built| built.embedded.as_ref()) {
            if let Err(error) = embedded.flush().await {
                tracing::error!(?error, "the embedded registry's state was not saved");
            }
        }
    }
}

async fn build(name: &str, config: &config::Registry) -> anyhow::Result<Built> {
    let mut tasks = JoinSet::new();
    let mut own = None;
    let registry: Arc<dyn Registry> = match config {
        config::Registry::Embedded(settings) => {
            let (embedded, keeping) = Embedded::open(name, settings)?;
            let socket = TcpListener::bind(settings.listen).await.with_context(|| {
                format!("cannot listen on {} for the embedded registry; choose another `listen`", settings.listen)
            })?;
            let router = embedded::router(embedded.clone());
            tasks.spawn(keeping);
            tasks.spawn(async move {
                if let Err(error) = axum::serve(socket, router).await {
                    tracing::error!(%error, "the embedded registry's API ended");
                }
            });
            own = Some(embedded.clone());
            embedded
        }
        config::Registry::File(settings) => FileRegistry::new(name, settings),
        config::Registry::Consul(settings) => Arc::new(Consul::new(name, settings)?),
        config::Registry::Etcd(settings) => Arc::new(Etcd::new(name, settings)?),
    };
    Ok(Built { config: config.clone(), registry, embedded: own, _tasks: tasks })
}
