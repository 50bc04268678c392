//! What frameworks write about an instance into a key-value registry. Each layout is a pure decoder.

pub mod plain;

use super::AddressError;

/// Why one key's value is no instance.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error("it is not UTF-8")]
    NotText(#[from] std::str::Utf8Error),
    #[error("its JSON is not of this layout: {0}")]
    Json(String),
    #[error(transparent)]
    Address(#[from] AddressError),
}

impl From<serde_json::Error> for DecodeError {
    fn from(error: serde_json::Error) -> Self {
        Self::Json(error.to_string())
    }
}

/// The rest of a key as an id, unless there is more than one segment in it.
fn id_segment(suffix: &str) -> Option<&str> {
    (!suffix.is_empty() && !suffix.contains('/')).then_some(suffix)
}
