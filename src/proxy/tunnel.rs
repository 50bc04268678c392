//! Bytes to and fro after an upgrade, e.g. WebSocket.

use super::{
    h1::Tunnel,
    timer::{IdleWatch, Patience, Timer},
};
use crate::net::io::Io;
use bytes::BytesMut;
use std::{
    cell::Cell,
    future::{Future, poll_fn},
    io,
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll},
};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf, copy_bidirectional};

/// Copies until both directions have ended, one breaks, or `patience` ends. Gives the bytes sent upstream and
/// those received from there.
pub async fn run(down: (Rc<Io>, BytesMut), upstream: Tunnel, patience: Patience, timer: &mut Timer) -> (u64, u64) {
    let (sent, received) = (Cell::new(0), Cell::new(0));
    let mut client = End { io: down.0, written: &received };
    let mut server = End { io: upstream.io(), written: &sent };
    let copying = async {
        server.write_all(&down.1).await?;
        client.write_all(&upstream.read).await?;
        copy_bidirectional(&mut client, &mut server).await
    };
    {
        let mut copying = pin!(copying);
        let mut watch = IdleWatch::new(patience, timer);
        poll_fn(|cx| match copying.as_mut().poll(cx) {
            // However it ended, both sides are closed now.
            Poll::Ready(_) => Poll::Ready(()),
            Poll::Pending => watch.poll_idle(sent.get() + received.get(), timer, cx).map(drop),
        })
        .await;
    }
    (sent.get(), received.get())
}

/// One end of a tunnel.
struct End<'c> {
    io: Rc<Io>,
    written: &'c Cell<u64>,
}

impl AsyncRead for End<'_> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.io.poll_read_buf(cx, buf)
    }
}

impl AsyncWrite for End<'_> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let written = self.io.poll_write(cx, data);
        if let Poll::Ready(Ok(count)) = written {
            self.written.set(self.written.get() + count as u64);
        }
        written
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io.poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io.poll_shutdown(cx)
    }
}
