//! `${VAR}` and `${VAR:-default}` in values. Expanded after parsing, so that a variable's value never becomes structure.

use super::{
    error::{Faults, Path, Place, Step},
    tree::{Node, Value},
};

/// How the environment is asked, so that tests need not change the process's own.
pub type Env<'a> = dyn Fn(&str) -> Option<String> + 'a;

/// Variables in which a service manager speaks to pillion alone. A child that had them could speak in its name.
pub const NOT_FOR_CHILDREN: [&str; 3] = ["NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC"];

/// Expands every value from here down; keys stay as they are.
///
/// As in a shell, `:-` also replaces an empty variable. `$${` stands for a plain `${`, and a `$` without `{` for itself.
pub(super) fn expand(node: &mut Node, env: &Env<'_>, faults: &mut Faults) {
    walk(node, &mut Path::default(), env, faults);
}

fn walk(node: &mut Node, path: &mut Path, env: &Env<'_>, faults: &mut Faults) {
    let place = node.place;
    // The shell has expanded a flag already.
    if matches!(place, Place::Setting(_)) {
        return;
    }
    match &mut node.value {
        Value::Scalar(scalar) if scalar.text.contains("${") => match expand_text(&scalar.text, env) {
            Ok(text) => (scalar.text, scalar.expanded) = (text, true),
            Err(problems) => {
                for problem in problems {
                    faults.add(place, path.clone(), problem);
                }
                node.fate = super::tree::Fate::Pruned;
            }
        },
        Value::Scalar(_) => {}
        Value::List(elements) => {
            for (index, element) in elements.iter_mut().enumerate() {
                path.0.push(Step::Index(index));
                walk(element, path, env, faults);
                path.0.pop();
            }
        }
        Value::Map(entries) => {
            for entry in entries {
                path.0.push(Step::Key(entry.key.clone()));
                walk(&mut entry.node, path, env, faults);
                path.0.pop();
            }
        }
    }
}

/// The text with its variables replaced, or all that is wrong with them.
pub(super) fn expand_text(text: &str, env: &Env<'_>) -> Result<String, Vec<String>> {
    let mut out = String::with_capacity(text.len());
    let mut problems = Vec::new();
    let mut rest = text;
    while let Some(start) = rest.find("${") {
        if rest[..start].ends_with('$') {
            out.push_str(&rest[..start - 1]);
            out.push_str("${");
            rest = &rest[start + 2..];
            continue;
        }
        out.push_str(&rest[..start]);
        let Some((inner, after)) = rest[start + 2..].split_once('}') else {
            problems.push("a `${` without its `}`; write `$${` for a plain `${`".into());
            rest = "";
            break;
        };
        rest = after;
        let (name, default) = match inner.split_once(":-") {
            Some((name, default)) => (name, Some(default)),
            None => (inner, None),
        };
        let valid = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        if !valid || default.is_some_and(|default| default.contains("${")) {
            problems.push(format!(
                "`${{{}}}` cannot be expanded; expected `${{NAME}}` or `${{NAME:-default}}`, or `$${{` for a plain `${{`",
                super::error::shorten(inner)
            ));
            continue;
        }
        match (env(name), default) {
            (Some(value), None) => out.push_str(&value),
            (Some(value), Some(_)) if !value.is_empty() => out.push_str(&value),
            (_, Some(default)) => out.push_str(default),
            (None, None) => problems.push(format!(
                "the environment variable `{name}` is not set; `${{{name}:-default}}` would give it a default"
            )),
        }
    }
    out.push_str(rest);
    if problems.is_empty() { Ok(out) } else { Err(problems) }
}
