//! `dns`: answering applications' questions.

use super::{config_of, errors_of};
use crate::config::{Dns, human};
use std::time::Duration;

const REGISTRY: &str = "registries: { main: { kind: consul } }\n";
const LISTENER: &str = "listeners: [{ name: out, listen: '[::]:15001', protocol: auto, transparent: {} }]\n";

#[test]
fn what_is_wrong_is_told() {
    let dns = |rest: &str| errors_of(&format!("{REGISTRY}{LISTENER}dns:\n  {rest}\n"));
    let suffix = "expected a dot and what services' names end with, like `.mesh`: letters, digits, `-` and `_`";
    for bad in ["mesh", ".", ".mesh.", ".a b", "..mesh"] {
        assert_eq!(dns(&format!("suffix: '{bad}'")), [format!("4:11: dns.suffix: found `{bad}`; {suffix}")]);
    }
    for (bad, why) in [
        ("240.0.0.0/20", "`240.0.0.0/20` is too small for addresses that are made of names; expected at most `/16`"),
        ("fd00::/120", "`fd00::/120` is too small for addresses that are made of names; expected at most `/112`"),
        (
            "127.0.0.0/8",
            "`127.0.0.0/8` has addresses that cannot be called: loopback, multicast, link-local, or 0.0.0.0",
        ),
        ("0.0.0.0/0", "`0.0.0.0/0` has addresses that cannot be called: loopback, multicast, link-local, or 0.0.0.0"),
        ("fe80::/64", "`fe80::/64` has addresses that cannot be called: loopback, multicast, link-local, or 0.0.0.0"),
    ] {
        assert_eq!(dns(&format!("addresses: ['{bad}']")), [format!("4:15: dns.addresses[0]: {why}")]);
    }
    assert_eq!(
        dns("addresses: ['240.0.0.1/4', '240.0.0.0', 'fd00::/129']"),
        [
            "4:15: dns.addresses[0]: found `240.0.0.1/4`; expected `240.0.0.0/4`, which is where these addresses begin",
            "4:30: dns.addresses[1]: found `240.0.0.0`; expected `IP/BITS`, like `240.0.0.0/4` or `fd00:1::/64`",
            "4:43: dns.addresses[2]: found `fd00::/129`; expected from 0 to 128 bits after `/`",
        ]
    );
    assert_eq!(
        dns("addresses: ['240.0.0.0/4', '250.0.0.0/8', 'fd00::/64', 'fd01::/64']"),
        [
            "4:30: dns.addresses[1]: `250.0.0.0/8` overlaps `240.0.0.0/4`; expected one network of IPv4",
            "4:58: dns.addresses[3]: there is one of IPv6 already; expected one",
        ]
    );
    assert_eq!(
        dns("addresses: []"),
        [
            "4:14: dns.addresses: the list is empty; expected a network of IPv4, like `240.0.0.0/4`, one of IPv6, or both"
        ]
    );
    assert_eq!(
        dns("upstreams: [dns.test, 127.0.0.1:15053, '[::1]:15053', 127.0.0.1]"),
        [
            "4:15: dns.upstreams[0]: found `dns.test`; expected `IP` or `IP:PORT`",
            "4:25: dns.upstreams[1]: `127.0.0.1:15053` is where pillion itself answers (`dns.listen`); expected another server",
            "4:42: dns.upstreams[2]: `[::1]:15053` is where pillion itself answers (`dns.listen`); expected another server",
        ]
    );
    assert_eq!(dns("ttl: 2d"), ["4:8: dns.ttl: expected at most `1d`"]);
    assert_eq!(dns("timeout: 0s"), ["4:12: dns.timeout: found `0s`; expected at least `1ms`"]);
    assert_eq!(dns("listen: []"), ["4:11: dns.listen: the list is empty; expected at least one `IP:PORT`"]);
    assert_eq!(
        dns("listen: ['[::]:15001']"),
        ["4:12: dns.listen[0]: the listener `out` listens on `[::]:15001` already"]
    );
}

#[test]
fn addresses_of_the_config_are_not_given_to_others() {
    let text = "services: { users: { addresses: [10.0.0.1, 240.0.0.1, 'fd70:696c:6c69:6f6e::1:80'] } }\ndns: {}\n";
    let told = errors_of(&format!("{REGISTRY}{LISTENER}{text}"));
    assert_eq!(
        told,
        [
            "3:44: services.users.addresses[1]: `240.0.0.1` is in `240.0.0.0/4` (`dns.addresses`) and may be given to another; expected \
             one outside",
            "3:55: services.users.addresses[2]: `fd70:696c:6c69:6f6e::1:80` is in `fd70:696c:6c69:6f6e::/64` (`dns.addresses`) and may \
             be given to another; expected one outside",
        ]
    );
}

#[test]
fn somebody_has_to_take_the_connections() {
    let told = errors_of(&format!("{REGISTRY}dns: {{}}\n"));
    let expected = "dns: nothing takes connections to the addresses that services get; expected only beside a listener with \
                    `transparent`";
    assert!(told.len() == 1 && told[0].ends_with(expected), "{told:?}");
    // One with a mistake may be the one.
    let broken = "listeners: [{ name: out, listen: '[::]:15001', protocol: auto, transparent: { direction: up } }]\n";
    let told = errors_of(&format!("{REGISTRY}{broken}dns: {{}}\n"));
    assert!(told.len() == 1 && told[0].contains("direction"), "{told:?}");
}

#[test]
fn nothing_has_to_be_said() {
    let config = config_of(&format!("{REGISTRY}{LISTENER}dns: {{}}\n"));
    assert_eq!(config.dns, Some(Dns::default()));
    assert_eq!(config.listeners[0].host_suffixes, [".mesh"], "requests name services as DNS does");
    let config = config_of(&format!("{REGISTRY}{LISTENER}dns: {{ listen: [127.0.0.1:53], ttl: 1m }}\n"));
    let dns = config.dns.unwrap();
    assert_eq!((dns.listen[0].port(), human::format(dns.ttl)), (53, human::format(Duration::from_secs(60))));
    assert!(dns.is_own("127.0.0.1:53".parse().unwrap()) && !dns.is_own("127.0.0.53:53".parse().unwrap()));
    let everywhere = Dns { listen: vec!["[::]:53".parse().unwrap()], ..Dns::default() };
    assert!(everywhere.is_own("127.0.0.1:53".parse().unwrap()) && !everywhere.is_own("10.0.0.1:53".parse().unwrap()));
}
