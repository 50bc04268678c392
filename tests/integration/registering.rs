//! What all registries are to do for the local application: it comes and goes, pillion ends and is killed, somebody else is
//! there already. A test of one registry says how pillion reaches it, and how it is looked at without pillion.

use crate::{
    e2e::{Load, PATIENCE, until},
    instance::Instance,
    peer::Peer,
    pillion::{Pillion, Setup},
    servers::free_port,
};
use http::Version;
use serde_json::Value;
use std::{fmt::Debug, net::SocketAddr, ops::RangeInclusive, time::Duration};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep},
};

/// From one check of the application to the next.
pub const INTERVAL: Duration = Duration::from_millis(300);
/// The service, as the registry is to know it.
pub const SERVICE: &str = "users";
/// For who sees to it that an entry goes before it is forgotten by itself.
pub const LONG: Duration = Duration::from_secs(30);
/// How often a registry is looked at.
const LOOK: Duration = Duration::from_millis(5);

/// A registry under test.
pub trait Place {
    /// Its settings under `registries:`, without the braces.
    fn settings(&self) -> String;

    /// The addresses of all instances of [`SERVICE`] that its consumers would call, an address for each entry.
    async fn addresses(&self) -> Vec<String>;
}

/// The local application: a process on an address that stays the same while it comes and goes.
pub struct App {
    pub address: SocketAddr,
    running: Option<Instance>,
    executed: (mpsc::UnboundedSender<String>, mpsc::UnboundedReceiver<String>),
}

impl App {
    /// One that does not run yet.
    pub fn new() -> Self {
        Self { address: ([127, 0, 0, 1], free_port()).into(), running: None, executed: mpsc::unbounded_channel() }
    }

    pub async fn started() -> Self {
        let mut app = Self::new();
        app.start().await;
        app
    }

    pub async fn start(&mut self) {
        self.running = Some(Instance::start_at(self.address, &self.executed.0).await);
    }

    pub async fn kill(&mut self) {
        self.running.take().expect("it runs").kill().await;
    }

    /// Waits for the next request that it gets, as `METHOD PATH`. (Checks are connections without any.)
    pub async fn called(&mut self) -> String {
        crate::e2e::soon("a request", self.executed.1.recv()).await.unwrap()
    }
}

/// A pillion that registers `app` as [`SERVICE`].
#[derive(Clone)]
pub struct Registering {
    pub address: SocketAddr,
    pub ttl: Duration,
    /// Further settings of the entry, each with a comma before it.
    pub more: String,
}

impl Registering {
    pub fn new(app: &App, ttl: Duration) -> Self {
        Self { address: app.address, ttl, more: String::new() }
    }

    /// With further settings of the entry.
    pub fn with(mut self, settings: &str) -> Self {
        self.more += &format!(", {settings}");
        self
    }

    /// Starts it, and waits until it is up.
    pub async fn start(&self, place: &impl Place) -> Pillion {
        let Self { address, ttl, more } = self;
        let entry = format!(
            "service: {SERVICE}, registry: real, address: {}, port: {}, ttl: {}ms, \
             health: {{ interval: {}ms, rise: 1, fall: 2 }}{more}",
            address.ip(),
            address.port(),
            ttl.as_millis(),
            INTERVAL.as_millis(),
        );
        Setup::default().registry("real", &place.settings()).register(&entry).start().await
    }

    /// Starts it, and waits until it has registered the application.
    pub async fn registered(&self, place: &impl Place) -> Pillion {
        let pillion = self.start(place).await;
        until_state(&pillion, "registered").await;
        until_there(place, &[self.address]).await;
        pillion
    }
}

/// What `GET /api/registrations` says of the only registration in its only registry.
pub async fn registration(pillion: &Pillion) -> Value {
    let mut admin = Peer::connect(pillion.admin()).await;
    admin.send("GET /api/registrations HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n").await;
    let answer: Value = serde_json::from_str(&admin.response().await.text()).unwrap();
    answer["registrations"][0]["registries"][0].clone()
}

/// Waits for a state of it, and returns how long that took.
pub async fn until_state(pillion: &Pillion, state: &str) -> Duration {
    until_seen(pillion, state, |seen| seen["state"] == state).await
}

/// Waits for a failure with this text.
pub async fn until_failing(pillion: &Pillion, text: &str) -> Duration {
    until_seen(pillion, text, |seen| {
        seen["state"] == "failing" && seen["failure"].as_str().unwrap_or_default().contains(text)
    })
    .await
}

async fn until_seen(pillion: &Pillion, what: &str, fits: impl Fn(&Value) -> bool) -> Duration {
    let start = Instant::now();
    loop {
        let seen = registration(pillion).await;
        if fits(&seen) {
            return start.elapsed();
        }
        assert!(start.elapsed() < PATIENCE, "waited in vain for {what}; it is {seen}:\n{}", pillion.log());
        sleep(LOOK).await;
    }
}

/// Waits until the registry has exactly these, and returns how long that took.
pub async fn until_there<A: ToString + Debug>(place: &impl Place, wanted: &[A]) -> Duration {
    let wanted: Vec<_> = wanted.iter().map(ToString::to_string).collect();
    let start = Instant::now();
    loop {
        let mut there = place.addresses().await;
        there.sort_unstable();
        if there == wanted {
            return start.elapsed();
        }
        assert!(start.elapsed() < PATIENCE, "waited in vain for {wanted:?} in the registry; it has {there:?}");
        sleep(LOOK).await;
    }
}

pub async fn until_gone(place: &impl Place) -> Duration {
    until_there::<String>(place, &[]).await
}

/// Looks at the registry all the time until `during` is done: how few and how many entries it had meanwhile.
pub async fn counted<T>(place: &impl Place, during: impl Future<Output = T>) -> (T, RangeInclusive<usize>) {
    fewest_and_most(async || place.addresses().await.len(), LOOK, during).await
}

/// Counts again and again, with `pause` between, until `during` is done.
pub async fn fewest_and_most<T>(
    count: impl AsyncFn() -> usize,
    pause: Duration,
    during: impl Future<Output = T>,
) -> (T, RangeInclusive<usize>) {
    let mut seen = RangeInclusive::new(usize::MAX, 0);
    let look = async {
        loop {
            let count = count().await;
            seen = *seen.start().min(&count)..=*seen.end().max(&count);
            sleep(pause).await;
        }
    };
    let done = tokio::select! {
        done = during => done,
        () = look => unreachable!("it looks for ever"),
    };
    (done, seen)
}

/// The application starts late, is killed, and comes back; then pillion ends. `lasts`: how long an entry would be there that
/// nobody renews or takes out, which has to be long.
pub async fn follows_the_application(place: &impl Place, lasts: Duration) {
    let mut app = App::new();
    let pillion = Registering::new(&app, lasts).start(place).await;
    until_failed_check(&pillion).await;
    assert_eq!(place.addresses().await, Vec::<String>::new(), "what does not run is not registered");
    app.start().await;
    let came = until_there(place, &[app.address]).await;
    until_state(&pillion, "registered").await;
    app.kill().await;
    let went = until_gone(place).await;
    // By two checks, and not because it was not renewed any more: the last time was a third of the TTL ago at the most.
    assert!(went < lasts * 2 / 3, "out only after {went:?}");
    app.start().await;
    let back = until_there(place, &[app.address]).await;
    println!("application started: in after {came:?}; killed: out after {went:?}; started again: in after {back:?}");
    until_state(&pillion, "registered").await;
    let start = Instant::now();
    let out = async {
        until_gone(place).await;
        start.elapsed()
    };
    let stopped = async {
        pillion.stop().await;
        // Not a moment later.
        assert_eq!(place.addresses().await, Vec::<String>::new(), "it ended before it was out");
        start.elapsed()
    };
    let (out, stopped) = tokio::join!(out, stopped);
    println!("pillion told to end: out after {out:?}, ended after {stopped:?}");
}

/// What a busy machine may take for what is quick otherwise.
const MARGIN: Duration = Duration::from_secs(10);
/// What a registry may take until it looks who is gone.
const LOOKED_AFTER: Duration = Duration::from_secs(3);

async fn until_failed_check(pillion: &Pillion) {
    until("a check of the application", async || {
        let mut admin = Peer::connect(pillion.admin()).await;
        admin.send("GET /api/registrations HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n").await;
        let answer: Value = serde_json::from_str(&admin.response().await.text()).unwrap();
        answer["registrations"][0]["failure"].is_string()
    })
    .await;
}

/// pillion is killed and started again within the TTL, and then killed for good. `lasts`: how long its entry is there
/// after the last renewal, as the registry has it, which may round the TTL.
pub async fn outlives_a_kill(place: &impl Place, ttl: Duration, lasts: Duration) {
    let app = App::started().await;
    let registering = Registering::new(&app, ttl);
    let first = registering.registered(place).await;
    let again = async {
        first.kill().await;
        let second = registering.registered(place).await;
        // Whatever the first one left would run out in this time.
        sleep(lasts + LOOKED_AFTER).await;
        second
    };
    let (second, seen) = counted(place, again).await;
    assert_eq!(seen, 1..=1, "neither a gap nor two of it");
    assert_eq!(place.addresses().await, [app.address.to_string()]);
    second.kill().await;
    let gone = until_gone(place).await;
    println!("pillion killed: out after {gone:?}, of a TTL of {ttl:?} that is {lasts:?} there");
    // It was renewed when a third of it had passed, or on a busy machine a little later.
    let least = lasts / 3;
    assert!(gone > least && gone < lasts + MARGIN, "out after {gone:?}");
}

/// Another pillion has the same id at another address.
pub async fn refuses_a_clash(place: &impl Place, ttl: Duration) {
    let (ours, theirs) = (App::started().await, App::started().await);
    let first = Registering::new(&theirs, ttl).with("id: one").registered(place).await;
    let mut second = Registering::new(&ours, ttl).with("id: one").start(place).await;
    until_failing(&second, &format!("already, and ours is at {}", ours.address)).await;
    let logged = second.logged("the registration fails").await;
    assert!(logged.contains("`one`") && logged.contains(&theirs.address.to_string()), "{logged}");
    assert_eq!(place.addresses().await, [theirs.address.to_string()], "it was left alone");
    first.stop().await;
    let came = until_there(place, &[ours.address]).await;
    until_state(&second, "registered").await;
    println!("the other one of the same id is gone: in after {came:?}");
    second.stop().await;
    assert_eq!(place.addresses().await, Vec::<String>::new());
}

/// The registry loses the entry in some way, or everything.
pub async fn is_put_again<P: Place>(place: &mut P, ttl: Duration, lose: impl AsyncFnOnce(&mut P)) {
    let app = App::started().await;
    let pillion = Registering::new(&app, ttl).registered(place).await;
    lose(place).await;
    let back = until_there(place, &[app.address]).await;
    println!("lost: in again after {back:?}");
    // Not twice, either: of what is left of before, and of what is put again.
    let ((), seen) = counted(place, sleep(ttl)).await;
    assert_eq!(seen, 1..=1);
    until_state(&pillion, "registered").await;
    pillion.stop().await;
    assert_eq!(place.addresses().await, Vec::<String>::new());
}

/// An application with a pillion in front of it, through which others are to reach it.
struct Sidecar {
    app: App,
    pillion: Pillion,
    address: SocketAddr,
}

impl Sidecar {
    async fn start(place: &impl Place, ttl: Duration) -> Self {
        let app = App::started().await;
        let entry = format!(
            "service: {SERVICE}, registry: real, address: 127.0.0.1, port: {{ listener: inbound }}, ttl: {}ms, \
             health: {{ interval: {}ms }}",
            ttl.as_millis(),
            INTERVAL.as_millis(),
        );
        let setup = Setup::default().registry("real", &place.settings()).register(&entry);
        let setup = setup.listener("inbound", &format!("app: \"{}\"", app.address)).optimised();
        let pillion = setup.start().await;
        until_state(&pillion, "registered").await;
        let address = pillion.address("inbound");
        Self { app, pillion, address }
    }
}

/// A rolling deployment under load from another pillion: one sidecar after the other is told to end, its application is
/// killed when it has, and a new pair takes their place.
pub async fn is_deployed_under_load(place: &impl Place, ttl: Duration) {
    let mut sidecars = Vec::new();
    for _ in 0..5 {
        sidecars.push(Sidecar::start(place, ttl).await);
    }
    let caller = Setup::default().registry("real", &place.settings());
    let caller = caller.service(&format!("{SERVICE}: {{ sources: [real] }}")).optimised().start().await;
    caller.until_metric("pillion_endpoints", &["state=\"available\""], 5.0).await;
    let mut load = Load::paced(caller.egress(), Version::HTTP_11, SERVICE, 24, Duration::from_millis(5));
    load.more(500).await;
    let start = Instant::now();
    for _ in 0..sidecars.len() {
        let Sidecar { mut app, pillion, address } = sidecars.remove(0);
        let (told, address) = (Instant::now(), address.to_string());
        let out = async {
            until("it to be out", async || !place.addresses().await.contains(&address)).await;
            told.elapsed()
        };
        let ended = async {
            pillion.stop().await;
            let ended = told.elapsed();
            // Not a moment later.
            assert!(!place.addresses().await.contains(&address), "it must be out before it ends");
            ended
        };
        let (out, ended) = tokio::join!(out, ended);
        println!("told to end: out after {out:?}, ended after {ended:?}");
        app.kill().await;
        sidecars.push(Sidecar::start(place, ttl).await);
        load.more(500).await;
    }
    let took = start.elapsed();
    let done = load.end_without_failure().await;
    let retries = caller.metric("pillion_retries_total", &[]).await;
    println!("{done} requests in {took:?}, none failed; {retries} of them were tried again");
}
