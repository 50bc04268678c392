//! What of ZooKeeper's wire format is used here: records in big-endian ("jute"), in frames with their length before them.
//! Pure: bytes to messages and back.

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// A frame that claims to be longer is not one. The server's own limit for what it takes is 1 MiB, but a list of children
/// has none.
const LARGEST_FRAME: usize = 64 << 20;

/// The numbers that replies without a request of their own carry.
pub const NOTIFICATION: i32 = -1;
pub const PING: i32 = -2;
pub const AUTH: i32 = -4;

/// The parts of a [`Request::Multi`], and what came of them.
const CREATE: i32 = 1;
const DELETE: i32 = 2;
const WRITE: i32 = 5;

/// What is asked of the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request<'a> {
    Exists {
        path: &'a str,
        watch: bool,
    },
    Data {
        path: &'a str,
        watch: bool,
    },
    Children {
        path: &'a str,
        watch: bool,
    },
    AddWatch {
        path: &'a str,
        mode: WatchMode,
    },
    RemoveWatches {
        path: &'a str,
    },
    /// All of it or nothing.
    Multi(&'a [Change<'a>]),
    Digest {
        user: &'a str,
        password: &'a str,
    },
    Ping,
    Close,
}

/// A part of what is written in one step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change<'a> {
    Create {
        path: &'a str,
        value: &'a [u8],
        /// It goes with our session.
        ephemeral: bool,
        /// Nobody else may use it, not even read; who we are was said before. If not, anybody may.
        ours: bool,
    },
    /// Only if it is still of this version.
    Delete { path: &'a str, version: i32 },
    /// A node's value. Only if it is still of this version.
    Write { path: &'a str, value: &'a [u8], version: i32 },
}

/// Watches that stay until they are removed, of ZooKeeper 3.6 and later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WatchMode {
    /// One node, and the names of its children.
    Persistent = 0,
    /// A node and everything below it.
    Recursive = 1,
}

/// The part of a session by which it is taken up again on another connection.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Session {
    /// 0 for one that is yet to be opened.
    pub id: i64,
    pub password: Bytes,
    pub timeout_ms: i32,
}

/// A message from the server after the session is open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    Event(Event),
    Reply {
        xid: i32,
        /// The newest change that the server has seen; at most 0 if it does not say.
        zxid: i64,
        answer: Result<Bytes, Code>,
    },
}

/// Something happened at a node that is watched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    pub kind: EventKind,
    pub path: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventKind {
    Created,
    Deleted,
    DataChanged,
    ChildrenChanged,
    /// One that this client does not ask for.
    Other(i32),
}

/// A node's value, and what its metadata say.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Data {
    pub value: Bytes,
    pub stat: Stat,
}

/// What of a node's metadata is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stat {
    /// The change that last wrote its value, or created it: no two values of a path have the same (`mZxid`).
    pub changed_by: i64,
    /// How often its value was written. One that was deleted and created again begins anew.
    pub version: i32,
    /// The session that it goes with; 0 for a node that stays.
    pub owner: i64,
    pub children: i32,
}

/// The server's codes for errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Code(pub i32);

impl Code {
    pub const UNIMPLEMENTED: Self = Self(-6);
    pub const NO_NODE: Self = Self(-101);
    pub const NO_AUTH: Self = Self(-102);
    pub const BAD_VERSION: Self = Self(-103);
    pub const NODE_EXISTS: Self = Self(-110);
    pub const AUTH_FAILED: Self = Self(-115);
    pub const AUTH_REQUIRED: Self = Self(-124);

    /// Its name in ZooKeeper's documentation.
    pub fn name(self) -> &'static str {
        match self.0 {
            -1 => "SystemError",
            -4 => "ConnectionLoss",
            -5 => "MarshallingError",
            -6 => "Unimplemented",
            -7 => "OperationTimeout",
            -8 => "BadArguments",
            -101 => "NoNode",
            -102 => "NoAuth",
            -103 => "BadVersion",
            -108 => "NoChildrenForEphemerals",
            -110 => "NodeExists",
            -111 => "NotEmpty",
            -112 => "SessionExpired",
            -114 => "InvalidACL",
            -115 => "AuthFailed",
            -118 => "SessionMoved",
            -121 => "NoWatcher",
            -124 => "SessionClosedRequireSaslAuth",
            -127 => "ThrottledOp",
            _ => "an error",
        }
    }
}

/// A message that is not what the protocol promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a message that is not ZooKeeper's")]
pub struct Malformed;

/// Adds the frame with which a session is opened, or taken up again. `zxid` is the newest change that was seen: a server
/// that has not seen it yet refuses.
pub fn put_connect(out: &mut BytesMut, session: &Session, zxid: i64) {
    framed(out, |out| {
        out.put_i32(0);
        out.put_i64(zxid);
        out.put_i32(session.timeout_ms);
        out.put_i64(session.id);
        // A new session has 16 zero bytes.
        put_bytes(out, if session.id == 0 { &[0; 16] } else { &session.password });
        // Not with a server that is cut off from the others and could only serve old data.
        out.put_u8(0);
    });
}

/// Adds a request's frame. `xid` numbers it, except for those that have a number of their own.
pub fn put_request(out: &mut BytesMut, xid: i32, request: Request<'_>) {
    framed(out, |out| {
        let (xid, code) = match request {
            Request::Exists { .. } => (xid, 3),
            Request::Data { .. } => (xid, 4),
            Request::Children { .. } => (xid, 8),
            Request::AddWatch { .. } => (xid, 106),
            Request::RemoveWatches { .. } => (xid, 18),
            Request::Multi(_) => (xid, 14),
            Request::Digest { .. } => (AUTH, 100),
            Request::Ping => (PING, 11),
            Request::Close => (xid, -11),
        };
        out.put_i32(xid);
        out.put_i32(code);
        match request {
            Request::Exists { path, watch } | Request::Data { path, watch } | Request::Children { path, watch } => {
                put_bytes(out, path.as_bytes());
                out.put_u8(watch.into());
            }
            Request::AddWatch { path, mode } => {
                put_bytes(out, path.as_bytes());
                out.put_i32(mode as i32);
            }
            Request::RemoveWatches { path } => {
                put_bytes(out, path.as_bytes());
                // Of any kind.
                out.put_i32(3);
            }
            Request::Digest { user, password } => {
                out.put_i32(0);
                put_bytes(out, b"digest");
                put_bytes(out, format!("{user}:{password}").as_bytes());
            }
            Request::Multi(changes) => {
                changes.iter().for_each(|change| put_change(out, change));
                put_part(out, -1, true);
            }
            Request::Ping | Request::Close => {}
        }
    });
}

/// Takes the next whole frame out of `input`, without its length.
pub fn take_frame(input: &mut BytesMut) -> Result<Option<Bytes>, Malformed> {
    let Some(length) = input.get(..4) else { return Ok(None) };
    let length = usize::try_from((&mut &length[..]).get_i32()).ok().filter(|length| *length <= LARGEST_FRAME);
    let length = length.ok_or(Malformed)?;
    if input.len() < 4 + length {
        input.reserve(4 + length - input.len());
        return Ok(None);
    }
    input.advance(4);
    Ok(Some(input.split_to(length).freeze()))
}

/// The answer to [`put_connect`]: `None` if the session that was to be taken up has expired.
pub fn connected(mut frame: Bytes) -> Result<Option<Session>, Malformed> {
    let _protocol_version = int(&mut frame)?;
    let timeout_ms = int(&mut frame)?;
    let id = long(&mut frame)?;
    let password = bytes(&mut frame)?;
    // Since 3.5 one byte more: whether the server is read-only, which was not allowed.
    Ok((timeout_ms > 0 && id != 0).then_some(Session { id, password, timeout_ms }))
}

pub fn message(mut frame: Bytes) -> Result<Message, Malformed> {
    let (xid, zxid, code) = (int(&mut frame)?, long(&mut frame)?, int(&mut frame)?);
    if xid != NOTIFICATION {
        let answer = if code == 0 { Ok(frame) } else { Err(Code(code)) };
        return Ok(Message::Reply { xid, zxid, answer });
    }
    let kind = match int(&mut frame)? {
        1 => EventKind::Created,
        2 => EventKind::Deleted,
        3 => EventKind::DataChanged,
        4 => EventKind::ChildrenChanged,
        other => EventKind::Other(other),
    };
    let _state = int(&mut frame)?;
    Ok(Message::Event(Event { kind, path: text(&mut frame)? }))
}

/// The answer to [`Request::Children`].
pub fn children(mut answer: Bytes) -> Result<Vec<String>, Malformed> {
    let count = int(&mut answer)?;
    // -1 is a list that is null.
    (0..count.max(0)).map(|_| text(&mut answer)).collect()
}

/// The answer to [`Request::Data`].
pub fn data(mut answer: Bytes) -> Result<Data, Malformed> {
    Ok(Data { value: bytes(&mut answer)?, stat: stat(&mut answer)? })
}

fn stat(from: &mut Bytes) -> Result<Stat, Malformed> {
    let _created_by = long(from)?;
    let changed_by = long(from)?;
    // ctime, mtime.
    skip(from, 2 * 8)?;
    let version = int(from)?;
    // cversion, aversion.
    skip(from, 2 * 4)?;
    let owner = long(from)?;
    let _length = int(from)?;
    let children = int(from)?;
    let _children_changed_by = long(from)?;
    Ok(Stat { changed_by, version, owner, children })
}

/// The answer to [`Request::Multi`]: of the last node whose value it wrote, what that is now. A server that does none of it
/// gives a code for each part, of which one is the reason.
pub fn multi(mut answer: Bytes) -> Result<Result<Option<Stat>, Code>, Malformed> {
    let mut written = None;
    loop {
        let (kind, done) = (int(&mut answer)?, answer.try_get_u8().map_err(|_| Malformed)?);
        let _code = int(&mut answer)?;
        match kind {
            CREATE => drop(text(&mut answer)?),
            DELETE => {}
            WRITE => written = Some(stat(&mut answer)?),
            -1 if done != 0 => return Ok(Ok(written)),
            // The parts before the one that failed are said to have gone well, and those after it were not tried.
            -1 => match int(&mut answer)? {
                0 | -2 => {}
                code => return Ok(Err(Code(code))),
            },
            _ => return Err(Malformed),
        }
    }
}

fn put_change(out: &mut BytesMut, change: &Change<'_>) {
    match *change {
        Change::Create { path, value, ephemeral, ours } => {
            put_part(out, CREATE, false);
            put_bytes(out, path.as_bytes());
            put_bytes(out, value);
            // One rule, for all five rights.
            let (scheme, id) = if ours { ("auth", "") } else { ("world", "anyone") };
            out.put_i32(1);
            out.put_i32(31);
            put_bytes(out, scheme.as_bytes());
            put_bytes(out, id.as_bytes());
            out.put_i32(ephemeral.into());
        }
        Change::Delete { path, version } => {
            put_part(out, DELETE, false);
            put_bytes(out, path.as_bytes());
            out.put_i32(version);
        }
        Change::Write { path, value, version } => {
            put_part(out, WRITE, false);
            put_bytes(out, path.as_bytes());
            put_bytes(out, value);
            out.put_i32(version);
        }
    }
}

/// What is before each part of a multi, and at its end.
fn put_part(out: &mut BytesMut, kind: i32, done: bool) {
    out.put_i32(kind);
    out.put_u8(done.into());
    out.put_i32(-1);
}

fn framed(out: &mut BytesMut, content: impl FnOnce(&mut BytesMut)) {
    let start = out.len();
    out.put_i32(0);
    content(out);
    let length = i32::try_from(out.len() - start - 4).unwrap_or(i32::MAX);
    out[start..start + 4].copy_from_slice(&length.to_be_bytes());
}

fn put_bytes(out: &mut BytesMut, bytes: &[u8]) {
    out.put_i32(i32::try_from(bytes.len()).unwrap_or(i32::MAX));
    out.put_slice(bytes);
}

fn int(from: &mut Bytes) -> Result<i32, Malformed> {
    from.try_get_i32().map_err(|_| Malformed)
}

fn long(from: &mut Bytes) -> Result<i64, Malformed> {
    from.try_get_i64().map_err(|_| Malformed)
}

fn skip(from: &mut Bytes, count: usize) -> Result<(), Malformed> {
    if from.len() < count {
        return Err(Malformed);
    }
    from.advance(count);
    Ok(())
}

fn bytes(from: &mut Bytes) -> Result<Bytes, Malformed> {
    // -1 is null: a node without a value.
    let length = usize::try_from(int(from)?.max(0)).map_err(|_| Malformed)?;
    if from.len() < length {
        return Err(Malformed);
    }
    Ok(from.split_to(length))
}

fn text(from: &mut Bytes) -> Result<String, Malformed> {
    String::from_utf8(bytes(from)?.into()).map_err(|_| Malformed)
}

#[cfg(test)]
mod tests;
