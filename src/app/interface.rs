//! An HTTP interface of our own: the admin's, or an embedded registry's.

use super::inherited::Inherited;
use axum::Router;
use futures_util::future::join_all;
use std::{
    io,
    net::{self, SocketAddr},
};
use tokio::{net::TcpListener, sync::watch};

/// Answers from [`Self::open`] to [`Self::close`].
#[derive(Debug)]
pub struct Interface {
    pub name: String,
    pub listen: SocketAddr,
    pub bound: SocketAddr,
    /// As a rule there is one.
    pub sockets: Vec<net::TcpListener>,
    stage: watch::Sender<Stage>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Waiting,
    Open,
    Closed,
}

impl Interface {
    /// On sockets that are there, or a new one.
    pub async fn bind(name: String, listen: SocketAddr, inherited: &mut Inherited) -> io::Result<Self> {
        let mut sockets = inherited.take(&name, listen);
        if sockets.is_empty() {
            sockets.push(TcpListener::bind(listen).await?.into_std()?);
        }
        let bound = sockets[0].local_addr()?;
        Ok(Self { name, listen, bound, sockets, stage: watch::Sender::new(Stage::Waiting) })
    }

    /// What has to run for it.
    pub fn serve(&self, router: Router) -> io::Result<impl Future<Output = ()> + Send + use<>> {
        let mut running = Vec::new();
        for socket in &self.sockets {
            let (socket, router, stage) = (socket.try_clone()?, router.clone(), self.stage.subscribe());
            let name = self.name.clone();
            running.push(async move {
                reached(&stage, Stage::Open).await;
                let served = async {
                    let closed = async move { reached(&stage, Stage::Closed).await };
                    let service = router.into_make_service_with_connect_info::<SocketAddr>();
                    axum::serve(TcpListener::from_std(socket)?, service).with_graceful_shutdown(closed).await
                };
                if let Err(error) = served.await {
                    tracing::error!(interface = name, %error, "it ended");
                }
            });
        }
        Ok(async move {
            join_all(running).await;
        })
    }

    pub fn open(&self) {
        self.stage.send_replace(Stage::Open);
    }

    /// Takes no more connections; requests in progress finish.
    pub fn close(&self) {
        self.stage.send_replace(Stage::Closed);
    }
}

/// Returns when it has come so far, or its owner is gone.
async fn reached(stage: &watch::Receiver<Stage>, wanted: Stage) {
    let _ = stage.clone().wait_for(|stage| *stage >= wanted).await;
}
