//! What a proxy does to a message's headers: hop-by-hop fields end here, and the next hop learns who asked.

use crate::{
    error::{ProxyError, Reason},
    proxy::{h1::head::tokens, listener::Way, transparent::Called},
    route::{X_FORWARDED_HOST, X_FORWARDED_PROTO, X_PILLION_CALLER},
};
use bytes::{BufMut, BytesMut};
use http::{
    HeaderMap, HeaderName, HeaderValue, Response, StatusCode,
    header::{CONNECTION, COOKIE, HOST, PROXY_AUTHORIZATION, TE, TRANSFER_ENCODING, UPGRADE},
    request,
    uri::Authority,
};
use std::{
    fmt::Write as _,
    net::{IpAddr, SocketAddr},
    time::Duration,
};
use tokio::time::Instant;

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
/// How often a request was tried before, plus one. Not on the first try.
pub const X_PILLION_ATTEMPT: HeaderName = HeaderName::from_static("x-pillion-attempt");
/// Which route has made this copy of a request.
pub const X_PILLION_MIRROR: HeaderName = HeaderName::from_static("x-pillion-mirror");
pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const X_REQUEST_TIMEOUT: HeaderName = HeaderName::from_static("x-request-timeout");
pub const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// Who a connection's requests come from; made once per connection.
#[derive(Debug)]
pub struct Origin {
    pub peer: SocketAddr,
    /// Whom it called, if the kernel redirected it.
    pub called: Option<Called>,
    forwarded_for: HeaderValue,
    proto: HeaderValue,
}

impl Origin {
    pub fn new(peer: SocketAddr) -> Self {
        Self::of(peer, None)
    }

    pub fn of(peer: SocketAddr, called: Option<Called>) -> Self {
        let forwarded_for = written(peer.ip().to_canonical());
        Self { peer, called, forwarded_for, proto: HeaderValue::from_static("http") }
    }
}

/// An address as a header has it. Not by `Display`, which took 3 % of what pillion itself does for a connection of one request.
fn written(ip: IpAddr) -> HeaderValue {
    let mut text = BytesMut::with_capacity("255.255.255.255.".len());
    match ip {
        IpAddr::V4(ip) => {
            for octet in ip.octets() {
                text.put_slice(itoa::Buffer::new().format(octet).as_bytes());
                text.put_u8(b'.');
            }
            text.truncate(text.len() - 1);
        }
        IpAddr::V6(ip) => text.put_slice(ip.to_string().as_bytes()),
    }
    HeaderValue::from_maybe_shared(text.freeze()).unwrap_or_else(|_| HeaderValue::from_static("unknown"))
}

pub fn is_upgrade(headers: &HeaderMap) -> bool {
    headers.contains_key(UPGRADE)
        && headers.get_all(CONNECTION).iter().flat_map(tokens).any(|token| token.eq_ignore_ascii_case(b"upgrade"))
}

/// Which of the fields that a proxy must deal with a message has. Found in one pass over its names, because most messages
/// have hardly any of them, and each look-up in the map costs a hash.
#[derive(Debug, Default)]
pub struct Found {
    connection: bool,
    te: bool,
    upgrade: bool,
    /// Others that concern one connection only.
    hop: bool,
    forwarded_for: bool,
    forwarded_proto: bool,
    forwarded_host: bool,
    request_id: bool,
    attempt: bool,
    timeout: bool,
    cookie: bool,
}

impl Found {
    pub fn new(headers: &HeaderMap) -> Self {
        let mut found = Self::default();
        for name in headers.keys() {
            match name.as_str() {
                "connection" => found.connection = true,
                "te" => found.te = true,
                "upgrade" => found.upgrade = true,
                "transfer-encoding" | "keep-alive" | "proxy-connection" | "proxy-authorization" | "http2-settings" => {
                    found.hop = true
                }
                "x-forwarded-for" => found.forwarded_for = true,
                "x-forwarded-proto" => found.forwarded_proto = true,
                "x-forwarded-host" => found.forwarded_host = true,
                "x-request-id" => found.request_id = true,
                "x-pillion-attempt" => found.attempt = true,
                "grpc-timeout" | "x-request-timeout" => found.timeout = true,
                "cookie" => found.cookie = true,
                _ => {}
            }
        }
        found
    }

    /// Removes what concerns one connection only, and what `Connection` names as such (RFC 9110, section 7.6.1).
    fn strip_hop_by_hop(&self, headers: &mut HeaderMap) {
        if self.connection {
            let fields = headers.get_all(CONNECTION).iter().flat_map(tokens);
            let named: Vec<HeaderName> = fields.filter_map(|token| HeaderName::from_bytes(token).ok()).collect();
            headers.remove(CONNECTION);
            for name in named.into_iter().filter(|name| name != HOST) {
                headers.remove(name);
            }
        }
        if self.te || self.upgrade || self.hop {
            let hop =
                [KEEP_ALIVE, PROXY_CONNECTION, PROXY_AUTHORIZATION, TE, TRANSFER_ENCODING, UPGRADE, HTTP2_SETTINGS];
            for name in hop {
                headers.remove(name);
            }
        }
    }
}

/// Host and port. The user, and perhaps a password, before them are neither for logs nor for upstreams (RFC 9110, section 4.2.4).
pub fn without_user(authority: &Authority) -> &str {
    let authority = authority.as_str();
    authority.rsplit_once('@').map_or(authority, |(_, host)| host)
}

/// Removes what `Connection` names as being for one connection only, and the names; all but those that a proxy acts on itself.
pub fn drop_named_by_connection(headers: &mut HeaderMap) {
    const KEPT: [&str; 5] = ["upgrade", "te", "close", "keep-alive", "http2-settings"];
    let fields = headers.get_all(CONNECTION).iter().flat_map(tokens);
    let named: Vec<HeaderName> = fields.filter_map(|token| HeaderName::from_bytes(token).ok()).collect();
    let (kept, dropped): (Vec<_>, Vec<_>) = named.into_iter().partition(|name| KEPT.contains(&name.as_str()));
    if dropped.is_empty() {
        return;
    }
    headers.remove(CONNECTION);
    for name in kept {
        headers.append(CONNECTION, HeaderValue::from(name));
    }
    for name in dropped.into_iter().filter(|name| name != HOST) {
        headers.remove(name);
    }
}

/// Makes the request's headers those of the next hop: without hop-by-hop fields, with `x-forwarded-*` and `x-request-id`, and
/// on its way to another application with the name of ours, to our own with the version that it is for.
pub fn prepare_request(parts: &mut request::Parts, found: &Found, origin: &Origin, way: &Way) {
    let headers = &mut parts.headers;
    let upgrade = if found.upgrade && is_upgrade(headers) { headers.get(UPGRADE).cloned() } else { None };
    let trailers =
        found.te && headers.get_all(TE).iter().flat_map(tokens).any(|token| token.eq_ignore_ascii_case(b"trailers"));
    found.strip_hop_by_hop(headers);
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    // HTTP/2's own upgrade from HTTP/1 ends here: it is about this connection, and a client must take no for an answer.
    if let Some(upgrade) = upgrade.filter(|upgrade| !upgrade.as_bytes().eq_ignore_ascii_case(b"h2c")) {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, upgrade);
    }
    // The authority of an absolute target wins over `Host` (RFC 9112, section 3.2.2), and is `:authority` of HTTP/2.
    if let Some(authority) = parts.uri.authority() {
        let host = without_user(authority);
        let same = headers.get(HOST).is_some_and(|there| there.as_bytes() == host.as_bytes());
        if !same && let Ok(host) = HeaderValue::from_str(host) {
            headers.insert(HOST, host);
        }
    }
    // HTTP/2 clients may send it in pieces, which HTTP/1 does not know (RFC 9113, section 8.2.3).
    if found.cookie && headers.get_all(COOKIE).iter().nth(1).is_some() {
        let pieces: Vec<&[u8]> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
        if let Ok(whole) = HeaderValue::from_bytes(&pieces.join(&b"; "[..])) {
            headers.insert(COOKIE, whole);
        }
    }
    if found.forwarded_for {
        let all = headers.get_all(X_FORWARDED_FOR).iter().map(HeaderValue::as_bytes);
        let all: Vec<&[u8]> = all.chain([origin.forwarded_for.as_bytes()]).collect();
        if let Ok(all) = HeaderValue::from_bytes(&all.join(&b", "[..])) {
            headers.insert(X_FORWARDED_FOR, all);
        }
    } else {
        headers.append(X_FORWARDED_FOR, origin.forwarded_for.clone());
    }
    if !found.forwarded_proto {
        headers.append(X_FORWARDED_PROTO, origin.proto.clone());
    }
    if !found.forwarded_host
        && let Some(host) = headers.get(HOST).cloned()
    {
        headers.append(X_FORWARDED_HOST, host);
    }
    match way {
        Way::Outbound { caller, .. } => {
            // What the caller's pillion has said is for the local application; what that passes on is said anew.
            if found.attempt {
                headers.remove(X_PILLION_ATTEMPT);
            }
            if let Some(caller) = caller {
                headers.insert(X_PILLION_CALLER, caller.clone());
            }
        }
        Way::Inbound { marking, .. } => {
            if let Some(marking) = marking {
                marking.apply(headers);
            }
        }
    }
    if !found.request_id {
        headers.append(X_REQUEST_ID, request_id());
    }
}

/// Makes the response's headers those of the previous hop.
pub fn prepare_response<B>(response: &mut Response<B>) {
    // In any other response it is an offer about the connection to the upstream, and HTTP/2 forbids it.
    let switches = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    let found = Found::new(headers);
    let upgrade = headers.get(UPGRADE).filter(|_| switches).cloned();
    found.strip_hop_by_hop(headers);
    if let Some(upgrade) = upgrade {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, upgrade);
    }
}

/// 32 hexadecimal digits. Not a secret, so the quick generator is enough.
fn request_id() -> HeaderValue {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let (mut random, mut text) = (fastrand::u128(..), [0; 32]);
    for digit in &mut text {
        *digit = DIGITS[(random & 0xf) as usize];
        random >>= 4;
    }
    let mut value = HeaderValue::from_bytes(&text).unwrap_or_else(|_| HeaderValue::from_static("0"));
    // Not a secret: HPACK then leaves it out of its table, where it would push out what does come again.
    value.set_sensitive(true);
    value
}

/// When the caller wants its answer at the latest, by `grpc-timeout` or `x-request-timeout`. What is
/// left of it at each try is written back with [`put_deadline`].
pub fn deadline(headers: &HeaderMap, found: &Found, now: Instant) -> Result<Option<Instant>, ProxyError> {
    if !found.timeout {
        return Ok(None);
    }
    let mut timeout: Option<Duration> = None;
    for (name, parse) in
        [(GRPC_TIMEOUT, parse_grpc as fn(&str) -> Option<Duration>), (X_REQUEST_TIMEOUT, parse_timeout)]
    {
        let Some(value) = headers.get(&name) else { continue };
        let Some(asked) = value.to_str().ok().and_then(parse) else {
            let detail = format!("the value of {name} is not a timeout");
            return Err(ProxyError::new(Reason::BadRequest, detail));
        };
        timeout = Some(timeout.map_or(asked, |other| other.min(asked)));
    }
    let deadline = timeout.map(|timeout| now + timeout);
    if deadline.is_some_and(|deadline| deadline <= now) {
        return Err(past_deadline());
    }
    Ok(deadline)
}

/// The caller had asked for its answer by now.
pub fn past_deadline() -> ProxyError {
    ProxyError::new(Reason::DeadlineExceeded, "the caller's deadline is past")
}

/// Writes what is left until `deadline` into those of the two headers that the request has.
pub fn put_deadline(headers: &mut HeaderMap, deadline: Instant) {
    // Never zero: that would mean "past" to some and "none" to others.
    let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
    let mut text = String::with_capacity(16);
    if headers.contains_key(GRPC_TIMEOUT) {
        let micros = left.as_micros();
        let written = if micros < 100_000_000 {
            write!(text, "{micros}u")
        } else if left.as_millis() < 100_000_000 {
            write!(text, "{}m", left.as_millis())
        } else {
            write!(text, "{}S", left.as_secs().min(99_999_999))
        };
        if let (Ok(()), Ok(value)) = (written, HeaderValue::from_str(&text)) {
            headers.insert(GRPC_TIMEOUT, value);
        }
    }
    if headers.contains_key(X_REQUEST_TIMEOUT) {
        text.clear();
        if let (Ok(()), Ok(value)) = (write!(text, "{}ms", left.as_millis()), HeaderValue::from_str(&text)) {
            headers.insert(X_REQUEST_TIMEOUT, value);
        }
    }
}

/// At most 8 digits and a unit, as the gRPC protocol has it.
fn parse_grpc(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(count * 3600),
        "M" => Duration::from_secs(count * 60),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return None,
    })
}

/// A number with a unit (`250ms`, `3s`), or milliseconds alone, as Envoy's timeout headers have them.
fn parse_timeout(text: &str) -> Option<Duration> {
    // More than a year is a mistake, and would overflow the clock.
    const LIMIT: Duration = Duration::from_secs(366 * 86_400);
    let timeout = match text.parse() {
        Ok(millis) => Duration::from_millis(millis),
        Err(_) => crate::config::human::parse(text).ok()?,
    };
    (timeout <= LIMIT).then_some(timeout)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config, route};
    use http::Request;

    fn prepared(fields: &[(&str, &str)]) -> HeaderMap {
        prepared_by(None, fields)
    }

    /// By a pillion whose application is called `caller`.
    fn prepared_by(caller: Option<&'static str>, fields: &[(&str, &str)]) -> HeaderMap {
        let builder = fields.iter().fold(Request::get("/"), |b, (name, value)| b.header(*name, *value));
        let (mut parts, ()) = builder.body(()).unwrap().into_parts();
        let found = Found::new(&parts.headers);
        let rule = route::Rule::new(&config::Listener::egress());
        let way = Way::Outbound { rule, caller: caller.map(HeaderValue::from_static), tunnels: None };
        prepare_request(&mut parts, &found, &Origin::new("10.1.2.3:9".parse().unwrap()), &way);
        parts.headers
    }

    #[test]
    fn addresses_are_written_as_they_are_read() {
        for text in ["1.2.3.4", "255.255.255.255", "0.0.0.0", "::1", "2001:db8::ff00:42:8329"] {
            let ip: IpAddr = text.parse().unwrap();
            assert_eq!((written(ip), ip.to_string().as_str()), (HeaderValue::from_static(text), text));
        }
    }

    #[test]
    fn hop_by_hop_fields_end_here_with_those_that_connection_names() {
        let headers = prepared(&[
            ("connection", "close, X-Private"),
            ("connection", "x-second"),
            ("x-private", "1"),
            ("x-second", "1"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "keep-alive"),
            ("proxy-authorization", "Basic dXNlcjpzZWNyZXQ="),
            ("te", "gzip, trailers"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "websocket"),
            ("traceparent", "00-1-2-01"),
            ("baggage", "a=b"),
        ]);
        for gone in [
            "connection",
            "x-private",
            "x-second",
            "keep-alive",
            "proxy-connection",
            "proxy-authorization",
            "transfer-encoding",
            "upgrade",
        ] {
            assert!(!headers.contains_key(gone), "{gone}");
        }
        assert_eq!(
            (&headers["te"], &headers["traceparent"], &headers["baggage"]),
            (
                &HeaderValue::from_static("trailers"),
                &HeaderValue::from_static("00-1-2-01"),
                &HeaderValue::from_static("a=b")
            )
        );
    }

    #[test]
    fn an_upgrade_goes_through_and_h2c_does_not() {
        let headers = prepared(&[("connection", "Upgrade, keep-alive"), ("upgrade", "websocket")]);
        assert_eq!(
            (&headers["connection"], &headers["upgrade"]),
            (&HeaderValue::from_static("upgrade"), &HeaderValue::from_static("websocket"))
        );
        assert!(!prepared(&[("connection", "Upgrade, HTTP2-Settings"), ("upgrade", "h2c")]).contains_key("upgrade"));
    }

    #[test]
    fn only_a_101_keeps_its_upgrade() {
        for (status, kept) in [(101, true), (200, false), (426, false)] {
            let builder = Response::builder().status(status).header("connection", "Upgrade").header("upgrade", "h2c");
            let mut response = builder.body(()).unwrap();
            prepare_response(&mut response);
            let headers = response.headers();
            assert_eq!((headers.contains_key("upgrade"), headers.contains_key("connection")), (kept, kept), "{status}");
        }
    }

    #[test]
    fn the_next_hop_learns_who_asked() {
        let headers = prepared(&[("host", "users"), ("x-forwarded-for", "1.1.1.1"), ("x-forwarded-proto", "https")]);
        assert_eq!(headers["x-forwarded-for"], "1.1.1.1, 10.1.2.3");
        assert_eq!(headers["x-forwarded-proto"], "https");
        assert_eq!(headers["x-forwarded-host"], "users");
        assert_eq!(headers["x-request-id"].len(), 32);
        assert_eq!(prepared(&[("x-request-id", "mine")])["x-request-id"], "mine");
        assert!(!prepared(&[("x-pillion-attempt", "7")]).contains_key("x-pillion-attempt"));
    }

    #[test]
    fn the_callers_name_is_ours_to_say_if_we_have_one() {
        let by_app = ("x-pillion-caller", "somebody");
        assert_eq!(
            prepared_by(Some("web"), &[by_app, by_app]).get_all("x-pillion-caller").iter().collect::<Vec<_>>(),
            ["web"]
        );
        assert_eq!(prepared_by(Some("web"), &[])["x-pillion-caller"], "web");
        assert!(!prepared(&[]).contains_key("x-pillion-caller"));
        assert_eq!(prepared(&[by_app])["x-pillion-caller"], "somebody");
    }

    #[tokio::test(start_paused = true)]
    async fn the_shorter_timeout_counts_and_is_passed_on_reduced() {
        let mut headers = HeaderMap::new();
        headers.insert("grpc-timeout", HeaderValue::from_static("2S"));
        headers.insert("x-request-timeout", HeaderValue::from_static("1500ms"));
        let now = Instant::now();
        let deadline = deadline(&headers, &Found::new(&headers), now).unwrap().unwrap();
        assert_eq!(deadline - now, Duration::from_millis(1500));
        tokio::time::advance(Duration::from_millis(400)).await;
        put_deadline(&mut headers, deadline);
        assert_eq!(
            (&headers["grpc-timeout"], &headers["x-request-timeout"]),
            (&HeaderValue::from_static("1100000u"), &HeaderValue::from_static("1100ms"))
        );
    }

    #[test]
    fn a_timeout_that_is_none_or_past_is_refused() {
        for (name, value, reason) in [
            ("grpc-timeout", "123456789S", Reason::BadRequest),
            ("grpc-timeout", "5x", Reason::BadRequest),
            ("grpc-timeout", "S", Reason::BadRequest),
            ("grpc-timeout", "é", Reason::BadRequest),
            ("x-request-timeout", "soon", Reason::BadRequest),
            ("x-request-timeout", "99999999999999", Reason::BadRequest),
            ("grpc-timeout", "0m", Reason::DeadlineExceeded),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(HeaderName::from_static(name), HeaderValue::from_bytes(value.as_bytes()).unwrap());
            assert_eq!(
                deadline(&headers, &Found::new(&headers), Instant::now()).unwrap_err().reason,
                reason,
                "{name}: {value}"
            );
        }
    }
}
