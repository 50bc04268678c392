use super::*;
use crate::{
    cluster::table::{Settings, State},
    config::{AccessLog, AccessLogMode, Failover, Guard, Service, Source},
    discovery::{
        SourceState,
        disk::Disk,
        scope::Scope,
        sources::{Asked, Plan},
    },
    registry::{Instance, RegistryError},
    telemetry::{access_log, labels::WORDS, metrics::Metrics},
};
use futures_util::future::BoxFuture;
use std::future::pending;
use tokio::{sync::mpsc, time::sleep};

/// A registry whose follower the test speaks for. Each time it is followed, the test gets the sink.
struct Scripted {
    name: &'static str,
    followed: mpsc::UnboundedSender<Sink>,
}

impl Registry for Scripted {
    fn name(&self) -> &str {
        self.name
    }

    fn kind(&self) -> &'static str {
        "scripted"
    }

    fn follow(self: Arc<Self>, _: String, sink: Sink) -> BoxFuture<'static, ()> {
        self.followed.send(sink).unwrap();
        Box::pin(pending())
    }

    fn list(self: Arc<Self>) -> BoxFuture<'static, Result<Vec<String>, RegistryError>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    fn silence_limit(&self) -> Duration {
        Duration::from_secs(90)
    }
}

pub fn scripted(name: &'static str) -> (Arc<dyn Registry>, mpsc::UnboundedReceiver<Sink>) {
    let (followed, sinks) = mpsc::unbounded_channel();
    (Arc::new(Scripted { name, followed }), sinks)
}

pub fn telemetry() -> Telemetry {
    let metrics = Metrics::new(WORDS);
    let off = AccessLog { mode: AccessLogMode::Off, ..AccessLog::default() };
    let access_log = access_log::AccessLog::start(&off, metrics.access_log_dropped.clone()).unwrap();
    Telemetry { metrics, access_log }
}

fn start(sources: Vec<Arc<dyn Registry>>, pinned: bool) -> Follower {
    start_with(Service::default(), sources, pinned)
}

fn start_with(service: Service, sources: Vec<Arc<dyn Registry>>, pinned: bool) -> Follower {
    let telemetry = telemetry();
    let settings = Arc::new(Settings { service, ..Settings::default() });
    let cluster = Arc::new(Cluster::new("s", settings.clone(), telemetry.metrics.service("s"), Arc::default()));
    let names: Vec<Source> = sources.iter().map(|registry| registry.name().into()).collect();
    let asked = |name: &str| Asked { registry: name.into(), name: "s".into(), scope: Scope::default() };
    let plan = Plan::new(&names, &Failover::default(), asked);
    let settings = SettingsFor { settings, plan, pinned };
    let checks = Arc::new(Semaphore::new(1));
    let known = Known { disk: Disk::new(None, "s", None), before: None, same_sources: false };
    Follower::start(cluster, settings, sources, &telemetry, known, Duration::from_millis(100), checks)
}

pub fn instance(port: u16) -> Instance {
    Instance::new(port.to_string(), crate::registry::Address::new("10.0.0.1", port).unwrap())
}

fn ports(follower: &Follower) -> Vec<u16> {
    follower.cluster().load().endpoints.iter().map(|endpoint| endpoint.instance.address.port()).collect()
}

/// Lets everything that is due happen, and some virtual time pass.
pub async fn settle() {
    sleep(Duration::from_millis(250)).await;
}

#[tokio::test(start_paused = true)]
async fn the_first_source_that_lists_anything_is_in_force() {
    let ((first, mut sinks1), (second, mut sinks2)) = (scripted("first"), scripted("second"));
    let follower = start(vec![first, second], false);
    let (sink1, sink2) = (sinks1.recv().await.unwrap(), sinks2.recv().await.unwrap());
    sink2.set(vec![instance(2)]);
    settle().await;
    assert_eq!(ports(&follower), [2], "the first has not answered");
    sink1.set(vec![instance(1)]);
    settle().await;
    assert_eq!(ports(&follower), [1]);
    sink1.failed(RegistryError::Unreachable { server: "x".into(), cause: "gone".into() });
    settle().await;
    assert_eq!(ports(&follower), [1], "a failure takes nothing away");
    assert!(follower.status().sources[0].failure.is_some());
    sink1.set(Vec::new());
    settle().await;
    assert_eq!(ports(&follower), [2]);
}

#[tokio::test(start_paused = true)]
async fn unknown_means_that_every_source_said_so() {
    let ((first, mut sinks1), (second, mut sinks2)) = (scripted("first"), scripted("second"));
    let follower = start(vec![first, second], false);
    let (sink1, sink2) = (sinks1.recv().await.unwrap(), sinks2.recv().await.unwrap());
    sink1.set(Vec::new());
    settle().await;
    assert_eq!(follower.cluster().load().state, State::Pending);
    sink2.set(Vec::new());
    settle().await;
    assert_eq!(follower.cluster().load().state, State::Unknown);
    sink2.set(vec![instance(1)]);
    settle().await;
    sink2.set(Vec::new());
    settle().await;
    assert_eq!(follower.cluster().load().state, State::Known, "it had instances once");
    let (registry, mut sinks) = scripted("only");
    let pinned = start(vec![registry], true);
    sinks.recv().await.unwrap().set(Vec::new());
    settle().await;
    assert_eq!(pinned.cluster().load().state, State::Known, "the config names it");
}

#[tokio::test(start_paused = true)]
async fn one_source_that_has_nothing_means_nothing_while_another_has_not_answered() {
    let ((first, mut sinks1), (second, mut sinks2)) = (scripted("first"), scripted("second"));
    let follower = start(vec![first, second], true);
    let (sink1, sink2) = (sinks1.recv().await.unwrap(), sinks2.recv().await.unwrap());
    sink2.set(Vec::new());
    settle().await;
    assert_eq!(follower.cluster().load().state, State::Pending, "though the config names it");
    sink1.set(vec![instance(1)]);
    settle().await;
    assert_eq!((ports(&follower), follower.cluster().load().state), (vec![1], State::Known));
    // Where the second alone has answered and was in force, it can also take back what it said.
    let ((first, _sinks1), (second, mut sinks2)) = (scripted("first"), scripted("second"));
    let unguarded = Service { guard: Guard { enabled: false, ..Guard::default() }, ..Service::default() };
    let follower = start_with(unguarded, vec![first, second], true);
    let sink2 = sinks2.recv().await.unwrap();
    sink2.set(vec![instance(2)]);
    settle().await;
    sink2.set(Vec::new());
    settle().await;
    assert_eq!((ports(&follower), follower.cluster().load().state), (vec![], State::Known));
}

#[tokio::test(start_paused = true)]
async fn time_alone_brings_the_failover_and_the_way_back() {
    let ((first, mut sinks1), (second, mut sinks2)) = (scripted("first"), scripted("second"));
    let follower = start(vec![first, second], true);
    let (sink1, sink2) = (sinks1.recv().await.unwrap(), sinks2.recv().await.unwrap());
    sink1.set(vec![instance(1)]);
    sink2.set(vec![instance(2)]);
    settle().await;
    assert_eq!(ports(&follower), [1]);
    sink1.failed(RegistryError::Unreachable { server: "x".into(), cause: "gone".into() });
    sleep(Duration::from_secs(9)).await;
    assert_eq!(ports(&follower), [1]);
    sleep(Duration::from_secs(2)).await;
    assert_eq!(ports(&follower), [2]);
    let [one, two] = &follower.status().sources[..] else { panic!("two sources") };
    assert_eq!((one.state, one.in_use, two.in_use), (SourceState::GivenUp, false, true));
    sink1.alive();
    sleep(Duration::from_secs(29)).await;
    assert_eq!(ports(&follower), [2]);
    sleep(Duration::from_secs(2)).await;
    assert_eq!(ports(&follower), [1]);
}

#[tokio::test(start_paused = true)]
async fn a_set_of_another_source_is_no_loss_however_small() {
    let ((first, mut sinks1), (second, mut sinks2)) = (scripted("first"), scripted("second"));
    let follower = start(vec![first, second], true);
    let (sink1, sink2) = (sinks1.recv().await.unwrap(), sinks2.recv().await.unwrap());
    sink1.set((1..=10).map(instance).collect());
    sink2.set(vec![instance(11)]);
    settle().await;
    assert_eq!(ports(&follower).len(), 10);
    sink1.failed(RegistryError::Unreachable { server: "x".into(), cause: "gone".into() });
    sleep(Duration::from_secs(11)).await;
    assert_eq!((ports(&follower), follower.status().held), (vec![11], None));
}

#[tokio::test(start_paused = true)]
async fn a_second_source_is_in_force_when_the_first_has_had_its_moment() {
    let ((first, _sinks1), (second, mut sinks2)) = (scripted("first"), scripted("second"));
    let follower = start(vec![first, second], true);
    sinks2.recv().await.unwrap().set(vec![instance(2)]);
    sleep(Duration::from_millis(150)).await;
    assert!(ports(&follower).is_empty());
    sleep(Duration::from_millis(100)).await;
    assert_eq!(ports(&follower), [2]);
}

#[tokio::test(start_paused = true)]
async fn the_first_answer_is_in_force_at_once() {
    let (registry, mut sinks) = scripted("r");
    let follower = start(vec![registry], false);
    let (sink, begun) = (sinks.recv().await.unwrap(), Instant::now());
    sink.set(Vec::new());
    let snapshot = follower.cluster().first_answer(Duration::from_secs(2)).await;
    assert_eq!((snapshot.state, begun.elapsed()), (State::Unknown, Duration::ZERO));
}

#[tokio::test(start_paused = true)]
async fn changes_are_published_at_once_and_then_gathered() {
    let (registry, mut sinks) = scripted("r");
    let follower = start(vec![registry], false);
    let sink = sinks.recv().await.unwrap();
    settle().await;
    for port in 1..=50 {
        sink.set((1..=port).map(instance).collect());
        sleep(Duration::from_millis(10)).await;
        if port == 1 {
            assert_eq!(ports(&follower), [1], "the first one at once");
        }
    }
    settle().await;
    assert_eq!(ports(&follower).len(), 50);
    let swaps = follower.cluster().metrics.table_swaps.get();
    assert!((5..=8).contains(&swaps), "{swaps} in half a second");
}

#[tokio::test(start_paused = true)]
async fn a_silent_registry_is_followed_afresh_and_keeps_its_set() {
    let (registry, mut sinks) = scripted("r");
    let follower = start(vec![registry], false);
    let sink = sinks.recv().await.unwrap();
    sink.set(vec![instance(1)]);
    sleep(Duration::from_secs(60)).await;
    sink.alive();
    let begun = Instant::now();
    let again = sinks.recv().await.unwrap();
    assert!((85..=95).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
    assert_eq!(ports(&follower), [1]);
    again.set(vec![instance(2)]);
    settle().await;
    assert_eq!(ports(&follower), [2]);
}

#[tokio::test(start_paused = true)]
async fn the_first_answer_is_not_gathered() {
    let (registry, mut sinks) = scripted("r");
    let follower = start(vec![registry], false);
    let sink = sinks.recv().await.unwrap();
    let asked = Instant::now();
    sink.set(vec![instance(1)]);
    follower.cluster().first_answer(Duration::from_secs(1)).await;
    assert_eq!((ports(&follower), asked.elapsed()), (vec![1], Duration::ZERO));
}

#[tokio::test(start_paused = true)]
async fn one_that_is_gone_stays_while_its_checks_pass_and_for_its_time() {
    let here =
        [std::net::TcpListener::bind("127.0.0.1:0").unwrap(), std::net::TcpListener::bind("127.0.0.1:0").unwrap()];
    let instances = here.each_ref().map(|socket| {
        let address = crate::registry::Address::Ip(socket.local_addr().unwrap());
        Instance::new(address.to_string(), address)
    });
    let [stays, leaves] = instances.each_ref().map(|instance| instance.address.port());
    let service = Service { health_check: Some(crate::config::HealthCheck::default()), ..Service::default() };
    let (registry, mut sinks) = scripted("r");
    let follower = start_with(service, vec![registry], false);
    let sink = sinks.recv().await.unwrap();
    sink.set(instances.to_vec());
    settle().await;
    sink.set(vec![instances[0].clone()]);
    settle().await;
    assert_eq!(ports(&follower), [stays, leaves]);
    assert!(follower.cluster().load().endpoints[1].live.is_gone());
    sleep(Duration::from_secs(29)).await;
    assert_eq!(ports(&follower), [stays, leaves]);
    sleep(Duration::from_secs(1)).await;
    assert_eq!(ports(&follower), [stays], "its time is over");
    // Once more, and this time it stops listening.
    sink.set(instances.to_vec());
    settle().await;
    sink.set(vec![instances[0].clone()]);
    settle().await;
    assert_eq!(ports(&follower), [stays, leaves]);
    let [_here, left] = here;
    drop(left);
    sleep(Duration::from_secs(2)).await;
    assert_eq!(ports(&follower), [stays], "it is checked sooner, and the first failure is enough");
}
