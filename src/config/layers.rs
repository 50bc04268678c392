//! What lies over and under the file: flags and environment variables over it, `defaults` under each service.

use super::{
    env::Env,
    error::{Faults, Path, Place, one_of},
    registry_url,
    tree::{Fate, Node, Scalar, Value},
};

/// Settings from the command line. Each has an environment variable too; a flag goes before the variable, both go before
/// the file. Empty variables count as not set.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Overrides {
    /// `--registry URL`, repeatable; `PILLION_REGISTRY` takes several with spaces between. They take the place of all of
    /// the file's registries, and of every `sources` with it. See [`registry_url`](super::registry_url) for the forms.
    pub registry: Vec<String>,
    /// `--listen ADDR`, `PILLION_LISTEN`: where the listener `egress` listens, or the only one there is.
    pub listen: Option<String>,
    /// `--admin ADDR`, `PILLION_ADMIN`.
    pub admin: Option<String>,
    /// `--workers N|auto`, `PILLION_WORKERS`.
    pub workers: Option<String>,
    /// `--log-level LEVEL`, `PILLION_LOG`.
    pub log_level: Option<String>,
}

/// Lays flags and variables over the file's tree. A root that is no map is left for the reader to refuse.
pub(super) fn apply(root: &mut Node, overrides: &Overrides, env: &Env<'_>, faults: &mut Faults) {
    let var = |name| env(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty());
    let pick = |given: &Option<String>, flag, variable| match given {
        Some(value) => Some((value.clone(), Place::Setting(flag))),
        None => var(variable).map(|value| (value, Place::Setting(variable))),
    };
    if let Some((text, place)) = pick(&overrides.workers, "--workers", "PILLION_WORKERS") {
        root.set("workers", Node::scalar(text, place));
    }
    if let Some((text, place)) = pick(&overrides.admin, "--admin", "PILLION_ADMIN")
        && let Some(admin) = below(root, "admin", place)
    {
        admin.set("listen", text_node(text, place));
    }
    if let Some((text, place)) = pick(&overrides.log_level, "--log-level", "PILLION_LOG")
        && let Some(log) = below(root, "log", place)
    {
        log.set("level", text_node(text, place));
    }
    if let Some((text, place)) = pick(&overrides.listen, "--listen", "PILLION_LISTEN") {
        listen(root, text, place, faults);
    }
    if !overrides.registry.is_empty() {
        registries(root, &overrides.registry, Place::Setting("--registry"), faults);
    } else if let Some(urls) = var("PILLION_REGISTRY") {
        let urls: Vec<_> = urls.split_whitespace().map(ToOwned::to_owned).collect();
        registries(root, &urls, Place::Setting("PILLION_REGISTRY"), faults);
    }
}

fn text_node(text: String, place: Place) -> Node {
    Node::new(Value::Scalar(Scalar { text, plain: false, expanded: false }), place)
}

/// What is under `key`, a new map if there is nothing. `None` if `root` is no map.
fn below<'n>(root: &'n mut Node, key: &str, place: Place) -> Option<&'n mut Node> {
    if root.get(key).is_none() {
        root.set(key, Node::map(place));
    }
    root.get_mut(key)
}

fn listen(root: &mut Node, text: String, place: Place, faults: &mut Faults) {
    if root.get("listeners").is_none_or(Node::is_null) {
        root.set("listeners", Node::new(Value::List(Vec::new()), place));
    }
    let Some(Value::List(list)) = root.get_mut("listeners").map(|listeners| &mut listeners.value) else { return };
    let named = |node: &Node| match node.get("name").map(|name| &name.value) {
        Some(Value::Scalar(name)) => name.text.clone(),
        _ => String::new(),
    };
    let index = match list.iter().position(|listener| named(listener) == "egress") {
        Some(index) => index,
        None if list.len() == 1 => 0,
        None if list.is_empty() => {
            let mut egress = Node::map(place);
            egress.set("name", Node::scalar("egress", place));
            list.push(egress);
            0
        }
        None => {
            let names: Vec<_> = list.iter().map(named).collect();
            let names = one_of(names.iter().map(String::as_str));
            faults.add(
                place,
                Path::default().key("listeners"),
                format!("which listener is meant? None is named `egress`; the file has {names}"),
            );
            return;
        }
    };
    list[index].set("listen", text_node(text, place));
}

fn registries(root: &mut Node, urls: &[String], place: Place, faults: &mut Faults) {
    let path = Path::default().key("registries");
    let mut all = Node::map(place);
    for (index, url) in urls.iter().enumerate() {
        match registry_url::parse(url, place) {
            Ok((kind, node)) => {
                let name = (1..)
                    .map(|n| if n == 1 { kind.to_owned() } else { format!("{kind}-{n}") })
                    .find(|name| all.get(name).is_none());
                all.set(name.as_deref().unwrap_or(kind), node);
            }
            Err(message) => {
                faults.add(place, path.clone(), message);
                // Known to be wrong; the others are still read and checked.
                let mut wrong = Node::map(place);
                wrong.fate = Fate::Pruned;
                all.set(&format!("wrong-{index}"), wrong);
            }
        }
    }
    root.set("registries", all);
    // They name the registries that were just replaced.
    for key in ["discovery", "defaults"] {
        if let Some(node) = root.get_mut(key) {
            node.remove("sources");
        }
    }
    if let Some(Value::Map(services)) = root.get_mut("services").map(|services| &mut services.value) {
        for service in services {
            service.node.remove("sources");
        }
    }
    if let Some(Value::List(list)) = root.get_mut("register").map(|register| &mut register.value) {
        list.iter_mut().for_each(|register| register.remove("registry"));
    }
}

/// Puts `defaults` under each service: what a service does not set, it takes from there, map by map; lists and single
/// values are taken or replaced whole, and so is a `fallback` that says what it falls back to. In a service, `key:` with
/// nothing after it sets nothing, and `key: null` sets the key back to pillion's own default.
pub(super) fn merge_defaults(root: &mut Node) {
    let Some(defaults) = root.get("defaults").cloned() else { return };
    let mut without_fallback = defaults.clone();
    without_fallback.remove("fallback");
    let has_kind = |fallback: &Node| {
        let kinds = ["response", "service", "last_good"];
        fallback.entries().iter().any(|entry| kinds.contains(&entry.key.as_str()) && !entry.node.is_null())
    };
    if let Some(Value::Map(services)) = root.get_mut("services").map(|services| &mut services.value) {
        for service in services {
            let own = service.node.get("fallback").is_some_and(has_kind);
            merge_under(&mut service.node, if own { &without_fallback } else { &defaults });
        }
    }
}

/// Connections live long, and are spread by how many there are: a service that a TCP listener names is balanced so where
/// neither it nor `defaults` says anything else.
pub(super) fn spread_connections(root: &mut Node) {
    let listeners = root.get("listeners").map_or(&[][..], Node::elements);
    let is_tcp = |listener: &&Node| matches!(listener.get("protocol").and_then(Node::text), Some("tcp" | "udp"));
    let named = listeners.iter().filter(is_tcp).filter_map(|listener| {
        let service = listener.get("service")?;
        Some((service.text().filter(|name| !name.is_empty())?.to_owned(), service.place))
    });
    let named: Vec<_> = named.collect();
    let defaults = root.get("defaults").cloned();
    for (name, place) in named {
        let mut balance = Node::map(place);
        balance.set("policy", Node::scalar("least-connections", place));
        let mut under = Node::map(place);
        under.set("balance", balance);
        if root.get("services").is_none_or(Node::is_null) {
            root.set("services", Node::map(place));
        }
        let Some(services) = root.get_mut("services") else { return };
        if services.get(&name).is_none() {
            services.set(&name, defaults.clone().unwrap_or_else(|| Node::map(place)));
        }
        if let Some(service) = services.get_mut(&name) {
            merge_under(service, &under);
        }
    }
}

/// Puts a service's settings under those of its routes that add to them.
pub(super) fn merge_into_routes(root: &mut Node) {
    let Some(Value::Map(services)) = root.get_mut("services").map(|services| &mut services.value) else { return };
    services.iter_mut().for_each(|service| merge_service_into_routes(&mut service.node));
}

/// The same for one service.
pub(super) fn merge_service_into_routes(service: &mut Node) {
    for key in ["timeouts", "retry", "hedge"] {
        let Some(base) = service.get(key).cloned() else { continue };
        let Some(Value::List(routes)) = service.get_mut("routes").map(|routes| &mut routes.value) else { return };
        for own in routes.iter_mut().filter_map(|route| route.get_mut(key)) {
            merge_under(own, &base);
        }
    }
}

fn merge_under(node: &mut Node, base: &Node) {
    if node.fate != Fate::Live || base.fate != Fate::Live {
        return;
    }
    if node.is_blank() {
        if !base.is_null() {
            node.value = base.value.clone();
        }
        return;
    }
    let (Value::Map(entries), Value::Map(under)) = (&mut node.value, &base.value) else { return };
    for below in under.iter().filter(|below| below.node.fate == Fate::Live) {
        match entries.iter_mut().find(|entry| entry.key == below.key) {
            Some(entry) => merge_under(&mut entry.node, &below.node),
            None => entries.push(below.clone()),
        }
    }
}
