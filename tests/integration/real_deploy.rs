//! What is in `deploy/`, each file read by the tool that it is for, and beside the pillion that it starts.

use crate::{
    e2e::{ANY, Pillion, Upstream, get, pillion, soon, until},
    pillion::tested,
    programs::{Output, run, wait},
    servers::{free_port, program},
};
use pillion::config::{self, Origin};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    net::UnixDatagram,
    process::Command,
};

/// All of `systemd-analyze security`, in tenths. What is left of it are networks, which a proxy needs.
const EXPOSURE: u32 = 12;

/// It makes rules, and ends.
const NET: &str = "systemd/pillion-net.service";

const UNITS: [&str; 7] = [
    "systemd/pillion.service",
    "systemd/pillion@.service",
    NET,
    "systemd/pillion-egress.socket",
    "systemd/pillion-inbound.socket",
    "systemd/pillion-outbound.socket",
    "vm/web.service",
];

/// A file of `deploy/`.
pub fn deployed(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(path)
}

fn text(path: &str) -> String {
    fs::read_to_string(deployed(path)).unwrap_or_else(|error| panic!("deploy/{path}: {error}"))
}

/// The config in this text, with all defaults; `pillion check` must like it.
pub async fn checked(name: &str, text: &str) -> Value {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("pillion.yaml");
    fs::write(&file, text).unwrap();
    let Output { ok, stdout, stderr } = wait(&mut pillion(&["check", file.to_str().unwrap()])).await;
    assert!(ok && stdout == "the config is good\n", "{name}: {stderr}");
    serde_json::to_value(config::load(Origin::text(name, text), &|_| None).unwrap().config).unwrap()
}

/// How long pillion may take to end, by its config.
pub fn drain_timeout(config: &Value) -> Duration {
    time(config["drain"]["timeout"].as_str().expect("drain.timeout"))
}

fn time(text: &str) -> Duration {
    humantime::parse_duration(text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// What a unit says for `key`; empty if it does not.
fn setting<'u>(unit: &'u str, key: &str) -> &'u str {
    unit.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('=')).unwrap_or_default()
}

fn executable(path: &Path) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, "#!/bin/sh\n").unwrap();
    fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
}

/// Where systemd finds our units, what they start, and its own targets.
fn root() -> TempDir {
    let root = TempDir::new().unwrap();
    let (own, targets) = (root.path().join("etc/systemd/system"), root.path().join("usr/lib/systemd/system"));
    for folder in [&own, &targets] {
        fs::create_dir_all(folder).unwrap();
    }
    for unit in UNITS {
        fs::copy(deployed(unit), own.join(Path::new(unit).file_name().unwrap())).unwrap();
    }
    for entry in fs::read_dir("/usr/lib/systemd/system").unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "target") && path.is_file() {
            fs::copy(&path, targets.join(path.file_name().unwrap())).unwrap();
        }
    }
    for path in ["bin/kill", "usr/local/bin/pillion", "opt/web/bin/web"] {
        executable(&root.path().join(path));
    }
    root
}

async fn verify(root: &TempDir, unit: &str) -> Output {
    let root = format!("--root={}", root.path().display());
    run("systemd-analyze", ["verify", "--man=no", "--recursive-errors=no", &root, unit]).await
}

#[tokio::test]
async fn systemd_knows_everything_in_the_units() {
    let root = root();
    for unit in UNITS {
        // A template is loaded as one of what is made of it.
        let name = Path::new(unit).file_name().unwrap().to_str().unwrap().replace("@.", "@a.");
        let found = verify(&root, &name).await;
        assert!(found.ok && found.stderr.is_empty(), "{unit}: {}", found.stderr);
    }
    let wrong = text(UNITS[0]).replace("WatchdogSec", "WatchdogSecs");
    fs::write(root.path().join("etc/systemd/system/wrong.service"), wrong).unwrap();
    let found = verify(&root, "wrong.service").await;
    assert!(!found.ok && found.stderr.contains("WatchdogSecs"), "{}", found.stderr);
}

#[tokio::test]
async fn services_are_shut_in() {
    for unit in UNITS.iter().filter(|unit| unit.ends_with(".service")) {
        let (threshold, path) = (format!("--threshold={EXPOSURE}"), deployed(unit).display().to_string());
        let found = run("systemd-analyze", ["security", "--offline=true", "--no-pager", &threshold, &path]).await;
        assert!(found.ok, "{unit}:\n{}{}", found.stdout, found.stderr);
        assert!(found.stdout.contains("Overall exposure level"), "{unit}: {}", found.stdout);
    }
}

#[tokio::test]
async fn systemd_gives_pillion_the_time_to_drain() {
    for (unit, file) in [
        ("systemd/pillion.service", "systemd/pillion.yaml"),
        ("systemd/pillion@.service", "systemd/pillion.yaml"),
        ("vm/web.service", "vm/web.yaml"),
    ] {
        let (unit, config) = (text(unit), checked(file, &text(file)).await);
        let (stop, drain) = (time(setting(&unit, "TimeoutStopSec")), drain_timeout(&config));
        assert!(stop > drain, "{file}: {drain:?}, and systemd waits {stop:?}");
    }
}

#[tokio::test]
async fn sockets_are_those_of_the_config() {
    let config = checked("pillion.yaml", &text("systemd/pillion.yaml")).await;
    let listeners = config["listeners"].as_array().unwrap().iter();
    let listeners: BTreeMap<_, _> =
        listeners.map(|one| (one["name"].as_str().unwrap(), one["listen"].as_str().unwrap())).collect();
    let sockets: Vec<_> = UNITS.iter().filter(|unit| unit.ends_with(".socket")).map(|unit| text(unit)).collect();
    let given = sockets.iter().map(|unit| (setting(unit, "FileDescriptorName"), setting(unit, "ListenStream")));
    assert_eq!(given.collect::<BTreeMap<_, _>>(), listeners);
    assert!(sockets.iter().all(|unit| setting(unit, "Service") == "pillion.service"));
}

#[test]
fn the_units_of_an_upgrade_are_the_unit_of_one() {
    let lines = |unit: &str| -> Vec<String> {
        text(unit).lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect()
    };
    let (one, two) = (lines("systemd/pillion.service"), lines("systemd/pillion@.service"));
    let only = |here: &[String], there: &[String]| -> Vec<String> {
        here.iter().filter(|line| !there.contains(line)).cloned().collect()
    };
    assert_eq!(only(&one, &two), ["Description=pillion sidecar proxy", "Restart=always"]);
    let others = ["Description=pillion sidecar proxy (%i)", "Restart=on-failure", "RuntimeDirectoryPreserve=yes"];
    assert_eq!(only(&two, &one), others);
}

/// A copy of a config of `deploy/` on ports that the system chooses, with the application on `app`.
fn elsewhere(file: &str, folder: &TempDir, app: u16) -> PathBuf {
    let path = folder.path().join("pillion.yaml");
    let mut config = text(file).replace("8080", &app.to_string());
    for address in ["127.0.0.1:4191", "0.0.0.0:4191", "127.0.0.1:4140", "0.0.0.0:4143", "[::]:15001"] {
        config = config.replace(address, ANY);
    }
    for folders in ["/var/lib/pillion", "/var/log/pillion", "/run/pillion"] {
        config = config.replace(folders, folder.path().to_str().unwrap());
    }
    fs::write(&path, config).unwrap();
    path
}

/// The words of the service's `ExecStart`, for this pillion and this config.
fn started(unit: &str, config: &Path) -> Vec<String> {
    let line = setting(unit, "ExecStart");
    let (pillion, config) = (tested(), config.to_str().unwrap());
    line.replace("/usr/local/bin/pillion", pillion)
        .replace("/etc/pillion/pillion.yaml", config)
        .split(' ')
        .map(str::to_owned)
        .collect()
}

#[tokio::test]
async fn what_units_start_is_a_command_of_pillions() {
    for unit in UNITS.iter().filter(|unit| unit.ends_with(".service") && **unit != NET) {
        let words = started(&text(unit), Path::new("/etc/pillion/pillion.yaml"));
        let own: Vec<_> = words[1..].iter().map(String::as_str).take_while(|word| *word != "--").collect();
        let help = wait(pillion(&own).arg("--help")).await;
        let usage = format!("Usage: pillion {}", own[0]);
        assert!(help.ok && help.stdout.contains(&usage), "{unit}: {}{}", help.stdout, help.stderr);
    }
}

#[tokio::test]
async fn the_units_rules_are_of_the_services_user_and_go_with_it() {
    let (net, service) = (text(NET), text("systemd/pillion.service"));
    let own = format!(" --pillion-user {}", setting(&service, "User"));
    let up = setting(&net, "ExecStart");
    assert!(up.contains(&own), "{up}");
    // That user is not here.
    let words = up.replace(&own, " --pillion-user 4140");
    let words: Vec<_> = words.split(' ').skip(1).collect();
    let printed = wait(pillion(&words).arg("--print")).await;
    assert!(printed.ok && printed.stdout.contains("skuid { 4140 } return"), "{}{}", printed.stdout, printed.stderr);
    assert_eq!(setting(&net, "ExecStop"), "/usr/local/bin/pillion net down");
    for key in ["Requires", "After", "PartOf", "WantedBy"] {
        assert_eq!(setting(&net, key), "pillion.service", "{key}");
    }
}

#[tokio::test]
async fn what_the_service_starts_tells_systemd_how_it_is() {
    let (folder, unit) = (TempDir::new().unwrap(), text("systemd/pillion.service"));
    let manager = UnixDatagram::bind(folder.path().join("notify")).unwrap();
    let told = async |wanted: &str| {
        let mut buffer = [0; 4096];
        loop {
            let length = soon(wanted, manager.recv(&mut buffer)).await.unwrap();
            if String::from_utf8_lossy(&buffer[..length]).lines().any(|line| line == wanted) {
                return;
            }
        }
    };
    let words = started(&unit, &elsewhere("systemd/pillion.yaml", &folder, free_port()));
    let mut command = pillion(&words[1..].iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(words[0], tested());
    let watchdog = time(setting(&unit, "WatchdogSec")).as_micros().to_string();
    command.env("NOTIFY_SOCKET", folder.path().join("notify")).env("WATCHDOG_USEC", watchdog);
    let mut pillion = Pillion::start(&mut command).await;
    // Neither the application nor Consul is there: that is no reason to hold up the units after it.
    told("READY=1").await;
    told("WATCHDOG=1").await;
    pillion.signal("HUP");
    told("RELOADING=1").await;
    told("READY=1").await;
    pillion.signal("TERM");
    told("STOPPING=1").await;
    assert_eq!(pillion.ended().await, 0, "{}", pillion.log());
}

#[tokio::test]
async fn sockets_of_the_units_names_are_used() {
    let (folder, app) = (TempDir::new().unwrap(), Upstream::start("web").await);
    let path = elsewhere("systemd/pillion.yaml", &folder, app.address.port());
    // The tool opens them as systemd does, and starts pillion on the first connection.
    let ports = [free_port(), free_port()].map(|port| format!("127.0.0.1:{port}"));
    let mut config = fs::read_to_string(&path).unwrap();
    for (name, address) in ["name: egress, listen: ", "name: inbound, listen: "].iter().zip(&ports) {
        assert!(config.contains(&format!("{name}{ANY}")), "{config}");
        config = config.replace(&format!("{name}{ANY}"), &format!("{name}{address}"));
    }
    fs::write(&path, config).unwrap();
    let names = ["systemd/pillion-egress.socket", "systemd/pillion-inbound.socket"]
        .map(|unit| setting(&text(unit), "FileDescriptorName").to_owned());
    let mut command = Command::new(program("systemd-socket-activate"));
    command.args(["--fdname", &names.join(":")]);
    for address in &ports {
        command.args(["--listen", address]);
    }
    command.args(started(&text("systemd/pillion.service"), &path)).stderr(Stdio::piped()).kill_on_drop(true);
    let mut tool = command.spawn().unwrap();
    let mut lines = BufReader::new(tool.stderr.take().unwrap()).lines();
    let listening = format!("Listening on {} ", ports[1]);
    soon("the last socket", async {
        while !lines.next_line().await.unwrap().expect("it runs").starts_with(&listening) {}
    })
    .await;
    // Whatever else is logged must find a reader.
    tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
    let answer = get(ports[1].parse().unwrap(), "web").await;
    assert_eq!(answer, Ok((200, "web".into())));
    let id = tool.id().unwrap().to_string();
    assert!(std::process::Command::new("kill").arg(&id).status().unwrap().success());
    assert!(soon("its end", tool.wait()).await.unwrap().success());
}

#[tokio::test]
async fn the_application_may_start_after_pillion() {
    let (folder, port) = (TempDir::new().unwrap(), free_port());
    let proxy = Pillion::with_config(&elsewhere("nomad/pillion.yaml", &folder, port)).await;
    let admin = proxy.admin().to_string();
    let waited = wait(&mut pillion(&["wait", "--for", "startup", "--admin", &admin])).await;
    assert!(waited.ok, "{}", waited.stderr);
    // Callers come when it can answer them.
    until("the first check", async || proxy.admin_text("/ready").await.0 == 503).await;
    assert_eq!(proxy.admin_text("/startup").await.0, 200);
    let _app = Upstream::at(("127.0.0.1", port), "web").await;
    until("the application", async || proxy.admin_text("/ready").await.0 == 200).await;
}

#[tokio::test]
async fn the_dockerfile_keeps_buildkits_rules() {
    let found = run("dockerfile-check", [deployed("docker/Dockerfile")]).await;
    assert!(found.ok, "{}{}", found.stdout, found.stderr);
    let folder = TempDir::new().unwrap();
    let wrong = folder.path().join("Dockerfile");
    fs::write(&wrong, text("docker/Dockerfile").replace("--from=build", "--from=builds").replace("USER", "MAINTAINER"))
        .unwrap();
    let found = run("dockerfile-check", [&wrong]).await;
    assert!(!found.ok && found.stdout.contains("MaintainerDeprecated"), "{}{}", found.stdout, found.stderr);
}

/// What a static build has in itself is what this one asks of the system: nothing but the C library. (`make static` looks at
/// the static one.)
#[tokio::test]
async fn pillion_needs_no_library_but_that_of_c() {
    let found = run("readelf", ["--dynamic", "--wide", tested()]).await;
    let needed = found.stdout.lines().filter(|line| line.contains("(NEEDED)"));
    let needed: Vec<_> = needed.filter_map(|line| line.split(['[', ']']).nth(1)).collect();
    assert!(needed.contains(&"libc.so.6"), "{}", found.stdout);
    let others = needed
        .iter()
        .filter(|name| !["libc.so", "libm.so", "libgcc_s.so", "ld-linux"].iter().any(|part| name.starts_with(part)));
    assert_eq!(others.collect::<Vec<_>>(), [&""; 0]);
}

#[tokio::test]
async fn nomad_reads_the_job_and_gives_pillion_the_time_to_drain() {
    let found = run("nomad-check", [deployed("nomad/web.nomad.hcl")]).await;
    assert!(found.ok, "{}", found.stderr);
    let job: Value = serde_json::from_str(&found.stdout).unwrap();
    let group = &job["TaskGroups"][0];
    let tasks: BTreeMap<_, _> =
        group["Tasks"].as_array().unwrap().iter().map(|task| (task["Name"].as_str().unwrap(), task)).collect();
    let (own, waits, app) = (tasks["pillion"], tasks["wait"], tasks["web"]);
    let config = text("nomad/pillion.yaml");
    assert_eq!(own["Templates"][0]["EmbeddedTmpl"], config);
    let config = checked("nomad/pillion.yaml", &config).await;
    let kill = Duration::from_nanos(own["KillTimeout"].as_u64().unwrap());
    // What clients allow unless they are told otherwise.
    assert!(kill > drain_timeout(&config) && kill < Duration::from_secs(30), "{kill:?}");
    assert_eq!((&own["Lifecycle"]["Hook"], &own["Lifecycle"]["Sidecar"]), (&"prestart".into(), &true.into()));
    assert_eq!((&waits["Lifecycle"]["Hook"], &waits["Lifecycle"]["Sidecar"]), (&"prestart".into(), &false.into()));
    assert_eq!((&app["Lifecycle"], &app["Leader"]), (&Value::Null, &true.into()));
    assert!(group["ShutdownDelay"].as_u64().unwrap() > 0);

    let folder = TempDir::new().unwrap();
    let wrong = folder.path().join("web.nomad.hcl");
    fs::copy(deployed("nomad/pillion.yaml"), folder.path().join("pillion.yaml")).unwrap();
    fs::write(&wrong, text("nomad/web.nomad.hcl").replace("kill_timeout", "kill_timeouts")).unwrap();
    let found = run("nomad-check", [&wrong]).await;
    assert!(!found.ok && found.stderr.contains("kill_timeouts"), "{}", found.stderr);
}
