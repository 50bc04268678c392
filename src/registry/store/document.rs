//! A lock in a document, for stores that have compare-and-set and nothing that runs out by itself: the holder writes again and
//! again, and whoever sees it unchanged for its TTL, by the own clock, takes its place. (As clients of Kubernetes do with a
//! `Lease`.) So nobody's clock is compared with another's.

use super::{Claim, Item, Put, Store, Version};
use crate::registry::RegistryError;
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;

/// Who has the lock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Empty: nobody.
    pub holder: String,
    pub ttl_ms: u64,
    /// So many times it was written by this holder; so that no two documents are the same.
    pub renewals: u64,
}

/// Where the document is.
pub trait Cell: Send + Sync + 'static {
    fn read(&mut self) -> BoxFuture<'_, Result<Option<(Holder, Version)>, RegistryError>>;

    fn write<'a>(
        &'a mut self,
        holder: &'a Holder,
        expected: Option<&'a Version>,
    ) -> BoxFuture<'a, Result<Put, RegistryError>>;
}

/// A claim to a lock in a document.
pub struct InDocument<C> {
    cell: C,
    ours: Holder,
    /// What the document was when it was last ours.
    version: Option<Version>,
    /// Somebody else's, and since when it is as it is.
    other: Option<(Version, Instant)>,
}

impl<C: Cell> InDocument<C> {
    /// `owner` must be nobody else's name.
    pub fn new(cell: C, owner: String, ttl: Duration) -> Self {
        let ttl_ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
        Self { cell, ours: Holder { holder: owner, ttl_ms, renewals: 0 }, version: None, other: None }
    }

    async fn write(&mut self, expected: Option<Version>) -> Result<bool, RegistryError> {
        self.ours.renewals += 1;
        match self.cell.write(&self.ours, expected.as_ref()).await? {
            Put::Done(version) => {
                (self.version, self.other) = (Some(version), None);
                Ok(true)
            }
            Put::Conflict => Ok(false),
        }
    }
}

impl<C: Cell> Claim for InDocument<C> {
    fn take(&mut self) -> BoxFuture<'_, Result<bool, RegistryError>> {
        Box::pin(async move {
            let Some((there, version)) = self.cell.read().await? else { return self.write(None).await };
            if there.holder.is_empty() || there.holder == self.ours.holder {
                return self.write(Some(version)).await;
            }
            match &self.other {
                Some((seen, since)) if *seen == version => {
                    if since.elapsed() < Duration::from_millis(there.ttl_ms) {
                        return Ok(false);
                    }
                    self.write(Some(version)).await
                }
                _ => {
                    self.other = Some((version, Instant::now()));
                    Ok(false)
                }
            }
        })
    }

    fn renew(&mut self) -> BoxFuture<'_, Result<bool, RegistryError>> {
        Box::pin(async move {
            let expected = self.version.clone();
            if self.write(expected).await? {
                return Ok(true);
            }
            // A write of ours whose answer was lost looks like somebody else's.
            match self.cell.read().await? {
                Some((there, version)) if there.holder == self.ours.holder => self.write(Some(version)).await,
                _ => Ok(false),
            }
        })
    }

    fn release(&mut self) -> BoxFuture<'_, Result<(), RegistryError>> {
        Box::pin(async move {
            // A renewal that was cut off may still arrive between the two.
            while let Some((there, version)) = self.cell.read().await?
                && there.holder == self.ours.holder
            {
                let nobody = Holder { holder: String::new(), ..there };
                if matches!(self.cell.write(&nobody, Some(&version)).await?, Put::Done(_)) {
                    break;
                }
            }
            Ok(())
        })
    }
}

/// A document in a store, as JSON.
pub struct InStore<S> {
    pub store: Arc<S>,
    pub key: String,
}

impl<S: Store> Cell for InStore<S> {
    fn read(&mut self) -> BoxFuture<'_, Result<Option<(Holder, Version)>, RegistryError>> {
        Box::pin(async move {
            let Some(Item { value, version, .. }) = self.store.clone().get(self.key.clone()).await? else {
                return Ok(None);
            };
            let holder = serde_json::from_slice(&value).map_err(|error| RegistryError::Protocol {
                server: format!("the key `{}`", self.key),
                cause: format!("it is no lock of pillion's: {error}"),
            })?;
            Ok(Some((holder, version)))
        })
    }

    fn write<'a>(
        &'a mut self,
        holder: &'a Holder,
        expected: Option<&'a Version>,
    ) -> BoxFuture<'a, Result<Put, RegistryError>> {
        Box::pin(async move {
            let value = serde_json::to_vec(holder)
                .map_err(|error| RegistryError::Impossible { cause: format!("a lock cannot be written: {error}") })?;
            self.store.clone().put_if(self.key.clone(), expected.cloned(), value.into()).await
        })
    }
}
