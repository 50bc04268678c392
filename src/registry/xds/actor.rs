//! The one task that talks to the control plane, for all services: it owns the stream and what was heard on it.

use super::{
    Settings,
    delta::Delta,
    proto::Empty,
    sotw::StateOfTheWorld,
    state::{Asker, Said, State},
    variant::{Kind, Refused, Variant},
};
use crate::{
    backoff::Backoff,
    config::{Tls, XdsProtocol},
    registry::{
        RegistryError,
        grpc::Channel,
        link::{self, Link},
        server::Server,
        watch::{LONGEST_WAIT, SHORTEST_WAIT},
    },
};
use futures_util::{StreamExt, TryFutureExt, stream};
use std::{future::Future, pin::pin, time::Duration};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep, sleep_until},
};
use tonic::{Code, Status};
use tracing::debug;

/// A server that has nothing to say to what we hold is asked for a sign of life so long after the start of a stream.
const SETTLE: Duration = Duration::from_secs(1);
/// A stream that lived so long was a good one.
const GOOD_LIFE: Duration = Duration::from_secs(10);
/// Some servers send at once again what was refused. A refusal is told at once, the same one again after these waits.
const SHORTEST_REFUSAL: Duration = Duration::from_secs(1);
const LONGEST_REFUSAL: Duration = Duration::from_secs(30);
/// What any gRPC server answers, be it that it does not know the call.
const HEALTH: &str = "/grpc.health.v1.Health/Check";

/// What followers want.
pub enum Command {
    Follow {
        service: String,
        follower: watch::Sender<Said>,
    },
    /// A follower of this service is gone.
    Left {
        service: String,
    },
    List(Asker),
}

pub struct Actor {
    settings: Settings,
    link: Link<Dial>,
    desk: Desk,
    delta: Delta,
    sotw: StateOfTheWorld,
    /// Whose versions we hold.
    last_server: Option<String>,
    quick_ends: Backoff,
}

/// Where commands come in, at any time.
struct Desk {
    commands: mpsc::UnboundedReceiver<Command>,
    state: State,
}

/// Connects without pings, which many control planes do not allow. There are signs of life instead.
pub struct Dial {
    pub tls: Tls,
}

pub struct Connection {
    channel: Channel,
}

/// How a stream ended.
enum End {
    /// Nobody wants anything any more.
    Idle,
    /// The registry is no longer in use.
    Dropped,
    Failed(RegistryError),
    /// The server does not know this variant.
    Unimplemented(RegistryError),
}

impl link::Connect for Dial {
    type Connection = Connection;

    async fn connect(&self, server: &Server) -> Result<Connection, RegistryError> {
        Ok(Connection { channel: Channel::open_unpinged(server, &self.tls).await? })
    }
}

impl link::Connection for Connection {
    fn is_closed(&self) -> bool {
        self.channel.is_closed()
    }

    fn has_worked(&self) -> bool {
        self.channel.has_worked()
    }
}

impl Actor {
    pub fn new(settings: Settings, commands: mpsc::UnboundedReceiver<Command>) -> Self {
        let link = Link::new(settings.servers.clone(), Dial { tls: settings.tls.clone() });
        Self {
            link,
            desk: Desk { commands, state: State::new(settings.discover) },
            delta: Delta::new(settings.node.clone()),
            sotw: StateOfTheWorld::new(settings.node.clone()),
            last_server: None,
            quick_ends: Backoff::new(SHORTEST_WAIT, LONGEST_WAIT),
            settings,
        }
    }

    /// Until the registry is no longer in use. There is a connection only while somebody wants something.
    pub async fn run(mut self) {
        loop {
            while self.desk.state.is_idle() {
                let Some(command) = self.desk.commands.recv().await else { return };
                self.desk.obey(command);
            }
            if self.session().await.is_none() {
                return;
            }
        }
    }

    /// From an attempt to connect to the end of the connection. `None` if the registry is no longer in use.
    async fn session(&mut self) -> Option<()> {
        let connection = match self.desk.attend(self.link.connection()).await? {
            Ok(connection) => connection,
            // The link itself waits before the next attempt.
            Err(error) => {
                self.desk.state.failed(&error);
                return Some(());
            }
        };
        let start = Instant::now();
        let end = self.talk(&connection.channel).await;
        self.link.give_up(&connection);
        match end {
            End::Dropped => return None,
            // What is not followed gets old.
            End::Idle => {
                self.desk.state = State::new(self.settings.discover);
                self.delta = Delta::new(self.settings.node.clone());
                self.sotw = StateOfTheWorld::new(self.settings.node.clone());
            }
            End::Failed(error) | End::Unimplemented(error) => {
                debug!(registry = self.settings.name, %error, "the stream ended");
                self.desk.state.failed(&error);
                if start.elapsed() >= GOOD_LIFE {
                    self.quick_ends.reset();
                } else if connection.channel.has_worked() {
                    // The link takes such a connection for a good one, and would hardly wait.
                    self.desk.attend(sleep(self.quick_ends.next_wait())).await?;
                }
            }
        }
        Some(())
    }

    /// On one connection: in one variant, or in the other if the server does not know the first.
    async fn talk(&mut self, channel: &Channel) -> End {
        let same_server = self.last_server.as_deref() == Some(channel.server());
        self.last_server = Some(channel.server().into());
        let settings = &self.settings;
        if settings.protocol != XdsProtocol::Sotw {
            let end = converse(&mut self.desk, &mut self.delta, channel, settings, same_server).await;
            match end {
                End::Unimplemented(_) if settings.protocol == XdsProtocol::Auto => {}
                end => return end,
            }
        }
        converse(&mut self.desk, &mut self.sotw, channel, settings, same_server).await
    }
}

impl Desk {
    fn obey(&mut self, command: Command) {
        match command {
            Command::Follow { service, follower } => self.state.follow(service, follower, Instant::now()),
            Command::Left { service } => self.state.left(&service),
            Command::List(asker) => self.state.list(asker),
        }
    }

    /// Waits for `what`, and does what comes up meanwhile. `None` if nobody is left who could want anything.
    async fn attend<T>(&mut self, what: impl Future<Output = T>) -> Option<T> {
        let mut what = pin!(what);
        loop {
            tokio::select! {
                done = &mut what => return Some(done),
                command = self.commands.recv() => self.obey(command?),
                () = at(self.state.next_tick()) => self.state.tick(Instant::now()),
            }
        }
    }
}

/// One stream, from its start to its end.
async fn converse<V: Variant>(
    desk: &mut Desk,
    variant: &mut V,
    channel: &Channel,
    settings: &Settings,
    same_server: bool,
) -> End {
    let (requests, mut queue) = mpsc::unbounded_channel();
    let mut call = tonic::Request::new(stream::poll_fn(move |cx| queue.poll_recv(cx)));
    *call.metadata_mut() = settings.headers.clone();
    variant.restart(same_server, |kind, name| desk.state.holds(kind, name));
    desk.state.connected(channel.server(), Instant::now());
    // The head of the response comes with the first message, which may be late: nothing may wait for it.
    let mut responses =
        pin!(channel.quiet_streaming::<V::Request, V::Response>(V::PATH, call).try_flatten_stream().fuse());
    let mut life = pin!(sign_of_life(channel, SETTLE));
    let mut last_refusal: Option<(Refused, Backoff)> = None;
    let mut delayed: Option<(Instant, V::Request)> = None;
    loop {
        if desk.state.is_idle() {
            return End::Idle;
        }
        desk.state.settle(Instant::now());
        for kind in Kind::ALL {
            if let Some(request) = variant.ask(kind, desk.state.wanted(kind)) {
                let _ = requests.send(request);
            }
        }
        let delay = delayed.as_ref().map(|(time, _)| *time);
        tokio::select! {
            response = responses.next() => {
                let response = match response {
                    Some(Ok(response)) => response,
                    Some(Err(status)) => return ended(channel, &status),
                    None => return End::Failed(busy(channel, "it ended the stream")),
                };
                channel.answered();
                let Some((update, receipt)) = variant.read(response) else { continue };
                let refused = desk.state.apply(update, Instant::now());
                let answer = variant.answer(receipt, &refused);
                if refused.is_empty() {
                    last_refusal = None;
                    let _ = requests.send(answer);
                    continue;
                }
                debug!(registry = settings.name, server = channel.server(), ?refused, "cannot be used");
                match &mut last_refusal {
                    Some((same, backoff)) if *same == refused => {
                        delayed = Some((Instant::now() + backoff.next_wait(), answer));
                    }
                    _ => {
                        last_refusal = Some((refused, Backoff::new(SHORTEST_REFUSAL, LONGEST_REFUSAL)));
                        let _ = requests.send(answer);
                    }
                }
            }
            command = desk.commands.recv() => {
                let Some(command) = command else { return End::Dropped };
                desk.obey(command);
                // Those that came together are one change of what is asked for.
                while let Ok(command) = desk.commands.try_recv() {
                    desk.obey(command);
                }
            }
            () = at(desk.state.next_tick()) => desk.state.tick(Instant::now()),
            lives = &mut life => {
                if let Err(error) = lives {
                    return End::Failed(error);
                }
                desk.state.confirm();
                life.set(sign_of_life(channel, settings.keepalive));
            }
            () = at(delay) => {
                if let Some((_, answer)) = delayed.take() {
                    let _ = requests.send(answer);
                }
            }
        }
    }
}

/// Waits, and asks the server for something to which it has an answer in any case. That there was none is an error.
async fn sign_of_life(channel: &Channel, after: Duration) -> Result<(), RegistryError> {
    sleep(after).await;
    if let Err(status) = channel.unary::<Empty, Empty>(HEALTH, tonic::Request::new(Empty {})).await {
        if let Some(error) = channel.broken(&status) {
            return Err(error);
        }
        if matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled) {
            let (server, cause) = (channel.server().into(), status.message().into());
            return Err(RegistryError::Unreachable { server, cause });
        }
    }
    channel.answered();
    Ok(())
}

async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

fn ended(channel: &Channel, status: &Status) -> End {
    if let Some(error) = channel.broken(status) {
        return End::Failed(error);
    }
    let (server, cause) = (channel.server().to_owned(), status.message().to_owned());
    match status.code() {
        Code::Unimplemented => End::Unimplemented(RegistryError::Protocol {
            server,
            cause: format!("it serves no aggregated discovery of this variant: {cause}"),
        }),
        Code::Ok | Code::Unavailable | Code::ResourceExhausted => End::Failed(busy(channel, &cause)),
        Code::DeadlineExceeded | Code::Cancelled => End::Failed(RegistryError::Unreachable { server, cause }),
        Code::Unauthenticated | Code::PermissionDenied | Code::InvalidArgument | Code::FailedPrecondition => {
            End::Failed(RegistryError::Refused { server, cause })
        }
        code => End::Failed(RegistryError::Protocol { server, cause: format!("{code:?}: {cause}") }),
    }
}

fn busy(channel: &Channel, cause: &str) -> RegistryError {
    RegistryError::Busy { server: channel.server().into(), cause: cause.into() }
}
