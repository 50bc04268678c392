//! ZooKeeper's nodes as a store: a version is the change that wrote a node last, a lock is a node that goes with a session.

use super::{
    Zookeeper,
    connection::{CallError, Connect, Connection},
    follow::{Child, Content, Nodes, Wrong},
    proto::{Change, Code, Data, Stat},
    wire::{refusal, write_refusal},
};
use crate::registry::{
    RegistryError,
    link::Link,
    store::{self, Claim, Item, Put, Sink, Store, Version},
};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use std::{collections::BTreeMap, sync::Arc, time::Duration};

/// How often a node is tried to be made while those above it come and go.
const TRIES: usize = 5;

/// The values right below a node.
struct Items;

impl Content for Items {
    type Part = Option<Item>;
    type Set = Vec<Item>;

    fn reads_values(&self) -> bool {
        true
    }

    fn part(&self, name: &str, data: &Data) -> Result<Option<Item>, String> {
        // One without a value is on the way to others.
        let is_value = data.stat.children == 0 || !data.value.is_empty();
        Ok(is_value.then(|| item(name.into(), data)))
    }

    /// One that must not be read is not one that is gone.
    fn whole(&self, _: &str, children: &BTreeMap<String, Child<Option<Item>>>) -> Option<Vec<Item>> {
        let is_hidden = |child: &Child<_>| matches!(child.wrong, Some(Wrong::NoRight));
        (!children.values().any(is_hidden)).then(|| children.values().filter_map(|child| child.part.clone()).collect())
    }
}

fn item(key: String, data: &Data) -> Item {
    Item { key, value: data.value.clone(), version: version(&data.stat) }
}

/// As ZooKeeper's own command line shows it. Not how often the node was written: one that was deleted and made again would
/// be taken for the old one.
fn version(stat: &Stat) -> Version {
    Version::new(format_args!("{:#x}", stat.changed_by))
}

impl Zookeeper {
    async fn data(&self, connection: &Connection, path: &str) -> Result<Option<Data>, RegistryError> {
        match connection.data(path, false).await {
            Ok(data) => Ok(Some(data)),
            Err(CallError::Code(Code::NO_NODE)) => Ok(None),
            Err(CallError::Code(code)) => Err(refusal(connection.server(), code, path)),
            Err(CallError::Broken(error)) => Err(error),
        }
    }

    /// Makes a node, and those above it where they are missing. `None`: it is there already.
    async fn create(
        &self,
        connection: &Connection,
        path: &str,
        value: &[u8],
        ephemeral: bool,
    ) -> Result<Option<Stat>, RegistryError> {
        // Older servers tell nothing of a node that they make, but of one that they write. In one step, nobody sees it twice.
        let create = Change::Create { path, value, ephemeral, ours: self.private };
        let changes = [create, Change::Write { path, value, version: 0 }];
        for _ in 0..TRIES {
            match connection.change(&changes).await {
                Err(CallError::Code(Code::NODE_EXISTS)) => return Ok(None),
                Err(CallError::Code(Code::NO_NODE)) => {
                    let made = self.make_way(connection, path).await;
                    made.map_err(|error| write_error(connection, error, path))?;
                }
                made => return made.map_err(|error| write_error(connection, error, path)),
            }
        }
        let cause = format!("somebody deletes what is above `{path}`");
        Err(RegistryError::Busy { server: connection.server().into(), cause })
    }

    /// Writes a node that is still as it was when it was read. `None`: it is not.
    async fn write(
        &self,
        connection: &Connection,
        path: &str,
        there: &Stat,
        value: &[u8],
    ) -> Result<Option<Stat>, RegistryError> {
        match connection.change(&[Change::Write { path, value, version: there.version }]).await {
            Err(CallError::Code(Code::NO_NODE | Code::BAD_VERSION)) => Ok(None),
            written => written.map_err(|error| write_error(connection, error, path)),
        }
    }
}

fn write_error(connection: &Connection, error: CallError, path: &str) -> RegistryError {
    match error {
        CallError::Code(code) => write_refusal(connection.server(), code, path),
        CallError::Broken(error) => error,
    }
}

impl Store for Zookeeper {
    fn watch(self: Arc<Self>, path: String, sink: Sink) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            self.is_no_service(&path);
            let nodes = Nodes::new(&self.link, self.path(&path), Items);
            store::follow(&self.name, &path, sink, nodes).await;
        })
    }

    fn get(self: Arc<Self>, key: String) -> BoxFuture<'static, Result<Option<Item>, RegistryError>> {
        Box::pin(async move {
            let connection = self.link.connection().await?;
            let there = self.data(&connection, &self.path(&key)).await?;
            Ok(there.map(|data| item(key, &data)))
        })
    }

    /// What is compared by the server is how often the node was written. So a node that is deleted, made again and written as
    /// often, all of it between our look and our write, is written over.
    fn put_if(
        self: Arc<Self>,
        key: String,
        expected: Option<Version>,
        value: Bytes,
    ) -> BoxFuture<'static, Result<Put, RegistryError>> {
        Box::pin(async move {
            self.is_no_service(above(&key));
            let path = self.path(&key);
            let connection = self.link.connection().await?;
            let put = match expected {
                None => self.create(&connection, &path, &value, false).await?,
                Some(expected) => match self.data(&connection, &path).await? {
                    Some(there) if version(&there.stat) == expected => {
                        self.write(&connection, &path, &there.stat, &value).await?
                    }
                    _ => None,
                },
            };
            Ok(Put::at(put.map(|stat| version(&stat))))
        })
    }

    fn claim(self: Arc<Self>, key: String, owner: String, ttl: Duration) -> Box<dyn Claim> {
        self.is_no_service(above(&key));
        let path = self.path(&key);
        Box::new(SessionNode { zookeeper: self, path, owner, ttl, own: None })
    }
}

/// The key of what a key is below.
fn above(key: &str) -> &str {
    key.rsplit_once('/').map_or("", |(above, _)| above)
}

/// A node on a session of its own, with which the server takes it away. The session is not kept alive but by what is asked
/// here: that of all others lives as long as this process.
struct SessionNode {
    zookeeper: Arc<Zookeeper>,
    path: String,
    owner: String,
    ttl: Duration,
    own: Option<Link<Connect>>,
}

impl SessionNode {
    /// Longer than the TTL by the time between two renewals. The server that we talk to tells the leader, whose clock counts,
    /// that the session lives a moment after a renewal has been answered; if it is cut off in that moment, the leader
    /// counts from the renewal before.
    fn session_timeout(&self) -> Duration {
        self.ttl + self.ttl / 3
    }

    /// The connection to our own session.
    async fn connection(&mut self) -> Result<Arc<Connection>, RegistryError> {
        let wanted = self.session_timeout();
        let own = self.own.get_or_insert_with(|| self.zookeeper.link.another(|connect| connect.unattended(wanted)));
        let connection = own.connection().await?;
        let granted = connection.timeout();
        // It counts in whole milliseconds.
        if granted.as_millis() < wanted.as_millis() {
            let cause = format!(
                "{} lets sessions live for {granted:?} only; expected {wanted:?} for a lock (`maxSessionTimeout`)",
                connection.server()
            );
            return Err(RegistryError::Impossible { cause });
        }
        Ok(connection)
    }

    async fn is_ours(&self, connection: &Connection) -> Result<Option<Stat>, RegistryError> {
        let there = self.zookeeper.data(connection, &self.path).await?;
        Ok(there.map(|there| there.stat).filter(|stat| stat.owner == connection.session()))
    }
}

impl Claim for SessionNode {
    fn take(&mut self) -> BoxFuture<'_, Result<bool, RegistryError>> {
        Box::pin(async move {
            // Who waits needs no session.
            if self.own.is_none() {
                let shared = self.zookeeper.link.connection().await?;
                if self.zookeeper.data(&shared, &self.path).await?.is_some() {
                    return Ok(false);
                }
            }
            let connection = self.connection().await?;
            let made = self.zookeeper.create(&connection, &self.path, self.owner.as_bytes(), true).await?;
            // Ours, if the answer to an earlier attempt was lost.
            if made.is_some() || self.is_ours(&connection).await?.is_some() {
                return Ok(true);
            }
            self.own = None;
            Ok(false)
        })
    }

    /// It is written again: whoever reads may be told something old by a server that is cut off from the others, but whoever
    /// writes has heard from most of them.
    fn renew(&mut self) -> BoxFuture<'_, Result<bool, RegistryError>> {
        Box::pin(async move {
            if self.own.is_none() {
                return Ok(false);
            }
            let connection = self.connection().await?;
            let Some(there) = self.is_ours(&connection).await? else { return Ok(false) };
            let written = self.zookeeper.write(&connection, &self.path, &there, self.owner.as_bytes()).await?;
            Ok(written.is_some_and(|stat| stat.owner == connection.session()))
        })
    }

    fn release(&mut self) -> BoxFuture<'_, Result<(), RegistryError>> {
        Box::pin(async move {
            let Some(own) = self.own.take() else { return Ok(()) };
            let connection = own.connection().await?;
            let Some(there) = self.is_ours(&connection).await? else { return Ok(()) };
            let delete = Change::Delete { path: &self.path, version: there.version };
            match connection.change(&[delete]).await {
                Ok(_) | Err(CallError::Code(Code::NO_NODE | Code::BAD_VERSION)) => Ok(()),
                Err(error) => Err(write_error(&connection, error, &self.path)),
            }
        })
    }
}
