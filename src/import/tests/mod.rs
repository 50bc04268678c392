//! What goes in, what comes out, and what is said about it.

mod destination_rules;
mod http_routes;
mod virtual_services;
mod whole;

use super::{Imported, Options, Source, import};
use crate::config::{self, Config, Origin, Overrides};

/// The config's services as text, and the notes without their places.
fn imported(text: &str) -> (String, Vec<String>) {
    let Imported { config, notes } = import(&[source(text)], &options()).unwrap_or_else(|errors| panic!("{errors:?}"));
    load(&config);
    let (_, services) = config.split_once("\nservices:").unwrap();
    let notes = notes.into_iter().map(|note| format!("{}: {}", note.path, note.message)).collect();
    (services.trim_matches('\n').to_owned(), notes)
}

fn source(text: &str) -> Source {
    Source { name: "in.yaml".into(), text: text.into() }
}

fn options() -> Options {
    Options { namespace: "default".into(), registries: Vec::new() }
}

/// As pillion itself loads what was imported.
fn load(config: &str) -> Config {
    let overrides = Overrides { registry: vec!["embedded:".into()], ..Overrides::default() };
    let loaded = config::load(Origin::text("out.yaml", config).with(overrides), &|_| None);
    loaded.unwrap_or_else(|errors| panic!("{errors}\n{config}")).config
}

/// Compares what came out with what was expected, and each note with a part of it that was.
fn check(input: &str, found: &(String, Vec<String>), expected: &[&str], notes: &[&str]) {
    let lines: Vec<_> = found.0.lines().map(str::trim).collect();
    assert_eq!(lines, expected, "from\n{input}\nnotes: {:#?}", found.1);
    let fit = found.1.len() == notes.len() && found.1.iter().zip(notes).all(|(found, part)| found.contains(part));
    assert!(fit, "from\n{input}\nexpected {notes:#?}, found {:#?}", found.1);
}
