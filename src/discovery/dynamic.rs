//! Routes from a registry's own store, which change while pillion runs: what is in force for each service, and what was
//! refused.
//!
//! What the store has for a service goes before the config, as a whole. A value that is refused changes nothing: the last
//! good one stays, also over restarts where there is a folder for snapshots. A store that fails changes nothing either.

#[cfg(test)]
mod tests;

use super::{
    Registries,
    following::{Following, Place, StoreStatus},
    kept::{self, Kept},
    snapshot,
};
use crate::{
    config::{self, Config, RouteStore, StoredRoutes},
    registry::store::{Item, MAX_VALUE, Seen, Version},
    telemetry::{Telemetry, labels::RouteUpdate, metrics::RoutesMetrics},
};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    future::pending,
    sync::Arc,
    time::Duration,
};
use tokio::time::Instant;

/// The routes by service, as they are in force.
pub type Routes = HashMap<String, Arc<StoredRoutes>>;

/// The store that the config names, if it names one, and what it said.
pub struct Dynamic {
    following: Option<Following>,
    services: BTreeMap<String, Entry>,
    /// Where good values are kept on disk.
    disk: Option<Arc<snapshot::Store>>,
    telemetry: Arc<Telemetry>,
}

/// What is known of one service.
struct Entry {
    good: Option<Good>,
    refused: Option<Refused>,
    metrics: Arc<RoutesMetrics>,
}

/// What is in force.
#[derive(Clone)]
struct Good {
    item: Item,
    routes: Arc<StoredRoutes>,
    since: Instant,
    /// The store has not confirmed it since the start.
    from_disk: bool,
}

/// A value that is not in force.
struct Refused {
    item: Item,
    error: String,
    since: Instant,
}

/// For those who ask.
#[derive(Debug, Clone, Default)]
pub struct RoutesStatus {
    pub store: Option<StoreStatus>,
    pub services: Vec<RoutesOf>,
}

/// What the store has for a service.
#[derive(Debug, Clone)]
pub struct RoutesOf {
    pub service: String,
    /// What is in force: its version, since when, and whether that was read from the disk. Without it the config is.
    pub good: Option<(Version, Duration, bool)>,
    /// What was refused: its version, why, and since when.
    pub refused: Option<(Version, String, Duration)>,
}

impl Dynamic {
    /// Begins to watch what `config` names.
    pub fn new(
        config: &Config,
        registries: &Registries,
        disk: Option<Arc<snapshot::Store>>,
        telemetry: Arc<Telemetry>,
    ) -> Self {
        let mut dynamic = Self { following: None, services: BTreeMap::new(), disk, telemetry };
        dynamic.follow(config, registries);
        dynamic
    }

    /// Takes over another config, in which the routes were [read again](Self::read_again).
    pub fn change(&mut self, config: &Config, registries: &Registries, routes: Routes) {
        for (service, routes) in routes {
            if let Some(good) = self.services.get_mut(&service).and_then(|entry| entry.good.as_mut()) {
                good.routes = routes;
            }
        }
        self.follow(config, registries);
    }

    /// Watches the store that `config` names, from now on or still. What another one said does not count any more.
    fn follow(&mut self, config: &Config, registries: &Registries) {
        let wanted = config.routing.store.clone().and_then(|RouteStore { registry, path }| {
            let at = registries.get(&registry)?;
            Some((Place { registry, path }, at))
        });
        let before = self.following.take();
        let Some((place, registry)) = wanted else {
            self.services.clear();
            return;
        };
        if before.as_ref().is_some_and(|before| before.is_at(&place, registry)) {
            self.following = before;
            return;
        }
        if before.is_none_or(|before| before.place != place) {
            self.services.clear();
            self.load(&place, config);
            self.tell_if_not_kept(&place, config);
        }
        self.following = Some(Following::start("the store of routes", place, registry, &self.telemetry));
    }

    /// What was last good would not outlive a restart.
    fn tell_if_not_kept(&self, Place { registry, .. }: &Place, config: &Config) {
        if self.disk.is_none() && config.registries.get(registry).is_some_and(config::Registry::is_remote) {
            tracing::warn!(
                registry,
                "without `discovery.snapshot`, routes from the store are not kept on disk: after a restart, those in the \
                 config are in force until the store answers"
            );
        }
    }

    /// Puts what was kept on disk in force.
    fn load(&mut self, place: &Place, config: &Config) {
        let Some(bytes) = self.disk.as_ref().and_then(|disk| disk.load_routes(&kept::name(place))) else { return };
        let kept = match kept::decode(place, &bytes) {
            Ok(kept) => kept,
            Err(cause) => return tracing::warn!(cause, "the routes that were kept on disk cannot be used"),
        };
        let mut whole = config.clone();
        let item = |Kept { service, version, text }| Item {
            key: service,
            value: String::into(text),
            version: Version::new(version),
        };
        let mut open: Vec<Item> = kept.into_iter().map(item).collect();
        // As in [`Self::hear`]: routes may name subsets of a service that is read after them.
        loop {
            let (before, mut refused) = (open.len(), Vec::new());
            for item in open {
                match read(place, &item, &whole) {
                    Ok(routes) => {
                        lay_over(&mut whole, &item.key, &routes);
                        let metrics = self.telemetry.metrics.routes(&item.key);
                        let (service, routes) = (item.key.clone(), Arc::new(routes));
                        let good = Good { item, routes, since: Instant::now(), from_disk: true };
                        self.services.insert(service, Entry { good: Some(good), refused: None, metrics });
                    }
                    Err(error) => refused.push((item, error)),
                }
            }
            if refused.len() == before || refused.is_empty() {
                for (item, error) in refused {
                    tracing::warn!(service = item.key, "routes that were kept on disk are good no more:\n{error}");
                }
                return;
            }
            open = refused.into_iter().map(|(item, _)| item).collect();
        }
    }

    /// Waits until the store has something new to say. Loses nothing when it is dropped.
    pub async fn changed(&mut self) {
        match &mut self.following {
            Some(following) => following.changed().await,
            None => pending().await,
        }
    }

    /// Whether the store has said anything at all, if there is one.
    pub fn is_heard(&self) -> bool {
        self.following.as_ref().is_none_or(Following::is_heard)
    }

    /// Takes in what the store says now; gives the services whose routes are others now.
    pub fn hear(&mut self, config: &Config) -> BTreeSet<String> {
        let Some(following) = &mut self.following else { return BTreeSet::new() };
        let Seen { items: Some(items), .. } = following.hear() else { return BTreeSet::new() };
        let place = following.place.clone();
        let mut changed = self.forget(&items);
        let mut open: Vec<&Item> = items.iter().filter(|item| !self.confirm(item)).collect();
        let mut errors = HashMap::new();
        let mut whole = self.whole(config);
        // Routes may name subsets of a service that is read after them: as long as something turns out good, what was
        // refused is read again.
        loop {
            let before = open.len();
            open.retain(|item| match read(&place, item, &whole) {
                Ok(routes) => {
                    lay_over(&mut whole, &item.key, &routes);
                    self.accept(item, routes);
                    changed.insert(item.key.clone());
                    false
                }
                Err(error) => {
                    errors.insert(&item.key, error);
                    true
                }
            });
            if open.is_empty() || open.len() == before {
                break;
            }
        }
        for item in open {
            self.refuse(&place, item, errors.remove(&item.key).unwrap_or_default());
        }
        if let Some(disk) = &self.disk {
            disk.save_routes(&kept::name(&place), kept::encode(&place, &self.kept()));
        }
        changed
    }

    /// Reads what is in force again, under another config. What makes no sense there stays as it is, and is told.
    pub fn read_again(&self, config: &Config) -> Routes {
        let Some(following) = &self.following else { return Routes::new() };
        let whole = self.whole(config);
        let goods = self.services.iter().filter_map(|(service, entry)| Some((service, entry.good.as_ref()?)));
        goods
            .map(|(service, good)| match read(&following.place, &good.item, &whole) {
                Ok(routes) => (service.clone(), Arc::new(routes)),
                Err(error) => {
                    tracing::error!(
                        %service, version = %good.item.version,
                        "the routes in the store do not fit the new config; they stay in force as they were read before:\n{error}"
                    );
                    (service.clone(), good.routes.clone())
                }
            })
            .collect()
    }

    /// The routes that are in force.
    pub fn routes(&self) -> Routes {
        let goods = self.services.iter().filter_map(|(service, entry)| Some((service, entry.good.as_ref()?)));
        goods.map(|(service, good)| (service.clone(), good.routes.clone())).collect()
    }

    /// Those of one service.
    pub fn routes_of(&self, service: &str) -> Option<&StoredRoutes> {
        Some(&self.services.get(service)?.good.as_ref()?.routes)
    }

    pub fn status(&self) -> RoutesStatus {
        let store = self.following.as_ref().map(Following::status);
        let of = |(service, entry): (&String, &Entry)| RoutesOf {
            service: service.clone(),
            good: entry.good.as_ref().map(|good| (good.item.version.clone(), good.since.elapsed(), good.from_disk)),
            refused: entry
                .refused
                .as_ref()
                .map(|refused| (refused.item.version.clone(), refused.error.clone(), refused.since.elapsed())),
        };
        RoutesStatus { store, services: self.services.iter().map(of).collect() }
    }

    /// The config, with the subsets that stored routes can name.
    fn whole(&self, config: &Config) -> Config {
        let mut whole = config.clone();
        for (service, entry) in &self.services {
            if let Some(good) = &entry.good {
                lay_over(&mut whole, service, &good.routes);
            }
        }
        whole
    }

    /// Services that are not in the store any more have the config's routes again.
    fn forget(&mut self, items: &[Item]) -> BTreeSet<String> {
        let there: HashSet<&str> = items.iter().map(|item| item.key.as_str()).collect();
        let mut changed = BTreeSet::new();
        self.services.retain(|service, entry| {
            if there.contains(service.as_str()) {
                return true;
            }
            if entry.good.is_some() {
                tracing::info!(%service, "its routes are gone from the store; those in the config are in force again");
                changed.insert(service.clone());
            }
            false
        });
        changed
    }

    /// Whether that is in force already.
    fn confirm(&mut self, item: &Item) -> bool {
        let Some(entry) = self.services.get_mut(&item.key) else { return false };
        let Some(good) = entry.good.as_mut().filter(|good| good.item.value == item.value) else { return false };
        good.item.version = item.version.clone();
        good.from_disk = false;
        if entry.refused.take().is_some() {
            tracing::info!(service = item.key, version = %item.version, "the store has the routes again that are in force");
        }
        entry.metrics.rejected.set(0);
        true
    }

    fn accept(&mut self, item: &Item, routes: StoredRoutes) {
        tracing::info!(service = item.key, version = %item.version, "routes from the store are in force");
        let entry = self.entry(&item.key);
        entry.metrics.updates.inc(RouteUpdate::Accepted as usize);
        entry.metrics.rejected.set(0);
        entry.refused = None;
        let (item, routes) = (item.clone(), Arc::new(routes));
        entry.good = Some(Good { item, routes, since: Instant::now(), from_disk: false });
    }

    fn refuse(&mut self, place: &Place, item: &Item, error: String) {
        let entry = self.entry(&item.key);
        let is_told = |there: &Refused| there.item == *item && there.error == error;
        if entry.refused.as_ref().is_some_and(is_told) {
            return;
        }
        let stays = match &entry.good {
            Some(good) => format!("version {} stays in force", good.item.version),
            None => "those in the config stay in force".into(),
        };
        let (service, version, key) = (&item.key, &item.version, key(place, &item.key));
        tracing::error!(service, key, %version, "the routes in the store are refused, and {stays}:\n{error}");
        entry.metrics.updates.inc(RouteUpdate::Rejected as usize);
        entry.metrics.rejected.set(1);
        entry.refused = Some(Refused { item: item.clone(), error, since: Instant::now() });
    }

    fn entry(&mut self, service: &str) -> &mut Entry {
        let metrics = &self.telemetry.metrics;
        let new = || Entry { good: None, refused: None, metrics: metrics.routes(service) };
        self.services.entry(service.into()).or_insert_with(new)
    }

    fn kept(&self) -> Vec<Kept> {
        let goods = self.services.iter().filter_map(|(service, entry)| Some((service, &entry.good.as_ref()?.item)));
        // What is good is text.
        let kept = |(service, item): (&String, &Item)| Kept {
            service: service.clone(),
            version: item.version.to_string(),
            text: String::from_utf8_lossy(&item.value).into_owned(),
        };
        goods.map(kept).collect()
    }
}

/// The key of a service, as errors and users call it.
fn key(place: &Place, service: &str) -> String {
    format!("{}/{service}", place.path)
}

fn read(place: &Place, Item { key: service, value, .. }: &Item, whole: &Config) -> Result<StoredRoutes, String> {
    let key = key(place, service);
    if value.len() > MAX_VALUE {
        return Err(format!("{key}: it has {} bytes; expected at most {MAX_VALUE}", value.len()));
    }
    config::read_stored(&key, value, service, whole).map_err(|errors| errors.to_string())
}

fn lay_over(whole: &mut Config, service: &str, routes: &StoredRoutes) {
    let defaults = &whole.defaults;
    let there = whole.services.entry(service.into()).or_insert_with(|| defaults.clone());
    there.subsets = routes.subsets.clone();
}
