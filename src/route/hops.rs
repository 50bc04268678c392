//! From service to service: a route may hand a request on to another service, whose routes then count.

use crate::error::{ProxyError, Reason};

/// The most services whose routes one request meets. What goes on for longer is a circle.
pub const MOST_SERVICES: usize = 4;

/// So many services have handed a request on, the last one of them to this one.
pub fn too_many(service: &str) -> ProxyError {
    let detail = format!(
        "{MOST_SERVICES} services hand it on, one to the other, the last one to `{service}`; a circle of routes?"
    );
    ProxyError::new(Reason::RouteLoop, detail)
}
