//! The numbers of the local application: whether it is well, and who calls it how.

use super::{Family, Gauge, Page, Red};
use arc_swap::ArcSwap;
use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Weak},
};

/// Callers that do not say who they are.
pub const UNKNOWN: &str = "unknown";
/// All callers for which there is no place.
pub const OTHER: &str = "other";

/// What one inbound listener's callers ask for.
pub struct InboundMetrics {
    listener: Box<str>,
    healthy: Box<dyn Fn() -> Option<bool> + Send + Sync>,
    /// By name. One whose handle nobody holds is as good as not there, and goes with the next change.
    callers: ArcSwap<HashMap<Arc<str>, Weak<CallerMetrics>>>,
    /// How many have a place.
    places: Arc<Gauge>,
}

/// One caller's numbers.
#[derive(Debug)]
pub struct CallerMetrics {
    pub caller: Arc<str>,
    pub red: Red,
    _place: Option<Place>,
}

/// A caller's place among those that have numbers of their own.
#[derive(Debug)]
struct Place(Arc<Gauge>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl InboundMetrics {
    /// `healthy` is asked at each scrape whether the application passes its checks; `None`: there are none.
    pub(super) fn new(listener: &str, healthy: impl Fn() -> Option<bool> + Send + Sync + 'static) -> Self {
        Self {
            listener: listener.into(),
            healthy: Box::new(healthy),
            callers: ArcSwap::default(),
            places: Arc::default(),
        }
    }

    pub(super) fn listener(&self) -> &str {
        &self.listener
    }

    /// The caller's handle: the one that others hold already, or a new one from zero. If `max` callers have one, that of
    /// [`OTHER`]. Whoever keeps a handle keeps its place.
    pub fn caller(&self, name: &str, max: usize) -> Arc<CallerMetrics> {
        if let Some(there) = self.callers.load().get(name).and_then(Weak::upgrade) {
            return there;
        }
        let place = if [UNKNOWN, OTHER].contains(&name) {
            None
        } else if self.places.inc_up_to(i64::try_from(max).unwrap_or(i64::MAX)) {
            Some(Place(self.places.clone()))
        } else {
            return self.caller(OTHER, max);
        };
        let made = Arc::new(CallerMetrics { caller: name.into(), red: Red::default(), _place: place });
        let mut handle = made.clone();
        // Two workers may see it for the first time at one moment; the one that comes second takes the first one's.
        self.callers.rcu(|known| {
            let mut known: HashMap<_, _> = known
                .iter()
                .filter(|(_, handle)| handle.strong_count() > 0)
                .map(|(k, v)| (k.clone(), v.clone()))
                .collect();
            match known.get(name).and_then(Weak::upgrade) {
                Some(there) => handle = there,
                None => {
                    handle = made.clone();
                    known.insert(made.caller.clone(), Arc::downgrade(&made));
                }
            }
            known
        });
        handle
    }

    /// The callers that have numbers now, by name.
    pub fn callers(&self) -> Vec<Arc<CallerMetrics>> {
        let mut all: Vec<_> = self.callers.load().values().filter_map(Weak::upgrade).collect();
        all.sort_by(|a, b| a.caller.cmp(&b.caller));
        all
    }

    pub(super) fn collect(&self, page: &mut Page) {
        let listener = ("listener", &*self.listener);
        if let Some(healthy) = (self.healthy)() {
            page.add(Family::AppHealthy, &[listener], f64::from(u8::from(healthy)));
        }
        let families = [Family::InboundRequests, Family::InboundErrors, Family::InboundDuration];
        for metrics in self.callers() {
            metrics.red.collect(page, families, &[listener, ("caller", &*metrics.caller)]);
        }
    }
}

impl fmt::Debug for InboundMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InboundMetrics").field("listener", &self.listener).finish_non_exhaustive()
    }
}
