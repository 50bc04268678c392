//! The listeners that are up: their sockets, and which of them come, change and go with a config.

use super::{App, inherited::Inherited, taken};
use crate::{
    config::{self, Config},
    net::{
        borrowed,
        listen::{self, Sockets},
    },
    proxy::listener::Side,
};
use anyhow::{Context, bail};
use std::{collections::HashMap, convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    sync::{mpsc, watch},
    time::timeout,
};

/// The most that workers may take to close sockets, which is longer than they ever do.
const CLOSING: Duration = Duration::from_secs(1);

/// A listener that is up.
pub struct Running {
    pub config: config::Listener,
    pub bound: SocketAddr,
    /// Copies of those that the workers have, for a pillion that takes over.
    pub sockets: Sockets,
    pub closing: watch::Sender<bool>,
    /// Ends when the workers have closed all of them.
    closed: mpsc::Receiver<Infallible>,
}

/// Sockets for a listener that is not up yet: all of them, and copies of them for each worker.
pub struct Bound {
    sockets: Sockets,
    dealt: Vec<Sockets>,
}

impl App {
    /// Only workers have the sockets of these listeners from now on; gives the words that they are to close.
    pub(super) fn give_sockets_up(&mut self, inbound: bool) -> Vec<watch::Sender<bool>> {
        let listeners = self.listeners.values_mut().filter(|running| running.config.is_inbound() == inbound);
        listeners
            .map(|running| {
                running.sockets.clear();
                running.closing.clone()
            })
            .collect()
    }

    /// Sockets for those listeners in `config` that are not up yet: inherited ones, or new ones.
    pub(super) fn bind_new(
        &self,
        config: &Config,
        inherited: &mut Inherited,
    ) -> anyhow::Result<HashMap<String, Bound>> {
        let (mut sockets, workers) = (HashMap::new(), self.workers.count());
        may_keep_sources(config)?;
        for listener in &config.listeners {
            match self.listeners.get(&listener.name) {
                Some(running)
                    if running.config.listen == listener.listen && is_udp(&running.config) == is_udp(listener) => {}
                Some(_) => bail!(
                    "listener `{}`: `listen`, and whether it is for UDP, cannot change while pillion runs; restart it, or give the listener another name",
                    listener.name
                ),
                None => {
                    let own = if is_udp(listener) {
                        listen::bind_udp(listener.listen, workers).map(Sockets::Udp)
                    } else {
                        let own = inherited.take(&listener.name, listener.listen);
                        let own = if own.is_empty() { listen::bind(listener.listen, workers) } else { Ok(own) };
                        own.map(Sockets::Tcp)
                    };
                    let own = own.with_context(|| {
                        let what = format!("listener `{}`", listener.name);
                        taken(listener.listen, &what, "its `listen` or --listen")
                    })?;
                    let dealt = own.deal(workers)?;
                    sockets.insert(listener.name.clone(), Bound { sockets: own, dealt });
                }
            }
        }
        Ok(sockets)
    }

    /// Brings new listeners up, changes those that stay, and takes down those that are gone, which are returned.
    pub(super) fn set_listeners(&mut self, config: &Config, mut sockets: HashMap<String, Bound>) -> Vec<Running> {
        let is_gone = |name: &String| config.listeners.iter().all(|listener| listener.name != *name);
        let gone: Vec<_> = self.listeners.extract_if(|name, _| is_gone(name)).map(|(_, running)| running).collect();
        for running in &gone {
            let _ = running.closing.send(true);
        }
        self.local_apps.apply(config);
        let name: Option<Arc<str>> = config.node.service.as_deref().map(Into::into);
        let version: Option<Arc<str>> = config.node.version.as_deref().map(Into::into);
        for listener in &config.listeners {
            let side = match self.local_apps.get(&listener.name) {
                Some(app) => Side::To(app, version.clone()),
                None => Side::From(name.clone()),
            };
            if let Some(running) = self.listeners.get_mut(&listener.name) {
                running.config = listener.clone();
                self.workers.change(listener, &side);
                continue;
            }
            let Some(Bound { sockets, dealt }) = sockets.remove(&listener.name) else { continue };
            let Some(bound) = sockets.local_addr() else { continue };
            let (closing, is_closing) = watch::channel(false);
            let (open, closed) = mpsc::channel(1);
            let metrics = self.telemetry.metrics.listener(&listener.name);
            self.workers.listen(listener, &side, dealt, &metrics, &is_closing, &open);
            let running = Running { config: listener.clone(), bound, sockets, closing, closed };
            self.listeners.insert(listener.name.clone(), running);
        }
        gone
    }
}

/// Waits until workers have closed the sockets of these, which they do at once. A listener that comes back at the same address with
/// the next reload would share its connections with those of before, which are about to close.
pub async fn closed(gone: Vec<Running>) {
    for Running { sockets, mut closed, .. } in gone {
        drop(sockets);
        if timeout(CLOSING, closed.recv()).await.is_err() {
            tracing::warn!("workers do not close a listener's sockets");
        }
    }
}

/// Whether this process has the right to connect as its clients, where the config wants that.
fn may_keep_sources(config: &Config) -> anyhow::Result<()> {
    for listener in &config.listeners {
        let Some(app) = listener.app.as_ref().filter(|app| app.source == config::AppSource::Client) else { continue };
        borrowed::may_borrow(app.address.is_ipv4()).with_context(|| {
            format!(
                "listener `{}`: `app.source: client` needs CAP_NET_RAW (or CAP_NET_ADMIN), which this process does not have: with systemd \
                 `AmbientCapabilities=CAP_NET_RAW`, in a pod `capabilities: {{ add: [NET_RAW] }}` and `runAsUser: 0`",
                listener.name
            )
        })?;
    }
    Ok(())
}

fn is_udp(listener: &config::Listener) -> bool {
    listener.protocol == config::ListenerProtocol::Udp
}
