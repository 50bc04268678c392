//! Sockets that are closed when the test closes them, and ports that are free.
//!
//! A process that another test is starting holds copies of all our descriptors until it runs its own program, and a socket
//! that somebody holds is not closed: its peer would hear of it a moment later than the test believes.

use socket2::SockRef;
use std::{
    io,
    net::{Shutdown, TcpListener},
    ops::{Deref, DerefMut},
    os::fd::AsFd,
    pin::Pin,
    sync::atomic::{AtomicU16, Ordering},
    task::{Context, Poll},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A port that was free a moment ago.
pub fn free_port() -> u16 {
    // Below the range from which the kernel takes the ports of outgoing connections: who listens on it again later must
    // find it free.
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let offset = u16::try_from(std::process::id() % 10_000).unwrap();
    loop {
        let port = 20_000 + (offset + NEXT.fetch_add(1, Ordering::Relaxed)) % 10_000;
        if is_free(port) {
            return port;
        }
    }
}

pub fn is_free(port: u16) -> bool {
    TcpListener::bind(("127.0.0.1", port)).map(Socket).is_ok()
}

/// A socket whose drop ends it, however many descriptors there are: a connection with FIN, or with RST if its linger time is
/// zero; a listener refuses from then on.
#[derive(Debug)]
pub struct Socket<T: AsFd>(pub T);

impl<T: AsFd> Deref for Socket<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: AsFd> DerefMut for Socket<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.0
    }
}

impl<T: AsFd> Drop for Socket<T> {
    fn drop(&mut self) {
        // An error says that the peer was first.
        let socket = SockRef::from(&self.0);
        if socket.is_listener().unwrap_or(false) {
            let _ = socket.shutdown(Shutdown::Both);
        } else if socket.linger().is_ok_and(|linger| linger.is_some_and(|time| time.is_zero())) {
            let _ = rustix::net::connect_unspec(&self.0);
        } else {
            let _ = socket.shutdown(Shutdown::Write);
        }
    }
}

impl<T: AsFd + AsyncRead + Unpin> AsyncRead for Socket<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl<T: AsFd + AsyncWrite + Unpin> AsyncWrite for Socket<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }
}
