//! A TCP relay between two ends: it counts, it can be cut, with a word or without, and it can fail at an exact byte of each
//! connection.

use crate::socket::Socket;
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

/// Far more than anything should take; only a failing test waits so long.
const PATIENCE: Duration = Duration::from_secs(60);

/// Forwards connections until it is cut or dropped.
pub struct Relay {
    pub port: u16,
    shared: Arc<Shared>,
    state: watch::Sender<State>,
    #[cfg_attr(not(feature = "real-servers"), allow(dead_code, reason = "only those tests look at it"))]
    start: Instant,
    task: JoinHandle<()>,
}

struct Shared {
    server_port: u16,
    faults: Box<dyn Fn(usize) -> Faults + Send + Sync>,
    /// By the connection's number.
    passed: watch::Sender<Vec<Passed>>,
    requests: AtomicUsize,
}

/// What is wrong with one connection; by default nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Faults {
    /// On the way to the server.
    pub up: Way,
    /// On the way back.
    pub down: Way,
}

/// One direction of a connection.
#[derive(Debug, Clone, Copy, Default)]
pub struct Way {
    /// At most so many bytes at a time, each held back for that time.
    slow: Option<(usize, Duration)>,
    /// What happens once so many bytes have passed.
    fault: Option<(usize, Fault)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Both connections are closed in order.
    Close,
    /// Both connections are reset.
    Reset,
    /// This direction ends in order, the other goes on.
    End,
    /// Nothing more is read in this direction, so that its sender must wait in the end.
    Stall,
    /// What comes is read and lost, its end too.
    Swallow,
}

/// What has happened on one connection.
#[derive(Debug, Clone, Copy, Default)]
pub struct Passed {
    /// When it was made, from the relay's start.
    #[cfg_attr(not(feature = "real-servers"), allow(dead_code, reason = "only those tests look at it"))]
    pub made: Duration,
    /// Bytes to the server.
    pub up: usize,
    /// Pieces in which they came: about as many as the client's writes.
    pub pieces: usize,
    /// Bytes back.
    pub down: usize,
    /// Whether both its connections are closed.
    pub closed: bool,
}

impl Faults {
    pub fn up(up: Way) -> Self {
        Self { up, ..Self::default() }
    }

    pub fn down(down: Way) -> Self {
        Self { down, ..Self::default() }
    }
}

impl Way {
    pub fn after(bytes: usize, fault: Fault) -> Self {
        Self { fault: Some((bytes, fault)), ..Self::default() }
    }

    pub fn slow(piece: usize, delay: Duration) -> Self {
        Self { slow: Some((piece, delay)), ..Self::default() }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    Cut,
    Silent,
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
        self.state.send_replace(State::Cut);
    }
}

impl Relay {
    /// One that does nothing by itself.
    pub async fn to(server_port: u16) -> Self {
        Self::with(server_port, |_| Faults::default()).await
    }

    /// `faults` is asked for each connection by its number, the first being 0.
    pub async fn with(server_port: u16, faults: impl Fn(usize) -> Faults + Send + Sync + 'static) -> Self {
        let listener = Socket(TcpListener::bind("127.0.0.1:0").await.unwrap());
        let port = listener.local_addr().unwrap().port();
        let passed = watch::Sender::default();
        let shared = Arc::new(Shared { server_port, faults: Box::new(faults), passed, requests: AtomicUsize::new(0) });
        let (state, now) = watch::channel(State::Open);
        let start = Instant::now();
        let task = tokio::spawn({
            let shared = shared.clone();
            async move {
                loop {
                    let client = Socket(listener.accept().await.unwrap().0);
                    if *now.borrow() != State::Cut {
                        let number = shared.passed.borrow().len();
                        shared
                            .passed
                            .send_modify(|passed| passed.push(Passed { made: start.elapsed(), ..Passed::default() }));
                        tokio::spawn(forward(client, number, shared.clone(), now.clone()));
                    }
                }
            }
        });
        Self { port, shared, state, start, task }
    }

    /// As an address that a registry may have.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Breaks all connections and every further one, until [`Self::mend`].
    pub fn cut(&self) {
        self.state.send_replace(State::Cut);
    }

    /// From now on nothing passes and nobody is told, as when a middlebox drops packets. The connections that there are,
    /// and those that are made until [`Self::mend`], stay so for ever.
    pub fn silence(&self) {
        self.state.send_replace(State::Silent);
    }

    pub fn mend(&self) {
        self.state.send_replace(State::Open);
    }

    /// Connections since the start.
    pub fn connections(&self) -> usize {
        self.shared.passed.borrow().len()
    }

    /// What has happened on all of them.
    #[cfg(feature = "real-servers")]
    pub fn passed(&self) -> Vec<Passed> {
        self.shared.passed.borrow().clone()
    }

    /// Since its start.
    #[cfg(feature = "real-servers")]
    pub fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// Waits until it is so with that connection, and says how it is then.
    pub async fn until(&self, number: usize, is_so: impl Fn(Passed) -> bool) -> Passed {
        let mut passed = self.shared.passed.subscribe();
        let met = timeout(PATIENCE, passed.wait_for(|all| all.get(number).is_some_and(|one| is_so(*one)))).await;
        let met = met.unwrap_or_else(|_| panic!("in vain: {:?}", self.shared.passed.borrow().get(number)));
        met.unwrap()[number]
    }

    /// HTTP/1.1 GET requests since the start.
    #[cfg(feature = "real-servers")]
    pub fn requests(&self) -> usize {
        self.shared.requests.load(Ordering::Relaxed)
    }
}

async fn forward(mut client: Socket<TcpStream>, number: usize, shared: Arc<Shared>, mut state: watch::Receiver<State>) {
    if *state.borrow() == State::Silent {
        let _ = state.wait_for(|state| *state == State::Cut).await;
        return;
    }
    let Ok(server) = TcpStream::connect(("127.0.0.1", shared.server_port)).await else { return };
    let mut server = Socket(server);
    // What is written at once is to arrive at once.
    client.set_nodelay(true).unwrap();
    server.set_nodelay(true).unwrap();
    let Faults { up, down } = (shared.faults)(number);
    let ended = {
        let ((mut from_client, mut to_client), (mut from_server, mut to_server)) = (client.split(), server.split());
        let count = |add: &dyn Fn(&mut Passed)| shared.passed.send_modify(|passed| add(&mut passed[number]));
        let up = pass(&mut from_client, &mut to_server, up, |bytes| {
            // Clients write a head at once, so none is split over two reads.
            let requests = bytes.windows(5).filter(|bytes| bytes == b"GET /").count();
            shared.requests.fetch_add(requests, Ordering::Relaxed);
            count(&|passed| {
                passed.up += bytes.len();
                passed.pieces += 1;
            });
        });
        let down = pass(&mut from_server, &mut to_client, down, |bytes| count(&|passed| passed.down += bytes.len()));
        tokio::select! {
            both = async { tokio::try_join!(up, down) } => both.err().unwrap_or(Fault::Close),
            () = async { drop(state.wait_for(|state| *state != State::Open).await) } => Fault::Stall,
        }
    };
    match ended {
        Fault::Reset => {
            for end in [&client, &server] {
                socket2::SockRef::from(&**end).set_linger(Some(Duration::ZERO)).unwrap();
            }
        }
        // Both connections stay open, and nobody reads from them.
        Fault::Stall => drop(state.wait_for(|state| *state == State::Cut).await),
        _ => {}
    }
    drop((client, server));
    shared.passed.send_modify(|passed| passed[number].closed = true);
}

/// Passes bytes on until their end, which is passed on, too. An error is how both directions end.
async fn pass(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    way: Way,
    mut count: impl FnMut(&[u8]),
) -> Result<(), Fault> {
    let mut buf = vec![0; 64 << 10];
    let mut passed = 0;
    loop {
        let mut most = buf.len();
        if let Some((bytes, fault)) = way.fault {
            match fault {
                _ if passed < bytes => most = most.min(bytes - passed),
                Fault::Close | Fault::Reset => return Err(fault),
                Fault::End => return to.shutdown().await.map_err(|_| Fault::Reset),
                Fault::Stall => std::future::pending().await,
                Fault::Swallow => loop {
                    match from.read(&mut buf).await {
                        Ok(1..) => {}
                        _ => std::future::pending().await,
                    }
                },
            }
        }
        if let Some((piece, _)) = way.slow {
            most = most.min(piece);
        }
        match from.read(&mut buf[..most]).await {
            Ok(0) => return to.shutdown().await.map_err(|_| Fault::Reset),
            Ok(read) => {
                if let Some((_, delay)) = way.slow {
                    sleep(delay).await;
                }
                to.write_all(&buf[..read]).await.map_err(|_| Fault::Reset)?;
                passed += read;
                count(&buf[..read]);
            }
            Err(_) => return Err(Fault::Reset),
        }
    }
}
