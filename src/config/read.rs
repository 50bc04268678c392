//! From a tree to a typed value with every fault at once: a node that is wrong is reported and left out, and the rest is
//! read again, until all is read or nothing more can be.

use super::{
    de::{De, STAND_IN_TEXTS, Snag, What},
    error::{Errors, Faults, Path, Step, did_you_mean, one_of, shorten},
    tree::{self, Entry, Fate, Node, Resolved, Value},
};
use serde::de::DeserializeOwned;

/// Reads a YAML or JSON text as a `T`, with every fault at once. `name` is the file's, for the errors.
pub fn read<T: DeserializeOwned>(name: &str, bytes: &[u8]) -> Result<T, Errors> {
    let mut faults = Faults::default();
    let value =
        tree::parse(bytes, &mut faults).and_then(|mut root| from_tree(&mut root, &Path::default(), &mut faults));
    faults.or(Some(name), value)
}

/// Reads `root`, which is at `base` of the document. What is wrong goes to `faults`, and its nodes are marked in the tree.
/// A value comes back even then, if there is a way to make one; it serves only to find further faults.
pub(super) fn from_tree<T: DeserializeOwned>(root: &mut Node, base: &Path, faults: &mut Faults) -> Option<T> {
    loop {
        match T::deserialize(De::root(root)) {
            Ok(value) => return Some(value),
            Err(snag) => {
                settle(root, snag, base, faults)?;
                if faults.is_full() {
                    return None;
                }
            }
        }
    }
}

/// Reports a snag, unless it only follows from an earlier one, and changes the tree so that the same does not come again.
/// `None` if that is not possible. Every call moves some node on, from live to pruned to stand-in to a pruned parent, so
/// that reading ends.
fn settle(root: &mut Node, snag: Snag, base: &Path, faults: &mut Faults) -> Option<()> {
    let path = snag.at.unwrap_or_default();
    let whole = |path: &Path| Path(base.0.iter().chain(&path.0).cloned().collect());
    let place_of_key = key_place(root, &path);
    let node = root.at_mut(&path)?;
    if let Fate::StandIn(tried) = node.fate {
        if usize::from(tried) + 1 < STAND_IN_TEXTS.len() {
            node.fate = Fate::StandIn(tried + 1);
            return Some(());
        }
        return prune_parent(root, path);
    }
    let found = describe(node);
    let message = match snag.what {
        What::Missing(field) => {
            if let Some(left_out) = node.get_mut(field) {
                left_out.fate = Fate::StandIn(0);
                return Some(());
            }
            faults.add(node.place, whole(&path), format!("`{field}` is missing"));
            let mut stand_in = Node::scalar("", node.place);
            stand_in.fate = Fate::StandIn(0);
            if !matches!(node.value, Value::Map(_)) {
                node.value = Value::Map(Vec::new());
            }
            if let Value::Map(entries) = &mut node.value {
                entries.push(Entry { key: field.into(), place: node.place, node: stand_in });
            }
            return Some(());
        }
        What::UnknownKey(known) => {
            let key = match path.0.last() {
                Some(Step::Key(key)) => key.as_str(),
                _ => "",
            };
            let near = did_you_mean(key, known.iter().copied());
            let known = match known {
                [] => "there are none here".into(),
                [..] => {
                    format!("known here: {}", known.iter().map(|k| format!("`{k}`")).collect::<Vec<_>>().join(", "))
                }
            };
            let near = if near.is_empty() { "; " } else { &format!("{near} ") };
            faults.add(place_of_key.unwrap_or(node.place), whole(&path), format!("unknown key{near}{known}"));
            node.fate = Fate::Pruned;
            return Some(());
        }
        What::UnknownKind(kinds) => {
            let (at, found, text) = match node.get("kind") {
                Some(kind) => (kind.place, describe(kind), text_of(kind).unwrap_or("")),
                None => (node.place, found, ""),
            };
            let near = did_you_mean(text, kinds.iter().copied());
            let message = format!("found {found}; expected {}{near}", one_of(kinds.iter().copied()));
            faults.add(at, whole(&path).key("kind"), message);
            return prune(root, &path);
        }
        What::NoKind(kinds) if matches!(node.value, Value::Map(_)) => {
            format!("`kind` is missing; expected {}", one_of(kinds.iter().copied()))
        }
        What::NoKind(kinds) => {
            format!("found {found}; expected a map with `kind`: {}", one_of(kinds.iter().copied()))
        }
        What::OneOf(words) => {
            let near = did_you_mean(text_of(node).unwrap_or(""), words.iter().copied());
            format!("found {found}; expected {}{near}", one_of(words.iter().copied()))
        }
        What::Expected(expected) => format!("found {found}; expected {}", plain_words(&expected)),
        // What std's address types say.
        What::Custom(message) if message == "invalid socket address syntax" => {
            format!("found {found}; expected `IP:PORT`, like `127.0.0.1:4140` or `[::1]:4140`")
        }
        What::Custom(message) => message,
    };
    faults.add(node.place, whole(&path), message);
    prune(root, &path)
}

fn prune(root: &mut Node, path: &Path) -> Option<()> {
    if path.0.is_empty() {
        return None;
    }
    root.at_mut(path)?.fate = Fate::Pruned;
    Some(())
}

fn prune_parent(root: &mut Node, mut path: Path) -> Option<()> {
    path.0.pop();
    prune(root, &path)
}

/// Where the key at the end of `path` is written.
fn key_place(root: &mut Node, path: &Path) -> Option<super::Place> {
    let (Step::Key(key), above) = path.0.split_last()? else { return None };
    let parent = root.at_mut(&Path(above.to_vec()))?;
    parent.entries().iter().find(|entry| entry.key == *key).map(|entry| entry.place)
}

fn text_of(node: &Node) -> Option<&str> {
    if let Value::Scalar(scalar) = &node.value { Some(&scalar.text) } else { None }
}

/// What a node holds, for "found …".
fn describe(node: &Node) -> String {
    match &node.value {
        Value::Map(_) => "a map".into(),
        Value::List(_) => "a list".into(),
        Value::Scalar(scalar) => match scalar.resolve() {
            Resolved::Null => "nothing".into(),
            Resolved::Text("") => "an empty text".into(),
            Resolved::Text(text) if !matches!(tree::resolve_plain(text), Resolved::Text(_)) => {
                format!("`\"{}\"`, which the quotes make a text", shorten(text))
            }
            _ => format!("`{}`", shorten(&scalar.text)),
        },
    }
}

/// serde's words for what it expected, in ours.
fn plain_words(expected: &str) -> String {
    let numbers = |from: &str, to: u64| format!("a whole number from {from} to {to}");
    match expected {
        "u8" => numbers("0", u8::MAX.into()),
        "u16" => numbers("0", u16::MAX.into()),
        "u32" => numbers("0", u32::MAX.into()),
        "a nonzero u16" => numbers("1", u16::MAX.into()),
        "a nonzero u32" => numbers("1", u32::MAX.into()),
        "u64" | "usize" => "a whole number, 0 or more".into(),
        "a nonzero u64" | "a nonzero usize" => "a whole number, 1 or more".into(),
        "i8" | "i16" | "i32" | "i64" | "isize" => "a whole number".into(),
        "f32" | "f64" => "a number".into(),
        "a boolean" => "`true` or `false`".into(),
        "a string" | "a borrowed string" | "string" => "text".into(),
        "path string" => "a path".into(),
        "a sequence" => "a list".into(),
        "socket address" => "`IP:PORT`, like `127.0.0.1:4140` or `[::1]:4140`".into(),
        "unit" => "nothing".into(),
        _ if expected.starts_with("struct ") || expected.starts_with("internally tagged enum ") => "a map".into(),
        _ => expected.into(),
    }
}
