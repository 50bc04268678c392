//! Changes of a message's headers.

use crate::config::HeaderEdit;
use http::{HeaderMap, HeaderName, HeaderValue};
use indexmap::IndexMap;

/// First `remove`, then `set`, then `add`.
#[derive(Debug, Default)]
pub struct Edit {
    remove: Box<[HeaderName]>,
    set: Box<[(HeaderName, HeaderValue)]>,
    add: Box<[(HeaderName, HeaderValue)]>,
}

impl Edit {
    /// `None` where there is nothing to change.
    pub fn new(config: &HeaderEdit) -> Option<Self> {
        // The config was validated, so nothing is left out.
        let fields = |fields: &IndexMap<String, String>| {
            let parsed = fields.iter().map(|(name, value)| Some((name.parse().ok()?, value.parse().ok()?)));
            parsed.flatten().collect()
        };
        let HeaderEdit { set, add, remove } = config;
        (!config.is_default()).then(|| Self {
            remove: remove.iter().filter_map(|name| name.parse().ok()).collect(),
            set: fields(set),
            add: fields(add),
        })
    }

    pub fn apply(&self, headers: &mut HeaderMap) {
        for name in &self.remove {
            headers.remove(name);
        }
        for (name, value) in &self.set {
            headers.insert(name, value.clone());
        }
        for (name, value) in &self.add {
            headers.append(name, value.clone());
        }
    }
}
