//! DNS messages (RFC 1035, 2782, 3596, 6891): the questions that are asked, and as much of the answers as is of use.

mod query;
#[cfg(test)]
mod tests;

pub use query::{Query, Unread, refusal};
use std::{
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

/// What a server may send over UDP. A datagram of this size crosses every network in one piece (DNS flag day 2020).
pub const UDP_SIZE: u16 = 1232;

const HEADER: usize = 12;
const INTERNET: u16 = 1;
const LONGEST_LABEL: usize = 63;
const LONGEST_NAME: usize = 255;

/// The types of records that are asked for or understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum Type {
    A = 1,
    Cname = 5,
    Soa = 6,
    Aaaa = 28,
    Srv = 33,
    Opt = 41,
}

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// As in [`Record::name`].
    pub name: String,
    pub of: Type,
    /// The name as it is sent.
    labels: Vec<u8>,
}

/// An answer, as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    pub id: u16,
    /// Of the only question; `None` if there is another number of them, or its class is another.
    pub question: Option<(String, u16)>,
    /// Not everything had room. Then there are no records here.
    pub truncated: bool,
    /// Its sender knows the name itself, or asks others. (If not, that there is nothing only means that others know.)
    pub informed: bool,
    /// With the upper bits that EDNS adds.
    pub code: u16,
    pub answers: Vec<Record>,
    pub authorities: Vec<Record>,
    pub additionals: Vec<Record>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// In lower case, without a dot at the end; empty for the root. What is not printable, or would be taken for
    /// something else, is written as in zone files (`\.`, `\032`).
    pub name: String,
    /// In seconds.
    pub ttl: u32,
    pub data: Data,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Data {
    A(Ipv4Addr),
    Aaaa(Ipv6Addr),
    Cname(String),
    Srv(Srv),
    /// For how long "there is nothing" holds, in seconds.
    Soa {
        minimum: u32,
    },
    Other,
}

impl Data {
    pub fn is_of(&self, of: Type) -> bool {
        match self {
            Self::A(_) => of == Type::A,
            Self::Aaaa(_) => of == Type::Aaaa,
            Self::Cname(_) => of == Type::Cname,
            Self::Srv(_) => of == Type::Srv,
            Self::Soa { .. } => of == Type::Soa,
            Self::Other => false,
        }
    }

    pub fn address(&self) -> Option<IpAddr> {
        match self {
            Self::A(ip) => Some((*ip).into()),
            Self::Aaaa(ip) => Some((*ip).into()),
            _ => None,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Srv {
    pub priority: u16,
    pub weight: u16,
    pub port: u16,
    /// As in [`Record::name`].
    pub target: String,
}

/// Why bytes are no message, or a name cannot be asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(&'static str);

impl Question {
    /// Fails if DNS cannot carry the name. One with escapes, which only answers have, is not asked for, either.
    pub fn new(name: &str, of: Type) -> Result<Self, Malformed> {
        let mut labels = Vec::with_capacity(name.len() + 2);
        for label in name.split('.').filter(|_| !name.is_empty()) {
            if label.is_empty() || label.len() > LONGEST_LABEL || label.contains('\\') {
                return Err(Malformed("a name that cannot be asked for"));
            }
            labels.push(label.len() as u8);
            labels.extend(label.as_bytes());
        }
        labels.push(0);
        if labels.len() > LONGEST_NAME {
            return Err(Malformed("a name that is too long"));
        }
        Ok(Self { name: name.to_ascii_lowercase(), of, labels })
    }
}

/// A question with the wish that the server finds the answer elsewhere if need be. With `edns` it tells how much room there
/// is for the answer.
pub fn query(id: u16, question: &Question, edns: bool) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(64);
    let additionals = u16::from(edns);
    for field in [id, 0x0100, 1, 0, 0, additionals] {
        bytes.extend(field.to_be_bytes());
    }
    bytes.extend(&question.labels);
    bytes.extend((question.of as u16).to_be_bytes());
    bytes.extend(INTERNET.to_be_bytes());
    if edns {
        bytes.push(0);
        bytes.extend((Type::Opt as u16).to_be_bytes());
        bytes.extend(UDP_SIZE.to_be_bytes());
        bytes.extend([0; 6]);
    }
    bytes
}

/// Reads an answer. Every byte of it may be a stranger's.
pub fn read(bytes: &[u8]) -> Result<Message, Malformed> {
    let mut reader = Reader { bytes, at: 0 };
    let id = reader.u16()?;
    let flags = reader.u16()?;
    let counts = [reader.u16()?, reader.u16()?, reader.u16()?, reader.u16()?];
    if flags & 0x8000 == 0 {
        return Err(Malformed("a question, no answer"));
    }
    let mut question = None;
    for _ in 0..counts[0] {
        let (name, of, class) = (reader.name()?, reader.u16()?, reader.u16()?);
        question = (counts[0] == 1 && class == INTERNET).then_some((name, of));
    }
    let mut message = Message {
        id,
        question,
        truncated: flags & 0x0200 != 0,
        informed: flags & 0x0480 != 0,
        code: flags & 0xF,
        answers: Vec::new(),
        authorities: Vec::new(),
        additionals: Vec::new(),
    };
    if message.truncated {
        // It may be cut off anywhere.
        return Ok(message);
    }
    for (count, section) in counts[1..].iter().zip(0..) {
        for _ in 0..*count {
            let (record, code) = reader.record()?;
            message.code |= code;
            match section {
                0 => message.answers.push(record),
                1 => message.authorities.push(record),
                _ => message.additionals.push(record),
            }
        }
    }
    Ok(message)
}

struct Reader<'b> {
    bytes: &'b [u8],
    at: usize,
}

impl<'b> Reader<'b> {
    fn take(&mut self, count: usize) -> Result<&'b [u8], Malformed> {
        let end = self.at + count;
        let taken = self.bytes.get(self.at..end).ok_or(Malformed("it ends too early"))?;
        self.at = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        self.take(N)?.try_into().map_err(|_| Malformed("it ends too early"))
    }

    fn u16(&mut self) -> Result<u16, Malformed> {
        self.array().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_be_bytes)
    }

    /// A record, and what it adds to the message's code.
    fn record(&mut self) -> Result<(Record, u16), Malformed> {
        let name = self.name()?;
        let (of, class) = (self.u16()?, self.u16()?);
        let ttl = self.u32()?;
        let length = usize::from(self.u16()?);
        let end = self.at + length;
        if end > self.bytes.len() {
            return Err(Malformed("a record ends too early"));
        }
        let of =
            [Type::A, Type::Aaaa, Type::Cname, Type::Srv, Type::Soa, Type::Opt].into_iter().find(|t| *t as u16 == of);
        if of == Some(Type::Opt) {
            self.at = end;
            // The upper eight bits of the code are those of what is a TTL elsewhere.
            return Ok((Record { name, ttl: 0, data: Data::Other }, (ttl >> 24 << 4) as u16));
        }
        let data = match of.filter(|_| class == INTERNET) {
            Some(Type::A) => Data::A(self.array::<4>()?.into()),
            Some(Type::Aaaa) => Data::Aaaa(self.array::<16>()?.into()),
            Some(Type::Cname) => Data::Cname(self.name()?),
            Some(Type::Srv) => {
                let (priority, weight, port) = (self.u16()?, self.u16()?, self.u16()?);
                Data::Srv(Srv { priority, weight, port, target: self.name()? })
            }
            Some(Type::Soa) => {
                self.name()?;
                self.name()?;
                self.take(16)?;
                Data::Soa { minimum: self.u32()? }
            }
            Some(Type::Opt) | None => {
                self.at = end;
                Data::Other
            }
        };
        if self.at != end {
            return Err(Malformed("a record has another length than it says"));
        }
        // A TTL with the highest bit set counts as 0 (RFC 2181).
        Ok((Record { name, ttl: if ttl >> 31 == 0 { ttl } else { 0 }, data }, 0))
    }

    fn name(&mut self) -> Result<String, Malformed> {
        self.name_with(|byte| byte.to_ascii_lowercase())
    }

    /// A name, which may go on elsewhere: further in front each time, so that it comes to an end.
    fn name_with(&mut self, map: fn(u8) -> u8) -> Result<String, Malformed> {
        let mut name = String::new();
        let (mut length, mut at, mut after) = (1, self.at, None);
        let mut barrier = self.at;
        loop {
            let first = *self.bytes.get(at).ok_or(Malformed("a name ends too early"))?;
            match first {
                0 => break,
                1..=63 => {
                    let label = self.bytes.get(at + 1..at + 1 + usize::from(first));
                    let label = label.ok_or(Malformed("a name ends too early"))?;
                    length += label.len() + 1;
                    if length > LONGEST_NAME {
                        return Err(Malformed("a name is too long"));
                    }
                    if !name.is_empty() {
                        name.push('.');
                    }
                    push_label(label, map, &mut name);
                    at += 1 + label.len();
                }
                0xC0.. => {
                    let second = *self.bytes.get(at + 1).ok_or(Malformed("a name ends too early"))?;
                    let target = usize::from(u16::from_be_bytes([first & 0x3F, second]));
                    if target >= barrier || target < HEADER {
                        return Err(Malformed("a name goes on where it must not"));
                    }
                    after.get_or_insert(at + 2);
                    (at, barrier) = (target, target);
                }
                _ => return Err(Malformed("a name has a label of an unknown kind")),
            }
        }
        self.at = after.unwrap_or(at + 1);
        Ok(name)
    }
}

fn push_label(label: &[u8], map: fn(u8) -> u8, name: &mut String) {
    for byte in label {
        match map(*byte) {
            byte @ (b'.' | b'\\') => name.extend(['\\', char::from(byte)]),
            byte @ 0x21..=0x7E => name.push(char::from(byte)),
            // Writing to a string does not fail.
            byte => drop(write!(name, "\\{byte:03}")),
        }
    }
}
