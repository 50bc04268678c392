//! The end of the process: how far it is, and asking for it.

use super::{Admin, State, json, view::Draining};
use crate::drain::End;
use axum::{extract, http::StatusCode, response::Response};

pub(super) async fn show(extract::State(admin): Admin) -> Response {
    answer(StatusCode::OK, &admin)
}

/// As SIGTERM does.
pub(super) async fn drain(extract::State(admin): Admin) -> Response {
    ask(&admin, End::Drain, "POST /api/drain")
}

pub(super) async fn quit(extract::State(admin): Admin) -> Response {
    ask(&admin, End::Quit, "POST /api/quit")
}

fn ask(admin: &State, end: End, by: &'static str) -> Response {
    admin.drain.ask(end, by, admin.config.load().drain.timeout);
    answer(StatusCode::ACCEPTED, admin)
}

fn answer(status: StatusCode, admin: &State) -> Response {
    json(status, &Draining::new(&admin.drain.state(), admin.telemetry.metrics.traffic().in_flight))
}
