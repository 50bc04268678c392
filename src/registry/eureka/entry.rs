//! Our own instance in Eureka.

use super::{
    Eureka,
    own::{Description, app, id},
    peer::Peer,
};
use crate::registry::{Entry, Instance, Registration, RegistryError, Renewal, registration::since_1970};
use futures_util::future::BoxFuture;
use std::sync::Arc;

/// One instance of ours.
pub(super) struct OwnEntry {
    eureka: Arc<Eureka>,
    /// With the id that it has here.
    registration: Registration,
    description: Description,
    app: String,
    /// As what it was last put.
    status: &'static str,
    /// When it was last put, as it was written: in milliseconds of the Unix epoch.
    dirty: u64,
}

impl OwnEntry {
    pub(super) fn new(eureka: Arc<Eureka>, registration: &Registration) -> Self {
        let instance = Instance { id: id(registration), ..registration.instance.clone() };
        let registration = Registration { instance, ..registration.clone() };
        let (description, app) = (Description::of(&registration), app(&registration.service));
        Self { eureka, registration, description, app, status: status(true), dirty: 0 }
    }

    fn id(&self) -> &str {
        &self.registration.instance.id
    }

    /// Calls one of the servers; the next one after a failure.
    async fn call<T>(&self, call: impl AsyncFnOnce(&Peer) -> Result<T, RegistryError>) -> Result<T, RegistryError> {
        let peer = self.eureka.link.connection().await?;
        let done = call(&peer).await;
        if done.as_ref().is_err_and(|error| !matches!(error, RegistryError::Clash { .. })) {
            self.eureka.link.give_up(&peer);
        }
        done
    }

    async fn write(&self, peer: &Peer, status: &'static str) -> Result<u64, RegistryError> {
        let there = peer.own(&self.app, self.id()).await?;
        if let Some(there) = &there
            && !there.description.is_at_the_address_of(&self.description)
        {
            return Err(self.registration.clash(peer.server(), &there.description.place()));
        }
        // A server believes the later of two, whichever comes last, and clocks differ.
        let dirty = since_1970().max(self.dirty + 1).max(there.map_or(0, |there| there.dirty() + 1));
        let instance = self.description.instance(&self.registration, status, dirty);
        peer.register(&self.app, &instance).await?;
        // Until it was renewed for the first time, a lease is half as long.
        peer.renew(&self.app, self.id(), status, dirty).await?;
        Ok(dirty)
    }

    async fn verify(&self, peer: &Peer) -> Result<Renewal, RegistryError> {
        let lost = |why: &str| Ok(Renewal::Lost(why.into()));
        if !peer.renew(&self.app, self.id(), self.status, self.dirty).await? {
            return lost("the server does not know it");
        }
        let Some(there) = peer.own(&self.app, self.id()).await? else { return lost("it is not there") };
        if !there.description.is_at_the_address_of(&self.description) {
            return lost(&format!("{} has its id", there.description.place()));
        }
        if there.description != self.description || !there.is_overridden() && there.status != self.status {
            return lost("somebody changed it");
        }
        Ok(Renewal::Kept)
    }

    async fn take_out(&self, peer: &Peer) -> Result<(), RegistryError> {
        let there = peer.own(&self.app, self.id()).await?;
        if there.is_some_and(|there| !there.description.is_at_the_address_of(&self.description)) {
            return Ok(());
        }
        // A server does not show what has run out, and may list it still.
        peer.remove(&self.app, self.id()).await
    }
}

impl Entry for OwnEntry {
    fn put(&mut self, healthy: bool) -> BoxFuture<'_, Result<(), RegistryError>> {
        Box::pin(async move {
            let status = status(healthy);
            self.dirty = self.call(async |peer| self.write(peer, status).await).await?;
            self.status = status;
            Ok(())
        })
    }

    fn renew(&mut self) -> BoxFuture<'_, Result<Renewal, RegistryError>> {
        Box::pin(async move { self.call(async |peer| self.verify(peer).await).await })
    }

    fn remove(&mut self) -> BoxFuture<'_, Result<(), RegistryError>> {
        Box::pin(async move { self.call(async |peer| self.take_out(peer).await).await })
    }

    fn shows_health(&self) -> bool {
        true
    }
}

/// As Spring Cloud's own health checks have it.
fn status(healthy: bool) -> &'static str {
    if healthy { "UP" } else { "DOWN" }
}
