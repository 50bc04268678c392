use super::*;
use crate::{
    config::{self, GrpcCheck, HttpCheck, Register},
    registry::{Instance, TAG, consul::decode},
};
use serde_json::{Value, json};

/// With a tag, a version, a zone and metadata.
fn registration(address: &str, asked: Register) -> Registration {
    let mut instance = Instance::new("users-1", address.parse().unwrap());
    (instance.zone, instance.protocol) = (Some("az-1".into()), asked.protocol);
    (instance.weight, instance.tls) = (asked.weight.unwrap_or(1), asked.tls.then_some(true));
    let labels = [(format!("{TAG}blue"), "true"), ("version".into(), "v2"), ("team".into(), "shop")];
    instance.labels = labels.into_iter().map(|(key, value)| (key, value.to_owned())).collect();
    Registration { service: "users".into(), instance, ttl: Duration::from_secs(15), asked }
}

fn written(registration: &Registration) -> Value {
    let settings = registration.asked.consul.clone().unwrap_or_default();
    serde_json::to_value(Description::of(registration).service(registration, &settings, true)).unwrap()
}

#[test]
fn it_is_written_as_others_write_it() {
    let whole = written(&registration("10.0.0.7:8080", Register { weight: Some(30), ..Register::default() }));
    let expected = json!({
        "ID": "users-1", "Name": "users", "Address": "10.0.0.7", "Port": 8080,
        "Tags": ["blue", "version=v2"], "TaggedAddresses": null, "Weights": {"Passing": 30, "Warning": 1},
        "Meta": {"team": "shop", "version": "v2", "zone": "az-1", "weight": "30"},
        "Check": {"CheckID": "service:users-1", "Name": "pillion", "Status": "passing", "TTL": "15000ms",
            "DeregisterCriticalServiceAfter": "60000ms"},
    });
    assert_eq!(whole, expected);
}

#[test]
fn what_is_written_is_read_as_the_same() {
    for (address, protocol, tls, url, suffix) in [
        ("10.0.0.7:8080", None, false, None, ""),
        ("web.internal:80", Some(Protocol::Http1), false, None, ""),
        ("[fd00::7]:8080", None, false, Some("http://[fd00::7]:8080"), "/http"),
        ("10.0.0.7:443", None, true, Some("https://10.0.0.7:443?isSecure=true"), "/https"),
        ("10.0.0.7:9000", Some(Protocol::Http2), false, Some("grpc://10.0.0.7:9000"), "/grpc"),
        ("10.0.0.7:9000", Some(Protocol::Http2), true, Some("grpc://10.0.0.7:9000?isSecure=true"), "/grpc"),
    ] {
        let ours = registration(address, Register { protocol, tls, weight: Some(30), ..Register::default() });
        let mut service = written(&ours);
        let urls: Vec<_> = service["TaggedAddresses"].as_object().into_iter().flat_map(|all| all.values()).collect();
        assert_eq!(urls.first().map(|url| url["Address"].as_str().unwrap()), url);
        service["Service"] = service["Name"].take();
        let row = json!({"Node": {"Node": "n1"}, "Service": service, "Checks": []});
        let (found, complaints) = decode::instances(vec![serde_json::from_value(row).unwrap()], true);
        assert_eq!((found.len(), complaints.len()), (1, 0), "{complaints:?}");
        // Kratos' URLs make the id another one.
        let suffix = suffix.replace("https", "http");
        assert_eq!(found[0].id, format!("n1/users-1{suffix}"));
        assert_eq!((&found[0].address, &found[0].zone), (&ours.instance.address, &ours.instance.zone));
        assert_eq!((found[0].weight, found[0].tls.unwrap_or(false)), (30, tls));
        if protocol == Some(Protocol::Http2) {
            assert_eq!(found[0].protocol, protocol);
        }
        for (label, value) in &ours.instance.labels {
            assert_eq!(found[0].labels.get(label), Some(value));
        }
    }
}

#[test]
fn what_an_agent_adds_is_no_change() {
    let ours = Description::of(&registration("10.0.0.7:9000", Register::default()));
    let grpc = Register { protocol: Some(Protocol::Http2), ..Register::default() };
    let with_url = Description::of(&registration("10.0.0.7:9000", grpc));
    let there = |change: fn(&mut Value)| {
        let mut there = serde_json::to_value(&with_url).unwrap();
        there["TaggedAddresses"]["lan_ipv4"] = json!({"Address": "10.0.0.7", "Port": 9000});
        there["Weights"] = json!({"Passing": 1, "Warning": 1});
        change(&mut there);
        serde_json::from_value::<Description>(there).unwrap()
    };
    assert!(with_url.is(&there(|_| ())) && ours.is(&there(|_| ())));
    let changes: [fn(&mut Value); 5] = [
        |there| there["Port"] = json!(1),
        |there| there["Tags"] = json!(null),
        |there| there["Meta"]["team"] = json!("other"),
        |there| there["TaggedAddresses"] = json!(null),
        |there| there["Address"] = json!(""),
    ];
    for change in changes {
        assert!(!with_url.is(&there(change)), "{:?}", there(change));
    }
}

#[test]
fn an_agent_is_told_what_to_check() {
    let health = config::LocalHealth {
        http: Some(HttpCheck { path: "/health?x=1".into(), ..HttpCheck::default() }),
        grpc: Some(GrpcCheck { service: "shop.Users".into() }),
        ..config::LocalHealth::default()
    };
    for (check, tls, expected) in [
        (ConsulCheck::Tcp, false, json!({"TCP": "10.0.0.7:80"})),
        (ConsulCheck::Http, false, json!({"HTTP": "http://10.0.0.7:80/health?x=1", "Method": "GET"})),
        (ConsulCheck::Http, true, json!({"HTTP": "https://10.0.0.7:80/health?x=1", "TLSSkipVerify": true})),
        (ConsulCheck::Grpc, false, json!({"GRPC": "10.0.0.7:80/shop.Users", "GRPCUseTLS": false})),
        (ConsulCheck::Grpc, true, json!({"GRPC": "10.0.0.7:80/shop.Users", "GRPCUseTLS": true})),
    ] {
        let consul = Some(ConsulRegister { check, ..ConsulRegister::default() });
        let asked = Register { consul, tls, health: health.clone(), ..Register::default() };
        let check = written(&registration("10.0.0.7:80", asked))["Check"].take();
        for (key, value) in expected.as_object().unwrap() {
            assert_eq!(&check[key], value, "{check}");
        }
        assert_eq!((&check["Interval"], &check["Timeout"]), (&json!("5000ms"), &json!("1000ms")));
        assert_eq!((&check["TTL"], &check["Status"]), (&Value::Null, &json!("passing")));
    }
}
