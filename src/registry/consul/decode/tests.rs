use super::*;
use crate::registry::Protocol;
use proptest::prelude::*;
use serde_json::{Value, json};

/// A row as a Consul 1.16 agent answers it, all fields included.
fn row() -> Value {
    json!({
        "Node": {
            "ID": "5e0a8e2c-8f57-8d0b-6d0b-2f8f6d3a3f0e", "Node": "n1", "Address": "10.0.0.100", "Datacenter": "dc1",
            "TaggedAddresses": {"lan": "10.0.0.100", "lan_ipv4": "10.0.0.100", "wan": "10.0.0.100"},
            "Meta": {"consul-network-segment": "", "consul-version": "1.16.7"}, "CreateIndex": 13, "ModifyIndex": 14
        },
        "Service": {
            "ID": "users-1", "Service": "users", "Tags": ["blue"], "Address": "10.0.0.1",
            "TaggedAddresses": {"lan_ipv4": {"Address": "10.0.0.1", "Port": 8080}, "wan_ipv4": {"Address": "10.0.0.1", "Port": 8080}},
            "Meta": {"version": "v1"}, "Port": 8080, "Weights": {"Passing": 10, "Warning": 2}, "EnableTagOverride": false,
            "Proxy": {"Mode": "", "MeshGateway": {}, "Expose": {}}, "Connect": {}, "PeerName": "",
            "CreateIndex": 16, "ModifyIndex": 16
        },
        "Checks": [
            {"Node": "n1", "CheckID": "serfHealth", "Name": "Serf Health Status", "Status": "passing", "Notes": "",
             "Output": "Agent alive and reachable", "ServiceID": "", "ServiceName": "", "ServiceTags": [], "Type": "",
             "Definition": {}, "CreateIndex": 13, "ModifyIndex": 13},
            {"Node": "n1", "CheckID": "service:users-1", "Name": "Service 'users' check", "Status": "passing",
             "ServiceID": "users-1", "ServiceName": "users", "ServiceTags": ["blue"], "Type": "ttl"}
        ]
    })
}

/// The row with `change` made to it, decoded.
fn decoded(only_passing: bool, change: impl FnOnce(&mut Value)) -> (Vec<Instance>, Vec<String>) {
    let mut row = row();
    change(&mut row);
    instances(vec![serde_json::from_value(row).unwrap()], only_passing)
}

fn one(change: impl FnOnce(&mut Value)) -> Instance {
    let (mut instances, complaints) = decoded(true, change);
    assert_eq!((instances.len(), complaints.len()), (1, 0), "{complaints:?}");
    instances.remove(0)
}

#[test]
fn a_row_is_an_instance() {
    let instance = one(|_| ());
    assert_eq!((instance.id.as_str(), instance.address.to_string().as_str()), ("n1/users-1", "10.0.0.1:8080"));
    assert_eq!((instance.weight, instance.version(), instance.protocol, instance.tls), (10, Some("v1"), None, None));
    let labels: Vec<_> = instance.labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
    assert_eq!(labels, ["tag.blue=true", "version=v1"]);
}

#[test]
fn without_an_address_of_its_own_it_is_at_its_nodes() {
    assert_eq!(one(|row| row["Service"]["Address"] = json!("")).address.to_string(), "10.0.0.100:8080");
}

#[test]
fn checks_decide_who_is_in_and_with_which_weight() {
    let with = |status: &'static str| move |row: &mut Value| row["Checks"][1]["Status"] = json!(status);
    let count = |only_passing, status| {
        let found = decoded(only_passing, with(status)).0;
        assert_eq!(found.len(), 1, "what its checks hold unfit is told as such");
        found.iter().filter(|instance| instance.healthy).count()
    };
    assert_eq!((count(true, "passing"), count(true, "warning"), count(true, "critical")), (1, 0, 0));
    assert_eq!((count(false, "passing"), count(false, "warning"), count(false, "critical")), (1, 1, 0));
    assert_eq!(count(false, "maintenance"), 0);
    assert_eq!(decoded(false, with("warning")).0[0].weight, 2);
    // The node's own check counts for all that is on it.
    assert_eq!(decoded(false, |row| row["Checks"][0]["Status"] = json!("critical")).0.len(), 0);
    assert_eq!(one(|row| row["Checks"] = json!([])).weight, 10);
}

#[test]
fn nobodys_weights_are_one() {
    assert_eq!(one(|row| row["Service"]["Weights"] = json!({"Passing": 1, "Warning": 1})).weight, 1);
    assert_eq!(one(|row| row["Service"]["Weights"] = Value::Null).weight, 1);
    assert_eq!(one(|row| row["Service"]["Weights"] = json!({"Passing": 0, "Warning": 0})).weight, 0);
}

#[test]
fn kratos_registers_urls() {
    let kratos = |row: &mut Value| {
        row["Service"]["Tags"] = json!(["version=v1.2.0"]);
        row["Service"]["Meta"] = json!({"weight": "30", "zone": "az-1"});
        row["Service"]["Weights"] = json!({"Passing": 1, "Warning": 1});
        row["Service"]["TaggedAddresses"] = json!({
            "grpc": {"Address": "grpc://10.0.0.1:9000?isSecure=false", "Port": 9000},
            "http": {"Address": "http://10.0.0.1:8000", "Port": 8000},
            "lan_ipv4": {"Address": "10.0.0.1", "Port": 8000},
        });
    };
    let (instances, _) = decoded(true, kratos);
    let seen: Vec<_> = instances.iter().map(|i| (i.id.as_str(), i.address.to_string(), i.protocol, i.weight)).collect();
    assert_eq!(
        seen,
        [
            ("n1/users-1/grpc", "10.0.0.1:9000".into(), Some(Protocol::Http2), 30),
            ("n1/users-1/http", "10.0.0.1:8000".into(), Some(Protocol::Http1), 30)
        ]
    );
    assert!(instances.iter().all(|i| i.version() == Some("v1.2.0") && i.zone.as_deref() == Some("az-1")));
}

#[test]
fn go_micro_packs_its_metadata_into_tags() {
    // Made by Go's compress/zlib, as go-micro does.
    let instance = one(|row| {
        row["Service"]["Meta"] = Value::Null;
        row["Service"]["Tags"] = json!([
            "t-789caa562a28ca2fc94fcecf51b2524a2f2a4856aa05040000ffff468306d9",
            "e-789caa56ca4bcc4d55b2520a2d4e2d2ad6734f2d51aa05040000ffff461306bc",
            "v-789cca492c492d2e01040000ffff08cc028e",
            "plain",
        ]);
    });
    assert_eq!((instance.version(), instance.protocol), (Some("latest"), Some(Protocol::Http2)));
    let labels: Vec<_> = instance.labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
    assert_eq!(labels, ["protocol=grpc", "tag.plain=true", "version=latest"]);
    // The form of its first versions, and tags that only look like it.
    let instance = one(|row| row["Service"]["Tags"] = json!([r#"t={"a":"b"}"#, "v=1.0", "v-next", "t-", "e-mail"]));
    assert_eq!((instance.version(), instance.labels["a"].as_str()), (Some("1.0"), "b"));
    assert!(["tag.v-next", "tag.t-", "tag.e-mail"].iter().all(|tag| instance.labels.contains_key(*tag)));
}

#[test]
fn spring_says_that_it_is_secure() {
    assert_eq!(one(|row| row["Service"]["Meta"] = json!({"secure": "true"})).tls, Some(true));
    assert_eq!(one(|row| row["Service"]["Meta"] = json!({"secure": "false"})).tls, Some(false));
}

#[test]
fn a_row_that_cannot_be_used_is_named_and_hides_no_other() {
    let mut broken = row();
    broken["Service"]["Port"] = json!(0);
    broken["Service"]["ID"] = json!("users-2");
    let rows = [row(), broken].map(|row| serde_json::from_value(row).unwrap());
    let (instances, complaints) = instances(rows.into(), true);
    assert_eq!(instances.len(), 1);
    assert_eq!(complaints.len(), 1);
    assert!(complaints[0].starts_with("n1/users-2: `10.0.0.1:0` is not an address"), "{complaints:?}");
}

proptest! {
    #[test]
    fn no_row_makes_it_panic(text in ".{0,40}", hex in "[tve][-=][0-9a-f]{0,40}", port in any::<i64>(), weight in any::<i64>()) {
        let _ = decoded(false, |row| {
            row["Service"]["Tags"] = json!([text, hex]);
            row["Service"]["Address"] = json!(text);
            row["Service"]["Port"] = json!(port);
            row["Service"]["Weights"] = json!({"Passing": weight, "Warning": weight});
            row["Service"]["TaggedAddresses"] = json!({"x": {"Address": format!("http://{text}"), "Port": port}});
        });
    }
}
