//! Real databases, brokers and a mail server with their own clients, on a machine with pillion that is one cable away from them.

use crate::{
    e2e::{soon, summary, until},
    netns::Caller,
    peer::Peer,
    scene::{PILLION_GROUP, Pillion, Scene},
    servers::daemon::{Daemon, Kind},
};
use futures_util::future::join_all;
use std::{fmt::Write as _, fs, io, net::SocketAddr, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{Instant, timeout},
};

const APP: Caller = Caller { user: 1000, group: 100, mark: 0 };
/// How much later than without pillion a server may be heard.
const ALLOWED: Duration = Duration::from_millis(50);
/// No more than there are unknown addresses for.
const ROUNDS: usize = 7;

/// How a client on the machine reaches a server in the world.
struct Path {
    name: &'static str,
    /// What it calls.
    ip: &'static str,
    /// Where `pillion net` sends it then.
    redirected: Option<u16>,
    /// Whether a thousand connections go there.
    many: bool,
}

/// Of the listener that has the service.
const LISTENER: &str = "127.0.0.1";
const LISTENER_PORT: u16 = 14140;
const ENDPOINT: &str = "10.77.1.2";
const ENDPOINT_V6: &str = "fd77:1::2";
/// Nobody listens there.
const VIRTUAL: &str = "198.51.100.7";
/// All of this network are the server's, and no registry knows it.
const UNKNOWN: &str = "192.0.2.";
/// Of transparent listeners: the second does not know at which ports servers speak first.
const REDIRECTED: u16 = 15001;
const UNINFORMED: u16 = 15002;

const DIRECT: Path = Path { name: "directly", ip: ENDPOINT, redirected: None, many: false };
const PATHS: [Path; 8] = [
    DIRECT,
    Path { name: "a listener", ip: LISTENER, redirected: None, many: true },
    Path { name: "an endpoint, redirected", ip: ENDPOINT, redirected: Some(REDIRECTED), many: false },
    Path { name: "an endpoint by IPv6, redirected", ip: ENDPOINT_V6, redirected: Some(REDIRECTED), many: false },
    Path { name: "a virtual address, redirected", ip: VIRTUAL, redirected: Some(REDIRECTED), many: true },
    Path { name: "an unknown address, redirected", ip: "192.0.2.1", redirected: Some(REDIRECTED), many: false },
    Path { name: "a virtual address, uninformed", ip: VIRTUAL, redirected: Some(UNINFORMED), many: false },
    Path { name: "an unknown address, uninformed", ip: "192.0.2.1", redirected: Some(UNINFORMED), many: true },
];

impl Path {
    fn address(&self, kind: Kind) -> SocketAddr {
        let port = if self.ip == LISTENER { LISTENER_PORT } else { kind.port() };
        SocketAddr::new(self.ip.parse().unwrap(), port)
    }
}

/// A pillion whose service `db` these are.
async fn carrying<'s>(scene: &'s Scene, endpoints: &[SocketAddr]) -> Pillion<'s> {
    let endpoints: Vec<_> = endpoints.iter().map(|address| format!("\"{address}\"")).collect();
    let config = format!(
        "listeners:\n  - {{ name: db, listen: \"{LISTENER}:{LISTENER_PORT}\", protocol: tcp, service: db }}\n\
         \x20 - {{ name: redirected, listen: \"[::]:{REDIRECTED}\", protocol: auto, transparent: {{}} }}\n\
         \x20 - {{ name: uninformed, listen: \"[::]:{UNINFORMED}\", protocol: auto, transparent: {{ opaque_ports: [] }} }}\n\
         services:\n  db: {{ addresses: [{VIRTUAL}], limits: {{ connections: 5000 }} }}\n"
    );
    scene.pillion(&format!("db: [{}]", endpoints.join(", ")), &config).await
}

/// Opens a connection as an application does, and waits for the first byte of that server.
async fn hear(scene: &Scene, kind: Kind, address: SocketAddr) -> io::Result<Peer> {
    hear_as(scene, APP, kind, address).await
}

async fn hear_as(scene: &Scene, caller: Caller, kind: Kind, address: SocketAddr) -> io::Result<Peer> {
    let mut peer = Peer::new(scene.machine.connect(caller, address)?);
    peer.stream.write_all(kind.opening()).await?;
    let read = soon("the server's first byte", peer.stream.read_buf(&mut peer.buf)).await?;
    if read == 0 { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(peer) }
}

/// Connections that come and go, some at a time.
async fn visits(pillion: &Pillion<'_>, count: usize, kind: Kind, address: SocketAddr) {
    let mut left = count;
    while left > 0 {
        let some = left.min(20);
        let visits = (0..some).map(|_| async {
            match hear(pillion.scene, kind, address).await {
                Ok(peer) => peer,
                Err(error) => panic!("{kind:?}: {error}\n{}{}", pillion.process.log(), pillion.metrics().await),
            }
        });
        drop(join_all(visits).await);
        left -= some;
    }
    pillion.until_metric("pillion_tcp_connections", "", 0.0).await;
}

/// After a thousand connections, everything is as before.
async fn leaves_nothing(pillion: &Pillion<'_>, kind: Kind, address: SocketAddr) {
    // What it needed once, it may keep.
    visits(pillion, 200, kind, address).await;
    let before = (pillion.descriptors(), pillion.metric("pillion_tasks", "").await, pillion.process.resident());
    let connections = pillion.metric("pillion_connections", "").await;
    let closed = pillion.metric("pillion_tcp_closed_total", "").await;
    visits(pillion, 1000, kind, address).await;
    pillion.until_metric("pillion_tcp_closed_total", "", closed + 1000.0).await;
    pillion.until_metric("pillion_connections", "", connections).await;
    // Of those before some may just have been about to end.
    until("its tasks to end", async || pillion.metric("pillion_tasks", "").await <= before.1).await;
    until("its descriptors to be closed", async || pillion.descriptors() <= before.0).await;
    let grown = pillion.process.resident().saturating_sub(before.2);
    println!("{kind:?}: a thousand connections left {grown} KiB of {}", before.2);
    assert!(grown < 1024, "{grown} KiB more than the {} before", before.2);
}

/// What a client does with its server over some way.
struct Work<'a> {
    scene: &'a Scene,
    server: &'a Daemon,
    address: SocketAddr,
}

impl Work<'_> {
    async fn done(&self) {
        match self.server.kind {
            Kind::Postgresql => self.postgresql().await,
            Kind::Mariadb => self.mariadb().await,
            Kind::Redis => self.redis().await,
            Kind::Nats => self.nats().await,
            Kind::Rabbitmq => self.rabbitmq().await,
            Kind::Mail => self.mail().await,
        }
    }

    fn host(&self) -> String {
        self.address.ip().to_string()
    }

    fn port(&self) -> String {
        self.address.port().to_string()
    }

    async fn psql(&self, options: &str, commands: &[&str]) -> String {
        let to = format!("host={} port={} user=postgres dbname=postgres {options}", self.host(), self.port());
        let mut args = vec!["-X", "-At", "-q", "-v", "ON_ERROR_STOP=1", "-d", &to];
        commands.iter().for_each(|command| args.extend(["-c", command]));
        self.scene.run("psql", &args).await.trim_end().to_owned()
    }

    async fn postgresql(&self) {
        let insert = "insert into word values ('one'), ('two')";
        self.psql("", &["drop table if exists word", "create table word (said text)", insert]).await;
        self.psql("", &["begin", "insert into word values ('three')", "rollback"]).await;
        self.psql("", &["begin", "delete from word where said = 'one'", insert, "commit"]).await;
        let words = self.psql("", &["select string_agg(said, ' ' order by said) from word"]).await;
        assert_eq!(words, "one two two");
        // Much at once, both ways.
        let much = self.psql("", &["select repeat('0123456789', 2000000)"]).await;
        assert!(much == "0123456789".repeat(2_000_000), "{} bytes", much.len());
        let path = self.scene.dir.path().join("much.sql");
        fs::write(&path, format!("select md5('{much}')")).unwrap();
        let file =
            ["-X", "-At", "-h", &self.host(), "-p", &self.port(), "-U", "postgres", "-f", path.to_str().unwrap()];
        let sum = self.scene.run("psql", &file).await;
        assert_eq!(sum.trim_end(), self.psql("", &["select md5(repeat('0123456789', 2000000))"]).await);
        // TLS, which begins in the middle of a connection.
        let secure = "select ssl from pg_stat_ssl where pid = pg_backend_pid()";
        let trusting = format!("sslmode=verify-ca sslrootcert={}", self.server.file("ca.pem").display());
        for (options, is_secure) in [("sslmode=disable", "f"), ("sslmode=require", "t"), (&trusting, "t")] {
            assert_eq!(self.psql(options, &[secure]).await, is_secure, "{options}");
        }
    }

    async fn mariadb(&self) {
        let (host, port) = (self.host(), self.port());
        let run = async |statements: &str| {
            let common = ["--no-defaults", "-h", &host, "-P", &port, "-u", "test", "-N", "-e", statements, "test"];
            self.scene.run("mariadb", &common).await.trim_end().to_owned()
        };
        let insert = "insert into word values ('one'), ('two')";
        run(&format!("drop table if exists word; create table word (said text) engine=innodb; {insert}")).await;
        run("begin; insert into word values ('three'); rollback").await;
        run(&format!("begin; delete from word where said = 'one'; {insert}; commit")).await;
        assert_eq!(run("select group_concat(said order by said) from word").await, "one,two,two");
        let much = run("select repeat('0123456789', 1000000)").await;
        assert!(much == "0123456789".repeat(1_000_000), "{} bytes", much.len());
    }

    async fn redis(&self) {
        let (host, port) = (self.host(), self.port());
        let cli = ["-h", &host, "-p", &port];
        let run = async |args: &[&str]| self.scene.run("redis-cli", &[&cli, args].concat()).await.trim_end().to_owned();
        assert_eq!(run(&["SET", "greeting", "hello"]).await, "OK");
        assert_eq!(run(&["GET", "greeting"]).await, "hello");
        assert_eq!(
            run(&["EVAL", "return string.rep('0123456789', 1000000)", "0"]).await,
            "0123456789".repeat(1_000_000)
        );
        let mut subscriber =
            self.scene.running("redis-cli", &[&cli[..], &["SUBSCRIBE", "news"]].concat(), "subscribe").await;
        subscriber.says("1").await;
        assert_eq!(run(&["PUBLISH", "news", "it is spring"]).await, "1");
        subscriber.says("it is spring").await;
    }

    async fn nats(&self) {
        let url = format!("nats://{}", self.address);
        let server = ["-s", &url];
        let run = async |args: &[&str]| self.scene.run("nats", &[&server, args].concat()).await;
        // They say so before the server knows it; and what nobody listens to is gone.
        let mut subscriber = self.scene.running("nats", &[&server[..], &["sub", "news"]].concat(), "Subscribing").await;
        let publishing = async {
            loop {
                run(&["pub", "news", "it is spring"]).await;
            }
        };
        tokio::select! {
            () = publishing => {}
            _ = subscriber.says("it is spring") => {}
        }
        let reply = [&server[..], &["reply", "question", "the answer"]].concat();
        let _replier = self.scene.running("nats", &reply, "Listening").await;
        until("an answer", async || run(&["request", "question", "?", "--raw"]).await.contains("the answer")).await;
    }

    async fn rabbitmq(&self) {
        let url = format!("amqp://{}", self.address);
        let server = ["-u", &url];
        let queue = self.scene.run("amqp-declare-queue", &[&server[..], &["-q", "jobs"]].concat()).await;
        assert_eq!(queue.trim_end(), "jobs");
        let much = "0123456789".repeat(10_000);
        for body in ["paint the door", &much] {
            self.scene.run("amqp-publish", &[&server[..], &["-r", "jobs", "-b", body]].concat()).await;
        }
        let consume = [&server[..], &["-q", "jobs", "-c", "2", "cat"]].concat();
        assert!(self.scene.run("amqp-consume", &consume).await == format!("paint the door{much}"));
    }

    async fn mail(&self) {
        static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let mut message = format!("From: a@b.example\r\nSubject: Number {number}\r\n\r\n");
        (0..50_000).for_each(|line| write!(message, "line {line} of mail {number}\r\n").unwrap());
        message += "the last line\r\n";
        let path = self.scene.dir.path().join("message");
        fs::write(&path, &message).unwrap();
        let url = format!("smtp://{}/client.example", self.address);
        let args =
            ["-sS", "--mail-from", "a@b.example", "--mail-rcpt", "c@d.example", "-T", path.to_str().unwrap(), &url];
        self.scene.run("curl", &args).await;
        let message = message.replace("\r\n", "\n");
        let body = message.split_once("\n\n").unwrap().1;
        let inbox = self.server.file("mail/inbox");
        until("the mail", async || fs::read_to_string(&inbox).is_ok_and(|inbox| inbox.contains(body))).await;
    }
}

/// How long it takes until a server is heard.
async fn first_byte(scene: &Scene, caller: Caller, kind: Kind, address: SocketAddr) -> Duration {
    let start = Instant::now();
    hear_as(scene, caller, kind, address).await.unwrap_or_else(|error| panic!("{address}: {error}"));
    start.elapsed()
}

/// A server is mostly heard hardly later than without pillion, which is asked for in turn: what else runs on the machine hinders
/// both alike, and where it hinders one of them more, another round counts.
async fn is_heard_soon(scene: &Scene, kind: Kind, path: &str, mut next: impl FnMut() -> SocketAddr) {
    // Redirection leaves pillion's own connections alone.
    let pillion = Caller { user: 0, group: PILLION_GROUP, mark: 0 };
    let mut seen = Vec::new();
    for _ in 0..ROUNDS {
        let (mut straight, mut through) = (Vec::new(), Vec::new());
        for _ in 0..21 {
            straight.push(first_byte(scene, pillion, kind, DIRECT.address(kind)).await);
            through.push(first_byte(scene, APP, kind, next()).await);
        }
        let (straight, through) = (summary(straight).0, summary(through).0);
        println!("{kind:?}, {path}: first byte after {through:?}, directly after {straight:?}");
        if through < straight + ALLOWED {
            return;
        }
        seen.push((through, straight));
    }
    panic!("{kind:?}, {path}: first byte, and directly: {seen:?}");
}

async fn works_over_every_path(kind: Kind) {
    let scene = Scene::new(1);
    let server = Daemon::start(kind, &scene.worlds[0]).await;
    let endpoints = [ENDPOINT, ENDPOINT_V6].map(|ip| SocketAddr::new(ip.parse().unwrap(), kind.port()));
    let pillion = carrying(&scene, &endpoints).await;
    for path in PATHS {
        let address = path.address(kind);
        if let Some(port) = path.redirected {
            scene.redirect(port).await;
        }
        if path.redirected == Some(UNINFORMED) && path.ip != VIRTUAL {
            // Those that were never called before.
            let mut strangers = (100..).map(|number| format!("{UNKNOWN}{number}:{}", kind.port()).parse().unwrap());
            is_heard_soon(&scene, kind, "strangers", || strangers.next().unwrap()).await;
        }
        let start = Instant::now();
        Work { scene: &scene, server: &server, address }.done().await;
        println!("{kind:?}, {}: its client's work took {:?}", path.name, start.elapsed());
        is_heard_soon(&scene, kind, path.name, || address).await;
        if path.many {
            leaves_nothing(&pillion, kind, address).await;
        }
    }
    scene.redirect_nothing().await;
    assert_eq!(scene.run("nft", &["list", "ruleset"]).await, "");
    Work { scene: &scene, server: &server, address: DIRECT.address(kind) }.done().await;
}

#[tokio::test]
async fn postgresql() {
    works_over_every_path(Kind::Postgresql).await;
}

#[tokio::test]
async fn mariadb() {
    works_over_every_path(Kind::Mariadb).await;
}

#[tokio::test]
async fn redis() {
    works_over_every_path(Kind::Redis).await;
}

#[tokio::test]
async fn nats() {
    works_over_every_path(Kind::Nats).await;
}

#[tokio::test]
async fn rabbitmq() {
    works_over_every_path(Kind::Rabbitmq).await;
}

#[tokio::test]
async fn mail() {
    works_over_every_path(Kind::Mail).await;
}

/// Three of them, of which one is killed; its connections are opened again, as a client's pool does.
#[tokio::test]
async fn an_instance_that_is_killed_ends_its_connections_and_gets_no_new_ones() {
    for kind in [Kind::Postgresql, Kind::Redis] {
        let scene = Scene::new(3);
        let mut servers = join_all(scene.worlds.iter().map(|world| Daemon::start(kind, world))).await;
        let endpoints = [1, 2, 3].map(|number| SocketAddr::from(([10, 77, number, 2], kind.port())));
        let pillion = carrying(&scene, &endpoints).await;
        let listener = SocketAddr::new(LISTENER.parse().unwrap(), LISTENER_PORT);
        let mut pool = Vec::new();
        for _ in 0..9 {
            pool.push(hear(&scene, kind, listener).await.unwrap());
        }
        servers[1].kill();
        let mut ended = [false; 9];
        until("three of them to end", async || {
            for (peer, ended) in pool.iter_mut().zip(&mut ended).filter(|(_, ended)| !**ended) {
                *ended = timeout(Duration::from_millis(20), peer.fill()).await == Ok(false);
            }
            ended.iter().filter(|ended| **ended).count() == 3
        })
        .await;
        for (peer, _) in pool.iter_mut().zip(&ended).filter(|(_, ended)| **ended) {
            *peer = hear(&scene, kind, listener).await.unwrap();
        }
        // With a connection for each transaction, or each request. They end at the first failure.
        let (host, port) = (listener.ip().to_string(), listener.port().to_string());
        if kind == Kind::Postgresql {
            let script = scene.dir.path().join("script.sql");
            fs::write(&script, "select 1;\n").unwrap();
            let load = ["-h", &host, "-p", &port, "-U", "postgres", "-n", "-C", "-c", "4", "-t", "50"];
            let said = scene.run("pgbench", &[&load[..], &["-f", script.to_str().unwrap(), "postgres"]].concat()).await;
            assert!(said.contains("actually processed: 200/200"), "{said}");
        } else {
            let load = ["-h", &host, "-p", &port, "-k", "0", "-n", "1000", "-c", "10", "-t", "ping_mbulk", "--csv"];
            let said = scene.run("redis-benchmark", &load).await;
            assert!(said.contains("\"PING_MBULK\""), "{said}");
        }
        for peer in &mut pool {
            assert!(timeout(Duration::from_millis(20), peer.fill()).await.is_err(), "another one ended");
        }
        drop(pool);
        pillion.until_metric("pillion_tcp_connections", "", 0.0).await;
        let all = pillion.metric("pillion_tcp_closed_total", "").await;
        let mut fine = 0.0;
        for outcome in ["done", "upstream_closed", "downstream_closed"] {
            fine += pillion.metric("pillion_tcp_closed_total", &format!("outcome=\"{outcome}\"")).await;
        }
        assert!(all > 200.0 && fine == all, "{fine} of {all}\n{}", pillion.process.log());
    }
}
