//! Zones and priority groups.

use super::{
    split::{by_priority, shares},
    *,
};
use crate::config::{Priority, ZoneAware};

/// So many endpoints in each zone; `""` for none.
fn in_zones(zones: &[(&str, usize)]) -> Vec<Arc<Endpoint>> {
    let each = zones.iter().flat_map(|(zone, count)| std::iter::repeat_n(*zone, *count));
    each.enumerate()
        .map(|(number, zone)| endpoint(number, |instance| instance.zone = (!zone.is_empty()).then(|| zone.into())))
        .collect()
}

fn aware(policy: Policy) -> Balance {
    Balance { policy, zone: ZoneAware { aware: true, ..ZoneAware::default() }, ..Balance::default() }
}

/// The part of 20,000 requests from zone `a` that goes to each of the zones.
fn by_zone(selector: &Selector, endpoints: &[Arc<Endpoint>], zones: &[(&str, usize)]) -> Vec<f64> {
    let counts = counts(selector, endpoints, 20_000);
    let part = |(zone, _): &(&str, usize)| {
        let of_zone = endpoints.iter().zip(&counts).filter(|(e, _)| e.instance.zone.as_deref().unwrap_or("") == *zone);
        of_zone.map(|(_, count)| *count).sum::<usize>() as f64 / 20_000.0
    };
    zones.iter().map(part).collect()
}

fn near(found: &[f64], expected: &[f64]) -> bool {
    found.iter().zip(expected).all(|(found, expected)| (found - expected).abs() < 0.02)
}

#[test]
fn requests_stay_in_the_zone_as_far_as_it_has_the_capacity() {
    for policy in POLICIES {
        for (zones, expected) in [
            // Even zones keep to themselves.
            (&[("a", 3), ("b", 3), ("c", 3)][..], &[1.0, 0.0, 0.0][..]),
            // So does one with more than its part.
            (&[("a", 6), ("b", 3)], &[1.0, 0.0]),
            // A third of what a half of the callers need: two thirds of them stay.
            (&[("a", 3), ("b", 6)], &[0.667, 0.333]),
            // A sixth, where a third is needed; the rest goes to the zone with more than its part.
            (&[("a", 2), ("b", 4), ("c", 6)], &[0.5, 0.0, 0.5]),
            // What is in no zone has no callers of its own.
            (&[("a", 2), ("b", 4), ("", 2)], &[0.5, 0.0, 0.5]),
            // With few endpoints, and none here, zones do not matter.
            (&[("a", 1), ("b", 4)], &[0.2, 0.8]),
            (&[("b", 4), ("c", 4)], &[0.5, 0.5]),
        ] {
            let endpoints = in_zones(zones);
            let selector = Selector::new(&aware(policy), Some("a"), &endpoints, |_| true);
            let found = by_zone(&selector, &endpoints, zones);
            assert!(near(&found, expected), "{policy:?}, {zones:?}: {found:?}");
        }
    }
    let zones = [("a", 3), ("b", 6)];
    let endpoints = in_zones(&zones);
    let unaware = Selector::new(&Balance::default(), Some("a"), &endpoints, |_| true);
    assert!(near(&by_zone(&unaware, &endpoints, &zones), &[0.333, 0.667]));
}

#[tokio::test(start_paused = true)]
async fn what_a_zone_loses_goes_elsewhere_and_comes_back() {
    let zones = [("a", 4), ("b", 4)];
    let endpoints = in_zones(&zones);
    let selector = Selector::new(&aware(Policy::PeakEwma), Some("a"), &endpoints, |_| true);
    let recount = |threshold| selector.recount(&endpoints, threshold, Instant::now());
    endpoints[..2].iter().for_each(|endpoint| eject(endpoint, Duration::from_secs(10)));
    recount(50);
    assert!(near(&by_zone(&selector, &endpoints, &zones), &[0.667, 0.333]), "2 of 6 for half of the callers");
    endpoints[2..4].iter().for_each(|endpoint| eject(endpoint, Duration::from_secs(10)));
    recount(50);
    assert_eq!(by_zone(&selector, &endpoints, &zones), [0.0, 1.0]);
    recount(60);
    assert!(selector.is_panicking());
    assert!(near(&by_zone(&selector, &endpoints, &zones), &[0.5, 0.5]), "zones do not matter in panic");
    recount(50);
    // Nothing is sent there that could be a probe, and still one is made.
    tokio::time::advance(Duration::from_secs(13)).await;
    recount(50);
    let picked: Vec<_> =
        (0..100).map(|_| selector.pick(&endpoints, Ask::default(), &[], Instant::now()).unwrap()).collect();
    let probes: Vec<_> = picked.iter().filter(|(_, choice)| *choice == Choice::Probe).collect();
    assert!(probes.len() == 1 && probes[0].0 < 4, "{probes:?}");
    endpoints[..4].iter().for_each(|endpoint| endpoint.live.health.admit(Instant::now()));
    recount(50);
    assert_eq!(by_zone(&selector, &endpoints, &zones), [1.0, 0.0]);
}

#[test]
fn a_key_stays_in_its_part() {
    let endpoints = in_zones(&[("a", 3), ("b", 6)]);
    for policy in [Policy::Maglev, Policy::RingHash] {
        let selector = Selector::new(&aware(policy), Some("a"), &endpoints, |_| true);
        for hash in 0..100 {
            let key = Some(Key::new(hash, 1));
            let pick = || selector.pick(&endpoints, by(key), &[], Instant::now()).unwrap().0;
            let first = pick();
            assert!((0..10).all(|_| pick() == first), "{policy:?}");
        }
    }
}

/// Ten of tier `primary`, five of `backup`, and one of none.
fn tiers() -> (Vec<Arc<Endpoint>>, Balance) {
    let tier = |number: usize| match number {
        0..10 => Some("primary"),
        10..15 => Some("backup"),
        _ => None,
    };
    let make = |number| {
        endpoint(number, |instance| {
            instance.labels.extend(tier(number).map(|tier| ("tier".to_owned(), tier.to_owned())));
        })
    };
    let order = vec!["primary".to_owned(), "backup".to_owned()];
    let priority = Priority { label: Some("tier".into()), order };
    ((0..16).map(make).collect(), Balance { priority, ..Balance::default() })
}

#[tokio::test(start_paused = true)]
async fn a_group_takes_everything_until_it_cannot() {
    let (endpoints, balance) = tiers();
    for policy in POLICIES {
        let balance = Balance { policy, ..balance.clone() };
        let selector = Selector::new(&balance, None, &endpoints, |_| true);
        let found = || {
            selector.recount(&endpoints, 50, Instant::now());
            let counts = counts(&selector, &endpoints, 10_000);
            [&counts[..10], &counts[10..15], &counts[15..]].map(|group| group.iter().sum::<usize>() as f64 / 1e4)
        };
        for (ejected, expected) in [
            (0, [1.0, 0.0, 0.0]),
            // 8 and 7.2 of 10 suffice.
            (2, [1.0, 0.0, 0.0]),
            (4, [0.84, 0.16, 0.0]),
            (9, [0.14, 0.86, 0.0]),
            // The backup's five are less than half of all, but enough.
            (10, [0.0, 1.0, 0.0]),
            // Three of five for everything: 84 percent, and the last one for what is over.
            (12, [0.0, 0.84, 0.16]),
        ] {
            endpoints[..ejected].iter().for_each(|endpoint| eject(endpoint, Duration::from_secs(60)));
            let found = found();
            assert!(near(&found, &expected), "{policy:?}, without {ejected}: {found:?}");
            assert!(!selector.is_panicking());
            endpoints.iter().for_each(|endpoint| endpoint.live.health.admit(Instant::now()));
        }
        endpoints[..16].iter().for_each(|endpoint| eject(endpoint, Duration::from_secs(60)));
        assert!(found().iter().all(|part| *part > 0.0) && selector.is_panicking(), "{policy:?}");
        endpoints.iter().for_each(|endpoint| endpoint.live.health.admit(Instant::now()));
    }
}

#[test]
fn a_retry_leaves_the_group_when_all_of_it_was_tried() {
    let (endpoints, balance) = tiers();
    let selector = Selector::new(&balance, None, &endpoints, |_| true);
    let (index, choice) = selector.pick(&endpoints, Ask::default(), &endpoints[..10], Instant::now()).unwrap();
    assert!((10..15).contains(&index) && choice == Choice::Available, "{index}");
}

#[tokio::test(start_paused = true)]
async fn what_the_registry_prefers_counts_within_a_group() {
    // The last two are preferred by their registry, the last one by the config.
    let preferred = |number| {
        endpoint(number, |instance| {
            instance.priority = if number < 2 { 20 } else { 10 };
            instance.zone = (number == 3).then(|| "near".to_owned());
        })
    };
    let endpoints: Vec<_> = (0..4).map(preferred).collect();
    let order = Priority { label: None, order: vec!["near".into()] };
    for (priority, expected) in [(Priority::default(), [0, 0, 500, 500]), (order, [0, 0, 0, 1000])] {
        let balance = Balance { policy: Policy::RoundRobin, priority, ..Balance::default() };
        let selector = Selector::new(&balance, None, &endpoints, |_| true);
        assert_eq!(counts(&selector, &endpoints, 1000), expected);
    }
    let selector = Selector::new(&Balance::default(), None, &endpoints, |_| true);
    endpoints[2..].iter().for_each(|endpoint| eject(endpoint, Duration::from_secs(60)));
    selector.recount(&endpoints, 50, Instant::now());
    assert_eq!(counts(&selector, &endpoints, 1000)[2..], [0, 0], "the others, when those are out");
}

#[test]
fn zones_can_be_the_groups() {
    let zones = [("near", 2), ("far", 2), ("", 1)];
    let endpoints = in_zones(&zones);
    let priority = Priority { label: None, order: vec!["near".into(), "far".into()] };
    let balance = Balance { priority, ..Balance::default() };
    let selector = Selector::new(&balance, None, &endpoints, |_| true);
    assert_eq!(by_zone(&selector, &endpoints, &zones), [1.0, 0.0, 0.0]);
}

fn capacities() -> impl Strategy<Value = Vec<Capacity>> {
    let zone = (1u32..50, 0u32..=100);
    let group = prop::collection::vec(zone, 1..5);
    prop::collection::vec(group, 1..4).prop_map(|groups| {
        let mut parts = Vec::new();
        for (priority, group) in groups.into_iter().enumerate() {
            let places = [Place::Here, Place::Elsewhere, Place::Elsewhere, Place::Unknown];
            for ((all, percent), place) in group.iter().zip(places) {
                let place = if group.len() == 1 { Place::Anywhere } else { place };
                let all = f64::from(*all);
                parts.push(Capacity { priority, place, all, available: all * f64::from(*percent) / 100.0 });
            }
        }
        parts
    })
}

proptest! {
    #[test]
    fn shares_are_a_whole_and_only_for_what_is_available(parts in capacities()) {
        let shares = shares(&parts, false);
        let sum: f64 = shares.iter().sum();
        prop_assert!((sum - 1.0).abs() < 1e-9, "{:?}", shares);
        let any = parts.iter().any(|part| part.available > 0.0);
        for (part, share) in parts.iter().zip(&shares) {
            prop_assert!(*share >= 0.0);
            prop_assert!(!any || part.available > 0.0 || *share == 0.0, "{:?} gets {}", part, share);
        }
        // A later group gets something only where the earlier ones take all they can.
        let groups = by_priority(&parts);
        for (priority, share) in groups.iter().enumerate().skip(1) {
            prop_assert!(*share == 0.0 || groups[..priority].iter().sum::<f64>() < 1.0);
        }
    }

    /// With callers spread evenly over the zones, as is assumed, no zone gets more than its part of the capacity.
    #[test]
    fn zones_together_are_loaded_evenly(sizes in prop::collection::vec(1u32..50, 2..6)) {
        let mut load = vec![0.0; sizes.len()];
        for here in 0..sizes.len() {
            let part = |(number, size): (usize, &u32)| Capacity {
                priority: 0,
                place: if number == here { Place::Here } else { Place::Elsewhere },
                all: f64::from(*size),
                available: f64::from(*size),
            };
            let parts: Vec<_> = sizes.iter().enumerate().map(part).collect();
            for (load, share) in load.iter_mut().zip(shares(&parts, false)) {
                *load += share / sizes.len() as f64;
            }
        }
        let all = f64::from(sizes.iter().sum::<u32>());
        for (load, size) in load.iter().zip(&sizes) {
            prop_assert!((load - f64::from(*size) / all).abs() < 1e-9, "{:?} for {:?}", load, sizes);
        }
    }
}
