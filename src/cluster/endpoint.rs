//! One address of a service and what is known about it from its traffic.

use super::{
    check::Checked,
    health::{Choice, Health, Outcome},
};
use crate::registry::Instance;
use arc_swap::ArcSwapOption;
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::time::Instant;

/// An instance as the balancer sees it. While the registry says the same about it, it stays the same `Arc`.
#[derive(Debug)]
pub struct Endpoint {
    pub instance: Instance,
    pub live: Arc<Live>,
}

impl Endpoint {
    /// Whether it may be chosen as far as its registry goes.
    pub fn is_usable(&self) -> bool {
        self.instance.healthy && self.instance.weight > 0
    }

    /// Whether its registry says that this address is for gRPC calls. (Kratos and its kin register each server of a
    /// process by its scheme.)
    pub fn is_for_grpc(&self) -> bool {
        self.instance.labels.get("scheme").is_some_and(|scheme| scheme == "grpc")
    }
}

/// The numbers of one address. They outlive a change of weight or labels, and are shared by all workers.
#[derive(Debug)]
pub struct Live {
    /// Names this address (with its protocol and TLS) within the process, for pools.
    pub key: u64,
    in_flight: AtomicU32,
    requests: AtomicU64,
    failures: AtomicU64,
    /// Requests that ended without an answer because nobody wanted it any more.
    abandoned: AtomicU64,
    latency: PeakEwma,
    /// The nanosecond until which it gets less than its share, because it asked for a pause.
    penalised: AtomicU64,
    pub health: Health,
    /// What active checks have shown, if there are any.
    checked: ArcSwapOption<Checked>,
    /// Whether its registry no longer lists it.
    gone: AtomicBool,
    /// Whether it is in the table no more.
    left: AtomicBool,
}

impl Live {
    /// `start`: the latency to assume until there is a sample.
    pub fn new(start: Option<Duration>) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self {
            key: NEXT.fetch_add(1, Relaxed),
            in_flight: AtomicU32::new(0),
            requests: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            abandoned: AtomicU64::new(0),
            latency: PeakEwma::new(start),
            penalised: AtomicU64::new(0),
            health: Health::default(),
            checked: ArcSwapOption::empty(),
            gone: AtomicBool::new(false),
            left: AtomicBool::new(false),
        }
    }

    /// What active checks have shown; `None` while there are none.
    pub fn checked(&self) -> Option<Arc<Checked>> {
        self.checked.load_full()
    }

    pub(super) fn set_checked(&self, checked: Option<Checked>) {
        self.checked.store(checked.map(Arc::new));
    }

    /// Whether its registry no longer lists it, and it stays in use only because its checks pass.
    pub fn is_gone(&self) -> bool {
        self.gone.load(Relaxed)
    }

    /// Whether it was taken out of the table: nothing new is sent there. It does not come back; its address may, with other
    /// numbers.
    pub fn has_left(&self) -> bool {
        self.left.load(Relaxed)
    }

    pub(super) fn leave(&self) {
        self.left.store(true, Relaxed);
    }

    pub fn set_gone(&self, gone: bool) {
        self.gone.store(gone, Relaxed);
    }

    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Relaxed)
    }

    /// Requests that were sent here.
    pub fn requests(&self) -> u64 {
        self.requests.load(Relaxed)
    }

    /// Those of them that failed, as [`config::Breaker`](crate::config::Breaker) defines it.
    pub fn failures(&self) -> u64 {
        self.failures.load(Relaxed)
    }

    /// Requests of which it is known what came of them. Read while others write, so right to within a few.
    pub fn completed(&self) -> u64 {
        let open = u64::from(self.in_flight()) + self.abandoned.load(Relaxed);
        self.requests().saturating_sub(open)
    }

    /// The latency estimate now; `None` before the first sample where there was nothing to start from.
    pub fn latency(&self, now: Instant) -> Option<Duration> {
        let nanos = self.latency.read(now);
        (nanos > 0.0).then(|| Duration::from_nanos(nanos as u64))
    }

    /// Requests in flight with one more, relative to `share` (the endpoint's weight over the mean weight).
    pub fn load(&self, share: f64) -> f64 {
        f64::from(self.in_flight()) / share + 1.0
    }

    /// The latency estimate now, for comparing with another's.
    pub fn estimate(&self, now: Instant) -> Estimate {
        Estimate { decayed: self.latency.read(now), last: self.latency.last() }
    }

    /// A response has not come for so long; nobody waits for it any more.
    pub fn at_least(&self, latency: Duration, now: Instant) {
        if latency.as_nanos() as f64 > self.latency.read(now) {
            self.latency.observe(latency, now);
        }
    }

    /// What it was like before says nothing of now.
    pub(super) fn forget_latency(&self) {
        self.latency.forget();
    }

    pub fn observe(&self, latency: Duration, now: Instant) {
        self.latency.observe(latency, now);
    }

    /// Takes note that it asked for a pause. Gives the nanosecond until which it has one.
    pub(super) fn penalise(&self, long: Duration, now: Instant) -> u64 {
        let until = nanos(now + long);
        self.penalised.fetch_max(until, Relaxed).max(until)
    }

    /// For how long it still gets less than its share.
    pub fn penalty_left(&self, now: Instant) -> Option<Duration> {
        let left = self.penalised_until().checked_sub(nanos(now)).filter(|left| *left > 0);
        left.map(Duration::from_nanos)
    }

    /// The nanosecond until which it gets less than its share; 0 if it never asked for that.
    pub fn penalised_until(&self) -> u64 {
        self.penalised.load(Relaxed)
    }
}

/// Counts a request as in flight for as long as it lives, and tells its endpoint's health what came of it.
#[derive(Debug)]
pub struct InFlight {
    endpoint: Arc<Endpoint>,
    choice: Choice,
    told: Option<Outcome>,
}

impl InFlight {
    pub fn start(endpoint: Arc<Endpoint>, choice: Choice) -> Self {
        endpoint.live.in_flight.fetch_add(1, Relaxed);
        endpoint.live.requests.fetch_add(1, Relaxed);
        Self { endpoint, choice, told: None }
    }

    pub fn endpoint(&self) -> &Arc<Endpoint> {
        &self.endpoint
    }

    /// How the endpoint came to be chosen.
    pub fn choice(&self) -> Choice {
        self.choice
    }

    /// What came of it. A response that began well may still break off; nothing else is counted twice. True if something
    /// has to be decided: see [`Health::report`].
    pub fn tell(&mut self, outcome: Outcome, limit: u32) -> bool {
        let counts = self.told.is_none() || (self.told, outcome) == (Some(Outcome::Success), Outcome::Failure);
        if !counts {
            return false;
        }
        self.told = Some(outcome);
        let live = &self.endpoint.live;
        match outcome {
            Outcome::Success => {}
            Outcome::Failure => drop(live.failures.fetch_add(1, Relaxed)),
            Outcome::Silence => drop(live.abandoned.fetch_add(1, Relaxed)),
        }
        // Where its registry says that it is gone, one failure is enough to believe it.
        live.health.report(outcome, self.choice, limit) || (outcome == Outcome::Failure && live.is_gone())
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let live = &self.endpoint.live;
        if self.told.is_none() {
            live.abandoned.fetch_add(1, Relaxed);
            if self.choice == Choice::Probe {
                live.health.give_probe_back();
            }
        }
        live.in_flight.fetch_sub(1, Relaxed);
    }
}

/// A latency in nanoseconds that is known only roughly; 0 if it is not known.
#[derive(Debug, Clone, Copy)]
pub struct Estimate {
    decayed: f64,
    /// As it was when the endpoint last answered.
    last: f64,
}

impl Estimate {
    /// Latencies below this differ by scheduling, not by the endpoint's state.
    const FLOOR: f64 = 2e6;
    /// Nor do those within this factor of each other. A choice made on less would send everything to whoever was lucky
    /// last, and leave an endpoint alone for seconds because of one hiccup.
    const NOISE: f64 = 2.0;

    /// How many times as slow as `other` this is; exactly 1 if that is not certain.
    pub fn relative_to(self, other: Self) -> f64 {
        let ratio = self.decayed.max(Self::FLOOR) / other.decayed.max(Self::FLOOR);
        if (1.0 / Self::NOISE..=Self::NOISE).contains(&ratio) { 1.0 } else { self.certainly(other, ratio) }
    }

    /// Time makes an endpoint forgiven, and never faster than the others: perhaps it has been silent for so long because it
    /// does not answer at all. Nor is one faster that has not answered yet.
    fn certainly(self, other: Self, ratio: f64) -> f64 {
        let last = self.last.max(Self::FLOOR) / other.last.max(Self::FLOOR);
        if self.last.min(other.last) <= 0.0 {
            1.0
        } else if ratio > 1.0 {
            ratio.min(last).max(1.0)
        } else {
            ratio.max(last).min(1.0)
        }
    }

    /// How fast it was last: 1 / latency, but not more than can be told from noise. `None` if it is not known.
    pub fn speed(self) -> Option<f64> {
        (self.last > 0.0).then(|| 1.0 / self.last.max(Self::FLOOR / 2.0))
    }

    /// How fast it may be by now: as it was last, or as time lets one hope, but then no faster than `usual`.
    pub fn hoped_speed(self, usual: f64) -> Option<f64> {
        self.speed().map(|speed| speed.max(usual.min(1.0 / self.decayed)))
    }
}

/// Time constant of the decay. Same as Finagle's and Linkerd's default.
const DECAY: f64 = 10e9;

/// A latency estimate that jumps up with a higher sample and comes down over ten seconds. (Finagle's "peak EWMA".)
///
/// Two workers may write at one moment; one sample is lost then, which an estimate can bear and a lock would not.
#[derive(Debug)]
struct PeakEwma {
    /// `f64` nanoseconds; 0 = nothing known.
    value: AtomicU64,
    /// Nanoseconds since [`origin`].
    stamp: AtomicU64,
}

impl PeakEwma {
    fn new(start: Option<Duration>) -> Self {
        let value = start.map_or(0.0, |start| start.as_nanos() as f64);
        Self { value: AtomicU64::new(value.to_bits()), stamp: AtomicU64::new(nanos(Instant::now())) }
    }

    fn observe(&self, latency: Duration, now: Instant) {
        let (sample, decayed) = (latency.as_nanos() as f64, self.read(now));
        let value = if sample >= decayed {
            sample
        } else {
            let weight = fade(self.age(now));
            sample.mul_add(1.0 - weight, self.last() * weight)
        };
        self.value.store(value.to_bits(), Relaxed);
        self.stamp.store(nanos(now), Relaxed);
    }

    fn forget(&self) {
        self.value.store(0, Relaxed);
    }

    /// Decays while nobody sends anything, so that an endpoint that was slow once gets a chance again.
    fn read(&self, now: Instant) -> f64 {
        self.last() * fade(self.age(now))
    }

    /// Without the decay.
    fn last(&self) -> f64 {
        f64::from_bits(self.value.load(Relaxed))
    }

    fn age(&self, now: Instant) -> f64 {
        nanos(now).saturating_sub(self.stamp.load(Relaxed)) as f64
    }
}

/// What is left of a value after `age` nanoseconds: e^(−age / [`DECAY`]).
fn fade(age: f64) -> f64 {
    let x = age / DECAY;
    // Up to 10 ms, as between the requests of a busy service, the series' first terms are exact to 10⁻⁹.
    if x < 1e-3 { 1.0 - x + x * x / 2.0 } else { (-x).exp() }
}

/// Nanoseconds since the process's first use of the clock.
pub(super) fn nanos(now: Instant) -> u64 {
    static ORIGIN: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    let origin = *ORIGIN.get_or_init(|| now);
    u64::try_from(now.saturating_duration_since(origin).as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[tokio::test(start_paused = true)]
    async fn latency_jumps_up_and_decays_over_ten_seconds() {
        let live = Live::new(None);
        assert_eq!(live.latency(Instant::now()), None);
        live.observe(MS * 10, Instant::now());
        live.observe(MS * 100, Instant::now());
        assert_eq!(live.latency(Instant::now()), Some(MS * 100), "a peak is taken at once");
        tokio::time::advance(Duration::from_secs(10)).await;
        let after = live.latency(Instant::now()).unwrap();
        assert!((MS * 36..MS * 38).contains(&after), "1/e of it after the time constant: {after:?}");
        live.observe(MS * 10, Instant::now());
        let after = live.latency(Instant::now()).unwrap();
        assert!((MS * 42..MS * 45).contains(&after), "weighted by age: 100/e + 10 × (1 − 1/e): {after:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn small_differences_of_latency_count_for_nothing() {
        let ratio = |one, other| {
            let now = Instant::now();
            Live::new(Some(MS * one)).estimate(now).relative_to(Live::new(Some(MS * other)).estimate(now))
        };
        for (one, other, expected) in [(10, 19, 1.0), (19, 10, 1.0), (1, 4, 1.0), (100, 10, 10.0), (10, 100, 0.1)] {
            assert!((ratio(one, other) - expected).abs() < 1e-9, "{one} ms to {other} ms: {}", ratio(one, other));
        }
        assert_eq!((ratio(0, 100), ratio(100, 0)), (1.0, 1.0), "0 is what is not known");
    }

    #[tokio::test(start_paused = true)]
    async fn time_forgives_and_does_not_recommend() {
        let (fast, slow, silent) = (Live::new(None), Live::new(None), Live::new(None));
        let start = Instant::now();
        silent.observe(MS * 100, start);
        slow.observe(MS * 2000, start);
        let ratio = |one: &Live, other: &Live| one.estimate(Instant::now()).relative_to(other.estimate(Instant::now()));
        for (seconds, slow_one) in [(0, 20.0), (10, 7.4), (30, 1.0), (60, 1.0)] {
            tokio::time::sleep_until(start + Duration::from_secs(seconds)).await;
            fast.observe(MS * 100, Instant::now());
            assert!((ratio(&slow, &fast) - slow_one).abs() < 0.1, "{seconds}: {}", ratio(&slow, &fast));
            assert!((ratio(&fast, &slow) - 1.0 / slow_one).abs() < 0.01);
            assert_eq!((ratio(&silent, &fast), ratio(&fast, &silent)), (1.0, 1.0));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn load_counts_what_is_in_flight_relative_to_the_share() {
        let endpoint = Arc::new(Endpoint {
            instance: Instance::new("a", "10.0.0.1:80".parse().unwrap()),
            live: Arc::new(Live::new(None)),
        });
        let one = InFlight::start(endpoint.clone(), Choice::Available);
        let two = InFlight::start(endpoint.clone(), Choice::Available);
        assert!((endpoint.live.load(1.0) - 3.0).abs() < 1e-9 && (endpoint.live.load(2.0) - 2.0).abs() < 1e-9);
        drop((one, two));
        assert_eq!((endpoint.live.in_flight(), endpoint.live.requests()), (0, 2));
    }
}
