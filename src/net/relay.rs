//! Bytes to and fro between two connections, each direction to its own end.

#[cfg(test)]
mod tests;

use super::{
    buffers,
    io::Stream,
    splice::{self, Lease},
};
use bytes::{Buf, BytesMut};
use std::{
    cell::{Cell, RefCell},
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

/// Where a worker's connections read into, one after the other: mostly the other side takes it at once.
const SCRATCH: usize = 64 * 1024;
/// As much in one read, and the rest goes through a pipe. (See `benches/peers/README.md`.)
const BULK: usize = SCRATCH;
/// Less through the pipe, so many times in a row, and it is read again.
const SMALL: usize = 16 * 1024;
const SMALL_IN_A_ROW: u8 = 4;
/// So many reads in one direction, and it is the turn of others.
const TURN: u32 = 8;

thread_local! {
    static SPACE: RefCell<Box<[u8]>> = RefCell::new(vec![0; SCRATCH].into_boxed_slice());
}

/// Which of the two broke, and how.
#[derive(Debug)]
pub enum Broken {
    Client(io::Error),
    Server(io::Error),
}

/// Bytes that have left, per direction. Read by others while they flow.
#[derive(Debug, Default)]
pub struct Moved {
    /// To the server.
    pub sent: Cell<u64>,
    /// To the client.
    pub received: Cell<u64>,
    /// Whether somebody does not take what is there for it. Then nobody reads its other side, and hears that that is gone.
    pub stalled: Cell<bool>,
    /// Set by others: it is time to look whether both sides are still there.
    pub suspect: Cell<bool>,
}

impl Moved {
    /// As many to the server, and to the client.
    pub fn both(&self) -> (u64, u64) {
        (self.sent.get(), self.received.get())
    }
}

/// Two connections that are one.
#[derive(Debug)]
pub struct Relay {
    client: Stream,
    server: Stream,
    up: Half,
    down: Half,
    broken: Option<Broken>,
}

/// One direction.
#[derive(Debug, Default)]
struct Half {
    state: State,
    /// What was read and is not taken yet.
    unsent: BytesMut,
    /// Where bytes are on their way within the kernel.
    pipe: Option<Lease>,
    /// Whether much comes at one time.
    bulk: bool,
    small: u8,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    #[default]
    Flowing,
    /// Its source has ended, and its target is to hear of that.
    Ending,
    Ended,
}

/// Of one direction.
enum End {
    Source(io::Error),
    Target(io::Error),
}

impl Relay {
    /// `start`: what the server gets first, e.g. because it was read of the client already.
    pub fn new(client: Stream, server: Stream, start: BytesMut) -> Self {
        Self { client, server, up: Half { unsent: start, ..Half::default() }, down: Half::default(), broken: None }
    }

    /// Ready when both directions have ended, or one side has broken.
    pub fn poll(&mut self, moved: &Moved, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        if moved.suspect.take() {
            self.look()?;
        }
        let orderly = !self.was_reset();
        let up = self.up.poll(&mut self.client, &mut self.server, &moved.sent, orderly, cx);
        let up = self.ended(up, Broken::Client, Broken::Server)?;
        let orderly = !self.was_reset();
        let down = self.down.poll(&mut self.server, &mut self.client, &moved.received, orderly, cx);
        let down = self.ended(down, Broken::Server, Broken::Client)?;
        moved.stalled.set(self.holds_bytes());
        match self.broken.take_if(|_| up && down) {
            Some(broken) => Poll::Ready(Err(broken)),
            None if up && down => Poll::Ready(Ok(())),
            None => Poll::Pending,
        }
    }

    /// Whether one side was found to have reset the connection by writing to it; what it sent before is still to be read.
    fn was_reset(&self) -> bool {
        let Some(Broken::Client(error) | Broken::Server(error)) = &self.broken else { return false };
        error.kind() == io::ErrorKind::ConnectionReset
    }

    /// Asks the kernel for what nobody reads.
    fn look(&self) -> Result<(), Broken> {
        self.client.error().map_or(Ok(()), |error| Err(Broken::Client(error)))?;
        self.server.error().map_or(Ok(()), |error| Err(Broken::Server(error)))
    }

    /// Whether there is something that was read and not taken yet.
    pub fn holds_bytes(&self) -> bool {
        self.up.holds_bytes() || self.down.holds_bytes()
    }

    /// Whether a direction has ended. One whose target takes nothing any more has; but the target may have said why, and that
    /// is still on its way.
    fn ended(
        &mut self,
        polled: Poll<Result<(), End>>,
        source: fn(io::Error) -> Broken,
        target: fn(io::Error) -> Broken,
    ) -> Result<bool, Broken> {
        match polled {
            Poll::Pending => Ok(false),
            Poll::Ready(Ok(())) => Ok(true),
            Poll::Ready(Err(End::Source(error))) => Err(source(error)),
            Poll::Ready(Err(End::Target(error))) => {
                self.broken.get_or_insert(target(error));
                Ok(true)
            }
        }
    }

    /// Ends with a reset on both sides what broke on one, so that nobody takes what came for all that there was.
    pub fn reset(&self) {
        self.client.reset();
        self.server.reset();
    }
}

impl Half {
    fn holds_bytes(&self) -> bool {
        !self.unsent.is_empty() || self.pipe.as_ref().is_some_and(|pipe| pipe.filled() > 0)
    }

    /// `orderly`: the end of the source is to be passed on, and not only what came before it.
    fn poll(
        &mut self,
        from: &mut Stream,
        to: &mut Stream,
        moved: &Cell<u64>,
        orderly: bool,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), End>> {
        let mut turns = 0;
        loop {
            if self.state != State::Ended
                && let Err(error) = ready!(self.poll_send(to, moved, cx))
            {
                return self.give_up(error);
            }
            match self.state {
                State::Flowing => {
                    turns += 1;
                    if turns > TURN {
                        cx.waker().wake_by_ref();
                        return Poll::Pending;
                    }
                    let count = match (&*from, &*to) {
                        (Stream::Tcp(from), Stream::Tcp(_)) if self.takes_pipe() => {
                            ready!(self.poll_fill(from, cx)).map_err(End::Source)?
                        }
                        _ => match ready!(self.poll_copy(from, to, moved, cx)) {
                            Ok(count) => count,
                            Err(End::Target(error)) => return self.give_up(error),
                            Err(error) => return Poll::Ready(Err(error)),
                        },
                    };
                    if count == 0 {
                        self.state = State::Ending;
                    }
                }
                State::Ending => {
                    self.pipe = None;
                    if orderly {
                        // Whoever has left already need not be told.
                        let _ = ready!(Pin::new(&mut *to).poll_shutdown(cx));
                    }
                    self.state = State::Ended;
                }
                State::Ended => return Poll::Ready(Ok(())),
            }
        }
    }

    /// The target takes nothing any more.
    fn give_up(&mut self, error: io::Error) -> Poll<Result<(), End>> {
        *self = Self { state: State::Ended, ..Self::default() };
        Poll::Ready(Err(End::Target(error)))
    }

    /// Gives the target what is on its way to it.
    fn poll_send(&mut self, to: &mut Stream, moved: &Cell<u64>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.unsent.is_empty() {
            let count = ready!(Pin::new(&mut *to).poll_write(cx, &self.unsent))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.unsent.advance(count);
            moved.set(moved.get() + count as u64);
        }
        if self.unsent.capacity() > 0 {
            buffers::give(std::mem::take(&mut self.unsent));
        }
        match (&mut self.pipe, &*to) {
            (Some(pipe), Stream::Tcp(to)) => {
                let mut cut_short = false;
                while pipe.filled() > 0 {
                    ready!(to.poll_write_ready(cx))?;
                    match pipe.drain(to) {
                        Ok(count) => {
                            moved.set(moved.get() + count as u64);
                            cut_short = pipe.filled() > 0;
                        }
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => cut_short = false,
                        // A reset in the midst of it: the kernel tells that once, and here to nobody, as some bytes had gone.
                        Err(error) if error.kind() == io::ErrorKind::BrokenPipe && cut_short => {
                            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
                        }
                        Err(error) => return Poll::Ready(Err(error)),
                    }
                }
                Poll::Ready(Ok(()))
            }
            // What TLS has encrypted it may still hold.
            (_, Stream::Tls(_)) => Pin::new(to).poll_flush(cx),
            _ => Poll::Ready(Ok(())),
        }
    }

    /// Whether what comes now goes through a pipe; if so, there is one.
    fn takes_pipe(&mut self) -> bool {
        if self.bulk && self.pipe.is_none() {
            self.pipe = splice::lease();
        }
        self.bulk && self.pipe.is_some()
    }

    /// Takes what there is into the pipe. 0 is the end.
    fn poll_fill(&mut self, from: &TcpStream, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let Some(pipe) = &mut self.pipe else { return Poll::Ready(Ok(0)) };
        loop {
            if from.poll_read_ready(cx)?.is_pending() {
                // Another connection may need it meanwhile.
                self.pipe = None;
                return Poll::Pending;
            }
            match pipe.fill(from) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
                Ok(count) => {
                    self.small = if count < SMALL { self.small + 1 } else { 0 };
                    if self.small >= SMALL_IN_A_ROW {
                        (self.bulk, self.small) = (false, 0);
                    }
                    return Poll::Ready(Ok(count));
                }
            }
        }
    }

    /// Reads, and writes at once what can be written. 0 is the end.
    fn poll_copy(
        &mut self,
        from: &mut Stream,
        to: &mut Stream,
        moved: &Cell<u64>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<usize, End>> {
        self.pipe = None;
        SPACE.with_borrow_mut(|space| {
            let mut read = ReadBuf::new(space);
            ready!(Pin::new(from).poll_read(cx, &mut read)).map_err(End::Source)?;
            let (data, count) = (read.filled(), read.filled().len());
            if count == 0 {
                return Poll::Ready(Ok(0));
            }
            self.bulk = count >= BULK;
            let written = match Pin::new(to).poll_write(cx, data) {
                Poll::Ready(written) => written.map_err(End::Target)?,
                Poll::Pending => 0,
            };
            moved.set(moved.get() + written as u64);
            if written < count {
                self.unsent = buffers::take(buffers::BODY);
                self.unsent.extend_from_slice(&data[written..]);
            }
            Poll::Ready(Ok(count))
        })
    }
}
