//! What is in force for one service at one moment, as requests read it.

use super::{
    balance::{Ask, HashBy, Key, Selector, penalty},
    endpoint::{Endpoint, Live},
    health::Choice,
    subset::{self, Selectors, Settled, Subset, Within},
    table::{Settings, State},
};
use crate::{
    error::{ProxyError, Reason},
    route,
    telemetry::metrics::{MirrorMetrics, ServiceMetrics},
};
use http::{HeaderMap, request};
use std::{net::IpAddr, sync::Arc, time::Duration};
use tokio::time::Instant;

/// What is in force at one moment.
#[derive(Debug)]
pub struct Snapshot {
    pub settings: Arc<Settings>,
    pub endpoints: Box<[Arc<Endpoint>]>,
    selectors: Selectors,
    pub subsets: Box<[Subset]>,
    hash_by: Option<HashBy>,
    /// The numbers of each route's copies, by its number; empty where no route makes any.
    mirrors: Box<[Option<Arc<MirrorMetrics>>]>,
    pub state: State,
}

impl Snapshot {
    pub(super) fn new(
        settings: Arc<Settings>,
        endpoints: Box<[Arc<Endpoint>]>,
        state: State,
        metrics: &ServiceMetrics,
    ) -> Self {
        let (balance, zone) = (&settings.service.balance, settings.zone.as_deref());
        let selectors = Selectors::new(balance, zone, &endpoints, |_| true);
        let subsets = Subset::all(&settings.service, zone, &endpoints, metrics);
        let (hash_by, mirrors) = (HashBy::new(balance), mirrors(&settings, metrics));
        Self { settings, endpoints, selectors, subsets, hash_by, mirrors, state }
    }

    /// Where requests for this subset go now.
    pub fn settle(&self, subset: &str) -> Settled {
        subset::settle(&self.subsets, subset)
    }

    /// The subset that a request with these headers asks for by itself, and whether it can have it.
    pub fn asked_for(&self, headers: &HeaderMap) -> Option<(&Arc<str>, bool)> {
        let name = self.settings.routes.as_ref()?.asked_for(headers)?;
        let subset = self.subsets.iter().find(|subset| subset.name == *name)?;
        // Until the registry has answered, nobody is in any.
        Some((&subset.name, subset.available() > 0 || subset.is_probe_due() || self.state == State::Pending))
    }

    /// Whether any registry knows the service of this name, for whose first answer so long was waited.
    pub fn is_known(&self, service: &str, waited: Duration) -> Result<(), ProxyError> {
        match self.state {
            State::Known => Ok(()),
            State::Unknown => {
                let detail = format!("no registry knows a service `{service}`");
                Err(ProxyError::new(Reason::UnknownService, detail))
            }
            State::Pending => {
                let detail = format!(
                    "not all registries have answered about `{service}`, and none lists it; {waited:?} are allowed"
                );
                Err(ProxyError::new(Reason::DiscoveryTimeout, detail))
            }
        }
    }

    /// Why a request that may go `within` these gets none.
    pub fn no_endpoints(&self, within: Within) -> ProxyError {
        let count = self.endpoints.len();
        let detail = match self.subsets.get(within.index()) {
            Some(subset) => {
                let (name, of) = (&subset.name, subset.selectors.usable());
                let instead = subset.when_empty(&self.subsets);
                format!(
                    "none of the {of} endpoints in the subset `{name}` can take requests, and `when_empty` is `{instead}`"
                )
            }
            None if count == 0 => "the service has no endpoints".to_owned(),
            None => {
                let health = self.endpoints.iter().map(|endpoint| &endpoint.live.health);
                let why = match health.filter(|health| health.is_shut()).count() {
                    0 => String::new(),
                    unhealthy => format!("; {unhealthy} fail their health checks"),
                };
                format!("none of the service's {count} endpoints can take requests{why}")
            }
        };
        ProxyError::new(Reason::NoEndpoints, detail)
    }

    /// Whether a request may go to each of the endpoints now, where it is for those.
    pub fn eligible(&self, is_grpc: bool, Settled { within, first, .. }: Settled) -> Vec<bool> {
        let mut eligible = vec![false; self.endpoints.len()];
        let indices = self.selector(within, is_grpc).eligible(&self.endpoints);
        let probe = if first == within { None } else { self.selector(first, is_grpc).due() };
        indices.chain(probe).for_each(|index| eligible[index] = true);
        eligible
    }

    fn selector(&self, within: Within, is_grpc: bool) -> &Selector {
        self.subsets.get(within.index()).map_or(&self.selectors, |subset| &subset.selectors).of(is_grpc)
    }

    /// The numbers of the copies that the route of this number makes.
    pub fn mirror(&self, route: usize) -> Option<&Arc<MirrorMetrics>> {
        self.mirrors.get(route)?.as_ref()
    }

    /// What a request is to be chosen by, where the policy goes by something in it, and it has that. `in_flight`: requests
    /// to the service, this one included.
    pub fn key(&self, request: &request::Parts, source: IpAddr, in_flight: i64) -> Option<Key> {
        let hash = self.hash_by.as_ref()?.hash(request, source)?;
        Some(Key::new(hash, in_flight))
    }

    /// The same for a connection of which only its source is known.
    pub fn key_of_source(&self, source: IpAddr, in_flight: i64) -> Option<Key> {
        let hash = self.hash_by.as_ref()?.hash_of_source(source)?;
        Some(Key::new(hash, in_flight))
    }

    /// The endpoint for the next request, none of those in `tried`, and how it comes to be chosen.
    pub fn pick(
        &self,
        is_grpc: bool,
        ask: Ask,
        tried: &[Arc<Endpoint>],
        now: Instant,
    ) -> Option<(&Arc<Endpoint>, Choice)> {
        let selector = self.selector(ask.within, is_grpc);
        selector.pick(&self.endpoints, ask, tried, now).map(|(index, choice)| (&self.endpoints[index], choice))
    }

    /// Whether the request leaves our zone, where that matters.
    pub fn leaves_zone(&self, endpoint: &Endpoint) -> bool {
        self.settings.service.balance.zone.aware
            && self.settings.zone.as_ref().is_some_and(|zone| endpoint.instance.zone.as_ref() != Some(zone))
    }

    /// An endpoint asked for a pause, if it said so as long as `asked`.
    pub fn penalise(&self, live: &Live, asked: Option<Duration>, now: Instant) {
        let long = penalty(&self.settings.service.balance, asked);
        if !long.is_zero() {
            let until = live.penalise(long, now);
            self.all_selectors().for_each(|selectors| selectors.penalised(until));
        }
    }

    /// Whether who gets how much, or a probe, changes by itself: where the endpoints are in parts, or one is kept out.
    pub fn changes_with_time(&self) -> bool {
        self.all_selectors().any(Selectors::is_split) || self.endpoints.iter().any(|e| !e.live.health.is_available())
    }

    fn all_selectors(&self) -> impl Iterator<Item = &Selectors> {
        [&self.selectors].into_iter().chain(self.subsets.iter().map(|subset| &subset.selectors))
    }

    /// Counts anew who is available. Returns whether so few are that all are used.
    pub(super) fn recount(&self, now: Instant) -> bool {
        let threshold = self.settings.service.panic_threshold;
        for subset in &self.subsets {
            subset.recount(&self.endpoints, threshold, now);
        }
        self.selectors.recount(&self.endpoints, threshold, now).panicking
    }

    /// The number of endpoints that take requests now.
    pub fn available(&self) -> usize {
        self.endpoints.iter().filter(|e| e.is_usable() && e.live.health.is_available()).count()
    }

    /// The number of endpoints that can be picked.
    pub fn usable(&self) -> usize {
        self.selectors.usable()
    }
}

/// The numbers of each route's copies; nothing where no route makes any.
fn mirrors(settings: &Settings, metrics: &ServiceMetrics) -> Box<[Option<Arc<MirrorMetrics>>]> {
    let routes = settings.routes.as_ref().map_or(&[][..], |table| &table.routes);
    if routes.iter().all(|route| route.mirror.is_none()) {
        return Box::default();
    }
    let one = |route: &route::Route| {
        let config = &route.mirror.as_ref()?.config;
        let metrics = metrics.mirror(&route.name, &config.to.to_string());
        if config.compare {
            metrics.compared();
        }
        Some(metrics)
    };
    routes.iter().map(one).collect()
}
