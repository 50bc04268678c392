//! Keeps the table in step with the registries: a follower per service, started on the first request for it or because
//! the config names it, dropped when nobody asks for it any more.

mod checker;
mod disk;
mod dynamic;
mod follower;
mod following;
mod guard;
mod handle;
mod kept;
mod linger;
mod listing;
mod nearness;
mod publisher;
mod rollouts;
mod scope;
mod settings;
pub mod snapshot;
mod sources;
mod status;
#[cfg(test)]
mod tests;
mod watchdog;

pub use dynamic::{RoutesOf, RoutesStatus};
pub use following::{Place, StoreStatus};
pub use handle::Handle;
pub use rollouts::{NotDone, RolloutStatus, RolloutsStatus, WaitingFor};
pub use scope::Scope;
pub use status::{Held, SnapshotStatus, SourceState, SourceStatus, Status};

use crate::{
    cluster::{Cluster, Table, outlier, table::State},
    config::Config,
    error::{ProxyError, Reason},
    registry::Registry,
    telemetry::Telemetry,
};
use disk::Disk;
use dynamic::Dynamic;
use follower::Follower;
use handle::{InForce, Order};
use indexmap::IndexMap;
use listing::Listing;
use publisher::Known;
use rollouts::Rollouts;
use settings::{Over, SettingsFor};
use snapshot::{Saved, Store};
use std::{
    collections::{BTreeSet, HashMap},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{
    sync::{Notify, Semaphore, mpsc, watch},
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};

pub use settings::SettingsError;

/// So often per idle time it is looked which services nobody asks for. One goes between one idle time after its last
/// request and one and a quarter.
const IDLE_LOOKS: u32 = 4;

/// A name that nobody knows is kept at least this long, so that asking for one made-up name after the other does not turn
/// into as many questions to the registries: at most `max_services` in this time.
const UNKNOWN_STAYS: Duration = Duration::from_secs(5);

/// So long the sources are waited for before what is on disk is used.
const SNAPSHOT_PATIENCE: Duration = Duration::from_secs(1);

/// The registries by the names that the config gives them, in its order.
pub type Registries = IndexMap<String, Arc<dyn Registry>>;

/// The side that does the following. Runs on the control thread.
pub struct Discovery {
    table: Arc<Table>,
    telemetry: Arc<Telemetry>,
    config: Arc<Config>,
    registries: Registries,
    followers: HashMap<String, Follower>,
    listing: Listing,
    first_answer: Arc<AtomicU64>,
    /// Where what sources say is kept on disk.
    store: Option<Arc<Store>>,
    /// What was in force in the pillion that was taken over from, of services that are not followed yet.
    before: HashMap<String, Saved>,
    /// Routes that go before those in the config.
    dynamic: Dynamic,
    rollouts: Rollouts,
    stores_heard: watch::Sender<bool>,
    orders: mpsc::UnboundedReceiver<Order>,
    /// Rings when requests saw something that may change which endpoints are available.
    bell: Arc<Notify>,
    /// For checks of endpoints, those of all services together.
    checks: Arc<Semaphore>,
}

impl Discovery {
    pub fn new(
        config: Arc<Config>,
        registries: Registries,
        store: Option<Arc<Store>>,
        before: HashMap<String, Saved>,
        telemetry: Arc<Telemetry>,
    ) -> Result<(Self, Handle), SettingsError> {
        let (sender, orders) = mpsc::unbounded_channel();
        let table = Arc::new(Table::default());
        let first_answer = Arc::new(AtomicU64::new(0));
        let dynamic = Dynamic::new(&config, &registries, store.clone(), telemetry.clone());
        let rollouts = Rollouts::new(&config, &registries, &dynamic.routes(), store.clone(), telemetry.clone());
        let stores_heard = watch::Sender::new(dynamic.is_heard() && rollouts.is_heard());
        let handle = Handle {
            table: table.clone(),
            first_answer: first_answer.clone(),
            stores_heard: stores_heard.subscribe(),
            orders: sender,
        };
        let over = |service: &str| Over { routes: dynamic.routes_of(service), rollout: rollouts.state_of(service) };
        let settings = SettingsFor::all(&config, over)?;
        let mut discovery = Self {
            table,
            telemetry,
            config: config.clone(),
            registries,
            followers: HashMap::new(),
            listing: Listing::default(),
            first_answer,
            store,
            before,
            dynamic,
            rollouts,
            stores_heard,
            orders,
            bell: Arc::default(),
            checks: Arc::new(Semaphore::new(checker::AT_ONE_TIME)),
        };
        discovery.apply(settings);
        Ok((discovery, handle))
    }

    /// Serves orders until all handles are gone.
    pub async fn run(mut self) {
        let mut looked = Instant::now();
        let mut periods = interval(outlier::PERIOD);
        periods.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let look = looked + (self.config.discovery.idle / IDLE_LOOKS).max(Duration::from_millis(100));
            tokio::select! {
                // Looks first: many orders must not keep what is idle from going.
                biased;
                () = sleep_until(look) => {
                    looked = Instant::now();
                    self.drop_idle();
                }
                _ = periods.tick() => self.review(true),
                () = self.bell.notified() => self.review(false),
                () = self.dynamic.changed() => self.change_routes(),
                () = self.rollouts.changed() => self.change_weights(),
                order = self.orders.recv() => match order {
                    Some(order) => self.serve(order),
                    None => return,
                },
            }
        }
    }

    fn serve(&mut self, order: Order) {
        // Whoever asked may have gone; that is its affair.
        match order {
            Order::Follow { service, reply } => {
                let _ = reply.send(self.follow(&service));
            }
            Order::Status { service, reply } => {
                let _ = reply.send(self.followers.get(&service).map(Follower::status).unwrap_or_default());
            }
            Order::Names { reply } => {
                let _ = reply.send(self.listing.names(&self.config, &self.registries));
            }
            Order::Routes { reply } => {
                let _ = reply.send(self.dynamic.status());
            }
            Order::Rollouts { reply } => {
                let _ = reply.send(self.rollouts.status());
            }
            Order::Command { service, command, reply } => {
                let done = self.rollouts.command(&service, command);
                tokio::spawn(async move { reply.send(done.await) });
            }
            Order::Reload { config, registries, reply } => {
                let _ = reply.send(self.reload(config, registries));
            }
        }
    }

    fn reload(&mut self, config: Arc<Config>, registries: Registries) -> Result<InForce, SettingsError> {
        let routes = self.dynamic.read_again(&config);
        // On an error nothing is changed.
        SettingsFor::all(&config, |service| Over {
            routes: routes.get(service).map(|routes| &**routes),
            rollout: None,
        })?;
        self.dynamic.change(&config, &registries, routes);
        self.rollouts.change(&config, &registries, &self.dynamic.routes());
        self.hear_stores();
        let settings = SettingsFor::all(&config, |service| self.over(service))?;
        self.config = config;
        self.registries = registries;
        Ok(self.apply(settings))
    }

    /// The store of routes says something new: it is in force at once for the services that it concerns, and no other is
    /// touched.
    fn change_routes(&mut self) {
        let changed = self.dynamic.hear(&self.config);
        self.rollouts.change(&self.config, &self.registries, &self.dynamic.routes());
        self.change_settings(changed);
    }

    /// The same for what the states of rollouts say.
    fn change_weights(&mut self) {
        let changed = self.rollouts.hear();
        self.change_settings(changed);
    }

    /// Once they were, that does not change: a store that is new takes no traffic away.
    fn hear_stores(&self) {
        let heard = self.dynamic.is_heard() && self.rollouts.is_heard();
        self.stores_heard.send_if_modified(|before| heard && !std::mem::replace(before, true));
    }

    /// What goes before the config for a service.
    fn over(&self, service: &str) -> Over<'_> {
        Over { routes: self.dynamic.routes_of(service), rollout: self.rollouts.state_of(service) }
    }

    fn change_settings(&mut self, changed: BTreeSet<String>) {
        self.hear_stores();
        for service in changed {
            let Some(mut follower) = self.followers.remove(&service) else { continue };
            match SettingsFor::one(&self.config, &service, self.over(&service)) {
                Ok(mut settings) => {
                    settings.keep_gates(&follower.cluster().load().settings);
                    let sources = self.sources(&settings);
                    // The sources are the same, so it takes them. Nobody waits for that.
                    let _ = follower.change(&settings, &sources, self.config.discovery.coalesce);
                }
                // That of a file that has gone since. The old settings stay.
                Err(error) => tracing::error!(%service, %error, "the new routes cannot be used"),
            }
            self.followers.insert(service, follower);
        }
    }

    fn follow(&mut self, service: &str) -> Result<Arc<Cluster>, ProxyError> {
        if let Some(follower) = self.followers.get(service) {
            return Ok(follower.cluster().clone());
        }
        let on_demand = self.followers.values().filter(|follower| !follower.is_pinned()).count();
        let limit = self.config.discovery.max_services;
        if on_demand >= limit && !self.drop_unknown() {
            let detail = format!("{limit} services are followed on demand already (discovery.max_services)");
            return Err(ProxyError::new(Reason::TooManyServices, detail));
        }
        let settings = SettingsFor::one(&self.config, service, self.over(service)).map_err(|error| {
            ProxyError::new(Reason::DiscoveryTimeout, format!("the settings of `{service}` cannot be used: {error}"))
        })?;
        Ok(self.start(service, settings, None, false))
    }

    /// Makes room by dropping a service that no registry knows, so that made-up names never keep real ones out. Returns
    /// whether there was one.
    fn drop_unknown(&mut self) -> bool {
        let is_unknown = |f: &Follower| {
            let cluster = f.cluster();
            !f.is_pinned() && cluster.load().state == State::Unknown && cluster.since.elapsed() >= UNKNOWN_STAYS
        };
        let unknown = self.followers.iter().find(|(_, follower)| is_unknown(follower)).map(|(name, _)| name.clone());
        unknown.inspect(|service| self.forget(service)).is_some()
    }

    fn forget(&mut self, service: &str) {
        self.table.remove(service);
        if let Some(follower) = self.followers.remove(service) {
            follower.stop();
        }
    }

    fn start(
        &mut self,
        service: &str,
        settings: SettingsFor,
        known: Option<Arc<Cluster>>,
        same_sources: bool,
    ) -> Arc<Cluster> {
        let cluster = known.unwrap_or_else(|| {
            let metrics = self.telemetry.metrics.service(service);
            Arc::new(Cluster::new(service, settings.settings.clone(), metrics, self.bell.clone()))
        });
        let (sources, coalesce) = (self.sources(&settings), self.config.discovery.coalesce);
        let checks = self.checks.clone();
        // Soon enough for the first requests, which wait for the first answer.
        let patience = SNAPSHOT_PATIENCE.min(self.config.discovery.first_answer / 2);
        let patience = (cluster.load().state == State::Pending).then_some(patience);
        let disk = Disk::new(self.store.clone(), service, patience);
        let known = Known { disk, before: self.before.remove(service), same_sources };
        let follower = Follower::start(cluster.clone(), settings, sources, &self.telemetry, known, coalesce, checks);
        self.followers.insert(service.into(), follower);
        self.table.insert(cluster.clone());
        cluster
    }

    fn sources(&self, settings: &SettingsFor) -> Vec<Arc<dyn Registry>> {
        // The config was checked to name no other registries; without one of them, places would be mixed up.
        let asked = settings.plan.asked.iter().map(|asked| self.registries.get(&asked.registry).cloned());
        asked.collect::<Option<_>>().unwrap_or_default()
    }

    /// Starts what is new under the current config, and changes what is there.
    fn apply(&mut self, mut settings: HashMap<String, SettingsFor>) -> InForce {
        let first_answer = u64::try_from(self.config.discovery.first_answer.as_millis()).unwrap_or(u64::MAX);
        self.first_answer.store(first_answer, Relaxed);
        let mut changing = Vec::new();
        for (service, mut follower) in std::mem::take(&mut self.followers) {
            let one = || SettingsFor::one(&self.config, &service, self.over(&service));
            let wanted = settings.remove(&service).map_or_else(one, Ok);
            let wanted = match wanted {
                Ok(mut wanted) => {
                    wanted.keep_gates(&follower.cluster().load().settings);
                    wanted
                }
                // The defaults were checked with the config; a file may have gone since. The old settings stay.
                Err(error) => {
                    tracing::error!(%service, %error, "the new settings cannot be used");
                    self.followers.insert(service, follower);
                    continue;
                }
            };
            let (sources, coalesce) = (self.sources(&wanted), self.config.discovery.coalesce);
            if let Some(in_force) = follower.change(&wanted, &sources, coalesce) {
                changing.push(in_force);
                self.followers.insert(service, follower);
            } else {
                let same_sources = follower.has_plan_of(&wanted);
                let cluster = follower.stop();
                self.start(&service, wanted, Some(cluster), same_sources);
            }
        }
        for (service, settings) in settings {
            self.start(&service, settings, None, false);
        }
        changing
    }

    fn review(&mut self, period_passed: bool) {
        self.followers.values_mut().for_each(|follower| follower.review(period_passed));
    }

    fn drop_idle(&mut self) {
        let idle: Vec<String> = self
            .followers
            .iter_mut()
            .filter_map(|(service, follower)| {
                let is_idle = follower.look() >= IDLE_LOOKS && !follower.is_pinned();
                is_idle.then(|| service.clone())
            })
            .collect();
        for service in idle {
            tracing::debug!(%service, "no longer followed: nobody asked for it");
            self.forget(&service);
        }
    }
}
