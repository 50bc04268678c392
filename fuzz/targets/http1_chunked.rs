//! A body in the chunked coding.

#![no_main]

use bytes::BytesMut;
use http::HeaderMap;
use libfuzzer_sys::fuzz_target;
use pillion::{
    fuzzing::{Decoded, Decoder},
    proxy::h1::head::Framing,
};
use pillion_fuzz::cuttings;

/// What is read of a body that comes in these pieces.
#[derive(Debug, Default, PartialEq)]
struct Body {
    data: Vec<u8>,
    trailers: Option<HeaderMap>,
    /// How many bytes after it belong to the next message; `None` if it has no end.
    left: Option<usize>,
    failed: bool,
}

fn read<'p>(pieces: impl Iterator<Item = &'p [u8]>) -> Body {
    let (mut decoder, mut buffer, mut body) = (Decoder::new(Framing::Chunked), BytesMut::new(), Body::default());
    for piece in pieces {
        buffer.extend_from_slice(piece);
        loop {
            match decoder.decode(&mut buffer) {
                Ok(Decoded::Data(data)) => body.data.extend_from_slice(&data),
                Ok(Decoded::Trailers(trailers)) => body.trailers = Some(trailers),
                Ok(Decoded::NeedMore) => break,
                Ok(Decoded::End) => {
                    body.left = Some(buffer.len());
                    break;
                }
                Err(_) => {
                    body.failed = true;
                    return body;
                }
            }
        }
    }
    body
}

fuzz_target!(|bytes: &[u8]| {
    let whole = read([bytes].into_iter());
    for cutting in cuttings(bytes) {
        assert_eq!(read(cutting), whole);
    }
});
