//! The old pillion's side: who asks, what they get, and when it is time to go.

use super::socket::{UpgradeSocket, check_peer};
use crate::{
    net::handover::{self, Followed, Message, Offer, States, VERSION},
    registry::embedded::Embedded,
};
use anyhow::{Context, bail};
use std::{io, net::TcpListener, os::fd::AsFd, sync::Arc, time::Duration};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::{mpsc, oneshot, watch},
    task::{AbortHandle, JoinSet},
    time::timeout,
};

/// For the first word of who has connected.
const HELLO: Duration = Duration::from_secs(5);

/// The new one has a time limit of its own; it gets more here, so that it is the one who gives up.
const MARGIN: Duration = Duration::from_secs(10);

/// What the app hears of new pillions.
pub enum Event {
    /// One wants to take over.
    Asked { process: String, reply: oneshot::Sender<io::Result<Estate>> },
    /// It did not come to that.
    Failed { process: String, why: anyhow::Error },
    /// It is ready and serves from now on.
    Go(Successor),
}

/// What the app has to hand over.
pub struct Estate {
    pub sockets: Vec<(handover::Socket, TcpListener)>,
    pub registries: Vec<(String, Arc<Embedded>)>,
    pub services: Followed,
}

/// A new pillion that has said that it takes over from here on.
pub struct Successor {
    pub process: String,
    stream: UnixStream,
}

/// Waits for new pillions, one at a time. Ends when dropped.
pub struct Upgrades {
    pub socket: UpgradeSocket,
    pub events: mpsc::Receiver<Event>,
    /// Somebody has got our sockets and not given up.
    pub under_way: bool,
    /// The word to begin.
    open: watch::Sender<bool>,
    _task: JoinSet<()>,
}

impl Upgrades {
    /// Whoever connects waits until [`Self::open`].
    pub fn start(socket: UpgradeSocket, limit: Duration) -> io::Result<Self> {
        let ((told, events), (open, mut opened)) = (mpsc::channel(1), watch::channel(false));
        let listener = UnixListener::from_std(socket.listener.try_clone()?)?;
        let own = Arc::new(socket.listener.try_clone()?);
        let mut task = JoinSet::new();
        task.spawn(async move {
            if opened.wait_for(|open| *open).await.is_ok() {
                accept(listener, own, limit + MARGIN, told).await;
            }
        });
        Ok(Self { socket, events, under_way: false, open, _task: task })
    }

    pub fn open(&self) {
        self.open.send_replace(true);
    }
}

impl Successor {
    /// Tells it that nothing changes here any more.
    pub async fn gone(mut self, registries: States) {
        let sent = timeout(HELLO, handover::send(&mut self.stream, &Message::Gone { registries }, &[])).await;
        if !matches!(sent, Ok(Ok(()))) {
            tracing::warn!(process = self.process, "the new one did not hear that this one is gone");
        }
    }
}

type Own = Arc<std::os::unix::net::UnixListener>;

/// Whose take-over is under way.
struct Current {
    process: String,
    task: AbortHandle,
}

async fn accept(listener: UnixListener, own: Own, limit: Duration, told: mpsc::Sender<Event>) {
    // They end with this.
    let mut sessions = JoinSet::new();
    let mut current: Option<Current> = None;
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection for an upgrade");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    continue;
                }
            },
            Some(_) = sessions.join_next() => continue,
        };
        if current.as_ref().is_some_and(|current| current.task.is_finished()) {
            current = None;
        }
        let why = match (check_peer(&stream), &current) {
            (Err(error), _) => error.to_string(),
            (_, Some(Current { process, .. })) => format!("process {process} is taking over already"),
            (Ok(process), None) => {
                let serving = session(stream, process.clone(), own.clone(), limit, told.clone());
                current = Some(Current { process, task: sessions.spawn(serving) });
                continue;
            }
        };
        tracing::warn!(why, "an upgrade is refused");
        sessions.spawn(refuse(stream, why));
    }
}

async fn refuse(mut stream: UnixStream, why: String) {
    // Whoever does not listen misses the reason.
    let _ = timeout(HELLO, handover::send(&mut stream, &Message::Refused(why), &[])).await;
}

/// Deals with one that wants to take over.
async fn session(mut stream: UnixStream, process: String, own: Own, limit: Duration, told: mpsc::Sender<Event>) {
    let event = match serve(&mut stream, &process, &own, limit, &told).await {
        Ok(()) => Event::Go(Successor { process, stream }),
        Err(why) => {
            refuse(stream, format!("{why:#}")).await;
            Event::Failed { process, why }
        }
    };
    // The app may be about to end.
    let _ = told.send(event).await;
}

async fn serve(
    stream: &mut UnixStream,
    process: &str,
    own: &Own,
    limit: Duration,
    told: &mpsc::Sender<Event>,
) -> anyhow::Result<()> {
    let Ok(hello) = timeout(HELLO, handover::receive(stream)).await else {
        bail!("it says nothing for {HELLO:?}");
    };
    match hello?.0 {
        Message::Hello { version: VERSION } => {}
        Message::Hello { version } => bail!(
            "it speaks version {version} of the protocol, and pillion {} version {VERSION}; stop the old one first",
            env!("CARGO_PKG_VERSION")
        ),
        _ => bail!("its first word is no `hello`"),
    }
    let (reply, estate) = oneshot::channel();
    let ending = "this pillion is stopping";
    told.send(Event::Asked { process: process.into(), reply }).await.map_err(|_| anyhow::anyhow!(ending))?;
    let Estate { sockets, registries, services } =
        estate.await.context(ending)?.context("the sockets cannot be copied")?;
    let mut states = States::new();
    for (name, embedded) in registries {
        states.insert(name, embedded.state().await?);
    }
    let mut descriptors = vec![own.as_fd()];
    descriptors.extend(sockets.iter().map(|(_, socket)| socket.as_fd()));
    let named = sockets.iter().map(|(name, _)| name.clone()).collect();
    let offer = Message::Offer(Offer { process: std::process::id(), sockets: named, registries: states, services });
    let waited = timeout(limit, async {
        handover::send(stream, &offer, &descriptors).await?;
        handover::receive(stream).await
    });
    match waited.await {
        Ok(Ok((Message::Go, _))) => Ok(()),
        Ok(Ok(_)) => bail!("it says something that makes no sense"),
        Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => bail!("it ended before it was ready"),
        Ok(Err(error)) => Err(error.into()),
        Err(_) => bail!("it was not ready within {limit:?}"),
    }
}
