//! A config as YAML that loads again: every default written out, secrets as `***`.

use super::{
    Config,
    tree::{Resolved, resolve_plain},
};
use serde_json::Value;
use std::fmt::Write;

/// The config as YAML. What is loaded from it equals `config`, but for the secrets.
pub fn print(config: &Config) -> String {
    let mut value = match serde_json::to_value(config) {
        Ok(value) => value,
        // Only a map with keys that are no text could fail, and there is none.
        Err(error) => return format!("# cannot be shown: {error}\n"),
    };
    // A service without something that `defaults` has must say so, or it would take it from there.
    let defaults = value.get("defaults").cloned().unwrap_or_default();
    if let Some(services) = value.get_mut("services").and_then(Value::as_object_mut) {
        services.values_mut().for_each(|service| keep_unset(service, &defaults));
    }
    let mut out = String::new();
    if let Some(map) = value.as_object() {
        block_map(&mut out, map, 0);
    }
    out
}

fn keep_unset(value: &mut Value, defaults: &Value) {
    let (Some(map), Some(defaults)) = (value.as_object_mut(), defaults.as_object()) else { return };
    for (key, default) in defaults {
        keep_unset(map.entry(key).or_insert(Value::Null), default);
    }
}

fn block_map(out: &mut String, map: &serde_json::Map<String, Value>, indent: usize) {
    for (key, value) in map {
        let _ = write!(out, "{:indent$}{}:", "", scalar(key, false));
        block_value(out, value, indent + 2);
    }
}

/// After a key or a dash's own key: on the same line, or below and further in.
fn block_value(out: &mut String, value: &Value, indent: usize) {
    match value {
        Value::Object(map) if !map.is_empty() => {
            out.push('\n');
            block_map(out, map, indent);
        }
        Value::Array(list) if !list.is_empty() => {
            out.push('\n');
            for element in list {
                let _ = write!(out, "{:indent$}-", "");
                let mut inner = String::new();
                block_value(&mut inner, element, indent + 2);
                match inner.strip_prefix('\n') {
                    // The first line goes behind the dash.
                    Some(lines) => out.push_str(&format!(" {}", lines.trim_start_matches(' '))),
                    None => out.push_str(&inner),
                }
            }
        }
        Value::Object(_) => out.push_str(" {}\n"),
        Value::Array(_) => out.push_str(" []\n"),
        Value::String(text) => out.push_str(&format!(" {}\n", scalar(text, true))),
        Value::Null | Value::Bool(_) | Value::Number(_) => out.push_str(&format!(" {value}\n")),
    }
}

/// A text as a scalar: plain where no reader can take it for anything else, in double quotes otherwise. `value`s are
/// guarded against expansion.
fn scalar(text: &str, value: bool) -> String {
    let guarded = if value { text.replace("${", "$${") } else { text.into() };
    if is_safe(&guarded) { guarded } else { quoted(&guarded) }
}

/// The same for inside of `{ }` and `[ ]`.
pub fn flow_scalar(text: &str, value: bool) -> String {
    let scalar = scalar(text, value);
    if scalar.contains(',') && !scalar.starts_with('"') { quoted(&scalar) } else { scalar }
}

fn quoted(text: &str) -> String {
    let mut out = String::from('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            // Those that YAML does not take as they are, and those that look like line breaks or like nothing.
            c if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}') => {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

fn is_safe(text: &str) -> bool {
    // Older readers take these for booleans, and `1:20` for a number.
    let old_boolean = ["y", "n", "yes", "no", "on", "off"].iter().any(|word| word.eq_ignore_ascii_case(text));
    let old_number = text.starts_with(|c: char| c.is_ascii_digit())
        && text.chars().all(|c| c.is_ascii_digit() || matches!(c, ':' | '_' | '-' | '.'))
        && text.matches('.').count() < 3;
    !old_boolean
        && !old_number
        && text.starts_with(|c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '.'))
        && !text.ends_with([':', ' '])
        && !text.contains(": ")
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '_' | '-' | ':' | '+' | '=' | ' ' | ','))
        && matches!(resolve_plain(text), Resolved::Text(_))
}
