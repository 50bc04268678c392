//! The upstream side: one request out, its response back, on a connection that serves one exchange at a time.

use super::{
    decode::Decoder,
    encode::{COPY_LIMIT, CopyError, Sending, Writer},
    head::{Framing, HeadLimits, HeadScan, OriginalNames, parse_response, write_request},
    reader::{Reader, Side},
};
use crate::{
    error::{ProxyError, Reason},
    net::io::Io,
    proxy::{
        body::Body,
        headers,
        http::Interim,
        journey::{SendFailure, Sent},
        pool::H1Lease,
        waiting::Waiting,
    },
};
use bytes::{Bytes, BytesMut};
use http::{Response, StatusCode, request, response};
use http_body::Frame;
use std::{
    future::poll_fn,
    rc::Rc,
    task::{Context, Poll},
};

/// What is read of a response's head before it is refused.
const LIMITS: HeadLimits = HeadLimits { bytes: 256 * 1024, lines: 400 };

/// A body up to this size is copied behind its head when it is written, so that its buffer is free at once as well.
const SMALL: u64 = COPY_LIMIT as u64;

/// Sends a request and waits for the head of its response. Informational responses go to `interim`; the response to an
/// accepted upgrade carries the rest of the connection as [`Body::Tunnel`]. A body of at most `keep` bytes is kept until then.
pub async fn send(
    lease: H1Lease,
    parts: &request::Parts,
    body: Body,
    keep: usize,
    waiting: &mut Waiting<'_>,
    interim: &dyn Interim,
) -> Result<Sent, SendFailure> {
    let framing = match body.length() {
        Some(0) => Framing::None,
        Some(length) => Framing::Length(length),
        None => Framing::Chunked,
    };
    let io = lease.io();
    let mut writer = Writer::new(io.clone());
    write_request(writer.head(), parts, framing);
    let mut exchange = Exchange {
        reader: Reader::new(io, BytesMut::new(), Side::Upstream),
        writer,
        sending: Some(Sending::replayable(body, framing, keep)),
        reusable: true,
        lease: Some(lease),
    };
    let mut scan = HeadScan::default();
    let head = poll_fn(|cx| exchange.poll_head(&mut scan, parts, waiting, interim, cx)).await;
    match head {
        Ok((parts, framing)) => Ok(exchange.into_response(parts, framing)),
        Err(error) => Err(exchange.into_failure(error)),
    }
}

/// One request and response in progress. It may still be sending when the response comes.
#[derive(Debug)]
struct Exchange {
    reader: Reader,
    writer: Writer,
    /// `None` once the request has left as a whole.
    sending: Option<Sending>,
    /// Whether the connection can carry another exchange after this one.
    reusable: bool,
    /// Until it is given back.
    lease: Option<H1Lease>,
}

impl Exchange {
    fn poll_head(
        &mut self,
        scan: &mut HeadScan,
        request: &request::Parts,
        waiting: &mut Waiting<'_>,
        interim: &dyn Interim,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(response::Parts, Framing), ProxyError>> {
        let write_error = match self.poll_send(cx) {
            Poll::Ready(Ok(())) => {
                waiting.request_sent();
                None
            }
            Poll::Ready(Err(CopyError::Source(error))) => return Poll::Ready(Err(error)),
            Poll::Ready(Err(CopyError::Length)) => {
                let detail = "the request's body is not as long as its Content-Length";
                return Poll::Ready(Err(ProxyError::new(Reason::BadRequest, detail)));
            }
            // The upstream may have answered before it closed; what it said is worth more than the broken pipe.
            Poll::Ready(Err(CopyError::Sink(error))) => {
                self.reusable = false;
                Some(error)
            }
            Poll::Pending => None,
        };
        loop {
            match scan.find_end(&mut self.reader.buf, LIMITS) {
                Ok(None) => {}
                Ok(Some(length)) => {
                    *scan = HeadScan::default();
                    let head = self.reader.buf.split_to(length).freeze();
                    let keep_case = request.extensions.get::<OriginalNames>().is_some();
                    let head = match parse_response(head, &request.method, keep_case) {
                        Ok(head) => head,
                        Err(error) => return Poll::Ready(Err(broken(error.detail))),
                    };
                    if head.response.status() == StatusCode::SWITCHING_PROTOCOLS {
                        if !request.headers.contains_key(http::header::UPGRADE) {
                            return Poll::Ready(Err(broken("101 to a request that asked for no upgrade")));
                        }
                    } else if head.response.status().is_informational() {
                        let mut response = head.response;
                        headers::prepare_response(&mut response);
                        interim.send(response);
                        continue;
                    }
                    self.reusable &= head.keep_alive;
                    return Poll::Ready(Ok((head.response.into_parts().0, head.framing)));
                }
                Err(error) => return Poll::Ready(Err(broken(error.detail))),
            }
            match self.reader.poll_fill(cx) {
                // It had begun to answer, so nobody may be asked again.
                Poll::Ready(Ok(0) | Err(_)) if !self.reader.buf.is_empty() => {
                    return Poll::Ready(Err(broken("the connection ended within the response's head")));
                }
                Poll::Ready(Ok(0)) => {
                    let detail = match &write_error {
                        Some(error) => format!("sending the request: {error}"),
                        None => "the connection ended before the response".to_owned(),
                    };
                    return Poll::Ready(Err(ProxyError::new(Reason::UpstreamClosed, detail)));
                }
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(error)) => {
                    let detail = format!("waiting for the response: {error}");
                    return Poll::Ready(Err(ProxyError::new(Reason::UpstreamClosed, detail)));
                }
                Poll::Pending if write_error.is_some() => {
                    let detail = write_error.map_or_else(String::new, |error| format!("sending the request: {error}"));
                    return Poll::Ready(Err(ProxyError::new(Reason::UpstreamClosed, detail)));
                }
                Poll::Pending => break,
            }
        }
        let sent = self.sending.as_ref().map_or(u64::MAX, |sending| sending.bytes);
        waiting.poll_expired(sent, cx).map(Err)
    }

    /// Sends on. Ready when the whole request has left.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), CopyError>> {
        let Some(sending) = &mut self.sending else { return Poll::Ready(Ok(())) };
        let sent = sending.poll(&mut self.writer, cx);
        if let Poll::Ready(Ok(())) = sent {
            // Kept until the response's head is here when it may have to be sent again.
            if !sending.is_replayable() {
                self.sending = None;
            }
        }
        sent
    }

    fn is_sent(&self) -> bool {
        self.sending.as_ref().is_none_or(Sending::is_finished) && self.writer.is_empty()
    }

    fn into_response(mut self, parts: response::Parts, framing: Framing) -> Sent {
        let again = if self.is_sent() {
            self.sending.take().and_then(Sending::into_replay)
        } else {
            // Its rest goes on beside the response, which is therefore final.
            self.sending.iter_mut().for_each(Sending::forget);
            None
        };
        Sent { response: self.with_body(parts, framing), again }
    }

    fn with_body(mut self, parts: response::Parts, framing: Framing) -> Response<Body> {
        if parts.status == StatusCode::SWITCHING_PROTOCOLS {
            let read = std::mem::take(&mut self.reader.buf);
            let tunnel = Tunnel { lease: self.lease, io: self.reader.io.clone(), read };
            return Response::from_parts(parts, Body::Tunnel(Box::new(tunnel)));
        }
        let body = match framing {
            Framing::None => {
                self.release();
                Body::Empty
            }
            // A small one comes with its head, and then the connection is free at once.
            Framing::Length(length) if length == self.reader.buf.len() as u64 && length <= SMALL && self.is_sent() => {
                let whole = self.reader.buf.split().freeze();
                self.release();
                Body::Full(whole)
            }
            framing => {
                self.reader.decoder = Decoder::new(framing);
                Body::H1Response(Box::new(ResponseBody { exchange: self, broken: None }))
            }
        };
        Response::from_parts(parts, body)
    }

    fn into_failure(self, error: ProxyError) -> SendFailure {
        let body = self.sending.and_then(Sending::into_replay);
        SendFailure { error, wrote: self.writer.started, reused: false, body }
    }

    /// Gives the connection back for the next exchange, if it can carry one.
    fn release(&mut self) {
        let clean = self.reader.buf.is_empty() && self.is_sent();
        if let Some(lease) = self.lease.take()
            && self.reusable
            && clean
        {
            lease.give_back();
        }
    }
}

fn broken(detail: impl Into<std::borrow::Cow<'static, str>>) -> ProxyError {
    ProxyError::new(Reason::UpstreamProtocol, detail)
}

/// The body of a response. Reading it to its end gives the connection back to the pool; dropping it before closes it.
#[derive(Debug)]
pub struct ResponseBody {
    exchange: Exchange,
    /// Why the request's body ended early, until it is told.
    broken: Option<ProxyError>,
}

impl ResponseBody {
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, ProxyError>>> {
        self.poll_beside(cx);
        if let Some(error) = self.broken.take() {
            return Poll::Ready(Some(Err(error)));
        }
        let next = self.exchange.reader.poll_body(cx);
        if self.exchange.reader.decoder.is_done() {
            self.exchange.release();
        }
        next
    }

    /// Sends on what is left of the request.
    pub fn poll_beside(&mut self, cx: &mut Context<'_>) {
        if self.exchange.sending.is_none() {
            return;
        }
        match self.exchange.poll_send(cx) {
            Poll::Pending | Poll::Ready(Ok(())) => return,
            Poll::Ready(Err(CopyError::Source(error))) => self.broken = Some(error),
            // It does not want the rest; its response says why.
            Poll::Ready(Err(_)) => {}
        }
        self.exchange.sending = None;
        self.exchange.reusable = false;
    }

    pub fn is_done(&self) -> bool {
        self.exchange.reader.decoder.is_done()
    }

    pub fn length(&self) -> Option<u64> {
        self.exchange.reader.decoder.length()
    }

    /// Where only the connection's end ends it, nobody knows whether more was to come.
    pub fn tells_its_end(&self) -> bool {
        !matches!(self.exchange.reader.decoder, Decoder::UntilClose)
    }
}

/// A connection that has left HTTP behind, with what was already read from it.
#[derive(Debug)]
pub struct Tunnel {
    /// Counts it as in use.
    #[allow(dead_code, reason = "held for its drop")]
    lease: Option<H1Lease>,
    io: Rc<Io>,
    pub read: BytesMut,
}

impl Tunnel {
    pub fn io(&self) -> Rc<Io> {
        self.io.clone()
    }
}
