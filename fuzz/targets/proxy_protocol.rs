//! A header of the PROXY protocol, of either version.

#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use pillion::net::proxy_protocol::{LONGEST, decode, write_v1, write_v2};

fuzz_target!(|bytes: &[u8]| {
    let whole = decode(bytes);
    assert!(whole != Ok(None) || bytes.len() < LONGEST);
    // With fewer bytes it is the same or not known yet.
    let mut length = 0;
    for step in (1..8).cycle().take_while(|_| bytes.len() < 512) {
        let start = decode(&bytes[..length]);
        assert!(start == Ok(None) || start == whole);
        length += step;
        if length >= bytes.len() {
            break;
        }
    }
    let Ok(Some(header)) = whole else { return };
    assert!(header.length <= bytes.len());
    for write in [write_v1, write_v2] {
        let mut written = BytesMut::new();
        write(&mut written, header.addresses);
        let again = decode(&written).expect("what is written can be read").expect("it is whole");
        assert_eq!(again.length, written.len());
        assert_eq!(again.addresses.is_some(), header.addresses.is_some());
    }
});
