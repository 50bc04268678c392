//! What frameworks' own clients register is read as they mean it. They are driven by `tests/clients/registrant`.

use crate::{
    following::Following,
    servers::{ConsulServer, EtcdServer, etcds, program},
};
use pillion::{
    config::{ConsulRegistry, EtcdRegistry, Layout},
    registry::{Consul, Etcd, Instance, Protocol, Registry},
};
use std::{process::Stdio, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
    time::timeout,
};

/// A framework's client that holds one registration.
struct Registrant {
    _child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

impl Registrant {
    async fn start(framework: &str, args: &[&str]) -> Self {
        let mut child = Command::new(program("registrant"))
            .args(["-framework", framework, "-service", "users", "-addr", "10.0.0.1:8000", "-check-interval", "0"])
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let input = child.stdin.take().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut registrant = Self { _child: child, input, output };
        registrant.says("registered").await;
        registrant
    }

    async fn says(&mut self, word: &str) {
        let line = timeout(Duration::from_secs(30), self.output.next_line()).await.expect("an answer in time");
        assert_eq!(line.unwrap().as_deref(), Some(word));
    }

    async fn tell(&mut self, line: &str, answer: &str) {
        self.input.write_all(format!("{line}\n").as_bytes()).await.unwrap();
        self.says(answer).await;
    }
}

/// Registers, changes the weight if the framework has one, and deregisters, while `registry` follows.
async fn lives<R: Registry>(
    registry: &Arc<R>,
    framework: &str,
    args: &[&str],
    first: &[&str],
    heavier: Option<&[&str]>,
    check: impl Fn(&Instance),
) {
    let mut users = Following::start(registry, "users");
    users.until_set(&[]).await;
    let mut registrant = Registrant::start(framework, args).await;
    users.until_set(first).await.iter().for_each(&check);
    if let Some(heavier) = heavier {
        registrant.tell("meta weight=20", "updated").await;
        users.until_set(heavier).await.iter().for_each(&check);
    }
    assert!(registry.clone().list().await.unwrap().contains(&"users".to_owned()));
    registrant.tell("deregister", "deregistered").await;
    users.until_set(&[]).await;
}

const META: [&str; 4] = ["-meta", "weight=10", "-id", "users-1"];

fn is_kratos(instance: &Instance) {
    let protocol = if instance.labels["scheme"] == "grpc" { Protocol::Http2 } else { Protocol::Http1 };
    assert_eq!((instance.protocol, instance.tls, instance.version()), (Some(protocol), Some(false), Some("v1.0.0")));
}

#[tokio::test]
async fn in_etcd() {
    for (version, binary) in etcds() {
        println!("etcd {version}");
        let etcd = EtcdServer::start(&binary).await;
        let port = format!("127.0.0.1:{}", etcd.port);
        let using = |layout| {
            let config = EtcdRegistry { endpoints: vec![etcd.url()], layout, ..EtcdRegistry::default() };
            Arc::new(Etcd::new("main", &config).unwrap())
        };
        let to_etcd = [&["-etcd", port.as_str()][..], &META].concat();

        let both = [&to_etcd[..], &["-scheme", "http,grpc"]].concat();
        let first = ["users-1/grpc 10.0.0.1:8000 10", "users-1/http 10.0.0.1:8000 10"];
        let heavier = ["users-1/grpc 10.0.0.1:8000 20", "users-1/http 10.0.0.1:8000 20"];
        lives(&using(Layout::Kratos), "kratos", &both, &first, Some(&heavier), is_kratos).await;

        let (first, heavier) = (["users-1 10.0.0.1:8000 10"], ["users-1 10.0.0.1:8000 20"]);
        let is_micro = |instance: &Instance| assert_eq!(instance.version(), Some("v1.0.0"));
        lives(&using(Layout::GoMicro), "go-micro", &to_etcd, &first, Some(&heavier), is_micro).await;

        let (first, heavier) = (["10.0.0.1:8000 10.0.0.1:8000 10"], ["10.0.0.1:8000 10.0.0.1:8000 20"]);
        let is_grpc = |instance: &Instance| assert_eq!(instance.protocol, Some(Protocol::Http2));
        lives(&using(Layout::Grpc), "grpc", &to_etcd, &first, Some(&heavier), is_grpc).await;

        let (plain, first) = (["-etcd", port.as_str()], ["10.0.0.1:8000 10.0.0.1:8000 100"]);
        lives(&using(Layout::GoZero), "go-zero", &plain, &first, None, |_| ()).await;
    }
}

#[tokio::test]
async fn in_consul() {
    let consul = ConsulServer::start().await;
    let port = format!("127.0.0.1:{}", consul.port);
    let config = ConsulRegistry { address: format!("http://{port}"), ..ConsulRegistry::default() };
    let registry = Arc::new(Consul::new("main", &config).unwrap());
    let to_consul = [&["-consul", port.as_str()][..], &META].concat();

    let both = [&to_consul[..], &["-scheme", "http,grpc"]].concat();
    let first = ["n1/users-1/grpc 10.0.0.1:8000 10", "n1/users-1/http 10.0.0.1:8000 10"];
    let heavier = ["n1/users-1/grpc 10.0.0.1:8000 20", "n1/users-1/http 10.0.0.1:8000 20"];
    lives(&registry, "kratos", &both, &first, Some(&heavier), is_kratos).await;

    // go-micro has no weights of Consul's; what it has among its metadata stays a label.
    let is_micro = |instance: &Instance| {
        assert_eq!((instance.version(), instance.labels["weight"].as_str()), (Some("v1.0.0"), "10"));
        assert!(instance.labels.keys().all(|label| !label.starts_with("tag.")), "{:?}", instance.labels);
    };
    lives(&registry, "go-micro", &to_consul, &["n1/users-1 10.0.0.1:8000 1"], None, is_micro).await;
}
