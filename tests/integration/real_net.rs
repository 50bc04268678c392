//! `pillion net`, in network namespaces: where connections end when its rules are in force.

use crate::{
    e2e::{output, soon},
    netns::{Caller, Namespace},
    pillion::tested,
    servers,
};
use serde_json::Value;
use socket2::SockRef;
use std::{fmt::Write as _, fs, net::SocketAddr, process::Stdio};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    process::Command,
};

const ROOT: Caller = Caller { user: 0, group: 0, mark: 0 };
/// Who the application runs as, and pillion.
const APP: Caller = Caller { user: 1000, group: 100, mark: 0 };
const PILLION: Caller = Caller { user: 65532, group: 65533, mark: 0 };
const MARKED: Caller = Caller { mark: 0x70, ..ROOT };

/// A machine with an application, and a world around it that is reached through one cable.
struct Scene {
    machine: Namespace,
    world: Namespace,
}

impl Scene {
    fn new() -> Self {
        let (machine, world) = (Namespace::new(), Namespace::new());
        machine.cable(&world, 1);
        machine.ip("route add default via 10.77.1.2");
        machine.ip("-6 route add default via fd77:1::2");
        world.ip("addr add 192.0.2.7/32 dev lo");
        world.ip("addr add 2001:db8::7/128 dev lo");
        Self { machine, world }
    }

    async fn pillion(&self, line: &str) -> (i32, String, String) {
        let args: Vec<_> = line.split_whitespace().collect();
        run(&mut self.machine.pillion(&args)).await
    }

    /// With these rules in force; returns what was printed.
    async fn up(&self, flags: &str) -> String {
        let (code, out, err) = self.pillion(&format!("net up {flags}")).await;
        assert_eq!((code, err.as_str()), (0, ""), "{flags}");
        out
    }

    async fn down(&self) -> String {
        let (code, out, err) = self.pillion("net down").await;
        assert_eq!((code, err.as_str()), (0, ""));
        out
    }

    async fn show(&self) -> String {
        let (code, out, err) = self.pillion("net show").await;
        assert_eq!((code, err.as_str()), (0, ""));
        out
    }

    /// Who greets a caller on the machine that calls there, and what they say was called.
    async fn called(&self, caller: Caller, address: &str) -> String {
        hear(self.machine.connect(caller, address.parse().unwrap()), address).await
    }

    /// The same from the world.
    async fn called_from_outside(&self, address: &str) -> String {
        hear(self.world.connect(ROOT, address.parse().unwrap()), address).await
    }

    async fn nft(&self, args: &[&str]) -> String {
        let (code, out, err) = run(self.machine.command(servers::program("nft")).args(args)).await;
        assert_eq!((code, err.as_str()), (0, ""), "{args:?}");
        out
    }

    async fn load(&self, rules: &str) {
        let mut command = self.machine.command(servers::program("nft"));
        let mut child = command.args(["-f", "-"]).stdin(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(rules.as_bytes()).await.unwrap();
        assert!(soon("nft to end", child.wait()).await.unwrap().success(), "{rules}");
    }
}

/// Exit code, standard output, standard error.
async fn run(command: &mut Command) -> (i32, String, String) {
    let output = output(command).await;
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

async fn hear(connected: std::io::Result<TcpStream>, address: &str) -> String {
    let mut heard = String::new();
    match connected {
        Ok(mut stream) => soon("a greeting", stream.read_to_string(&mut heard)).await.map(drop).unwrap(),
        Err(error) => write!(heard, "{address}: {error}").unwrap(),
    }
    heard
}

/// Greets all that connect with `name` and the address that they called.
fn greet(namespace: &Namespace, name: &'static str, address: &str) {
    let listener = namespace.listen(address.parse().unwrap());
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let greeting = format!("{name} {}", original(&stream));
            stream.write_all(greeting.as_bytes()).await.unwrap();
        }
    });
}

/// The address that the caller asked for.
fn original(stream: &TcpStream) -> SocketAddr {
    let local = stream.local_addr().unwrap();
    let socket = SockRef::from(stream);
    let is_v4 = local.ip().to_canonical().is_ipv4();
    let asked = if is_v4 { socket.original_dst_v4() } else { socket.original_dst_v6() };
    // Where nothing is redirected, the kernel keeps no account of it.
    let asked = asked.ok().and_then(|address| address.as_socket()).unwrap_or(local);
    SocketAddr::new(asked.ip().to_canonical(), asked.port())
}

/// What is said over one end is heard at the other.
async fn carries(from: &mut TcpStream, to: &mut TcpStream) {
    from.write_all(b"hello").await.unwrap();
    let mut heard = [0; 5];
    soon("what was said", to.read_exact(&mut heard)).await.unwrap();
    assert_eq!(&heard, b"hello");
}

async fn accept(listener: &TcpListener) -> TcpStream {
    soon("a connection", listener.accept()).await.unwrap().0
}

#[tokio::test]
async fn connections_anywhere_end_at_pillion_which_learns_where_they_were_to_go() {
    // One socket for both families, and one for each.
    for listeners in [&["[::]:15001"][..], &["127.0.0.1:15001", "[::1]:15001"]] {
        let scene = Scene::new();
        listeners.iter().for_each(|address| greet(&scene.machine, "pillion", address));
        greet(&scene.world, "world", "[::]:80");
        let told = scene.up("--pillion-user 65532").await;
        assert!(
            told.starts_with(
                "outbound, to port 15001:\n  all users (0 connections so far)\n  who listens there is user 0"
            ),
            "{told}"
        );
        let addresses = ["10.77.1.2:80", "192.0.2.7:1", "198.51.100.1:65535", "[fd77:1::2]:80", "[2001:db8:1::9]:443"];
        for address in addresses {
            for caller in [APP, ROOT, MARKED] {
                assert_eq!(scene.called(caller, address).await, format!("pillion {address}"), "{listeners:?}");
            }
        }
        let told = scene.show().await;
        assert!(told.contains(&format!("  all users ({} connections so far)\n", 3 * addresses.len())), "{told}");
        assert_eq!(scene.called(PILLION, "10.77.1.2:80").await, "world 10.77.1.2:80");
        assert_eq!(scene.called(PILLION, "[fd77:1::2]:80").await, "world [fd77:1::2]:80");
    }
}

#[tokio::test]
async fn what_is_excluded_goes_straight() {
    let scene = Scene::new();
    greet(&scene.machine, "pillion", "[::]:15001");
    greet(&scene.machine, "app", "[::]:8080");
    for address in ["[::]:80", "[::]:53", "[::]:3306", "[::]:9050"] {
        greet(&scene.world, "world", address);
    }
    scene
        .up("--pillion-user 65532 --pillion-group 65533 --pillion-mark 0x70 --exclude-users 1002,1003 --exclude-groups 102 \
             --exclude-ports 3306,9000-9099 --exclude-cidrs 192.0.2.0/24,2001:db8::/32")
        .await;
    for address in ["10.77.1.2:80", "[fd77:1::2]:80", "10.77.1.2:3307", "[fd77:1::2]:9100"] {
        assert_eq!(scene.called(APP, address).await, format!("pillion {address}"));
    }
    for address in [
        "192.0.2.7:80",
        "[2001:db8::7]:80",
        "10.77.1.2:3306",
        "[fd77:1::2]:3306",
        "10.77.1.2:9050",
        "10.77.1.2:53",
        "[fd77:1::2]:53",
    ] {
        assert_eq!(scene.called(APP, address).await, format!("world {address}"));
    }
    for caller in [
        Caller { user: PILLION.user, ..APP },
        Caller { group: PILLION.group, ..APP },
        Caller { user: 1003, ..APP },
        Caller { group: 102, ..APP },
        MARKED,
    ] {
        for address in ["10.77.1.2:80", "[fd77:1::2]:80"] {
            assert_eq!(scene.called(caller, address).await, format!("world {address}"), "{caller:?}");
        }
    }
    // The machine's own addresses, also of an application that calls itself.
    for address in ["127.0.0.1:8080", "127.0.0.2:8080", "[::1]:8080", "10.77.1.1:8080", "[fd77:1::1]:8080"] {
        assert_eq!(scene.called(APP, address).await, format!("app {address}"));
    }
    // What others send to the machine is nothing to do with it.
    assert_eq!(scene.called_from_outside("10.77.1.1:8080").await, "app 10.77.1.1:8080");
}

#[tokio::test]
async fn only_chosen_users_and_groups_are_redirected() {
    let scene = Scene::new();
    greet(&scene.machine, "pillion", "[::]:16001");
    greet(&scene.world, "world", "[::]:80");
    let told = scene.up("--pillion-user 65532 --outbound-port 16001 --users 1000,1001 --groups daemon").await;
    let daemon = 1;
    assert!(told.contains("outbound, to port 16001:\n  users: 1000, 1001 (0 con"), "{told}");
    assert!(told.contains(&format!("\n  groups: {daemon} (0 con")), "{told}");
    let other = Caller { user: 2000, group: 2000, mark: 0 };
    for (caller, greeted) in [
        (APP, "pillion"),
        (Caller { user: 1001, ..other }, "pillion"),
        (Caller { group: daemon, ..other }, "pillion"),
        (other, "world"),
        (ROOT, "world"),
        (Caller { user: PILLION.user, group: daemon, mark: 0 }, "world"),
    ] {
        for address in ["10.77.1.2:80", "[fd77:1::2]:80"] {
            assert_eq!(scene.called(caller, address).await, format!("{greeted} {address}"), "{caller:?}");
        }
    }
}

#[tokio::test]
async fn inbound_connections_end_at_pillion_where_that_is_asked_for() {
    let scene = Scene::new();
    greet(&scene.machine, "pillion", "[::]:15006");
    for address in ["[::]:22", "[::]:4143", "[::]:4191", "[::]:8080", "[::]:8081"] {
        greet(&scene.machine, "app", address);
    }
    // A router: what goes through it is not its own.
    scene.machine.ip("addr add 203.0.113.1/24 dev lo");
    let chosen = "--pillion-user 65532 --inbound-ports 8080,9000-9099";
    let told = scene.up(chosen).await;
    assert!(told.contains("inbound, to port 15006:\n  to ports: 8080, 9000-9099 (0 connections so far)\n"), "{told}");
    for address in ["10.77.1.1:8080", "[fd77:1::1]:8080", "10.77.1.1:9001", "203.0.113.1:8080"] {
        if address.starts_with("203") {
            scene.world.ip("route add 203.0.113.0/24 via 10.77.1.1");
        }
        assert_eq!(scene.called_from_outside(address).await, format!("pillion {address}"));
    }
    assert_eq!(scene.called_from_outside("10.77.1.1:8081").await, "app 10.77.1.1:8081");
    // pillion calls the application at the address that was asked for, and that must not come back to it.
    for address in ["10.77.1.1:8080", "[fd77:1::1]:8080", "127.0.0.1:8080"] {
        for caller in [PILLION, APP] {
            assert_eq!(scene.called(caller, address).await, format!("app {address}"));
        }
    }
    scene.up("--pillion-user 65532 --inbound-ports all --exclude-inbound-ports 8081").await;
    for address in ["10.77.1.1:8080", "[fd77:1::1]:8080", "10.77.1.1:1", "[fd77:1::1]:65535"] {
        assert_eq!(scene.called_from_outside(address).await, format!("pillion {address}"));
    }
    for port in [22, 4143, 4191, 8081] {
        for address in [format!("10.77.1.1:{port}"), format!("[fd77:1::1]:{port}")] {
            assert_eq!(scene.called_from_outside(&address).await, format!("app {address}"));
        }
    }
    // Called itself, pillion sees its own address, and no other.
    assert_eq!(scene.called_from_outside("10.77.1.1:15006").await, "pillion 10.77.1.1:15006");
}

#[tokio::test]
async fn what_goes_through_the_machine_to_others_is_left_alone() {
    let (scene, beyond) = (Scene::new(), Namespace::new());
    scene.machine.cable(&beyond, 2);
    beyond.ip("route add default via 10.77.2.1");
    scene.machine.enter(|| fs::write("/proc/sys/net/ipv4/ip_forward", "1")).unwrap();
    scene.world.ip("route add 10.77.2.0/24 via 10.77.1.1");
    greet(&scene.machine, "pillion", "[::]:15006");
    greet(&beyond, "beyond", "[::]:80");
    scene.up("--pillion-user 65532 --inbound-ports all").await;
    assert_eq!(scene.called_from_outside("10.77.2.2:80").await, "beyond 10.77.2.2:80");
    assert_eq!(scene.called_from_outside("10.77.2.1:80").await, "pillion 10.77.2.1:80");
}

#[tokio::test]
async fn connections_that_are_there_outlive_new_rules() {
    let scene = Scene::new();
    let pillion = scene.machine.listen("[::]:15001".parse().unwrap());
    let world = scene.world.listen("[::]:80".parse().unwrap());
    let address = "10.77.1.2:80".parse().unwrap();
    let mut direct = scene.machine.connect(APP, address).unwrap();
    let mut direct_end = accept(&world).await;
    carries(&mut direct, &mut direct_end).await;
    scene.up("--pillion-user 65532").await;
    carries(&mut direct, &mut direct_end).await;
    carries(&mut direct_end, &mut direct).await;

    let mut redirected = scene.machine.connect(APP, address).unwrap();
    let mut redirected_end = accept(&pillion).await;
    carries(&mut redirected, &mut redirected_end).await;
    scene.up("--pillion-user 65532 --exclude-ports 80").await;
    carries(&mut redirected, &mut redirected_end).await;
    carries(&mut redirected_end, &mut redirected).await;
    let mut straight = scene.machine.connect(APP, address).unwrap();
    let mut straight_end = accept(&world).await;
    scene.down().await;
    for (near, far) in [(&mut direct, &mut direct_end), (&mut straight, &mut straight_end)] {
        carries(near, far).await;
        carries(far, near).await;
    }
}

/// What another firewall has, some of it in pillion's own hooks.
const OTHERS: &str = r#"
table inet firewall {
	set trusted { type ipv4_addr; flags interval; elements = { 10.0.0.0/8, 192.168.0.0/16 }; }
	chain input { type filter hook input priority filter; policy accept; ip saddr @trusted counter accept; tcp dport 4444 drop; }
	chain pillion { tcp dport 80 return; }
}
table ip nat {
	chain OUTPUT { type nat hook output priority -100; policy accept; ip daddr 198.51.100.0/24 tcp dport 1 dnat to 10.77.1.2:80; }
	chain POSTROUTING { type nat hook postrouting priority srcnat; policy accept; oifname "none" masquerade; }
}
table ip pillion {
	chain outbound { type filter hook output priority 0; policy accept; }
}
"#;

#[tokio::test]
async fn rules_of_others_stay_byte_for_byte() {
    let scene = Scene::new();
    for others in ["", OTHERS] {
        scene.load(others).await;
        let before = scene.nft(&["list", "ruleset"]).await;
        assert_eq!(before.is_empty(), others.is_empty());
        assert_eq!(scene.show().await, "nothing goes through pillion: it has no rules here\n");
        assert_eq!(scene.down().await, "there are no rules of pillion's\n");
        assert_eq!(scene.nft(&["list", "ruleset"]).await, before);

        let flags = "--pillion-user 65532 --dns-port 15053 --exclude-cidrs 10.0.0.0/8,fd00::/8 --inbound-ports all";
        let told = scene.up(flags).await;
        assert!(told.contains("  nobody listens there: until pillion does, these connections are refused\n"), "{told}");
        let own = scene.nft(&["list", "table", "inet", "pillion"]).await;
        assert_eq!(scene.nft(&["list", "ruleset"]).await, before.clone() + &own);
        assert_eq!(scene.up(flags).await, told, "twice is as once");
        assert_eq!(scene.nft(&["list", "table", "inet", "pillion"]).await, own);
        assert_eq!(scene.nft(&["list", "ruleset"]).await, before.clone() + &own);

        let other = scene.up("--pillion-user 65532 --users 1000").await;
        let replaced = scene.nft(&["list", "table", "inet", "pillion"]).await;
        assert!(
            replaced.contains("skuid 1000")
                && ["inbound", "10.0.0.0", "dns"].iter().all(|text| !replaced.contains(text)),
            "{replaced}"
        );
        assert!(other.contains("users: 1000") && other.ends_with("inbound, straight:\n  all\n"), "{other}");
        assert_eq!(scene.show().await, other);

        assert_eq!(scene.down().await, "pillion's rules are gone\n");
        assert_eq!(scene.nft(&["list", "ruleset"]).await, before);
        assert_eq!(scene.down().await, "there are no rules of pillion's\n");
        assert_eq!(scene.nft(&["list", "ruleset"]).await, before);
    }
    // Where another rule would send it elsewhere, pillion sees what the application asked for.
    greet(&scene.machine, "pillion", "[::]:15001");
    greet(&scene.world, "world", "[::]:80");
    assert_eq!(scene.called(APP, "198.51.100.1:1").await, "world 10.77.1.2:80");
    scene.up("--pillion-user 65532").await;
    assert_eq!(scene.called(APP, "198.51.100.1:1").await, "pillion 198.51.100.1:1");
    assert_eq!(scene.called(PILLION, "198.51.100.1:1").await, "world 10.77.1.2:80");
}

#[tokio::test]
async fn what_is_printed_for_review_is_what_is_put_in_force() {
    let scene = Scene::new();
    let flags = "--pillion-user 65532 --pillion-mark 0x70 --dns-port 15053 --exclude-ports 3306 --exclude-cidrs 10.0.0.0/8 --inbound-ports all";
    let (code, printed, err) = scene.pillion(&format!("net up --print {flags}")).await;
    assert_eq!((code, err.as_str()), (0, ""));
    assert_eq!(scene.nft(&["list", "ruleset"]).await, "", "nothing was touched");
    scene.load(&printed).await;
    let by_hand = scene.nft(&["list", "ruleset"]).await;
    scene.up(flags).await;
    assert_eq!(scene.nft(&["list", "ruleset"]).await, by_hand);
}

#[tokio::test]
async fn show_tells_programs_as_well() {
    let scene = Scene::new();
    let json = async || -> Value {
        let (code, out, err) = scene.pillion("net show --json").await;
        assert_eq!((code, err.as_str()), (0, ""));
        serde_json::from_str(&out).unwrap()
    };
    assert_eq!(json().await, serde_json::json!({"outbound": null, "inbound": null}));
    greet(&scene.machine, "pillion", "[::]:15001");
    scene.up("--pillion-user 65532 --exclude-cidrs 10.0.0.0/8,192.0.2.7,fd00::/8 --exclude-ports 1-9").await;
    scene.called(APP, "198.51.100.1:80").await;
    let found = json().await;
    let outbound = &found["outbound"];
    assert_eq!((&outbound["port"], &outbound["listening"]), (&15001.into(), &true.into()));
    assert_eq!(outbound["redirected"], serde_json::json!([{"what": "all users", "connections": 1}]));
    let straight = outbound["straight"].as_array().unwrap();
    let values: Vec<_> = straight.iter().filter_map(|rule| Some((rule["what"].as_str()?, &rule["values"]))).collect();
    let texts = |all: &[&str]| Value::from(all.to_vec());
    for (what, wanted) in [
        ("pillion's own, users", texts(&["65532"])),
        ("to addresses", texts(&["10.0.0.0/8", "192.0.2.7"])),
        ("to addresses", texts(&["fd00::/8"])),
        ("to ports", texts(&["1-9", "53"])),
    ] {
        assert!(values.contains(&(what, &wanted)), "{what} {wanted}: {found:#}");
    }
    scene.load("add rule inet pillion outbound tcp dport 7 drop").await;
    let (code, _, err) = scene.pillion("net show").await;
    assert!(code == 1 && err.contains("not as this pillion makes it"), "{err}");
}

#[tokio::test]
async fn without_the_right_or_the_program_it_is_told_what_to_do() {
    let scene = Scene::new();
    let pillion = tested();
    for command in [&["up", "--pillion-user", "65532"][..], &["down"], &["show"]] {
        let mut powerless = scene.machine.command("setpriv");
        powerless.args(["--bounding-set", "-net_admin", pillion, "net"]).args(command);
        let (code, out, err) = run(&mut powerless).await;
        assert_eq!((code, out.as_str()), (1, ""), "{command:?}: {err}");
        assert!(err.contains("CAP_NET_ADMIN") && err.contains("sudo") && err.contains("add: [NET_ADMIN]"), "{err}");

        // Where folders of programs are empty.
        let mut without = scene.machine.command("unshare");
        let hide =
            "for folder in /usr/sbin /usr/local/sbin; do mount -t tmpfs none $folder || exit; done; PATH= exec \"$@\"";
        without.args(["--mount", "sh", "-c", hide, "sh", pillion, "net"]).args(command);
        let (code, out, err) = run(&mut without).await;
        assert_eq!((code, out.as_str()), (1, ""), "{command:?}: {err}");
        assert!(err.contains("`nft` is not installed") && err.contains("apt-get install nftables"), "{err}");
    }
    assert_eq!(scene.nft(&["list", "ruleset"]).await, "");
}

#[tokio::test]
async fn a_port_where_pillion_cannot_take_them_is_told() {
    let scene = Scene::new();
    greet(&scene.world, "world", "[::]:80");
    let told = scene.up("--pillion-user 65532").await;
    assert!(told.contains("  nobody listens there: until pillion does"), "{told}");
    // For one family, and as another user than the rules say.
    greet(&scene.machine, "pillion", "127.0.0.1:15001");
    let told = scene.show().await;
    assert!(told.contains("  nobody listens there for IPv6, and its connections are refused; expected"), "{told}");
    assert!(told.contains("  who listens there is user 0, group 0, whose connections are redirected, too"), "{told}");
    assert_eq!(scene.called(APP, "10.77.1.2:80").await, "pillion 10.77.1.2:80");
    assert!(scene.called(APP, "[fd77:1::2]:80").await.contains("refused"), "as was told");
    greet(&scene.machine, "pillion", "[::1]:15001");
    for own in ["--pillion-user root", "--pillion-group root", "--pillion-mark 7"] {
        let told = scene.up(own).await;
        assert!(!told.contains("nobody listens") && !told.contains("who listens"), "{own}: {told}");
    }
    // Inbound ones arrive at an address of the machine, and nothing else is redirected.
    greet(&scene.machine, "pillion", "127.0.0.1:15006");
    let told = scene.up("--no-outbound --inbound-ports 8080").await;
    assert!(told.starts_with("outbound, straight:\n  all\ninbound, to port 15006:\n  to ports: 8080 (0 con"), "{told}");
    for family in ["IPv4", "IPv6"] {
        assert!(told.contains(&format!("  nobody listens there for {family}, and")), "{told}");
    }
    assert!(!told.contains("who listens"), "{told}");
    assert!(scene.called_from_outside("10.77.1.1:8080").await.contains("refused"), "as was told");
    assert_eq!(scene.called(APP, "10.77.1.2:80").await, "world 10.77.1.2:80");
    greet(&scene.machine, "pillion", "10.77.1.1:15006");
    assert_eq!(scene.called_from_outside("10.77.1.1:8080").await, "pillion 10.77.1.1:8080");
    let told = scene.show().await;
    assert!(!told.contains("for IPv4") && told.contains("for IPv6"), "{told}");
}
