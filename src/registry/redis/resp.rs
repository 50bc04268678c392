//! Redis's protocol, version 2: what every Redis and Sentinel speaks. No input and output here.

use bytes::{Buf, Bytes, BytesMut};

/// A line is a number or a short text; Redis itself cuts errors at 1 KiB or so.
const LONGEST_LINE: usize = 64 << 10;
/// One value or message. Redis allows 512 MiB, a registry needs a few KiB.
const LONGEST_BULK: usize = 16 << 20;
/// A whole answer, with all that is in it.
const LARGEST_ANSWER: usize = 64 << 20;
/// `ROLE` of a master goes three deep.
const DEEPEST: usize = 8;

/// One answer, or one message that nobody asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// A nil, be it of a text or of a list.
    Nil,
    Status(String),
    /// With its code first: `NOAUTH Authentication required.`
    Error(String),
    Integer(i64),
    Bulk(Bytes),
    Array(Vec<Value>),
}

impl Value {
    /// A text or a status as UTF-8.
    pub fn text(&self) -> Option<&str> {
        match self {
            Self::Status(text) => Some(text),
            Self::Bulk(bytes) => std::str::from_utf8(bytes).ok(),
            _ => None,
        }
    }

    pub fn array(&self) -> Option<&[Value]> {
        if let Self::Array(items) = self { Some(items) } else { None }
    }
}

/// The bytes are not Redis's protocol.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not Redis's protocol: {0}")]
pub struct Malformed(String);

/// Several commands that are sent at once.
#[derive(Debug, Clone, Default)]
pub struct Pipeline {
    bytes: BytesMut,
    commands: usize,
}

impl Pipeline {
    pub fn new() -> Self {
        Self::default()
    }

    /// Only this command.
    pub fn one<A: AsRef<[u8]>>(args: &[A]) -> Self {
        let mut pipeline = Self::new();
        pipeline.add(args);
        pipeline
    }

    pub fn add<A: AsRef<[u8]>>(&mut self, args: &[A]) {
        let mut number = itoa::Buffer::new();
        self.bytes.extend_from_slice(b"*");
        self.bytes.extend_from_slice(number.format(args.len()).as_bytes());
        for arg in args {
            let arg = arg.as_ref();
            self.bytes.extend_from_slice(b"\r\n$");
            self.bytes.extend_from_slice(number.format(arg.len()).as_bytes());
            self.bytes.extend_from_slice(b"\r\n");
            self.bytes.extend_from_slice(arg);
        }
        self.bytes.extend_from_slice(b"\r\n");
        self.commands += 1;
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// How many answers there will be.
    pub fn commands(&self) -> usize {
        self.commands
    }
}

/// Makes values of the bytes as they come; what it has of a list it keeps, so that a long one is read only once.
#[derive(Debug, Default)]
pub struct Decoder {
    /// The lists that are not complete yet, each inside the one before, and how many items each lacks.
    open: Vec<(usize, Vec<Value>)>,
    /// What the present answer takes so far.
    size: usize,
}

impl Decoder {
    /// Takes the next value out of `buf`, or nothing if it is not all there.
    pub fn next(&mut self, buf: &mut BytesMut) -> Result<Option<Value>, Malformed> {
        loop {
            let before = buf.len();
            let Some(piece) = self.piece(buf)? else { return Ok(None) };
            // Small values take more memory here than on the way.
            self.size += before - buf.len() + size_of::<Value>();
            if self.size > LARGEST_ANSWER {
                return Err(Malformed(format!("an answer of more than {LARGEST_ANSWER} bytes")));
            }
            let mut value = match piece {
                Piece::Value(value) => value,
                Piece::Array(0) => Value::Array(Vec::new()),
                Piece::Array(_) if self.open.len() == DEEPEST => {
                    return Err(Malformed(format!("more than {DEEPEST} lists in one another")));
                }
                Piece::Array(items) => {
                    // The number is only what the other end says.
                    self.open.push((items, Vec::with_capacity(items.min(64))));
                    continue;
                }
            };
            loop {
                let Some((missing, items)) = self.open.last_mut() else {
                    self.size = 0;
                    return Ok(Some(value));
                };
                items.push(value);
                *missing -= 1;
                if *missing > 0 {
                    break;
                }
                value = Value::Array(std::mem::take(items));
                self.open.pop();
            }
        }
    }

    fn piece(&self, buf: &mut BytesMut) -> Result<Option<Piece>, Malformed> {
        let Some(end) = memchr::memchr(b'\n', &buf[..buf.len().min(LONGEST_LINE)]) else {
            if buf.len() >= LONGEST_LINE {
                return Err(Malformed(format!("a line of more than {LONGEST_LINE} bytes")));
            }
            return Ok(None);
        };
        let line = buf[..end].strip_suffix(b"\r").ok_or_else(|| Malformed("a line without `\\r`".into()))?;
        let Some((&kind, rest)) = line.split_first() else { return Err(Malformed("an empty line".into())) };
        let text = || String::from_utf8_lossy(rest).into_owned();
        let piece = match kind {
            b'+' => Piece::Value(Value::Status(text())),
            b'-' => Piece::Value(Value::Error(text())),
            b':' => Piece::Value(Value::Integer(number(rest)?)),
            b'$' | b'*' => match (kind, number(rest)?) {
                (_, -1) => Piece::Value(Value::Nil),
                (b'*', items) => Piece::Array(usize::try_from(items).map_err(|_| bad_number(rest))?),
                (_, length) => {
                    let length = usize::try_from(length).map_err(|_| bad_number(rest))?;
                    if length > LONGEST_BULK {
                        return Err(Malformed(format!("a text of {length} bytes")));
                    }
                    let whole = end + 1 + length + 2;
                    if buf.len() < whole {
                        buf.reserve(whole - buf.len());
                        return Ok(None);
                    }
                    buf.advance(end + 1);
                    let bulk = buf.split_to(length).freeze();
                    if buf.split_to(2) != b"\r\n"[..] {
                        return Err(Malformed("a text longer than its length".into()));
                    }
                    return Ok(Some(Piece::Value(Value::Bulk(bulk))));
                }
            },
            other => return Err(Malformed(format!("an answer that begins with `{}`", other.escape_ascii()))),
        };
        buf.advance(end + 1);
        Ok(Some(piece))
    }
}

enum Piece {
    Value(Value),
    /// The head of a list of so many.
    Array(usize),
}

fn number(text: &[u8]) -> Result<i64, Malformed> {
    std::str::from_utf8(text).ok().and_then(|text| text.parse().ok()).ok_or_else(|| bad_number(text))
}

fn bad_number(text: &[u8]) -> Malformed {
    Malformed(format!("`{}` where a number is expected", text[..text.len().min(40)].escape_ascii()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn all(bytes: &[u8]) -> Result<Vec<Value>, Malformed> {
        let (mut decoder, mut buf, mut found) = (Decoder::default(), BytesMut::from(bytes), Vec::new());
        while let Some(value) = decoder.next(&mut buf)? {
            found.push(value);
        }
        Ok(found)
    }

    fn bulk(text: &'static str) -> Value {
        Value::Bulk(Bytes::from_static(text.as_bytes()))
    }

    /// What a Redis 7.0 sent, in one piece: to AUTH, ROLE of a master with a replica, GET, a message, HGETALL, PTTL.
    const SEEN: &[u8] = b"+OK\r\n\
        *3\r\n$6\r\nmaster\r\n:3129659\r\n*1\r\n*3\r\n$9\r\n127.0.0.1\r\n$4\r\n9001\r\n$7\r\n3129242\r\n\
        $-1\r\n\
        *4\r\n$8\r\npmessage\r\n$17\r\n__keyspace@0__:/*\r\n$25\r\n__keyspace@0__:/pillion/a\r\n$3\r\nset\r\n\
        *0\r\n:-2\r\n-NOAUTH Authentication required.\r\n*-1\r\n";

    fn seen() -> Vec<Value> {
        vec![
            Value::Status("OK".into()),
            Value::Array(vec![
                bulk("master"),
                Value::Integer(3_129_659),
                Value::Array(vec![Value::Array(vec![bulk("127.0.0.1"), bulk("9001"), bulk("3129242")])]),
            ]),
            Value::Nil,
            Value::Array(vec![
                bulk("pmessage"),
                bulk("__keyspace@0__:/*"),
                bulk("__keyspace@0__:/pillion/a"),
                bulk("set"),
            ]),
            Value::Array(Vec::new()),
            Value::Integer(-2),
            Value::Error("NOAUTH Authentication required.".into()),
            Value::Nil,
        ]
    }

    #[test]
    fn a_stream_is_read_however_it_is_cut() {
        assert_eq!(all(SEEN).unwrap(), seen());
        let (mut decoder, mut buf, mut found) = (Decoder::default(), BytesMut::new(), Vec::new());
        for byte in SEEN {
            buf.extend_from_slice(&[*byte]);
            while let Some(value) = decoder.next(&mut buf).unwrap() {
                found.push(value);
            }
        }
        assert_eq!(found, seen());
        assert!(buf.is_empty());
    }

    #[test]
    fn commands_are_lists_of_texts() {
        let mut pipeline = Pipeline::one(&["GET", "/pillion/a b"]);
        pipeline.add(&["ROLE"]);
        assert_eq!(pipeline.bytes(), b"*2\r\n$3\r\nGET\r\n$12\r\n/pillion/a b\r\n*1\r\n$4\r\nROLE\r\n");
        assert_eq!(pipeline.commands(), 2);
        let sent = all(pipeline.bytes()).unwrap();
        assert_eq!(sent[0], Value::Array(vec![bulk("GET"), bulk("/pillion/a b")]), "and so can be read");
    }

    #[test]
    fn what_is_no_redis_is_refused() {
        for (bytes, expected) in [
            (&b"HTTP/1.1 400 Bad Request\r\n"[..], "begins with `H`"),
            (b"\x15\x03\x01\x00\x02\x02\x0a\r\n", "without `\\r`"),
            (b"+OK\n", "without `\\r`"),
            (b"\r\n", "an empty line"),
            (b":1x\r\n", "`1x` where a number"),
            (b"$-2\r\n", "`-2` where a number"),
            (b"*99999999999999999999\r\n", "where a number"),
            (b"$99999999\r\n", "a text of 99999999 bytes"),
            (b"$1\r\nabc\r\n", "longer than its length"),
            (b"*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n", "lists in one another"),
        ] {
            let error = all(bytes).unwrap_err().to_string();
            assert!(error.contains(expected), "{bytes:?}: {error}");
        }
        assert!(all(&[b'+'; LONGEST_LINE]).is_err());
        assert_eq!(all(b"*9223372036854775807\r\n").unwrap(), [], "a promise alone takes no memory");
    }

    #[test]
    fn an_endless_answer_is_cut_off() {
        let mut bytes = b"*1000000\r\n".to_vec();
        for _ in 0..9 {
            bytes.extend_from_slice(format!("${}\r\n", 8 << 20).as_bytes());
            bytes.resize(bytes.len() + (8 << 20), b'x');
            bytes.extend_from_slice(b"\r\n");
        }
        assert!(all(&bytes).unwrap_err().to_string().contains("an answer of more than"));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop_oneof![
            prop::collection::vec(any::<u8>(), 0..200),
            r"([*$:+-][0-9-]{1,4}\r\n|[a-z]{0,5}\r\n){0,20}".prop_map(String::into_bytes),
        ]) {
            let _ = all(&bytes);
        }

        /// One byte is different: an answer, an error, or a wait for more, and never a panic.
        #[test]
        fn no_change_of_an_answer_makes_it_panic(at in 0..SEEN.len(), byte: u8) {
            let mut bytes = SEEN.to_vec();
            bytes[at] = byte;
            let _ = all(&bytes);
        }
    }
}
