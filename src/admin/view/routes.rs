//! Where each service's routes come from.

use super::Store;
use crate::{
    config::{Config, Service},
    discovery::{RoutesOf, RoutesStatus},
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// `GET /api/routes`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Routes {
    /// `routing.store`, if that is set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store: Option<Store>,
    /// The services that have routes or subsets, by name.
    pub services: Vec<ServiceRoutes>,
}

/// One service's routes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ServiceRoutes {
    pub service: String,
    pub from: RoutesFrom,
    /// Of the value in the store that is in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Since it is in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds: Option<f64>,
    /// The value that the store has now, if it is not in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<RefusedRoutes>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RoutesFrom {
    Config,
    Store,
    /// The store, before the last start. It has not confirmed it since.
    Disk,
}

/// A value that was refused.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RefusedRoutes {
    pub version: String,
    /// All that is wrong, a line for each.
    pub error: String,
    pub seconds: f64,
}

impl Routes {
    pub fn new(config: &Config, status: RoutesStatus) -> Self {
        let in_config = config.services.iter().filter(|(_, service)| has_routes(service));
        let mut services: BTreeMap<String, ServiceRoutes> =
            in_config.map(|(name, _)| (name.clone(), ServiceRoutes::in_config(name))).collect();
        services.extend(status.services.into_iter().map(|routes| (routes.service.clone(), routes.into())));
        Self { store: status.store.map(Into::into), services: services.into_values().collect() }
    }
}

impl ServiceRoutes {
    fn in_config(service: &str) -> Self {
        Self { service: service.into(), from: RoutesFrom::Config, version: None, seconds: None, refused: None }
    }
}

impl From<RoutesOf> for ServiceRoutes {
    fn from(RoutesOf { service, good, refused }: RoutesOf) -> Self {
        let refused = refused.map(|(version, error, since)| RefusedRoutes {
            version: version.to_string(),
            error,
            seconds: since.as_secs_f64(),
        });
        let Some((version, since, from_disk)) = good else { return Self { refused, ..Self::in_config(&service) } };
        Self {
            service,
            from: if from_disk { RoutesFrom::Disk } else { RoutesFrom::Store },
            version: Some(version.to_string()),
            seconds: Some(since.as_secs_f64()),
            refused,
        }
    }
}

fn has_routes(service: &Service) -> bool {
    !service.subsets.is_empty() || !service.routes.is_empty()
}
