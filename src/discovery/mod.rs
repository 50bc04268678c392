//! Keeps the table in step with the registries: a follower per service, started on the first request for it or because
//! the config names it, dropped when nobody asks for it any more.

mod checker;
mod follower;
mod linger;
mod settings;
#[cfg(test)]
mod tests;

pub use follower::SourceStatus;

use crate::{
    cluster::{Cluster, Table, outlier, table::State},
    config::Config,
    error::{ProxyError, Reason},
    registry::Registry,
    telemetry::Telemetry,
};
use follower::Follower;
use futures_util::future::join_all;
use indexmap::IndexMap;
use settings::SettingsFor;
use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{
    sync::{Notify, Semaphore, mpsc, oneshot},
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};

pub use settings::SettingsError;

/// So often per idle time it is looked which services nobody asks for. One goes between one idle time after its last
/// request and one and a quarter.
const IDLE_LOOKS: u32 = 4;

/// A name that nobody knows is kept at least this long, so that asking for one made-up name after the other does not turn
/// into as many questions to the registries: at most `max_services` in this time.
const UNKNOWN_STAYS: Duration = Duration::from_secs(5);

/// The registries by the names that the config gives them, in its order.
pub type Registries = IndexMap<String, Arc<dyn Registry>>;

/// What the workers and the admin hold of discovery.
#[derive(Debug, Clone)]
pub struct Handle {
    table: Arc<Table>,
    first_answer: Arc<AtomicU64>,
    orders: mpsc::UnboundedSender<Order>,
}

enum Order {
    Follow { service: String, reply: oneshot::Sender<Result<Arc<Cluster>, ProxyError>> },
    Sources { service: String, reply: oneshot::Sender<Vec<SourceStatus>> },
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

    /// What each source has said about a followed service; empty for one that is not followed.
    pub async fn sources(&self, service: &str) -> Vec<SourceStatus> {
        let (reply, answer) = oneshot::channel();
        let _ = self.orders.send(Order::Sources { service: service.into(), reply });
        answer.await.unwrap_or_default()
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

    /// Whether each service that the config names has had its first answer.
    pub fn is_ready(&self, config: &Config) -> bool {
        self.unanswered(config).is_empty()
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
    first_answer: Arc<AtomicU64>,
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
        telemetry: Arc<Telemetry>,
    ) -> Result<(Self, Handle), SettingsError> {
        let (sender, orders) = mpsc::unbounded_channel();
        let table = Arc::new(Table::default());
        let first_answer = Arc::new(AtomicU64::new(0));
        let handle = Handle { table: table.clone(), first_answer: first_answer.clone(), orders: sender };
        let mut discovery = Self {
            table,
            telemetry,
            config: config.clone(),
            registries,
            followers: HashMap::new(),
            first_answer,
            orders,
            bell: Arc::default(),
            checks: Arc::new(Semaphore::new(checker::AT_ONE_TIME)),
        };
        let settings = SettingsFor::all(&config)?;
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
            Order::Sources { service, reply } => {
                let _ = reply.send(self.followers.get(&service).map(Follower::sources).unwrap_or_default());
            }
            Order::Reload { config, registries, reply } => {
                let _ = reply.send(SettingsFor::all(&config).map(|settings| {
                    self.config = config;
                    self.registries = registries;
                    self.apply(settings)
                }));
            }
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
        let settings = SettingsFor::one(&self.config, service).map_err(|error| {
            ProxyError::new(Reason::DiscoveryTimeout, format!("the settings of `{service}` cannot be used: {error}"))
        })?;
        Ok(self.start(service, settings, None))
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

    fn start(&mut self, service: &str, settings: SettingsFor, known: Option<Arc<Cluster>>) -> Arc<Cluster> {
        let cluster = known.unwrap_or_else(|| {
            let metrics = self.telemetry.metrics.service(service);
            Arc::new(Cluster::new(service, settings.settings.clone(), metrics, self.bell.clone()))
        });
        let (sources, coalesce) = (self.sources(&settings), self.config.discovery.coalesce);
        let checks = self.checks.clone();
        let follower = Follower::start(cluster.clone(), settings, sources, &self.telemetry, coalesce, checks);
        self.followers.insert(service.into(), follower);
        self.table.insert(cluster.clone());
        cluster
    }

    fn sources(&self, settings: &SettingsFor) -> Vec<Arc<dyn Registry>> {
        settings.sources.iter().filter_map(|name| self.registries.get(name).cloned()).collect()
    }

    /// Starts what is new under the current config, and changes what is there.
    fn apply(&mut self, mut settings: HashMap<String, SettingsFor>) -> InForce {
        let first_answer = u64::try_from(self.config.discovery.first_answer.as_millis()).unwrap_or(u64::MAX);
        self.first_answer.store(first_answer, Relaxed);
        let mut changing = Vec::new();
        for (service, mut follower) in std::mem::take(&mut self.followers) {
            let wanted = settings.remove(&service).map_or_else(|| SettingsFor::one(&self.config, &service), Ok);
            let wanted = match wanted {
                Ok(wanted) => wanted,
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
                let cluster = follower.stop();
                self.start(&service, wanted, Some(cluster));
            }
        }
        for (service, settings) in settings {
            self.start(&service, settings, None);
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
