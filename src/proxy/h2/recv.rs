//! A body that comes from an HTTP/2 peer.

use crate::{
    error::{ProxyError, Reason},
    proxy::{h1::head::content_length, pool::H2Lease},
};
use bytes::Bytes;
use h2::RecvStream;
use http::{HeaderMap, header::CONTENT_LENGTH};
use http_body::Frame;
use std::{
    cell::Cell,
    rc::Rc,
    task::{Context, Poll, ready},
};

/// The receiving half of a stream.
#[derive(Debug)]
pub struct RecvBody {
    stream: RecvStream,
    left: Option<u64>,
    data_done: bool,
    received: Rc<Cell<u64>>,
    /// Upstream bodies keep their place on the connection until their end.
    lease: Option<H2Lease>,
}

impl RecvBody {
    /// `received` counts the bytes; `lease` is there for a response from an upstream.
    pub fn new(stream: RecvStream, headers: &HeaderMap, received: Rc<Cell<u64>>, lease: Option<H2Lease>) -> Self {
        let left = headers.get(CONTENT_LENGTH).and_then(content_length);
        Self { stream, left, data_done: false, received, lease }
    }

    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, ProxyError>>> {
        if !self.data_done {
            match ready!(self.stream.poll_data(cx)) {
                Some(Ok(data)) => {
                    // Given free at once: whoever takes it asks for more only when it has been passed on.
                    let _ = self.stream.flow_control().release_capacity(data.len());
                    self.received.set(self.received.get() + data.len() as u64);
                    self.left = self.left.map(|left| left.saturating_sub(data.len() as u64));
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(self.cut(&error)))),
                None => self.data_done = true,
            }
        }
        match ready!(self.stream.poll_trailers(cx)) {
            Ok(trailers) => Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers)))),
            Err(error) => Poll::Ready(Some(Err(self.cut(&error)))),
        }
    }

    pub fn is_done(&self) -> bool {
        self.stream.is_end_stream()
    }

    pub fn length(&self) -> Option<u64> {
        if self.is_done() { Some(0) } else { self.left }
    }

    fn cut(&self, error: &h2::Error) -> ProxyError {
        let reason = if self.lease.is_some() { Reason::UpstreamTruncated } else { Reason::DownstreamClosed };
        ProxyError::new(reason, error.to_string())
    }
}
