//! The local application behind each inbound listener, and who calls it.

use super::{Admin, json, view::Inbound};
use axum::{extract, http::StatusCode, response::Response};
use tokio::time::Instant;

pub(super) async fn all(extract::State(admin): Admin) -> Response {
    json(StatusCode::OK, &Inbound::new(&admin.local_apps.load(), Instant::now()))
}
