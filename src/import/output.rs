//! From what was gathered to the text of a config, which pillion's own loader has accepted.

use super::{
    object::Source,
    reader::Log,
    services::{Action, Destination, Route, Service, Services, number},
};
use crate::config::{
    self, Errors, Fault, Origin, Overrides, Step, flow_scalar,
    tree::{Node, Resolved, Value as Tree},
};
use indexmap::IndexMap;
use serde_json::{Map, Value, json};
use std::{collections::BTreeSet, fmt::Write};

/// A map or list that is longer goes over several lines.
const WIDTH: usize = 110;
/// Stands for the registries where none are given.
const PLACEHOLDER: &str = "embedded:";

/// The config. What the loader does not take is left out, and noted; fails if that does not help.
pub fn config(
    mut services: Services<'_>,
    sources: &[Source],
    registries: &[String],
    log: &mut Log,
) -> Result<String, Vec<Errors>> {
    let given = if registries.is_empty() { vec![PLACEHOLDER.to_owned()] } else { registries.to_vec() };
    loop {
        let text = body(&services);
        let overrides = Overrides { registry: given.clone(), ..Overrides::default() };
        let error = match config::load(Origin::text("the result", text.as_str()).with(overrides), &|_| None) {
            Ok(loaded) => {
                let registries = loaded.tree.get("registries").filter(|_| !registries.is_empty());
                return Ok(head(sources, registries) + &text);
            }
            Err(error) => error,
        };
        // Each round leaves something out, so that they end.
        if !leave_out(&mut services, error.faults(), log) {
            return Err(vec![error]);
        }
    }
}

fn head(sources: &[Source], registries: Option<&Node>) -> String {
    let names: Vec<_> = sources.iter().map(|source| source.name.escape_debug().to_string()).collect();
    let mut out = format!(
        "# Imported from {}.\n\
         # Where nothing is said, pillion's own defaults hold, which are not those of Istio or a gateway; see docs/import.md.\n",
        names.join(", "),
    );
    match registries {
        Some(registries) => block(&mut out, &Map::from_iter([("registries".into(), plain(registries))]), 0),
        None => out.push_str(
            "# Say where the services are, here or with `--registry`:\n#registries:\n#  main: { kind: kubernetes }\n",
        ),
    }
    out
}

/// A tree as a value.
fn plain(node: &Node) -> Value {
    match &node.value {
        Tree::Scalar(scalar) => match scalar.resolve() {
            Resolved::Null => Value::Null,
            Resolved::Bool(bool) => json!(bool),
            Resolved::Unsigned(number) => json!(number),
            Resolved::Negative(number) => json!(number),
            Resolved::Float(_) | Resolved::Text(_) => json!(scalar.text),
        },
        Tree::List(elements) => elements.iter().map(plain).collect(),
        Tree::Map(entries) => entries.iter().map(|entry| (entry.key.clone(), plain(&entry.node))).collect(),
    }
}

fn body(services: &Services<'_>) -> String {
    let all = services.all.iter().map(|(name, service)| (name.clone(), service_value(name, service)));
    let all: Map<String, Value> = all.filter(|(_, value)| value != &json!({})).collect();
    let mut out = String::from("services:");
    if all.is_empty() {
        out.push_str(" {}\n");
        return out;
    }
    out.push('\n');
    for (name, service) in &all {
        let _ = writeln!(out, "  {}:", flow_scalar(name, false));
        if let Value::Object(service) = service {
            block(&mut out, service, 4);
        }
    }
    out
}

fn service_value(name: &str, service: &Service<'_>) -> Value {
    let mut out = service.settings.clone();
    if !service.subsets.is_empty() {
        out.insert(
            "subsets".into(),
            service.subsets.iter().map(|(name, (labels, _))| (name.clone(), json!(labels))).collect(),
        );
        // Elsewhere nobody is asked in the place of an empty subset, and no header leads there by itself.
        out.insert("when_empty".into(), service.subsets.keys().map(|name| (name.clone(), json!("fail"))).collect());
        out.insert("version_override".into(), json!({ "enabled": false }));
    }
    if !service.routes.is_empty() {
        out.insert("routes".into(), service.routes.iter().map(|route| route_value(name, route)).collect());
    }
    Value::Object(out)
}

fn route_value(own: &str, route: &Route<'_>) -> Value {
    let target = |to: &Destination| match &to.subset {
        Some(subset) if to.service == own => subset.clone(),
        subset => format!("{}/{}", to.service, subset.as_deref().unwrap_or_default()),
    };
    let mut out = Map::new();
    if let Some(name) = &route.name {
        out.insert("name".into(), json!(name));
    }
    if !route.matches.is_default() {
        out.insert("match".into(), json!(route.matches));
    }
    match &route.action {
        Action::To(to) => match to.as_slice() {
            [(to, _)] => {
                out.insert("to".into(), json!(target(to)));
            }
            several => {
                let mut weights: IndexMap<String, u32> = IndexMap::new();
                for (to, weight) in several {
                    let sum = weights.entry(target(to)).or_default();
                    *sum = sum.saturating_add(*weight);
                }
                out.insert("split".into(), json!(weights));
            }
        },
        Action::Redirect(redirect) => {
            out.insert("redirect".into(), redirect.clone());
        }
        Action::Respond(response) => {
            out.insert("respond".into(), response.clone());
        }
    }
    if let Some(sticky) = &route.sticky {
        out.insert("sticky".into(), sticky.clone());
    }
    let mirror = route.mirror.as_ref();
    let mirror = mirror.map(|(to, percent)| json!({ "to": target(to), "percent": number(*percent) }));
    for key in ["rewrite", "headers", "mirror", "timeouts", "retry", "faults"] {
        let value = if key == "mirror" { mirror.as_ref() } else { route.more.get(key) };
        if let Some(value) = value {
            out.insert(key.into(), value.clone());
        }
    }
    Value::Object(out)
}

/// Leaves out what is at fault. `false` if that cannot be told.
fn leave_out(services: &mut Services<'_>, faults: &[Fault], log: &mut Log) -> bool {
    let mut any = false;
    let mut routes: BTreeSet<(String, usize)> = BTreeSet::new();
    for Fault { path, message, .. } in faults {
        let [Step::Key(top), Step::Key(name), Step::Key(key), rest @ ..] = path.0.as_slice() else { return false };
        let Some(service) = services.all.get_mut(name).filter(|_| top == "services") else { return false };
        match (key.as_str(), rest) {
            ("routes", [Step::Index(index), ..]) => {
                let Some(route) = service.routes.get(*index) else { return false };
                if routes.insert((name.clone(), *index)) {
                    let message = if message.starts_with("no request gets here") {
                        "left out: a rule before it takes all requests that it would take".into()
                    } else {
                        format!("left out, because pillion does not take it: {message}")
                    };
                    log.note(&route.at, message);
                }
                any = true;
            }
            ("subsets" | "when_empty", [Step::Key(subset), ..]) => {
                if let Some((_, at)) = service.subsets.shift_remove(subset) {
                    log.note(&at, format!("left out, because pillion does not take it: {message}"));
                    any = true;
                }
            }
            _ => {
                let path: Vec<_> = path.0[2..].iter().collect();
                if remove(&mut service.settings, &path) {
                    if let Some(at) = &service.settings_at {
                        let path = config::Path(path.into_iter().cloned().collect());
                        log.note(at, format!("`{path}` is left out, because pillion does not take it: {message}"));
                    }
                    any = true;
                }
            }
        }
    }
    for (name, index) in routes.into_iter().rev() {
        services.of(&name).routes.remove(index);
    }
    any
}

/// Takes out what is at the end of a path, or as near to it as there is something, and what is empty then.
fn remove(map: &mut Map<String, Value>, path: &[&Step]) -> bool {
    let [Step::Key(key), rest @ ..] = path else { return false };
    if let Some(below) = map.get_mut(key).and_then(Value::as_object_mut)
        && remove(below, rest)
        && !below.is_empty()
    {
        return true;
    }
    map.shift_remove(key).is_some()
}

/// A map with a line for each key, or more where one is not enough.
fn block(out: &mut String, map: &Map<String, Value>, indent: usize) {
    for (key, value) in map {
        let _ = write!(out, "{:indent$}{}:", "", flow_scalar(key, false));
        let short = flow(value);
        let fits = key != "routes" && key != "registries" && indent + key.len() + 2 + short.len() <= WIDTH;
        match value {
            Value::Object(map) if !fits && !map.is_empty() => {
                out.push('\n');
                block(out, map, indent + 2);
            }
            Value::Array(list) if !fits && !list.is_empty() => {
                out.push('\n');
                for element in list {
                    let mut lines = String::new();
                    match element {
                        Value::Object(map) if !map.is_empty() => block(&mut lines, map, indent + 4),
                        other => lines = format!("{:indent$}{}\n", "", flow(other), indent = indent + 4),
                    }
                    // The first line goes behind the dash.
                    let _ = write!(out, "{:indent$}- {}", "", lines.trim_start_matches(' '), indent = indent + 2);
                }
            }
            _ => {
                let _ = writeln!(out, " {short}");
            }
        }
    }
}

/// In one line.
fn flow(value: &Value) -> String {
    match value {
        Value::String(text) => flow_scalar(text, true),
        Value::Array(list) => format!("[{}]", list.iter().map(flow).collect::<Vec<_>>().join(", ")),
        Value::Object(map) if map.is_empty() => "{}".into(),
        Value::Object(map) => {
            let pairs = map.iter().map(|(key, value)| format!("{}: {}", flow_scalar(key, false), flow(value)));
            format!("{{ {} }}", pairs.collect::<Vec<_>>().join(", "))
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => value.to_string(),
    }
}
