//! The examples in README.md and under `docs/`, which people paste.

use crate::config::{Origin, load, read, schema};
use std::path::{Path, PathBuf};

/// Those that are about pillion's config from their first example on, which is a whole one.
const WHOLE_FIRST: [&str; 11] = [
    "README.md",
    "inbound.md",
    "proxy.md",
    "registering.md",
    "registries.md",
    "rollouts.md",
    "routes.md",
    "tcp.md",
    "transparent.md",
    "udp.md",
    "upgrade.md",
];

fn documents() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let docs = std::fs::read_dir(root.join("docs")).unwrap().map(|entry| entry.unwrap().path());
    let docs = docs.filter(|path| path.extension().is_some_and(|ending| ending == "md"));
    docs.chain([root.join("README.md")]).collect()
}

/// A block of YAML, and the line in which it begins.
fn blocks(text: &str) -> Vec<(usize, String)> {
    let mut blocks: Vec<(usize, String)> = Vec::new();
    let mut is_open = false;
    for (number, line) in text.lines().enumerate() {
        match line {
            "```yaml" => {
                is_open = true;
                blocks.push((number + 2, String::new()));
            }
            "```" => is_open = false,
            _ if is_open => blocks.last_mut().unwrap().1.extend([line, "\n"]),
            _ => {}
        }
    }
    blocks
}

/// The keys of a block, if they are such as a config has.
fn config_keys(block: &str) -> Option<Vec<String>> {
    let schema = schema();
    let known = schema["properties"].as_object().unwrap();
    let found: serde_json::Value = read("block", block.as_bytes()).ok()?;
    // What lists instances has a key of the same name.
    if found["services"].as_object().is_some_and(|services| services.values().any(serde_json::Value::is_array)) {
        return None;
    }
    let keys: Vec<_> = found.as_object()?.keys().cloned().collect();
    keys.iter().all(|key| known.contains_key(key)).then_some(keys)
}

/// What is wrong with a config, but for files, and with the environment variables, that its writer has.
fn wrong(config: &str) -> Vec<String> {
    let env = |name: &str| (!name.starts_with("PILLION_")).then(|| "x".to_owned());
    let errors = load(Origin::text("f", config), &env).map_err(|errors| errors.to_string()).err().unwrap_or_default();
    let errors = errors.lines().filter(|line| line.starts_with("f:") && !line.contains("cannot be read"));
    errors.map(ToOwned::to_owned).collect()
}

#[test]
fn every_example_can_be_pasted() {
    let mut whole_first = Vec::new();
    for path in documents() {
        let (name, text) = (path.file_name().unwrap().to_str().unwrap(), std::fs::read_to_string(&path).unwrap());
        for (number, (line, block)) in blocks(&text).into_iter().enumerate() {
            let Some(keys) = config_keys(&block) else { continue };
            // What has neither is to be added to a config that has, in which the registries are called so.
            let has = |key: &str| keys.iter().any(|found| found == key);
            let is_whole = has("registries") || has("listeners");
            let around = "registries: { consul: { kind: consul }, dc2: { kind: consul } }\n";
            let found = wrong(&if is_whole { block.clone() } else { format!("{around}{block}") });
            assert!(found.is_empty(), "{name}:{line}: {found:#?}\n{block}");
            if number == 0 && is_whole {
                whole_first.push(name.to_owned());
            }
        }
    }
    whole_first.sort();
    assert_eq!(whole_first, WHOLE_FIRST);
}
