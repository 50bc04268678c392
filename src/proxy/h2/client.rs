//! The upstream side: connections that many requests share, and one request on one of them.

use super::{
    CONNECTION_WINDOW, STREAM_WINDOW,
    ending::Ending,
    keep_asking,
    pump::{Pump, PumpError},
    recv::RecvBody,
};
use crate::{
    cluster::{connect::ConnectError, limit::Connected},
    config::Pool,
    error::{ProxyError, Reason},
    net::io::{H2Io, Stream},
    proxy::{
        body::Body,
        headers,
        http::Interim,
        journey::{SendFailure, Sent},
        pool::H2Lease,
        waiting::Waiting,
    },
    telemetry::{labels::PoolClosed, metrics::ServiceMetrics},
};
use bytes::{Bytes, BytesMut};
use h2::client::{ResponseFuture, SendRequest};
use http::{
    HeaderName, Request, Response, Uri, Version,
    header::{CONNECTION, HOST, UPGRADE},
    request,
    uri::{Authority, PathAndQuery, Scheme},
};
use http_body::Frame;
use std::{
    cell::Cell,
    fmt,
    future::{Future, pending, poll_fn},
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::time::Instant;

/// How often an upstream is asked whether it is still there. gRPC servers hang up on those who ask more than once in five
/// minutes (gRFC A8, "Client-side Keepalive"); a host that is gone is noticed earlier, by TCP's own keep-alive.
const PING_INTERVAL: Duration = Duration::from_secs(330);
/// An upstream's response head; as for HTTP/1.
const MAX_HEAD: u32 = 256 * 1024;

/// An HTTP/2 connection to an upstream.
pub struct Connection {
    send: SendRequest<Bytes>,
    secure: bool,
    opened: Instant,
    /// Streams in use.
    pub streams: Cell<u32>,
    /// How long none has been in use, counted by the pool's sweep.
    pub idle: Cell<Duration>,
    /// Set when the connection ended, its peer said that it takes no more, or it is too old for more.
    closed: Cell<bool>,
    /// Whether a request has been sent on it.
    pub used: Cell<bool>,
    /// Whether the end of its bytes has been seen.
    ended: Rc<Cell<bool>>,
    metrics: Arc<ServiceMetrics>,
    counted: Cell<Counted>,
    /// Why the pool lets go of it, if it does.
    left: Cell<PoolClosed>,
    /// Its place among the service's connections, for as long as it is open.
    place: Cell<Option<Connected>>,
}

/// What a connection is counted as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Counted {
    Idle,
    Active,
    Closed,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("streams", &self.streams)
            .field("closed", &self.closed)
            .finish_non_exhaustive()
    }
}

impl Connection {
    /// Shakes hands on `stream`, within `limit`, and drives the connection from then on.
    pub async fn open(
        stream: Stream,
        place: Connected,
        metrics: Arc<ServiceMetrics>,
        limit: Duration,
    ) -> Result<Rc<Self>, ConnectError> {
        let secure = matches!(stream, Stream::Tls(_));
        let mut builder = h2::client::Builder::new();
        builder
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(MAX_HEAD)
            .initial_max_send_streams(0)
            .enable_push(false);
        let ended = Rc::new(Cell::new(false));
        let io = Ending::new(H2Io::new(BytesMut::new(), stream), ended.clone());
        let handshake = async {
            let (send, mut driver) = builder.handshake::<_, Bytes>(io).await?;
            // How many streams it takes is in its settings, which come first. Requests sent before would pile up on it.
            poll_fn(|cx| match Pin::new(&mut driver).poll(cx) {
                Poll::Ready(Ok(())) => Poll::Ready(Err(h2::Reason::NO_ERROR.into())),
                Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
                Poll::Pending if send.current_max_send_streams() > 0 => Poll::Ready(Ok(())),
                Poll::Pending => Poll::Pending,
            })
            .await?;
            Ok((send, driver))
        };
        let (send, mut driver) = tokio::time::timeout(limit, handshake)
            .await
            .map_err(|_| ConnectError::Timeout(limit))?
            .map_err(|error| ConnectError::Http2(Arc::new(error)))?;
        let connection = Rc::new(Self {
            send,
            secure,
            opened: Instant::now(),
            streams: Cell::new(0),
            idle: Cell::default(),
            closed: Cell::new(false),
            used: Cell::new(false),
            ended,
            counted: Cell::new(Counted::Idle),
            left: Cell::new(PoolClosed::Used),
            place: Cell::new(Some(place)),
            metrics,
        });
        connection.metrics.pool.idle.inc();
        let weak = Rc::downgrade(&connection);
        let pings = driver.ping_pong();
        // Ends when the connection does, at the latest when its last handle and its last stream are gone.
        tokio::task::spawn_local(async move {
            let unanswered = async {
                match pings {
                    Some(pings) => keep_asking(pings, PING_INTERVAL).await,
                    None => pending().await,
                }
            };
            tokio::select! {
                ended = &mut driver => if let Err(error) = ended {
                    tracing::debug!(%error, "an upstream's HTTP/2 connection ended");
                },
                () = unanswered => tracing::warn!("an upstream's HTTP/2 connection does not answer pings; closing it"),
            }
            if let Some(connection) = weak.upgrade() {
                connection.closed.set(true);
                connection.count_closed(PoolClosed::Peer);
            }
        });
        Ok(connection)
    }

    /// Whether another request can be sent on it now.
    pub fn has_room(&self) -> bool {
        !self.closed.get() && (self.streams.get() as usize) < self.send.current_max_send_streams()
    }

    /// Why the pool's sweep, which comes every `period`, is to let go of it. Requests in progress go on.
    pub fn poor(&self, pool: &Pool, now: Instant, period: Duration) -> Option<PoolClosed> {
        if self.streams.get() == 0 {
            self.idle.set(self.idle.get() + period);
        }
        if self.closed.get() {
            Some(PoolClosed::Peer)
        } else if now.saturating_duration_since(self.opened) >= pool.max_age {
            Some(PoolClosed::Age)
        } else {
            (self.idle.get() >= pool.idle_timeout).then_some(PoolClosed::Idle)
        }
    }

    /// Lets go of it: it closes once its last request has ended, and is then counted as closed for this reason.
    pub fn leave(&self, why: PoolClosed) {
        self.left.set(why);
    }

    /// A request begins on it.
    pub fn begin(&self) {
        self.streams.set(self.streams.get() + 1);
        if self.counted.get() == Counted::Idle {
            self.counted.set(Counted::Active);
            self.metrics.pool.idle.dec();
            self.metrics.pool.active.inc();
        }
    }

    /// A request has ended on it.
    pub fn end(&self) {
        self.streams.set(self.streams.get() - 1);
        if self.streams.get() == 0 && self.counted.get() == Counted::Active {
            self.counted.set(Counted::Idle);
            self.metrics.pool.active.dec();
            self.metrics.pool.idle.inc();
        }
    }

    fn count_closed(&self, why: PoolClosed) {
        match self.counted.replace(Counted::Closed) {
            Counted::Idle => self.metrics.pool.idle.dec(),
            Counted::Active => self.metrics.pool.active.dec(),
            Counted::Closed => return,
        }
        self.metrics.pool.closed.inc(why as usize);
        self.place.take();
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.count_closed(self.left.get());
    }
}

/// Sends a request and waits for the head of its response. Informational responses go to `interim`. A body of at most
/// `keep` bytes is kept until then.
pub async fn send(
    lease: H2Lease,
    parts: &request::Parts,
    body: Body,
    keep: usize,
    waiting: &mut Waiting<'_>,
    interim: &dyn Interim,
) -> Result<Sent, SendFailure> {
    let mut sender = lease.connection.send.clone();
    // Does not wait: the lease is for a free stream.
    if let Err(error) = poll_fn(|cx| sender.poll_ready(cx)).await {
        lease.connection.closed.set(true);
        return Err(SendFailure::before(refused(&error), Some(body)));
    }
    let request = match to_h2(parts, lease.connection.secure) {
        Ok(request) => request,
        Err(error) => return Err(SendFailure::before(error, Some(body))),
    };
    let whole = body.is_done();
    let (response, stream) = match sender.send_request(request, whole) {
        Ok(sent) => sent,
        Err(error) => {
            lease.connection.closed.set(true);
            return Err(SendFailure::before(refused(&error), Some(body)));
        }
    };
    let pump = (!whole).then(|| Pump::replayable(body, stream, keep));
    let mut exchange = Exchange { response, pump, ended: lease.connection.ended.clone(), is_over: false };
    match poll_fn(|cx| exchange.poll_head(waiting, interim, cx)).await {
        Ok(response) => Ok(exchange.into_response(response, lease)),
        Err(error) => {
            if exchange.is_over {
                // Streams that are still running on it go on.
                lease.connection.closed.set(true);
            }
            let reused = exchange.is_over && (lease.reused || error.reason == Reason::UpstreamRefused);
            let body = if whole { Some(Body::Empty) } else { exchange.pump.and_then(Pump::into_replay) };
            Err(SendFailure { error, wrote: true, reused, body })
        }
    }
}

/// One request in progress, until its response begins.
struct Exchange {
    response: ResponseFuture,
    pump: Option<Pump>,
    /// The connection's.
    ended: Rc<Cell<bool>>,
    /// Set when it was not the stream alone that failed.
    is_over: bool,
}

impl Exchange {
    fn poll_head(
        &mut self,
        waiting: &mut Waiting<'_>,
        interim: &dyn Interim,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Response<h2::RecvStream>, ProxyError>> {
        match self.pump.as_mut().map(|pump| pump.poll(cx)) {
            None | Some(Poll::Ready(Ok(()))) => waiting.request_sent(),
            Some(Poll::Ready(Err(PumpError::Source(error)))) => return Poll::Ready(Err(error)),
            // It may have answered before; if not, the response's own error follows.
            Some(Poll::Ready(Err(PumpError::Sink(_))) | Poll::Pending) => {}
        }
        while let Poll::Ready(Some(Ok(mut response))) = self.response.poll_informational(cx) {
            headers::prepare_response(&mut response);
            interim.send(response);
        }
        match Pin::new(&mut self.response).poll(cx) {
            Poll::Ready(Ok(response)) => Poll::Ready(Ok(response)),
            Poll::Ready(Err(error)) => {
                self.is_over = error.is_go_away() || error.is_io();
                Poll::Ready(Err(broken(&error, self.ended.get())))
            }
            Poll::Pending => {
                let sent = self.pump.as_ref().map_or(u64::MAX, |pump| pump.bytes);
                waiting.poll_expired(sent, cx).map(Err)
            }
        }
    }

    fn into_response(self, response: Response<h2::RecvStream>, lease: H2Lease) -> Sent {
        match self.pump {
            None => Sent { response: with_body(response, lease, None), again: Some(Body::Empty) },
            Some(pump) if pump.is_finished() => {
                Sent { response: with_body(response, lease, None), again: pump.into_replay() }
            }
            // Its rest goes on beside the response, which is therefore final.
            sending => Sent { response: with_body(response, lease, sending), again: None },
        }
    }
}

/// `sending`: what is left of the request.
fn with_body(response: Response<h2::RecvStream>, lease: H2Lease, sending: Option<Pump>) -> Response<Body> {
    let (parts, stream) = response.into_parts();
    if stream.is_end_stream() && sending.is_none() {
        return Response::from_parts(parts, Body::Empty);
    }
    let recv = RecvBody::new(stream, &parts.headers, Rc::default(), Some(lease));
    let body = match sending {
        None => Body::H2(Box::new(recv)),
        Some(mut pump) => {
            pump.forget();
            Body::H2Duplex(Box::new(Duplex { recv, pump: Some(pump), broken: None }))
        }
    };
    Response::from_parts(parts, body)
}

/// A response's body whose request is still being sent: a stream in both directions.
#[derive(Debug)]
pub struct Duplex {
    recv: RecvBody,
    pump: Option<Pump>,
    /// Why the request's body ended early, until it is told.
    broken: Option<ProxyError>,
}

impl Duplex {
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, ProxyError>>> {
        self.poll_beside(cx);
        match self.broken.take() {
            // The caller broke off; what the upstream still says is of no use to it.
            Some(error) => Poll::Ready(Some(Err(error))),
            None => self.recv.poll_next(cx),
        }
    }

    /// Sends on what is left of the request.
    pub fn poll_beside(&mut self, cx: &mut Context<'_>) {
        match self.pump.as_mut().map(|pump| pump.poll(cx)) {
            None | Some(Poll::Pending) => return,
            Some(Poll::Ready(Err(PumpError::Source(error)))) => self.broken = Some(error),
            Some(Poll::Ready(Ok(()) | Err(PumpError::Sink(_)))) => {}
        }
        self.pump = None;
    }

    pub fn is_done(&self) -> bool {
        self.recv.is_done()
    }

    pub fn length(&self) -> Option<u64> {
        self.recv.length()
    }
}

/// The request as HTTP/2 has it: the host in the target, and none of HTTP/1's connection fields.
fn to_h2(parts: &request::Parts, secure: bool) -> Result<Request<()>, ProxyError> {
    let bad = |what| ProxyError::new(Reason::BadRequest, what);
    let authority = match (parts.uri.authority(), parts.headers.get(HOST)) {
        (Some(authority), _) => authority.clone(),
        (None, Some(host)) => {
            Authority::from_maybe_shared(host.clone()).map_err(|_| bad("Host is not an authority"))?
        }
        (None, None) => return Err(bad("no Host, which HTTP/2 upstreams need")),
    };
    let mut uri = http::uri::Parts::default();
    uri.scheme = Some(if secure { Scheme::HTTPS } else { Scheme::HTTP });
    uri.authority = Some(authority);
    uri.path_and_query = Some(parts.uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/")));
    let mut request = Request::new(());
    *request.method_mut() = parts.method.clone();
    *request.uri_mut() = Uri::from_parts(uri).map_err(|_| bad("the request target is not a URI"))?;
    *request.version_mut() = Version::HTTP_2;
    // A copy, because another try may need them; names and values are shared.
    let headers = request.headers_mut();
    *headers = parts.headers.clone();
    for name in [HOST, CONNECTION, UPGRADE, HeaderName::from_static("http2-settings")] {
        headers.remove(name);
    }
    Ok(request)
}

/// An error before anything of the request was sent.
fn refused(error: &h2::Error) -> ProxyError {
    ProxyError::new(Reason::UpstreamRefused, error.to_string())
}

/// `ended`: the connection has, too.
fn broken(error: &h2::Error, ended: bool) -> ProxyError {
    // While the connection lasts, a GOAWAY ends only streams that the upstream has not looked at (RFC 9113, section 6.8).
    let unseen = error.reason() == Some(h2::Reason::REFUSED_STREAM)
        || error.is_go_away()
            && error.is_remote()
            && matches!(error.reason(), Some(h2::Reason::NO_ERROR | h2::Reason::ENHANCE_YOUR_CALM))
            && !ended;
    let reason = if unseen {
        Reason::UpstreamRefused
    } else if error.is_library() && error.reason() == Some(h2::Reason::PROTOCOL_ERROR) {
        Reason::UpstreamProtocol
    } else {
        Reason::UpstreamClosed
    };
    ProxyError::new(reason, error.to_string())
}
