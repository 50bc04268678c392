//! For the target `consul` of `fuzz/`.

use super::decode;
use crate::registry::Instance;

/// What an agent's answer gives; `None` if it is no answer.
pub fn instances(body: &[u8]) -> Option<Vec<Instance>> {
    Some(decode::instances(serde_json::from_slice(body).ok()?, false).0)
}
