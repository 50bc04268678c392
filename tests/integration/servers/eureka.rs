//! Eureka, as Spring Cloud runs it.

use super::{Http, Process, free_port, program};
use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::Full;
use serde_json::{Value, json};
use std::{path::Path, process::Command};
use tempfile::TempDir;
use tokio::net::TcpStream;

/// One server. It tells of changes after a second at most, and forgets all when it is restarted.
pub struct EurekaServer {
    dir: TempDir,
    pub port: u16,
    args: Vec<String>,
    process: Process,
    http: Http,
}

impl EurekaServer {
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// With properties of Spring's, as `--KEY=VALUE`.
    pub async fn start_with(args: &[&str]) -> Self {
        Self::start_at(free_port(), args).await
    }

    pub async fn start_at(port: u16, args: &[&str]) -> Self {
        let dir = TempDir::new().unwrap();
        let args: Vec<_> = args.iter().map(ToString::to_string).collect();
        let _start = Process::java_start().await;
        let process = spawn(dir.path(), port, &args);
        let mut server = Self { dir, port, args, process, http: Http::new(port) };
        server.ready().await;
        server
    }

    /// Two that replicate to each other.
    pub async fn start_two() -> [Self; 2] {
        let ports = [free_port(), free_port()];
        // By another name than its own, or it would take the other one for itself.
        let start = |port: u16, other: u16| async move {
            let peer = format!("--eureka.client.service-url.defaultZone=http://localhost:{other}/eureka/");
            Self::start_at(port, &[&peer]).await
        };
        let (one, other) = tokio::join!(start(ports[0], ports[1]), start(ports[1], ports[0]));
        [one, other]
    }

    async fn ready(&mut self) {
        let (http, port) = (self.http.clone(), self.port);
        let secure = self.args.iter().any(|arg| arg.starts_with("--server.ssl"));
        self.process
            .until(async || {
                if secure {
                    return TcpStream::connect(("127.0.0.1", port)).await.is_ok();
                }
                http.send(Method::GET, "/eureka/apps", "", "").await.is_some()
            })
            .await;
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/eureka", self.port)
    }

    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// On the same port, with nothing in it, and with other properties.
    pub async fn restart_with(&mut self, args: &[&str]) {
        self.process.kill();
        self.args = args.iter().map(ToString::to_string).collect();
        let _start = Process::java_start().await;
        self.process = spawn(self.dir.path(), self.port, &self.args);
        self.ready().await;
    }

    /// Registers an instance that is up, at 10.0.0.1, with `more` over it.
    pub async fn register(&self, app: &str, id: &str, port: u16, more: Value) {
        let body = json!({"instance": instance(app, id, port, more)}).to_string();
        let (status, text) = self.call(Method::POST, &format!("/apps/{app}"), &body).await;
        assert_eq!(status, StatusCode::NO_CONTENT, "{app}/{id}: {text}");
    }

    pub async fn remove(&self, app: &str, id: &str) {
        self.ok(Method::DELETE, &format!("/apps/{app}/{id}")).await;
    }

    /// As an operator does, over what the application says.
    pub async fn set_status(&self, app: &str, id: &str, status: &str) {
        self.ok(Method::PUT, &format!("/apps/{app}/{id}/status?value={status}")).await;
    }

    pub async fn clear_status(&self, app: &str, id: &str) {
        self.ok(Method::DELETE, &format!("/apps/{app}/{id}/status?value=UP")).await;
    }

    pub async fn set_metadata(&self, app: &str, id: &str, pair: &str) {
        self.ok(Method::PUT, &format!("/apps/{app}/{id}/metadata?{pair}")).await;
    }

    /// What it answers to this, as JSON. `None` if it is not there.
    pub async fn get(&self, path: &str) -> Option<Value> {
        let (status, text) = self.call(Method::GET, path, "").await;
        (status == StatusCode::OK).then(|| serde_json::from_str(&text).unwrap())
    }

    async fn ok(&self, method: Method, path: &str) {
        let (status, text) = self.call(method, path, "").await;
        assert_eq!(status, StatusCode::OK, "{path}: {text}");
    }

    async fn call(&self, method: Method, path: &str, body: &str) -> (StatusCode, String) {
        let request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.url()))
            .header("content-type", "application/json")
            .header("accept", "application/json")
            .body(Full::<Bytes>::from(body.to_owned()))
            .unwrap();
        self.http.exchange(request).await.expect("Eureka answers")
    }
}

/// What an instance that is up registers itself as, with `more` over it. Nobody has to renew it while a test runs.
pub fn instance(app: &str, id: &str, port: u16, more: Value) -> Value {
    let mut instance = json!({
        "instanceId": id, "hostName": format!("host-of-{id}"), "app": app, "ipAddr": "10.0.0.1", "status": "UP",
        "port": {"$": port, "@enabled": "true"}, "securePort": {"$": 443, "@enabled": "false"},
        "vipAddress": app, "secureVipAddress": app,
        "dataCenterInfo": {"@class": "com.netflix.appinfo.InstanceInfo$DefaultDataCenterInfo", "name": "MyOwn"},
        "leaseInfo": {"renewalIntervalInSecs": 30, "durationInSecs": 3600},
    });
    if let Value::Object(more) = more {
        instance.as_object_mut().unwrap().extend(more);
    }
    instance
}

fn spawn(dir: &Path, port: u16, args: &[String]) -> Process {
    let mut command = Command::new(program("eureka-server"));
    // Tomcat's files, too.
    command
        .current_dir(dir)
        .arg(format!("--server.port={port}"))
        .arg(format!("--server.tomcat.basedir={}", dir.display()));
    command.args(args);
    Process::start(command, &dir.join("log"))
}
