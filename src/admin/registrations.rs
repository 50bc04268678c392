//! The local application's registrations, as JSON.

use super::{Admin, json};
use crate::{
    cluster::check,
    registrar::{Kept, View},
};
use axum::{extract, http::StatusCode, response::Response};
use serde::Serialize;

#[derive(Serialize)]
struct Registrations {
    registrations: Vec<One>,
}

#[derive(Serialize)]
struct One {
    service: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    id: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    address: String,
    /// `unknown`, `healthy`, `suspect` or `unhealthy`.
    health: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    failure: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    waiting_for: Option<String>,
    registries: Vec<InRegistry>,
}

#[derive(Serialize)]
struct InRegistry {
    registry: String,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    failure: Option<String>,
    /// Since it was last put or renewed.
    #[serde(skip_serializing_if = "Option::is_none")]
    renewed_seconds_ago: Option<f64>,
}

pub(super) async fn all(extract::State(admin): Admin) -> Response {
    let registrations = admin.registrar.views().iter().map(|view| One::new(view)).collect();
    json(StatusCode::OK, &Registrations { registrations })
}

impl One {
    fn new(view: &View) -> Self {
        Self {
            service: view.name.clone(),
            id: view.id.clone(),
            address: view.place.clone(),
            health: match view.health.state {
                check::State::Unknown => "unknown",
                check::State::Healthy => "healthy",
                check::State::Suspect { .. } => "suspect",
                check::State::Unhealthy { .. } => "unhealthy",
            },
            failure: view.health.failure.clone(),
            waiting_for: view.waiting_for.clone(),
            registries: view.entries.iter().map(|(name, kept)| InRegistry::new(name, &kept.borrow())).collect(),
        }
    }
}

impl InRegistry {
    fn new(registry: &str, kept: &Kept) -> Self {
        Self {
            registry: registry.into(),
            state: kept.state.as_str(),
            failure: kept.failure.as_ref().map(ToString::to_string),
            renewed_seconds_ago: kept.renewed.map(|renewed| renewed.elapsed().as_secs_f64()),
        }
    }
}
