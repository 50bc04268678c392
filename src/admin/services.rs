//! The services: those that are followed, and those that the registries know besides.

use super::{
    Admin, State,
    failure::Failure,
    json,
    view::{Detail, NotFollowed, Services, Summary},
};
use crate::{cluster::Cluster, config::human, discovery::Scope, registry::Registry};
use axum::{
    extract::{
        self, Path, Query,
        rejection::{PathRejection, QueryRejection},
    },
    http::StatusCode,
    response::Response,
};
use futures_util::future::join_all;
use serde::Deserialize;
use std::{collections::HashSet, sync::Arc, time::Duration};
use tokio::time::{Instant, timeout};

/// How long a registry may take to list its services.
const LIST: Duration = Duration::from_secs(3);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Which {
    #[serde(default)]
    all: Flag,
}

/// `1` as everyone types it, and the words.
#[derive(Deserialize, Default, PartialEq, Eq)]
enum Flag {
    #[default]
    #[serde(rename = "0", alias = "false")]
    Off,
    #[serde(rename = "1", alias = "true")]
    On,
}

pub(super) async fn all(
    extract::State(admin): Admin,
    which: Result<Query<Which>, QueryRejection>,
) -> Result<Response, Failure> {
    let Query(which) = which
        .map_err(|rejection| Failure::new(StatusCode::BAD_REQUEST, rejection.body_text(), "no query, or `?all=1`"))?;
    let clusters = admin.discovery.table().all();
    let services = join_all(
        clusters.iter().map(async |cluster| Summary::new(cluster, admin.discovery.status(&cluster.name).await)),
    )
    .await;
    let not_followed = if which.all == Flag::On { Some(not_followed(&admin, &clusters).await) } else { None };
    Ok(json(StatusCode::OK, &Services { services, not_followed }))
}

pub(super) async fn one(
    extract::State(admin): Admin,
    name: Result<Path<String>, PathRejection>,
) -> Result<Response, Failure> {
    const EXPECTED: &str = "the name of a followed service, as in GET /api/services";
    let Path(name) =
        name.map_err(|rejection| Failure::new(StatusCode::BAD_REQUEST, rejection.body_text(), EXPECTED))?;
    let Some(cluster) = admin.discovery.table().get(&name) else {
        let followed = admin.discovery.table().all().iter().map(|cluster| cluster.name.to_string()).collect();
        let error = format!("`{}` is not followed", name.escape_debug());
        return Err(Failure::new(StatusCode::NOT_FOUND, error, EXPECTED).with_followed(followed));
    };
    let status = admin.discovery.status(&name).await;
    Ok(json(StatusCode::OK, &Detail::new(&cluster, status, Instant::now())))
}

async fn not_followed(admin: &State, clusters: &[Arc<Cluster>]) -> NotFollowed {
    let (registries, config) = (admin.registries.load_full(), admin.config.load_full());
    let lists = join_all(registries.iter().map(async |(name, registry)| {
        let scope = Scope::of(&config, name);
        let callers =
            |names: Vec<String>| names.iter().filter_map(|name| Some(scope.service_of(name)?.into())).collect();
        (name.clone(), list(registry.clone()).await.map(callers))
    }));
    NotFollowed::new(lists.await, &registered_names(clusters))
}

/// The names under which the registries know what is followed.
fn registered_names(clusters: &[Arc<Cluster>]) -> HashSet<String> {
    let name = |cluster: &Arc<Cluster>| {
        let registered_as = cluster.load().settings.service.registered_as.clone();
        registered_as.unwrap_or_else(|| cluster.name.to_string())
    };
    clusters.iter().map(name).collect()
}

async fn list(registry: Arc<dyn Registry>) -> Result<Vec<String>, String> {
    match timeout(LIST, registry.list()).await {
        Ok(Ok(names)) => Ok(names),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {}", human::format(LIST))),
    }
}
