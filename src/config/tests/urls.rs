//! Registries in one line.

use super::load_with;
use crate::config::{
    DnsRecord, EurekaAddress, EurekaName, KubernetesPort, Layout, NacosTransport, Overrides, Registry, Secret,
    XdsDiscover, XdsProtocol,
};
use std::time::Duration;

fn registry(url: &str) -> Registry {
    let flags = Overrides { registry: vec![url.into()], ..Overrides::default() };
    load_with("", &[], flags)
        .unwrap_or_else(|errors| panic!("{url}: {errors}"))
        .config
        .registries
        .swap_remove_index(0)
        .unwrap()
        .1
}

fn refused(url: &str) -> String {
    let flags = Overrides { registry: vec![url.into()], ..Overrides::default() };
    let shown = load_with("", &[], flags).expect_err(url);
    shown.lines().next().unwrap().to_owned()
}

#[test]
fn consul() {
    let Registry::Consul(consul) = registry(
        "consul://consul.example:8501/?scheme=https&dc=eu%2D1&tag=a&tag=b&token=s%26cret&wait=30s&only_passing=false",
    ) else {
        panic!("consul")
    };
    assert_eq!(consul.address, "https://consul.example:8501");
    assert_eq!(consul.dc.as_deref(), Some("eu-1"));
    assert_eq!(consul.tags, ["a", "b"]);
    assert_eq!(consul.token, Some(Secret::new("s&cret")));
    assert_eq!((consul.wait, consul.only_passing), (Duration::from_secs(30), false));
}

#[test]
fn etcd() {
    let Registry::Etcd(etcd) = registry("etcd://root:p%40ss@a:2379,b:2379/shop/services?layout=kratos") else {
        panic!("etcd")
    };
    assert_eq!(etcd.endpoints, ["http://a:2379", "http://b:2379"]);
    assert_eq!((etcd.layout, etcd.prefix.as_deref()), (Layout::Kratos, Some("/shop/services")));
    assert_eq!((etcd.user.as_deref(), etcd.password), (Some("root"), Some(Secret::new("p@ss"))));
    let Registry::Etcd(etcd) = registry("etcd://[::1]:2379/") else { panic!("etcd") };
    assert_eq!((etcd.endpoints, etcd.prefix), (vec!["http://[::1]:2379".to_owned()], None));
}

#[test]
fn xds() {
    let Registry::Xds(xds) =
        registry("xds://a:18000,b:18000/?scheme=https&node=web-1&token=t&protocol=sotw&discover=eds")
    else {
        panic!("xds")
    };
    assert_eq!(xds.servers, ["https://a:18000", "https://b:18000"]);
    assert_eq!((xds.node.id.as_deref(), xds.token), (Some("web-1"), Some(Secret::new("t"))));
    assert_eq!((xds.protocol, xds.discover), (XdsProtocol::Sotw, XdsDiscover::Eds));
}

#[test]
fn dns() {
    let Registry::Dns(dns) = registry("dns://10.0.0.53,[::1]:5353/{service}.test?record=ip&port=80&max_ttl=1m") else {
        panic!("dns")
    };
    assert_eq!((dns.servers, dns.name.as_str()), (vec!["10.0.0.53".into(), "[::1]:5353".into()], "{service}.test"));
    assert_eq!((dns.record, dns.port.unwrap().get(), dns.max_ttl), (DnsRecord::Ip, 80, Duration::from_secs(60)));
    let Registry::Dns(dns) = registry("dns:///_%7bservice%7d._tcp.test") else { panic!("dns") };
    assert_eq!((dns.servers, dns.name.as_str()), (vec![], "_{service}._tcp.test"));
}

#[test]
fn zookeeper() {
    let url = "zookeeper://root:p%40ss@a:2181,b:2181/team-a?layout=curator&scheme=tls&ca=Cargo.toml&session_timeout=6s";
    let Registry::Zookeeper(zookeeper) = registry(url) else { panic!("zookeeper") };
    assert_eq!(zookeeper.endpoints, ["tls://a:2181", "tls://b:2181"]);
    assert_eq!((zookeeper.layout, zookeeper.chroot.as_deref()), (Layout::Curator, Some("/team-a")));
    assert_eq!((zookeeper.user.as_deref(), zookeeper.password), (Some("root"), Some(Secret::new("p@ss"))));
    assert_eq!((zookeeper.prefix, zookeeper.session_timeout), (None, Duration::from_secs(6)));
    let Registry::Zookeeper(zookeeper) = registry("zookeeper://[::1]:2181") else { panic!("zookeeper") };
    assert_eq!((zookeeper.endpoints, zookeeper.chroot), (vec!["[::1]:2181".to_owned()], None));
}

#[test]
fn kubernetes() {
    let Registry::Kubernetes(own) = registry("kubernetes:?namespace=shop&port=grpc") else { panic!("kubernetes") };
    assert_eq!((own.servers.len(), own.namespace.as_deref()), (0, Some("shop")));
    assert_eq!(own.port, KubernetesPort::parse("grpc"));
    let Registry::Kubernetes(one) = registry("kubernetes://a:6443,b:6443/?token=s%26cret&server_name=kube&port=80")
    else {
        panic!("kubernetes")
    };
    assert_eq!(one.servers, ["https://a:6443", "https://b:6443"]);
    assert_eq!((one.token, one.tls.server_name.as_deref()), (Some(Secret::new("s&cret")), Some("kube")));
    assert_eq!(one.port, KubernetesPort::parse("80"));
    let Registry::Kubernetes(proxy) = registry("kubernetes://127.0.0.1:8001?scheme=http") else { panic!("kubernetes") };
    assert_eq!(proxy.servers, ["http://127.0.0.1:8001"]);
}

#[test]
fn eureka() {
    let Registry::Eureka(eureka) = registry("eureka://a:8761,b:8761/?interval=10s&by=vip") else { panic!("eureka") };
    assert_eq!(eureka.servers, ["http://a:8761/eureka", "http://b:8761/eureka"]);
    assert_eq!((eureka.interval, eureka.by, eureka.user), (Duration::from_secs(10), EurekaName::Vip, None));
    let Registry::Eureka(eureka) = registry("eureka://me:p%40ss@a:80/eureka/v2?scheme=https&connect_to=hostname")
    else {
        panic!("eureka")
    };
    assert_eq!(eureka.servers, ["https://a:80/eureka/v2"]);
    assert_eq!((eureka.user.as_deref(), eureka.password), (Some("me"), Some(Secret::new("p@ss"))));
    assert_eq!(eureka.connect_to, EurekaAddress::Hostname);
}

#[test]
fn nacos() {
    let Registry::Nacos(nacos) = registry(
        "nacos://nacos:p%40ss@a:8848,b:8848/live?group=SHOP&cluster=hz&cluster=sh&transport=grpc&scheme=https",
    ) else {
        panic!("nacos")
    };
    assert_eq!(nacos.servers, ["https://a:8848", "https://b:8848"]);
    assert_eq!((nacos.namespace.as_str(), nacos.group.as_str()), ("live", "SHOP"));
    assert_eq!((nacos.clusters, nacos.transport), (vec!["hz".to_owned(), "sh".to_owned()], NacosTransport::Grpc));
    assert_eq!((nacos.user.as_deref(), nacos.password), (Some("nacos"), Some(Secret::new("p@ss"))));
    let Registry::Nacos(nacos) = registry("nacos://a:8848/?poll=1s") else { panic!("nacos") };
    assert_eq!((nacos.namespace.as_str(), nacos.poll), ("public", Duration::from_secs(1)));
}

#[test]
fn file_and_embedded() {
    for (url, expected) in [("file:a b.yaml", "a b.yaml"), ("file:///etc/x?.yaml", "/etc/x?.yaml"), ("file:/x", "/x")] {
        let Registry::File(file) = registry(url) else { panic!("file") };
        assert_eq!(file.path.to_str(), Some(expected), "{url}");
    }
    let Registry::Embedded(embedded) = registry("embedded:") else { panic!("embedded") };
    assert_eq!(embedded, crate::config::EmbeddedRegistry::default());
    let Registry::Embedded(embedded) = registry("embedded:127.0.0.1:9?persist=/var/lib/x&ttl=5s") else {
        panic!("embedded")
    };
    assert_eq!((embedded.listen.port(), embedded.ttl), (9, Duration::from_secs(5)));
    assert_eq!(embedded.persist.unwrap().to_str(), Some("/var/lib/x"));
}

#[test]
fn what_is_wrong_names_the_flag_and_shows_no_password() {
    for (url, expected) in [
        ("127.0.0.1", "--registry: `127.0.0.1` is no registry; expected one like `consul://HOST:PORT` or `file:PATH`"),
        (
            "consull://a",
            "--registry: `consull:` is no kind of registry; expected `consul`, `etcd`, `zookeeper`, `nacos`, `eureka`, `kubernetes`, `redis`, `dns`, `xds`, `file` or `embedded`; did you mean `consul`?",
        ),
        ("consul:", "--registry: expected `consul://HOST:PORT`"),
        (
            "consul://a b",
            "--registry: registries.consul.address: found `http://a b`; expected `http://HOST:PORT` or `https://HOST:PORT`",
        ),
        ("consul://a?scheme=tls", "--registry: `scheme=tls`; expected `http` or `https`"),
        ("consul://a?dc=1&dc=2", "--registry: `dc` is there twice"),
        ("consul://a?address=b", "--registry: `address` cannot be set after the `?`; it stands before it"),
        ("etcd://secret@a", "--registry: expected `etcd://USER:PASSWORD@HOST:PORT`"),
        (
            "etcd://u:secret@a:0",
            "--registry: registries.etcd.endpoints[0]: found `http://a:0`; expected `http://HOST:PORT` or `https://HOST:PORT`",
        ),
        (
            "etcd://a?layout=krato",
            "--registry: registries.etcd.layout: found `krato`; expected `plain`, `kratos`, `go-micro`, `go-zero`, `grpc`, `curator` or `dubbo`; did you mean `kratos`?",
        ),
        ("xds:", "--registry: expected `xds://HOST:PORT`"),
        ("xds://a:1?servers=b", "--registry: `servers` cannot be set after the `?`; it stands before it"),
        ("dns://10.0.0.53", "--registry: expected `dns://IP:PORT/NAME`, or `dns:///NAME` for the system's servers"),
        ("dns://a/{service}.x", "--registry: registries.dns.servers[0]: found `a`; expected `IP` or `IP:PORT`"),
        ("dns:///{service}.x?name=y", "--registry: `name` cannot be set after the `?`; it stands before it"),
        ("zookeeper:", "--registry: expected `zookeeper://HOST:PORT`"),
        ("zookeeper://a:1?scheme=https", "--registry: `scheme=https`; expected `tls`"),
        ("kubernetes:here", "--registry: expected `kubernetes:` or `kubernetes://HOST:PORT`"),
        ("kubernetes://a?servers=b", "--registry: `servers` cannot be set after the `?`; it stands before it"),
        ("eureka://secret@a", "--registry: expected `eureka://USER:PASSWORD@HOST:PORT`"),
        ("eureka://a:8761?by=name", "--registry: registries.eureka.by: found `name`; expected `app` or `vip`"),
        ("file:", "--registry: expected `file:PATH`"),
        (
            "embedded:here",
            "--registry: registries.embedded.listen: found `here`; expected `IP:PORT`, like `127.0.0.1:4140` or `[::1]:4140`",
        ),
    ] {
        assert_eq!(refused(url), expected, "{url}");
    }
}
