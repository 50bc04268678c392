//! What registries list, for those who have an address that was made of a name, and need the name.

use super::{Registries, scope::Scope};
use crate::{cluster::table::has_capitals, config::Config};
use futures_util::{
    FutureExt,
    future::{BoxFuture, Shared, join_all},
};
use std::{sync::Arc, time::Duration};
use tokio::time::{Instant, timeout};

/// So long one list is good enough: addresses that nobody has must not become as many questions to the registries.
const GOOD_FOR: Duration = Duration::from_secs(2);

/// For one registry.
const PATIENCE: Duration = Duration::from_secs(5);

/// The names of all services, once they are there.
pub type Names = Shared<BoxFuture<'static, Arc<[Arc<str>]>>>;

/// The last list that was asked for.
#[derive(Default)]
pub struct Listing {
    last: Option<(Instant, Names)>,
}

impl Listing {
    pub fn names(&mut self, config: &Config, registries: &Registries) -> Names {
        if let Some((at, names)) = &self.last
            && at.elapsed() < GOOD_FOR
        {
            return names.clone();
        }
        let lists: Vec<_> = registries
            .iter()
            .map(|(name, registry)| (Scope::of(config, name), timeout(PATIENCE, registry.clone().list())))
            .collect();
        let names = async move {
            let lists = join_all(lists.into_iter().map(async |(scope, list)| {
                // What cannot be asked for a list, or does not answer, has none.
                let names = list.await.ok().and_then(Result::ok).unwrap_or_default();
                names.iter().filter_map(|name| scope.service_of(name)).flat_map(spellings).collect::<Vec<_>>()
            }));
            lists.await.concat().into()
        };
        let names = names.boxed().shared();
        // It goes on when nobody waits any more, and the next who asks finds it done.
        tokio::spawn(names.clone());
        self.last = Some((Instant::now(), names.clone()));
        names
    }
}

/// A service may be followed by its name in lower case as well, as hosts are.
fn spellings(service: &str) -> impl Iterator<Item = Arc<str>> {
    let lower = has_capitals(service).then(|| service.to_ascii_lowercase().into());
    [service.into()].into_iter().chain(lower)
}
