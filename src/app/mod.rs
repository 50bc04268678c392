//! One running pillion: builds the parts from a [`Config`], supervises them, and takes them down.

mod drain;
mod inherited;
mod interface;
mod listeners;
mod notify;
mod registries;
mod upgrade;
mod watch;
mod workers;

pub use upgrade::Successor;
pub use watch::ConfigFile;

use crate::{
    admin,
    config::Config,
    discovery::{self, Discovery, snapshot::Store},
    dns,
    drain::{Drain, End},
    inbound::LocalApps,
    net::{activation::Activated, descriptors, handover::States},
    registrar::{self, Listening, Registrar},
    registry::{embedded::Embedded, store},
    telemetry::{Telemetry, access_log, access_log::AccessLog, labels::WORDS, log::LogHandle, metrics::Metrics},
};
use anyhow::{Context, ensure};
use arc_swap::ArcSwap;
use drain::Course;
use inherited::Inherited;
use interface::Interface;
use listeners::{Running, closed};
use notify::Notifier;
use registries::{Legacy, RegistrySet};
use std::{
    collections::HashMap,
    mem::take,
    net::SocketAddr,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};
use tokio::task::JoinSet;
use upgrade::{TakeOver, UpgradeSocket, Upgrades};
use workers::Workers;

/// A pillion that is up. Lives on the control thread.
pub struct App {
    config: Arc<ArcSwap<Config>>,
    telemetry: Arc<Telemetry>,
    log: LogHandle,
    for_admin: Arc<admin::State>,
    drain: Arc<Drain>,
    notifier: Arc<Notifier>,
    discovery: discovery::Handle,
    registries: RegistrySet,
    registrar: registrar::Handle,
    /// The snapshots on disk.
    store: Option<Arc<Store>>,
    listeners: HashMap<String, Running>,
    local_apps: LocalApps,
    workers: Workers,
    admin: Interface,
    /// Lets a new pillion take this one's place.
    upgrades: Option<Upgrades>,
    /// Admin and discovery. They end with the app.
    tasks: JoinSet<()>,
}

impl App {
    /// Starts everything. Whatever can be wrong (a port that is taken, a file that is missing) is found before the first
    /// connection is accepted.
    pub async fn start(config: Config, log: LogHandle) -> anyhow::Result<Self> {
        Self::start_on(config, log, Vec::new()).await
    }

    /// The same on sockets that are there already, where they are for what the config has; and if it says how to take over
    /// from another pillion, and there is one, on that one's. It goes on until all is ready here, and on an error after that.
    pub async fn start_on(config: Config, log: LogHandle, activated: Vec<Activated>) -> anyhow::Result<Self> {
        descriptors::raise();
        let config = Arc::new(config);
        let mut before = match &config.upgrade {
            Some(upgrade) => TakeOver::begin(upgrade).await?,
            None => None,
        };
        let (handed_over, states) =
            before.as_mut().map(|before| (take(&mut before.sockets), take(&mut before.registries))).unwrap_or_default();
        let mut legacy = Legacy { sockets: Inherited::new(handed_over, activated)?, states };
        let admin =
            Interface::bind("admin".into(), config.admin.listen, &mut legacy.sockets).await.with_context(|| {
                taken(
                    config.admin.listen,
                    "the admin interface",
                    "`admin.listen`, or PILLION_ADMIN or --admin, which go before it",
                )
            })?;
        let metrics = Metrics::new(WORDS);
        let access_log = AccessLog::start(&config.access_log, metrics.access_log_dropped.clone())?;
        let telemetry = Arc::new(Telemetry { metrics, access_log });
        let questions = config.dns.as_ref().map(|dns| dns::Sockets::bind(dns, config.upgrade.is_some())).transpose()?;
        let registries = RegistrySet::default().changed_to(&config, &mut legacy).await?;
        let snapshots = telemetry.metrics.snapshots.clone();
        let store = config.discovery.snapshot.as_ref().map(|snapshot| Store::open(snapshot, snapshots)).transpose()?;
        let known = before.as_ref().map(TakeOver::known).unwrap_or_default();
        let (discovery, handle) =
            Discovery::new(config.clone(), registries.handles(), store.clone(), known, telemetry.clone())?;
        let mut tasks = JoinSet::new();
        tasks.spawn(discovery.run());
        if let (Some(settings), Some(sockets)) = (&config.dns, questions) {
            let server = dns::Server::new(settings, handle.clone(), telemetry.metrics.dns())?;
            tasks.spawn(sockets.serve(server)?);
        }
        let (registrar, registering) = Registrar::new(telemetry.clone());
        tasks.spawn(registrar.run());
        let workers = Workers::start(config.workers.count(), &handle, &telemetry)?;
        let drain = Arc::new(Drain::default());
        let in_force = Arc::new(ArcSwap::new(config.clone()));
        let local_apps = LocalApps::new(telemetry.clone());
        let for_admin = Arc::new(admin::State {
            config: in_force.clone(),
            discovery: handle.clone(),
            telemetry: telemetry.clone(),
            log: log.clone(),
            registries: Arc::new(ArcSwap::from_pointee(registries.handles())),
            registrar: registering.clone(),
            health: Arc::default(),
            drain: drain.clone(),
            local_apps: local_apps.handle(),
        });
        let mut app = Self {
            config: in_force,
            local_apps,
            telemetry,
            log,
            drain,
            notifier: Arc::new(Notifier::new(&|name| std::env::var(name).ok())),
            discovery: handle,
            registries,
            registrar: registering,
            store,
            for_admin,
            listeners: HashMap::new(),
            workers,
            admin,
            upgrades: None,
            tasks,
        };
        app.tasks.spawn(app.admin.serve(admin::router(app.for_admin.clone()))?);
        let sockets = app.bind_new(&config, &mut legacy.sockets)?;
        legacy.sockets.finish()?;
        app.take_place(before).await?;
        app.set_listeners(&config, sockets);
        app.for_admin.health.listening.store(true, Relaxed);
        app.register(&config).await;
        let notifier = app.notifier.clone();
        app.tasks.spawn(async move { notifier.keep_alive().await });
        app.tasks.spawn(become_ready(app.for_admin.clone(), app.notifier.clone()));
        app.admin.open();
        Ok(app)
    }

    /// The last step that can fail: the pillion `before` goes, or it is made sure that there is none.
    async fn take_place(&mut self, before: Option<TakeOver>) -> anyhow::Result<()> {
        let config = self.config.load_full();
        let mut states = States::new();
        match (before, &config.upgrade) {
            (Some(mut before), Some(settings)) => {
                self.until_ready(&before.services, settings.timeout).await?;
                states = before.go().await?;
                self.notifier.is_main_process();
                self.upgrades = Some(before.upgrades);
            }
            (None, Some(settings)) => {
                let socket = UpgradeSocket::open(&settings.socket).context("upgrade.socket")?;
                self.upgrades = Some(Upgrades::start(socket, settings.timeout)?);
            }
            (_, None) => {}
        }
        self.registries.open(&states).await;
        if let Some(upgrades) = &self.upgrades {
            upgrades.open();
        }
        Ok(())
    }

    /// Where the admin interface listens.
    pub fn admin(&self) -> SocketAddr {
        self.admin.bound
    }

    /// Where the listener `name` listens.
    pub fn listener(&self, name: &str) -> Option<SocketAddr> {
        self.listeners.get(name).map(|listener| listener.bound)
    }

    /// Where each listener listens, by name.
    pub fn listeners(&self) -> Vec<(String, SocketAddr)> {
        let mut all: Vec<_> = self.listeners.iter().map(|(name, listener)| (name.clone(), listener.bound)).collect();
        all.sort();
        all
    }

    pub fn telemetry(&self) -> &Arc<Telemetry> {
        &self.telemetry
    }

    pub fn discovery(&self) -> &discovery::Handle {
        &self.discovery
    }

    /// Where the end is asked for; [`Self::end`] carries it out.
    pub fn drain(&self) -> &Arc<Drain> {
        &self.drain
    }

    /// Asks for the end, as the config in force says.
    pub fn ask_to_end(&self, by: &'static str) {
        self.drain.ask(End::Drain, by, self.config.load().drain.timeout);
    }

    /// Gives how long the end may take, as the config in force then says.
    pub fn drain_timeout(&self) -> impl Fn() -> Duration + use<> {
        let config = self.config.clone();
        move || config.load().drain.timeout
    }

    /// The embedded registry called `name`.
    pub fn embedded(&self, name: &str) -> Option<Arc<Embedded>> {
        self.registries.embedded(name)
    }

    /// Tells the service manager that another config is being taken over.
    pub fn reload_begins(&self) {
        if self.has_started() {
            self.notifier.reloading();
        }
    }

    /// Tells the service manager that this is over, and whether it worked.
    pub fn reload_ended(&self, worked: bool) {
        if self.has_started() {
            self.notifier.ready(if worked { "ready" } else { "ready, with the old config" });
        }
    }

    /// Whether it could take traffic once. The service manager knows it then.
    fn has_started(&self) -> bool {
        self.for_admin.health.started.load(Relaxed)
    }

    /// Puts another config in force, all of it or, on an error, nothing.
    pub async fn reload(&mut self, new: Config) -> anyhow::Result<()> {
        let result = self.try_reload(new).await;
        let reloads = &self.telemetry.metrics.reloads;
        if result.is_ok() { &reloads.ok } else { &reloads.failed }.inc();
        result
    }

    async fn try_reload(&mut self, new: Config) -> anyhow::Result<()> {
        // What the new pillion was told of this one would not be so any more.
        ensure!(!self.is_upgrading(), "an upgrade is under way");
        let (old, new) = (self.config.load_full(), Arc::new(new));
        if old == new {
            return Ok(());
        }
        ensure!(old.upgrade == new.upgrade, "`upgrade` cannot change while pillion runs; restart it");
        ensure!(old.workers.count() == new.workers.count(), "`workers` cannot change while pillion runs; restart it");
        ensure!(old.admin.listen == new.admin.listen, "`admin.listen` cannot change while pillion runs; restart it");
        ensure!(old.log.format == new.log.format, "`log.format` cannot change while pillion runs; restart it");
        ensure!(old.dns == new.dns, "`dns` cannot change while pillion runs; restart it");
        let same_snapshot = old.discovery.snapshot == new.discovery.snapshot;
        ensure!(same_snapshot, "`discovery.snapshot` cannot change while pillion runs; restart it");
        if old.access_log.path != new.access_log.path {
            access_log::check(&new.access_log)?;
        }
        let mut legacy = Legacy::default();
        let sockets = self.bind_new(&new, &mut legacy.sockets)?;
        let registries = self.registries.changed_to(&new, &mut legacy).await?;
        // The last step that can fail.
        self.discovery.reload(new.clone(), registries.handles()).await?;
        self.for_admin.registries.store(Arc::new(registries.handles()));
        self.registries = registries;
        self.registries.open(&legacy.states).await;
        let gone = self.set_listeners(&new, sockets);
        closed(gone).await;
        self.telemetry.access_log.configure(&new.access_log);
        if old.log.level != new.log.level
            && let Err(error) = self.log.set(&new.log.level)
        {
            tracing::error!(%error, "log.level");
        }
        self.register(&new).await;
        self.config.store(new);
        Ok(())
    }

    /// Opens the access log's file anew, as after log rotation.
    pub fn reopen_logs(&self) {
        self.telemetry.access_log.reopen();
    }

    /// Ends in order, once somebody has asked [`Self::drain`] for it.
    pub async fn end(mut self) {
        if let Some(upgrades) = self.upgrades.take()
            // Whoever is about to take over finds that this one is gone, and needs the file.
            && !upgrades.under_way
        {
            upgrades.socket.remove();
        }
        let (config, registrar) = (self.config.load_full(), self.registrar.clone());
        let listed = self.registrar.views().iter().any(|view| view.is_listed());
        let course = Course {
            settings: config.drain.clone(),
            drain: self.drain.clone(),
            telemetry: self.telemetry.clone(),
            notifier: self.notifier.clone(),
            leaving: (!config.register.is_empty()).then(|| Box::pin(async move { registrar.leave().await }) as _),
            listed,
            inbound: self.give_sockets_up(true),
            outbound: self.give_sockets_up(false),
        };
        course.run(&mut self.workers).await;
        self.registries.flush().await;
        self.finish().await;
    }

    /// What is to be written is.
    async fn finish(mut self) {
        if let Some(store) = &self.store {
            store.flush().await;
        }
        self.telemetry.access_log.flush(Duration::from_secs(1)).await;
        self.tasks.shutdown().await;
        // With them, who decided about rollouts has ended; another pillion need not wait until the locks run out.
        store::all_given_back().await;
    }

    /// What `config` wants registered is registered from now on.
    async fn register(&self, config: &Config) {
        let listening = |(name, running): (&String, &Running)| Listening {
            name: name.clone(),
            bound: running.bound,
            app: running.config.app.as_ref().map(|app| app.address),
        };
        let listeners: Vec<_> = self.listeners.iter().map(listening).collect();
        self.registrar.set(config, &self.registries.handles(), &listeners).await;
    }
}

/// Until pillion can take traffic for the first time: what it waits for is told to the service manager, then that it is
/// over.
async fn become_ready(state: Arc<admin::State>, notifier: Arc<Notifier>) {
    let mut told = String::new();
    loop {
        match admin::readiness(&state).await {
            Ok(_) => return notifier.ready("ready"),
            Err(missing) if missing.draining => return,
            Err(missing) if missing.error != told => {
                notifier.status(&missing.error);
                told = missing.error;
            }
            Err(_) => {}
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn taken(address: SocketAddr, what: &str, how: &str) -> String {
    format!("cannot listen on {address} for {what}; another address is chosen with {how}")
}
