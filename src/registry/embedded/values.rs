//! The registry's key-value store: owned by the task that owns the state, watched as a whole.

use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, sync::Arc};
use tokio::sync::watch;

/// More keys are refused.
pub(super) const MAX_KEYS: usize = 1000;

/// The longest key, in bytes.
pub(super) const MAX_KEY: usize = 512;

/// The largest value, in bytes.
pub(super) const MAX_VALUE: usize = 64 * 1024;

/// All keys with their values.
pub(super) type Map = BTreeMap<String, Value>;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Value {
    pub text: String,
    /// Counts over all keys, and no number comes twice.
    pub version: u64,
}

/// What a change asks of what is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    Any,
    Absent,
    /// That it is there, at this version.
    Version(u64),
}

/// What a change came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It is at this version now; if it was deleted, that was its last.
    Done(u64),
    /// It is at another version, or not there; `None`: it is not there.
    Conflict(Option<u64>),
    /// There is no room for another key.
    Full,
}

/// Everything that has to outlive the process.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Kept {
    pub(super) newest: u64,
    pub(super) all: Map,
}

#[derive(Debug, Default)]
pub(super) struct Values {
    newest: u64,
    all: watch::Sender<Arc<Map>>,
}

impl Values {
    /// In place of all that is there.
    pub(super) fn replace(&mut self, kept: Kept) {
        self.newest = self.newest.max(kept.newest);
        self.all.send_if_modified(|all| {
            let differs = **all != kept.all;
            *all = Arc::new(kept.all);
            differs
        });
    }

    pub(super) fn kept(&self) -> Kept {
        Kept { newest: self.newest, all: Map::clone(&self.all.borrow()) }
    }

    /// All of them, now and whenever one changes.
    pub(super) fn watch(&self) -> watch::Receiver<Arc<Map>> {
        self.all.subscribe()
    }

    pub(super) fn get(&self, key: &str) -> Option<Value> {
        self.all.borrow().get(key).cloned()
    }

    pub(super) fn put(&mut self, key: &str, condition: Condition, text: String) -> Change {
        let there = self.all.borrow().get(key).map(|value| value.version);
        if !condition.holds(there) {
            return Change::Conflict(there);
        }
        if there.is_none() && self.all.borrow().len() >= MAX_KEYS {
            return Change::Full;
        }
        self.newest += 1;
        let version = self.newest;
        self.all.send_modify(|all| {
            Arc::make_mut(all).insert(key.into(), Value { text, version });
        });
        Change::Done(version)
    }

    /// A key that is not there can only be wanted gone under [`Condition::Any`], which is a conflict all the same.
    pub(super) fn delete(&mut self, key: &str, condition: Condition) -> Change {
        let there = self.all.borrow().get(key).map(|value| value.version);
        let Some(version) = there.filter(|_| condition.holds(there)) else { return Change::Conflict(there) };
        self.all.send_modify(|all| {
            Arc::make_mut(all).remove(key);
        });
        Change::Done(version)
    }
}

impl Condition {
    fn holds(self, there: Option<u64>) -> bool {
        match self {
            Self::Any => true,
            Self::Absent => there.is_none(),
            Self::Version(version) => there == Some(version),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_made_only_if_what_is_there_is_as_expected() {
        let mut values = Values::default();
        assert_eq!(values.put("a", Condition::Version(1), "x".into()), Change::Conflict(None));
        assert_eq!(values.put("a", Condition::Absent, "1".into()), Change::Done(1));
        assert_eq!(values.put("a", Condition::Absent, "2".into()), Change::Conflict(Some(1)));
        assert_eq!(values.put("a", Condition::Version(1), "2".into()), Change::Done(2));
        assert_eq!(values.put("a", Condition::Any, "3".into()), Change::Done(3));
        assert_eq!(values.delete("a", Condition::Version(2)), Change::Conflict(Some(3)));
        assert_eq!(values.delete("a", Condition::Version(3)), Change::Done(3));
        assert_eq!(values.delete("a", Condition::Any), Change::Conflict(None));
        assert_eq!(values.put("a", Condition::Absent, "4".into()), Change::Done(4), "no version comes twice");
    }

    #[test]
    fn the_number_of_keys_is_bounded() {
        let mut values = Values::default();
        for n in 0..MAX_KEYS {
            assert!(matches!(values.put(&n.to_string(), Condition::Any, String::new()), Change::Done(_)));
        }
        assert_eq!(values.put("more", Condition::Any, String::new()), Change::Full);
        assert!(matches!(values.put("7", Condition::Any, "x".into()), Change::Done(_)));
    }

    #[test]
    fn what_is_kept_goes_on_counting_where_it_was() {
        let mut values = Values::default();
        values.put("a", Condition::Any, "1".into());
        values.put("b", Condition::Any, "2".into());
        values.delete("b", Condition::Any);
        let mut other = Values::default();
        other.replace(values.kept());
        assert_eq!(other.kept(), values.kept());
        assert_eq!(other.put("b", Condition::Absent, "3".into()), Change::Done(3));
    }
}
