use super::*;
use proptest::prelude::*;
use rustls::{ClientConnection, pki_types::ServerName};
use std::sync::Arc;

#[test]
fn every_cut_of_the_preface_waits_for_more() {
    for length in 0..H2_PREFACE.len() {
        assert_eq!(detect(&H2_PREFACE[..length]), Detected::Unsure);
    }
    assert_eq!(detect(H2_PREFACE), Detected::Http2);
    assert_eq!(detect(&[H2_PREFACE, b"more"].concat()), Detected::Http2);
}

#[test]
fn the_first_byte_that_differs_decides_for_http1() {
    for start in ["G", "PO", "PR ", "PRI /", "PRI * HTTP/1.1\r\n"] {
        assert_eq!(detect(start.as_bytes()), Detected::Http1, "{start}");
    }
}

fn look(start: &[u8]) -> Protocol {
    Detector::default().look(start)
}

/// What rustls sends first.
fn client_hello() -> Vec<u8> {
    let config = crate::net::tls::Client { unverified: true, ..Default::default() }.config(&["h2"]).unwrap();
    let mut client = ClientConnection::new(Arc::new(config), ServerName::try_from("users").unwrap()).unwrap();
    let mut wire = Vec::new();
    client.write_tls(&mut wire).unwrap();
    wire
}

/// Checks that it is unsure before `after` bytes and has the answer from there on, wherever it is cut.
fn check(name: &str, start: &[u8], answer: &Protocol, after: usize) {
    let expected = |length| if length < after { &Protocol::Unsure } else { answer };
    let mut byte_by_byte = Detector::default();
    for first in 0..=start.len() {
        assert_eq!(look(&start[..first]), *expected(first), "{name}: the first {first} bytes");
        assert_eq!(byte_by_byte.look(&start[..first]), *expected(first), "{name}: byte {first} by itself");
        // Two segments.
        let mut detector = Detector::default();
        detector.look(&start[..first]);
        assert_eq!(detector.look(start), *expected(start.len()), "{name}: cut at {first}");
    }
}

#[test]
fn every_protocol_cut_anywhere() {
    let hello = client_hello();
    let Protocol::Tls(read) = look(&hello) else { panic!("a ClientHello is not TLS") };
    assert_eq!((read.server_name.as_deref(), read.alpn().next()), (Some("users"), Some(&b"h2"[..])));
    let with_more = [&hello[..], b"\x14\x03\x03\0\x01\x01"].concat();
    let tls = Protocol::Tls(read);
    check("TLS", &hello, &tls, hello.len());
    check("TLS with data", &with_more, &tls, hello.len());
    check("HTTP/2", H2_PREFACE, &Protocol::Http2, 24);
    check("HTTP/2 with data", &[H2_PREFACE, &[0, 0, 0, 4, 0, 0, 0, 0, 0]].concat(), &Protocol::Http2, 24);

    // The request lines of HTTP/1, of which nothing after the version counts.
    for line in [
        "GET / HTTP/1.1",
        "GET / HTTP/1.0",
        "\r\nGET / HTTP/1.1",
        "\r\n\r\nPOST /a?b=c HTTP/1.1",
        "OPTIONS * HTTP/1.1",
        "CONNECT users:443 HTTP/1.1",
        "CONNECT [2001:db8::1]:443 HTTP/1.1",
        "GET http://users/a HTTP/1.1",
        "PRI * HTTP/1.1",
        "PROPFIND /a HTTP/1.1",
        "UPDATEREDIRECTREF /a HTTP/1.1",
        "M-SEARCH * HTTP/1.1",
        "get /b\u{fc}cher HTTP/1.1",
    ] {
        for rest in ["", "\r\nHost: users\r\n\r\n", "\r\nContent-Length: 3\r\n\r\nabcGET / HTTP/1.1\r\n", "\n"] {
            check(line, format!("{line}{rest}").as_bytes(), &Protocol::Http1, line.len());
        }
    }

    // And what the clients of others say first, with the number of bytes after which it cannot be anything that we know.
    for (name, start, after) in [
        ("PostgreSQL", &b"\0\0\0\x08\x04\xd2\x16\x2f"[..], 1),
        ("PostgreSQL, TLS before", b"\0\0\0\x54\0\x03\0\0user\0app\0", 1),
        ("MySQL", b"\x20\0\0\x01\x85\xae\xff\0", 1),
        ("MySQL, as long as a letter", b"U\0\0\x01\x85\xa6\xff\x19", 2),
        ("MySQL, as long as a ClientHello's type", b"\x16\x03\0\x01\x85\xa6\xff\x19\0", 6),
        ("Redis", b"*1\r\n$4\r\nPING\r\n", 3),
        ("Redis 6", b"*2\r\n$5\r\nHELLO\r\n$1\r\n3\r\n", 3),
        ("Redis, inline", b"PING\r\n", 5),
        ("Redis, inline with a key", b"GET key\r\n", 8),
        ("Redis, inline with more", b"SET key value\r\n", 9),
        ("memcached", b"get key\r\n", 8),
        ("memcached, two keys", b"get key Http\r\n", 10),
        ("memcached, set", b"set key 0 0 5\r\nhello\r\n", 9),
        ("memcached, binary", b"\x80\x0b\0\0", 1),
        ("memcached, version", b"version\r\n", 8),
        ("NATS", b"CONNECT {\"verbose\":false,\"lang\":\"go\"}\r\nPING\r\n", 9),
        ("NATS, a server", b"INFO {\"server_id\":\"a\"}\r\n", 6),
        ("NATS, a ping", b"PING\r\n", 5),
        ("AMQP 0-9-1", b"AMQP\0\0\x09\x01", 5),
        ("AMQP 1.0", b"AMQP\x03\x01\0\0", 5),
        ("Kafka", b"\0\0\0\x23\0\x12\0\x03\0\0\0\0", 1),
        ("MongoDB", b"\x3a\0\0\0\x01\0\0\0\0\0\0\0\xd4\x07\0\0", 1),
        ("MongoDB, as long as a letter", b"A\x01\0\0\x01\0\0\0\0\0\0\0\xdd\x07\0\0", 2),
        ("MongoDB, as long as a ClientHello", b"\x16\x03\0\0\x01\0\0\0\0\0\0\0\xdd\x07\0\0", 6),
        ("SSH", b"SSH-2.0-OpenSSH_9.2\r\n", 20),
        ("SSH with a comment", b"SSH-2.0-OpenSSH_9.6p1 Ubuntu-3\r\n", 31),
        ("SSH with a long name", b"SSH-2.0-0123456789012345678901234567890\r\n", 33),
        ("SMTP", b"EHLO mail.example\r\n", 18),
        ("SMTP, the next command", b"MAIL FROM:<a@b.example>\r\n", 24),
        ("SMTP, a server", b"220 mail.example ESMTP\r\n", 18),
        ("IMAP", b"a1 LOGIN user password\r\n", 10),
        ("POP3", b"USER name\r\n", 10),
        ("FTP", b"USER anonymous\r\n", 15),
        ("IRC", b"NICK me\r\nUSER me 0 * :Me\r\n", 8),
        ("IRC, capabilities", b"CAP LS 302\r\n", 8),
        ("STOMP", b"CONNECT\naccept-version:1.2\n", 8),
        ("MQTT", b"\x10\x10\0\x04MQTT\x04\x02\0\x3c", 1),
        ("ZooKeeper", b"\0\0\0\x2d\0\0\0\0", 1),
        ("Cassandra", b"\x04\0\0\0\x05\0\0\0\0", 1),
        ("SQL Server", b"\x12\x01\0\x2f\0\0\x01\0", 1),
        ("Oracle", b"\0\x3a\0\0\x01\0\0\0", 1),
        ("LDAP", b"0\x0c\x02\x01\x01\x60\x07\x02\x01\x03", 2),
        ("Elasticsearch", b"ES\0\0\0\x4d", 3),
        ("DNS", b"\0\x1d\x12\x34\x01\0\0\x01", 1),
        ("RDP", b"\x03\0\0\x13\x0e\xe0", 1),
        ("Thrift", b"\x80\x01\0\x01\0\0\0\x04ping", 1),
        ("git", b"0033git-upload-pack /a.git\0host=b\0", 27),
        ("rsync", b"@RSYNCD: 31.0\n", 1),
        ("XMPP", b"<?xml version='1.0'?>", 1),
        ("JSON", b"{\"jsonrpc\":\"2.0\"}", 1),
        ("statsd", b"users.calls:1|c\n", 12),
        ("Graphite", b"users.calls 1.5 1700000000\n", 17),
        ("PROXY protocol 1", b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\nGET / HTTP/1.1\r\n", 12),
        ("PROXY protocol 1, unknown", b"PROXY UNKNOWN\r\nGET / HTTP/1.1\r\n", 14),
        ("PROXY protocol 2", b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c", 5),
        ("RTSP", b"OPTIONS rtsp://users/a RTSP/1.0\r\n", 24),
        ("SIP", b"INVITE sip:a@b.example SIP/2.0\r\n", 24),
        ("HTTP/0.9", b"GET /\r\n", 6),
        ("HTTP/1, a server", b"HTTP/1.1 200 OK\r\n", 5),
        ("HTTP/1.2", b"GET / HTTP/1.2\r\n", 14),
        ("HTTP/2 as a version", b"GET / HTTP/2.0\r\n", 12),
        ("almost a preface", b"PRI * HTTP/2.0\r\n\r\nSX\r\n\r\n", 20),
        ("a space before the method", b" GET / HTTP/1.1\r\n", 1),
        ("a control character in the target", b"GET /\x7f HTTP/1.1\r\n", 6),
        ("two spaces", b"GET  / HTTP/1.1\r\n", 5),
        ("two spaces after the target", b"GET /  HTTP/1.1\r\n", 7),
        ("an empty line that ends with LF", b"\nGET / HTTP/1.1\r\n", 1),
        ("half an empty line", b"\rGET / HTTP/1.1\r\n", 2),
        ("an alert of TLS", b"\x15\x03\x03\0\x02\x02\x28", 1),
        ("TLS, a server", b"\x16\x03\x03\0\x7a\x02\0\0\x76\x03\x03", 6),
        ("SSL 2", b"\x80\x2e\x01\x03\x01\0\x15", 1),
        ("SSL 2, for DTLS", b"\x16\xfe\xff\0\0", 2),
        ("zeros", &[0; 40], 1),
    ] {
        check(name, start, &Protocol::Other, after);
    }
}

#[test]
fn there_is_an_end_to_being_unsure() {
    let line = |length: usize| format!("GET /{} HTTP/1.1", "a".repeat(length - "GET / HTTP/1.1".len())).into_bytes();
    assert_eq!(look(&line(LONGEST_UNSURE)), Protocol::Http1);
    let longer = line(LONGEST_UNSURE + 1);
    let empty_lines = b"\r\n".repeat(LONGEST_UNSURE);
    for start in [longer, empty_lines] {
        assert_eq!(look(&start[..LONGEST_UNSURE - 1]), Protocol::Unsure);
        assert_eq!(look(&start[..LONGEST_UNSURE]), Protocol::Other);
        assert_eq!(look(&start), Protocol::Other);
    }
    for (length, protocol) in [(LONGEST_METHOD, Protocol::Http1), (LONGEST_METHOD + 1, Protocol::Other)] {
        assert_eq!(look(format!("{} / HTTP/1.1", "M".repeat(length)).as_bytes()), protocol);
    }
}

proptest! {
    /// In pieces it comes to the same, and no later.
    #[test]
    fn an_answer_holds_whatever_follows(
        known in prop::sample::select(vec!["", "GET /", "PRI * HTTP/2.0\r\n", "\x16\x03\x01\0\x7a\x01\0\0\x76\x03", "\r\n"]),
        rest in prop::collection::vec(any::<u8>(), 0..40),
        text in "[A-Z /*.0-9\r\n]{0,20}",
    ) {
        let start = [known.as_bytes(), text.as_bytes(), &rest].concat();
        let mut detector = Detector::default();
        let mut answer = Protocol::Unsure;
        for length in 0..=start.len() {
            let now = detector.look(&start[..length]);
            prop_assert_eq!(&now, &look(&start[..length]));
            prop_assert!(answer == Protocol::Unsure || now == answer);
            answer = now;
        }
    }

    /// What the codec reads is detected.
    #[test]
    fn requests_are_found(method in "[A-Za-z!#$%&'*+.^_`|~-]{1,32}", target in "(/|\\*|[a-z0-9])[!-~]{0,60}", minor in 0..=1_u8) {
        let line = format!("{method} {target} HTTP/1.{minor}\r\nHost: a\r\n\r\n");
        let mut parsed = httparse::Request::new(&mut []);
        let _ = parsed.parse(line.as_bytes());
        prop_assert_eq!(parsed.method, Some(&method[..]));
        prop_assert_eq!(parsed.version, Some(minor));
        prop_assert_eq!(look(line.as_bytes()), Protocol::Http1);
    }
}
