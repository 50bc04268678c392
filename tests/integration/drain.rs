//! How the program starts and ends: what it tells probes, service managers and whoever asks.

use crate::{
    e2e::{ANY, Client, PATIENCE, Pillion, Upstream, get, get_path, output, pillion, soon, until, until_answer},
    instance::Instance,
    peer::{self, Peer},
    socket::free_port,
};
use http::Version;
use serde_json::Value;
use std::{fs, net::SocketAddr, os::unix::net::UnixDatagram, path::PathBuf, time::Duration};
use tempfile::TempDir;
use tokio::{process::Command, sync::mpsc, time::Instant};

/// A folder with a config whose service `users` is looked for in a file that need not be there yet.
struct Setup {
    folder: TempDir,
}

impl Setup {
    /// With more lines of config.
    fn new(more: &str) -> Self {
        let folder = TempDir::new().unwrap();
        let text = format!(
            "registries: {{ main: {{ kind: file, path: instances.yaml }} }}\nadmin: {{ listen: {ANY} }}\n\
             listeners: [{{ name: egress, listen: {ANY} }}]\nservices: {{ users: {{}} }}\n{more}\n"
        );
        fs::write(folder.path().join("pillion.yaml"), text).unwrap();
        Self { folder }
    }

    fn config(&self) -> PathBuf {
        self.folder.path().join("pillion.yaml")
    }

    /// The service is there from now on.
    fn users(&self, address: SocketAddr) {
        let (new, path) = (self.folder.path().join("new.yaml"), self.folder.path().join("instances.yaml"));
        fs::write(&new, format!("services: {{ users: [\"{address}\"] }}")).unwrap();
        fs::rename(new, path).unwrap();
    }

    fn command(&self) -> Command {
        pillion(&["run", self.config().to_str().unwrap()])
    }
}

/// A pillion in front of an instance, both ready.
async fn start(more: &str) -> (Setup, Upstream, Pillion) {
    let (setup, upstream) = (Setup::new(more), Upstream::start("instance").await);
    setup.users(upstream.address);
    let pillion = Pillion::with_config(&setup.config()).await;
    until("readiness", async || pillion.admin_text("/ready").await.0 == 200).await;
    (setup, upstream, pillion)
}

/// A request that the instance holds until it is released.
async fn hold(
    pillion: &Pillion,
    upstream: &Upstream,
    version: Version,
) -> tokio::task::JoinHandle<Result<u16, String>> {
    let before = upstream.holds();
    let mut client = Client::connect(pillion.egress(), version).await.unwrap();
    let held = tokio::spawn(async move { client.get("users", "/held").await.map(|(status, _)| status.as_u16()) });
    until("the request to be held", async || upstream.holds() > before).await;
    held
}

/// Asks the admin interface: status and body.
async fn post(pillion: &Pillion, path: &str, headers: &str) -> (u16, Value) {
    let mut admin = Peer::connect(pillion.admin()).await;
    admin.send(format!("POST {path} HTTP/1.1\r\nhost: admin\r\ncontent-length: 0\r\n{headers}\r\n")).await;
    let answer = admin.response().await;
    (answer.status(), serde_json::from_slice(&answer.body).unwrap())
}

#[tokio::test]
async fn a_drain_that_is_asked_for_shows_how_far_it_is_and_exits_when_requests_have_ended() {
    let (_setup, upstream, mut pillion) = start("drain: { timeout: 5m }").await;
    let held = [hold(&pillion, &upstream, Version::HTTP_11).await, hold(&pillion, &upstream, Version::HTTP_2).await];
    assert_eq!(pillion.json("/api/drain").await["step"], "running");
    assert_eq!(pillion.metric("pillion_draining").await, 0.0);

    let (status, refused) = post(&pillion, "/api/drain", "origin: http://evil.example\r\n").await;
    assert_eq!((status, refused["error"].as_str()), (403, Some("web pages cannot change anything here")));
    assert_eq!(pillion.admin_text("/ready").await.0, 200);

    let (status, answer) = post(&pillion, "/api/drain", "").await;
    assert_eq!((status, answer["asked"]["by"].as_str()), (202, Some("POST /api/drain")), "{answer:#}");
    assert!((240.0..=300.0).contains(&answer["asked"]["deadline_seconds"].as_f64().unwrap()), "{answer:#}");
    pillion.until_logged("no new connections").await;
    let (status, missing) = pillion.admin_text("/ready").await;
    assert!(status == 503 && missing.contains("pillion is stopping"), "{missing}");
    assert_eq!(pillion.admin_text("/live").await.0, 200);
    assert_eq!(pillion.admin_text("/startup").await.0, 200);
    let seen = pillion.json("/api/drain").await;
    assert_eq!((seen["step"].as_str(), seen["requests_in_flight"].as_i64()), (Some("close"), Some(2)), "{seen:#}");
    assert_eq!(pillion.metric("pillion_draining").await, 4.0);

    upstream.release();
    for held in held {
        assert_eq!(held.await.unwrap(), Ok(200));
    }
    assert_eq!(pillion.ended().await, 0, "{}", pillion.log());
    pillion.until_logged(": stopped after").await;
}

#[tokio::test]
async fn connections_without_a_request_do_not_delay_the_end() {
    let (_setup, upstream, mut pillion) = start("drain: { timeout: 5m }").await;
    let egress = pillion.egress();
    // One that never said anything, one that was used, one in the middle of a head, and two of HTTP/2, of which one hears
    // nothing of what it is told.
    let silent = Peer::connect(egress).await;
    let mut used = Client::connect(egress, Version::HTTP_11).await.unwrap();
    used.get("users", "/").await.unwrap();
    let mut begun = Peer::connect(egress).await;
    begun.send("GET / HTTP/1.1\r\nhost: us").await;
    let mut multiplexed = Client::connect(egress, Version::HTTP_2).await.unwrap();
    multiplexed.get("users", "/").await.unwrap();
    let mut deaf = Peer::connect(egress).await;
    deaf.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await;
    // pillion has seen it.
    assert!(deaf.fill().await);
    pillion.signal("TERM");
    assert_eq!(pillion.ended().await, 0, "{}", pillion.log());
    assert_eq!(pillion.log().matches("cut off").count(), 0, "{}", pillion.log());
    assert_eq!(upstream.requests(), 2);
    drop((silent, begun, deaf));
}

#[tokio::test]
async fn a_long_stream_gets_the_rest_of_the_deadline_and_is_cut_off_then() {
    let setup = Setup::new("drain: { timeout: 6s }\naccess_log: { mode: errors, path: access.log }");
    let upstream = peer::Upstream::bind().await;
    setup.users(upstream.address);
    let mut pillion = Pillion::with_config(&setup.config()).await;
    let mut client = Peer::connect(pillion.egress()).await;
    client.send("GET /events HTTP/1.1\r\nhost: users\r\n\r\n").await;
    let mut server = upstream.accept().await;
    server.request().await;
    server.send("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n").await;
    assert_eq!(client.head().await.status(), 200);
    let begun = Instant::now();
    pillion.signal("TERM");
    pillion.until_logged("no new connections").await;
    server.send("3\r\nnew\r\n").await;
    assert_eq!(client.take(8).await, b"3\r\nnew\r\n");
    // Not ended in order: without the last chunk.
    assert_eq!(client.rest().await, b"");
    assert!(begun.elapsed() >= Duration::from_secs(6), "{:?}", begun.elapsed());
    assert_eq!(pillion.ended().await, 0, "{}", pillion.log());
    pillion.until_logged("cut off 1 requests that were in progress at the deadline: users 1").await;
    let log = fs::read_to_string(setup.folder.path().join("access.log")).unwrap();
    assert!(log.lines().any(|line| line.contains("/events") && line.contains("shutting_down")), "{log}");
}

#[tokio::test]
async fn a_signal_after_a_request_to_drain_changes_nothing_and_another_one_forces_the_end() {
    let (_setup, upstream, mut pillion) = start("drain: { timeout: 5m }").await;
    let held = hold(&pillion, &upstream, Version::HTTP_11).await;
    // As Kubernetes does after a hook.
    post(&pillion, "/api/drain", "").await;
    pillion.signal("TERM");
    pillion.until_logged("SIGTERM: pillion is stopping already").await;
    assert_eq!(pillion.json("/api/drain").await["requests_in_flight"], 1);
    pillion.signal("INT");
    assert_eq!(pillion.ended().await, 1);
    pillion.until_logged("stopped at once by another SIGINT").await;
    assert!(pillion.log().contains("requests=1"), "{}", pillion.log());
    held.await.unwrap().unwrap_err();
}

#[tokio::test]
async fn a_job_that_is_done_ends_it() {
    let (_setup, upstream, mut pillion) = start("drain: { timeout: 5m }").await;
    let held = hold(&pillion, &upstream, Version::HTTP_11).await;
    let (status, answer) = post(&pillion, "/api/quit", "").await;
    assert_eq!((status, answer["asked"]["quit"].as_bool()), (202, Some(true)), "{answer:#}");
    upstream.release();
    assert_eq!(held.await.unwrap(), Ok(200));
    assert_eq!(pillion.ended().await, 0, "{}", pillion.log());

    // Who asks gets an answer, although there is nothing left to wait for.
    let (_setup, _upstream, mut pillion) = start("").await;
    assert_eq!(post(&pillion, "/api/quit", "").await.0, 202);
    assert_eq!(pillion.ended().await, 0, "{}", pillion.log());
}

/// How many instances of a service the embedded registry there tells of.
async fn discovered(registry: SocketAddr, service: &str) -> usize {
    let (status, text) = get_path(registry, "registry", &format!("/discover?name={service}")).await.unwrap();
    assert_eq!(status, 200, "{text}");
    serde_json::from_str::<Vec<Value>>(&text).unwrap().len()
}

#[tokio::test]
async fn callers_hear_that_the_application_leaves_before_anything_is_refused() {
    let (tell, _executed) = mpsc::unbounded_channel();
    let (application, other) = (Instance::start(&tell).await, Upstream::start("other").await);
    // A port of its own, so that it is known from outside.
    let registry = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let folder = TempDir::new().unwrap();
    let config = folder.path().join("pillion.yaml");
    let (ip, port) = (application.address.ip(), application.address.port());
    // Of the checks one passes only where children cannot speak to the service manager in pillion's name.
    let health = format!("{{ host: {ip}, interval: 200ms, command: [sh, -c, 'test -z \"$NOTIFY_SOCKET\"'] }}");
    let manager = Manager::new(&folder);
    let text = format!(
        "registries: {{ main: {{ kind: embedded, listen: '{registry}' }} }}\nadmin: {{ listen: {ANY} }}\n\
         listeners: [{{ name: egress, listen: {ANY} }}]\ndrain: {{ timeout: 5m, spread: 1s }}\n\
         register: [{{ service: web, address: {ip}, port: {port}, health: {health} }}]\n"
    );
    fs::write(&config, text).unwrap();
    let mut command = pillion(&["run", config.to_str().unwrap()]);
    let mut pillion = Pillion::start(command.env("NOTIFY_SOCKET", &manager.path)).await;
    until("the registration", async || discovered(registry, "web").await == 1).await;
    let mut client = Peer::connect(registry).await;
    let body = format!("{{\"name\":\"users\",\"address\":\"{}\",\"ttl\":\"1h\"}}", other.address);
    client.send(peer::post("/register", &body)).await;
    assert_eq!(client.response().await.status(), 200);
    let held = hold(&pillion, &other, Version::HTTP_11).await;

    pillion.signal("TERM");
    until("the entry to be gone", async || discovered(registry, "web").await == 0).await;
    // What still comes is served, and the application may call others, over new connections too.
    for step in ["callers hear that the application leaves", "no new inbound connections"] {
        pillion.until_logged(step).await;
        assert_eq!(get(application.address, "web").await.unwrap().0, 200);
        assert_eq!(get(pillion.egress(), "users").await, Ok((200, "other".into())), "{step}");
    }
    assert_eq!(pillion.json("/api/drain").await["step"], "finish");
    application.stop().await;
    other.release();
    assert_eq!(held.await.unwrap(), Ok(200));
    assert_eq!(pillion.ended().await, 0, "{}", pillion.log());
    let log = pillion.log();
    let at = |text: &str| log.find(text).unwrap_or_else(|| panic!("{text:?} is not in the log:\n{log}"));
    let order = [
        at("the application is being taken out of its registries"),
        at("callers hear that the application leaves"),
        at("no new inbound connections"),
        at("no new connections"),
        at(": stopped after"),
    ];
    assert!(order.is_sorted(), "{log}");
    let spread = log.lines().find(|line| line.contains("no new inbound connections")).unwrap();
    let took = spread.split_once("(the step before took ").unwrap_or_else(|| panic!("{spread}")).1;
    let took = pillion::config::human::parse(took.split([')', ' ', ',']).next().unwrap()).unwrap();
    assert!(took >= Duration::from_secs(1), "{spread}");
}

#[tokio::test]
async fn an_application_that_is_waited_for_can_open_connections_until_it_says_that_it_is_done() {
    let (_setup, upstream, mut pillion) = start("drain: { timeout: 5m, wait_for_app: true }").await;
    let held = hold(&pillion, &upstream, Version::HTTP_11).await;
    pillion.signal("TERM");
    pillion.until_logged("and outbound ones are taken").await;
    for _ in 0..3 {
        assert_eq!(get(pillion.egress(), "users").await, Ok((200, "instance".into())));
    }
    assert_eq!(pillion.json("/api/drain").await["step"], "finish");
    upstream.release();
    assert_eq!(held.await.unwrap(), Ok(200));
    assert_eq!(get(pillion.egress(), "users").await, Ok((200, "instance".into())), "without any other request");
    assert_eq!(post(&pillion, "/api/quit", "").await.0, 202);
    assert_eq!(pillion.ended().await, 0, "{}", pillion.log());
}

/// `pillion wait` to its end: exit code, standard output and standard error.
async fn wait(admin: SocketAddr, args: &[&str]) -> (i32, String, String) {
    let admin = admin.to_string();
    let out = output(&mut pillion(&[&["wait", "--admin", &admin], args].concat())).await;
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (out.status.code().unwrap(), text(out.stdout), text(out.stderr))
}

#[tokio::test]
async fn wait_says_what_is_missing_and_sees_when_it_is_there() {
    let (setup, upstream) = (Setup::new(""), Upstream::start("instance").await);
    let pillion = Pillion::with_config(&setup.config()).await;
    let admin = pillion.admin();
    assert_eq!(wait(admin, &["--for", "live"]).await, (0, format!("pillion at {admin} is live\n"), String::new()));
    for goal in ["ready", "startup"] {
        let (code, out, err) = wait(admin, &["--for", goal, "--timeout", "5s"]).await;
        assert_eq!((code, out.as_str()), (1, ""), "{err}");
        let expected = "waited 5s in vain: not ready: no first answer about `users` (main: ";
        assert!(err.starts_with(expected), "{err}");
    }
    let waiting = tokio::spawn(async move { wait(admin, &[]).await });
    setup.users(upstream.address);
    assert_eq!(waiting.await.unwrap(), (0, format!("pillion at {admin} is ready\n"), String::new()));
    assert_eq!(get(pillion.egress(), "users").await, Ok((200, "instance".into())));

    let held = hold(&pillion, &upstream, Version::HTTP_11).await;
    pillion.signal("TERM");
    until("the drain", async || pillion.admin_text("/ready").await.0 == 503).await;
    let (code, _, err) = wait(admin, &["--timeout", "5s"]).await;
    assert!(code == 1 && err.contains("not ready: pillion is stopping"), "{err}");
    assert_eq!(wait(admin, &["--for", "startup"]).await.1, format!("pillion at {admin} has started\n"));
    upstream.release();
    assert_eq!(held.await.unwrap(), Ok(200));
}

#[tokio::test]
async fn wait_sees_when_the_application_is_registered() {
    let port = free_port();
    let setup = Setup::new(&format!(
        "register: [{{ service: web, address: 127.0.0.1, port: {port}, registry: main, health: {{ interval: 100ms, rise: 1 }} }}]"
    ));
    setup.users(SocketAddr::from(([127, 0, 0, 1], 1)));
    let pillion = Pillion::with_config(&setup.config()).await;
    let admin = pillion.admin();
    // pillion itself is ready, whatever its application is.
    assert_eq!(wait(admin, &[]).await.0, 0);
    let (code, out, err) = wait(admin, &["--for", "registered", "--timeout", "1s"]).await;
    let expected = "waited 1s in vain: not ready: `web` does not pass its checks (TCP: ";
    assert!((code, out.as_str()) == (1, "") && err.starts_with(expected), "{err}");
    let waiting = tokio::spawn(async move { wait(admin, &["--for", "registered"]).await });
    let upstream = Upstream::at(("127.0.0.1", port), "web").await;
    let said = format!("pillion at {admin} is ready, and its application registered\n");
    assert_eq!(waiting.await.unwrap(), (0, said, String::new()));
    until_answer(pillion.egress(), "web", |status, body| (status, body) == (200, "web")).await;
    drop(upstream);
    until("the application to be missed", async || pillion.admin_text("/registered").await.0 == 503).await;
    assert_eq!(pillion.admin_text("/ready").await.0, 200);
}

#[tokio::test]
async fn wait_asks_again_as_long_as_nobody_is_there() {
    let (setup, upstream) = (Setup::new(""), Upstream::start("instance").await);
    setup.users(upstream.address);
    // A port of its own, so that it is known before it is listened on.
    let admin = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let (code, _, err) = wait(admin, &["--timeout", "3s"]).await;
    assert!(code == 1 && err.contains("connection refused; is pillion running?"), "{err}");
    let waiting = tokio::spawn(async move { wait(admin, &[]).await });
    let _pillion = Pillion::start(setup.command().args(["--admin", &admin.to_string()])).await;
    assert_eq!(waiting.await.unwrap().0, 0);
    let (code, _, err) = wait(admin, &["--for", "ever"]).await;
    assert!(code == 64 && err.contains("startup"), "{err}");
}

/// A service manager's end of the notification socket.
struct Manager {
    socket: tokio::net::UnixDatagram,
    path: PathBuf,
}

impl Manager {
    fn new(folder: &TempDir) -> Self {
        let path = folder.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_nonblocking(true).unwrap();
        Self { socket: tokio::net::UnixDatagram::from_std(socket).unwrap(), path }
    }

    /// The next message that has this line.
    async fn told(&self, line: &str) -> String {
        let mut others = Vec::new();
        let waiting = tokio::time::timeout(PATIENCE, async {
            loop {
                let mut buf = [0; 4096];
                let length = self.socket.recv(&mut buf).await.unwrap();
                let message = String::from_utf8(buf[..length].to_vec()).unwrap();
                if message.lines().any(|there| there == line) {
                    return message;
                }
                others.push(message);
            }
        });
        waiting.await.unwrap_or_else(|_| panic!("{line} was not told, but {others:#?}"))
    }

    /// What was told and not looked at.
    fn rest(&self) -> Vec<String> {
        let mut buf = [0; 4096];
        let next = || self.socket.try_recv(&mut buf).ok().map(|length| String::from_utf8_lossy(&buf[..length]).into());
        std::iter::from_fn(next).collect()
    }
}

#[tokio::test]
async fn the_service_manager_hears_when_it_is_ready_reloads_lives_and_stops() {
    let (setup, upstream) = (Setup::new(""), Upstream::start("instance").await);
    let manager = Manager::new(&setup.folder);
    let mut command = setup.command();
    command.env("NOTIFY_SOCKET", &manager.path).env("WATCHDOG_USEC", "300000");
    let mut pillion = Pillion::start(&mut command).await;
    // It is up, and lives, and is not ready.
    manager.told("WATCHDOG=1").await;
    let missing = pillion.admin_text("/ready").await.1;
    let missing = serde_json::from_str::<Value>(&missing).unwrap()["error"].as_str().unwrap().to_owned();
    manager.told(&format!("STATUS={missing}")).await;
    manager.told("WATCHDOG=1").await;
    assert_eq!(manager.rest().iter().filter(|message| message.contains("READY=1")).count(), 0);

    setup.users(upstream.address);
    assert_eq!(manager.told("READY=1").await, "READY=1\nSTATUS=ready");
    assert_eq!(pillion.admin_text("/ready").await.0, 200);

    let text = fs::read_to_string(setup.config()).unwrap();
    fs::write(setup.config(), text.replace("users: {}", "users: { panic_threshold: 30 }")).unwrap();
    pillion.signal("HUP");
    let reloading = manager.told("RELOADING=1").await;
    let since = reloading.lines().find_map(|line| line.strip_prefix("MONOTONIC_USEC=")).unwrap();
    assert!(since.parse::<u64>().unwrap() > 0, "{reloading}");
    assert_eq!(manager.told("READY=1").await, "READY=1\nSTATUS=ready");
    // One that is refused is over as well.
    fs::write(setup.config(), "registries: 7").unwrap();
    pillion.signal("HUP");
    manager.told("RELOADING=1").await;
    assert_eq!(manager.told("READY=1").await, "READY=1\nSTATUS=ready, with the old config");

    let held = hold(&pillion, &upstream, Version::HTTP_11).await;
    pillion.signal("TERM");
    assert_eq!(manager.told("STOPPING=1").await, "STOPPING=1\nSTATUS=stopping, asked by SIGTERM");
    manager.told("STATUS=stopping: no new connections; requests in progress finish").await;
    // It lives until the end.
    manager.rest();
    manager.told("WATCHDOG=1").await;
    upstream.release();
    assert_eq!(held.await.unwrap(), Ok(200));
    assert_eq!(soon("the end", pillion.ended()).await, 0);
}
