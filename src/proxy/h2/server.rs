//! The downstream side: one connection, many requests at a time.

use super::{
    CONNECTION_WINDOW, STREAM_WINDOW, keep_asking,
    pump::{Pump, PumpError},
    recv::RecvBody,
};
use crate::{
    error::{ProxyError, Reason},
    net::io::{H2Io, Stream},
    proxy::{
        body::Body,
        headers::Origin,
        http::{Downstream, Interim, Proxy, handle},
        listener::Listener,
        record::Record,
        respond,
        timer::{IdleWatch, Patience, Timer},
    },
};
use bytes::{Bytes, BytesMut};
use h2::{
    RecvStream,
    server::{Connection, SendResponse},
};
use http::{
    HeaderMap, Method, Request, Response, StatusCode, Version,
    header::{CONTENT_LENGTH, HOST},
};
use std::{
    cell::{Cell, RefCell},
    future::{Future, pending, poll_fn},
    pin::pin,
    rc::Rc,
    task::Poll,
    time::Duration,
};

/// Streams that a client opened and reset again before we looked at them; more close the connection ("rapid reset",
/// CVE-2023-44487). The value is the h2 crate's own default.
const MAX_PENDING_RESETS: usize = 20;
/// Streams that we had to reset because the client broke the protocol.
const MAX_ERROR_RESETS: usize = 1024;
/// How often a client is asked whether it is still there.
const PING_INTERVAL: Duration = Duration::from_secs(60);

/// What the streams of one connection share.
struct Shared {
    listener: Rc<Listener>,
    origin: Rc<Origin>,
    proxy: Rc<Proxy>,
    streams: Cell<usize>,
    /// Counts streams ever opened, so that idleness is seen.
    opened: Cell<u64>,
}

/// Serves a connection until it ends. `start`: what was already read from it.
pub async fn serve(stream: Stream, start: BytesMut, listener: Rc<Listener>, origin: Rc<Origin>, proxy: Rc<Proxy>) {
    let settings = listener.settings();
    let limits = &settings.limits;
    let mut builder = h2::server::Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(limits.h2_streams)
        .max_header_list_size(u32::try_from(limits.head_bytes).unwrap_or(u32::MAX))
        .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
        .max_local_error_reset_streams(Some(MAX_ERROR_RESETS));
    let handshake = builder.handshake(H2Io::new(start, stream));
    let connection = match tokio::time::timeout(limits.head_timeout, handshake).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => return tracing::debug!(peer = %origin.peer, %error, "HTTP/2 handshake failed"),
        Err(_) => return listener.metrics.rejected.inc(Reason::HeadTimeout as usize),
    };
    let shared = Rc::new(Shared { listener, origin, proxy, streams: Cell::new(0), opened: Cell::new(0) });
    if let Err(error) = accept(connection, &shared).await {
        tracing::debug!(peer = %shared.origin.peer, %error, "HTTP/2 connection failed");
    }
}

/// Accepts streams, each into its own task, until the connection has ended.
async fn accept(mut connection: Connection<H2Io, Bytes>, shared: &Rc<Shared>) -> Result<(), h2::Error> {
    let mut closing = shared.listener.closed();
    let (mut leaving, mut busy) = (false, 0);
    let mut timer = Timer::default();
    let mut watch =
        IdleWatch::new(Patience { idle: shared.listener.settings().limits.idle_timeout, until: None }, &mut timer);
    let pings = connection.ping_pong();
    let mut unanswered = pin!(async {
        match pings {
            Some(pings) => keep_asking(pings, PING_INTERVAL).await,
            None => pending().await,
        }
    });
    poll_fn(|cx| {
        loop {
            match connection.poll_accept(cx) {
                Poll::Ready(Some(Ok((request, respond)))) => {
                    shared.opened.set(shared.opened.get() + 1);
                    // Lives on its own: it ends with its stream, which ends with the connection.
                    tokio::task::spawn_local(serve_stream(request, respond, shared.clone()));
                }
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(error)),
                Poll::Ready(None) => return Poll::Ready(Ok(())),
                Poll::Pending => break,
            }
        }
        if !leaving {
            // A stream in progress is not idleness, however quiet.
            busy += u64::from(shared.streams.get() > 0);
            let moved = shared.opened.get() + busy;
            leaving = closing.as_mut().poll(cx).is_ready() || watch.poll_idle(moved, &mut timer, cx).is_ready();
            if leaving {
                connection.graceful_shutdown();
                cx.waker().wake_by_ref();
            }
        }
        if unanswered.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(h2::Reason::NO_ERROR.into()));
        }
        Poll::Pending
    })
    .await
}

/// Counts a stream as open for as long as it lives.
struct OpenStream(Rc<Shared>);

impl OpenStream {
    fn new(shared: Rc<Shared>) -> Self {
        shared.streams.set(shared.streams.get() + 1);
        Self(shared)
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.0.streams.set(self.0.streams.get() - 1);
    }
}

async fn serve_stream(request: Request<RecvStream>, respond: SendResponse<Bytes>, shared: Rc<Shared>) {
    let open = OpenStream::new(shared);
    let shared = &open.0;
    let received = Rc::new(Cell::new(0));
    let (mut parts, stream) = request.into_parts();
    parts.version = Version::HTTP_2;
    let body = if stream.is_end_stream() {
        Body::Empty
    } else {
        Body::H2(Box::new(RecvBody::new(stream, &parts.headers, received.clone(), None)))
    };
    let method = parts.method.clone();
    let respond = InterimSender(RefCell::new(respond));
    let mut timer = Timer::default();
    let handled = {
        let mut down = Downstream {
            proxy: &shared.proxy,
            listener: &shared.listener,
            origin: &shared.origin,
            timer: &mut timer,
            interim: &respond,
        };
        let mut request = Request::from_parts(parts, body);
        let mut handling = pin!(async {
            match refuse(request.headers(), shared.listener.settings().limits.head_lines) {
                None => handle(&mut request, &mut down).await,
                Some(error) => {
                    let mut record = Record::start(&down, &request);
                    let response = respond::error(&error, false);
                    record.responded(response.status());
                    record.failed(error);
                    (response, record)
                }
            }
        });
        poll_fn(|cx| match handling.as_mut().poll(cx) {
            Poll::Ready(handled) => Poll::Ready(Some(handled)),
            // The client cancelled. Dropping what was begun cancels it upstream, too.
            Poll::Pending => respond.0.borrow_mut().poll_reset(cx).map(|_| None),
        })
        .await
    };
    let Some((response, mut record)) = handled else { return };
    let written = write_response(response, respond.0.into_inner(), &mut record, &method, &received, &mut timer).await;
    record.bytes_in = received.get();
    match written {
        Ok(()) => {
            record.finish();
        }
        Err(error) => record.failed(error),
    }
}

/// What the h2 crate lets through and is refused from HTTP/1 clients as well.
fn refuse(headers: &HeaderMap, max_lines: usize) -> Option<ProxyError> {
    if headers.len() > max_lines {
        return Some(ProxyError::new(Reason::HeadTooLarge, format!("the head has more than {max_lines} lines")));
    }
    // An upstream that speaks HTTP/1 would get them one by one.
    [HOST, CONTENT_LENGTH].into_iter().find(|name| headers.get_all(name).iter().nth(1).is_some()).map(|name| {
        let detail = if name == HOST { "more than one Host header" } else { "more than one Content-Length" };
        ProxyError::new(Reason::AmbiguousRequest, detail)
    })
}

async fn write_response(
    response: Response<Body>,
    mut respond: SendResponse<Bytes>,
    record: &mut Record,
    method: &Method,
    received: &Cell<u64>,
    timer: &mut Timer,
) -> Result<(), ProxyError> {
    let (mut parts, body) = response.into_parts();
    parts.version = Version::HTTP_2;
    if parts.status == StatusCode::NO_CONTENT {
        parts.headers.remove(CONTENT_LENGTH);
    }
    let whole = body.is_done() || *method == Method::HEAD;
    let gone = |error: h2::Error| ProxyError::new(Reason::DownstreamClosed, error.to_string());
    let stream = respond.send_response(Response::from_parts(parts, ()), whole).map_err(gone)?;
    if whole {
        return Ok(());
    }
    let mut pump = Pump::new(body, stream);
    let mut watch = None;
    let patience = record.patience();
    let sent = poll_fn(|cx| {
        match pump.poll(cx) {
            Poll::Ready(Ok(())) => return Poll::Ready(Ok(())),
            Poll::Ready(Err(PumpError::Source(error))) => return Poll::Ready(Err(error)),
            Poll::Ready(Err(PumpError::Sink(error))) => return Poll::Ready(Err(gone(error))),
            Poll::Pending => {}
        }
        let watch = watch.get_or_insert_with(|| IdleWatch::new(patience, timer));
        // The request may still be on its way, too.
        watch.poll_idle(pump.moved() + received.get(), timer, cx).map(Err)
    })
    .await;
    record.bytes_out = pump.bytes;
    if let Some(status) = &pump.grpc_status {
        record.grpc_status(status);
    }
    if sent.is_err() {
        pump.reset(h2::Reason::INTERNAL_ERROR);
    }
    sent
}

/// Sends informational responses in front of the final one.
struct InterimSender(RefCell<SendResponse<Bytes>>);

impl Interim for InterimSender {
    fn send(&self, response: Response<()>) {
        // 101 does not exist in HTTP/2, and a client that is gone misses nothing.
        let _ = self.0.borrow_mut().send_informational(response);
    }
}
