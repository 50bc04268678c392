use super::*;
use crate::{
    config::{EurekaAddress, Register},
    registry::{
        Instance, TAG,
        eureka::decode::{Usage, answer},
    },
};

fn registration(address: &str, asked: Register) -> Registration {
    let mut instance = Instance::new("users-1", address.parse().unwrap());
    (instance.zone, instance.protocol) = (Some("az-1".into()), asked.protocol);
    (instance.weight, instance.tls) = (asked.weight.unwrap_or(100), Some(asked.tls));
    let labels = [(format!("{TAG}blue"), "true"), ("version".into(), "v2"), ("team".into(), "shop")];
    instance.labels = labels.into_iter().map(|(key, value)| (key, value.to_owned())).collect();
    Registration { service: "users".into(), instance, ttl: Duration::from_secs(15), asked }
}

#[test]
fn it_is_written_as_springs_client_writes_it() {
    let ours = registration("10.0.0.7:8080", Register { weight: Some(30), ..Register::default() });
    let whole = Description::of(&ours).instance(&ours, "UP", 1_700_000_000_000);
    let expected = json!({"instance": {
        "instanceId": "users-1", "app": "USERS", "hostName": "10.0.0.7", "ipAddr": "10.0.0.7", "status": "UP",
        "port": {"$": 8080, "@enabled": "true"}, "securePort": {"$": 8080, "@enabled": "false"},
        "vipAddress": "users", "secureVipAddress": "users", "homePageUrl": "http://10.0.0.7:8080/",
        "metadata": {"tag.blue": "true", "version": "v2", "team": "shop", "zone": "az-1", "weight": "30"},
        "dataCenterInfo": {"@class": "com.netflix.appinfo.InstanceInfo$DefaultDataCenterInfo", "name": "MyOwn"},
        "leaseInfo": {"renewalIntervalInSecs": 5, "durationInSecs": 8}, "lastDirtyTimestamp": "1700000000000",
    }});
    assert_eq!(whole, expected);
}

#[test]
fn what_is_written_is_read_as_the_same() {
    for (address, tls, protocol) in [
        ("10.0.0.7:8080", false, None),
        ("[fd00::7]:8080", false, None),
        ("web.internal:443", true, None),
        ("10.0.0.7:9000", false, Some(Protocol::Http2)),
    ] {
        let ours = registration(address, Register { tls, protocol, weight: Some(30), ..Register::default() });
        let description = Description::of(&ours);
        let whole = description.instance(&ours, "UP", 7);
        let own = Own::read(whole.to_string().as_bytes()).unwrap();
        assert_eq!((&own.description, own.dirty(), own.is_overridden()), (&description, 7, false));
        let all = json!({"applications": {"application": [{"name": "USERS", "instance": [whole["instance"]]}]}});
        for connect_to in [EurekaAddress::Ip, EurekaAddress::Hostname] {
            let listed = answer(all.to_string().as_bytes(), connect_to).unwrap().listed.remove(0);
            let Usage::Use(found) = listed.usage else { panic!("{:?}", listed.usage) };
            // What is known besides is among the labels there.
            let labels = |instance: &Instance| {
                let known = |label: &String| ["zone", "weight", "protocol"].contains(&label.as_str());
                let all = instance.labels.clone().into_iter();
                all.filter(|(label, _)| !known(label)).collect::<Vec<_>>()
            };
            assert_eq!(labels(&found), labels(&ours.instance));
            assert_eq!(Instance { labels: ours.instance.labels.clone(), ..*found }, ours.instance);
        }
    }
}

#[test]
fn servers_write_the_same_in_several_ways() {
    let text = r#"{"instance": {"hostName": "h", "ipAddr": "10.0.0.7", "port": {"$": "80", "@enabled": "true"},
        "securePort": {"$": 443, "@enabled": false}, "vipAddress": "users", "status": "OUT_OF_SERVICE",
        "metadata": {"@class": "java.util.Collections$EmptyMap"}, "overriddenstatus": "OUT_OF_SERVICE",
        "lastDirtyTimestamp": "1700000000000"}}"#;
    for (text, overridden) in [
        (text.to_owned(), true),
        (text.replace("overriddenstatus\": \"OUT_OF_SERVICE", "overriddenStatus\": \"UNKNOWN"), false),
    ] {
        let own = Own::read(text.as_bytes()).unwrap();
        assert_eq!((own.dirty(), own.is_overridden()), (1_700_000_000_000, overridden));
        assert_eq!((own.description.place().as_str(), own.description.metadata.0.len()), ("10.0.0.7:80", 0));
    }
}

#[test]
fn its_id_is_springs_and_its_lease_half_of_the_ttl() {
    let ours = registration("10.0.0.7:8080", Register::default());
    assert_eq!(id(&ours), "10.0.0.7:users:8080");
    assert_eq!(id(&registration("10.0.0.7:8080", Register { id: Some("one".into()), ..Register::default() })), "one");
    for (ttl, lease, renewed) in [(1, 1, 1), (4, 2, 1), (15, 8, 5), (90, 45, 30)] {
        let ttl = Duration::from_secs(ttl);
        assert_eq!((duration(ttl), renewal(ttl)), (lease, renewed));
    }
}
