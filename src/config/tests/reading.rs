//! The tree and the way from it to types.

use crate::config::{
    Faults, Place, read,
    tree::{self, Node, Resolved, Scalar},
};
use proptest::prelude::*;
use serde::Deserialize;
use std::collections::BTreeMap;

fn parse(text: &str) -> Node {
    let mut faults = Faults::default();
    let node = tree::parse(text.as_bytes(), &mut faults).unwrap();
    assert!(faults.is_empty(), "{faults:?}");
    node
}

#[test]
fn nodes_and_keys_know_where_they_are() {
    let root = parse("# one\na: 1\nb:\n  - x\n  - { c: 'é', d: \"y\" }\n");
    let at = |line, column| Place::Text { line, column };
    assert_eq!(root.entries()[1].place, at(3, 1));
    let list = root.get("b").unwrap();
    assert_eq!((list.elements()[0].place, list.elements()[1].place), (at(4, 5), at(5, 5)));
    let map = &list.elements()[1];
    assert_eq!((map.entries()[1].place, map.get("d").unwrap().place), (at(5, 15), at(5, 18)), "columns are characters");
}

#[test]
fn plain_scalars_follow_the_core_schema() {
    use Resolved::{Bool, Float, Negative, Null, Text, Unsigned};
    for (text, expected) in [
        ("", Null),
        ("~", Null),
        ("null", Null),
        ("nUll", Text("nUll")),
        ("true", Bool(true)),
        ("False", Bool(false)),
        ("yes", Text("yes")),
        ("on", Text("on")),
        ("0", Unsigned(0)),
        ("+7", Unsigned(7)),
        ("-7", Negative(-7)),
        ("-0", Unsigned(0)),
        ("007", Unsigned(7)),
        ("0x1F", Unsigned(31)),
        ("0o17", Unsigned(15)),
        ("0x", Text("0x")),
        ("0x+1", Text("0x+1")),
        ("1_000", Text("1_000")),
        ("1.5", Float(1.5)),
        (".5", Float(0.5)),
        ("5.", Float(5.0)),
        ("1e3", Float(1000.0)),
        ("-1.5E-1", Float(-0.15)),
        (".inf", Float(f64::INFINITY)),
        ("-.Inf", Float(f64::NEG_INFINITY)),
        ("inf", Text("inf")),
        ("nan", Text("nan")),
        (".", Text(".")),
        ("-", Text("-")),
        ("1e", Text("1e")),
        ("1.2.3", Text("1.2.3")),
        ("15s", Text("15s")),
        ("18446744073709551615", Unsigned(u64::MAX)),
        ("18446744073709551616", Float(18_446_744_073_709_551_616.0)),
    ] {
        let scalar = |plain| Scalar { text: text.into(), plain, expanded: false };
        assert_eq!(scalar(true).resolve(), expected, "{text}");
        assert_eq!(scalar(false).resolve(), Text(text));
    }
    assert!(matches!(tree::resolve_plain(".nan"), Resolved::Float(n) if n.is_nan()));
}

/// As the `file` registry has it: a text or a map.
#[derive(Debug, PartialEq, Deserialize)]
#[serde(untagged)]
enum Either {
    Address(String),
    Map {
        address: String,
        #[serde(default)]
        weight: Option<u32>,
        #[serde(default)]
        labels: BTreeMap<String, String>,
    },
}

#[test]
fn other_types_read_from_yaml_and_json() {
    let yaml = "web:\n  - 10.0.0.7:8080\n  - &two { address: 10.0.0.8:8080, weight: 50, labels: { version: '2' } }\nalso: [*two]\n";
    let json = "\u{feff}{\n\t\"web\": [\"10.0.0.7:8080\",\n\t{\"address\": \"10.0.0.8:8080\", \"weight\": 50, \"labels\": {\"version\": \"2\"}}],\n\
                \"also\": [{\"address\":\"10.0.0.8:8080\",\"weight\":50,\"labels\":{\"version\":\"2\"}}]}";
    let from = |text: &str| read::<BTreeMap<String, Vec<Either>>>("f", text.as_bytes()).unwrap();
    assert_eq!(from(yaml), from(json));
    assert_eq!(from(yaml)["web"][0], Either::Address("10.0.0.7:8080".into()));
    assert_eq!(from(yaml)["also"], from(yaml)["web"][1..]);
}

#[test]
fn texts_need_no_quotes_even_if_they_look_like_numbers() {
    let from = |text: &str| read::<BTreeMap<String, String>>("f", text.as_bytes());
    let texts = from("a: 1.10\nb: 0123\nc: no\nd: true\n").unwrap();
    assert_eq!(texts.values().collect::<Vec<_>>(), ["1.10", "0123", "no", "true"]);
    assert_eq!(from("a: ~").unwrap_err().to_string(), "f:1:4: a: found nothing; expected text\n1 error in f");
}

#[test]
fn nothing_written_is_an_empty_map_or_list() {
    assert_eq!(read::<BTreeMap<String, Vec<u8>>>("f", b"# nothing\n").unwrap(), BTreeMap::new());
    assert_eq!(read::<BTreeMap<String, Vec<u8>>>("f", b"a:\n").unwrap()["a"], Vec::<u8>::new());
}

/// Required all the way down, so that made-up values and left-out parents are needed.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(dead_code, reason = "only read")]
struct Strict {
    address: std::net::SocketAddr,
    #[serde(with = "crate::config::human")]
    time: std::time::Duration,
    port: std::num::NonZeroU16,
    odd: Odd,
    inner: Option<Box<Strict>>,
}

/// Takes no value that could be made up.
#[derive(Debug)]
struct Odd;

impl<'de> Deserialize<'de> for Odd {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        match String::deserialize(from)?.as_str() {
            "odd" => Ok(Self),
            other => Err(serde::de::Error::custom(format!("`{other}` is not odd"))),
        }
    }
}

#[test]
fn missing_values_are_all_told_and_cause_no_further_errors() {
    let errors = read::<Strict>("f", b"inner:\n  port: 0\n  odd: even\n  inner: { prt: 1 }\n").unwrap_err();
    let shown: Vec<_> = errors.faults().iter().map(|fault| format!("{}: {}", fault.path, fault.message)).collect();
    for expected in [
        "inner.port: found `0`; expected a whole number from 1 to 65535",
        "inner.odd: `even` is not odd",
        "inner.inner.prt: unknown key; did you mean `port`? known here: `address`, `time`, `port`, `odd`, `inner`",
        "inner.inner: `address` is missing",
    ] {
        assert!(shown.iter().any(|line| line == expected), "{expected} in {shown:#?}");
    }
    assert!(shown.iter().all(|line| !line.contains("`x`") && !line.contains("`1s`")), "{shown:#?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn no_bytes_make_the_loader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = crate::config::load(crate::config::Origin::text("f", bytes), &|_| None);
    }

    #[test]
    fn no_text_of_yaml_pieces_makes_the_loader_panic(
        pieces in proptest::collection::vec(
            prop_oneof![
                proptest::sample::select(vec![
                    "\n", "\n  ", "\n    ", " ", ": ", "- ", "? ", "{", "}", "[", "]", ", ", "&a ", "*a", "!", "!!str ", "|", ">-\n",
                    "'", "\"", "#", "---\n", "...\n", "%YAML 1.2\n", "%TAG ", "<<", "~", "${A}", "${A:-", "$${", "\\x", "\t", "\u{feff}", "\r\n",
                    "registries", "listeners", "services", "defaults", "kind", "consul", "etcd", "file", "path", "name", "listen",
                    "timeouts", "connect", "1s", "workers", "127.0.0.1:0", "tls", "é", "sources", "host_suffixes",
                ]).prop_map(str::to_owned),
                "[a-z0-9]{1,3}",
            ],
            0..60,
        )
    ) {
        let _ = crate::config::load(crate::config::Origin::text("f", pieces.concat()), &|_| None);
    }

    #[test]
    fn no_registry_url_makes_the_loader_panic(url in "(consul|etcd|redis|xds|file|embedded|x)?:?(//)?[a-z:@,/?&=%\\[\\]é]{0,20}") {
        let flags = crate::config::Overrides { registry: vec![url], ..Default::default() };
        let _ = crate::config::load(crate::config::Origin::default().with(flags), &|_| None);
    }
}
