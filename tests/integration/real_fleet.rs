//! Many pillions whose registry is restarted.

use crate::{
    e2e::{ANY, Pillion, program, until},
    pillion::optimised,
    relay::Relay,
    servers::AnyServer,
};
use futures_util::{StreamExt, future::join_all, stream};
use std::{fs, path::Path, sync::mpsc, thread, time::Duration};
use tempfile::TempDir;
use tokio::{
    sync::oneshot,
    time::{Instant, sleep},
};

const PILLIONS: usize = 50;
/// How long the registry is away.
const AWAY: Duration = Duration::from_secs(5);

async fn start(config: &Path, url: &str) -> Pillion {
    let args = ["run", "--listen", ANY, "--admin", ANY, "--registry", url];
    Pillion::start(program(&optimised(), &args).arg("--config").arg(config)).await
}

async fn until_endpoints(pillion: &Pillion, wanted: usize) {
    until(&format!("{wanted} endpoints"), async || {
        // A question a moment later costs less than one at once from all of them.
        sleep(Duration::from_millis(200)).await;
        pillion.json("/api/services/users").await["endpoints"].as_array().unwrap().len() == wanted
    })
    .await;
}

/// The most of these times that lie within one span of that length.
fn most_within(times: &[Duration], span: Duration) -> usize {
    let within = |first: &Duration| times.iter().filter(|time| (*first..*first + span).contains(*time)).count();
    times.iter().map(within).max().unwrap_or(0)
}

/// A relay with a thread of its own: on the test's it would take at once what came one by one while others had their turn.
fn relay_apart(server_port: u16) -> (Relay, oneshot::Sender<()>) {
    let ((give, relay), (end, ended)) = (mpsc::channel(), oneshot::channel());
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            give.send(Relay::to(server_port).await).unwrap();
            // An error is the end of the test.
            let _ = ended.await;
        });
    });
    (relay.recv().unwrap(), end)
}

/// How pillions came back to a registry that was away.
#[derive(Debug)]
#[allow(dead_code, reason = "some of it is only printed")]
struct Return {
    /// Attempts while it was away, on the average of its seconds, and the most within one of them.
    per_second: f64,
    busiest: usize,
    /// In which time most of the first attempts came.
    spread: Duration,
    /// Attempts when it was back, and the most within 100 ms.
    attempts: usize,
    busiest_after: usize,
    /// Until half of them were right again, and the last one.
    median: Duration,
    last: Duration,
}

impl Return {
    fn is_spread_out(&self) -> bool {
        self.per_second < 100.0
            && self.spread > Duration::from_millis(20)
            && self.busiest_after <= PILLIONS / 2
            && self.attempts <= 2 * PILLIONS
            && self.last < Duration::from_secs(20)
    }
}

/// Takes the registry away for some time, after which it has `wanted` instances.
async fn one_return(server: &mut AnyServer, relay: &Relay, pillions: &[Pillion], wanted: usize) -> Return {
    let killed = relay.elapsed();
    server.kill();
    sleep(AWAY).await;
    server.restart().await;
    let (up, back) = (relay.elapsed(), Instant::now());
    let next = format!("10.0.0.{wanted}:80").parse().unwrap();
    server.register("users", &format!("number-{wanted}"), next).await;
    let mut times = join_all(pillions.iter().map(async |pillion| {
        until_endpoints(pillion, wanted).await;
        back.elapsed()
    }))
    .await;
    times.sort_unstable();

    let made: Vec<_> = relay.passed().iter().map(|one| one.made).filter(|made| *made > killed).collect();
    let (away, after): (Vec<_>, Vec<_>) = made.into_iter().partition(|made| *made < up);
    // Without the first and the last tenth of the attempts, in the better of the first two rounds.
    let spread = |round| away[round * PILLIONS + PILLIONS * 9 / 10] - away[round * PILLIONS + PILLIONS / 10];
    Return {
        per_second: away.len() as f64 / (up - killed).as_secs_f64(),
        busiest: most_within(&away, Duration::from_secs(1)),
        spread: spread(0).max(spread(1)),
        attempts: after.len(),
        busiest_after: most_within(&after, Duration::from_millis(100)),
        median: times[PILLIONS / 2],
        last: times[PILLIONS - 1],
    }
}

async fn come_back(server: &mut AnyServer) {
    let name = server.name();
    server.register("users", "number-1", "10.0.0.1:80".parse().unwrap()).await;
    let (relay, _end) = relay_apart(server.port());
    let folder = TempDir::new().unwrap();
    let config = folder.path().join("pillion.yaml");
    fs::write(&config, "services: { users: {} }\n").unwrap();
    let url = server.url(relay.port);
    let pillions: Vec<_> = stream::iter(0..PILLIONS).map(|_| start(&config, &url)).buffer_unordered(4).collect().await;
    join_all(pillions.iter().map(|pillion| until_endpoints(pillion, 1))).await;
    assert_eq!(relay.connections(), PILLIONS, "{name}");
    // Where the machine has other things to do, they get their turn together; so the best of some counts.
    let mut seen = Vec::new();
    for round in 0..4 {
        let found = one_return(server, &relay, &pillions, 2 + round).await;
        println!("{name}: {PILLIONS} pillions; {found:.1?}");
        if found.is_spread_out() {
            return;
        }
        seen.push(found);
    }
    panic!("{name}: {seen:#?}");
}

#[tokio::test]
async fn fifty_pillions_come_back_spread_out() {
    let (mut etcd, mut consul) = tokio::join!(AnyServer::etcd(), AnyServer::consul());
    tokio::join!(come_back(&mut etcd), come_back(&mut consul));
}
