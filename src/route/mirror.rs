//! Which requests of a route are copied, and where the copies go.

use super::Target;
use crate::config;
use http::HeaderValue;

#[derive(Debug)]
pub struct Mirror {
    pub to: Target,
    /// What copies are marked with: the route's name.
    pub mark: HeaderValue,
    pub config: config::Mirror,
}

impl Mirror {
    /// `service`: whose route it is.
    pub(super) fn new(service: &str, route: &str, config: &config::Mirror) -> Self {
        Self {
            to: Target::new(service, &config.to),
            // The config was validated.
            mark: HeaderValue::from_str(route).unwrap_or(HeaderValue::from_static("route")),
            config: config.clone(),
        }
    }

    /// Draws whether one more request is copied.
    pub fn draw(&self) -> bool {
        fastrand::f64() * 100.0 < self.config.percent.0
    }
}
