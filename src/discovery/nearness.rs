//! How far away the instances of several datacenters are: the time that a connection to one takes.

use super::sources::Sources;
use crate::{
    cluster::connect,
    registry::{Address, Instance},
};
use futures_util::{
    future::{BoxFuture, join_all},
    stream::{FuturesUnordered, StreamExt},
};
use std::time::Duration;
use tokio::time::{Instant, sleep_until, timeout};

/// From one round of measurements to the next, give or take a tenth.
const INTERVAL: Duration = Duration::from_secs(10);
/// So many instances of a source are tried in a round; the nearest of them counts.
const SAMPLES: usize = 3;
/// What takes longer is out of reach.
const LONGEST: Duration = Duration::from_secs(1);
/// Sets that come at the start are measured together.
const SOON: Duration = Duration::from_millis(10);

/// Measures for one service.
pub struct Nearness {
    /// The sources that are measured.
    places: Vec<usize>,
    due: Instant,
    /// When a round last began.
    began: Option<Instant>,
    running: FuturesUnordered<BoxFuture<'static, Measured>>,
}

/// A source, and how far away it is; `None`: none of its instances that were tried can be reached.
pub type Measured = (usize, Option<Duration>);

impl Nearness {
    pub fn new(places: Vec<usize>) -> Self {
        Self { places, due: Instant::now() + INTERVAL, began: None, running: FuturesUnordered::new() }
    }

    /// A source has said something new, perhaps its first set.
    pub fn hear(&mut self, sources: &Sources) {
        if self.places.iter().any(|place| has_instances(sources, *place) && !sources.is_measured(*place)) {
            self.doubt();
        }
    }

    /// Requests failed: perhaps nothing there can be reached any more.
    pub fn doubt(&mut self) {
        // However many fail: one round at a time, and a second between them.
        let earliest = self.began.map_or(Instant::now() + SOON, |began| (began + LONGEST).max(Instant::now() + SOON));
        self.due = self.due.min(earliest);
    }

    /// The next result. Loses nothing when it is dropped.
    pub async fn next(&mut self, sources: &Sources) -> Measured {
        if self.places.is_empty() {
            return std::future::pending().await;
        }
        loop {
            if let Some(measured) = self.running.next().await {
                return measured;
            }
            sleep_until(self.due).await;
            self.began = Some(Instant::now());
            self.due = Instant::now() + INTERVAL.mul_f64(0.9 + 0.2 * fastrand::f64());
            for place in self.places.iter().copied().filter(|place| has_instances(sources, *place)) {
                let samples = samples(sources.set(place).map_or(&[], |set| set));
                self.running.push(Box::pin(async move { (place, measure(samples).await) }));
            }
        }
    }
}

fn has_instances(sources: &Sources, place: usize) -> bool {
    sources.set(place).is_some_and(|set| !set.is_empty())
}

/// Some of the addresses, by chance.
fn samples(set: &[Instance]) -> Vec<Address> {
    let mut addresses: Vec<_> = set.iter().filter(|instance| instance.healthy).map(|one| one.address.clone()).collect();
    fastrand::shuffle(&mut addresses);
    addresses.truncate(SAMPLES);
    addresses
}

async fn measure(samples: Vec<Address>) -> Option<Duration> {
    join_all(samples.into_iter().map(time_to_open)).await.into_iter().flatten().min()
}

async fn time_to_open(address: Address) -> Option<Duration> {
    let begun = Instant::now();
    let opened = timeout(LONGEST, connect::open_tcp(&address)).await;
    opened.is_ok_and(|opened| opened.is_ok()).then(|| begun.elapsed())
}
