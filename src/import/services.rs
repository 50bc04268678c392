//! What is gathered for each service, from all objects, before it is written.

use super::reader::{At, Log};
use crate::config::{Labels, RouteMatch};
use indexmap::IndexMap;
use serde_json::{Map, Value, json};

/// By the names that pillion gives them.
#[derive(Debug, Default)]
pub struct Services<'o> {
    pub all: IndexMap<String, Service<'o>>,
    /// The port under which each is asked for.
    ports: IndexMap<String, u32>,
}

#[derive(Debug, Default)]
pub struct Service<'o> {
    /// As in the config.
    pub settings: Map<String, Value>,
    /// Whose settings they are.
    pub settings_at: Option<At<'o>>,
    pub subsets: IndexMap<String, (Labels, At<'o>)>,
    pub routes: Vec<Route<'o>>,
}

/// A service's endpoints, or a subset of them.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Destination {
    pub service: String,
    pub subset: Option<String>,
}

#[derive(Debug, Clone)]
pub enum Action {
    /// With their weights.
    To(Vec<(Destination, u32)>),
    /// As in the config.
    Redirect(Value),
    Respond(Value),
}

/// A route, for whichever service it will be of.
#[derive(Debug, Clone)]
pub struct Route<'o> {
    pub at: At<'o>,
    pub name: Option<String>,
    pub matches: RouteMatch,
    pub action: Action,
    pub sticky: Option<Value>,
    /// With the share in percent.
    pub mirror: Option<(Destination, f64)>,
    /// `rewrite`, `headers`, `timeouts`, `retry` and `faults`, as in the config.
    pub more: Map<String, Value>,
    /// Where the order is not that of the file.
    pub rank: Option<Rank>,
}

/// The Gateway API's order: what is smaller comes first.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rank {
    /// 0 for exact, 1 for regular expressions, 2 for prefixes.
    pub path: u8,
    pub prefix: std::cmp::Reverse<usize>,
    pub method: std::cmp::Reverse<bool>,
    pub headers: std::cmp::Reverse<usize>,
    pub query: std::cmp::Reverse<usize>,
    /// `metadata.creationTimestamp`; those without one come last.
    pub age: (bool, String),
    pub object: String,
}

/// What a request gets that no route takes.
const NO_ROUTE: &str = "no-route";

impl<'o> Services<'o> {
    pub fn of(&mut self, name: &str) -> &mut Service<'o> {
        self.all.entry(name.to_owned()).or_default()
    }

    /// pillion goes where the registry says that instances listen; that is one port for each service.
    pub fn port(&mut self, name: &str, port: u32, at: &At<'_>, log: &mut Log) {
        let known = *self.ports.entry(name.into()).or_insert(port);
        if known != port {
            log.note(
                at,
                format!(
                    "`{name}` is asked for on the ports {known} and {port}, which pillion does not tell apart: it goes where \
                     the registry says; give one of them another name, with `registered_as` and a registry of its own"
                ),
            );
        }
    }

    /// Once all objects have been read.
    pub fn finish(&mut self, log: &mut Log) {
        self.assume_subsets(log);
        self.tell_of_chains(log);
        for service in self.all.values_mut() {
            service.routes.sort_by(|a, b| a.rank.cmp(&b.rank));
            let Some(last) = service.routes.last() else { continue };
            // pillion would take any endpoint; the others answer 404.
            if !service.routes.iter().any(|route| takes_all(&route.matches)) {
                let no_route = Route {
                    at: last.at.clone(),
                    name: Some(NO_ROUTE.into()),
                    matches: RouteMatch::default(),
                    action: Action::Respond(json!({ "status": 404 })),
                    sticky: None,
                    mirror: None,
                    more: Map::new(),
                    rank: None,
                };
                service.routes.push(no_route);
            }
        }
    }

    /// A subset that no DestinationRule among the files defines gets the labels that it most likely has.
    fn assume_subsets(&mut self, log: &mut Log) {
        let named: Vec<(Destination, At<'o>)> = self
            .all
            .values()
            .flat_map(|service| &service.routes)
            .flat_map(|route| route.destinations().map(|to| (to.clone(), route.at.clone())))
            .collect();
        for (Destination { service, subset }, at) in named {
            let Some(subset) = subset else { continue };
            let subsets = &mut self.of(&service).subsets;
            if !subsets.contains_key(&subset) {
                log.note(
                    &at,
                    format!(
                        "no DestinationRule defines the subset `{subset}` of `{service}`; `version: {subset}` is taken \
                         for its labels: correct that in `services.{service}.subsets`, or import the rule as well"
                    ),
                );
                subsets.insert(subset.clone(), ([("version".to_owned(), subset)].into_iter().collect(), at));
            }
        }
    }

    /// What is handed on to another service goes through that one's routes.
    fn tell_of_chains(&self, log: &mut Log) {
        for (own, service) in &self.all {
            for route in &service.routes {
                for Destination { service, subset } in route.destinations() {
                    let has_routes = self.all.get(service).is_some_and(|other| !other.routes.is_empty());
                    if service != own && subset.is_none() && has_routes {
                        log.note(
                            &route.at,
                            format!(
                                "`{service}` has routes of its own, which hold for these requests as well; name a subset \
                                 of it if they shall not"
                            ),
                        );
                    }
                }
            }
        }
    }
}

impl Route<'_> {
    /// All that it sends anything to.
    fn destinations(&self) -> impl Iterator<Item = &Destination> {
        let to: &[_] = if let Action::To(to) = &self.action { to } else { &[] };
        to.iter().map(|(to, _)| to).chain(self.mirror.iter().map(|(to, _)| to))
    }
}

/// Whether every request fits.
fn takes_all(matches: &RouteMatch) -> bool {
    let any_path = matches.path.as_ref().is_none_or(|path| path.prefix.as_deref() == Some("/"));
    any_path && RouteMatch { path: None, ..matches.clone() }.is_default()
}

/// A number as people write it: `10`, and not `10.0`.
pub fn number(number: f64) -> Value {
    // Percentages and the like; a larger one stays as it is.
    if number.fract() == 0.0 && (0.0..1e9).contains(&number) { json!(number as u64) } else { json!(number) }
}
