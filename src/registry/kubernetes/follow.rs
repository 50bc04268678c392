//! Following one service, by its slices.

use super::{
    Kubernetes,
    objects::Objects,
    slices::{self, Choice, Slice},
};
use crate::registry::watch::{Failure, Found, News, Watch};
use std::{sync::Arc, time::Duration};
use tokio::time::sleep;

/// How often a service that cannot exist is said not to.
const NEVER_INTERVAL: Duration = Duration::from_secs(60);

/// One service's slices.
pub struct Slices {
    /// `None` if no service can have the name.
    slices: Option<Objects<Slice>>,
    choice: Choice,
}

impl Slices {
    pub fn new(kubernetes: Arc<Kubernetes>, service: &str) -> Self {
        let target = kubernetes.target(service);
        let mut choice = kubernetes.choice.clone();
        if let Some(port) = target.as_ref().and_then(|target| target.port.clone()) {
            choice.port = Some(port);
        }
        Self { slices: target.map(|target| Objects::new(kubernetes, target.path)), choice }
    }
}

fn found(slices: &Objects<Slice>, choice: &Choice) -> Found {
    let (instances, unreadable) = slices::instances(slices.all.values(), choice);
    Found { instances, unreadable }
}

impl Watch for Slices {
    async fn list(&mut self) -> Result<Found, Failure> {
        let Some(slices) = &mut self.slices else {
            let complaint =
                "it is no name of a service; expected `SERVICE` or `SERVICE.NAMESPACE`, and `:PORT` if need be";
            return Ok(Found { instances: Vec::new(), unreadable: vec![complaint.into()] });
        };
        slices.list().await?;
        Ok(found(slices, &self.choice))
    }

    async fn next(&mut self) -> Result<News, Failure> {
        let Some(slices) = &mut self.slices else {
            sleep(NEVER_INTERVAL).await;
            return Ok(News::Alive);
        };
        let changed = slices.next().await?;
        Ok(if changed { News::Set(found(slices, &self.choice)) } else { News::Alive })
    }
}
