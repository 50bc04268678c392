//! One listener on one worker: accepts connections, tells HTTP/1 from HTTP/2, and gives each its own task.

use super::{h1, h2, headers::Origin, http::Proxy, timer::Timer};
use crate::{
    config::{self, ListenerLimits},
    net::{
        buffers,
        detect::{Detected, detect},
        io::{Io, Stream},
        listen,
    },
    route,
    telemetry::{labels::Refused, metrics::ListenerMetrics},
};
use bytes::BytesMut;
use futures_util::future::{FutureExt, LocalBoxFuture};
use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    task::Poll,
    time::Duration,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Notify, watch},
    time::Instant,
};

/// When the listener is to end, idle connections stay open for this long. HTTP/1.1 cannot say goodbye to an idle client: a
/// request that is on its way while we close is lost. So the answer to one more request says it, with `Connection: close`.
const GRACE: Duration = Duration::from_millis(250);

/// What a listener's connections share.
#[derive(Debug)]
pub struct Listener {
    pub name: Arc<str>,
    pub metrics: Arc<ListenerMetrics>,
    settings: RefCell<Rc<Settings>>,
    closing: watch::Receiver<bool>,
    is_closing: Cell<bool>,
    /// Connections of this worker, and the word that the last one is gone.
    open: Cell<usize>,
    last_gone: Notify,
}

/// What can change while a listener is up.
#[derive(Debug)]
pub struct Settings {
    pub rule: route::Rule,
    pub limits: ListenerLimits,
    /// Whether header names keep their case.
    pub keep_case: bool,
}

impl Settings {
    fn new(config: &config::Listener) -> Rc<Self> {
        Rc::new(Self {
            rule: route::Rule::new(config),
            limits: config.limits.clone(),
            keep_case: config.preserve_header_case,
        })
    }
}

impl Listener {
    pub fn new(config: &config::Listener, metrics: Arc<ListenerMetrics>, closing: watch::Receiver<bool>) -> Self {
        Self {
            name: config.name.as_str().into(),
            metrics,
            settings: RefCell::new(Settings::new(config)),
            closing,
            is_closing: Cell::new(false),
            open: Cell::new(0),
            last_gone: Notify::new(),
        }
    }

    /// The settings in force; taken anew for each request.
    pub fn settings(&self) -> Rc<Settings> {
        self.settings.borrow().clone()
    }

    pub fn change(&self, config: &config::Listener) {
        *self.settings.borrow_mut() = Settings::new(config);
    }

    /// Whether the listener is to end: connections close after their current request.
    pub fn is_closing(&self) -> bool {
        self.is_closing.get()
    }

    /// Ends when connections are to end, [`GRACE`] after the word that the listener is to end.
    pub fn closed(&self) -> LocalBoxFuture<'static, ()> {
        let mut closing = self.closing.clone();
        Box::pin(async move {
            // An error means that its owner is gone, which is the same.
            let _ = closing.wait_for(|closing| *closing).await;
            tokio::time::sleep(GRACE).await;
        })
    }

    /// Accepts until the listener is to end, then waits until its last connection is gone.
    pub async fn run(self: Rc<Self>, socket: TcpListener, proxy: Rc<Proxy>) {
        let mut closing = self.closing.clone();
        loop {
            let (stream, peer) = tokio::select! {
                accepted = listen::accept(&socket, |error| self.accept_failed(error)) => accepted,
                _ = closing.wait_for(|closing| *closing) => break,
            };
            // All workers' connections count against one limit.
            if self.metrics.connections.get() >= i64::try_from(self.settings().limits.connections).unwrap_or(i64::MAX) {
                self.metrics.refused.inc(Refused::Limit as usize);
                continue;
            }
            // Owned by `open`, which is waited for below.
            tokio::task::spawn_local(serve(stream, peer, Connection::new(self.clone()), proxy.clone()));
        }
        self.is_closing.set(true);
        // Those that the kernel has accepted for us would be reset with the socket.
        while let Some((stream, peer)) = listen::accept(&socket, |error| self.accept_failed(error)).now_or_never() {
            tokio::task::spawn_local(serve(stream, peer, Connection::new(self.clone()), proxy.clone()));
        }
        drop(socket);
        while self.open.get() > 0 {
            self.last_gone.notified().await;
        }
    }

    fn accept_failed(&self, error: &std::io::Error) {
        self.metrics.refused.inc(Refused::AcceptError as usize);
        tracing::warn!(listener = %self.name, %error, "cannot accept a connection");
    }
}

/// Counts a connection as open for as long as it lives.
#[derive(Debug)]
struct Connection {
    listener: Rc<Listener>,
}

impl Connection {
    fn new(listener: Rc<Listener>) -> Self {
        listener.metrics.accepted.inc();
        listener.metrics.connections.inc();
        listener.open.set(listener.open.get() + 1);
        Self { listener }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.listener.metrics.connections.dec();
        self.listener.open.set(self.listener.open.get() - 1);
        if self.listener.open.get() == 0 {
            self.listener.last_gone.notify_one();
        }
    }
}

/// Serves one connection from its first byte to its end.
async fn serve(stream: TcpStream, peer: SocketAddr, connection: Connection, proxy: Rc<Proxy>) {
    let listener = connection.listener.clone();
    let origin = Rc::new(Origin::new(peer));
    let io = Io::new(Stream::Tcp(stream));
    let mut timer = Timer::default();
    let mut closed = listener.closed();
    let Some((start, protocol)) = first_bytes(&io, &listener, &mut timer, &mut closed).await else { return };
    match protocol {
        // Boxed, because it is the larger of the two, and HTTP/1 has the many short connections.
        Detected::Http2 => Box::pin(h2::serve(io.into_inner(), start, listener, origin, proxy)).await,
        Detected::Http1 | Detected::Unsure => h1::serve(io, start, listener, origin, proxy, timer, closed).await,
    }
}

/// Reads until it is clear what the client speaks. `None`: it left, or said nothing in time.
async fn first_bytes(
    io: &Io,
    listener: &Listener,
    timer: &mut Timer,
    closed: &mut LocalBoxFuture<'static, ()>,
) -> Option<(BytesMut, Detected)> {
    let settings = listener.settings();
    let mut start = BytesMut::new();
    // Clients open connections in advance; silence is idleness until the first byte.
    timer.set(Instant::now() + settings.limits.idle_timeout);
    poll_fn(|cx| {
        loop {
            // Without a byte there is no need for a buffer either.
            let readable = !start.is_empty() || io.poll_readable(cx).is_ready();
            if readable {
                if start.capacity() == 0 {
                    start = buffers::take(buffers::HEAD);
                }
                start.reserve(1);
                match io.poll_read(cx, &mut start) {
                    Poll::Pending => {}
                    Poll::Ready(Err(_) | Ok(0)) => return Poll::Ready(None),
                    Poll::Ready(Ok(_)) => match detect(&start) {
                        Detected::Unsure => {
                            timer.set(Instant::now() + settings.limits.head_timeout);
                            continue;
                        }
                        known => return Poll::Ready(Some((std::mem::take(&mut start), known))),
                    },
                }
            }
            let over = timer.poll_expired(cx).is_ready() || closed.as_mut().poll(cx).is_ready();
            return if over { Poll::Ready(None) } else { Poll::Pending };
        }
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every open connection costs its future. The limit is there to be noticed, not to be raised.
    #[test]
    fn a_connections_future_is_small() {
        fn size<A, B, C, D, F>(_: impl Fn(A, B, C, D) -> F) -> usize {
            size_of::<F>()
        }
        let size = size(serve);
        assert!(size <= 4608, "{size} bytes");
    }
}
