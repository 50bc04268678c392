//! Reading what a registry's store says of a service's routes: as strictly as the config, with every fault at once.

use super::{
    Config, Service, StoredRoutes,
    error::{Errors, Faults, Path, Place, Step},
    layers,
    read::from_tree,
    tree::{self, Fate, Node, Value},
    validate,
};
use serde::Serialize;

/// What a service's routes may add to, so that it is laid under them.
const UNDER: [&str; 3] = ["timeouts", "retry", "hedge"];

/// Reads the YAML or JSON text under `key` as the routes of `service`. `config` says what there is besides.
///
/// It comes from outside of this machine, and is the same for all who read it. So variables are not expanded, and no files
/// are read.
pub fn read_stored(key: &str, text: &[u8], service: &str, config: &Config) -> Result<StoredRoutes, Errors> {
    let mut faults = Faults::default();
    let read = tree::parse(text, &mut faults).and_then(|mut root| {
        // A value that is empty or cut off must not look like one that takes all routes away.
        if !matches!(root.value, Value::Map(_)) {
            faults.add(root.place, Path::default(), "expected a map, or `{}` for no routes");
            return None;
        }
        refuse_variables(&mut root, &mut Path::default(), &mut faults);
        let own = config.services.get(service).unwrap_or(&config.defaults);
        lay_under(&mut root, own);
        refuse_files(&mut root, &mut faults);
        let mut stored: StoredRoutes = from_tree(&mut root, &Path::default(), &mut faults)?;
        fill_responses(&mut stored);
        let whole = stored.clone().over(own);
        validate::check_routes(config, service, &whole, &root, &mut faults);
        Some(stored)
    });
    faults.or(Some(key), read)
}

impl StoredRoutes {
    /// The service with these routes in place of its own.
    pub fn over(self, service: &Service) -> Service {
        let Self { subsets, when_empty, version_override, routes, rollout } = self;
        Service { subsets, when_empty, version_override, routes, rollout, ..service.clone() }
    }
}

/// Puts the service's settings under those of the routes, as for routes in the config.
fn lay_under(root: &mut Node, own: &Service) {
    let mut service = Node::map(Place::Whole);
    let Some(routes) = root.get("routes").cloned() else { return };
    service.set("routes", routes);
    for (key, node) in UNDER.into_iter().zip([node(&own.timeouts), node(&own.retry), node(&own.hedge)]) {
        if let Some(node) = node {
            service.set(key, node);
        }
    }
    layers::merge_service_into_routes(&mut service);
    if let (Some(there), Some(merged)) = (root.get_mut("routes"), service.get("routes")) {
        *there = merged.clone();
    }
}

/// The settings as a tree. They were not written in this text, so they have no place in it.
fn node(settings: &impl Serialize) -> Option<Node> {
    fn forget_places(node: &mut Node) {
        node.place = Place::Whole;
        match &mut node.value {
            Value::Scalar(_) => {}
            Value::List(list) => list.iter_mut().for_each(forget_places),
            Value::Map(entries) => entries.iter_mut().for_each(|entry| {
                entry.place = Place::Whole;
                forget_places(&mut entry.node);
            }),
        }
    }
    let mut node = tree::parse(&serde_json::to_vec(settings).ok()?, &mut Faults::default())?;
    forget_places(&mut node);
    Some(node)
}

/// `$${` stands for `${`, as in the config.
fn refuse_variables(node: &mut Node, path: &mut Path, faults: &mut Faults) {
    match &mut node.value {
        Value::Scalar(scalar) if scalar.text.replace("$${", "").contains("${") => {
            let message = "variables are not expanded in a store; write `$${` for a plain `${`";
            faults.add(node.place, path.clone(), message);
            node.fate = Fate::Pruned;
        }
        Value::Scalar(scalar) => scalar.text = scalar.text.replace("$${", "${"),
        Value::List(list) => {
            for (index, node) in list.iter_mut().enumerate() {
                path.0.push(Step::Index(index));
                refuse_variables(node, path, faults);
                path.0.pop();
            }
        }
        Value::Map(entries) => {
            for entry in entries {
                path.0.push(Step::Key(entry.key.clone()));
                refuse_variables(&mut entry.node, path, faults);
                path.0.pop();
            }
        }
    }
}

/// Whoever may write to the store could otherwise have any file of this machine told.
fn refuse_files(root: &mut Node, faults: &mut Faults) {
    let tls = Path::default().key("rollout").key("prometheus").key("tls");
    if let Some(node) = root.at_mut(&tls) {
        faults.add(node.place, tls, "a store cannot name files of this machine; expected it in the config");
        node.fate = Fate::Pruned;
    }
    let routes = root.get("routes").map_or(0, |routes| routes.elements().len());
    for index in 0..routes {
        let route = Path::default().key("routes").with(Step::Index(index));
        for at in [route.key("respond").key("file"), route.key("fallback").key("response").key("file")] {
            if let Some(node) = root.at_mut(&at) {
                faults.add(node.place, at, "a store cannot name files of this machine; expected `body`");
                node.fate = Fate::Pruned;
            }
        }
    }
}

/// What is to be answered is read with the routes, and not for each request.
fn fill_responses(stored: &mut StoredRoutes) {
    for route in &mut stored.routes {
        let fallback = route.fallback.as_mut().and_then(|fallback| fallback.response.as_mut());
        for response in route.respond.as_mut().into_iter().chain(fallback) {
            response.content = response.body.clone().unwrap_or_default().into();
        }
    }
}
