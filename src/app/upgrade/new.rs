//! The new pillion's side: taking the place of the one that runs.

use super::{
    old::Upgrades,
    socket::{self, UpgradeSocket},
};
use crate::{
    config,
    discovery::snapshot::Saved,
    net::handover::{self, Followed, Message, Offer, States, VERSION},
};
use anyhow::{Context, bail, ensure};
use socket2::{Domain, SockRef};
use std::{collections::HashMap, io, net::TcpListener, os::fd::OwnedFd, time::Duration};
use tokio::{net::UnixStream, time::timeout};

/// So long the old one may take for an answer. It has all of it in memory.
const ANSWER: Duration = Duration::from_secs(10);

/// A take-over that has begun. Until [`Self::go`] the old one serves; when this is dropped, it goes on.
pub struct TakeOver {
    stream: UnixStream,
    /// The old one's process.
    process: u32,
    /// Where the next one will ask.
    pub upgrades: Upgrades,
    pub sockets: Vec<(handover::Socket, TcpListener)>,
    pub registries: States,
    /// What the old one follows.
    pub services: Followed,
}

impl TakeOver {
    /// Asks the pillion that runs for all it has; `None` if none runs.
    pub async fn begin(upgrade: &config::Upgrade) -> anyhow::Result<Option<Self>> {
        let path = upgrade.socket.display();
        let connected = socket::connect(&upgrade.socket).await;
        let Some(mut stream) = connected.with_context(|| format!("upgrade.socket: cannot connect to {path}"))? else {
            return Ok(None);
        };
        // Not its process: the socket may come from the one before.
        socket::check_peer(&stream).with_context(|| format!("upgrade.socket: {path} is not trusted"))?;
        let asked = timeout(ANSWER, async {
            // One that refuses may do so before it has heard anything.
            let _ = handover::send(&mut stream, &Message::Hello { version: VERSION }, &[]).await;
            handover::receive(&mut stream).await
        });
        let what = || format!("upgrade.socket: the pillion that listens on {path}");
        let Ok(answer) = asked.await else { bail!("{} does not answer within {ANSWER:?}", what()) };
        if let Err(error) = &answer
            && is_gone(error)
        {
            tracing::warn!(%error, "the pillion that ran is gone before it could hand over");
            return Ok(None);
        }
        let (message, descriptors) =
            answer.with_context(|| format!("{} gives an answer that cannot be read", what()))?;
        let Offer { process, sockets, registries, services } = match message {
            Message::Offer(offer) => offer,
            Message::Refused(why) => bail!("{} refuses to hand over: {why}", what()),
            _ => bail!("{} gives an answer that makes no sense", what()),
        };
        let (listener, descriptors) =
            split(descriptors, sockets.len()).with_context(|| format!("{} hands over what cannot be used", what()))?;
        tracing::info!(process, sockets = sockets.len(), "taking over from a pillion that runs");
        let upgrades = Upgrades::start(UpgradeSocket::inherited(listener, &upgrade.socket)?, upgrade.timeout)?;
        let sockets = sockets.into_iter().zip(descriptors).collect();
        Ok(Some(Self { stream, process, upgrades, sockets, registries, services }))
    }

    /// What the old one has in force. What cannot be read is told and left out: the registries will say.
    pub fn known(&self) -> HashMap<String, Saved> {
        let known = self.services.iter().filter_map(|(service, there)| {
            match Saved::from_text(service, there.known.as_ref()?) {
                Ok(saved) => Some((service.clone(), saved)),
                Err(error) => {
                    tracing::warn!(%service, error, "what was handed over of it cannot be read");
                    None
                }
            }
        });
        known.collect()
    }

    /// Tells the old one to go. Gives the last states of its registries; nothing if it died meanwhile, and an error if it
    /// wants to stay.
    pub async fn go(&mut self) -> anyhow::Result<States> {
        let process = self.process;
        let told = timeout(ANSWER, async {
            // It may have given up, and said so.
            let _ = handover::send(&mut self.stream, &Message::Go, &[]).await;
            handover::receive(&mut self.stream).await
        });
        match told.await {
            Ok(Ok((Message::Gone { registries }, _))) => {
                tracing::info!(process, "took over; the old one finishes its requests and ends");
                return Ok(registries);
            }
            Ok(Ok((Message::Refused(why), _))) => bail!("process {process} goes on by itself: {why}"),
            Ok(Ok(_)) => bail!("process {process} gives an answer that makes no sense"),
            // Nobody else serves, so we do.
            Ok(Err(error)) if is_gone(&error) => {
                tracing::warn!(process, %error, "the pillion that was taken over from is gone already");
            }
            Ok(Err(error)) => return Err(error).with_context(|| format!("process {process}")),
            Err(_) => tracing::warn!(process, "the pillion that was taken over from does not answer any more"),
        }
        Ok(States::new())
    }
}

/// The other one has ended.
fn is_gone(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionReset | UnexpectedEof)
}

/// The socket for upgrades, and so many that listen for connections.
fn split(descriptors: Vec<OwnedFd>, count: usize) -> anyhow::Result<(OwnedFd, Vec<TcpListener>)> {
    ensure!(descriptors.len() == count + 1, "{} descriptors for {count} sockets and its own", descriptors.len());
    let mut descriptors = descriptors.into_iter();
    let is = |socket: &OwnedFd, domains: &[Domain]| {
        let socket = SockRef::from(socket);
        Ok::<_, io::Error>(domains.contains(&socket.domain()?) && socket.is_listener()?)
    };
    let own = descriptors.next().context("no descriptor")?;
    ensure!(is(&own, &[Domain::UNIX])?, "its own socket is no unix socket that listens");
    let sockets = descriptors.map(|socket| {
        ensure!(is(&socket, &[Domain::IPV4, Domain::IPV6])?, "one of them is no TCP socket that listens");
        Ok(socket.into())
    });
    Ok((own, sockets.collect::<anyhow::Result<_>>()?))
}
