//! One service's routes, compiled.

use super::{
    Edit, Mirror, Redirect, Rewrite, Split, Version,
    condition::{Asked, Conditions, Host, Miss},
};
use crate::config;
use http::{HeaderMap, Request};
use std::{borrow::Cow, collections::HashMap, fmt, sync::Arc};

/// A service's routes and the names of its subsets.
#[derive(Debug)]
pub struct Table {
    pub routes: Box<[Route]>,
    /// Where routes ask for hosts: those that can be meant, by host.
    hosts: Option<Hosts>,
    pub subsets: Box<[Arc<str>]>,
    version: Option<Version>,
}

/// What becomes of the requests that match.
#[derive(Debug)]
pub struct Route {
    pub name: Arc<str>,
    conditions: Conditions,
    pub action: Action,
    /// Where requests are marked with the subset that they go to.
    pub mark: Option<Version>,
    pub rewrite: Option<Rewrite>,
    pub request_edit: Option<Edit>,
    pub response_edit: Option<Edit>,
    /// The service's settings with the route's own over them, where it has any.
    pub settings: Option<Arc<config::Service>>,
    own: OwnSettings,
    pub limits: Option<config::RouteLimits>,
    pub mirror: Option<Arc<Mirror>>,
}

#[derive(Debug)]
pub enum Action {
    Go(Target),
    Split(Split),
    Redirect(Redirect),
    Respond(Box<config::FixedResponse>),
}

/// Which endpoints a request goes to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Target {
    /// `None`: of the service whose route it is.
    pub service: Option<Arc<str>>,
    /// `None`: all of them.
    pub subset: Option<Arc<str>>,
}

/// The numbers of those routes, in order, that a request for a host may take.
#[derive(Debug)]
struct Hosts {
    named: HashMap<Box<str>, Box<[u32]>, foldhash::fast::FixedState>,
    /// For all other hosts.
    others: Box<[u32]>,
}

/// No name of a host is longer.
const LONGEST_HOST: usize = 255;

impl Table {
    /// `None` where the service has neither routes nor subsets.
    pub fn new(name: &str, service: &config::Service) -> Option<Self> {
        if service.routes.is_empty() && service.subsets.is_empty() {
            return None;
        }
        // What routes lie over, without them: they need not be cloned for each.
        let mut bare = service.clone();
        bare.routes.clear();
        let routes: Box<[Route]> =
            service.routes.iter().enumerate().map(|(number, route)| Route::new(name, &bare, number, route)).collect();
        let asks = service.version_override.enabled && !service.subsets.is_empty();
        Some(Self {
            hosts: Hosts::new(&routes),
            routes,
            subsets: service.subsets.keys().map(|name| name.as_str().into()).collect(),
            version: asks.then(|| Version::of_service(service)),
        })
    }

    /// The first route that takes the request, and its number.
    pub fn find(&self, asked: &Asked<'_>) -> Option<(usize, &Route)> {
        let takes = |route: &&Route| route.conditions.check(asked).is_ok();
        match &self.hosts {
            None => self.routes.iter().enumerate().find(|(_, route)| takes(route)),
            Some(hosts) => {
                let numbers = hosts.find(asked.host).iter().map(|number| *number as usize);
                numbers.filter_map(|number| Some((number, self.routes.get(number)?))).find(|(_, route)| takes(route))
            }
        }
    }

    /// The version that the request asks for by itself, which the service may lack.
    pub fn wanted<'h>(&self, headers: &'h HeaderMap) -> Option<Cow<'h, [u8]>> {
        self.version.as_ref()?.find(headers)
    }

    /// The subset that the request asks for by itself, if the service has it.
    pub fn asked_for(&self, headers: &HeaderMap) -> Option<&Arc<str>> {
        let wanted = self.wanted(headers)?;
        self.subsets.iter().find(|subset| subset.as_bytes() == &*wanted)
    }
}

impl Route {
    fn new(name: &str, service: &config::Service, number: usize, route: &config::Route) -> Self {
        let action = if !route.split.is_empty() {
            Action::Split(Split::new(name, route))
        } else if let Some(redirect) = &route.redirect {
            Action::Redirect(Redirect::new(redirect))
        } else if let Some(response) = &route.respond {
            Action::Respond(Box::new(response.clone()))
        } else {
            Action::Go(route.to.as_ref().map_or_else(Target::default, |to| Target::new(name, to)))
        };
        let own_name: Arc<str> = route.name.as_deref().map_or_else(|| number.to_string().into(), Into::into);
        Self {
            mirror: route.mirror.as_ref().map(|mirror| Arc::new(Mirror::new(name, &own_name, mirror))),
            name: own_name,
            conditions: Conditions::new(&route.matches),
            action,
            mark: route.mark.then(|| Version::of_service(service)),
            rewrite: route.rewrite.as_ref().map(Rewrite::new),
            request_edit: Edit::new(&route.headers.request),
            response_edit: Edit::new(&route.headers.response),
            settings: OwnSettings::new(route).over(service).map(Arc::new),
            own: OwnSettings::new(route),
            limits: route.limits.clone(),
        }
    }

    /// Whether it takes the request; if not, the first condition that does not hold.
    pub fn check(&self, asked: &Asked<'_>) -> Result<(), Miss> {
        self.conditions.check(asked)
    }

    /// Changes a request that goes to this target. `matched`: how much of its path the route's prefix matched.
    pub fn change<B>(&self, request: &mut Request<B>, matched: usize, target: &Target) {
        if let Some(edit) = &self.request_edit {
            edit.apply(request.headers_mut());
        }
        if let Some(rewrite) = &self.rewrite {
            rewrite.apply(request, matched);
        }
        if let Some(mark) = &self.mark {
            mark.mark(request.headers_mut(), target.subset.as_deref());
        }
    }

    /// Its own settings over those of another service, to which it hands requests on.
    pub fn over(&self, service: &config::Service) -> Option<config::Service> {
        self.own.over(service)
    }

    /// How much of the path its `prefix` matched.
    pub fn matched(&self, path: &str) -> usize {
        self.conditions.prefix_of(path).unwrap_or(0)
    }
}

/// What a route sets that its service sets, too. What was partly given was laid over the service's when the config was read.
#[derive(Debug)]
struct OwnSettings {
    timeouts: Option<config::Timeouts>,
    retry: Option<config::Retry>,
    hedge: Option<config::Hedge>,
    fallback: Option<config::Fallback>,
    faults: Option<config::FaultInjection>,
}

impl OwnSettings {
    fn new(route: &config::Route) -> Self {
        let config::Route { timeouts, retry, hedge, fallback, faults, .. } = route.clone();
        Self { timeouts, retry, hedge, fallback, faults }
    }

    /// A service's settings with these over them; only those that a route can have. `None` if there are none.
    fn over(&self, service: &config::Service) -> Option<config::Service> {
        let Self { timeouts, retry, hedge, fallback, faults } = self;
        let any = timeouts.is_some() || retry.is_some() || hedge.is_some() || fallback.is_some() || faults.is_some();
        any.then(|| config::Service {
            timeouts: timeouts.clone().unwrap_or_else(|| service.timeouts.clone()),
            retry: retry.clone().unwrap_or_else(|| service.retry.clone()),
            hedge: hedge.clone().or_else(|| service.hedge.clone()),
            fallback: fallback.clone().or_else(|| service.fallback.clone()),
            faults: faults.clone().or_else(|| service.faults.clone()),
            ..config::Service::default()
        })
    }
}

impl Target {
    /// `own`: whose route it is.
    pub fn new(own: &str, config: &config::Target) -> Self {
        Self {
            service: config.service.as_deref().filter(|service| *service != own).map(Into::into),
            subset: config.subset.as_deref().map(Into::into),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(service) = &self.service {
            write!(f, "{service}/")?;
        }
        f.write_str(self.subset.as_deref().unwrap_or_default())
    }
}

impl Hosts {
    /// `None` if no route asks for a host.
    fn new(routes: &[Route]) -> Option<Self> {
        let mut named: HashMap<Box<str>, Box<[u32]>, foldhash::fast::FixedState> = HashMap::default();
        for host in routes.iter().flat_map(|route| &route.conditions.hosts) {
            if let Host::Exact(name) = host {
                named.entry(name.clone()).or_default();
            }
        }
        let is_general = |route: &Route| {
            let hosts = &route.conditions.hosts;
            hosts.is_empty() || hosts.iter().any(|host| matches!(host, Host::Under(_)))
        };
        let numbered = || (0u32..).zip(routes);
        let others: Box<[u32]> = numbered().filter(|(_, route)| is_general(route)).map(|(number, _)| number).collect();
        if named.is_empty() && others.len() == routes.len() && routes.iter().all(|r| r.conditions.hosts.is_empty()) {
            return None;
        }
        // Each name has its own and, in order with them, those that are not for certain names only.
        let mut own: HashMap<&str, Vec<u32>, foldhash::fast::FixedState> = HashMap::default();
        for (number, route) in numbered() {
            for host in &route.conditions.hosts {
                if let Host::Exact(name) = host {
                    own.entry(name).or_default().push(number);
                }
            }
        }
        for (name, numbers) in &mut named {
            let mut all: Vec<u32> = own.remove(&**name).unwrap_or_default();
            all.extend_from_slice(&others);
            all.sort_unstable();
            all.dedup();
            *numbers = all.into();
        }
        Some(Self { named, others })
    }

    fn find(&self, host: &str) -> &[u32] {
        let found = if host.bytes().any(|b| b.is_ascii_uppercase()) {
            let mut lower = [0; LONGEST_HOST];
            let lower = lower.get_mut(..host.len()).and_then(|lower| {
                lower.copy_from_slice(host.as_bytes());
                lower.make_ascii_lowercase();
                std::str::from_utf8(lower).ok()
            });
            lower.and_then(|lower| self.named.get(lower))
        } else {
            self.named.get(host)
        };
        found.unwrap_or(&self.others)
    }
}
