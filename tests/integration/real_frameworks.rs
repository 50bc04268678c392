//! What frameworks' own clients register is read as they mean it. They are driven by `tests/clients/registrant` and, those
//! in Java, `tests/clients/registrant-curator` and `tests/clients/registrant-eureka`.

use crate::{
    following::Following,
    servers::{
        ConsulServer, EtcdServer, EurekaServer, NACOS_VERSIONS, NacosServer, etcds, program,
        zookeeper::{ZOOKEEPERS, ZookeeperServer},
    },
};
use pillion::{
    config::{ConsulRegistry, EtcdRegistry, EurekaRegistry, Layout, NacosRegistry, NacosTransport, ZookeeperRegistry},
    registry::{Consul, Etcd, Eureka, Instance, Nacos, Protocol, Registry, Zookeeper},
};
use std::{process::Stdio, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
    time::timeout,
};

/// Far more than anything should take; only a failing test waits so long.
const PATIENCE: Duration = Duration::from_secs(120);

/// The frameworks that are written in Java.
const JAVA: [&str; 4] = ["curator", "spring", "dubbo", "dubbo-app"];

/// A framework's client that holds one registration.
struct Registrant {
    child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

impl Registrant {
    async fn start(framework: &str, args: &[&str]) -> Self {
        let (name, more): (_, &[&str]) = match framework {
            _ if JAVA.contains(&framework) => ("registrant-curator", &[]),
            "eureka-client" => ("registrant-eureka", &[]),
            _ => ("registrant", &["-check-interval", "0"]),
        };
        let common = ["-framework", framework, "-service", "users", "-addr", "10.0.0.1:8000"];
        Self::start_program(name, &[&common, more, args].concat()).await
    }

    async fn start_program(name: &str, args: &[&str]) -> Self {
        let mut child = Command::new(program(name))
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let input = child.stdin.take().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut registrant = Self { child, input, output };
        registrant.says("registered").await;
        registrant
    }

    async fn says(&mut self, word: &str) {
        let line = timeout(PATIENCE, self.output.next_line()).await.expect("an answer in time");
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
    // In capitals in Eureka.
    assert!(registry.clone().list().await.unwrap().iter().any(|name| name.eq_ignore_ascii_case("users")));
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

#[tokio::test]
async fn in_zookeeper() {
    let server = ZookeeperServer::start(ZOOKEEPERS[0]).await;
    let address = server.address();
    let using = |layout| {
        let config = ZookeeperRegistry { endpoints: vec![address.clone()], layout, ..ZookeeperRegistry::default() };
        Arc::new(Zookeeper::new("main", &config).unwrap())
    };
    let with_id = [&["-zookeeper", address.as_str()][..], &META].concat();
    let (plain_first, plain_heavier) = (["users-1 10.0.0.1:8000 10"], ["users-1 10.0.0.1:8000 20"]);

    let both = [&with_id[..], &["-scheme", "http,grpc"]].concat();
    let first = ["users-1/grpc 10.0.0.1:8000 10", "users-1/http 10.0.0.1:8000 10"];
    let heavier = ["users-1/grpc 10.0.0.1:8000 20", "users-1/http 10.0.0.1:8000 20"];
    lives(&using(Layout::Kratos), "kratos", &both, &first, Some(&heavier), is_kratos).await;

    let is_micro = |instance: &Instance| assert_eq!(instance.version(), Some("v1.0.0"));
    lives(&using(Layout::GoMicro), "go-micro", &with_id, &plain_first, Some(&plain_heavier), is_micro).await;

    // A payload of its own: its fields are labels, without the name of its class.
    let is_curator = |instance: &Instance| {
        assert_eq!((instance.tls, instance.healthy), (Some(false), true));
        assert_eq!(instance.labels.keys().collect::<Vec<_>>(), ["weight"]);
    };
    lives(&using(Layout::Curator), "curator", &with_id, &plain_first, Some(&plain_heavier), is_curator).await;

    let secure = [&with_id[..], &["-ssl-port", "8443"]].concat();
    let (first, heavier) = (["users-1 10.0.0.1:8443 10"], ["users-1 10.0.0.1:8443 20"]);
    let is_spring = |instance: &Instance| {
        assert_eq!((instance.tls, instance.labels["instance_status"].as_str()), (Some(true), "UP"));
    };
    lives(&using(Layout::Curator), "spring", &secure, &first, Some(&heavier), is_spring).await;

    let without_id = &with_id[..with_id.len() - 2];
    let first = ["10.0.0.1:8000/dubbo 10.0.0.1:8000 10", "10.0.0.1:8000/tri 10.0.0.1:8001 10"];
    let heavier = ["10.0.0.1:8000/dubbo 10.0.0.1:8000 20", "10.0.0.1:8000/tri 10.0.0.1:8001 20"];
    let is_app = |instance: &Instance| {
        let protocol = (instance.labels["protocol"] == "tri").then_some(Protocol::Http2);
        assert_eq!(instance.protocol, protocol);
    };
    lives(&using(Layout::Curator), "dubbo-app", without_id, &first, Some(&heavier), is_app).await;

    let triple = [without_id, &["-protocol", "tri"]].concat();
    let (first, heavier) = (["tri://10.0.0.1:8000 10.0.0.1:8000 10"], ["tri://10.0.0.1:8000 10.0.0.1:8000 20"]);
    let is_triple = |instance: &Instance| {
        assert_eq!((instance.protocol, instance.labels["application"].as_str()), (Some(Protocol::Http2), "demo"));
    };
    lives(&using(Layout::Dubbo), "dubbo", &triple, &first, Some(&heavier), is_triple).await;
}

/// What a framework withdraws without deregistering it, and an id that it makes up.
#[tokio::test]
async fn withdrawn_in_zookeeper() {
    let server = ZookeeperServer::start(ZOOKEEPERS[0]).await;
    let address = server.address();
    for (layout, framework, withdraw) in [
        (Layout::Curator, "spring", "meta instance_status=OUT_OF_SERVICE"),
        (Layout::Dubbo, "dubbo", "meta disabled=true"),
    ] {
        let config = ZookeeperRegistry { endpoints: vec![address.clone()], layout, ..ZookeeperRegistry::default() };
        let mut users = Following::start(&Arc::new(Zookeeper::new("main", &config).unwrap()), "users");
        let mut registrant = Registrant::start(framework, &["-zookeeper", &address]).await;
        let one = |fit: bool| {
            move |seen: &pillion::registry::Observation| {
                seen.instances.as_ref().is_some_and(|set| set.len() == 1 && set[0].healthy == fit)
            }
        };
        users.until("a fit one", one(true)).await;
        registrant.tell(withdraw, "updated").await;
        users.until("an unfit one", one(false)).await;
        registrant.tell("meta weight=100", "updated").await;
        users.until("a fit one", one(true)).await;
    }
}

#[tokio::test]
async fn in_eureka() {
    let eureka = EurekaServer::start().await;
    let config = EurekaRegistry {
        servers: vec![eureka.url()],
        interval: Duration::from_millis(200),
        ..EurekaRegistry::default()
    };
    let registry = Arc::new(Eureka::new("main", &config).unwrap());
    let url = eureka.url();
    let to_eureka =
        [&["-eureka", url.as_str()][..], &META, &["-meta", "version=v1.0.0", "-meta", "zone=az-1"]].concat();
    let is_in_zone = |zone: &'static str| move |instance: &Instance| assert_eq!(instance.zone.as_deref(), Some(zone));

    // Netflix's own client.
    let (first, heavier) = (["users-1 10.0.0.1:8000 10"], ["users-1 10.0.0.1:8000 20"]);
    let is_java = |instance: &Instance| {
        is_in_zone("az-1")(instance);
        assert_eq!((instance.tls, instance.version()), (Some(false), Some("v1.0.0")));
    };
    lives(&registry, "eureka-client", &to_eureka, &first, Some(&heavier), is_java).await;
    let secure = [&to_eureka[..], &["-secure-port", "8443"]].concat();
    let is_secure = |instance: &Instance| assert_eq!(instance.tls, Some(true));
    lives(&registry, "eureka-client", &secure, &["users-1 10.0.0.1:8443 10"], None, is_secure).await;

    // The one of go-kit, Kitex and Hertz.
    lives(&registry, "fargo", &[&to_eureka[..], &["-scheme", "http"]].concat(), &first, None, is_java).await;
    let amazon = [&["-eureka", url.as_str(), "-aws-zone", "us-east-1c"][..], &META].concat();
    lives(&registry, "fargo", &amazon, &first, Some(&heavier), is_in_zone("us-east-1c")).await;

    // What the application says of its own health, and what an operator says over it.
    let mut users = Following::start(&registry, "users");
    users.until_set(&[]).await;
    let mut registrant = Registrant::start("eureka-client", &to_eureka).await;
    users.until_set(&first).await;
    for down in ["DOWN", "STARTING"] {
        registrant.tell(&format!("status {down}"), "updated").await;
        users.until_set(&[]).await;
        registrant.tell("status UP", "updated").await;
        users.until_set(&first).await;
    }
    eureka.set_status("users", "users-1", "OUT_OF_SERVICE").await;
    users.until_set(&[]).await;
    // Its application does not know, and renews as before.
    registrant.tell("meta weight=20", "updated").await;
    eureka.clear_status("users", "users-1").await;
    users.until_set(&heavier).await;
    registrant.tell("deregister", "deregistered").await;
    users.until_set(&[]).await;
}

#[tokio::test]
async fn spring_cloud_in_eureka() {
    // The server is an application of Spring Cloud as well, which registers with itself.
    let eureka = EurekaServer::start_with(&[
        "--eureka.client.register-with-eureka=true",
        "--spring.application.name=user-service",
        "--eureka.instance.ip-address=10.0.0.7",
        "--eureka.instance.metadata-map.zone=az-1",
        "--eureka.instance.metadata-map.version=v2",
    ])
    .await;
    let config = EurekaRegistry {
        servers: vec![eureka.url()],
        interval: Duration::from_millis(200),
        ..EurekaRegistry::default()
    };
    let registry = Arc::new(Eureka::new("main", &config).unwrap());
    let mut users = Following::start(&registry, "user-service");
    let seen =
        users.until("Spring's instance", |seen| seen.instances.as_ref().is_some_and(|set| !set.is_empty())).await;
    let set = seen.instances.unwrap();
    let (instance, port) = (&set[0], eureka.port);
    assert_eq!((set.len(), instance.address.to_string()), (1, format!("10.0.0.7:{port}")));
    assert!(instance.id.ends_with(&format!(":user-service:{port}")), "{}", instance.id);
    assert_eq!((instance.zone.as_deref(), instance.version(), instance.tls), (Some("az-1"), Some("v2"), Some(false)));
    assert_eq!(instance.labels["management.port"], port.to_string());
}

#[tokio::test]
async fn in_nacos() {
    for version in NACOS_VERSIONS {
        println!("{version}");
        let nacos = NacosServer::start(version).await;
        let port = format!("127.0.0.1:{}", nacos.port);
        let config =
            NacosRegistry { servers: vec![nacos.url()], transport: NacosTransport::Grpc, ..NacosRegistry::default() };
        let registry = Arc::new(Nacos::new("main", &config).unwrap());

        // Nacos' own client for Go.
        let go = ["-nacos", port.as_str(), "-meta", "weight=10", "-meta", "zone=az-1"];
        let (first, heavier) = (["10.0.0.1:8000 10.0.0.1:8000 1000"], ["10.0.0.1:8000 10.0.0.1:8000 2000"]);
        lives(&registry, "nacos", &go, &first, Some(&heavier), |instance| {
            assert_eq!(instance.version(), Some("v1.0.0"));
        })
        .await;

        // And the one for Java.
        let mut users = Following::start(&registry, "users");
        users.until_set(&[]).await;
        let java = ["-nacos", &port, "-service", "users", "-addr", "10.0.0.1:8000", "-weight", "0.5", "-cluster", "c1"];
        let java = [&java[..], &["-meta", "version=v2", "-meta", "gRPC_port=9000"]].concat();
        let mut registrant = Registrant::start_program("registrant-nacos", &java).await;
        let both = ["c1/10.0.0.1:8000/grpc 10.0.0.1:9000 50", "c1/10.0.0.1:8000/http 10.0.0.1:8000 50"];
        let set = users.until_set(&both).await;
        assert_eq!((set[0].protocol, set[0].version()), (Some(Protocol::Http2), Some("v2")));
        assert_eq!((set[1].zone.as_deref(), set[1].labels["gRPC_port"].as_str()), (Some("c1"), "9000"));
        registrant.tell("meta version=v3", "updated").await;
        let set = users.until_set(&["c1/10.0.0.1:8000 10.0.0.1:8000 50"]).await;
        assert_eq!(set[0].version(), Some("v3"));
        registrant.tell("weight 2", "updated").await;
        let heavier = ["c1/10.0.0.1:8000 10.0.0.1:8000 200"];
        users.until_set(&heavier).await;
        registrant.tell("enabled false", "updated").await;
        users.until_set(&[]).await;
        registrant.tell("enabled true", "updated").await;
        users.until_set(&heavier).await;
        // Its instance lives as long as its connection.
        registrant.child.kill().await.unwrap();
        users.until_set(&[]).await;
    }
}

#[tokio::test]
async fn of_kratos_in_nacos() {
    for version in NACOS_VERSIONS {
        println!("{version}");
        let nacos = NacosServer::start(version).await;
        let port = format!("127.0.0.1:{}", nacos.port);
        let config =
            NacosRegistry { servers: vec![nacos.url()], transport: NacosTransport::Grpc, ..NacosRegistry::default() };
        let registry = Arc::new(Nacos::new("main", &config).unwrap());
        // Each server of the process is a service of its own.
        let mut http = Following::start(&registry, "users.http");
        let mut grpc = Following::start(&registry, "users.grpc");
        let mut registrant = Registrant::start("kratos", &["-nacos", &port, "-scheme", "http,grpc"]).await;
        let one = ["10.0.0.1:8000 10.0.0.1:8000 10000"];
        for (users, protocol, scheme) in [(&mut http, Protocol::Http1, "http"), (&mut grpc, Protocol::Http2, "grpc")] {
            let set = users.until_set(&one).await;
            assert_eq!((set[0].protocol, set[0].version()), (Some(protocol), Some("v1.0.0")));
            assert_eq!((set[0].labels["scheme"].as_str(), set[0].healthy), (scheme, true));
        }
        // The client beats over HTTP: without that its instance becomes unhealthy, and is gone in the end.
        registrant.child.kill().await.unwrap();
        http.until("an unhealthy one", |seen| seen.instances.as_ref().is_some_and(|set| !set[0].healthy)).await;
        http.until_set(&[]).await;
    }
}
