use super::*;
use crate::config::{Secret, XdsNode};

#[test]
fn a_config_that_cannot_work_is_refused_at_once() {
    let refused = |config: XdsRegistry| Xds::new("main", &config).err().unwrap().to_string();
    let bad = XdsRegistry { servers: vec!["127.0.0.1:18000".into()], ..XdsRegistry::default() };
    assert!(refused(bad).contains("expected `http://HOST:PORT`"));
    let tls = Tls { ca: Some("/no/such/ca.pem".into()), ..Tls::default() };
    let secure = XdsRegistry { servers: vec!["https://a:1".into()], tls, ..XdsRegistry::default() };
    assert!(refused(secure).contains("/no/such/ca.pem"));
    let token = XdsRegistry { token: Some(Secret::new("a\nb")), ..XdsRegistry::default() };
    assert!(refused(token).contains("cannot be sent in a header"));
}

#[test]
fn the_node_is_what_the_config_says() {
    let metadata = [("team".to_owned(), "shop".to_owned())].into_iter().collect();
    let own = XdsNode { id: Some("n1".into()), zone: Some("eu-1".into()), metadata, ..XdsNode::default() };
    let told = node(&XdsRegistry { node: own, ..XdsRegistry::default() });
    assert_eq!(
        (told.id.as_str(), told.cluster.as_str(), told.locality.unwrap().zone.as_str()),
        ("n1", "pillion", "eu-1")
    );
    assert_eq!(told.metadata.unwrap().fields["team"].kind, Some(Kind::Text("shop".into())));
    let default = node(&XdsRegistry::default());
    assert!(!default.id.is_empty() && default.metadata.is_none() && default.locality.is_none());
}

#[test]
fn headers_are_what_the_config_says() {
    let metadata = [("x-tenant".to_owned(), Secret::new("shop"))].into_iter().collect();
    let config = XdsRegistry { token: Some(Secret::new("t")), metadata, ..XdsRegistry::default() };
    let headers = headers(&config).unwrap();
    for (name, value) in [("authorization", "Bearer t"), ("x-tenant", "shop")] {
        assert_eq!(headers.get(name).unwrap(), value);
    }
}
