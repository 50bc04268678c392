//! The worker threads and what they are told.

use crate::{
    config, discovery,
    net::listen::Sockets,
    proxy::{
        auto::Speakers,
        http::Proxy,
        last_good::LastGood,
        listener::{Listener, Open, Side},
        mirror::Mirrors,
        pool::Pool,
        tcp,
        transparent::{Inbound, Strangers},
        udp,
    },
    telemetry::{Telemetry, metrics::ListenerMetrics},
    worker,
};
use anyhow::Context;
use std::{collections::HashMap, io, rc::Rc, sync::Arc};
use tokio::{
    net::{TcpListener, UdpSocket},
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
};

pub struct Workers {
    workers: Vec<Worker>,
    cut: watch::Sender<bool>,
}

struct Worker {
    orders: mpsc::UnboundedSender<Order>,
    finished: oneshot::Receiver<()>,
}

enum Order {
    Listen {
        config: config::Listener,
        side: Side,
        sockets: Sockets,
        metrics: Arc<ListenerMetrics>,
        closing: watch::Receiver<bool>,
        open: Open,
    },
    Change {
        config: config::Listener,
        side: Side,
    },
}

impl Workers {
    pub fn start(count: usize, discovery: &discovery::Handle, telemetry: &Arc<Telemetry>) -> anyhow::Result<Self> {
        let cut = watch::Sender::new(false);
        let start = |number| {
            let (orders, taken) = mpsc::unbounded_channel();
            let (finish, finished) = oneshot::channel();
            let (discovery, telemetry, cut) = (discovery.clone(), telemetry.clone(), cut.subscribe());
            worker::spawn(&format!("worker-{number}"), move || async move {
                let tasks = tokio::runtime::Handle::current().metrics();
                let _counted = telemetry.metrics.thread(&format!("worker-{number}"), move || tasks.num_alive_tasks());
                work(taken, discovery, telemetry, cut).await;
                let _ = finish.send(());
            })
            .with_context(|| format!("cannot start worker {number}"))?;
            Ok(Worker { orders, finished })
        };
        let workers = (0..count).map(start).collect::<anyhow::Result<_>>()?;
        Ok(Self { workers, cut })
    }

    pub fn count(&self) -> usize {
        self.workers.len()
    }

    /// Each worker accepts on its own of `sockets`, which are as many as there are workers.
    pub fn listen(
        &self,
        config: &config::Listener,
        side: &Side,
        sockets: Vec<Sockets>,
        metrics: &Arc<ListenerMetrics>,
        closing: &watch::Receiver<bool>,
        open: &Open,
    ) {
        for (worker, sockets) in self.workers.iter().zip(sockets) {
            let (config, side) = (config.clone(), side.clone());
            let (metrics, closing, open) = (metrics.clone(), closing.clone(), open.clone());
            worker.send(Order::Listen { config, side, sockets, metrics, closing, open });
        }
    }

    /// A listener has other settings from now on, for its open connections too.
    pub fn change(&self, config: &config::Listener, side: &Side) {
        for worker in &self.workers {
            worker.send(Order::Change { config: config.clone(), side: side.clone() });
        }
    }

    /// Waits for the workers to end once their listeners are closing and their last connection is gone.
    pub async fn finish(&mut self) {
        // No more orders is the word to end.
        let finished: Vec<_> = self.workers.drain(..).map(|worker| worker.finished).collect();
        for finished in finished {
            let _ = finished.await;
        }
    }

    /// Those that were told to finish end now, with all that is in progress.
    pub fn cut(&self) {
        self.cut.send_replace(true);
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
async fn work(
    mut orders: mpsc::UnboundedReceiver<Order>,
    discovery: discovery::Handle,
    telemetry: Arc<Telemetry>,
    mut cut: watch::Receiver<bool>,
) {
    let pool = Rc::new(Pool::default());
    let sweeping = tokio::task::spawn_local(pool.clone().sweep());
    let connections = Rc::<tcp::Connections>::default();
    let looking = tokio::task::spawn_local(connections.clone().look_after());
    let proxy = Rc::new(Proxy {
        discovery,
        pool,
        last_good: LastGood::default(),
        mirrors: Mirrors::default(),
        tcp: connections,
        speakers: Speakers::default(),
        strangers: Strangers::default(),
        inbound: Inbound::default(),
    });
    let mut listeners: HashMap<String, Rc<Listener>> = HashMap::new();
    let mut running = JoinSet::new();
    loop {
        let order = tokio::select! {
            order = orders.recv() => order,
            Some(_) = running.join_next() => continue,
        };
        match order {
            Some(Order::Listen { config, side, sockets, metrics, closing, open }) => {
                let telemetry = telemetry.clone();
                let listener = Rc::new(Listener::new(&config, side, telemetry, metrics, closing, cut.clone()));
                if let Err(error) = start(sockets, &listener, &open, &proxy, &mut running) {
                    tracing::error!(listener = %config.name, %error, "cannot accept");
                }
                listeners.insert(config.name, listener);
            }
            Some(Order::Change { config, side }) => {
                if let Some(listener) = listeners.get(&config.name) {
                    listener.change(&config, side);
                }
            }
            None => break,
        }
    }
    let finished = async { while running.join_next().await.is_some() {} };
    tokio::select! {
        () = finished => {}
        // What is in progress ends with the runtime. (An error means that nobody is left to wait for it.)
        _ = cut.wait_for(|cut| *cut) => {}
    }
    sweeping.abort();
    looking.abort();
}

/// Takes what comes in by these sockets.
fn start(
    sockets: Sockets,
    listener: &Rc<Listener>,
    open: &Open,
    proxy: &Rc<Proxy>,
    running: &mut JoinSet<()>,
) -> io::Result<()> {
    match sockets {
        Sockets::Tcp(sockets) => {
            for socket in sockets {
                let socket = TcpListener::from_std(socket)?;
                running.spawn_local(listener.clone().run(socket, open.clone(), proxy.clone()));
            }
        }
        Sockets::Udp(sockets) => {
            for socket in sockets {
                running.spawn_local(udp::run(UdpSocket::from_std(socket)?, listener.clone(), proxy.clone()));
            }
        }
    }
    Ok(())
}
