//! Telling apart what ends with a GOAWAY and what ends with its connection.

use crate::net::io::H2Io;
use std::{
    cell::Cell,
    io::{self, IoSlice},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// An upstream's stream of bytes, whose end is noticed one turn after the bytes in front of it.
///
/// A GOAWAY names the last request that may have been executed; later ones surely were not, and may be sent again. The h2
/// crate fails both with the same error: the later ones at once, the others when the connection ends. Where a server
/// closes right behind its GOAWAY, the requests that surely were not executed are told in the turn in between.
#[derive(Debug)]
pub struct Ending {
    io: H2Io,
    end: Option<io::Result<()>>,
    ended: Rc<Cell<bool>>,
}

impl Ending {
    /// `ended` is set when the connection has ended.
    pub fn new(io: H2Io, ended: Rc<Cell<bool>>) -> Self {
        Self { io, end: None, ended }
    }
}

impl AsyncRead for Ending {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if let Some(end) = self.end.take() {
            self.ended.set(true);
            return Poll::Ready(end);
        }
        let before = buf.filled().len();
        match ready!(Pin::new(&mut self.io).poll_read(cx, buf)) {
            Ok(()) if buf.filled().len() > before || self.ended.get() => Poll::Ready(Ok(())),
            end => {
                self.end = Some(end);
                // Queued behind the tasks that were woken by what was read before.
                cx.waker().wake_by_ref();
                Poll::Pending
            }
        }
    }
}

impl AsyncWrite for Ending {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, data)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, data)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
