//! The PROXY protocol, versions 1 and 2: what a proxy says before the connection's own bytes about who is connected to
//! whom (haproxy.org, `proxy-protocol.txt`).

#[cfg(test)]
mod tests;

use super::malformed::Malformed;
use bytes::{BufMut, BytesMut};
use std::{
    io::Write as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    str::FromStr,
};

/// The longest header that is read. Most have less than a hundred bytes; some carry a certificate.
pub const LONGEST: usize = 16 * 1024;

const V1_START: &[u8] = b"PROXY ";
/// The longest line, with its end.
const V1_LONGEST: usize = 107;

const V2_SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
const V2_FIXED: usize = 16;
const LOCAL: u8 = 0x20;
const PROXY: u8 = 0x21;

/// Families of addresses, in the upper half of their byte; in the lower one the transport.
const UNSPEC: u8 = 0;
const INET: u8 = 1;
const INET6: u8 = 2;
const UNIX: u8 = 3;
const STREAM: u8 = 1;
const DGRAM: u8 = 2;
const UNIX_ADDRESSES: usize = 2 * 108;

/// Types of additional values.
const AUTHORITY: u8 = 0x02;
const CRC32C: u8 = 0x03;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Addresses {
    pub source: SocketAddr,
    pub destination: SocketAddr,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// In bytes. What follows is the connection's own.
    pub length: usize,
    /// `None` if those of the connection itself count: the proxy speaks for itself, does not know them, or they are those
    /// of unix sockets.
    pub addresses: Option<Addresses>,
    /// The name that the client asked for, which is TLS's server name in most cases.
    pub authority: Option<String>,
}

/// Reads the header from all that came so far. `None`: more is needed, which is never so once there are [`LONGEST`] bytes.
///
/// Only for connections that must have one: who could leave it out could also make it up.
pub fn decode(start: &[u8]) -> Result<Option<Header>, Malformed> {
    if start.first() == V1_START.first() { decode_v1(start) } else { decode_v2(start) }
}

fn decode_v1(start: &[u8]) -> Result<Option<Header>, Malformed> {
    begins_with(start, V1_START)?;
    let window = &start[..start.len().min(V1_LONGEST)];
    let end = match memchr::memchr(b'\n', window) {
        Some(at) if window[at - 1] == b'\r' => at - 1,
        Some(at) => return Err(Malformed::new("a line that ends with LF alone", at, "CRLF")),
        None if window.len() == V1_LONGEST => {
            return Err(Malformed::new("a longer line", V1_LONGEST, "CRLF before it"));
        }
        None => return Ok(None),
    };
    let mut line = Line { bytes: &window[..end], at: V1_START.len() };
    let addresses = match line.word() {
        b"TCP4" => Some(line.addresses::<Ipv4Addr>("an IPv4 address")?),
        b"TCP6" => Some(line.addresses::<Ipv6Addr>("an IPv6 address")?),
        b"UNKNOWN" => None,
        other => return Err(wrong(other, V1_START.len(), "TCP4, TCP6 or UNKNOWN")),
    };
    Ok(Some(Header { length: end + 2, addresses, authority: None }))
}

/// The words of a line, with one space between two.
struct Line<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Line<'a> {
    /// The next one; empty after the last.
    fn word(&mut self) -> &'a [u8] {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let word = &rest[..memchr::memchr(b' ', rest).unwrap_or(rest.len())];
        self.at += word.len() + 1;
        word
    }

    fn parsed<T: FromStr>(&mut self, expected: &'static str) -> Result<T, Malformed> {
        let at = self.at.min(self.bytes.len());
        let word = self.word();
        // Numbers are parsed with a sign otherwise.
        let text = str::from_utf8(word).ok().filter(|text| !text.starts_with('+'));
        text.and_then(|text| text.parse().ok()).ok_or_else(|| wrong(word, at, expected))
    }

    fn port(&mut self) -> Result<u16, Malformed> {
        const EXPECTED: &str = "a port";
        let at = self.at;
        let port = self.parsed(EXPECTED)?;
        match &self.bytes[at..self.at - 1] {
            word @ [b'0', _, ..] => Err(wrong(word, at, EXPECTED)),
            _ => Ok(port),
        }
    }

    fn addresses<T: FromStr + Into<IpAddr>>(&mut self, expected: &'static str) -> Result<Addresses, Malformed> {
        let (source, destination): (T, T) = (self.parsed(expected)?, self.parsed(expected)?);
        let (source_port, destination_port) = (self.port()?, self.port()?);
        if self.at <= self.bytes.len() {
            return Err(Malformed::new("something after the second port", self.at - 1, "CRLF"));
        }
        let [source, destination] =
            [(source.into(), source_port), (destination.into(), destination_port)].map(SocketAddr::from);
        Ok(Addresses { source, destination })
    }
}

fn decode_v2(start: &[u8]) -> Result<Option<Header>, Malformed> {
    begins_with(start, V2_SIGNATURE)?;
    let Some(&command) = start.get(12) else { return Ok(None) };
    if command != LOCAL && command != PROXY {
        let what = format!("version and command {command:#04x}");
        return Err(Malformed::new(what, 12, "0x20 (LOCAL) or 0x21 (PROXY)"));
    }
    let Some(&family) = start.get(13) else { return Ok(None) };
    let (transport, family) = (family & 0x0f, family >> 4);
    if command == PROXY && (family > UNIX || transport > DGRAM) {
        let what = format!("family {family} and transport {transport}");
        return Err(Malformed::new(what, 13, "a family up to 3 and a transport up to 2"));
    }
    let Some(length) = start[14..].first_chunk() else { return Ok(None) };
    let length = V2_FIXED + usize::from(u16::from_be_bytes(*length));
    if length > LONGEST {
        return Err(Malformed::new(format!("a header of {length} bytes"), 14, "16 KiB at most"));
    }
    let Some(bytes) = start.get(..length) else { return Ok(None) };
    let mut header = Header { length, addresses: None, authority: None };
    if command == LOCAL || family == UNSPEC || transport == 0 {
        // What is in it is not for us.
        return Ok(Some(header));
    }
    let block = &bytes[V2_FIXED..];
    let (addresses, values_at) = match family {
        INET => (inet::<4>(block), 2 * (4 + 2)),
        INET6 => (inet::<16>(block), 2 * (16 + 2)),
        _ => (None, UNIX_ADDRESSES),
    };
    if block.len() < values_at {
        let what = format!("{} bytes for addresses", block.len());
        return Err(Malformed::new(what, 14, "as many as the family has"));
    }
    header.addresses = addresses;
    read_values(bytes, V2_FIXED + values_at, &mut header)?;
    Ok(Some(header))
}

/// Addresses of `N` bytes each, then two ports.
fn inet<const N: usize>(block: &[u8]) -> Option<Addresses>
where
    IpAddr: From<[u8; N]>,
{
    let (source, rest) = block.split_first_chunk::<N>()?;
    let (destination, rest) = rest.split_first_chunk::<N>()?;
    let (source_port, rest) = rest.split_first_chunk()?;
    let destination_port = rest.first_chunk()?;
    let [source, destination] = [(source, source_port), (destination, destination_port)]
        .map(|(ip, port)| SocketAddr::from((IpAddr::from(*ip), u16::from_be_bytes(*port))));
    Some(Addresses { source, destination })
}

/// The additional values from `at` on: a type, two bytes of length, and so many bytes.
fn read_values(bytes: &[u8], mut at: usize, header: &mut Header) -> Result<(), Malformed> {
    let mut summed = false;
    while at < bytes.len() {
        let value = bytes[at..]
            .split_first_chunk()
            .and_then(|([kind, high, low], rest)| Some((*kind, rest.get(..u16::from_be_bytes([*high, *low]).into())?)));
        let Some((kind, value)) = value else {
            return Err(Malformed::new("a value that is cut off", at, "a type, a length and as many bytes"));
        };
        at += 3;
        match kind {
            CRC32C if !summed => {
                let Some(sum) = value.first_chunk().filter(|_| value.len() == 4) else {
                    return Err(Malformed::new("a checksum of that length", at - 2, "4 bytes"));
                };
                let zeroed = [&bytes[..at], &[0; 4], &bytes[at + 4..]];
                if crc32c(zeroed.into_iter().flatten()) != u32::from_be_bytes(*sum) {
                    return Err(Malformed::new("a checksum", at, "that of the header"));
                }
                summed = true;
            }
            CRC32C => return Err(Malformed::new("a second checksum", at - 3, "one")),
            AUTHORITY => match str::from_utf8(value) {
                Ok(name) => header.authority = Some(name.to_owned()),
                Err(_) => return Err(Malformed::new("an authority", at, "UTF-8")),
            },
            _ => {}
        }
        at += value.len();
    }
    Ok(())
}

/// CRC-32C (Castagnoli; RFC 9260, appendix A), a bit at a time: hardly a header has one.
fn crc32c<'a>(bytes: impl Iterator<Item = &'a u8>) -> u32 {
    !bytes.fold(!0, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| (sum >> 1) ^ if sum & 1 == 1 { 0x82f6_3b78 } else { 0 })
    })
}

fn begins_with(start: &[u8], expected: &[u8]) -> Result<(), Malformed> {
    match start.iter().zip(expected).position(|(byte, expected)| byte != expected) {
        Some(at) => Err(wrong(&start[at..=at], at, "the start of a PROXY protocol header")),
        None => Ok(()),
    }
}

fn wrong(word: &[u8], at: usize, expected: &'static str) -> Malformed {
    Malformed::new(format!("`{}`", word.escape_ascii()), at, expected)
}

/// Writes a header of version 1. Without addresses it says that they are unknown, which some servers refuse: for a
/// connection of its own, a proxy rather gives the addresses of that.
pub fn write_v1(out: &mut BytesMut, addresses: Option<Addresses>) {
    out.put_slice(V1_START);
    let Some(Addresses { source, destination }) = addresses.map(of_one_family) else {
        out.put_slice(b"UNKNOWN\r\n");
        return;
    };
    out.put_slice(if source.is_ipv4() { b"TCP4" } else { b"TCP6" });
    for ip in [source.ip(), destination.ip()] {
        match ip {
            // The usual way to write it has dots in it, which this protocol does not know.
            IpAddr::V6(ip) if ip.to_ipv4_mapped().is_some() => {
                let [.., high, low] = ip.segments();
                write_text(out, format_args!(" ::ffff:{high:x}:{low:x}"));
            }
            ip => write_text(out, format_args!(" {ip}")),
        }
    }
    write_text(out, format_args!(" {} {}\r\n", source.port(), destination.port()));
}

fn write_text(out: &mut BytesMut, text: std::fmt::Arguments<'_>) {
    // Into memory, which grows.
    let _ = out.writer().write_fmt(text);
}

/// Writes a header of version 2, for TCP. Without addresses it says that the connection is the proxy's own.
pub fn write_v2(out: &mut BytesMut, addresses: Option<Addresses>) {
    out.put_slice(V2_SIGNATURE);
    let Some(Addresses { source, destination }) = addresses.map(of_one_family) else {
        out.put_slice(&[LOCAL, UNSPEC, 0, 0]);
        return;
    };
    let (family, length) = if source.is_ipv4() { (INET, 2 * (4 + 2)) } else { (INET6, 2 * (16 + 2)) };
    out.put_slice(&[PROXY, family << 4 | STREAM, 0, length]);
    for ip in [source.ip(), destination.ip()] {
        match ip {
            IpAddr::V4(ip) => out.put_slice(&ip.octets()),
            IpAddr::V6(ip) => out.put_slice(&ip.octets()),
        }
    }
    out.put_u16(source.port());
    out.put_u16(destination.port());
}

/// A header has two addresses of one family. On a socket for both, IPv4 looks like IPv6.
fn of_one_family(Addresses { source, destination }: Addresses) -> Addresses {
    let plain = [source, destination].map(|address| (address.ip().to_canonical(), address.port()));
    let mixed = plain[0].0.is_ipv4() != plain[1].0.is_ipv4();
    let [source, destination] = plain.map(|(ip, port)| match ip {
        IpAddr::V4(ip) if mixed => SocketAddr::from((ip.to_ipv6_mapped(), port)),
        _ => SocketAddr::from((ip, port)),
    });
    Addresses { source, destination }
}
