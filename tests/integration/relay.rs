//! A TCP relay between pillion and a server: it counts, and it can be cut, with a word or without.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
};

/// Forwards connections until it is cut or dropped.
pub struct Relay {
    pub port: u16,
    counts: Arc<Counts>,
    state: watch::Sender<State>,
    task: JoinHandle<()>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    Cut,
    Silent,
}

#[derive(Default)]
struct Counts {
    connections: AtomicUsize,
    requests: AtomicUsize,
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
        self.state.send_replace(State::Cut);
    }
}

impl Relay {
    pub async fn to(server_port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let counts = Arc::new(Counts::default());
        let (state, now) = watch::channel(State::Open);
        let task = tokio::spawn({
            let counts = counts.clone();
            async move {
                loop {
                    let (client, _) = listener.accept().await.unwrap();
                    if *now.borrow() != State::Cut {
                        counts.connections.fetch_add(1, Ordering::Relaxed);
                        tokio::spawn(forward(client, server_port, counts.clone(), now.clone()));
                    }
                }
            }
        });
        Self { port, counts, state, task }
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
        self.counts.connections.load(Ordering::Relaxed)
    }

    /// HTTP/1.1 GET requests since the start.
    pub fn requests(&self) -> usize {
        self.counts.requests.load(Ordering::Relaxed)
    }
}

async fn forward(mut client: TcpStream, server_port: u16, counts: Arc<Counts>, mut state: watch::Receiver<State>) {
    if *state.borrow() == State::Silent {
        let _ = state.wait_for(|state| *state == State::Cut).await;
        return;
    }
    let Ok(mut server) = TcpStream::connect(("127.0.0.1", server_port)).await else { return };
    let (mut up, mut down) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    loop {
        tokio::select! {
            () = async { drop(state.wait_for(|state| *state != State::Open).await) } => break,
            read = client.read(&mut up) => match read {
                Ok(n) if n > 0 => {
                    // Clients write a head at once, so none is split over two reads.
                    let requests = up[..n].windows(9).filter(|bytes| bytes == b"GET /v1/h").count();
                    counts.requests.fetch_add(requests, Ordering::Relaxed);
                    if server.write_all(&up[..n]).await.is_err() { return }
                }
                _ => return,
            },
            read = server.read(&mut down) => match read {
                Ok(n) if n > 0 => if client.write_all(&down[..n]).await.is_err() { return },
                _ => return,
            },
        }
    }
    // Both connections stay open, and nobody reads from them.
    let _ = state.wait_for(|state| *state == State::Cut).await;
}
