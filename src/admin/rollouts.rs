//! How far rollouts are, and changing that by hand.

use super::{
    Admin,
    failure::Failure,
    json,
    view::{RolloutState, Rollouts},
};
use crate::{discovery::NotDone, rollout::Command};
use axum::{
    extract::{self, Path, rejection::PathRejection},
    http::StatusCode,
    response::Response,
};

pub(super) async fn all(extract::State(admin): Admin) -> Response {
    json(StatusCode::OK, &Rollouts::from(admin.discovery.rollouts().await))
}

/// Answers when it is in the store, with the state as it is there then.
pub(super) async fn command(
    extract::State(admin): Admin,
    path: Result<Path<(String, String)>, PathRejection>,
) -> Result<Response, Failure> {
    let expected = || Command::ALL.map(Command::as_str).join(", ");
    let Path((service, word)) =
        path.map_err(|rejection| Failure::new(StatusCode::BAD_REQUEST, rejection.body_text(), "a name in UTF-8"))?;
    let command = Command::ALL.into_iter().find(|command| command.as_str() == word);
    let command = command
        .ok_or_else(|| Failure::new(StatusCode::NOT_FOUND, format!("nothing is called `{word}` here"), expected()))?;
    let (status, error, expected) = match admin.discovery.command(&service, command).await {
        Ok(state) => return Ok(json(StatusCode::OK, &RolloutState::from(state))),
        Err(NotDone::NoRollout(error)) => {
            let status = admin.discovery.rollouts().await;
            let names: Vec<_> = status.services.into_iter().map(|rollout| rollout.service).collect();
            let expected = if names.is_empty() { "a service with `rollout`".into() } else { names.join(", ") };
            (StatusCode::NOT_FOUND, error, expected)
        }
        Err(NotDone::Refused(error)) => {
            (StatusCode::CONFLICT, error, "what fits the state that `GET /api/rollouts` shows".into())
        }
        Err(NotDone::Failed(error)) => (StatusCode::SERVICE_UNAVAILABLE, error, "another attempt later".into()),
    };
    Err(Failure::new(status, error, expected))
}
