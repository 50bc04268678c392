//! Real registries as child processes: on ephemeral ports, in directories of their own, gone when dropped.

mod any;

pub use any::AnyServer;

pub mod daemon;

mod redis;

pub use redis::{NOTIFYING, RedisServer, SentinelCluster};

mod xds;

pub use xds::{ControlPlane, Envoy};

pub mod dns;

pub mod zookeeper;

mod eureka;
pub mod kubernetes;

pub use eureka::{EurekaServer, instance as eureka_instance};

pub mod nacos;
mod prometheus;

pub use nacos::{NacosServer, VERSIONS as NACOS_VERSIONS};
pub use prometheus::PrometheusServer;

pub use crate::socket::{free_port, is_free};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};
use tempfile::TempDir;
use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::{Instant, sleep},
};

/// The line that installs what the tests need.
const INSTALL: &str = "tests/servers/install.sh test";
/// Far more than a start takes, or anything that is waited for; only a failing test waits so long.
const START_LIMIT: Duration = Duration::from_secs(180);
/// Servers in Java need a processor each for seconds when they start: more at once only start later, and make all others
/// wait.
static JAVA_STARTS: Semaphore = Semaphore::const_new(2);

/// All directories that may hold a server, those of `PILLION_TEST_BIN` first.
fn directories() -> Vec<PathBuf> {
    let split = |name| env::var_os(name).map(|value| env::split_paths(&value).collect::<Vec<_>>()).unwrap_or_default();
    [split("PILLION_TEST_BIN"), split("PATH")].concat()
}

/// The first program of that name.
pub fn program(name: &str) -> PathBuf {
    let found = directories().into_iter().map(|dir| dir.join(name)).find(|path| path.is_file());
    found.unwrap_or_else(|| panic!("`{name}` is not installed; `{INSTALL}` installs it"))
}

/// Each version of etcd that is here, by version.
pub fn etcds() -> BTreeMap<String, PathBuf> {
    let mut found = BTreeMap::new();
    for path in directories().into_iter().map(|dir| dir.join("etcd")).filter(|path| path.is_file()) {
        let output = Command::new(&path).arg("--version").output().expect("etcd runs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let version = text.lines().find_map(|line| line.strip_prefix("etcd Version: ")).expect("a version").trim();
        found.entry(version.to_owned()).or_insert(path);
    }
    assert!(!found.is_empty(), "`etcd` is not installed; `{INSTALL}` installs it");
    found
}

/// A child that is killed, by its own id, when dropped.
pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Process {
    pub fn start(mut command: Command, log: &Path) -> Self {
        command.stdin(Stdio::null());
        Self::spawn(command, log)
    }

    fn spawn(mut command: Command, log: &Path) -> Self {
        let output = fs::File::options().create(true).append(true).open(log).unwrap();
        command.stdout(output.try_clone().unwrap()).stderr(output);
        // A server in Java that is killed leaves what it unpacked, 14 MB for a Nacos: where the test's own folder goes.
        command.env("JDK_JAVA_OPTIONS", format!("-Djava.io.tmpdir={}", log.parent().unwrap().display()));
        let child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        Self { child, log: log.into() }
    }

    /// One that nobody drops: it is killed when this program has ended, and the folder of its log goes with it.
    pub fn start_with_us(command: Command, log: &Path) -> Self {
        let dir = log.parent().unwrap();
        let mut guarded = Command::new("sh");
        // The shell's input ends with us, however that is.
        guarded.args(["-c", r#""$@" </dev/null & read -r end; kill -9 $!; wait $!; rm -rf "$0""#]);
        guarded.arg(dir).arg(command.get_program()).args(command.get_args());
        guarded.current_dir(dir).stdin(Stdio::piped());
        Self::spawn(guarded, log)
    }

    /// Waits until a server in Java may start; it is up when this is dropped.
    pub async fn java_start() -> SemaphorePermit<'static> {
        JAVA_STARTS.acquire().await.unwrap()
    }

    /// As `kill -9` does.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    pub fn signal(&self, name: &str) {
        let status = Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status().unwrap();
        assert!(status.success());
    }

    /// Polls until `answers`; panics with the log if the process ends before or the time is up.
    pub async fn until(&mut self, mut answers: impl AsyncFnMut() -> bool) {
        let start = Instant::now();
        while !answers().await {
            let ended = self.child.try_wait().unwrap();
            if ended.is_some() || start.elapsed() > START_LIMIT {
                let log = fs::read_to_string(&self.log).unwrap_or_default();
                // Without the stacks of Java, which leave no room for their causes.
                let tail: Vec<_> = log.lines().rev().filter(|line| !line.starts_with("\tat ")).take(20).collect();
                panic!(
                    "the server did not start ({ended:?}):\n{}",
                    tail.into_iter().rev().collect::<Vec<_>>().join("\n")
                );
            }
            sleep(Duration::from_millis(20)).await;
        }
    }
}

/// JSON over HTTP, for servers' own APIs.
#[derive(Clone)]
pub struct Http {
    base: String,
    client: Client<HttpConnector, Full<Bytes>>,
}

impl Http {
    pub fn new(port: u16) -> Self {
        // One that idled may be closed by the server just when it is used again.
        let client = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build_http();
        Self { base: format!("http://127.0.0.1:{port}"), client }
    }

    /// `None` if there was no answer at all.
    pub async fn send(&self, method: Method, path: &str, token: &str, body: &str) -> Option<(StatusCode, String)> {
        self.request(method, path, ("x-consul-token", token), body).await
    }

    /// With a form as the body, and Nacos' token.
    pub async fn form(&self, method: Method, path: &str, token: &str, form: &str) -> Option<(StatusCode, String)> {
        self.request(method, path, ("accessToken", token), form).await
    }

    async fn request(
        &self,
        method: Method,
        path: &str,
        (header, token): (&str, &str),
        body: &str,
    ) -> Option<(StatusCode, String)> {
        let request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.base))
            .header(header, token)
            .header("content-type", "application/x-www-form-urlencoded")
            .body(Full::from(body.to_owned()))
            .unwrap();
        self.exchange(request).await
    }

    async fn exchange(&self, request: Request<Full<Bytes>>) -> Option<(StatusCode, String)> {
        let answer = self.client.request(request).await.ok()?;
        let status = answer.status();
        let body = answer.into_body().collect().await.ok()?.to_bytes();
        Some((status, String::from_utf8_lossy(&body).into_owned()))
    }
}

/// One etcd, alone in its cluster.
pub struct EtcdServer {
    binary: PathBuf,
    dir: TempDir,
    pub port: u16,
    peer_port: u16,
    scheme: &'static str,
    args: Vec<String>,
    process: Process,
    http: Http,
}

impl EtcdServer {
    pub async fn start(binary: &Path) -> Self {
        Self::start_with(binary, "http", TempDir::new().unwrap(), &[]).await
    }

    pub async fn start_with(binary: &Path, scheme: &'static str, dir: TempDir, args: &[&str]) -> Self {
        let (port, peer_port) = (free_port(), free_port());
        let args: Vec<_> = args.iter().map(ToString::to_string).collect();
        let process = spawn_etcd(binary, dir.path(), scheme, port, peer_port, &args);
        let http = Http::new(port);
        let mut server = Self { binary: binary.into(), dir, port, peer_port, scheme, args, process, http };
        server.ready().await;
        server
    }

    async fn ready(&mut self) {
        let (http, secure, log) = (self.http.clone(), self.scheme == "https", self.process.log.clone());
        self.process
            .until(async || {
                if secure {
                    // It listens before it has a leader, without which it answers nothing.
                    return fs::read_to_string(&log).is_ok_and(|log| log.contains("ready to serve client requests"));
                }
                let health = http.send(Method::GET, "/health", "", "").await;
                health.is_some_and(|(_, body)| body.contains("\"true\""))
            })
            .await;
    }

    pub fn url(&self) -> String {
        format!("{}://127.0.0.1:{}", self.scheme, self.port)
    }

    pub fn kill(&mut self) {
        self.process.kill();
    }

    pub fn signal(&self, name: &str) {
        self.process.signal(name);
    }

    /// On the same ports, with the data that it had.
    pub async fn restart(&mut self) {
        self.process.kill();
        self.process = spawn_etcd(&self.binary, self.dir.path(), self.scheme, self.port, self.peer_port, &self.args);
        self.ready().await;
    }

    /// On the same ports, as a new cluster with nothing in it.
    pub async fn restart_empty(&mut self) {
        self.process.kill();
        fs::remove_dir_all(self.dir.path().join("data")).unwrap();
        self.restart().await;
    }

    /// Through etcd's JSON gateway: no code of ours.
    async fn gateway(&self, path: &str, body: Value) -> Value {
        let (status, text) = self.http.send(Method::POST, path, "", &body.to_string()).await.expect("etcd answers");
        assert!(status.is_success(), "{path}: {status} {text}");
        serde_json::from_str(&text).unwrap()
    }

    /// Returns the revision.
    pub async fn put(&self, key: &str, value: impl AsRef<[u8]>) -> i64 {
        let body = json!({"key": BASE64.encode(key), "value": BASE64.encode(value)});
        let answer = self.gateway("/v3/kv/put", body).await;
        answer["header"]["revision"].as_str().unwrap().parse().unwrap()
    }

    pub async fn delete(&self, key: &str) {
        let answer = self.gateway("/v3/kv/deleterange", json!({"key": BASE64.encode(key)})).await;
        assert_eq!(answer["deleted"], "1", "{key} was there");
    }

    /// All that begins with `prefix`.
    pub async fn values(&self, prefix: &str) -> Vec<(String, String)> {
        let mut end = prefix.as_bytes().to_vec();
        *end.last_mut().unwrap() += 1;
        let body = json!({"key": BASE64.encode(prefix), "range_end": BASE64.encode(end)});
        let answer = self.gateway("/v3/kv/range", body).await;
        let text = |value: &Value| String::from_utf8(BASE64.decode(value.as_str().unwrap()).unwrap()).unwrap();
        let kvs = answer["kvs"].as_array().cloned().unwrap_or_default();
        kvs.iter().map(|kv| (text(&kv["key"]), text(&kv["value"]))).collect()
    }

    pub async fn compact(&self, revision: i64) {
        self.gateway("/v3/kv/compaction", json!({"revision": revision, "physical": true})).await;
    }

    /// How many watches it serves.
    pub async fn watchers(&self) -> usize {
        let (_, metrics) = self.http.send(Method::GET, "/metrics", "", "").await.expect("etcd answers");
        let line = metrics.lines().find_map(|line| line.strip_prefix("etcd_debugging_mvcc_watcher_total "));
        line.expect("the metric").parse().unwrap()
    }

    /// Runs etcd's own client.
    pub fn etcdctl(&self, args: &[&str]) -> String {
        let output = Command::new(program("etcdctl"))
            .env("ETCDCTL_API", "3")
            // A busy machine may take longer than what it allows by default.
            .args(["--dial-timeout=60s", "--command-timeout=60s", "--endpoints", &self.url()])
            .args(args)
            .output()
            .unwrap();
        assert!(output.status.success(), "etcdctl {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

fn spawn_etcd(binary: &Path, dir: &Path, scheme: &str, port: u16, peer_port: u16, args: &[String]) -> Process {
    let (client, peer) = (format!("{scheme}://127.0.0.1:{port}"), format!("http://127.0.0.1:{peer_port}"));
    let mut command = Command::new(binary);
    command
        .args(["--name", "test", "--data-dir"])
        .arg(dir.join("data"))
        .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
        .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
        .args(["--initial-cluster", &format!("test={peer}")])
        .args(args);
    Process::start(command, &dir.join("log"))
}

/// Polls until it is so.
pub async fn eventually(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let start = Instant::now();
    while !is_so().await {
        assert!(start.elapsed() < START_LIMIT, "waited in vain for {what}");
        sleep(Duration::from_millis(20)).await;
    }
}

/// An authority with a server's (for 127.0.0.1) and a client's certificate, and another authority.
pub struct Certificates {
    pub stranger: PathBuf,
}

impl Certificates {
    /// Writes `ca.pem`, `server.pem`, `server.key`, `client.pem`, `client.key` and `stranger.pem`.
    pub fn make(dir: &Path) -> Self {
        let authority = |name: &str| {
            let mut params = CertificateParams::default();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.distinguished_name.push(DnType::CommonName, name);
            CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
        };
        let (ca, stranger) = (authority("test ca"), authority("stranger"));
        fs::write(dir.join("ca.pem"), ca.pem()).unwrap();
        fs::write(dir.join("stranger.pem"), stranger.pem()).unwrap();
        for (name, usage) in
            [("server", ExtendedKeyUsagePurpose::ServerAuth), ("client", ExtendedKeyUsagePurpose::ClientAuth)]
        {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::new(["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
            params.distinguished_name.push(DnType::CommonName, name);
            params.extended_key_usages = vec![usage];
            // etcd's gateway calls its own server with the server's certificate.
            if name == "server" {
                params.extended_key_usages.push(ExtendedKeyUsagePurpose::ClientAuth);
            }
            fs::write(dir.join(format!("{name}.pem")), params.signed_by(&key, &ca).unwrap().pem()).unwrap();
            fs::write(dir.join(format!("{name}.key")), key.serialize_pem()).unwrap();
        }
        Self { stranger: dir.join("stranger.pem") }
    }
}

/// One Consul agent, which is its own server.
pub struct ConsulServer {
    dir: TempDir,
    pub port: u16,
    args: Vec<String>,
    process: Process,
    http: Http,
    token: String,
}

impl ConsulServer {
    /// A development agent: everything in memory.
    pub async fn start() -> Self {
        Self::start_with("").await
    }

    /// A development agent with further configuration.
    pub async fn start_with(config: &str) -> Self {
        Self::spawn(&["-dev"], config).await
    }

    /// An agent that keeps its data.
    pub async fn start_with_data() -> Self {
        // The multiplier is for the time to elect a leader, which is 5 s and more otherwise.
        let args = ["-server", "-bootstrap-expect=1", "-hcl", "performance { raft_multiplier = 1 }"];
        Self::spawn(&args, "").await
    }

    async fn spawn(args: &[&str], config: &str) -> Self {
        let dir = TempDir::new().unwrap();
        let (port, server_port, serf_port) = (free_port(), free_port(), free_port());
        let ports = format!(
            "ports {{ http = {port}, server = {server_port}, serf_lan = {serf_port}, serf_wan = -1, dns = -1, grpc = -1, grpc_tls = -1 }}"
        );
        let common = ["agent", "-node=n1", "-bind=127.0.0.1", "-client=127.0.0.1", "-hcl", &ports, "-hcl", config];
        let mut args: Vec<_> = common.iter().chain(args).map(ToString::to_string).collect();
        if !args.iter().any(|arg| arg == "-dev") {
            args.push(format!("-data-dir={}", dir.path().join("data").display()));
        }
        let process = spawn_consul(dir.path(), &args);
        let mut server = Self { dir, port, args, process, http: Http::new(port), token: String::new() };
        server.ready().await;
        server
    }

    /// Sends this token from now on, and waits until it counts.
    pub async fn with_token(mut self, token: &str) -> Self {
        self.token = token.into();
        let http = self.http.clone();
        eventually("the token to work", async || {
            let answer = http.send(Method::GET, "/v1/agent/services", token, "").await;
            answer.is_some_and(|(status, _)| status.is_success())
        })
        .await;
        self
    }

    async fn ready(&mut self) {
        let (http, has_acl) = (self.http.clone(), self.args.iter().any(|arg| arg.contains("acl")));
        self.process
            .until(async || {
                let Some((_, leader)) = http.send(Method::GET, "/v1/status/leader", "", "").await else {
                    return false;
                };
                // The agent's own node in the catalog: the leader has done its first work. (Without rights it is hidden.)
                let nodes = http.send(Method::GET, "/v1/health/node/n1", "", "").await;
                leader.contains("127.0.0.1:") && (has_acl || nodes.is_some_and(|(_, text)| text.contains("serfHealth")))
            })
            .await;
    }

    pub fn kill(&mut self) {
        self.process.kill();
    }

    pub fn signal(&self, name: &str) {
        self.process.signal(name);
    }

    pub async fn restart(&mut self) {
        self.process.kill();
        self.process = spawn_consul(self.dir.path(), &self.args);
        self.ready().await;
    }

    pub async fn register(&self, service: &Value) {
        self.put("/v1/agent/service/register", service).await;
    }

    /// The checks that an agent with data has kept on disk, with what its API does not tell of them.
    pub fn kept_checks(&self) -> Vec<Value> {
        let files = fs::read_dir(self.dir.path().join("data/checks")).unwrap();
        let files = files.map(|file| file.unwrap().path()).filter(|path| path.is_file());
        files.map(|path| serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()).collect()
    }

    pub async fn put(&self, path: &str, body: &Value) {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let (status, text) = self.http.send(Method::PUT, path, &self.token, &body).await.expect("Consul answers");
        assert!(status.is_success(), "{path}: {status} {text}");
    }

    /// Runs `consul kv`.
    pub fn kv(&self, args: &[&str]) -> String {
        let address = format!("-http-addr=http://127.0.0.1:{}", self.port);
        let output = Command::new(program("consul")).args(["kv", args[0], &address]).args(&args[1..]).output().unwrap();
        assert!(output.status.success(), "consul kv {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    pub async fn get(&self, path: &str) -> String {
        let (status, text) = self.http.send(Method::GET, path, &self.token, "").await.expect("Consul answers");
        assert!(status.is_success(), "{path}: {status} {text}");
        text
    }
}

fn spawn_consul(dir: &Path, args: &[String]) -> Process {
    let mut command = Command::new(program("consul"));
    command.args(args);
    Process::start(command, &dir.join("log"))
}
