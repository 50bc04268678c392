//! Nacos' configs as a store: a path is a group, a name below it a dataId, a version the MD5 of a content. A lock is a document
//! among them, for Nacos has none that can be trusted.

use super::{
    Nacos,
    calls::CallError,
    connection::Connection,
    message::{Config, ConfigKey},
    poll::Version as Api,
    session::Session,
};
use crate::registry::{
    RegistryError,
    store::{self, Claim, InDocument, InStore, Item, Put, Sink, Store, Version},
    watch::{Failure, News, Watch},
};
use bytes::Bytes;
use futures_util::future::{BoxFuture, try_join_all};
use std::{
    collections::{BTreeMap, HashSet},
    fmt::Write,
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::broadcast::{Receiver, error::RecvError},
    time::{Instant, sleep, sleep_until, timeout},
};

/// The MD5 of nothing: what is written for it is written only where there is nothing yet.
const NOTHING: &str = "none";
/// A server tells what was written a moment after it has said that it was.
const TOLD_WITHIN: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(10);
/// A version that no value has: somebody else has written since.
const OVERWRITTEN: &str = "overwritten";

/// What is in one group.
struct Group {
    nacos: Arc<Nacos>,
    group: String,
    connection: Option<Arc<Connection>>,
    changes: Option<Receiver<ConfigKey>>,
    api: Option<Api>,
    configs: BTreeMap<String, Config>,
    next_look: Instant,
}

impl Group {
    /// Asks for what there is, and reads what changed or came. Whether anything did.
    async fn look(&mut self, session: &Session) -> Result<bool, CallError> {
        let names: HashSet<_> = session.config_names(&self.group, &mut self.api).await?.into_iter().collect();
        let mut known: BTreeMap<_, _> = names.iter().map(|name| (name.as_str(), "")).collect();
        // Also those that are not in the list: the database and the server may differ for a moment.
        known.extend(self.configs.iter().map(|(name, config)| (name.as_str(), config.md5.as_str())));
        let changed = match known.is_empty() {
            true => Vec::new(),
            false => session.changed(&self.group, known.into_iter()).await?,
        };
        let read = try_join_all(changed.iter().map(|key| session.config(key))).await?;
        self.next_look = Instant::now() + self.nacos.poll.mul_f64(0.8 + 0.4 * fastrand::f64());
        let mut differs = false;
        for (key, config) in changed.into_iter().zip(read) {
            differs |= self.take(key.data_id, config);
        }
        Ok(differs)
    }

    fn take(&mut self, name: String, config: Option<Config>) -> bool {
        match config {
            Some(config) => self.configs.insert(name, config.clone()) != Some(config),
            None => self.configs.remove(&name).is_some(),
        }
    }

    async fn hear(&mut self, session: &Session) -> Result<News<Vec<Item>>, Failure> {
        let Some(changes) = &mut self.changes else { return Err(Failure::Stale("nothing is watched".into())) };
        let changed = loop {
            tokio::select! {
                change = changes.recv() => match change {
                    Ok(key) if key.group != self.group => {}
                    Ok(key) => break Some(key),
                    Err(RecvError::Lagged(_)) => break None,
                    Err(RecvError::Closed) => return Err(session.failure()),
                },
                () = session.ended() => return Err(session.failure()),
                () = sleep_until(self.next_look) => break None,
            }
        };
        let differs = match changed {
            Some(key) => session.config(&key).await.map(|config| self.take(key.data_id, config)),
            None => self.look(session).await,
        };
        Ok(if differs.map_err(|error| self.failed(error))? { News::Set(self.items()) } else { News::Alive })
    }

    /// Without what was not named by pillion's rules.
    fn items(&self) -> Vec<Item> {
        self.configs.iter().filter_map(|(name, config)| Some(item(readable(name)?, config))).collect()
    }

    fn failed(&self, error: CallError) -> Failure {
        match &self.connection {
            Some(connection) => self.nacos.failed(connection, error).into(),
            None => error.into(),
        }
    }
}

impl Watch<Vec<Item>> for Group {
    async fn list(&mut self) -> Result<Vec<Item>, Failure> {
        let connection = self.nacos.link.connection().await.map_err(Failure::NoConnection)?;
        self.connection = Some(connection.clone());
        let session = over_grpc(&connection)?;
        // First, so that no change is missed.
        self.changes = Some(session.config_changes());
        self.look(session).await.map_err(|error| self.failed(error))?;
        Ok(self.items())
    }

    async fn next(&mut self) -> Result<News<Vec<Item>>, Failure> {
        let Some(connection) = self.connection.clone() else {
            return Err(Failure::Stale("there is no connection".into()));
        };
        self.hear(over_grpc(&connection)?).await
    }
}

fn over_grpc(connection: &Connection) -> Result<&Session, RegistryError> {
    match connection {
        Connection::Grpc(session) => Ok(session),
        Connection::Http { .. } => {
            Err(RegistryError::Impossible { cause: "a store in Nacos needs gRPC, and there is only HTTP".into() })
        }
    }
}

fn item(key: String, config: &Config) -> Item {
    Item { key, value: config.content.clone().into(), version: Version::new(&config.md5) }
}

impl Nacos {
    fn place(&self, key: &str) -> ConfigKey {
        match key.rsplit_once('/') {
            Some((path, name)) => ConfigKey { group: group(path), data_id: written(name) },
            None => ConfigKey { group: self.group.clone(), data_id: written(key) },
        }
    }

    /// Waits until the server tells what was written, so that whoever asks next is not told something older.
    async fn told(&self, session: &Session, key: &ConfigKey, before: &str, content: &str) -> Result<Put, CallError> {
        let telling = async {
            loop {
                match session.config(key).await? {
                    Some(now) if now.content == content => return Ok(Put::Done(Version::new(now.md5))),
                    // With a database of its own Nacos 2 says to all who make a config at one moment that they did.
                    Some(_) if before == NOTHING => return Ok(Put::Conflict),
                    Some(now) if now.md5 == before => sleep(LOOK).await,
                    None if before == NOTHING => sleep(LOOK).await,
                    _ => return Ok(Put::Done(Version::new(OVERWRITTEN))),
                }
            }
        };
        timeout(TOLD_WITHIN, telling).await.unwrap_or_else(|_| {
            let cause = format!("it took `{}` and does not tell it within {TOLD_WITHIN:?}", key.data_id);
            Err(CallError::Call(RegistryError::Busy { server: self.name.clone(), cause }))
        })
    }

    async fn swap(
        &self,
        session: &Session,
        key: &ConfigKey,
        expected: Option<&Version>,
        content: &str,
    ) -> Result<Put, CallError> {
        // Nacos would write what is not there.
        if expected.is_some() && session.config(key).await?.is_none() {
            return Ok(Put::Conflict);
        }
        let before = expected.map_or(NOTHING, Version::as_str);
        if !session.swap_config(key, before, content).await? {
            return Ok(Put::Conflict);
        }
        self.told(session, key, before, content).await
    }
}

/// Paths that differ only in where they have `/` and where `.` are the same group.
fn group(path: &str) -> String {
    path.split('/').map(written).collect::<Vec<_>>().join(".")
}

/// A name with Nacos' letters: what it does not allow, and `:`, is `:` and two hexadecimal digits.
fn written(name: &str) -> String {
    let mut text = String::with_capacity(name.len());
    for byte in name.bytes() {
        match byte {
            b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' | b'-' | b'_' | b'.' => text.push(byte.into()),
            _ => {
                // Text takes everything.
                let _ = write!(text, ":{byte:02x}");
            }
        }
    }
    text
}

/// The name that is written so; `None` if none is.
fn readable(text: &str) -> Option<String> {
    let mut parts = text.split(':');
    let mut name = parts.next()?.as_bytes().to_vec();
    for part in parts {
        let (code, rest) = part.split_at_checked(2)?;
        name.push(u8::from_str_radix(code, 16).ok()?);
        name.extend_from_slice(rest.as_bytes());
    }
    String::from_utf8(name).ok().filter(|name| written(name) == text)
}

impl Store for Nacos {
    fn watch(self: Arc<Self>, path: String, sink: Sink) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            let group = Group {
                nacos: self.clone(),
                group: group(&path),
                connection: None,
                changes: None,
                api: None,
                configs: BTreeMap::new(),
                next_look: Instant::now(),
            };
            store::follow(&self.name, &path, sink, group).await;
        })
    }

    fn get(self: Arc<Self>, key: String) -> BoxFuture<'static, Result<Option<Item>, RegistryError>> {
        Box::pin(async move {
            let connection = self.link.connection().await?;
            let there = over_grpc(&connection)?.config(&self.place(&key)).await;
            let there = there.map_err(|error| self.failed(&connection, error))?;
            Ok(there.map(|config| item(key, &config)))
        })
    }

    /// The database compares. It writes as well what was deleted since we looked whether it is there.
    fn put_if(
        self: Arc<Self>,
        key: String,
        expected: Option<Version>,
        value: Bytes,
    ) -> BoxFuture<'static, Result<Put, RegistryError>> {
        Box::pin(async move {
            let Some(content) = std::str::from_utf8(&value).ok().filter(|text| !text.trim().is_empty()) else {
                let cause = format!("`{key}` cannot be that in Nacos; expected text that is not blank");
                return Err(RegistryError::Impossible { cause });
            };
            let connection = self.link.connection().await?;
            let swapped = self.swap(over_grpc(&connection)?, &self.place(&key), expected.as_ref(), content).await;
            swapped.map_err(|error| self.failed(&connection, error))
        })
    }

    fn claim(self: Arc<Self>, key: String, owner: String, ttl: Duration) -> Box<dyn Claim> {
        Box::new(InDocument::new(InStore { store: self, key }, owner, ttl))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_written_with_nacos_letters_and_read_again() {
        for (name, text) in [
            ("users", "users"),
            ("a.b_c-D1", "a.b_c-D1"),
            ("G@@users", "G:40:40users"),
            ("a:b", "a:3ab"),
            ("ü", ":c3:bc"),
        ] {
            assert_eq!((written(name).as_str(), readable(text).as_deref()), (text, Some(name)));
        }
        for text in ["a:", "a:4", "a:zz", "a:61", "a:C3:BC", ":ff", "a:é"] {
            assert_eq!(readable(text), None, "{text}");
        }
        let nacos = Nacos::new("main", &crate::config::NacosRegistry::default()).unwrap();
        let place = |key: &str| {
            let ConfigKey { group, data_id } = nacos.place(key);
            format!("{group} {data_id}")
        };
        assert_eq!(place("pillion/routes/users"), "pillion.routes users");
        assert_eq!(place("pillion/rollouts-locks/G@@users"), "pillion.rollouts-locks G:40:40users");
        assert_eq!(place("users"), "DEFAULT_GROUP users");
    }
}
