//! A control plane made of go-control-plane, and an Envoy that follows it.

use super::{Http, Process, free_port, program};
use http::Method;
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};
use tempfile::TempDir;

/// One control plane. It serves what it is told to, also when it is restarted.
pub struct ControlPlane {
    dir: TempDir,
    pub port: u16,
    control_port: u16,
    scheme: &'static str,
    args: Vec<String>,
    process: Process,
    http: Http,
    clusters: BTreeMap<String, Value>,
    endpoints: BTreeMap<String, Value>,
}

/// What one client said, as the control plane logs it.
pub struct Requests(Vec<Value>);

impl ControlPlane {
    pub async fn start(args: &[&str]) -> Self {
        Self::start_with("http", TempDir::new().unwrap(), args).await
    }

    pub async fn start_with(scheme: &'static str, dir: TempDir, args: &[&str]) -> Self {
        let (port, control_port) = (free_port(), free_port());
        let args: Vec<_> = args.iter().map(ToString::to_string).collect();
        let process = spawn(dir.path(), port, control_port, &args);
        let http = Http::new(control_port);
        let (clusters, endpoints) = (BTreeMap::new(), BTreeMap::new());
        let mut server = Self { dir, port, control_port, scheme, args, process, http, clusters, endpoints };
        server.ready().await;
        server
    }

    async fn ready(&mut self) {
        let http = self.http.clone();
        self.process.until(async || http.send(Method::GET, "/connections", "", "").await.is_some()).await;
    }

    pub fn url(&self) -> String {
        format!("{}://127.0.0.1:{}", self.scheme, self.port)
    }

    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// On the same ports, with what it had.
    pub async fn restart(&mut self) {
        self.process.kill();
        let all = |of: &BTreeMap<String, Value>| of.values().cloned().collect::<Vec<_>>();
        let initial = json!({"clusters": all(&self.clusters), "endpoints": all(&self.endpoints)});
        let path = self.dir.path().join("initial.json");
        fs::write(&path, initial.to_string()).unwrap();
        let mut args = self.args.clone();
        args.extend(["-initial".into(), path.to_str().unwrap().into()]);
        self.process = spawn(self.dir.path(), self.port, self.control_port, &args);
        self.ready().await;
    }

    async fn send(&self, method: Method, path: &str, body: &str) -> String {
        let (status, text) = self.http.send(method, path, "", body).await.expect("the control plane answers");
        assert!(status.is_success(), "{path}: {status} {text}");
        text
    }

    /// Sets clusters, in protobuf's JSON.
    pub async fn clusters(&mut self, clusters: impl IntoIterator<Item = Value>) {
        let clusters: Vec<_> = clusters.into_iter().collect();
        self.send(Method::PUT, "/clusters", &json!({"resources": clusters}).to_string()).await;
        self.clusters.extend(clusters.into_iter().map(|one| (text(&one["name"]), one)));
    }

    /// Sets assignments, in protobuf's JSON.
    pub async fn endpoints(&mut self, assignments: impl IntoIterator<Item = Value>) {
        let assignments: Vec<_> = assignments.into_iter().collect();
        self.send(Method::PUT, "/endpoints", &json!({"resources": assignments}).to_string()).await;
        self.endpoints.extend(assignments.into_iter().map(|one| (text(&one["cluster_name"]), one)));
    }

    pub async fn delete_cluster(&mut self, name: &str) {
        assert!(self.clusters.remove(name).is_some());
        self.send(Method::DELETE, &format!("/clusters?name={name}"), "").await;
    }

    pub async fn delete_endpoints(&mut self, name: &str) {
        assert!(self.endpoints.remove(name).is_some());
        self.send(Method::DELETE, &format!("/endpoints?name={name}"), "").await;
    }

    /// How many connections it has accepted since its start, and how many of them are open.
    pub async fn connections(&self) -> (u64, u64) {
        let answer: Value = serde_json::from_str(&self.send(Method::GET, "/connections", "").await).unwrap();
        (answer["accepted"].as_u64().unwrap(), answer["open"].as_u64().unwrap())
    }

    /// What the node of that id has said since the start.
    pub async fn requests(&self, node: &str) -> Requests {
        let mut all: Vec<Value> =
            serde_json::from_str(&self.send(Method::GET, "/requests", "").await).unwrap_or_default();
        // Only the first request of a stream names the node.
        let of_stream = |one: &Value| (one["delta"].clone(), one["stream"].clone());
        let own: Vec<_> = all.iter().filter(|one| one["node"]["id"] == node).map(of_stream).collect();
        all.retain(|one| own.contains(&of_stream(one)));
        Requests(all)
    }
}

impl Requests {
    /// Of that type only: `Cluster` or `ClusterLoadAssignment`.
    pub fn about(&self, kind: &str) -> Vec<&Value> {
        let end = format!(".{kind}");
        self.0.iter().filter(|one| text(&one["type"]).ends_with(&end)).collect()
    }

    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// What was said on refusing something.
    pub fn refusals(&self) -> Vec<String> {
        self.0.iter().filter_map(|one| one["error"].as_str().map(str::to_owned)).collect()
    }

    /// Whether the newest response about that type was accepted.
    pub fn accepted(&self, kind: &str) -> bool {
        let mut answers = self.about(kind).into_iter().filter(|one| one["nonce"].is_string());
        answers.next_back().is_some_and(|one| one["error"].is_null())
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn spawn(dir: &Path, port: u16, control_port: u16, args: &[String]) -> Process {
    let mut command = Command::new(program("xds-control-plane"));
    command.args(["-listen", &format!("127.0.0.1:{port}"), "-control", &format!("127.0.0.1:{control_port}")]);
    command.args(args);
    Process::start(command, &dir.join("log"))
}

/// An Envoy that takes its clusters from a control plane.
pub struct Envoy {
    #[allow(dead_code, reason = "held for its drop")]
    dir: TempDir,
    #[allow(dead_code, reason = "held for its drop")]
    process: Process,
    http: Http,
}

impl Envoy {
    /// `api`: `DELTA_GRPC` or `GRPC`.
    pub async fn start(control_plane: u16, node: &str, api: &str) -> Self {
        let (dir, admin_port) = (TempDir::new().unwrap(), free_port());
        let address = |port: u16| json!({"socket_address": {"address": "127.0.0.1", "port_value": port}});
        let http2 = json!({
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": {"http2_protocol_options": {}}
        });
        let endpoint = json!({"endpoint": {"address": address(control_plane)}});
        let config = json!({
            "node": {"id": node, "cluster": "test"},
            "admin": {"address": address(admin_port)},
            "dynamic_resources": {
                "ads_config": {
                    "api_type": api, "transport_api_version": "V3",
                    "grpc_services": [{"envoy_grpc": {"cluster_name": "control-plane"}}]
                },
                "cds_config": {"ads": {}, "resource_api_version": "V3"}
            },
            "static_resources": {"clusters": [{
                "name": "control-plane", "type": "STATIC", "connect_timeout": "1s",
                "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": http2},
                "load_assignment": {"cluster_name": "control-plane", "endpoints": [{"lb_endpoints": [endpoint]}]}
            }]}
        });
        let path: PathBuf = dir.path().join("envoy.json");
        fs::write(&path, config.to_string()).unwrap();
        let mut command = Command::new(program("envoy"));
        command.arg("-c").arg(&path).args(["--use-dynamic-base-id", "--concurrency", "1", "-l", "warn"]);
        let process = Process::start(command, &dir.path().join("log"));
        let mut envoy = Self { dir, process, http: Http::new(admin_port) };
        let http = envoy.http.clone();
        envoy.process.until(async || http.send(Method::GET, "/server_info", "", "").await.is_some()).await;
        envoy
    }

    /// The endpoints that it has of a cluster: address, weight, zone, priority, and whether it would use it.
    pub async fn endpoints(&self, cluster: &str) -> Vec<String> {
        let (_, text) = self.http.send(Method::GET, "/clusters?format=json", "", "").await.expect("Envoy answers");
        let all: Value = serde_json::from_str(&text).unwrap();
        let of_it = all["cluster_statuses"].as_array().unwrap().iter().find(|one| one["name"] == cluster);
        let hosts = of_it.and_then(|one| one["host_statuses"].as_array()).cloned().unwrap_or_default();
        let mut shown: Vec<_> = hosts
            .iter()
            .map(|host| {
                let address = &host["address"]["socket_address"];
                let status = host["health_status"]["eds_health_status"].as_str().unwrap_or("HEALTHY");
                let usable = matches!(status, "HEALTHY" | "UNKNOWN" | "DEGRADED");
                format!(
                    "{}:{} {} {} {} {usable}",
                    address["address"].as_str().unwrap(),
                    address["port_value"],
                    host["weight"],
                    host["locality"]["zone"].as_str().unwrap_or("-"),
                    host["priority"].as_u64().unwrap_or(0),
                )
            })
            .collect();
        shown.sort();
        shown
    }
}
