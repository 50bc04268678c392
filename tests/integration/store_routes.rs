//! Routes from a registry's own store, with traffic: a change is in force at once and fails no request, and a broken one changes
//! nothing. On a folder, and on the embedded registry.

use crate::{
    e2e::{ANY, Load, PATIENCE, Pillion, Upstream, get, pillion, summary, until, until_answer},
    socket::{Socket, free_port},
};
use http::Version;
use serde_json::Value;
use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    path::PathBuf,
    time::Duration,
};
use tempfile::TempDir;
use tokio::time::Instant;

/// What operators type to put a value, or to take it away.
pub trait Server {
    fn put(&self, value: &str);
    fn delete(&self);

    /// Whether it lets that be put.
    fn takes(&self, _value: &str) -> bool {
        true
    }
}

pub const KEY: &str = "pillion/routes/users";

/// What is told and not asked for now and then takes no longer.
pub const AT_ONCE: Duration = Duration::from_millis(50);

/// What the machine does besides may take its time, but not each time.
const ROUNDS: usize = 3;
const CHANGES: usize = 20;

/// Two versions of one service, which the file registry lists.
pub struct Versions {
    pub folder: TempDir,
    pub stable: Upstream,
    pub canary: Upstream,
}

impl Versions {
    pub async fn start(store: &str) -> Self {
        let versions = Self {
            folder: TempDir::new().unwrap(),
            stable: Upstream::start("stable").await,
            canary: Upstream::start("canary").await,
        };
        let listed = |upstream: &Upstream| {
            format!("{{ address: '{}', labels: {{ version: {} }} }}", upstream.address, upstream.name)
        };
        let instances = format!("services: {{ users: [{}, {}] }}", listed(&versions.stable), listed(&versions.canary));
        fs::write(versions.folder.path().join("instances.yaml"), instances).unwrap();
        let config = format!(
            "registries: {{ main: {{ kind: file, path: instances.yaml }}, kv: {{ {store} }} }}\n\
             discovery: {{ sources: [main], snapshot: {{ dir: kept }} }}\n\
             routing: {{ store: {{ registry: kv }} }}\n\
             services: {{ users: {{ subsets: {{ stable: {{ version: stable }} }}, routes: [ {{ to: stable }} ] }} }}\n"
        );
        fs::write(versions.folder.path().join("pillion.yaml"), config).unwrap();
        versions
    }

    pub async fn pillion(&self) -> Pillion {
        let config = self.folder.path().join("pillion.yaml");
        Pillion::start(pillion(&["run", "--listen", ANY, "--admin", ANY, "--config"]).arg(config)).await
    }
}

pub fn to(subset: &str) -> String {
    format!(
        "subsets: {{ stable: {{ version: stable }}, canary: {{ version: canary }} }}\nroutes: [ {{ name: changed, to: {subset} }} ]\n"
    )
}

pub async fn users(pillion: &Pillion) -> Value {
    let routes = pillion.json("/api/routes").await;
    routes["services"].as_array().unwrap().iter().find(|routes| routes["service"] == "users").unwrap().clone()
}

/// Changes come in force while requests flow, in the median sooner than `soon`, and none fails.
pub async fn changes_under_load(server: &impl Server, store: &str, soon: Duration) {
    let versions = Versions::start(store).await;
    let pillion = versions.pillion().await;
    until_answer(pillion.egress(), "users", |_, name| name == "stable").await;
    assert_eq!(users(&pillion).await["from"], "config");
    let load = Load::paced(pillion.egress(), Version::HTTP_11, "users", 3, Duration::from_millis(1));
    let opened = pillion.metric("pillion_pool_opened_total{service=\"users\"}").await;
    let mut medians = Vec::new();
    // A request shows that a change is in force, and on a busy machine takes its time as well.
    let is_soon = |(change, request): &(Duration, Duration)| *change < soon + 2 * *request;
    while !medians.last().is_some_and(is_soon) && medians.len() < ROUNDS {
        medians.push(some_changes(server, &pillion).await);
    }
    assert!(medians.last().is_some_and(is_soon), "{medians:?}");
    let seen = users(&pillion).await;
    assert!(seen["from"] == "store" && seen["version"].is_string() && seen.get("refused").is_none(), "{seen:#}");
    // One that was never there, so far: a split, which the load sees as both.
    server.put("subsets: { stable: { version: stable }, canary: { version: canary } }\nroutes: [ { split: { stable: 1, canary: 1 } } ]");
    let (stable, canary) = (versions.stable.requests(), versions.canary.requests());
    until("both to be asked", async || {
        versions.stable.requests() > stable + 20 && versions.canary.requests() > canary + 20
    })
    .await;
    // The key is gone: what the config says counts again.
    server.delete();
    until("the config's routes", async || users(&pillion).await["from"] == "config").await;
    let canary = versions.canary.requests();
    for _ in 0..50 {
        assert_eq!(get(pillion.egress(), "users").await, Ok((200, "stable".into())));
    }
    // Those of the load that were under way.
    assert!(versions.canary.requests() <= canary + 3);
    load.end_without_failure().await;
    let more = pillion.metric("pillion_pool_opened_total{service=\"users\"}").await - opened;
    assert!(more <= 20.0, "connections to upstreams survive the changes: {more} were opened");
}

/// How long it takes in the median from when the command has returned until a request goes the new way, and how long a request
/// takes that nothing is changed for.
async fn some_changes(server: &impl Server, pillion: &Pillion) -> (Duration, Duration) {
    let (mut times, mut requests) = (Vec::new(), Vec::new());
    for change in 0..CHANGES {
        let name = if change % 2 == 0 { "canary" } else { "stable" };
        server.put(&to(name));
        let put = Instant::now();
        let asking = async { while get(pillion.egress(), "users").await != Ok((200, name.into())) {} };
        tokio::time::timeout(PATIENCE, asking).await.expect("the change is in force");
        times.push(put.elapsed());
        let asked = Instant::now();
        assert_eq!(get(pillion.egress(), "users").await, Ok((200, name.into())));
        requests.push(asked.elapsed());
    }
    times.sort_unstable();
    let high = times[(CHANGES - 1) * 95 / 100];
    let (median, longest) = summary(times);
    let (request, _) = summary(requests);
    println!(
        "in force {median:.1?} (median), {high:.1?} (95 %) and {longest:.1?} (at most) after the command had returned; \
         a request took {request:.1?}"
    );
    (median, request)
}

/// A value that cannot be read, or not be so, changes nothing and is reported.
pub async fn broken_values_change_nothing(server: &impl Server, store: &str) {
    let versions = Versions::start(store).await;
    let mut pillion = versions.pillion().await;
    server.put(&to("canary"));
    until_answer(pillion.egress(), "users", |_, name| name == "canary").await;
    let good = users(&pillion).await["version"].clone();
    let load = Load::paced(pillion.egress(), Version::HTTP_11, "users", 3, Duration::from_millis(1));
    let stable = versions.stable.requests();
    let cases = [
        ("routes: [", "not valid YAML"),
        ("", "users:1:1: expected a map"),
        ("routes: [ { to: cannary } ]", "users:1:17: routes[0].to: `cannary` is no subset of the service"),
        ("rutes: []", "users:1:1: rutes: unknown key; did you mean `routes`?"),
        ("routes: [ { respond: { body: a } }, { respond: { body: b } } ]", "routes[1]: no request gets here"),
    ];
    for (number, (value, error)) in cases.into_iter().filter(|(value, _)| server.takes(value)).enumerate() {
        server.put(value);
        let is_told =
            async || users(&pillion).await["refused"]["error"].as_str().is_some_and(|told| told.contains(error));
        until(error, is_told).await;
        assert_eq!(users(&pillion).await["version"], good);
        assert_eq!(get(pillion.egress(), "users").await, Ok((200, "canary".into())));
        let rejected = pillion.metric("pillion_routes_updates_total{service=\"users\",result=\"rejected\"}").await;
        assert_eq!(rejected, (number + 1) as f64);
        assert_eq!(pillion.metric("pillion_routes_rejected{service=\"users\"}").await, 1.0);
    }
    pillion.until_logged("pillion/routes/users:1:17: routes[0].to: `cannary` is no subset of the service").await;
    assert_eq!(versions.stable.requests(), stable);
    load.end_without_failure().await;
    // It is put right.
    server.put(&to("stable"));
    until_answer(pillion.egress(), "users", |_, name| name == "stable").await;
    assert_eq!(pillion.metric("pillion_routes_rejected{service=\"users\"}").await, 0.0);
}

#[tokio::test]
async fn routes_that_would_not_outlive_a_restart_are_told_at_the_start() {
    let nobody = format!("kind: consul, address: 'http://127.0.0.1:{}'", free_port());
    let folder = Folder::new();
    for (store, keeps, told) in [(&nobody, false, 1), (&nobody, true, 0), (&folder.registry(), false, 0)] {
        let versions = Versions::start(store).await;
        if !keeps {
            let path = versions.folder.path().join("pillion.yaml");
            let config = fs::read_to_string(&path).unwrap();
            fs::write(path, config.replace(", snapshot: { dir: kept }", "")).unwrap();
        }
        let pillion = versions.pillion().await;
        let log = pillion.log();
        assert_eq!(log.matches("routes from the store are not kept on disk").count(), told, "{store} {keeps}: {log}");
    }
}

/// The file of the key, beside one that has no instances.
struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        let folder = Self(TempDir::new().unwrap());
        fs::write(folder.path(), "services: {}").unwrap();
        fs::create_dir_all(folder.key().parent().unwrap()).unwrap();
        folder
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("kv.yaml")
    }

    fn key(&self) -> PathBuf {
        self.0.path().join("kv.yaml.store").join(KEY)
    }

    fn registry(&self) -> String {
        format!("kind: file, path: '{}'", self.path().display())
    }
}

impl Server for Folder {
    fn put(&self, value: &str) {
        fs::write(self.key(), value).unwrap();
    }

    fn delete(&self) {
        fs::remove_file(self.key()).unwrap();
    }
}

/// A file is looked at four times a second, and must have been left alone for a moment.
const LOOKED_AT: Duration = Duration::from_secs(1);

#[tokio::test]
async fn changes_in_a_folder_fail_no_request() {
    let folder = Folder::new();
    changes_under_load(&folder, &folder.registry(), LOOKED_AT).await;
}

#[tokio::test]
async fn a_broken_value_in_a_folder_changes_nothing() {
    let folder = Folder::new();
    broken_values_change_nothing(&folder, &folder.registry()).await;
}

/// The embedded registry's API, as `curl -X PUT --data-binary` speaks to it.
struct Embedded {
    port: u16,
}

impl Embedded {
    fn new() -> Self {
        Self { port: free_port() }
    }

    fn registry(&self) -> String {
        format!("kind: embedded, listen: '127.0.0.1:{}'", self.port)
    }

    fn ask(&self, method: &str, body: &str) -> String {
        let mut stream = Socket(TcpStream::connect(("127.0.0.1", self.port)).unwrap());
        let length = body.len();
        let head = format!("{method} /kv/{KEY} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}");
        write!(stream.0, "{head}\r\n\r\n{body}").unwrap();
        let mut answer = String::new();
        stream.0.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
        answer
    }
}

impl Server for Embedded {
    fn put(&self, value: &str) {
        self.ask("PUT", value);
    }

    fn delete(&self) {
        self.ask("DELETE", "");
    }
}

#[tokio::test]
async fn changes_in_the_embedded_registry_are_in_force_at_once_and_fail_no_request() {
    let server = Embedded::new();
    changes_under_load(&server, &server.registry(), AT_ONCE).await;
}

#[tokio::test]
async fn a_broken_value_in_the_embedded_registry_changes_nothing() {
    let server = Embedded::new();
    broken_values_change_nothing(&server, &server.registry()).await;
}

#[tokio::test]
async fn routes_in_the_embedded_registry_outlive_a_crash() {
    let server = Embedded::new();
    let versions = Versions::start(&format!("{}, persist: kv.json", server.registry())).await;
    let mut pillion = versions.pillion().await;
    server.put(&to("canary"));
    until_answer(pillion.egress(), "users", |_, name| name == "canary").await;
    let saved = || fs::read_to_string(versions.folder.path().join("kv.json")).unwrap_or_default();
    until("it to be on disk", async || saved().contains("to: canary")).await;
    let before = users(&pillion).await;
    pillion.signal("KILL");
    pillion.ended().await;
    // What was kept of the routes themselves is not what brings them back.
    fs::remove_dir_all(versions.folder.path().join("kept")).unwrap();

    let pillion = versions.pillion().await;
    until("the routes to be read", async || users(&pillion).await["from"] == "store").await;
    assert_eq!(get(pillion.egress(), "users").await, Ok((200, "canary".into())));
    assert_eq!(users(&pillion).await["version"], before["version"]);
    let answer = server.ask("GET", "");
    assert!(answer.ends_with(&to("canary")), "{answer}");
}
