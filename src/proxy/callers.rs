//! Who calls the local application: on each worker, the numbers of those callers that it has seen lately. So the request
//! path takes no lock and looks nothing up outside of its worker, but for a caller's first request.

use crate::telemetry::metrics::{CallerMetrics, InboundMetrics, OTHER, UNKNOWN};
use http::{HeaderMap, HeaderName, HeaderValue};
use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

/// So often per idle time it is looked who does not come any more.
const LOOKS: u32 = 4;
/// No caller's name is longer than a host's can be.
const MAX_NAME: usize = 253;

/// The callers that came to one listener on one worker.
#[derive(Debug, Default)]
pub struct Callers {
    /// By what the header says. No more than have a place in the metrics, and one for all others.
    known: RefCell<HashMap<Box<[u8]>, Rc<Caller>, foldhash::quality::RandomState>>,
}

/// One of them. As long as somebody holds it, its numbers are there.
#[derive(Debug)]
pub struct Caller {
    pub metrics: Arc<CallerMetrics>,
    /// How many looks in a row found that it had not come.
    idle_looks: Cell<u32>,
}

/// Where a listener's callers say who they are, and how many are told apart.
#[derive(Debug)]
pub struct Rule {
    pub header: HeaderName,
    pub max: usize,
    pub idle: Duration,
}

impl Rule {
    /// The time between two looks at who is idle.
    pub fn look_every(&self) -> Duration {
        (self.idle / LOOKS).max(Duration::from_millis(10))
    }
}

impl Callers {
    /// The caller that a request's headers name.
    pub fn of(&self, headers: &HeaderMap, rule: &Rule, metrics: &InboundMetrics) -> Rc<Caller> {
        let named = headers.get(&rule.header).map_or(&b""[..], HeaderValue::as_bytes);
        let named = if named.is_empty() { UNKNOWN.as_bytes() } else { named };
        if let Some(caller) = self.known.borrow().get(named) {
            caller.idle_looks.set(0);
            return caller.clone();
        }
        let name = std::str::from_utf8(named).ok().filter(|name| name.len() <= MAX_NAME).unwrap_or(OTHER);
        let metrics = metrics.caller(name, rule.max);
        // Where there is no place for it, nothing is kept of it either.
        let key: Box<[u8]> = metrics.caller.as_bytes().into();
        let mut known = self.known.borrow_mut();
        let caller = known.entry(key).or_insert_with(|| Rc::new(Caller { metrics, idle_looks: Cell::new(0) }));
        // Those that have no place of their own are found only here.
        caller.idle_looks.set(0);
        caller.clone()
    }

    /// Forgets all of them: from now on others count.
    pub fn forget(&self) {
        self.known.borrow_mut().clear();
    }

    /// Forgets those that did not come for the idle time. To be called every [`Rule::look_every`].
    pub fn look(&self) {
        self.known.borrow_mut().retain(|_, caller| {
            caller.idle_looks.set(caller.idle_looks.get() + 1);
            caller.idle_looks.get() <= LOOKS
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::{labels::WORDS, metrics::Metrics};

    const CALLER: HeaderName = HeaderName::from_static("x-caller");

    fn rule(max: usize) -> Rule {
        Rule { header: CALLER, max, idle: Duration::from_secs(60) }
    }

    fn named(name: &[u8]) -> HeaderMap {
        HeaderMap::from_iter([(CALLER, HeaderValue::from_bytes(name).unwrap())])
    }

    fn names(metrics: &InboundMetrics) -> Vec<String> {
        metrics.callers().iter().map(|caller| caller.caller.to_string()).collect()
    }

    #[test]
    fn each_is_known_by_its_name_and_those_over_the_limit_are_one() {
        let (metrics, callers, rule) = (Metrics::new(WORDS), Callers::default(), rule(2));
        let inbound = metrics.inbound("in", || None);
        let who = |headers: HeaderMap| callers.of(&headers, &rule, &inbound).metrics.caller.to_string();
        assert_eq!((who(named(b"a")), who(named(b"b")), who(named(b"a"))), ("a".into(), "b".into(), "a".into()));
        for number in 0..1000 {
            assert_eq!(who(named(format!("c{number}").as_bytes())), OTHER);
        }
        assert_eq!((who(HeaderMap::new()), who(named(b""))), (UNKNOWN.into(), UNKNOWN.into()), "beside the limit");
        assert_eq!((who(named(b"\xff")), who(named(&[b'x'; 254]))), (OTHER.into(), OTHER.into()));
        assert_eq!(names(&inbound), ["a", "b", OTHER, UNKNOWN]);
        assert_eq!(callers.known.borrow().len(), 4);
    }

    #[test]
    fn workers_share_a_callers_numbers_and_the_limit() {
        let metrics = Metrics::new(WORDS);
        let inbound = metrics.inbound("in", || None);
        let workers = [Callers::default(), Callers::default()];
        let of =
            |worker: usize, name: &str| workers[worker].of(&named(name.as_bytes()), &rule(2), &inbound).metrics.clone();
        assert!(Arc::ptr_eq(&of(0, "a"), &of(1, "a")));
        assert_eq!((&*of(0, "b").caller, &*of(1, "c").caller, &*of(1, "b").caller), ("b", OTHER, "b"));
    }

    #[test]
    fn who_does_not_come_any_more_goes_and_makes_room() {
        let (metrics, callers, rule) = (Metrics::new(WORDS), Callers::default(), rule(1));
        let inbound = metrics.inbound("in", || None);
        let of = |name: &str| callers.of(&named(name.as_bytes()), &rule, &inbound);
        let in_flight = of("a");
        assert_eq!(&*of("b").metrics.caller, OTHER);
        for _ in 0..=LOOKS {
            callers.look();
        }
        assert_eq!(names(&inbound), ["a"], "it has a request in flight");
        assert!(Arc::ptr_eq(&of("a").metrics, &in_flight.metrics), "so it is still the same");
        drop(in_flight);
        for _ in 0..LOOKS {
            callers.look();
        }
        assert_eq!(names(&inbound), ["a"], "not yet");
        callers.look();
        assert_eq!(names(&inbound), [""; 0]);
        assert_eq!(&*of("b").metrics.caller, "b");
    }

    #[test]
    fn those_without_a_place_keep_their_numbers_while_they_come() {
        let (metrics, callers, rule) = (Metrics::new(WORDS), Callers::default(), rule(0));
        let inbound = metrics.inbound("in", || None);
        let of = |name: &str| callers.of(&named(name.as_bytes()), &rule, &inbound);
        let numbers = Arc::downgrade(&of("a").metrics);
        for number in 0..3 * LOOKS {
            callers.look();
            assert!(numbers.strong_count() > 0, "gone after {number} more requests");
            of(&format!("b{number}"));
        }
        for _ in 0..=LOOKS {
            callers.look();
        }
        assert_eq!(names(&inbound), [""; 0]);
    }
}
