//! One listener on one worker: accepts connections, tells HTTP/1 from HTTP/2, and gives each its own task.

use super::{h1, h2, headers::Origin, http::Proxy, timer::Timer};
use crate::{
    config::{self, ListenerLimits},
    net::{
        detect::{Detected, detect},
        io::{Io, Stream},
        listen,
    },
    route,
    telemetry::{labels::Refused, metrics::ListenerMetrics},
};
use bytes::BytesMut;
use futures_util::future::LocalBoxFuture;
use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    task::Poll,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    time::Instant,
};

/// What a listener's connections share.
#[derive(Debug)]
pub struct Listener {
    pub name: Arc<str>,
    pub metrics: Arc<ListenerMetrics>,
    settings: RefCell<Rc<Settings>>,
    closing: watch::Receiver<bool>,
    is_closing: Cell<bool>,
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

    /// Ends when the listener is to end.
    pub fn closed(&self) -> LocalBoxFuture<'static, ()> {
        let mut closing = self.closing.clone();
        Box::pin(async move {
            // An error means that its owner is gone, which is the same.
            let _ = closing.wait_for(|closing| *closing).await;
        })
    }

    /// Accepts until the listener is to end, then waits until its last connection is gone.
    pub async fn run(self: Rc<Self>, socket: TcpListener, proxy: Rc<Proxy>) {
        let mut closed = self.closed();
        let mut tasks = tokio::task::JoinSet::new();
        loop {
            let (stream, peer) = tokio::select! {
                accepted = listen::accept(&socket, |error| self.accept_failed(error)) => accepted,
                Some(_) = tasks.join_next() => continue,
                () = &mut closed => break,
            };
            // All workers' connections count against one limit.
            if self.metrics.connections.get() >= i64::try_from(self.settings().limits.connections).unwrap_or(i64::MAX) {
                self.metrics.refused.inc(Refused::Limit as usize);
                continue;
            }
            let connection = Connection::new(self.clone());
            tasks.spawn_local(serve(stream, peer, connection, proxy.clone()));
        }
        self.is_closing.set(true);
        drop(socket);
        while tasks.join_next().await.is_some() {}
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
        Self { listener }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.listener.metrics.connections.dec();
    }
}

/// Serves one connection from its first byte to its end.
async fn serve(stream: TcpStream, peer: SocketAddr, connection: Connection, proxy: Rc<Proxy>) {
    let listener = connection.listener.clone();
    let origin = Rc::new(Origin::new(peer));
    let io = Io::new(Stream::Tcp(stream));
    let mut timer = Timer::default();
    let Some((start, protocol)) = first_bytes(&io, &listener, &mut timer).await else { return };
    match protocol {
        Detected::Http2 => h2::serve(io.into_inner(), start, listener, origin, proxy).await,
        Detected::Http1 | Detected::Unsure => h1::serve(io, start, listener, origin, proxy, timer).await,
    }
}

/// Reads until it is clear what the client speaks. `None`: it left, or said nothing in time.
async fn first_bytes(io: &Io, listener: &Listener, timer: &mut Timer) -> Option<(BytesMut, Detected)> {
    let limits = listener.settings().limits.clone();
    let mut start = BytesMut::new();
    // Clients open connections in advance; silence is idleness until the first byte.
    timer.set(Instant::now() + limits.idle_timeout);
    let detected = poll_fn(|cx| {
        loop {
            if timer.poll_expired(cx).is_ready() {
                return Poll::Ready(None);
            }
            // Without a byte there is no need for a buffer either.
            if start.is_empty() && io.poll_readable(cx).is_pending() {
                return Poll::Pending;
            }
            start.reserve(h1::REQUEST_ROOM);
            match io.poll_read(cx, &mut start) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(_) | Ok(0)) => return Poll::Ready(None),
                Poll::Ready(Ok(_)) => match detect(&start) {
                    Detected::Unsure => timer.set(Instant::now() + limits.head_timeout),
                    known => return Poll::Ready(Some(known)),
                },
            }
        }
    });
    tokio::select! {
        detected = detected => Some((start, detected?)),
        () = listener.closed() => None,
    }
}
