//! Where routes come from, and what of the store was refused.

use super::{Admin, json, view::Routes};
use axum::{extract, http::StatusCode, response::Response};

pub(super) async fn all(extract::State(admin): Admin) -> Response {
    let status = admin.discovery.routes().await;
    json(StatusCode::OK, &Routes::new(&admin.config.load(), status))
}
