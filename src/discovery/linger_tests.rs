use super::*;
use crate::{
    cluster::{
        check::{self, Failure, Layer},
        endpoint::InFlight,
        health::{Choice, Outcome},
    },
    registry::Address,
};
use std::time::Duration;
use tokio::time::advance;

const SECOND: Duration = Duration::from_secs(1);

fn endpoint(port: u16, outcomes: &[bool]) -> Arc<Endpoint> {
    let instance = Instance::new(port.to_string(), Address::new("10.0.0.1", port).unwrap());
    let endpoint = Endpoint { instance, live: Arc::new(Live::new(None)) };
    check::schedule(&endpoint.live, Instant::now());
    outcomes.iter().for_each(|passed| checked(&endpoint, *passed));
    Arc::new(endpoint)
}

fn checked(endpoint: &Endpoint, passed: bool) {
    let failure = Failure { layer: Layer::Tcp, cause: "refused".into() };
    let outcome = if passed { Ok(()) } else { Err(failure) };
    check::record(&endpoint.live, &HealthCheck::default(), outcome, Instant::now(), Instant::now());
}

fn ports(instances: &[Instance]) -> Vec<u16> {
    instances.iter().map(|instance| instance.address.port()).collect()
}

fn listed(endpoints: &[&Arc<Endpoint>]) -> Arc<[Instance]> {
    endpoints.iter().map(|endpoint| endpoint.instance.clone()).collect()
}

#[tokio::test(start_paused = true)]
async fn gone_and_passing_stays_for_its_time_and_gone_and_failing_does_not() {
    let check = HealthCheck::default();
    let all = [
        endpoint(1, &[true]),
        endpoint(2, &[true]),
        endpoint(3, &[true, false]),
        endpoint(4, &[false]),
        endpoint(5, &[]),
    ];
    let (mut linger, mut before) = (Linger::default(), all.to_vec());
    let mut keep = |listed: Arc<[Instance]>| {
        let kept = ports(&linger.keep(&before, listed, Some(&check), Instant::now()).0);
        before.retain(|endpoint| kept.contains(&endpoint.instance.address.port()));
        (kept, linger.end().map(|end| end - Instant::now()))
    };
    assert_eq!(keep(listed(&all.each_ref())), (vec![1, 2, 3, 4, 5], None), "listed: all of them");
    assert!(all.iter().all(|endpoint| !endpoint.live.is_gone()));
    // Suspect, unhealthy and not checked yet: nothing speaks for them.
    assert_eq!(keep(listed(&[&all[0]])), (vec![1, 2], Some(30 * SECOND)));
    assert!(all[1].live.is_gone() && !all[0].live.is_gone());
    advance(20 * SECOND).await;
    assert_eq!(keep(listed(&[])), (vec![1, 2], Some(10 * SECOND)), "each has its own time");
    advance(10 * SECOND).await;
    assert_eq!(keep(listed(&[])), (vec![1], Some(20 * SECOND)));
    checked(&all[0], false);
    assert_eq!(keep(listed(&[])), (vec![], None), "its check failed");
}

#[tokio::test(start_paused = true)]
async fn one_that_comes_back_has_all_its_time_again() {
    let check = HealthCheck::default();
    let all = [endpoint(1, &[true])];
    let mut linger = Linger::default();
    assert_eq!(linger.keep(&all, listed(&[]), Some(&check), Instant::now()).1, 1, "it is new");
    assert_eq!(linger.keep(&all, listed(&[]), Some(&check), Instant::now()).1, 0);
    advance(20 * SECOND).await;
    // Its weight has changed, its address has not.
    let back = Instance { weight: 7, ..all[0].instance.clone() };
    let kept = linger.keep(&all, Arc::from([back]), Some(&check), Instant::now()).0;
    assert_eq!((kept.len(), kept[0].weight, linger.end()), (1, 7, None));
    linger.keep(&all, listed(&[]), Some(&check), Instant::now());
    assert_eq!(linger.end(), Some(Instant::now() + 30 * SECOND));
}

#[tokio::test(start_paused = true)]
async fn a_request_that_fails_is_enough() {
    let (check, mut linger, all) = (HealthCheck::default(), Linger::default(), [endpoint(1, &[true])]);
    assert_eq!(linger.keep(&all, listed(&[]), Some(&check), Instant::now()).0.len(), 1);
    let mut request = InFlight::start(all[0].clone(), Choice::Available);
    assert!(request.tell(Outcome::Failure, 5), "it is to be looked at");
    assert!(linger.keep(&all, listed(&[]), Some(&check), Instant::now()).0.is_empty());
}

#[tokio::test(start_paused = true)]
async fn without_checks_nothing_stays() {
    let mut linger = Linger::default();
    let all = [endpoint(1, &[true])];
    assert!(linger.keep(&all, listed(&[]), None, Instant::now()).0.is_empty());
    let never = HealthCheck { linger: Duration::ZERO, ..HealthCheck::default() };
    assert!(linger.keep(&all, listed(&[]), Some(&never), Instant::now()).0.is_empty());
}
