//! A TCP relay between pillion and a server: it counts, and it can be cut.

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
    open: watch::Sender<bool>,
    task: JoinHandle<()>,
}

#[derive(Default)]
struct Counts {
    connections: AtomicUsize,
    requests: AtomicUsize,
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
        self.open.send_replace(false);
    }
}

impl Relay {
    pub async fn to(server_port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let counts = Arc::new(Counts::default());
        let (open, is_open) = watch::channel(true);
        let task = tokio::spawn({
            let counts = counts.clone();
            async move {
                loop {
                    let (client, _) = listener.accept().await.unwrap();
                    if *is_open.borrow() {
                        counts.connections.fetch_add(1, Ordering::Relaxed);
                        tokio::spawn(forward(client, server_port, counts.clone(), is_open.clone()));
                    }
                }
            }
        });
        Self { port, counts, open, task }
    }

    /// Breaks all connections and every further one, until [`Self::mend`].
    pub fn cut(&self) {
        self.open.send_replace(false);
    }

    pub fn mend(&self) {
        self.open.send_replace(true);
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

async fn forward(mut client: TcpStream, server_port: u16, counts: Arc<Counts>, mut open: watch::Receiver<bool>) {
    let Ok(mut server) = TcpStream::connect(("127.0.0.1", server_port)).await else { return };
    let (mut up, mut down) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    loop {
        tokio::select! {
            () = async { drop(open.wait_for(|open| !open).await) } => return,
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
}
