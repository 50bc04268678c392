//! Why bytes that came over a connection are not what they have to be.

use std::borrow::Cow;

/// What is wrong, where, and what was expected there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} at byte {at}, expected {expected}")]
pub struct Malformed {
    pub what: Cow<'static, str>,
    /// Counted from 0.
    pub at: usize,
    pub expected: &'static str,
}

impl Malformed {
    pub fn new(what: impl Into<Cow<'static, str>>, at: usize, expected: &'static str) -> Self {
        Self { what: what.into(), at, expected }
    }
}
