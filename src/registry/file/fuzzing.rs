//! For the target `services_file` of `fuzz/`.

use super::content;
use crate::registry::Instance;

/// The file's sets of instances; `None` if there is something wrong with it.
pub fn instances(bytes: &[u8]) -> Option<Vec<Vec<Instance>>> {
    Some(content::decode("services.yaml", bytes).ok()?.into_values().collect())
}
