//! Consul's KV as a store: a version is the index at which a key was last changed, a lock hangs on a session.

use super::{
    Consul,
    client::Ask,
    follow::{Pace, Progress},
    kv::Pair,
};
use crate::registry::{
    RegistryError,
    store::{self, Claim, Item, Put, Sink, Store, Version, below},
    watch::{Failure, News, Watch},
};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use std::{sync::Arc, time::Duration};

/// What is below a path, by blocking queries.
struct Pairs {
    consul: Arc<Consul>,
    prefix: String,
    progress: Progress,
    last: Vec<Pair>,
    pace: Pace,
}

impl Pairs {
    /// Without what has no name below the path: a folder, as Consul's own interface makes them.
    fn items(&self) -> Result<Vec<Item>, RegistryError> {
        let named = self.last.iter().filter_map(|pair| Some((pair.key.strip_prefix(&self.prefix)?, pair)));
        let named = named.filter(|(key, _)| !key.is_empty() && !key.ends_with('/'));
        named.map(|(key, pair)| item(&self.consul, key.into(), pair)).collect()
    }

    async fn ask(&mut self, ask: Ask) -> Result<Vec<Pair>, RegistryError> {
        let client = &self.consul.client;
        self.progress.ask(ask, |ask| client.pairs(&self.prefix, ask)).await
    }
}

impl Watch<Vec<Item>> for Pairs {
    /// Asks for what is current, and does not wait: the agent may have been replaced meanwhile.
    async fn list(&mut self) -> Result<Vec<Item>, Failure> {
        self.last = self.ask(Ask::Any).await?;
        Ok(self.items()?)
    }

    async fn next(&mut self) -> Result<News<Vec<Item>>, Failure> {
        let asked = self.progress.newest();
        let rows = self.ask(self.progress.news(self.consul.wait)).await?;
        if rows != self.last {
            self.last = rows;
            self.pace.real_change();
            return Ok(News::Set(self.items()?));
        }
        if self.progress.newest() == asked {
            self.pace.real_change()
        } else {
            self.pace.slow_down().await
        }
        Ok(News::Alive)
    }
}

impl Store for Consul {
    fn watch(self: Arc<Self>, path: String, sink: Sink) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            let pairs = Pairs {
                consul: self.clone(),
                prefix: below(&path),
                progress: Progress::default(),
                last: Vec::new(),
                pace: Pace::default(),
            };
            store::follow(&self.name, &path, sink, pairs).await;
        })
    }

    fn get(self: Arc<Self>, key: String) -> BoxFuture<'static, Result<Option<Item>, RegistryError>> {
        Box::pin(async move {
            let there = self.client.pair(&key).await?;
            there.map(|pair| item(&self, key, &pair)).transpose()
        })
    }

    fn put_if(
        self: Arc<Self>,
        key: String,
        expected: Option<Version>,
        value: Bytes,
    ) -> BoxFuture<'static, Result<Put, RegistryError>> {
        Box::pin(async move {
            let expected = expected.map_or(Ok(0), |version| version.number())?;
            let swapped = self.client.swap(&key, expected, &value).await?;
            Ok(Put::at(swapped))
        })
    }

    fn claim(self: Arc<Self>, key: String, owner: String, ttl: Duration) -> Box<dyn Claim> {
        Box::new(SessionKey { consul: self, key, owner, ttl, session: None })
    }
}

fn item(consul: &Consul, key: String, pair: &Pair) -> Result<Item, RegistryError> {
    let value = pair.value().map_err(|error| consul.client.protocol(error))?;
    Ok(Item { key, value, version: Version::new(pair.modify_index) })
}

/// A key on a session of ours, which Consul deletes with the session.
struct SessionKey {
    consul: Arc<Consul>,
    key: String,
    owner: String,
    ttl: Duration,
    session: Option<String>,
}

impl Claim for SessionKey {
    fn take(&mut self) -> BoxFuture<'_, Result<bool, RegistryError>> {
        Box::pin(async move {
            let client = &self.consul.client;
            let holder = client.pair(&self.key).await?.and_then(|there| there.session);
            // Ours, if the answer to an earlier attempt was lost.
            if holder.is_some() && holder != self.session {
                return Ok(false);
            }
            let session = match self.session.take() {
                Some(session) if client.renew_session(&session).await? => session,
                _ => client.session(&format!("pillion {}", self.owner), self.ttl).await?,
            };
            let taken = client.acquire(&self.key, &session, &self.owner).await;
            self.session = Some(session);
            taken
        })
    }

    fn renew(&mut self) -> BoxFuture<'_, Result<bool, RegistryError>> {
        Box::pin(async move {
            let Some(session) = &self.session else { return Ok(false) };
            let client = &self.consul.client;
            if !client.renew_session(session).await? {
                return Ok(false);
            }
            let there = client.pair(&self.key).await?;
            Ok(there.is_some_and(|there| there.session.as_ref() == Some(session)))
        })
    }

    fn release(&mut self) -> BoxFuture<'_, Result<(), RegistryError>> {
        Box::pin(async move {
            match &self.session {
                Some(session) => self.consul.client.end_session(session).await,
                None => Ok(()),
            }
        })
    }
}
