//! What pillion registers in real ZooKeepers.

use crate::{
    consumers::Consumer,
    e2e::soon,
    pillion::Setup,
    registering::{
        App, LONG, Place, Registering, SERVICE, follows_the_application, is_deployed_under_load, is_put_again,
        outlives_a_kill, refuses_a_clash, until_failing, until_state,
    },
    servers::zookeeper::{ZOOKEEPERS, ZookeeperServer},
};
use std::time::Duration;
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
};

/// The session's timeout, which is how long an entry lasts. On a busy machine nobody may come round to say something within a
/// shorter one.
const TTL: Duration = Duration::from_secs(6);

struct Zookeeper {
    server: ZookeeperServer,
    layout: &'static str,
    above: String,
    session: Duration,
    /// Whoever asks here is told of all addresses.
    asks: Asks,
    looking: JoinHandle<()>,
}

impl Drop for Zookeeper {
    fn drop(&mut self) {
        self.looking.abort();
    }
}

/// Each layout with the node that all of [`SERVICE`] are below.
const LAYOUTS: [(&str, &str); 5] = [
    ("plain", "/pillion/users"),
    ("kratos", "/microservices/users"),
    ("go-micro", "/micro-registry/users"),
    ("curator", "/services/users"),
    ("dubbo", "/dubbo/users/providers"),
];

impl Zookeeper {
    async fn start(version: &str, (layout, above): (&'static str, &str)) -> Self {
        let server = ZookeeperServer::start_with(version, |_| "maxSessionTimeout=40000\n".into()).await;
        let (asks, looking) = look(&server, above).await;
        Self { server, layout, above: above.into(), session: TTL, asks, looking }
    }

    /// Starts the server again with nothing in it, where a client that has seen more is refused for ever.
    async fn restart_empty(&mut self) {
        self.server.restart_empty().await;
        self.looking.abort();
        (self.asks, self.looking) = look(&self.server, &self.above).await;
    }
}

type Asks = mpsc::UnboundedSender<oneshot::Sender<Vec<String>>>;

/// Looks below a node for whoever asks.
async fn look(server: &ZookeeperServer, node: &str) -> (Asks, JoinHandle<()>) {
    let (mut client, node) = (server.client().await, node.to_owned());
    let (asks, mut taken) = mpsc::unbounded_channel::<oneshot::Sender<Vec<String>>>();
    let looking = tokio::spawn(async move {
        while let Some(ask) = taken.recv().await {
            let listed = client.run(&format!("ls {node}")).await;
            let names = listed.iter().find_map(|line| line.strip_prefix('[')?.strip_suffix(']'));
            let mut all = Vec::new();
            for name in names.unwrap_or_default().split(", ").filter(|name| !name.is_empty()) {
                // The name may say it, or the value, or the node may be gone by now.
                let text = format!("{name}\n{}", client.run(&format!("get {node}/{name}")).await.join("\n"));
                all.extend(address(&text));
            }
            let _ = ask.send(all);
        }
    });
    (asks, looking)
}

/// The first address in what a layout writes.
fn address(text: &str) -> Option<String> {
    let text = text.replace("%3A", ":").replace(r#"","port":"#, ":");
    let from = text.find("127.0.0.1:")?;
    let end = text[from + 10..].find(|c: char| !c.is_ascii_digit());
    Some(text[from..end.map_or(text.len(), |end| from + 10 + end)].to_owned())
}

impl Place for Zookeeper {
    fn settings(&self) -> String {
        let ttl = self.session.as_millis();
        let (address, layout) = (self.server.address(), self.layout);
        format!("kind: zookeeper, endpoints: [\"{address}\"], layout: {layout}, session_timeout: {ttl}ms")
    }

    async fn addresses(&self) -> Vec<String> {
        let (ask, answer) = oneshot::channel();
        self.asks.send(ask).unwrap();
        soon("the command line", answer).await.unwrap()
    }
}

#[tokio::test]
async fn the_application_comes_and_goes_in_every_layout() {
    for layout in LAYOUTS {
        println!("{}", layout.0);
        let mut zookeeper = Zookeeper::start(ZOOKEEPERS[0], layout).await;
        zookeeper.session = LONG;
        follows_the_application(&zookeeper, LONG).await;
    }
}

#[tokio::test]
async fn pillion_is_killed() {
    for (version, layout) in [(0, LAYOUTS[0]), (2, LAYOUTS[1]), (0, LAYOUTS[3]), (0, LAYOUTS[4])] {
        println!("{} {}", ZOOKEEPERS[version], layout.0);
        outlives_a_kill(&Zookeeper::start(ZOOKEEPERS[version], layout).await, TTL, TTL).await;
    }
}

#[tokio::test]
async fn a_taken_place_is_left_alone() {
    for layout in [LAYOUTS[0], LAYOUTS[3]] {
        println!("{}", layout.0);
        refuses_a_clash(&Zookeeper::start(ZOOKEEPERS[0], layout).await, TTL).await;
    }
}

#[tokio::test]
async fn what_a_user_registers_is_for_that_user_alone() {
    for version in ZOOKEEPERS {
        println!("{version}");
        let (server, app) = (ZookeeperServer::start(version).await, App::started().await);
        let (mut user, mut stranger) = (server.client().await, server.client().await);
        user.run("addauth digest web:hunter2").await;
        let start = async |password: &str, id: &str| {
            let address = server.address();
            let registry = format!("kind: zookeeper, endpoints: [\"{address}\"], user: web, password: {password}");
            let entry = format!(
                "service: {SERVICE}, id: {id}, registry: real, address: 127.0.0.1, port: {}, health: {{ interval: 300ms }}",
                app.address.port()
            );
            Setup::default().registry("real", &registry).register(&entry).start().await
        };
        let pillion = start("hunter2", "one").await;
        until_state(&pillion, "registered").await;
        let node = "/pillion/users/one";
        for path in [node, "/pillion/users"] {
            let acl = user.run(&format!("getAcl {path}")).await.join(" ");
            assert!(acl.contains("'digest,'web:") && acl.contains(": cdrwa"), "{path}: {acl}");
            assert!(!acl.contains("'world"), "{path}: {acl}");
        }
        let place = app.address.to_string();
        assert!(user.run(&format!("get {node}")).await.join(" ").contains(&place));
        assert!(!stranger.run(&format!("get {node}")).await.join(" ").contains(&place), "others cannot read it");
        stranger.run(&format!("delete {node}")).await;
        assert!(user.run(&format!("get {node}")).await.join(" ").contains(&place), "nor take it out");
        // Nor does somebody of the same name who does not know the password come beside it.
        let other = start("wrong", "two").await;
        until_failing(&other, "expected `user` and `password`").await;
        assert_eq!(user.run("ls /pillion/users").await.last().map(String::as_str), Some("[one]"));
        other.kill().await;
        pillion.stop().await;
        assert_eq!(user.run("ls /pillion/users").await.last().map(String::as_str), Some("[]"));
    }
}

#[tokio::test]
async fn what_is_lost_is_put_again() {
    for layout in [LAYOUTS[1], LAYOUTS[4]] {
        let mut zookeeper = Zookeeper::start(ZOOKEEPERS[0], layout).await;
        println!("{}: somebody deletes it", layout.0);
        is_put_again(&mut zookeeper, TTL, async |zookeeper| {
            let mut client = zookeeper.server.client().await;
            let listed = client.run(&format!("ls {}", zookeeper.above)).await;
            let name = listed.iter().find_map(|line| line.strip_prefix('[')?.strip_suffix(']')).unwrap();
            client.run(&format!("delete {}/{name}", zookeeper.above)).await;
        })
        .await;
    }
    let mut zookeeper = Zookeeper::start(ZOOKEEPERS[0], LAYOUTS[0]).await;
    println!("ZooKeeper is started again without its data");
    is_put_again(&mut zookeeper, TTL, async |zookeeper| zookeeper.restart_empty().await).await;
}

#[tokio::test]
async fn frameworks_own_clients_call_it() {
    let zookeeper = Zookeeper::start(ZOOKEEPERS[0], LAYOUTS[1]).await;
    let app = App::started().await;
    let pillion = Registering::new(&app, TTL).with("protocol: http1").registered(&zookeeper).await;
    let address = zookeeper.server.address();
    let mut consumer = Consumer::start("kratos", &["-zookeeper", &address, "-service", SERVICE]).await;
    consumer.until_called(&format!("{} 200", app.address)).await;
    // Kratos keeps the last instances that it knows when there are none any more.
    pillion.stop().await;

    let zookeeper = Zookeeper::start(ZOOKEEPERS[0], LAYOUTS[3]).await;
    let pillion = Registering::new(&app, TTL).with("metadata: { team: a }").registered(&zookeeper).await;
    let address = zookeeper.server.address();
    let mut consumer = Consumer::curator("spring", &["-zookeeper", &address, "-service", SERVICE]).await;
    consumer.until_called(&format!("{} 200", app.address)).await;
    pillion.stop().await;
    consumer.until_failed().await;
}

#[tokio::test]
async fn a_rolling_deployment_fails_no_request() {
    is_deployed_under_load(&Zookeeper::start(ZOOKEEPERS[0], LAYOUTS[0]).await, TTL).await;
}
