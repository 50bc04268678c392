//! What was last good in a store, on disk: JSON, below a seal, in one file per path.

use super::following::Place;
use crate::durable;
use serde::{Deserialize, Serialize};

/// What the file says that it is.
const WHAT: &str = "pillion's copy of a store";

/// Counts up when pillions of before would misunderstand what is written from then on.
const VERSION: u32 = 1;

/// The value of one service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    pub service: String,
    pub version: String,
    pub text: String,
}

#[derive(Serialize, Deserialize)]
struct Content {
    version: u32,
    store: String,
    services: Vec<Kept>,
}

/// What the store is called among others.
pub fn name(place: &Place) -> String {
    format!("{}/{}", place.registry, place.path)
}

pub fn encode(place: &Place, services: &[Kept]) -> Vec<u8> {
    let content = Content { version: VERSION, store: name(place), services: services.to_vec() };
    // Only a map with keys that are no text could fail, and there is none.
    let mut body = serde_json::to_vec(&content).unwrap_or_default();
    body.push(b'\n');
    durable::seal(WHAT, &body)
}

/// What the file says, or why it says nothing.
pub fn decode(place: &Place, bytes: &[u8]) -> Result<Vec<Kept>, String> {
    #[derive(Deserialize)]
    struct Head {
        version: u32,
    }

    let body = durable::unseal(WHAT, bytes)?;
    let Head { version } = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    if version != VERSION {
        return Err(format!("it is of version {version}; expected version {VERSION}"));
    }
    let content: Content = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    if content.store != name(place) {
        return Err(format!("it is of another store, `{}`", content.store.escape_debug()));
    }
    Ok(content.services)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(path: &str) -> Place {
        Place { registry: "main".into(), path: path.into() }
    }

    #[test]
    fn what_is_written_can_be_read() {
        let kept = |service: &str| Kept { service: service.into(), version: "7".into(), text: "routes: [ä\n]".into() };
        for services in [vec![], vec![kept("users"), kept("orders")]] {
            assert_eq!(decode(&place("a"), &encode(&place("a"), &services)).unwrap(), services);
        }
    }

    #[test]
    fn what_is_not_whole_or_not_ours_is_refused() {
        let whole = encode(&place("a"), &[]);
        for cut in 0..whole.len() {
            assert!(decode(&place("a"), &whole[..cut]).is_err(), "cut at {cut}");
        }
        let error = decode(&place("b"), &whole).unwrap_err();
        assert!(error.contains("another store, `main/a`"), "{error}");
        let later = durable::seal(WHAT, br#"{"version": 2, "other": true}"#);
        assert!(decode(&place("a"), &later).unwrap_err().contains("version 2"));
    }
}
