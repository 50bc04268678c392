//! From bytes to a body: counted, chunked, or until the end of the connection.

use super::head::{Framing, parse_trailers};
use bytes::{Buf, Bytes, BytesMut};
use http::HeaderMap;
use std::borrow::Cow;

/// A chunk's size line, extensions included. nginx and Envoy have limits of this order.
const MAX_CHUNK_LINE: usize = 4096;
/// A trailer section; the same as the default limit of a head.
const MAX_TRAILERS: usize = 64 * 1024;

/// Takes a body out of a buffer, as far as it is there.
#[derive(Debug)]
pub enum Decoder {
    Done,
    Counted { left: u64 },
    Chunked(Chunk),
    UntilClose,
}

/// Where in the chunked coding the next byte stands.
#[derive(Debug)]
pub enum Chunk {
    SizeLine,
    Data {
        left: u64,
    },
    /// The CRLF after a chunk's data.
    DataEnd,
    Trailers {
        /// How many bytes are known not to have the end.
        searched: usize,
    },
}

#[derive(Debug, PartialEq)]
pub enum Decoded {
    Data(Bytes),
    Trailers(HeaderMap),
    NeedMore,
    End,
}

impl Decoder {
    pub fn new(framing: Framing) -> Self {
        match framing {
            Framing::None => Self::Done,
            Framing::Length(left) => Self::Counted { left },
            Framing::Chunked => Self::Chunked(Chunk::SizeLine),
            Framing::UntilClose => Self::UntilClose,
        }
    }

    pub fn is_done(&self) -> bool {
        matches!(self, Self::Done)
    }

    /// Bytes to come, where the framing says it.
    pub fn length(&self) -> Option<u64> {
        match self {
            Self::Done => Some(0),
            Self::Counted { left } => Some(*left),
            Self::Chunked(_) | Self::UntilClose => None,
        }
    }

    /// The next piece of the body in `buf`. An error says what is wrong with the chunked coding.
    pub fn decode(&mut self, buf: &mut BytesMut) -> Result<Decoded, Cow<'static, str>> {
        match self {
            Self::Done => Ok(Decoded::End),
            Self::UntilClose => {
                Ok(if buf.is_empty() { Decoded::NeedMore } else { Decoded::Data(buf.split().freeze()) })
            }
            Self::Counted { left } => {
                if buf.is_empty() {
                    return Ok(Decoded::NeedMore);
                }
                let data = take(buf, left);
                if *left == 0 {
                    *self = Self::Done;
                }
                Ok(Decoded::Data(data))
            }
            Self::Chunked(chunk) => {
                let decoded = chunk.decode(buf)?;
                if matches!(decoded, Decoded::Trailers(_) | Decoded::End) {
                    *self = Self::Done;
                }
                Ok(decoded)
            }
        }
    }
}

impl Chunk {
    fn decode(&mut self, buf: &mut BytesMut) -> Result<Decoded, Cow<'static, str>> {
        loop {
            match self {
                Self::SizeLine => {
                    let Some(line) = line(buf, MAX_CHUNK_LINE)? else { return Ok(Decoded::NeedMore) };
                    let left = chunk_size(&line)?;
                    *self = if left == 0 { Self::Trailers { searched: 0 } } else { Self::Data { left } };
                }
                Self::Data { left } => {
                    if buf.is_empty() {
                        return Ok(Decoded::NeedMore);
                    }
                    let data = take(buf, left);
                    if *left == 0 {
                        *self = Self::DataEnd;
                    }
                    return Ok(Decoded::Data(data));
                }
                Self::DataEnd => {
                    if buf.len() < 2 {
                        return Ok(Decoded::NeedMore);
                    }
                    if !buf.starts_with(b"\r\n") {
                        return Err("a chunk's data does not end with CRLF".into());
                    }
                    buf.advance(2);
                    *self = Self::SizeLine;
                }
                Self::Trailers { searched } => {
                    if buf.starts_with(b"\r\n") {
                        buf.advance(2);
                        return Ok(Decoded::End);
                    }
                    let from = searched.saturating_sub(3);
                    let end = memchr::memmem::find(&buf[from..], b"\r\n\r\n").map(|at| from + at + 4);
                    // Also of one that came in one piece: a header map has room for so many fields only, and panics.
                    if end.unwrap_or(buf.len()) > MAX_TRAILERS {
                        return Err("the trailer section is too long".into());
                    }
                    let Some(end) = end else {
                        *searched = buf.len();
                        return Ok(Decoded::NeedMore);
                    };
                    let lines = buf.split_to(end).freeze();
                    return Ok(Decoded::Trailers(parse_trailers(lines).map_err(|error| error.detail)?));
                }
            }
        }
    }
}

/// As much as is there, and not more than `left`, which is reduced.
fn take(buf: &mut BytesMut, left: &mut u64) -> Bytes {
    let here = usize::try_from(*left).unwrap_or(usize::MAX).min(buf.len());
    *left -= here as u64;
    if here == buf.len() { buf.split().freeze() } else { buf.split_to(here).freeze() }
}

/// Takes one line that ends with CRLF, without it.
fn line(buf: &mut BytesMut, limit: usize) -> Result<Option<BytesMut>, Cow<'static, str>> {
    match memchr::memchr(b'\n', buf) {
        Some(at) if at > 0 && buf[at - 1] == b'\r' && at <= limit => {
            let mut line = buf.split_to(at + 1);
            line.truncate(at - 1);
            Ok(Some(line))
        }
        Some(at) if at <= limit => Err("a chunk size line that ends with LF alone".into()),
        None if buf.len() <= limit => Ok(None),
        _ => Err("a chunk size line is too long".into()),
    }
}

/// `1a` or `1a;name=value`. Nothing else may follow the digits: what one parser skips another may read.
fn chunk_size(line: &[u8]) -> Result<u64, Cow<'static, str>> {
    let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    // 15 digits are 2⁶⁰ bytes: more than any body, and no overflow.
    if digits == 0 || digits > 15 {
        return Err("a chunk size is not a hexadecimal number".into());
    }
    let rest = line[digits..].trim_ascii_start();
    if !rest.is_empty() && rest[0] != b';' || line.contains(&b'\r') {
        return Err("something other than an extension follows a chunk size".into());
    }
    let digits = std::str::from_utf8(&line[..digits]).map_err(|_| "a chunk size is not a hexadecimal number")?;
    u64::from_str_radix(digits, 16).map_err(|_| "a chunk size is not a hexadecimal number".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn all(framing: Framing, pieces: &[&[u8]]) -> Result<(Vec<u8>, Option<HeaderMap>, bool), Cow<'static, str>> {
        let (mut decoder, mut buf) = (Decoder::new(framing), BytesMut::new());
        let (mut body, mut trailers) = (Vec::new(), None);
        for piece in pieces {
            buf.extend_from_slice(piece);
            loop {
                match decoder.decode(&mut buf)? {
                    Decoded::Data(data) => body.extend_from_slice(&data),
                    Decoded::Trailers(fields) => trailers = Some(fields),
                    Decoded::NeedMore | Decoded::End => break,
                }
            }
        }
        Ok((body, trailers, decoder.is_done()))
    }

    #[test]
    fn a_counted_body_leaves_the_next_message_alone() {
        let (mut decoder, mut buf) = (Decoder::new(Framing::Length(3)), BytesMut::from("abcGET"));
        assert_eq!(decoder.decode(&mut buf), Ok(Decoded::Data(Bytes::from("abc"))));
        assert_eq!(decoder.decode(&mut buf), Ok(Decoded::End));
        assert_eq!(&buf[..], b"GET");
    }

    #[test]
    fn chunks_with_extensions_and_trailers() {
        let (body, trailers, done) =
            all(Framing::Chunked, &[b"3;a=b\r\nabc\r\nA\r\n0123456789\r\n0\r\nx-sum: 7\r\nhost: evil\r\n\r\n"])
                .unwrap();
        assert_eq!((&body[..], done), (&b"abc0123456789"[..], true));
        let trailers = trailers.unwrap();
        assert_eq!((trailers["x-sum"].as_bytes(), trailers.len()), (&b"7"[..], 1), "framing fields are left out");
    }

    #[test]
    fn what_two_parsers_could_read_differently_is_an_error() {
        for wrong in [
            "\r\n",
            "x\r\n",
            "-1\r\n",
            "0x3\r\n",
            "3 3\r\nabc\r\n",
            "3\nabc\r\n",
            "3\r\nabcd\r\n",
            "3\r\nabc\n0\r\n\r\n",
            "1000000000000000\r\n",
            "3;\rx\r\nabc\r\n",
        ] {
            assert!(all(Framing::Chunked, &[wrong.as_bytes()]).is_err(), "{wrong:?}");
        }
        assert!(all(Framing::Chunked, &[&[b'1'; MAX_CHUNK_LINE + 2]]).is_err(), "an endless size line");
    }

    #[test]
    fn trailers_are_limited_however_they_come() {
        let section = |lines: usize| format!("0\r\n{}\r\n", "a:\r\n".repeat(lines)).into_bytes();
        let most = (MAX_TRAILERS - 2) / 4;
        for lines in [most + 1, 30_000, 50_000] {
            let coded = section(lines);
            assert!(all(Framing::Chunked, &[&coded]).is_err(), "{lines} at once");
            assert!(all(Framing::Chunked, &coded.chunks(60_000).collect::<Vec<_>>()).is_err(), "{lines} in pieces");
        }
        let coded = section(most);
        for piece in [coded.len(), 60_000, 1] {
            let (_, trailers, done) = all(Framing::Chunked, &coded.chunks(piece).collect::<Vec<_>>()).unwrap();
            assert_eq!((trailers.unwrap().len(), done), (most, true), "in pieces of {piece}");
        }
    }

    proptest! {
        #[test]
        fn any_cutting_of_a_chunked_body_gives_the_same(
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..50), 0..8),
            cuts in prop::collection::vec(1usize..9, 1..200),
        ) {
            let mut coded = Vec::new();
            for chunk in &chunks {
                coded.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
                coded.extend_from_slice(chunk);
                coded.extend_from_slice(b"\r\n");
            }
            coded.extend_from_slice(b"0\r\n\r\n");
            let (mut pieces, mut rest) = (Vec::new(), &coded[..]);
            for cut in cuts.iter().cycle() {
                if rest.is_empty() { break; }
                let (piece, later) = rest.split_at((*cut).min(rest.len()));
                pieces.push(piece);
                rest = later;
            }
            prop_assert_eq!(all(Framing::Chunked, &pieces), Ok((chunks.concat(), None, true)));
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = all(Framing::Chunked, &[&bytes]);
        }
    }
}
