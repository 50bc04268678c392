//! Names of services in network namespaces: what an unmodified program finds by the system's own resolver, when the kernel brings
//! its questions to pillion, and where its connections go.

use crate::{
    e2e::{Pillion, output, soon, until},
    netns::{Caller, Namespace},
    peer::{Peer, get},
    real_transparent::{Scene, greeter, greeting, web},
    servers::program,
};
use pillion::registry::dns::message::{Question, Type, query};
use std::{
    collections::BTreeMap,
    fs, io,
    net::{IpAddr, SocketAddr, UdpSocket},
    path::PathBuf,
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    process::Child,
};

const USERS: [&str; 3] = ["192.0.2.11:80", "192.0.2.12:80", "[2001:db8::13]:80"];
const PILLION: Caller = Caller { user: 0, group: 65533, mark: 0 };
const APP: Caller = Caller { user: 1000, group: 100, mark: 0 };

/// A machine whose programs ask the server 192.0.2.99, or whom else `resolv.conf` names.
struct Names {
    scene: Scene,
    resolv_conf: PathBuf,
    _server: Child,
}

impl Names {
    /// The server knows the zone `test`.
    async fn new() -> Self {
        let scene = Scene::new();
        USERS.iter().for_each(|address| web(&scene.world, address));
        let at = |name: &str| scene.dir.path().join(name);
        let zone = "$ORIGIN test.\n@ 60 IN SOA ns admin 1 60 60 60 60\n@ 60 IN NS ns\nns 60 IN A 192.0.2.99\n\
                    www 60 IN A 198.51.100.7\nwww 60 IN AAAA 2001:db8:5::7\nlong 60 IN TXT \"";
        // Too long for a datagram.
        fs::write(at("zone"), format!("{zone}{}\"\n", vec!["x".repeat(250); 8].join("\" \""))).unwrap();
        let config =
            format!(".:53 {{\n bind 192.0.2.99 2001:db8::99\n errors\n file {} test\n}}\n", at("zone").display());
        fs::write(at("Corefile"), config).unwrap();
        let server = scene.world.command(program("coredns")).arg("-conf").arg(at("Corefile")).spawn().unwrap();
        let names = Self { resolv_conf: at("resolv.conf"), scene, _server: server };
        names.asks("192.0.2.99");
        let ping = question("ns.test", Type::A);
        until("CoreDNS", async || ask(&names.scene.machine, PILLION, "192.0.2.99:53", &ping).is_ok()).await;
        names
    }

    fn asks(&self, server: &str) {
        fs::write(&self.resolv_conf, format!("nameserver {server}\noptions timeout:20 attempts:3\n")).unwrap();
    }

    async fn pillion(&self) -> Pillion {
        let instances =
            format!("user-service: [{}], db: [\"192.0.2.12:5432\"]", USERS.map(|it| format!("\"{it}\"")).join(", "));
        let config = "dns: { upstreams: [192.0.2.99, '2001:db8::99'], timeout: 10s }\n\
                      services: { user-service: { balance: { policy: round-robin } } }";
        self.scene.pillion_alone(&instances, "", config).await
    }

    async fn redirect(&self) {
        self.scene.net(&["up", "--pillion-group", "65533", "--dns-port", "15053"]).await;
    }

    /// Runs a program whose resolver reads our `resolv.conf`. `ip netns exec` gives it mounts of its own, which end with it.
    async fn run(&self, program: &str, args: &[&str]) -> (Option<i32>, String) {
        let mount = "mount --bind \"$0\" /etc/resolv.conf && exec \"$@\"";
        let mut command = self.scene.machine.command("sh");
        command.args(["-c", mount]).arg(&self.resolv_conf).arg(program).args(args);
        let output = output(&mut command).await;
        let errors = String::from_utf8_lossy(&output.stderr);
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned() + &errors)
    }

    /// What the system's resolver finds, by the family that `database` is for.
    async fn found(&self, database: &str, name: &str) -> Option<IpAddr> {
        let (code, text) = self.run("getent", &[database, name]).await;
        // 2: there is no such name.
        assert!(matches!(code, Some(0 | 2)), "{name}: {code:?} {text}");
        text.split_whitespace().next().map(|ip| ip.parse().unwrap_or_else(|_| panic!("{text}")))
    }

    /// How often who answered requests of one curl.
    async fn answers(&self, args: &[&str]) -> BTreeMap<String, usize> {
        let (code, text) = self
            .run("curl", &[&["--silent", "--show-error", "--max-time", "60", "--write-out", "\\n"], args].concat())
            .await;
        assert_eq!(code, Some(0), "{args:?}: {text}");
        let mut answers = BTreeMap::new();
        text.lines().for_each(|line| *answers.entry(line.to_owned()).or_default() += 1);
        answers
    }

    async fn ask_over_tcp(&self, caller: Caller, question: &[u8]) -> Vec<u8> {
        let mut stream = self.scene.machine.connect(caller, "192.0.2.99:53".parse().unwrap()).unwrap();
        soon("an answer", async {
            stream.write_u16(question.len().try_into().unwrap()).await.unwrap();
            stream.write_all(question).await.unwrap();
            let mut answer = vec![0; stream.read_u16().await.unwrap().into()];
            stream.read_exact(&mut answer).await.unwrap();
            answer
        })
        .await
    }

    async fn nft(&self) -> String {
        let output = output(self.scene.machine.command(program("nft")).args(["list", "ruleset"])).await;
        String::from_utf8(output.stdout).unwrap()
    }
}

fn question(name: &str, of: Type) -> Vec<u8> {
    query(0x1234, &Question::new(name, of).unwrap(), true)
}

/// Asks by one datagram, as that caller.
fn ask(namespace: &Namespace, caller: Caller, server: &str, question: &[u8]) -> io::Result<Vec<u8>> {
    let server: SocketAddr = server.parse().unwrap();
    let socket = namespace.open_as(caller, || {
        let any = if server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = UdpSocket::bind(any)?;
        socket.connect(server)?;
        Ok(socket)
    })?;
    socket.set_read_timeout(Some(Duration::from_secs(20)))?;
    socket.send(question)?;
    let mut space = vec![0; 65_536];
    let length = socket.recv(&mut space)?;
    space.truncate(length);
    Ok(space)
}

#[tokio::test]
async fn an_unmodified_program_reaches_a_service_by_its_name() {
    let names = Names::new().await;
    let before = names.nft().await;
    let pillion = names.pillion().await;
    assert_eq!(names.found("ahostsv4", "user-service.mesh").await, None, "nobody knows it yet");
    names.redirect().await;
    let shown = names.scene.net(&["show"]).await;
    assert!(shown.starts_with("dns, to port 15053:\n  all users (0 connections so far)\ndns, straight:\n"), "{shown}");

    // Whichever server is named, of both families, and also one at which nobody is.
    for server in ["192.0.2.99", "2001:db8::99", "127.0.0.53", "198.51.100.53"] {
        names.asks(server);
        for family in ["--ipv4", "--ipv6"] {
            let answers = names.answers(&[family, "http://user-service.mesh/[1-30]"]).await;
            for user in USERS {
                let count = answers.get(&format!("{user} by pillion"));
                assert!(count.is_some_and(|count| (8..=12).contains(count)), "{server} {family}: {answers:?}");
            }
        }
        let found = names.found("ahostsv4", "www.test").await;
        assert_eq!(found, Some("198.51.100.7".parse().unwrap()), "{server}");
        assert_eq!(names.found("ahostsv6", "www.test").await, Some("2001:db8:5::7".parse().unwrap()), "{server}");
        assert_eq!(names.found("ahostsv4", "nobody.mesh").await, None, "{server}");
    }
    let shown = names.scene.net(&["show"]).await;
    assert!(!shown.contains("all users (0 connections"), "{shown}");

    // Other names' answers arrive as they are, also where they need TCP.
    for name in ["www.test", "no-such-name.test"] {
        let asked = question(name, Type::A);
        let straight = ask(&names.scene.machine, PILLION, "192.0.2.99:53", &asked).unwrap();
        assert_eq!(ask(&names.scene.machine, APP, "192.0.2.99:53", &asked).unwrap(), straight, "{name}");
    }
    let mut long = question("long.test", Type::A);
    let of = long.len() - 11 - 4;
    long[of..of + 2].copy_from_slice(&[0, 16]);
    let cut = ask(&names.scene.machine, APP, "192.0.2.99:53", &long).unwrap();
    assert_ne!(cut[2] & 0x02, 0, "there is more than it has room for");
    let (through, straight) = (names.ask_over_tcp(APP, &long).await, names.ask_over_tcp(PILLION, &long).await);
    assert!(through.len() > 2000 && through == straight, "{} {}", through.len(), straight.len());
    drop(pillion);
    names.scene.net(&["down"]).await;
    assert_eq!(names.nft().await, before);
}

#[tokio::test]
async fn a_service_s_address_outlives_a_restart_of_pillion() {
    let names = Names::new().await;
    greeter(&names.scene.world, "192.0.2.12:5432");
    let mut pillion = names.pillion().await;
    names.redirect().await;
    let mut found = Vec::new();
    for name in ["user-service.mesh", "db.mesh"] {
        for database in ["ahostsv4", "ahostsv6"] {
            found.push(names.found(database, name).await.unwrap());
        }
    }
    // Any port is the service's, and whatever is spoken.
    for ip in &found[2..] {
        let stream = names.scene.call(&SocketAddr::new(*ip, 9999).to_string());
        assert_eq!(greeting(stream).await.0, "192.0.2.12:5432", "{ip}");
    }
    pillion.signal("TERM");
    assert_eq!(pillion.ended().await, 0);
    let _pillion = names.pillion().await;
    // Whoever has kept the address of a service that pillion follows needs no name.
    for ip in &found[..2] {
        let mut peer = Peer::new(names.scene.call(&SocketAddr::new(*ip, 80).to_string()));
        peer.send(get("/").replace("user-service", "elsewhere")).await;
        let response = soon("an answer", peer.response()).await;
        assert!(response.text().ends_with(" by pillion"), "{ip}");
    }
    // One that it does not follow yet is found by what the registry lists.
    for ip in &found[2..] {
        let address = SocketAddr::new(*ip, 5432).to_string();
        let reached = async || greeting(names.scene.call(&address)).await.0 == "192.0.2.12:5432";
        until(&address, reached).await;
    }
    let mut again = Vec::new();
    for name in ["user-service.mesh", "db.mesh"] {
        for database in ["ahostsv4", "ahostsv6"] {
            again.push(names.found(database, name).await.unwrap());
        }
    }
    assert_eq!(again, found);
    // What no service has goes nowhere, and never out.
    names.scene.machine.reset(APP, "240.0.0.1:80", b"hello\n").await;

    // A service that is new is there for who asks again.
    assert_eq!(names.found("ahostsv4", "orders.mesh").await, None);
    let more = "services: { user-service: [\"192.0.2.11:80\"], orders: [\"192.0.2.12:80\"] }\n";
    fs::write(names.scene.dir.path().join("instances.yaml"), more).unwrap();
    until("the new service", async || names.found("ahostsv4", "orders.mesh").await.is_some()).await;
    let answers = names.answers(&["http://orders.mesh/"]).await;
    assert_eq!(answers.into_keys().collect::<Vec<_>>(), ["192.0.2.12:80 by pillion"]);
}

#[tokio::test]
async fn questions_that_come_back_are_known_and_net_says_who_would_bring_them() {
    let names = Names::new().await;
    let mut pillion = names.pillion().await;
    // Somebody else's questions go straight, and not pillion's.
    let shown = names.scene.net(&["up", "--pillion-user", "4242", "--dns-port", "15053"]).await;
    assert!(shown.contains("whose connections are redirected, too"), "{shown}");
    let asked = question("www.test", Type::A);
    let answer = ask(&names.scene.machine, APP, "192.0.2.99:53", &asked).unwrap();
    assert_eq!((answer[3] & 0xF, &answer[..2]), (2, &asked[..2]), "SERVFAIL");
    pillion.until_logged("pillion's own DNS questions are redirected to itself").await;
    // A resolver on the machine, whose own questions are not pillion's.
    let up = ["up", "--pillion-group", "65533", "--dns-port", "15053"];
    let trouble = "user 0 answers DNS questions here itself";
    assert!(!names.scene.net(&up).await.contains(trouble));
    let _resolver = names.scene.machine.listen("127.0.0.53:53".parse().unwrap());
    let shown = names.scene.net(&up).await;
    assert!(shown.contains(trouble), "{shown}");
    let shown = names.scene.net(&[&up[..], &["--exclude-users", "0"]].concat()).await;
    assert!(!shown.contains(trouble) && shown.contains("dns, to port 15053:"), "{shown}");
}
