//! The real program, as a child process: on ephemeral ports, with a config in a directory of its own, gone when dropped.

use crate::peer::{PATIENCE, Peer};
use std::{
    env,
    fmt::Display,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    sync::LazyLock,
    time::{Duration, SystemTime},
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    sync::watch,
    time::{Instant, sleep, timeout},
};

/// The program under test: the one that was built with the tests, or where `PILLION_BIN` says (`make verify`).
pub fn tested() -> &'static str {
    static PATH: LazyLock<String> =
        LazyLock::new(|| env::var("PILLION_BIN").unwrap_or_else(|_| env!("CARGO_BIN_EXE_pillion").into()));
    &PATH
}

/// The program as users run it, if `PILLION_RELEASE_BIN` says where that is; else [`tested`].
pub fn optimised() -> PathBuf {
    env::var_os("PILLION_RELEASE_BIN").map_or_else(|| tested().into(), PathBuf::from)
}

const IN_FORCE: &str = "the new config is in force";

/// What the program is to be started with.
#[derive(Default)]
pub struct Setup {
    instances: String,
    services: String,
    egress: String,
    listeners: String,
    registries: String,
    top: String,
    optimised: bool,
}

impl Setup {
    /// With `user-service` at these addresses. Each is as the `file` registry takes it: `host:port`, or a map.
    pub fn users<A: Display>(addresses: impl IntoIterator<Item = A>) -> Self {
        Self::default().instances("user-service", addresses)
    }

    pub fn instances<A: Display>(mut self, service: &str, addresses: impl IntoIterator<Item = A>) -> Self {
        let list: Vec<_> = addresses.into_iter().map(|address| address.to_string()).collect();
        self.instances += &format!("  {service}: [{}]\n", list.join(", "));
        self
    }

    /// A line under `services`.
    pub fn service(mut self, line: &str) -> Self {
        self.services += &format!("  {line}\n");
        self
    }

    /// More settings of the listener `egress`.
    pub fn egress(mut self, settings: &str) -> Self {
        self.egress += &format!(", {settings}");
        self
    }

    /// In this zone.
    pub fn zone(mut self, zone: &str) -> Self {
        self.top += &format!("node: {{ zone: {zone} }}\n");
        self
    }

    /// Beside an application of this name.
    pub fn named(self, service: &str) -> Self {
        self.node(&format!("service: {service}"))
    }

    /// With these settings of its node.
    pub fn node(mut self, settings: &str) -> Self {
        self.top += &format!("node: {{ {settings} }}\n");
        self
    }

    /// Another listener, with these settings.
    pub fn listener(self, name: &str, settings: &str) -> Self {
        self.listener_at(name, "127.0.0.1:0", settings)
    }

    pub fn listener_at(mut self, name: &str, listen: &str, settings: &str) -> Self {
        self.listeners += &format!("  - {{ name: {name}, listen: '{listen}', {settings} }}\n");
        self
    }

    /// Another registry beside the file, with these settings.
    pub fn registry(mut self, name: &str, settings: &str) -> Self {
        self.registries += &format!("  {name}: {{ {settings} }}\n");
        self
    }

    /// Registers what these settings say.
    #[cfg(feature = "real-servers")]
    pub fn register(mut self, settings: &str) -> Self {
        self.top += &format!("register: [{{ {settings} }}]\n");
        self
    }

    /// Answers DNS questions, as these settings say.
    pub fn dns(mut self, settings: &str) -> Self {
        self.top += &format!("dns: {{ {settings} }}\n");
        self
    }

    /// Threads that carry traffic.
    pub fn workers(mut self, count: usize) -> Self {
        self.top += &format!("workers: {count}\n");
        self
    }

    /// With a log of all requests: [`Pillion::access_line`].
    pub fn access_log(mut self) -> Self {
        self.top += "access_log: { mode: all, path: access.log }\n";
        self
    }

    /// As users run it, where that was built: for those who put much load on it.
    #[cfg(feature = "real-servers")]
    pub fn optimised(mut self) -> Self {
        self.optimised = true;
        self
    }

    /// Starts the program and waits until it says that it is up.
    pub async fn start(self) -> Pillion {
        let dir = TempDir::new().unwrap();
        let instances = if self.instances.is_empty() { "  {}\n" } else { &self.instances };
        write_settled(&dir.path().join("instances.yaml"), &format!("services:\n{instances}"));
        let services = if self.services.is_empty() { "  {}\n" } else { &self.services };
        let config = format!(
            "{}admin: {{ listen: 127.0.0.1:0 }}\n\
             registries:\n  main: {{ kind: file, path: {} }}\n{}\
             listeners:\n  - {{ name: egress, listen: 127.0.0.1:0{} }}\n{}\
             services:\n{services}",
            self.top,
            dir.path().join("instances.yaml").display(),
            self.registries,
            self.egress,
            self.listeners,
        );
        let path = dir.path().join("pillion.yaml");
        fs::write(&path, &config).unwrap();
        let program = if self.optimised { optimised() } else { tested().into() };
        let mut child = Command::new(program)
            .args(["run", "--config"])
            .arg(&path)
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let (log, logged) = watch::channel(String::new());
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                log.send_modify(|log| {
                    log.push_str(&line);
                    log.push('\n');
                });
            }
        });
        let mut pillion = Pillion { child, log: logged, dir };
        pillion.logged(" pillion is up").await;
        pillion
    }
}

/// A pillion that is up.
pub struct Pillion {
    child: Child,
    log: watch::Receiver<String>,
    dir: TempDir,
}

impl Pillion {
    /// Waits for a line with `text` in its log, and returns it.
    pub async fn logged(&mut self, text: &str) -> String {
        let find = |log: &str| log.lines().find(|line| line.contains(text)).map(str::to_owned);
        // An error means that the program has ended.
        let waited = timeout(PATIENCE, self.log.wait_for(|log| find(log).is_some())).await.is_ok();
        let log = self.log();
        find(&log).unwrap_or_else(|| panic!("`{text}` was not logged ({waited:?}):\n{log}"))
    }

    pub fn log(&self) -> String {
        self.log.borrow().clone()
    }

    /// Where it listens, by the listener's name.
    pub fn address(&self, listener: &str) -> SocketAddr {
        self.logged_address(&format!("listener=\"{listener}\""))
    }

    pub fn egress(&self) -> SocketAddr {
        self.address("egress")
    }

    pub fn admin(&self) -> SocketAddr {
        self.logged_address(" pillion is up")
    }

    fn logged_address(&self, text: &str) -> SocketAddr {
        let log = self.log.borrow();
        let line = log.lines().find(|line| line.contains(text) && line.contains("address=")).unwrap();
        line.split_once("address=").unwrap().1.split_whitespace().next().unwrap().parse().unwrap()
    }

    /// Opens a connection to the listener `egress`.
    pub async fn connect(&self) -> Peer {
        Peer::connect(self.egress()).await
    }

    /// Waits for a line with `text` in the log of requests, and returns it.
    pub async fn access_line(&self, text: &str) -> String {
        let start = Instant::now();
        loop {
            let log = fs::read_to_string(self.dir.path().join("access.log")).unwrap_or_default();
            if let Some(line) = log.lines().find(|line| line.contains(text)) {
                return line.to_owned();
            }
            assert!(start.elapsed() < PATIENCE, "`{text}` is not in the log of requests:\n{log}");
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// Replaces the instances of the file registry.
    pub fn write_instances(&self, text: &str) {
        let (path, new) = (self.dir.path().join("instances.yaml"), self.dir.path().join("new.yaml"));
        write_settled(&new, text);
        fs::rename(new, path).unwrap();
    }

    /// Writes `new` in the place of `old` in its config, and waits until it is in force.
    pub async fn change_config(&mut self, old: &str, new: &str) {
        let (path, aside) = (self.dir.path().join("pillion.yaml"), self.dir.path().join("pillion.new"));
        let config = fs::read_to_string(&path).unwrap();
        assert!(config.contains(old), "{config}");
        let before = self.log().matches(IN_FORCE).count();
        fs::write(&aside, config.replace(old, new)).unwrap();
        fs::rename(aside, path).unwrap();
        let changed = timeout(PATIENCE, self.log.wait_for(|log| log.matches(IN_FORCE).count() > before)).await.is_ok();
        assert!(changed, "the config is not in force:\n{}", self.log());
    }

    pub async fn metrics(&self) -> String {
        let mut admin = Peer::connect(self.admin()).await;
        admin.send("GET /metrics HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n").await;
        admin.response().await.text()
    }

    /// The sum of the series of `name` that have all of `labels`, each written as `label="value"`.
    pub async fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        sum(&self.metrics().await, name, labels)
    }

    /// Waits until a metric has a value. (It is counted when a request has ended, a moment after its client knows it.)
    pub async fn until_metric(&self, name: &str, labels: &[&str], value: f64) {
        let start = Instant::now();
        loop {
            let metrics = self.metrics().await;
            if sum(&metrics, name, labels) == value {
                return;
            }
            let family: Vec<_> = metrics.lines().filter(|line| line.starts_with(name)).collect();
            assert!(start.elapsed() < PATIENCE, "{name}{labels:?} is not {value}:\n{}", family.join("\n"));
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits until a metric that only grows has at least that value; it may have passed it before anybody looks.
    pub async fn until_metric_has_reached(&self, name: &str, labels: &[&str], value: f64) {
        let start = Instant::now();
        loop {
            let now = self.metric(name, labels).await;
            if now >= value {
                return;
            }
            assert!(start.elapsed() < PATIENCE, "{name}{labels:?} is {now}, not yet {value}");
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits until so many requests were answered.
    pub async fn until_served(&self, count: f64) {
        let start = Instant::now();
        while self.metric("pillion_requests_total", &[]).await < count {
            assert!(start.elapsed() < PATIENCE, "{} of {count}", self.metric("pillion_requests_total", &[]).await);
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits until nothing is held for clients that are gone.
    pub async fn until_free(&self) {
        self.until_metric("pillion_requests_in_flight", &[], 0.0).await;
        self.until_metric("pillion_retries_active", &[], 0.0).await;
        self.until_metric("pillion_requests_waiting", &[], 0.0).await;
        self.until_metric("pillion_pool_connections", &["state=\"active\""], 0.0).await;
        self.until_metric("pillion_connections", &["listener=\"egress\""], 0.0).await;
    }

    /// How many tasks its workers have when nobody asks anything of them.
    pub async fn idle_tasks(&self) -> f64 {
        // Once a connection has come and gone, the listener is surely there.
        let accepted = self.metric("pillion_connections_accepted_total", &[]).await;
        drop(self.connect().await);
        self.until_metric("pillion_connections_accepted_total", &[], accepted + 1.0).await;
        self.until_free().await;
        // A task has not quite ended when what it counted has.
        let (mut before, mut tasks) = (-1.0, 0.0);
        while before != tasks {
            (before, tasks) = (tasks, self.metric("pillion_tasks", &[]).await);
        }
        tasks
    }

    /// Waits until nothing is left of any request: as [`Self::until_free`], nothing in flight at any endpoint, and no more
    /// tasks than those.
    pub async fn until_idle(&self, idle_tasks: f64) {
        self.until_free().await;
        self.until_metric("pillion_tasks", &[], idle_tasks).await;
        let mut admin = Peer::connect(self.admin()).await;
        admin.send("GET /api/services/user-service HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n").await;
        let detail: serde_json::Value = serde_json::from_str(&admin.response().await.text()).unwrap();
        for endpoint in detail["endpoints"].as_array().unwrap() {
            assert_eq!(endpoint["in_flight"], 0, "{detail:#}");
        }
    }

    /// The most memory that it had at any time besides its own code, in bytes.
    pub fn peak_memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id().unwrap())).unwrap();
        let bytes = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("the kernel tells it");
            line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
        };
        bytes("VmHWM:") - bytes("RssFile:")
    }

    /// Sends it a signal, by name: `STOP`, `CONT`.
    pub async fn signal(&self, name: &str) {
        let id = self.child.id().unwrap().to_string();
        assert!(Command::new("kill").args([&format!("-{name}"), &id]).status().await.unwrap().success());
    }

    /// As `kill -9` does.
    #[cfg(feature = "real-servers")]
    pub async fn kill(mut self) {
        self.child.start_kill().unwrap();
        timeout(PATIENCE, self.child.wait()).await.expect("it ends").unwrap();
    }

    /// Asks it to end, and waits until it has.
    pub async fn stop(mut self) {
        let id = self.child.id().unwrap().to_string();
        assert!(Command::new("kill").arg(&id).status().await.unwrap().success());
        // Less than the 30 s that are given to what is in progress: nobody may wait for all of them.
        let ended = timeout(Duration::from_secs(25), self.child.wait()).await;
        let ended = ended.unwrap_or_else(|_| panic!("it does not stop:\n{}", self.log())).unwrap();
        assert!(ended.success(), "{ended}:\n{}", self.log());
    }
}

/// Writes a file that looks as if it had been left alone for a while, so that it is read at once.
fn write_settled(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    let file = fs::File::options().write(true).open(path).unwrap();
    file.set_modified(SystemTime::now() - Duration::from_secs(10)).unwrap();
}

fn sum(metrics: &str, name: &str, labels: &[&str]) -> f64 {
    let values = metrics.lines().filter_map(|line| {
        let (series, value) = line.rsplit_once(' ')?;
        let rest = series.strip_prefix(name)?;
        let fits = (rest.is_empty() || rest.starts_with('{')) && labels.iter().all(|label| rest.contains(label));
        fits.then(|| value.parse::<f64>().unwrap())
    });
    values.sum()
}
