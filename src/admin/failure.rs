//! Answers that are errors.

use super::{json, view::Refused};
use axum::{
    http::StatusCode,
    response::{IntoResponse, Response},
};

/// An error and what would have been right, as JSON.
#[derive(Debug)]
pub(super) struct Failure {
    status: StatusCode,
    body: Refused,
}

impl Failure {
    pub(super) fn new(status: StatusCode, error: impl Into<String>, expected: impl Into<String>) -> Self {
        let body = Refused { error: error.into(), expected: Some(expected.into()), followed: None };
        Self { status, body }
    }

    /// With the names that would have been right.
    pub(super) fn with_followed(mut self, followed: Vec<String>) -> Self {
        self.body.followed = Some(followed);
        self
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        json(self.status, &self.body)
    }
}
