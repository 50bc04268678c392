//! Whether registries' own stores answer.

use super::{Gauge, Metrics, family::Family, family::Page};
use std::sync::Arc;

/// What is watched below one path.
#[derive(Debug)]
pub struct StoreMetrics {
    registry: Box<str>,
    path: Box<str>,
    /// 1: it has answered, and does not fail now.
    pub up: Gauge,
}

impl Metrics {
    /// A new handle for what is below `path` of `registry`; it takes the place of an older one.
    pub fn store(&self, registry: &str, path: &str) -> Arc<StoreMetrics> {
        let handle = Arc::new(StoreMetrics { registry: registry.into(), path: path.into(), up: Gauge::default() });
        self.stores.replace(|there| *there.registry == *registry && *there.path == *path, &handle);
        handle
    }
}

impl StoreMetrics {
    pub(super) fn collect(&self, page: &mut Page) {
        let labels = [("registry", &*self.registry), ("path", &*self.path)];
        page.add(Family::StoreUp, &labels, self.up.get() as f64);
    }
}
