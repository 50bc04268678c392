//! What is shown for as long as somebody holds it.

use arc_swap::ArcSwap;
use std::sync::{Arc, Weak};

/// The handles that somebody still holds.
#[derive(Debug)]
pub(super) struct Alive<T>(pub(super) ArcSwap<Vec<Weak<T>>>);

impl<T> Default for Alive<T> {
    fn default() -> Self {
        Self(ArcSwap::default())
    }
}

impl<T> Alive<T> {
    pub(super) fn each(&self, visit: impl FnMut(Arc<T>)) {
        self.0.load().iter().filter_map(Weak::upgrade).for_each(visit);
    }

    pub(super) fn find_or_add(&self, is_it: impl Fn(&T) -> bool, make: impl FnOnce() -> T) -> Arc<T> {
        let find = |list: &[Weak<T>]| list.iter().filter_map(Weak::upgrade).find(|there| is_it(there));
        if let Some(there) = find(&self.0.load()) {
            return there;
        }
        let mut handle = Arc::new(make());
        let made = handle.clone();
        // Two threads may ask for the same at one moment; the one that comes second takes what the first has put in.
        self.0.rcu(|list| match find(list) {
            Some(there) => {
                handle = there;
                Vec::clone(list)
            }
            None => {
                handle = made.clone();
                Self::with(list, &made, |_| false)
            }
        });
        handle
    }

    pub(super) fn replace(&self, is_it: impl Fn(&T) -> bool, handle: &Arc<T>) {
        self.0.rcu(|list| Self::with(list, handle, &is_it));
    }

    /// The list with `handle` in it, without those that nobody holds or that are `unwanted`.
    fn with(list: &[Weak<T>], handle: &Arc<T>, unwanted: impl Fn(&T) -> bool) -> Vec<Weak<T>> {
        let keep = list.iter().filter(|there| there.upgrade().is_some_and(|there| !unwanted(&there)));
        keep.cloned().chain([Arc::downgrade(handle)]).collect()
    }
}
