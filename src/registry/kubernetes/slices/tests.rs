//! What API servers write, and what becomes of it.

use super::*;
use proptest::prelude::*;
use std::num::NonZeroU16;

/// As kube-apiserver 1.34 answers it.
const SLICE: &str = r#"{"metadata":{"name":"users-abc12","namespace":"shop","uid":"d160170a-aa28-4b42-bf95-df1a127b1047",
    "resourceVersion":"11","generation":1,"creationTimestamp":"2026-11-21T18:48:38Z","labels":{"app":"users",
    "app.kubernetes.io/version":"1.4.2","endpointslice.kubernetes.io/managed-by":"endpointslice-controller.k8s.io",
    "kubernetes.io/service-name":"users","service.kubernetes.io/headless":""},"managedFields":[{"manager":"curl",
    "operation":"Update","apiVersion":"discovery.k8s.io/v1","fieldsType":"FieldsV1","fieldsV1":{"f:addressType":{}}}]},
    "addressType":"IPv4","endpoints":[{"addresses":["10.1.2.3"],"conditions":{"ready":true,"serving":true,
    "terminating":false},"targetRef":{"kind":"Pod","namespace":"shop","name":"users-6b5f-x7k","uid":"11"},
    "nodeName":"node-1","zone":"us-west2-a","hints":{"forZones":[{"name":"us-west2-a"}]}},{"addresses":["10.1.2.4"],
    "conditions":{},"hostname":"users-1"}],"ports":[{"name":"http","protocol":"TCP","port":8080,"appProtocol":"http"}]}"#;

fn choice() -> Choice {
    Choice { port: None, family: IpFamily::Ipv4, zone: None }
}

fn slice(json: &str) -> Slice {
    serde_json::from_str(json).unwrap_or_else(|error| panic!("{json}: {error}"))
}

/// A slice of these endpoints, with one port.
fn of(name: &str, kind: &str, endpoints: &str) -> Slice {
    slice(&format!(
        r#"{{"metadata":{{"name":"{name}"}},"addressType":"{kind}","endpoints":[{endpoints}],
            "ports":[{{"name":"","protocol":"TCP","port":80}}]}}"#
    ))
}

/// Each instance as its id, with a `-` before it if it is not healthy.
fn ids(slices: &[Slice], choice: &Choice) -> Vec<String> {
    let (instances, complaints) = instances(slices.iter(), choice);
    assert_eq!(complaints, [""; 0]);
    instances.into_iter().map(|one| format!("{}{}", if one.healthy { "" } else { "-" }, one.id)).collect()
}

#[test]
fn a_slice_says_all_of_this() {
    let (instances, complaints) = instances([slice(SLICE)].iter(), &choice());
    assert!(complaints.is_empty(), "{complaints:?}");
    let [first, second] = &instances[..] else { panic!("{instances:?}") };
    assert_eq!((first.id.as_str(), first.address.to_string().as_str()), ("10.1.2.3:8080", "10.1.2.3:8080"));
    assert_eq!((first.weight, first.zone.as_deref(), first.healthy), (100, Some("us-west2-a"), true));
    assert_eq!((first.protocol, first.tls), (Some(Protocol::Http1), Some(false)));
    let labels: Vec<_> = first.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let expected =
        ["app=users", "app.kubernetes.io/version=1.4.2", "node=node-1", "pod=users-6b5f-x7k", "version=1.4.2"];
    assert_eq!(labels, expected);
    assert_eq!((second.labels["hostname"].as_str(), second.zone.as_deref()), ("users-1", None));
    assert!(second.healthy, "what says nothing of its condition is ready");
}

#[test]
fn a_version_of_its_own_goes_before_the_usual_label() {
    let text = SLICE.replace(r#""app":"users""#, r#""version":"canary""#);
    assert_eq!(instances([slice(&text)].iter(), &choice()).0[0].version(), Some("canary"));
}

#[test]
fn empty_lists_are_written_in_three_ways() {
    for rest in ["", r#","endpoints":null,"ports":null"#, r#","endpoints":[],"ports":[{}]"#] {
        let empty = slice(&format!(r#"{{"metadata":{{"name":"x","labels":null}},"addressType":"IPv4"{rest}}}"#));
        assert_eq!(ids(&[empty], &choice()), [""; 0]);
    }
}

#[test]
fn conditions_decide_who_is_used() {
    let with =
        |address: u8, conditions: &str| format!(r#"{{"addresses":["10.0.0.{address}"],"conditions":{conditions}}}"#);
    let leaving = with(3, r#"{"ready":false,"serving":true,"terminating":true}"#);
    let gone = with(4, r#"{"ready":false,"serving":false,"terminating":true}"#);
    let starting = with(5, r#"{"ready":false}"#);
    let unclear = with(6, r#"{"ready":false,"serving":true,"terminating":false}"#);
    let all = |first: &str| [of("a", "IPv4", &[first, &leaving, &gone, &starting, &unclear].join(","))];
    let others = ["-10.0.0.3:80", "-10.0.0.4:80", "-10.0.0.5:80", "-10.0.0.6:80"];
    // `publishNotReadyAddresses` makes even a terminating one ready.
    for ready in
        [with(1, "{}"), with(1, "null"), with(1, r#"{"ready":true,"terminating":true}"#), with(1, r#"{"ready":null}"#)]
    {
        assert_eq!(ids(&all(&ready), &choice()), [&["10.0.0.1:80"], &others[..]].concat(), "{ready}");
    }
    // Without any that is ready, those that still serve are better than none.
    let none = ["-10.0.0.1:80", "10.0.0.3:80", "-10.0.0.4:80", "-10.0.0.5:80", "-10.0.0.6:80"];
    assert_eq!(ids(&all(&with(1, r#"{"ready":false,"serving":false}"#)), &choice()), none);
}

#[test]
fn slices_are_joined_and_an_endpoint_in_two_counts_once() {
    let ready = r#"{"addresses":["10.0.0.1"]}"#;
    let not = r#"{"addresses":["10.0.0.1"],"conditions":{"ready":false}}"#;
    let other = r#"{"addresses":["10.0.0.2","10.0.0.3"]}"#;
    for (a, b) in [(ready, not), (not, ready), (ready, ready)] {
        let slices = [of("a", "IPv4", a), of("b", "IPv4", &format!("{b},{other}"))];
        assert_eq!(ids(&slices, &choice()), ["10.0.0.1:80", "10.0.0.2:80"], "only the first address counts");
    }
}

#[test]
fn one_family_is_used_and_names_always() {
    let four = of("a", "IPv4", r#"{"addresses":["10.0.0.1"]}"#);
    let six = of("b", "IPv6", r#"{"addresses":["fd00::1"]}"#);
    let name = of("c", "FQDN", r#"{"addresses":["Users.example"]}"#);
    let empty = of("d", "IPv4", "");
    let strange = of("e", "MAC", r#"{"addresses":["00:00"]}"#);
    let six_first = Choice { family: IpFamily::Ipv6, ..choice() };
    let all = [four.clone(), six.clone(), name, strange];
    assert_eq!(ids(&all, &choice()), ["10.0.0.1:80", "users.example:80"]);
    assert_eq!(ids(&all, &six_first), ["[fd00::1]:80", "users.example:80"]);
    assert_eq!(ids(&[six, empty], &choice()), ["[fd00::1]:80"], "better than none");
    assert_eq!(ids(&[four], &six_first), ["10.0.0.1:80"]);
}

#[test]
fn hints_count_if_all_that_are_ready_have_them() {
    let hinted = |address: u8, zones: &str| {
        let zones: Vec<_> = zones.chars().map(|zone| format!(r#"{{"name":"{zone}"}}"#)).collect();
        format!(r#"{{"addresses":["10.0.0.{address}"],"hints":{{"forZones":[{}]}}}}"#, zones.join(","))
    };
    let (a, b, ab) = (hinted(1, "a"), hinted(2, "b"), hinted(3, "ab"));
    let bare = r#"{"addresses":["10.0.0.4"],"hints":null}"#;
    let starting = r#"{"addresses":["10.0.0.5"],"conditions":{"ready":false}}"#;
    let at = |zone: Option<&str>, endpoints: &[&str]| {
        let zone = zone.map(str::to_owned);
        ids(&[of("s", "IPv4", &endpoints.join(","))], &Choice { zone, ..choice() })
    };
    let (all, of_a) = (["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"], ["10.0.0.1:80", "-10.0.0.2:80", "10.0.0.3:80"]);
    assert_eq!(at(Some("a"), &[&a, &b, &ab]), of_a);
    assert_eq!(at(None, &[&a, &b, &ab]), all);
    assert_eq!(at(Some("c"), &[&a, &b, &ab]), all, "nothing is for this zone");
    assert_eq!(at(Some("a"), &[&a, &b, bare]), ["10.0.0.1:80", "10.0.0.2:80", "10.0.0.4:80"]);
    assert_eq!(at(Some("a"), &[&a, &b, starting]), ["10.0.0.1:80", "-10.0.0.2:80", "-10.0.0.5:80"]);
}

#[test]
fn ports_go_by_name_or_number() {
    let ports = |ports: &str| {
        slice(&format!(
            r#"{{"metadata":{{"name":"s"}},"addressType":"IPv4","endpoints":[{{"addresses":["10.0.0.1"]}}],"ports":{ports}}}"#
        ))
    };
    let one = r#"[{"name":"web","port":81},{"name":"dns","protocol":"UDP","port":53}]"#;
    let two = r#"[{"name":"http","port":80},{"name":"grpc","port":90,"appProtocol":"kubernetes.io/h2c"}]"#;
    let neither = r#"[{"name":"a","port":1},{"name":"","port":2}]"#;
    for (text, port, expected) in [
        (one, None, "10.0.0.1:81"),
        (two, None, "10.0.0.1:80"),
        (two, Some("grpc"), "10.0.0.1:90"),
        (two, Some("90"), "10.0.0.1:90"),
        (two, Some("9999"), "10.0.0.1:9999"),
        ("null", Some("70"), "10.0.0.1:70"),
        (two, Some("admin"), "s: no TCP port is named `admin`; there are `http`, `grpc`"),
        (one, Some("dns"), "s: no TCP port is named `dns`; there are `web`"),
        ("[]", Some("web"), "s: no TCP port is named `web`; there is none"),
        (neither, None, "s: none of several ports is named `http`; set `port`; there are `a`, 2"),
        ("null", None, "s: it has no TCP port; set `port` to a number"),
        (r#"[{"name":""}]"#, None, "s: its port is left open; set `port` to a number"),
        (r#"[{"name":"x","port":0}]"#, None, "s: `10.0.0.1:0` is not an address; expected a port from 1 to 65535"),
    ] {
        let port = port.map(|port| KubernetesPort::parse(port).unwrap());
        let (instances, complaints) = instances([ports(text)].iter(), &Choice { port, ..choice() });
        let seen: Vec<_> =
            instances.iter().map(|one| one.id.as_str()).chain(complaints.iter().map(String::as_str)).collect();
        assert_eq!(seen, [expected], "{text}");
    }
    let port = Some(KubernetesPort::Number(NonZeroU16::new(90).unwrap()));
    let (found, _) = instances([ports(two)].iter(), &Choice { port, ..choice() });
    assert_eq!((found[0].protocol, found[0].tls), (Some(Protocol::Http2), Some(false)), "what is listed of the number");
}

#[test]
fn an_app_protocol_says_what_is_spoken() {
    for (text, expected) in [
        ("kubernetes.io/h2c", (Some(Protocol::Http2), Some(false))),
        ("kubernetes.io/ws", (Some(Protocol::Http1), Some(false))),
        ("kubernetes.io/wss", (Some(Protocol::Http1), Some(true))),
        ("GRPC", (Some(Protocol::Http2), None)),
        ("grpcs", (Some(Protocol::Http2), Some(true))),
        ("https", (None, Some(true))),
        ("tcp", (None, None)),
        ("example.com/own", (None, None)),
    ] {
        assert_eq!(spoken(Some(text)), expected, "{text}");
    }
}

#[test]
fn one_bad_address_hides_no_other() {
    let endpoints = r#"{"addresses":["10.0.0.1"]},{"addresses":["a b"]},{"addresses":[]},{"addresses":null}"#;
    let (instances, complaints) = instances([of("s", "IPv4", endpoints)].iter(), &choice());
    assert_eq!((instances.len(), complaints.len()), (1, 3));
    assert!(complaints[0].starts_with("s: `a b:80` is not an address"), "{complaints:?}");
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in any::<Vec<u8>>(), at in 0..SLICE.len(), put in any::<u8>(), cut in 0..SLICE.len()) {
        let mut mutated = SLICE.as_bytes().to_vec();
        mutated[at] = put;
        for bytes in [&bytes[..], &mutated, &SLICE.as_bytes()[..cut]] {
            if let Ok(slice) = serde_json::from_slice::<Slice>(bytes) {
                let _ = instances([slice.clone(), slice].iter(), &choice());
            }
        }
    }

    #[test]
    fn whatever_the_conditions_somebody_is_used_if_anybody_serves(
        states in prop::collection::vec((any::<Option<bool>>(), any::<Option<bool>>(), any::<Option<bool>>()), 0..9)
    ) {
        let endpoints: Vec<_> = states.iter().enumerate().map(|(at, (ready, serving, terminating))| serde_json::json!(
            {"addresses": [format!("10.0.0.{at}")], "conditions": {"ready": ready, "serving": serving, "terminating": terminating}}
        ).to_string()).collect();
        let (instances, _) = instances([of("s", "IPv4", &endpoints.join(","))].iter(), &choice());
        prop_assert_eq!(instances.len(), states.len());
        let ready = |ready: &Option<bool>| ready.unwrap_or(true);
        let any_ready = states.iter().any(|(one, ..)| ready(one));
        for (instance, (is_ready, serving, terminating)) in instances.iter().zip(&states) {
            let leaving = serving.unwrap_or(ready(is_ready)) && *terminating == Some(true);
            prop_assert_eq!(instance.healthy, if any_ready { ready(is_ready) } else { leaving });
        }
    }
}
