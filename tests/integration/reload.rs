//! A running pillion takes another config, and ends, without a failed request.

use crate::{
    e2e::{ANY, Client, Load, Pillion, Upstream, get, soon, until_answer},
    socket::{Socket, free_port},
};
use http::Version;
use std::{
    collections::BTreeMap,
    fs,
    net::{SocketAddr, TcpListener},
    path::PathBuf,
    time::Duration,
};
use tempfile::TempDir;
use tokio::{net::TcpStream, time::sleep};

const IN_FORCE: &str = "the new config is in force";
const STAYS: &str = "the old one stays in force";

/// A pillion with a config file, and the services `users` and `orders` of three instances each.
struct Setup {
    folder: TempDir,
    pillion: Pillion,
    upstreams: Vec<Upstream>,
    reloads: BTreeMap<&'static str, usize>,
}

/// The parts of the config that the tests change.
#[derive(Clone, Default)]
struct Parts {
    more_listeners: String,
    egress: String,
    policy: String,
}

impl Setup {
    async fn start() -> Self {
        let (folder, mut upstreams) = (TempDir::new().unwrap(), Vec::new());
        let mut instances = "services:\n".to_owned();
        for service in ["users", "orders"] {
            let mut addresses = Vec::new();
            for number in 1..=3 {
                let upstream = Upstream::start(&format!("{service}-{number}")).await;
                addresses.push(format!("\"{}\"", upstream.address));
                upstreams.push(upstream);
            }
            instances += &format!("  {service}: [{}]\n", addresses.join(", "));
        }
        fs::write(folder.path().join("instances.yaml"), instances).unwrap();
        write(&folder, &Parts::default());
        let pillion = Pillion::with_config(&config(&folder)).await;
        Self { folder, pillion, upstreams, reloads: BTreeMap::new() }
    }

    /// Changes the file, sends SIGHUP and waits until the log says that it is done, as expected.
    async fn reload(&mut self, parts: &Parts, outcome: &'static str) {
        write(&self.folder, parts);
        self.hangup(outcome).await;
    }

    async fn hangup(&mut self, outcome: &'static str) {
        self.pillion.signal("HUP");
        self.logged(outcome).await;
    }

    /// Waits until the log says this once more.
    async fn logged(&mut self, outcome: &'static str) {
        let times = self.reloads.entry(outcome).or_default();
        *times += 1;
        self.pillion.until_logged_times(outcome, *times).await;
    }

    /// The instances that answer this many requests in turn.
    async fn answers(&self, host: &str, count: usize) -> Vec<String> {
        let mut names = Vec::new();
        for _ in 0..count {
            names.push(get(self.pillion.egress(), host).await.unwrap().1);
        }
        names
    }

    /// Waits until the instances hold so many requests.
    async fn until_held(&self, count: usize) {
        let polling = async {
            while self.upstreams.iter().map(Upstream::holds).sum::<usize>() < count {
                sleep(Duration::from_millis(10)).await;
            }
        };
        soon("the held requests", polling).await;
    }
}

fn config(folder: &TempDir) -> PathBuf {
    folder.path().join("pillion.yaml")
}

fn write(folder: &TempDir, Parts { more_listeners, egress, policy }: &Parts) {
    let policy = if policy.is_empty() { "random" } else { policy };
    let text = format!(
        "registries: {{ main: {{ kind: file, path: instances.yaml }} }}\nadmin: {{ listen: {ANY} }}\nlisteners:\n  \
         - {{ name: egress, listen: {ANY}{egress} }}\n{more_listeners}\
         services:\n  orders: {{ balance: {{ policy: {policy} }} }}\n"
    );
    fs::write(config(folder), text).unwrap();
}

#[tokio::test]
async fn a_good_reload_takes_effect_and_no_request_fails() {
    let mut setup = Setup::start().await;
    let egress = setup.pillion.egress();
    let mut loads = [Version::HTTP_11, Version::HTTP_2].map(|version| Load::start(egress, version, "users", 4));

    // A new listener.
    let more_listeners = format!("  - {{ name: fixed, listen: {ANY}, service: orders }}\n");
    let mut parts = Parts { more_listeners, ..Parts::default() };
    setup.reload(&parts, IN_FORCE).await;
    let fixed = setup.pillion.listener("fixed");
    assert!(get(fixed, "whatever").await.unwrap().1.starts_with("orders-"));

    // Another policy.
    parts.policy = "round-robin".into();
    setup.reload(&parts, IN_FORCE).await;
    let mut names = setup.answers("orders", 6).await;
    assert_eq!(names[..3], names[3..], "in turn");
    names.sort();
    names.dedup();
    assert_eq!(names, ["orders-1", "orders-2", "orders-3"]);

    // Another suffix, for connections that are open as well.
    let mut open = Client::connect(egress, Version::HTTP_11).await.unwrap();
    assert_eq!(open.get("users.mesh", "/").await.unwrap().0, 404);
    parts.egress = ", host_suffixes: [.mesh]".into();
    setup.reload(&parts, IN_FORCE).await;
    until_answer(egress, "users.mesh", |status, _| status == 200).await;
    assert_eq!(open.get("users.mesh", "/").await.unwrap().0, 200);

    // A listener goes: its requests in progress end well, and its port is free.
    let mut client = Client::connect(fixed, Version::HTTP_11).await.unwrap();
    let held = tokio::spawn(async move { client.get("whatever", "/held").await });
    setup.until_held(1).await;
    parts.more_listeners = String::new();
    setup.reload(&parts, IN_FORCE).await;
    let refused = async {
        while TcpStream::connect(fixed).await.is_ok() {
            sleep(Duration::from_millis(10)).await;
        }
    };
    soon("the listener's port to close", refused).await;
    setup.upstreams.iter().for_each(Upstream::release);
    assert_eq!(held.await.unwrap().unwrap().0, 200);

    for load in &mut loads {
        load.more(100).await;
    }
    for load in loads {
        println!("{} requests", load.end_without_failure().await);
    }
    assert_eq!(setup.pillion.metric("pillion_config_reloads_total{result=\"ok\"").await, 4.0);
}

#[tokio::test]
async fn a_change_of_the_file_is_noticed_by_itself_and_acted_upon_once() {
    let mut setup = Setup::start().await;
    write(&setup.folder, &Parts { policy: "round-robin".into(), ..Parts::default() });
    setup.logged(IN_FORCE).await;
    let names = setup.answers("orders", 6).await;
    assert_eq!(names[..3], names[3..]);

    // What SIGHUP has read is no news.
    setup.reload(&Parts::default(), IN_FORCE).await;
    write(&setup.folder, &Parts { egress: ", host_suffixes: [.x]".into(), ..Parts::default() });
    setup.logged(IN_FORCE).await;
    assert_eq!(setup.pillion.log().matches("SIGHUP; the new").count(), 1);
    assert_eq!(setup.pillion.log().matches("the config file changed; the new").count(), 2);
}

#[tokio::test]
async fn a_bad_reload_says_all_that_is_wrong_and_touches_nothing() {
    let mut setup = Setup::start().await;
    let egress = setup.pillion.egress();
    let mut load = Load::start(egress, Version::HTTP_11, "users", 4);
    load.more(10).await;

    // Wrong in three places, at once good in a fourth.
    let bad = Parts {
        more_listeners: "  - { name: other, listen: here }\n".into(),
        egress: ", host_suffixes: [.mesh], limits: { heads: 1 }".into(),
        policy: "fastest".into(),
    };
    setup.reload(&bad, STAYS).await;
    let file = config(&setup.folder).display().to_string();
    for place in ["4:76: listeners[0].limits.heads", "5:28: listeners[1].listen", "7:32: services.orders"] {
        assert!(setup.pillion.log().contains(&format!("{file}:{place}")), "{place}\n{}", setup.pillion.log());
    }
    assert_eq!(get(egress, "users.mesh").await.unwrap().0, 404, "nothing of it is in force");

    // Good to read, but a port is taken: the rest of it is not in force either.
    let port = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let taken = Socket(TcpListener::bind(port).unwrap());
    let unusable = Parts {
        more_listeners: format!("  - {{ name: other, listen: {ANY} }}\n  - {{ name: third, listen: '{port}' }}\n"),
        egress: ", host_suffixes: [.mesh]".into(),
        policy: "round-robin".into(),
    };
    setup.reload(&unusable, STAYS).await;
    assert!(setup.pillion.log().contains(&format!("cannot listen on {port}")), "{}", setup.pillion.log());
    assert_eq!(get(egress, "users.mesh").await.unwrap().0, 404, "nothing of it is in force");

    // What cannot change while it runs is refused as a whole.
    fs::write(config(&setup.folder), fs::read_to_string(config(&setup.folder)).unwrap() + "workers: 2\n").unwrap();
    setup.hangup(STAYS).await;
    // So is a log that cannot be opened.
    let text = fs::read_to_string(config(&setup.folder)).unwrap().replace("workers: 2\n", "");
    fs::write(config(&setup.folder), text + "access_log: { path: not/there/access.log }\n").unwrap();
    setup.hangup(STAYS).await;
    assert!(setup.pillion.log().contains("access_log.path"), "{}", setup.pillion.log());
    // A file that is gone is bad, too.
    fs::remove_file(config(&setup.folder)).unwrap();
    setup.hangup(STAYS).await;
    assert_eq!(setup.pillion.metric("pillion_config_reloads_total{result=\"failed\"").await, 5.0);
    assert_eq!(setup.pillion.metric("pillion_config_reloads_total{result=\"ok\"").await, 0.0);

    // And a good one takes effect.
    drop(taken);
    setup.reload(&unusable, IN_FORCE).await;
    until_answer(egress, "users.mesh", |status, _| status == 200).await;
    assert_eq!(get(port, "users").await.unwrap().0, 200);
    load.more(100).await;
    load.end_without_failure().await;
}

#[tokio::test]
async fn a_listener_that_comes_back_serves_again() {
    let mut setup = Setup::start().await;
    // A port of its own, so that it is the same one each time.
    let port = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let with = Parts { more_listeners: format!("  - {{ name: other, listen: '{port}' }}\n"), ..Parts::default() };
    for _ in 0..3 {
        setup.reload(&with, IN_FORCE).await;
        assert_eq!(get(port, "users").await.unwrap().0, 200);
        setup.reload(&Parts::default(), IN_FORCE).await;
    }
}

#[tokio::test]
async fn sigterm_lets_requests_in_progress_end() {
    let mut setup = Setup::start().await;
    let egress = setup.pillion.egress();
    let mut held = Vec::new();
    for version in [Version::HTTP_11, Version::HTTP_2] {
        for _ in 0..3 {
            let mut client = Client::connect(egress, version).await.unwrap();
            held.push(tokio::spawn(async move { client.get("users", "/held").await }));
        }
    }
    let mut idle = Client::connect(egress, Version::HTTP_11).await.unwrap();
    idle.get("users", "/").await.unwrap();
    setup.until_held(held.len()).await;
    setup.pillion.signal("TERM");
    setup.pillion.until_logged("stopping").await;
    let refused = async {
        while TcpStream::connect(egress).await.is_ok() {
            sleep(Duration::from_millis(10)).await;
        }
    };
    soon("connections to be refused", refused).await;
    let closed = async {
        while idle.is_usable().await {
            sleep(Duration::from_millis(10)).await;
        }
    };
    soon("the idle connection to be closed", closed).await;
    setup.upstreams.iter().for_each(Upstream::release);
    for held in held {
        assert_eq!(held.await.unwrap().unwrap().0, 200);
    }
    assert_eq!(setup.pillion.ended().await, 0, "{}", setup.pillion.log());
    setup.pillion.until_logged(": stopped").await;
}

#[tokio::test]
async fn a_second_signal_ends_it_at_once() {
    for signal in ["TERM", "INT"] {
        let mut setup = Setup::start().await;
        let mut client = Client::connect(setup.pillion.egress(), Version::HTTP_11).await.unwrap();
        let held = tokio::spawn(async move { client.get("users", "/held").await });
        setup.until_held(1).await;
        setup.pillion.signal(signal);
        setup.pillion.until_logged("stopping").await;
        setup.pillion.signal(signal);
        assert_eq!(setup.pillion.ended().await, 1, "not as after a clean end");
        setup.pillion.until_logged("stopped at once").await;
        held.await.unwrap().unwrap_err();
    }
}

#[tokio::test]
async fn sigterm_under_load_fails_no_request_that_was_taken() {
    for version in [Version::HTTP_11, Version::HTTP_2] {
        let mut setup = Setup::start().await;
        let mut load = Load::start(setup.pillion.egress(), version, "users", 16);
        load.more(500).await;
        setup.pillion.signal("TERM");
        assert_eq!(setup.pillion.ended().await, 0);
        // Whoever comes too late is refused, which is no request; HTTP/2 says so of single requests as well.
        let refused = |failure: &str| {
            failure.starts_with("connect: ")
                || version == Version::HTTP_2 && (failure.contains("NO_ERROR, Remote") || failure.contains("Canceled"))
        };
        let failures = load.end().await;
        let lost: Vec<_> = failures.iter().filter(|failure| !refused(failure)).collect();
        assert!(lost.is_empty(), "{version:?}: {lost:#?}");
    }
}
