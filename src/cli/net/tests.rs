//! From the command line to the rules, and from the kernel's rules to words.

use super::{
    listeners::{Listener, There},
    listing::InForce,
    options::Options,
};
use clap::Parser;
use serde_json::json;

#[derive(Debug, Parser)]
struct Line {
    #[command(flatten)]
    options: Options,
}

/// The rules of these flags, or everything that is wrong with them.
fn rules(flags: &str) -> Result<String, String> {
    let line = Line::try_parse_from(["up"].into_iter().chain(flags.split_whitespace()));
    let rules = line.map_err(|error| error.to_string())?.options.rules();
    rules.map(|rules| rules.to_string()).map_err(|mistakes| mistakes.join("\n"))
}

#[test]
fn without_more_all_outbound_connections_but_pillions_are_redirected() {
    let expected = r#"add table inet pillion
delete table inet pillion
table inet pillion {
	chain outbound {
		type nat hook output priority -110; policy accept;
		tcp flags & (fin | syn | rst | ack) != syn return comment "connections that were there before"
		oifname "lo" return comment "to this machine itself"
		meta skuid { 65532 } return comment "pillion's own, users:"
		tcp dport { 53 } return comment "to ports:"
		meta l4proto tcp meta skuid 0-4294967294 counter redirect to :15001 comment "all users"
	}
}
"#;
    assert_eq!(rules("--pillion-user 65532").unwrap(), expected);
}

#[test]
fn every_flag_has_its_rule() {
    let flags = "--pillion-user root,7 --pillion-group 8 --pillion-mark 0x70 --outbound-port 1 --users 1000 --users 1001,1000 \
                 --groups 100 --exclude-users 1002 --exclude-groups 101 --exclude-ports 3306,50-60 --exclude-cidrs \
                 10.0.0.0/8,10.1.0.0/16,192.0.2.7,fd00::/8 --inbound-ports 8080,9000-9099 --exclude-inbound-ports 9001 \
                 --inbound-port 2";
    let expected = r#"add table inet pillion
delete table inet pillion
table inet pillion {
	chain outbound {
		type nat hook output priority -110; policy accept;
		tcp flags & (fin | syn | rst | ack) != syn return comment "connections that were there before"
		oifname "lo" return comment "to this machine itself"
		meta skuid { 0, 7 } return comment "pillion's own, users:"
		meta skgid { 8 } return comment "pillion's own, groups:"
		meta mark 0x70 return comment "pillion's own, mark 0x70"
		ip daddr { 10.0.0.0/8, 192.0.2.7/32 } return comment "to addresses:"
		ip6 daddr { fd00::/8 } return comment "to addresses:"
		tcp dport { 50-60, 3306 } return comment "to ports:"
		meta skuid { 1002 } return comment "users:"
		meta skgid { 101 } return comment "groups:"
		meta l4proto tcp meta skuid { 1000, 1001 } counter redirect to :1 comment "users:"
		meta l4proto tcp meta skgid { 100 } counter redirect to :1 comment "groups:"
	}
	chain inbound {
		type nat hook prerouting priority -110; policy accept;
		tcp flags & (fin | syn | rst | ack) != syn return comment "connections that were there before"
		iifname "lo" return comment "from this machine itself"
		fib daddr type != local return comment "through this machine to others"
		tcp dport { 1-2, 9001 } return comment "to ports:"
		tcp dport { 8080, 9000-9099 } counter redirect to :2 comment "to ports:"
	}
}
"#;
    assert_eq!(rules(flags).unwrap(), expected);
}

#[test]
fn dns_questions_are_redirected_whichever_server_they_are_for() {
    let expected = r#"	chain dns {
		type nat hook output priority -111; policy accept;
		tcp flags & (fin | syn | rst | ack) != syn return comment "connections that were there before"
		meta skuid { 7 } return comment "pillion's own, users:"
		meta skgid { 8 } return comment "pillion's own, groups:"
		meta mark 0x70 return comment "pillion's own, mark 0x70"
		meta skuid { 1002 } return comment "users:"
		meta skgid { 101 } return comment "groups:"
		meta l4proto { tcp, udp } th dport 53 meta skuid { 1000 } counter redirect to :15053 comment "users:"
		meta l4proto { tcp, udp } th dport 53 meta skgid { 100 } counter redirect to :15053 comment "groups:"
	}
"#;
    let own = "--pillion-user 7 --pillion-group 8 --pillion-mark 0x70 --dns-port 15053";
    let flags = "--users 1000 --groups 100 --exclude-users 1002 --exclude-groups 101 --exclude-ports 99 --exclude-cidrs 10.0.0.0/8";
    let told = rules(&format!("{own} {flags}")).unwrap();
    assert!(told.contains(expected), "{told}");
    let all = r#"		meta l4proto { tcp, udp } th dport 53 meta skuid 0-4294967294 counter redirect to :15053 comment "all users"
	}
	chain outbound {
"#;
    let told = rules(own).unwrap();
    assert!(told.contains(all), "{told}");
}

#[test]
fn without_outbound_ones_only_inbound_connections_are_redirected() {
    let expected = r#"add table inet pillion
delete table inet pillion
table inet pillion {
	chain inbound {
		type nat hook prerouting priority -110; policy accept;
		tcp flags & (fin | syn | rst | ack) != syn return comment "connections that were there before"
		iifname "lo" return comment "from this machine itself"
		fib daddr type != local return comment "through this machine to others"
		tcp dport { 15006 } return comment "to ports:"
		tcp dport { 8080 } counter redirect to :15006 comment "to ports:"
	}
}
"#;
    assert_eq!(rules("--no-outbound --inbound-ports 8080").unwrap(), expected);
    let kept =
        "# what these applications answer goes back to pillion, which asks as its clients; nft does not make that:
# ip -4 route add local default dev lo table 4140
# ip -4 rule add priority 4140 from 127.0.0.0/8 iif lo ipproto tcp sport 8080 lookup 4140
# ip -6 route add local default dev lo table 4140
# ip -6 rule add priority 4140 from ::1 iif lo ipproto tcp sport 8080 lookup 4140
";
    let both = rules("--no-outbound --inbound-ports 8080 --keep-source 8080").unwrap();
    assert_eq!(both, expected.to_owned() + kept);
    let removal = "add table inet pillion\ndelete table inet pillion\n";
    assert_eq!(rules("--no-outbound --keep-source 8080").unwrap(), removal.to_owned() + kept);
}

#[test]
fn all_inbound_ports_are_not_ssh_and_not_pillions() {
    let rules = rules("--pillion-user 7 --inbound-ports all --exclude-inbound-ports 9090").unwrap();
    assert!(
        rules.contains("\t\ttcp dport { 22, 4143, 4191, 9090, 15001, 15006 } return comment \"to ports:\"\n"),
        "{rules}"
    );
    assert!(rules.contains("\t\tmeta l4proto tcp counter redirect to :15006 comment \"to all ports\"\n"), "{rules}");
}

#[test]
fn contradictions_are_mistakes() {
    for (flags, told) in [
        ("", "expected --pillion-user"),
        ("--users 1000", "expected --pillion-user"),
        ("--pillion-user 7 --users 7,8", "--users and --pillion-user contradict each other about 7"),
        ("--pillion-group 7 --groups 7", "--groups and --pillion-group contradict each other about 7"),
        ("--pillion-user 7 --users 8 --exclude-users 8", "--users and --exclude-users contradict each other about 8"),
        (
            "--pillion-user 7 --groups 8 --exclude-groups 8",
            "--groups and --exclude-groups contradict each other about 8",
        ),
        ("--pillion-user 7 --inbound-ports 80 --inbound-port 15001", "are both 15001"),
        ("--pillion-user 7 --inbound-ports all,80", "expected `all` alone, or ports"),
        ("--pillion-user 7 --inbound-ports 80,15006", "--inbound-ports 15006: pillion itself is there"),
        ("--pillion-user 7 --inbound-ports 80 --outbound-port 80", "--inbound-ports 80: pillion itself is there"),
        (
            "--pillion-user 7 --inbound-ports 80,90 --exclude-inbound-ports 80-85",
            "--inbound-ports and --exclude-inbound-ports contradict each other about 80",
        ),
        ("--pillion-user 7 --exclude-inbound-ports 80", "--inbound-ports"),
        ("--pillion-user 7 --inbound-port 80", "--inbound-ports"),
        ("--pillion-user 7 --inbound-ports any", "expected ports from 1 to 65535, like 8080 or 8000-8099, or `all`"),
        ("--pillion-user 7 --outbound-port 0", "expected a port from 1 to 65535"),
        ("--pillion-user no-such-user", "'no-such-user' for '--pillion-user <USER>': there is no such user"),
        ("--no-outbound", "leaves nothing to do; expected --inbound-ports or --keep-source as well"),
        ("--no-outbound --inbound-ports 80 --users 5", "'--no-outbound' cannot be used with '--users <USER>'"),
        ("--no-outbound --inbound-ports 80 --outbound-port 5", "cannot be used with"),
        ("--no-outbound --inbound-ports 80 --dns-port 15053", "cannot be used with '--dns-port <PORT>'"),
        ("--pillion-user 7 --dns-port 15001", "--dns-port and --outbound-port are both 15001; expected two ports"),
        ("--pillion-user 7 --keep-source web", "expected ports"),
        ("--pillion-mark 0", "expected a number from 1 to 0xffffffff"),
        ("--pillion-user 7 --exclude-ports 80,http", "'http' for '--exclude-ports <PORTS>': expected ports"),
        ("--pillion-user 7 --exclude-cidrs 10.0.0.1/8", "these are the addresses 10.0.0.0/8"),
    ] {
        let found = rules(flags).unwrap_err();
        assert!(found.contains(told), "{flags}: {found}");
    }
    let all = rules("--users 5 --exclude-users 5 --inbound-ports 15001,15006").unwrap_err();
    assert_eq!(all.lines().count(), 4, "{all}");
}

#[test]
fn what_the_kernel_has_is_told_in_words() {
    let rule = |chain, comment, expr| json!({"rule": {"chain": chain, "comment": comment, "expr": expr}});
    let matched = |right| json!({"match": {"op": "==", "left": {"meta": {"key": "skuid"}}, "right": right}});
    let straight = |right| json!([matched(right), {"return": null}]);
    let redirected = |right, port| json!([{"match": {"right": "tcp"}}, matched(right), {"counter": {"packets": 3, "bytes": 180}}, {"redirect": {"port": port}}]);
    let chain = |name| json!({"chain": {"name": name}});
    let outbound = vec![
        json!({"metainfo": {}}),
        json!({"table": {"name": "pillion"}}),
        chain("outbound"),
        rule("outbound", "to this machine itself", straight(json!("lo"))),
        rule("outbound", "pillion's own, users:", straight(json!({"set": [5]}))),
        rule("outbound", "users:", straight(json!({"set": [5, {"range": [7, 9]}]}))),
        rule("outbound", "to addresses:", straight(json!({"prefix": {"addr": "fd00::", "len": 8}}))),
        rule("outbound", "all users", redirected(json!({"range": [0, 9]}), 15001)),
    ];
    // As somebody else than the rules' owner of port 15001, and for one family.
    let there = |port| {
        let listener = Listener { address: "127.0.0.1".parse().unwrap(), user: 5, group: None };
        There { listeners: if port == 15001 { vec![listener] } else { Vec::new() }, has_ipv6: false }
    };
    let read = |objects: &[serde_json::Value]| InForce::read(&json!({ "nftables": objects }), &there);
    let found = read(&outbound).unwrap();
    let expected = "outbound, to port 15001:\n  all users (3 connections so far)\noutbound, straight:\n  to this machine itself\n  \
                    pillion's own, users: 5\n  users: 5, 7-9\n  to addresses: fd00::/8\ninbound, straight:\n  all\n";
    assert_eq!(found.words(), expected);
    let json = serde_json::to_value(&found).unwrap();
    assert_eq!(json["outbound"]["redirected"], json!([{"what": "all users", "connections": 3}]));
    assert_eq!(json["outbound"]["straight"][2], json!({"what": "users", "values": ["5", "7-9"]}));
    assert_eq!((&json["outbound"]["listening"], &json["inbound"]), (&json!(true), &json!(null)));

    let mut other = outbound.clone();
    other[4] = rule("outbound", "pillion's own, users:", straight(json!({"set": [6]})));
    let words = read(&other).unwrap().words();
    assert!(words.contains("\n  who listens there is user 5, whose connections are redirected, too"), "{words}");

    let mut both = outbound.clone();
    both.extend([chain("inbound"), rule("inbound", "to ports:", redirected(json!({"set": [80, 90]}), 15006))]);
    let words = read(&both).unwrap().words();
    let expected = "inbound, to port 15006:\n  to ports: 80, 90 (3 connections so far)\n  nobody listens there: until \
                    pillion does, these connections are refused\ninbound, straight:\n";
    assert!(words.ends_with(expected), "{words}");

    let mut asked = outbound.clone();
    let dns = [
        chain("dns"),
        rule("dns", "pillion's own, users:", straight(json!({"set": [6]}))),
        rule("dns", "users:", straight(json!({"set": [102]}))),
        rule("dns", "all users", redirected(json!({"range": [0, 9]}), 15053)),
    ];
    asked.extend(dns);
    // Who answers questions on this machine: pillion itself, one whose questions go straight, and one whose do not.
    let resolvers = |port| {
        let listener = |user| Listener { address: "127.0.0.53".parse().unwrap(), user, group: None };
        There { listeners: if port == 53 { [6, 101, 102].map(listener).into() } else { Vec::new() }, has_ipv6: false }
    };
    let words = InForce::read(&json!({ "nftables": asked }), &resolvers).unwrap().words();
    let expected = "dns, to port 15053:\n  all users (3 connections so far)\n  nobody listens there: until pillion does, these \
                    connections are refused\n  user 101 answers DNS questions here itself, and";
    assert!(words.starts_with(expected) && words.matches("answers DNS questions").count() == 1, "{words}");
    assert!(words.contains("expected --exclude-users 101\ndns, straight:\n  pillion's own, users: 6\n"), "{words}");

    assert_eq!(InForce::default().words(), "nothing goes through pillion: it has no rules here\n");
    for strange in [
        chain("forward"),
        json!({"rule": {"chain": "outbound", "expr": straight(json!(5))}}),
        rule("outbound", "dropped", json!([{"drop": null}])),
        rule("inbound", "no such chain", straight(json!(5))),
        rule("outbound", "elsewhere", redirected(json!(5), 70_000)),
    ] {
        let objects = [outbound.clone(), vec![strange.clone()]].concat();
        let told = read(&objects).unwrap_err().to_string();
        assert!(told.contains("is not as this pillion makes it"), "{strange}: {told}");
    }
    assert!(read(&outbound[..3]).is_err(), "a chain that redirects nothing");
}
