//! `pillion register … -- COMMAND`: an application that pillion runs, registered in the registry inside pillion, so that
//! pillion's own listener finds it.

use crate::{
    e2e::{ANY, Pillion, get_path, output, pillion, program, until},
    instance::Instance,
    peer::Peer,
    pillion::tested,
};
use std::{
    fs,
    io::{PipeWriter, pipe},
    path::Path,
};
use tempfile::TempDir;

const REGISTRY: &str = "registries: { local: { kind: embedded, listen: 127.0.0.1:0 } }\n";

/// A pillion that runs an application of ours, which listens wherever it likes.
async fn started(dir: &TempDir, register: &str) -> (Pillion, PipeWriter) {
    let file = dir.path().join("pillion.yaml");
    let drain = "drain: { timeout: 20s, spread: 300ms }\n";
    fs::write(&file, format!("{REGISTRY}{drain}register: [{register}]\n")).unwrap();
    let (command, environment) = Instance::command(ANY.parse().unwrap());
    let mut with = pillion(&["register", "--listen", ANY, "--admin", ANY, file.to_str().unwrap(), "--"]);
    // The application ends with the test, as its stdin does.
    let (stdin, held) = pipe().unwrap();
    (Pillion::start(with.args(command).envs(environment).stdin(stdin)).await, held)
}

const WEB: &str = "{ service: web, address: 127.0.0.1, port: command, health: { interval: 200ms } }";

#[tokio::test]
async fn it_is_registered_once_it_listens_and_asked_to_end_when_callers_know() {
    let dir = TempDir::new().unwrap();
    let (mut pillion, _stdin) = started(&dir, WEB).await;
    pillion.until_logged("registered registry=\"local\" service=\"web\"").await;
    until("it is found", async || get_path(pillion.egress(), "web", "/hello").await == Ok((200, "/hello".into())))
        .await;
    pillion.signal("TERM");
    assert_eq!(pillion.ended().await, 0, "{}", pillion.log());
    pillion.until_logged("the application has ended").await;
    let log = pillion.log();
    let at = |text: &str| log.find(text).unwrap_or_else(|| panic!("{text:?} is not in\n{log}"));
    assert!(at("deregistered registry=\"local\"") < at("callers hear that the application leaves"));
    assert!(at("callers hear that the application leaves") < at("asking the application to end"));
    assert!(at("asking the application to end") < at("the application has ended"));
}

#[tokio::test]
async fn when_it_ends_it_is_deregistered_and_its_exit_code_is_pillions() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("pillion.yaml");
    fs::write(&file, format!("{REGISTRY}register: [{WEB}]\n")).unwrap();
    for (script, code) in [("exit 7", 7), ("exit 0", 0), ("kill -KILL $$", 128 + 9)] {
        let with = &["register", "--listen", ANY, "--admin", ANY, file.to_str().unwrap(), "--", "sh", "-c", script];
        let output = output(&mut pillion(with)).await;
        assert_eq!(output.status.code(), Some(code), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

#[tokio::test]
async fn one_that_ends_by_the_signal_that_pillion_sends_it_has_ended_well() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("pillion.yaml");
    let nobody = "{ service: web, address: 127.0.0.1, port: 1 }";
    fs::write(&file, format!("{REGISTRY}register: [{nobody}]\n")).unwrap();
    let with = &["register", "--listen", ANY, "--admin", ANY, file.to_str().unwrap(), "--", "sleep", "3600"];
    let mut pillion = Pillion::start(&mut pillion(with)).await;
    pillion.signal("TERM");
    assert_eq!(pillion.ended().await, 0, "{}", pillion.log());
    pillion.until_logged("the application has ended status=signal: 15").await;
}

#[tokio::test]
async fn it_keeps_the_limit_of_open_files_that_pillion_raises_for_itself() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("pillion.yaml");
    let nobody = "{ service: web, address: 127.0.0.1, port: 1 }";
    fs::write(&file, format!("{REGISTRY}register: [{nobody}]\n")).unwrap();
    let limited = ["-c", "ulimit -S -n 256; exec \"$@\"", "sh", tested()];
    let with = ["register", "--listen", ANY, "--admin", ANY, file.to_str().unwrap(), "--", "sleep", "3600"];
    let mut pillion = Pillion::start(&mut program(Path::new("sh"), &[&limited[..], &with].concat())).await;
    pillion.until_logged("the application was started id=").await;
    let log = pillion.log();
    let id = log.split_once("was started id=").unwrap().1.split_whitespace().next().unwrap();
    let soft_and_hard = |id: &str| {
        let limits = fs::read_to_string(format!("/proc/{id}/limits")).unwrap();
        let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
        let words: Vec<_> = line.split_whitespace().map(str::to_owned).collect();
        (words[3].clone(), words[4].clone())
    };
    let (soft, hard) = soft_and_hard(&pillion.id().to_string());
    assert_eq!(soft, hard);
    assert_ne!(soft, "256");
    until("the application's limit", async || soft_and_hard(id) == ("256".into(), hard.clone())).await;
}

#[tokio::test]
async fn flags_say_what_is_registered() {
    let (command, environment) = Instance::command(ANY.parse().unwrap());
    let flags = [
        "register",
        "--registry",
        "embedded:127.0.0.1:0",
        "--service",
        "web",
        "--address",
        "127.0.0.1",
        "--version",
        "v2",
        "--tag",
        "blue",
        "--meta",
        "team=shop",
        "--health",
        "/up",
        "--interval",
        "200ms",
        "--admin",
        ANY,
        "--",
    ];
    let mut with = pillion(&flags);
    let (stdin, _held) = pipe().unwrap();
    let mut pillion = Pillion::start(with.args(command).envs(environment).stdin(stdin)).await;
    pillion.until_logged("registered registry=\"embedded\" service=\"web\" id=\"web-127-0-0-1-").await;
    let mut admin = Peer::connect(pillion.admin()).await;
    admin.send("GET /api/config HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n").await;
    let config: serde_json::Value = serde_json::from_str(&admin.response().await.text()).unwrap();
    let register = &config["register"][0];
    assert_eq!((&register["version"], &register["metadata"]["team"]), (&"v2".into(), &"shop".into()));
    assert_eq!((&register["tags"][0], &register["health"]["http"]["path"]), (&"blue".into(), &"/up".into()));
    assert_eq!(config["listeners"], serde_json::json!([]), "only what was asked for");
}

#[tokio::test]
async fn what_cannot_be_is_refused_before_anything_is_started() {
    let file = |text: &str| {
        let dir = TempDir::new().unwrap();
        fs::write(dir.path().join("p.yaml"), format!("{REGISTRY}{text}")).unwrap();
        dir
    };
    let nothing = file("");
    let nothing = nothing.path().join("p.yaml");
    let of_command = file(&format!("register: [{WEB}]\n"));
    let of_command = of_command.path().join("p.yaml");
    let registry = "embedded:127.0.0.1:0";
    for (args, code, text) in [
        (vec!["register"], 64, "required arguments were not provided"),
        (
            vec!["register", nothing.to_str().unwrap()],
            64,
            "the config registers nothing; expected `register`, or --service",
        ),
        (vec!["register", of_command.to_str().unwrap()], 64, "expected --port, or `-- COMMAND`"),
        (vec!["register", of_command.to_str().unwrap(), "--port", "80"], 64, "go with --service"),
        (
            vec!["register", "--registry", registry, "--service", "web", "--port", "80", "--meta", "x"],
            64,
            "expected KEY=VALUE",
        ),
        (
            vec!["register", "--registry", registry, "--service", "a b", "--port", "80"],
            64,
            "`a b` is no name for a service",
        ),
        (
            vec!["register", "--registry", registry, "--service", "web", "--", "/no/such/program"],
            1,
            "cannot run `/no/such/program`",
        ),
    ] {
        let output = output(&mut pillion(&args)).await;
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(code) && said.contains(text), "{args:?}: {:?}\n{said}", output.status);
    }
}
