//! Rollouts in a fleet that has its states in a store in memory.

mod races;

use super::*;
use crate::{
    config::{self, Origin, load},
    discovery::{
        Discovery, Handle,
        follower::tests::{instance, settle, telemetry},
        snapshot::Store as Disk,
    },
    registry::{self, RegistryError, store::memory::Memory},
    rollout::Earlier,
    route::Action,
};
use futures_util::future::BoxFuture;

use std::{path::Path, sync::atomic::Ordering::Relaxed, time::Duration};

/// Two instances, one of each version, and a store in memory.
struct Fixed(Arc<Memory>);

impl Registry for Fixed {
    fn name(&self) -> &str {
        "main"
    }

    fn kind(&self) -> &'static str {
        "fixed"
    }

    fn follow(self: Arc<Self>, _: String, sink: registry::Sink) -> BoxFuture<'static, ()> {
        let of = |port, version: &str| {
            let mut instance = instance(port);
            instance.labels.insert("version".into(), version.into());
            instance
        };
        sink.set(vec![of(1, "v1"), of(2, "v2")]);
        Box::pin(pending())
    }

    fn list(self: Arc<Self>) -> BoxFuture<'static, Result<Vec<String>, RegistryError>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    fn store(self: Arc<Self>) -> Result<Arc<dyn Store>, RegistryError> {
        Ok(self.0.clone())
    }

    fn silence_limit(&self) -> Duration {
        Duration::from_secs(3600)
    }
}

const KEY: &str = "pillion/rollouts/users";

struct Setup {
    handle: Handle,
    registries: Registries,
    telemetry: Arc<Telemetry>,
    disk: Option<Arc<Disk>>,
}

fn config(rollout: &str) -> Arc<Config> {
    config_of("v2", rollout)
}

fn config_of(canary: &str, rollout: &str) -> Arc<Config> {
    let text = format!(
        "registries: {{ main: {{ kind: consul }} }}\nrouting: {{ rollouts: {{ registry: main }} }}\n\
         services: {{ users: {{ subsets: {{ stable: {{ version: v1 }}, canary: {{ version: {canary} }} }}, \
         routes: [ {{ split: {{ stable: 90, canary: 10 }}, limits: {{ requests: 100 }} }} ], rollout: {{ {rollout} }} }} }}"
    );
    Arc::new(load(Origin::text("f", text), &|_| None).unwrap().config)
}

fn start(store: &Arc<Memory>, rollout: &str, folder: Option<&Path>) -> Setup {
    let telemetry = Arc::new(telemetry());
    let registry: Arc<dyn Registry> = Arc::new(Fixed(store.clone()));
    let registries = Registries::from([("main".to_owned(), registry)]);
    let snapshots = telemetry.metrics.snapshots.clone();
    let disk = folder.map(|dir| Disk::open(&config::Snapshot::new(dir), snapshots).unwrap());
    let (discovery, handle) =
        Discovery::new(config(rollout), registries.clone(), disk.clone(), Default::default(), telemetry.clone())
            .unwrap();
    tokio::spawn(discovery.run());
    Setup { handle, registries, telemetry, disk }
}

impl Setup {
    /// The canary's share in the split that is in force.
    fn share(&self) -> f64 {
        let cluster = self.handle.table().get("users").unwrap();
        let snapshot = cluster.load();
        let Action::Split(split) = &snapshot.settings.routes.as_ref().unwrap().routes[0].action else { panic!() };
        let share = split.shares().find(|(target, _)| target.subset.as_deref() == Some("canary")).unwrap().1;
        (share * 1e6).round() / 1e4
    }

    async fn rollout(&self) -> RolloutStatus {
        self.handle.rollouts().await.services.remove(0)
    }

    /// Requests to the canary and to the baseline.
    fn carries(&self, requests: u32) {
        let metrics = self.telemetry.metrics.service("users");
        for _ in 0..requests {
            for subset in ["canary", "stable"] {
                metrics.subset(subset).red.count(200, false, Duration::from_millis(5));
            }
        }
    }

    async fn until(&self, what: &str, is_so: impl Fn(&RolloutStatus) -> bool) -> RolloutStatus {
        for _ in 0..1000 {
            let rollout = self.rollout().await;
            if is_so(&rollout) {
                return rollout;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("waited in vain for {what}: {:?}", self.rollout().await);
    }
}

fn state(percent: f64) -> State {
    let mut state = State::begin("version=v2", 1, &Rollout::default(), "other", At::now());
    state.percent = percent;
    state
}

#[tokio::test(start_paused = true)]
async fn splits_weigh_what_the_state_says_and_else_what_is_written() {
    let store = Arc::<Memory>::default();
    let setup = start(&store, "start: manual", None);
    settle().await;
    assert_eq!((setup.share(), setup.rollout().await.state), (10.0, None));
    store.set(KEY, state(25.0).write().unwrap());
    settle().await;
    assert_eq!(setup.share(), 25.0);
    // One that cannot be read changes nothing, and is told until it is put right.
    let newer = String::from_utf8(state(99.0).write().unwrap()).unwrap().replace("\"version\":2", "\"version\":3");
    for (value, error) in [(newer.as_str(), "it has version 3"), ("{", "it is no rollout's state")] {
        store.set(KEY, value.to_owned());
        settle().await;
        let rollout = setup.rollout().await;
        assert!(rollout.refused.as_deref().is_some_and(|refused| refused.starts_with(error)), "{rollout:?}");
        assert_eq!(setup.share(), 25.0);
        let refused = setup.handle.command("users", Command::Pause).await.unwrap_err();
        assert!(matches!(&refused, NotDone::Refused(cause) if cause.contains(error)), "{refused:?}");
    }
    store.set(KEY, state(0.5).write().unwrap());
    settle().await;
    assert_eq!((setup.share(), setup.rollout().await.refused), (0.5, None));
    // Of another release.
    let mut other = state(100.0);
    other.release = "version=v3".into();
    store.set(KEY, other.write().unwrap());
    settle().await;
    assert_eq!(setup.share(), 10.0);
    // An emptied store takes nothing back.
    store.set(KEY, state(5.0).write().unwrap());
    settle().await;
    store.remove(KEY);
    settle().await;
    assert_eq!(setup.share(), 5.0);
    // A server that lags behind neither.
    let mut later = state(7.0);
    later.revision = 7;
    store.set(KEY, later.write().unwrap());
    settle().await;
    assert_eq!(setup.share(), 7.0);
    later.revision = 6;
    later.percent = 50.0;
    store.set(KEY, later.write().unwrap());
    settle().await;
    assert_eq!(setup.share(), 7.0);
}

#[tokio::test(start_paused = true)]
async fn what_a_route_has_let_through_still_counts_when_its_split_changes() {
    let store = Arc::<Memory>::default();
    let setup = start(&store, "start: manual", None);
    settle().await;
    let gate = || setup.handle.table().get("users").unwrap().load().settings.gates[0].clone().unwrap();
    let first = gate();
    store.set(KEY, state(25.0).write().unwrap());
    settle().await;
    assert_eq!(setup.share(), 25.0);
    assert!(Arc::ptr_eq(&first, &gate()));
}

#[tokio::test(start_paused = true)]
async fn a_release_of_the_config_decides_whether_the_state_counts() {
    let store = Arc::<Memory>::default();
    let mut of_a = state(50.0);
    of_a.release = "a".into();
    store.set(KEY, of_a.write().unwrap());
    let setup = start(&store, "start: manual, release: b", None);
    settle().await;
    assert_eq!(setup.share(), 10.0);
    setup.handle.reload(config("start: manual, release: a"), setup.registries.clone()).await.unwrap();
    settle().await;
    assert_eq!(setup.share(), 50.0);
    setup.handle.reload(config("start: manual, release: c"), setup.registries.clone()).await.unwrap();
    assert_eq!(setup.share(), 10.0);
    // Another pillion's config is already one further. What was before `c` may be gone.
    let mut next = state(1.0);
    next.release = "d".into();
    next.earlier =
        [("b", 0.0), ("c", 75.0)].map(|(release, percent)| Earlier { release: release.into(), percent }).into();
    store.set(KEY, next.write().unwrap());
    settle().await;
    assert_eq!((setup.share(), setup.rollout().await.percent), (75.0, Some(75.0)));
    setup.handle.reload(config("start: manual, release: b"), setup.registries.clone()).await.unwrap();
    assert_eq!(setup.share(), 0.0);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_read_is_aborted_unless_others_can_read_it() {
    let store = Arc::<Memory>::default();
    store.set(KEY, state(25.0).write().unwrap());
    let setup = start(&store, "start: manual", None);
    settle().await;
    assert_eq!(setup.share(), 25.0);
    let newer = String::from_utf8(state(25.0).write().unwrap()).unwrap().replace("\"version\":2", "\"version\":3");
    store.set(KEY, newer.clone());
    settle().await;
    let refused = setup.handle.command("users", Command::Abort).await.unwrap_err();
    assert!(matches!(&refused, NotDone::Refused(cause) if cause.contains("it has version 3")), "{refused:?}");
    assert_eq!(store.value(KEY).unwrap(), newer);
    store.set(KEY, "{".to_owned());
    settle().await;
    let aborted = setup.handle.command("users", Command::Abort).await.unwrap();
    assert!(matches!(aborted.phase, Phase::Aborted { taken_back: Some(_) }), "{aborted:?}");
    assert_eq!(aborted.decisions.back().unwrap().to_string(), "is aborted by hand, from 25 %");
    settle().await;
    assert_eq!(setup.share(), 0.0);
    // Once more, though it is aborted: what is of no use goes. (A list has no version that others could know.)
    store.set(KEY, "[3]".to_owned());
    settle().await;
    let again = setup.handle.command("users", Command::Abort).await.unwrap();
    assert_eq!((again.phase, again.decisions), (aborted.phase.clone(), aborted.decisions));
    assert_eq!(State::read(&store.value(KEY).unwrap()).unwrap().phase, aborted.phase);
    let refused = setup.handle.command("users", Command::Abort).await.unwrap_err();
    assert!(matches!(&refused, NotDone::Refused(cause) if cause == "it was aborted already"), "{refused:?}");
}

#[tokio::test(start_paused = true)]
async fn the_last_state_is_in_force_after_a_start_without_the_store() {
    let folder = tempfile::TempDir::new().unwrap();
    let store = Arc::<Memory>::default();
    store.set(KEY, state(25.0).write().unwrap());
    let setup = start(&store, "start: manual", Some(folder.path()));
    settle().await;
    setup.disk.as_ref().unwrap().flush().await;
    drop(setup);
    // One that says nothing.
    let config = config("start: manual");
    let telemetry = Arc::new(telemetry());
    let disk = Disk::open(&config::Snapshot::new(folder.path()), telemetry.metrics.snapshots.clone()).unwrap();
    let rollouts =
        Rollouts::new(&config, &Registries::default(), &Routes::new(), Some(disk.clone()), telemetry.clone());
    assert!(rollouts.state_of("users").is_none(), "without the registry there is no store");
    let registries =
        Registries::from([("main".to_owned(), Arc::new(Fixed(Arc::<Memory>::default())) as Arc<dyn Registry>)]);
    let rollouts = Rollouts::new(&config, &registries, &Routes::new(), Some(disk), telemetry);
    assert_eq!(rollouts.state_of("users").map(|state| state.percent), Some(25.0));
    assert!(rollouts.status().services[0].from_disk);
}

#[tokio::test(start_paused = true)]
async fn it_begins_where_there_are_requests_and_outlives_a_store_that_fails() {
    let store = Arc::<Memory>::default();
    let setup = start(&store, "", None);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(!setup.rollout().await.leading, "who sees no requests does not want to decide");
    store.fails.store(true, Relaxed);
    for _ in 0..60 {
        setup.carries(1);
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert_eq!(store.value(KEY), None);
    let failures = setup.telemetry.metrics.rollout("users").failures.get();
    assert!((2..=30).contains(&failures), "it waits between attempts: {failures}");
    store.fails.store(false, Relaxed);
    tokio::time::sleep(Duration::from_secs(60)).await;
    setup.carries(1);
    let begun = setup.until("the start", |rollout| rollout.state.is_some()).await;
    assert_eq!((setup.share(), begun.leading), (1.0, true));
    assert_eq!(begun.state.unwrap().release, "version=v2");
    // What comes in counts, in the store after half a minute.
    setup.carries(200);
    tokio::time::sleep(Duration::from_secs(40)).await;
    let told: serde_json::Value = serde_json::from_slice(&store.value(KEY).unwrap()).unwrap();
    // And perhaps the one before them.
    let counted = told["guards"]["canary"]["requests"].as_u64().unwrap();
    assert!((200..=201).contains(&counted), "{told:#}");
}

#[tokio::test(start_paused = true)]
async fn what_somebody_else_writes_counts() {
    let store = Arc::<Memory>::default();
    let setup = start(&store, "", None);
    settle().await;
    setup.carries(1);
    setup.until("the start", |rollout| rollout.state.is_some()).await;
    let mut paused = state(50.0);
    paused.phase = Phase::Paused;
    store.set(KEY, paused.write().unwrap());
    for _ in 0..10 {
        setup.carries(100);
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
    let rollout = setup.rollout().await;
    assert_eq!(rollout.state.map(|state| (state.phase, state.percent)), Some((Phase::Paused, 50.0)));
    assert_eq!(setup.share(), 50.0);
}

#[tokio::test(start_paused = true)]
async fn that_nobody_decides_is_told() {
    let store = Arc::<Memory>::default();
    store.set(KEY, state(25.0).write().unwrap());
    let setup = start(&store, "", None);
    let shown = || setup.telemetry.metrics.rollout("users").unattended.get();
    // With `hold: 5m` and `interval: 5s` somebody would write it every 35 s.
    tokio::time::sleep(Duration::from_secs(79)).await;
    assert_eq!((setup.rollout().await.unattended, shown()), (false, 0));
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!((setup.rollout().await.unattended, shown()), (true, 1));
    assert_eq!(setup.share(), 25.0);
    // It has requests now, so it decides.
    setup.carries(1);
    let led = setup.until("somebody to decide", |rollout| !rollout.unattended).await;
    assert!(led.leading && shown() == 0);
    let by = led.state.unwrap().by;
    assert!(by.ends_with(&format!("/{}", std::process::id())), "{by}");
    for _ in 0..600 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        setup.carries(1);
        assert!(!setup.rollout().await.unattended);
    }
    // When it is over, nobody need look.
    setup.handle.command("users", Command::Abort).await.unwrap();
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!((setup.rollout().await.unattended, shown()), (false, 0));
}

#[tokio::test(start_paused = true)]
async fn what_it_waits_for_before_it_begins_is_told() {
    let store = Arc::<Memory>::default();
    let setup = start(&store, "", None);
    let waiting = async || setup.rollout().await.waiting_for;
    let reload = async |config| {
        setup.handle.reload(config, setup.registries.clone()).await.unwrap();
        settle().await;
    };
    settle().await;
    assert_eq!(waiting().await, Some(WaitingFor::Requests));
    reload(config("start: manual")).await;
    assert_eq!(waiting().await, Some(WaitingFor::Hand));
    reload(config_of("v9", "")).await;
    assert_eq!(waiting().await, Some(WaitingFor::Canary));
    let refused = setup.handle.command("users", Command::Start).await.unwrap_err();
    assert_eq!(refused, NotDone::Refused("no endpoint of `canary` can take requests".into()));
    assert_eq!(store.value(KEY), None);
    reload(config("")).await;
    setup.carries(1);
    assert_eq!(waiting().await, Some(WaitingFor::Decider));
    setup.until("the start", |rollout| rollout.state.is_some()).await;
    assert_eq!(waiting().await, None);
    // One that the fleet has had before does not come again by itself.
    reload(config("release: next")).await;
    setup.carries(1);
    setup.until("the next", |rollout| rollout.waiting_for.is_none()).await;
    reload(config("cool_down: 0s")).await;
    assert_eq!(waiting().await, Some(WaitingFor::Config));
    let refused = setup.handle.command("users", Command::Start).await.unwrap_err();
    assert!(matches!(&refused, NotDone::Refused(cause) if cause.contains("`next` is in progress")), "{refused:?}");
    setup.handle.command("users", Command::Abort).await.unwrap();
    setup.handle.command("users", Command::Start).await.unwrap();
    assert_eq!(
        setup.telemetry.metrics.rollout("users").decisions.get(RolloutVerdict::Start as usize),
        3,
        "by hand, too"
    );
}

#[tokio::test(start_paused = true)]
async fn who_sees_no_more_requests_lets_another_decide() {
    let store = Arc::<Memory>::default();
    let [one, other] = [start(&store, "", None), start(&store, "", None)];
    settle().await;
    one.carries(1);
    one.until("the lead", |rollout| rollout.leading).await;
    for _ in 0..400 {
        other.carries(1);
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert!(other.rollout().await.leading && !one.rollout().await.leading);
}
