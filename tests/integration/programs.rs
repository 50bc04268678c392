//! Real clients and servers that are no registries: started and run as children.

use crate::servers::program;
use std::{ffi::OsStr, fs, net::SocketAddr, process::Stdio, time::Duration};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    net::TcpStream,
    process::{Child, Command},
    time::{Instant, sleep, timeout},
};

/// No run of a tool takes as long.
const LIMIT: Duration = Duration::from_secs(240);

/// A server that is killed, by its own id, when dropped.
pub struct Server {
    pub address: SocketAddr,
    #[allow(dead_code, reason = "held for their drops")]
    held: (Child, Option<TempDir>),
}

impl Server {
    /// One of ours, which prints `listening ADDRESS`.
    pub async fn start(name: &str, args: &[&str]) -> Self {
        let mut command = Command::new(program(name));
        command.args(["-listen", "127.0.0.1:0"]).args(args).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.kill_on_drop(true).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let line = timeout(LIMIT, lines.next_line()).await.unwrap().unwrap().unwrap_or_default();
        let address = line.strip_prefix("listening ").unwrap_or_else(|| panic!("{name}: {line}")).parse().unwrap();
        // Whatever else it prints must find a reader.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Self { address, held: (child, None) }
    }

    /// nginx, which answers `ok`. `http2`: it speaks HTTP/2 only.
    pub async fn nginx(http2: bool) -> Self {
        let dir = TempDir::new().unwrap();
        let address: SocketAddr = ([127, 0, 0, 1], crate::servers::free_port()).into();
        let at = dir.path().display();
        let protocol = if http2 { "http2" } else { "" };
        let config = format!(
            "daemon off; master_process off; pid {at}/pid; error_log {at}/error;\n\
             events {{ worker_connections 1000; }}\n\
             http {{ access_log off; client_body_temp_path {at}/b; proxy_temp_path {at}/p; fastcgi_temp_path {at}/f;\n\
             uwsgi_temp_path {at}/u; scgi_temp_path {at}/s;\n\
             server {{ listen {address} {protocol}; location / {{ return 200 ok; }} }} }}\n"
        );
        fs::write(dir.path().join("conf"), config).unwrap();
        let mut command = Command::new(program("nginx"));
        command.args([OsStr::new("-c"), dir.path().join("conf").as_os_str()]).args(["-e", "/dev/null"]);
        let mut child = command.stdin(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true).spawn().unwrap();
        let start = Instant::now();
        while TcpStream::connect(address).await.is_err() {
            assert!(child.try_wait().unwrap().is_none() && start.elapsed() < LIMIT, "nginx does not start");
            sleep(Duration::from_millis(20)).await;
        }
        Self { address, held: (child, Some(dir)) }
    }
}

/// What a tool gave.
pub struct Output {
    pub ok: bool,
    pub stdout: String,
    pub stderr: String,
}

/// Runs a tool to its end.
pub async fn run<A: AsRef<OsStr>>(name: &str, args: impl IntoIterator<Item = A>) -> Output {
    wait(Command::new(program(name)).args(args)).await
}

pub async fn wait(command: &mut Command) -> Output {
    let output = timeout(LIMIT, command.stdin(Stdio::null()).kill_on_drop(true).output()).await;
    let output = output.unwrap_or_else(|_| panic!("{command:?} does not end")).unwrap();
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    Output { ok: output.status.success(), stdout: text(&output.stdout), stderr: text(&output.stderr) }
}
