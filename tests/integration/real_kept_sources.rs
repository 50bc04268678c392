//! Applications that see their clients' addresses behind pillion (`app.source: client`), in network namespaces.

use crate::{
    e2e::{self, Client, output, soon, until},
    netns::{Caller, Namespace},
    peer::{Peer, get},
    pillion::tested,
    scene::Scene,
    servers::{
        daemon::{Daemon, Kind},
        program,
    },
};
use http::{Response, Version};
use http_body_util::Full;
use std::{fs, net::SocketAddr};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::watch,
};

/// Each answers with the address that its connection comes from: requests on 8080, bytes on 9090. Of both families, each apart.
fn apps(machine: &Namespace) {
    for host in ["127.0.0.1", "[::1]"] {
        let listener = machine.listen(format!("{host}:8080").parse().unwrap());
        tokio::spawn(async move {
            // Nobody leaves.
            let (_stays, leaving) = watch::channel(false);
            loop {
                let (stream, peer) = listener.accept().await.unwrap();
                let answer = move |_| async move { Ok(Response::new(Full::new(peer.ip().to_string().into()))) };
                tokio::spawn(e2e::serve(stream, answer, leaving.clone()));
            }
        });
        let listener = machine.listen(format!("{host}:9090").parse().unwrap());
        tokio::spawn(async move {
            loop {
                let (mut stream, peer) = listener.accept().await.unwrap();
                tokio::spawn(async move { stream.write_all(peer.ip().to_string().as_bytes()).await });
            }
        });
    }
}

/// Two listeners for each application, because each takes clients of one family.
const LISTENERS: &str = r#"
  - { name: redirected, listen: "[::]:15006", protocol: auto, transparent: { direction: inbound } }
  - { name: web, listen: "[::]:4143", app: { address: 8080, source: client } }
  - { name: web6, listen: "[::]:4144", app: { address: "[::1]:8080", source: client } }
  - { name: bytes, listen: "[::]:4145", protocol: tcp, app: { address: 9090, source: client } }
  - { name: bytes6, listen: "[::]:4146", protocol: tcp, app: { address: "[::1]:9090", source: client } }
  - { name: plain, listen: "[::]:4147", app: 8080 }
"#;

fn config(listeners: &str) -> String {
    format!("discovery: {{ sources: [main] }}\nlisteners:{listeners}")
}

/// What is put in force for these listeners.
const UP: [&str; 6] = ["up", "--no-outbound", "--inbound-ports", "8080,9090", "--keep-source", "8080,9090,6379"];

async fn net(machine: &Namespace, args: &[&str]) -> String {
    let output = output(machine.pillion(&["net"]).args(args)).await;
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{args:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn call(world: &Namespace, address: &str) -> TcpStream {
    let address: SocketAddr = address.parse().unwrap();
    world.connect(Caller::default(), address).unwrap_or_else(|error| panic!("{address}: {error}"))
}

async fn rest(mut stream: TcpStream) -> String {
    let mut heard = String::new();
    // A reset is an end as well.
    let _ = soon("the end", stream.read_to_string(&mut heard)).await;
    heard
}

#[tokio::test]
async fn applications_see_who_called_though_pillion_is_between() {
    let scene = Scene::new(2);
    let machine = &scene.machine;
    // As strict as a machine can be about addresses that come from where they do not belong.
    machine.enter(|| fs::write("/proc/sys/net/ipv4/conf/all/rp_filter", "1")).unwrap();
    apps(machine);
    let redis = Daemon::start(Kind::Redis, machine).await;
    let more = "  - { name: redis, listen: \"[::]:6380\", protocol: tcp, app: { address: 6379, source: client } }\n";
    let pillion = scene.pillion("", &config(&(LISTENERS.to_owned() + more))).await;
    let told = net(machine, &UP).await;
    assert!(
        told.ends_with("answers to clients' addresses, back to pillion:\n  from ports: 6379, 8080, 9090\n"),
        "{told}"
    );

    // By turns and at once, on connections that stay: pillion's own to the application stay as well, each with its own client.
    let asking = scene.worlds.iter().enumerate().flat_map(|(index, world)| {
        let number = index + 1;
        let (v4, v6) = (format!("10.77.{number}.2"), format!("fd77:{number}::2"));
        let ways = [
            (format!("10.77.{number}.1:4143"), v4.clone()),
            (format!("10.77.{number}.1:8080"), v4),
            (format!("[fd77:{number}::1]:4144"), v6.clone()),
            (format!("[fd77:{number}::1]:8080"), v6),
        ];
        ways.into_iter().map(move |(address, own)| async move {
            for version in [Version::HTTP_11, Version::HTTP_2] {
                for _ in 0..3 {
                    let mut client = Client::over(call(world, &address), version).await.unwrap();
                    for _ in 0..20 {
                        let (status, seen) = client.get("anybody", "/").await.unwrap();
                        assert_eq!((status.as_u16(), &seen), (200, &own), "{version:?} {address}");
                    }
                }
            }
        })
    });
    futures_util::future::join_all(asking).await;
    // It is not so for a listener that was not asked to.
    let mut client = Client::over(call(&scene.worlds[0], "10.77.1.1:4147"), Version::HTTP_11).await.unwrap();
    assert_eq!(client.get("anybody", "/").await.unwrap().1, "127.0.0.1");

    for _ in 0..5 {
        for (index, world) in scene.worlds.iter().enumerate() {
            let number = index + 1;
            for port in [4145, 9090] {
                assert_eq!(rest(call(world, &format!("10.77.{number}.1:{port}"))).await, format!("10.77.{number}.2"));
            }
            for port in [4146, 9090] {
                assert_eq!(rest(call(world, &format!("[fd77:{number}::1]:{port}"))).await, format!("fd77:{number}::2"));
            }
        }
    }
    // A client on the machine itself has an address, too.
    assert_eq!(rest(call(machine, "127.0.0.1:4145")).await, "127.0.0.1");
    assert_eq!(rest(call(machine, "10.77.1.1:4145")).await, "10.77.1.1");

    let mut clients: Vec<_> =
        scene.worlds.iter().zip(1..).map(|(world, n)| call(world, &format!("10.77.{n}.1:6380"))).collect();
    for client in &mut clients {
        client.write_all(b"PING\r\n").await.unwrap();
        let mut pong = [0; 7];
        soon("PONG", client.read_exact(&mut pong)).await.unwrap();
    }
    clients[0].write_all(b"CLIENT LIST\r\nQUIT\r\n").await.unwrap();
    let list = rest(clients.remove(0)).await;
    for number in [1, 2] {
        assert!(list.contains(&format!(" addr=10.77.{number}.2:")), "{list}");
    }
    drop((redis, pillion));
}

#[tokio::test]
async fn an_address_that_cannot_be_kept_is_an_error_and_not_another_address() {
    let scene = Scene::new(1);
    let (machine, world) = (&scene.machine, &scene.worlds[0]);
    apps(machine);
    let mut pillion = scene.pillion("", &config(LISTENERS)).await;
    let ask = async |address: &str| {
        let mut peer = Peer::new(call(world, address));
        peer.send(get("/")).await;
        let response = peer.response().await;
        (response.error().0, response.error().1.map(str::to_owned), response.text())
    };
    // The kernel does not know yet what to do with the answers.
    let (status, reason, text) = ask("10.77.1.1:4143").await;
    assert_eq!((status, reason.as_deref()), (504, Some("connect_timeout")), "{text}");
    assert!(text.contains("as 10.77.1.2") && text.contains("pillion net up --keep-source"), "{text}");
    pillion.process.until_logged("an application could not be connected to as its client").await;
    net(machine, &["up", "--no-outbound", "--keep-source", "8080"]).await;
    assert_eq!(ask("10.77.1.1:4143").await.2, "10.77.1.2", "at once, and without a restart");

    for (address, client) in [("[fd77:1::1]:4143", "fd77:1::2"), ("10.77.1.1:4144", "10.77.1.2")] {
        let (status, reason, text) = ask(address).await;
        assert_eq!((status, reason.as_deref()), (502, Some("connect_failed")), "{text}");
        assert!(text.contains(&format!("cannot connect as {client}")) && text.contains("IPv6"), "{text}");
    }
    // Of bytes, only the end is seen.
    world.reset(Caller::default(), "[fd77:1::1]:4145", b"").await;
}

#[tokio::test]
async fn without_the_right_it_does_not_start() {
    let scene = Scene::new(1);
    let file = scene.dir.path().join("pillion.yaml");
    let text = "admin: { listen: 127.0.0.1:4191 }\nlisteners: [{ name: web, listen: 0.0.0.0:4143, app: { address: 8080, source: client } }]\n";
    for (source, refused) in [("client", true), ("pillion", false)] {
        fs::write(&file, text.replace("source: client", &format!("source: {source}"))).unwrap();
        let mut powerless = scene.machine.command("setpriv");
        powerless.args(["--bounding-set", "-net_admin,-net_raw", tested(), "run"]).arg(&file);
        if refused {
            let output = output(&mut powerless).await;
            let told = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(1), "{told}");
            for word in ["listener `web`", "app.source: client", "CAP_NET_RAW", "AmbientCapabilities"] {
                assert!(told.contains(word), "{word}: {told}");
            }
        } else {
            e2e::Pillion::start(&mut powerless).await;
        }
    }
    // One of the two rights is enough.
    fs::write(&file, text).unwrap();
    let mut raw = scene.machine.command("setpriv");
    raw.args(["--bounding-set", "-net_admin", tested(), "run"]).arg(&file);
    e2e::Pillion::start(&mut raw).await;
}

/// All that could have been changed.
async fn state(machine: &Namespace) -> String {
    let mut state = String::new();
    for args in
        [&["rule"][..], &["-6", "rule"], &["route", "show", "table", "all"], &["-6", "route", "show", "table", "all"]]
    {
        let output = output(machine.command(program("ip")).args(args)).await;
        state += &String::from_utf8_lossy(&output.stdout);
    }
    let output = output(machine.command(program("nft")).args(["list", "ruleset"])).await;
    state + &String::from_utf8_lossy(&output.stdout)
}

#[tokio::test]
async fn down_leaves_rules_and_routes_as_they_were() {
    let scene = Scene::new(1);
    let machine = &scene.machine;
    // The kernel gives the cable an address of its own as soon as both ends are up, and adds a route to that, the last of all,
    // once it is sure that nobody else has it.
    until("the last route of the kernel's own", async || state(machine).await.contains("local fe80::")).await;
    // Others have rules and tables, too, one of the same number.
    machine.ip("rule add priority 4139 from 10.9.0.0/16 lookup 77");
    machine.ip("rule add priority 4140 from 10.10.0.0/16 lookup 4140");
    machine.ip("route add 10.11.0.0/16 via 10.77.1.2 table 4140");
    machine.ip("-6 route add fd99::/64 via fd77:1::2 table 77");
    let before = state(machine).await;
    assert_eq!(net(machine, &["down"]).await, "there are no rules of pillion's\n");
    assert_eq!(state(machine).await, before);

    let told = net(machine, &UP).await;
    let up = state(machine).await;
    assert_ne!(up, before);
    assert_eq!(net(machine, &UP).await, told, "twice is as once");
    assert_eq!(state(machine).await, up);
    assert_eq!(net(machine, &["show"]).await, told);
    let json: serde_json::Value = serde_json::from_str(&net(machine, &["show", "--json"]).await).unwrap();
    assert_eq!(json["kept_sources"], serde_json::json!(["6379", "8080", "9090"]));

    // Others in their place, and none.
    let told = net(machine, &["up", "--no-outbound", "--keep-source", "8080,9000-9099"]).await;
    assert!(told.ends_with("  from ports: 8080, 9000-9099\n"), "{told}");
    assert!(told.starts_with("outbound, straight:\n  all\ninbound, straight:\n  all\n"), "{told}");
    let told = net(machine, &["up", "--pillion-user", "65532"]).await;
    assert!(!told.contains("from ports"), "{told}");
    assert_eq!(net(machine, &["down"]).await, "pillion's rules are gone\n");
    assert_eq!(state(machine).await, before);

    net(machine, &UP).await;
    assert_eq!(net(machine, &["down"]).await, "pillion's rules are gone\n");
    assert_eq!(state(machine).await, before);

    // What is printed for review does the same by hand.
    let printed = net(machine, &[&UP[..], &["--print"]].concat()).await;
    assert_eq!(state(machine).await, before, "nothing was touched");
    for line in printed.lines().filter_map(|line| line.strip_prefix("# ip ")) {
        machine.ip(line);
    }
    net(machine, &["down"]).await;
    assert_eq!(state(machine).await, before);
}
