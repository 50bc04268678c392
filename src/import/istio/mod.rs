//! Istio's `VirtualService` and `DestinationRule`, by the reference of its API (networking.istio.io, v1).

mod destination_rule;
mod matches;
mod policy;
mod rule;
mod traffic_policy;

pub use destination_rule::destination_rule;

use super::{
    common::attach,
    name::Names,
    reader::{At, Log},
    services::Services,
};

pub fn virtual_service<'o>(root: &At<'o>, names: &Names, services: &mut Services<'o>, log: &mut Log) {
    let Some(at) = root.get("spec") else { return };
    at.others(&["hosts", "gateways", "http", "tcp", "tls", "exportTo"], log);
    for key in ["tcp", "tls"] {
        if let Some(at) = at.get(key) {
            log.note(
                &at,
                "not carried over: pillion routes HTTP only; TCP needs a listener of its own for each service",
            );
        }
    }
    export_to(&at, log);
    let gateways = at.texts("gateways", log);
    if let Some(gateway) = gateways.iter().find(|gateway| *gateway != "mesh")
        && let Some(at) = at.get("gateways")
    {
        log.note(
            &at,
            format!(
                "pillion has no gateways: the routes hold on each listener where the host is asked for, and \
                 not at `{gateway}` alone"
            ),
        );
    }
    let hosts = at.texts("hosts", log);
    if hosts.is_empty() {
        log.note(&at, "not carried over: without `hosts` others delegate to it; write its rules into theirs");
        return;
    }
    let mut routes = Vec::new();
    for rule in at.items("http", log) {
        routes.extend(rule::routes(&rule, names, services, log));
    }
    let namespace = &root.object.namespace;
    attach(&at, &hosts, |host| names.host(host, namespace), routes, services, log);
}

/// Whom an object is for, which a sidecar with a file of its own cannot ask.
fn export_to(at: &At<'_>, log: &mut Log) {
    if at.texts("exportTo", log).iter().any(|to| to != "*")
        && let Some(at) = at.get("exportTo")
    {
        log.note(
            &at,
            "not carried over: a config holds for the pillion that has it; give it to those alone that shall have it",
        );
    }
}
