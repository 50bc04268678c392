//! The head of a request.

#![no_main]

use bytes::{Bytes, BytesMut};
use http::header::{HOST, HeaderValue, TRANSFER_ENCODING};
use libfuzzer_sys::fuzz_target;
use pillion::proxy::h1::head::{parse_request, write_request};
use pillion_fuzz::find_head;

fuzz_target!(|bytes: &[u8]| {
    let Some(head) = find_head(bytes) else { return };
    let Ok(parsed) = parse_request(Bytes::from(head), true) else { return };

    // What goes to the upstream must be read there as it was here.
    let (mut parts, ()) = parsed.request.into_parts();
    parts.headers.remove(TRANSFER_ENCODING);
    parts.headers.entry(HOST).or_insert(HeaderValue::from_static("users"));
    let mut written = BytesMut::new();
    write_request(&mut written, &parts, parsed.framing);
    assert_eq!(find_head(&written).as_deref(), Some(&written[..]));
    let again = parse_request(written.freeze(), false).expect("what is written can be read");
    assert_eq!(again.framing, parsed.framing);
    assert_eq!(again.request.method(), parts.method);
    assert_eq!(again.request.headers()[HOST], parts.headers[HOST]);
});
