//! What README.md and the documents under `docs/` say is so.

use pillion::{
    config::{self, Origin},
    error::Reason,
};
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// What people read, by its path in the repository.
fn documents() -> Vec<String> {
    let docs =
        fs::read_dir(root().join("docs")).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let docs = docs.filter(|name| name.ends_with(".md")).map(|name| format!("docs/{name}"));
    docs.chain(["README.md", "ARCHITECTURE.md", "deploy/README.md", "benches/peers/README.md"].map(Into::into))
        .collect()
}

/// A document without its blocks of code.
fn prose(text: &str) -> String {
    let mut is_code = false;
    let lines = text.lines().filter(|line| {
        let is_fence = line.trim_start().starts_with("```");
        is_code ^= is_fence;
        !is_code && !is_fence
    });
    lines.map(|line| format!("{line}\n")).collect()
}

/// The anchors that GitHub gives a document's headings.
fn anchors(text: &str) -> BTreeSet<String> {
    let headings = prose(text);
    let headings =
        headings.lines().filter(|line| line.starts_with('#')).map(|line| line.trim_start_matches('#').trim());
    let kept = |heading: &str| -> String {
        heading.to_lowercase().chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c)).collect()
    };
    headings.map(|heading| kept(heading).replace(' ', "-")).collect()
}

#[test]
fn every_reason_is_listed_with_what_callers_get() {
    let text = read("docs/failures.md");
    let rows = text.lines().filter(|line| line.starts_with("| `")).filter(|line| line.matches('|').count() == 5);
    assert_eq!(rows.count(), Reason::ALL.len());
    for reason in Reason::ALL {
        let row = format!("| `{}` | {} | {} | ", reason.as_str(), reason.status().as_u16(), reason.grpc_status());
        assert!(text.contains(&row), "{row}");
    }
}

#[test]
fn the_config_is_good() {
    let readme = read("README.md");
    let (_, rest) = readme.split_once("## With a config file").unwrap();
    let (_, rest) = rest.split_once("```yaml\n").unwrap();
    let (example, _) = rest.split_once("```").unwrap();
    let loaded = config::load(Origin::text("README.md", example), &|_| None).unwrap();
    assert_eq!(loaded.config.listeners.len(), 2);
}

#[test]
fn every_link_leads_somewhere() {
    let (mut wrong, mut count) = (Vec::new(), 0);
    for name in documents() {
        // What is between backticks may look like one.
        let text: String = prose(&read(&name)).split('`').step_by(2).collect();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.contains("://") {
                continue;
            }
            count += 1;
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let folder = Path::new(&name).parent().unwrap();
            let target: PathBuf = if file.is_empty() { root().join(&name) } else { root().join(folder).join(file) };
            let is_there = target.exists()
                && (anchor.is_empty() || anchors(&fs::read_to_string(&target).unwrap_or_default()).contains(anchor));
            if !is_there {
                wrong.push(format!("{name}: {link}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(count > 50, "{count}");
}

#[test]
fn the_readme_leads_to_every_document() {
    let readme = read("README.md");
    let missing: Vec<_> =
        documents().into_iter().filter(|name| name != "README.md" && !readme.contains(&format!("({name})"))).collect();
    assert!(missing.is_empty(), "{missing:#?}");
}

#[test]
fn every_metric_that_is_named_is_one() {
    let known = read("docs/metrics.md");
    let known: BTreeSet<_> = known.split("| `").filter_map(|rest| rest.split('`').next()).collect();
    let (mut wrong, mut count) = (Vec::new(), 0);
    for name in documents() {
        let text = read(&name);
        for (at, _) in text.match_indices("pillion_") {
            let is_word = |c: char| c.is_ascii_lowercase() || c == '_';
            let word = &text[at..];
            let word = &word[..word.find(|c| !is_word(c)).unwrap_or(word.len())];
            // `pillion_udp_sent_*` stands for several.
            if text[..at].ends_with(is_word) || word.ends_with('_') {
                continue;
            }
            count += 1;
            let family = ["_bucket", "_count", "_sum"].iter().find_map(|ending| word.strip_suffix(ending));
            if !known.contains(word) && !family.is_some_and(|family| known.contains(family)) {
                wrong.push(format!("{name}: {word}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(count > 50, "{count}");
}

#[test]
fn the_figures_are_those_that_were_measured() {
    let (readme, measured) = (read("README.md"), read("benches/peers/README.md"));
    let (_, table) = readme.split_once("| | nginx | HAProxy | Envoy | pillion |\n").unwrap();
    let rows: Vec<_> = table.lines().skip(1).take_while(|line| line.starts_with("| `")).collect();
    assert!(rows.len() > 3, "{rows:?}");
    for row in rows {
        let mut cells = row.split('|').map(str::trim);
        let load = cells.nth(1).unwrap().split(':').next().unwrap();
        // The last one that was measured, which has a column for the program of before as well.
        let there =
            measured.lines().rfind(|line| line.starts_with(&format!("| {load} |"))).unwrap_or_else(|| panic!("{load}"));
        let there: Vec<_> = there.split('|').map(str::trim).collect();
        let figures: Vec<_> = cells.filter(|cell| !cell.is_empty()).collect();
        assert_eq!(figures, [there[2], there[3], there[4], there[6]], "{load}");
    }
}
