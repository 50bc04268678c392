//! Our own entry: a node that goes with the session which all followers share.

use super::{
    Zookeeper,
    connection::{CallError, Connection},
    proto::{Change, Code, Data},
    wire::write_refusal,
};
use crate::registry::{Entry, Registration, RegistryError, Renewal, layout::Relation};
use futures_util::future::BoxFuture;
use std::sync::Arc;

/// How often it is tried to write while somebody else writes there as well.
const TRIES: usize = 5;

/// One instance of ours.
pub struct Node {
    zookeeper: Arc<Zookeeper>,
    registration: Arc<Registration>,
    /// The service's node, which ours is below.
    above: String,
    name: String,
    value: Vec<u8>,
}

/// What there is of us.
struct There {
    /// Nodes of ours by their path, of this session or an earlier one.
    ours: Vec<(String, Data)>,
    /// The address of somebody else in our place.
    taken: Option<String>,
}

impl Node {
    /// `name` and `value` are what the layout writes.
    pub fn new(zookeeper: Arc<Zookeeper>, registration: Arc<Registration>, name: String, value: Vec<u8>) -> Self {
        let above = zookeeper.path(&zookeeper.keys.of_service(&registration.service));
        Self { zookeeper, registration, above, name, value }
    }

    fn path(&self) -> String {
        format!("{}/{}", self.above, self.name)
    }

    async fn look(&self, connection: &Connection) -> Result<There, CallError> {
        let names = if self.zookeeper.keys.are_places() {
            vec![self.name.clone()]
        } else {
            match connection.children(&self.above, false).await {
                Err(CallError::Code(Code::NO_NODE)) => Vec::new(),
                names => names?,
            }
        };
        let mut there = There { ours: Vec::new(), taken: None };
        for name in names {
            // Which instance it is may be in the name alone; then there are many others to pass over.
            if !self.zookeeper.keys.reads_values() && self.relation(&name, &[]) == Relation::None {
                continue;
            }
            let path = format!("{}/{name}", self.above);
            let data = match connection.data(&path, false).await {
                Err(CallError::Code(Code::NO_NODE)) => continue,
                data => data?,
            };
            match self.relation(&name, &data.value) {
                Relation::Same => there.ours.push((path, data)),
                Relation::Taken(address) => there.taken = Some(address),
                Relation::None => {}
            }
        }
        Ok(there)
    }

    fn relation(&self, name: &str, value: &[u8]) -> Relation {
        let Registration { service, instance, .. } = &*self.registration;
        self.zookeeper.keys.relation(service, instance, Some(&self.name), (name, value))
    }

    async fn write(&self, connection: &Connection) -> Result<(), CallError> {
        connection.keep_session();
        let path = self.path();
        for _ in 0..TRIES {
            let there = self.look(connection).await?;
            if let Some(address) = there.taken {
                return Err(CallError::Broken(self.registration.clash(connection.server(), &address)));
            }
            if let [(only, data)] = there.ours.as_slice()
                && *only == path
                && self.is_ours(connection, data)
            {
                return Ok(());
            }
            // A node cannot be given to another session. In one step, nobody sees a moment without.
            let old = there.ours.iter().map(|(path, data)| Change::Delete { path, version: data.stat.version });
            let create =
                Change::Create { path: &path, value: &self.value, ephemeral: true, ours: self.zookeeper.private };
            let changes: Vec<_> = old.chain([create]).collect();
            match connection.change(&changes).await {
                Ok(_) => return Ok(()),
                // What is above it is missing, or one of the old ones has just gone.
                Err(CallError::Code(Code::NO_NODE)) => self.zookeeper.make_way(connection, &path).await?,
                Err(CallError::Code(Code::NODE_EXISTS | Code::BAD_VERSION)) => {}
                Err(error) => return Err(error),
            }
        }
        let cause = format!("somebody else writes `{path}` as well");
        Err(CallError::Broken(RegistryError::Busy { server: connection.server().into(), cause }))
    }

    fn is_ours(&self, connection: &Connection, data: &Data) -> bool {
        data.stat.owner == connection.session() && data.value == self.value
    }

    async fn verify(&self, connection: &Connection) -> Result<Renewal, CallError> {
        connection.keep_session();
        let lost = match connection.data(&self.path(), false).await {
            Ok(data) if self.is_ours(connection, &data) => return Ok(Renewal::Kept),
            Ok(data) if data.stat.owner == connection.session() => "somebody changed it",
            Ok(_) => "it goes with another session",
            Err(CallError::Code(Code::NO_NODE)) => "it is not there",
            Err(error) => return Err(error),
        };
        Ok(Renewal::Lost(lost.into()))
    }

    async fn take_out(&self, connection: &Connection) -> Result<(), CallError> {
        for _ in 0..TRIES {
            let there = self.look(connection).await?;
            let changes: Vec<_> =
                there.ours.iter().map(|(path, data)| Change::Delete { path, version: data.stat.version }).collect();
            if changes.is_empty() {
                break;
            }
            match connection.change(&changes).await {
                Ok(_) => break,
                Err(CallError::Code(Code::NO_NODE | Code::BAD_VERSION)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn error(&self, connection: &Connection, error: CallError) -> RegistryError {
        match error {
            CallError::Code(code) => write_refusal(connection.server(), code, &self.path()),
            CallError::Broken(error) => error,
        }
    }
}

impl Entry for Node {
    fn put(&mut self, _: bool) -> BoxFuture<'_, Result<(), RegistryError>> {
        Box::pin(async move {
            let connection = self.zookeeper.link.connection().await?;
            self.write(&connection).await.map_err(|error| self.error(&connection, error))
        })
    }

    fn renew(&mut self) -> BoxFuture<'_, Result<Renewal, RegistryError>> {
        Box::pin(async move {
            let connection = self.zookeeper.link.connection().await?;
            self.verify(&connection).await.map_err(|error| self.error(&connection, error))
        })
    }

    fn remove(&mut self) -> BoxFuture<'_, Result<(), RegistryError>> {
        Box::pin(async move {
            let connection = self.zookeeper.link.connection().await?;
            self.take_out(&connection).await.map_err(|error| self.error(&connection, error))
        })
    }
}
