//! The worker threads and what they are told.

use crate::{
    config, discovery,
    proxy::{http::Proxy, last_good::LastGood, listener::Listener, pool::Pool},
    telemetry::{Telemetry, metrics::ListenerMetrics},
    worker,
};
use anyhow::Context;
use std::{collections::HashMap, net, rc::Rc, sync::Arc, time::Duration};
use tokio::{
    net::TcpListener,
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
};

pub struct Workers {
    workers: Vec<Worker>,
}

struct Worker {
    orders: mpsc::UnboundedSender<Order>,
    finished: oneshot::Receiver<()>,
}

enum Order {
    Listen {
        config: config::Listener,
        socket: net::TcpListener,
        metrics: Arc<ListenerMetrics>,
        closing: watch::Receiver<bool>,
    },
    Change {
        config: config::Listener,
    },
}

impl Workers {
    pub fn start(count: usize, discovery: &discovery::Handle, telemetry: &Arc<Telemetry>) -> anyhow::Result<Self> {
        let start = |number| {
            let (orders, taken) = mpsc::unbounded_channel();
            let (finish, finished) = oneshot::channel();
            let (discovery, telemetry) = (discovery.clone(), telemetry.clone());
            worker::spawn(&format!("worker-{number}"), move || async move {
                let tasks = tokio::runtime::Handle::current().metrics();
                let _counted = telemetry.metrics.thread(&format!("worker-{number}"), move || tasks.num_alive_tasks());
                work(taken, discovery, telemetry).await;
                let _ = finish.send(());
            })
            .with_context(|| format!("cannot start worker {number}"))?;
            Ok(Worker { orders, finished })
        };
        Ok(Self { workers: (0..count).map(start).collect::<anyhow::Result<_>>()? })
    }

    pub fn count(&self) -> usize {
        self.workers.len()
    }

    /// Each worker accepts on its own of `sockets`.
    pub fn listen(
        &self,
        config: &config::Listener,
        sockets: Vec<net::TcpListener>,
        metrics: &Arc<ListenerMetrics>,
        closing: &watch::Receiver<bool>,
    ) {
        for (worker, socket) in self.workers.iter().zip(sockets) {
            let (config, metrics, closing) = (config.clone(), metrics.clone(), closing.clone());
            worker.send(Order::Listen { config, socket, metrics, closing });
        }
    }

    /// A listener has other settings from now on, for its open connections too.
    pub fn change(&self, config: &config::Listener) {
        for worker in &self.workers {
            worker.send(Order::Change { config: config.clone() });
        }
    }

    /// Waits for the workers to end once their listeners are closing. False if they did not within `limit`.
    pub async fn finish(&mut self, limit: Duration) -> bool {
        let all = async {
            for Worker { finished, orders } in self.workers.drain(..) {
                // No more orders is the word to end.
                drop(orders);
                let _ = finished.await;
            }
        };
        tokio::time::timeout(limit, all).await.is_ok()
    }
}

impl Worker {
    fn send(&self, order: Order) {
        if self.orders.send(order).is_err() {
            tracing::error!("a worker has ended");
        }
    }
}

/// What a worker does all its life.
async fn work(mut orders: mpsc::UnboundedReceiver<Order>, discovery: discovery::Handle, telemetry: Arc<Telemetry>) {
    let pool = Rc::new(Pool::default());
    let sweeping = tokio::task::spawn_local(pool.clone().sweep());
    let proxy = Rc::new(Proxy { discovery, pool, telemetry, last_good: LastGood::default() });
    let mut listeners: HashMap<String, Rc<Listener>> = HashMap::new();
    let mut running = JoinSet::new();
    loop {
        let order = tokio::select! {
            order = orders.recv() => order,
            Some(_) = running.join_next() => continue,
        };
        match order {
            Some(Order::Listen { config, socket, metrics, closing }) => match TcpListener::from_std(socket) {
                Ok(socket) => {
                    let listener = Rc::new(Listener::new(&config, metrics, closing));
                    listeners.insert(config.name, listener.clone());
                    running.spawn_local(listener.run(socket, proxy.clone()));
                }
                Err(error) => tracing::error!(listener = %config.name, %error, "cannot accept"),
            },
            Some(Order::Change { config }) => {
                if let Some(listener) = listeners.get(&config.name) {
                    listener.change(&config);
                }
            }
            None => break,
        }
    }
    while running.join_next().await.is_some() {}
    sweeping.abort();
}
