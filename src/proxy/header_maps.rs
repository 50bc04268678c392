//! Header maps that go round within a worker: a map is two allocations, and every message has one.

use http::HeaderMap;
use std::cell::RefCell;

/// Kept per worker. More in use at one moment are fine; they are freed afterwards.
const MAX_KEPT: usize = 64;
/// A map that once had to hold more fields than this is not kept.
const MAX_CAPACITY: usize = 64;

thread_local! {
    static KEPT: RefCell<Vec<HeaderMap>> = const { RefCell::new(Vec::new()) };
}

/// An empty map with room for `fields` fields.
pub fn take(fields: usize) -> HeaderMap {
    match KEPT.with_borrow_mut(Vec::pop) {
        Some(mut map) => {
            map.reserve(fields);
            map
        }
        None => HeaderMap::with_capacity(fields),
    }
}

/// Gives a map back. What is in it is lost.
pub fn give(mut map: HeaderMap) {
    if map.capacity() == 0 || map.capacity() > MAX_CAPACITY {
        return;
    }
    map.clear();
    KEPT.with_borrow_mut(|kept| {
        if kept.len() < MAX_KEPT {
            kept.push(map);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderValue, header::HOST};

    #[test]
    fn a_map_comes_back_empty_and_with_its_room() {
        let mut map = take(8);
        map.insert(HOST, HeaderValue::from_static("users"));
        let room = map.capacity();
        give(map);
        let again = take(4);
        assert_eq!((again.len(), again.capacity()), (0, room));
        assert!(again.get(HOST).is_none());
        assert!(take(40).capacity() >= 40);
    }

    #[test]
    fn a_map_that_was_huge_is_not_kept() {
        give(HeaderMap::with_capacity(1000));
        assert!(take(1).capacity() <= MAX_CAPACITY);
    }
}
