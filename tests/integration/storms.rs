//! Instances that fail are not buried under retries: what reaches them stays within the retry budget, and they are in use
//! again as soon as they are well.

use crate::{
    faulty_connections::{Asker, Outcome},
    peer::{Answering, Upstream, get, ok},
    pillion::{Pillion, Setup},
    relay::{Faults, Relay, Way},
};
use http::Version;
use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, sleep},
};

const INSTANCES: usize = 5;
const CALLERS: u64 = 60;
/// Each caller's own: 300 requests per second together.
const PERIOD: Duration = Duration::from_millis(200);
/// From an instance's answer to its arrival.
const LATENCY: Duration = Duration::from_millis(20);
/// `retry.budget` as it is by default: a share of the requests, and a floor per second of which ten seconds are saved up.
const SHARE: f64 = 0.2;
const FLOOR: f64 = 10.0;
const SAVED: f64 = 10.0 * FLOOR;

/// Instances that answer 503 while they are told to.
struct Instances {
    failing: [Arc<AtomicBool>; INSTANCES],
    seen: Arc<AtomicU64>,
    relays: Vec<Relay>,
    #[allow(dead_code, reason = "held for their drops")]
    servers: Vec<Answering>,
}

impl Instances {
    async fn start() -> Self {
        let (failing, seen) = (<[Arc<AtomicBool>; INSTANCES]>::default(), Arc::new(AtomicU64::new(0)));
        let (mut relays, mut servers) = (Vec::new(), Vec::new());
        for failing in failing.clone() {
            let seen = seen.clone();
            let server = Upstream::bind().await.answering(move |request| {
                seen.fetch_add(1, Relaxed);
                if request.start == "GET /stream HTTP/1.1" {
                    "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".into()
                } else if failing.load(Relaxed) {
                    "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 4\r\n\r\ndown".into()
                } else {
                    ok("ok")
                }
            });
            let latency = |_| Faults::down(Way::slow(1 << 16, LATENCY));
            relays.push(Relay::with(server.address.port(), latency).await);
            servers.push(server);
        }
        Self { failing, seen, relays, servers }
    }

    async fn pillion(&self) -> Pillion {
        Setup::users(self.relays.iter().map(Relay::address)).start().await
    }

    fn fail(&self, count: usize, fails: bool) {
        self.failing.iter().take(count).for_each(|failing| failing.store(fails, Relaxed));
    }
}

/// Callers that ask at a fixed rate, whatever they are answered.
struct Callers {
    asked: Arc<AtomicU64>,
    ended: watch::Sender<bool>,
    /// When each request was sent, and whether the answer to it was good.
    tasks: JoinSet<Vec<(Instant, bool)>>,
}

impl Callers {
    fn start(egress: SocketAddr) -> Self {
        let (asked, ended) = (Arc::new(AtomicU64::new(0)), watch::Sender::new(false));
        let mut tasks = JoinSet::new();
        for number in 0..CALLERS {
            let (asked, ended) = (asked.clone(), ended.subscribe());
            tasks.spawn(async move {
                let version = if number % 2 == 0 { Version::HTTP_11 } else { Version::HTTP_2 };
                let (mut asker, mut outcomes) = (Asker::new(egress, version), Vec::new());
                sleep(PERIOD * u32::try_from(number).unwrap() / CALLERS as u32).await;
                let mut turns = interval(PERIOD);
                turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
                while !*ended.borrow() {
                    turns.tick().await;
                    asked.fetch_add(1, Relaxed);
                    let start = Instant::now();
                    match asker.get("/").await {
                        Outcome::Whole(body) => outcomes.push((start, body == "ok")),
                        outcome => panic!("every instance answers: {outcome:?}"),
                    }
                }
                outcomes
            });
        }
        Self { asked, ended, tasks }
    }

    async fn end(self) -> Vec<(Instant, bool)> {
        self.ended.send_replace(true);
        self.tasks.join_all().await.concat()
    }
}

/// Lets `count` instances fail for so long, beside streams that are open all the while, and holds what they get against the
/// budget.
async fn storm(what: &str, count: usize, time: Duration, streams: u64) {
    let instances = Instances::start().await;
    let pillion = instances.pillion().await;
    let idle = pillion.idle_tasks().await;
    let mut open = Vec::new();
    for _ in 0..streams {
        let mut client = pillion.connect().await;
        client.send(get("/stream")).await;
        assert_eq!(client.head().await.status(), 200);
        open.push(client);
    }
    let callers = Callers::start(pillion.egress());
    sleep(Duration::from_secs(1)).await;
    instances.fail(count, true);
    let failed = Instant::now();
    sleep(time).await;
    // From the start: what was well had earned retries, too. On a busy machine it all takes longer.
    let seen = instances.seen.load(Relaxed);
    let (asked, lasted) = (callers.asked.load(Relaxed) + streams, failed.elapsed());
    instances.fail(count, false);
    let well = Instant::now();
    sleep(Duration::from_secs(4)).await;
    let outcomes = callers.end().await;
    let (offered, allowed) = (asked as f64, FLOOR.mul_add(lasted.as_secs_f64(), SAVED));
    let most = (1.0 + SHARE).mul_add(offered, allowed);
    let bad =
        |from: Instant, to: Instant| outcomes.iter().filter(|(at, good)| *at >= from && *at < to && !good).count();
    let last = outcomes.iter().filter(|(_, good)| !good).map(|(at, _)| *at).max().unwrap_or(failed);
    println!(
        "{what}: {asked} requests offered, {seen} upstream ({:.2} times as many; {most:.0} are allowed), {} failed; \
         the last that failed was sent {:?} after the instances were well",
        seen as f64 / offered,
        bad(failed, well),
        last.saturating_duration_since(well),
    );
    // With three tries each they would be far more.
    assert!(count < INSTANCES || 3.0 * offered > 1.2 * most, "that are too few requests to see it: {offered}");
    assert!(seen as f64 <= most, "{seen} requests upstream for {offered}; {most} are allowed");
    assert_eq!(bad(well + Duration::from_secs(2), Instant::now()), 0, "they had been well for two seconds");
    if count == 1 {
        assert_eq!(bad(failed + Duration::from_secs(1), well), 0, "the one that fails is known by then");
    }
    drop(open);
    pillion.until_idle(idle).await;
}

#[tokio::test]
async fn when_all_instances_fail_they_get_no_more_than_the_budget_and_recover_at_once() {
    storm("all of 5 fail", INSTANCES, Duration::from_secs(30), 0).await;
}

#[tokio::test]
async fn when_one_instance_fails_callers_soon_see_nothing_of_it_and_the_others_no_more_than_the_budget() {
    storm("one of 5 fails", 1, Duration::from_secs(5), 0).await;
}

/// They are in flight, and if nothing else counted the others could have all the retries that these never need.
#[tokio::test]
async fn streams_that_are_open_do_not_pay_for_retries() {
    storm("all of 5 fail beside 300 streams", INSTANCES, Duration::from_secs(10), 300).await;
}
