//! Connections of pillion's own that the kernel brings back to it, because the rules that redirect an application's do not
//! leave pillion's alone. Carried on, such a connection would come back for ever.

use foldhash::fast::FixedState;
use rustix::time::{ClockId, clock_gettime};
use std::{
    hash::BuildHasher,
    net::SocketAddr,
    num::NonZeroU32,
    sync::atomic::{
        AtomicBool, AtomicU64,
        Ordering::{Acquire, Relaxed, Release},
    },
};
use tokio::net::TcpStream;

/// More connections than are opened between the kernel's giving one an address and the same one's coming back.
const SLOTS: usize = 4096;

/// How long after it was opened a connection can come back, in milliseconds. Of those that nobody saw close.
const FRESH: u32 = 5_000;

/// Whether anything can come back.
static WATCHED: AtomicBool = AtomicBool::new(false);

/// The last connections: half of a hash of their two addresses, and the millisecond in which they were opened.
static OPENED: [AtomicU64; SLOTS] = [const { AtomicU64::new(0) }; SLOTS];

/// From now on connections may come back.
pub fn watch() {
    if !are_watched() {
        WATCHED.store(true, Release);
    }
}

/// Whether what is opened is to be remembered.
pub fn are_watched() -> bool {
    WATCHED.load(Relaxed)
}

/// Whether a connection from `peer`, which was opened to `destination`, is pillion's own.
pub fn is_own(peer: SocketAddr, destination: SocketAddr) -> bool {
    let (slot, mark) = place(peer, destination);
    let there = OPENED[slot].load(Acquire);
    // The lower half is the time.
    there >> 32 == u64::from(mark.get()) && now().wrapping_sub(there as u32) <= FRESH
}

/// A connection that pillion opens, until it is closed. Then the kernel may give its two addresses to an application's at once;
/// and if it comes back only now, it goes round once more, and that one is known.
#[derive(Debug)]
pub struct Own {
    slot: u16,
    mark: NonZeroU32,
}

impl Own {
    /// Remembers one that has these addresses.
    pub fn opening(local: SocketAddr, remote: SocketAddr) -> Self {
        let own = Self::between(local, remote);
        OPENED[usize::from(own.slot)].store(entry(own.mark, now()), Release);
        own
    }

    /// One that was opened. `None`: nothing can come back.
    pub fn of(stream: &TcpStream) -> Option<Self> {
        match are_watched() {
            true => Some(Self::between(stream.local_addr().ok()?, stream.peer_addr().ok()?)),
            false => None,
        }
    }

    fn between(local: SocketAddr, remote: SocketAddr) -> Self {
        let (slot, mark) = place(local, remote);
        // There are fewer slots than that.
        Self { slot: slot as u16, mark }
    }

    /// It is open. Who closes it finds it by [`Own::of`].
    pub fn opened(self) {
        std::mem::forget(self);
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        let slot = &OPENED[usize::from(self.slot)];
        let there = slot.load(Acquire);
        if there >> 32 == u64::from(self.mark.get()) {
            // If that fails, another connection has the slot.
            let _ = slot.compare_exchange(there, 0, Release, Relaxed);
        }
    }
}

fn entry(mark: NonZeroU32, opened: u32) -> u64 {
    u64::from(mark.get()) << 32 | u64::from(opened)
}

fn place(local: SocketAddr, remote: SocketAddr) -> (usize, NonZeroU32) {
    let plain = |address: SocketAddr| (address.ip().to_canonical(), address.port());
    let hash = FixedState::default().hash_one((plain(local), plain(remote)));
    // Never 0, which an empty slot has.
    (hash as usize % SLOTS, NonZeroU32::MIN | (hash >> 32) as u32)
}

/// Milliseconds, from whenever.
fn now() -> u32 {
    let now = clock_gettime(ClockId::MonotonicCoarse);
    (now.tv_sec as u64).wrapping_mul(1000).wrapping_add(now.tv_nsec as u64 / 1_000_000) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_connection_is_known_by_both_its_addresses_until_it_is_closed() {
        let (local, remote) = (address("192.0.2.1:40000"), address("192.0.2.7:80"));
        assert!(!is_own(local, remote));
        Own::opening(local, remote).opened();
        assert!(is_own(local, remote));
        assert!(is_own(address("[::ffff:192.0.2.1]:40000"), remote), "as a listener for both families sees it");
        assert!(!is_own(local, address("192.0.2.7:81")));
        assert!(!is_own(address("192.0.2.1:40001"), remote));
        assert!(!is_own(remote, local));
        drop(Own::between(local, remote));
        assert!(!is_own(local, remote), "its addresses may be another's at once");
        drop(Own::opening(local, remote));
        assert!(!is_own(local, remote), "it could not be opened");
    }

    #[test]
    fn what_nobody_saw_close_is_another_after_a_while() {
        let (local, remote) = (address("192.0.2.1:40000"), address("192.0.2.8:80"));
        let (slot, mark) = place(local, remote);
        OPENED[slot].store(entry(mark, now().wrapping_sub(FRESH + 1)), Release);
        assert!(!is_own(local, remote));
    }

    #[test]
    fn whoever_has_the_slot_now_keeps_it() {
        let (local, remote) = (address("192.0.2.1:40000"), address("192.0.2.9:80"));
        let first = Own::opening(local, remote);
        let (slot, mark) = place(local, remote);
        let other = entry(NonZeroU32::MIN | !mark.get(), now());
        OPENED[slot].store(other, Release);
        drop(first);
        assert_eq!(OPENED[slot].load(Acquire), other);
    }
}
