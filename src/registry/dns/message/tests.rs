use super::*;
use proptest::prelude::*;

/// What servers really sent, to a question with the id 0x1234. Consul 1.16: one SRV record, with the address of its target
/// and texts about its node.
pub const CONSUL: &str = "\
    123485000001000100000004057573657273077365727669636506636f6e73756c0000210001c00c002100010000000000200001000a1f40083061303030\
    303031046164647203646331\
    06636f6e73756c00c038000100010000000000040a000001026e31046e6f6465c0460010000100000000001817636f6e73756c2d6e6574776f726b2d7365\
    676d656e743dc0620010000100000000001615636f6e73756c2d76657273696f6e3d312e31362e3600002904d0000000000000";
/// dnsmasq 2.90: not available.
const DECLARED_GONE: &str = "\
    123485800001000100000001055f676f6e65045f74637004746573740000210001c00c002100010000000500070000000000010000002904d0000000000000";
/// BIND 9.18: no such name.
const NO_SUCH_NAME: &str = "\
    123485030001000000010001046e6f706504746573740000010001c01100060001000000050021026e73c0110561646d696ec0110000000100001c20\
    00000e10001275000000000500002904d0000000000000";
/// BIND 9.18: an alias of an alias.
const ALIASES: &str = "\
    12348500000100040000000105616c69617304746573740000010001c00c0005000100000003000906616c69617332c012c02800050001000000030008\
    057573657273c012c03d000100010000000300040a000002c03d000100010000000300040a00000100002904d0000000000000";
/// CoreDNS 1.14, asked for `UsErS.tEsT`.
const MIXED_CASE: &str = "\
    12348500000100020001000105557345725304744573540000010001057573657273047465737400000100010000000300040a0000010575736572730474\
    65737400000100010000000300040a00000204746573740000020001000000030009026e7304746573740000002904d0000000000000";
/// Consul 1.16, asked for a name that is not its own: without EDNS.
const REFUSED: &str = "1234810500010000000000000178056f746865720000010001";

pub fn bytes(hex: &str) -> Vec<u8> {
    let hex: Vec<char> = hex.chars().filter(|c| !c.is_whitespace()).collect();
    hex.chunks(2).map(|pair| u8::from_str_radix(&pair.iter().collect::<String>(), 16).unwrap()).collect()
}

fn shown(records: &[Record]) -> Vec<String> {
    let data = |data: &Data| match data {
        Data::A(ip) => ip.to_string(),
        Data::Aaaa(ip) => ip.to_string(),
        Data::Cname(target) => format!("→ {target}"),
        Data::Srv(srv) => format!("{} {} {} {}", srv.priority, srv.weight, srv.port, srv.target),
        Data::Soa { minimum } => format!("none for {minimum}"),
        Data::Other => "?".into(),
    };
    records.iter().map(|record| format!("{} {} {}", record.name, record.ttl, data(&record.data))).collect()
}

#[test]
fn what_real_servers_send() {
    let consul = read(&bytes(CONSUL)).unwrap();
    assert_eq!((consul.id, consul.truncated, consul.code), (0x1234, false, 0));
    assert_eq!(consul.question, Some(("users.service.consul".into(), 33)));
    assert_eq!(shown(&consul.answers), ["users.service.consul 0 1 10 8000 0a000001.addr.dc1.consul"]);
    assert_eq!(
        shown(&consul.additionals),
        ["0a000001.addr.dc1.consul 0 10.0.0.1", "n1.node.dc1.consul 0 ?", "n1.node.dc1.consul 0 ?", " 0 ?"]
    );
    assert_eq!(shown(&read(&bytes(DECLARED_GONE)).unwrap().answers), ["_gone._tcp.test 5 0 0 1 "]);
    let nothing = read(&bytes(NO_SUCH_NAME)).unwrap();
    assert_eq!((nothing.code, shown(&nothing.authorities)), (3, vec!["test 5 none for 5".into()]));
    assert_eq!(
        shown(&read(&bytes(ALIASES)).unwrap().answers),
        ["alias.test 3 → alias2.test", "alias2.test 3 → users.test", "users.test 3 10.0.0.2", "users.test 3 10.0.0.1"]
    );
    let mixed = read(&bytes(MIXED_CASE)).unwrap();
    assert_eq!(mixed.question, Some(("users.test".into(), 1)));
    assert_eq!(shown(&mixed.answers), ["users.test 3 10.0.0.1", "users.test 3 10.0.0.2"]);
    let refused = read(&bytes(REFUSED)).unwrap();
    assert_eq!((refused.code, refused.question, refused.informed), (5, Some(("x.other".into(), 1)), false));
    assert!(consul.informed && nothing.informed);
}

#[test]
fn questions_are_written() {
    let question = Question::new("Users.Test", Type::Srv).unwrap();
    let hex = |bytes: Vec<u8>| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    assert_eq!(question.name, "users.test", "what answers are compared with");
    let plain = "010000010000000000000555736572730454657374 00 0021 0001";
    assert_eq!(hex(query(0x1234, &question, false)), format!("1234{}", plain.replace(' ', "")));
    let edns = "010000010000000000010555736572730454657374 00 0021 0001 00 0029 04d0 00000000 0000";
    assert_eq!(hex(query(0x1234, &question, true)), format!("1234{}", edns.replace(' ', "")));
    for name in ["a..b", ".a", r"a\.b", &"a".repeat(64), &"a.".repeat(130)] {
        assert!(Question::new(name, Type::A).is_err(), "{name}");
    }
}

/// An answer of that many records, whose question is for `a` and begins at byte 12.
fn answer(flags: &str, count: u8, records: &str) -> Result<Message, Malformed> {
    read(&bytes(&format!("1234 {flags} 0001 00{count:02x} 0000 0000  01 61 00 0001 0001 {records}")))
}

#[test]
fn odd_names() {
    let name = |name: &str| answer("8180", 1, &format!("{name} 0001 0001 00000001 0004 0a000001"));
    let shown = |hex: &str| name(hex).unwrap().answers[0].name.clone();
    assert_eq!(shown("00"), "");
    assert_eq!(shown("c00c"), "a");
    assert_eq!(shown("01 42 c00c"), "b.a");
    assert_eq!(shown("04 2e 5c 20 ff 00"), r"\.\\\032\255", "a dot in a label is none between labels");
    for (hex, why) in [
        ("c013", "on itself"),
        ("c014", "further behind"),
        ("c000", "in the header"),
        ("ffff", "beyond the end"),
        ("40 00", "an unknown kind of label"),
        ("80 00", "an unknown kind of label"),
        (&"01 61 ".repeat(127), "no end"),
        (&format!("{} 00", "01 61 ".repeat(128)), "too long"),
    ] {
        assert!(name(hex).is_err(), "{why}");
    }
}

#[test]
fn records_that_make_no_sense_are_refused() {
    let record = |rest: &str| answer("8180", 1, &format!("c00c {rest}"));
    assert_eq!(record("0001 0001 ffffffff 0004 0a000001").unwrap().answers[0].ttl, 0, "a negative TTL");
    assert_eq!(record("0001 0003 00000001 0003 0a0000").unwrap().answers[0].data, Data::Other, "another class");
    for (rest, why) in [
        ("0001 0001 00000001 0003 0a0000", "half an address"),
        ("0001 0001 00000001 0005 0a00000100", "more than an address"),
        ("001c 0001 00000001 0004 0a000001", "half an IPv6 address"),
        ("0021 0001 00000001 0006 000000000000", "no target"),
        ("0005 0001 00000001 0001 c0", "half a name"),
        ("0010 0001 00000001 0008 00", "ends too early"),
        ("0001", "half a record"),
    ] {
        assert!(record(rest).is_err(), "{why}");
    }
    assert!(read(&bytes("1234 0100 0001 0000 0000 0000 01 61 00 0001 0001")).is_err(), "a question");
    // Of a truncated one the records do not matter.
    let truncated = answer("8380", 9, "c00c").unwrap();
    assert!(truncated.truncated && truncated.answers.is_empty());
    // BADVERS is 16: the upper bits are in the OPT record.
    let code = read(&bytes("1234 8180 0000 0000 0000 0001  00 0029 04d0 01000000 0000")).unwrap();
    assert_eq!((code.code, code.question), (16, None));
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = read(&bytes);
    }

    #[test]
    fn nor_do_mutations_of_real_answers(
        which in 0..5usize,
        changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..8),
        cut in any::<proptest::sample::Index>(),
    ) {
        let mut bytes = bytes([CONSUL, DECLARED_GONE, NO_SUCH_NAME, ALIASES, MIXED_CASE][which]);
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Ok(message) = read(&bytes) {
            for record in message.answers.iter().chain(&message.additionals) {
                prop_assert!(record.name.len() <= 4 * LONGEST_NAME);
            }
        }
        let _ = read(&bytes[..cut.index(bytes.len())]);
    }

    #[test]
    fn an_answer_that_is_cut_off_is_no_answer(cut in any::<proptest::sample::Index>()) {
        let bytes = bytes(CONSUL);
        prop_assert!(read(&bytes[..cut.index(bytes.len())]).is_err());
    }
}
