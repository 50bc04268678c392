//! Rolling deployments of five applications, each beside its pillion in a network namespace of its own, through real registries and
//! under load from a pillion elsewhere.

mod load;
mod place;

use crate::{
    e2e::{self, Client, output, serve, soon, until},
    netns::{Caller, Namespace},
    peer::Peer,
    pillion::optimised,
    registering::fewest_and_most,
};
use bytes::Bytes;
use http::{HeaderValue, Request, Response, Version, header::CONNECTION};
use http_body_util::Full;
use hyper::body::Incoming;
use load::Load;
use place::{Kind, Place};
use std::{
    collections::BTreeSet, convert::Infallible, fs, net::SocketAddr, ops::RangeInclusive, sync::Arc, time::Duration,
};
use tempfile::TempDir;
use tokio::{
    net::TcpListener,
    sync::watch,
    task::{JoinHandle, JoinSet},
    time::{Instant, sleep},
};

/// What is deployed, as the registry is to know it.
const SERVICE: &str = "users";
/// What it calls for some of its answers, through its own pillion.
const STOCK: &str = "stock";
/// What is waited for before the next is ended.
const GOAL: &str = "registered";
/// Between two looks at the registry.
const LOOK: Duration = Duration::from_millis(20);
/// How long the application works on what takes long, and on the rest.
const LONG: Duration = Duration::from_millis(600);
const SHORT: Duration = Duration::from_millis(2);

/// Where the parts listen, each in its own namespace.
const APP: ([u8; 4], u16) = ([127, 0, 0, 1], 8080);
const EGRESS: ([u8; 4], u16) = ([127, 0, 0, 1], 4140);
const ADMIN: ([u8; 4], u16) = ([127, 0, 0, 1], 4191);
const INBOUND: u16 = 4143;

/// The machine with the callers, their pillion and the registry, where all cables end.
struct Scene {
    caller: Arc<Namespace>,
    place: Place,
    /// What the applications call, on the callers' machine.
    _stock: App,
    dir: TempDir,
}

/// A machine at the end of a cable to the callers'.
#[derive(Clone)]
struct Host {
    number: u8,
    namespace: Arc<Namespace>,
}

/// An application with its pillion.
struct Deployed {
    host: Host,
    app: App,
    pillion: e2e::Pillion,
}

impl Scene {
    async fn start(kind: Kind) -> Self {
        let (caller, dir) = (Arc::new(Namespace::new()), TempDir::new().unwrap());
        let place = Place::start(kind, &caller, dir.path()).await;
        let stock = App::start(caller.clone(), ([0, 0, 0, 0], 9000).into(), STOCK);
        Self { caller, place, _stock: stock, dir }
    }

    fn host(&self, number: u8) -> Host {
        let namespace = Arc::new(Namespace::new());
        self.caller.cable(&namespace, number);
        Host { number, namespace }
    }

    /// A pillion with this config, most of which is as by default.
    async fn pillion(&self, namespace: &Namespace, name: &str, config: &str) -> e2e::Pillion {
        let (path, log) = (self.dir.path().join(format!("{name}.yaml")), self.dir.path().join(format!("{name}.log")));
        fs::write(&path, format!("access_log: {{ mode: errors, path: {} }}\n{config}", log.display())).unwrap();
        e2e::Pillion::start(namespace.command(optimised()).arg("run").arg(path)).await
    }

    /// The callers' pillion.
    async fn egress(&self) -> e2e::Pillion {
        let registry = self.place.settings("127.0.0.1");
        let config = format!("registries: {{ real: {{ {registry} }} }}\nservices: {{ {SERVICE}: {{}} }}\n");
        self.pillion(&self.caller, "caller", &config).await
    }

    /// Starts the application and a pillion beside it, as an orchestrator does which goes on when the application is where its
    /// callers look for it.
    async fn deploy(&self, host: Host, version: &str, first: First) -> Deployed {
        let Host { number, namespace } = &host;
        let registry = self.place.settings(&format!("10.77.{number}.1"));
        let stock = self.dir.path().join(format!("stock-{number}.yaml"));
        fs::write(&stock, format!("services: {{ {STOCK}: [\"10.77.{number}.1:9000\"] }}\n")).unwrap();
        let config = format!(
            "node: {{ service: {SERVICE}, version: {version} }}\n\
             registries:\n  real: {{ {registry} }}\n  local: {{ kind: file, path: {} }}\n\
             listeners:\n  - {{ name: egress, listen: 127.0.0.1:4140 }}\n  - {{ name: inbound, listen: 0.0.0.0:{INBOUND}, app: 8080 }}\n\
             services: {{ {STOCK}: {{ sources: [local] }} }}\n\
             register:\n  - {{ address: {{ interface: cable{number} }}, port: {{ listener: inbound }}, registry: real, \
             health: {{ http: /health, interval: 3s }} }}\n",
            stock.display()
        );
        let name = format!("{version} on {number}");
        let start_app = || App::start(namespace.clone(), APP.into(), &name);
        let mut app = (first == First::App).then(start_app);
        let pillion = self.pillion(namespace, &name.replace(' ', "-"), &config).await;
        if app.is_none() {
            wait(namespace, "startup").await;
            // Its first check finds nobody.
            until_admin(namespace, "/api/registrations", "unhealthy").await;
            app = Some(start_app());
        }
        wait(namespace, GOAL).await;
        Deployed { app: app.unwrap(), host, pillion }
    }

    async fn entries(&self) -> Vec<String> {
        self.place.entries(&self.caller).await
    }

    async fn until_registered(&self, wanted: &BTreeSet<String>) {
        let is_so = async || self.entries().await.iter().eq(wanted);
        until(&format!("exactly {wanted:?} in the registry"), is_so).await;
    }

    /// How few and how many entries the registry had until `during` was done.
    async fn counted<T>(&self, during: impl Future<Output = T>) -> (T, RangeInclusive<usize>) {
        fewest_and_most(async || self.entries().await.len(), LOOK, during).await
    }

    /// What all pillions have logged of requests that did not go well.
    fn trouble(&self) -> String {
        let logs = fs::read_dir(self.dir.path()).unwrap().map(|entry| entry.unwrap().path());
        let logs = logs.filter(|path| path.extension().is_some_and(|end| end == "log"));
        logs.map(|path| format!("{}:\n{}", path.display(), fs::read_to_string(&path).unwrap())).collect()
    }
}

impl Deployed {
    /// As the registry has it.
    fn entry(&self, version: &str) -> String {
        format!("10.77.{}.2:{INBOUND} {version}", self.host.number)
    }

    /// Ends pillion, which must be out of the registry before it has ended.
    async fn end_pillion(&mut self, scene: &Scene, version: &str) {
        let (told, entry) = (Instant::now(), self.entry(version));
        self.pillion.signal("TERM");
        let out = async {
            until("it to be out", async || !scene.entries().await.contains(&entry)).await;
            told.elapsed()
        };
        let ended = async {
            assert_eq!(self.pillion.ended().await, 0);
            let ended = told.elapsed();
            // Not a moment later.
            assert!(!scene.entries().await.contains(&entry), "it must be out before it ends");
            ended
        };
        let (out, ended) = tokio::join!(out, ended);
        println!("{entry}: out after {out:.1?}, ended after {ended:.1?}");
    }
}

/// Until that pillion is as far.
async fn wait(namespace: &Namespace, goal: &str) {
    let waited = output(&mut namespace.pillion(&["wait", "--timeout", "60s", "--for", goal])).await;
    assert!(waited.status.success(), "{}", String::from_utf8_lossy(&waited.stderr));
}

async fn until_admin(namespace: &Namespace, path: &str, text: &str) {
    until(text, async || admin(namespace, path).await.contains(text)).await;
}

/// What the pillion there answers.
async fn admin(namespace: &Namespace, path: &str) -> String {
    let mut admin = Peer::new(namespace.connect(Caller::default(), ADMIN.into()).unwrap());
    admin.send(format!("GET {path} HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n")).await;
    admin.response().await.text()
}

/// What a pillion is beside. Answers every request with its name, over HTTP/1.1 and HTTP/2.
struct App {
    /// That its end is near: it says `connection: close`, and goes on.
    told: watch::Sender<bool>,
    /// It takes no more connections, and finishes what it has.
    ending: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Drop for App {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl App {
    fn start(namespace: Arc<Namespace>, address: SocketAddr, name: &str) -> Self {
        let listener = namespace.listen(address);
        let (told, ending) = (watch::Sender::new(false), watch::Sender::new(false));
        let (name, told_to, ends) = (Arc::<str>::from(name), told.subscribe(), ending.subscribe());
        let task = tokio::spawn(accept(listener, ends, move |request| {
            answer(namespace.clone(), name.clone(), *told_to.borrow(), request)
        }));
        Self { told, ending, task }
    }

    async fn end(mut self) {
        self.ending.send_replace(true);
        soon("the application's connections to end", &mut self.task).await.unwrap();
    }
}

async fn accept<F>(
    listener: TcpListener,
    ending: watch::Receiver<bool>,
    answer: impl Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
) where
    F: Future<Output = Result<Response<Full<Bytes>>, Infallible>> + Send + 'static,
{
    let (mut connections, mut ends) = (JoinSet::new(), ending.clone());
    loop {
        tokio::select! {
            accepted = listener.accept() => drop(connections.spawn(serve(accepted.unwrap().0, answer.clone(), ending.clone()))),
            Some(_) = connections.join_next() => {}
            _ = ends.wait_for(|ending| *ending) => break,
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

async fn answer(
    namespace: Arc<Namespace>,
    name: Arc<str>,
    is_last: bool,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let mut response = Response::new(Full::from(name.to_string()));
    if request.uri().path() == "/long" {
        sleep(LONG).await;
        let called = call_stock(&namespace).await;
        if called.as_deref() != Ok(STOCK) {
            *response.status_mut() = http::StatusCode::INTERNAL_SERVER_ERROR;
            *response.body_mut() = Full::from(format!("{name} calls {STOCK}: {called:?}"));
        }
    } else {
        sleep(SHORT).await;
    }
    if is_last && request.version() == Version::HTTP_11 {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(response)
}

/// Through the pillion beside it, over a new connection, as one who keeps none.
async fn call_stock(namespace: &Namespace) -> Result<String, String> {
    let stream = namespace.connect(Caller::default(), EGRESS.into()).map_err(|error| format!("connect: {error}"))?;
    let (status, body) = Client::over(stream, Version::HTTP_11).await?.get(STOCK, "/").await?;
    if status == 200 { Ok(body) } else { Err(format!("{status} {body}")) }
}

/// In which order a new one takes an old one's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// On the same machine. pillion is told to end, and the application when pillion has: systemd, or `pillion register`.
    InPlace,
    /// A new one on a machine of its own, which gets the load first. Then both of the old one are told to end at the same time,
    /// and the application serves until its grace is over: pods.
    Anew,
}

/// What of a pair starts before the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum First {
    App,
    Pillion,
}

/// A rolling deployment of so many.
async fn is_deployed(kind: Kind, count: u8, way: Way, first: First) {
    let scene = Scene::start(kind).await;
    let mut deployed = Vec::new();
    for number in 1..=count {
        deployed.push(scene.deploy(scene.host(number), "v1", First::App).await);
    }
    let old: BTreeSet<_> = deployed.iter().map(|one| one.entry("v1")).collect();
    scene.until_registered(&old).await;
    let caller = scene.egress().await;
    let mut load = Load::start(&scene.caller, EGRESS.into(), 4, Duration::from_millis(15));
    let before: BTreeSet<_> = (1..=count).map(|number| format!("v1 on {number}")).collect();
    load.until_said(&before).await;
    load.more(1000).await;
    let begun = Instant::now();
    let rolling = async {
        for number in 1..=count {
            let mut one = deployed.remove(0);
            let next = match way {
                Way::InPlace => {
                    one.end_pillion(&scene, "v1").await;
                    let Deployed { host, app, .. } = one;
                    app.end().await;
                    scene.deploy(host, "v2", first).await
                }
                Way::Anew => {
                    let next = scene.deploy(scene.host(count + number), "v2", first).await;
                    one.app.told.send_replace(true);
                    one.end_pillion(&scene, "v1").await;
                    one.app.end().await;
                    next
                }
            };
            deployed.push(next);
        }
        let new: BTreeSet<_> = deployed.iter().map(|one| one.entry("v2")).collect();
        scene.until_registered(&new).await;
    };
    let ((), there) = scene.counted(rolling).await;
    let (rolled, took) = (Instant::now(), begun.elapsed());
    let after: BTreeSet<_> = deployed.iter().map(|one| format!("v2 on {}", one.host.number)).collect();
    load.until_said(&after).await;
    load.more(1000).await;
    let answers = load.end().await;
    let retries = sum(&admin(&scene.caller, "/metrics").await, "pillion_retries_total");
    let (gap, slowest) = answers.longest();
    let failures = answers.failures();
    println!(
        "{kind:?}, {count} {way:?}, {first:?} first: {} requests, {} per second, {} failed, {retries} tried again; deployed in \
         {took:.1?}; longest without an answer {gap:.1?}, slowest {slowest:.1?}; {there:?} in the registry",
        answers.count(),
        answers.per_second(),
        failures.len(),
    );
    assert!(failures.is_empty(), "{failures:#?}\n{}{}", scene.trouble(), caller.log());
    assert_eq!((answers.said(None, Some(begun)), answers.said(Some(rolled), None)), (before, after));
    let (least, most) = if way == Way::InPlace { (count - 1, count) } else { (count, count + 1) };
    assert!(there.start() >= &least.into() && there.end() <= &most.into(), "{there:?} in the registry");
}

/// Over all series of that name.
fn sum(page: &str, name: &str) -> f64 {
    let values = page.lines().filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])));
    values.map(|line| line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap()).sum()
}

#[tokio::test]
async fn five_in_place_through_consul() {
    is_deployed(Kind::Consul, 5, Way::InPlace, First::App).await;
}

#[tokio::test]
async fn five_in_place_through_etcd() {
    is_deployed(Kind::Etcd, 5, Way::InPlace, First::App).await;
}

#[tokio::test]
async fn five_by_new_ones_through_consul() {
    is_deployed(Kind::Consul, 5, Way::Anew, First::App).await;
}

#[tokio::test]
async fn five_by_new_ones_through_etcd() {
    is_deployed(Kind::Etcd, 5, Way::Anew, First::App).await;
}

/// Whoever goes on when pillion alone is ready takes the second out before the first one is in.
#[tokio::test]
async fn two_whose_applications_take_long_to_be_in_the_registry() {
    is_deployed(Kind::Consul, 2, Way::Anew, First::Pillion).await;
}
