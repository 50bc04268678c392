use super::*;
use crate::{
    cluster::{
        check::{self, Failure, Layer},
        endpoint::InFlight,
        health::{Choice, Outcome},
    },
    config::{Guard, HealthCheck},
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

/// Checks, and no guard.
fn with_checks() -> Service {
    let guard = Guard { enabled: false, ..Guard::default() };
    Service { health_check: Some(HealthCheck::default()), guard, ..Service::default() }
}

fn ports(instances: &[Instance]) -> Vec<u16> {
    instances.iter().map(|instance| instance.address.port()).collect()
}

fn view(listed: Arc<[Instance]>) -> View<'static> {
    View { listed, withdrawn: Box::leak(Box::default()), parts: &[], moved: false }
}

fn listed(endpoints: &[&Arc<Endpoint>]) -> Arc<[Instance]> {
    endpoints.iter().map(|endpoint| endpoint.instance.clone()).collect()
}

#[tokio::test(start_paused = true)]
async fn gone_and_passing_stays_for_its_time_and_gone_and_failing_does_not() {
    let service = with_checks();
    let all = [
        endpoint(1, &[true]),
        endpoint(2, &[true]),
        endpoint(3, &[true, false]),
        endpoint(4, &[false]),
        endpoint(5, &[]),
    ];
    let (mut linger, mut before) = (Linger::default(), all.to_vec());
    let mut keep = |listed: Arc<[Instance]>| {
        let kept = ports(&linger.keep(&before, view(listed), &service, Instant::now()).instances);
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
    let service = with_checks();
    let all = [endpoint(1, &[true])];
    let mut linger = Linger::default();
    assert_eq!(linger.keep(&all, view(listed(&[])), &service, Instant::now()).new, 1, "it is new");
    assert_eq!(linger.keep(&all, view(listed(&[])), &service, Instant::now()).new, 0);
    advance(20 * SECOND).await;
    // Its weight has changed, its address has not.
    let back = Instance { weight: 7, ..all[0].instance.clone() };
    let kept = linger.keep(&all, view(Arc::from([back])), &service, Instant::now()).instances;
    assert_eq!((kept.len(), kept[0].weight, linger.end()), (1, 7, None));
    linger.keep(&all, view(listed(&[])), &service, Instant::now());
    assert_eq!(linger.end(), Some(Instant::now() + 30 * SECOND));
}

#[tokio::test(start_paused = true)]
async fn a_request_that_fails_is_enough() {
    let (service, mut linger, all) = (with_checks(), Linger::default(), [endpoint(1, &[true])]);
    assert_eq!(linger.keep(&all, view(listed(&[])), &service, Instant::now()).instances.len(), 1);
    let mut request = InFlight::start(all[0].clone(), Choice::Available);
    assert!(request.tell(Outcome::Failure, 5), "it is to be looked at");
    assert!(linger.keep(&all, view(listed(&[])), &service, Instant::now()).instances.is_empty());
}

#[tokio::test(start_paused = true)]
async fn without_checks_nothing_stays() {
    let mut linger = Linger::default();
    let all = [endpoint(1, &[true])];
    let without = Service { health_check: None, ..with_checks() };
    assert!(linger.keep(&all, view(listed(&[])), &without, Instant::now()).instances.is_empty());
    let check = HealthCheck { linger: Duration::ZERO, ..HealthCheck::default() };
    let never = Service { health_check: Some(check), ..with_checks() };
    assert!(linger.keep(&all, view(listed(&[])), &never, Instant::now()).instances.is_empty());
}

/// Ten endpoints of which far too many are gone; `outcomes`: of the checks of each of them.
fn emptied(outcomes: &[&[bool]]) -> (Linger, Vec<Arc<Endpoint>>, Service) {
    let all: Vec<_> = (1..).zip(outcomes).map(|(port, outcomes)| endpoint(port, outcomes)).collect();
    let (mut linger, service) = (Linger::default(), Service::default());
    let whole = listed(&all.iter().collect::<Vec<_>>());
    assert!(linger.keep(&all, view(whole), &service, Instant::now()).alarm.is_none());
    (linger, all, service)
}

#[tokio::test(start_paused = true)]
async fn when_all_are_gone_at_once_those_that_answer_stay() {
    let (mut linger, mut all, service) = emptied(&[&[], &[], &[]]);
    let kept = linger.keep(&all, view(listed(&[])), &service, Instant::now());
    assert_eq!((ports(&kept.instances), kept.new, kept.held), (vec![1, 2, 3], 3, 3), "nobody was asked yet");
    let alarm = kept.alarm.unwrap();
    assert_eq!((alarm.before, linger.end()), (3, Some(Instant::now() + 30 * SECOND)));
    checked(&all[0], true);
    checked(&all[1], false);
    let kept = linger.keep(&all, view(listed(&[])), &service, Instant::now());
    assert_eq!((ports(&kept.instances), kept.new), (vec![1, 3], 0));
    // The breaker sees to what requests meet; and one check that fails may be by chance.
    InFlight::start(all[0].clone(), Choice::Available).tell(Outcome::Failure, 5);
    checked(&all[0], false);
    advance(30 * SECOND).await;
    let kept = linger.keep(&all, view(listed(&[])), &service, Instant::now());
    assert_eq!(ports(&kept.instances), [1], "the third did not answer in time");
    all.truncate(1);
    advance(Duration::from_secs(60 * 60 - 30)).await;
    let kept = linger.keep(&all, view(listed(&[])), &service, Instant::now());
    assert!(kept.instances.is_empty() && kept.alarm.is_none(), "an hour is all");
}

#[tokio::test(start_paused = true)]
async fn a_service_that_was_really_stopped_is_gone_as_soon_as_that_is_known() {
    let (mut linger, all, service) = emptied(&[&[], &[]]);
    assert_eq!(linger.keep(&all, view(listed(&[])), &service, Instant::now()).held, 2);
    all.iter().for_each(|endpoint| checked(endpoint, false));
    let kept = linger.keep(&all, view(listed(&[])), &service, Instant::now());
    assert!(kept.instances.is_empty() && kept.alarm.is_none() && linger.end().is_none());
    // The next one to come and go is measured anew.
    let next = [endpoint(9, &[])];
    assert!(linger.keep(&next, view(listed(&[&next[0]])), &service, Instant::now()).alarm.is_none());
    assert_eq!(
        linger.keep(&next, view(listed(&[])), &service, Instant::now()).alarm.map(|alarm| alarm.before),
        Some(1)
    );
}

#[tokio::test(start_paused = true)]
async fn when_as_many_are_listed_again_nobody_is_held() {
    let (mut linger, all, service) = emptied(&[&[], &[], &[], &[]]);
    assert_eq!(linger.keep(&all, view(listed(&[&all[0]])), &service, Instant::now()).held, 3);
    let others: Vec<_> = (11..15).map(|port| endpoint(port, &[])).collect();
    let now_listed = listed(&others.iter().collect::<Vec<_>>());
    let kept = linger.keep(&all, view(now_listed), &service, Instant::now());
    assert_eq!((ports(&kept.instances), kept.held), (vec![11, 12, 13, 14], 0), "others in their place: a rollout");
    assert!(linger.end().is_none());
}

#[tokio::test(start_paused = true)]
async fn those_that_go_one_by_one_are_asked_too_once_it_is_known_that_too_many_go() {
    let (mut linger, all, service) = emptied(&[&[], &[], &[], &[]]);
    let mut there = all.clone();
    for left in [3, 2] {
        advance(SECOND).await;
        let now_listed = listed(&all[4 - left..].iter().collect::<Vec<_>>());
        let kept = linger.keep(&there, view(now_listed), &service, Instant::now());
        assert_eq!((kept.instances.len(), !kept.back.is_empty()), (left, false), "not too many yet");
        there.remove(0);
    }
    advance(SECOND).await;
    let kept = linger.keep(&there, view(listed(&[&all[3]])), &service, Instant::now());
    assert_eq!(
        (ports(&kept.instances), !kept.back.is_empty()),
        (vec![4, 3, 1, 2], true),
        "all that went within the time are back"
    );
    let kept = linger.keep(&all, view(listed(&[&all[3]])), &service, Instant::now());
    assert_eq!((kept.held, !kept.back.is_empty()), (3, false));
    assert!(all[..3].iter().all(|endpoint| endpoint.live.is_gone()), "they are checked");
}

#[tokio::test(start_paused = true)]
async fn what_is_said_plainly_is_believed() {
    let (mut linger, all, service) = emptied(&[&[], &[]]);
    let withdrawn = all.iter().map(|endpoint| endpoint.instance.address.clone()).collect();
    let plain = View { listed: Arc::from([]), withdrawn: &withdrawn, parts: &[], moved: false };
    let kept = linger.keep(&all, plain, &service, Instant::now());
    assert!(kept.instances.is_empty() && kept.alarm.is_none(), "listed, and not in scope");
    let moved = View { listed: Arc::from([]), withdrawn: &HashSet::new(), parts: &[], moved: true };
    assert!(linger.keep(&all, moved, &service, Instant::now()).instances.is_empty(), "other sources count now");
}

#[tokio::test(start_paused = true)]
async fn of_merged_sources_each_is_judged_by_itself() {
    let (mut linger, all, service) = emptied(&[&[], &[], &[], &[], &[]]);
    let parts = |first, second| [(0, first), (1, second)];
    let whole = listed(&all.iter().collect::<Vec<_>>());
    let both = View { listed: whole, withdrawn: &HashSet::new(), parts: &parts(2, 3), moved: false };
    assert!(linger.keep(&all, both, &service, Instant::now()).alarm.is_none());
    let rest = listed(&all[2..].iter().collect::<Vec<_>>());
    let emptied = View { listed: rest, withdrawn: &HashSet::new(), parts: &parts(0, 3), moved: false };
    assert_eq!(
        linger.keep(&all, emptied, &service, Instant::now()).held,
        2,
        "two of five are few, but all of one source"
    );
}

#[tokio::test(start_paused = true)]
async fn what_was_known_before_counts() {
    let (mut linger, service) = (Linger::default(), Service::default());
    let known = [endpoint(1, &[]), endpoint(2, &[])];
    linger.seed(&listed(&[&known[0], &known[1]]), Instant::now());
    let kept = linger.keep(&[], view(listed(&[])), &service, Instant::now());
    assert_eq!((ports(&kept.instances), !kept.back.is_empty()), (vec![1, 2], true));
}

#[tokio::test(start_paused = true)]
async fn how_many_others_a_scope_leaves_out_says_nothing() {
    let (mut linger, all, service) = emptied(&[&[], &[], &[]]);
    let others: HashSet<_> = (100..200).map(|port| Address::new("10.0.0.1", port).unwrap()).collect();
    let all_gone = View { listed: Arc::from([]), withdrawn: &others, parts: &[], moved: false };
    assert_eq!(linger.keep(&all, all_gone, &service, Instant::now()).held, 3);
}
