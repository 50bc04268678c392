use super::*;
use crate::{
    config::{EurekaName, Protocol},
    registry::{eureka::applications::Applications, watch::Found},
};
use proptest::prelude::*;
use serde_json::json;

/// An instance as Spring Cloud's server answers it that Eureka's Java client registered, all fields included.
fn java() -> Value {
    json!({
        "instanceId": "users-1", "hostName": "host-of-users-1", "app": "USERS", "ipAddr": "10.0.0.1", "status": "UP",
        "overriddenStatus": "UNKNOWN", "port": {"$": 8000, "@enabled": "true"},
        "securePort": {"$": 443, "@enabled": "false"}, "countryId": 1,
        "dataCenterInfo": {"@class": "com.netflix.appinfo.InstanceInfo$DefaultDataCenterInfo", "name": "MyOwn"},
        "leaseInfo": {"renewalIntervalInSecs": 30, "durationInSecs": 90, "registrationTimestamp": 1795287546802_u64,
            "lastRenewalTimestamp": 1795287546802_u64, "evictionTimestamp": 0, "serviceUpTimestamp": 1795287545768_u64},
        "metadata": {"zone": "az-1", "weight": "10", "version": "v1"}, "appGroupName": "UNKNOWN",
        "homePageUrl": "http://host-of-users-1:8000/", "statusPageUrl": "http://host-of-users-1:8000/Status",
        "healthCheckUrl": "http://host-of-users-1:8000/healthcheck", "vipAddress": "users",
        "secureVipAddress": "users", "isCoordinatingDiscoveryServer": "false",
        "lastUpdatedTimestamp": "1795287546802", "lastDirtyTimestamp": "1795287545795", "actionType": "ADDED"
    })
}

/// One by Spring Cloud, with its secure port on.
fn spring() -> Value {
    let mut instance = java();
    instance["instanceId"] = json!("192.0.2.2:users:18761");
    instance["hostName"] = json!("users-0.example");
    instance["port"] = json!({"$": 18761, "@enabled": "true"});
    instance["securePort"] = json!({"$": 18443, "@enabled": "true"});
    instance["metadata"] = json!({"zone": "az-1", "management.port": "18762"});
    instance["secureHealthCheckUrl"] = json!("https://users-0.example:18762/actuator/health");
    instance
}

/// One by fargo, at Amazon.
fn amazon() -> Value {
    let mut instance = java();
    instance["instanceId"] = json!("f-1");
    instance["dataCenterInfo"] = json!({"@class": "com.netflix.appinfo.AmazonInfo", "name": "Amazon", "metadata": {
        "public-ipv4": "", "hostname": "", "local-hostname": "", "instance-id": "i-0f", "local-ipv4": "",
        "ami-id": "", "availability-zone": "us-east-1c"}});
    instance["metadata"] = json!({"weight": "10"});
    instance["homePageUrl"] = json!("");
    instance
}

/// One as Kratos' `contrib/registry/eureka` writes it, by its source.
fn kratos(port: u16, home_page: &str) -> Value {
    let mut instance = java();
    instance["instanceId"] = json!(format!("10.0.0.1:USERS:{port}"));
    instance["hostName"] = json!("USERS");
    instance["port"] = json!({"$": port, "@enabled": "true"});
    instance["homePageUrl"] = json!(home_page);
    instance["metadata"] = json!({"ID": "7d9e", "Name": "users", "Version": "v1.2.0", "agent": "go-eureka-client",
        "Endpoints": "grpc://10.0.0.1:9000", "weight": "30"});
    instance
}

fn document(instances: &[Value]) -> Value {
    json!({"applications": {"versions__delta": "1", "apps__hashcode": format!("UP_{}_", instances.len()),
        "application": [{"name": "USERS", "instance": instances}]}})
}

fn read(document: &Value, connect_to: EurekaAddress) -> Answer {
    answer(document.to_string().as_bytes(), connect_to).unwrap()
}

/// The users among these instances.
fn users(instances: &[Value]) -> Found {
    Applications::new(read(&document(instances), EurekaAddress::Ip)).find("users", EurekaName::App)
}

/// The one instance that this is, with `change` made to it.
fn one(mut instance: Value, change: impl FnOnce(&mut Value)) -> Instance {
    change(&mut instance);
    let mut found = users(&[instance]);
    assert_eq!((found.instances.len(), found.unreadable.len()), (1, 0), "{found:?}");
    found.instances.remove(0)
}

fn labels(instance: &Instance) -> Vec<String> {
    instance.labels.iter().map(|(key, value)| format!("{key}={value}")).collect()
}

#[test]
fn what_the_java_client_registers() {
    let instance = one(java(), |_| ());
    assert_eq!((instance.id.as_str(), instance.address.to_string().as_str()), ("users-1", "10.0.0.1:8000"));
    assert_eq!((instance.weight, instance.zone.as_deref(), instance.tls), (10, Some("az-1"), Some(false)));
    assert_eq!((instance.protocol, instance.version()), (None, Some("v1")));
    assert_eq!(labels(&instance), ["version=v1", "weight=10", "zone=az-1"]);
    let empty = json!({"@class": "java.util.Collections$EmptyMap"});
    assert_eq!(labels(&one(java(), |instance| instance["metadata"] = empty)), [""; 0]);
}

#[test]
fn what_spring_cloud_registers() {
    let instance = one(spring(), |_| ());
    assert_eq!((instance.address.to_string().as_str(), instance.tls), ("10.0.0.1:18443", Some(true)));
    assert_eq!(labels(&instance), ["management.port=18762", "zone=az-1"]);
}

#[test]
fn what_is_at_amazon_has_its_zone() {
    assert_eq!(one(amazon(), |_| ()).zone.as_deref(), Some("us-east-1c"));
    let own = json!({"zone": "az-1"});
    assert_eq!(one(amazon(), |instance| instance["metadata"] = own).zone.as_deref(), Some("az-1"));
    // Its oldest clients wrote no id.
    assert_eq!(one(amazon(), |instance| instance["instanceId"] = json!(null)).id, "i-0f");
    assert_eq!(one(java(), |instance| instance["instanceId"] = json!(null)).id, "host-of-users-1");
}

#[test]
fn what_kratos_registers() {
    let instances = users(&[kratos(8000, "http://10.0.0.1:8000/"), kratos(9000, "grpc://10.0.0.1:9000/")]).instances;
    let seen: Vec<_> = instances.iter().map(|i| (i.id.as_str(), i.address.to_string(), i.protocol)).collect();
    assert_eq!(
        seen,
        [
            ("10.0.0.1:USERS:8000/http", "10.0.0.1:8000".to_owned(), Some(Protocol::Http1)),
            ("10.0.0.1:USERS:9000/grpc", "10.0.0.1:9000".to_owned(), Some(Protocol::Http2)),
        ]
    );
    for (instance, scheme) in instances.iter().zip(["http", "grpc"]) {
        assert_eq!((instance.weight, instance.version(), instance.tls), (30, Some("v1.2.0"), Some(false)));
        assert_eq!(instance.labels["scheme"], scheme);
    }
    // What older versions append keeps them from reading the port, but not us.
    let secure = one(kratos(0, "grpc://10.0.0.1:9000?isSecure=true/"), |_| ());
    assert_eq!((secure.address.to_string().as_str(), secure.tls), ("10.0.0.1:9000", Some(true)));
    assert_eq!(users(&[kratos(80, "ws://10.0.0.1:80/")]), Found::default());
}

#[test]
fn only_what_is_up_takes_requests() {
    for (status, overridden, up) in [
        ("UP", "UNKNOWN", true),
        ("UP", "UP", true),
        ("UP", "OUT_OF_SERVICE", false),
        ("OUT_OF_SERVICE", "OUT_OF_SERVICE", false),
        ("DOWN", "UNKNOWN", false),
        ("DOWN", "UP", false),
        ("STARTING", "UNKNOWN", false),
        ("UNKNOWN", "UNKNOWN", false),
    ] {
        for key in ["overriddenStatus", "overriddenstatus"] {
            let mut instance = java();
            instance.as_object_mut().unwrap().remove("overriddenStatus");
            instance["status"] = json!(status);
            instance[key] = json!(overridden);
            // It is known in any case: withdrawn is not gone.
            let known: Vec<_> = users(&[instance]).instances.iter().map(|instance| instance.healthy).collect();
            assert_eq!(known, [up], "{status} {key}: {overridden}");
        }
    }
    // What is not up need not make sense.
    let mut starting = java();
    starting["status"] = json!("STARTING");
    starting["port"] = json!(null);
    assert_eq!(users(&[starting]), Found::default());
}

#[test]
fn ports_and_addresses_as_clients_write_them() {
    let at = |change: fn(&mut Value)| one(java(), change).address.to_string();
    assert_eq!(at(|i| i["port"] = json!({"$": "7001", "@enabled": true})), "10.0.0.1:7001");
    assert_eq!(at(|i| i["ipAddr"] = json!("")), "host-of-users-1:8000");
    assert_eq!(at(|i| i["ipAddr"] = json!(null)), "host-of-users-1:8000");
    assert_eq!(at(|i| i["ipAddr"] = json!("fd00::1")), "[fd00::1]:8000");
    // A secure port of 0 is none, whatever is said of it.
    assert_eq!(at(|i| i["securePort"] = json!({"$": 0, "@enabled": "true"})), "10.0.0.1:8000");
    let by_name = Applications::new(read(&document(&[java()]), EurekaAddress::Hostname));
    assert_eq!(by_name.find("users", EurekaName::App).instances[0].address.to_string(), "host-of-users-1:8000");
}

#[test]
fn one_that_cannot_be_read_is_named_and_hides_no_other() {
    let broken = |id: &str, key: &str, value: Value| {
        let mut instance = java();
        instance["instanceId"] = json!(id);
        instance[key] = value;
        instance
    };
    let found = users(&[
        broken("a", "port", json!({"$": 8000, "@enabled": "false"})),
        java(),
        broken("b", "port", json!({"$": 80000, "@enabled": "true"})),
        broken("c", "hostName", json!(7)),
        json!("no instance"),
        json!({"status": "UP"}),
    ]);
    assert_eq!(found.instances.len(), 1);
    assert_eq!(
        found.unreadable[..2],
        ["USERS/a: it has no port that is enabled", "USERS/b: it has no port that is enabled"]
    );
    assert!(found.unreadable[2].starts_with("USERS/c: invalid type: integer `7`"), "{found:?}");
}

#[test]
fn a_list_of_one_may_come_as_that_one() {
    let lone = json!({"applications": {"versions__delta": 1, "apps__hashcode": "UP_1_",
        "application": {"name": "USERS", "instance": java()}}});
    assert_eq!(read(&lone, EurekaAddress::Ip).listed, read(&document(&[java()]), EurekaAddress::Ip).listed);
    for empty in [json!([]), json!(null), json!("")] {
        let empty = json!({"applications": {"versions__delta": "1", "apps__hashcode": "", "application": empty}});
        assert_eq!(read(&empty, EurekaAddress::Ip).listed, []);
    }
}

#[test]
fn services_are_applications_or_vips_in_any_case() {
    let (mut first, mut second) = (java(), java());
    first["vipAddress"] = json!("Users.shop, shop");
    second["secureVipAddress"] = json!("users.shop");
    let both = json!({"applications": {"apps__hashcode": "UP_2_", "application": [
        {"name": "USERS", "instance": [first]}, {"name": "users-v2", "instance": [second]}]}});
    let all = Applications::new(read(&both, EurekaAddress::Ip));
    assert_eq!(all.names(EurekaName::App), ["USERS", "USERS-V2"]);
    assert_eq!(all.names(EurekaName::Vip), ["SHOP", "USERS", "USERS.SHOP"]);
    let ids =
        |service: &str, by| all.find(service, by).instances.into_iter().map(|instance| instance.id).collect::<Vec<_>>();
    assert_eq!(ids("Users", EurekaName::App), ["users-1"]);
    assert_eq!(ids("users.shop", EurekaName::Vip), ["USERS/users-1", "USERS-V2/users-1"]);
    assert_eq!(ids("users.shop", EurekaName::App), [""; 0]);
}

#[test]
fn deltas_add_change_and_remove_and_the_hash_counts_every_status() {
    let listed = |id: &str, status: &str, action: &str| {
        let mut instance = java();
        instance["instanceId"] = json!(id);
        instance["status"] = json!(status);
        instance["actionType"] = json!(action);
        instance
    };
    let of = |instances: &[Value]| read(&document(instances), EurekaAddress::Ip);
    let mut all = Applications::new(of(&[listed("a", "UP", "ADDED"), listed("b", "STARTING", "ADDED")]));
    assert_eq!(all.hash(), "STARTING_1_UP_1_");
    all.apply(of(&[listed("b", "UP", "MODIFIED"), listed("c", "DOWN", "ADDED"), listed("d", "UP", "DELETED")]).listed);
    assert_eq!(all.hash(), "DOWN_1_UP_2_");
    let healthy: Vec<_> = all.find("users", EurekaName::App).instances.iter().map(|one| one.healthy).collect();
    assert_eq!(healthy.iter().filter(|healthy| **healthy).count(), 2);
    assert_eq!(healthy.len(), 3);
    all.apply(of(&["a", "b", "c"].map(|id| listed(id, "UP", "DELETED"))).listed);
    assert_eq!((all.hash().as_str(), all.names(EurekaName::App).len()), ("", 0));
}

#[test]
fn what_is_no_answer_of_eureka_is_an_error() {
    for text in
        ["", "{", "[]", "{}", r#"{"applications":null}"#, "<applications/>", r#"{"applications":{"application":[7]}}"#]
    {
        assert!(answer(text.as_bytes(), EurekaAddress::Ip).is_err(), "{text}");
    }
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in any::<Vec<u8>>(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let _ = answer(&bytes, EurekaAddress::Ip);
        let mut whole = document(&[java(), spring(), amazon(), kratos(80, "http://a:80/")]).to_string().into_bytes();
        let at = at.index(whole.len());
        whole[at] = byte;
        if let Ok(answer) = answer(&whole, EurekaAddress::Ip) {
            let all = Applications::new(answer);
            let _ = (all.hash(), all.find("users", EurekaName::App), all.find("users", EurekaName::Vip));
        }
        whole.truncate(at);
        prop_assert!(answer(&whole, EurekaAddress::Ip).is_err());
    }

    /// Each field in turn is something else.
    #[test]
    fn no_field_makes_it_panic(field in 0..20usize, value in prop_oneof![
        Just(json!(null)), Just(json!(-1)), Just(json!([])), Just(json!({})), Just(json!("é")), Just(json!(1e300))
    ]) {
        let mut instance = java();
        if let Some((_, old)) = instance.as_object_mut().unwrap().iter_mut().nth(field) {
            *old = value;
        }
        let _ = users(&[instance]);
    }
}
