//! Checks of `routing`: that there is such a registry, that its kind has a store, and that the path can be one.

use super::{Check, Spot};
use crate::config::{
    Config, KubernetesRegistry, Registry,
    error::{one_of, shorten},
};
use std::collections::HashSet;

impl<'t> Check<'_, 't> {
    /// What is below one path is all of one kind.
    pub(super) fn paths_apart(&mut self, spot: &Spot<'t>, config: &Config) {
        let (Some(routes), Some(rollouts)) = (&config.routing.store, config.routing.rollout_store()) else { return };
        let holds = |path: &str, other: &str| {
            other.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        let locks = format!("{}-locks", rollouts.path);
        let has_rollouts = config.routing.rollouts.is_some() || config.services.values().any(|it| it.rollout.is_some());
        let meet =
            [&rollouts.path, &locks].into_iter().any(|path| holds(path, &routes.path) || holds(&routes.path, path));
        if has_rollouts && routes.registry == rollouts.registry && meet {
            let (path, other) = (shorten(&routes.path), shorten(&rollouts.path));
            let message = format!(
                "`{path}` and `{other}`, where rollouts are, lie in one another; expected paths beside each other"
            );
            self.fail(&spot.key("store").key("path"), message);
        }
    }

    /// Where something is in a registry's own store.
    pub(super) fn store_path(&mut self, spot: &Spot<'t>, registry: &str, path: &str, config: &Config) {
        let at = spot.key("registry");
        self.source(&at, registry, &mut HashSet::new());
        if config.registries.get(registry).is_some_and(|registry| !registry.has_store()) {
            let able = config.registries.iter().filter(|(_, registry)| registry.has_store());
            let able: Vec<_> = able.map(|(name, _)| name.as_str()).collect();
            let of_kind = || format!("one of kind {}", Registry::WITH_STORE);
            let expected = if able.is_empty() { of_kind() } else { one_of(able) };
            let found = shorten(registry);
            self.fail(&at, format!("`{found}` is of a kind that has no store of its own; expected {expected}"));
        }
        let is_name = |name: &str| {
            !matches!(name, "" | "." | "..") && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
        };
        if !path.split('/').all(is_name) {
            let message = format!(
                "found `{}`; expected names of letters, digits, `-`, `_` and `.` with `/` between them, like `pillion/routes`",
                shorten(path)
            );
            self.fail(&spot.key("path"), message);
        } else if matches!(config.registries.get(registry), Some(Registry::Kubernetes(_)))
            && KubernetesRegistry::config_map(path).is_none()
        {
            let message = format!(
                "found `{}`; expected names of lower-case letters, digits, `-` and `.` that begin and end with a letter or \
                 digit, with `/` between them, for it becomes a ConfigMap's name",
                shorten(path)
            );
            self.fail(&spot.key("path"), message);
        }
    }
}
