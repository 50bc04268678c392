//! docs/config.md: every key, from the types themselves.

use crate::config::{Config, schema};
use serde_json::{Map, Value};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    path::Path,
};

/// Writes the document instead of comparing it.
const WRITE: &str = "PILLION_WRITE_DOCS";

const INTRODUCTION: &str = "\
# Every key of the config

Made from the code by `PILLION_WRITE_DOCS=1 cargo test --lib reference`, and compared with it by every run of the tests. The same is in
the JSON Schema (`pillion schema`, for editors). [config/full.yaml](../config/full.yaml) has every key in its place, with an example;
`pillion check --print FILE` shows what is in force.

`NAME` stands for a name of your choice, `[]` for each entry of a list. Where there is no default, the last column says what holds
without the key. A `duration` has a unit: `us`, `ms`, `s`, `m`, `h`, `d`, as in `1m 30s`. `${VAR}` and `${VAR:-default}` in any value
stand for environment variables. A key that is not here is an error, with line and column.
";

struct Book {
    definitions: Map<String, Value>,
    /// Objects that are at several places have a section of their own: its heading, by the definition's name.
    shared: BTreeMap<String, String>,
    /// Those that were referred to, in order.
    referred: Vec<String>,
    undescribed: Vec<String>,
    rows: String,
}

/// Where a `$ref` leads.
fn target(node: &Value) -> Option<&str> {
    node["$ref"].as_str()?.strip_prefix("#/$defs/")
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|")
}

fn shown(value: &Value) -> String {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Array(list) => list.iter().map(|each| shown(each).replace('`', "")).collect::<Vec<_>>().join(", "),
        Value::Object(map) => map
            .iter()
            .map(|(key, each)| format!("{key}: {}", shown(each).replace('`', "")))
            .collect::<Vec<_>>()
            .join(", "),
        other => other.to_string(),
    };
    if text.is_empty() { String::new() } else { format!("`{text}`") }
}

fn listed(words: &[String], last: &str) -> String {
    match words {
        [] => String::new(),
        [one] => one.clone(),
        [most @ .., one] => format!("{} {last} {one}", most.join(", ")),
    }
}

/// The anchor that GitHub gives a heading.
fn anchor(heading: &str) -> String {
    let kept = heading.to_lowercase().chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c)).collect::<String>();
    kept.replace(' ', "-")
}

/// How often a definition is referred to, and by which keys.
type Uses = BTreeMap<String, (usize, BTreeSet<String>)>;

fn count(node: &Value, key: &str, keys: &mut Uses) {
    if let Some(name) = target(node) {
        let (uses, found) = keys.entry(name.to_owned()).or_default();
        *uses += 1;
        found.insert(key.to_owned());
    }
    match node {
        Value::Array(list) => list.iter().for_each(|each| count(each, key, keys)),
        Value::Object(map) => {
            for (name, each) in map {
                match (name.as_str(), each) {
                    ("properties", Value::Object(properties)) => {
                        properties.iter().for_each(|(key, each)| count(each, key, keys));
                    }
                    ("$defs", Value::Object(definitions)) => {
                        definitions.values().for_each(|each| count(each, key, keys));
                    }
                    _ => count(each, key, keys),
                }
            }
        }
        _ => {}
    }
}

impl Book {
    fn new(root: &Value) -> Self {
        let definitions = root["$defs"].as_object().unwrap().clone();
        let mut keys = Uses::new();
        count(root, "", &mut keys);
        let is_object = |name: &str| definitions[name]["properties"].is_object();
        let shared = keys.into_iter().filter(|(name, (uses, _))| *uses > 1 && is_object(name));
        let heading =
            |keys: BTreeSet<String>| listed(&keys.into_iter().map(|key| format!("`{key}`")).collect::<Vec<_>>(), "and");
        let shared = shared.map(|(name, (_, keys))| (name, heading(keys))).collect();
        Self { definitions, shared, referred: Vec::new(), undescribed: Vec::new(), rows: String::new() }
    }

    fn resolve<'a>(&'a self, node: &'a Value) -> &'a Value {
        target(node).map_or(node, |name| &self.definitions[name])
    }

    /// What may stand there, in words.
    fn kind(&self, node: &Value) -> String {
        if let Some(name) = target(node) {
            return match name {
                "Duration" => "duration".into(),
                "Secret" => "text, never shown".into(),
                _ => self.kind(&self.definitions[name]),
            };
        }
        for choices in ["anyOf", "oneOf"] {
            if let Some(choices) = node[choices].as_array() {
                let mut found: Vec<String> = Vec::new();
                for kind in choices.iter().map(|each| self.kind(each)).filter(|kind| !kind.is_empty()) {
                    if !found.contains(&kind) {
                        found.push(kind);
                    }
                }
                return listed(&found, "or");
            }
        }
        if let Some(word) = node.get("const") {
            return shown(word);
        }
        if let Some(words) = node["enum"].as_array() {
            return listed(&words.iter().map(shown).collect::<Vec<_>>(), "or");
        }
        let kinds = match &node["type"] {
            Value::String(kind) => vec![kind.as_str()],
            Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).collect(),
            _ => vec![],
        };
        let words: Vec<String> = kinds
            .into_iter()
            .filter_map(|kind| match kind {
                "null" => None,
                "boolean" => Some("`true` or `false`".into()),
                "string" => Some("text".into()),
                "integer" | "number" => {
                    Some(Self::number(node, if kind == "integer" { "whole number" } else { "number" }))
                }
                "array" => Some(format!("list of {}", self.kind(&node["items"]))),
                "object" => Some(self.map(node)),
                other => Some(other.to_owned()),
            })
            .collect();
        listed(&words, "or")
    }

    fn number(node: &Value, kind: &str) -> String {
        let (from, to) = (node["minimum"].as_f64().unwrap_or(0.0), node["maximum"].as_f64());
        match to {
            Some(to) => format!("{kind} from {from} to {to}"),
            None if from > 0.0 => format!("{kind} from {from}"),
            None => kind.to_owned(),
        }
    }

    fn map(&self, node: &Value) -> String {
        let pattern = || node["patternProperties"].as_object()?.values().next();
        let values = node.get("additionalProperties").filter(|values| values.is_object()).or_else(pattern);
        values.map_or_else(|| "map".to_owned(), |values| format!("map of names to: {}", self.kind(values)))
    }

    /// What a key is for: its own words, or else its type's, and those of the words that may stand there.
    fn description(&self, node: &Value) -> String {
        let choices = |node: &Value| -> Vec<Value> {
            let list = node.get("anyOf").or(node.get("oneOf")).and_then(Value::as_array);
            list.cloned().unwrap_or_default()
        };
        let mut own = node["description"].as_str().map(ToOwned::to_owned);
        let mut words = Vec::new();
        let mut look = vec![node.clone()];
        while let Some(next) = look.pop() {
            let next = self.resolve(&next);
            if next["properties"].is_object() && own.is_some() {
                continue;
            }
            if let (Some(word), Some(text)) = (next.get("const"), next["description"].as_str()) {
                words.push(format!("{}: {}", shown(word), text));
            } else if own.is_none() {
                own = next["description"].as_str().map(ToOwned::to_owned);
            }
            let items = next.get("items").into_iter().cloned();
            look.extend(choices(next).into_iter().chain(items).rev());
        }
        one_line(&[own.unwrap_or_default(), words.join(" ")].join(" "))
    }

    /// The objects that a value may be, or consist of, each with what leads there: nothing, `[]` or a name.
    fn objects(&self, node: &Value) -> Vec<(String, Option<String>, Value)> {
        let (name, found) = (target(node), self.resolve(node));
        if found["properties"].is_object() {
            return vec![(String::new(), name.map(ToOwned::to_owned), found.clone())];
        }
        let mut inner = Vec::new();
        for choices in ["anyOf", "oneOf"] {
            inner.extend(found[choices].as_array().into_iter().flatten().map(|each| ("", each)));
        }
        inner.extend(found.get("items").map(|each| ("[]", each)));
        inner.extend(found.get("additionalProperties").filter(|each| each.is_object()).map(|each| (".NAME", each)));
        let inner = inner.into_iter().flat_map(|(step, each)| {
            self.objects(each).into_iter().map(move |(rest, name, found)| (format!("{step}{rest}"), name, found))
        });
        inner.collect()
    }

    /// A row for each key of an object, and of those within it. `given`: what stands there by default.
    fn rows(&mut self, prefix: &str, object: &Value, given: Option<&Value>) {
        let required: Vec<&str> =
            object["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let keys = object["properties"].as_object().unwrap();
        for (key, node) in keys {
            if key == "kind" && node.get("const").is_some() {
                continue;
            }
            let path = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
            let default = given.and_then(|given| given.get(key)).or_else(|| node.get("default"));
            let mut description = self.description(node);
            if let (true, Some(only)) =
                (description.is_empty(), object["description"].as_str().filter(|_| keys.len() == 1))
            {
                description = one_line(only);
            }
            if description.is_empty() {
                self.undescribed.push(path.clone());
            }
            let objects = self.objects(node);
            let mut told = default.filter(|default| !default.is_null()).cloned();
            for (_, name, found) in &objects {
                let Some(name) = name.as_ref().filter(|name| self.shared.contains_key(*name)) else { continue };
                if !self.referred.contains(name) {
                    self.referred.push(name.clone());
                }
                write!(description, " [Its keys](#{})", anchor(&self.shared[name])).unwrap();
                // What the type itself has as its default need not be said twice.
                if let Some(Value::Object(map)) = &mut told {
                    map.retain(|key, value| found["properties"][key].get("default") != Some(value));
                }
            }
            let is_inline = |name: &Option<String>| name.as_ref().is_none_or(|name| !self.shared.contains_key(name));
            let inline: Vec<_> = objects.into_iter().filter(|(_, name, _)| is_inline(name)).collect();
            if inline.iter().any(|(step, ..)| step.is_empty()) {
                told = told.filter(|told| !told.is_object());
            }
            let told = match told.as_ref().map(shown) {
                Some(told) if !told.is_empty() => told,
                _ if required.contains(&key.as_str()) => "required".into(),
                _ => String::new(),
            };
            writeln!(self.rows, "| `{path}` | {} | {told} | {} |", self.kind(node), description.trim()).unwrap();
            for (step, _, found) in inline {
                let given = default.filter(|_| step.is_empty()).cloned();
                self.rows(&format!("{path}{step}"), &found, given.as_ref());
            }
        }
    }

    fn table(&mut self, write: impl FnOnce(&mut Self)) -> String {
        self.rows.clear();
        write(self);
        let head = "| key | what may stand there | default | |\n|---|---|---|---|\n";
        if self.rows.is_empty() { String::new() } else { format!("\n{head}{}", self.rows) }
    }
}

/// The document, and the keys that nothing is said of.
fn reference() -> (String, Vec<String>) {
    let root = schemars::schema_for!(Config).to_value();
    let mut book = Book::new(&root);
    let mut text = INTRODUCTION.to_owned();
    for (key, node) in root["properties"].as_object().unwrap() {
        let only = serde_json::json!({ "properties": { (key.as_str()): node } });
        let table = book.table(|book| book.rows("", &only, None));
        let mut lines: Vec<_> = table.lines().collect();
        // The key itself has the first row, which says the same as the heading.
        let description = if lines.len() > 4 { format!("\n{}\n", book.description(node)) } else { String::new() };
        if lines.len() > 4 {
            lines.remove(3);
        }
        let is_registries = key == "registries";
        let table = if is_registries { String::new() } else { lines.join("\n") + "\n" };
        write!(text, "\n## `{key}`\n{description}{table}").unwrap();
        for each in
            book.definitions["Registry"]["oneOf"].as_array().filter(|_| is_registries).cloned().into_iter().flatten()
        {
            let kind = each["properties"]["kind"]["const"].as_str().unwrap().to_owned();
            let table = book.table(|book| book.rows("registries.NAME", &each, None));
            write!(text, "\n### `kind: {kind}`\n\n{}\n{table}", book.description(&each)).unwrap();
        }
    }
    let mut done = 0;
    while let Some(name) = book.referred.get(done).cloned() {
        done += 1;
        let definition = book.definitions[&name].clone();
        let table = book.table(|book| book.rows("", &definition, None));
        let description = one_line(definition["description"].as_str().unwrap_or_default());
        write!(text, "\n## {}\n\n{description}\n{table}", book.shared[&name]).unwrap();
    }
    (text, book.undescribed)
}

#[test]
fn every_key_is_documented_as_the_code_has_it() {
    let (text, undescribed) = reference();
    assert!(undescribed.is_empty(), "these have no description: {undescribed:#?}");
    is_made_from_the_code("docs/config.md", &text);
}

#[test]
fn the_schema_that_is_printed_is_that_of_the_types() {
    is_made_from_the_code("src/config/schema.json", &format!("{:#}\n", schema()));
}

fn is_made_from_the_code(file: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    if std::env::var_os(WRITE).is_some() {
        std::fs::write(&path, text).unwrap();
    }
    let there = std::fs::read_to_string(&path).unwrap_or_default();
    let first = there.lines().zip(text.lines()).find(|(there, made)| there != made);
    assert!(
        there == text,
        "{file} is not what the code says; `{WRITE}=1 cargo test --lib reference` makes it anew: {first:#?}"
    );
}

#[test]
fn every_link_within_it_leads_to_one_heading() {
    let (text, _) = reference();
    let headings: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("## ")).map(anchor).collect();
    let links: BTreeSet<_> = text.split("](#").skip(1).filter_map(|rest| rest.split(')').next()).collect();
    assert!(links.len() > 5, "{links:?}");
    for link in links {
        assert_eq!(headings.iter().filter(|heading| *heading == link).count(), 1, "{link}");
    }
}
