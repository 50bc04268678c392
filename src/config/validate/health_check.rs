//! What there is to check of `health_check`.

use super::{Check, Spot};
use crate::config::{HealthCheck, HttpCheck, error::shorten};
use http::{
    Method,
    uri::{Authority, PathAndQuery},
};
use std::time::Duration;

/// More often is an attack.
const LEAST_INTERVAL: Duration = Duration::from_millis(10);

impl<'t> Check<'_, 't> {
    pub(super) fn health_check(&mut self, spot: &Spot<'t>, check: &HealthCheck) {
        if let Some(http) = &check.http {
            self.http_check(&spot.key("http"), http);
        }
        self.at_least(&spot.key("interval"), check.interval, LEAST_INTERVAL);
        self.at_most(&spot.key("max_interval"), check.max_interval);
        self.positive(&spot.key("timeout"), check.timeout);
        self.range(&spot.key("rise"), check.rise, 1, 100);
        self.range(&spot.key("fall"), check.fall, 1, 100);
        self.at_most(&spot.key("linger"), check.linger);
    }

    pub(super) fn http_check(&mut self, spot: &Spot<'t>, check: &HttpCheck) {
        let path =
            if spot.node.is_some_and(|node| node.entries().is_empty()) { spot.clone() } else { spot.key("path") };
        if !check.path.starts_with('/') || check.path.parse::<PathAndQuery>().is_err() {
            self.fail(&path, format!("found `{}`; expected a path, like `/health`", shorten(&check.path)));
        }
        if let Some(host) =
            check.host.as_deref().filter(|host| host.contains('@') || host.parse::<Authority>().is_err())
        {
            self.fail(&spot.key("host"), format!("found `{}`; expected a host, like `users.example`", shorten(host)));
        }
        let method = spot.key("method");
        match check.method.parse() {
            Ok(Method::CONNECT) | Err(_) => {
                let found = shorten(&check.method);
                self.fail(&method, format!("found `{found}`; expected a method, like `GET`"));
            }
            Ok(Method::HEAD) if check.body.is_some() => {
                self.fail(&spot.key("body"), "a response to `HEAD` has no body that could contain it");
            }
            Ok(_) => {}
        }
        let statuses = spot.key("statuses");
        if check.statuses.is_empty() && statuses.elements().is_empty() {
            self.fail(&statuses, "the list is empty; expected at least one status or range, like `200-399`");
        }
        if check.body.as_deref() == Some("") {
            self.fail(&spot.key("body"), "found an empty text; expected some text");
        }
    }
}
