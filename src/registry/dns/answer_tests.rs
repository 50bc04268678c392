use super::{super::message::Type, *};

fn record(name: &str, ttl: u32, data: Data) -> Record {
    Record { name: name.into(), ttl, data }
}

fn a(name: &str, ttl: u32, last: u8) -> Record {
    record(name, ttl, Data::A([10, 0, 0, last].into()))
}

fn alias(name: &str, ttl: u32, target: &str) -> Record {
    record(name, ttl, Data::Cname(target.into()))
}

fn message(code: u16, answers: Vec<Record>, authorities: Vec<Record>) -> Message {
    Message {
        id: 1,
        question: None,
        truncated: false,
        informed: true,
        code,
        answers,
        authorities,
        additionals: Vec::new(),
    }
}

/// What is found for the addresses of `a`: their last bytes, or a word, and the TTL.
fn found(code: u16, answers: Vec<Record>, authorities: Vec<Record>) -> (String, Option<u32>) {
    let (message, question) = (message(code, answers, authorities), Question::new("a", Type::A).unwrap());
    match finding(&message, &question) {
        Finding::Records { data, ttl } => {
            let ips = data.iter().map(|data| data.address().unwrap().to_string());
            (ips.collect::<Vec<_>>().join(" "), Some(ttl))
        }
        Finding::Nothing { ttl } => ("nothing".into(), ttl),
        Finding::Alias { name, ttl } => (format!("→ {name}"), Some(ttl)),
    }
}

#[test]
fn what_answers_say() {
    let soa = |ttl, minimum| vec![record("", ttl, Data::Soa { minimum })];
    let nothing = |ttl| ("nothing".to_owned(), ttl);
    for (answers, expected, ttl) in [
        (vec![a("a", 30, 1), a("a", 20, 2), a("other", 1, 9)], "10.0.0.1 10.0.0.2", 20),
        (vec![a("c", 30, 1), alias("b", 10, "c"), alias("a", 20, "b")], "10.0.0.1", 10),
        (vec![alias("a", 20, "b")], "→ b", 20),
        (vec![alias("a", 20, "b"), alias("b", 5, "c")], "→ c", 5),
        // Next to an alias there must be nothing else; if there is, it counts.
        (vec![alias("a", 20, "b"), a("a", 30, 1)], "10.0.0.1", 30),
    ] {
        assert_eq!(found(NO_ERROR, answers, vec![]), (expected.into(), Some(ttl)));
    }
    assert_eq!(found(NO_ERROR, vec![], vec![]), nothing(None));
    assert_eq!(found(NO_SUCH_NAME, vec![], soa(3600, 5)), nothing(Some(5)));
    assert_eq!(found(NO_SUCH_NAME, vec![], soa(3, 5)), nothing(Some(3)));
    assert_eq!(found(NO_ERROR, vec![a("b", 1, 1)], soa(60, 60)), nothing(Some(60)), "of another name");
    assert_eq!(found(NO_SUCH_NAME, vec![alias("a", 2, "b")], soa(60, 60)), nothing(Some(2)), "an alias of nothing");
    assert_eq!(found(NO_ERROR, vec![alias("a", 2, "b")], soa(60, 60)), nothing(Some(2)));
    // Circles say nothing.
    assert_eq!(found(NO_ERROR, vec![alias("a", 1, "a")], vec![]), ("→ a".into(), Some(1)));
    assert_eq!(found(NO_ERROR, vec![alias("a", 1, "b"), alias("b", 1, "a")], vec![]).0, "→ b");
}

#[test]
fn addresses_that_come_along() {
    let v6 = |name: &str| record(name, 7, Data::Aaaa("fd00::1".parse().unwrap()));
    let records = [v6("both"), a("both", 9, 1), a("both", 8, 2), v6("new")];
    let at = |name: &str| addresses(&records, name);
    assert_eq!(at("both"), Some((vec!["10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap()], 7)));
    assert_eq!(at("new"), Some((vec!["fd00::1".parse().unwrap()], 7)));
    assert_eq!(at("none"), None);
}

fn srv(priority: u16, weight: u16, port: u16, target: &str, last: &[u8]) -> (Srv, Vec<IpAddr>) {
    let addresses = last.iter().map(|last| [10, 0, 0, *last].into()).collect();
    (Srv { priority, weight, port, target: target.into() }, addresses)
}

fn shown(records: &[(Srv, Vec<IpAddr>)]) -> Vec<String> {
    let (instances, _) = srv_instances(records);
    let text = |i: &Instance| format!("{} {} {} {}", i.id, i.weight, i.priority, i.labels["dns.target"]);
    instances.iter().map(text).collect()
}

#[test]
fn weights_and_priorities() {
    // Consul's: all of one priority.
    let consul = [srv(1, 10, 80, "x", &[1]), srv(1, 1, 80, "y", &[2])];
    assert_eq!(shown(&consul), ["10.0.0.1:80 10 1 x", "10.0.0.2:80 1 1 y"]);
    // No weights at all: equal.
    assert_eq!(
        shown(&[srv(0, 0, 80, "x", &[1]), srv(0, 0, 81, "x", &[1])]),
        ["10.0.0.1:80 1 0 x", "10.0.0.1:81 1 0 x"]
    );
    // None beside some: a small share. Only within the same priority.
    let mixed = [srv(1, 2, 80, "x", &[1]), srv(1, 0, 80, "y", &[2]), srv(2, 5, 80, "z", &[3])];
    assert_eq!(shown(&mixed), ["10.0.0.1:80 200 1 x", "10.0.0.2:80 1 1 y", "10.0.0.3:80 5 2 z"]);
    // Each address of a target, and one address once: as the preferred group has it.
    let twice = [srv(2, 5, 80, "z", &[1]), srv(1, 3, 80, "x", &[1, 2]), srv(3, 5, 80, "w", &[2])];
    assert_eq!(shown(&twice), ["10.0.0.1:80 3 1 x", "10.0.0.2:80 3 1 x"]);
    let (instances, _) = srv_instances(&consul);
    assert_eq!(instances[0].labels["dns.priority"], "1");
}

#[test]
fn what_nobody_can_connect_to_is_no_instance() {
    let (instances, unreadable) = srv_instances(&[srv(0, 0, 0, "x", &[1]), srv(0, 0, 80, "y", &[2])]);
    assert_eq!((instances.len(), unreadable), (1, vec!["x: `10.0.0.1:0` is not an address to connect to".into()]));
    let ips = ["0.0.0.0", "10.0.0.1", "224.0.0.1", "10.0.0.1"].map(|ip| ip.parse().unwrap());
    let (instances, unreadable) = plain_instances(&ips, 80);
    assert_eq!((instances.len(), instances[0].weight), (1, Instance::DEFAULT_WEIGHT));
    assert_eq!(unreadable.len(), 2, "{unreadable:?}");
}

#[test]
fn an_answer_cannot_take_all_the_time_or_memory() {
    let name = |n: usize| if n == 0 { "a".to_owned() } else { format!("a{n}") };
    let long: Vec<_> = (0..2000).rev().map(|n| alias(&name(n), 30, &name(n + 1))).collect();
    assert_eq!(found(NO_ERROR, long, vec![]).0, format!("→ a{}", MOST_ALIASES + 1), "to be asked for by itself");

    let addresses: Vec<IpAddr> = (0..1000_u16).map(|n| [10, 0, (n >> 8) as u8, n as u8].into()).collect();
    let at = |port| (Srv { priority: 0, weight: 1, port, target: "t".into() }, addresses.clone());
    let (instances, unreadable) = srv_instances(&(1..=10).map(at).collect::<Vec<_>>());
    assert_eq!((instances.len(), unreadable.len()), (MOST_ENDPOINTS, 0));
    let (instances, unreadable) = srv_instances(&(1..=11).map(at).collect::<Vec<_>>());
    assert_eq!((instances.len(), unreadable.len()), (MOST_ENDPOINTS, 1));
    assert!(unreadable[0].contains("the others are left out"), "{unreadable:?}");
    let (instances, unreadable) = srv_instances(&vec![at(0); 11]);
    assert_eq!((instances.len(), unreadable.len()), (0, MOST_ENDPOINTS + 1), "nor with complaints");
}
