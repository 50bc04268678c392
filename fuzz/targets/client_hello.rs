//! A TLS ClientHello: as it is on the wire, and as a message that comes in records of the size that the first byte says.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pillion::net::client_hello::{ClientHello, HelloScan, LONGEST};
use pillion_fuzz::cuttings;

/// What is read of a connection that begins with these pieces.
fn read<'p>(pieces: impl Iterator<Item = &'p [u8]>) -> Option<ClientHello> {
    let (mut scan, mut start) = (HelloScan::default(), Vec::new());
    for piece in pieces {
        start.extend_from_slice(piece);
        if let Some(hello) = scan.find(&start).ok()? {
            return Some(hello);
        }
        assert!(start.len() < LONGEST);
    }
    None
}

fn check(wire: &[u8]) {
    let whole = read([wire].into_iter());
    for cutting in cuttings(wire) {
        assert_eq!(read(cutting), whole);
    }
    let Some(hello) = whole else { return };
    assert!(hello.alpn().all(|name| !name.is_empty()));
    if let Some(name) = hello.server_name {
        assert!(!name.ends_with('.') && name.bytes().all(|byte| byte.is_ascii_graphic() && !byte.is_ascii_uppercase()));
    }
}

fuzz_target!(|bytes: &[u8]| {
    check(bytes);
    let Some((size, body)) = bytes.split_first() else { return };
    let message = [&[1, 0], &(body.len() as u16).to_be_bytes()[..], body].concat();
    let records = message.chunks(usize::from(*size) + 1);
    let wire = records.flat_map(|record| [&[22, 3, 1], &(record.len() as u16).to_be_bytes()[..], record].concat());
    check(&wire.collect::<Vec<_>>());
});
