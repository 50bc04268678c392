use super::*;
use crate::{
    cluster::{
        endpoint::InFlight,
        health::{Choice, Standing},
    },
    registry::Instance,
};
use proptest::prelude::*;

fn endpoints(count: usize) -> Vec<Arc<Endpoint>> {
    (0..count)
        .map(|number| {
            let instance = Instance::new(number.to_string(), format!("10.0.0.1:{}", number + 1).parse().unwrap());
            Arc::new(Endpoint { instance, live: Arc::new(Live::new(None)) })
        })
        .collect()
}

/// A request that ended like this. Whether it asks for a review.
fn request(endpoint: &Arc<Endpoint>, entry: Choice, outcome: Outcome) -> bool {
    InFlight::start(endpoint.clone(), entry).tell(outcome, 5)
}

fn five_failures(endpoint: &Arc<Endpoint>) {
    for _ in 0..5 {
        request(endpoint, Choice::Available, Outcome::Failure);
    }
}

fn requests(endpoint: &Arc<Endpoint>, good: usize, bad: usize) {
    // Never five in a row, as long as there are enough good ones.
    for number in 0..bad.max(good) {
        for (_, outcome) in
            [(bad, Outcome::Failure), (good, Outcome::Success)].iter().filter(|(many, _)| number < *many)
        {
            request(endpoint, Choice::Available, *outcome);
        }
    }
}

fn service() -> Service {
    Service::default()
}

fn ejected(changes: &[Change]) -> Vec<(&str, Cause)> {
    changes
        .iter()
        .filter_map(|change| match change.what {
            What::Ejected { cause, .. } => Some((change.endpoint.instance.id.as_str(), cause)),
            _ => None,
        })
        .collect()
}

fn probe_is_due(endpoint: &Arc<Endpoint>) -> bool {
    endpoint.live.health.take_probe(Instant::now(), false)
}

#[tokio::test(start_paused = true)]
async fn five_failures_in_a_row_eject_and_one_good_probe_lets_in_again() {
    let (mut detector, all) = (Detector::default(), endpoints(5));
    for number in 1..=5 {
        let asks = request(&all[2], Choice::Available, Outcome::Failure);
        assert_eq!(asks, number == 5, "only the fifth asks for a decision");
    }
    let changes = detector.review(&all, &service(), Instant::now());
    assert_eq!(ejected(&changes), [("2", Cause::ConsecutiveFailures)]);
    let Standing::Ejected { left, .. } = all[2].live.health.standing(Instant::now()) else { panic!() };
    assert!((1000..=1200).contains(&left.as_millis()), "{left:?}");
    // One that was sent before says nothing any more.
    request(&all[2], Choice::Available, Outcome::Success);
    assert!(detector.review(&all, &service(), Instant::now()).is_empty() && !probe_is_due(&all[2]));
    tokio::time::advance(Duration::from_millis(1201)).await;
    assert!(probe_is_due(&all[2]) && !probe_is_due(&all[2]), "one probe at a time");
    assert!(request(&all[2], Choice::Probe, Outcome::Success));
    let changes = detector.review(&all, &service(), Instant::now());
    assert_eq!(changes.len(), 1);
    assert_eq!(changes[0].what, What::Admitted);
    assert!(all[2].live.health.is_available());
}

#[tokio::test(start_paused = true)]
async fn one_that_active_checks_kept_out_begins_anew() {
    let (mut detector, all) = (Detector::default(), endpoints(5));
    requests(&all[0], 30, 10);
    let health = &all[0].live.health;
    health.shut(Instant::now());
    assert!(detector.tick(&all, &service(), Instant::now()).is_empty());
    // A request that is all that is left for a retry opens nothing: the checks do.
    request(&all[0], Choice::LastResort, Outcome::Success);
    assert!(detector.review(&all, &service(), Instant::now()).is_empty());
    assert_eq!((health.standing(Instant::now()), health.window()), (Standing::Unhealthy, None));
    health.admit(Instant::now());
    assert!(detector.tick(&all, &service(), Instant::now()).is_empty(), "a quarter failed, before");
    assert!(health.is_available());
    requests(&all[0], 30, 10);
    assert_eq!(ejected(&detector.tick(&all, &service(), Instant::now())), [("0", Cause::FailurePercent)]);
}

#[tokio::test(start_paused = true)]
async fn each_failed_probe_doubles_the_time_up_to_the_limit_and_calm_forgives() {
    let (mut detector, all) = (Detector::default(), endpoints(5));
    five_failures(&all[0]);
    detector.review(&all, &service(), Instant::now());
    for expected in [1, 2, 4, 8, 16, 32, 60, 60] {
        let Standing::Ejected { left, .. } = all[0].live.health.standing(Instant::now()) else { panic!() };
        let least = Duration::from_secs(expected);
        assert!(left >= least && left <= least.mul_f64(1.2), "{left:?}, expected {least:?}");
        tokio::time::advance(left).await;
        assert!(probe_is_due(&all[0]));
        request(&all[0], Choice::Probe, Outcome::Failure);
        assert_eq!(detector.review(&all, &service(), Instant::now()).len(), 1);
    }
    tokio::time::advance(Duration::from_secs(73)).await;
    assert!(probe_is_due(&all[0]));
    request(&all[0], Choice::Probe, Outcome::Success);
    detector.review(&all, &service(), Instant::now());
    tokio::time::advance(Duration::from_secs(200)).await;
    five_failures(&all[0]);
    detector.review(&all, &service(), Instant::now());
    let Standing::Ejected { left, .. } = all[0].live.health.standing(Instant::now()) else { panic!() };
    assert!(left < Duration::from_secs(2), "after minutes without failure it starts again: {left:?}");
}

#[tokio::test(start_paused = true)]
async fn a_probe_whose_caller_left_is_made_again() {
    let (mut detector, all) = (Detector::default(), endpoints(3));
    five_failures(&all[0]);
    detector.review(&all, &service(), Instant::now());
    tokio::time::advance(Duration::from_secs(2)).await;
    assert!(probe_is_due(&all[0]));
    let probe = InFlight::start(all[0].clone(), Choice::Probe);
    assert_eq!(all[0].live.health.standing(Instant::now()), Standing::Probing { cause: Cause::ConsecutiveFailures });
    drop(probe);
    assert!(probe_is_due(&all[0]));
}

#[tokio::test(start_paused = true)]
async fn a_share_of_failures_ejects_once_there_were_enough_requests() {
    let (mut detector, all) = (Detector::default(), endpoints(4));
    let mut tick = |all: &[Arc<Endpoint>]| {
        let changes = detector.tick(all, &service(), Instant::now());
        ejected(&changes).into_iter().map(|(id, cause)| (id.to_owned(), cause)).collect::<Vec<_>>()
    };
    // The first look begins to count.
    all.iter().for_each(|endpoint| requests(endpoint, 1, 0));
    assert_eq!(tick(&all), []);
    requests(&all[0], 10, 9);
    requests(&all[1], 100, 20);
    assert_eq!(tick(&all), [], "19 requests are too few, 17 % are borne");
    assert_eq!(all[0].live.health.window().unwrap().0, 19);
    requests(&all[0], 1, 0);
    assert_eq!(tick(&all), [("0".to_owned(), Cause::FailurePercent)]);
    requests(&all[1], 1, 4);
    for _ in 0..11 {
        assert_eq!(tick(&all), [], "first 24 of 125, then 4 of 5, which are too few");
    }
    assert_eq!(all[1].live.health.window(), None, "what was ten seconds ago is forgotten");
}

#[tokio::test(start_paused = true)]
async fn an_outlier_is_ejected_and_the_cap_counts_it() {
    let breaker = Breaker { failure_percent: 100, ..Breaker::default() };
    let service = |max_ejected| Service {
        breaker: breaker.clone(),
        outlier: Outlier { max_ejected, ..Outlier::default() },
        ..Service::default()
    };
    for (count, cap, expected) in [(10, 10, 1), (9, 10, 0), (20, 10, 1), (5, 20, 1)] {
        let (mut detector, all) = (Detector::default(), endpoints(count));
        let mut tick = || {
            all[1..].iter().for_each(|endpoint| requests(endpoint, 198, 2));
            requests(&all[0], 150, 50);
            detector.tick(&all, &service(cap), Instant::now())
        };
        assert!(tick().is_empty());
        let changes = tick();
        let expected: &[(&str, Cause)] = if expected == 1 { &[("0", Cause::Outlier)] } else { &[] };
        assert_eq!(ejected(&changes), expected, "{count} endpoints, at most {cap} %");
    }
}

#[tokio::test(start_paused = true)]
async fn one_that_hangs_is_ejected_though_it_gets_few_requests() {
    let (mut detector, all) = (Detector::default(), endpoints(5));
    let mut tick = |good: usize, bad: usize| {
        all[1..].iter().for_each(|endpoint| requests(endpoint, good, bad));
        detector.tick(&all, &service(), Instant::now())
    };
    requests(&all[0], 10, 0);
    assert!(tick(10, 0).is_empty());
    requests(&all[0], 10, 2);
    assert!(tick(10, 0).is_empty(), "it has just had a success");
    requests(&all[0], 0, 2);
    assert!(tick(3, 2).is_empty(), "and now the others do not do well either");
    assert!(tick(3, 2).is_empty());
    assert_eq!(ejected(&tick(10, 1)), [("0", Cause::NoSuccess)]);
}

#[tokio::test(start_paused = true)]
async fn having_no_success_takes_two_whole_seconds() {
    let (mut detector, all) = (Detector::default(), endpoints(5));
    let mut tick = |silent: usize| {
        all[1..].iter().for_each(|endpoint| requests(endpoint, 10, 0));
        (0..silent).for_each(|_| assert!(!request(&all[0], Choice::Available, Outcome::Silence)));
        ejected(&detector.tick(&all, &service(), Instant::now())).len()
    };
    // It is new, and its first callers have little time.
    assert_eq!([tick(8), tick(8)], [0, 0], "the first second may have been the last moment of one");
    requests(&all[0], 1, 0);
    assert_eq!([tick(8), tick(0)], [0, 0], "a success in between counts");
    assert_eq!(tick(0), 1, "it need not be asked again");
}

#[tokio::test(start_paused = true)]
async fn where_nobody_fails_a_single_failure_makes_no_outlier() {
    let (mut detector, all) = (Detector::default(), endpoints(20));
    for _ in 0..2 {
        all[1..].iter().for_each(|endpoint| requests(endpoint, 200, 0));
        requests(&all[0], 198, 2);
        assert!(detector.tick(&all, &service(), Instant::now()).is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn one_that_fails_and_may_not_be_ejected_is_told_once_until_it_does_well() {
    let (mut detector, all) = (Detector::default(), endpoints(1));
    five_failures(&all[0]);
    let what = detector.review(&all, &service(), Instant::now())[0].what;
    assert!(matches!(what, What::Kept { cause: Cause::ConsecutiveFailures, .. }), "{what:?}");
    let failing = Standing::Failing { cause: Cause::ConsecutiveFailures };
    assert!(all[0].live.health.is_available() && all[0].live.health.standing(Instant::now()) == failing);
    five_failures(&all[0]);
    assert!(detector.review(&all, &service(), Instant::now()).is_empty(), "once");
    request(&all[0], Choice::Available, Outcome::Success);
    assert_eq!(detector.review(&all, &service(), Instant::now())[0].what, What::Recovered);
    assert_eq!(all[0].live.health.standing(Instant::now()), Standing::Available);
}

#[tokio::test(start_paused = true)]
async fn what_was_slow_before_it_was_ejected_is_not_slow_any_more() {
    let (mut detector, all) = (Detector::default(), endpoints(3));
    all[0].live.observe(Duration::from_secs(15), Instant::now());
    five_failures(&all[0]);
    detector.review(&all, &service(), Instant::now());
    tokio::time::advance(Duration::from_secs(2)).await;
    assert!(probe_is_due(&all[0]));
    request(&all[0], Choice::Probe, Outcome::Success);
    detector.review(&all, &service(), Instant::now());
    assert_eq!(all[0].live.latency(Instant::now()), None);
}

#[tokio::test(start_paused = true)]
async fn with_the_breaker_off_nothing_is_ejected_and_what_was_comes_back() {
    let (mut detector, all) = (Detector::default(), endpoints(3));
    let off = Service {
        breaker: Breaker { enabled: false, ..Breaker::default() },
        outlier: Outlier { enabled: false, ..Outlier::default() },
        ..Service::default()
    };
    five_failures(&all[0]);
    assert!(detector.review(&all, &off, Instant::now()).is_empty());
    assert_eq!(detector.review(&all, &service(), Instant::now()).len(), 1);
    assert_eq!(detector.review(&all, &off, Instant::now())[0].what, What::Admitted);
}

#[derive(Debug, Clone)]
enum Event {
    Requests {
        endpoint: usize,
        good: usize,
        bad: usize,
    },
    Row {
        endpoint: usize,
    },
    Second,
    Review,
    /// So many are left in the table from now on.
    Table {
        count: usize,
    },
    Probe {
        endpoint: usize,
        good: bool,
    },
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        (any::<usize>(), 0..200usize, 0..200usize).prop_map(|(endpoint, good, bad)| Event::Requests {
            endpoint,
            good,
            bad
        }),
        any::<usize>().prop_map(|endpoint| Event::Row { endpoint }),
        Just(Event::Second),
        Just(Event::Review),
        (1..25usize).prop_map(|count| Event::Table { count }),
        (any::<usize>(), any::<bool>()).prop_map(|(endpoint, good)| Event::Probe { endpoint, good }),
    ]
}

proptest! {
    #[test]
    fn never_above_the_cap_and_never_the_last(
        count in 1..25usize,
        caps in (0..=100u32, 0..=100u32),
        events in prop::collection::vec(event(), 1..80),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let service = Service {
                breaker: Breaker { max_ejected: caps.0, ..Breaker::default() },
                outlier: Outlier { max_ejected: caps.1, min_endpoints: 3, ..Outlier::default() },
                ..Service::default()
            };
            let (mut detector, everybody) = (Detector::default(), endpoints(25));
            let mut count = count;
            for event in events {
                let (now, mut all) = (Instant::now(), &everybody[..count]);
                match event {
                    Event::Requests { endpoint, good, bad } => requests(&all[endpoint % count], good, bad),
                    Event::Row { endpoint } => {
                        five_failures(&all[endpoint % count]);
                    }
                    Event::Second => {
                        tokio::time::advance(PERIOD).await;
                        detector.tick(all, &service, Instant::now());
                    }
                    Event::Review => drop(detector.review(all, &service, now)),
                    Event::Table { count: left } => {
                        (count, all) = (left, &everybody[..left]);
                        detector.review(all, &service, now);
                    }
                    Event::Probe { endpoint, good } => {
                        let endpoint = &all[endpoint % count];
                        if endpoint.live.health.take_probe(now, false) {
                            request(endpoint, Choice::Probe, if good { Outcome::Success } else { Outcome::Failure });
                        }
                    }
                }
                let most = (count * caps.0.max(caps.1) as usize / 100).min(count - 1);
                let out = all.iter().filter(|endpoint| !endpoint.live.health.is_available()).count();
                prop_assert!(out <= most, "{out} of {count} are out; {most} may be");
            }
            Ok(())
        })?;
    }
}
