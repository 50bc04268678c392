//! Kubernetes' API server over an etcd of its own, without anything else of a cluster: tests write what controllers would.

use super::{Certificates, EtcdServer, Process, free_port, program};
use bytes::Bytes;
use http::{Method, Request, StatusCode, header::AUTHORIZATION};
use http_body_util::{BodyExt, Full};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use pillion::{config::Tls, net::tls};
use serde_json::{Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};
use tempfile::TempDir;

/// May do everything.
pub const ADMIN: &str = "admin-token";
/// With RBAC it may do what a test allows it.
pub const READER: &str = "reader-token";
pub const NAMESPACE: &str = "shop";

/// Admission and its like need a whole cluster, and make the start slow. A test may leave out others.
pub const WITHOUT: &str = "NamespaceLifecycle,LimitRanger,ServiceAccount,TaintNodesByCondition,PodSecurity,Priority,\
DefaultTolerationSeconds,DefaultStorageClass,StorageObjectInUseProtection,PersistentVolumeClaimResize,RuntimeClass,\
CertificateApproval,CertificateSigning,ClusterTrustBundleAttest,CertificateSubjectRestriction,DefaultIngressClass,\
PodTopologyLabels,MutatingAdmissionPolicy,MutatingAdmissionWebhook,ValidatingAdmissionPolicy,ValidatingAdmissionWebhook,\
ResourceQuota";

/// One API server.
pub struct KubernetesServer {
    etcd: EtcdServer,
    dir: TempDir,
    pub port: u16,
    args: Vec<String>,
    process: Process,
    client: ApiClient,
}

/// A client of its own, that shares nothing with what is tested.
#[derive(Clone)]
struct ApiClient {
    port: u16,
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
}

impl KubernetesServer {
    /// One that allows everything to everybody with a token.
    pub async fn start() -> Self {
        Self::start_with(&["--authorization-mode=AlwaysAllow"]).await
    }

    pub async fn start_with(args: &[&str]) -> Self {
        let etcd = EtcdServer::start(&program("etcd")).await;
        let dir = TempDir::new().unwrap();
        Certificates::make(dir.path());
        let tokens = format!("{ADMIN},admin,1,\"system:masters\"\n{READER},reader,2\n");
        fs::write(dir.path().join("tokens.csv"), tokens).unwrap();
        let port = free_port();
        let args: Vec<_> = args.iter().map(ToString::to_string).collect();
        let process = spawn(dir.path(), &etcd, port, &args);
        let client = ApiClient::new(port, &dir.path().join("ca.pem"));
        let mut server = Self { etcd, dir, port, args, process, client };
        server.ready().await;
        server
    }

    /// Another API server of the same cluster, on a port of its own.
    pub async fn another(&self) -> (u16, Process) {
        let port = free_port();
        let mut process = spawn(self.dir.path(), &self.etcd, port, &self.args);
        let client = ApiClient::new(port, &self.path("ca.pem"));
        process.until(async || client.is_ready().await).await;
        (port, process)
    }

    async fn ready(&mut self) {
        let client = self.client.clone();
        self.process.until(async || client.is_ready().await).await;
    }

    /// A file beside it: `ca.pem`, `client.pem`, `client.key`, `stranger.pem`.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// On the same port, with the data that it had.
    pub async fn restart(&mut self) {
        self.process.kill();
        self.process = spawn(self.dir.path(), &self.etcd, self.port, &self.args);
        self.ready().await;
    }

    /// On the same port, as a new cluster whose versions start again.
    pub async fn restart_empty(&mut self) {
        self.process.kill();
        self.etcd.restart_empty().await;
        self.restart().await;
    }

    /// Panics with what the server says if it does not like it.
    pub async fn send(&self, method: Method, path: &str, body: &Value) -> Value {
        let (status, text) = self.client.send(&method, path, body).await.expect("the API server answers");
        assert!(status.is_success(), "{method} {path}: {status} {text}");
        serde_json::from_str(&text).unwrap()
    }

    /// Creates the slice, or replaces it.
    pub async fn put(&self, slice: &Value) {
        let path = format!("{}/{}", slices(), slice["metadata"]["name"].as_str().unwrap());
        let (status, text) = self.client.send(&Method::PUT, &path, slice).await.expect("the API server answers");
        if status == StatusCode::NOT_FOUND {
            self.send(Method::POST, &slices(), slice).await;
        } else {
            assert!(status.is_success(), "{path}: {status} {text}");
        }
    }

    pub async fn delete(&self, name: &str) {
        self.send(Method::DELETE, &format!("{}/{name}", slices()), &Value::Null).await;
    }

    /// Runs Kubernetes' own client, in [`NAMESPACE`].
    pub fn kubectl(&self, args: &[&str]) -> String {
        let output = Command::new(program("kubectl"))
            // A cache of its own, and nobody's settings.
            .env("HOME", self.dir.path())
            .env_remove("KUBECONFIG")
            .args(["--server", &self.url(), "--token", ADMIN, "--namespace", NAMESPACE, "--certificate-authority"])
            .arg(self.path("ca.pem"))
            .args(args)
            .output()
            .unwrap();
        assert!(output.status.success(), "kubectl {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Gives [`READER`] rights in [`NAMESPACE`], where it has none with `--authorization-mode=RBAC`.
    pub async fn allow(&self, role: &str, rules: Value) {
        let rbac = format!("/apis/rbac.authorization.k8s.io/v1/namespaces/{NAMESPACE}");
        let metadata = json!({"name": role});
        self.send(Method::POST, &format!("{rbac}/roles"), &json!({"metadata": metadata, "rules": rules})).await;
        let binding = json!({
            "metadata": metadata, "subjects": [{"kind": "User", "name": "reader"}],
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": role},
        });
        self.send(Method::POST, &format!("{rbac}/rolebindings"), &binding).await;
    }

    /// The sum of a metric over all its series that contain these words.
    pub async fn metric(&self, name: &str, words: &[&str]) -> f64 {
        let (_, text) = self.client.send(&Method::GET, "/metrics", &Value::Null).await.expect("the API server answers");
        let series = text.lines().filter(|line| line.starts_with(&format!("{name}{{")));
        let series = series.filter(|line| words.iter().all(|word| line.contains(word)));
        series.map(|line| line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap()).sum()
    }

    /// How many watches of slices clients have.
    pub async fn watches(&self) -> usize {
        // Its own is of the whole cluster.
        let words = [r#"resource="endpointslices""#, r#"verb="WATCH""#, r#"scope="namespace""#];
        self.metric("apiserver_longrunning_requests", &words).await as usize
    }
}

/// Where the slices of [`NAMESPACE`] are.
pub fn slices() -> String {
    format!("/apis/discovery.k8s.io/v1/namespaces/{NAMESPACE}/endpointslices")
}

/// A slice of a service, as its controller would write it.
pub fn slice(service: &str, name: &str, endpoints: Value) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": name, "labels": {
            "kubernetes.io/service-name": service,
            "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
        }},
        "addressType": "IPv4",
        "endpoints": endpoints,
        "ports": [{"name": "http", "protocol": "TCP", "port": 80}],
    })
}

impl ApiClient {
    fn new(port: u16, ca: &Path) -> Self {
        let tls = tls::client_config(&Tls { ca: Some(ca.into()), ..Tls::default() }, &[]).unwrap();
        let connector = HttpsConnectorBuilder::new().with_tls_config(tls).https_only().enable_http1().build();
        Self { port, client: Client::builder(TokioExecutor::new()).build(connector) }
    }

    /// `None` if there was no answer at all.
    async fn send(&self, method: &Method, path: &str, body: &Value) -> Option<(StatusCode, String)> {
        let request = Request::builder()
            .method(method)
            .uri(format!("https://127.0.0.1:{}{path}", self.port))
            .header(AUTHORIZATION, format!("Bearer {ADMIN}"))
            .header("content-type", "application/json")
            .body(Full::from(if body.is_null() { String::new() } else { body.to_string() }))
            .unwrap();
        let answer = self.client.request(request).await.ok()?;
        let status = answer.status();
        let body = answer.into_body().collect().await.ok()?.to_bytes();
        Some((status, String::from_utf8_lossy(&body).into_owned()))
    }

    async fn is_ready(&self) -> bool {
        let answer = self.send(&Method::GET, "/readyz", &Value::Null).await;
        answer.is_some_and(|(status, _)| status.is_success())
    }
}

fn spawn(dir: &Path, etcd: &EtcdServer, port: u16, args: &[String]) -> Process {
    let file = |name: &str| dir.join(name).display().to_string();
    let mut command = Command::new(program("kube-apiserver"));
    command
        .args([
            "--bind-address=127.0.0.1",
            "--endpoint-reconciler-type=none",
            "--service-cluster-ip-range=10.96.0.0/16",
        ])
        .args(["--anonymous-auth=false", "--profiling=false", "--service-account-issuer=https://localhost"])
        .arg(format!("--secure-port={port}"))
        .arg(format!("--etcd-servers={}", etcd.url()))
        .arg(format!("--cert-dir={}", file("certs")))
        .arg(format!("--tls-cert-file={}", file("server.pem")))
        .arg(format!("--tls-private-key-file={}", file("server.key")))
        .arg(format!("--client-ca-file={}", file("ca.pem")))
        .arg(format!("--token-auth-file={}", file("tokens.csv")))
        .arg(format!("--service-account-key-file={}", file("server.pem")))
        .arg(format!("--service-account-signing-key-file={}", file("server.key")))
        .args(args);
    if !args.iter().any(|arg| arg.starts_with("--disable-admission-plugins=")) {
        command.arg(format!("--disable-admission-plugins={WITHOUT}"));
    }
    Process::start(command, &dir.join("log"))
}
