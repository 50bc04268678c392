//! The commands in the documents are such as the program takes.

use super::Cli;
use clap::Parser;
use std::path::{Path, PathBuf};

fn documents() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let docs = std::fs::read_dir(root.join("docs")).unwrap().map(|entry| entry.unwrap().path());
    let docs = docs.filter(|path| path.extension().is_some_and(|ending| ending == "md"));
    docs.chain(["README.md", "deploy/README.md"].map(|name| root.join(name))).collect()
}

/// The words of a command, up to what a shell does with it; quotes hold words together.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    for c in line.chars() {
        match (quote, c) {
            (Some(end), c) if c == end => quote = None,
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, '>' | '|' | '&' | ';') => break,
            (None, '#') if word.is_none() => break,
            (None, ' ') => words.extend(word.take()),
            _ => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

/// Lines of code blocks that run pillion, with their numbers.
fn commands(text: &str) -> Vec<(usize, Vec<String>)> {
    let (mut found, mut block) = (Vec::new(), None);
    for (number, line) in text.lines().enumerate() {
        if let Some(language) = line.strip_prefix("```") {
            block = if block.is_some() { None } else { Some(language) };
            continue;
        }
        let is_prompt = line.starts_with("$ ");
        let line = line.strip_prefix("$ ").unwrap_or(line);
        let starts = ["pillion ", "target/release/pillion ", "cargo run --release -- "];
        let is_run = block == Some("sh") || block.is_some() && is_prompt;
        if let (true, Some(rest)) = (is_run, starts.iter().find_map(|start| line.strip_prefix(start))) {
            // A line that goes on is joined with nothing: what is on it must be good as far as it goes.
            let rest = rest.trim_end_matches('\\');
            found.push((number + 1, words(rest)));
        }
    }
    found
}

#[test]
fn every_command_in_the_documents_is_one() {
    let mut count = 0;
    for path in documents() {
        for (line, words) in commands(&std::fs::read_to_string(&path).unwrap()) {
            count += 1;
            let args = std::iter::once("pillion".to_owned()).chain(words.iter().cloned());
            let error = Cli::try_parse_from(args).err().map(|error| error.to_string());
            // Whether the reader's machine has that user is not the document's matter.
            let error = error.filter(|error| !error.contains("there is no such user"));
            assert_eq!(error, None, "{}:{line}: {words:?}", path.display());
        }
    }
    assert!(count > 20, "{count}");
}

#[test]
fn quotes_hold_words_together_and_a_shells_part_is_left_out() {
    assert_eq!(words("a  'b c' \"d\"e # f"), ["a", "b c", "de"]);
    assert_eq!(words("a --b > c"), ["a", "--b"]);
}
