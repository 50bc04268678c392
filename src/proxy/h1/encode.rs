//! Writing to one side of an HTTP/1 exchange: what goes out together goes out in one system call.

use super::head::{Framing, write_fields};
use crate::{
    error::ProxyError,
    net::{buffers, io::Io},
    proxy::body::{Body, Replay},
};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use http_body::Frame;
use std::{
    io::{self, IoSlice},
    rc::Rc,
    task::{Context, Poll, ready},
};

/// Pieces up to this size are copied behind the head, so that one plain `send` takes both; larger ones go out from where
/// they are. (A `writev` costs more than a `send`; so does copying much.)
pub const COPY_LIMIT: usize = 4 * 1024;
/// With this much waiting to be written, no more of the body is asked for.
const HIGH_WATER: usize = 16 * 1024;

/// Bytes on their way to a socket: some that were put together here, then one large piece, then its ending.
#[derive(Debug)]
pub struct Writer {
    io: Rc<Io>,
    head: BytesMut,
    piece: Bytes,
    tail: &'static [u8],
    /// Whether a byte was written at all.
    pub started: bool,
}

impl Writer {
    /// Without a buffer, until there is something to write.
    pub fn new(io: Rc<Io>) -> Self {
        Self { io, head: BytesMut::new(), piece: Bytes::new(), tail: b"", started: false }
    }

    pub fn is_empty(&self) -> bool {
        self.head.is_empty() && self.piece.is_empty() && self.tail.is_empty()
    }

    fn has_room(&self) -> bool {
        self.piece.is_empty() && self.tail.is_empty() && self.head.len() < HIGH_WATER
    }

    fn push(&mut self, data: Bytes, tail: &'static [u8]) {
        debug_assert!(self.has_room(), "one large piece at a time");
        if data.len() <= COPY_LIMIT {
            self.head.put_slice(&data);
            self.head.put_slice(tail);
        } else {
            self.piece = data;
            self.tail = tail;
        }
    }

    /// Writes everything.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.is_empty() {
            let written = if self.piece.is_empty() && self.tail.is_empty() {
                ready!(self.io.poll_write(cx, &self.head))?
            } else if self.head.is_empty() && self.tail.is_empty() {
                ready!(self.io.poll_write(cx, &self.piece))?
            } else {
                let slices = [IoSlice::new(&self.head), IoSlice::new(&self.piece), IoSlice::new(self.tail)];
                ready!(self.io.poll_write_vectored(cx, &slices))?
            };
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.started = true;
            self.advance(written);
        }
        self.io.poll_flush(cx)
    }

    fn advance(&mut self, mut written: usize) {
        let from_head = written.min(self.head.len());
        if from_head == self.head.len() {
            // Not `advance`: the whole buffer is to be used again.
            self.head.clear();
        } else {
            self.head.advance(from_head);
        }
        written -= from_head;
        let from_piece = written.min(self.piece.len());
        self.piece.advance(from_piece);
        if self.piece.is_empty() {
            // Lets the reader use the memory behind it again.
            self.piece = Bytes::new();
        }
        self.tail = &self.tail[written - from_piece..];
    }

    /// Gives the buffer's memory back while the connection idles. What is still in it is lost.
    pub fn release(&mut self) {
        buffers::give(std::mem::take(&mut self.head));
    }

    /// Where the next message's head is put.
    pub fn head(&mut self) -> &mut BytesMut {
        if self.head.capacity() == 0 {
            self.head = buffers::take(buffers::HEAD);
        }
        &mut self.head
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.release();
    }
}

/// Carries a body into a [`Writer`], framed as its head has said.
#[derive(Debug)]
pub struct Sending {
    body: Body,
    framing: Framing,
    finished: bool,
    /// Bytes of the body handed to the writer so far.
    pub bytes: u64,
    /// The trailers, once they came.
    pub trailers: Option<http::HeaderMap>,
    replay: Option<Replay>,
}

/// Which end of a copy broke.
#[derive(Debug)]
pub enum CopyError {
    /// The body could not be read.
    Source(ProxyError),
    /// It could not be written.
    Sink(io::Error),
    /// The body is not as long as its head promised.
    Length,
}

impl Sending {
    pub fn new(body: Body, framing: Framing) -> Self {
        Self { body, framing, finished: framing == Framing::None, bytes: 0, trailers: None, replay: None }
    }

    /// One whose body can be sent a second time, if it has at most `limit` bytes.
    pub fn replayable(body: Body, framing: Framing, limit: usize) -> Self {
        Self { replay: Some(Replay::new(limit)), ..Self::new(body, framing) }
    }

    /// Whether the whole body was handed to the writer.
    pub fn is_finished(&self) -> bool {
        self.finished
    }

    pub fn is_replayable(&self) -> bool {
        self.replay.is_some()
    }

    /// It need not be sent a second time any more.
    pub fn forget(&mut self) {
        self.replay = None;
    }

    /// The body from its start, if it is still at hand.
    pub fn into_replay(self) -> Option<Body> {
        // Trailers that were read cannot be read again.
        self.replay.filter(|_| self.trailers.is_none()).map(|replay| replay.into_body(self.body))
    }

    /// Moves what is there. Ready when all of it is written. Everything that is at hand in one turn is flushed together.
    pub fn poll(&mut self, writer: &mut Writer, cx: &mut Context<'_>) -> Poll<Result<(), CopyError>> {
        loop {
            while !self.finished && writer.has_room() {
                let Poll::Ready(next) = self.body.poll_next(cx) else { break };
                match next {
                    Some(Ok(frame)) => self.encode(frame, writer)?,
                    Some(Err(error)) => {
                        // What came before the error goes out if it can, so that the other side sees how far it got.
                        let _ = writer.poll_flush(cx);
                        return Poll::Ready(Err(CopyError::Source(error)));
                    }
                    None => self.finish(writer)?,
                }
                if !self.finished && self.body.is_done() {
                    self.finish(writer)?;
                }
            }
            if writer.is_empty() {
                return if self.finished { Poll::Ready(Ok(())) } else { Poll::Pending };
            }
            let Poll::Ready(flushed) = writer.poll_flush(cx) else {
                self.body.poll_beside(cx);
                return Poll::Pending;
            };
            flushed.map_err(CopyError::Sink)?;
        }
    }

    fn encode(&mut self, frame: Frame<Bytes>, writer: &mut Writer) -> Result<(), CopyError> {
        match frame.into_data() {
            Ok(data) if data.is_empty() => {}
            Ok(data) => {
                self.bytes += data.len() as u64;
                if self.replay.as_mut().is_some_and(|replay| !replay.keep(&data)) {
                    self.replay = None;
                }
                match &mut self.framing {
                    Framing::None => return Err(CopyError::Length),
                    Framing::UntilClose => writer.push(data, b""),
                    Framing::Length(left) => {
                        *left = left.checked_sub(data.len() as u64).ok_or(CopyError::Length)?;
                        writer.push(data, b"");
                    }
                    Framing::Chunked => {
                        write_hex(&mut writer.head, data.len());
                        writer.push(data, b"\r\n");
                    }
                }
            }
            Err(frame) => self.trailers = frame.into_trailers().ok(),
        }
        Ok(())
    }

    /// Ends the message. It may have to be called again when a large last chunk has left.
    fn finish(&mut self, writer: &mut Writer) -> Result<(), CopyError> {
        match (self.framing, &self.trailers) {
            (Framing::Length(1..), _) => return Err(CopyError::Length),
            (Framing::Chunked, trailers) if writer.piece.is_empty() => {
                writer.head.put_slice(b"0\r\n");
                if let Some(trailers) = trailers {
                    write_fields(&mut writer.head, trailers, None);
                }
                writer.head.put_slice(b"\r\n");
            }
            (Framing::Chunked, None) => writer.tail = b"\r\n0\r\n\r\n",
            (Framing::Chunked, Some(_)) => return Ok(()),
            _ => {}
        }
        self.finished = true;
        Ok(())
    }
}

/// A chunk's size line.
fn write_hex(out: &mut BytesMut, size: usize) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digits = (usize::BITS - size.leading_zeros()).div_ceil(4).max(1);
    out.reserve(digits as usize + 2);
    for digit in (0..digits).rev() {
        out.put_u8(DIGITS[size >> (digit * 4) & 0xf]);
    }
    out.put_slice(b"\r\n");
}
