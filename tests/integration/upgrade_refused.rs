//! Upgrades that do not come about: the pillion that runs goes on as if nothing had happened.

use crate::{
    e2e::{ANY, Load, Pillion, get, output, pillion, program, soon},
    pillion::tested,
    socket::free_port,
    upgrade::Setup,
};
use http::Version;
use std::{
    fs::{self, Permissions},
    net::TcpListener,
    os::unix::fs::PermissionsExt,
    process::Stdio,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
};

fn egress() -> String {
    format!("listeners: [{{ name: egress, listen: {ANY} }}]\n")
}

#[tokio::test]
async fn a_new_one_that_cannot_start_changes_nothing() {
    let setup = Setup::new().await;
    let mut old = setup.start(2).await;
    let mut load = Load::start(old.egress(), Version::HTTP_11, "users", 4);
    load.more(10).await;
    let taken = TcpListener::bind(ANY).unwrap();
    let taken = taken.local_addr().unwrap();
    let other =
        format!("{}  - {{ name: other, listen: '{taken}' }}\n", egress().replace("[{", "\n  - {").replace("}]", "}"));
    for (number, (more, code, expected)) in [
        ("listeners: [{ name: egress }]\n".to_owned(), 64, "`listen` is missing".to_owned()),
        (other, 1, format!("cannot listen on {taken}")),
    ]
    .into_iter()
    .enumerate()
    {
        let config = setup.config("bad.yaml", 1, &more);
        let failed = output(&mut pillion(&["run", config.to_str().unwrap()])).await;
        let said = String::from_utf8_lossy(&failed.stderr).into_owned();
        assert_eq!(failed.status.code(), Some(code), "{said}");
        assert!(said.contains(&expected), "{expected}: {said}");
        // The first asks for nothing.
        old.until_logged_times("did not take over", number).await;
    }
    load.more(10).await;
    let new = setup.start(2).await;
    assert_eq!(old.ended().await, 0, "{}", old.log());
    assert_eq!(new.egress(), old.egress());
    load.more(10).await;
    load.end_without_failure().await;
}

/// A new pillion that waits for its registry.
fn waiting(setup: &Setup, registry: &TcpListener, timeout: &str) -> Pillion {
    let config = setup.config("waiting.yaml", 2, &egress());
    let main = format!("kind: consul, address: 'http://{}'", registry.local_addr().unwrap());
    let text = fs::read_to_string(&config).unwrap();
    let text = text.replace("kind: file, path: instances.yaml", &main).replace("timeout: 20s", timeout);
    fs::write(&config, text).unwrap();
    Pillion::spawn(pillion(&["run", config.to_str().unwrap()]).stdout(Stdio::null()))
}

/// The registry that has the instances is down, and another one says that it knows of none: that is an answer, and not enough.
#[tokio::test]
async fn what_the_old_one_knows_is_not_lost_while_its_registry_fails() {
    let setup = Setup::new().await;
    let mut old = setup.start(1).await;
    let mut load = Load::start(old.egress(), Version::HTTP_11, "users", 2);
    load.more(10).await;
    fs::write(setup.folder.path().join("spare.yaml"), "services: {}").unwrap();
    // After so long the other one is believed.
    let config = setup.config("new.yaml", 1, &(egress() + "discovery: { failover: { after: 1s } }\n"));
    let text = fs::read_to_string(&config).unwrap();
    let registries = format!(
        "main: {{ kind: consul, address: 'http://127.0.0.1:{}' }}, spare: {{ kind: file, path: spare.yaml }}",
        free_port()
    );
    let both =
        text.replace("main: { kind: file, path: instances.yaml }", &registries).replace("timeout: 20s", "timeout: 3s");
    fs::write(&config, both).unwrap();
    let failed = output(&mut pillion(&["run", config.to_str().unwrap()])).await;
    let said = String::from_utf8_lossy(&failed.stderr).into_owned();
    assert_eq!(failed.status.code(), Some(1), "{said}");
    assert!(said.contains("within 3s (upgrade.timeout) `main` has not answered about `users`"), "{said}");
    old.until_logged("did not take over").await;
    load.more(10).await;
    // It answers again.
    let answering = registries.replace("kind: consul", "kind: file, path: instances.yaml }, other: { kind: consul");
    fs::write(&config, text.replace("main: { kind: file, path: instances.yaml }", &answering)).unwrap();
    let new = Pillion::start(&mut pillion(&["run", config.to_str().unwrap()])).await;
    assert_eq!(old.ended().await, 0, "{}", old.log());
    assert_eq!(new.egress(), old.egress());
    load.more(10).await;
    load.end_without_failure().await;
}

#[tokio::test]
async fn a_new_one_that_dies_before_it_is_ready_changes_nothing() {
    let setup = Setup::new().await;
    let mut old = setup.start(2).await;
    let mut load = Load::start(old.egress(), Version::HTTP_11, "users", 4);
    // It answers nothing.
    let registry = TcpListener::bind(ANY).unwrap();
    let mut first = waiting(&setup, &registry, "timeout: 1h");
    old.until_logged("a new pillion is about to take over").await;
    load.more(10).await;

    // Meanwhile there is no other upgrade, and no other config.
    let config = setup.config("pillion.yaml", 1, &egress());
    let second = output(&mut pillion(&["run", config.to_str().unwrap()])).await;
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert_eq!(second.status.code(), Some(1), "{said}");
    assert!(said.contains(&format!("refuses to hand over: process {} is taking over already", first.id())), "{said}");
    old.signal("HUP");
    old.until_logged("the old one stays in force: an upgrade is under way").await;

    first.signal("KILL");
    assert_eq!(first.ended().await, -9);
    old.until_logged("did not take over, and this one goes on: it ended before it was ready").await;
    load.more(10).await;

    // One that is stopped.
    let mut third = waiting(&setup, &registry, "timeout: 1h");
    old.until_logged_times("a new pillion is about to take over", 2).await;
    third.signal("TERM");
    assert_eq!(third.ended().await, 0, "{}", third.log());
    old.until_logged_times("did not take over", 2).await;

    // One whose time is up.
    let mut fourth = waiting(&setup, &registry, "timeout: 100ms");
    assert_eq!(fourth.ended().await, 1);
    fourth.until_logged("no first answer about `users` within 100ms (upgrade.timeout)").await;
    old.until_logged_times("did not take over", 3).await;

    let new = setup.start(1).await;
    assert_eq!(old.ended().await, 0, "{}", old.log());
    load.more(10).await;
    load.end_without_failure().await;
    drop(new);
}

#[tokio::test]
async fn when_the_old_one_dies_meanwhile_the_new_one_serves() {
    let setup = Setup::new().await;
    let mut old = setup.start(1).await;
    let egress = old.egress();
    let registry = TcpListener::bind(ANY).unwrap();
    let mut new = waiting(&setup, &registry, "timeout: 1h");
    new.until_logged("taking over from a pillion that runs").await;
    old.signal("KILL");
    assert_eq!(old.ended().await, -9);
    let early = tokio::spawn(async move { get(egress, "users").await });
    // The registry knows nobody.
    let served = tokio::spawn(async move {
        registry.set_nonblocking(true).unwrap();
        let registry = tokio::net::TcpListener::from_std(registry).unwrap();
        loop {
            let (mut stream, _) = registry.accept().await.unwrap();
            tokio::spawn(async move {
                let mut request = [0; 4096];
                while stream.read(&mut request).await.is_ok_and(|length| length > 0) {
                    let answer = "HTTP/1.1 200 OK\r\nx-consul-index: 1\r\ncontent-length: 2\r\n\r\n[]";
                    let _ = stream.write_all(answer.as_bytes()).await;
                }
            });
        }
    });
    new.until_logged("gone already").await;
    new.until_logged("pillion is up").await;
    let (status, answer) = early.await.unwrap().unwrap();
    assert_eq!(status, 503, "it waited until the new one was there, which knows of no instance: {answer}");
    served.abort();
    let mut last = setup.start(1).await;
    assert_eq!(new.ended().await, 0, "{}", new.log());
    assert_eq!(get(egress, "users").await.unwrap().0, 200);
    last.until_logged("took over").await;
}

/// Says something as a new pillion would, and returns the answer.
async fn say(setup: &Setup, bytes: &[u8]) -> String {
    let mut stream = UnixStream::connect(setup.socket()).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    // Whoever said nonsense may be cut off before all of it was read.
    let _ = soon("an answer", stream.read_to_end(&mut answer)).await;
    String::from_utf8_lossy(&answer[8.min(answer.len())..]).into_owned()
}

#[tokio::test]
async fn other_versions_and_nonsense_are_refused_with_a_reason() {
    let setup = Setup::new().await;
    let mut old = setup.start(1).await;
    let frame = |json: &str| [&u32::try_from(json.len()).unwrap().to_be_bytes()[..], &[0; 4], json.as_bytes()].concat();
    for (number, (bytes, expected)) in [
        (frame(r#"{"hello":{"version":2,"more":1}}"#), "it speaks version 2 of the protocol, and pillion"),
        (frame("\"go\""), "its first word is no `hello`"),
        (frame("nonsense"), "a message cannot be read"),
        (b"GET / HTTP/1.1\r\nhost: a\r\n\r\n".to_vec(), "are no message of this protocol"),
    ]
    .into_iter()
    .enumerate()
    {
        let answer = say(&setup, &bytes).await;
        assert!(answer.starts_with("{\"refused\":") && answer.contains(expected), "{expected}: {answer}");
        old.until_logged_times("did not take over", number + 1).await;
    }
    assert_eq!(get(old.egress(), "users").await.unwrap().0, 200);
}

#[tokio::test]
async fn another_user_gets_nothing() {
    let setup = Setup::new().await;
    let mut old = setup.start(1).await;
    let mode = fs::metadata(setup.socket()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    if !rustix::process::geteuid().is_root() {
        eprintln!("NOT CHECKED: whether another user is refused, because only root can become one");
        return;
    }
    // As if the file's mode did not keep them out; the program is copied to where everybody may read it.
    let folder = setup.folder.path();
    let (copy, config) = (folder.join("pillion"), setup.config("pillion.yaml", 1, &egress()));
    fs::copy(tested(), &copy).unwrap();
    for (path, mode) in [
        (folder.to_owned(), 0o755),
        (setup.socket().parent().unwrap().to_owned(), 0o755),
        (setup.socket(), 0o666),
        (copy.clone(), 0o755),
        (folder.join("instances.yaml"), 0o644),
        (config.clone(), 0o644),
    ] {
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }
    const NOBODY: u32 = 65534;
    let stranger = output(program(&copy, &["run", config.to_str().unwrap()]).uid(NOBODY).gid(NOBODY)).await;
    let said = String::from_utf8_lossy(&stranger.stderr).into_owned();
    assert_eq!(stranger.status.code(), Some(1), "{said}");
    assert!(said.contains("belongs to user 65534; expected user 0 or root"), "{said}");
    old.until_logged("an upgrade is refused").await;
    assert_eq!(get(old.egress(), "users").await.unwrap().0, 200);
}
