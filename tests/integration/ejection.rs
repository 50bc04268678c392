//! An instance that fails or hangs is kept out, is asked now and then how it is, and comes back.

use crate::{
    http2_peer::soon,
    instance::Instance,
    peer::{Answering, PATIENCE, Peer, Upstream, get, post},
    pillion::{Pillion, Setup},
};
use serde_json::Value;
use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

const TURN: &str = "balance: { policy: round-robin }";

fn failing() -> String {
    "HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\n\r\n".into()
}

async fn endpoints(pillion: &Pillion) -> HashMap<String, Value> {
    let mut admin = Peer::connect(pillion.admin()).await;
    admin.send("GET /api/services/user-service HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n").await;
    let detail: Value = serde_json::from_str(&admin.response().await.text()).unwrap();
    let list = detail["endpoints"].as_array().unwrap();
    list.iter().map(|endpoint| (endpoint["address"].as_str().unwrap().to_owned(), endpoint["health"].clone())).collect()
}

/// Many clients that send one request after the other for as long as they are wanted.
struct Load {
    wanted: Arc<AtomicBool>,
    clients: JoinSet<Vec<(Instant, Duration, u16)>>,
}

impl Load {
    fn start(pillion: &Pillion, clients: usize) -> Self {
        let (wanted, address) = (Arc::new(AtomicBool::new(true)), pillion.egress());
        let client = |wanted: Arc<AtomicBool>| async move {
            let mut client = Peer::connect(address).await;
            let mut seen = Vec::new();
            while wanted.load(Relaxed) {
                let start = Instant::now();
                client.send(get("/")).await;
                let status = client.response().await.status();
                seen.push((start, start.elapsed(), status));
                sleep(Duration::from_millis(2)).await;
            }
            seen
        };
        let clients = (0..clients).map(|_| client(wanted.clone())).collect();
        Self { wanted, clients }
    }

    /// When each request was sent, how long it took, and its status.
    async fn stop(self) -> Vec<(Instant, Duration, u16)> {
        self.wanted.store(false, Relaxed);
        self.clients.join_all().await.concat()
    }
}

#[tokio::test]
async fn five_failures_in_a_row_take_an_instance_out_and_one_success_brings_it_back() {
    let broken = Arc::new(AtomicBool::new(true));
    let mut bad = Upstream::bind().await.answering({
        let broken = broken.clone();
        move |_| if broken.load(Relaxed) { failing() } else { crate::peer::ok("back") }
    });
    let (one, two) = (Answering::ok().await, Answering::ok().await);
    let settings = format!("user-service: {{ {TURN}, breaker: {{ open: {{ base: 300ms }} }} }}");
    let mut pillion = Setup::users([bad.address, one.address, two.address]).service(&settings).start().await;
    let (mut client, start) = (pillion.connect().await, Instant::now());
    let mut failed = 0;
    while failed < 5 && pillion.metric("pillion_ejections_total", &[]).await == 0.0 {
        client.send(post("/", "x")).await;
        failed += usize::from(client.response().await.status() == 500);
    }
    // That is decided upon beside the requests, and takes a moment.
    pillion.logged("ejected").await;
    let ejected = start.elapsed();
    for _ in 0..30 {
        client.send(post("/", "x")).await;
        assert_eq!(client.response().await.status(), 200);
    }
    let health = &endpoints(&pillion).await[&bad.address.to_string()];
    assert_eq!(health["ejections"], 1);
    match health["cause"].as_str().unwrap() {
        "consecutive_failures" => assert_eq!(failed, 5),
        // On a busy machine: two are enough if there was no success for two seconds.
        "no_success" => assert!(failed >= 2 && ejected >= Duration::from_secs(2), "{failed} in {ejected:?}"),
        other => panic!("{other}"),
    }
    pillion.until_metric("pillion_endpoints", &["state=\"ejected\""], 1.0).await;

    // As long as it fails, it gets one request per ejection, each longer than the last.
    bad.unseen();
    let (probing, mut probes) = (Instant::now(), 0);
    while probes == 0 || probing.elapsed() < Duration::from_millis(1500) {
        client.send(get("/")).await;
        client.response().await;
        probes += bad.unseen().len() as i32;
        assert!(probing.elapsed() < PATIENCE, "no probe");
    }
    assert!(
        0.3 * (2f64.powi(probes) - 1.0) <= start.elapsed().as_secs_f64(),
        "{probes} probes, after 0.3, 0.6, 1.2 s …"
    );

    broken.store(false, Relaxed);
    let back = async {
        while pillion.metric("pillion_endpoints", &["state=\"available\""]).await < 3.0 {
            client.send(get("/")).await;
            assert_eq!(client.response().await.status(), 200);
        }
    };
    soon("it to be back", back).await;
    pillion.logged("no longer ejected").await;
    assert_eq!(endpoints(&pillion).await[&bad.address.to_string()]["state"], "available");
}

#[tokio::test]
async fn an_instance_that_is_not_there_is_not_asked_all_the_time() {
    let (good, gone) = (Answering::ok().await, Upstream::bind().await.address);
    let settings = format!("user-service: {{ {TURN} }}");
    let pillion = Setup::users([good.address, gone]).service(&settings).start().await;
    let (mut client, start) = (pillion.connect().await, Instant::now());
    let mut ask = async || {
        client.send(post("/", "x")).await;
        assert_eq!(client.response().await.status(), 200, "what reached nobody is tried elsewhere");
    };
    let refused = async || pillion.metric("pillion_pool_connect_failures_total", &[]).await;
    while refused().await < 5.0 && pillion.metric("pillion_ejections_total", &[]).await == 0.0 {
        ask().await;
        assert!(start.elapsed() < PATIENCE, "{}", pillion.log());
    }
    pillion.until_metric("pillion_ejections_total", &[], 1.0).await;
    let before = refused().await;
    // On a busy machine two are enough, as there was no success for two seconds.
    assert!(before == 5.0 || start.elapsed() >= Duration::from_secs(2), "{before} in {:?}", start.elapsed());
    for _ in 0..200 {
        ask().await;
    }
    // After one second, two, four … it is asked how it is.
    let probes = refused().await - before;
    assert!(2f64.powf(probes) - 1.0 <= start.elapsed().as_secs_f64(), "{probes} in {:?}", start.elapsed());
}

#[tokio::test]
async fn the_last_instance_is_never_taken_out() {
    let mut bad = Upstream::bind().await.answering(|_| failing());
    let mut pillion = Setup::users([bad.address]).start().await;
    let mut client = pillion.connect().await;
    for _ in 0..50 {
        client.send(post("/", "x")).await;
        assert_eq!(client.response().await.error(), (500, None), "the instance's own answer");
    }
    assert_eq!(bad.unseen().len(), 50);
    assert_eq!(pillion.metric("pillion_ejections_total", &[]).await, 0.0);
    // But that it fails is told.
    pillion.logged("failing, but no more may be ejected").await;
    assert_eq!(endpoints(&pillion).await[&bad.address.to_string()]["state"], "failing");
    pillion.until_metric("pillion_endpoints", &["state=\"failing\""], 1.0).await;
}

#[tokio::test]
async fn callers_that_want_too_much_eject_nobody() {
    let (executed, _) = tokio::sync::mpsc::unbounded_channel();
    let mut instances = Vec::new();
    for _ in 0..4 {
        instances.push(Instance::start_working(Duration::from_millis(100), &executed).await);
    }
    let addresses = instances.iter().map(|instance| instance.address);
    let pillion = Setup::users(addresses).service(&format!("user-service: {{ {TURN} }}")).start().await;
    // Those who can wait show all the time that each instance is well.
    let patient = Load::start(&pillion, 8);
    pillion.until_served(16.0).await;
    let mut hasty = pillion.connect().await;
    let mut late = 0;
    for _ in 0..100 {
        hasty.send("GET / HTTP/1.1\r\nhost: user-service\r\nx-request-timeout: 20ms\r\n\r\n").await;
        match hasty.response().await.error() {
            (504, Some("deadline_exceeded")) => late += 1,
            // The machine was busy until the answer was there.
            other => assert_eq!(other, (200, None)),
        }
    }
    assert!(late >= 50, "{late}");
    assert!(patient.stop().await.iter().all(|(.., status)| *status == 200));
    assert_eq!(pillion.metric("pillion_ejections_total", &[]).await, 0.0, "{}", pillion.log());
}

/// The instances are processes: a stopped one takes connections, as its kernel does that, and never answers.
/// So it is known by those who waited for so long in vain, which are few.
async fn one_is_stopped_for_a_while(settings: &str, in_vain: Duration) {
    let upstream = Answering::ok().await;
    let mut instances = Vec::new();
    for _ in 0..5 {
        instances.push(Setup::users([upstream.address]).start().await);
    }
    let addresses: Vec<_> = instances.iter().map(Pillion::egress).collect();
    let settings = format!("user-service: {{ {settings} }}");
    let mut pillion = Setup::users(&addresses).service(&settings).start().await;
    let load = Load::start(&pillion, 8);
    pillion.until_served(500.0).await;
    instances[2].signal("STOP").await;
    let stopped = Instant::now();
    let line = pillion.logged("ejected").await;
    assert!(line.contains(&addresses[2].to_string()), "{line}");
    let ejected = stopped.elapsed();
    sleep(Duration::from_secs(3)).await;
    assert_ne!(endpoints(&pillion).await[&addresses[2].to_string()]["state"], "available");
    instances[2].signal("CONT").await;
    let continued = Instant::now();
    let back = pillion.logged("no longer ejected").await;
    assert!(back.contains(&addresses[2].to_string()), "{back}");
    let returned = continued.elapsed();
    let served = pillion.metric("pillion_requests_total", &[]).await;
    pillion.until_served(served + 2000.0).await;
    let seen = load.stop().await;
    let mut took: Vec<_> = seen.iter().filter(|(at, ..)| *at >= stopped).map(|(_, took, _)| *took).collect();
    took.sort_unstable();
    let p99 = took[took.len() * 99 / 100];
    println!(
        "{settings}: {} requests, p99 {p99:?}, slowest {:?}, ejected after {ejected:?}, back after {returned:?}",
        took.len(),
        took.last()
    );
    assert!(seen.iter().all(|(.., status)| *status == 200), "nobody noticed");
    // Of those that were on their way, five had to fail, and then one after each ejection. An even share would be a fifth.
    let waited = took.iter().filter(|took| **took >= in_vain).count();
    assert!(waited * 50 < took.len(), "{waited} of {} waited for it", took.len());
    // The third ejection lasts up to 4.8 s, and the review that finds the probe due comes each second.
    assert!(returned < Duration::from_secs(15), "{returned:?}");
    let admitted = pillion.log().lines().filter(|line| line.contains("no longer ejected")).count();
    assert_eq!(admitted, 1, "one probe was enough:\n{}", pillion.log());
}

#[tokio::test]
async fn a_stopped_process_leaves_the_rotation_and_returns_through_a_probe() {
    one_is_stopped_for_a_while("retry: { per_try_timeout: 2s }", Duration::from_secs(2)).await;
}

#[tokio::test]
async fn so_it_does_where_requests_are_hedged() {
    one_is_stopped_for_a_while("hedge: { after: 1s }", Duration::from_secs(1)).await;
}
