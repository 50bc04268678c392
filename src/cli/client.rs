//! What the commands that look at a running pillion share: the question over HTTP, and tables.

use crate::admin::view::Refused;
use anyhow::{Context, anyhow};
use bytes::Bytes;
use http::{
    Method, Request, StatusCode,
    header::{ACCEPT, CONNECTION, HOST},
    uri::Authority,
};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use std::{io, time::Duration};
use tokio::{net::TcpStream, time::timeout};

/// For the whole exchange: pillion answers from memory, and asks registries for at most three seconds.
const LIMIT: Duration = Duration::from_secs(5);

/// For a command, which pillion may have to write where others write as well.
const LIMIT_OF_COMMANDS: Duration = Duration::from_secs(20);

/// No answer of a real pillion comes near; something else at that port could send for ever.
const MAX_ANSWER: usize = 256 << 20;

const DEFAULT: &str = "127.0.0.1:4191";
const ENV: &str = "PILLION_ADMIN";

/// The pillion that a command asks.
#[derive(Debug, Clone, clap::Args)]
pub struct Target {
    /// Where the pillion to ask has its admin interface.
    #[arg(long, env = ENV, value_name = "HOST:PORT", default_value = DEFAULT, value_parser = address)]
    pub admin: String,
}

/// Flags of every command that looks at a running pillion.
#[derive(Debug, Clone, clap::Args)]
pub struct Asking {
    #[command(flatten)]
    target: Target,
    /// Print the admin interface's own JSON.
    #[arg(long)]
    pub json: bool,
}

/// What the admin interface said.
#[derive(Debug)]
pub struct Answer {
    admin: String,
    pub status: StatusCode,
    body: Bytes,
}

impl Asking {
    pub async fn get(&self, path: &str) -> anyhow::Result<Answer> {
        self.target.get(path).await
    }

    pub async fn post(&self, path: &str) -> anyhow::Result<Answer> {
        self.target.ask(Method::POST, path).await
    }
}

impl Target {
    pub async fn get(&self, path: &str) -> anyhow::Result<Answer> {
        self.ask(Method::GET, path).await
    }

    async fn ask(&self, method: Method, path: &str) -> anyhow::Result<Answer> {
        let admin = self.admin.clone();
        let limit = if method == Method::GET { LIMIT } else { LIMIT_OF_COMMANDS };
        match timeout(limit, ask(&admin, method, path)).await {
            Ok(answer) => answer.map(|(status, body)| Answer { admin, status, body }),
            Err(_) => Err(unreachable(&admin, &format!("no answer within {} s", limit.as_secs()))),
        }
    }
}

impl Answer {
    pub fn read<T: DeserializeOwned>(&self) -> anyhow::Result<T> {
        serde_json::from_slice(&self.body).map_err(|_| {
            let Self { admin, status, .. } = self;
            anyhow!("what answers at {} (with {status}) is not this pillion's admin interface", named(admin))
        })
    }

    /// The answer if it is a good one; an error as pillion put it otherwise.
    pub fn good(self) -> anyhow::Result<Self> {
        if self.status == StatusCode::OK {
            return Ok(self);
        }
        let Refused { error, expected, .. } = self.read()?;
        // (Where a command makes no sense now, there is nothing to choose from.)
        Err(match expected.filter(|_| self.status == StatusCode::NOT_FOUND) {
            Some(expected) => anyhow!("{error}; expected {expected}"),
            None => anyhow!(error),
        })
    }

    /// The body as it came.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

async fn ask(admin: &str, method: Method, path: &str) -> anyhow::Result<(StatusCode, Bytes)> {
    let stream = TcpStream::connect(admin).await.map_err(|error| unreachable(admin, &cause(&error)))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // It ends with the sender, or with the runtime; its errors come back through the sender, too.
    tokio::spawn(connection);
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(HOST, admin)
        .header(ACCEPT, "application/json")
        .header(CONNECTION, "close")
        .body(Empty::<Bytes>::new())?;
    let no_http = || format!("what listens at {} does not answer as an HTTP server", named(admin));
    let answer = sender.send_request(request).await.with_context(no_http)?;
    let status = answer.status();
    let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
    let body = body.map_err(|error| anyhow!("the answer of {admin} broke off: {error}"))?;
    Ok((status, body.to_bytes()))
}

fn unreachable(admin: &str, cause: &str) -> anyhow::Error {
    anyhow!(
        "cannot reach pillion's admin interface at {}: {cause}; is pillion running? Another address: --admin HOST:PORT",
        named(admin)
    )
}

/// The address, and where it comes from if nobody gave it with the command.
fn named(admin: &str) -> String {
    let from_env = std::env::var(ENV).is_ok_and(|value| value.trim() == admin);
    let source = if from_env { format!(" (from {ENV})") } else { String::new() };
    format!("{admin}{source}")
}

/// `connection refused`, and not `Connection refused (os error 111)`.
fn cause(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_lowercase().chain(chars).collect())
}

/// Checks an address for the command line. An empty one is as good as none: that is how variables are unset in many
/// deployment files.
fn address(text: &str) -> Result<String, String> {
    let text = text.trim();
    if text.is_empty() {
        return Ok(DEFAULT.into());
    }
    match text.parse::<Authority>() {
        Ok(address) if !address.host().is_empty() && address.port_u16().is_some() && !text.contains('@') => {
            Ok(text.into())
        }
        _ => Err("expected HOST:PORT, like 127.0.0.1:4191".into()),
    }
}

/// Runs a command to its end and prints what it gives. Not for use inside another runtime.
pub fn run(command: impl Future<Output = anyhow::Result<String>>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let text = runtime.block_on(command);
    // Looking up a name cannot be broken off; nobody waits for it after the time is up.
    runtime.shutdown_background();
    super::say(&text?)
}

/// Where a column's cells stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Align {
    Left,
    Right,
}

/// Rows of cells under a header. A column in which every cell is empty is left out, and no
/// cell is cut: what is looked for may be in what a terminal has no room for.
#[derive(Debug)]
pub struct Table<const N: usize> {
    columns: [(&'static str, Align); N],
    rows: Vec<[String; N]>,
}

impl<const N: usize> Table<N> {
    pub fn new(columns: [(&'static str, Align); N]) -> Self {
        Self { columns, rows: Vec::new() }
    }

    pub fn row(&mut self, cells: [String; N]) {
        self.rows.push(cells.map(|cell| printable(&cell)));
    }

    pub fn print(&self) -> String {
        let used: Vec<usize> = (0..N).filter(|at| self.rows.iter().any(|row| !row[*at].is_empty())).collect();
        let width = |at: usize| {
            let cells = self.rows.iter().map(|row| row[at].chars().count());
            cells.max().unwrap_or_default().max(self.columns[at].0.len())
        };
        let widths: Vec<usize> = used.iter().map(|at| width(*at)).collect();
        let header = self.columns.map(|(title, _)| title.to_owned());
        let mut out = String::new();
        for row in std::iter::once(&header).chain(&self.rows) {
            let cells = used.iter().zip(&widths).map(|(at, width)| match self.columns[*at].1 {
                Align::Left => format!("{:width$}", row[*at]),
                Align::Right => format!("{:>width$}", row[*at]),
            });
            let line = cells.collect::<Vec<_>>().join("  ");
            out.push_str(line.trim_end());
            out.push('\n');
        }
        out
    }
}

/// Without control characters: what a registry says must not steer the terminal of whoever looks at it.
pub fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// A time since something, in its largest unit: `3s`, `5m`.
pub fn age(seconds: f64) -> String {
    let seconds = seconds.max(0.0) as u64;
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..86_400 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    fn asking(admin: impl ToString) -> Asking {
        Asking { target: Target { admin: admin.to_string() }, json: false }
    }

    /// Answers one connection with these bytes, whatever it asks for.
    async fn answering(bytes: &'static [u8]) -> Asking {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            // All of the request is read first, or closing would reset the connection before the answer is read.
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                tokio::io::AsyncReadExt::read_buf(&mut stream, &mut request).await.unwrap();
            }
            tokio::io::AsyncWriteExt::write_all(&mut stream, bytes).await.unwrap();
        });
        asking(address)
    }

    #[tokio::test]
    async fn nobody_there_is_said_with_what_to_do() {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let error = asking(format!("127.0.0.1:{port}")).get("/").await.unwrap_err();
        let expected = format!(
            "cannot reach pillion's admin interface at 127.0.0.1:{port}: connection refused; is pillion running? \
             Another address: --admin HOST:PORT"
        );
        assert_eq!(error.to_string(), expected);
    }

    #[tokio::test]
    async fn an_answer_that_is_not_pillions_is_said() {
        let page = answering(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\n<html>").await;
        let error = page.get("/").await.unwrap().read::<Refused>().unwrap_err().to_string();
        assert!(error.ends_with("is not this pillion's admin interface"), "{error}");
        let no_http = answering(b"SSH-2.0-OpenSSH_9.2\r\n").await;
        let error = no_http.get("/").await.unwrap_err().to_string();
        assert!(error.contains("does not answer as an HTTP server"), "{error}");
        let refusal = answering(b"HTTP/1.1 404 Not Found\r\ncontent-length: 14\r\n\r\n{\"error\":\"no\"}").await;
        assert_eq!(refusal.get("/").await.unwrap().good().unwrap_err().to_string(), "no");
    }

    #[tokio::test(start_paused = true)]
    async fn a_mute_one_is_given_up() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let error = asking(listener.local_addr().unwrap()).get("/").await.unwrap_err().to_string();
        assert!(error.contains("no answer within 5 s; is pillion running?"), "{error}");
    }

    #[test]
    fn addresses_have_a_host_and_a_port() {
        for good in ["127.0.0.1:4191", "[::1]:4191", "localhost:1", " node-7:4191 "] {
            assert_eq!(address(good), Ok(good.trim().to_owned()));
        }
        assert_eq!(address(""), Ok(DEFAULT.into()));
        for bad in ["127.0.0.1", ":4191", "http://x:1", "x:1/", "a b:1", "u@x:1", "x:70000", "::1:80"] {
            assert!(address(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_table_is_aligned_and_leaves_empty_columns_out() {
        let mut table =
            Table::new([("NAME", Align::Left), ("ZONE", Align::Left), ("COUNT", Align::Right), ("NOTE", Align::Left)]);
        table.row(["a".into(), String::new(), "12345678".into(), "x".into()]);
        table.row(["longer\u{1b}[31m".into(), String::new(), "7".into(), "y".repeat(200)]);
        let expected = [
            "NAME            COUNT  NOTE".to_owned(),
            "a            12345678  x".to_owned(),
            format!("longer\u{fffd}[31m         7  {}", "y".repeat(200)),
        ];
        assert_eq!(table.print().lines().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn ages_have_one_unit() {
        for (seconds, shown) in [(0.2, "0s"), (59.9, "59s"), (61.0, "1m"), (7200.0, "2h"), (200_000.0, "2d")] {
            assert_eq!(age(seconds), shown);
        }
        assert_eq!(age(-1.0), "0s");
    }
}
