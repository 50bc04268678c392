//! What Istio and the Gateway API have alike.

use super::{
    object::Object,
    reader::{At, Log},
    services::{Route, Services},
};
use crate::config::human;
use indexmap::IndexMap;
use serde_json::{Map, Value, json};
use std::time::Duration;

/// For "no limit", which pillion's `timeouts.request` does not know.
const WITHOUT_LIMIT: Duration = Duration::from_secs(24 * 60 * 60);

/// A limit for the whole answer: `request` is the time to its start, `stream` to its end.
pub fn timeouts(at: &At<'_>, limit: Duration, log: &mut Log) -> Value {
    if limit.is_zero() {
        let most = human::format(WITHOUT_LIMIT);
        log.note(at, format!("there is always a limit in pillion, so `{most}` is written for none"));
        return json!({ "request": most });
    }
    json!({ "request": human::format(limit), "stream": human::format(limit) })
}

/// What one try may take, where the whole request has time for it.
pub fn per_try(at: &At<'_>, limit: Duration, attempts: u32, more: &mut Map<String, Value>, log: &mut Log) -> Value {
    let request = more.get("timeouts").and_then(|timeouts| timeouts.get("request")).and_then(Value::as_str);
    match request.and_then(|request| human::parse(request).ok()) {
        Some(request) if limit >= request => {
            log.note(at, "left out: it is not shorter than the request's own limit, and so has no effect");
            return Value::Null;
        }
        None if limit > crate::config::Timeouts::default().request => {
            let whole = human::format(limit.saturating_mul(attempts.saturating_add(1)));
            log.note(
                at,
                format!("`timeouts.request` must not be shorter, so `{whole}` is written, the time for all tries"),
            );
            more.insert("timeouts".into(), json!({ "request": whole }));
        }
        _ => {}
    }
    json!(human::format(limit))
}

/// Changes of one message's headers.
#[derive(Debug, Default)]
pub struct Edit {
    pub set: IndexMap<String, String>,
    pub add: IndexMap<String, String>,
    pub remove: Vec<String>,
}

/// Changes of a request's headers and a response's; and the host that a request gets.
#[derive(Debug, Default)]
pub struct Edits {
    pub request: Edit,
    pub response: Edit,
    pub host: Option<String>,
}

impl Edits {
    pub fn put(self, more: &mut Map<String, Value>) {
        if let Some(host) = &self.host {
            rewrite(more, "host", host);
        }
        let edit = |Edit { set, add, remove }: Edit| {
            let mut out = Map::new();
            if !set.is_empty() {
                out.insert("set".into(), json!(set));
            }
            if !add.is_empty() {
                out.insert("add".into(), json!(add));
            }
            if !remove.is_empty() {
                out.insert("remove".into(), json!(remove));
            }
            Value::Object(out)
        };
        let both = [("request", edit(self.request)), ("response", edit(self.response))];
        let both = both.into_iter().filter(|(_, edit)| *edit != json!({}));
        let both: Map<String, Value> = both.map(|(key, edit)| (key.into(), edit)).collect();
        if !both.is_empty() {
            more.insert("headers".into(), Value::Object(both));
        }
    }
}

/// Adds a key to a route's `rewrite`.
pub fn rewrite(more: &mut Map<String, Value>, key: &str, value: &str) {
    let rewrite = more.entry("rewrite").or_insert_with(|| json!({}));
    if let Some(rewrite) = rewrite.as_object_mut() {
        rewrite.insert(key.into(), json!(value));
    }
}

/// Gives each of the hosts its routes. Names are services of their own; `*` and `*.example.com` are conditions of a
/// service that a listener must name.
pub fn attach<'o>(
    at: &At<'o>,
    hosts: &[String],
    names: impl Fn(&str) -> String,
    routes: Vec<Route<'o>>,
    services: &mut Services<'o>,
    log: &mut Log,
) {
    if routes.is_empty() {
        return;
    }
    let (wild, exact): (Vec<&String>, Vec<&String>) = hosts.iter().partition(|host| host.starts_with('*'));
    let mut taken: Vec<String> = Vec::new();
    for host in exact {
        let name = names(host);
        if taken.contains(&name) {
            continue;
        }
        let service = services.of(&name);
        let in_order = |route: &Route<'_>| route.rank.is_none();
        if service.routes.iter().any(in_order) {
            log.note(at, format!("`{name}` has routes of another object already, which go before these"));
        }
        service.routes.extend(routes.iter().cloned());
        taken.push(name);
    }
    if wild.is_empty() {
        return;
    }
    let name = virtual_name(at.object);
    let shown = wild.iter().map(|host| format!("`{host}`")).collect::<Vec<_>>().join(", ");
    log.note(
        at,
        format!(
            "{shown} is no name of a service: its routes are those of `services.{name}`, and requests get there by a \
             listener with `service: {name}`"
        ),
    );
    let all = wild.iter().any(|host| *host == "*");
    let conditions: Vec<String> = wild.into_iter().filter(|_| !all).cloned().collect();
    services.of(&name).routes.extend(routes.into_iter().map(|mut route| {
        if route.matches.host.is_empty() {
            route.matches.host.clone_from(&conditions);
        }
        route
    }));
}

/// A service that is only there for its routes.
fn virtual_name(object: &Object) -> String {
    format!("virtual-{}", object.name)
}
