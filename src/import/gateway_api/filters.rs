//! What a rule's filters do to its requests.

use super::rule::backend;
use crate::import::{
    common::{Edit, Edits},
    name::Names,
    reader::{At, Log},
    services::{Destination, Services},
};
use serde_json::{Map, Value, json};

#[derive(Debug, Default)]
pub struct Filtered<'o> {
    pub edits: Edits,
    /// Without its path.
    pub redirect: Option<Map<String, Value>>,
    /// The host that the upstream sees.
    pub host: Option<String>,
    /// Another path: `path` or `prefix`, and its value.
    pub path: Option<(At<'o>, String, String)>,
    pub mirror: Option<(Destination, f64)>,
}

pub fn read<'o>(at: &At<'o>, filtered: &mut Filtered<'o>, names: &Names, services: &mut Services<'o>, log: &mut Log) {
    for filter in at.items("filters", log) {
        let Some(kind) = filter.text("type", log) else {
            log.fault(&filter, "`type` is missing");
            continue;
        };
        let key = field_of(&kind);
        filter.others(&["type", &key], log);
        let Some(at) = filter.get(&key) else {
            log.fault(&filter, format!("`{key}` is missing"));
            continue;
        };
        match kind.as_str() {
            "RequestHeaderModifier" => {
                edit(&at, &mut filtered.edits.request, log);
                for map in [&mut filtered.edits.request.set, &mut filtered.edits.request.add] {
                    let host = map.keys().find(|name| name.eq_ignore_ascii_case("host")).cloned();
                    filtered.host = host.and_then(|host| map.shift_remove(&host)).or(filtered.host.take());
                }
            }
            "ResponseHeaderModifier" => edit(&at, &mut filtered.edits.response, log),
            "RequestRedirect" => redirect(&at, filtered, log),
            "URLRewrite" => rewrite(&at, filtered, log),
            "RequestMirror" => mirror(&at, filtered, names, services, log),
            "CORS" => log
                .note(&filter, "not carried over: pillion answers no preflight requests; let the application do that"),
            _ => log.note(&filter, format!("not carried over: `{kind}` is an extension that pillion does not have")),
        }
    }
}

/// Where a filter's own settings are: its type, with a small letter at the start.
fn field_of(kind: &str) -> String {
    let capitals = kind.bytes().take_while(u8::is_ascii_uppercase).count();
    match kind.split_at_checked(capitals) {
        // `URLRewrite` is under `urlRewrite`, `CORS` under `cors`.
        Some((start, rest)) if capitals > 1 && !rest.is_empty() => {
            let (start, last) = start.split_at(capitals - 1);
            format!("{}{last}{rest}", start.to_ascii_lowercase())
        }
        Some((start, rest)) => format!("{}{rest}", start.to_ascii_lowercase()),
        None => kind.to_owned(),
    }
}

fn edit(at: &At<'_>, edit: &mut Edit, log: &mut Log) {
    at.others(&["set", "add", "remove"], log);
    for (key, map) in [("set", &mut edit.set), ("add", &mut edit.add)] {
        for item in at.items(key, log) {
            match (item.text("name", log), item.text("value", log)) {
                (Some(name), Some(value)) => {
                    map.insert(name, value);
                }
                _ => log.fault(&item, "expected `name` and `value`"),
            }
        }
    }
    edit.remove.extend(at.texts("remove", log));
}

fn redirect<'o>(at: &At<'o>, filtered: &mut Filtered<'o>, log: &mut Log) {
    at.others(&["scheme", "hostname", "path", "port", "statusCode"], log);
    let mut out = Map::new();
    out.insert("status".into(), json!(at.number("statusCode", log).unwrap_or(302)));
    for (key, ours) in [("scheme", "scheme"), ("hostname", "host")] {
        if let Some(text) = at.text(key, log) {
            out.insert(ours.into(), json!(text));
        }
    }
    if let Some(port) = at.number("port", log) {
        out.insert("port".into(), json!(port));
    }
    filtered.redirect = Some(out);
    new_path(at, filtered, log);
}

fn rewrite<'o>(at: &At<'o>, filtered: &mut Filtered<'o>, log: &mut Log) {
    at.others(&["hostname", "path"], log);
    if let Some(host) = at.text("hostname", log) {
        filtered.host = Some(host);
    }
    new_path(at, filtered, log);
}

fn new_path<'o>(at: &At<'o>, filtered: &mut Filtered<'o>, log: &mut Log) {
    let Some(at) = at.get("path") else { return };
    at.others(&["type", "replaceFullPath", "replacePrefixMatch"], log);
    let whole = at.text("replaceFullPath", log).map(|path| ("path", path));
    let prefix = || at.text("replacePrefixMatch", log).map(|prefix| ("prefix", prefix));
    let Some((key, value)) = whole.or_else(prefix) else {
        log.fault(&at, "expected `replaceFullPath` or `replacePrefixMatch`");
        return;
    };
    // Nothing in the place of a prefix leaves the slash behind it.
    let value = if value.is_empty() { "/".into() } else { value };
    filtered.path = Some((at, key.into(), value));
}

fn mirror<'o>(at: &At<'o>, filtered: &mut Filtered<'o>, names: &Names, services: &mut Services<'o>, log: &mut Log) {
    at.others(&["backendRef", "percent", "fraction"], log);
    if filtered.mirror.is_some() {
        log.note(at, "not carried over: a route has one mirror in pillion");
        return;
    }
    let Some(to) = at.get("backendRef") else {
        log.fault(at, "`backendRef` is missing");
        return;
    };
    let fraction = at.get("fraction").map(|at| {
        let whole = at.float("denominator", log).filter(|whole| *whole > 0.0).unwrap_or(100.0);
        at.float("numerator", log).unwrap_or(0.0) / whole * 100.0
    });
    let percent = at.float("percent", log).or(fraction).unwrap_or(100.0);
    filtered.mirror = backend(&to, names, services, log).map(|to| (to, percent));
}
