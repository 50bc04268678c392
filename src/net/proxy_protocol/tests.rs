use super::*;
use proptest::prelude::*;

fn addresses(source: &str, destination: &str) -> Addresses {
    Addresses { source: source.parse().unwrap(), destination: destination.parse().unwrap() }
}

/// Reads a header that is there as a whole, and is not before its last byte.
fn read(bytes: &[u8]) -> Result<Header, Malformed> {
    let read = decode(bytes).map(|header| header.expect("it is whole"));
    if let Ok(header) = &read {
        for length in 0..header.length {
            assert_eq!(decode(&bytes[..length]), Ok(None), "the first {length} bytes");
        }
        let more = [bytes, b"\r\nPROXY what follows"].concat();
        assert_eq!(decode(&more).as_ref(), Ok(&Some(header.clone())));
    }
    read
}

fn v2(command: u8, family: u8, block: &[u8]) -> Vec<u8> {
    let length = u16::try_from(block.len()).unwrap().to_be_bytes();
    [V2_SIGNATURE, &[command, family], &length, block].concat()
}

/// 192.0.2.1:56324 to 198.51.100.2:443, and what follows.
fn v4_with(values: &[u8]) -> Vec<u8> {
    let block = [&[192, 0, 2, 1, 198, 51, 100, 2, 0xdc, 0x04, 0x01, 0xbb], values].concat();
    v2(PROXY, 0x11, &block)
}

fn value(kind: u8, content: &[u8]) -> Vec<u8> {
    [&[kind], &u16::try_from(content.len()).unwrap().to_be_bytes()[..], content].concat()
}

#[test]
fn lines_of_version_1() {
    for (line, expected) in [
        ("PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\r\n", Some(addresses("192.0.2.1:56324", "198.51.100.2:443"))),
        ("PROXY TCP4 255.255.255.255 0.0.0.0 65535 0\r\n", Some(addresses("255.255.255.255:65535", "0.0.0.0:0"))),
        ("PROXY TCP6 2001:db8::1 2001:DB8::2 1 2\r\n", Some(addresses("[2001:db8::1]:1", "[2001:db8::2]:2"))),
        ("PROXY TCP6 ::ffff:c000:201 ::1 1 2\r\n", Some(addresses("[::ffff:192.0.2.1]:1", "[::1]:2"))),
        ("PROXY UNKNOWN\r\n", None),
        ("PROXY UNKNOWN 192.0.2.1 \u{fc} and so on\r\n", None),
        (&format!("PROXY UNKNOWN {}\r\n", "x".repeat(91)), None),
        (&format!("PROXY TCP6 {0} {0} 65535 65535\r\n", ["ffff"; 8].join(":")), {
            let all = format!("[{}]:65535", ["ffff"; 8].join(":"));
            Some(addresses(&all, &all))
        }),
    ] {
        let header = read(line.as_bytes()).unwrap();
        assert_eq!(header, Header { length: line.len(), addresses: expected, authority: None }, "{line}");
    }
}

#[test]
fn what_is_wrong_with_version_1_is_said() {
    for (line, expected) in [
        ("PING\r\n", "`I` at byte 1, expected the start of a PROXY protocol header"),
        ("PROXY\r\n", "`\\r` at byte 5, expected the start of a PROXY protocol header"),
        ("PROXY  TCP4 1.1.1.1 1.1.1.1 1 1\r\n", "`` at byte 6, expected TCP4, TCP6 or UNKNOWN"),
        ("PROXY UDP4 1.1.1.1 1.1.1.1 1 1\r\n", "`UDP4` at byte 6, expected TCP4, TCP6 or UNKNOWN"),
        ("PROXY tcp4 1.1.1.1 1.1.1.1 1 1\r\n", "`tcp4` at byte 6, expected TCP4, TCP6 or UNKNOWN"),
        ("PROXY TCP4\r\n", "`` at byte 10, expected an IPv4 address"),
        ("PROXY TCP4 1.1.1.1\r\n", "`` at byte 18, expected an IPv4 address"),
        ("PROXY TCP4 1.1.1.256 1.1.1.1 1 1\r\n", "`1.1.1.256` at byte 11, expected an IPv4 address"),
        ("PROXY TCP4 1.1.1.1 01.1.1.1 1 1\r\n", "`01.1.1.1` at byte 19, expected an IPv4 address"),
        ("PROXY TCP4 ::1 ::1 1 1\r\n", "`::1` at byte 11, expected an IPv4 address"),
        ("PROXY TCP6 1.1.1.1 ::1 1 1\r\n", "`1.1.1.1` at byte 11, expected an IPv6 address"),
        ("PROXY TCP6 fe80::1%1 ::1 1 1\r\n", "`fe80::1%1` at byte 11, expected an IPv6 address"),
        ("PROXY TCP4 1.1.1.1 \u{fc} 1 1\r\n", "`\\xc3\\xbc` at byte 19, expected an IPv4 address"),
        ("PROXY TCP4 1.1.1.1 1.1.1.1\r\n", "`` at byte 26, expected a port"),
        ("PROXY TCP4 1.1.1.1 1.1.1.1 1\r\n", "`` at byte 28, expected a port"),
        ("PROXY TCP4 1.1.1.1 1.1.1.1 65536 1\r\n", "`65536` at byte 27, expected a port"),
        ("PROXY TCP4 1.1.1.1 1.1.1.1 -1 1\r\n", "`-1` at byte 27, expected a port"),
        ("PROXY TCP4 1.1.1.1 1.1.1.1 +1 1\r\n", "`+1` at byte 27, expected a port"),
        ("PROXY TCP4 1.1.1.1 1.1.1.1 01 1\r\n", "`01` at byte 27, expected a port"),
        ("PROXY TCP4 1.1.1.1 1.1.1.1 1 00\r\n", "`00` at byte 29, expected a port"),
        ("PROXY TCP4 1.1.1.1 1.1.1.1 1  1\r\n", "`` at byte 29, expected a port"),
        ("PROXY TCP4 1.1.1.1 1.1.1.1 1 1 \r\n", "something after the second port at byte 30, expected CRLF"),
        ("PROXY TCP4 1.1.1.1 1.1.1.1 1 1 1\r\n", "something after the second port at byte 30, expected CRLF"),
        ("PROXY TCP4 1.1.1.1 1.1.1.1 1 1\r\r\n", "`1\\r` at byte 29, expected a port"),
        ("PROXY TCP4 1.1.1.1 1.1.1.1 1 1\n", "a line that ends with LF alone at byte 30, expected CRLF"),
        (&format!("PROXY UNKNOWN {}", "x".repeat(93)), "a longer line at byte 107, expected CRLF before it"),
        (&format!("PROXY UNKNOWN {}\r\n", "x".repeat(92)), "a longer line at byte 107, expected CRLF before it"),
    ] {
        let error = read(line.as_bytes()).unwrap_err();
        assert_eq!(error.to_string(), expected);
        assert_eq!(decode(format!("{line} more\r\n").as_bytes()), Err(error), "it stays wrong");
    }
}

#[test]
fn headers_of_version_2() {
    let v4 = addresses("192.0.2.1:56324", "198.51.100.2:443");
    let v6 = addresses("[2001:db8::1]:56324", "[2001:db8::2]:443");
    let block = |addresses: Addresses| {
        let mut out = BytesMut::new();
        write_v2(&mut out, Some(addresses));
        out[V2_FIXED..].to_vec()
    };
    let unix = [0; UNIX_ADDRESSES];
    for (bytes, expected) in [
        (v4_with(&[]), Some(v4)),
        // UDP has the same addresses.
        (v2(PROXY, 0x12, &block(v4)), Some(v4)),
        (v2(PROXY, 0x21, &block(v6)), Some(v6)),
        (v2(PROXY, 0x22, &block(v6)), Some(v6)),
        (v2(PROXY, 0x31, &unix), None),
        (v2(PROXY, 0x32, &unix), None),
        // Whatever is in these is skipped.
        (v2(PROXY, 0x00, b""), None),
        (v2(PROXY, 0x00, b"any"), None),
        (v2(PROXY, 0x10, &block(v4)), None),
        (v2(LOCAL, 0x00, b""), None),
        (v2(LOCAL, 0x11, &block(v4)), None),
        (v2(LOCAL, 0xff, b"any"), None),
        (v2(LOCAL, 0x00, &vec![1; LONGEST - V2_FIXED]), None),
    ] {
        let header = read(&bytes).unwrap();
        assert_eq!(header, Header { length: bytes.len(), addresses: expected, authority: None }, "{bytes:x?}");
    }
}

#[test]
fn the_sum_is_that_of_castagnoli() {
    assert_eq!(crc32c(b"123456789".iter()), 0xe306_9283);
    // RFC 3720, appendix B.4.
    assert_eq!(crc32c([0; 32].iter()), 0x8a91_36aa);
}

#[test]
fn additional_values() {
    let authority = value(AUTHORITY, b"users.example");
    let mut summed = v4_with(&[&value(4, b"ab")[..], &value(CRC32C, &[0; 4]), &authority].concat());
    let sum_at = V2_FIXED + 12 + 5 + 3;
    let sum = crc32c(summed.iter()).to_be_bytes();
    summed[sum_at..sum_at + 4].copy_from_slice(&sum);
    for bytes in [v4_with(&authority), v4_with(&[value(0xe0, &[]), authority].concat()), summed.clone()] {
        assert_eq!(read(&bytes).unwrap().authority.as_deref(), Some("users.example"));
    }
    // Every byte is under the sum, itself included.
    for at in V2_FIXED..summed.len() {
        let mut changed = summed.clone();
        changed[at] ^= 1;
        let same = decode(&changed).is_ok();
        // But for the type and the length of the sum: without it, nothing is checked.
        assert!(!same || at == sum_at - 3, "byte {at}");
    }
}

#[test]
fn what_is_wrong_with_version_2_is_said() {
    let checksum = value(CRC32C, &[1, 2, 3, 4]);
    let mut two = v4_with(&[value(CRC32C, &[0; 4]), value(CRC32C, &[0; 4])].concat());
    let sum = crc32c(two.iter()).to_be_bytes();
    two[31..35].copy_from_slice(&sum);
    for (bytes, expected) in [
        (b"GET".to_vec(), "`G` at byte 0, expected the start of a PROXY protocol header"),
        (b"\r\n\r\nGET".to_vec(), "`G` at byte 4, expected the start of a PROXY protocol header"),
        (
            [V2_SIGNATURE, &[0x11]].concat(),
            "version and command 0x11 at byte 12, expected 0x20 (LOCAL) or 0x21 (PROXY)",
        ),
        (
            [V2_SIGNATURE, &[0x22]].concat(),
            "version and command 0x22 at byte 12, expected 0x20 (LOCAL) or 0x21 (PROXY)",
        ),
        (
            [V2_SIGNATURE, &[PROXY, 0x41]].concat(),
            "family 4 and transport 1 at byte 13, expected a family up to 3 and a transport up to 2",
        ),
        (
            [V2_SIGNATURE, &[PROXY, 0x13]].concat(),
            "family 1 and transport 3 at byte 13, expected a family up to 3 and a transport up to 2",
        ),
        (
            [V2_SIGNATURE, &[PROXY, 0x11, 0x3f, 0xf1]].concat(),
            "a header of 16385 bytes at byte 14, expected 16 KiB at most",
        ),
        (v2(PROXY, 0x11, &[0; 11]), "11 bytes for addresses at byte 14, expected as many as the family has"),
        (v2(PROXY, 0x21, &[0; 35]), "35 bytes for addresses at byte 14, expected as many as the family has"),
        (v2(PROXY, 0x31, &[0; 215]), "215 bytes for addresses at byte 14, expected as many as the family has"),
        (v4_with(&[1]), "a value that is cut off at byte 28, expected a type, a length and as many bytes"),
        (v4_with(&[1, 0, 1]), "a value that is cut off at byte 28, expected a type, a length and as many bytes"),
        (
            v4_with(&[value(4, b"a"), vec![4, 0, 1]].concat()),
            "a value that is cut off at byte 32, expected a type, a length and as many bytes",
        ),
        (v4_with(&checksum), "a checksum at byte 31, expected that of the header"),
        (v4_with(&value(CRC32C, &[0; 5])), "a checksum of that length at byte 29, expected 4 bytes"),
        (two, "a second checksum at byte 35, expected one"),
        (v4_with(&value(AUTHORITY, b"\xff")), "an authority at byte 31, expected UTF-8"),
    ] {
        let error = read(&bytes).unwrap_err();
        assert_eq!(error.to_string(), expected);
        assert_eq!(decode(&[&bytes[..], b"more"].concat()), Err(error), "it stays wrong");
    }
}

#[test]
fn what_is_written() {
    let v1 = |addresses| {
        let mut out = BytesMut::new();
        write_v1(&mut out, addresses);
        String::from_utf8(out.to_vec()).unwrap()
    };
    for (source, destination, line) in [
        ("192.0.2.1:1", "198.51.100.2:443", "PROXY TCP4 192.0.2.1 198.51.100.2 1 443\r\n"),
        ("[2001:db8::1]:1", "[::1]:443", "PROXY TCP6 2001:db8::1 ::1 1 443\r\n"),
        // As a socket for both families has it.
        ("[::ffff:192.0.2.1]:1", "[::ffff:198.51.100.2]:443", "PROXY TCP4 192.0.2.1 198.51.100.2 1 443\r\n"),
        ("[2001:db8::1]:1", "198.51.100.2:443", "PROXY TCP6 2001:db8::1 ::ffff:c633:6402 1 443\r\n"),
        ("192.0.2.1:1", "[2001:db8::1]:443", "PROXY TCP6 ::ffff:c000:201 2001:db8::1 1 443\r\n"),
    ] {
        assert_eq!(v1(Some(addresses(source, destination))), line);
    }
    assert_eq!(v1(None), "PROXY UNKNOWN\r\n");
    let mut out = BytesMut::new();
    write_v2(&mut out, None);
    assert_eq!(out, v2(LOCAL, 0, b""));
    out.clear();
    write_v2(&mut out, Some(addresses("192.0.2.1:56324", "[::ffff:198.51.100.2]:443")));
    assert_eq!(out, v4_with(&[]));
}

proptest! {
    #[test]
    fn what_is_written_can_be_read(source: SocketAddr, destination: SocketAddr) {
        let written = Addresses { source, destination };
        for write in [write_v1, write_v2] {
            let mut out = BytesMut::new();
            write(&mut out, Some(written));
            let length = out.len();
            let header = read(&out).unwrap();
            prop_assert_eq!(header, Header { length, addresses: Some(of_one_family(written)), authority: None });
        }
    }

    /// Any bytes are a header, too few or an error; and what they are does not change with more of them.
    #[test]
    fn any_bytes_are_read(
        known in prop::sample::select(vec![&b""[..], b"PROXY ", b"PROXY TCP4 ", b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x18"]),
        text in "[0-9.: \r\n]{0,30}",
        rest in prop::collection::vec(any::<u8>(), 0..60),
    ) {
        let bytes = [known, text.as_bytes(), &rest].concat();
        let whole = decode(&bytes);
        for length in 0..bytes.len() {
            let start = decode(&bytes[..length]);
            prop_assert!(start == Ok(None) || start == whole);
        }
        if let Ok(Some(header)) = whole {
            prop_assert!(header.length <= bytes.len());
        }
    }
}
