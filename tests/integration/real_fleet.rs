//! Many pillions whose registry is restarted.

use crate::{
    e2e::{ANY, Pillion, program, until},
    pillion::optimised,
    relay::Relay,
    servers::AnyServer,
};
use futures_util::{StreamExt, future::join_all, stream};
use std::{fs, path::Path, time::Duration};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

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

async fn come_back(server: &mut AnyServer) {
    let name = server.name();
    server.register("users", "first", "10.0.0.1:80".parse().unwrap()).await;
    let relay = Relay::to(server.port()).await;
    let folder = TempDir::new().unwrap();
    let config = folder.path().join("pillion.yaml");
    fs::write(&config, "services: { users: {} }\n").unwrap();
    let url = server.url(relay.port);
    let pillions: Vec<_> = stream::iter(0..PILLIONS).map(|_| start(&config, &url)).buffer_unordered(4).collect().await;
    join_all(pillions.iter().map(|pillion| until_endpoints(pillion, 1))).await;
    let connections = relay.connections();

    let killed = relay.elapsed();
    server.kill();
    sleep(AWAY).await;
    server.restart().await;
    let (up, back) = (relay.elapsed(), Instant::now());
    server.register("users", "second", "10.0.0.2:80".parse().unwrap()).await;
    let mut times = join_all(pillions.iter().map(async |pillion| {
        until_endpoints(pillion, 2).await;
        back.elapsed()
    }))
    .await;
    times.sort_unstable();
    let (median, last) = (times[PILLIONS / 2], times[PILLIONS - 1]);

    let made: Vec<_> = relay.passed().iter().map(|one| one.made).filter(|made| *made > killed).collect();
    let (away, after): (Vec<_>, Vec<_>) = made.into_iter().partition(|made| *made < up);
    let per_second = away.len() as f64 / (up - killed).as_secs_f64();
    // Without the first and the last tenth of the attempts. A relay that gets no processor takes at once what came one by
    // one; so the better of the first two rounds counts.
    let spread = |round| away[round * PILLIONS + PILLIONS * 9 / 10] - away[round * PILLIONS + PILLIONS / 10];
    let spread = spread(0).max(spread(1));
    let (busiest, busiest_after) =
        (most_within(&away, Duration::from_secs(1)), most_within(&after, Duration::from_millis(100)));
    println!(
        "{name}: {PILLIONS} pillions on {connections} connections; away for {:.1?}: {} attempts, {per_second:.0} per second, \
         at most {busiest} in a second, the first ones spread over {spread:.0?}; back: {} attempts, at most {busiest_after} \
         in 100 ms; right after {median:.1?} (median), {last:.1?} (last)",
        up - killed,
        away.len(),
        after.len(),
    );
    assert_eq!(connections, PILLIONS, "{name}");
    assert!(per_second < 100.0, "{name}: {per_second}");
    assert!(spread > Duration::from_millis(20), "{name}: {spread:?}");
    assert!(busiest_after <= PILLIONS / 2, "{name}: {busiest_after}");
    assert!(after.len() <= 2 * PILLIONS, "{name}: {}", after.len());
    assert!(last < Duration::from_secs(20), "{name}: {last:?}");
}

#[tokio::test]
async fn fifty_pillions_come_back_spread_out() {
    let (mut etcd, mut consul) = tokio::join!(AnyServer::etcd(), AnyServer::consul());
    tokio::join!(come_back(&mut etcd), come_back(&mut consul));
}
