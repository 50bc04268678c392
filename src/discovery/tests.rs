use super::{
    follower::tests::{instance, scripted, settle, telemetry},
    *,
};
use crate::{
    config::{Policy, Service},
    registry::Sink,
};
use tokio::{
    sync::mpsc::UnboundedReceiver,
    time::{Duration, sleep, timeout},
};

struct Setup {
    config: Config,
    registries: Registries,
    handle: Handle,
    sinks: UnboundedReceiver<Sink>,
}

/// One source, called `main`, whose followers the test speaks for.
fn start(edit: impl FnOnce(&mut Config)) -> Setup {
    let mut config = Config::default();
    edit(&mut config);
    let (registry, sinks) = scripted("main");
    let registries = Registries::from([("main".to_owned(), registry)]);
    config.discovery.sources = vec!["main".into()];
    let (discovery, handle) =
        Discovery::new(Arc::new(config.clone()), registries.clone(), None, Default::default(), Arc::new(telemetry()))
            .unwrap();
    tokio::spawn(discovery.run());
    Setup { config, registries, handle, sinks }
}

impl Setup {
    fn policy(&self, service: &str) -> Policy {
        self.handle.table().get(service).unwrap().load().settings.service.balance.policy
    }

    async fn reload(&self) {
        self.handle.reload(Arc::new(self.config.clone()), self.registries.clone()).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn new_settings_are_in_force_when_the_reload_returns() {
    let mut setup = start(|config| drop(config.services.insert("named".into(), Service::default())));
    setup.handle.follow("asked").await.unwrap();
    let (named, asked) = (setup.sinks.recv().await.unwrap(), setup.sinks.recv().await.unwrap());
    named.set(vec![instance(1)]);
    settle().await;
    setup.config.defaults.balance.policy = Policy::Random;
    setup.config.services["named"].balance.policy = Policy::RoundRobin;
    setup.reload().await;
    assert_eq!((setup.policy("named"), setup.policy("asked")), (Policy::RoundRobin, Policy::Random));
    // No watch was begun anew, and those that there are still count.
    assert!(setup.sinks.try_recv().is_err());
    asked.set(vec![instance(2)]);
    settle().await;
    assert_eq!(setup.handle.table().get("asked").unwrap().load().endpoints.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_was_known_stays_in_force_until_other_sources_have_answered() {
    let mut setup = start(|config| {
        config.defaults.guard.enabled = false;
        config.services.insert("named".into(), config.defaults.clone());
    });
    setup.sinks.recv().await.unwrap().set(vec![instance(1), instance(2)]);
    settle().await;
    let (other, mut sinks) = scripted("other");
    setup.registries.insert("other".into(), other);
    setup.config.discovery.sources = vec!["other".into()];
    setup.config.services["named"].balance.policy = Policy::Random;
    setup.reload().await;
    let named = setup.handle.table().get("named").unwrap();
    assert_eq!((named.load().endpoints.len(), setup.policy("named")), (2, Policy::Random));
    let sink = sinks.recv().await.unwrap();
    sink.set(vec![instance(3)]);
    settle().await;
    assert_eq!(named.load().endpoints.len(), 1);
    // A service that is no longer named, and had instances, exists all the same.
    setup.config.services.shift_remove("named");
    setup.reload().await;
    sink.set(Vec::new());
    settle().await;
    assert_eq!((named.load().endpoints.len(), named.load().state), (0, State::Known));
}

#[tokio::test(start_paused = true)]
async fn idle_services_go_in_time_however_many_orders_there_are() {
    let setup = start(|config| {
        config.discovery.idle = Duration::from_secs(60);
        config.discovery.max_services = 1;
    });
    setup.handle.follow("asked").await.unwrap();
    let refused = async {
        while setup.handle.follow("other").await.is_err() {
            sleep(Duration::from_millis(500)).await;
        }
    };
    let begun = Instant::now();
    timeout(Duration::from_secs(600), refused).await.expect("`asked` goes in the end");
    assert!((60..=76).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
    assert!(setup.handle.table().get("asked").is_none());
}

#[tokio::test(start_paused = true)]
async fn a_service_that_a_listener_names_is_waited_for_as_well() {
    let named = |config: &mut Config| {
        config
            .listeners
            .push(crate::config::Listener { service: Some("orders".into()), ..crate::config::Listener::egress() });
    };
    let mut setup = start(named);
    assert!(!setup.handle.is_ready(&setup.config));
    assert_eq!(setup.handle.unanswered(&setup.config), ["orders"]);
    setup.sinks.recv().await.unwrap().set(vec![instance(1)]);
    settle().await;
    assert!(setup.handle.is_ready(&setup.config));
}

#[tokio::test(start_paused = true)]
async fn names_that_nobody_knows_make_room_for_others() {
    let mut setup = start(|config| config.discovery.max_services = 2);
    setup.handle.follow("real").await.unwrap();
    setup.sinks.recv().await.unwrap().set(vec![instance(1)]);
    for name in ["made-up", "invented", "typo"] {
        setup.handle.follow(name).await.unwrap();
        setup.sinks.recv().await.unwrap().set(Vec::new());
        settle().await;
        assert_eq!(setup.handle.table().get(name).unwrap().load().state, State::Unknown);
        assert_eq!(setup.handle.follow("too soon").await.unwrap_err().reason, Reason::TooManyServices);
        sleep(UNKNOWN_STAYS).await;
    }
    assert!(setup.handle.table().get("real").is_some());
    setup.handle.follow("other").await.unwrap();
    setup.sinks.recv().await.unwrap().set(vec![instance(2)]);
    settle().await;
    // Both places are taken by services that exist.
    assert_eq!(setup.handle.follow("one more").await.unwrap_err().reason, Reason::TooManyServices);
}

#[tokio::test(start_paused = true)]
async fn services_that_are_asked_for_or_named_stay() {
    let setup = start(|config| {
        config.discovery.idle = Duration::from_secs(60);
        config.services.insert("named".into(), Service::default());
    });
    let asked = setup.handle.follow("asked").await.unwrap();
    for _ in 0..10 {
        sleep(Duration::from_secs(59)).await;
        assert_eq!(setup.handle.table().len(), 2);
        asked.mark_used();
    }
    sleep(Duration::from_secs(80)).await;
    assert!(setup.handle.table().get("asked").is_none() && setup.handle.table().get("named").is_some());
}
