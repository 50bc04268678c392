//! ZooKeeper: servers alone in their ensembles, and ZooKeeper's own command line.

use super::{Process, free_port, program};
use std::{
    collections::HashSet,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines},
    net::TcpStream,
    process::{Child, ChildStdin, ChildStdout},
    time::timeout,
};

/// Each line of ZooKeeper that is installed, the newest first. The last one has no watches that stay.
pub const ZOOKEEPERS: [&str; 3] = ["zookeeper-3.9", "zookeeper-debian", "zookeeper-3.4"];

const PATIENCE: Duration = Duration::from_secs(120);

/// One ZooKeeper, alone in its ensemble.
pub struct ZookeeperServer {
    binary: PathBuf,
    dir: TempDir,
    pub port: u16,
    process: Process,
}

impl ZookeeperServer {
    pub async fn start(name: &str) -> Self {
        Self::start_with(name, |_| String::new()).await
    }

    /// With further lines in its config, which are told its directory.
    pub async fn start_with(name: &str, config: impl FnOnce(&Path) -> String) -> Self {
        let (binary, dir, port) = (program(name), TempDir::new().unwrap(), free_port());
        let mut text = config(dir.path());
        // Sessions live from 1 s to 10 s.
        writeln!(text, "tickTime=500\ndataDir={}", dir.path().join("data").display()).unwrap();
        writeln!(text, "clientPort={port}\nclientPortAddress=127.0.0.1\nmaxClientCnxns=0").unwrap();
        writeln!(text, "admin.enableServer=false\n4lw.commands.whitelist=*").unwrap();
        fs::write(dir.path().join("zoo.cfg"), text).unwrap();
        let _start = Process::java_start().await;
        let process = spawn(&binary, dir.path());
        let mut server = Self { binary, dir, port, process };
        server.ready().await;
        server
    }

    async fn ready(&mut self) {
        let port = self.port;
        self.process
            .until(async || word(port, "srvr").await.is_some_and(|text| text.contains("Mode: standalone")))
            .await;
    }

    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// One of the files that the config was made with.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// On the same port, with the data that it had.
    pub async fn restart(&mut self) {
        self.process.kill();
        let _start = Process::java_start().await;
        self.process = spawn(&self.binary, self.dir.path());
        self.ready().await;
    }

    /// On the same port, with nothing in it.
    pub async fn restart_empty(&mut self) {
        self.process.kill();
        fs::remove_dir_all(self.dir.path().join("data")).unwrap();
        self.restart().await;
    }

    /// What the server answers to one of its words of four letters.
    pub async fn word(&self, word: &str) -> String {
        self::word(self.port, word).await.expect("ZooKeeper answers")
    }

    /// The number before `unit`, or behind it with a colon, in what the server answers to `word`.
    pub async fn number(&self, word: &str, unit: &str) -> u64 {
        let text = self.word(word).await;
        let number = text.lines().find_map(|line| match line.strip_prefix(unit) {
            Some(rest) => rest.strip_prefix(':')?.trim().parse().ok(),
            None => line.strip_suffix(unit)?.trim().rsplit([':', ' ']).next()?.parse().ok(),
        });
        number.unwrap_or_else(|| panic!("no {unit} in {text}"))
    }

    /// The ids of the sessions that have a connection, oldest first.
    pub async fn sessions(&self) -> Vec<String> {
        let text = self.word("cons").await;
        let mut sessions: Vec<_> = text
            .split("sid=")
            .skip(1)
            .map(|rest| rest.split(',').next().unwrap().to_owned())
            // A connection that has none, like the one that asks.
            .filter(|id| id != "0x0")
            .collect();
        sessions.sort_unstable();
        sessions
    }

    /// One command of ZooKeeper's own command line, and whether it did it.
    pub fn cli(&self, command: &[&str]) -> bool {
        let address = self.address();
        let mut run = Command::new(program("registrant-curator"));
        run.args(["cli", "-server", &address]).args(command).stdout(Stdio::null()).stderr(Stdio::null());
        run.status().unwrap().success()
    }

    pub async fn client(&self) -> ZookeeperClient {
        ZookeeperClient::start(&self.address()).await
    }
}

async fn word(port: u16, word: &str) -> Option<String> {
    let answer = async {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.ok()?;
        stream.write_all(word.as_bytes()).await.ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await.ok()?;
        Some(text)
    };
    // One that is about to start may take a connection and forget it.
    timeout(Duration::from_secs(2), answer).await.ok()?
}

fn spawn(binary: &Path, dir: &Path) -> Process {
    let mut command = Command::new(binary);
    command.arg(dir.join("zoo.cfg"));
    Process::start(command, &dir.join("log"))
}

/// ZooKeeper's own command line, with one session for as long as this lives.
pub struct ZookeeperClient {
    _child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
    /// Nodes that others are below.
    made: HashSet<String>,
}

impl ZookeeperClient {
    async fn start(address: &str) -> Self {
        // What it says comes on either; in one it comes in order.
        let mut child = tokio::process::Command::new("sh")
            .args(["-c", r#"exec "$0" cli -server "$1" 2>&1"#])
            .arg(program("registrant-curator"))
            .arg(address)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let input = child.stdin.take().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut client = Self { _child: child, input, output, made: HashSet::new() };
        client.run("ls /").await;
        client
    }

    /// Waits until the command was answered, and returns what the client printed.
    pub async fn run(&mut self, command: &str) -> Vec<String> {
        let mut printed = self.run_all([command]).await;
        printed.pop().unwrap()
    }

    /// Sends all at once, which is much quicker.
    pub async fn run_all(&mut self, commands: impl IntoIterator<Item = impl AsRef<str>>) -> Vec<Vec<String>> {
        // Nothing else tells where the answer to a command ends.
        let (mut text, mut count) = (String::new(), 0);
        for command in commands {
            writeln!(text, "{}\nprintwatches", command.as_ref()).unwrap();
            count += 1;
        }
        let (input, output) = (&mut self.input, &mut self.output);
        let read = async {
            let mut all = Vec::new();
            for _ in 0..count {
                let mut printed = Vec::new();
                loop {
                    let line = timeout(PATIENCE, output.next_line()).await.expect("an answer in time").unwrap();
                    match line.expect("the client lives") {
                        line if line.starts_with("printwatches is") => break all.push(printed),
                        line => printed.push(line),
                    }
                }
            }
            all
        };
        let (written, printed) = tokio::join!(input.write_all(text.as_bytes()), read);
        written.unwrap();
        printed
    }

    /// Creates a node, with those above it where they are missing. One that goes with this client, if `ephemeral`.
    pub async fn create(&mut self, path: &str, value: &str, ephemeral: bool) {
        for (at, _) in path.match_indices('/').skip(1) {
            if self.made.insert(path[..at].into()) {
                self.run(&format!("create {} ''", &path[..at])).await;
            }
        }
        let kind = if ephemeral { "-e " } else { "" };
        let printed = self.run(&format!("create {kind}{path} '{value}'")).await;
        assert!(printed.contains(&format!("Created {path}")), "{path}: {printed:?}");
    }

    pub async fn set(&mut self, path: &str, value: &str) {
        self.run(&format!("set {path} '{value}'")).await;
    }

    pub async fn delete(&mut self, path: &str) {
        self.run(&format!("delete {path}")).await;
    }
}
