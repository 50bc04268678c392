//! Registries in one line.

use super::load_with;
use crate::config::{Layout, Overrides, Registry, Secret};
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
        (
            "127.0.0.1",
            "--registry: `127.0.0.1` is no registry; expected `consul://HOST:PORT`, `etcd://HOST:PORT/PREFIX`, `file:PATH` or `embedded:`",
        ),
        (
            "consull://a",
            "--registry: `consull:` is no kind of registry; expected `consul`, `etcd`, `file` or `embedded`; did you mean `consul`?",
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
            "--registry: registries.etcd.layout: found `krato`; expected `plain`, `kratos`, `go-micro`, `go-zero` or `grpc`; did you mean `kratos`?",
        ),
        ("file:", "--registry: expected `file:PATH`"),
        (
            "embedded:here",
            "--registry: registries.embedded.listen: found `here`; expected `IP:PORT`, like `127.0.0.1:4140` or `[::1]:4140`",
        ),
    ] {
        assert_eq!(refused(url), expected, "{url}");
    }
}
