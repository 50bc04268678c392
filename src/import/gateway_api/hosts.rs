//! Which hosts an HTTPRoute is for.

use crate::import::{
    object::{Kind, Object},
    reader::{At, Log},
};

/// What a route is attached to.
#[derive(Debug, Default)]
pub struct Parents {
    /// Names and namespaces, where the route is for a mesh.
    pub services: Vec<(String, String)>,
    /// For gateways; `*` is any.
    pub hosts: Vec<String>,
}

pub fn parents(at: &At<'_>, objects: &[Object], log: &mut Log) -> Parents {
    let mut parents = Parents::default();
    let own = at.texts("hostnames", log);
    let refs = at.items("parentRefs", log);
    let mut add = |host: String| {
        if !parents.hosts.contains(&host) {
            parents.hosts.push(host);
        }
    };
    let mut for_gateways = refs.is_empty();
    for parent in &refs {
        parent.others(&["group", "kind", "namespace", "name", "sectionName", "port"], log);
        let name = parent.text("name", log).unwrap_or_default();
        let namespace = parent.text("namespace", log).unwrap_or_else(|| at.object.namespace.clone());
        match parent.text("kind", log).as_deref().unwrap_or("Gateway") {
            "Service" => {
                if let Some(at) = parent.get("port") {
                    log.note(&at, "not carried over: pillion's routes hold for a service, whatever its port");
                }
                parents.services.push((name, namespace));
            }
            "Gateway" => {
                for key in ["sectionName", "port"] {
                    if let Some(at) = parent.get(key) {
                        let message = "pillion's routes hold on each listener where the host is asked for; leave out \
                                       the rules that are for another one, like a redirect from http to https";
                        log.note(&at, message);
                    }
                }
                let found = objects.iter().find(|object| {
                    object.kind == Kind::Gateway && object.name == name && object.namespace == namespace
                });
                let Some(gateway) = found else {
                    for_gateways = true;
                    continue;
                };
                let listened = listeners(gateway, parent, log);
                for host in &listened {
                    if own.is_empty() {
                        add(host.clone());
                    }
                    own.iter().filter_map(|own| both(own, host)).for_each(&mut add);
                }
                if !own.is_empty() && !listened.iter().any(|host| own.iter().any(|own| both(own, host).is_some())) {
                    log.note(parent, format!("no listener of the gateway `{name}` takes any of the route's hosts"));
                }
            }
            kind => log.note(parent, format!("not carried over: pillion knows no `{kind}` as a parent")),
        }
    }
    // Of a gateway that is not among the files nothing is known; the route's own hosts count, or all.
    if for_gateways {
        if own.is_empty() {
            add("*".into());
        }
        own.into_iter().for_each(add);
    }
    parents
}

/// The hosts of those listeners that a route names.
fn listeners(gateway: &Object, parent: &At<'_>, log: &mut Log) -> Vec<String> {
    let section = parent.text("sectionName", log);
    let port = parent.number("port", log);
    let mut hosts = Vec::new();
    let Some(spec) = gateway.root().get("spec") else { return hosts };
    for listener in spec.items("listeners", log) {
        let name = listener.text("name", log);
        let is_meant = section.is_none() || section == name;
        if is_meant && (port.is_none() || port == listener.number("port", log)) {
            hosts.push(listener.text("hostname", log).filter(|host| !host.is_empty()).unwrap_or_else(|| "*".into()));
        }
    }
    hosts
}

/// The hosts that are both; `*.example.com` is whatever ends so.
fn both(one: &str, other: &str) -> Option<String> {
    let within = |host: &str, of: &str| match of.strip_prefix('*') {
        Some(end) => host.len() > end.len() && host.ends_with(end),
        None => host == of,
    };
    if one == other || within(one, other) { Some(one.into()) } else { within(other, one).then(|| other.into()) }
}

#[cfg(test)]
mod tests {
    use super::both;

    #[test]
    fn hosts_of_a_route_and_a_listener() {
        for (one, other, expected) in [
            ("a.example.com", "a.example.com", Some("a.example.com")),
            ("a.example.com", "*.example.com", Some("a.example.com")),
            ("*.example.com", "a.example.com", Some("a.example.com")),
            ("*.b.example.com", "*.example.com", Some("*.b.example.com")),
            ("a.example.com", "*", Some("a.example.com")),
            ("*", "*", Some("*")),
            ("example.com", "*.example.com", None),
            ("a.example.com", "b.example.com", None),
        ] {
            assert_eq!(both(one, other).as_deref(), expected, "{one} and {other}");
            assert_eq!(both(other, one).as_deref(), expected, "{other} and {one}");
        }
    }
}
