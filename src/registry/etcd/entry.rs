//! Our own entry: a key on a lease, which the server deletes with the lease.

use super::{
    Etcd,
    connection::{CallError, Connection},
    proto::{
        Compare, CompareTarget, DeleteRequest, KeyValue, PutRequest, RangeRequest, RequestOp, RequestOpUnion,
        TxnRequest,
    },
};
use crate::registry::{
    Entry, Registration, RegistryError, Renewal,
    layout::{Record, Relation},
};
use futures_util::future::BoxFuture;
use std::{sync::Arc, time::Duration};

/// How often it is tried to write while somebody else writes there as well.
const TRIES: usize = 5;

/// One instance of ours.
pub struct Key {
    etcd: Arc<Etcd>,
    registration: Arc<Registration>,
    record: Record,
    /// What all keys of the service begin with.
    prefix: String,
    lease: Option<i64>,
}

/// What there is of us.
struct There {
    /// Keys of ours, of this run or an earlier one.
    ours: Vec<KeyValue>,
    /// The address of somebody else in our place.
    taken: Option<String>,
}

impl Key {
    pub fn new(etcd: Arc<Etcd>, registration: Arc<Registration>, record: Record) -> Self {
        let prefix = etcd.keys.of_service(&registration.service);
        Self { etcd, registration, record, prefix, lease: None }
    }

    /// Where it is to be. Without a lease there is no place yet in some layouts.
    fn key(&self) -> Option<Vec<u8>> {
        let suffix = self.record.suffix.clone().or_else(|| Some(self.lease?.to_string()))?;
        Some(format!("{}{suffix}", self.prefix).into_bytes())
    }

    async fn look(&self, connection: &Connection) -> Result<There, CallError> {
        let (key, range_end) = match self.key() {
            Some(key) if self.etcd.keys.are_places() => (key, Vec::new()),
            _ => (self.prefix.clone().into_bytes(), super::range_end(self.prefix.as_bytes())),
        };
        let request = RangeRequest { key, range_end, limit: 0, revision: 0, keys_only: false };
        let mut there = There { ours: Vec::new(), taken: None };
        for kv in connection.range(request).await?.kvs {
            match self.relation(&kv) {
                Relation::Same => there.ours.push(kv),
                Relation::Taken(address) => there.taken = Some(address),
                Relation::None => {}
            }
        }
        Ok(there)
    }

    fn relation(&self, kv: &KeyValue) -> Relation {
        let Some(suffix) = std::str::from_utf8(&kv.key).ok().and_then(|key| key.strip_prefix(&self.prefix)) else {
            return Relation::None;
        };
        let Registration { service, instance, .. } = &*self.registration;
        self.etcd.keys.relation(service, instance, self.record.suffix.as_deref(), (suffix, &kv.value))
    }

    /// A lease that has its whole time before it.
    async fn lease(&mut self, connection: &Connection) -> Result<i64, CallError> {
        if let Some(lease) = self.lease
            && connection.keep_alive(lease).await?
        {
            return Ok(lease);
        }
        self.lease = None;
        let lease = connection.grant(seconds(self.registration.ttl)).await?;
        self.lease = Some(lease);
        Ok(lease)
    }

    async fn write(&mut self, connection: &Connection) -> Result<(), CallError> {
        for _ in 0..TRIES {
            let there = self.look(connection).await?;
            if let Some(address) = there.taken {
                return Err(CallError::Call(self.registration.clash(connection.server(), &address)));
            }
            let lease = self.lease(connection).await?;
            let Some(key) = self.key() else { continue };
            match there.ours.as_slice() {
                [only] if only.key == key && only.lease == lease && only.value == self.record.value => return Ok(()),
                _ => {}
            }
            // In one step, first ours and then what is too much: nobody sees a moment without.
            let mut compare: Vec<_> = there.ours.iter().map(|kv| unchanged(&kv.key, kv.mod_revision)).collect();
            if !there.ours.iter().any(|kv| kv.key == key) {
                compare.push(unchanged(&key, 0));
            }
            let put = PutRequest { key: key.clone(), value: self.record.value.clone(), lease };
            let mut success = vec![RequestOpUnion::Put(put)];
            let others = there.ours.into_iter().filter(|kv| kv.key != key);
            success.extend(others.map(|kv| RequestOpUnion::Delete(DeleteRequest { key: kv.key })));
            match connection.transaction(transaction(compare, success)).await {
                Ok(Some(_)) => return Ok(()),
                // Somebody was there in between, or the lease went.
                Ok(None) | Err(CallError::Lease) => {}
                Err(error) => return Err(error),
            }
        }
        let (server, key) = (connection.server().into(), String::from_utf8_lossy(self.prefix.as_bytes()).into_owned());
        Err(CallError::Call(RegistryError::Busy {
            server,
            cause: format!("somebody else writes below `{key}` as well"),
        }))
    }

    async fn verify(&mut self, connection: &Connection) -> Result<Renewal, CallError> {
        let (Some(lease), Some(key)) = (self.lease, self.key()) else {
            return Ok(Renewal::Lost("it has no lease".into()));
        };
        let request = RangeRequest { key, range_end: Vec::new(), limit: 1, revision: 0, keys_only: false };
        let (alive, there) = tokio::try_join!(connection.keep_alive(lease), connection.range(request))?;
        let lost = match there.kvs.first() {
            _ if !alive => "its lease has run out",
            None => "it is not there",
            Some(kv) if kv.value != self.record.value => "somebody changed it",
            Some(kv) if kv.lease != lease => "it is on another lease",
            Some(_) => return Ok(Renewal::Kept),
        };
        Ok(Renewal::Lost(lost.into()))
    }

    async fn take_out(&mut self, connection: &Connection) -> Result<(), CallError> {
        for _ in 0..TRIES {
            let there = self.look(connection).await?;
            let compare = there.ours.iter().map(|kv| unchanged(&kv.key, kv.mod_revision)).collect();
            let keys = there.ours.iter().map(|kv| RequestOpUnion::Delete(DeleteRequest { key: kv.key.clone() }));
            let done =
                there.ours.is_empty() || connection.transaction(transaction(compare, keys.collect())).await?.is_some();
            if done {
                break;
            }
        }
        if let Some(lease) = self.lease {
            match connection.revoke(lease).await {
                Ok(()) | Err(CallError::Lease) => self.lease = None,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    async fn connection(&self) -> Result<Arc<Connection>, RegistryError> {
        self.etcd.link.connection().await
    }

    fn error(&self, connection: &Arc<Connection>, error: CallError) -> RegistryError {
        match self.etcd.error(connection, error) {
            RegistryError::Refused { server, cause } if cause.contains("permission denied") => {
                let cause = format!("{cause}; expected the right to read and write what begins with `{}`", self.prefix);
                RegistryError::Refused { server, cause }
            }
            error => error,
        }
    }
}

impl Entry for Key {
    fn put(&mut self, _: bool) -> BoxFuture<'_, Result<(), RegistryError>> {
        Box::pin(async move {
            let connection = self.connection().await?;
            self.write(&connection).await.map_err(|error| self.error(&connection, error))
        })
    }

    fn renew(&mut self) -> BoxFuture<'_, Result<Renewal, RegistryError>> {
        Box::pin(async move {
            let connection = self.connection().await?;
            self.verify(&connection).await.map_err(|error| self.error(&connection, error))
        })
    }

    fn remove(&mut self) -> BoxFuture<'_, Result<(), RegistryError>> {
        Box::pin(async move {
            let connection = self.connection().await?;
            self.take_out(&connection).await.map_err(|error| self.error(&connection, error))
        })
    }
}

/// A lease has whole seconds.
pub(super) fn seconds(ttl: Duration) -> i64 {
    i64::try_from(ttl.as_millis().div_ceil(1000)).unwrap_or(i64::MAX)
}

pub(super) fn unchanged(key: &[u8], mod_revision: i64) -> Compare {
    Compare { target: CompareTarget::ModRevision.into(), key: key.to_vec(), mod_revision: Some(mod_revision) }
}

fn transaction(compare: Vec<Compare>, operations: Vec<RequestOpUnion>) -> TxnRequest {
    let success = operations.into_iter().map(|request| RequestOp { request: Some(request) }).collect();
    TxnRequest { compare, success }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leases_are_no_shorter_than_asked_for() {
        for (ttl, wanted) in [(1000, 1), (1001, 2), (15_000, 15)] {
            assert_eq!(seconds(Duration::from_millis(ttl)), wanted);
        }
    }
}
