//! Keeps the table in step with the registries: a follower per service, started on the first request for it or because
//! the config names it, dropped when nobody asks for it any more.

mod checker;
mod disk;
mod dynamic;
mod follower;
mod following;
mod guard;
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
pub use rollouts::{NotDone, RolloutStatus, RolloutsStatus, WaitingFor};
pub use scope::Scope;
pub use status::{Held, SnapshotStatus, SourceState, SourceStatus, Status};

use crate::{
    cluster::{
        Cluster, Table, outlier,
        table::{State, has_capitals},
    },
    config::Config,
    error::{ProxyError, Reason},
    registry::Registry,
    rollout::{Command, State as RolloutState},
    telemetry::Telemetry,
};
use disk::Disk;
use dynamic::Dynamic;
use follower::Follower;
use futures_util::future::join_all;
use indexmap::IndexMap;
use listing::{Listing, Names};
use publisher::Known;
use rollouts::Rollouts;
use settings::{Over, SettingsFor};
use snapshot::{Saved, Store};
use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{
    sync::{Notify, Semaphore, mpsc, oneshot, watch},
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

/// What the workers and the admin hold of discovery.
#[derive(Debug, Clone)]
pub struct Handle {
    table: Arc<Table>,
    first_answer: Arc<AtomicU64>,
    /// Whether the stores of routes and of rollouts have said anything, where there are any.
    stores_heard: watch::Receiver<bool>,
    orders: mpsc::UnboundedSender<Order>,
}

enum Order {
    Follow { service: String, reply: oneshot::Sender<Result<Arc<Cluster>, ProxyError>> },
    Status { service: String, reply: oneshot::Sender<Status> },
    Names { reply: oneshot::Sender<Names> },
    Routes { reply: oneshot::Sender<RoutesStatus> },
    Rollouts { reply: oneshot::Sender<RolloutsStatus> },
    Command { service: String, command: Command, reply: oneshot::Sender<Result<RolloutState, NotDone>> },
    Reload { config: Arc<Config>, registries: Registries, reply: oneshot::Sender<Result<InForce, SettingsError>> },
}

/// Each tells when one service's new settings are in force.
type InForce = Vec<oneshot::Receiver<()>>;

impl Handle {
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// How long the first request for a service waits for the registries.
    pub fn first_answer(&self) -> Duration {
        Duration::from_millis(self.first_answer.load(Relaxed))
    }

    /// The cluster of a service that is perhaps not followed yet.
    pub async fn follow(&self, service: &str) -> Result<Arc<Cluster>, ProxyError> {
        let (reply, answer) = oneshot::channel();
        let stopping = || ProxyError::new(Reason::ShuttingDown, "pillion is stopping");
        self.orders.send(Order::Follow { service: service.into(), reply }).map_err(|_| stopping())?;
        answer.await.map_err(|_| stopping())?
    }

    /// The cluster of the service that a host names ([`Table::of_host`]), which is perhaps not followed yet. What has capitals
    /// may have to wait until it is known whether there is a service with these.
    pub async fn of_host(&self, host: &str) -> Result<Arc<Cluster>, ProxyError> {
        if let Some(settled) = self.table.of_host(host) {
            return Ok(settled);
        }
        let cluster = async |name: &str| match self.table.get(name) {
            Some(cluster) => Ok(cluster),
            None => self.follow(name).await,
        };
        let written_so = cluster(host).await?;
        if !has_capitals(host) {
            return Ok(written_so);
        }
        let state = written_so.first_answer(self.first_answer()).await.state;
        if state == State::Known {
            return Ok(written_so);
        }
        let lower = cluster(&host.to_ascii_lowercase()).await?;
        // While no registry answers, what is known from disk is better than nothing.
        let takes_lower = state == State::Unknown || lower.load().state == State::Known;
        Ok(if takes_lower { lower } else { written_so })
    }

    /// Where the endpoints of a followed service come from; nothing for one that is not followed.
    pub async fn status(&self, service: &str) -> Status {
        let (reply, answer) = oneshot::channel();
        let _ = self.orders.send(Order::Status { service: service.into(), reply });
        answer.await.unwrap_or_default()
    }

    /// The service that has a virtual address which nobody was given since the start: one that a registry lists, and whose name
    /// makes it. Asks the registries.
    pub async fn owner_of_virtual(&self, ip: IpAddr) -> Option<Arc<str>> {
        let (reply, answer) = oneshot::channel();
        let _ = self.orders.send(Order::Names { reply });
        let names = answer.await.ok()?.await;
        self.table.virtuals().owner_among(ip, names.iter().cloned())
    }

    /// What the store of routes has, and what of it is in force.
    pub async fn routes(&self) -> RoutesStatus {
        let (reply, answer) = oneshot::channel();
        let _ = self.orders.send(Order::Routes { reply });
        answer.await.unwrap_or_default()
    }

    /// The services with a rollout, and how far each is.
    pub async fn rollouts(&self) -> RolloutsStatus {
        let (reply, answer) = oneshot::channel();
        let _ = self.orders.send(Order::Rollouts { reply });
        answer.await.unwrap_or_default()
    }

    /// Does something with a service's rollout, in the store that all pillions follow; gives its state after that.
    pub async fn command(&self, service: &str, command: Command) -> Result<RolloutState, NotDone> {
        let (reply, answer) = oneshot::channel();
        let _ = self.orders.send(Order::Command { service: service.into(), command, reply });
        answer.await.unwrap_or_else(|_| Err(NotDone::Failed("pillion is stopping".into())))
    }

    /// Takes over another config, which is in force for every service when this returns. Followers whose sources changed
    /// are started afresh, and what they knew stays until their sources have answered. On an error nothing was changed.
    pub async fn reload(&self, config: Arc<Config>, registries: Registries) -> Result<(), SettingsError> {
        let (reply, answer) = oneshot::channel();
        let _ = self.orders.send(Order::Reload { config, registries, reply });
        if let Ok(changing) = answer.await {
            // One that was dropped meanwhile has nothing to say.
            let _ = join_all(changing?).await;
        }
        Ok(())
    }

    /// Whether each service that the config names has had its first answer, and it is known whether a store says anything
    /// else about them.
    pub fn is_ready(&self, config: &Config) -> bool {
        self.hears_stores() && self.unanswered(config).is_empty()
    }

    /// Whether the stores of routes and of rollouts have answered or failed, where there are any.
    pub fn hears_stores(&self) -> bool {
        *self.stores_heard.borrow()
    }

    /// Waits until they have, which with a store that hangs may take its time limit.
    pub async fn until_stores_heard(&self) {
        // Without discovery there is nothing to hear.
        let _ = self.stores_heard.clone().wait_for(|heard| *heard).await;
    }

    /// Those services that the config names, by themselves or elsewhere, which have had no answer yet.
    pub fn unanswered(&self, config: &Config) -> Vec<String> {
        let is_pending = |service: &String| self.table.get(service).is_none_or(|c| c.load().state == State::Pending);
        settings::named(config).into_iter().filter(is_pending).collect()
    }
}

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
