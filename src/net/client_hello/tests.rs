use super::*;
use proptest::prelude::*;
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, SupportedProtocolVersion,
    crypto::ring,
    pki_types::ServerName,
    server::Acceptor,
    version::{TLS12, TLS13},
};
use std::sync::Arc;

/// What rustls sends for a server of that name.
fn made_by_rustls(
    name: &str,
    protocols: &[&str],
    versions: &[&'static SupportedProtocolVersion],
    fragment: Option<usize>,
) -> Vec<u8> {
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
    config.max_fragment_size = fragment;
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut client = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut wire = Vec::new();
    while client.wants_write() {
        client.write_tls(&mut wire).unwrap();
    }
    wire
}

/// What rustls reads there, if it accepts it.
fn read_by_rustls(mut wire: &[u8]) -> Option<(Option<String>, Vec<Vec<u8>>)> {
    let mut acceptor = Acceptor::default();
    while !wire.is_empty() {
        acceptor.read_tls(&mut wire).ok()?;
        if let Some(accepted) = acceptor.accept().ok()? {
            let hello = accepted.client_hello();
            let name = hello.server_name().map(|name| name.trim_end_matches('.').to_owned());
            return Some((name, hello.alpn().into_iter().flatten().map(<[u8]>::to_vec).collect()));
        }
    }
    None
}

fn read(wire: &[u8]) -> Result<Option<ClientHello>, Malformed> {
    HelloScan::default().find(wire)
}

fn read_whole(wire: &[u8]) -> ClientHello {
    read(wire).unwrap().unwrap()
}

fn protocols(hello: &ClientHello) -> Vec<Vec<u8>> {
    hello.alpn().map(<[u8]>::to_vec).collect()
}

/// With a length of so many bytes before it.
fn vector(length_bytes: usize, content: &[u8]) -> Vec<u8> {
    [&content.len().to_be_bytes()[size_of::<usize>() - length_bytes..], content].concat()
}

fn extension(kind: usize, content: &[u8]) -> Vec<u8> {
    [&(kind as u16).to_be_bytes(), &vector(2, content)[..]].concat()
}

fn host_name(name: &[u8]) -> Vec<u8> {
    [&[HOST_NAME as u8], &vector(2, name)[..]].concat()
}

fn named(name: &[u8]) -> Vec<u8> {
    extension(SERVER_NAME, &vector(2, &host_name(name)))
}

fn message(session: &[u8], rest: &[u8]) -> Vec<u8> {
    let fixed = [&[3, 3][..], &[7; 32], &vector(1, session), &vector(2, &[0x13, 1]), &vector(1, &[0])].concat();
    [&[CLIENT_HELLO as u8], &vector(3, &[&fixed, rest].concat())[..]].concat()
}

fn with_extensions(extensions: &[Vec<u8>]) -> Vec<u8> {
    message(&[9; 32], &vector(2, &extensions.concat()))
}

/// In records of these sizes, and as long as they may be from then on.
fn in_records(message: &[u8], sizes: &[usize]) -> Vec<u8> {
    let (mut wire, mut rest) = (Vec::new(), message);
    let mut sizes = sizes.iter().copied().chain(iter::repeat(LONGEST_RECORD));
    while !rest.is_empty() {
        let (record, after) = rest.split_at(sizes.next().unwrap().min(rest.len()));
        wire.extend([&[HANDSHAKE, 3, 1], &vector(2, record)[..]].concat());
        rest = after;
    }
    wire
}

/// However it arrives, it is read as soon as it is whole.
fn read_in_pieces(wire: &[u8]) -> ClientHello {
    let hello = read_whole(wire);
    let mut scan = HelloScan::default();
    for length in 0..wire.len() {
        assert_eq!(read(&wire[..length]), Ok(None), "the first {length} of {} bytes", wire.len());
        assert_eq!(scan.find(&wire[..length]), Ok(None));
    }
    assert_eq!(scan.find(wire).unwrap().as_ref(), Some(&hello));
    assert_eq!(read_whole(&[wire, b"what comes then"].concat()), hello);
    hello
}

#[test]
fn what_rustls_sends_is_read_however_it_is_cut() {
    for versions in [&[&TLS12][..], &[&TLS13], &[&TLS12, &TLS13]] {
        for fragment in [None, Some(32), Some(100)] {
            let wire = made_by_rustls("Users.example", &["h2", "http/1.1"], versions, fragment);
            let hello = read_in_pieces(&wire);
            assert_eq!(hello.server_name.as_deref(), Some("users.example"));
            assert_eq!(protocols(&hello), [&b"h2"[..], b"http/1.1"]);
            assert_eq!(read_by_rustls(&wire), Some((hello.server_name.clone(), protocols(&hello))));
        }
    }
    let hello = read_whole(&made_by_rustls("192.0.2.1", &[], &[&TLS13], None));
    assert_eq!(hello, ClientHello::default());
}

#[test]
fn a_record_may_hold_a_single_byte() {
    let message = with_extensions(&[named(b"users.example"), extension(ALPN, &vector(2, b"\x02h2"))]);
    let hello = read_in_pieces(&in_records(&message, &vec![1; message.len()]));
    assert_eq!(hello, read_whole(&in_records(&message, &[])));
    assert_eq!((hello.server_name.as_deref(), protocols(&hello)), (Some("users.example"), vec![b"h2".to_vec()]));
}

#[test]
fn old_clients_and_new_extensions() {
    // TLS 1.0 without extensions, and with an empty list of them.
    for rest in [&[][..], &[0, 0]] {
        assert_eq!(read_in_pieces(&in_records(&message(&[], rest), &[])), ClientHello::default());
    }
    // GREASE around, and a ClientHello within, whose name is not for those on the way.
    let hidden = extension(0xfe0d, &with_extensions(&[named(b"hidden.example")]));
    let grease = [extension(0x0a0a, b""), extension(0xfafa, b"\0")];
    let protocols = extension(ALPN, &vector(2, b"\x02\x1a\x1a\x08http/1.1"));
    let message = with_extensions(&[grease[0].clone(), hidden, named(b"outer.example"), protocols, grease[1].clone()]);
    let hello = read_in_pieces(&in_records(&message, &[50]));
    assert_eq!(hello.server_name.as_deref(), Some("outer.example"));
    assert_eq!(hello.alpn().collect::<Vec<_>>(), [&b"\x1a\x1a"[..], b"http/1.1"]);
}

#[test]
fn a_server_name_is_a_dns_name() {
    let long = ["a".repeat(63), "b".repeat(63), "c".repeat(63), "d".repeat(61)].join(".");
    let dotted = format!("{long}.");
    for (sent, name) in [
        ("users", Some("users")),
        ("_grpc.Users.EXAMPLE.", Some("_grpc.users.example")),
        ("xn--bcher-kva.example", Some("xn--bcher-kva.example")),
        (&long, Some(&long[..])),
        (&dotted, Some(&long)),
        (&format!("{long}d"), None),
        (&"a".repeat(300), None),
        ("192.0.2.1", None),
        ("192.0.2.1.", None),
        ("2001:db8::1", None),
        ("[::1]", None),
        ("bücher.example", None),
        ("a b", None),
        ("users\0.example", None),
        ("users..example", None),
        (".", None),
        ("*.example", None),
    ] {
        let hello = read_whole(&in_records(&with_extensions(&[named(sent.as_bytes())]), &[]));
        assert_eq!(hello.server_name.as_deref(), name, "{sent}");
    }
    let not_text = read_whole(&in_records(&with_extensions(&[named(b"a\xff")]), &[]));
    assert_eq!(not_text.server_name, None);
    // A type that does not exist yet begins with a length as well (RFC 6066, section 3).
    let list = [&[5, 0, 2, b'x', b'y'], &host_name(b"users")[..]].concat();
    let hello = read_whole(&in_records(&with_extensions(&[extension(SERVER_NAME, &vector(2, &list))]), &[]));
    assert_eq!(hello.server_name.as_deref(), Some("users"));
}

#[test]
fn what_is_malformed_is_refused_with_its_place() {
    let one = |extension: Vec<u8>| in_records(&with_extensions(&[extension]), &[]);
    let raw = |rest: &[u8]| in_records(&message(&[], rest), &[]);
    let changed = |at: usize, byte| {
        let mut wire = raw(&[]);
        wire[at] = byte;
        wire
    };
    let two_names = vector(2, &[host_name(b"a"), host_name(b"b")].concat());
    let mut two_records = in_records(&with_extensions(&[named(b"users")]), &[60]);
    two_records[65] = 23;
    for (wire, expected) in [
        (b"GET".to_vec(), "a record of type 71 at byte 0, expected a handshake (22)"),
        (b"\x16\x02".to_vec(), "major version 2 at byte 1, expected that of TLS (3)"),
        (b"\x16\x03\x09\x41".to_vec(), "the length of a record at byte 3, expected 1 to 16384"),
        (b"\x16\x03\x01\x40\x01".to_vec(), "the length of a record at byte 3, expected 1 to 16384"),
        (b"\x16\x03\x01\x00\x00".to_vec(), "the length of a record at byte 3, expected 1 to 16384"),
        (b"\x16\x03\x01\x01\x00\x02".to_vec(), "a handshake message of type 2 at byte 5, expected a ClientHello (1)"),
        (b"\x16\x03\x01\x01\x00\x01\0\0\x28".to_vec(), "too short a length at byte 8, expected that of a ClientHello"),
        (b"\x16\x03\x01\x01\x00\x01\0\xff\xf8".to_vec(), "a longer ClientHello at byte 8, expected 64 KiB at most"),
        (two_records, "a record of type 23 at byte 65, expected a handshake (22)"),
        (in_records(&message(&[0; 33], &[]), &[]), "too long a session at byte 44, expected 32 bytes at most"),
        (changed(45, 3), "a list of cipher suites of that length at byte 46, expected one or more of two bytes"),
        (changed(45, 0), "a list of cipher suites of that length at byte 46, expected one or more of two bytes"),
        (changed(48, 0), "nothing at byte 49, expected at least one element"),
        (raw(&[0, 9]), "a length that exceeds what is left at byte 52, expected a smaller one"),
        (raw(&[0]), "a length that exceeds what is left at byte 50, expected a smaller one"),
        (raw(&[0, 0, 1]), "further bytes at byte 52, expected the end"),
        (one(vec![0, 0, 0, 1]), "a length that exceeds what is left at byte 88, expected a smaller one"),
        (one(extension(SERVER_NAME, b"")), "a length that exceeds what is left at byte 88, expected a smaller one"),
        (one(extension(SERVER_NAME, b"\0\0")), "nothing at byte 90, expected at least one element"),
        (one(extension(SERVER_NAME, b"\0\x03\0\0\0")), "nothing at byte 93, expected at least one element"),
        (one(extension(SERVER_NAME, &two_names)), "a second host name at byte 97, expected one"),
        (
            one([named(b"a"), named(b"a")].concat()),
            "an extension that was there already at byte 98, expected each at most once",
        ),
        (one(extension(ALPN, b"\0\x01\0")), "nothing at byte 91, expected at least one element"),
        (one(extension(ALPN, b"\0\x02\x02h")), "a length that exceeds what is left at byte 91, expected a smaller one"),
        (one(extension(ALPN, b"\0\x02\x01h!")), "further bytes at byte 92, expected the end"),
    ] {
        let error = read(&wire).unwrap_err();
        assert_eq!(error.to_string(), expected);
        assert_eq!(read(&[&wire[..], &[0; 99]].concat()), Err(error), "it stays wrong");
    }
}

#[test]
fn there_is_an_end_to_waiting() {
    let padded = |length: usize| {
        let room = length - with_extensions(&[named(b"users"), extension(21, b"")]).len();
        with_extensions(&[extension(21, &vec![0; room]), named(b"users")])
    };
    // Four records: the longest that is read.
    let longest = padded(LONGEST - 4 * RECORD_HEADER);
    assert_eq!(read_whole(&in_records(&longest, &[])).server_name.as_deref(), Some("users"));
    let error = "a longer ClientHello at byte 65536, expected 64 KiB at most";
    // A byte more; and as many again in a record of one byte each, of which every one comes by itself.
    let longer = in_records(&padded(LONGEST - 4 * RECORD_HEADER + 1), &[]);
    let tiny = in_records(&longest, &vec![1; longest.len()]);
    for wire in [longer, tiny] {
        assert_eq!(read(&wire[..LONGEST - 1]), Ok(None));
        assert_eq!(read(&wire[..LONGEST]).unwrap_err().to_string(), error);
        assert_eq!(read(&wire).unwrap_err().to_string(), error);
        let mut scan = HelloScan::default();
        assert!((0..LONGEST).all(|length| scan.find(&wire[..length]) == Ok(None)));
        assert_eq!(scan.find(&wire[..LONGEST]).unwrap_err().to_string(), error);
    }
}

proptest! {
    #[test]
    fn what_is_made_can_be_read(
        name in "[a-zA-Z][a-z0-9]{0,20}(\\.[a-z]{1,10}){0,3}",
        offered in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..20), 1..5),
        session in prop::collection::vec(any::<u8>(), 0..=32),
        others in prop::collection::vec((17..u16::MAX, prop::collection::vec(any::<u8>(), 0..40)), 0..6),
        sizes in prop::collection::vec(1_usize..60, 0..20),
        cut: prop::sample::Index,
    ) {
        let list = offered.iter().flat_map(|name| vector(1, name)).collect::<Vec<_>>();
        let mut extensions = vec![named(name.as_bytes()), extension(ALPN, &vector(2, &list))];
        extensions.extend(others.iter().map(|(kind, content)| extension((*kind).into(), content)));
        let first = cut.index(extensions.len());
        extensions.rotate_left(first);
        let wire = in_records(&message(&session, &vector(2, &extensions.concat())), &sizes);
        let mut scan = HelloScan::default();
        prop_assert_eq!(scan.find(&wire[..cut.index(wire.len())]), Ok(None));
        let hello = scan.find(&wire).unwrap().unwrap();
        prop_assert_eq!(hello.server_name.as_deref(), Some(&name.to_ascii_lowercase()[..]));
        prop_assert_eq!(protocols(&hello), offered);
    }

    /// What rustls accepts is read as rustls reads it, whatever was done to it.
    #[test]
    fn rustls_reads_the_same(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3), small: bool) {
        let mut wire = made_by_rustls("users.example", &["h2", "http/1.1"], &[&TLS12, &TLS13], small.then_some(64));
        for (at, byte) in changes {
            let at = at.index(wire.len());
            wire[at] = byte;
        }
        if let Some(theirs) = read_by_rustls(&wire) {
            match read(&wire) {
                Ok(Some(hello)) => prop_assert_eq!((hello.server_name.clone(), protocols(&hello)), theirs),
                // It does not look at what follows the host name in the list of names, which is there when that is shorter.
                other => prop_assert!(theirs.0.is_some_and(|name| name.len() < "users.example".len()), "{other:?}"),
            }
        }
    }

    /// Any bytes are a ClientHello, too few or an error, the same in one piece and in several.
    #[test]
    fn any_bytes_are_read(
        rest in prop::collection::vec(any::<u8>(), 0..200),
        sizes in prop::collection::vec(1_usize..60, 0..10),
        in_message: bool,
    ) {
        let wire = if in_message { in_records(&message(&[], &rest), &sizes) } else { rest };
        let mut scan = HelloScan::default();
        let decided = (0..=wire.len()).map(|length| scan.find(&wire[..length])).find(|found| *found != Ok(None));
        prop_assert_eq!(decided.unwrap_or(Ok(None)), read(&wire));
    }
}
