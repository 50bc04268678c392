//! Changing the file: only one that can be written anew without a loss, and by one pillion at a time.

use super::content;
use crate::{config, durable, registry::layout::plain::Entry};
use indexmap::IndexMap;
use serde::Deserialize;
use serde_json::json;
use std::{
    fs::{self, File},
    io,
    path::Path,
};

/// Instances by service, as they are written.
pub(super) type Listed = IndexMap<String, Vec<Entry>>;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    services: Listed,
}

/// How a file is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Json,
    Yaml,
}

/// What is in the way of a change.
#[derive(Debug)]
pub(super) enum Obstacle<E> {
    /// The file cannot be read or written.
    Io(io::Error),
    /// It makes no sense, or would lose something.
    Content(String),
    /// The change itself was given up.
    Change(E),
}

impl<E> From<io::Error> for Obstacle<E> {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// What is in the file.
pub(super) fn read<E>(path: &Path) -> Result<Listed, Obstacle<E>> {
    decode(&path.display().to_string(), &fs::read(path)?).map(|(listed, _)| listed).map_err(Obstacle::Content)
}

/// Has `change` change what is in the file, and writes that if it says so. Blocks while somebody else does the same.
pub(super) fn rewrite<E>(path: &Path, change: impl FnOnce(&mut Listed) -> Result<bool, E>) -> Result<(), Obstacle<E>> {
    // The file itself, where the path is a link to it.
    let path = fs::canonicalize(path)?;
    // A file of its own: the other one is replaced. Whoever ends lets go of it.
    let lock = File::create(durable::beside(&path, "lock"))?;
    lock.lock()?;
    let bytes = fs::read(&path)?;
    let name = path.display().to_string();
    let (mut listed, format) = decode(&name, &bytes).map_err(Obstacle::Content)?;
    if !change(&mut listed).map_err(Obstacle::Change)? {
        return Ok(());
    }
    if let Some(lost) = lost(&bytes, format) {
        return Err(Obstacle::Content(format!(
            "{name}: it has {lost}, which would be lost; expected a file without, for pillion to write"
        )));
    }
    let rights = fs::metadata(&path)?.permissions();
    let through = durable::beside(&path, "new");
    durable::replace(&path, &through, encode(&listed, format).as_bytes())?;
    fs::set_permissions(&path, rights)?;
    Ok(())
}

fn decode(name: &str, bytes: &[u8]) -> Result<(Listed, Format), String> {
    // Says all that is wrong with it.
    content::decode(name, bytes)?;
    let document: Document = config::read(name, bytes).map_err(|errors| errors.to_string())?;
    let is_json = serde_json::from_slice::<serde_json::Value>(bytes).is_ok();
    Ok((document.services, if is_json { Format::Json } else { Format::Yaml }))
}

/// What of a file would not be there any more. A `#` within a text is taken for a comment: better refused than lost.
fn lost(bytes: &[u8], format: Format) -> Option<&'static str> {
    if format == Format::Json {
        return None;
    }
    let text = String::from_utf8_lossy(bytes);
    let begins_word =
        |c: char| text.match_indices(c).any(|(at, _)| !text[..at].ends_with(|b: char| b.is_alphanumeric()));
    if text.contains('#') {
        Some("comments, or a `#`")
    } else if begins_word('&') || begins_word('*') {
        Some("anchors and aliases")
    } else if text.lines().any(|line| line.starts_with("---") || line.starts_with('%')) {
        Some("a head")
    } else {
        None
    }
}

fn encode(listed: &Listed, format: Format) -> String {
    let entry = |entry: &Entry| if *entry == Entry::new(&*entry.address) { json!(entry.address) } else { json!(entry) };
    if format == Format::Json {
        let services: serde_json::Map<_, _> =
            listed.iter().map(|(name, entries)| (name.clone(), entries.iter().map(entry).collect())).collect();
        return format!("{:#}\n", json!({ "services": services }));
    }
    if listed.is_empty() {
        return "services: {}\n".into();
    }
    // JSON is YAML, too.
    let mut text = String::from("services:\n");
    for (name, entries) in listed {
        text += &format!("  {}:{}\n", json!(name), if entries.is_empty() { " []" } else { "" });
        for one in entries {
            text += &format!("    - {}\n", entry(one));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    type Done = Result<(), Obstacle<()>>;

    fn add(path: &Path, address: &str) -> Done {
        rewrite(path, |listed| {
            listed.entry("users".into()).or_default().push(Entry::new(address));
            Ok(true)
        })
    }

    #[test]
    fn what_is_there_stays_and_is_read_as_before() {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in [
            (
                "a.yaml",
                "services:\n  idle: []\n  users:\n    - 10.0.0.1:80\n    - { address: 10.0.0.2:80, weight: 5, labels: { a: \"b c\" } }\n",
            ),
            (
                "a.json",
                r#"{"services": {"idle": [], "users": ["10.0.0.1:80", {"address": "10.0.0.2:80", "weight": 5, "labels": {"a": "b c"}}]}}"#,
            ),
            ("none.yaml", "services: {}\n"),
        ] {
            let path = dir.path().join(name);
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
            let before = content::decode(name, text.as_bytes()).unwrap();
            add(&path, "10.0.0.3:80").unwrap();
            let written = fs::read_to_string(&path).unwrap();
            let mut after = content::decode(name, written.as_bytes()).unwrap();
            assert_eq!(after.get_mut("users").unwrap().pop().unwrap().id, "10.0.0.3:80");
            after.retain(|service, _| before.contains_key(service));
            assert_eq!(after, before, "{written}");
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o644);
            assert_eq!(written.starts_with('{'), name.ends_with("json"), "it stays what it was");
        }
    }

    #[test]
    fn what_would_be_lost_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.yaml");
        for (text, expected) in [
            ("# Ours.\nservices: {}\n", "comments"),
            ("services: {} # none\n", "comments"),
            ("services:\n  a: &a [ 10.0.0.1:80 ]\n  b: *a\n", "anchors"),
            ("---\nservices: {}\n", "a head"),
            ("services: [\n", "a.yaml"),
        ] {
            fs::write(&path, text).unwrap();
            match add(&path, "10.0.0.3:80") {
                Err(Obstacle::Content(error)) => assert!(error.contains(expected), "{error}"),
                other => panic!("{text}: {other:?}"),
            }
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
            // What changes nothing loses nothing.
            if expected != "a.yaml" {
                rewrite::<()>(&path, |_| Ok(false)).unwrap();
            }
        }
        assert!(matches!(add(&dir.path().join("none.yaml"), "10.0.0.3:80"), Err(Obstacle::Io(_))));
    }

    #[test]
    fn many_at_once_lose_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.yaml");
        fs::write(&path, "services: {}\n").unwrap();
        std::thread::scope(|scope| {
            for number in 1..=20 {
                let path = &path;
                scope.spawn(move || add(path, &format!("10.0.0.{number}:80")).unwrap());
            }
        });
        assert_eq!(read::<()>(&path).unwrap()["users"].len(), 20);
    }
}
