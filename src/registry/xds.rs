//! xDS (version 3): a control plane's clusters and endpoints, over one ADS stream for all services.

mod actor;
mod decode;
mod delta;
#[cfg(fuzzing)]
pub mod fuzzing;
mod proto;
mod sotw;
mod state;
mod variant;

use super::{
    Registry, RegistryError, SetupError, Sink, in_time,
    server::Server,
    watch::{self, Failure, Found, News, Watch},
};
use crate::{
    config::{Tls, XdsDiscover, XdsProtocol, XdsRegistry},
    net::tls,
};
use actor::{Actor, Command};
use futures_util::future::BoxFuture;
use proto::{Kind, Locality, Node, Struct, Value};
use state::Said;
use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};
use tokio::sync::{mpsc, oneshot, watch as tokio_watch};
use tonic::metadata::{Ascii, MetadataKey, MetadataMap, MetadataValue};

/// One control plane.
pub struct Xds {
    settings: Settings,
    /// The task that talks to it, from the first follower on. It ends with this registry.
    actor: OnceLock<mpsc::UnboundedSender<Command>>,
}

#[derive(Clone)]
struct Settings {
    name: String,
    servers: Vec<Server>,
    tls: Tls,
    headers: MetadataMap,
    node: Node,
    protocol: XdsProtocol,
    discover: XdsDiscover,
    keepalive: Duration,
}

impl Xds {
    /// A client of the servers in `config`, known as `name`. Does not connect yet.
    ///
    /// Fails if an address is no URL, if something cannot be sent in a header, or if TLS is asked for and its files cannot
    /// be used.
    pub fn new(name: &str, config: &XdsRegistry) -> Result<Self, SetupError> {
        let servers = Server::parse_all(&config.servers)?;
        // Said now, by name of the file, rather than as a failure to connect.
        for server in servers.iter().filter(|server| server.secure) {
            tls::client_config(&config.tls, &[])?;
            tls::server_name(&config.tls, &server.host)?;
        }
        let settings = Settings {
            name: name.into(),
            servers,
            tls: config.tls.clone(),
            headers: headers(config)?,
            node: node(config),
            protocol: config.protocol,
            discover: config.discover,
            keepalive: config.keepalive,
        };
        Ok(Self { settings, actor: OnceLock::new() })
    }

    fn actor(&self) -> &mpsc::UnboundedSender<Command> {
        self.actor.get_or_init(|| spawn(self.settings.clone()))
    }

    async fn services(&self) -> Result<Vec<String>, RegistryError> {
        let (asker, answer) = oneshot::channel();
        // Who asks for endpoints alone never hears which clusters there are.
        let own = (self.settings.discover == XdsDiscover::Eds)
            .then(|| spawn(Settings { discover: XdsDiscover::Cds, ..self.settings.clone() }));
        let _ = own.as_ref().unwrap_or_else(|| self.actor()).send(Command::List(asker));
        let unreachable =
            |cause: &str| RegistryError::Unreachable { server: self.settings.name.clone(), cause: cause.into() };
        answer.await.unwrap_or_else(|_| Err(unreachable("the client of this registry ended")))
    }
}

fn spawn(settings: Settings) -> mpsc::UnboundedSender<Command> {
    let (commands, queue) = mpsc::unbounded_channel();
    tokio::spawn(Actor::new(settings, queue).run());
    commands
}

impl Registry for Xds {
    fn name(&self) -> &str {
        &self.settings.name
    }

    fn kind(&self) -> &'static str {
        "xds"
    }

    fn follow(self: Arc<Self>, service: String, sink: Sink) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            let (follower, said) = tokio_watch::channel(Said::default());
            let commands = self.actor().clone();
            let _ = commands.send(Command::Follow { service: service.clone(), follower });
            let follower = Follower { said, left: Left { service: service.clone(), commands } };
            watch::follow(&self.settings.name, &service, sink, follower).await;
        })
    }

    fn list(self: Arc<Self>) -> BoxFuture<'static, Result<Vec<String>, RegistryError>> {
        Box::pin(async move { in_time(&self.settings.name, self.services()).await })
    }

    fn silence_limit(&self) -> Duration {
        // Two signs of life, and the time to notice that there is none and to connect again.
        2 * self.settings.keepalive + Duration::from_secs(60)
    }
}

/// Hears what the actor knows of one service.
struct Follower {
    said: tokio_watch::Receiver<Said>,
    left: Left,
}

/// Tells the actor when it is dropped, which is after the ear is.
struct Left {
    service: String,
    commands: mpsc::UnboundedSender<Command>,
}

impl Drop for Left {
    fn drop(&mut self) {
        let _ = self.commands.send(Command::Left { service: std::mem::take(&mut self.service) });
    }
}

impl Follower {
    async fn hear(&mut self) -> Result<Found, Failure> {
        loop {
            if self.said.changed().await.is_err() {
                // The actor never ends before its followers; should it, discovery's watchdog speaks up.
                std::future::pending::<()>().await;
            }
            match &*self.said.borrow_and_update() {
                Said::Nothing => {}
                Said::Set(endpoints) => {
                    let unreadable = endpoints.notes.iter().map(|note| format!("{}: {note}", self.left.service));
                    return Ok(Found { instances: endpoints.instances.clone(), unreadable: unreadable.collect() });
                }
                // The actor itself waits between its attempts.
                Said::Failing(error) => return Err(Failure::NoConnection(error.clone())),
            }
        }
    }
}

impl Watch for Follower {
    async fn list(&mut self) -> Result<Found, Failure> {
        self.hear().await
    }

    async fn next(&mut self) -> Result<News, Failure> {
        self.hear().await.map(News::Set)
    }
}

fn headers(config: &XdsRegistry) -> Result<MetadataMap, SetupError> {
    let mut headers = MetadataMap::new();
    for (name, value) in &config.metadata {
        let name = MetadataKey::<Ascii>::from_bytes(name.as_bytes()).map_err(|_| SetupError::Token)?;
        headers.insert(name, secret(value.expose())?);
    }
    if let Some(token) = &config.token {
        headers.insert("authorization", secret(&format!("Bearer {}", token.expose()))?);
    }
    Ok(headers)
}

fn secret(text: &str) -> Result<MetadataValue<Ascii>, SetupError> {
    text.parse().map_err(|_| SetupError::Token)
}

fn node(config: &XdsRegistry) -> Node {
    let node = &config.node;
    let text = |text: &String| Value { kind: Some(Kind::Text(text.clone())) };
    let fields = node.metadata.iter().map(|(name, value)| (name.clone(), text(value))).collect();
    let locality = Locality {
        region: node.region.clone().unwrap_or_default(),
        zone: node.zone.clone().unwrap_or_default(),
        sub_zone: node.sub_zone.clone().unwrap_or_default(),
    };
    Node {
        id: node.id.clone().unwrap_or_else(host_name),
        cluster: node.cluster.clone(),
        metadata: (!node.metadata.is_empty()).then_some(Struct { fields }),
        locality: (locality != Locality::default()).then_some(locality),
        user_agent_name: env!("CARGO_PKG_NAME").into(),
        user_agent_version: env!("CARGO_PKG_VERSION").into(),
    }
}

/// A control plane wants to tell its clients from each other.
fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim();
    if name.is_empty() { env!("CARGO_PKG_NAME").into() } else { name.into() }
}

#[cfg(test)]
mod tests;
