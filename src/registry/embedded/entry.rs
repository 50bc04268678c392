//! Our own entry in the registry inside this process.

use super::{Embedded, Entry, Refusal, Registration as Registering};
use crate::registry::{self, Instance, Registration, RegistryError, Renewal};
use futures_util::future::BoxFuture;
use std::sync::Arc;

/// One instance of ours.
pub(super) struct OwnEntry {
    registry: Arc<Embedded>,
    registration: Arc<Registration>,
}

impl OwnEntry {
    pub(super) fn new(registry: Arc<Embedded>, registration: Arc<Registration>) -> Self {
        Self { registry, registration }
    }

    /// What the registry has under our id.
    async fn there(&self) -> Result<Option<Instance>, RegistryError> {
        let Registration { service, instance, .. } = &*self.registration;
        let all = self.registry.discover(service).await.map_err(|refusal| self.registry.error(refusal))?;
        Ok(all.into_iter().find(|there| there.id == instance.id))
    }
}

impl registry::Entry for OwnEntry {
    fn put(&mut self, _: bool) -> BoxFuture<'_, Result<(), RegistryError>> {
        Box::pin(async move {
            let Registration { service, instance, ttl, .. } = &*self.registration;
            if let Some(there) = self.there().await?
                && there.address != instance.address
            {
                return Err(self.registration.clash(&self.registry.server(), &there.address.to_string()));
            }
            let registering = Registering { name: service.clone(), entry: Entry::from(instance), ttl: Some(*ttl) };
            self.registry.register(registering).await.map_err(|refusal| self.registry.error(refusal))?;
            Ok(())
        })
    }

    fn renew(&mut self) -> BoxFuture<'_, Result<Renewal, RegistryError>> {
        Box::pin(async move {
            let Registration { service, instance, .. } = &*self.registration;
            match self.registry.renew(service, &instance.id).await {
                Ok(_) => {}
                Err(Refusal::Unknown { .. }) => return Ok(Renewal::Lost("it is not there".into())),
                Err(refusal) => return Err(self.registry.error(refusal)),
            }
            Ok(match self.there().await? {
                Some(there) if there == *instance => Renewal::Kept,
                Some(_) => Renewal::Lost("somebody changed it".into()),
                None => Renewal::Lost("it is not there".into()),
            })
        })
    }

    fn remove(&mut self) -> BoxFuture<'_, Result<(), RegistryError>> {
        Box::pin(async move {
            let Registration { service, instance, .. } = &*self.registration;
            if self.there().await?.is_none_or(|there| there.address != instance.address) {
                return Ok(());
            }
            match self.registry.deregister(service, &instance.id).await {
                Ok(()) | Err(Refusal::Unknown { .. }) => Ok(()),
                Err(refusal) => Err(self.registry.error(refusal)),
            }
        })
    }
}
