use super::{
    super::proto::{
        self, Address as AddressMessage, Empty, Endpoint, LocalityLbEndpoints, Policy, SocketAddress, UInt32Value,
    },
    *,
};
use proptest::prelude::*;

/// What go-control-plane 0.14 sends for a cluster of type EDS with HTTP/2 and TLS, byte by byte.
const CLUSTER: &str = "0a0575736572731a110a0430021a00120975736572732d65647322020801c2017a0a1b656e766f792e7472616e73706f72745f736f636b6574732e746c731a5b0a50747970652e676f6f676c65617069732e636f6d2f656e766f792e657874656e73696f6e732e7472616e73706f72745f736f636b6574732e746c732e76332e557073747265616d546c73436f6e74657874120712057573657273a2028c010a36656e766f792e657874656e73696f6e732e757073747265616d732e687474702e76332e4874747050726f746f636f6c4f7074696f6e7312520a4a747970652e676f6f676c65617069732e636f6d2f656e766f792e657874656e73696f6e732e757073747265616d732e687474702e76332e4874747050726f746f636f6c4f7074696f6e7312041a0212001003";
/// And for one of type STRICT_DNS, and one of type ORIGINAL_DST.
const DNS: &str = "0a03776562220208018a02200a03776562121912170a150a130a11120c7765622e696e7465726e616c18903f1001";
const PASS: &str = "0a04706173732202080130061004";
/// And for an assignment: two localities and priorities, each health, a Unix socket, labels, a policy.
const ASSIGNMENT: &str = "0a0975736572732d65647312d5010a120a026575120465752d311a067261636b2d37128a0110011a6c0a550a08656e766f792e6c6212490a0c0a0663616e617279120220010a120a0573686172641209110000000000001c400a140a0474616773120c320a0a031a01610a031a01620a0f0a0776657273696f6e12041a0276320a130a056f74686572120a0a080a017812031a0179220208020a140a0e0a0c120831302e302e302e3118501a02753112181005220208010a100a0e0a0c120831302e302e302e321850121410030a100a0e0a0c120831302e302e302e3318501a02080312390a0a0a026575120465752d32121010020a0c0a0a0a0812033a3a3118903f12130a110a0f120d0a0b2f72756e2f782e736f636b1a02080128012214120e0a087468726f74746c65120208052202085a";

fn bytes(hex: &str) -> Vec<u8> {
    let digits = |at| &hex[at..at + 2];
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(digits(at), 16).unwrap()).collect()
}

#[test]
fn clusters_as_a_control_plane_sends_them() {
    let users = cluster(&bytes(CLUSTER)).unwrap();
    assert_eq!(
        (name(&bytes(CLUSTER)).as_str(), users.protocol, users.tls),
        ("users", Some(Protocol::Http2), Some(true))
    );
    assert_eq!(users.source, Source::Eds(Some("users-eds".into())));
    let web = cluster(&bytes(DNS)).unwrap();
    let Source::Inline(inline) = web.source else { panic!("{:?}", web.source) };
    assert_eq!((name(&bytes(DNS)).as_str(), web.protocol, web.tls), ("web", None, None));
    assert_eq!(inline.instances[0].address.to_string(), "web.internal:8080");
    let pass = cluster(&bytes(PASS)).unwrap();
    assert_eq!((name(&bytes(PASS)).as_str(), pass.source), ("pass", Source::None("ORIGINAL_DST".into())));
}

#[test]
fn an_assignment_as_a_control_plane_sends_it() {
    let found = assignment(&bytes(ASSIGNMENT)).unwrap();
    assert_eq!((name(&bytes(ASSIGNMENT)).as_str(), found.stale_after), ("users-eds", Some(Duration::from_secs(90))));
    let shown: Vec<_> = found
        .instances
        .iter()
        .map(|one| format!("{} {} {:?} {} {:?}", one.id, one.weight, one.zone, one.healthy, one.labels))
        .collect();
    let place = r#""xds.region": "eu", "xds.sub_zone": "rack-7""#;
    assert_eq!(
        shown,
        [
            format!(
                r#"10.0.0.1:80 200 Some("eu-1") true {{"canary": "true", "shard": "7", "tags": "[\"a\",\"b\"]", "version": "v2", "xds.priority": "0", {place}}}"#
            ),
            format!(r#"10.0.0.2:80 100 Some("eu-1") true {{"xds.health": "degraded", "xds.priority": "0", {place}}}"#),
            format!(r#"10.0.0.3:80 100 Some("eu-1") false {{"xds.priority": "0", {place}}}"#),
            r#"[::1]:8080 100 Some("eu-2") false {"xds.priority": "1", "xds.region": "eu"}"#.to_owned(),
        ]
    );
    assert_eq!(
        found.notes,
        ["drop_overloads: pillion drops no share of the requests", "an endpoint is a Unix domain socket"]
    );
}

fn endpoint(host: &str, port: u32) -> LbEndpoint {
    let socket = SocketAddress { address: host.into(), port_value: port, ..SocketAddress::default() };
    let address = AddressMessage { address: Some(AddressKind::Socket(socket)) };
    LbEndpoint { endpoint: Some(Endpoint { address: Some(address) }), ..LbEndpoint::default() }
}

fn weighted(host: &str, weight: u32) -> LbEndpoint {
    LbEndpoint { load_balancing_weight: Some(UInt32Value { value: weight }), ..endpoint(host, 80) }
}

fn locality<const N: usize>(weight: Option<u32>, priority: u32, endpoints: [LbEndpoint; N]) -> LocalityLbEndpoints {
    LocalityLbEndpoints {
        lb_endpoints: endpoints.into(),
        load_balancing_weight: weight.map(|value| UInt32Value { value }),
        priority,
        ..LocalityLbEndpoints::default()
    }
}

fn read(localities: &[LocalityLbEndpoints]) -> Result<Vec<(String, u32)>, String> {
    let message =
        ClusterLoadAssignment { cluster_name: "a".into(), endpoints: localities.to_vec(), ..Default::default() };
    Ok(assignment(&message.encode_to_vec())?.instances.into_iter().map(|one| (one.id, one.weight)).collect())
}

#[test]
fn weights_of_localities_are_shared_out_to_their_endpoints() {
    let weights = |localities: &[LocalityLbEndpoints]| -> Vec<u32> {
        read(localities).unwrap().into_iter().map(|(_, weight)| weight).collect()
    };
    let (a, b, c) = (weighted("10.0.0.1", 1), weighted("10.0.0.2", 3), endpoint("10.0.0.3", 80));
    // None, or not all: as they are.
    assert_eq!(weights(&[locality(None, 0, [a.clone(), b.clone(), c.clone()])]), [100, 300, 100]);
    assert_eq!(
        weights(&[locality(Some(9), 0, [a.clone(), b.clone()]), locality(None, 0, [c.clone()])]),
        [100, 300, 100]
    );
    // Half of the traffic for each locality, in it a quarter and three quarters; the mean stays 5/3.
    let halves = [locality(Some(7), 0, [a.clone(), b.clone()]), locality(Some(7), 0, [c.clone()])];
    assert_eq!(weights(&halves), [63, 188, 250]);
    // The sum of the endpoints' own, as Istio writes it, changes nothing.
    assert_eq!(
        weights(&[locality(Some(4), 0, [a.clone(), b.clone()]), locality(Some(1), 0, [c.clone()])]),
        [100, 300, 100]
    );
    // Priorities do not take from each other, and a locality without endpoints takes nothing.
    let apart = [locality(Some(1), 1, [a]), locality(Some(5), 0, [b]), locality(Some(1), 0, [])];
    assert_eq!(weights(&apart), [300, 100]);
    assert_eq!(weights(&[locality(None, 0, [weighted("10.0.0.1", u32::MAX)])]), [u32::MAX]);
}

#[test]
fn an_address_that_is_there_twice_counts_where_it_is_preferred() {
    let one = |priority| locality(None, priority, [weighted("10.0.0.1", 5 + priority)]);
    assert_eq!(read(&[one(1), one(0)]).unwrap(), [("10.0.0.1:80".into(), 500)]);
}

#[test]
fn what_breaks_the_rules_is_refused_with_the_reason() {
    let of = |endpoint: LbEndpoint| read(&[locality(None, 0, [endpoint])]).unwrap_err();
    assert_eq!(of(weighted("10.0.0.1", 0)), "an endpoint has the weight 0");
    assert_eq!(of(endpoint("10.0.0.1", 65536)), "port 65536 is above 65535");
    assert!(of(endpoint("10.0.0.1", 0)).contains("expected a port from 1 to 65535"));
    assert!(of(endpoint("not a host", 1)).contains("is not an address"));
    assert_eq!(of(LbEndpoint::default()), "an endpoint has no address");
    let good = endpoint("10.0.0.1", 80);
    assert_eq!(read(&[locality(Some(0), 0, [good.clone()])]).unwrap_err(), "a locality has the weight 0");
    assert_eq!(read(&[locality(None, 129, [good])]).unwrap_err(), "priority 129 is above 128");
    // Nothing that could be used is not the same as nothing.
    let pipe = AddressMessage { address: Some(AddressKind::Pipe(Empty {})) };
    let pipe = LbEndpoint { endpoint: Some(Endpoint { address: Some(pipe) }), ..LbEndpoint::default() };
    assert_eq!(of(pipe), "none of its endpoints can be used: an endpoint is a Unix domain socket");
    assert_eq!(read(&[]).unwrap(), []);
    assert_eq!((name(b""), assignment(b"").unwrap_err().as_str()), (String::new(), "it has no name"));
    assert!(name(b"\xff").is_empty() && assignment(b"\xff").unwrap_err().contains("decode"));
    let stale = Policy { endpoint_stale_after: Some(proto::Duration::default()), ..Policy::default() };
    let stale = ClusterLoadAssignment { cluster_name: "a".into(), policy: Some(stale), ..Default::default() };
    assert_eq!(assignment(&stale.encode_to_vec()).unwrap_err(), "endpoint_stale_after is not above zero");
    let odd = ClusterMessage { name: "a".into(), r#type: 9, ..Default::default() };
    assert_eq!(cluster(&odd.encode_to_vec()).unwrap_err(), "type 9 is not known");
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(random in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = (name(&random), cluster(&random), assignment(&random));
    }

    #[test]
    fn nor_do_mistakes_in_real_ones(at in 0usize..400, with in any::<u8>(), cut in 0usize..400) {
        for hex in [CLUSTER, DNS, ASSIGNMENT] {
            let mut mutated = bytes(hex);
            let length = mutated.len();
            mutated[at % length] = with;
            let _ = (cluster(&mutated), assignment(&mutated));
            mutated.truncate(cut % length);
            let _ = (cluster(&mutated), assignment(&mutated));
        }
    }
}
