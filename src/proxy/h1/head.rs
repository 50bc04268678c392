//! Heads of HTTP/1 messages: finding their end, parsing them, deciding how the body is framed, and writing them.
//!
//! What two parsers could read differently is refused (RFC 9112, sections 2.2, 5.1, 5.2, 6.3, 11.2): a bare LF, a folded
//! line, a space before the colon, `Transfer-Encoding` together with `Content-Length`, two `Content-Length`s, two `Host`s.

use crate::{error::Reason, net::detect::is_token, proxy::header_maps};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, Version,
    header::{CONNECTION, CONTENT_LENGTH, HOST, TRANSFER_ENCODING},
    request, response,
    uri::Scheme,
};
use std::{borrow::Cow, mem::MaybeUninit};

/// How the end of a body is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    None,
    Length(u64),
    Chunked,
    /// Responses only: the connection's end is the body's end.
    UntilClose,
}

/// The largest head that is read.
#[derive(Debug, Clone, Copy)]
pub struct HeadLimits {
    pub bytes: usize,
    pub lines: usize,
}

/// Why a head was refused. For a request the reason is final; for a response it is always the upstream's fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeadError {
    pub reason: Reason,
    pub detail: Cow<'static, str>,
}

#[derive(Debug)]
pub struct RequestHead {
    pub request: Request<()>,
    pub framing: Framing,
    /// Whether the client is willing to send another request on this connection.
    pub keep_alive: bool,
}

#[derive(Debug)]
pub struct ResponseHead {
    pub response: Response<()>,
    pub framing: Framing,
    pub keep_alive: bool,
}

/// Header names as they were written, in order; an extension of a message whose case is to be preserved.
#[derive(Debug, Clone, Default)]
pub struct OriginalNames(Vec<Bytes>);

/// Finds the end of a head as bytes come in, looking at each byte once.
#[derive(Debug, Default)]
pub struct HeadScan {
    scanned: usize,
    lines: usize,
}

impl HeadScan {
    /// The length of the head at the start of `buf`, empty line included, when it is whole.
    pub fn find_end(&mut self, buf: &mut BytesMut, limits: HeadLimits) -> Result<Option<usize>, HeadError> {
        if self.lines == 0 {
            // A client may send an empty line after a body; RFC 9112, section 2.2, asks to overlook it.
            while buf.starts_with(b"\r\n") {
                buf.advance(2);
                self.scanned = 0;
            }
            if let Some(first) = buf.first()
                && !is_token(*first)
                && *first != b'\r'
            {
                let hint = if *first == 0x16 { "TLS on a plain-text port" } else { "not the start of an HTTP message" };
                return Err(bad(hint));
            }
        }
        for at in memchr::memchr_iter(b'\n', &buf[self.scanned..]) {
            let at = self.scanned + at;
            if at == 0 || buf[at - 1] != b'\r' {
                return Err(ambiguous("a line that ends with LF alone"));
            }
            self.lines += 1;
            if at >= 3 && &buf[at - 3..=at] == b"\r\n\r\n" {
                let length = at + 1;
                // The first line and the empty one are not header lines.
                if length > limits.bytes || self.lines - 2 > limits.lines {
                    return Err(too_large(limits));
                }
                return Ok(Some(length));
            }
        }
        self.scanned = buf.len();
        if buf.len() > limits.bytes || self.lines > limits.lines + 1 {
            return Err(too_large(limits));
        }
        Ok(None)
    }
}

/// Header lines for which the parser needs no allocation. The default limit is 100.
const LINES_ON_STACK: usize = 104;

/// Parses a whole head. `head` must be what [`HeadScan`] found.
pub fn parse_request(head: Bytes, keep_case: bool) -> Result<RequestHead, HeadError> {
    let mut stack = [const { MaybeUninit::<httparse::Header<'_>>::uninit() }; LINES_ON_STACK];
    let mut heap = Vec::new();
    let lines = header_space(&head, &mut stack, &mut heap);
    let mut parsed = httparse::Request::new(&mut []);
    match httparse::ParserConfig::default().parse_request_with_uninit_headers(&mut parsed, &head, lines) {
        Ok(httparse::Status::Complete(_)) => {}
        Ok(httparse::Status::Partial) => return Err(bad("the head is not whole")),
        Err(error) => return Err(refused(error)),
    }
    let (Some(method), Some(target), Some(minor)) = (parsed.method, parsed.path, parsed.version) else {
        return Err(bad("the head is not whole"));
    };
    let (mut parts, ()) = Request::new(()).into_parts();
    parts.method = Method::from_bytes(method.as_bytes()).map_err(|_| bad("the method is not a token"))?;
    parts.uri = Uri::from_maybe_shared(head.slice_ref(target.as_bytes()))
        .map_err(|error| bad(format!("the request target is not a URI: {error}")))?;
    if parts.uri.authority().is_some() {
        match parts.uri.scheme() {
            None if parts.method != Method::CONNECT => {
                return Err(bad("the request target is neither a path nor a whole URL"));
            }
            Some(scheme) if *scheme != Scheme::HTTP && *scheme != Scheme::HTTPS => {
                let scheme: String = scheme.as_str().chars().take(32).collect();
                return Err(bad(format!("the request target's scheme is `{scheme}`; expected `http` or `https`")));
            }
            _ => {}
        }
        parts.uri = with_whole_path(parts.uri, &parts.method, target)?;
    }
    parts.version = if minor == 0 { Version::HTTP_10 } else { Version::HTTP_11 };

    let fields = collect(&head, parsed.headers, keep_case)?;
    if parts.version == Version::HTTP_11 && fields.hosts != 1 {
        return Err(if fields.hosts == 0 { bad("no Host header") } else { ambiguous("more than one Host header") });
    }
    if fields.hosts > 1 {
        return Err(ambiguous("more than one Host header"));
    }
    let framing = match (fields.transfer_encoding, fields.length) {
        (Some(_), Some(_)) => return Err(ambiguous("both Transfer-Encoding and Content-Length")),
        (Some(_), None) if minor == 0 => return Err(ambiguous("Transfer-Encoding in HTTP/1.0")),
        (Some(true), None) => Framing::Chunked,
        (Some(false), None) => {
            let detail = "a transfer coding other than chunked";
            return Err(HeadError { reason: Reason::Unsupported, detail: detail.into() });
        }
        (None, Some(0)) | (None, None) => Framing::None,
        (None, Some(length)) => Framing::Length(length),
    };
    // What follows is another protocol.
    if parts.method == Method::CONNECT && framing != Framing::None {
        return Err(bad("a CONNECT with a body"));
    }
    let keep_alive = fields.keep_alive(minor);
    parts.headers = fields.headers;
    if let Some(names) = fields.names {
        parts.extensions.insert(names);
    }
    Ok(RequestHead { request: Request::from_parts(parts, ()), framing, keep_alive })
}

/// An absolute target with the path that the origin gets (RFC 9112, sections 3.2.1 and 3.2.4): `/` where there is a query
/// only, and `*` where `OPTIONS` asks about the server as a whole.
fn with_whole_path(uri: Uri, method: &Method, target: &str) -> Result<Uri, HeadError> {
    let path = match uri.path_and_query().map(|path| path.as_str()) {
        Some(query) if query.starts_with('?') => format!("/{query}").parse(),
        Some("/") if *method == Method::OPTIONS && !target.ends_with('/') => "*".parse(),
        _ => return Ok(uri),
    };
    let mut parts = uri.into_parts();
    parts.path_and_query = Some(path.map_err(|_| bad("the request target is not a URI"))?);
    Uri::from_parts(parts).map_err(|_| bad("the request target is not a URI"))
}

/// Parses a whole head of a response to a request with `method`.
pub fn parse_response(head: Bytes, method: &Method, keep_case: bool) -> Result<ResponseHead, HeadError> {
    let mut stack = [const { MaybeUninit::<httparse::Header<'_>>::uninit() }; LINES_ON_STACK];
    let mut heap = Vec::new();
    let lines = header_space(&head, &mut stack, &mut heap);
    let mut parsed = httparse::Response::new(&mut []);
    match httparse::ParserConfig::default().parse_response_with_uninit_headers(&mut parsed, &head, lines) {
        Ok(httparse::Status::Complete(_)) => {}
        Ok(httparse::Status::Partial) => return Err(bad("the head is not whole")),
        Err(error) => return Err(refused(error)),
    }
    let (Some(code), Some(minor)) = (parsed.code, parsed.version) else {
        return Err(bad("the head is not whole"));
    };
    let (mut parts, ()) = Response::new(()).into_parts();
    parts.status = StatusCode::from_u16(code).map_err(|_| bad(format!("status {code}")))?;
    parts.version = if minor == 0 { Version::HTTP_10 } else { Version::HTTP_11 };

    let fields = collect(&head, parsed.headers, keep_case)?;
    let bodiless = parts.status.is_informational()
        || parts.status == StatusCode::NO_CONTENT
        || parts.status == StatusCode::NOT_MODIFIED
        || method == Method::HEAD;
    let framing = match (fields.transfer_encoding, fields.length) {
        (Some(_), Some(_)) => return Err(ambiguous("both Transfer-Encoding and Content-Length")),
        _ if bodiless => Framing::None,
        (Some(true), None) if minor == 1 => Framing::Chunked,
        (Some(_), None) => return Err(ambiguous("a transfer coding other than chunked, or one in HTTP/1.0")),
        (None, Some(0)) => Framing::None,
        (None, Some(length)) => Framing::Length(length),
        (None, None) => Framing::UntilClose,
    };
    let keep_alive = fields.keep_alive(minor) && framing != Framing::UntilClose;
    parts.headers = fields.headers;
    if let Some(names) = fields.names {
        parts.extensions.insert(names);
    }
    Ok(ResponseHead { response: Response::from_parts(parts, ()), framing, keep_alive })
}

/// Parses the lines of a trailer section, without its empty line. Fields that would change how the message is read are
/// left out (RFC 9110, section 6.5.1).
pub fn parse_trailers(lines: Bytes) -> Result<HeaderMap, HeadError> {
    // The parser would take it for the end of a line.
    if memchr::memchr_iter(b'\n', &lines).any(|at| at == 0 || lines[at - 1] != b'\r') {
        return Err(ambiguous("a trailer that ends with LF alone"));
    }
    let mut space = vec![httparse::EMPTY_HEADER; lines.len() / 4 + 1];
    match httparse::parse_headers(&lines, &mut space) {
        Ok(httparse::Status::Complete((_, fields))) => {
            let mut trailers = HeaderMap::with_capacity(fields.len());
            for field in fields {
                let (name, value) = header(&lines, field)?;
                if name != CONTENT_LENGTH && name != TRANSFER_ENCODING && name != HOST && name != CONNECTION {
                    trailers.append(name, value);
                }
            }
            Ok(trailers)
        }
        Ok(httparse::Status::Partial) => Err(bad("the trailer section is not whole")),
        Err(error) => Err(refused(error)),
    }
}

/// Writes a request's head. `Transfer-Encoding` and `Content-Length` follow from `framing`.
pub fn write_request(out: &mut BytesMut, parts: &request::Parts, framing: Framing) {
    out.reserve(1024);
    out.put_slice(parts.method.as_str().as_bytes());
    out.put_u8(b' ');
    let target = parts.uri.path_and_query().map_or("/", |target| target.as_str());
    out.put_slice(target.as_bytes());
    out.put_slice(b" HTTP/1.1\r\n");
    write_fields(out, &parts.headers, parts.extensions.get());
    let method_has_body = matches!(parts.method, Method::POST | Method::PUT | Method::PATCH);
    write_framing(out, &parts.headers, framing, method_has_body);
    out.put_slice(b"\r\n");
}

/// Writes a response's head. `Transfer-Encoding` and `Content-Length` follow from `framing`; `connection` is written as
/// the `Connection` header.
pub fn write_response(out: &mut BytesMut, parts: &response::Parts, framing: Framing, connection: Option<&[u8]>) {
    out.reserve(1024);
    if parts.status == StatusCode::OK {
        out.put_slice(b"HTTP/1.1 200 OK\r\n");
    } else {
        out.put_slice(b"HTTP/1.1 ");
        out.put_slice(parts.status.as_str().as_bytes());
        out.put_u8(b' ');
        out.put_slice(parts.status.canonical_reason().unwrap_or("").as_bytes());
        out.put_slice(b"\r\n");
    }
    write_fields(out, &parts.headers, parts.extensions.get());
    write_framing(out, &parts.headers, framing, false);
    if let Some(connection) = connection {
        out.put_slice(b"connection: ");
        out.put_slice(connection);
        out.put_slice(b"\r\n");
    }
    out.put_slice(b"\r\n");
}

/// Writes fields as `name: value` lines.
pub fn write_fields(out: &mut BytesMut, fields: &HeaderMap, original: Option<&OriginalNames>) {
    for (name, value) in fields {
        let name = name.as_str().as_bytes();
        let written = match original {
            None => name,
            Some(OriginalNames(names)) => names.iter().find(|n| n.eq_ignore_ascii_case(name)).map_or(name, |n| &n[..]),
        };
        out.reserve(written.len() + value.len() + 4);
        out.put_slice(written);
        out.put_slice(b": ");
        out.put_slice(value.as_bytes());
        out.put_slice(b"\r\n");
    }
}

fn write_framing(out: &mut BytesMut, fields: &HeaderMap, framing: Framing, empty_needs_length: bool) {
    match framing {
        Framing::Chunked => out.put_slice(b"transfer-encoding: chunked\r\n"),
        Framing::Length(length) if !fields.contains_key(CONTENT_LENGTH) => {
            out.put_slice(b"content-length: ");
            out.put_slice(itoa::Buffer::new().format(length).as_bytes());
            out.put_slice(b"\r\n");
        }
        Framing::None if empty_needs_length && !fields.contains_key(CONTENT_LENGTH) => {
            out.put_slice(b"content-length: 0\r\n");
        }
        Framing::Length(_) | Framing::None | Framing::UntilClose => {}
    }
}

/// What the fields of a head say, beyond themselves.
struct Fields {
    headers: HeaderMap,
    names: Option<OriginalNames>,
    hosts: usize,
    length: Option<u64>,
    /// `Some(true)` when it is exactly `chunked`.
    transfer_encoding: Option<bool>,
    close: bool,
    keep_alive: bool,
}

impl Fields {
    fn keep_alive(&self, minor: u8) -> bool {
        !self.close && (minor == 1 || self.keep_alive)
    }
}

fn collect(head: &Bytes, fields: &[httparse::Header<'_>], keep_case: bool) -> Result<Fields, HeadError> {
    // Room for what pillion adds, so that the map does not grow again.
    const ADDED: usize = 6;
    let mut all = Fields {
        headers: header_maps::take(fields.len() + ADDED),
        names: keep_case.then(OriginalNames::default),
        hosts: 0,
        length: None,
        transfer_encoding: None,
        close: false,
        keep_alive: false,
    };
    for field in fields {
        let (name, value) = header(head, field)?;
        if let Some(OriginalNames(names)) = &mut all.names {
            names.push(head.slice_ref(field.name.as_bytes()));
        }
        if name == HOST {
            all.hosts += 1;
        } else if name == CONTENT_LENGTH {
            if all.length.is_some() {
                return Err(ambiguous("more than one Content-Length"));
            }
            all.length = Some(content_length(&value).ok_or_else(|| ambiguous("Content-Length is not a number"))?);
        } else if name == TRANSFER_ENCODING {
            let chunked = all.transfer_encoding.is_none() && value.as_bytes().eq_ignore_ascii_case(b"chunked");
            all.transfer_encoding = Some(chunked);
        } else if name == CONNECTION {
            // Alone, it has said here all it has to say, and would only have to be found and taken out again.
            if value.as_bytes().eq_ignore_ascii_case(b"keep-alive") {
                all.keep_alive = true;
                continue;
            }
            if value.as_bytes().eq_ignore_ascii_case(b"close") {
                all.close = true;
                continue;
            }
            for token in tokens(&value) {
                all.close |= token.eq_ignore_ascii_case(b"close");
                all.keep_alive |= token.eq_ignore_ascii_case(b"keep-alive");
            }
        }
        all.headers.append(name, value);
    }
    Ok(all)
}

/// Digits only: no sign, no list, no space, as RFC 9110 has it.
pub fn content_length(value: &HeaderValue) -> Option<u64> {
    let digits = value.as_bytes();
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    value.to_str().ok()?.parse().ok()
}

/// The elements of a comma-separated list.
pub fn tokens(value: &HeaderValue) -> impl Iterator<Item = &[u8]> {
    value.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii).filter(|token| !token.is_empty())
}

fn header(head: &Bytes, field: &httparse::Header<'_>) -> Result<(HeaderName, HeaderValue), HeadError> {
    let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| bad("a header name is not a token"))?;
    let value = HeaderValue::from_maybe_shared(head.slice_ref(field.value))
        .map_err(|_| bad(format!("the value of {name} has a control character")))?;
    Ok((name, value))
}

/// Space for as many header lines as `head` has: on the stack if they fit, as they nearly always do.
fn header_space<'s, 'h>(
    head: &'h [u8],
    stack: &'s mut [MaybeUninit<httparse::Header<'h>>; LINES_ON_STACK],
    heap: &'s mut Vec<MaybeUninit<httparse::Header<'h>>>,
) -> &'s mut [MaybeUninit<httparse::Header<'h>>] {
    // The shortest line has four bytes, so most heads need not be counted.
    if head.len() <= LINES_ON_STACK * 4 {
        return stack;
    }
    let lines = memchr::memchr_iter(b'\n', head).count();
    if lines <= LINES_ON_STACK {
        return stack;
    }
    heap.resize_with(lines, MaybeUninit::uninit);
    heap
}

fn refused(error: httparse::Error) -> HeadError {
    match error {
        // The parser calls a folded line, and a space before the colon, a bad name.
        httparse::Error::HeaderName => {
            ambiguous("a header name has a space or a character that is not allowed, or a line is folded")
        }
        httparse::Error::Version => bad("not HTTP/1.0 or HTTP/1.1"),
        other => bad(other.to_string()),
    }
}

fn bad(detail: impl Into<Cow<'static, str>>) -> HeadError {
    HeadError { reason: Reason::BadRequest, detail: detail.into() }
}

fn ambiguous(detail: impl Into<Cow<'static, str>>) -> HeadError {
    HeadError { reason: Reason::AmbiguousRequest, detail: detail.into() }
}

fn too_large(limits: HeadLimits) -> HeadError {
    let detail = format!("the head has more than {} bytes or {} lines", limits.bytes, limits.lines);
    HeadError { reason: Reason::HeadTooLarge, detail: detail.into() }
}
