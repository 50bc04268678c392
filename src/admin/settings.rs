//! The config in force, and the level of the log.

use super::{Admin, accept, failure::Failure, json, view::LogLevel};
use crate::config;
use axum::{
    extract::{self, Query, rejection::QueryRejection},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Deserialize;

pub(super) async fn config(extract::State(admin): Admin, headers: HeaderMap) -> Response {
    let config = admin.config.load_full();
    if accept(&headers).is_some_and(wants_yaml) {
        return ([(header::CONTENT_TYPE, "application/yaml")], config::print(&config)).into_response();
    }
    // Secrets write themselves as `***`.
    json(StatusCode::OK, &*config)
}

/// Whether YAML is named under any of its names. Who wants JSON names JSON, or nothing.
fn wants_yaml(accept: &str) -> bool {
    accept.split(',').any(|range| {
        let media = range.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        matches!(media.as_str(), "application/yaml" | "application/x-yaml" | "text/yaml" | "text/x-yaml")
    })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Level {
    level: String,
}

pub(super) async fn log_level(extract::State(admin): Admin) -> Response {
    json(StatusCode::OK, &LogLevel { level: admin.log.current() })
}

pub(super) async fn set_log_level(
    extract::State(admin): Admin,
    level: Result<Query<Level>, QueryRejection>,
) -> Result<Response, Failure> {
    const EXPECTED: &str = "the query `?level=LEVEL`, like `debug` or `info,pillion::registry=debug`";
    let bad = |(error, expected)| Failure::new(StatusCode::BAD_REQUEST, error, expected);
    let Query(Level { level }) = level.map_err(|rejection| bad((rejection.body_text(), EXPECTED.to_owned())))?;
    let before = admin.log.current();
    admin.log.set(&level).map_err(|error| bad(split(&error, EXPECTED)))?;
    let level = admin.log.current();
    tracing::warn!(%before, now = %level, "the level of the log was changed through the admin interface");
    Ok(json(StatusCode::OK, &LogLevel { level }))
}

/// "found `x`; expected `y`" as the two parts that an answer has.
fn split(error: &str, otherwise: &str) -> (String, String) {
    match error.split_once("; expected ") {
        Some((error, expected)) => (error.into(), expected.into()),
        None => (error.into(), otherwise.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn yaml_is_given_to_those_who_ask_for_it() {
        for accept in ["application/yaml", "text/html, Application/YAML;q=0.9", "text/yaml"] {
            assert!(wants_yaml(accept), "{accept}");
        }
        for accept in ["", "*/*", "application/json", "application/yamlx"] {
            assert!(!wants_yaml(accept), "{accept}");
        }
    }

    #[test]
    fn an_error_is_split_at_what_was_expected() {
        assert_eq!(split("found `x`; expected `y`", "z"), ("found `x`".into(), "`y`".into()));
        assert_eq!(split("no module", "z"), ("no module".into(), "z".into()));
    }
}
