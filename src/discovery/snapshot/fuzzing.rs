//! For the target `snapshot` of `fuzz/`.

use super::content;
use crate::{durable, registry::Instance};

/// What a start takes over from a file whose seal fits; `None` if there is something wrong with what is below it.
pub fn instances(body: &[u8]) -> Option<Vec<Instance>> {
    let saved = content::decode("users", &durable::seal(content::WHAT, body)).ok()?;
    let again = content::encode("users", &saved.source, &saved.instances, saved.saved).ok();
    let again = again.and_then(|bytes| content::decode("users", &bytes).ok());
    assert_eq!(again.as_ref(), Some(&saved), "what is written can be read");
    Some(saved.instances.to_vec())
}
