//! One listener on one worker: accepts connections, tells HTTP/1 from HTTP/2, and gives each its own task.

mod settings;

pub use settings::{Settings, Side, Way};

use super::{
    auto, callers::Callers, first_bytes::proxy_header, h1, h2, headers::Origin, http::Proxy, tcp, timer::Timer,
};
use crate::{
    cluster::connect::keepalive,
    config::{self, ListenerProtocol},
    net::{
        buffers,
        detect::{Detected, detect},
        io::{Io, Stream},
        listen, original,
    },
    telemetry::{Telemetry, labels::Refused, metrics::ListenerMetrics},
};
use bytes::BytesMut;
use futures_util::future::{FutureExt, LocalBoxFuture};
use socket2::SockRef;
use std::{
    cell::{Cell, RefCell},
    convert::Infallible,
    future::{pending, poll_fn},
    net::SocketAddr,
    pin::pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Notify, mpsc, watch},
    time::{Instant, sleep_until},
};

/// When the listener is to end, idle connections stay open for this long. HTTP/1.1 cannot say goodbye to an idle client: a
/// request that is on its way while we close is lost. So the answer to one more request says it, with `Connection: close`.
const GRACE: Duration = Duration::from_millis(250);

/// What a listener's connections share.
#[derive(Debug)]
pub struct Listener {
    pub name: Arc<str>,
    pub metrics: Arc<ListenerMetrics>,
    /// Here as well, so that a request's record, which has its listener, needs no reference of its own.
    pub telemetry: Arc<Telemetry>,
    settings: RefCell<Rc<Settings>>,
    /// Who called the local application lately, on this worker.
    pub callers: Callers,
    closing: watch::Receiver<bool>,
    is_closing: Cell<bool>,
    /// Whether what is in progress is being cut off.
    cut: watch::Receiver<bool>,
    /// Connections of this worker, and the word that the last one is gone.
    open: Cell<usize>,
    last_gone: Notify,
}

/// [`Listener::closed`], begun when it is first asked for: a connection that is never idle does without.
#[derive(Default)]
pub struct Closed(Option<LocalBoxFuture<'static, ()>>);

impl Closed {
    pub fn poll(&mut self, listener: &Listener, cx: &mut Context<'_>) -> Poll<()> {
        self.0.get_or_insert_with(|| listener.closed()).as_mut().poll(cx)
    }
}

/// Whoever waits for the other end knows that a socket is closed when this is dropped.
pub type Open = mpsc::Sender<Infallible>;

impl Listener {
    pub fn new(
        config: &config::Listener,
        side: Side,
        telemetry: Arc<Telemetry>,
        metrics: Arc<ListenerMetrics>,
        closing: watch::Receiver<bool>,
        cut: watch::Receiver<bool>,
    ) -> Self {
        Self {
            name: config.name.as_str().into(),
            metrics,
            settings: RefCell::new(Settings::new(config, side, &telemetry)),
            telemetry,
            callers: Callers::default(),
            closing,
            is_closing: Cell::new(false),
            cut,
            open: Cell::new(0),
            last_gone: Notify::new(),
        }
    }

    /// The settings in force; taken anew for each request.
    pub fn settings(&self) -> Rc<Settings> {
        self.settings.borrow().clone()
    }

    pub fn change(&self, config: &config::Listener, side: Side) {
        let new = Settings::new(config, side, &self.telemetry);
        let before = self.settings.replace(new.clone());
        // Another application has other numbers.
        if before.way.app() != new.way.app() {
            self.callers.forget();
        }
    }

    /// Whether the listener is to end: connections close after their current request.
    pub fn is_closing(&self) -> bool {
        self.is_closing.get()
    }

    /// Says when the listener is to end.
    pub(super) fn closing(&self) -> watch::Receiver<bool> {
        self.closing.clone()
    }

    /// Whether requests that are abandoned are so because pillion's time is up.
    pub fn is_cut(&self) -> bool {
        *self.cut.borrow()
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

    /// Accepts on one of its sockets until the listener is to end, then waits until its last connection is gone. Lets go of
    /// `open` when the socket is closed.
    pub async fn run(self: Rc<Self>, socket: TcpListener, open: Open, proxy: Rc<Proxy>) {
        // What it accepts inherits it. Without requests there is no other way to hear that a client is gone.
        let _ = SockRef::from(&socket).set_tcp_keepalive(&keepalive());
        proxy.inbound.add(&self);
        let (mut closing, mut looked) = (self.closing.clone(), Instant::now());
        let mut closing = pin!(closing.wait_for(|closing| *closing));
        loop {
            let (stream, peer) = tokio::select! {
                // In no fixed order: where connections never stop coming, the end is seen all the same.
                accepted = listen::accept(&socket, |error| self.accept_failed(error)) => accepted,
                _ = &mut closing => break,
                () = self.next_look(looked) => {
                    looked = Instant::now();
                    self.callers.look();
                    continue;
                }
            };
            self.clone().start(stream, peer, proxy.clone());
        }
        self.is_closing.set(true);
        // Those that the kernel has accepted for us would be reset with the socket.
        while let Some((stream, peer)) = listen::accept(&socket, |error| self.accept_failed(error)).now_or_never() {
            self.clone().start(stream, peer, proxy.clone());
        }
        drop((socket, open));
        while self.open.get() > 0 {
            self.last_gone.notified().await;
        }
    }

    /// Serves a connection in a task of its own, which is owned by `open`.
    fn start(self: Rc<Self>, stream: TcpStream, peer: SocketAddr, proxy: Rc<Proxy>) {
        // Of a listener for both families, as others write it.
        let peer = original::canonical(peer);
        if let Some(other) = proxy.inbound.listener(&self, &stream) {
            return other.start(stream, peer, proxy);
        }
        // All workers' connections count against one limit.
        if self.metrics.connections.get() >= i64::try_from(self.settings().limits.connections).unwrap_or(i64::MAX) {
            self.metrics.refused.inc(Refused::Limit as usize);
            return;
        }
        let (protocol, is_introduced) = (self.settings().protocol, self.settings().proxy_protocol);
        let connection = Connection::new(self);
        match protocol {
            ListenerProtocol::Http if is_introduced => {
                tokio::task::spawn_local(serve_introduced(stream, peer, connection, proxy))
            }
            // Boxed, so that it is moved once and not twice on its way into the task.
            ListenerProtocol::Http => {
                let origin = Rc::new(Origin::new(peer));
                tokio::task::spawn_local(Box::pin(serve(stream, BytesMut::new(), origin, connection, proxy)))
            }
            // (There are no connections where datagrams come in.)
            ListenerProtocol::Tcp | ListenerProtocol::Tls | ListenerProtocol::Udp => {
                tokio::task::spawn_local(tcp::serve(stream, peer, connection, proxy))
            }
            ListenerProtocol::Auto => tokio::task::spawn_local(auto::serve(stream, peer, connection, proxy)),
        };
    }

    /// Waits until it is time to look which callers are idle.
    async fn next_look(&self, looked: Instant) {
        let every = match &self.settings().way {
            Way::Inbound { callers, .. } => callers.look_every(),
            Way::Outbound { .. } => return pending().await,
        };
        sleep_until(looked + every).await;
    }

    pub(super) fn accept_failed(&self, error: &std::io::Error) {
        self.metrics.refused.inc(Refused::AcceptError as usize);
        tracing::warn!(listener = %self.name, %error, "cannot accept a connection");
    }
}

/// Counts a connection as open for as long as it lives.
#[derive(Debug)]
pub struct Connection {
    listener: Rc<Listener>,
}

impl Connection {
    pub(super) fn new(listener: Rc<Listener>) -> Self {
        listener.metrics.accepted.inc();
        listener.metrics.connections.inc();
        listener.open.set(listener.open.get() + 1);
        Self { listener }
    }

    pub fn listener(&self) -> &Rc<Listener> {
        &self.listener
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.listener.metrics.connections.dec();
        self.listener.open.set(self.listener.open.get() - 1);
        // Before that nobody waits for it.
        if self.listener.open.get() == 0 && self.listener.is_closing() {
            self.listener.last_gone.notify_waiters();
        }
    }
}

/// Serves one connection that says first whom it comes from.
async fn serve_introduced(stream: TcpStream, peer: SocketAddr, connection: Connection, proxy: Rc<Proxy>) {
    let mut start = BytesMut::new();
    if let Some(peer) = introduced(&stream, &mut start, peer, &connection.listener).await {
        serve(stream, start, Rc::new(Origin::new(peer)), connection, proxy).await;
    }
}

/// Serves one connection to its end. `start`: what was read of it already.
pub async fn serve(
    stream: TcpStream,
    mut start: BytesMut,
    origin: Rc<Origin>,
    connection: Connection,
    proxy: Rc<Proxy>,
) {
    let io = Io::new(Stream::Tcp(stream));
    let (mut timer, mut closed) = (Timer::default(), Closed::default());
    let Some(protocol) = which_http(&io, &mut start, &connection.listener, &mut timer, &mut closed).await else {
        return;
    };
    match protocol {
        // Boxed, because it is the larger of the two, and HTTP/1 has the many short connections.
        Detected::Http2 => {
            Box::pin(h2::serve(io.into_inner(), start, connection.listener.clone(), origin, proxy)).await
        }
        Detected::Http1 | Detected::Unsure => {
            h1::serve(io, start, connection.listener.clone(), origin, proxy, timer, closed).await
        }
    }
}

/// Whom a connection comes from, as it says first. `None`: it does not.
async fn introduced(
    stream: &TcpStream,
    start: &mut BytesMut,
    peer: SocketAddr,
    listener: &Listener,
) -> Option<SocketAddr> {
    let until = Instant::now() + listener.settings().limits.head_timeout;
    match proxy_header(stream, start, until).await {
        Ok(addresses) => Some(addresses.map_or(peer, |addresses| addresses.source)),
        Err(error) => {
            tracing::debug!(listener = %listener.name, %peer, %error, "a connection is closed");
            listener.metrics.rejected.inc(error.reason as usize);
            None
        }
    }
}

/// Reads until it is clear which HTTP the client speaks. `start`: what was read, already and then. `None`: it left, or said
/// nothing in time.
async fn which_http(
    io: &Io,
    start: &mut BytesMut,
    listener: &Listener,
    timer: &mut Timer,
    closed: &mut Closed,
) -> Option<Detected> {
    let settings = listener.settings();
    // Clients open connections in advance; silence is idleness until the first byte.
    timer.set(Instant::now() + settings.limits.idle_timeout);
    let (mut seen, mut is_new) = (0, true);
    poll_fn(|cx| {
        loop {
            if start.len() > seen {
                seen = start.len();
                match detect(start) {
                    Detected::Unsure => timer.set(Instant::now() + settings.limits.head_timeout),
                    known => return Poll::Ready(Some(known)),
                }
            }
            // Without a byte there is no need for a buffer either.
            let readable = !start.is_empty() || io.poll_readable(cx).is_ready();
            if !readable && is_new {
                is_new = false;
                *start = buffers::take(buffers::HEAD);
                io.receive(start);
                if !start.is_empty() {
                    continue;
                }
                buffers::give(std::mem::take(start));
            }
            if readable {
                if start.capacity() == 0 {
                    *start = buffers::take(buffers::HEAD);
                }
                start.reserve(1);
                match io.poll_read(cx, start) {
                    Poll::Pending => {}
                    Poll::Ready(Err(_) | Ok(0)) => return Poll::Ready(None),
                    Poll::Ready(Ok(_)) => continue,
                }
            }
            let over = timer.poll_expired(cx).is_ready() || closed.poll(listener, cx).is_ready();
            return if over { Poll::Ready(None) } else { Poll::Pending };
        }
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::{App, Config, Node},
        inbound::LocalApps,
        telemetry::{access_log::AccessLog, labels::WORDS, metrics::Metrics},
    };
    use http::HeaderMap;

    #[tokio::test]
    async fn callers_count_for_the_application_that_there_is() {
        let metrics = Metrics::new(WORDS);
        let off = config::AccessLog { mode: config::AccessLogMode::Off, ..Default::default() };
        let access_log = AccessLog::start(&off, metrics.access_log_dropped.clone()).unwrap();
        let telemetry = Arc::new(Telemetry { metrics, access_log });
        let app = App::at(SocketAddr::from(([127, 0, 0, 1], 1)));
        let config = config::Listener { name: "in".into(), app: Some(app), ..config::Listener::egress() };
        let mut apps = LocalApps::new(telemetry.clone());
        let mut named = |service: &str| {
            let node = Node { service: Some(service.into()), ..Node::default() };
            apps.apply(&Config { node, listeners: vec![config.clone()], ..Config::default() });
            apps.get("in").unwrap()
        };
        let (before, metrics) = (named("before"), telemetry.metrics.listener("in"));
        let ((_, closing), (_, cut)) = (watch::channel(false), watch::channel(false));
        let listener = Listener::new(&config, Side::To(before.clone(), None), telemetry, metrics, closing, cut);
        let caller = || match &listener.settings().way {
            Way::Inbound { app, callers, .. } => listener.callers.of(&HeaderMap::new(), callers, &app.metrics),
            Way::Outbound { .. } => panic!("not inbound"),
        };
        let first = caller();
        listener.change(&config, Side::To(before.clone(), None));
        assert!(Rc::ptr_eq(&caller(), &first), "it is the same application");
        let after = named("after");
        listener.change(&config, Side::To(after.clone(), None));
        assert!(Arc::ptr_eq(&caller().metrics, &after.metrics.callers()[0]));
        assert!(Arc::ptr_eq(&first.metrics, &before.metrics.callers()[0]), "what was in flight counts where it began");
    }

    /// Every open connection costs its future. The limit is there to be noticed, not to be raised.
    #[test]
    fn a_connections_future_is_small() {
        fn size<A, B, C, D, E, F>(_: impl Fn(A, B, C, D, E) -> F) -> usize {
            size_of::<F>()
        }
        let size = size(serve);
        assert!(size <= 4608, "{size} bytes");
    }
}
