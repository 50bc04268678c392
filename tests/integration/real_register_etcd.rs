//! What pillion registers in real etcds.

use crate::{
    consumers::Consumer,
    programs::Server,
    registering::{
        App, LONG, Place, Registering, SERVICE, follows_the_application, is_deployed_under_load, is_put_again,
        outlives_a_kill, refuses_a_clash, until_failing, until_state,
    },
    servers::{EtcdServer, etcds},
};
use std::time::Duration;

/// On a busy machine nobody may come round to renew a shorter lease in time.
const TTL: Duration = Duration::from_secs(6);

struct Etcd {
    server: EtcdServer,
    layout: &'static str,
    prefix: &'static str,
}

/// Each layout with the key that all of [`SERVICE`] begin with.
const LAYOUTS: [(&str, &str); 5] = [
    ("plain", "/pillion/users/"),
    ("kratos", "/microservices/users/"),
    ("go-micro", "/micro/registry/users/"),
    ("go-zero", "users/"),
    ("grpc", "users/"),
];

impl Etcd {
    async fn start((layout, prefix): (&'static str, &'static str)) -> Self {
        let (_, newest) = etcds().pop_last().unwrap();
        Self { server: EtcdServer::start(&newest).await, layout, prefix }
    }

    /// The lease that pillion has there.
    async fn lease(&self) -> String {
        loop {
            let leases = self.server.etcdctl(&["lease", "list"]);
            match leases.lines().find(|line| !line.contains("found") && !line.is_empty()) {
                Some(lease) => return lease.trim().to_owned(),
                None => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }
}

impl Place for Etcd {
    fn settings(&self) -> String {
        format!("kind: etcd, endpoints: [\"{}\"], layout: {}", self.server.url(), self.layout)
    }

    async fn addresses(&self) -> Vec<String> {
        let address = |value: &str| {
            let from = value.find("127.0.0.1:").unwrap_or_else(|| panic!("no address in {value}"));
            let end = value[from + 10..].find(|c: char| !c.is_ascii_digit());
            value[from..end.map_or(value.len(), |end| from + 10 + end)].to_owned()
        };
        self.server.values(self.prefix).await.iter().map(|(_, value)| address(value)).collect()
    }
}

#[tokio::test]
async fn the_application_comes_and_goes_in_every_layout() {
    for layout in LAYOUTS {
        println!("{}", layout.0);
        follows_the_application(&Etcd::start(layout).await, LONG).await;
    }
}

#[tokio::test]
async fn pillion_is_killed_in_every_layout() {
    for layout in LAYOUTS {
        println!("{}", layout.0);
        outlives_a_kill(&Etcd::start(layout).await, TTL, TTL).await;
    }
}

#[tokio::test]
async fn a_taken_place_is_left_alone() {
    // In go-zero's layout nobody has a place of his own.
    for layout in LAYOUTS.into_iter().filter(|(layout, _)| *layout != "go-zero") {
        println!("{}", layout.0);
        refuses_a_clash(&Etcd::start(layout).await, TTL).await;
    }
}

#[tokio::test]
async fn what_is_lost_is_put_again_in_every_layout() {
    for layout in LAYOUTS {
        let mut etcd = Etcd::start(layout).await;
        println!("{}: somebody deletes it", layout.0);
        is_put_again(&mut etcd, TTL, async |etcd| {
            let values = etcd.server.values(etcd.prefix).await;
            etcd.server.delete(&values[0].0).await;
        })
        .await;
        println!("{}: somebody revokes its lease", layout.0);
        is_put_again(&mut etcd, TTL, async |etcd| {
            etcd.server.etcdctl(&["lease", "revoke", &etcd.lease().await]);
        })
        .await;
    }
    let mut etcd = Etcd::start(LAYOUTS[1]).await;
    println!("etcd is started again without its data");
    is_put_again(&mut etcd, TTL, async |etcd| etcd.server.restart_empty().await).await;
    println!("etcd is started again with its data");
    is_put_again(&mut etcd, TTL, async |etcd| etcd.server.restart().await).await;
}

#[tokio::test]
async fn frameworks_own_clients_call_it() {
    for (layout, framework) in [(LAYOUTS[1], "kratos"), (LAYOUTS[2], "go-micro")] {
        println!("{framework}");
        let (etcd, app) = (Etcd::start(layout).await, App::started().await);
        let pillion = Registering::new(&app, TTL).with("protocol: http1, version: v1").registered(&etcd).await;
        let port = format!("127.0.0.1:{}", etcd.server.port);
        let mut consumer = Consumer::start(framework, &["-etcd", &port, "-service", SERVICE]).await;
        consumer.until_called(&format!("{} 200", app.address)).await;
        pillion.stop().await;
        // That both keep the last instance that they know when there is none any more is theirs.
    }
    for (layout, framework) in [(LAYOUTS[1], "kratos-grpc"), (LAYOUTS[3], "go-zero"), (LAYOUTS[4], "grpc")] {
        println!("{framework}");
        let (etcd, server) = (Etcd::start(layout).await, Server::start("grpc-echo-server", &[]).await);
        let registering = Registering { address: server.address, ttl: TTL, more: String::new() };
        let pillion = registering.with("protocol: http2").registered(&etcd).await;
        let port = format!("127.0.0.1:{}", etcd.server.port);
        let mut consumer = Consumer::start(framework, &["-etcd", &port, "-service", SERVICE]).await;
        consumer.until_called("SERVING").await;
        pillion.stop().await;
    }
}

#[tokio::test]
async fn what_is_missing_of_its_rights_is_said() {
    let etcd = Etcd::start(LAYOUTS[0]).await;
    let app = App::started().await;
    for line in [
        &["user", "add", "root:secret"][..],
        &["user", "grant-role", "root", "root"],
        &["role", "add", "reader"],
        &["role", "grant-permission", "reader", "--prefix=true", "read", "/pillion/"],
        &["user", "add", "pillion:secret"],
        &["user", "grant-role", "pillion", "reader"],
        &["auth", "enable"],
    ] {
        etcd.server.etcdctl(line);
    }
    struct Secured<'a>(&'a Etcd);
    impl Place for Secured<'_> {
        fn settings(&self) -> String {
            format!("{}, user: pillion, password: secret", self.0.settings())
        }

        async fn addresses(&self) -> Vec<String> {
            let root = ["--user=root:secret", "get", "--prefix", "--print-value-only", "/pillion/users/"];
            self.0.server.etcdctl(&root).lines().filter(|line| !line.is_empty()).map(ToOwned::to_owned).collect()
        }
    }
    let secured = Secured(&etcd);
    let pillion = Registering::new(&app, TTL).start(&secured).await;
    until_failing(&pillion, "expected the right to read and write what begins with `/pillion/users/`").await;
    etcd.server.etcdctl(&[
        "--user=root:secret",
        "role",
        "grant-permission",
        "reader",
        "--prefix=true",
        "readwrite",
        "/pillion/",
    ]);
    until_state(&pillion, "registered").await;
    assert_eq!(secured.addresses().await.len(), 1);
    pillion.stop().await;
    assert_eq!(secured.addresses().await.len(), 0);
}

#[tokio::test]
async fn a_rolling_deployment_fails_no_request() {
    is_deployed_under_load(&Etcd::start(LAYOUTS[0]).await, TTL).await;
}
