//! The downstream side: one connection, one request after the other.

use super::{
    client::Tunnel,
    decode::Decoder,
    encode::{CopyError, Sending, Writer},
    head::{Framing, HeadError, HeadLimits, HeadScan, RequestHead, parse_request, write_response},
    reader::{Reader, RequestBody, Side},
};
use crate::{
    error::{ProxyError, Reason},
    net::io::Io,
    proxy::{
        body::Body,
        header_maps,
        headers::Origin,
        http::{Downstream, Interim, Proxy, handle},
        listener::{Closed, Listener},
        record::Record,
        respond, tcp,
        timer::{IdleWatch, Timer},
        tunnel,
    },
};
use bytes::BytesMut;
use http::{
    Method, Request, Response, StatusCode, Version,
    header::{CONNECTION, CONTENT_LENGTH},
    response,
};
use std::{
    cell::RefCell,
    future::{Future, poll_fn},
    pin::pin,
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::time::Instant;

/// While a response is on its way, at most this much of the requests behind it is read ahead.
const READ_AHEAD: usize = 64 * 1024;
/// How long a client that is told to go may take to read why.
const LINGER: Duration = Duration::from_secs(1);

/// Serves a connection until it ends. `start`: what was already read from it.
pub async fn serve(
    io: Io,
    start: BytesMut,
    listener: Rc<Listener>,
    origin: Rc<Origin>,
    proxy: Rc<Proxy>,
    timer: Timer,
    closing: Closed,
) {
    let io = Rc::new(io);
    let mut server = Server {
        reader: Rc::new(RefCell::new(Reader::new(io.clone(), start, Side::Downstream))),
        writer: RefCell::new(Writer::new(io.clone())),
        scan: HeadScan::default(),
        timer,
        idle_since: Instant::now(),
        closing,
        listener,
        origin,
        proxy,
    };
    let next = loop {
        match server.exchange().await {
            Next::Request => {}
            Next::Close => return,
            next => break next,
        }
    };
    // Boxed with what it needs: a connection need not have room for that.
    Box::pin(end(server, io, next)).await;
}

async fn end(mut server: Server, io: Rc<Io>, next: Next) {
    match next {
        Next::Request | Next::Close => {}
        Next::CloseGently => server.linger(&io).await,
        Next::Reset => io.reset(),
        Next::Tunnel(tunnel) => carry(server, io, *tunnel).await,
    }
}

/// The connection is the tunnel's from here on, with what came of it behind the head.
async fn carry(server: Server, io: Rc<Io>, tunnel: tcp::Tunnel) {
    let (start, proxy) = (std::mem::take(&mut server.reader.borrow_mut().buf), server.proxy.clone());
    drop(server);
    // Now nobody else has it.
    if let Some(io) = Rc::into_inner(io) {
        tunnel.carry(io.into_inner(), start, &proxy).await;
    }
}

/// What follows an exchange.
enum Next {
    /// Another request may come.
    Request,
    Close,
    /// The client may still be sending; it must be able to read the answer all the same.
    CloseGently,
    /// The response was cut off, and the client must see that.
    Reset,
    /// No more HTTP.
    Tunnel(Box<tcp::Tunnel>),
}

struct Server {
    reader: Rc<RefCell<Reader>>,
    writer: RefCell<Writer>,
    scan: HeadScan,
    timer: Timer,
    idle_since: Instant,
    closing: Closed,
    listener: Rc<Listener>,
    origin: Rc<Origin>,
    proxy: Rc<Proxy>,
}

impl Server {
    async fn exchange(&mut self) -> Next {
        let head = match self.read_head().await {
            Ok(Some(head)) if head.request.method() == Method::CONNECT => {
                return Box::pin(self.connect(head.request)).await;
            }
            Ok(Some(head)) => head,
            Ok(None) => return Next::Close,
            Err(error) => return Box::pin(self.refuse(error)).await,
        };
        let RequestHead { request, framing, keep_alive } = head;
        let (method, version) = (request.method().clone(), request.version());
        let received = {
            let mut reader = self.reader.borrow_mut();
            reader.decoder = Decoder::new(framing);
            reader.body_bytes
        };
        let body = match framing {
            Framing::None => Body::Empty,
            _ => Body::H1Request(RequestBody::new(self.reader.clone())),
        };
        let handled = {
            let mut request = request.map(|()| body);
            self.handle(&mut request).await
        };
        let Some((response, mut record)) = handled else { return Next::Close };
        let next = self.write_response(response, &mut record, &method, version, keep_alive).await;
        record.bytes_in = self.reader.borrow().body_bytes - received;
        match next {
            Ok(next) => {
                self.idle_since = record.finish();
                next
            }
            Err(error) => {
                record.failed(error);
                Next::Reset
            }
        }
    }

    /// Reads the next request's head. `None`: there is none, and that is in order.
    async fn read_head(&mut self) -> Result<Option<RequestHead>, HeadError> {
        let settings = self.listener.settings();
        let limits = &settings.limits;
        let head_limits = HeadLimits { bytes: limits.head_bytes, lines: limits.head_lines };
        let (reader, scan, timer) = (&self.reader, &mut self.scan, &mut self.timer);
        // An idle connection holds no buffers.
        if reader.borrow().buf.is_empty() {
            reader.borrow_mut().release();
            self.writer.borrow_mut().release();
            timer.set(self.idle_since + limits.idle_timeout);
        } else {
            timer.set(Instant::now() + limits.head_timeout);
        }
        let (closing, listener) = (&mut self.closing, &self.listener);
        let length = poll_fn(|cx| {
            let mut reader = reader.borrow_mut();
            loop {
                if let Some(length) = scan.find_end(&mut reader.buf, head_limits)? {
                    return Poll::Ready(Ok(Some(length)));
                }
                let idle = reader.buf.is_empty();
                match reader.poll_fill(cx) {
                    Poll::Pending if timer.poll_expired(cx).is_ready() => {
                        let late = HeadError {
                            reason: Reason::HeadTimeout,
                            detail: format!("no whole head within {:?}", limits.head_timeout).into(),
                        };
                        return Poll::Ready(if idle { Ok(None) } else { Err(late) });
                    }
                    Poll::Pending if idle && closing.poll(listener, cx).is_ready() => return Poll::Ready(Ok(None)),
                    Poll::Pending => return Poll::Pending,
                    // What came of a head is of no use to anybody.
                    Poll::Ready(Err(_) | Ok(0)) => return Poll::Ready(Ok(None)),
                    Poll::Ready(Ok(_)) if idle => {
                        // Nearly always the whole head is here now, and the clock need not be looked at.
                        if let Some(length) = scan.find_end(&mut reader.buf, head_limits)? {
                            return Poll::Ready(Ok(Some(length)));
                        }
                        timer.set(Instant::now() + limits.head_timeout);
                    }
                    Poll::Ready(Ok(_)) => {}
                }
            }
        })
        .await?;
        let Some(length) = length else { return Ok(None) };
        self.scan = HeadScan::default();
        let head = self.reader.borrow_mut().buf.split_to(length).freeze();
        parse_request(head, settings.keep_case).map(Some)
    }

    /// Lets the request be carried. `None`: the client left meanwhile.
    async fn handle(&mut self, request: &mut Request<Body>) -> Option<(Response<Body>, Record)> {
        let interim = InterimWriter { writer: &self.writer, http11: request.version() == Version::HTTP_11 };
        let mut down = Downstream {
            proxy: &self.proxy,
            listener: &self.listener,
            origin: &self.origin,
            timer: &mut self.timer,
            interim: &interim,
        };
        let mut handling = pin!(handle(request, &mut down));
        poll_fn(|cx| {
            if let Poll::Ready(handled) = handling.as_mut().poll(cx) {
                return Poll::Ready(Some(handled));
            }
            // Informational responses, if there were any. If they cannot be written, reading fails as well.
            let _ = self.writer.borrow_mut().poll_flush(cx);
            if poll_gone(&self.reader, cx).is_ready() { Poll::Ready(None) } else { Poll::Pending }
        })
        .await
    }

    async fn write_response(
        &mut self,
        response: Response<Body>,
        record: &mut Record,
        method: &Method,
        version: Version,
        keep_alive: bool,
    ) -> Result<Next, ProxyError> {
        let (mut parts, body) = response.into_parts();
        if let Body::Tunnel(tunnel) = body {
            return Box::pin(self.tunnel(parts, *tunnel, record)).await;
        }
        let framing = response_framing(&mut parts, &body, method, version);
        // A body that is not at its end by now belongs to a request that is being turned down.
        let unread = !self.reader.borrow().decoder.is_done();
        let keep_alive = keep_alive && framing != Framing::UntilClose && !unread && !self.listener.is_closing();
        let connection: Option<&[u8]> = match (keep_alive, version) {
            (false, _) => Some(b"close"),
            (true, Version::HTTP_10) => Some(b"keep-alive"),
            (true, _) => None,
        };
        let (reader, writer, timer) = (&self.reader, self.writer.get_mut(), &mut self.timer);
        write_response(writer.head(), &parts, framing, connection);
        header_maps::give(parts.headers);
        let mut sending = Sending::new(body, framing);
        let mut watch = None;
        let sent = poll_fn(|cx| {
            match sending.poll(writer, cx) {
                Poll::Ready(Ok(())) => return Poll::Ready(Ok(())),
                Poll::Ready(Err(CopyError::Source(error))) => return Poll::Ready(Err(error)),
                Poll::Ready(Err(CopyError::Length)) => {
                    let detail = "the body is not as long as its Content-Length";
                    return Poll::Ready(Err(ProxyError::new(Reason::UpstreamProtocol, detail)));
                }
                Poll::Ready(Err(CopyError::Sink(error))) => {
                    let detail = format!("writing the response: {error}");
                    return Poll::Ready(Err(ProxyError::new(Reason::DownstreamClosed, detail)));
                }
                Poll::Pending => {}
            }
            if poll_gone(reader, cx).is_ready() {
                let detail = "the client left before the end of the response";
                return Poll::Ready(Err(ProxyError::new(Reason::DownstreamClosed, detail)));
            }
            let watch = watch.get_or_insert_with(|| IdleWatch::new(record.patience(), timer));
            // The request may still be on its way, too.
            watch.poll_idle(sending.bytes + reader.borrow().body_bytes, timer, cx).map(Err)
        })
        .await;
        record.bytes_out = sending.bytes;
        if let Some(trailers) = &sending.trailers {
            record.trailers(trailers);
        }
        sent?;
        Ok(match (keep_alive, unread) {
            (true, _) => Next::Request,
            (false, true) => Next::CloseGently,
            (false, false) => Next::Close,
        })
    }

    /// Answers a head that cannot be carried, and ends the connection: what follows it cannot be trusted.
    async fn refuse(&mut self, error: HeadError) -> Next {
        tracing::debug!(listener = %self.listener.name, peer = %self.origin.peer, reason = error.reason.as_str(),
            detail = %error.detail, "request refused");
        self.listener.metrics.rejected.inc(error.reason as usize);
        self.answer(&ProxyError::new(error.reason, error.detail)).await
    }

    /// Answers with an error, and ends the connection.
    async fn answer(&mut self, error: &ProxyError) -> Next {
        let (parts, body) = respond::error(error, false).into_parts();
        let framing = Framing::Length(body.length().unwrap_or(0));
        let writer = self.writer.get_mut();
        write_response(writer.head(), &parts, framing, Some(b"close"));
        let mut sending = Sending::new(body, framing);
        self.timer.set(Instant::now() + LINGER);
        let timer = &mut self.timer;
        // If the client does not take the answer in time, it goes without.
        poll_fn(|cx| if sending.poll(writer, cx).is_ready() { Poll::Ready(()) } else { timer.poll_expired(cx) }).await;
        Next::CloseGently
    }

    /// Opens the tunnel that a `CONNECT` asks for, or says why there is none. Then the connection ends: what the client has sent
    /// already may be no HTTP.
    async fn connect(&mut self, request: Request<()>) -> Next {
        let io = self.reader.borrow().io.clone();
        let opened = tcp::Tunnel::open(&request, &self.listener, &self.origin, &io, &self.proxy).await;
        let tunnel = match opened {
            Ok(tunnel) => tunnel,
            Err(error) => return self.answer(&error).await,
        };
        let writer = self.writer.get_mut();
        let (parts, ()) = Response::new(()).into_parts();
        write_response(writer.head(), &parts, Framing::None, None);
        self.timer.set(Instant::now() + self.listener.settings().limits.head_timeout);
        let timer = &mut self.timer;
        let written = poll_fn(|cx| match writer.poll_flush(cx) {
            Poll::Ready(written) => Poll::Ready(written.map_err(|error| error.to_string())),
            Poll::Pending => timer.poll_expired(cx).map(|()| Err("it does not take the answer".into())),
        });
        match written.await {
            Ok(()) => Next::Tunnel(Box::new(tunnel)),
            Err(error) => {
                tunnel.failed(ProxyError::new(Reason::DownstreamClosed, error));
                Next::Reset
            }
        }
    }

    /// Both sides have left HTTP: bytes go to and fro until both ends are done.
    async fn tunnel(
        &mut self,
        parts: response::Parts,
        upstream: Tunnel,
        record: &mut Record,
    ) -> Result<Next, ProxyError> {
        let patience = record.patience();
        let writer = self.writer.get_mut();
        write_response(writer.head(), &parts, Framing::None, None);
        let written = poll_fn(|cx| writer.poll_flush(cx)).await;
        written.map_err(|error| ProxyError::new(Reason::DownstreamClosed, error.to_string()))?;
        let down = {
            let mut reader = self.reader.borrow_mut();
            (reader.io.clone(), std::mem::take(&mut reader.buf))
        };
        let (sent, received) = tunnel::run(down, upstream, patience, &mut self.timer).await;
        record.bytes_out = received;
        self.reader.borrow_mut().body_bytes += sent;
        Ok(Next::Close)
    }

    /// Ends our side, then reads on for a moment: closing with unread bytes would reset the connection, and the client
    /// might lose the answer that explains it.
    async fn linger(&mut self, io: &Io) {
        let _ = tokio::time::timeout(LINGER, async {
            io.shutdown().await?;
            let discard = |cx: &mut Context<'_>| {
                let mut reader = self.reader.borrow_mut();
                reader.buf.clear();
                reader.poll_fill(cx)
            };
            while poll_fn(discard).await? > 0 {}
            Ok::<(), std::io::Error>(())
        })
        .await;
    }
}

/// Ready when the client has left. Looks only once the request was read to its end; what comes early is kept.
fn poll_gone(reader: &RefCell<Reader>, cx: &mut Context<'_>) -> Poll<()> {
    let mut reader = reader.borrow_mut();
    while reader.decoder.is_done() && reader.buf.len() < READ_AHEAD {
        if reader.poll_readable(cx).is_pending() {
            return Poll::Pending;
        }
        match reader.poll_fill(cx) {
            Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(()),
            Poll::Ready(Ok(_)) => {}
            Poll::Pending => return Poll::Pending,
        }
    }
    Poll::Pending
}

/// How the response's body is framed for this client, and `Content-Length` where its length is known.
fn response_framing(parts: &mut response::Parts, body: &Body, method: &Method, version: Version) -> Framing {
    let bodiless = parts.status == StatusCode::NO_CONTENT || parts.status.is_informational();
    if bodiless {
        parts.headers.remove(CONTENT_LENGTH);
    }
    if bodiless || *method == Method::HEAD || parts.status == StatusCode::NOT_MODIFIED {
        return Framing::None;
    }
    match body.length() {
        // Written as `Content-Length: 0` unless the header is there.
        Some(length) => Framing::Length(length),
        None if version == Version::HTTP_10 => Framing::UntilClose,
        None => {
            parts.headers.remove(CONTENT_LENGTH);
            Framing::Chunked
        }
    }
}

/// Writes informational responses in front of the final one. HTTP/1.0 clients do not know them.
struct InterimWriter<'w> {
    writer: &'w RefCell<Writer>,
    http11: bool,
}

impl Interim for InterimWriter<'_> {
    fn send(&self, response: Response<()>) {
        if self.http11 {
            let (mut parts, ()) = response.into_parts();
            parts.headers.remove(CONNECTION);
            write_response(self.writer.borrow_mut().head(), &parts, Framing::None, None);
        }
    }
}
