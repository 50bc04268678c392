//! A rule of an HTTPRoute: what becomes of which requests.

use super::{
    filters::{self, Filtered},
    matches::{self, Path},
};
use crate::{
    config::{PathMatch, RouteMatch, human},
    import::{
        common::{self, rewrite},
        name::Names,
        reader::{At, Log},
        services::{Action, Destination, Route, Services},
    },
};
use serde_json::{Map, Value, json};

/// A route for each of the rule's alternatives, with the kind of its path.
pub fn routes<'o>(at: &At<'o>, names: &Names, services: &mut Services<'o>, log: &mut Log) -> Vec<(Route<'o>, Path)> {
    at.others(&["name", "matches", "filters", "backendRefs", "timeouts", "retry", "sessionPersistence"], log);
    let mut filtered = Filtered::default();
    filters::read(at, &mut filtered, names, services, log);
    let answers = filtered.redirect.is_some();
    let action = match &filtered.redirect {
        Some(redirect) => Action::Redirect(Value::Object(redirect.clone())),
        None => backends(at, &mut filtered, names, services, log),
    };
    let mut more = Map::new();
    let is_split = matches!(&action, Action::To(to) if to.len() > 1);
    let sticky = sticky(at, is_split, log);
    if answers || matches!(action, Action::Respond(_)) {
        for key in ["timeouts", "retry"] {
            if let Some(at) = at.get(key) {
                log.note(&at, "not carried over: it has no effect on what pillion answers itself");
            }
        }
    } else {
        filtered.edits.host = filtered.host.take();
        limits(at, &mut more, log);
    }
    filtered.edits.put(&mut more);
    let name = at.text("name", log);
    let alternatives = at.items("matches", log);
    let alternatives: Vec<_> = if alternatives.is_empty() {
        vec![(at.clone(), Some((RouteMatch::default(), Path::Prefix(1))))]
    } else {
        alternatives.into_iter().map(|at| (at.clone(), matches::conditions(&at, log))).collect()
    };
    let mut routes = Vec::new();
    for (at, conditions) in alternatives {
        let Some((mut matches, path)) = conditions else { continue };
        let (mut more, mut action) = (more.clone(), action.clone());
        if let Some((place, key, value)) = &filtered.path {
            if key == "prefix" && matches.path.is_none() {
                matches.path = Some(PathMatch { prefix: Some("/".into()), ..PathMatch::default() });
            }
            if key == "prefix" && !matches!(path, Path::Prefix(_)) {
                log.note(
                    place,
                    "a prefix can be replaced only where the path is matched by one, so this alternative is left out",
                );
                continue;
            }
            match &mut action {
                Action::Redirect(Value::Object(redirect)) => {
                    redirect.insert(key.clone(), json!(value));
                }
                Action::To(_) => rewrite(&mut more, key, value),
                Action::Redirect(_) | Action::Respond(_) => {}
            }
        }
        let to = matches!(action, Action::To(_));
        routes.push((
            Route {
                at,
                name: name.clone(),
                matches,
                action,
                sticky: sticky.clone(),
                mirror: filtered.mirror.clone().filter(|_| to),
                more,
                rank: None,
            },
            path,
        ));
    }
    routes
}

/// Where requests go. Without any backend they are answered with 500.
fn backends<'o>(
    at: &At<'o>,
    filtered: &mut Filtered<'o>,
    names: &Names,
    services: &mut Services<'o>,
    log: &mut Log,
) -> Action {
    let items = at.items("backendRefs", log);
    let alone = items.len() == 1;
    let mut to = Vec::new();
    for item in items {
        item.others(&["group", "kind", "name", "namespace", "port", "weight", "filters"], log);
        if item.has("filters") && alone {
            filters::read(&item, filtered, names, services, log);
        } else if let Some(at) = item.get("filters") {
            log.note(
                &at,
                "not carried over: a route changes all its requests alike; make rules of their own for the versions",
            );
        }
        let weight = item.number("weight", log).unwrap_or(1);
        to.extend(backend(&item, names, services, log).map(|backend| (backend, weight)));
    }
    if to.iter().all(|(_, weight)| *weight == 0) {
        return Action::Respond(json!({ "status": 500 }));
    }
    // One with a weight of 0 gets nothing, and beside no other it would get all.
    if to.iter().filter(|(_, weight)| *weight > 0).count() == 1 {
        to.retain(|(_, weight)| *weight > 0);
    }
    Action::To(to)
}

/// A service; `None`, with a note, if it is none.
pub fn backend<'o>(at: &At<'o>, names: &Names, services: &mut Services<'o>, log: &mut Log) -> Option<Destination> {
    let Some(name) = at.text("name", log) else {
        log.fault(at, "`name` is missing");
        return None;
    };
    let group = at.text("group", log).unwrap_or_default();
    let kind = at.text("kind", log).unwrap_or_else(|| "Service".into());
    if (group.as_str(), kind.as_str()) != ("", "Service") && group != "core" {
        log.note(at, format!("left out: pillion sends requests to services, and `{kind}` is none"));
        return None;
    }
    let namespace = at.text("namespace", log).unwrap_or_else(|| at.object.namespace.clone());
    let service = names.service(&name, &namespace);
    if let Some(port) = at.number("port", log) {
        services.port(&service, port, at, log);
    }
    Some(Destination { service, subset: None })
}

fn limits(at: &At<'_>, more: &mut Map<String, Value>, log: &mut Log) {
    let limits = at.get("timeouts");
    if let Some(at) = &limits {
        at.others(&["request", "backendRequest"], log);
        if let (Some(place), Some(limit)) = (at.get("request"), at.duration("request", log)) {
            more.insert("timeouts".into(), common::timeouts(&place, limit, log));
        }
    }
    let mut retry = Map::new();
    if let Some(at) = at.get("retry") {
        at.others(&["codes", "attempts", "backoff"], log);
        if let Some(attempts) = at.number("attempts", log) {
            retry.insert("attempts".into(), json!(attempts));
        }
        if let Some(base) = at.duration("backoff", log) {
            let max = base.saturating_mul(10);
            retry.insert("backoff".into(), json!({ "base": human::format(base), "max": human::format(max) }));
        }
        if let Some(codes) = at.get("codes") {
            let others: Vec<_> = at
                .texts("codes", log)
                .into_iter()
                .filter(|code| !["502", "503", "504"].contains(&code.as_str()))
                .collect();
            if !others.is_empty() {
                log.note(&codes, format!("not carried over: pillion does not try again after {}", others.join(", ")));
            }
            log.note(
                &codes,
                "502, 503 and 504 are tried again together, and only for what is idempotent: no POST, no PATCH",
            );
        }
    }
    if let Some((place, limit)) =
        limits.and_then(|at| Some((at.get("backendRequest")?, at.duration("backendRequest", log)?)))
        && !limit.is_zero()
    {
        let attempts = retry.get("attempts").and_then(Value::as_u64).and_then(|n| u32::try_from(n).ok());
        let attempts = attempts.unwrap_or_else(|| crate::config::Retry::default().attempts);
        let limit = common::per_try(&place, limit, attempts, more, log);
        if !limit.is_null() {
            retry.insert("per_try_timeout".into(), limit);
        }
    }
    if !retry.is_empty() {
        more.insert("retry".into(), Value::Object(retry));
    }
}

/// What keeps a user at one backend.
fn sticky(at: &At<'_>, is_split: bool, log: &mut Log) -> Option<Value> {
    let at = at.get("sessionPersistence")?;
    at.others(&["sessionName", "absoluteTimeout", "idleTimeout", "type", "cookieConfig"], log);
    if !is_split {
        log.note(
            &at,
            "not carried over: pillion keeps users at a version of a split; for one instance use `balance.hash`",
        );
        return None;
    }
    log.note(
        &at,
        "a user stays with the same backend, and not with the same instance of it; for that use `balance.hash`",
    );
    let name = at.text("sessionName", log).unwrap_or_else(|| "pillion-session".into());
    if let Some(at) = at.get("idleTimeout") {
        log.note(&at, "not carried over: pillion keeps no sessions, so none becomes idle");
    }
    if at.text("type", log).as_deref() == Some("Header") {
        return Some(json!({ "header": name }));
    }
    let lifetime = at.get("cookieConfig").and_then(|at| at.text("lifetimeType", log));
    let max_age = at.duration("absoluteTimeout", log).filter(|_| lifetime.as_deref() == Some("Permanent"));
    let max_age = max_age.map_or(Value::Null, |age| json!(human::format(age)));
    Some(json!({ "cookie": name, "set_cookie": { "max_age": max_age } }))
}
