//! Which requests a rule is for, and the order of rules.

use crate::{
    config::{PathMatch, RouteMatch, ValueMatch},
    import::{
        object::Object,
        reader::{At, Log},
        services::Rank,
    },
};
use indexmap::IndexMap;
use std::cmp::Reverse;

/// How a path was matched, with what its order depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Path {
    Exact,
    Regex,
    Prefix(usize),
}

impl Rank {
    /// Exact paths first, then longer prefixes, then those with a method, more headers, more parameters; then the older
    /// object, then its name. Where regular expressions stand is left to implementations: before the prefixes.
    pub fn new(matches: &RouteMatch, path: Path, age: (bool, String), object: &Object) -> Self {
        let (path, prefix) = match path {
            Path::Exact => (0, 0),
            Path::Regex => (1, 0),
            Path::Prefix(length) => (2, length),
        };
        Self {
            path,
            prefix: Reverse(prefix),
            method: Reverse(!matches.method.is_empty()),
            headers: Reverse(matches.headers.len()),
            query: Reverse(matches.query.len()),
            age,
            object: format!("{}/{}", object.namespace, object.name),
        }
    }
}

/// An alternative's conditions; `None`, with a note or a fault, where one cannot be carried over.
pub fn conditions(at: &At<'_>, log: &mut Log) -> Option<(RouteMatch, Path)> {
    at.others(&["path", "headers", "queryParams", "method"], log);
    let (path, kind) = match at.get("path") {
        None => (None, Path::Prefix(1)),
        Some(path) => {
            path.others(&["type", "value"], log);
            let value = path.text("value", log).unwrap_or_else(|| "/".into());
            match path.text("type", log).as_deref().unwrap_or("PathPrefix") {
                "Exact" => (Some(PathMatch { exact: Some(value), ..PathMatch::default() }), Path::Exact),
                "RegularExpression" => (Some(PathMatch { regex: Some(value), ..PathMatch::default() }), Path::Regex),
                "PathPrefix" => {
                    let length = value.len();
                    let prefix = Some(value).filter(|value| value != "/");
                    let path = prefix.map(|prefix| PathMatch { prefix: Some(prefix), ..PathMatch::default() });
                    (path, Path::Prefix(length))
                }
                kind => {
                    log.note(
                        &path,
                        format!("pillion does not know paths of the type `{kind}`, so this alternative is left out"),
                    );
                    return None;
                }
            }
        }
    };
    let matches = RouteMatch {
        path,
        method: at.text("method", log).into_iter().collect(),
        headers: values(at, "headers", |name| name.to_ascii_lowercase(), log)?,
        query: values(at, "queryParams", str::to_owned, log)?,
        ..RouteMatch::default()
    };
    Some((matches, kind))
}

fn values(at: &At<'_>, key: &str, name_of: fn(&str) -> String, log: &mut Log) -> Option<IndexMap<String, ValueMatch>> {
    let mut values = IndexMap::new();
    for item in at.items(key, log) {
        item.others(&["type", "name", "value"], log);
        let (Some(name), Some(value)) = (item.text("name", log), item.text("value", log)) else {
            log.fault(&item, "expected `name` and `value`");
            return None;
        };
        let value = match item.text("type", log).as_deref().unwrap_or("Exact") {
            "Exact" => ValueMatch::Exact(value),
            "RegularExpression" => ValueMatch::Regex(value),
            kind => {
                log.note(
                    &item,
                    format!("pillion does not know values of the type `{kind}`, so this alternative is left out"),
                );
                return None;
            }
        };
        // Of several with the same name only the first counts.
        values.entry(name_of(&name)).or_insert(value);
    }
    Some(values)
}
