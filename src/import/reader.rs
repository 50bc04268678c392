//! Reading objects field by field, with a place for all that is to be said about them.

use super::{
    duration,
    object::{Object, Source},
};
use crate::config::{
    Errors, Faults, Path, Place, Step,
    tree::{Node, Resolved, Value},
};
use indexmap::IndexMap;
use std::{fmt, time::Duration};

/// Something that is not carried over, or not quite as it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    pub file: String,
    pub place: Place,
    /// Kind, namespace and name.
    pub object: String,
    pub path: Path,
    /// What, why, and what to do instead.
    pub message: String,
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, place, object, path, message } = self;
        write!(f, "{file}:")?;
        if let Place::Text { line, column } = place {
            write!(f, "{line}:{column}:")?;
        }
        write!(f, " {object}: ")?;
        if !path.0.is_empty() {
            write!(f, "{path}: ")?;
        }
        // It quotes what was found: a line break in it must not look like another message.
        for c in message.chars() {
            if c.is_control() { write!(f, "{}", c.escape_default())? } else { write!(f, "{c}")? }
        }
        Ok(())
    }
}

/// Gathers what is to be said: notes, and what cannot be read.
#[derive(Debug)]
pub struct Log {
    notes: Vec<Note>,
    /// In their order.
    files: Vec<String>,
    faults: IndexMap<String, Faults>,
}

impl Log {
    pub fn new(sources: &[Source]) -> Self {
        let files = sources.iter().map(|source| source.name.clone()).collect();
        Self { notes: Vec::new(), files, faults: IndexMap::new() }
    }

    pub fn note(&mut self, at: &At<'_>, message: impl Into<String>) {
        let note = Note {
            file: at.object.file.clone(),
            place: at.place,
            object: at.object.to_string(),
            path: at.path.clone(),
            message: message.into(),
        };
        // A rule with several matches, or for several hosts, says the same for each.
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }

    pub fn fault(&mut self, at: &At<'_>, message: impl Into<String>) {
        let faults = self.faults.entry(at.object.file.clone()).or_default();
        faults.add(at.node.place, at.path.clone(), message);
    }

    /// What cannot be read ends the import.
    pub fn failed(&mut self) -> Result<(), Vec<Errors>> {
        let faults = std::mem::take(&mut self.faults).into_iter();
        let errors: Vec<_> = faults.filter_map(|(name, faults)| faults.or(Some(&name), Some(())).err()).collect();
        if errors.is_empty() { Ok(()) } else { Err(errors) }
    }

    /// In the order of the files and of what is in them.
    pub fn into_notes(self) -> Vec<Note> {
        let Self { mut notes, files, .. } = self;
        notes.sort_by_key(|note| (files.iter().position(|file| *file == note.file), note.place));
        notes
    }
}

/// A place in an object.
#[derive(Debug, Clone)]
pub struct At<'o> {
    pub object: &'o Object,
    pub node: &'o Node,
    pub path: Path,
    /// Of the key, where there is one.
    pub place: Place,
}

impl<'o> At<'o> {
    /// What is under a key of a map; nothing for null.
    pub fn get(&self, key: &str) -> Option<Self> {
        self.entries().into_iter().find(|(name, at)| *name == key && !at.node.is_null()).map(|(_, at)| at)
    }

    pub fn has(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    /// A map's entries; none for anything else.
    pub fn entries(&self) -> Vec<(&'o str, Self)> {
        let entry = |entry: &'o crate::config::tree::Entry| {
            let path = self.path.key(&entry.key);
            (entry.key.as_str(), Self { object: self.object, node: &entry.node, path, place: entry.place })
        };
        self.node.entries().iter().map(entry).collect()
    }

    /// A map's entries; anything else is a fault.
    pub fn map(&self, log: &mut Log) -> Vec<(&'o str, Self)> {
        if !matches!(self.node.value, Value::Map(_)) {
            log.fault(self, "expected a map");
        }
        self.entries()
    }

    /// What is in the list under a key; nothing if it is not there.
    pub fn items(&self, key: &str, log: &mut Log) -> Vec<Self> {
        let Some(list) = self.get(key) else { return Vec::new() };
        if !matches!(list.node.value, Value::List(_)) {
            log.fault(&list, "expected a list");
        }
        let item = |(index, node): (usize, &'o Node)| {
            let path = list.path.with(Step::Index(index));
            Self { object: list.object, node, path, place: node.place }
        };
        list.node.elements().iter().enumerate().map(item).collect()
    }

    /// What is under a key, where it is as `read` wants it; all else is a fault.
    fn read<T>(
        &self,
        key: &str,
        log: &mut Log,
        expected: &str,
        read: impl FnOnce(&Resolved<'_>, &str) -> Option<T>,
    ) -> Option<T> {
        let at = self.get(key)?;
        let found = match &at.node.value {
            Value::Scalar(scalar) => read(&scalar.resolve(), &scalar.text),
            Value::List(_) | Value::Map(_) => None,
        };
        if found.is_none() {
            log.fault(&at, format!("expected {expected}"));
        }
        found
    }

    pub fn text(&self, key: &str, log: &mut Log) -> Option<String> {
        self.read(key, log, "a text", |_, text| Some(text.to_owned()))
    }

    /// A whole number; none is below 0 in these APIs, where it has a meaning.
    pub fn number(&self, key: &str, log: &mut Log) -> Option<u32> {
        self.read(key, log, "a whole number, 0 or more", |found, _| match found {
            Resolved::Unsigned(number) => u32::try_from(*number).ok(),
            _ => None,
        })
    }

    pub fn float(&self, key: &str, log: &mut Log) -> Option<f64> {
        self.read(key, log, "a number, 0 or more", |found, text| match found {
            Resolved::Unsigned(_) | Resolved::Float(_) => text.parse().ok().filter(|number| *number >= 0.0),
            _ => None,
        })
    }

    pub fn bool(&self, key: &str, log: &mut Log) -> Option<bool> {
        self.read(key, log, "`true` or `false`", |found, _| match found {
            Resolved::Bool(bool) => Some(*bool),
            _ => None,
        })
    }

    pub fn duration(&self, key: &str, log: &mut Log) -> Option<Duration> {
        self.read(key, log, "a duration, like `1.5s` or `1h30m`", |_, text| duration::parse(text))
    }

    /// The texts of a list.
    pub fn texts(&self, key: &str, log: &mut Log) -> Vec<String> {
        let mut texts = Vec::new();
        for item in self.items(key, log) {
            match &item.node.value {
                Value::Scalar(scalar) if !item.node.is_null() => texts.push(scalar.text.clone()),
                _ => log.fault(&item, "expected a text"),
            }
        }
        texts
    }

    /// Names to texts.
    pub fn labels(&self, key: &str, log: &mut Log) -> IndexMap<String, String> {
        let Some(map) = self.get(key) else { return IndexMap::new() };
        let mut labels = IndexMap::new();
        for (name, at) in map.map(log) {
            match &at.node.value {
                Value::Scalar(scalar) => {
                    labels.insert(name.to_owned(), scalar.text.clone());
                }
                _ => log.fault(&at, "expected a text"),
            }
        }
        labels
    }

    /// Notes each field that is not among those that the importer knows.
    pub fn others(&self, known: &[&str], log: &mut Log) {
        for (name, at) in self.map(log) {
            if !known.contains(&name) && !at.node.is_null() {
                log.note(&at, "not carried over: the import does not know this field");
            }
        }
    }
}
