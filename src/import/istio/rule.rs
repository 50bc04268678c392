//! A rule under `http`: what becomes of which requests.

use super::{
    matches::{self, By},
    policy,
};
use crate::{
    config::{PathMatch, RouteMatch},
    import::{
        common::rewrite,
        name::Names,
        reader::{At, Log},
        services::{Action, Destination, Route, Services},
    },
};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Map, Value, json};

/// A route for each of the rule's alternatives.
pub fn routes<'o>(at: &At<'o>, names: &Names, services: &mut Services<'o>, log: &mut Log) -> Vec<Route<'o>> {
    at.others(
        &[
            "name",
            "match",
            "route",
            "redirect",
            "directResponse",
            "delegate",
            "rewrite",
            "timeout",
            "retries",
            "fault",
            "mirror",
            "mirrors",
            "mirrorPercent",
            "mirror_percent",
            "mirrorPercentage",
            "corsPolicy",
            "headers",
        ],
        log,
    );
    if let Some(at) = at.get("delegate") {
        log.note(&at, "pillion's routes do not delegate, so this rule is left out; write the other's rules here");
        return Vec::new();
    }
    let mut edits = policy::edits(at, log);
    let Some(action) = action(at, &mut edits, names, services, log) else { return Vec::new() };
    let answers = !matches!(action, Action::To(_));
    let mut more = Map::new();
    let rewrites = at.get("rewrite").filter(|_| !answers);
    if let Some(at) = &rewrites {
        at.others(&["uri", "authority", "uriRegexRewrite"], log);
        if let Some(at) = at.get("uriRegexRewrite") {
            log.note(
                &at,
                "pillion rewrites whole paths and prefixes only, so this rule is left out; let the \
                 application know the old paths",
            );
            return Vec::new();
        }
        if let Some(authority) = at.text("authority", log) {
            edits.host = Some(authority);
        }
    }
    edits.put(&mut more);
    let mut mirror = None;
    if answers {
        for key in ["rewrite", "timeout", "retries", "fault", "mirror", "mirrors"] {
            if let Some(at) = at.get(key) {
                log.note(&at, "not carried over: it has no effect on what pillion answers itself");
            }
        }
    } else {
        mirror = policy::mirror(at, names, services, log);
        policy::timeouts(at, &mut more, log);
        policy::retries(at, &mut more, log);
        policy::faults(at, &mut more, log);
    }
    if let Some(at) = at.get("corsPolicy") {
        log.note(&at, "not carried over: pillion answers no preflight requests; let the application do that");
    }
    let name = at.text("name", log);
    let alternatives = at.items("match", log);
    let whole = |at: &At<'o>| (at.clone(), Some((RouteMatch::default(), By::Prefix("/".into()))), None);
    let alternatives: Vec<_> = if alternatives.is_empty() {
        vec![whole(at)]
    } else {
        let each = alternatives.into_iter();
        each.map(|at| (at.clone(), matches::conditions(&at, log), at.text("name", log))).collect()
    };
    let mut routes = Vec::new();
    for (at, conditions, own) in alternatives {
        let Some((mut matches, by)) = conditions else { continue };
        let mut more = more.clone();
        if let Some(uri) = rewrites.as_ref().and_then(|at| Some((at.get("uri")?, at.text("uri", log)?))) {
            let (uri_at, uri) = uri;
            if !rewrite_path(&uri_at, &uri, by, &mut matches, &mut more, log) {
                continue;
            }
        }
        let names = [name.clone(), own].into_iter().flatten().collect::<Vec<_>>();
        routes.push(Route {
            at,
            name: (!names.is_empty()).then(|| names.join(".")),
            matches,
            action: action.clone(),
            sticky: None,
            mirror: mirror.clone(),
            more,
            rank: None,
        });
    }
    routes
}

/// `false`, with a note, where that cannot be carried over.
fn rewrite_path(
    at: &At<'_>,
    uri: &str,
    by: By,
    matches: &mut RouteMatch,
    more: &mut Map<String, Value>,
    log: &mut Log,
) -> bool {
    match by {
        By::Whole => rewrite(more, "path", uri),
        By::Prefix(prefix) => {
            if prefix.ends_with('/') && !uri.ends_with('/') {
                log.note(
                    at,
                    format!(
                        "Istio would put the rest of the path right behind `{uri}`; pillion keeps the \
                         slash between them"
                    ),
                );
            }
            if matches.path.is_none() {
                matches.path = Some(PathMatch { prefix: Some(prefix), ..PathMatch::default() });
            }
            rewrite(more, "prefix", uri);
        }
        By::LoosePrefix => {
            log.note(
                at,
                "with `ignoreUriCase` the prefix is a regular expression here, which cannot be replaced, so \
                 this alternative is left out",
            );
            return false;
        }
    }
    true
}

/// What becomes of the requests; `None`, with a note, where that cannot be carried over.
fn action<'o>(
    at: &At<'o>,
    edits: &mut crate::import::common::Edits,
    names: &Names,
    services: &mut Services<'o>,
    log: &mut Log,
) -> Option<Action> {
    if let Some(redirect) = at.get("redirect") {
        return Some(Action::Redirect(redirected(&redirect, log)));
    }
    if let Some(response) = at.get("directResponse") {
        return Some(Action::Respond(responded(&response, log)));
    }
    let items = at.items("route", log);
    let alone = items.len() == 1;
    let mut to = Vec::new();
    for item in items {
        item.others(&["destination", "weight", "headers"], log);
        let Some(destination) = item.get("destination") else {
            log.fault(&item, "`destination` is missing");
            continue;
        };
        let Some(destination) = destined(&destination, names, services, log) else { continue };
        to.push((destination, item.number("weight", log).unwrap_or(0)));
        if item.has("headers") && alone {
            policy::add_edits(&item, edits, log);
        } else if let Some(at) = item.get("headers") {
            log.note(
                &at,
                "not carried over: a route changes the headers of all its requests; make routes of their \
                 own for the versions",
            );
        }
    }
    if to.is_empty() {
        log.note(at, "left out: nothing is said of what becomes of the requests");
        return None;
    }
    // Istio sends nothing to those without a weight beside others.
    Some(Action::To(to))
}

/// A destination, with a note where its port matters.
pub fn destined<'o>(at: &At<'o>, names: &Names, services: &mut Services<'o>, log: &mut Log) -> Option<Destination> {
    at.others(&["host", "subset", "port"], log);
    let Some(host) = at.text("host", log) else {
        log.fault(at, "`host` is missing");
        return None;
    };
    let service = names.host(&host, &at.object.namespace);
    if let Some(port) = at.get("port").and_then(|port| port.number("number", log)) {
        services.port(&service, port, at, log);
    }
    Some(Destination { service, subset: at.text("subset", log).filter(|subset| !subset.is_empty()) })
}

fn redirected(at: &At<'_>, log: &mut Log) -> Value {
    at.others(&["uri", "authority", "port", "derivePort", "scheme", "redirectCode"], log);
    let mut out = Map::new();
    out.insert("status".into(), json!(at.number("redirectCode", log).unwrap_or(301)));
    for (key, ours) in [("scheme", "scheme"), ("authority", "host"), ("uri", "path")] {
        if let Some(text) = at.text(key, log) {
            out.insert(ours.into(), json!(text));
        }
    }
    if let Some(port) = at.number("port", log) {
        out.insert("port".into(), json!(port));
    }
    if at.text("derivePort", log).is_some_and(|derive| derive != "FROM_PROTOCOL_DEFAULT")
        && let Some(at) = at.get("derivePort")
    {
        log.note(&at, "not carried over: with another host or scheme it is that one's usual port here; write `port`");
    }
    Value::Object(out)
}

fn responded(at: &At<'_>, log: &mut Log) -> Value {
    at.others(&["status", "body"], log);
    let mut out = Map::new();
    out.insert("status".into(), json!(at.number("status", log).unwrap_or(200)));
    if let Some(body) = at.get("body") {
        body.others(&["string", "bytes"], log);
        let decoded =
            body.text("bytes", log).map(|bytes| STANDARD.decode(bytes).ok().and_then(|b| String::from_utf8(b).ok()));
        match (body.text("string", log), decoded) {
            (Some(text), _) | (None, Some(Some(text))) => {
                out.insert("body".into(), json!(text));
            }
            (None, Some(None)) => log.note(
                &body,
                "not carried over: these bytes are no text; put them into a file, and its path into `respond.file`",
            ),
            (None, None) => {}
        }
    }
    Value::Object(out)
}
