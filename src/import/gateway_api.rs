//! The Gateway API's `HTTPRoute`, by its specification (gateway.networking.k8s.io, v1).

mod filters;
mod hosts;
mod matches;
mod rule;

use super::{
    common::attach,
    name::Names,
    object::Object,
    reader::{At, Log},
    services::{Rank, Services},
};
use hosts::Parents;

/// Only its listeners' hosts count, for routes that name it.
pub fn gateway(root: &At<'_>, log: &mut Log) {
    log.note(root, "only the hosts of its listeners are used; where pillion listens is said in `listeners`");
}

pub fn http_route<'o>(root: &At<'o>, names: &Names, objects: &'o [Object], services: &mut Services<'o>, log: &mut Log) {
    let Some(at) = root.get("spec") else { return };
    at.others(&["parentRefs", "hostnames", "rules", "useDefaultGateways"], log);
    let mut routes = Vec::new();
    let age = root.get("metadata").and_then(|at| at.text("creationTimestamp", log));
    let age = (age.is_none(), age.unwrap_or_default());
    for rule in at.items("rules", log) {
        for (mut route, path) in rule::routes(&rule, names, services, log) {
            route.rank = Some(Rank::new(&route.matches, path, age.clone(), root.object));
            routes.push(route);
        }
    }
    let Parents { services: parents, hosts } = hosts::parents(&at, objects, log);
    let of_services: Vec<String> =
        parents.into_iter().map(|(name, namespace)| names.service(&name, &namespace)).collect();
    if !of_services.is_empty() {
        attach(&at, &of_services, str::to_owned, routes.clone(), services, log);
    }
    if !hosts.is_empty() {
        attach(&at, &hosts, |host| names.host(host, &root.object.namespace), routes, services, log);
    }
}
