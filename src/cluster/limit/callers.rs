//! A token bucket for each caller, in bounded memory and without a lock.

use crate::cluster::bucket::{Bucket, Rate};
use http::{HeaderMap, HeaderName};
use std::{
    hash::BuildHasher,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};
use tokio::time::Instant;

/// How many places a caller's bucket may be in. As many are looked at for each request: four cache lines.
const WAYS: usize = 16;

/// The buckets of the callers that came last, shared by all workers: a rate per worker would be too low for a caller whose
/// one connection is with one of them.
///
/// It is a set-associative cache: a caller's hash says in which sixteen places its bucket can be. A newcomer whose places
/// are all taken takes over the one of them whose bucket is the fullest. Among full buckets, which is what a caller has who
/// did not come for a while, that is the one used the longest ago, and nothing is lost with it. Where none is full, it is
/// taken over as it is (as counters are in Metwally's "space saving" algorithm): more callers at one time than there are
/// places for may be refused too early, but by inventing names nobody gets more through than the places give together.
/// There are two places per caller of `max_callers`, so that of that many at most one in some hundred finds its sixteen taken.
///
/// Two workers that see a newcomer at the same moment may give it a place each, or take a token for it from the bucket of
/// the one that had its place: it is one token per worker then that is counted wrongly. Callers are told apart by a 64-bit
/// hash with a random key.
#[derive(Debug)]
pub struct Callers {
    header: HeaderName,
    rate: Rate,
    hasher: foldhash::quality::RandomState,
    places: Box<[Place]>,
}

#[derive(Debug, Default)]
struct Place {
    /// The caller's hash; 0 while there was none.
    caller: AtomicU64,
    bucket: Bucket,
}

impl Callers {
    pub fn new(header: HeaderName, rate: Rate, max_callers: u32) -> Self {
        let places = (2 * max_callers as usize).next_multiple_of(WAYS);
        Self {
            header,
            rate,
            hasher: foldhash::quality::RandomState::default(),
            places: (0..places).map(|_| Place::default()).collect(),
        }
    }

    /// Takes a token of the caller that the headers name, or tells when there will be one.
    pub fn take(&self, headers: &HeaderMap, now: Instant) -> Result<(), Duration> {
        let caller = headers.get(&self.header).map_or(&b""[..], |value| value.as_bytes());
        self.place(self.hasher.hash_one(caller).max(1)).bucket.take(self.rate, now)
    }

    fn place(&self, caller: u64) -> &Place {
        let set = (caller >> 32) as usize % (self.places.len() / WAYS);
        let places = &self.places[set * WAYS..][..WAYS];
        let known = || places.iter().find(|place| place.caller.load(Relaxed) == caller);
        loop {
            if let Some(place) = known() {
                return place;
            }
            let fullest = places.iter().min_by_key(|place| place.bucket.full()).unwrap_or(&places[0]);
            let before = fullest.caller.load(Relaxed);
            // Where another worker was quicker, it may have been with the same caller.
            if fullest.caller.compare_exchange(before, caller, Relaxed, Relaxed).is_ok() {
                return fullest;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    const CALLER: HeaderName = HeaderName::from_static("x-caller");

    fn callers(max_callers: u32) -> Callers {
        Callers::new(CALLER, Rate::new(1.0, 3.0), max_callers)
    }

    fn named(name: &str) -> HeaderMap {
        HeaderMap::from_iter([(CALLER, name.parse().unwrap())])
    }

    /// How many of ten requests get through.
    fn through(callers: &Callers, name: &str) -> usize {
        (0..10).filter(|_| callers.take(&named(name), Instant::now()).is_ok()).count()
    }

    #[tokio::test(start_paused = true)]
    async fn each_caller_has_its_own_rate() {
        let callers = callers(1000);
        assert_eq!((through(&callers, "a"), through(&callers, "b"), through(&callers, "a")), (3, 3, 0));
        assert_eq!(callers.take(&HeaderMap::new(), Instant::now()), Ok(()), "those without a name are one more");
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!((through(&callers, "a"), through(&callers, "b")), (2, 2));
    }

    #[tokio::test(start_paused = true)]
    async fn nearly_all_of_the_callers_that_it_is_made_for_are_told_apart() {
        let callers = callers(1000);
        let all: usize = (0..1000).map(|number| through(&callers, &number.to_string())).sum();
        assert!((2950..=3000).contains(&all), "{all}");
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_did_not_come_for_the_longest_time_is_forgotten_first() {
        let callers = callers(8);
        assert_eq!(callers.places.len(), WAYS, "one set");
        for number in 0..WAYS {
            assert_eq!(through(&callers, &number.to_string()), 3);
            tokio::time::advance(Duration::from_millis(10)).await;
        }
        let is_known = |name: &str| {
            let hash = callers.hasher.hash_one(name.as_bytes()).max(1);
            callers.places.iter().any(|place| place.caller.load(Relaxed) == hash)
        };
        assert_eq!(through(&callers, "new"), 0, "takes over the fullest bucket, which has nothing yet");
        assert_eq!((is_known("new"), is_known("0"), is_known("1")), (true, false, true));
        tokio::time::advance(Duration::from_secs(3)).await;
        assert_eq!((through(&callers, "newer"), through(&callers, "2")), (3, 3));
        assert!(is_known("15") && is_known("newer"));
    }

    #[tokio::test(start_paused = true)]
    async fn made_up_names_get_no_more_through_than_there_are_places() {
        let callers = callers(50);
        let all: usize = (0..10_000).map(|number| through(&callers, &number.to_string())).sum();
        assert!(all <= callers.places.len() * 3, "{all} through {} places", callers.places.len());
    }

    #[test]
    fn threads_give_each_caller_its_rate() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let _entered = runtime.enter();
        let (callers, now) = (Arc::new(Callers::new(CALLER, Rate::new(1.0, 100.0), 100)), Instant::now());
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let callers = callers.clone();
                std::thread::spawn(move || {
                    let mut through = [0; 10];
                    for _ in 0..100 {
                        for (caller, through) in through.iter_mut().enumerate() {
                            *through += usize::from(callers.take(&named(&caller.to_string()), now).is_ok());
                        }
                    }
                    through
                })
            })
            .collect();
        let counts: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
        for caller in 0..10 {
            let through: usize = counts.iter().map(|counts| counts[caller]).sum();
            // At the very first moment each of the four may have found another place.
            assert!((100..=103).contains(&through), "{through}");
        }
    }
}
