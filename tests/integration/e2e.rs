//! The pillion program as a child process, upstreams for it, and load on it.

use crate::{pillion::tested, socket::Socket};
use bytes::Bytes;
use http::{Request, Response, StatusCode, Version, header::HOST};
use http_body_util::{BodyExt, Empty, Full};
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustix::process::{Pid, Signal, kill_process};
use std::{
    convert::Infallible,
    fmt::Write as _,
    net::SocketAddr,
    path::Path,
    process::{Output, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    net::{TcpListener, TcpStream, ToSocketAddrs},
    process::{Child, Command},
    sync::watch,
    task::{JoinHandle, JoinSet},
    time::timeout,
};

/// Far more than anything should take, on a machine that is busy with other things too; only a failing test waits so long.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A port that the system chooses, on this machine only.
pub const ANY: &str = "127.0.0.1:0";

/// Waits for it, but not for ever.
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("waited in vain for {what}"))
}

/// Polls until it is so.
pub async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    soon(what, async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

/// The program that the tests were built with, without what the caller's environment would tell it.
pub fn pillion(args: &[&str]) -> Command {
    program(Path::new(tested()), args)
}

pub fn program(path: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(path);
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("PILLION_")) {
        command.env_remove(name);
    }
    command.args(args).stdin(Stdio::null()).kill_on_drop(true);
    command
}

/// Runs a command that ends by itself.
pub async fn output(command: &mut Command) -> Output {
    soon("the command to end", command.output()).await.expect("the program runs")
}

/// A `pillion run` that is up. It is killed when dropped.
pub struct Pillion {
    child: Child,
    log: watch::Receiver<String>,
}

impl Pillion {
    /// With this registry, and ports that the system chooses.
    pub async fn with_registry(url: &str) -> Self {
        Self::start(&mut pillion(&["run", "--listen", ANY, "--admin", ANY, "--registry", url])).await
    }

    pub async fn with_config(file: &Path) -> Self {
        Self::start(&mut pillion(&["run", file.to_str().unwrap()])).await
    }

    pub async fn start(command: &mut Command) -> Self {
        let mut pillion = Self::spawn(command.stdout(Stdio::null()));
        pillion.until_logged("pillion is up").await;
        pillion
    }

    /// Starts it, and waits for nothing.
    pub fn spawn(command: &mut Command) -> Self {
        let mut child = command.stderr(Stdio::piped()).spawn().expect("the program starts");
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let (written, log) = watch::channel(String::new());
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                written.send_modify(|log| writeln!(log, "{line}").unwrap());
            }
        });
        Self { child, log }
    }

    pub fn id(&self) -> u32 {
        self.child.id().expect("pillion runs")
    }

    /// All that it logged so far.
    pub fn log(&self) -> String {
        self.log.borrow().clone()
    }

    /// Waits until its log has all of `texts`.
    pub async fn until_logged(&mut self, text: &str) {
        self.until_logged_times(text, 1).await;
    }

    pub async fn until_logged_times(&mut self, text: &str, times: usize) {
        let wanted = self.log.wait_for(|log| log.matches(text).count() >= times);
        let met = timeout(PATIENCE, wanted).await.is_ok_and(|met| met.is_ok());
        assert!(met, "pillion did not log {text:?} {times} times:\n{}", self.log());
    }

    /// Where the listener called `name` listens, by the log's newest word.
    pub fn listener(&self, name: &str) -> SocketAddr {
        self.address(&format!("listener=\"{name}\" address="))
    }

    pub fn egress(&self) -> SocketAddr {
        self.listener("egress")
    }

    pub fn admin(&self) -> SocketAddr {
        self.address("this is its admin interface address=")
    }

    fn address(&self, before: &str) -> SocketAddr {
        let log = self.log();
        let rest = log.rsplit_once(before).unwrap_or_else(|| panic!("no {before:?} in the log:\n{log}")).1;
        rest.split_whitespace().next().unwrap().parse().unwrap()
    }

    /// At once: what follows upon it should not have to wait until a busy machine has run another program.
    pub fn signal(&self, name: &str) {
        let signal = match name {
            "HUP" => Signal::HUP,
            "INT" => Signal::INT,
            "KILL" => Signal::KILL,
            "TERM" => Signal::TERM,
            "STOP" => Signal::STOP,
            "CONT" => Signal::CONT,
            "USR1" => Signal::USR1,
            "USR2" => Signal::USR2,
            other => panic!("SIG{other}"),
        };
        let id = Pid::from_raw(self.id().try_into().unwrap()).unwrap();
        kill_process(id, signal).unwrap();
    }

    /// Waits for its end; returns the exit code, or the signal as a negative number.
    pub async fn ended(&mut self) -> i32 {
        use std::os::unix::process::ExitStatusExt;
        // Less than the time that is given to what is in progress where nothing else is said: nobody may wait for all of it.
        let ended = timeout(Duration::from_secs(29), self.child.wait()).await;
        let status = ended.unwrap_or_else(|_| panic!("pillion does not end:\n{}", self.log())).unwrap();
        status.code().unwrap_or_else(|| -status.signal().unwrap())
    }

    /// Memory that is resident, in KiB.
    pub fn resident(&self) -> usize {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id().unwrap())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
        line.trim().trim_end_matches("kB").trim().parse().unwrap()
    }

    /// The sum over all series of a metric whose name and labels begin so.
    pub async fn metric(&self, begin: &str) -> f64 {
        let (status, page) = self.admin_text("/metrics").await;
        assert_eq!(status, 200);
        let values = page.lines().filter(|line| line.starts_with(begin));
        values.map(|line| line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap()).sum()
    }

    /// What the admin interface answers: status and body.
    pub async fn admin_text(&self, path: &str) -> (u16, String) {
        get_path(self.admin(), "admin", path).await.expect("the admin interface answers")
    }

    /// What the API says.
    pub async fn json(&self, path: &str) -> serde_json::Value {
        let (status, text) = self.admin_text(path).await;
        assert_eq!(status, 200, "{text}");
        serde_json::from_str(&text).unwrap()
    }
}

/// One GET over a connection of its own: status and body.
pub async fn get(address: SocketAddr, host: &str) -> Result<(u16, String), String> {
    get_path(address, host, "/").await
}

pub async fn get_path(address: SocketAddr, host: &str, path: &str) -> Result<(u16, String), String> {
    let mut client = Client::connect(address, Version::HTTP_11).await?;
    let (status, body) = client.get(host, path).await?;
    Ok((status.as_u16(), body))
}

/// Asks until the answer is as wanted.
pub async fn until_answer(address: SocketAddr, host: &str, wanted: impl Fn(u16, &str) -> bool) -> (u16, String) {
    let asking = async {
        loop {
            if let Ok((status, body)) = get(address, host).await
                && wanted(status, &body)
            {
                return (status, body);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    soon(&format!("the wanted answer of `{host}`"), asking).await
}

/// One connection to pillion. It sends nothing twice.
pub enum Client {
    H1(http1::SendRequest<Empty<Bytes>>),
    H2(http2::SendRequest<Empty<Bytes>>),
}

impl Client {
    pub async fn connect(address: SocketAddr, version: Version) -> Result<Self, String> {
        let stream = TcpStream::connect(address).await.map_err(|error| format!("connect: {error}"))?;
        Self::over(stream, version).await
    }

    pub async fn over(stream: TcpStream, version: Version) -> Result<Self, String> {
        let said = |what: &str, error: &dyn std::fmt::Display| format!("{what}: {error}");
        let stream = Socket(stream);
        stream.set_nodelay(true).unwrap();
        let io = TokioIo::new(stream);
        if version == Version::HTTP_2 {
            let (sender, connection) =
                http2::handshake(TokioExecutor::new(), io).await.map_err(|error| said("handshake", &error))?;
            tokio::spawn(connection);
            Ok(Self::H2(sender))
        } else {
            let (sender, connection) = http1::handshake(io).await.map_err(|error| said("handshake", &error))?;
            tokio::spawn(connection);
            Ok(Self::H1(sender))
        }
    }

    /// Whether another request can be sent on it. False once the other side has said that it leaves.
    pub async fn is_usable(&mut self) -> bool {
        match self {
            Self::H1(sender) => sender.ready().await.is_ok(),
            Self::H2(sender) => sender.ready().await.is_ok(),
        }
    }

    pub async fn get(&mut self, host: &str, path: &str) -> Result<(StatusCode, String), String> {
        let said = |what: &str, error: hyper::Error| format!("{what}: {error:?}");
        let response = match self {
            Self::H1(sender) => {
                let request = Request::get(path).header(HOST, host).body(Empty::new()).unwrap();
                sender.send_request(request).await
            }
            Self::H2(sender) => {
                let request = Request::get(format!("http://{host}{path}")).body(Empty::new()).unwrap();
                sender.send_request(request).await
            }
        };
        let response = response.map_err(|error| said("request", error))?;
        let status = response.status();
        let body = response.into_body().collect().await.map_err(|error| said("response's body", error))?;
        Ok((status, String::from_utf8_lossy(&body.to_bytes()).into_owned()))
    }
}

/// An application's instance: speaks HTTP/1.1 and HTTP/2, and answers every request with its name. A request for `/held`
/// is answered when it is released.
pub struct Upstream {
    pub name: String,
    pub address: SocketAddr,
    requests: Arc<AtomicU64>,
    held: watch::Sender<usize>,
    released: watch::Sender<bool>,
    leaving: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Upstream {
    pub async fn start(name: &str) -> Self {
        Self::at(ANY, name).await
    }

    pub async fn at(address: impl ToSocketAddrs, name: &str) -> Self {
        let listener = Socket(TcpListener::bind(address).await.unwrap());
        let address = listener.local_addr().unwrap();
        let (requests, held) = (Arc::new(AtomicU64::new(0)), watch::Sender::new(0));
        let (released, leaving) = (watch::Sender::new(false), watch::Sender::new(false));
        let app = App { name: name.into(), requests: requests.clone(), held: held.clone(), released: released.clone() };
        let left = leaving.subscribe();
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                tokio::select! {
                    accepted = listener.accept() => {
                        let (stream, _) = accepted.unwrap();
                        let app = app.clone();
                        connections.spawn(serve(stream, move |request| app.clone().answer(request), left.clone()));
                    }
                    Some(_) = connections.join_next() => {}
                    () = told(&left) => break,
                }
            }
            drop(listener);
            while connections.join_next().await.is_some() {}
        });
        Self { name: name.into(), address, requests, held, released, leaving, task }
    }

    /// Stops accepting, finishes what is in progress, and closes.
    pub async fn leave(mut self) {
        self.leaving.send_replace(true);
        soon("the upstream's connections to end", &mut self.task).await.unwrap();
    }

    /// Requests since the start.
    pub fn requests(&self) -> u64 {
        self.requests.load(Relaxed)
    }

    /// Requests that were ever held.
    pub fn holds(&self) -> usize {
        *self.held.borrow()
    }

    pub fn release(&self) {
        self.released.send_replace(true);
    }
}

#[derive(Clone)]
struct App {
    name: String,
    requests: Arc<AtomicU64>,
    held: watch::Sender<usize>,
    released: watch::Sender<bool>,
}

impl App {
    async fn answer(self, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
        self.requests.fetch_add(1, Relaxed);
        if request.uri().path() == "/held" {
            self.held.send_modify(|held| *held += 1);
            told(&self.released.subscribe()).await;
        }
        Ok(Response::new(Full::from(self.name)))
    }
}

/// Returns once it is so, or nobody can make it so any more.
async fn told(what: &watch::Receiver<bool>) {
    let _ = what.clone().wait_for(|told| *told).await;
}

/// Serves one connection, HTTP/1.1 or HTTP/2, until it ends or `leaving` is true and what is in progress is done.
pub async fn serve<F>(stream: TcpStream, answer: impl Fn(Request<Incoming>) -> F, leaving: watch::Receiver<bool>)
where
    F: Future<Output = Result<Response<Full<Bytes>>, Infallible>> + Send + 'static,
{
    let stream = Socket(stream);
    let _ = stream.set_nodelay(true);
    let mut first = [0; 2];
    let seen = async {
        // The second byte may come later than the first.
        while matches!(stream.peek(&mut first).await, Ok(1)) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::select! {
        () = seen => {}
        () = told(&leaving) => return,
    }
    let service = service_fn(answer);
    // `PRI * HTTP/2.0`; no method of HTTP/1 that these tests use begins so.
    if first == *b"PR" {
        let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .serve_connection(TokioIo::new(stream), service);
        let mut connection = std::pin::pin!(connection);
        tokio::select! {
            _ = connection.as_mut() => return,
            () = told(&leaving) => connection.as_mut().graceful_shutdown(),
        }
        let _ = connection.await;
    } else {
        let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
        let mut connection = std::pin::pin!(connection);
        tokio::select! {
            _ = connection.as_mut() => return,
            () = told(&leaving) => connection.as_mut().graceful_shutdown(),
        }
        let _ = connection.await;
    }
}

/// Requests, one after the other on each of a few connections, until it is ended.
pub struct Load {
    ended: watch::Sender<bool>,
    done: watch::Receiver<u64>,
    tasks: JoinSet<Vec<String>>,
}

impl Load {
    pub fn start(address: SocketAddr, version: Version, host: &str, connections: usize) -> Self {
        Self::paced(address, version, host, connections, Duration::ZERO)
    }

    /// With a pause after each request, where other things need the processor, too.
    pub fn paced(address: SocketAddr, version: Version, host: &str, connections: usize, pause: Duration) -> Self {
        let (ended, (count, done)) = (watch::Sender::new(false), watch::channel(0));
        let mut tasks = JoinSet::new();
        for _ in 0..connections {
            let (host, ended, count) = (host.to_owned(), ended.subscribe(), count.clone());
            tasks.spawn(async move {
                let (mut failures, mut client) = (Vec::new(), None);
                while !*ended.borrow() {
                    match request(&mut client, address, version, &host).await {
                        Ok(()) => {
                            count.send_modify(|count| *count += 1);
                            if !pause.is_zero() {
                                tokio::time::sleep(pause).await;
                            }
                        }
                        Err(error) => {
                            client = None;
                            failures.push(error);
                            // What is broken is not asked in a hot loop.
                            tokio::time::sleep(Duration::from_millis(10)).await;
                        }
                    }
                }
                failures
            });
        }
        Self { ended, done, tasks }
    }

    /// Waits until so many more requests have succeeded.
    pub async fn more(&mut self, count: u64) {
        let wanted = *self.done.borrow() + count;
        soon("requests to succeed", self.done.wait_for(|done| *done >= wanted)).await.unwrap();
    }

    /// How many have succeeded.
    #[cfg(feature = "real-servers")]
    pub fn count(&self) -> u64 {
        *self.done.borrow()
    }

    /// Ends it; returns what failed.
    pub async fn end(self) -> Vec<String> {
        self.ended.send_replace(true);
        soon("the load to end", self.tasks.join_all()).await.concat()
    }

    /// Ends it and panics if any request failed; returns how many succeeded.
    pub async fn end_without_failure(self) -> u64 {
        let done = self.done.clone();
        let failures = self.end().await;
        let done = *done.borrow();
        assert!(failures.is_empty(), "{} of {} requests failed: {failures:#?}", failures.len(), done);
        done
    }
}

async fn request(client: &mut Option<Client>, address: SocketAddr, version: Version, host: &str) -> Result<(), String> {
    let usable = match client {
        Some(client) => client.is_usable().await,
        None => false,
    };
    if !usable {
        *client = Some(Client::connect(address, version).await?);
    }
    let (status, body) = client.as_mut().unwrap().get(host, "/").await?;
    if status == 200 { Ok(()) } else { Err(format!("{status}: {body}")) }
}

/// Measures until the median is below `limit`. What else runs on the machine may make everything slow for seconds, and tells
/// nothing of what is measured; so the best of some rounds counts.
#[cfg(feature = "real-servers")]
pub async fn median_below(what: &str, limit: Duration, mut measure: impl AsyncFnMut() -> Vec<Duration>) {
    let mut medians = Vec::new();
    for _ in 0..8 {
        let (median, highest) = summary(measure().await);
        println!("{what}: median {median:.2?}, highest {highest:.2?}");
        if median < limit {
            return;
        }
        medians.push(median);
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    panic!("{what}: the median was never below {limit:?}: {medians:?}");
}

/// The median and the highest.
pub fn summary(mut times: Vec<Duration>) -> (Duration, Duration) {
    times.sort_unstable();
    (times[times.len() / 2], *times.last().unwrap())
}
