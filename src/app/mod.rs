//! One running pillion: builds the parts from a [`Config`], supervises them, and takes them down.

mod registries;
mod watch;
mod workers;

pub use watch::ConfigFile;

use crate::{
    admin,
    config::{self, Config},
    discovery::{self, Discovery},
    net::listen,
    telemetry::{Telemetry, access_log, access_log::AccessLog, labels::WORDS, log::LogHandle, metrics::Metrics},
};
use anyhow::{Context, bail, ensure};
use arc_swap::ArcSwap;
use registries::RegistrySet;
use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};
use tokio::{net::TcpListener, sync::watch as channel, task::JoinSet};
use workers::Workers;

/// A pillion that is up. Lives on the control thread.
pub struct App {
    config: Arc<ArcSwap<Config>>,
    telemetry: Arc<Telemetry>,
    log: LogHandle,
    health: Arc<admin::Health>,
    discovery: discovery::Handle,
    registries: RegistrySet,
    for_admin: Arc<ArcSwap<discovery::Registries>>,
    listeners: HashMap<String, Running>,
    workers: Workers,
    admin: SocketAddr,
    /// Admin and discovery. They end with the app.
    tasks: JoinSet<()>,
}

/// A listener that is up.
struct Running {
    config: config::Listener,
    bound: SocketAddr,
    closing: channel::Sender<bool>,
}

impl App {
    /// Starts everything. Whatever can be wrong (a port that is taken, a file that is missing) is found before the first
    /// connection is accepted.
    pub async fn start(config: Config, log: LogHandle) -> anyhow::Result<Self> {
        let config = Arc::new(config);
        let admin_socket = TcpListener::bind(config.admin.listen)
            .await
            .with_context(|| taken(config.admin.listen, "the admin interface", "`admin.listen` or --admin"))?;
        let metrics = Metrics::new(WORDS);
        let access_log = AccessLog::start(&config.access_log, metrics.access_log_dropped.clone())?;
        let telemetry = Arc::new(Telemetry { metrics, access_log });
        let registries = RegistrySet::default().changed_to(&config).await?;
        let (discovery, handle) = Discovery::new(config.clone(), registries.handles(), telemetry.clone())?;
        let mut tasks = JoinSet::new();
        tasks.spawn(discovery.run());
        let workers = Workers::start(config.workers.count(), &handle, &telemetry)?;
        let for_admin = Arc::new(ArcSwap::from_pointee(registries.handles()));
        let mut app = Self {
            config: Arc::new(ArcSwap::new(config.clone())),
            telemetry,
            log,
            health: Arc::default(),
            discovery: handle,
            registries,
            for_admin,
            listeners: HashMap::new(),
            workers,
            admin: admin_socket.local_addr()?,
            tasks,
        };
        let sockets = app.bind_new(&config)?;
        app.set_listeners(&config, sockets);
        app.health.listening.store(true, Relaxed);
        let router = admin::router(app.admin_state());
        app.tasks.spawn(async move {
            if let Err(error) = axum::serve(admin_socket, router).await {
                tracing::error!(%error, "the admin interface ended");
            }
        });
        Ok(app)
    }

    /// Where the admin interface listens.
    pub fn admin(&self) -> SocketAddr {
        self.admin
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

    /// The embedded registry called `name`.
    pub fn embedded(&self, name: &str) -> Option<Arc<crate::registry::embedded::Embedded>> {
        self.registries.embedded(name)
    }

    /// Puts another config in force, all of it or, on an error, nothing.
    pub async fn reload(&mut self, new: Config) -> anyhow::Result<()> {
        let result = self.try_reload(new).await;
        let reloads = &self.telemetry.metrics.reloads;
        if result.is_ok() { &reloads.ok } else { &reloads.failed }.inc();
        result
    }

    async fn try_reload(&mut self, new: Config) -> anyhow::Result<()> {
        let (old, new) = (self.config.load_full(), Arc::new(new));
        if old == new {
            return Ok(());
        }
        ensure!(old.workers.count() == new.workers.count(), "`workers` cannot change while pillion runs; restart it");
        ensure!(old.admin == new.admin, "`admin.listen` cannot change while pillion runs; restart it");
        ensure!(old.log.format == new.log.format, "`log.format` cannot change while pillion runs; restart it");
        if old.access_log.path != new.access_log.path {
            access_log::check(&new.access_log)?;
        }
        let sockets = self.bind_new(&new)?;
        let registries = self.registries.changed_to(&new).await?;
        // The last step that can fail.
        self.discovery.reload(new.clone(), registries.handles()).await?;
        self.for_admin.store(Arc::new(registries.handles()));
        self.registries = registries;
        self.set_listeners(&new, sockets);
        self.telemetry.access_log.configure(&new.access_log);
        if old.log.level != new.log.level
            && let Err(error) = self.log.set(&new.log.level)
        {
            tracing::error!(%error, "log.level");
        }
        self.config.store(new);
        Ok(())
    }

    /// Opens the access log's file anew, as after log rotation.
    pub fn reopen_logs(&self) {
        self.telemetry.access_log.reopen();
    }

    /// Stops taking connections, lets requests in progress end for at most `limit`, and ends.
    pub async fn stop(mut self, limit: Duration) {
        self.health.draining.store(true, Relaxed);
        for listener in self.listeners.values() {
            let _ = listener.closing.send(true);
        }
        if !self.workers.finish(limit).await {
            tracing::warn!("requests were still in progress after {limit:?}; they are cut off");
        }
        self.registries.flush().await;
        self.telemetry.access_log.flush(Duration::from_secs(1)).await;
        self.tasks.shutdown().await;
    }

    fn admin_state(&self) -> admin::State {
        admin::State {
            config: self.config.clone(),
            discovery: self.discovery.clone(),
            telemetry: self.telemetry.clone(),
            log: self.log.clone(),
            registries: self.for_admin.clone(),
            health: self.health.clone(),
        }
    }

    /// Sockets for those listeners in `config` that are not up yet.
    fn bind_new(&self, config: &Config) -> anyhow::Result<HashMap<String, Vec<std::net::TcpListener>>> {
        let mut sockets = HashMap::new();
        for listener in &config.listeners {
            match self.listeners.get(&listener.name) {
                Some(running) if running.config.listen == listener.listen => {}
                Some(_) => bail!(
                    "listener `{}`: `listen` cannot change while pillion runs; restart it, or give the listener another name",
                    listener.name
                ),
                None => {
                    let bound = listen::bind(listener.listen, self.workers.count()).with_context(|| {
                        let what = format!("listener `{}`", listener.name);
                        taken(listener.listen, &what, "its `listen` or --listen")
                    })?;
                    sockets.insert(listener.name.clone(), bound);
                }
            }
        }
        Ok(sockets)
    }

    /// Brings new listeners up, changes those that stay, and takes down those that are gone.
    fn set_listeners(&mut self, config: &Config, mut sockets: HashMap<String, Vec<std::net::TcpListener>>) {
        self.listeners.retain(|name, running| {
            let stays = config.listeners.iter().any(|listener| listener.name == *name);
            if !stays {
                let _ = running.closing.send(true);
            }
            stays
        });
        for listener in &config.listeners {
            if let Some(running) = self.listeners.get_mut(&listener.name) {
                if running.config != *listener {
                    running.config = listener.clone();
                    self.workers.change(listener);
                }
                continue;
            }
            let Some(sockets) = sockets.remove(&listener.name) else { continue };
            let Some(Ok(bound)) = sockets.first().map(std::net::TcpListener::local_addr) else { continue };
            let (closing, closed) = channel::channel(false);
            let metrics = self.telemetry.metrics.listener(&listener.name);
            self.workers.listen(listener, sockets, &metrics, &closed);
            self.listeners.insert(listener.name.clone(), Running { config: listener.clone(), bound, closing });
        }
    }
}

fn taken(address: SocketAddr, what: &str, how: &str) -> String {
    format!("cannot listen on {address} for {what}; another address is chosen with {how}")
}
