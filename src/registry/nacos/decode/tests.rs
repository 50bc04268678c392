use super::*;
use proptest::prelude::*;

/// What Nacos 3.1 pushes, byte by byte, with two instances in it.
const PUSHED: &str = r#"{"name":"users","groupName":"DEFAULT_GROUP","clusters":"","cacheMillis":10000,"hosts":[{"instanceId":"10.0.0.2#8001#c1#DEFAULT_GROUP@@users","ip":"10.0.0.2","port":8001,"weight":2.5,"healthy":true,"enabled":true,"ephemeral":true,"clusterName":"c1","serviceName":"DEFAULT_GROUP@@users","metadata":{"version":"v2","zone":"z"},"instanceHeartBeatInterval":5000,"instanceHeartBeatTimeOut":15000,"ipDeleteTimeout":30000},{"instanceId":"10.0.0.1#8000#DEFAULT#DEFAULT_GROUP@@users","ip":"10.0.0.1","port":8000,"weight":1.0,"healthy":false,"enabled":true,"ephemeral":true,"clusterName":"DEFAULT","serviceName":"DEFAULT_GROUP@@users","metadata":{},"instanceHeartBeatInterval":5000,"instanceHeartBeatTimeOut":15000,"ipDeleteTimeout":30000}],"lastRefTime":1795287072289,"checksum":"","allIps":false,"reachProtectionThreshold":false,"valid":true}"#;

fn read(hosts: &str, clusters: &[&str]) -> Found {
    let info = serde_json::from_str(&format!(r#"{{"name":"users","hosts":[{hosts}]}}"#)).unwrap();
    found(info, &clusters.iter().map(ToString::to_string).collect::<Vec<_>>())
}

fn one(fields: &str) -> Instance {
    let found = read(&format!(r#"{{"ip":"10.0.0.1","port":80,{fields}}}"#), &[]);
    assert_eq!((found.instances.len(), found.unreadable.as_slice()), (1, &[][..]), "{fields}");
    found.instances.into_iter().next().unwrap()
}

#[test]
fn what_the_server_pushes_is_read() {
    let found = found(serde_json::from_str(PUSHED).unwrap(), &[]);
    let [plain, c1] = &found.instances[..] else { panic!("{found:?}") };
    assert_eq!((c1.id.as_str(), c1.address.to_string(), c1.weight), ("c1/10.0.0.2:8001", "10.0.0.2:8001".into(), 250));
    assert_eq!((c1.version(), c1.zone.as_deref(), c1.healthy), (Some("v2"), Some("z"), true));
    assert_eq!((plain.id.as_str(), plain.weight, plain.healthy), ("10.0.0.1:8000", 100, false));
    assert_eq!((plain.zone.as_deref(), plain.labels["cluster"].as_str()), (None, "DEFAULT"));
}

#[test]
fn weights_are_a_hundred_times_those_of_nacos() {
    for (nacos, ours) in [
        ("1.0", 100),
        ("0", 0),
        ("0.0", 0),
        ("-1", 0),
        ("0.004", 1),
        ("0.5", 50),
        ("10000", 1_000_000),
        ("1e99", 1_000_000),
    ] {
        assert_eq!(one(&format!(r#""weight":{nacos}"#)).weight, ours, "{nacos}");
    }
    assert_eq!(one(r#""metadata":{"weight":"7"}"#).weight, 100, "the metadata's is of another scale");
}

#[test]
fn whoever_is_disabled_or_unhealthy_is_unfit() {
    for (fields, fit) in
        [(r#""enabled":true"#, true), (r#""enabled":false"#, false), (r#""healthy":false"#, false), (r#""x":1"#, true)]
    {
        assert_eq!(one(fields).healthy, fit, "{fields}");
    }
}

#[test]
fn only_the_clusters_asked_for() {
    let hosts = r#"{"ip":"10.0.0.1","port":1,"clusterName":"a"},{"ip":"10.0.0.2","port":1,"clusterName":"b"},{"ip":"10.0.0.3","port":1}"#;
    let ids = |clusters: &[&str]| read(hosts, clusters).instances.into_iter().map(|i| i.id).collect::<Vec<_>>();
    assert_eq!(ids(&["a", "DEFAULT"]), ["10.0.0.3:1", "a/10.0.0.1:1"]);
    assert_eq!(ids(&[]).len(), 3);
    assert_eq!(read(hosts, &["b"]).instances[0].zone.as_deref(), Some("b"), "a cluster is a zone");
}

#[test]
fn frameworks_say_what_they_speak() {
    let seen = |metadata: &str| {
        let found = read(&format!(r#"{{"ip":"10.0.0.1","port":80,"metadata":{metadata}}}"#), &[]);
        let show = |i: Instance| (i.id, i.address.port(), i.protocol, i.tls, i.labels.get("scheme").cloned());
        found.instances.into_iter().map(show).collect::<Vec<_>>()
    };
    let id = || "10.0.0.1:80".to_owned();
    let (http, grpc) = (|| Some("http".to_owned()), || Some("grpc".to_owned()));
    assert_eq!(seen(r#"{"kind":"grpc","version":"v1"}"#), [(id(), 80, Some(Protocol::Http2), None, grpc())]);
    assert_eq!(seen(r#"{"kind":"http"}"#), [(id(), 80, Some(Protocol::Http1), None, http())]);
    assert_eq!(seen(r#"{"kind":"https"}"#), [(id(), 80, None, Some(true), http())]);
    assert_eq!(seen(r#"{"kind":"grpcs"}"#), [(id(), 80, Some(Protocol::Http2), Some(true), grpc())]);
    assert_eq!(seen(r#"{"kind":"batch"}"#), [(id(), 80, None, None, None)]);
    assert_eq!(seen(r#"{"secure":"true"}"#), [(id(), 80, None, Some(true), None)]);
    assert_eq!(seen(r#"{"secure":"false","protocol":"grpc"}"#), [(id(), 80, Some(Protocol::Http2), Some(false), None)]);
    // What Spring Cloud Alibaba and grpc-spring-boot-starter register.
    assert_eq!(
        seen(r#"{"preserved.register.source":"SPRING_CLOUD","gRPC_port":"9090","secure":"false"}"#),
        [(id() + "/grpc", 9090, Some(Protocol::Http2), None, grpc()), (id() + "/http", 80, None, Some(false), http())]
    );
    assert_eq!(seen(r#"{"gRPC.port":"80"}"#), [(id(), 80, Some(Protocol::Http2), None, grpc())]);
    assert_eq!(seen(r#"{"gRPC_port":"many"}"#), [(id(), 80, None, None, None)]);
}

#[test]
fn one_bad_host_hides_no_other() {
    let found = read(
        r#"{"ip":"a b","port":80},{"ip":"10.0.0.1","port":70000},{"port":80},7,{"ip":"10.0.0.1","port":0},{"ip":"::1","port":80}"#,
        &[],
    );
    assert_eq!(found.instances.iter().map(|i| i.id.as_str()).collect::<Vec<_>>(), ["[::1]:80"]);
    assert_eq!(found.unreadable.len(), 5);
    assert!(found.unreadable[0].starts_with("a b: `a b:80` is not an address"), "{:?}", found.unreadable);
    assert!(found.unreadable[2].starts_with("a host without an address: missing field"), "{:?}", found.unreadable);
}

proptest! {
    #[test]
    fn nothing_makes_it_panic(bytes: Vec<u8>) {
        if let Ok(info) = serde_json::from_slice::<ServiceInfo>(&bytes) {
            found(info, &[]);
        }
    }

    #[test]
    fn no_mistake_in_what_is_pushed_makes_it_panic(at in 0..PUSHED.len(), byte: u8, cut in 0..PUSHED.len()) {
        let mut bytes = PUSHED.as_bytes().to_vec();
        bytes[at] = byte;
        bytes.truncate(bytes.len() - cut / 50);
        if let Ok(info) = serde_json::from_slice::<ServiceInfo>(&bytes) {
            prop_assert!(found(info, &["c1".to_owned()]).instances.len() <= 2);
        }
    }
}
