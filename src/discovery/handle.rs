//! Discovery as others see it: questions and orders to the side that does the following.

use super::{NotDone, Registries, RolloutsStatus, RoutesStatus, SettingsError, Status, listing::Names, settings};
use crate::{
    cluster::{
        Cluster, Table,
        table::{State, has_capitals},
    },
    config::Config,
    error::{ProxyError, Reason},
    rollout::{Command, State as RolloutState},
};
use futures_util::future::join_all;
use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::sync::{mpsc, oneshot, watch};

/// What the workers and the admin hold of discovery.
#[derive(Debug, Clone)]
pub struct Handle {
    pub(super) table: Arc<Table>,
    pub(super) first_answer: Arc<AtomicU64>,
    /// Whether the stores of routes and of rollouts have said anything, where there are any.
    pub(super) stores_heard: watch::Receiver<bool>,
    pub(super) orders: mpsc::UnboundedSender<Order>,
}

/// What is asked of [`Discovery`](super::Discovery).
pub(super) enum Order {
    Follow { service: String, reply: oneshot::Sender<Result<Arc<Cluster>, ProxyError>> },
    Status { service: String, reply: oneshot::Sender<Status> },
    Names { reply: oneshot::Sender<Names> },
    Routes { reply: oneshot::Sender<RoutesStatus> },
    Rollouts { reply: oneshot::Sender<RolloutsStatus> },
    Command { service: String, command: Command, reply: oneshot::Sender<Result<RolloutState, NotDone>> },
    Reload { config: Arc<Config>, registries: Registries, reply: oneshot::Sender<Result<InForce, SettingsError>> },
}

/// Each tells when one service's new settings are in force.
pub(super) type InForce = Vec<oneshot::Receiver<()>>;

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
