//! What the kernel redirects to pillion, in network namespaces: where it ends, and what the world sees of it.

use crate::{
    e2e::{self, Client, Pillion, output, soon, summary, until},
    netns::{Caller, Namespace},
    peer::{Peer, get},
    pillion::tested,
    tcp_names::{client_hello, tls},
};
use http::{Response, Version};
use http_body_util::Full;
use std::{collections::BTreeMap, fs, path::PathBuf, time::Duration};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::watch,
    time::Instant,
};

const APP: Caller = Caller { user: 1000, group: 100, mark: 0 };
/// What pillion's process has, and nothing else.
const PILLION: &str = "65533";

/// The endpoints of `user-service`.
const USERS: [&str; 3] = ["192.0.2.11:80", "192.0.2.12:80", "[2001:db8::13]:80"];

/// A machine with an application and a pillion, and a world around it that is reached through one cable.
pub struct Scene {
    pub machine: Namespace,
    pub world: Namespace,
    pub dir: TempDir,
}

impl Scene {
    pub fn new() -> Self {
        let (machine, world) = (Namespace::new(), Namespace::new());
        machine.cable(&world, 1);
        machine.ip("route add default via 10.77.1.2");
        machine.ip("-6 route add default via fd77:1::2");
        for address in ["192.0.2.11/32", "192.0.2.12/32", "192.0.2.99/32", "2001:db8::13/128", "2001:db8::99/128"] {
            world.ip(&format!("addr add {address} dev lo nodad"));
        }
        // Until the neighbours know each other, which with IPv6 takes its time, connections wait.
        let refused = machine.connect(APP, "[2001:db8::99]:9".parse().unwrap()).unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
        Self { machine, world, dir: TempDir::new().unwrap() }
    }

    /// Starts pillion with these instances and more settings of the listener and of all, and redirects what the machine
    /// calls.
    pub async fn pillion(&self, instances: &str, transparent: &str, more: &str) -> Pillion {
        let pillion = self.pillion_alone(instances, transparent, more).await;
        self.net(&["up", "--pillion-group", PILLION]).await;
        pillion
    }

    /// The same without a rule.
    pub async fn pillion_alone(&self, instances: &str, transparent: &str, more: &str) -> Pillion {
        let listener = format!(
            "{{ name: transparent, listen: \"[::]:15001\", protocol: auto, transparent: {{ {transparent} }} }}"
        );
        self.pillion_with(instances, &format!("[{listener}]"), more).await
    }

    async fn pillion_with(&self, instances: &str, listeners: &str, more: &str) -> Pillion {
        fs::write(self.dir.path().join("instances.yaml"), format!("services: {{ {instances} }}\n")).unwrap();
        let config = format!(
            "admin: {{ listen: 127.0.0.1:4191 }}\n\
             registries: {{ main: {{ kind: file, path: {} }} }}\n\
             listeners: {listeners}\n\
             access_log: {{ mode: all, path: {} }}\n{more}\n",
            self.dir.path().join("instances.yaml").display(),
            self.access_log().display(),
        );
        let file = self.dir.path().join("pillion.yaml");
        fs::write(&file, config).unwrap();
        let mut command = self.machine.command("setpriv");
        command.args(["--regid", PILLION, "--clear-groups", tested(), "run"]).arg(&file);
        let mut pillion = Pillion::start(&mut command).await;
        if more.contains("services:") {
            // Addresses of services are known from here on.
            pillion.until_logged("endpoints changed").await;
        }
        pillion
    }

    pub async fn net(&self, args: &[&str]) -> String {
        let output = output(self.machine.pillion(&["net"]).args(args)).await;
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn log(&self) -> String {
        fs::read_to_string(self.access_log()).unwrap_or_default()
    }

    fn access_log(&self) -> PathBuf {
        self.dir.path().join("access.log")
    }

    /// The first line of the access log that has all of `texts`.
    async fn logged(&self, texts: &[&str]) -> String {
        let found = || {
            let log = self.log();
            log.lines().find(|line| texts.iter().all(|text| line.contains(text))).map(str::to_owned)
        };
        until(&format!("{texts:?} in the access log"), async || found().is_some()).await;
        found().unwrap()
    }

    /// The application opens a connection there.
    pub fn call(&self, address: &str) -> TcpStream {
        self.machine.connect(APP, address.parse().unwrap()).unwrap_or_else(|error| panic!("{address}: {error}"))
    }

    /// What the application gets for a request to `host` over a connection of its own to `address`.
    async fn ask(&self, address: &str, host: &str) -> (u16, String) {
        let mut peer = Peer::new(self.call(address));
        peer.send(get("/").replace("user-service", host)).await;
        let response = peer.response().await;
        (response.status(), response.text())
    }

    /// How often who answered, of so many requests.
    async fn answers(&self, count: usize, address: &str, host: &str) -> BTreeMap<String, usize> {
        let mut answers = BTreeMap::new();
        for _ in 0..count {
            let (status, text) = self.ask(address, host).await;
            *answers.entry(format!("{status} {text}")).or_default() += 1;
        }
        answers
    }

    async fn metric(&self, begin: &str) -> f64 {
        let mut peer = Peer::new(self.machine.connect(Caller::default(), "127.0.0.1:4191".parse().unwrap()).unwrap());
        peer.send("GET /metrics HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n").await;
        let page = peer.response().await.text();
        let values = page.lines().filter(|line| line.starts_with(begin));
        values.map(|line| line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap()).sum()
    }
}

/// Answers all requests there with the address and the request's host.
pub fn web(namespace: &Namespace, address: &str) {
    let listener = namespace.listen(address.parse().unwrap());
    let name = address.to_owned();
    tokio::spawn(async move {
        // Nobody leaves.
        let (_stays, leaving) = watch::channel(false);
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let (name, leaving) = (name.clone(), leaving.clone());
            tokio::spawn(async move {
                let answer = move |request: http::Request<_>| {
                    let has = request.headers().contains_key("x-forwarded-for");
                    let body = format!("{name}{}", if has { " by pillion" } else { "" });
                    async move { Ok(Response::new(Full::new(body.into()))) }
                };
                e2e::serve(stream, answer, leaving).await;
            });
        }
    });
}

/// Says its address to all that connect there, and then back what they say.
pub fn greeter(namespace: &Namespace, address: &str) {
    let listener = namespace.listen(address.parse().unwrap());
    let name = address.to_owned();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let name = name.clone();
            tokio::spawn(async move {
                stream.write_all(name.as_bytes()).await.unwrap();
                let (mut from, mut to) = stream.split();
                let _ = tokio::io::copy(&mut from, &mut to).await;
            });
        }
    });
}

/// What one hears there first, and how long that took.
pub async fn greeting(mut stream: TcpStream) -> (String, Duration) {
    let begun = Instant::now();
    let mut heard = [0; 64];
    // A reset is an end as well.
    let length = soon("a greeting", stream.read(&mut heard)).await.unwrap_or(0);
    (String::from_utf8_lossy(&heard[..length]).into_owned(), begun.elapsed())
}

fn users() -> String {
    format!("user-service: [{}]", USERS.map(|address| format!("\"{address}\"")).join(", "))
}

const NAMED: &str =
    "services: { user-service: { addresses: [\"10.96.0.10:80\", fd00::10], balance: { policy: round-robin } } }";

#[tokio::test]
async fn http_goes_to_the_service_whose_address_was_called_or_which_it_names() {
    let scene = Scene::new();
    USERS.iter().for_each(|address| web(&scene.world, address));
    let _pillion = scene.pillion(&users(), "", NAMED).await;
    // By an endpoint's address, by a virtual one, and by its name alone, of IPv4 and IPv6; whatever it names, if the address is
    // a service's.
    for (address, host) in [
        ("192.0.2.11:80", "192.0.2.11"),
        ("[2001:db8::13]:80", "[2001:db8::13]"),
        ("10.96.0.10:80", "elsewhere.example.com"),
        ("[fd00::10]:8080", "elsewhere"),
        ("198.51.100.1:80", "user-service"),
        ("[2001:db8:1::1]:1234", "user-service"),
    ] {
        let answers = scene.answers(30, address, host).await;
        for user in USERS {
            assert!(
                answers.get(&format!("200 {user} by pillion")).is_some_and(|count| (8..=12).contains(count)),
                "{address}: {answers:?}"
            );
        }
        assert_eq!(answers.len(), 3, "{answers:?}");
    }
    // One connection is enough, also of HTTP/2.
    for version in [Version::HTTP_11, Version::HTTP_2] {
        let mut client = Client::over(scene.call("192.0.2.11:80"), version).await.unwrap();
        let mut answers = BTreeMap::<_, usize>::new();
        for _ in 0..30 {
            *answers.entry(client.get("user-service", "/").await.unwrap().1).or_default() += 1;
        }
        assert_eq!(answers.len(), 3, "{version:?} {answers:?}");
    }
    let counted = "pillion_requests_total{service=\"user-service\",code=\"200\"}";
    until("240 requests to be counted", async || scene.metric(counted).await == 240.0).await;
}

#[tokio::test]
async fn what_belongs_to_nobody_passes_untouched_or_is_refused() {
    let scene = Scene::new();
    for address in ["192.0.2.99:80", "[2001:db8::99]:80"] {
        web(&scene.world, address);
    }
    greeter(&scene.world, "192.0.2.99:7000");
    USERS.iter().for_each(|address| web(&scene.world, address));
    let pillion = scene.pillion(&users(), "", NAMED).await;
    for (address, host) in [
        ("192.0.2.99:80", "www.example.com"),
        ("192.0.2.99:80", "unheard-of"),
        ("192.0.2.99:80", "192.0.2.99"),
        ("[2001:db8::99]:80", "[2001:db8::99]:80"),
    ] {
        assert_eq!(scene.ask(address, host).await, (200, address.into()), "{host}: no header more than was sent");
    }
    // What is meant for a proxy reaches it as it is, a service's or not.
    for address in ["192.0.2.99:80", USERS[0]] {
        let mut peer = Peer::new(scene.call(address));
        peer.send(get("http://www.example.com/")).await;
        assert_eq!(peer.response().await.text(), address, "no header more than was sent");
    }
    // No service has this port. pillion takes it first, and its client sees that nobody is there.
    scene.machine.reset(APP, "192.0.2.11:81", b"").await;
    let line = scene.logged(&["192.0.2.11:81"]).await;
    assert!(line.contains("connect_failed"), "{line}");
    let (heard, _) = greeting(scene.call("192.0.2.99:7000")).await;
    assert_eq!(heard, "192.0.2.99:7000");
    // HTTP/2 says whom it wants only later, so it is carried by request.
    let mut client = Client::over(scene.call("192.0.2.99:80"), Version::HTTP_2).await.unwrap();
    assert_eq!(client.get("www.example.com", "/").await.unwrap().1, "192.0.2.99:80 by pillion");
    let (_, text) = client.get("user-service", "/").await.unwrap();
    assert!(USERS.iter().any(|user| text.starts_with(user)), "one that a registry knows: {text}");
    drop(pillion);

    let scene = Scene::new();
    web(&scene.world, "192.0.2.99:80");
    greeter(&scene.world, "192.0.2.99:7000");
    USERS.iter().for_each(|address| web(&scene.world, address));
    let _pillion = scene.pillion(&users(), "unknown: refuse", "").await;
    let (status, text) = scene.ask("192.0.2.99:80", "www.example.com").await;
    assert_eq!(status, 404, "{text}");
    assert!(text.contains("192.0.2.99:80"), "{text}");
    assert_eq!(scene.ask("192.0.2.99:80", "user-service").await.0, 200);
    let mut opaque = scene.call("192.0.2.99:7000");
    opaque.write_all(b"PING\r\n").await.unwrap();
    assert_eq!(greeting(opaque).await.0, "", "nothing but the end");
    scene.logged(&["192.0.2.99:7000", "unknown_service"]).await;
}

#[tokio::test]
async fn bytes_stay_with_the_endpoint_that_was_called_unless_told_otherwise() {
    let scene = Scene::new();
    USERS.iter().for_each(|address| greeter(&scene.world, address));
    let mut pillion = scene.pillion(&users(), "", NAMED).await;
    for _ in 0..10 {
        for user in USERS {
            assert_eq!(greeting(scene.call(user)).await.0, user, "{}", scene.log());
        }
    }
    let mut heard = BTreeMap::<_, usize>::new();
    for _ in 0..30 {
        *heard.entry(greeting(scene.call("10.96.0.10:80")).await.0).or_default() += 1;
    }
    assert_eq!(heard.len(), 3, "a virtual address means all: {heard:?}");
    let closed = "pillion_tcp_closed_total{service=\"user-service\"";
    until("60 connections to end", async || scene.metric(closed).await == 60.0).await;
    pillion.signal("TERM");
    assert_eq!(pillion.ended().await, 0);
    let more = "services: { user-service: { tcp: { direct: balance }, balance: { policy: round-robin } } }";
    let _pillion = scene.pillion(&users(), "", more).await;
    let mut heard = BTreeMap::<_, usize>::new();
    for _ in 0..30 {
        *heard.entry(greeting(scene.call(USERS[0])).await.0).or_default() += 1;
    }
    assert_eq!(heard.len(), 3, "{heard:?}");
}

#[tokio::test]
async fn tls_goes_by_its_server_s_name_and_nothing_is_decrypted() {
    let scene = Scene::new();
    let (acceptor, connector) = tls("user-service.mesh");
    for address in USERS.iter().chain(&["192.0.2.99:443"]) {
        let (listener, acceptor) = (scene.world.listen(address.parse().unwrap()), acceptor.clone());
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    let mut stream = acceptor.accept(stream).await.unwrap();
                    stream.write_all(address.as_bytes()).await.unwrap();
                    let _ = stream.shutdown().await;
                });
            }
        });
    }
    let instances = USERS.map(|address| format!("{{ address: \"{address}\", tls: true }}")).join(", ");
    let listeners =
        "[{ name: transparent, listen: \"[::]:15001\", protocol: auto, transparent: {}, host_suffixes: [.mesh] }]";
    let _pillion = scene.pillion_with(&format!("user-service: [{instances}]"), listeners, NAMED).await;
    scene.net(&["up", "--pillion-group", PILLION]).await;
    let heard = async |address: &str| {
        let stream = scene.call(address);
        let mut stream = connector.connect("user-service.mesh".try_into().unwrap(), stream).await.unwrap();
        let mut heard = String::new();
        soon("a greeting", stream.read_to_string(&mut heard)).await.unwrap();
        heard
    };
    // By its name, where the address is nobody's, virtual, or one of the service's own.
    for address in ["198.51.100.1:443", "10.96.0.10:80", USERS[0]] {
        let mut answers = BTreeMap::<_, usize>::new();
        for _ in 0..15 {
            *answers.entry(heard(address).await).or_default() += 1;
        }
        assert_eq!(answers.len(), 3, "{address}: {answers:?}");
    }
    scene.logged(&["user-service.mesh", "service=user-service"]).await;
    // The name is of no service: it goes where it was to go.
    let mut stranger = scene.call("192.0.2.99:443");
    stranger.write_all(&client_hello("www.example.com")).await.unwrap();
    // Its server does not go on with what is no whole handshake.
    stranger.shutdown().await.unwrap();
    scene.logged(&["www.example.com", "service=(unknown)", "endpoint=192.0.2.99:443"]).await;
}

#[tokio::test]
async fn who_speaks_first_is_found_out_within_50_ms() {
    let scene = Scene::new();
    greeter(&scene.world, "192.0.2.99:7000");
    greeter(&scene.world, "192.0.2.99:4222");
    let _pillion = scene.pillion("", "", "").await;
    // Redirection leaves pillion's own connections alone.
    let own = Caller { user: 0, group: PILLION.parse().unwrap(), mark: 0 };
    let mut seen = Vec::new();
    // What else runs on this machine hinders both alike; where it hinders one of them more, another round counts.
    for _ in 0..8 {
        let (mut straight, mut took) = (Vec::new(), Vec::new());
        for address in ["192.0.2.99:7000", "192.0.2.99:4222"] {
            for _ in 0..20 {
                straight.push(greeting(scene.machine.connect(own, address.parse().unwrap()).unwrap()).await.1);
                let (heard, time) = greeting(scene.call(address)).await;
                assert_eq!(heard, address);
                took.push(time);
            }
        }
        let (straight, took) = (summary(straight), summary(took));
        println!("median and slowest: directly {straight:?}, redirected {took:?}");
        if took.0 < straight.0 + Duration::from_millis(50) {
            return;
        }
        seen.push((took, straight));
    }
    panic!("redirected, and directly: {seen:?}");
}

#[tokio::test]
async fn nothing_comes_back_to_pillion() {
    let scene = Scene::new();
    web(&scene.world, "192.0.2.99:80");
    let mut pillion = scene.pillion_alone("", "", "").await;
    // Whoever calls pillion itself has not been redirected.
    for address in ["127.0.0.1:15001", "[::1]:15001", "10.77.1.1:15001"] {
        scene.machine.reset(APP, address, b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    }
    let rejected = "pillion_requests_rejected_total{listener=\"transparent\",reason=\"loop\"}";
    until("3 to be rejected", async || scene.metric(rejected).await == 3.0).await;
    // Rules that do not leave pillion's own alone: what it opens comes back to it, once.
    scene.net(&["up", "--pillion-group", "65534"]).await;
    for _ in 0..50 {
        scene.machine.reset(APP, "192.0.2.99:80", b"GET / HTTP/1.1\r\nhost: www.example.com\r\n\r\n").await;
    }
    pillion.until_logged("pillion's own connections are redirected to itself").await;
    let accepted = scene.metric("pillion_connections_accepted_total{listener=\"transparent\"}").await;
    println!("50 connections in a loop: {} accepted", accepted - 3.0);
    assert!(accepted - 3.0 <= 120.0, "{accepted}: each comes back once, hardly ever twice");
    until("all to end", async || scene.metric("pillion_connections{listener=\"transparent\"}").await == 0.0).await;
}

#[tokio::test]
async fn inbound_connections_go_by_the_listener_of_the_application_whose_port_was_called() {
    let scene = Scene::new();
    for address in ["127.0.0.1:8080", "127.0.0.1:9090"] {
        web(&scene.machine, address);
    }
    greeter(&scene.machine, "10.77.1.1:7000");
    web(&scene.world, USERS[0]);
    let more = "node: { service: shop }\nservices: { user-service: {} }";
    let listeners = "[{ name: redirected, listen: \"[::]:15006\", protocol: auto, transparent: { direction: inbound, unknown: pass } }, \
                     { name: web, listen: 127.0.0.1:4143, app: 8080 }, \
                     { name: rpc, listen: 127.0.0.1:4144, protocol: auto, app: 9090, limits: { connections: 1 } }]";
    let mut pillion = scene.pillion_with(&users(), listeners, more).await;
    scene.net(&["up", "--pillion-group", PILLION, "--inbound-ports", "8080,9090,7000"]).await;
    let ask = async |port: u16, host: &str| {
        let address = format!("10.77.1.1:{port}").parse().unwrap();
        let mut peer = Peer::new(scene.world.connect(Caller::default(), address).unwrap());
        peer.send(get("/").replace("user-service", host)).await;
        (peer.response().await.text(), peer)
    };
    assert_eq!(ask(8080, "shop").await.0, "127.0.0.1:8080 by pillion");
    // It has no say in where it goes.
    assert_eq!(ask(8080, "user-service").await.0, "127.0.0.1:8080 by pillion");
    let (text, _open) = ask(9090, "shop").await;
    assert_eq!(text, "127.0.0.1:9090 by pillion");
    // That listener's limits count.
    scene.world.reset(Caller::default(), "10.77.1.1:9090", b"").await;
    let passed = scene.world.connect(Caller::default(), "10.77.1.1:7000".parse().unwrap()).unwrap();
    assert_eq!(greeting(passed).await.0, "10.77.1.1:7000", "no listener is for it");
    scene.logged(&["redirected", "10.77.1.1:7000", "service=(unknown)"]).await;
    let counted = "pillion_requests_total{service=\"shop\",listener=\"web\"";
    until("2 requests to be counted", async || scene.metric(counted).await == 2.0).await;
    // Redirected or not, they are inbound, so that they end before what the application calls.
    pillion.signal("TERM");
    assert_eq!(pillion.ended().await, 0);
}
