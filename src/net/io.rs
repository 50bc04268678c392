//! One byte stream, plain or TLS, that several parts of *one task* may read and write by turns.

use bytes::BytesMut;
use rustix::net::{RecvFlags, recv};
use std::{
    cell::RefCell,
    future::poll_fn,
    io::{self, IoSlice},
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll, ready},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::client::TlsStream;

/// What [`Io::receive`] makes room for, which has to be cleared first.
const FIRST: usize = 2 * 1024;

/// A connected stream. `AsyncRead` and `AsyncWrite` as usual.
#[derive(Debug)]
pub enum Stream {
    Tcp(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// A [`Stream`] that is polled through `&self`: the half that reads a request's body and the half that writes its
/// response live in different values, but always in the same task, so a `RefCell` borrowed for the length of one poll
/// is enough, and one waker per direction is right.
#[derive(Debug)]
pub struct Io {
    stream: RefCell<Stream>,
}

impl Io {
    pub fn new(stream: Stream) -> Self {
        Self { stream: RefCell::new(stream) }
    }

    pub fn into_inner(self) -> Stream {
        self.stream.into_inner()
    }

    /// Appends what can be read to `buf`'s spare capacity (at least one byte of it must be there). 0 is the end.
    pub fn poll_read(&self, cx: &mut Context<'_>, buf: &mut BytesMut) -> Poll<io::Result<usize>> {
        debug_assert!(buf.capacity() > buf.len(), "a read into a full buffer looks like the end of the stream");
        tokio_util::io::poll_read_buf(Pin::new(&mut *self.stream.borrow_mut()), cx, buf)
    }

    pub fn poll_read_buf(&self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.stream.borrow_mut()).poll_read(cx, buf)
    }

    /// Appends what has come already, at most [`FIRST`] bytes of it. The event loop is not asked: it has not looked at a new
    /// connection yet, of which the first request nearly always is here. Nothing if there is nothing, or another end than data:
    /// the next read tells which.
    pub fn receive(&self, buf: &mut BytesMut) {
        let Stream::Tcp(tcp) = &*self.stream.borrow() else { return };
        let before = buf.len();
        buf.resize(before + FIRST, 0);
        let received = recv(tcp, &mut buf[before..], RecvFlags::DONTWAIT).map_or(0, |(received, _)| received);
        buf.truncate(before + received);
    }

    /// Ready when a read would give data, the end, or an error. Takes no system call and needs no buffer, so that idle
    /// connections hold none. (A TLS stream may hold decrypted bytes that the socket knows nothing of: always ready.)
    pub fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &*self.stream.borrow() {
            Stream::Tcp(tcp) => tcp.poll_read_ready(cx),
            Stream::Tls(_) => Poll::Ready(Ok(())),
        }
    }

    pub fn poll_write(&self, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.stream.borrow_mut()).poll_write(cx, data)
    }

    pub fn poll_write_vectored(&self, cx: &mut Context<'_>, data: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.stream.borrow_mut()).poll_write_vectored(cx, data)
    }

    pub fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.stream.borrow_mut()).poll_flush(cx)
    }

    /// Sends the end of the stream.
    pub fn poll_shutdown(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.stream.borrow_mut()).poll_shutdown(cx)
    }

    /// As [`Io::poll_shutdown`].
    pub async fn shutdown(&self) -> io::Result<()> {
        poll_fn(|cx| self.poll_shutdown(cx)).await
    }

    /// For a connection that nobody is waiting on: whether the peer closed it or sent something unasked. Looks at what
    /// the event loop already knows; no system call.
    pub fn is_stale(&self) -> bool {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        match &mut *self.stream.borrow_mut() {
            Stream::Tcp(tcp) => tcp.poll_read_ready(&mut cx).is_ready(),
            Stream::Tls(tls) => {
                // Session tickets arrive unasked and are consumed here; application data or the end make it stale.
                let mut byte = [0];
                Pin::new(&mut **tls).poll_read(&mut cx, &mut ReadBuf::new(&mut byte)).is_ready()
            }
        }
    }

    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.stream.borrow().tcp().local_addr()
    }

    /// Closes with a reset instead of an orderly end, so that the peer cannot mistake a cut-off body for a whole one.
    pub fn reset(&self) {
        self.stream.borrow().reset();
    }
}

impl Stream {
    /// What has happened to the connection since it was last read or written, if that ends it.
    pub fn error(&self) -> Option<io::Error> {
        self.tcp().take_error().ok().flatten()
    }

    pub fn tcp(&self) -> &TcpStream {
        match self {
            Self::Tcp(tcp) => tcp,
            Self::Tls(tls) => tls.get_ref().0,
        }
    }

    /// As [`Io::reset`], when it is dropped.
    pub fn reset(&self) {
        if let Self::Tcp(tcp) = self {
            // If it fails, the socket is closed in the ordinary way by its drop; nothing more can be done.
            let _ = socket2::SockRef::from(tcp).set_linger(Some(std::time::Duration::ZERO));
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Self::Tls(tls) => Pin::new(&mut **tls).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(tcp) => Pin::new(tcp).poll_write(cx, data),
            Self::Tls(tls) => Pin::new(&mut **tls).poll_write(cx, data),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(tcp) => Pin::new(tcp).poll_write_vectored(cx, data),
            Self::Tls(tls) => Pin::new(&mut **tls).poll_write_vectored(cx, data),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Tcp(tcp) => tcp.is_write_vectored(),
            Self::Tls(tls) => tls.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(tcp) => Pin::new(tcp).poll_flush(cx),
            Self::Tls(tls) => Pin::new(&mut **tls).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Self::Tls(tls) => Pin::new(&mut **tls).poll_shutdown(cx),
        }
    }
}

/// A stream for HTTP/2: gives back what protocol detection has read, and holds writes back for one turn.
///
/// The first `poll_write` wakes its own task and waits; by the time it is polled again, the other tasks that were ready
/// in the same turn have queued their frames, and all of them leave in one system call instead of one each. Measured
/// with many streams per connection: 0.25 instead of 0.52 system calls per request.
#[derive(Debug)]
pub struct H2Io {
    prefix: BytesMut,
    stream: Stream,
    held_back: bool,
}

impl H2Io {
    /// `prefix`: bytes that were already read from `stream`.
    pub fn new(prefix: BytesMut, stream: Stream) -> Self {
        Self { prefix, stream, held_back: false }
    }

    fn hold_back(&mut self, cx: &Context<'_>) -> Poll<()> {
        if self.held_back {
            return Poll::Ready(());
        }
        self.held_back = true;
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl AsyncRead for H2Io {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.prefix.is_empty() {
            let take = self.prefix.len().min(buf.remaining());
            buf.put_slice(&self.prefix.split_to(take));
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for H2Io {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.hold_back(cx));
        Pin::new(&mut self.stream).poll_write(cx, data)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.hold_back(cx));
        Pin::new(&mut self.stream).poll_write_vectored(cx, data)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.held_back = false;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::{io::AsyncWriteExt, net::TcpListener};

    #[tokio::test]
    async fn what_has_come_is_received_and_the_rest_is_read() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (io, mut buf) = (Io::new(Stream::Tcp(listener.accept().await.unwrap().0)), BytesMut::from("before, "));
        io.receive(&mut buf);
        assert_eq!(buf, "before, ", "nothing has come");
        let sent = [b'x'; FIRST + 1];
        client.write_all(&sent).await.unwrap();
        poll_fn(|cx| io.poll_readable(cx)).await.unwrap();
        io.receive(&mut buf);
        assert_eq!(buf.len(), "before, ".len() + FIRST);
        buf.reserve(16);
        assert_eq!(poll_fn(|cx| io.poll_read(cx, &mut buf)).await.unwrap(), 1);
        assert_eq!(buf["before, ".len()..], sent);
        // The end is told by the next read.
        drop(client);
        poll_fn(|cx| io.poll_readable(cx)).await.unwrap();
        buf.clear();
        io.receive(&mut buf);
        assert!(buf.is_empty());
        assert_eq!(poll_fn(|cx| io.poll_read(cx, &mut buf)).await.unwrap(), 0);
    }
}
