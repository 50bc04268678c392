//! Nacos, of each line that is supported.

use super::{Certificates, Http, Process, eventually, is_free, program};
use http::{Method, StatusCode};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;
use std::{
    ops::Deref,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU16, Ordering},
};
use tempfile::TempDir;
use tokio::sync::OnceCell;

/// The programs that start a server of each line.
pub const VERSIONS: [&str; 2] = ["nacos-2", "nacos-3"];

/// The setting that lets a server have configs as well, which most tests do not wait for.
pub const CONFIGS: &str = "nacos.functionMode=";

/// How long the server gathers changes before it pushes them. Its default is 500 ms.
const PUSH_DELAY: u32 = 10;

/// What a test says to a Nacos.
pub struct Nacos {
    version: &'static str,
    pub port: u16,
    /// In which the test's services are.
    pub namespace: String,
    http: Option<Http>,
    token: String,
}

/// One Nacos, alone in its cluster.
pub struct NacosServer {
    nacos: Nacos,
    dir: TempDir,
    settings: Vec<String>,
    process: Process,
}

impl Deref for NacosServer {
    type Target = Nacos;

    fn deref(&self) -> &Nacos {
        &self.nacos
    }
}

impl NacosServer {
    /// One for all tests that leave it as it is, with a namespace for each. It ends with the tests.
    pub async fn shared(version: &'static str) -> Nacos {
        static SHARED: [OnceCell<NacosServer>; VERSIONS.len()] = [const { OnceCell::const_new() }; VERSIONS.len()];
        static NEXT: AtomicU16 = AtomicU16::new(1);
        let number = VERSIONS.iter().position(|known| *known == version).unwrap();
        let server = SHARED[number].get_or_init(|| Self::start_by(version, &[], Process::start_with_us)).await;
        let namespace = format!("test-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        // Connections do not outlive the test that made them.
        Nacos { version, port: server.port, namespace, http: Some(Http::new(server.port)), token: String::new() }
    }

    pub async fn start(version: &'static str) -> Self {
        Self::start_with(version, &[]).await
    }

    /// With settings as `KEY=VALUE`, which win over those that all tests have.
    pub async fn start_with(version: &'static str, more: &[&str]) -> Self {
        Self::start_by(version, more, Process::start).await
    }

    async fn start_by(version: &'static str, more: &[&str], start: fn(Command, &Path) -> Process) -> Self {
        let (dir, port) = (TempDir::new().unwrap(), nacos_port());
        let home = dir.path().join("home");
        let common = [
            "nacos.standalone=true".to_owned(),
            "nacos.functionMode=naming".into(),
            format!("nacos.home={}", home.display()),
            // Of 2 and of 3.
            format!("server.port={port}"),
            format!("nacos.server.main.port={port}"),
            "server.address=127.0.0.1".into(),
            format!("nacos.naming.push.pushTaskDelay={PUSH_DELAY}"),
            // 3 does not start without, and has some authentication on.
            "nacos.core.auth.enabled=false".into(),
            "nacos.core.auth.admin.enabled=false".into(),
            "nacos.core.auth.system.type=nacos".into(),
            "nacos.core.auth.caching.enabled=false".into(),
            "nacos.core.auth.plugin.nacos.token.secret.key=VGhlIHRlc3RzJyBvd24sIGFuZCBubyBzZWNyZXQgYXQgYWxs".into(),
            "nacos.core.auth.server.identity.key=test".into(),
            "nacos.core.auth.server.identity.value=test".into(),
            // What it keeps for its own statistics makes connections wait for seconds.
            "nacos.core.monitor.topn.enabled=false".into(),
            // Its own database, which has to answer within 3 s by default, on a busy machine.
            "db.pool.config.connectionTimeout=60000".into(),
        ];
        let settings: Vec<_> = common.into_iter().chain(more.iter().map(ToString::to_string)).collect();
        let secure = more.iter().any(|setting| setting.starts_with("server.ssl"));
        let _start = Process::java_start().await;
        let process = start(command(version, dir.path(), &settings), &log(dir.path()));
        let http = (!secure).then(|| Http::new(port));
        let nacos = Nacos { version, port, namespace: String::new(), http, token: String::new() };
        let mut server = Self { nacos, dir, settings, process };
        server.ready().await;
        server
    }

    /// With its configs, too.
    pub async fn start_with_configs(version: &'static str) -> Self {
        Self::start_with(version, &[CONFIGS]).await
    }

    /// With authentication, as the user `nacos` with the password `nacos`. Tokens last for a few seconds.
    pub async fn start_with_users(version: &'static str) -> Self {
        let settings = [
            "nacos.core.auth.enabled=true",
            "nacos.core.auth.admin.enabled=true",
            "nacos.core.auth.plugin.nacos.token.expire.seconds=8",
        ];
        let mut server = Self::start_with(version, &settings).await;
        server.make_user().await;
        server
    }

    /// Sees to it that there is the user `nacos` with the password `nacos`, and logs in.
    pub async fn make_user(&mut self) {
        if self.version == "nacos-3" {
            self.send(Method::POST, "/v3/auth/user/admin", "password=nacos").await;
        }
        self.log_in().await;
    }

    /// Has the rights for some seconds.
    pub async fn log_in(&mut self) {
        let path = if self.version == "nacos-3" { "/v3/auth/user/login" } else { "/v1/auth/users/login" };
        let (http, form) = (self.http.clone().unwrap(), "username=nacos&password=nacos");
        let mut answer = String::new();
        // A new user is known after a while.
        eventually("the login to work", async || {
            let Some((status, text)) = http.form(Method::POST, &format!("/nacos{path}"), "", form).await else {
                return false;
            };
            answer = text;
            status == StatusCode::OK
        })
        .await;
        let answer: Value = serde_json::from_str(&answer).unwrap();
        self.nacos.token = answer["accessToken"].as_str().unwrap().into();
    }

    /// With TLS for HTTP and gRPC, by the files that [`Certificates`] made.
    pub async fn start_with_tls(version: &'static str, dir: &Path) -> (Self, Certificates) {
        let certificates = Certificates::make(dir);
        let (cert, key) = (dir.join("server.pem"), dir.join("server.key"));
        let (cert, key) = (cert.display(), key.display());
        let settings = [
            format!("server.ssl.certificate=file:{cert}"),
            format!("server.ssl.certificate-private-key=file:{key}"),
            // Of the one line, and of the other.
            "nacos.remote.server.rpc.tls.enableTls=true".into(),
            format!("nacos.remote.server.rpc.tls.certChainFile=file:{cert}"),
            format!("nacos.remote.server.rpc.tls.certPrivateKey=file:{key}"),
            "nacos.remote.server.rpc.tls.compatibility=false".into(),
        ];
        (Self::start_with(version, &settings.each_ref().map(String::as_str)).await, certificates)
    }

    async fn ready(&mut self) {
        let (http, grpc_port) = (self.http.clone(), self.port + 1000);
        self.process
            .until(async || {
                let answers = match &http {
                    Some(http) => {
                        let path = "/nacos/v1/ns/instance/list?serviceName=ready";
                        let answer = http.form(Method::GET, path, "", "").await;
                        answer.is_some_and(|(status, _)| matches!(status.as_u16(), 200 | 403))
                    }
                    None => tokio::net::TcpStream::connect(("127.0.0.1", grpc_port - 1000)).await.is_ok(),
                };
                answers && tokio::net::TcpStream::connect(("127.0.0.1", grpc_port)).await.is_ok()
            })
            .await;
    }

    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// On the same ports. It has forgotten what was registered.
    pub async fn restart(&mut self) {
        self.process.kill();
        let _start = Process::java_start().await;
        self.process = Process::start(command(self.version, self.dir.path(), &self.settings), &log(self.dir.path()));
        self.ready().await;
    }
}

impl Nacos {
    pub fn url(&self) -> String {
        format!("{}://127.0.0.1:{}", if self.http.is_some() { "http" } else { "https" }, self.port)
    }

    /// Registers an instance, or changes it: `more` are further fields. It never ages.
    pub async fn register(&self, service: &str, address: &str, more: &str) {
        let form = self.instance_form(service, address, more);
        self.send(Method::POST, "/v1/ns/instance", &form).await;
    }

    pub async fn deregister(&self, service: &str, address: &str, more: &str) {
        self.send(Method::DELETE, &format!("/v1/ns/instance?{}", self.instance_form(service, address, more)), "").await;
    }

    /// The hosts that a client is told, or none while it does not answer.
    pub async fn hosts(&self, service: &str) -> Vec<Value> {
        let http = self.http.as_ref().expect("a server without TLS");
        let path = format!("/nacos/v1/ns/instance/list?serviceName={service}&healthyOnly=false");
        let Some((StatusCode::OK, text)) = http.form(Method::GET, &path, &self.token, "").await else {
            return Vec::new();
        };
        let answer: Value = serde_json::from_str(&text).unwrap();
        answer["hosts"].as_array().unwrap().clone()
    }

    /// Puts a config, as whoever uses the HTTP API.
    pub async fn put_config(&self, group: &str, data_id: &str, content: &str) {
        let (namespace, content) = (&self.namespace, utf8_percent_encode(content, NON_ALPHANUMERIC));
        let form = format!("tenant={namespace}&group={group}&dataId={data_id}&content={content}");
        assert_eq!(self.send(Method::POST, "/v1/cs/configs", &form).await, "true");
    }

    pub async fn delete_config(&self, group: &str, data_id: &str) {
        let path = format!("/v1/cs/configs?tenant={}&group={group}&dataId={data_id}", self.namespace);
        assert_eq!(self.send(Method::DELETE, &path, "").await, "true");
    }

    /// As a reader is told.
    pub async fn config(&self, group: &str, data_id: &str) -> String {
        let path = format!("/v1/cs/configs?tenant={}&group={group}&dataId={data_id}", self.namespace);
        self.send(Method::GET, &path, "").await
    }

    /// Asks every client to connect anew, as an operator does who wants to spread them over servers.
    pub async fn send_clients_away(&self) {
        let (method, path) = match self.version {
            "nacos-2" => (Method::GET, "/v2/core/loader"),
            _ => (Method::POST, "/v3/admin/core/loader"),
        };
        let current: Value =
            serde_json::from_str(&self.send(Method::GET, &format!("{path}/current"), "").await).unwrap();
        let connections = current.get("data").unwrap_or(&current).as_object().unwrap();
        for connection in connections.keys() {
            let path = format!("{path}/reloadClient?connectionId={connection}&redirectAddress=");
            self.send(method.clone(), &path, "").await;
        }
    }

    /// How many clients are subscribed to a service.
    pub async fn subscribers(&self, service: &str) -> u64 {
        let (path, count) = match self.version {
            "nacos-2" => ("/v1/ns/service/subscribers", "/count"),
            _ => ("/v3/admin/ns/service/subscribers", "/data/totalCount"),
        };
        let namespace = &self.namespace;
        let path = format!(
            "{path}?serviceName={service}&groupName=DEFAULT_GROUP&namespaceId={namespace}&pageNo=1&pageSize=10"
        );
        let text = self.send(Method::GET, &path, "").await;
        let answer: Value = serde_json::from_str(&text).unwrap();
        answer.pointer(count).and_then(Value::as_u64).unwrap_or_else(|| panic!("{text}"))
    }

    async fn send(&self, method: Method, path: &str, form: &str) -> String {
        let http = self.http.as_ref().expect("a server without TLS");
        let answer = http.form(method, &format!("/nacos{path}"), &self.token, form).await;
        let (status, text) = answer.expect("Nacos answers");
        assert!(status.is_success(), "{path}: {status} {text}");
        text
    }

    fn instance_form(&self, service: &str, address: &str, more: &str) -> String {
        let (ip, port) = address.rsplit_once(':').unwrap();
        let mut metadata = serde_json::json!({
            "preserved.heart.beat.timeout": "3600000", "preserved.ip.delete.timeout": "3600000"
        });
        let mut form = format!("serviceName={service}&ip={ip}&port={port}");
        if !more.contains("namespaceId=") {
            form.push_str(&format!("&namespaceId={}", self.namespace));
        }
        for (key, value) in more.split('&').filter_map(|field| field.split_once('=')) {
            match key.strip_prefix("metadata.") {
                Some(key) => metadata[key] = value.into(),
                None => form.push_str(&format!("&{key}={value}")),
            }
        }
        format!("{form}&metadata={}", utf8_percent_encode(&metadata.to_string(), NON_ALPHANUMERIC))
    }
}

/// A port that is free with those that Nacos counts from it: one less by 1000, and two more by 1000 and 1001.
fn nacos_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let offset = u16::try_from(std::process::id() % 3500).unwrap();
    loop {
        // Even ones, so that of two servers no two ports can be the same; below those of all other servers.
        let port = 12_000 + 2 * ((offset + NEXT.fetch_add(1, Ordering::Relaxed)) % 3500);
        if [port, port - 1000, port + 1000, port + 1001].into_iter().all(is_free) {
            return port;
        }
    }
}

fn command(version: &str, dir: &Path, settings: &[String]) -> Command {
    let mut command = Command::new(program(version));
    command.args(settings).current_dir(dir);
    command
}

fn log(dir: &Path) -> PathBuf {
    dir.join("log")
}
