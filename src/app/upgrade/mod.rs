//! One pillion takes another one's place, without a connection lost: the new one gets the listening sockets, with all that
//! waits in them, before it has to accept, and the old one accepts until the new one is ready.

mod new;
mod old;
mod socket;

pub use new::TakeOver;
pub use old::{Successor, Upgrades};
pub use socket::UpgradeSocket;

use super::{App, drain::Course};
use crate::{
    cluster::Cluster,
    config,
    discovery::{SourceStatus, Status, snapshot::Saved},
    net::handover::{self, Followed},
};
use anyhow::bail;
use futures_util::future::{join_all, join3};
use old::{Estate, Event};
use std::{
    future::pending,
    io,
    net::TcpListener,
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::time::{Instant, sleep, timeout};

/// How often a new pillion looks whether it knows what the old one knows.
const LOOK: Duration = Duration::from_millis(50);

impl App {
    /// Hears from new pillions. Returns the one that is ready to take over; `None` if another step was done before that. May be
    /// dropped at any time.
    pub async fn successor(&mut self) -> Option<Successor> {
        let Some(upgrades) = &mut self.upgrades else { return pending().await };
        match upgrades.events.recv().await {
            Some(Event::Asked { process, reply }) => {
                tracing::info!(process, "a new pillion is about to take over");
                let estate = self.estate();
                // This may be dropped before an answer of discovery is there.
                self.tasks.spawn(async move {
                    // It may have gone meanwhile, which is told by another event.
                    let _ = match estate {
                        Ok(estate) => reply.send(Ok(estate.await)),
                        Err(error) => reply.send(Err(error)),
                    };
                });
                self.set_upgrading(true);
                None
            }
            Some(Event::Failed { process, why }) => {
                self.set_upgrading(false);
                tracing::warn!(process, "a new pillion did not take over, and this one goes on: {why:#}");
                None
            }
            Some(Event::Go(successor)) => Some(successor),
            None => pending().await,
        }
    }

    /// Whether a new pillion is getting ready to take over.
    pub fn is_upgrading(&self) -> bool {
        self.upgrades.as_ref().is_some_and(|upgrades| upgrades.under_way)
    }

    fn set_upgrading(&mut self, under_way: bool) {
        if let Some(upgrades) = &mut self.upgrades {
            upgrades.under_way = under_way;
        }
    }

    /// Leaves everything to `successor`, lets requests in progress end, and ends.
    pub async fn hand_over(mut self, successor: Successor) {
        tracing::info!(process = successor.process, "a new pillion has taken over");
        // Who connects from now on is the new one's affair.
        self.upgrades = None;
        self.admin.close();
        // The new one takes the entries over, and nobody is told that the application leaves.
        self.registrar.abandon().await;
        let registries = self.registries.give_up().await;
        successor.gone(registries).await;
        self.ask_to_end("a new pillion, which has taken over");
        let mut listeners = self.give_sockets_up(true);
        listeners.extend(self.give_sockets_up(false));
        let course = Course {
            // The application goes on, with the new one.
            settings: config::Drain { wait_for_app: false, ..self.config.load().drain.clone() },
            drain: self.drain.clone(),
            telemetry: self.telemetry.clone(),
            // For the service manager nothing ends.
            notifier: Arc::default(),
            leaving: None,
            listed: false,
            inbound: Vec::new(),
            outbound: listeners,
        };
        course.run(&mut self.workers).await;
        self.finish().await;
    }

    fn estate(&self) -> io::Result<impl Future<Output = Estate> + use<>> {
        let copies = |name: &str, listen, sockets: &[TcpListener]| {
            let name = handover::Socket { name: name.into(), listen };
            sockets.iter().map(|socket| Ok((name.clone(), socket.try_clone()?))).collect::<io::Result<Vec<_>>>()
        };
        let mut sockets = Vec::new();
        for (name, running) in &self.listeners {
            sockets.extend(copies(name, running.config.listen, running.sockets.tcp())?);
        }
        for interface in self.registries.interfaces().chain([&self.admin]) {
            sockets.extend(copies(&interface.name, interface.listen, &interface.sockets)?);
        }
        let (registries, discovery) = (self.registries.all_embedded(), self.discovery.clone());
        Ok(async move {
            let services = discovery.table().all().into_iter().map(async |cluster| {
                let status = discovery.status(&cluster.name).await;
                (cluster.name.to_string(), known(&cluster, &status))
            });
            let services = join_all(services);
            Estate { sockets, registries, services: services.await.into_iter().collect() }
        })
    }

    /// Waits until the store of routes was heard of, all services that the config names have had their first answer, and whoever
    /// the old one has its instances from has answered here too, which is an error if it takes longer than `limit`; and for
    /// services that the old one followed besides as long as a request would wait.
    pub(super) async fn until_ready(&self, followed: &Followed, limit: Duration) -> anyhow::Result<()> {
        let deadline = Instant::now() + limit;
        let (config, table) = (self.config.load_full(), self.discovery.table());
        let named = self.discovery.unanswered(&config).into_iter().filter_map(|service| table.get(&service));
        let named = join_all(named.map(async |cluster| drop(cluster.first_answer(limit).await)));
        let others = join_all(followed.keys().map(async |service| {
            // Too many of them is no reason to fail.
            if let Ok(cluster) = self.discovery.follow(service).await {
                drop(cluster.first_answer(self.discovery.first_answer()).await);
            }
        }));
        let routes = timeout(limit, self.discovery.until_stores_heard());
        let (_, _, routes) = join3(named, others, routes).await;
        if routes.is_err() {
            bail!("no answer of the store of routes within {limit:?} (upgrade.timeout)");
        }
        let missing = self.discovery.unanswered(&config);
        if !missing.is_empty() {
            bail!("no first answer about `{}` within {limit:?} (upgrade.timeout)", missing.join("`, `"));
        }
        while let Some(lost) = self.lost(followed).await {
            if Instant::now() >= deadline {
                bail!(
                    "within {limit:?} (upgrade.timeout) {lost}; what the pillion that runs has from there would be lost: upgrade when the \
                     registry answers again, or set `discovery.snapshot`"
                );
            }
            sleep(LOOK).await;
        }
        Ok(())
    }

    /// The first registry that the old one has instances from and that has said nothing here. Others may have answered, and know
    /// of none.
    async fn lost(&self, followed: &Followed) -> Option<String> {
        for (service, handover::Service { registries, .. }) in followed {
            let status = self.discovery.status(service).await;
            if status.snapshot.is_some() {
                continue;
            }
            let said_nothing =
                |source: &&SourceStatus| source.instances.is_none() && registries.contains(&source.source);
            if let Some(SourceStatus { source, failure, .. }) = status.sources.iter().find(said_nothing) {
                let why = failure.as_ref().map(|failure| format!(" ({failure})")).unwrap_or_default();
                return Some(format!("`{source}` has not answered about `{service}`{why}"));
            }
        }
        None
    }
}

/// What the next one is to know of a service. With it, a registry that is emptied just then looks to that one as it does here.
fn known(cluster: &Cluster, status: &Status) -> handover::Service {
    let names = |sources: &mut dyn Iterator<Item = &SourceStatus>| -> Vec<String> {
        sources.map(|source| source.source.clone()).collect()
    };
    let age = status.snapshot.as_ref().map(|snapshot| snapshot.age).unwrap_or_default();
    let saved = Saved {
        instances: cluster.load().endpoints.iter().map(|endpoint| endpoint.instance.clone()).collect(),
        // Those that are kept though nobody lists them, too.
        source: names(&mut status.sources.iter()).join(", "),
        saved: SystemTime::now().checked_sub(age).unwrap_or(SystemTime::UNIX_EPOCH),
    };
    handover::Service {
        registries: names(&mut status.sources.iter().filter(|source| source.in_use)),
        known: if saved.instances.is_empty() { None } else { saved.to_text(&cluster.name) },
    }
}
