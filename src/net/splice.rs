//! Moving bytes from one socket to another without bringing them into user space: `splice(2)`, through pipes that go round
//! within a worker.

use rustix::{
    io::Errno,
    pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice},
};
use std::{
    cell::{Cell, RefCell},
    io,
    os::fd::OwnedFd,
};
use tokio::{io::Interest, net::TcpStream};

/// What is asked for, and what any user may have (`/proc/sys/fs/pipe-max-size`). The size decides: 1 MiB through 64 KiB pipes
/// costs as much as copying does, through one of 1 MiB half of it.
const SIZE: usize = 1 << 20;
/// A smaller one is not worth it. Users without rights get such once they have many (`pipe-user-pages-soft`).
const LEAST: usize = 256 << 10;
/// Where none can be had, it is asked for again after so many that went without.
const WITHOUT: u32 = 1000;
/// In use at one time per worker. One whose reader is slow may be full, of memory that is the kernel's.
pub(super) const MOST: usize = 32;

thread_local! {
    static FREE: RefCell<Vec<Pipe>> = const { RefCell::new(Vec::new()) };
    static IN_USE: Cell<usize> = const { Cell::new(0) };
    /// So many times none is asked for.
    static REFUSED: Cell<u32> = const { Cell::new(0) };
}

/// A pipe of its own for one direction of a connection, for as long as this lives.
#[derive(Debug)]
pub struct Lease {
    /// There until it is dropped.
    pipe: Option<Pipe>,
    filled: usize,
}

#[derive(Debug)]
struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
}

/// A pipe, unless there are too many or they cannot be made large enough: then the bytes are to be copied.
pub fn lease() -> Option<Lease> {
    if IN_USE.get() >= MOST {
        return None;
    }
    if REFUSED.get() > 0 {
        REFUSED.set(REFUSED.get() - 1);
        return None;
    }
    let Some(pipe) = FREE.with_borrow_mut(Vec::pop).or_else(Pipe::new) else {
        REFUSED.set(WITHOUT);
        return None;
    };
    IN_USE.set(IN_USE.get() + 1);
    Some(Lease { pipe: Some(pipe), filled: 0 })
}

/// Pipes that wait for the next.
#[cfg(test)]
pub(super) fn free() -> usize {
    FREE.with_borrow(Vec::len)
}

impl Pipe {
    fn new() -> Option<Self> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).ok()?;
        let size = fcntl_setpipe_size(&write, SIZE).ok()?;
        (size >= LEAST).then_some(Self { read, write })
    }
}

impl Lease {
    /// Bytes that are in it.
    pub fn filled(&self) -> usize {
        self.filled
    }

    /// Takes in what `from` has. 0 is its end. Only while it is empty: a full one would look like a socket without data.
    pub fn fill(&mut self, from: &TcpStream) -> io::Result<usize> {
        debug_assert_eq!(self.filled, 0);
        let Some(pipe) = &self.pipe else { return Ok(0) };
        let count =
            from.try_io(Interest::READABLE, || again(|| splice(from, None, &pipe.write, None, SIZE, flags())))?;
        self.filled += count;
        Ok(count)
    }

    /// Gives `to` what is in it.
    pub fn drain(&mut self, to: &TcpStream) -> io::Result<usize> {
        let Some(pipe) = &self.pipe else { return Ok(0) };
        let filled = self.filled;
        let count = to.try_io(Interest::WRITABLE, || again(|| splice(&pipe.read, None, to, None, filled, flags())))?;
        self.filled -= count;
        Ok(count)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        IN_USE.set(IN_USE.get() - 1);
        // What is left in it is not for the next connection.
        if let Some(pipe) = self.pipe.take().filter(|_| self.filled == 0) {
            FREE.with_borrow_mut(|free| free.push(pipe));
        }
    }
}

fn flags() -> SpliceFlags {
    SpliceFlags::MOVE | SpliceFlags::NONBLOCK
}

/// Calls again what a signal has interrupted.
fn again(call: impl Fn() -> rustix::io::Result<usize>) -> io::Result<usize> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            done => return done.map_err(Into::into),
        }
    }
}
