//! Which protocol a client speaks, from the first bytes it sends.

#[cfg(test)]
mod tests;

use super::client_hello::{self, ClientHello, HelloScan};

/// What an HTTP/2 client with prior knowledge sends first (RFC 9113, section 3.4).
pub const H2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// With this many bytes it is always clear what they are.
pub const LONGEST_UNSURE: usize = client_hello::LONGEST;

/// The longest method. The longest that is registered has 17 bytes (UPDATEREDIRECTREF).
const LONGEST_METHOD: usize = 32;

const HTTP1_VERSION: &[u8] = b"HTTP/1.";

/// Which version of HTTP it is, where nothing else is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detected {
    Http1,
    Http2,
    /// All bytes so far fit both; more are needed. A first segment may be as short as one byte.
    Unsure,
}

pub fn detect(start: &[u8]) -> Detected {
    let known = start.len().min(H2_PREFACE.len());
    if start[..known] != H2_PREFACE[..known] {
        Detected::Http1
    } else if known == H2_PREFACE.len() {
        Detected::Http2
    } else {
        Detected::Unsure
    }
}

/// What it is, where anything may be spoken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Protocol {
    /// The whole ClientHello has been seen.
    Tls(ClientHello),
    /// A request line has been seen up to its version.
    Http1,
    Http2,
    Other,
    /// All bytes so far fit several; more are needed.
    Unsure,
}

/// Tells protocols apart as bytes come in, looking at each byte once.
#[derive(Debug, Default)]
pub struct Detector {
    hello: HelloScan,
    line: RequestLine,
}

impl Detector {
    /// `start` is all that came so far: what it was at the last call, or more. An answer other than
    /// [`Protocol::Unsure`] holds whatever follows; it comes with the first byte that leaves no other, and after
    /// [`LONGEST_UNSURE`] bytes at the latest.
    pub fn look(&mut self, start: &[u8]) -> Protocol {
        if start.first() == Some(&client_hello::HANDSHAKE) {
            return match self.hello.find(start) {
                Ok(Some(hello)) => Protocol::Tls(hello),
                Ok(None) => Protocol::Unsure,
                Err(_) => Protocol::Other,
            };
        }
        match detect(start) {
            Detected::Http1 => self.line.look(start),
            Detected::Http2 => Protocol::Http2,
            Detected::Unsure => Protocol::Unsure,
        }
    }
}

/// Tells a request line of HTTP/1 from the first line of anything else.
///
/// Other protocols have lines that begin with a word as well (`PING`, `get key`, `EHLO host`, `PROXY TCP4 …`), so it is the
/// version that decides; and the single spaces, because `CONNECT {…}` and `set key 0 0 5` are no requests.
#[derive(Debug, Default)]
struct RequestLine {
    scanned: usize,
    part: Part,
}

#[derive(Debug, Clone, Copy, Default)]
enum Part {
    /// Empty lines are overlooked, as the codec does (RFC 9112, section 2.2).
    #[default]
    Start,
    EmptyLine,
    /// With the number of bytes that were seen of it.
    Method(usize),
    BeforeTarget,
    Target,
    /// With the number of bytes that were seen of it.
    Version(usize),
}

impl RequestLine {
    fn look(&mut self, start: &[u8]) -> Protocol {
        let start = &start[..start.len().min(LONGEST_UNSURE)];
        for byte in &start[self.scanned..] {
            self.part = match (self.part, byte) {
                (Part::Start, b'\r') => Part::EmptyLine,
                (Part::EmptyLine, b'\n') => Part::Start,
                (Part::Start, byte) if is_token(*byte) => Part::Method(1),
                (Part::Method(length), byte) if is_token(*byte) && length < LONGEST_METHOD => Part::Method(length + 1),
                (Part::Method(_), b' ') => Part::BeforeTarget,
                (Part::BeforeTarget, byte) if begins_target(*byte) => Part::Target,
                (Part::Target, b' ') => Part::Version(0),
                // As much as the codec's parser takes.
                (Part::Target, byte) if *byte > b' ' && *byte != 0x7f => Part::Target,
                (Part::Version(length), byte) if HTTP1_VERSION.get(length) == Some(byte) => Part::Version(length + 1),
                (Part::Version(length), b'0' | b'1') if length == HTTP1_VERSION.len() => return Protocol::Http1,
                _ => return Protocol::Other,
            };
            self.scanned += 1;
        }
        if start.len() == LONGEST_UNSURE { Protocol::Other } else { Protocol::Unsure }
    }
}

/// A path, `*`, or what a scheme or a host begins with (RFC 9112, section 3.2).
fn begins_target(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"/*[_".contains(&byte)
}

/// Whether a token may have it (RFC 9110, section 5.6.2), such as a method.
pub fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}
