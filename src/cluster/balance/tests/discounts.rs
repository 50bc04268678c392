//! Slow start and penalties, by how many requests arrive.

use super::*;
use crate::config::{Aggression, SlowStart};

fn slow(policy: Policy, aggression: f64) -> Balance {
    let window = Some(Duration::from_secs(30));
    let slow_start = SlowStart { window, aggression: Aggression(aggression), ..SlowStart::default() };
    Balance { policy, slow_start, ..Balance::default() }
}

/// What part of its even share the last endpoint gets.
fn part_of_last(selector: &Selector, endpoints: &[Arc<Endpoint>]) -> f64 {
    const PICKS: usize = 40_000;
    let counts = counts(selector, endpoints, PICKS);
    let last = counts[endpoints.len() - 1] as f64;
    last / ((PICKS as f64 - last) / (endpoints.len() - 1) as f64)
}

#[tokio::test(start_paused = true)]
async fn a_new_endpoint_gets_its_share_little_by_little() {
    for policy in POLICIES {
        let mut endpoints = endpoints(&[100; 9]);
        tokio::time::advance(Duration::from_secs(60)).await;
        endpoints.push(endpoint(9, |_| ()));
        let selector = Selector::new(&slow(policy, 1.0), None, &endpoints, |_| true);
        for (seconds, expected) in [(0, 0.1), (15, 0.5), (9, 0.8), (6, 1.0)] {
            tokio::time::advance(Duration::from_secs(seconds)).await;
            let part = part_of_last(&selector, &endpoints);
            // Where load is looked at, and here there is none, the second of two is not better, and the first stands.
            assert!(
                (part - expected).abs() < unevenness(policy) * expected + 0.03,
                "{policy:?} after {seconds}: {part}"
            );
        }
        assert!(!selector.discount.is_on(Instant::now()), "it costs nothing any more");
    }
}

#[tokio::test(start_paused = true)]
async fn aggression_gives_most_of_the_share_sooner() {
    let mut endpoints = endpoints(&[100; 9]);
    tokio::time::advance(Duration::from_secs(60)).await;
    endpoints.push(endpoint(9, |_| ()));
    let selector = Selector::new(&slow(Policy::Random, 2.0), None, &endpoints, |_| true);
    tokio::time::advance(Duration::from_millis(7500)).await;
    let part = part_of_last(&selector, &endpoints);
    assert!((part - 0.5).abs() < 0.06, "the root of a quarter: {part}");
}

#[tokio::test(start_paused = true)]
async fn one_that_comes_back_starts_slowly_too() {
    let endpoints = endpoints(&[100; 10]);
    let selector = Selector::new(&slow(Policy::RoundRobin, 1.0), None, &endpoints, |_| true);
    assert!(!selector.discount.is_on(Instant::now()), "all are new");
    tokio::time::advance(Duration::from_secs(60)).await;
    eject(&endpoints[9], Duration::from_secs(5));
    selector.recount(&endpoints, 50, Instant::now());
    tokio::time::advance(Duration::from_secs(10)).await;
    endpoints[9].live.health.admit(Instant::now());
    selector.recount(&endpoints, 50, Instant::now());
    let part = part_of_last(&selector, &endpoints);
    assert!((part - 0.1).abs() < 0.03, "{part}");
}

#[tokio::test(start_paused = true)]
async fn where_over_half_are_new_all_have_their_share() {
    for (new, slowly) in [(5, true), (6, false)] {
        let mut endpoints = endpoints(&vec![100; 10 - new]);
        tokio::time::advance(Duration::from_secs(60)).await;
        endpoints.extend((0..new).map(|number| endpoint(100 + number, |_| ())));
        let selector = Selector::new(&slow(Policy::Random, 1.0), None, &endpoints, |_| true);
        let part = part_of_last(&selector, &endpoints);
        assert_eq!(part < 0.5, slowly, "{new} of 10: {part}");
    }
}

#[tokio::test(start_paused = true)]
async fn busy_endpoints_do_not_drive_requests_to_the_new_one() {
    for policy in [Policy::PeakEwma, Policy::LeastRequest, Policy::LeastConnections] {
        let mut endpoints = endpoints(&[100; 9]);
        tokio::time::advance(Duration::from_secs(60)).await;
        let busy = endpoints.clone();
        let each =
            busy.iter().flat_map(|endpoint| (0..20).map(|_| InFlight::start(endpoint.clone(), Choice::Available)));
        let _busy: Vec<_> = each.collect();
        endpoints.push(endpoint(9, |_| ()));
        let selector = Selector::new(&slow(policy, 1.0), None, &endpoints, |_| true);
        let part = part_of_last(&selector, &endpoints);
        assert!((0.01..0.25).contains(&part), "{policy:?}: twice its part at most, being idle: {part}");
    }
}

#[tokio::test(start_paused = true)]
async fn one_that_asked_for_a_pause_gets_a_tenth_until_it_is_over() {
    let endpoints = endpoints(&[100; 10]);
    for policy in POLICIES {
        let selector = selector(policy, &endpoints);
        selector.penalised(endpoints[9].live.penalise(Duration::from_secs(5), Instant::now()));
        let part = part_of_last(&selector, &endpoints);
        assert!((part - 0.1).abs() < 0.04, "{policy:?}: {part}");
        // A set that is published meanwhile knows of it.
        let next = super::selector(policy, &endpoints);
        assert!(next.discount.is_on(Instant::now()), "{policy:?}");
        tokio::time::advance(Duration::from_secs(6)).await;
        let part = part_of_last(&selector, &endpoints);
        assert!((part - 1.0).abs() < unevenness(policy), "{policy:?}: {part}");
    }
}

#[tokio::test(start_paused = true)]
async fn where_all_ask_for_a_pause_none_is_left_out() {
    let endpoints = endpoints(&[100; 4]);
    for policy in POLICIES {
        let selector = selector(policy, &endpoints);
        for endpoint in &endpoints {
            selector.penalised(endpoint.live.penalise(Duration::from_secs(5), Instant::now()));
        }
        let counts = counts(&selector, &endpoints, 8000);
        assert!(counts.iter().all(|count| (1600..2400).contains(count)), "{policy:?}: {counts:?}");
        tokio::time::advance(Duration::from_secs(6)).await;
    }
}

#[test]
fn a_pause_is_as_long_as_was_asked_within_bounds() {
    let balance = Balance::default();
    for (asked, long) in [(None, 1), (Some(3), 3), (Some(0), 0), (Some(3600), 10)] {
        assert_eq!(penalty(&balance, asked.map(Duration::from_secs)), Duration::from_secs(long));
    }
}
