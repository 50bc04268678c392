//! Our own instance in the file. Nothing in a file ends by itself: one that is not taken out stays.

use super::{
    FileRegistry,
    rewrite::{self, Obstacle},
};
use crate::registry::{self, Address, Registration, RegistryError, Renewal, layout::plain::Entry};
use futures_util::future::BoxFuture;
use std::sync::Arc;
use tokio::task::{JoinHandle, spawn_blocking};

/// One instance of ours.
pub(super) struct OwnEntry {
    work: Work,
    /// What was given up and goes on all the same; the next waits for it.
    under_way: Option<JoinHandle<Result<Renewal, Obstacle<RegistryError>>>>,
}

/// What is done with the file, away from the thread that asks for it.
#[derive(Clone)]
struct Work {
    registry: Arc<FileRegistry>,
    registration: Arc<Registration>,
    ours: Entry,
}

/// What there is under our id.
enum There {
    Nothing,
    /// At our address.
    Ours(Entry),
    /// At another address.
    Other(String),
}

impl OwnEntry {
    pub(super) fn new(registry: Arc<FileRegistry>, registration: Arc<Registration>) -> Self {
        let ours = Entry::from(&registration.instance);
        Self { work: Work { registry, registration, ours }, under_way: None }
    }

    async fn run(
        &mut self,
        what: fn(&Work) -> Result<Renewal, Obstacle<RegistryError>>,
    ) -> Result<Renewal, RegistryError> {
        if let Some(before) = &mut self.under_way {
            let _ = before.await;
        }
        let work = self.work.clone();
        let done = self.under_way.insert(spawn_blocking(move || what(&work))).await;
        self.under_way = None;
        let server = self.work.registry.server();
        match done {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(Obstacle::Change(error))) => Err(error),
            Ok(Err(Obstacle::Content(cause))) => Err(RegistryError::Refused { server, cause }),
            Ok(Err(Obstacle::Io(error))) => Err(RegistryError::Unreachable { server, cause: error.to_string() }),
            Err(error) => Err(RegistryError::Unreachable { server, cause: error.to_string() }),
        }
    }
}

impl Work {
    fn there(&self, listed: &[Entry]) -> There {
        let Registration { instance, .. } = &*self.registration;
        let id = |entry: &Entry| entry.clone().into_instance(None).is_ok_and(|there| there.id == instance.id);
        match listed.iter().find(|entry| id(entry)) {
            None => There::Nothing,
            Some(there) if there.address.parse::<Address>().is_ok_and(|there| there == instance.address) => {
                There::Ours(there.clone())
            }
            Some(there) => There::Other(there.address.clone()),
        }
    }

    fn write(&self) -> Result<Renewal, Obstacle<RegistryError>> {
        let (path, service) = (&self.registry.path, &self.registration.service);
        rewrite::rewrite(path, |services| {
            let listed = services.entry(service.clone()).or_default();
            match self.there(listed) {
                There::Other(there) => Err(self.registration.clash(&self.registry.server(), &there)),
                There::Ours(there) if there == self.ours => Ok(false),
                There::Ours(there) => {
                    listed.iter_mut().filter(|entry| **entry == there).for_each(|entry| *entry = self.ours.clone());
                    Ok(true)
                }
                There::Nothing => {
                    listed.push(self.ours.clone());
                    Ok(true)
                }
            }
        })?;
        Ok(Renewal::Kept)
    }

    fn take_out(&self) -> Result<Renewal, Obstacle<RegistryError>> {
        rewrite::rewrite(&self.registry.path, |services| {
            let Some(listed) = services.get_mut(&self.registration.service) else { return Ok(false) };
            let There::Ours(there) = self.there(listed) else { return Ok(false) };
            listed.retain(|entry| *entry != there);
            Ok(true)
        })?;
        Ok(Renewal::Kept)
    }

    fn look(&self) -> Result<Renewal, Obstacle<RegistryError>> {
        let services = rewrite::read(&self.registry.path)?;
        let listed = services.get(&self.registration.service).map(Vec::as_slice).unwrap_or_default();
        Ok(match self.there(listed) {
            There::Ours(there) if there == self.ours => Renewal::Kept,
            There::Nothing => Renewal::Lost("it is not there".into()),
            There::Ours(_) | There::Other(_) => Renewal::Lost("somebody changed it".into()),
        })
    }
}

impl registry::Entry for OwnEntry {
    fn put(&mut self, _: bool) -> BoxFuture<'_, Result<(), RegistryError>> {
        Box::pin(async { self.run(Work::write).await.map(drop) })
    }

    fn renew(&mut self) -> BoxFuture<'_, Result<Renewal, RegistryError>> {
        Box::pin(self.run(Work::look))
    }

    fn remove(&mut self) -> BoxFuture<'_, Result<(), RegistryError>> {
        Box::pin(async { self.run(Work::take_out).await.map(drop) })
    }
}
