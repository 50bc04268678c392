//! Our own service at an agent.

use super::{
    Consul,
    encode::{Description, check_id, status},
};
use crate::{
    config::{ConsulCheck, ConsulRegister},
    registry::{Entry, Registration, RegistryError, Renewal},
};
use futures_util::future::BoxFuture;
use std::sync::Arc;

/// Consul keeps no more than 4 KiB of what a check says, and shows it in a table.
const LONGEST_OUTPUT: usize = 1000;

/// One instance of ours, with one check.
pub(super) struct OwnEntry {
    consul: Arc<Consul>,
    registration: Arc<Registration>,
    settings: ConsulRegister,
    description: Description,
    /// As what it was last put.
    healthy: bool,
    /// Why it is not fit to serve.
    failure: Option<String>,
}

impl OwnEntry {
    pub(super) fn new(consul: Arc<Consul>, registration: Arc<Registration>) -> Self {
        let settings = registration.asked.consul.clone().unwrap_or_default();
        let description = Description::of(&registration);
        Self { consul, registration, settings, description, healthy: true, failure: None }
    }

    /// Starts the TTL anew. False: there is no such check. One that the agent runs itself needs no such thing.
    async fn tell(&self, healthy: bool) -> Result<bool, RegistryError> {
        let Registration { service, instance, .. } = &*self.registration;
        if self.settings.check != ConsulCheck::Ttl {
            return Ok(true);
        }
        let output = match (healthy, &self.failure) {
            (true, _) => "pillion: it passes its checks".to_owned(),
            (false, None) => "pillion: it fails its checks".to_owned(),
            (false, Some(failure)) => format!("pillion: {failure}").chars().take(LONGEST_OUTPUT).collect(),
        };
        self.consul.client.tell(service, &instance.id, status(healthy), &output).await
    }
}

impl Entry for OwnEntry {
    fn put(&mut self, healthy: bool) -> BoxFuture<'_, Result<(), RegistryError>> {
        Box::pin(async move {
            let Registration { service, instance, .. } = &*self.registration;
            let client = &self.consul.client;
            // One that is critical elsewhere is what a pillion left that was killed, before it came here.
            if let Some(there) = client.own(service, &instance.id).await?
                && !there.description().is_at_the_address_of(&self.description)
                && !there.is_critical()
            {
                return Err(self.registration.clash(client.server(), &there.description().place()));
            }
            client.register(service, &self.description.service(&self.registration, &self.settings, healthy)).await?;
            // A check that was there before keeps its status.
            if !self.tell(healthy).await? {
                let cause = format!("there is no check of `{}`, which was just registered", instance.id);
                return Err(client.protocol(cause));
            }
            self.healthy = healthy;
            Ok(())
        })
    }

    fn renew(&mut self) -> BoxFuture<'_, Result<Renewal, RegistryError>> {
        Box::pin(async move {
            let Registration { service, instance, .. } = &*self.registration;
            let client = &self.consul.client;
            let told = self.tell(self.healthy).await?;
            let Some(there) = client.own(service, &instance.id).await? else {
                // Consul itself takes out what is critical for long. Nobody used it, and nobody will.
                let is_missed = self.healthy;
                return Ok(if is_missed { Renewal::Lost("it is not there".into()) } else { Renewal::Kept });
            };
            let lost = |why: &str| Ok(Renewal::Lost(why.into()));
            let check = there.check(&check_id(&instance.id));
            match check {
                _ if !there.description().is_at_the_address_of(&self.description) => {
                    Ok(Renewal::Lost(format!("{} has its id", there.description().place())))
                }
                _ if there.name() != service || !self.description.is(there.description()) => {
                    lost("somebody changed it")
                }
                None => lost("its check is gone"),
                Some(_) if !told => lost("its check is another one"),
                Some(seen) if self.settings.check == ConsulCheck::Ttl && seen != status(self.healthy) => {
                    lost("somebody changed its check")
                }
                Some(_) => Ok(Renewal::Kept),
            }
        })
    }

    fn remove(&mut self) -> BoxFuture<'_, Result<(), RegistryError>> {
        Box::pin(async move {
            let Registration { service, instance, .. } = &*self.registration;
            let client = &self.consul.client;
            match client.own(service, &instance.id).await? {
                Some(there) if there.description().is_at_the_address_of(&self.description) => {
                    client.deregister(service, &instance.id).await
                }
                _ => Ok(()),
            }
        })
    }

    /// Where the agent runs the check, it would not take ours for an answer.
    fn shows_health(&self) -> bool {
        self.settings.check == ConsulCheck::Ttl
    }

    fn explain(&mut self, failure: Option<&str>) {
        self.failure = failure.map(str::to_owned);
    }
}
