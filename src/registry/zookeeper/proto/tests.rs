use super::*;
use proptest::prelude::*;

/// Bytes as hexadecimal digits, with spaces anywhere.
fn hex(text: &str) -> Bytes {
    let digits: Vec<u8> = text.bytes().filter(|b| !b.is_ascii_whitespace()).collect();
    digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

fn written(request: Request<'_>) -> Bytes {
    let mut out = BytesMut::new();
    put_request(&mut out, 7, request);
    out.freeze()
}

#[test]
fn requests_are_written_as_the_server_reads_them() {
    for (request, bytes) in [
        (Request::Exists { path: "/a", watch: true }, "0000000f 00000007 00000003 00000002 2f61 01"),
        (Request::Data { path: "/a", watch: false }, "0000000f 00000007 00000004 00000002 2f61 00"),
        (Request::Children { path: "/a", watch: true }, "0000000f 00000007 00000008 00000002 2f61 01"),
        (
            Request::AddWatch { path: "/a", mode: WatchMode::Recursive },
            "00000012 00000007 0000006a 00000002 2f61 00000001",
        ),
        (Request::RemoveWatches { path: "/a" }, "00000012 00000007 00000012 00000002 2f61 00000003"),
        (
            Request::Digest { user: "u", password: "p" },
            "0000001d fffffffc 00000064 00000000 00000006 646967657374 00000003 753a70",
        ),
        (Request::Ping, "00000008 fffffffe 0000000b"),
        (Request::Close, "00000008 00000007 fffffff5"),
    ] {
        assert_eq!(written(request), hex(bytes), "{request:?}");
    }
    let mut out = BytesMut::new();
    put_connect(&mut out, &Session { timeout_ms: 15_000, ..Session::default() }, 5);
    let new =
        "0000002d 00000000 0000000000000005 00003a98 0000000000000000 00000010 00000000000000000000000000000000 00";
    assert_eq!(out, hex(new));
}

/// Captured from ZooKeeper 3.8.0.
#[test]
fn what_a_server_says_is_read() {
    let opened = "00000000 00001770 0100017c10ac0000 00000010 911a228d4ac7a4c357226ee4a31195e5 00";
    let session = connected(hex(opened)).unwrap().unwrap();
    assert_eq!((session.id, session.timeout_ms, session.password.len()), (0x0100_017c_10ac_0000, 6000, 16));
    let expired = "00000000 00000000 0000000000000000 00000010 00000000000000000000000000000000 00";
    assert_eq!(connected(hex(expired)), Ok(None));

    let event = "ffffffff ffffffffffffffff 00000000 00000001 00000003 00000008 2f75736572732f61";
    let created = Event { kind: EventKind::Created, path: "/users/a".into() };
    assert_eq!(message(hex(event)), Ok(Message::Event(created)));
    let no_node = "00000002 0000000000000007 ffffff9b";
    assert_eq!(message(hex(no_node)), Ok(Message::Reply { xid: 2, zxid: 7, answer: Err(Code::NO_NODE) }));

    let value = "00000001 32 0000000000000004 0000000000000005 000001a1ff6eb297 000001a1ff6eb2b0 00000001 00000000 \
                 00000000 0000000000000000 00000001 00000002 0000000000000004";
    let stat = Stat { changed_by: 5, version: 1, owner: 0, children: 2 };
    let persistent = Data { value: Bytes::from_static(b"2"), stat };
    assert_eq!(data(hex(value)), Ok(persistent));
    assert_eq!(children(hex("00000002 00000001 61 00000001 62")), Ok(vec!["a".into(), "b".into()]));
    assert_eq!(children(hex("ffffffff")), Ok(Vec::new()));
}

#[test]
fn a_change_is_made_in_one_step() {
    let mut out = BytesMut::new();
    let changes = [
        Change::Delete { path: "/a", version: 3 },
        Change::Create { path: "/a", value: b"x", ephemeral: true, ours: false },
    ];
    put_request(&mut out, 7, Request::Multi(&changes));
    let wanted = "00000058 00000007 0000000e \
                  00000002 00 ffffffff 00000002 2f61 00000003 \
                  00000001 00 ffffffff 00000002 2f61 00000001 78 \
                  00000001 0000001f 00000005 776f726c64 00000006 616e796f6e65 00000001 \
                  ffffffff 01 ffffffff";
    assert_eq!(out[4..], hex(wanted)[4..]);
    assert_eq!(out[..4], u32::try_from(out.len() - 4).unwrap().to_be_bytes());
    let done = "00000002 00 00000000 00000001 00 00000000 00000002 2f61 ffffffff 01 ffffffff";
    assert_eq!(multi(hex(done)), Ok(Ok(None)));
    let failed = "ffffffff 00 00000000 00000000 ffffffff 00 ffffff92 ffffff92 ffffffff 01 ffffffff";
    assert_eq!(multi(hex(failed)), Ok(Err(Code::NODE_EXISTS)));
    assert_eq!(multi(Bytes::new()), Err(Malformed));
}

/// Captured from ZooKeeper 3.4.14 and 3.9.
#[test]
fn a_node_that_is_written_tells_what_it_is_now() {
    let mut out = BytesMut::new();
    put_request(&mut out, 4, Request::Multi(&[Change::Write { path: "/t", value: b"z", version: 2 }]));
    let wanted =
        "00000029 00000004 0000000e 00000005 00 ffffffff 00000002 2f74 00000001 7a 00000002 ffffffff 01 ffffffff";
    assert_eq!(out, hex(wanted));
    assert_eq!(
        multi(hex(CREATED_AND_WRITTEN)),
        Ok(Ok(Some(Stat { changed_by: 2, version: 1, owner: 0, children: 0 })))
    );
    let taken = "ffffffff 00 ffffff92 ffffff92 ffffffff 00 fffffffe fffffffe ffffffff 01 ffffffff";
    assert_eq!(multi(hex(taken)), Ok(Err(Code::NODE_EXISTS)));
    let changed = "ffffffff 00 ffffff99 ffffff99 ffffffff 01 ffffffff";
    assert_eq!(multi(hex(changed)), Ok(Err(Code::BAD_VERSION)));
}

const CREATED_AND_WRITTEN: &str = "00000001 00 00000000 00000002 2f74 \
    00000005 00 00000000 0000000000000002 0000000000000002 000001a20189ed77 000001a20189ed77 00000001 00000000 00000000 \
    0000000000000000 00000001 00000000 0000000000000002 ffffffff 01 ffffffff";

#[test]
fn frames_are_taken_when_they_are_whole() {
    let mut input = BytesMut::from(&hex("00000002 6162 00000001 63 0000")[..]);
    assert_eq!(take_frame(&mut input), Ok(Some(Bytes::from_static(b"ab"))));
    assert_eq!(take_frame(&mut input), Ok(Some(Bytes::from_static(b"c"))));
    assert_eq!(take_frame(&mut input), Ok(None));
    assert_eq!(input.len(), 2, "the rest waits for more");
    // What another protocol begins with.
    for text in [&b"HTTP/1.1 400 Bad Request"[..], b"\x15\x03\x03\x00\x02\x02\x0a", b"\xff\xff\xff\xff"] {
        assert_eq!(take_frame(&mut BytesMut::from(text)), Err(Malformed));
    }
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let frame = Bytes::from(bytes.clone());
        let _ = (connected(frame.clone()), message(frame.clone()), children(frame.clone()), data(frame.clone()), multi(frame));
        let mut input = BytesMut::from(&bytes[..]);
        while let Ok(Some(_)) = take_frame(&mut input) {}
    }

    /// Near to what is meant, so that the inner parts are reached.
    #[test]
    fn no_change_of_good_bytes_makes_it_panic(place in 0usize..120, byte in any::<u8>(), end in 0usize..120) {
        for good in [
            "00000000 00001770 0100017c10ac0000 00000010 911a228d4ac7a4c357226ee4a31195e5 00",
            "ffffffff ffffffffffffffff 00000000 00000001 00000003 00000008 2f75736572732f61",
            "00000002 00000001 61 00000001 62",
            "00000001 32 0000000000000004 0000000000000005 000001a1ff6eb297 000001a1ff6eb2b0 00000001 00000000 00000000 \
             0000000000000000 00000001 00000002 0000000000000004",
            CREATED_AND_WRITTEN,
        ] {
            let mut bytes = hex(good).to_vec();
            if let Some(at) = bytes.get_mut(place) {
                *at = byte;
            }
            bytes.truncate(end);
            let frame = Bytes::from(bytes);
            let _ = (connected(frame.clone()), message(frame.clone()), children(frame.clone()), data(frame.clone()), multi(frame));
        }
    }
}
