//! ZooKeeper's settings.

use super::{errors_of, load_text};
use crate::config::{Layout, Registry, Secret, ZookeeperRegistry};
use std::time::Duration;

fn loaded(rest: &str) -> ZookeeperRegistry {
    let text = format!("registries: {{ z: {{ kind: zookeeper, {rest} }} }}");
    let config = load_text(&text).unwrap().config;
    let Registry::Zookeeper(zookeeper) = config.registries["z"].clone() else { panic!("zookeeper") };
    zookeeper
}

#[test]
fn all_keys() {
    let zookeeper = loaded(
        "endpoints: ['a:2181', 'tls://[::1]:2281'], chroot: /team-a, layout: dubbo, prefix: /rpc, user: u, password: p, \
         session_timeout: 6s, tls: { server_name: zk.internal }",
    );
    assert_eq!(zookeeper.endpoints, ["a:2181", "tls://[::1]:2281"]);
    assert_eq!((zookeeper.chroot.as_deref(), zookeeper.prefix.as_deref()), (Some("/team-a"), Some("/rpc")));
    assert_eq!((zookeeper.layout, zookeeper.session_timeout), (Layout::Dubbo, Duration::from_secs(6)));
    assert_eq!((zookeeper.user.as_deref(), zookeeper.password), (Some("u"), Some(Secret::new("p"))));
    assert_eq!(loaded(""), ZookeeperRegistry::default());
}

#[test]
fn what_is_wrong_is_named() {
    let expected = "expected `HOST:PORT` or `tls://HOST:PORT`";
    for (text, error) in [
        ("endpoints: []", format!("4:16: registries.z.endpoints: the list is empty; {expected}")),
        ("endpoints: [a]", format!("4:17: registries.z.endpoints[0]: found `a`; {expected}")),
        ("endpoints: ['a:0']", format!("4:17: registries.z.endpoints[0]: found `a:0`; {expected}")),
        ("endpoints: ['u:p@a:1']", format!("4:17: registries.z.endpoints[0]: a user in the address; {expected}")),
        (
            "endpoints: ['http://a:1']",
            format!("4:17: registries.z.endpoints[0]: found `http://a:1`; {expected}, and a path as `chroot`"),
        ),
        (
            "endpoints: ['a:1/team-a']",
            format!("4:17: registries.z.endpoints[0]: found `a:1/team-a`; {expected}, and a path as `chroot`"),
        ),
        (
            "endpoints: ['a:1,b:1']",
            "4:17: registries.z.endpoints[0]: found `a:1,b:1`; expected one address, and a list of them".into(),
        ),
        ("user: u", "4:11: registries.z.user: `user` goes with `password`, which is missing".into()),
        ("chroot: a//b", "4:13: registries.z.chroot: found `a//b`; expected a path like `/a/b`".into()),
        ("session_timeout: 10ms", "4:22: registries.z.session_timeout: found `10ms`; expected at least `1s`".into()),
        (
            "tls: { server_name: a }",
            "4:5: registries.z.tls: used only with `tls://` addresses, of which there is none".into(),
        ),
    ] {
        assert_eq!(errors_of(&format!("registries:\n  z:\n    kind: zookeeper\n    {text}\n")), [error], "{text}");
    }
}
