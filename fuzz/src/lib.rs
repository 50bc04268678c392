//! What the targets have in common.
//!
//! Each target gives bytes that a stranger could have sent to the decoder that would read them. Panics, overflows (they are
//! checked) and endless loops are found by themselves; besides, what is decoded must make sense.

use bytes::BytesMut;
use pillion::{
    proxy::h1::head::{HeadLimits, HeadScan},
    registry::{Address, Instance},
};
use std::collections::HashSet;

/// Whatever is decoded can be connected to, and its address is one that can be written down and read.
pub fn check(instances: &[Instance]) {
    for Instance { address, .. } in instances {
        assert_ne!(address.port(), 0);
        assert_eq!(address.to_string().parse::<Address>().as_ref(), Ok(address));
    }
}

/// No two have one id, where it is the decoder that sees to it.
pub fn check_ids(instances: &[Instance]) {
    let mut seen = HashSet::new();
    for Instance { id, .. } in instances {
        assert!(seen.insert(id), "{id} twice");
    }
}

/// Ways in which bytes may arrive.
pub fn cuttings(bytes: &[u8]) -> impl Iterator<Item = impl Iterator<Item = &[u8]>> {
    [1, 2, 7].into_iter().map(|size| bytes.chunks(size))
}

/// The head at the start of `bytes`, if there is one; the same however they arrive.
pub fn find_head(bytes: &[u8]) -> Option<Vec<u8>> {
    let whole = head([bytes].into_iter());
    for cutting in cuttings(bytes) {
        assert_eq!(head(cutting), whole);
    }
    whole
}

fn head<'p>(pieces: impl Iterator<Item = &'p [u8]>) -> Option<Vec<u8>> {
    // Low enough that they are reached.
    let limits = HeadLimits { bytes: 2048, lines: 64 };
    let (mut scan, mut buffer) = (HeadScan::default(), BytesMut::new());
    for piece in pieces {
        buffer.extend_from_slice(piece);
        if let Some(length) = scan.find_end(&mut buffer, limits).ok()? {
            return Some(buffer[..length].to_vec());
        }
    }
    None
}
