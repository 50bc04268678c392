//! etcd's keys as a store: a version is the revision at which a key was last changed, a lock is a key on a lease.

use super::{
    Etcd,
    connection::{CallError, Connection},
    entry::{seconds, unchanged},
    follow::{Content, Keyspace},
    proto::{KeyValue, PutRequest, RangeRequest, RequestOp, RequestOpUnion, TxnRequest},
};
use crate::registry::{
    RegistryError,
    store::{self, Claim, Item, Put, Sink, Store, Version, below},
};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use std::{collections::BTreeMap, sync::Arc, time::Duration};

/// All that is below a path, by its key without that.
struct Items {
    prefix: String,
    items: BTreeMap<String, Item>,
}

impl Items {
    fn item(&self, kv: KeyValue) -> Option<Item> {
        let key = std::str::from_utf8(&kv.key).ok()?.strip_prefix(&self.prefix)?.to_owned();
        Some(Item { key, value: kv.value.into(), version: Version::new(kv.mod_revision) })
    }
}

impl Content for Items {
    type Set = Vec<Item>;

    fn replace(&mut self, all: Vec<KeyValue>) {
        self.items = all.into_iter().filter_map(|kv| self.item(kv)).map(|item| (item.key.clone(), item)).collect();
    }

    fn put(&mut self, kv: KeyValue) -> bool {
        let Some(item) = self.item(kv) else { return false };
        self.items.insert(item.key.clone(), item);
        true
    }

    fn delete(&mut self, key: &[u8]) -> bool {
        let key = std::str::from_utf8(key).ok().and_then(|key| key.strip_prefix(&self.prefix));
        key.is_some_and(|key| self.items.remove(key).is_some())
    }

    fn current(&self) -> Vec<Item> {
        self.items.values().cloned().collect()
    }
}

impl Etcd {
    /// The key as it is now.
    async fn read(&self, connection: &Connection, key: &str) -> Result<Option<KeyValue>, CallError> {
        let key = key.as_bytes().to_vec();
        let request = RangeRequest { key, range_end: Vec::new(), limit: 1, revision: 0, keys_only: false };
        Ok(connection.range(request).await?.kvs.into_iter().next())
    }

    /// Puts a value if the key was last changed at this revision; gives the revision at which it now was. `lease`: 0 for none.
    async fn swap(
        &self,
        connection: &Connection,
        key: &str,
        mod_revision: i64,
        (value, lease): (&[u8], i64),
    ) -> Result<Option<i64>, CallError> {
        let put = PutRequest { key: key.as_bytes().to_vec(), value: value.to_vec(), lease };
        let success = vec![RequestOp { request: Some(RequestOpUnion::Put(put)) }];
        let compare = vec![unchanged(key.as_bytes(), mod_revision)];
        connection.transaction(TxnRequest { compare, success }).await
    }
}

impl Store for Etcd {
    fn watch(self: Arc<Self>, path: String, sink: Sink) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            let prefix = below(&path);
            let items = Items { prefix: prefix.clone(), items: BTreeMap::new() };
            store::follow(&self.name, &path, sink, Keyspace::new(self.clone(), prefix, items)).await;
        })
    }

    fn get(self: Arc<Self>, key: String) -> BoxFuture<'static, Result<Option<Item>, RegistryError>> {
        Box::pin(async move {
            let connection = self.link.connection().await?;
            let there = self.read(&connection, &key).await.map_err(|error| self.error(&connection, error))?;
            Ok(there.map(|kv| Item { key, value: kv.value.into(), version: Version::new(kv.mod_revision) }))
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
            let connection = self.link.connection().await?;
            let swapped = self.swap(&connection, &key, expected, (&value, 0)).await;
            let swapped = swapped.map_err(|error| self.error(&connection, error))?;
            Ok(Put::at(swapped))
        })
    }

    fn claim(self: Arc<Self>, key: String, owner: String, ttl: Duration) -> Box<dyn Claim> {
        Box::new(LeaseKey { etcd: self, key, owner, ttl, lease: None })
    }
}

/// A key on a lease of ours, which the server deletes with the lease.
struct LeaseKey {
    etcd: Arc<Etcd>,
    key: String,
    owner: String,
    ttl: Duration,
    lease: Option<i64>,
}

impl LeaseKey {
    async fn try_take(&mut self, connection: &Connection) -> Result<bool, CallError> {
        if let Some(there) = self.etcd.read(connection, &self.key).await? {
            // Ours, if the answer to an earlier attempt was lost.
            return match self.lease {
                Some(lease) if there.lease == lease => connection.keep_alive(lease).await,
                _ => Ok(false),
            };
        }
        let lease = match self.lease.take() {
            Some(lease) if connection.keep_alive(lease).await? => lease,
            _ => connection.grant(seconds(self.ttl)).await?,
        };
        self.lease = Some(lease);
        match self.etcd.swap(connection, &self.key, 0, (self.owner.as_bytes(), lease)).await {
            Ok(swapped) => Ok(swapped.is_some()),
            Err(CallError::Lease) => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn try_renew(&self, connection: &Connection) -> Result<bool, CallError> {
        let Some(lease) = self.lease else { return Ok(false) };
        let (alive, there) = tokio::try_join!(connection.keep_alive(lease), self.etcd.read(connection, &self.key))?;
        Ok(alive && there.is_some_and(|there| there.lease == lease))
    }
}

impl Claim for LeaseKey {
    fn take(&mut self) -> BoxFuture<'_, Result<bool, RegistryError>> {
        Box::pin(async move {
            let connection = self.etcd.link.connection().await?;
            self.try_take(&connection).await.map_err(|error| self.etcd.error(&connection, error))
        })
    }

    fn renew(&mut self) -> BoxFuture<'_, Result<bool, RegistryError>> {
        Box::pin(async move {
            let connection = self.etcd.link.connection().await?;
            self.try_renew(&connection).await.map_err(|error| self.etcd.error(&connection, error))
        })
    }

    fn release(&mut self) -> BoxFuture<'_, Result<(), RegistryError>> {
        Box::pin(async move {
            let Some(lease) = self.lease else { return Ok(()) };
            let connection = self.etcd.link.connection().await?;
            match connection.revoke(lease).await {
                Ok(()) | Err(CallError::Lease) => Ok(()),
                Err(error) => Err(self.etcd.error(&connection, error)),
            }
        })
    }
}
