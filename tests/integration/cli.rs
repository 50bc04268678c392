//! The program's commands: what they print, and how they exit.

use crate::e2e::{ANY, Pillion, Upstream, get, output, pillion, until, until_answer};
use std::{fs, path::Path, process::Output, time::Duration};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    process::Command,
    time::Instant,
};

const DONE: i32 = 0;
const FAILED: i32 = 1;
const USAGE: i32 = 64;

/// Exit code, standard output, standard error.
async fn run(command: &mut Command) -> (i32, String, String) {
    let Output { status, stdout, stderr } = output(command).await;
    (status.code().unwrap(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

fn write(folder: &TempDir, name: &str, text: &str) -> String {
    let path = folder.path().join(name);
    fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

#[tokio::test]
async fn three_mistakes_are_three_errors_with_their_places() {
    let folder = TempDir::new().unwrap();
    let file = write(
        &folder,
        "pillion.yaml",
        "registries:\n  main: { kind: etcd, endpoint: 127.0.0.1:2379 }\n\
         services:\n  users:\n    timeouts: { request: 15 }\n    balance:\n      policy: fastest\n",
    );
    for command in ["check", "run"] {
        let (code, out, err) = run(&mut pillion(&[command, &file])).await;
        assert_eq!((code, out.as_str()), (USAGE, ""), "{command}");
        for place in ["2:23: registries.main.endpoint", "5:26: services.users.timeouts.request", "7:15: services.users"]
        {
            assert!(err.lines().any(|line| line.starts_with(&format!("{file}:{place}"))), "{command}: {place}:\n{err}");
        }
        assert_eq!(err.matches(&format!("{file}:")).count(), 3, "{command}:\n{err}");
    }
}

#[tokio::test]
async fn bad_usage_exits_with_64() {
    for (args, named) in [
        (&["run", "--regisrty", "embedded:"][..], "--regisrty"),
        (&["check", "/no/such/file.yaml"], "/no/such/file.yaml"),
        (&["run", "--registry", "konsul://127.0.0.1:8500"], "--registry"),
        (&["run", "--registry", "embedded:", "--listen", "4140"], "--listen"),
        (&["run", "--registry", "embedded:", "--workers", "none"], "--workers"),
        (&["run"], "registr"),
        (&["net", "up"], "--pillion-user"),
        (&["net", "up", "--pillion-user", "7", "--users", "7"], "contradict each other about 7"),
        (&["net", "up", "--pillion-user", "7", "--exclude-ports", "http"], "--exclude-ports"),
        (&["rnu"], "rnu"),
        (&[], "Usage"),
    ] {
        let (code, out, err) = run(&mut pillion(args)).await;
        assert_eq!((code, out.as_str()), (USAGE, ""), "{args:?}: {err}");
        assert!(err.contains(named), "{args:?}: {err}");
    }
    let (code, _, err) = run(pillion(&["run"]).env("PILLION_REGISTRY", "nowhere")).await;
    assert!(code == USAGE && err.contains("PILLION_REGISTRY"), "{err}");
}

#[tokio::test]
async fn help_and_version_are_no_errors() {
    let (code, out, _) = run(&mut pillion(&["--version"])).await;
    assert_eq!((code, out), (DONE, format!("pillion {}\n", env!("CARGO_PKG_VERSION"))));
    let (code, out, _) = run(&mut pillion(&["--help"])).await;
    assert_eq!(code, DONE);
    for command in ["run", "check", "schema"] {
        assert!(out.lines().any(|line| line.trim_start().starts_with(command)), "{out}");
    }
}

#[tokio::test]
async fn what_check_prints_is_good_and_prints_the_same() {
    let folder = TempDir::new().unwrap();
    let (root, mut seen) = (Path::new(env!("CARGO_MANIFEST_DIR")).join("config"), 0);
    for sample in fs::read_dir(root).unwrap() {
        let sample = sample.unwrap().path();
        // The instances of the `file` sample; not a config.
        if sample.file_name().unwrap() == "instances.yaml" {
            continue;
        }
        let sample = sample.to_str().unwrap();
        let (code, out, err) = run(&mut pillion(&["check", sample])).await;
        assert_eq!((code, out.as_str(), err.as_str()), (DONE, "the config is good\n", ""), "{sample}");
        let (code, printed, _) = run(&mut pillion(&["check", "--print", sample])).await;
        assert_eq!(code, DONE, "{sample}");
        let again = write(&folder, "again.yaml", &printed);
        let (code, reprinted, err) = run(&mut pillion(&["check", "--print", "--config", &again])).await;
        assert_eq!((code, err.as_str()), (DONE, ""), "{sample}:\n{printed}");
        assert_eq!(printed, reprinted, "{sample}");
        seen += 1;
    }
    assert!(seen >= 5, "the samples were not found");
}

#[tokio::test]
async fn flags_variables_and_a_file_give_the_same_config() {
    let folder = TempDir::new().unwrap();
    let file = write(
        &folder,
        "pillion.yaml",
        "registries: { consul: { kind: consul, address: 'http://10.0.0.1:8500' } }\n\
         listeners: [{ name: egress, listen: 127.0.0.1:5140 }]\nadmin: { listen: 127.0.0.1:5191 }\nworkers: 2\n\
         log: { level: debug }\n",
    );
    let settings = [
        ("registry", "consul://10.0.0.1:8500"),
        ("listen", "127.0.0.1:5140"),
        ("admin", "127.0.0.1:5191"),
        ("workers", "2"),
        ("log-level", "debug"),
    ];
    let flags: Vec<_> = settings.iter().map(|(name, value)| format!("--{name}={value}")).collect();
    let mut by_flags = pillion(&["check", "--print"]);
    let (code, by_flags, err) = run(by_flags.args(&flags)).await;
    assert_eq!(code, DONE, "{err}");
    let mut by_env = pillion(&["check", "--print"]);
    let names = ["PILLION_REGISTRY", "PILLION_LISTEN", "PILLION_ADMIN", "PILLION_WORKERS", "PILLION_LOG"];
    by_env.envs(names.into_iter().zip(settings.map(|(_, value)| value)));
    let (code, by_env, err) = run(&mut by_env).await;
    assert_eq!(code, DONE, "{err}");
    let (_, by_file, _) = run(&mut pillion(&["check", "--print", &file])).await;
    assert_eq!(by_flags, by_env);
    assert_eq!(by_flags, by_file);
    let (_, by_variable, _) = run(pillion(&["check", "--print"]).env("PILLION_CONFIG", &file)).await;
    assert_eq!(by_file, by_variable);
}

#[tokio::test]
async fn rules_for_review_need_neither_rights_nor_programs() {
    let folder = TempDir::new().unwrap();
    let mut command = pillion(&["net", "up", "--print", "--pillion-user", "7", "--inbound-ports", "8080"]);
    let (code, out, err) = run(command.env("PATH", folder.path())).await;
    assert_eq!((code, err.as_str()), (DONE, ""));
    assert!(out.starts_with("add table inet pillion\ndelete table inet pillion\ntable inet pillion {\n"), "{out}");
    let (code, out, err) =
        run(pillion(&["net", "up", "--print", "--pillion-user", "root"]).env("PATH", folder.path())).await;
    assert_eq!((code, out.as_str()), (USAGE, ""));
    assert!(err.contains("expected the user's number"), "{err}");
}

#[tokio::test]
async fn the_schema_is_json() {
    let (code, out, _) = run(&mut pillion(&["schema"])).await;
    let schema: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(code, DONE);
    assert!(schema["properties"]["listeners"].is_object(), "{out}");
}

#[tokio::test]
async fn a_pipe_that_closes_early_is_no_panic() {
    use std::process::Stdio;
    for args in [&["schema"][..], &["check", "--print", "--registry", "embedded:"], &["--help"]] {
        let mut child = pillion(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().await.unwrap();
        let err = String::from_utf8(output.stderr).unwrap();
        assert!(!err.contains("panicked"), "{args:?}: {err}");
    }
}

#[tokio::test]
async fn a_port_that_is_taken_is_named_with_the_way_out() {
    let taken = std::net::TcpListener::bind(ANY).unwrap();
    let port = taken.local_addr().unwrap().to_string();
    let run_with = ["run", "--registry"];
    let embedded = format!("embedded:{port}");
    for (args, way_out) in [
        (&["embedded:127.0.0.1:0", "--admin", ANY, "--listen", &port][..], "--listen"),
        (&["embedded:127.0.0.1:0", "--listen", ANY, "--admin", &port], "--admin"),
        (&[&embedded, "--listen", ANY, "--admin", ANY], "listen"),
    ] {
        let (code, _, err) = run(&mut pillion(&[&run_with[..], args].concat())).await;
        assert_eq!(code, FAILED, "{err}");
        let message = err.lines().find(|line| line.contains(&port)).unwrap_or_else(|| panic!("no {port}: {err}"));
        assert!(message.contains(way_out) && message.contains("in use"), "{args:?}: {message}");
    }
}

#[tokio::test]
async fn a_registry_is_enough_to_run() {
    let (folder, users) = (TempDir::new().unwrap(), Upstream::start("u1").await);
    let instances = write(&folder, "instances.yaml", &format!("services: {{ users: [\"{}\"] }}", users.address));
    let url = format!("file:{instances}");
    let by_flag = Pillion::with_registry(&url).await;
    let by_variable = Pillion::start(
        pillion(&["run"]).env("PILLION_REGISTRY", &url).env("PILLION_LISTEN", ANY).env("PILLION_ADMIN", ANY),
    )
    .await;
    for pillion in [by_flag, by_variable] {
        assert_eq!(get(pillion.egress(), "users").await, Ok((200, "u1".into())));
        let (status, body) = get(pillion.egress(), "nobody").await.unwrap();
        assert!(status == 404 && body.contains("unknown_service"), "{status} {body}");
        // A request is counted a moment after its client has the answer.
        until("it to be counted", async || pillion.metric("pillion_requests_total{service=\"users\"").await == 1.0)
            .await;
    }
}

#[tokio::test]
async fn a_file_registry_that_is_not_there_yet_is_waited_for() {
    let (folder, users) = (TempDir::new().unwrap(), Upstream::start("u1").await);
    let path = folder.path().join("instances.yaml");
    let pillion = Pillion::with_registry(&format!("file:{}", path.display())).await;
    // A caller with less patience than `discovery.first_answer` is told in its own time; on a busy machine not each time.
    let mut took = Vec::new();
    while took.last().is_none_or(|took| *took >= Duration::from_millis(1500)) {
        assert!(took.len() < 10, "{took:?}");
        let mut impatient = TcpStream::connect(pillion.egress()).await.unwrap();
        let host = format!("host: others-{}", took.len());
        let request = format!("GET / HTTP/1.1\r\n{host}\r\nx-request-timeout: 50ms\r\nconnection: close\r\n\r\n");
        impatient.write_all(request.as_bytes()).await.unwrap();
        let (asked, mut answer) = (Instant::now(), String::new());
        impatient.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 504") && answer.contains("deadline_exceeded"), "{answer}");
        took.push(asked.elapsed());
    }
    let (status, body) = get(pillion.egress(), "users").await.unwrap();
    assert!(status == 503 && body.contains("discovery_timeout"), "{status} {body}");
    write(&folder, "instances.yaml", &format!("services: {{ users: [\"{}\"] }}", users.address));
    until_answer(pillion.egress(), "users", |status, _| status == 200).await;
}
