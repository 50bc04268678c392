//! Kubernetes: a service's EndpointSlices, listed and watched at the API server; and ConfigMaps as a store.

mod access;
mod api;
mod connection;
mod follow;
#[cfg(fuzzing)]
pub mod fuzzing;
mod kubeconfig;
mod objects;
mod slices;
mod store;
#[cfg(test)]
mod tests;

use super::{Registry, RegistryError, SetupError, Sink, store::Store, watch};
use crate::config::{KubernetesPort, KubernetesRegistry};
use access::Access;
use api::{Api, CallError, LIST_TIMEOUT, METADATA};
use follow::Slices;
use futures_util::future::BoxFuture;
use objects::{ListMetadata, Metadata, null_is_empty};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use slices::{Choice, SERVICE_NAME};
use std::{collections::BTreeSet, sync::Arc, time::Duration};

/// Slices per page of a listing, of which only the metadata is read.
const LIST_PAGE: u32 = 2000;
const VALUE: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_');

/// One cluster.
pub struct Kubernetes {
    name: String,
    namespace: String,
    choice: Choice,
    api: Api,
}

/// One service's slices, and the port if the name has one.
#[derive(Debug, Clone, PartialEq)]
struct Target {
    /// With a query, to which more can be added.
    path: String,
    port: Option<KubernetesPort>,
}

#[derive(Deserialize)]
struct Names {
    metadata: ListMetadata,
    #[serde(default, deserialize_with = "null_is_empty")]
    items: Vec<Named>,
}

#[derive(Deserialize)]
struct Named {
    metadata: Metadata,
}

impl Kubernetes {
    /// A client for the cluster in `config`, known as `name`. `zone` is this node's, to which hints may apply. Does not
    /// connect yet.
    ///
    /// Fails if it cannot be told where the cluster is or who we are to it, or if files that this needs cannot be used.
    pub fn new(name: &str, config: &KubernetesRegistry, zone: Option<&str>) -> Result<Self, SetupError> {
        let access = Access::find(config)?;
        Ok(Self {
            name: name.into(),
            namespace: access.namespace.clone(),
            choice: Choice {
                port: config.port.clone(),
                family: config.ip_family,
                zone: zone.filter(|_| config.zone_hints).map(str::to_owned),
            },
            api: Api::new(access)?,
        })
    }

    /// Where the slices of `service` are, if there can be such a service: `SERVICE[.NAMESPACE][:PORT]`.
    fn target(&self, service: &str) -> Option<Target> {
        let (name, port) = match service.split_once(':') {
            Some((name, port)) => (name, Some(KubernetesPort::parse(port)?)),
            None => (service, None),
        };
        let (name, namespace) = name.split_once('.').unwrap_or((name, &self.namespace));
        if !KubernetesRegistry::is_name(name) || !KubernetesRegistry::is_name(namespace) {
            return None;
        }
        let path = format!("{}?labelSelector={}%3D{name}", collection(namespace), encoded(SERVICE_NAME));
        Some(Target { path, port })
    }

    /// What an error means to whoever asked for something once.
    fn error(&self, error: CallError) -> RegistryError {
        let server = self.name.clone();
        match error {
            CallError::Error(error)
            | CallError::NoConnection(error)
            | CallError::Later(error, _)
            | CallError::Absent(error)
            | CallError::Conflict(error) => error,
            CallError::Version(cause) => RegistryError::Busy { server, cause },
            CallError::Silence => {
                RegistryError::Unreachable { server, cause: format!("no answer within {LIST_TIMEOUT:?}") }
            }
        }
    }

    async fn services(&self) -> Result<Vec<String>, CallError> {
        let mut services = BTreeSet::new();
        let mut query = "&resourceVersion=0".to_owned();
        loop {
            let path = format!("{}?limit={LIST_PAGE}{query}", collection(&self.namespace));
            let page: Names = self.api.get(&path, METADATA).await?;
            services.extend(page.items.into_iter().filter_map(|mut slice| slice.metadata.labels.remove(SERVICE_NAME)));
            if page.metadata.next.is_empty() {
                return Ok(services.into_iter().collect());
            }
            query = format!("&continue={}", encoded(&page.metadata.next));
        }
    }
}

impl Registry for Kubernetes {
    fn name(&self) -> &str {
        &self.name
    }

    fn kind(&self) -> &'static str {
        "kubernetes"
    }

    fn follow(self: Arc<Self>, service: String, sink: Sink) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            let slices = Slices::new(self.clone(), &service);
            watch::follow(&self.name, &service, sink, slices).await;
        })
    }

    fn list(self: Arc<Self>) -> BoxFuture<'static, Result<Vec<String>, RegistryError>> {
        Box::pin(async move {
            let services = tokio::time::timeout(LIST_TIMEOUT, self.services()).await;
            services.unwrap_or(Err(CallError::Silence)).map_err(|error| self.error(error))
        })
    }

    fn store(self: Arc<Self>) -> Result<Arc<dyn Store>, RegistryError> {
        Ok(self)
    }

    fn silence_limit(&self) -> Duration {
        // After a watch's silence there is a list, and what it may take to open a connection.
        objects::SILENCE + LIST_TIMEOUT + Duration::from_secs(30)
    }
}

fn collection(namespace: &str) -> String {
    format!("/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices")
}

/// In a query.
fn encoded(text: &str) -> impl std::fmt::Display {
    utf8_percent_encode(text, VALUE)
}
