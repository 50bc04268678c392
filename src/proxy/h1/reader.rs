//! Reading from one side of an HTTP/1 exchange: the buffer, and the body in it.

use super::decode::{Decoded, Decoder};
use crate::{
    error::{ProxyError, Reason},
    net::{buffers, io::Io},
};
use bytes::{Bytes, BytesMut};
use http_body::Frame;
use std::{
    cell::RefCell,
    io,
    rc::Rc,
    task::{Context, Poll, ready},
};

/// A read with less room than this would waste a system call on a crumb.
const MIN_ROOM: usize = 2 * 1024;

/// Whose messages are read here: decides whose fault a broken one is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Downstream,
    Upstream,
}

#[derive(Debug)]
pub struct Reader {
    pub io: Rc<Io>,
    pub buf: BytesMut,
    pub decoder: Decoder,
    /// Bytes of bodies read so far.
    pub body_bytes: u64,
    side: Side,
}

impl Reader {
    pub fn new(io: Rc<Io>, buf: BytesMut, side: Side) -> Self {
        Self { io, buf, decoder: Decoder::Done, body_bytes: 0, side }
    }

    /// Reads more into the buffer. While there is nothing to read, an empty buffer takes no memory.
    pub fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.buf.is_empty() {
            if self.buf.capacity() < MIN_ROOM {
                self.release();
                ready!(self.io.poll_readable(cx))?;
                self.buf = buffers::take(self.room());
            }
        } else if self.buf.capacity() - self.buf.len() < MIN_ROOM {
            self.buf.reserve(self.room());
        }
        let read = self.io.poll_read(cx, &mut self.buf);
        if read.is_pending() && self.buf.is_empty() {
            self.release();
        }
        read
    }

    /// Ready when more has come. The buffer stays: while the message in it is in use, its memory is in use as well.
    pub fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io.poll_readable(cx)
    }

    /// Gives the buffer's memory back; what is in it is lost.
    pub fn release(&mut self) {
        buffers::give(std::mem::take(&mut self.buf));
    }

    /// How much to make room for.
    fn room(&self) -> usize {
        match (self.side, &self.decoder) {
            (Side::Downstream, Decoder::Done) => buffers::HEAD,
            (Side::Downstream, Decoder::Counted { left }) if *left <= buffers::HEAD as u64 => buffers::HEAD,
            _ => buffers::BODY,
        }
    }

    /// The next piece of the current message's body.
    pub fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, ProxyError>>> {
        loop {
            match self.decoder.decode(&mut self.buf) {
                Ok(Decoded::Data(data)) => {
                    self.body_bytes += data.len() as u64;
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Ok(Decoded::Trailers(fields)) => return Poll::Ready(Some(Ok(Frame::trailers(fields)))),
                Ok(Decoded::End) => return Poll::Ready(None),
                Err(detail) => {
                    let reason = match self.side {
                        Side::Downstream => Reason::AmbiguousRequest,
                        Side::Upstream => Reason::UpstreamProtocol,
                    };
                    return Poll::Ready(Some(Err(ProxyError::new(reason, detail))));
                }
                Ok(Decoded::NeedMore) => {}
            }
            match ready!(self.poll_fill(cx)) {
                Ok(0) if matches!(self.decoder, Decoder::UntilClose) => {
                    self.decoder = Decoder::Done;
                    return Poll::Ready(None);
                }
                Ok(0) => return Poll::Ready(Some(Err(self.cut("the connection ended within a body")))),
                Ok(_) => {}
                Err(error) => return Poll::Ready(Some(Err(self.cut(format!("reading a body: {error}"))))),
            }
        }
    }

    fn cut(&self, detail: impl Into<std::borrow::Cow<'static, str>>) -> ProxyError {
        let reason = match self.side {
            Side::Downstream => Reason::DownstreamClosed,
            Side::Upstream => Reason::UpstreamTruncated,
        };
        ProxyError::new(reason, detail)
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.release();
    }
}

/// The body of a request from an HTTP/1 client. It shares the connection's reader: the next request is behind it.
#[derive(Debug)]
pub struct RequestBody {
    reader: Rc<RefCell<Reader>>,
}

impl RequestBody {
    pub(super) fn new(reader: Rc<RefCell<Reader>>) -> Self {
        Self { reader }
    }

    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, ProxyError>>> {
        self.reader.borrow_mut().poll_body(cx)
    }

    pub fn is_done(&self) -> bool {
        self.reader.borrow().decoder.is_done()
    }

    pub fn length(&self) -> Option<u64> {
        self.reader.borrow().decoder.length()
    }
}
