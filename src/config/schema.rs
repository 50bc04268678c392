//! The JSON Schema of the config file, for editors: it takes what the loader takes and no more.

use super::Config;
use serde_json::{Map, Value, json};

/// As text. It stands in a file, because what makes it would be a twentieth of the program, for something that never changes
/// while that runs; a test compares the two.
pub const SCHEMA: &str = include_str!("schema.json");

/// Made from the types, and widened by what the loader takes of every type.
pub fn schema() -> Value {
    let mut schema = schemars::schema_for!(Config).to_value();
    let root = schema.get("type").cloned();
    widen(&mut schema);
    // An empty file is no config.
    if let (Some(map), Some(root)) = (schema.as_object_mut(), root) {
        map.insert("type".into(), root);
    }
    schema
}

/// Lets a `key:` with nothing after it stand for an empty map or list, and a `${VAR}` for any single value.
fn widen(schema: &mut Value) {
    match schema {
        Value::Array(list) => list.iter_mut().for_each(widen),
        Value::Object(map) => {
            let words =
                |value: &Value| value["type"] == "string" && (value.get("const").or(value.get("enum"))).is_some();
            if let Some(Value::Array(choices)) = map.get_mut("oneOf")
                && choices.iter().all(words)
            {
                choices.push(variable());
                return;
            }
            if let Some(words) = map.remove("enum") {
                map.remove("type");
                map.insert("anyOf".into(), json!([{ "type": "string", "enum": words }, variable()]));
                return;
            }
            // Values of these are samples and not schemas.
            let aside: Vec<_> =
                ["default", "const"].into_iter().filter_map(|key| map.remove(key).map(|value| (key, value))).collect();
            map.values_mut().for_each(widen);
            widen_type(map);
            map.extend(aside.into_iter().map(|(key, value)| (key.to_owned(), value)));
        }
        _ => {}
    }
}

fn widen_type(map: &mut Map<String, Value>) {
    // `properties` holds keys of ours by the names of JSON Schema's; only a text is a type.
    let Some(kind) = map.get("type").and_then(Value::as_str).map(ToOwned::to_owned) else { return };
    match kind.as_str() {
        "object" if map.get("properties").is_none_or(|keys| keys.get("kind").is_none()) => {
            map.insert("type".into(), json!(["object", "null"]));
        }
        "array" => {
            map.insert("type".into(), json!(["array", "null"]));
        }
        "integer" | "number" | "boolean" => {
            map.insert("type".into(), json!([kind, "string"]));
            map.insert("pattern".into(), variable()["pattern"].clone());
        }
        "string" => {
            if let Some(Value::String(pattern)) = map.get_mut("pattern") {
                *pattern = format!("({pattern})|{}", variable()["pattern"].as_str().unwrap_or(""));
            }
        }
        _ => {}
    }
}

/// A text with a variable in it.
fn variable() -> Value {
    json!({ "type": "string", "pattern": r"\$\{" })
}
