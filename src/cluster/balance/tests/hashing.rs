//! `maglev` and `ring-hash`.

use super::*;
use crate::config::Hash;
use http::Request;
use std::net::IpAddr;

const HASHING: [Policy; 2] = [Policy::Maglev, Policy::RingHash];

fn key_of(hash: u64) -> Option<Key> {
    Some(Key::new(hash, 1))
}

/// Keys as they are: spread over all numbers.
fn keys(count: u64) -> impl Iterator<Item = u64> {
    (0..count).map(|key| key.wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

/// The address of the endpoint for each key.
fn places(selector: &Selector, endpoints: &[Arc<Endpoint>], count: u64) -> Vec<String> {
    let place = |key| {
        let (index, _) = selector.pick(endpoints, by(key_of(key)), &[], Instant::now()).unwrap();
        endpoints[index].instance.address.to_string()
    };
    keys(count).map(place).collect()
}

#[test]
fn all_sidecars_agree_whatever_the_order_and_the_ids() {
    let one = endpoints(&[100, 5000, 100, 50, 100]);
    let other: Vec<_> = one
        .iter()
        .rev()
        .map(|endpoint| {
            let instance = Instance { id: format!("other-{}", endpoint.instance.id), ..endpoint.instance.clone() };
            Arc::new(Endpoint { instance, live: Arc::new(Live::new(None)) })
        })
        .collect();
    for policy in HASHING {
        let placed = places(&selector(policy, &one), &one, 1000);
        assert!(placed == places(&selector(policy, &other), &other, 1000), "{policy:?}");
        for endpoints in [&one, &other] {
            let gone = endpoints.iter().find(|endpoint| endpoint.instance.address == one[1].instance.address).unwrap();
            eject(gone, Duration::from_secs(60));
        }
        let without = places(&selector(policy, &one), &one, 1000);
        assert!(without == places(&selector(policy, &other), &other, 1000), "{policy:?}: the same fallback");
        let gone = one[1].instance.address.to_string();
        for (before, after) in placed.iter().zip(&without) {
            assert!(if *before == gone { *after != gone } else { after == before }, "{policy:?}: only its keys move");
        }
        let taken: std::collections::HashSet<_> =
            placed.iter().zip(&without).filter(|(before, _)| **before == gone).map(|(_, after)| after).collect();
        assert_eq!(taken.len(), 4, "{policy:?}: all others share its keys");
        [&one, &other].iter().for_each(|all| all.iter().for_each(|e| e.live.health.admit(Instant::now())));
    }
}

#[test]
fn the_outcome_never_changes_between_versions() {
    let endpoints = endpoints(&[100, 200, 100]);
    for (policy, expected) in HASHING.into_iter().zip([[0, 1, 1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 0, 2, 1, 2]]) {
        let selector = selector(policy, &endpoints);
        let found: Vec<_> =
            keys(8).map(|key| selector.pick(&endpoints, by(key_of(key)), &[], Instant::now()).unwrap().0).collect();
        assert_eq!(found, expected, "{policy:?}");
    }
}

#[test]
fn a_retry_has_the_same_second_choice_everywhere() {
    let endpoints = endpoints(&[100; 20]);
    for policy in HASHING {
        let selector = selector(policy, &endpoints);
        for key in keys(100) {
            let pick =
                |tried: &[Arc<Endpoint>]| selector.pick(&endpoints, by(key_of(key)), tried, Instant::now()).unwrap().0;
            let first = [endpoints[pick(&[])].clone()];
            let second = pick(&first);
            assert!((0..10).all(|_| pick(&first) == second), "{policy:?}");
        }
    }
}

#[test]
fn without_a_key_it_is_random_by_weight() {
    let endpoints = endpoints(&[100, 300]);
    for policy in HASHING {
        let selector = selector(policy, &endpoints);
        let heavy = (0..4000)
            .filter(|_| selector.pick(&endpoints, Ask::default(), &[], Instant::now()).unwrap().0 == 1)
            .count();
        assert!((2800..3200).contains(&heavy), "{policy:?}: {heavy}");
    }
}

#[test]
fn a_hot_key_spills_over_once_its_endpoint_has_more_than_its_part() {
    for (policy, factor, most) in [(Policy::Maglev, 125, 25), (Policy::RingHash, 200, 40), (Policy::Maglev, 0, 200)] {
        // Whichever key it is.
        let hash = fastrand::u64(..);
        let endpoints = endpoints(&[100; 10]);
        let balance =
            Balance { policy, hash: Hash { balance_factor: factor, ..Hash::default() }, ..Balance::default() };
        let selector = Selector::new(&balance, None, &endpoints, |_| true);
        let mut held = Vec::new();
        for number in 1..=200 {
            let key = Some(Key::new(hash, number));
            let (index, choice) = selector.pick(&endpoints, by(key), &[], Instant::now()).unwrap();
            held.push(InFlight::start(endpoints[index].clone(), choice));
        }
        let busiest = endpoints.iter().map(|endpoint| endpoint.live.in_flight()).max().unwrap();
        assert!(busiest <= most && busiest >= most * 9 / 10, "{policy:?}, {factor}, key {hash}: {busiest}");
    }
}

#[test]
fn what_a_request_is_hashed_by() {
    let source: IpAddr = "10.1.2.3".parse().unwrap();
    let hashed = |hash: Hash, path: &str, fields: &[(&str, &str)]| {
        let by = HashBy::new(&Balance { policy: Policy::Maglev, hash, ..Balance::default() }).unwrap();
        let builder = fields.iter().fold(Request::get(path), |builder, (name, value)| builder.header(*name, *value));
        by.hash(&builder.body(()).unwrap().into_parts().0, source)
    };
    let header = || Hash { header: Some("X-User".into()), ..Hash::default() };
    assert_eq!(hashed(header(), "/", &[]), None);
    let user = hashed(header(), "/", &[("x-user", "ann")]);
    assert!(user.is_some() && user != hashed(header(), "/", &[("x-user", "bob")]));
    let cookie = || Hash { cookie: Some("user".into()), ..Hash::default() };
    for line in ["user=ann", "a=b; user=ann", "xuser=bob;user=ann ; user=bob", "users=x;  user=ann"] {
        assert_eq!(hashed(cookie(), "/", &[("cookie", line)]), user, "{line}");
    }
    assert_eq!(hashed(cookie(), "/", &[("cookie", "a=b"), ("cookie", "user=ann")]), user);
    assert_eq!(hashed(cookie(), "/", &[("cookie", "userann")]), None);
    let path = || Hash { path: true, ..Hash::default() };
    assert_eq!(hashed(path(), "/a?x=1", &[]), hashed(path(), "/a?x=2", &[]));
    assert_ne!(hashed(path(), "/a", &[]), hashed(path(), "/b", &[]));
    assert!(hashed(Hash { source: true, ..Hash::default() }, "/", &[]).is_some());
    assert!(HashBy::new(&Balance { hash: path(), ..Balance::default() }).is_none(), "the others pay nothing for it");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn when_one_leaves_hardly_more_than_its_own_keys_move(count in 3usize..100, gone in 0usize..100, seed in 0usize..1000) {
        let before: Vec<_> = (0..count).map(|number| endpoint(seed * 60 + number, |_| ())).collect();
        let mut after = before.clone();
        let gone = after.remove(gone % count).instance.address.to_string();
        for policy in HASHING {
            let places = |endpoints: &[Arc<Endpoint>]| places(&selector(policy, endpoints), endpoints, 10_000);
            let (before, after) = (places(&before), places(&after));
            let moved = before.iter().zip(&after).filter(|(before, after)| before != after).count() as f64;
            let own = before.iter().filter(|place| **place == gone).count() as f64;
            // Maglev moves some of the others', however many endpoints there are: about one key in a hundred.
            let others = if policy == Policy::Maglev { 200.0 } else { 0.0 };
            let most = own.max(10_000.0 / count as f64) * 1.5 + others;
            prop_assert!(moved <= most, "{:?}: {} of {} moved", policy, moved, own);
            prop_assert!(policy != Policy::RingHash || moved == own, "on a ring only its own");
        }
    }

    #[test]
    fn keys_are_spread_by_weight(weights in prop::collection::vec(1u32..8, 2..40)) {
        let endpoints = endpoints(&weights);
        let sum: u32 = weights.iter().sum();
        let mean = f64::from(sum) / weights.len() as f64;
        // A ring is uneven, as everybody's is: what an endpoint has is the sum of as many random arcs as it has points, of which
        // this is five standard deviations.
        let ring = |weight: u32| 5.0 / (160.0 * f64::from(weight) / mean).sqrt();
        for policy in [Policy::Maglev, Policy::RingHash] {
            let bound = |weight| if policy == Policy::Maglev { 0.15 } else { ring(weight) };
            let selector = selector(policy, &endpoints);
            let counts = counts(&selector, &endpoints, 40_000);
            for (count, weight) in counts.iter().zip(&weights) {
                let expected = 40_000.0 * f64::from(*weight) / f64::from(sum);
                let noise = 5.0 * expected.sqrt();
                prop_assert!((*count as f64 - expected).abs() < bound(*weight) * expected + noise, "{:?}: {:?} for {:?}", policy, counts, weights);
            }
        }
    }
}
