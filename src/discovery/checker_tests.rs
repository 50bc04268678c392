use super::*;
use crate::{
    cluster::table::{self, Settings},
    config::Service,
    registry::{Address, Instance},
    telemetry::{labels::WORDS, metrics::Metrics},
};
use std::{net::TcpListener, time::Duration};
use tokio::{task::JoinHandle, time::sleep};

const SECOND: Duration = Duration::from_secs(1);

struct Setup {
    cluster: Arc<Cluster>,
    task: JoinHandle<()>,
}

impl Drop for Setup {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn start() -> Setup {
    let cluster = Arc::new(Cluster::new("s", settings(None), Metrics::new(WORDS).service("s"), Arc::default()));
    let checker = Checker::new(cluster.clone(), Arc::new(Semaphore::new(2)), Arc::default());
    Setup { cluster, task: tokio::spawn(checker.run()) }
}

fn settings(health_check: Option<HealthCheck>) -> Arc<Settings> {
    Arc::new(Settings { service: Service { health_check, ..Service::default() }, ..Settings::default() })
}

impl Setup {
    fn publish(&self, check: Option<HealthCheck>, sockets: &[&TcpListener]) {
        let instances: Vec<_> = sockets.iter().map(|socket| instance(socket.local_addr().unwrap())).collect();
        self.cluster.publish(&settings(check), &instances, table::State::Known);
    }

    fn states(&self) -> Vec<Option<State>> {
        let endpoints = self.cluster.load().endpoints.clone();
        endpoints.iter().map(|endpoint| endpoint.live.checked().map(|checked| checked.state)).collect()
    }

    fn made(&self) -> [u64; 2] {
        [CheckResult::Passed, CheckResult::Failed].map(|result| self.cluster.metrics.health_checks.get(result as usize))
    }
}

fn instance(address: std::net::SocketAddr) -> Instance {
    Instance::new(address.to_string(), Address::Ip(address))
}

/// One whose connections the kernel accepts by itself.
fn listening() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").unwrap()
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_fails_is_shut_and_opened_when_it_passes_again() {
    let setup = start();
    let (good, bad) = (listening(), listening());
    let address = bad.local_addr().unwrap();
    setup.publish(Some(HealthCheck::default()), &[&good, &bad]);
    sleep(SECOND).await;
    assert_eq!(setup.states(), [Some(State::Healthy); 2]);
    assert_eq!(setup.made(), [2, 0], "soon, and then no more for an interval");
    drop(bad);
    // After the interval, and twice a third of it.
    sleep(6 * SECOND).await;
    assert!(matches!(setup.states()[1], Some(State::Suspect { .. })), "{:?}", setup.states());
    assert_eq!(setup.cluster.load().available(), 2);
    sleep(4 * SECOND).await;
    assert_eq!(setup.states()[1], Some(State::Unhealthy { passes: 0 }));
    assert_eq!(setup.cluster.load().available(), 1);
    let back = TcpListener::bind(address).unwrap();
    sleep(16 * SECOND).await;
    assert_eq!(setup.states(), [Some(State::Healthy); 2]);
    assert_eq!(setup.cluster.load().available(), 2);
    drop(back);
}

#[tokio::test(start_paused = true)]
async fn what_is_known_stays_through_changes_of_the_table_and_ends_with_the_checks() {
    let setup = start();
    let (good, bad, new) = (listening(), listening(), listening());
    let unused = bad.local_addr().unwrap();
    drop(bad);
    let check = HealthCheck::default();
    let instances = [instance(good.local_addr().unwrap()), instance(unused)];
    setup.cluster.publish(&settings(Some(check.clone())), &instances, table::State::Known);
    sleep(SECOND).await;
    assert_eq!(setup.states(), [Some(State::Healthy), Some(State::Unhealthy { passes: 0 })]);
    let more = [instances.to_vec(), vec![instance(new.local_addr().unwrap())]].concat();
    let same = setup.cluster.load().settings.clone();
    setup.cluster.publish(&same, &more, table::State::Known);
    assert_eq!(setup.states()[1], Some(State::Unhealthy { passes: 0 }));
    sleep(SECOND / 2).await;
    assert_eq!(setup.states()[2], Some(State::Healthy));
    assert_eq!(setup.made(), [2, 1], "the others are not checked again for that");
    assert_eq!(setup.cluster.load().available(), 2);
    setup.cluster.publish(&settings(None), &more, table::State::Known);
    sleep(SECOND).await;
    assert_eq!((setup.states(), setup.cluster.load().available()), (vec![None; 3], 3));
    let made = setup.made();
    sleep(60 * SECOND).await;
    assert_eq!(setup.made(), made, "no more checks");
}

#[tokio::test(start_paused = true)]
async fn other_settings_count_at_once() {
    let setup = start();
    let good = listening();
    setup.publish(
        Some(HealthCheck { interval: 3600 * SECOND, max_interval: 3600 * SECOND, ..HealthCheck::default() }),
        &[&good],
    );
    sleep(60 * SECOND).await;
    assert_eq!(setup.made(), [1, 0]);
    setup.publish(Some(HealthCheck::default()), &[&good]);
    sleep(8 * SECOND).await;
    assert_eq!(setup.made(), [3, 0]);
}

#[tokio::test(start_paused = true)]
async fn many_are_checked_within_one_interval_and_a_dropped_follower_checks_no_more() {
    let setup = start();
    // One socket has many addresses: all of 127.0.0.0/8 is this machine.
    let everywhere = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = everywhere.local_addr().unwrap().port();
    let instances: Vec<_> = (1..=100).map(|n| instance(([127, 0, 1, n], port).into())).collect();
    setup.cluster.publish(&settings(Some(HealthCheck::default())), &instances, table::State::Known);
    sleep(SECOND * 5 / 2).await;
    let [half, 0] = setup.made() else { panic!("{:?}", setup.made()) };
    assert!((40..=60).contains(&half), "{half} of 100 in half an interval");
    sleep(SECOND * 5 / 2).await;
    let made = setup.made();
    assert!((100..=115).contains(&made[0]), "{made:?}");
    let cluster = setup.cluster.clone();
    drop(setup);
    sleep(60 * SECOND).await;
    let now = cluster.metrics.health_checks.get(CheckResult::Passed as usize);
    assert!(now <= made[0] + 1, "{now} after {made:?}");
}
