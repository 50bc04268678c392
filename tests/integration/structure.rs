//! The house rules of the sources: the order of the modules, and the length of files.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

/// The modules from the ground up. A module uses only those on lower floors, never one beside it, so there are no cycles.
const FLOORS: &[&[&str]] = &[
    &["backoff", "drain", "durable", "error", "pattern", "worker"],
    &["config"],
    &["import"],
    &["telemetry"],
    &["net"],
    &["registry"],
    &["route"],
    &["cluster", "rollout"],
    &["discovery", "inbound", "registrar"],
    &["admin", "dns", "proxy"],
    &["app"],
    &["demo"],
    &["cli"],
];

/// Files are for people to read.
const MAX_LINES: usize = 600;

#[test]
fn a_module_uses_only_those_on_lower_floors() {
    let mut wrong = String::new();
    for (file, text) in sources() {
        let modules = module_path(&file);
        let Some(own) = modules.first() else { continue };
        let Some(own_floor) = floor(own) else {
            writeln!(wrong, "{}: `{own}` has no floor yet; give it one in this test", file.display()).unwrap();
            continue;
        };
        for used in uses(&text, modules.len()).into_iter().filter(|used| used != own) {
            match floor(&used) {
                Some(floor) if floor < own_floor => {}
                Some(_) => {
                    writeln!(wrong, "{}: `{own}` uses `{used}`, which is not below it", file.display()).unwrap();
                }
                // A function or type at the top of the crate; there are none so far.
                None => writeln!(wrong, "{}: `crate::{used}` is no module of FLOORS", file.display()).unwrap(),
            }
        }
    }
    assert!(wrong.is_empty(), "the order of the modules (see ARCHITECTURE.md) is broken:\n{wrong}");
}

/// The table in ARCHITECTURE.md says what each is for.
#[test]
fn every_dependency_has_its_reason() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |file: &str| fs::read_to_string(root.join(file)).unwrap();
    let manifest = read("Cargo.toml");
    let section = manifest.split("\n[dependencies]\n").nth(1).unwrap().split("\n[").next().unwrap();
    let there: BTreeSet<_> = section.lines().filter_map(|line| Some(line.split_once(" =")?.0)).collect();
    let map = read("ARCHITECTURE.md");
    let rows = map.split("\n## Dependencies\n").nth(1).unwrap().lines().filter_map(|line| line.strip_prefix("| "));
    let crates = rows.skip(1).filter_map(|row| row.split(" | ").next()).flat_map(|cell| cell.split(", "));
    assert_eq!(crates.collect::<BTreeSet<_>>(), there);
}

#[test]
fn only_backends_know_backends() {
    let mut wrong = String::new();
    for (file, text) in sources() {
        let modules = module_path(&file);
        if !matches!(modules.first().map(String::as_str), Some("cluster" | "proxy" | "route")) {
            continue;
        }
        for path in paths(&text, modules.len()).iter().filter(|path| path.first().is_some_and(|top| top == "registry"))
        {
            let word = path.get(1).map_or("*", String::as_str);
            if !["Address", "Instance", "Protocol"].contains(&word) {
                writeln!(wrong, "{}: uses `registry::{word}`", file.display()).unwrap();
            }
        }
    }
    assert!(wrong.is_empty(), "the request path knows instances, and nothing of where they come from:\n{wrong}");
}

#[test]
fn files_stay_short() {
    let long: BTreeMap<usize, PathBuf> = sources()
        .into_iter()
        .map(|(file, text)| (text.lines().count(), file))
        .filter(|(lines, _)| *lines > MAX_LINES)
        .collect();
    assert!(long.is_empty(), "these have more than {MAX_LINES} lines; split them by topic: {long:#?}");
}

#[test]
fn paths_are_found_however_they_are_written() {
    let text = "
        use crate::{a::{self, X}, b, c::d::{E, f::G}};
        use super::{h::I, super::j};
        pub use crate::k::*;
        // crate::comment
        fn f(x: crate::l::M) -> super::N { todo!() }
        #[cfg(test)]
        mod tests {
            use crate::only_tested;
        }
        #[cfg(test)]
        use crate::also_only_tested;
    ";
    let text = without_tests(&text.lines().map(|line| line.trim_start().to_owned() + "\n").collect::<String>());
    let found = |depth| uses(&text, depth).into_iter().collect::<Vec<_>>().join(" ");
    assert_eq!(found(1), "N a b c h k l", "in a module at the top, `super` is the crate");
    assert_eq!(found(2), "a b c j k l");
}

/// The floor that a module lives on.
fn floor(module: &str) -> Option<usize> {
    FLOORS.iter().position(|floor| floor.contains(&module))
}

/// Every source file but tests, with the unit tests inside taken out.
fn sources() -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (mut folders, mut found) = (vec![root.join("src")], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            if name.trim_end_matches(".rs").ends_with("tests") {
                continue;
            }
            if path.is_dir() {
                folders.push(path);
            } else if name.ends_with(".rs") {
                let text = fs::read_to_string(&path).unwrap();
                found.push((path.strip_prefix(root).unwrap().to_owned(), without_tests(&text)));
            }
        }
    }
    assert!(found.len() > 50, "the sources were not found");
    found.sort();
    found
}

/// `src/a/b/c.rs` is `a::b::c`; empty for the crate's own roots.
fn module_path(file: &Path) -> Vec<String> {
    let mut path: Vec<String> = file.iter().skip(1).map(|part| part.to_str().unwrap().to_owned()).collect();
    let last = path.pop().unwrap();
    match last.trim_end_matches(".rs") {
        "mod" => {}
        "lib" | "main" if path.is_empty() => {}
        name => path.push(name.to_owned()),
    }
    path
}

/// Without comments and what is compiled for tests only. Relies on the layout that rustfmt gives.
fn without_tests(text: &str) -> String {
    let mut kept = String::new();
    let mut lines = text.lines().map(|line| line.split("//").next().unwrap());
    while let Some(line) = lines.next() {
        if line != "#[cfg(test)]" {
            kept.push_str(line);
            kept.push('\n');
            continue;
        }
        // The item that follows: to its `;`, or to the brace that closes it, at the start of a line.
        let item = lines.by_ref().find(|line| !line.starts_with("#["));
        if item.is_some_and(|item| !item.trim_end().ends_with([';', '}'])) {
            lines.by_ref().find(|line| line.starts_with('}'));
        }
    }
    kept
}

/// The first words of all paths from the crate's root.
fn uses(text: &str, depth: usize) -> BTreeSet<String> {
    paths(text, depth).into_iter().filter_map(|path| path.into_iter().next()).collect()
}

/// All paths from the crate's root in a file whose module is `depth` below it.
fn paths(text: &str, depth: usize) -> BTreeSet<Vec<String>> {
    let tokens = tokens(text);
    let mut found = BTreeSet::new();
    let mut at = 0;
    while at < tokens.len() {
        let starts = matches!(tokens[at], "crate" | "super") && (at == 0 || tokens[at - 1] != "::");
        if starts && tokens.get(at + 1) == Some(&"::") {
            at = tree(&tokens, at, &[], &mut |path| {
                let supers = path.iter().take_while(|word| **word == "super").count();
                let rest = match path[0] {
                    "crate" => &path[1..],
                    _ if supers == depth => &path[supers..],
                    _ => return,
                };
                found.insert(rest.iter().map(ToString::to_string).collect());
            });
        } else {
            at += 1;
        }
    }
    found
}

/// Reads a path or a tree of paths; returns where it ends.
fn tree<'t>(tokens: &[&'t str], mut at: usize, before: &[&'t str], found: &mut dyn FnMut(&[&'t str])) -> usize {
    let mut path = before.to_vec();
    loop {
        if tokens.get(at) == Some(&"{") {
            at += 1;
            while tokens.get(at).is_some_and(|token| *token != "}") {
                at = if tokens[at] == "," { at + 1 } else { tree(tokens, at, &path, found) };
            }
            return at + 1;
        }
        let Some(word) = tokens.get(at) else { return at };
        if *word != "self" {
            path.push(word);
        }
        at += 1;
        // `a::b as c`
        if tokens.get(at) == Some(&"as") {
            at += 2;
        }
        if tokens.get(at) != Some(&"::") {
            found(&path);
            return at;
        }
        at += 1;
    }
}

/// Words, `::`, and single characters.
fn tokens(text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let is_word = |c: char| c.is_alphanumeric() || c == '_';
        let length = match first {
            c if is_word(c) => rest.find(|c| !is_word(c)).unwrap_or(rest.len()),
            ':' if rest.starts_with("::") => 2,
            c => c.len_utf8(),
        };
        found.push(&rest[..length]);
        rest = rest[length..].trim_start();
    }
    found
}
