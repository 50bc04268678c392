//! The head of a response.

#![no_main]

use bytes::{Bytes, BytesMut};
use http::{Method, header::TRANSFER_ENCODING};
use libfuzzer_sys::fuzz_target;
use pillion::proxy::h1::head::{parse_response, write_response};
use pillion_fuzz::find_head;

fuzz_target!(|bytes: &[u8]| {
    let Some(head) = find_head(bytes) else { return };
    let head = Bytes::from(head);
    for method in [Method::GET, Method::HEAD] {
        let Ok(parsed) = parse_response(head.clone(), &method, true) else { continue };

        // What goes to the client must be read there as it was here.
        let (mut parts, ()) = parsed.response.into_parts();
        parts.headers.remove(TRANSFER_ENCODING);
        let mut written = BytesMut::new();
        write_response(&mut written, &parts, parsed.framing, None);
        assert_eq!(find_head(&written).as_deref(), Some(&written[..]));
        let again = parse_response(written.freeze(), &method, false).expect("what is written can be read");
        assert_eq!(again.framing, parsed.framing);
        assert_eq!(again.response.status(), parts.status);
    }
});
