use super::*;
use crate::{
    cluster::balance::Ask,
    telemetry::{labels::WORDS, metrics::Metrics},
};
use http::HeaderMap;

fn cluster(settings: Arc<Settings>) -> Cluster {
    Cluster::new("s", settings, Metrics::new(WORDS).service("s"), Arc::default())
}

fn settings() -> Arc<Settings> {
    Arc::new(Settings::default())
}

fn instance(id: &str, port: u16, weight: u32) -> Instance {
    Instance { weight, ..Instance::new(id, Address::new("10.0.0.1", port).unwrap()) }
}

#[tokio::test]
async fn unchanged_endpoints_stay_and_changed_ones_keep_their_numbers() {
    let (cluster, settings) = (cluster(settings()), settings());
    assert!(cluster.publish(&settings, &[instance("a", 1, 1), instance("b", 2, 1)], State::Known));
    let before = cluster.load().endpoints.clone();
    before[1].live.observe(Duration::from_millis(7), Instant::now());
    let next = [instance("a", 1, 1), instance("b2", 2, 5), instance("c", 3, 1)];
    assert!(cluster.publish(&settings, &next, State::Known));
    let after = cluster.load().endpoints.clone();
    assert!(Arc::ptr_eq(&before[0], &after[0]));
    assert!(!Arc::ptr_eq(&before[1], &after[1]) && Arc::ptr_eq(&before[1].live, &after[1].live));
    assert!(after[2].live.latency(Instant::now()).is_some(), "a new endpoint starts at the median");
    assert!(!cluster.publish(&settings, &next, State::Known), "no change publishes nothing");
    assert_eq!(cluster.metrics.table_swaps.get(), 2);
}

#[tokio::test]
async fn where_a_process_has_one_address_for_grpc_and_one_for_http_each_gets_its_own() {
    let cluster = cluster(settings());
    let scheme = |id: &str, port, scheme: &str| {
        let mut instance = instance(id, port, 1);
        instance.labels.insert("scheme".into(), scheme.into());
        instance
    };
    cluster.publish(&settings(), &[scheme("a/grpc", 1, "grpc"), scheme("a/http", 2, "http")], State::Known);
    let snapshot = cluster.load();
    for _ in 0..20 {
        let port =
            |is_grpc| snapshot.pick(is_grpc, Ask::default(), &[], Instant::now()).unwrap().0.instance.address.port();
        assert_eq!((port(true), port(false)), (1, 2));
    }
    assert_eq!(snapshot.usable(), 2);
    cluster.publish(&settings(), &[scheme("a/grpc", 1, "grpc")], State::Known);
    assert!(
        cluster.load().pick(false, Ask::default(), &[], Instant::now()).is_some(),
        "with one kind only, that one takes all"
    );
}

#[tokio::test]
async fn two_instances_at_one_address_share_its_numbers() {
    let cluster = cluster(settings());
    cluster.publish(&settings(), &[instance("a", 1, 1), instance("b", 1, 1)], State::Known);
    let endpoints = cluster.load().endpoints.clone();
    assert!(Arc::ptr_eq(&endpoints[0].live, &endpoints[1].live));
}

#[tokio::test]
async fn other_tls_settings_make_new_peers() {
    let (cluster, plain) = (cluster(settings()), settings());
    cluster.publish(&plain, &[instance("a", 1, 1)], State::Known);
    let before = cluster.load().endpoints[0].live.key;
    let service = Service { tls: Some(crate::config::Tls::default()), ..Service::default() };
    cluster.publish(&Arc::new(Settings { service, ..Settings::default() }), &[instance("a", 1, 1)], State::Known);
    assert_ne!(cluster.load().endpoints[0].live.key, before);
}

#[tokio::test]
async fn other_limits_are_put_in_force() {
    let cluster = cluster(settings());
    assert_eq!(cluster.metrics.requests_limit.get(), 1024);
    let limits = crate::config::Limits { requests: 7, ..Default::default() };
    let service = Service { limits, ..Service::default() };
    cluster.publish(&Arc::new(Settings { service, ..Settings::default() }), &[], State::Known);
    assert_eq!(cluster.metrics.requests_limit.get(), 7);
}

#[tokio::test(start_paused = true)]
async fn the_first_answer_wakes_those_who_wait() {
    let cluster = Arc::new(cluster(settings()));
    let waiting = tokio::spawn({
        let cluster = cluster.clone();
        async move { cluster.first_answer(Duration::from_secs(2)).await.state }
    });
    tokio::time::sleep(Duration::from_secs(1)).await;
    cluster.publish(&settings(), &[], State::Unknown);
    assert_eq!(waiting.await.unwrap(), State::Unknown);
    let never = super::tests::cluster(settings());
    for waited in [2, 0] {
        let asked = Instant::now();
        assert_eq!(never.first_answer(Duration::from_secs(2)).await.state, State::Pending);
        assert_eq!(asked.elapsed(), Duration::from_secs(waited), "the first waits, the others do not");
    }
}

#[tokio::test]
async fn a_version_that_a_request_asks_for_is_granted_while_the_registry_has_not_answered_or_somebody_has_it() {
    let service: Service = crate::config::read("service", b"subsets: { canary: { version: v2 } }").unwrap();
    let routes = route::Table::new("s", &service).map(Arc::new);
    let settings = Arc::new(Settings { service, routes, ..Settings::default() });
    let cluster = cluster(settings.clone());
    let headers = HeaderMap::from_iter([("x-version".parse().unwrap(), "canary".parse().unwrap())]);
    let granted =
        |cluster: &Cluster| cluster.load().asked_for(&headers).map(|(name, granted)| (name.to_string(), granted));
    assert_eq!(granted(&cluster), Some(("canary".into(), true)), "it is not known yet");
    cluster.publish(&settings, &[instance("a", 1, 1)], State::Known);
    assert_eq!(granted(&cluster), Some(("canary".into(), false)), "nobody has it");
    let mut canary = instance("b", 2, 1);
    canary.labels.insert("version".into(), "v2".into());
    cluster.publish(&settings, &[instance("a", 1, 1), canary], State::Known);
    assert_eq!(granted(&cluster), Some(("canary".into(), true)));
    let other = HeaderMap::from_iter([("x-version".parse().unwrap(), "beta".parse().unwrap())]);
    assert_eq!(cluster.load().asked_for(&other), None, "no subset of that name");
    assert_eq!(cluster.load().asked_for(&HeaderMap::new()), None);
}

#[tokio::test]
async fn what_is_doubted_is_not_used_before_it_has_passed_unless_it_is_alone() {
    let (cluster, settings) = (cluster(settings()), settings());
    let (known, back) = (instance("a", 1, 1), instance("b", 2, 1));
    let doubted = HashSet::from([back.address.clone()]);
    let is_used = |snapshot: &Snapshot| {
        let back = snapshot.endpoints.iter().find(|endpoint| endpoint.instance.address.port() == 2);
        back.is_some_and(|endpoint| endpoint.live.health.is_available())
    };
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let seen = scope.spawn(|| {
            let mut looks = 0_u64;
            while !done.load(Relaxed) {
                assert!(!is_used(&cluster.load()), "seen while it was not checked");
                looks += 1;
            }
            looks
        });
        for _ in 0..2000 {
            cluster.publish(&settings, std::slice::from_ref(&known), State::Known);
            assert!(cluster.publish_doubting(&doubted, &settings, &[known.clone(), back.clone()], State::Known));
        }
        done.store(true, Relaxed);
        assert!(seen.join().unwrap() > 0);
    });
    let others = [instance("b", 2, 1), instance("c", 3, 1), instance("d", 4, 1)];
    let many = others.iter().map(|instance| instance.address.clone()).collect();
    cluster.publish(&settings, std::slice::from_ref(&known), State::Known);
    cluster.publish_doubting(&many, &settings, &[&[known][..], &others].concat(), State::Known);
    assert_eq!(cluster.metrics.panicking.get(), 0, "that they are missing is no reason to use them all the same");
    let eligible = cluster.load().endpoints.iter().filter(|endpoint| endpoint.live.health.is_available()).count();
    assert_eq!(eligible, 1);

    cluster.publish(&settings, &[], State::Known);
    cluster.publish_doubting(&doubted, &settings, &[back], State::Known);
    assert!(is_used(&cluster.load()), "there is no other");
}
