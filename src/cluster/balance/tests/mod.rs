use super::{turn::gcd, *};
use crate::{
    cluster::{
        Live,
        endpoint::InFlight,
        health::{Cause, Choice, Standing},
    },
    config::Policy,
    registry::Instance,
};
use proptest::prelude::*;
use std::time::Duration;

mod discounts;
mod hashing;
mod parts;

fn endpoint(number: usize, edit: impl FnOnce(&mut Instance)) -> Arc<Endpoint> {
    let address = format!("10.0.{}.{}:80", number / 250, number % 250 + 1).parse().unwrap();
    let mut instance = Instance::new(number.to_string(), address);
    edit(&mut instance);
    Arc::new(Endpoint { instance, live: Arc::new(Live::new(None)) })
}

fn endpoints(weights: &[u32]) -> Vec<Arc<Endpoint>> {
    weights.iter().enumerate().map(|(number, weight)| endpoint(number, |instance| instance.weight = *weight)).collect()
}

fn selector(policy: Policy, endpoints: &[Arc<Endpoint>]) -> Selector {
    Selector::new(&Balance { policy, ..Balance::default() }, None, endpoints, |_| true)
}

/// Any request's.
fn ask() -> Ask {
    by(Some(Key::new(fastrand::u64(..), 1)))
}

fn by(key: Option<Key>) -> Ask {
    Ask { key, ..Ask::default() }
}

/// How many of so many requests each endpoint gets.
fn counts(selector: &Selector, endpoints: &[Arc<Endpoint>], picks: usize) -> Vec<usize> {
    let mut counts = vec![0; endpoints.len()];
    for _ in 0..picks {
        counts[selector.pick(endpoints, ask(), &[], Instant::now()).unwrap().0] += 1;
    }
    counts
}

const POLICIES: [Policy; 8] = [
    Policy::PeakEwma,
    Policy::LeastRequest,
    Policy::LeastConnections,
    Policy::RoundRobin,
    Policy::Random,
    Policy::ResponseTime,
    Policy::Maglev,
    Policy::RingHash,
];

/// How far from its share an endpoint may be. A ring of some hundred points is uneven, as everybody's is.
fn unevenness(policy: Policy) -> f64 {
    if policy == Policy::RingHash { 0.3 } else { 0.1 }
}

#[test]
fn every_policy_honours_weights() {
    let endpoints = endpoints(&[100, 300, 0, 600]);
    for policy in POLICIES {
        let counts = counts(&selector(policy, &endpoints), &endpoints, 20_000);
        assert_eq!(counts[2], 0, "{policy:?}: weight 0 takes none");
        for (index, expected) in [(0, 2_000.0), (1, 6_000.0), (3, 12_000.0)] {
            let off = (counts[index] as f64 - expected).abs() / expected;
            assert!(off < unevenness(policy), "{policy:?}: {counts:?}");
        }
    }
}

#[test]
fn of_nothing_nothing_is_picked() {
    for policy in POLICIES {
        for weights in [&[][..], &[0, 0]] {
            let endpoints = endpoints(weights);
            assert_eq!(selector(policy, &endpoints).pick(&endpoints, ask(), &[], Instant::now()), None);
        }
    }
}

#[test]
fn what_its_registry_calls_unhealthy_is_not_picked() {
    let mut endpoints = endpoints(&[1, 1]);
    let sick = Instance { healthy: false, ..endpoints[0].instance.clone() };
    endpoints[0] = Arc::new(Endpoint { instance: sick, live: endpoints[0].live.clone() });
    for policy in POLICIES {
        assert_eq!(counts(&selector(policy, &endpoints), &endpoints, 100)[0], 0, "{policy:?}");
    }
}

#[test]
fn a_slow_endpoint_gets_little_from_the_policies_that_look_at_latency() {
    for weights in [[1; 5], [1, 2, 3, 4, 5]] {
        let endpoints = endpoints(&weights);
        for (number, endpoint) in endpoints.iter().enumerate() {
            let latency = if number == 4 { 200 } else { 10 };
            endpoint.live.observe(Duration::from_millis(latency), Instant::now());
        }
        let picked = |policy| counts(&selector(policy, &endpoints), &endpoints, 10_000)[4];
        assert_eq!(picked(Policy::PeakEwma), 0, "never the slow one of two");
        assert!((1..600).contains(&picked(Policy::ResponseTime)), "a twentieth of its share");
        assert!(picked(Policy::RoundRobin) >= 2_000);
    }
}

#[test]
fn one_that_has_not_answered_yet_is_tried_but_not_preferred() {
    for policy in [Policy::PeakEwma, Policy::ResponseTime] {
        let endpoints = endpoints(&[1; 5]);
        endpoints[..4].iter().for_each(|endpoint| endpoint.live.observe(Duration::from_millis(50), Instant::now()));
        let selector = selector(policy, &endpoints);
        let picked = counts(&selector, &endpoints, 10_000)[4];
        assert!((1_700..2_300).contains(&picked), "{policy:?}: {picked}");
        let _waiting: Vec<_> = (0..3).map(|_| InFlight::start(endpoints[4].clone(), Choice::Available)).collect();
        let picked = counts(&selector, &endpoints, 10_000)[4];
        assert!(picked < 700, "{policy:?}: {picked}");
    }
}

#[test]
fn least_request_avoids_the_busy_one() {
    let endpoints = endpoints(&[1, 1, 1]);
    let _busy: Vec<_> = (0..5).map(|_| InFlight::start(endpoints[1].clone(), Choice::Available)).collect();
    assert_eq!(counts(&selector(Policy::LeastRequest, &endpoints), &endpoints, 1000)[1], 0);
}

#[test]
fn least_connections_takes_the_least_busy_by_weight_of_all() {
    let endpoints = endpoints(&[100, 100, 200, 100]);
    let selector = selector(Policy::LeastConnections, &endpoints);
    let mut busy = Vec::new();
    for _ in 0..50 {
        let (index, choice) = selector.pick(&endpoints, ask(), &[], Instant::now()).unwrap();
        busy.push(InFlight::start(endpoints[index].clone(), choice));
    }
    let in_flight: Vec<_> = endpoints.iter().map(|endpoint| endpoint.live.in_flight()).collect();
    for (index, expected) in [(0, 10), (1, 10), (2, 20), (3, 10)] {
        assert!(in_flight[index].abs_diff(expected) <= 2, "{in_flight:?}");
    }
    drop(busy.extract_if(.., |request| request.endpoint().instance.id == "1").collect::<Vec<_>>());
    assert_eq!(counts(&selector, &endpoints, 100), [0, 100, 0, 0], "the only one that is idle");
}

#[test]
fn least_connections_among_many_finds_one_of_those_that_are_idle() {
    let endpoints = endpoints(&[1; 200]);
    let selector = selector(Policy::LeastConnections, &endpoints);
    let half = endpoints.iter().step_by(2);
    let _busy: Vec<_> = half.map(|endpoint| InFlight::start(endpoint.clone(), Choice::Available)).collect();
    let counts = counts(&selector, &endpoints, 10_000);
    let to_busy: usize = counts.iter().step_by(2).sum();
    assert!(to_busy < 100, "1 in 256 is to be expected: {to_busy}");
}

#[test]
fn round_robin_of_any_number_of_weights_is_made_in_no_time() {
    // All unlike, so that no common divisor makes the period short.
    let weights: Vec<u32> = (0..10_000).map(|n| 1_000_000 + n * n).collect();
    let endpoints = endpoints(&weights);
    let selector = selector(Policy::RoundRobin, &endpoints);
    let counts = counts(&selector, &endpoints, 160_000);
    let (light, heavy) = (counts[..100].iter().sum::<usize>(), counts[9_900..].iter().sum::<usize>());
    assert!(heavy > light * 20, "the light still have one turn each: {light} and {heavy}");
}

#[test]
fn a_retry_goes_to_another_endpoint_while_there_is_one() {
    let endpoints = endpoints(&[1_000_000, 1, 1]);
    for policy in POLICIES {
        let selector = selector(policy, &endpoints);
        let mut tried = Vec::new();
        for _ in 0..3 {
            tried.push(endpoints[selector.pick(&endpoints, ask(), &tried, Instant::now()).unwrap().0].clone());
        }
        let mut ids: Vec<_> = tried.iter().map(|e| e.instance.id.as_str()).collect();
        ids.sort_unstable();
        assert_eq!(ids, ["0", "1", "2"], "{policy:?}");
        assert_eq!(selector.pick(&endpoints, ask(), &tried, Instant::now()), None, "{policy:?}: none is tried twice");
    }
}

proptest! {
    #[test]
    fn round_robin_is_exact_over_a_period_and_smooth_within(weights in prop::collection::vec(0u32..12, 1..9)) {
        let endpoints = endpoints(&weights);
        let selector = selector(Policy::RoundRobin, &endpoints);
        let divisor = weights.iter().fold(0, |a, b| gcd(a, *b)).max(1);
        let period = (weights.iter().sum::<u32>() / divisor) as usize;
        if period == 0 {
            prop_assert!(selector.is_empty());
            return Ok(());
        }
        let picks: Vec<_> = (0..period * 2).map(|_| selector.pick(&endpoints, ask(), &[], Instant::now()).unwrap().0).collect();
        for start in 0..period {
            for (index, weight) in weights.iter().enumerate() {
                let got = picks[start..start + period].iter().filter(|p| **p == index).count();
                prop_assert_eq!(got, (weight / divisor) as usize);
            }
        }
    }

    #[test]
    fn any_weights_make_a_selector_that_picks_only_what_has_weight(weights in prop::collection::vec(any::<u32>(), 1..20)) {
        let endpoints = endpoints(&weights);
        for policy in POLICIES {
            let selector = selector(policy, &endpoints);
            for _ in 0..20 {
                match selector.pick(&endpoints, ask(), &[], Instant::now()) {
                    Some((index, _)) => prop_assert!(weights[index] > 0),
                    None => prop_assert!(weights.iter().all(|w| *w == 0)),
                }
            }
        }
    }
}

fn eject(endpoint: &Endpoint, long: Duration) {
    endpoint.live.health.eject(Cause::ConsecutiveFailures, long, long, Instant::now());
}

#[tokio::test(start_paused = true)]
async fn what_is_ejected_gets_nothing_but_one_probe_when_its_time_is_over() {
    let endpoints = endpoints(&[1, 1, 1, 1]);
    for policy in POLICIES {
        let selector = selector(policy, &endpoints);
        eject(&endpoints[3], Duration::from_secs(10));
        assert_eq!(selector.recount(&endpoints, 50, Instant::now()), 3);
        assert_eq!(counts(&selector, &endpoints, 1000)[3], 0, "{policy:?}");
        tokio::time::advance(Duration::from_secs(13)).await;
        let picked: Vec<_> =
            (0..1000).map(|_| selector.pick(&endpoints, ask(), &[], Instant::now()).unwrap()).collect();
        let probes: Vec<_> = picked.iter().filter(|(index, _)| *index == 3).map(|(_, choice)| *choice).collect();
        assert_eq!(probes, [Choice::Probe], "{policy:?}");
        endpoints[3].live.health.admit(Instant::now());
    }
}

#[tokio::test(start_paused = true)]
async fn under_the_threshold_all_are_used() {
    let endpoints = endpoints(&[1, 1, 1, 1]);
    for policy in POLICIES {
        let selector = selector(policy, &endpoints);
        endpoints[..3].iter().for_each(|endpoint| eject(endpoint, Duration::from_secs(60)));
        assert_eq!((selector.recount(&endpoints, 25, Instant::now()), selector.is_panicking()), (1, false));
        assert_eq!(counts(&selector, &endpoints, 100), [0, 0, 0, 100], "{policy:?}: a quarter is not under a quarter");
        assert_eq!((selector.recount(&endpoints, 50, Instant::now()), selector.is_panicking()), (1, true));
        let counts = counts(&selector, &endpoints, 1000);
        assert!(counts.iter().all(|count| *count > 100), "{policy:?}: {counts:?}");
        let (index, choice) = std::iter::repeat_with(|| selector.pick(&endpoints, ask(), &[], Instant::now()).unwrap())
            .find(|(index, _)| *index != 3)
            .unwrap();
        assert_eq!(choice, Choice::LastResort, "{policy:?}: {index}");
        endpoints.iter().for_each(|endpoint| endpoint.live.health.admit(Instant::now()));
    }
}

#[tokio::test(start_paused = true)]
async fn a_retry_takes_what_is_ejected_when_nothing_else_is_left() {
    let endpoints = endpoints(&[1, 1]);
    let selector = selector(Policy::PeakEwma, &endpoints);
    eject(&endpoints[0], Duration::from_secs(60));
    selector.recount(&endpoints, 50, Instant::now());
    let tried = [endpoints[1].clone()];
    assert_eq!(selector.pick(&endpoints, ask(), &tried, Instant::now()), Some((0, Choice::LastResort)));
}

#[tokio::test(start_paused = true)]
async fn a_request_that_can_be_made_only_once_is_a_probe_only_if_no_other_comes() {
    let endpoints = endpoints(&[1, 1, 1]);
    let selector = selector(Policy::RoundRobin, &endpoints);
    eject(&endpoints[0], Duration::from_secs(10));
    selector.recount(&endpoints, 50, Instant::now());
    let probes = |only_once| {
        let pick = || selector.pick(&endpoints, Ask { only_once, ..Ask::default() }, &[], Instant::now()).unwrap();
        (0..30).filter(|_| pick().1 == Choice::Probe).count()
    };
    let Standing::Ejected { left, .. } = endpoints[0].live.health.standing(Instant::now()) else { panic!() };
    tokio::time::advance(left + Duration::from_millis(1)).await;
    assert_eq!((probes(true), probes(false)), (0, 1));
    endpoints[0].live.health.give_probe_back();
    tokio::time::advance(Duration::from_millis(1001)).await;
    assert_eq!(probes(true), 1);
}

#[tokio::test(start_paused = true)]
async fn a_probe_does_not_wait_until_the_policy_likes_the_endpoint_again() {
    let endpoints = endpoints(&[1, 1, 1]);
    for policy in POLICIES {
        let selector = selector(policy, &endpoints);
        endpoints.iter().for_each(|endpoint| endpoint.live.observe(Duration::from_millis(3), Instant::now()));
        endpoints[0].live.observe(Duration::from_secs(15), Instant::now());
        eject(&endpoints[0], Duration::from_secs(1));
        selector.recount(&endpoints, 50, Instant::now());
        tokio::time::advance(Duration::from_secs(2)).await;
        // As each second's review does.
        selector.recount(&endpoints, 50, Instant::now());
        let pick = |only_once| {
            let ask = Ask { only_once, ..ask() };
            selector.pick(&endpoints, ask, &[], Instant::now()).unwrap()
        };
        assert_ne!(pick(true).1, Choice::Probe, "{policy:?}");
        assert_eq!(pick(false), (0, Choice::Probe), "{policy:?}: still due");
        endpoints[0].live.health.admit(Instant::now());
    }
}
