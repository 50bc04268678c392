//! One pillion takes another one's place: no request fails, nothing that the old one had is lost.

use crate::{
    e2e::{ANY, Client, Load, Pillion, Upstream, get, get_path, pillion, program, soon, until},
    pillion::tested,
    socket::free_port,
};
use http::Version;
use serde_json::json;
use std::{
    fs,
    net::{SocketAddr, TcpListener},
    os::{fd::OwnedFd, unix::net::UnixDatagram},
    path::{Path, PathBuf},
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};
use tempfile::TempDir;
use tokio::net::TcpStream;

/// A folder with a config, and the service `users` of one instance.
pub struct Setup {
    pub folder: TempDir,
    pub users: Upstream,
}

impl Setup {
    pub async fn new() -> Self {
        let (folder, users) = (TempDir::new().unwrap(), Upstream::start("users").await);
        let instances = format!("services: {{ users: ['{}'] }}\n", users.address);
        fs::write(folder.path().join("instances.yaml"), instances).unwrap();
        Self { folder, users }
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("run/upgrade.sock")
    }

    /// Writes a config; `more` are lines at the end.
    pub fn config(&self, name: &str, workers: usize, more: &str) -> PathBuf {
        let text = format!(
            "workers: {workers}\nupgrade: {{ socket: run/upgrade.sock, timeout: 20s }}\nadmin: {{ listen: {ANY} }}\n\
             registries: {{ main: {{ kind: file, path: instances.yaml }} }}\nservices: {{ users: {{}} }}\n{more}"
        );
        let path = self.folder.path().join(name);
        fs::write(&path, text).unwrap();
        path
    }

    pub async fn start(&self, workers: usize) -> Pillion {
        self.start_with(workers, &format!("listeners: [{{ name: egress, listen: {ANY} }}]\n")).await
    }

    pub async fn start_with(&self, workers: usize, more: &str) -> Pillion {
        Pillion::with_config(&self.config("pillion.yaml", workers, more)).await
    }
}

/// How many workers the one has that answers on the admin interface.
async fn workers(pillion: &Pillion) -> u64 {
    pillion.json("/api/config").await["workers"].as_u64().unwrap()
}

/// Requests with a connection each.
struct Churn {
    ended: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<(u64, Vec<String>)>,
}

impl Churn {
    fn start(address: SocketAddr) -> Self {
        let ended = Arc::new(AtomicBool::new(false));
        let end = ended.clone();
        let task = tokio::spawn(async move {
            let (mut done, mut failures) = (0, Vec::new());
            while !end.load(Relaxed) {
                match get(address, "users").await {
                    Ok((200, _)) => done += 1,
                    other => failures.push(format!("{other:?}")),
                }
            }
            (done, failures)
        });
        Self { ended, task }
    }

    async fn end_without_failure(self) -> u64 {
        self.ended.store(true, Relaxed);
        let (done, failures) = soon("the load to end", self.task).await.unwrap();
        assert!(failures.is_empty(), "{} of {done} requests failed: {failures:#?}", failures.len());
        done
    }
}

#[tokio::test]
async fn ten_upgrades_in_a_row_under_load_fail_no_request() {
    let setup = Setup::new().await;
    // Three sockets from the start to the end.
    let mut old = setup.start(3).await;
    let (egress, admin) = (old.egress(), old.admin());
    let mut h1 = Load::start(egress, Version::HTTP_11, "users", 4);
    let mut h2 = Load::start(egress, Version::HTTP_2, "users", 4);
    let churn = [Churn::start(egress), Churn::start(egress)];
    for count in [2, 1, 3, 4, 1, 2, 2, 3, 1, 2] {
        h1.more(20).await;
        h2.more(20).await;
        let mut new = setup.start(count).await;
        assert_eq!((new.egress(), new.admin()), (egress, admin), "the same sockets");
        new.until_logged(&format!("taking over from a pillion that runs process={} ", old.id())).await;
        assert_eq!(workers(&new).await, u64::try_from(count).unwrap());
        assert_eq!(old.ended().await, 0, "{}", old.log());
        old = new;
    }
    h1.more(20).await;
    h2.more(20).await;
    let mut done = h1.end_without_failure().await;
    // Whoever was told to go before a request was sent may send it again, and has to.
    let told = |failure: &String| failure.contains("NO_ERROR, Remote") || failure.contains("Canceled");
    let lost: Vec<_> = h2.end().await.into_iter().filter(|failure| !told(failure)).collect();
    assert!(lost.is_empty(), "{lost:#?}");
    for churn in churn {
        done += churn.end_without_failure().await;
    }
    println!("{done} requests over HTTP/1.1");
}

#[tokio::test]
async fn the_old_one_finishes_its_requests_and_answers_nothing_else() {
    let setup = Setup::new().await;
    let mut old = setup.start(1).await;
    let egress = old.egress();
    let mut held = Vec::new();
    for version in [Version::HTTP_11, Version::HTTP_2] {
        let mut client = Client::connect(egress, version).await.unwrap();
        held.push(tokio::spawn(async move { client.get("users", "/held").await }));
    }
    until("the requests to be held", async || setup.users.holds() == 2).await;
    let told = UnixDatagram::bind(setup.folder.path().join("notify")).unwrap();

    let config = setup.config("pillion.yaml", 3, &format!("listeners: [{{ name: egress, listen: {ANY} }}]\n"));
    let mut command = pillion(&["run", config.to_str().unwrap()]);
    let new = Pillion::start(command.env("NOTIFY_SOCKET", setup.folder.path().join("notify"))).await;
    old.until_logged("a new pillion has taken over").await;
    let mut message = [0; 64];
    let length = told.recv(&mut message).unwrap();
    assert_eq!(String::from_utf8_lossy(&message[..length]), format!("MAINPID={}", new.id()));
    for _ in 0..20 {
        assert_eq!(workers(&new).await, 3);
        assert_eq!(get(egress, "users").await.unwrap(), (200, "users".into()));
    }
    // A request is counted a moment after its client has the answer.
    until("them to be counted", async || new.metric("pillion_requests_total").await == 20.0).await;
    assert!(!old.log().contains("stopped"), "it has requests in progress");
    setup.users.release();
    for held in held {
        assert_eq!(held.await.unwrap().unwrap().0, 200);
    }
    assert_eq!(old.ended().await, 0, "{}", old.log());
    assert!(setup.socket().exists(), "it is the new one's");
}

#[tokio::test]
async fn listeners_may_come_and_go_with_an_upgrade() {
    let setup = Setup::new().await;
    let listeners = |names: &[&str]| {
        let each = names.iter().map(|name| {
            let host = if name.contains('6') { "[::1]:0" } else { ANY };
            format!("  - {{ name: {name}, listen: '{host}', service: users }}\n")
        });
        format!("listeners:\n{}", each.collect::<String>())
    };
    let mut old = setup.start_with(2, &listeners(&["stays", "stays6", "goes"])).await;
    let (stays, stays6, goes) = (old.listener("stays"), old.listener("stays6"), old.listener("goes"));
    let new = setup.start_with(2, &listeners(&["comes", "stays6", "stays"])).await;
    assert_eq!(old.ended().await, 0);
    assert_eq!((new.listener("stays"), new.listener("stays6")), (stays, stays6));
    for address in [stays, stays6, new.listener("comes")] {
        assert_eq!(get(address, "any").await.unwrap().0, 200, "{address}");
    }
    assert!(TcpStream::connect(goes).await.is_err());
}

#[tokio::test]
async fn what_the_old_one_followed_is_known_before_the_new_one_takes_over() {
    let setup = Setup::new().await;
    let more = format!("listeners: [{{ name: egress, listen: {ANY} }}]\n");
    let config = setup.config("pillion.yaml", 1, &more);
    let text = fs::read_to_string(&config).unwrap().replace("services: { users: {} }\n", "");
    fs::write(&config, text).unwrap();
    let mut old = Pillion::with_config(&config).await;
    assert_eq!(get(old.egress(), "users").await.unwrap().0, 200);
    let new = Pillion::with_config(&config).await;
    assert_eq!(old.ended().await, 0);
    let services = new.json("/api/services").await;
    assert!(services.to_string().contains("\"users\""), "{services}");
}

/// The registry lost everything, which the old one does not believe while its instances answer; nor does the new one.
#[tokio::test]
async fn an_emptied_registry_is_no_more_believed_after_an_upgrade_than_before() {
    let setup = Setup::new().await;
    let mut old = setup.start(1).await;
    let mut load = Load::start(old.egress(), Version::HTTP_11, "users", 2);
    load.more(20).await;
    let file = setup.folder.path().join("instances.yaml");
    let full = fs::read_to_string(&file).unwrap();
    fs::write(&file, "services: {}").unwrap();
    let held = "pillion_discovery_held";
    until("it to be kept", async || old.metric(held).await == 1.0).await;
    let new = setup.start(1).await;
    assert_eq!(old.ended().await, 0, "{}", old.log());
    assert_eq!(new.metric(held).await, 1.0, "{}", new.log());
    load.more(50).await;
    fs::write(&file, full).unwrap();
    until("it to be listed", async || new.metric(held).await == 0.0).await;
    load.more(20).await;
    load.end_without_failure().await;
}

#[tokio::test]
async fn an_embedded_registry_goes_over_with_what_it_holds() {
    let setup = Setup::new().await;
    let text = format!(
        "upgrade: {{ socket: run/upgrade.sock }}\nadmin: {{ listen: {ANY} }}\n\
         registries: {{ own: {{ kind: embedded, listen: {ANY}, persist: state, ttl: 1h }} }}\n\
         listeners: [{{ name: egress, listen: {ANY} }}]\nservices: {{ users: {{}} }}\n"
    );
    let config = setup.folder.path().join("pillion.yaml");
    // The API's port is nowhere to be read, so it is chosen here.
    let port = SocketAddr::from(([127, 0, 0, 1], free_port()));
    fs::write(&config, text.replacen(&format!("embedded, listen: {ANY}"), &format!("embedded, listen: '{port}'"), 1))
        .unwrap();
    let post = async |path: &str, body: serde_json::Value| {
        let client = hyper_util::client::legacy::Client::builder(hyper_util::rt::TokioExecutor::new()).build_http();
        let request = http::Request::post(format!("http://{port}{path}")).header("content-type", "application/json");
        let body = http_body_util::Full::from(body.to_string());
        client.request(request.body::<http_body_util::Full<bytes::Bytes>>(body).unwrap()).await.unwrap().status()
    };
    let instance = |id: &str| json!({ "name": "users", "id": id, "address": setup.users.address.to_string() });
    let which = |id: &str| json!({ "name": "users", "id": id });

    let mut old = Pillion::with_config(&config).await;
    assert_eq!(post("/register", instance("a")).await, 200);
    assert_eq!(post("/register", instance("b")).await, 200);
    let egress = old.egress();
    until("the instances to be known", async || get(egress, "users").await.is_ok_and(|(status, _)| status == 200))
        .await;
    let mut client = Client::connect(egress, Version::HTTP_11).await.unwrap();
    let held = tokio::spawn(async move { client.get("users", "/held").await });
    until("the request to be held", async || setup.users.holds() == 1).await;

    // The old one is still there when the new one's registry changes.
    let mut new = Pillion::with_config(&config).await;
    old.until_logged("a new pillion has taken over").await;
    assert_eq!(get(egress, "users").await.unwrap().0, 200);
    assert_eq!(post("/renew", which("a")).await, 200);
    assert_eq!(post("/deregister", which("b")).await, 200);
    assert_eq!(post("/register", instance("c")).await, 200);
    setup.users.release();
    assert_eq!(held.await.unwrap().unwrap().0, 200);
    assert_eq!(old.ended().await, 0, "{}", old.log());
    new.signal("TERM");
    assert_eq!(new.ended().await, 0, "{}", new.log());
    assert!(!setup.socket().exists(), "nobody listens there any more");

    let last = Pillion::with_config(&config).await;
    let known = get_path(port, "registry", "/discover?name=users").await.unwrap().1;
    let ids: Vec<_> = ["a", "b", "c"].into_iter().filter(|id| known.contains(&format!("\"id\":\"{id}\""))).collect();
    assert_eq!(ids, ["a", "c"], "{known}");
    drop(last);
}

#[tokio::test]
async fn what_is_registered_stays_registered() {
    let setup = Setup::new().await;
    let port = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let users = setup.users.address.port();
    let text = format!(
        "upgrade: {{ socket: run/upgrade.sock }}\nadmin: {{ listen: {ANY} }}\n\
         registries: {{ own: {{ kind: embedded, listen: '{port}' }} }}\n\
         register: [{{ service: users, address: 127.0.0.1, port: {users} }}]\n\
         listeners: [{{ name: egress, listen: {ANY} }}]\n"
    );
    let config = setup.folder.path().join("pillion.yaml");
    fs::write(&config, text).unwrap();
    let mut old = Pillion::with_config(&config).await;
    let known = async || get_path(port, "registry", "/discover?name=users").await;
    let is_there = |(status, text): &(u16, String)| *status == 200 && text.contains(&users.to_string());
    until("it to be registered", async || known().await.is_ok_and(|answer| is_there(&answer))).await;
    let (ended, end) = tokio::sync::watch::channel(false);
    let watching = tokio::spawn(async move {
        let mut seen = Vec::new();
        while !*end.borrow() {
            seen.extend(
                get_path(port, "registry", "/discover?name=users").await.ok().filter(|(status, _)| *status == 200),
            );
        }
        seen
    });
    let mut new = Pillion::with_config(&config).await;
    new.until_logged("registered registry=\"own\"").await;
    assert_eq!(old.ended().await, 0, "{}", old.log());
    assert!(is_there(&known().await.unwrap()));
    ended.send_replace(true);
    let seen = watching.await.unwrap();
    assert!(!seen.is_empty() && seen.iter().all(is_there), "{seen:#?}");
    new.signal("TERM");
    assert_eq!(new.ended().await, 0);
}

#[tokio::test]
async fn a_file_that_was_left_behind_is_no_hindrance() {
    let setup = Setup::new().await;
    let mut killed = setup.start(1).await;
    killed.signal("KILL");
    assert_eq!(killed.ended().await, -9);
    assert!(setup.socket().exists());
    let mut old = setup.start(1).await;
    let new = setup.start(1).await;
    assert_eq!(old.ended().await, 0);
    assert_eq!(new.egress(), old.egress());
}

/// Sockets for `egress` and `admin`, given to the program as systemd does it: from descriptor 3 on.
fn activated(sockets: [&TcpListener; 2], names: &str, config: &Path) -> tokio::process::Command {
    let script = "exec 3<&0 4<&1 </dev/null >/dev/null; export LISTEN_PID=$$ LISTEN_FDS=2 LISTEN_FDNAMES=\"$1\"\n\
                  exec \"$0\" run \"$2\"";
    let mut command = program(Path::new("sh"), &["-c", script, tested(), names]);
    let [first, second] = sockets.map(|socket| Stdio::from(OwnedFd::from(socket.try_clone().unwrap())));
    command.arg(config).stdin(first).stdout(second);
    command
}

#[tokio::test]
async fn sockets_of_systemd_are_used_and_handed_on() {
    let setup = Setup::new().await;
    for names in ["egress:admin", "pillion.socket:admin", ":"] {
        let (egress, admin) = (TcpListener::bind(ANY).unwrap(), TcpListener::bind(ANY).unwrap());
        let (at, admin_at) = (egress.local_addr().unwrap(), admin.local_addr().unwrap());
        let config = setup.config("pillion.yaml", 2, &format!("listeners: [{{ name: egress, listen: '{at}' }}]\n"));
        let text = fs::read_to_string(&config).unwrap();
        fs::write(
            &config,
            text.replace(&format!("admin: {{ listen: {ANY}"), &format!("admin: {{ listen: '{admin_at}'")),
        )
        .unwrap();
        // Connects before there is anybody to accept.
        let early = TcpStream::connect(at).await.unwrap();
        let mut old = Pillion::spawn(&mut activated([&egress, &admin], names, &config));
        old.until_logged("pillion is up").await;
        assert_eq!((old.egress(), old.admin()), (at, admin_at));
        drop((egress, admin));
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(hyper_util::rt::TokioIo::new(early)).await.unwrap();
        tokio::spawn(connection);
        let request = http::Request::get("/").header("host", "users");
        let request = request.body(http_body_util::Empty::<bytes::Bytes>::new()).unwrap();
        assert_eq!(sender.send_request(request).await.unwrap().status(), 200, "{names}");

        let mut load = Load::start(at, Version::HTTP_11, "users", 2);
        load.more(10).await;
        let mut new = Pillion::with_config(&config).await;
        assert_eq!(old.ended().await, 0, "{}", old.log());
        load.more(10).await;
        load.end_without_failure().await;
        new.signal("TERM");
        assert_eq!(new.ended().await, 0);
        assert!(TcpStream::connect(at).await.is_err(), "nobody has a copy left");
    }
}

#[tokio::test]
async fn a_socket_of_systemds_that_does_not_fit_is_a_clear_error() {
    let setup = Setup::new().await;
    let (first, second) = (TcpListener::bind(ANY).unwrap(), TcpListener::bind(ANY).unwrap());
    let at = first.local_addr().unwrap();
    let config = setup.config("pillion.yaml", 1, "listeners: [{ name: egress, listen: '127.0.0.1:1' }]\n");
    for (names, expected) in [
        ("egress:admin", format!("the socket `egress` is bound to {at}, but `egress` is to listen on 127.0.0.1:1")),
        ("ingress:admin", format!("nothing is called `ingress` (bound to {at})")),
        ("egress", "LISTEN_FDNAMES has 1 names for the 2 sockets of LISTEN_FDS".into()),
    ] {
        let mut failed = Pillion::spawn(&mut activated([&first, &second], names, &config));
        assert_eq!(failed.ended().await, 1, "{}", failed.log());
        failed.until_logged(&expected).await;
    }
}
