use super::*;
use crate::{
    cluster::{Live, endpoint::InFlight},
    registry::Instance,
};
use proptest::prelude::*;
use std::time::Duration;

fn endpoints(weights: &[u32]) -> Vec<Arc<Endpoint>> {
    let make = |(number, weight): (usize, &u32)| {
        let address = format!("10.0.0.1:{}", number + 1).parse().unwrap();
        let instance = Instance { weight: *weight, ..Instance::new(number.to_string(), address) };
        Arc::new(Endpoint { instance, live: Arc::new(Live::new(None)) })
    };
    weights.iter().enumerate().map(make).collect()
}

fn counts(selector: &Selector, endpoints: &[Arc<Endpoint>], picks: usize) -> Vec<usize> {
    let mut counts = vec![0; endpoints.len()];
    for _ in 0..picks {
        counts[selector.pick(endpoints, &[], Instant::now()).unwrap()] += 1;
    }
    counts
}

const POLICIES: [Policy; 5] =
    [Policy::PeakEwma, Policy::LeastRequest, Policy::RoundRobin, Policy::Random, Policy::ResponseTime];

#[test]
fn every_policy_honours_weights() {
    let endpoints = endpoints(&[100, 300, 0, 600]);
    for policy in POLICIES {
        let counts = counts(&Selector::new(policy, &endpoints, |_| true), &endpoints, 20_000);
        assert_eq!(counts[2], 0, "{policy:?}: weight 0 takes none");
        for (index, expected) in [(0, 2_000.0), (1, 6_000.0), (3, 12_000.0)] {
            let off = (counts[index] as f64 - expected).abs() / expected;
            assert!(off < 0.1, "{policy:?}: {counts:?}");
        }
    }
}

#[test]
fn of_nothing_nothing_is_picked() {
    for policy in POLICIES {
        for weights in [&[][..], &[0, 0]] {
            let endpoints = endpoints(weights);
            assert_eq!(Selector::new(policy, &endpoints, |_| true).pick(&endpoints, &[], Instant::now()), None);
        }
    }
}

#[test]
fn what_its_registry_calls_unhealthy_is_not_picked() {
    let mut endpoints = endpoints(&[1, 1]);
    let sick = Instance { healthy: false, ..endpoints[0].instance.clone() };
    endpoints[0] = Arc::new(Endpoint { instance: sick, live: endpoints[0].live.clone() });
    for policy in POLICIES {
        assert_eq!(counts(&Selector::new(policy, &endpoints, |_| true), &endpoints, 100)[0], 0, "{policy:?}");
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
        let picked = |policy| counts(&Selector::new(policy, &endpoints, |_| true), &endpoints, 10_000)[4];
        assert_eq!(picked(Policy::PeakEwma), 0, "never the slow one of two");
        assert!((1..600).contains(&picked(Policy::ResponseTime)), "a twentieth of its share");
        assert!(picked(Policy::RoundRobin) >= 2_000);
    }
}

#[test]
fn least_request_avoids_the_busy_one() {
    let endpoints = endpoints(&[1, 1, 1]);
    let _busy: Vec<_> = (0..5).map(|_| InFlight::start(endpoints[1].clone())).collect();
    assert_eq!(counts(&Selector::new(Policy::LeastRequest, &endpoints, |_| true), &endpoints, 1000)[1], 0);
}

#[test]
fn a_retry_goes_to_another_endpoint_while_there_is_one() {
    let endpoints = endpoints(&[1_000_000, 1, 1]);
    for policy in POLICIES {
        let selector = Selector::new(policy, &endpoints, |_| true);
        let mut tried = Vec::new();
        for _ in 0..3 {
            tried.push(endpoints[selector.pick(&endpoints, &tried, Instant::now()).unwrap()].clone());
        }
        let mut ids: Vec<_> = tried.iter().map(|e| e.instance.id.as_str()).collect();
        ids.sort_unstable();
        assert_eq!(ids, ["0", "1", "2"], "{policy:?}");
        assert!(selector.pick(&endpoints, &tried, Instant::now()).is_some(), "then any is better than none");
    }
}

proptest! {
    #[test]
    fn round_robin_is_exact_over_a_period_and_smooth_within(weights in prop::collection::vec(0u32..12, 1..9)) {
        let endpoints = endpoints(&weights);
        let selector = Selector::new(Policy::RoundRobin, &endpoints, |_| true);
        let divisor = weights.iter().fold(0, |a, b| gcd(a, *b)).max(1);
        let period = (weights.iter().sum::<u32>() / divisor) as usize;
        if period == 0 {
            prop_assert!(selector.is_empty());
            return Ok(());
        }
        let picks: Vec<_> = (0..period * 2).map(|_| selector.pick(&endpoints, &[], Instant::now()).unwrap()).collect();
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
            let selector = Selector::new(policy, &endpoints, |_| true);
            for _ in 0..20 {
                match selector.pick(&endpoints, &[], Instant::now()) {
                    Some(index) => prop_assert!(weights[index] > 0),
                    None => prop_assert!(weights.iter().all(|w| *w == 0)),
                }
            }
        }
    }
}
