//! Following what is right below a node: watch it, read everything, then read again what an event names.

use super::{
    connection::{CallError, Connect, Connection, Subscription},
    proto::{Code, Data, Event, EventKind},
    wire::refusal,
};
use crate::registry::{
    RegistryError,
    link::Link,
    watch::{Failure, News, Watch},
};
use futures_util::future::join_all;
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::time::sleep;

/// How often a watch without events says that it lives. The connection knows by itself when it does not.
pub const ALIVE_INTERVAL: Duration = Duration::from_secs(20);

/// What is made of a node's children.
pub trait Content: Send + Sync {
    /// What one of them says; by default nothing.
    type Part: Default + Send + Sync;
    /// What its listeners get.
    type Set: Send;

    /// Whether the names are not enough.
    fn reads_values(&self) -> bool;

    /// What a child says, or what is wrong with it.
    fn part(&self, name: &str, data: &Data) -> Result<Self::Part, String>;

    /// All of it; `None` if what must not be read hides too much.
    fn whole(&self, path: &str, children: &BTreeMap<String, Child<Self::Part>>) -> Option<Self::Set>;
}

/// The children of one node.
pub struct Nodes<'a, C: Content> {
    link: &'a Link<Connect>,
    path: String,
    content: C,
    followed: Option<Followed>,
    /// What each child says. Kept over reconnects for children whose new value cannot be read.
    found: BTreeMap<String, Child<C::Part>>,
}

struct Followed {
    connection: Arc<Connection>,
    events: Subscription,
}

#[derive(Default)]
pub struct Child<P> {
    pub part: P,
    /// Why the newest value could not be read.
    pub wrong: Option<Wrong>,
}

pub enum Wrong {
    NoRight,
    Value(String),
}

impl<C: Content> Watch<C::Set> for Nodes<'_, C> {
    async fn list(&mut self) -> Result<C::Set, Failure> {
        // What was watched on the connection before is gone with it, or is not trusted.
        self.followed = None;
        let connection = self.link.connection().await.map_err(Failure::NoConnection)?;
        let events = self.checked(&connection, connection.subscribe(&self.path).await)?;
        let names = self.names(&connection).await?;
        self.found.retain(|name, _| names.contains(name));
        self.read(&connection, names).await?;
        let set = self.set(&connection)?;
        self.followed = Some(Followed { connection, events });
        Ok(set)
    }

    async fn next(&mut self) -> Result<News<C::Set>, Failure> {
        let Some(Followed { connection, events }) = &mut self.followed else {
            return Err(Failure::Stale("nothing is watched".into()));
        };
        let connection = connection.clone();
        let mut event = tokio::select! {
            event = events.next() => event,
            () = sleep(ALIVE_INTERVAL.mul_f64(0.8 + 0.4 * fastrand::f64())) => return Ok(News::Alive),
        };
        if event.is_none() {
            return Err(if crate::registry::link::Connection::is_closed(&*connection) {
                connection.broken().into()
            } else {
                Failure::Stale("there were more events than could be kept".into())
            });
        }
        let mut dirty = Dirty::default();
        while let Some(known) = event {
            dirty.add(&self.path, known, &mut self.found);
            event = events.another();
        }
        if dirty.names {
            let names = self.names(&connection).await?;
            self.found.retain(|name, _| names.contains(name));
            // The others are watched already.
            dirty.children.extend(names.into_iter().filter(|name| !self.found.contains_key(name)));
        }
        dirty.children.sort_unstable();
        dirty.children.dedup();
        self.read(&connection, dirty.children).await?;
        self.set(&connection).map(News::Set)
    }
}

/// What has to be read after some events.
#[derive(Default)]
struct Dirty {
    names: bool,
    children: Vec<String>,
}

impl Dirty {
    fn add<P>(&mut self, path: &str, event: Event, found: &mut BTreeMap<String, Child<P>>) {
        let Some(below) = event.path.strip_prefix(path) else { return };
        match below.strip_prefix('/') {
            None => self.names = true,
            // Below one of the children.
            Some(child) if child.contains('/') => {}
            Some(child) => match event.kind {
                // Not left to a later event: it may come back before that.
                EventKind::Deleted => drop(found.remove(child)),
                EventKind::Created | EventKind::DataChanged => self.children.push(child.into()),
                EventKind::ChildrenChanged | EventKind::Other(_) => {}
            },
        }
    }
}

impl<'a, C: Content> Nodes<'a, C> {
    pub fn new(link: &'a Link<Connect>, path: String, content: C) -> Self {
        Self { link, path, content, followed: None, found: BTreeMap::new() }
    }

    /// The names of all children, none if there is no such node yet.
    async fn names(&self, connection: &Arc<Connection>) -> Result<Vec<String>, Failure> {
        let once = !connection.is_recursive();
        loop {
            match connection.children(&self.path, once).await {
                Err(CallError::Code(Code::NO_NODE)) if !once => return Ok(Vec::new()),
                // A node that is not there can only be watched by this; it may be there by now.
                Err(CallError::Code(Code::NO_NODE)) => match connection.exists(&self.path, true).await {
                    Err(CallError::Code(Code::NO_NODE)) => return Ok(Vec::new()),
                    answer => self.checked(connection, answer)?,
                },
                answer => return self.checked(connection, answer),
            }
        }
    }

    /// Reads those children, all at once.
    async fn read(&mut self, connection: &Arc<Connection>, names: Vec<String>) -> Result<(), Failure> {
        if !self.content.reads_values() {
            for name in names {
                self.take(name, &Data::default());
            }
            return Ok(());
        }
        let once = !connection.is_recursive();
        let paths = names.iter().map(|name| format!("{}/{name}", self.path));
        let answers = join_all(paths.map(|path| async move { connection.data(&path, once).await })).await;
        for (name, answer) in names.into_iter().zip(answers) {
            match answer {
                Ok(data) => self.take(name, &data),
                Err(CallError::Code(Code::NO_NODE)) => drop(self.found.remove(&name)),
                Err(CallError::Code(Code::NO_AUTH)) => {
                    self.found.entry(name).or_default().wrong = Some(Wrong::NoRight);
                }
                answer => drop(self.checked(connection, answer)?),
            }
        }
        Ok(())
    }

    fn take(&mut self, name: String, data: &Data) {
        let part = self.content.part(&name, data);
        let child = self.found.entry(name).or_default();
        match part {
            Ok(part) => *child = Child { part, wrong: None },
            Err(error) => child.wrong = Some(Wrong::Value(error)),
        }
    }

    fn set(&self, connection: &Connection) -> Result<C::Set, Failure> {
        self.content.whole(&self.path, &self.found).ok_or_else(|| {
            let what = format!("what is below {}", self.path);
            refusal(connection.server(), Code::NO_AUTH, &what).into()
        })
    }

    fn checked<T>(&self, connection: &Connection, answer: Result<T, CallError>) -> Result<T, Failure> {
        answer.map_err(|error| Failure::Error(self.error(connection, error)))
    }

    fn error(&self, connection: &Connection, error: CallError) -> RegistryError {
        match error {
            CallError::Code(code) => refusal(connection.server(), code, &self.path),
            CallError::Broken(error) => error,
        }
    }
}
