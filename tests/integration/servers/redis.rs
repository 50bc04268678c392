//! Redis servers, and masters with a replica and three Sentinels.

use super::{Process, eventually, free_port, program};
use std::{
    fs,
    process::{Command, Output},
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
};

/// Sends Redis's own notifications of all kinds.
pub const NOTIFYING: [&str; 2] = ["--notify-keyspace-events", "KA"];

/// One Redis. It keeps only what it was told to [`Self::save`].
pub struct RedisServer {
    dir: TempDir,
    pub port: u16,
    args: Vec<String>,
    /// What `redis-cli` needs besides the port.
    cli: Vec<String>,
    process: Process,
}

impl RedisServer {
    /// One that sends no notifications, as Redis does by default.
    pub async fn start() -> Self {
        Self::start_with(&[], &[]).await
    }

    pub async fn notifying() -> Self {
        Self::start_with(&NOTIFYING, &[]).await
    }

    /// With more arguments for the server, and for `redis-cli`.
    pub async fn start_with(args: &[&str], cli: &[&str]) -> Self {
        let (dir, port) = (TempDir::new().unwrap(), free_port());
        let own = ["--bind", "127.0.0.1", "--save", "", "--repl-diskless-sync-delay", "0", "--dir"];
        let mut args: Vec<_> = own.iter().chain(args).map(ToString::to_string).collect();
        args.insert(own.len(), dir.path().to_str().unwrap().into());
        // `--tls-port` is given by the test, in place of the plain one.
        if !args.iter().any(|arg| arg == "--port") {
            args.extend(["--port".into(), port.to_string()]);
        }
        let args: Vec<_> = args.into_iter().map(|arg| arg.replace("PORT", &port.to_string())).collect();
        let process = spawn("redis-server", &dir, &args);
        let cli = cli.iter().map(ToString::to_string).collect();
        let mut server = Self { dir, port, args, cli, process };
        server.ready().await;
        server
    }

    async fn ready(&mut self) {
        let (port, cli) = (self.port, self.cli.clone());
        self.process.until(async || text(&run_cli(port, &cli, &["PING"])).contains("PONG")).await;
    }

    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Runs Redis's own client; its answer, which must be no error.
    pub fn cli(&self, args: &[&str]) -> String {
        let output = run_cli(self.port, &self.cli, args);
        let answer = text(&output);
        assert!(output.status.success() && !answer.contains("(error)"), "{args:?}: {answer}");
        answer
    }

    /// The same, whatever comes of it.
    pub fn try_cli(&self, args: &[&str]) -> String {
        text(&run_cli(self.port, &self.cli, args))
    }

    pub fn kill(&mut self) {
        self.process.kill();
    }

    pub fn signal(&self, name: &str) {
        self.process.signal(name);
    }

    /// What there is now is there after a restart.
    pub fn save(&self) {
        assert_eq!(self.cli(&["SAVE"]), "OK");
    }

    /// On the same port, with what was saved.
    pub async fn restart(&mut self) {
        self.process.kill();
        self.process = spawn("redis-server", &self.dir, &self.args);
        self.ready().await;
    }

    /// A connection on which commands cost no start of a program.
    pub async fn connection(&self) -> Connection {
        Connection(BufReader::new(TcpStream::connect(("127.0.0.1", self.port)).await.unwrap()))
    }

    /// How often each command was called since the start.
    pub fn calls(&self, command: &str) -> usize {
        let stats = self.cli(&["INFO", "commandstats"]);
        let line = stats.lines().find_map(|line| line.strip_prefix(&format!("cmdstat_{command}:calls=")));
        line.map_or(0, |line| line.split(',').next().unwrap().parse().unwrap())
    }

    /// Clients that are connected, without the one that asks.
    pub fn clients(&self) -> usize {
        self.cli(&["CLIENT", "LIST", "TYPE", "normal"]).lines().count() - 1
            + self.cli(&["CLIENT", "LIST", "TYPE", "pubsub"]).lines().filter(|line| !line.is_empty()).count()
    }
}

/// The answer on a line.
pub struct Connection(BufReader<TcpStream>);

impl Connection {
    /// Sends a command in the form that people type, and returns the first line of its answer.
    pub async fn command(&mut self, line: &str) -> String {
        self.0.get_mut().write_all(format!("{line}\r\n").as_bytes()).await.unwrap();
        let mut answer = String::new();
        self.0.read_line(&mut answer).await.unwrap();
        assert!(!answer.starts_with('-') && !answer.is_empty(), "{line}: {answer}");
        answer
    }
}

/// A master with a replica, and three Sentinels that make the replica the master when the master is gone.
pub struct SentinelCluster {
    pub master: RedisServer,
    pub replica: RedisServer,
    sentinels: Vec<(TempDir, u16, Process)>,
    sentinel_cli: Vec<String>,
}

impl SentinelCluster {
    pub async fn start() -> Self {
        Self::start_with(&[], &[], "").await
    }

    /// With more arguments for the servers and `redis-cli`, and more lines for the Sentinels.
    pub async fn start_with(args: &[&str], cli: &[&str], lines: &str) -> Self {
        let args = [&NOTIFYING[..], args].concat();
        let master = RedisServer::start_with(&args, cli).await;
        let port = master.port.to_string();
        let replica = RedisServer::start_with(&[&args[..], &["--replicaof", "127.0.0.1", &port]].concat(), cli).await;
        let mut sentinels = Vec::new();
        for _ in 0..3 {
            let (dir, own) = (TempDir::new().unwrap(), free_port());
            let config = format!(
                "port {own}\nbind 127.0.0.1\ndir {dir}\nsentinel monitor mymaster 127.0.0.1 {port} 2\n\
                 sentinel down-after-milliseconds mymaster 2000\nsentinel failover-timeout mymaster 4000\n{lines}\n",
                dir = dir.path().display(),
            );
            fs::write(dir.path().join("conf"), config).unwrap();
            let process = spawn("redis-sentinel", &dir, &[dir.path().join("conf").to_str().unwrap().into()]);
            sentinels.push((dir, own, process));
        }
        let sentinel_cli = match lines.split_once("requirepass ") {
            Some((_, rest)) => vec!["-a".into(), rest.lines().next().unwrap().into(), "--no-auth-warning".into()],
            None => Vec::new(),
        };
        let cluster = Self { master, replica, sentinels, sentinel_cli };
        eventually("the replica and the Sentinels to know each other", async || {
            cluster.sentinels.iter().all(|(_, port, _)| {
                let known = text(&run_cli(*port, &cluster.sentinel_cli, &["SENTINEL", "MASTER", "mymaster"]));
                known.contains("num-slaves\n1\n") && known.contains("num-other-sentinels\n2\n")
            }) && cluster.replica.cli(&["ROLE"]).contains("connected")
        })
        .await;
        cluster
    }

    pub fn addresses(&self) -> Vec<String> {
        self.sentinels.iter().map(|(_, port, _)| format!("127.0.0.1:{port}")).collect()
    }

    pub fn kill_sentinel(&mut self, number: usize) {
        self.sentinels[number].2.kill();
    }

    /// Runs Redis's own client on a Sentinel.
    pub fn ask_sentinel(&self, number: usize, args: &[&str]) -> String {
        text(&run_cli(self.sentinels[number].1, &self.sentinel_cli, args))
    }
}

fn spawn(name: &str, dir: &TempDir, args: &[String]) -> Process {
    let mut command = Command::new(program(name));
    command.args(args);
    Process::start(command, &dir.path().join("log"))
}

fn run_cli(port: u16, more: &[String], args: &[&str]) -> Output {
    let mut command = Command::new(program("redis-cli"));
    command.args(["-h", "127.0.0.1", "-p", &port.to_string()]).args(more).args(args).output().unwrap()
}

fn text(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stdout);
    if text.starts_with("ERR") || text.starts_with("NO") || text.starts_with("WRONG") {
        return format!("(error) {text}");
    }
    text.trim_end().into()
}
