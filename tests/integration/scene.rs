//! A machine with clients and pillion, and worlds with servers, each at the end of a cable: network namespaces of a test's own.

use crate::{
    e2e::{self, PATIENCE, output, soon},
    netns::{Caller, Namespace},
    peer::Peer,
    pillion::tested,
    servers::program,
};
use std::{fs, os::unix::fs::PermissionsExt, process::Stdio, time::Duration};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    process::{Child, ChildStdout},
    time::{Instant, sleep},
};

/// The group of pillion, which is root otherwise: another user may not be able to read where it was built.
pub const PILLION_GROUP: u32 = 65533;

/// Its first world, 10.77.1.2 and fd77:1::2, is where the machine's routes go, and has the addresses of 192.0.2.0/24 as well.
pub struct Scene {
    pub machine: Namespace,
    pub worlds: Vec<Namespace>,
    /// What clients read and write.
    pub dir: TempDir,
}

impl Scene {
    pub fn new(worlds: u8) -> Self {
        let machine = Namespace::new();
        let worlds = (1..=worlds).map(|number| {
            let world = Namespace::new();
            machine.cable(&world, number);
            world.ip("route add local 192.0.2.0/24 dev lo");
            world
        });
        let worlds = worlds.collect();
        machine.ip("route add default via 10.77.1.2");
        machine.ip("-6 route add default via fd77:1::2");
        let dir = TempDir::new().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        Self { machine, worlds, dir }
    }

    /// A pillion on the machine, with a line per service, and the rest of its config.
    pub async fn pillion(&self, instances: &str, config: &str) -> Pillion<'_> {
        let (at, path) = (self.dir.path().display(), self.dir.path().join("pillion.yaml"));
        let lines = instances.lines().map(|line| format!("  {line}\n"));
        fs::write(self.dir.path().join("instances.yaml"), format!("services:\n{}", lines.collect::<String>())).unwrap();
        let own = format!(
            "admin: {{ listen: 127.0.0.1:4191 }}\nregistries:\n  main: {{ kind: file, path: {at}/instances.yaml }}\n"
        );
        fs::write(&path, own + config).unwrap();
        let mut command = self.machine.command("setpriv");
        command.args(["--regid", &PILLION_GROUP.to_string(), "--clear-groups"]).arg(tested()).arg("run");
        let process = e2e::Pillion::start(command.arg(path)).await;
        Pillion { scene: self, process }
    }

    /// Redirects what the machine's clients call.
    pub async fn redirect(&self, port: u16) {
        let (group, port) = (PILLION_GROUP.to_string(), port.to_string());
        let up = ["net", "up", "--pillion-group", &group, "--outbound-port", &port];
        let output = output(&mut self.machine.pillion(&up)).await;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    pub async fn redirect_nothing(&self) {
        let output = output(&mut self.machine.pillion(&["net", "down"])).await;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// Runs a client on the machine, which must have no complaints; what it says.
    pub async fn run(&self, name: &str, args: &[&str]) -> String {
        let output = output(self.machine.command(program(name)).args(args)).await;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{name} {args:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
        text
    }

    /// A client that runs until it is dropped, after it has said this.
    pub async fn running(&self, name: &str, args: &[&str], says: &str) -> Running {
        // What people are told is here on the one, there on the other.
        let mut command = self.machine.command("sh");
        command.args(["-c", "exec \"$@\" 2>&1", "sh"]).arg(program(name)).args(args);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut running = Running { lines: BufReader::new(child.stdout.take().unwrap()).lines(), _child: child };
        running.says(says).await;
        running
    }
}

pub struct Running {
    lines: Lines<BufReader<ChildStdout>>,
    _child: Child,
}

impl Running {
    /// Waits for a line with this in it, and returns it.
    pub async fn says(&mut self, text: &str) -> String {
        let saying = async {
            while let Some(line) = self.lines.next_line().await.unwrap() {
                if line.contains(text) {
                    return line;
                }
            }
            panic!("it ended and did not say {text:?}")
        };
        soon(&format!("{text:?}"), saying).await
    }
}

/// pillion, on the machine.
pub struct Pillion<'a> {
    pub scene: &'a Scene,
    pub process: e2e::Pillion,
}

impl Pillion<'_> {
    pub async fn metrics(&self) -> String {
        let admin = self.scene.machine.connect(Caller::default(), "127.0.0.1:4191".parse().unwrap()).unwrap();
        let mut admin = Peer::new(admin);
        admin.send("GET /metrics HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n").await;
        admin.response().await.text()
    }

    /// The sum of the series of that name that have this in their labels.
    pub async fn metric(&self, name: &str, label: &str) -> f64 {
        let page = self.metrics().await;
        let values = page.lines().filter(|line| {
            let labels = line.strip_prefix(name);
            labels.is_some_and(|labels| labels.starts_with(['{', ' ']) && labels.contains(label))
        });
        values.map(|line| line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap()).sum()
    }

    pub async fn until_metric(&self, name: &str, label: &str, value: f64) {
        let start = Instant::now();
        loop {
            let now = self.metric(name, label).await;
            if now == value {
                return;
            }
            assert!(start.elapsed() < PATIENCE, "{name} ({label}) is {now}, not {value}");
            sleep(Duration::from_millis(20)).await;
        }
    }

    pub fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.process.id())).unwrap().count()
    }
}
