//! An application's instance that is a process of its own, so that it can be restarted and killed: this test program once
//! more, which serves instead of testing.

use crate::e2e::{PATIENCE, serve, soon};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use std::{
    convert::Infallible,
    env,
    io::{Read, Write},
    net::SocketAddr,
    process::Stdio,
    sync::{
        OnceLock,
        atomic::{AtomicU8, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    net::TcpListener,
    process::{Child, ChildStderr, ChildStdin, Command},
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
    task::{JoinHandle, JoinSet},
    time::{sleep, timeout},
};

/// Where the process is to listen; set in the environment of those that serve.
const SERVE: &str = "PILLION_TEST_SERVE";
/// How many milliseconds each request takes there.
const TAKES: &str = "PILLION_TEST_TAKES";
/// The test below, as the test program calls it.
const NAME: &str = "instance::one_that_is_told_to_end_finishes_what_it_has";
const LISTENING: &str = "listening ";
const EXECUTED: &str = "executed ";
/// From the moment that a request is executed to its answer.
const WORK: Duration = Duration::from_millis(5);

/// A process that answers every request with the request's path, and tells which it has executed. It is killed, by its own
/// id, when dropped.
pub struct Instance {
    pub address: SocketAddr,
    child: Child,
    /// Its end is how the process knows that nobody needs it any more.
    #[allow(dead_code, reason = "held for its drop")]
    stdin: ChildStdin,
    reader: JoinHandle<()>,
}

impl Instance {
    /// A new one, on an address that nobody else takes while it is down.
    pub async fn start(executed: &mpsc::UnboundedSender<String>) -> Self {
        static NEXT: AtomicU8 = AtomicU8::new(1);
        Self::start_at(([127, 0, NEXT.fetch_add(1, Relaxed), 1], 0).into(), executed).await
    }

    /// `executed` gets `METHOD PATH` of each request before it is answered.
    pub async fn start_at(address: SocketAddr, executed: &mpsc::UnboundedSender<String>) -> Self {
        Self::spawn(address, WORK, executed).await
    }

    /// One whose requests take this long.
    pub async fn start_working(work: Duration, executed: &mpsc::UnboundedSender<String>) -> Self {
        Self::spawn(([127, 0, 0, 1], 0).into(), work, executed).await
    }

    /// The program with its arguments, and its environment, for somebody else to start. It ends with its stdin.
    pub fn command(address: SocketAddr) -> (Vec<String>, [(&'static str, String); 2]) {
        let program = env::current_exe().unwrap().to_str().unwrap().to_owned();
        let arguments = ["--exact", NAME, "--nocapture", "--test-threads=1"].map(str::to_owned);
        let environment = [(SERVE, address.to_string()), (TAKES, WORK.as_millis().to_string())];
        (std::iter::once(program).chain(arguments).collect(), environment)
    }

    async fn spawn(address: SocketAddr, work: Duration, executed: &mpsc::UnboundedSender<String>) -> Self {
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["--exact", NAME, "--nocapture", "--test-threads=1"])
            .env_clear()
            .env(SERVE, address.to_string())
            .env(TAKES, work.as_millis().to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let stdin = child.stdin.take().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let address = soon("the instance to listen", listening(&mut lines)).await;
        let executed = executed.clone();
        let reader = tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                let request = line.strip_prefix(EXECUTED).unwrap_or_else(|| panic!("the instance said: {line}"));
                let _ = executed.send(request.into());
            }
        });
        Self { address, child, stdin, reader }
    }

    /// Asks it to end, as an orchestrator does, and waits until it has.
    pub async fn stop(mut self) {
        let id = self.child.id().unwrap().to_string();
        assert!(Command::new("kill").arg(&id).status().await.unwrap().success());
        assert!(self.ended().await.success());
    }

    /// As `kill -9` does.
    pub async fn kill(mut self) {
        self.child.start_kill().unwrap();
        self.ended().await;
    }

    /// Waits until all that it said is known, too.
    async fn ended(&mut self) -> std::process::ExitStatus {
        let status = timeout(PATIENCE, self.child.wait()).await.expect("the instance ends").unwrap();
        soon("its last words", &mut self.reader).await.unwrap();
        status
    }
}

async fn listening(lines: &mut Lines<BufReader<ChildStderr>>) -> SocketAddr {
    let line = lines.next_line().await.unwrap().expect("the instance runs");
    line.strip_prefix(LISTENING).unwrap_or_else(|| panic!("the instance said: {line}")).parse().unwrap()
}

/// What the process does.
async fn run(address: SocketAddr) {
    // Whoever started it is gone.
    std::thread::spawn(|| {
        let _ = std::io::stdin().read(&mut [0]);
        std::process::exit(1);
    });
    let mut asked = signal(SignalKind::terminate()).unwrap();
    let leaving = watch::Sender::new(false);
    let listener = TcpListener::bind(address).await.unwrap();
    say(LISTENING, listener.local_addr().unwrap());
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => drop(connections.spawn(serve(accepted.unwrap().0, answer, leaving.subscribe()))),
            Some(_) = connections.join_next() => {}
            _ = asked.recv() => break,
        }
    }
    drop(listener);
    leaving.send_replace(true);
    while connections.join_next().await.is_some() {}
}

fn work() -> Duration {
    static WORK: OnceLock<Duration> = OnceLock::new();
    *WORK.get_or_init(|| Duration::from_millis(env::var(TAKES).unwrap().parse().unwrap()))
}

async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    // Without its whole body a request is not executed.
    if request.into_body().collect().await.is_err() {
        return Ok(Response::builder().status(400).body(Full::default()).unwrap());
    }
    say(EXECUTED, format_args!("{method} {path}"));
    sleep(work()).await;
    Ok(Response::new(Full::from(path)))
}

/// One line, in one piece: it is said as a whole or not at all, whatever kills the process.
fn say(what: &str, of: impl std::fmt::Display) {
    std::io::stderr().write_all(format!("{what}{of}\n").as_bytes()).unwrap();
}

/// Where the environment says so, this is the process itself.
#[tokio::test]
async fn one_that_is_told_to_end_finishes_what_it_has() {
    if let Ok(address) = env::var(SERVE) {
        run(address.parse().unwrap()).await;
        std::process::exit(0);
    }
    let (tell, mut executed) = mpsc::unbounded_channel();
    let instance = Instance::start(&tell).await;
    let address = instance.address;
    let mut client = crate::peer::Peer::connect(address).await;
    client.send("POST /order HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\n\r\nx").await;
    assert_eq!(soon("the request", executed.recv()).await.unwrap(), "POST /order");
    let answered = async { assert_eq!(client.response().await.text(), "/order") };
    tokio::join!(instance.stop(), answered);
    let again = Instance::start_at(address, &tell).await;
    assert_eq!(again.address, address);
    again.kill().await;
    drop(tell);
    assert_eq!(executed.recv().await, None);
}
