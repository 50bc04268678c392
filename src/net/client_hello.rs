//! What a TLS client says first, as far as it tells where the connection is to go: the server's name, and the protocols
//! that are offered (RFC 8446, sections 4.1.2 and 5.1; RFC 6066, section 3; RFC 7301, section 3.1).
//!
//! Nothing is decrypted. The message may be cut into segments anywhere and, independently of them, into records. A client
//! that hides its ClientHello in another one (ECH) means the outer one for those on the way: it is that which is read.

#[cfg(test)]
mod tests;

use super::malformed::Malformed;
use rustls::pki_types::DnsName;
use std::iter;

/// The most that is read of a connection for its ClientHello, with the headers of its records. Clients need 0.5 to 4 KiB.
pub const LONGEST: usize = 64 * 1024;

/// The content type with which a ClientHello begins.
pub const HANDSHAKE: u8 = 22;

const RECORD_HEADER: usize = 5;
const LONGEST_RECORD: usize = 1 << 14;
const MESSAGE_HEADER: usize = 4;
const CLIENT_HELLO: usize = 1;
/// Version and random, and each of the lists that follow as short as it may be.
const SHORTEST_BODY: usize = 2 + 32 + 1 + (2 + 2) + (1 + 1);
const LONGEST_SESSION_ID: usize = 32;
const LONGEST_NAME: usize = 255;

/// Extensions.
const SERVER_NAME: usize = 0;
const ALPN: usize = 16;

/// The only type of server name that there is.
const HOST_NAME: usize = 0;

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ClientHello {
    /// In lower case, without a dot at the end. `None` as well where the client gives an address or anything else that
    /// is no DNS name.
    pub server_name: Option<String>,
    /// Each with its length before it, as they were sent.
    alpn: Vec<u8>,
}

impl ClientHello {
    /// The names of the protocols that the client offers, its favourite first. Some are there only so that servers get used
    /// to unknown ones (GREASE, RFC 8701).
    pub fn alpn(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = &self.alpn[..];
        iter::from_fn(move || {
            let (length, names) = rest.split_first()?;
            let (name, others) = names.split_at_checked((*length).into())?;
            rest = others;
            Some(name)
        })
    }
}

/// Waits for the whole ClientHello as bytes come in, looking at each record once.
#[derive(Debug, Default)]
pub struct HelloScan {
    cursor: Cursor,
    /// Bytes of the message before the cursor.
    seen: usize,
}

impl HelloScan {
    /// `start` is all that came so far. `None`: more is needed, which is never so once there are [`LONGEST`] bytes.
    pub fn find(&mut self, start: &[u8]) -> Result<Option<ClientHello>, Malformed> {
        let wire = &start[..start.len().min(LONGEST)];
        let Some(length) = message_length(wire)? else { return Ok(None) };
        while self.seen < length {
            match self.cursor.fragment(wire)? {
                Some(fragment) => {
                    self.seen += fragment.len();
                    self.cursor.at += fragment.len();
                }
                None if wire.len() == LONGEST => return Err(too_long(LONGEST)),
                None => return Ok(None),
            }
        }
        parse(wire, length).map(Some)
    }
}

/// The length of the message with its header, as soon as it is known and the first bytes that must be what they are have
/// been seen; so something else is refused at the first byte that differs.
fn message_length(wire: &[u8]) -> Result<Option<usize>, Malformed> {
    let mut cursor = Cursor::default();
    let Some(kind) = cursor.number(wire, 1)? else { return Ok(None) };
    if kind != CLIENT_HELLO {
        return Err(Malformed::new(format!("a handshake message of type {kind}"), cursor.at - 1, "a ClientHello (1)"));
    }
    let Some(body) = cursor.number(wire, 3)? else { return Ok(None) };
    if body < SHORTEST_BODY {
        return Err(Malformed::new("too short a length", cursor.at - 1, "that of a ClientHello"));
    }
    let length = MESSAGE_HEADER + body;
    if RECORD_HEADER + length > LONGEST {
        return Err(too_long(cursor.at - 1));
    }
    Ok(Some(length))
}

/// Reads a message that is there as a whole.
fn parse(wire: &[u8], length: usize) -> Result<ClientHello, Malformed> {
    let mut message = Fields { wire, cursor: Cursor::default(), left: length };
    message.take(MESSAGE_HEADER + 2 + 32)?;
    let session = message.vector(1)?;
    if session.left > LONGEST_SESSION_ID {
        return Err(session.wrong("too long a session", "32 bytes at most"));
    }
    let suites = message.vector(2)?;
    if suites.left < 2 || suites.left % 2 != 0 {
        return Err(suites.wrong("a list of cipher suites of that length", "one or more of two bytes"));
    }
    message.vector(1)?.not_empty()?;

    let mut hello = ClientHello::default();
    if message.left == 0 {
        // Those before TLS 1.2 may end here.
        return Ok(hello);
    }
    let mut extensions = message.vector(2)?;
    message.at_end()?;
    let (mut names, mut protocols) = (false, false);
    while extensions.left > 0 {
        let kind = extensions.number(2)?;
        let extension = extensions.vector(2)?;
        let known = match kind {
            SERVER_NAME => &mut names,
            ALPN => &mut protocols,
            _ => continue,
        };
        // The server could go by another one of them than we do.
        if std::mem::replace(known, true) {
            return Err(extension.wrong("an extension that was there already", "each at most once"));
        }
        match kind {
            SERVER_NAME => hello.server_name = server_name(extension)?,
            _ => hello.alpn = alpn(extension)?,
        }
    }
    Ok(hello)
}

fn server_name(mut extension: Fields<'_>) -> Result<Option<String>, Malformed> {
    let mut names = extension.vector(2)?.not_empty()?;
    extension.at_end()?;
    let mut found = None;
    while names.left > 0 {
        let kind = names.number(1)?;
        let name = names.vector(2)?.not_empty()?;
        if kind != HOST_NAME {
            continue;
        }
        if found.is_some() {
            return Err(name.wrong("a second host name", "one"));
        }
        found = Some(name);
    }
    match found {
        Some(name) if name.left <= LONGEST_NAME => Ok(dns_name(name.copy()?)),
        _ => Ok(None),
    }
}

fn dns_name(name: Vec<u8>) -> Option<String> {
    let mut name = String::from_utf8(name).ok()?;
    if name.ends_with('.') {
        name.pop();
    }
    name.make_ascii_lowercase();
    DnsName::try_from(name.as_str()).is_ok().then_some(name)
}

fn alpn(mut extension: Fields<'_>) -> Result<Vec<u8>, Malformed> {
    let list = extension.vector(2)?.not_empty()?;
    extension.at_end()?;
    let mut names = list;
    while names.left > 0 {
        names.vector(1)?.not_empty()?;
    }
    list.copy()
}

/// A place in the message, whose bytes are spread over records.
#[derive(Debug, Clone, Copy, Default)]
struct Cursor {
    at: usize,
    /// Where the record ends that `at` is in.
    end: usize,
}

impl Cursor {
    /// What is there of the record, at least a byte; or of the next one, when this one is over.
    fn fragment<'a>(&mut self, wire: &'a [u8]) -> Result<Option<&'a [u8]>, Malformed> {
        if self.at == self.end {
            let Some(length) = record_length(wire, self.at)? else { return Ok(None) };
            self.at += RECORD_HEADER;
            self.end = self.at + length;
        }
        let there = &wire[self.at..self.end.min(wire.len())];
        Ok((!there.is_empty()).then_some(there))
    }

    /// A number of so many bytes.
    fn number(&mut self, wire: &[u8], bytes: usize) -> Result<Option<usize>, Malformed> {
        let mut number = 0;
        for _ in 0..bytes {
            let Some(fragment) = self.fragment(wire)? else { return Ok(None) };
            number = number << 8 | usize::from(fragment[0]);
            self.at += 1;
        }
        Ok(Some(number))
    }
}

/// How much the record holds whose header is at `at`, if that is whole. What is there of it is checked already.
fn record_length(wire: &[u8], at: usize) -> Result<Option<usize>, Malformed> {
    let header = &wire[at..wire.len().min(at + RECORD_HEADER)];
    if let Some(kind) = header.first()
        && *kind != HANDSHAKE
    {
        return Err(Malformed::new(format!("a record of type {kind}"), at, "a handshake (22)"));
    }
    // The minor version is to be ignored (RFC 8446, section 5.1).
    if let Some(version) = header.get(1)
        && *version != 3
    {
        return Err(Malformed::new(format!("major version {version}"), at + 1, "that of TLS (3)"));
    }
    let Some(high) = header.get(3) else { return Ok(None) };
    // Without the low byte, as if that were the one that helps most.
    let low = header.get(4);
    let length = usize::from(*high) << 8 | low.map_or(usize::from(*high == 0), |low| (*low).into());
    if length == 0 || length > LONGEST_RECORD {
        return Err(Malformed::new("the length of a record", at + 3, "1 to 16384"));
    }
    Ok(low.map(|_| length))
}

/// A part of a message that is there as a whole.
#[derive(Clone, Copy)]
struct Fields<'a> {
    wire: &'a [u8],
    cursor: Cursor,
    /// Bytes of it that are not read yet.
    left: usize,
}

impl<'a> Fields<'a> {
    fn number(&mut self, bytes: usize) -> Result<usize, Malformed> {
        let mut field = self.take(bytes)?;
        match field.cursor.number(self.wire, bytes)? {
            Some(number) => Ok(number),
            None => Err(field.wrong("the end", "the rest of the message")),
        }
    }

    /// What follows its length, which is a number of so many bytes.
    fn vector(&mut self, length_bytes: usize) -> Result<Self, Malformed> {
        let length = self.number(length_bytes)?;
        self.take(length)
    }

    /// The next `length` bytes.
    fn take(&mut self, length: usize) -> Result<Self, Malformed> {
        if length > self.left {
            return Err(self.wrong("a length that exceeds what is left", "a smaller one"));
        }
        let taken = Self { left: length, ..*self };
        self.left -= length;
        let mut skipped = 0;
        while skipped < length {
            skipped += self.next(length - skipped)?.len();
        }
        Ok(taken)
    }

    /// Moves on by at most so many bytes, as far as they are in one record.
    fn next(&mut self, most: usize) -> Result<&'a [u8], Malformed> {
        let Some(fragment) = self.cursor.fragment(self.wire)? else {
            return Err(self.wrong("the end", "the rest of the message"));
        };
        let part = &fragment[..fragment.len().min(most)];
        self.cursor.at += part.len();
        Ok(part)
    }

    fn copy(mut self) -> Result<Vec<u8>, Malformed> {
        let mut bytes = Vec::with_capacity(self.left);
        while bytes.len() < self.left {
            bytes.extend_from_slice(self.next(self.left - bytes.len())?);
        }
        Ok(bytes)
    }

    fn not_empty(self) -> Result<Self, Malformed> {
        if self.left == 0 { Err(self.wrong("nothing", "at least one element")) } else { Ok(self) }
    }

    fn at_end(&self) -> Result<(), Malformed> {
        if self.left > 0 { Err(self.wrong("further bytes", "the end")) } else { Ok(()) }
    }

    fn wrong(&self, what: &'static str, expected: &'static str) -> Malformed {
        Malformed::new(what, self.cursor.at, expected)
    }
}

fn too_long(at: usize) -> Malformed {
    Malformed::new("a longer ClientHello", at, "64 KiB at most")
}
