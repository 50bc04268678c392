//! For the target `saved_state` of `fuzz/`.

use super::{saved, state::State};
use crate::{durable, registry::Instance};
use tokio::time::Instant;

/// What a start takes over from a file whose seal fits; `None` if there is something wrong with what is below it.
pub fn instances(body: &[u8]) -> Option<Vec<Instance>> {
    let kept = saved::decode(&durable::seal(saved::WHAT, body)).ok()?;
    let again = saved::encode(&kept).ok().and_then(|bytes| saved::decode(&bytes).ok());
    assert_eq!(again.as_ref(), Some(&kept), "what is written can be read");
    let mut state = State::default();
    for kept in kept.instances {
        // There may be more than there is room for.
        let _ = state.register(kept, Instant::now());
    }
    Some(state.instances().into_iter().map(|kept| kept.instance).collect())
}
