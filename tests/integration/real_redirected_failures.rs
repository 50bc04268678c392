//! Instances that die behind connections that the kernel redirects.

use crate::{
    e2e::soon,
    netns::Caller,
    scene::Scene,
    servers::daemon::{Daemon, Kind},
};
use std::collections::BTreeMap;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
};

const APP: Caller = Caller { user: 1000, group: 100, mark: 0 };
/// At which nobody listens.
const CALLED: &str = "10.96.0.20:6379";

/// A client's connection; the answer to one line.
struct Connection(BufReader<TcpStream>);

impl Connection {
    fn open(scene: &Scene) -> Self {
        Self(BufReader::new(scene.machine.connect(APP, CALLED.parse().unwrap()).unwrap()))
    }

    /// `None`: it has ended.
    async fn ask(&mut self, line: &str) -> Option<String> {
        self.0.write_all(format!("{line}\r\n").as_bytes()).await.ok()?;
        self.line().await
    }

    async fn line(&mut self) -> Option<String> {
        let mut answer = String::new();
        let read = soon("an answer", self.0.read_line(&mut answer)).await;
        read.is_ok_and(|length| length > 0).then(|| answer.trim_end().to_owned())
    }

    /// Which server it is connected to.
    async fn server(&mut self) -> Option<String> {
        self.ask("GET who").await?;
        self.line().await
    }
}

#[tokio::test]
async fn connections_to_a_killed_instance_end_and_a_pool_recovers_without_a_failed_connect() {
    let scene = Scene::new(3);
    let mut servers = Vec::new();
    for (world, number) in scene.worlds.iter().zip(1..) {
        servers.push(Daemon::start(Kind::Redis, world).await);
        let address = format!("10.77.{number}.2:6379").parse().unwrap();
        let mut own = Connection(BufReader::new(world.connect(Caller::default(), address).unwrap()));
        assert_eq!(own.ask(&format!("SET who {number}")).await.as_deref(), Some("+OK"));
    }
    let more = format!(
        "listeners: [{{ name: outbound, listen: \"[::]:15001\", protocol: auto, transparent: {{}} }}]\n\
         services: {{ db: {{ addresses: [\"{CALLED}\"], balance: {{ policy: round-robin }} }} }}\n"
    );
    let mut pillion = scene.pillion("db: [\"10.77.1.2:6379\", \"10.77.2.2:6379\", \"10.77.3.2:6379\"]", &more).await;
    pillion.process.until_logged("endpoints changed").await;
    scene.redirect(15001).await;

    let mut pool = Vec::new();
    for _ in 0..12 {
        let mut connection = Connection::open(&scene);
        let server = connection.server().await.expect("an answer");
        pool.push((server, connection));
    }
    let count = |server: &str| pool.iter().filter(|(there, _)| there == server).count();
    assert_eq!(["1", "2", "3"].map(count), [4, 4, 4]);

    // Idle connections of the killed one end by themselves, and no other does.
    servers[1].kill();
    let mut replaced = 0;
    for (server, connection) in &mut pool {
        if server == "2" {
            assert_eq!(connection.line().await, None, "its end is passed on");
            *connection = Connection::open(&scene);
            replaced += 1;
        } else {
            assert_eq!(connection.server().await.as_deref(), Some(&**server), "untouched");
        }
    }
    assert_eq!(replaced, 4);
    let mut answers = BTreeMap::<_, usize>::new();
    for (_, connection) in &mut pool {
        *answers.entry(connection.server().await.expect("an answer")).or_default() += 1;
    }
    assert_eq!((answers.len(), answers.values().sum::<usize>()), (2, 12), "{answers:?}");

    // Its machine refuses connections now, and nobody notices.
    let mut answers = BTreeMap::<_, usize>::new();
    for _ in 0..300 {
        let server = Connection::open(&scene).server().await;
        *answers.entry(server).or_default() += 1;
    }
    println!("300 connections, one of three endpoints refuses: {answers:?}");
    assert_eq!(answers.keys().flatten().collect::<Vec<_>>(), ["1", "3"], "{answers:?}");
    assert_eq!(answers.get(&None), None, "none failed");

    // It is used again once it is back.
    servers[1] = Daemon::start(Kind::Redis, &scene.worlds[1]).await;
    let address = "10.77.2.2:6379".parse().unwrap();
    let mut own = Connection(BufReader::new(scene.worlds[1].connect(Caller::default(), address).unwrap()));
    assert_eq!(own.ask("SET who 2").await.as_deref(), Some("+OK"));
    crate::e2e::until("the one that is back to be used", async || {
        Connection::open(&scene).server().await.as_deref() == Some("2")
    })
    .await;
}
