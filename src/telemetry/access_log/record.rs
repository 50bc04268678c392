//! One line of the access log.

use crate::{config::LogFormat, telemetry::flags::Flags};
use bytes::Bytes;
use http::{HeaderValue, Method, uri::PathAndQuery};
use std::{
    io::Write,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

/// What is told about one request, or about one TCP connection, which has less to tell. Made on the request path, so every
/// field is a number or something whose clone is cheap; it becomes text on the writer's thread.
#[derive(Debug, Clone)]
pub struct AccessRecord {
    /// When the request's head was read, or the connection was accepted.
    pub time: SystemTime,
    pub listener: Text,
    /// The client's address.
    pub peer: SocketAddr,
    pub method: Option<Method>,
    pub authority: Option<Text>,
    pub path: Option<Text>,
    /// What the client spoke, `HTTP/1.1`, `HTTP/2` or `TCP`.
    pub protocol: &'static str,
    pub service: Option<Text>,
    /// The route that it took, if its service has any.
    pub routed: Option<Box<RoutedTo>>,
    /// The address of the endpoint that was tried last.
    pub endpoint: Option<Text>,
    /// 0 when the request was cut off before there was one, and where there is none.
    pub status: u16,
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub duration: Duration,
    /// Tries, or endpoints that were tried.
    pub attempts: u32,
    pub request_id: Option<Text>,
    /// Who asked, on a listener in front of the local application.
    pub caller: Option<Arc<str>>,
    /// Why pillion answered itself, cut the request off or looked for a fallback.
    pub reason: Option<&'static str>,
    /// What the caller got instead of an error.
    pub fallback: Option<&'static str>,
    /// What was put in on purpose.
    pub fault: Option<&'static str>,
    pub flags: Flags,
}

/// What a service's routes made of a request.
#[derive(Debug, Clone)]
pub struct RoutedTo {
    /// The name of the route that it took.
    pub route: Option<Arc<str>>,
    /// The part of the service's endpoints that it went to.
    pub subset: Option<Arc<str>>,
}

/// Bytes that are cheap to clone, from wherever a request has them. They need not be UTF-8.
#[derive(Debug, Clone)]
pub enum Text {
    Static(&'static str),
    Shared(Arc<str>),
    Header(HeaderValue),
    Path(PathAndQuery),
    Bytes(Bytes),
    Address(SocketAddr),
}

macro_rules! text_from {
    ($($from:ty => $variant:ident)*) => {
        $(impl From<$from> for Text {
            fn from(value: $from) -> Self {
                Self::$variant(value)
            }
        })*
    };
}

text_from! {
    &'static str => Static
    Arc<str> => Shared
    HeaderValue => Header
    PathAndQuery => Path
    Bytes => Bytes
    SocketAddr => Address
}

impl Text {
    /// Appends it with `escape` applied.
    fn write(&self, out: &mut Vec<u8>, escape: fn(&mut Vec<u8>, &[u8])) {
        match self {
            Self::Static(text) => escape(out, text.as_bytes()),
            Self::Shared(text) => escape(out, text.as_bytes()),
            Self::Header(value) => escape(out, value.as_bytes()),
            Self::Path(path) => escape(out, path.as_str().as_bytes()),
            Self::Bytes(bytes) => escape(out, bytes),
            Self::Address(address) => put(out, format_args!("{address}")),
        }
    }
}

impl AccessRecord {
    /// Appends the record as one line, its end included.
    pub fn write(&self, out: &mut Vec<u8>, format: LogFormat) {
        match format {
            LogFormat::Text => self.write_text(out),
            LogFormat::Json => self.write_json(out),
        }
        out.push(b'\n');
    }

    fn write_text(&self, out: &mut Vec<u8>) {
        let text = |out: &mut Vec<u8>, text: Option<&Text>| match text {
            Some(text) => text.write(out, escape_text),
            None => out.push(b'-'),
        };
        put(out, format_args!("{} ", humantime::format_rfc3339_millis(self.time)));
        text(out, Some(&self.listener));
        put(out, format_args!(" {} \"{} ", self.peer, self.method.as_ref().map_or("-", Method::as_str)));
        text(out, self.path.as_ref());
        put(out, format_args!(" {}\" ", self.protocol));
        text(out, self.authority.as_ref());
        put(
            out,
            format_args!(
                " {} {} in={} out={} took=",
                self.status,
                self.reason.unwrap_or("-"),
                self.bytes_in,
                self.bytes_out
            ),
        );
        put(out, format_args!("{:.3}ms service=", self.duration.as_secs_f64() * 1e3));
        text(out, self.service.as_ref());
        out.extend_from_slice(b" endpoint=");
        text(out, self.endpoint.as_ref());
        put(out, format_args!(" attempts={} id=", self.attempts));
        text(out, self.request_id.as_ref());
        for (key, name) in self.names() {
            put(out, format_args!(" {key}="));
            escape_text(out, name.as_bytes());
        }
        for (key, word) in self.rare() {
            put(out, format_args!(" {key}={word}"));
        }
        if !self.flags.is_empty() {
            put(out, format_args!(" flags={}", self.flags));
        }
    }

    /// Names that only some have.
    fn names(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let routed = self.routed.as_ref();
        let (route, subset) = (routed.and_then(|to| to.route.as_deref()), routed.and_then(|to| to.subset.as_deref()));
        let all = [("caller", self.caller.as_deref()), ("route", route), ("subset", subset)];
        all.into_iter().filter_map(|(key, name)| Some((key, name?)))
    }

    /// What most lines do without.
    fn rare(&self) -> impl Iterator<Item = (&'static str, &'static str)> {
        let all = [("fallback", self.fallback), ("fault", self.fault)];
        all.into_iter().filter_map(|(key, word)| Some((key, word?)))
    }

    fn write_json(&self, out: &mut Vec<u8>) {
        let text = |out: &mut Vec<u8>, key: &str, text: Option<&Text>| {
            if let Some(text) = text {
                put(out, format_args!(",\"{key}\":\""));
                text.write(out, escape_json);
                out.push(b'"');
            }
        };
        put(out, format_args!("{{\"time\":\"{}\"", humantime::format_rfc3339_millis(self.time)));
        text(out, "listener", Some(&self.listener));
        // A method is a token: it has nothing to escape.
        put(out, format_args!(",\"peer\":\"{}\"", self.peer));
        if let Some(method) = &self.method {
            put(out, format_args!(",\"method\":\"{method}\""));
        }
        text(out, "authority", self.authority.as_ref());
        text(out, "path", self.path.as_ref());
        put(out, format_args!(",\"protocol\":\"{}\"", self.protocol));
        if self.method.is_some() {
            put(out, format_args!(",\"status\":{}", self.status));
        }
        if let Some(reason) = self.reason {
            put(out, format_args!(",\"reason\":\"{reason}\""));
        }
        put(out, format_args!(",\"bytes_in\":{},\"bytes_out\":{}", self.bytes_in, self.bytes_out));
        put(out, format_args!(",\"duration_ms\":{:.3}", self.duration.as_secs_f64() * 1e3));
        text(out, "service", self.service.as_ref());
        text(out, "endpoint", self.endpoint.as_ref());
        put(out, format_args!(",\"attempts\":{}", self.attempts));
        text(out, "request_id", self.request_id.as_ref());
        for (key, name) in self.names() {
            text(out, key, Some(&Text::Shared(name.into())));
        }
        for (key, word) in self.rare() {
            put(out, format_args!(",\"{key}\":\"{word}\""));
        }
        if !self.flags.is_empty() {
            put(out, format_args!(",\"flags\":\"{}\"", self.flags));
        }
        out.push(b'}');
    }
}

fn put(out: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    // Writing to memory does not fail.
    let _ = out.write_fmt(text);
}

/// What a terminal or a reader of lines could take for something else becomes `\xNN`; so a caller cannot write lines
/// of its own into the log.
fn escape_text(out: &mut Vec<u8>, bytes: &[u8]) {
    for byte in bytes {
        match byte {
            b'"' | b'\\' | 0..=b' ' | 0x7f.. => put(out, format_args!("\\x{byte:02x}")),
            plain => out.push(*plain),
        }
    }
}

/// Inside of a JSON string. A byte that is not UTF-8 becomes the four characters `\xNN`, so that it is not lost.
fn escape_json(out: &mut Vec<u8>, bytes: &[u8]) {
    for chunk in bytes.utf8_chunks() {
        for byte in chunk.valid().as_bytes() {
            match byte {
                b'"' | b'\\' => out.extend_from_slice(&[b'\\', *byte]),
                0..=0x1f | 0x7f => put(out, format_args!("\\u{byte:04x}")),
                plain => out.push(*plain),
            }
        }
        for byte in chunk.invalid() {
            put(out, format_args!("\\\\x{byte:02x}"));
        }
    }
}
