//! Redis: which settings go together, and its URL.

use super::{errors_of, load_text, load_with};
use crate::config::{Overrides, RedisLayout, RedisRegistry, Registry, Secret, Tls};
use std::time::Duration;

fn loaded(rest: &str) -> RedisRegistry {
    let loaded = load_text(&format!("registries: {{ r: {{ kind: redis, {rest} }} }}"));
    let loaded = loaded.unwrap_or_else(|errors| panic!("{rest}: {errors}"));
    let Registry::Redis(redis) = loaded.config.registries["r"].clone() else { panic!("redis") };
    redis
}

#[test]
fn one_server_or_several_or_sentinels() {
    let redis = loaded("addresses: ['127.0.0.1:6379', 'redis-1.example:6379', '[::1]:6379']");
    assert_eq!((redis.addresses.len(), redis.db, redis.layout), (3, 0, RedisLayout::Plain));
    assert_eq!((redis.interval, redis.tls), (Duration::from_secs(5), None));
    let redis = loaded("sentinels: ['127.0.0.1:26379'], master: mymaster, sentinel_password: secret, tls: {}");
    assert_eq!((redis.master.as_deref(), redis.addresses.len()), (Some("mymaster"), 0));
    assert_eq!((redis.sentinel_password, redis.tls), (Some(Secret::new("secret")), Some(Tls::default())));
}

#[test]
fn what_does_not_go_together_is_said_where_it_is() {
    let errors = |rest: &str| errors_of(&format!("registries: {{ r: {{ kind: redis,\n {rest} }} }}"));
    let host = "expected `HOST:PORT`";
    for (rest, expected) in [
        ("db: 1", "1:15: registries.r: no server; expected `addresses`, or `sentinels` and `master`".to_owned()),
        ("sentinels: ['a:1']", "2:13: registries.r.sentinels: `sentinels` goes with `master`, which is missing".into()),
        (
            "addresses: ['a:1'], master: m",
            "2:30: registries.r.master: `master` goes with `sentinels`, which is missing".into(),
        ),
        (
            "addresses: ['a:1'], sentinels: ['a:2'], master: m",
            "2:13: registries.r.addresses: expected either `addresses` or `sentinels`, found both".into(),
        ),
        ("addresses: ['redis://a:1']", format!("2:14: registries.r.addresses[0]: found `redis://a:1`; {host}")),
        ("addresses: ['a']", format!("2:14: registries.r.addresses[0]: found `a`; {host}")),
        ("addresses: ['a:0']", format!("2:14: registries.r.addresses[0]: found `a:0`; {host}")),
        ("addresses: ['u:secret@a:1']", format!("2:14: registries.r.addresses[0]: a user in the address; {host}")),
        (
            "addresses: ['a:1'], user: u",
            "2:28: registries.r.user: `user` goes with `password`, which is missing".into(),
        ),
        (
            "addresses: ['a:1'], interval: 1ms",
            "2:32: registries.r.interval: found `1ms`; expected at least `100ms`".into(),
        ),
        (
            "addresses: ['a:1'], layout: kratos",
            "2:30: registries.r.layout: found `kratos`; expected `plain`, `dubbo` or `kitex`".into(),
        ),
        (
            "addresses: ['a:1'], tls: { cert: /x }",
            "2:35: registries.r.tls.cert: `cert` goes with `key`, which is missing".into(),
        ),
    ] {
        assert!(errors(rest).contains(&expected), "{rest}: {:?}", errors(rest));
    }
}

#[test]
fn in_one_line() {
    let registry = |url: &str| {
        let flags = Overrides { registry: vec![url.into()], ..Overrides::default() };
        load_with("", &[], flags).map(|loaded| loaded.config.registries["redis"].clone())
    };
    let of = |url: &str| match registry(url) {
        Ok(Registry::Redis(redis)) => redis,
        other => panic!("{url}: {:?}", other.err()),
    };
    let redis = of("redis://a:6379,b:6379/2?layout=dubbo&interval=1s");
    assert_eq!((redis.addresses, redis.db), (vec!["a:6379".to_owned(), "b:6379".to_owned()], 2));
    assert_eq!((redis.layout, redis.interval, redis.tls), (RedisLayout::Dubbo, Duration::from_secs(1), None));
    let redis = of("redis://pillion:p%40ss@a:26379?master=mymaster&scheme=rediss");
    assert_eq!((redis.sentinels, redis.master.as_deref()), (vec!["a:26379".to_owned()], Some("mymaster")));
    assert_eq!((redis.user.as_deref(), redis.password), (Some("pillion"), Some(Secret::new("p@ss"))));
    assert_eq!(redis.tls, Some(Tls::default()));
    let redis = of("redis://:secret@a:6379?server_name=redis.example&scheme=rediss");
    assert_eq!((redis.user, redis.password), (None, Some(Secret::new("secret"))));
    assert_eq!(redis.tls.unwrap().server_name.as_deref(), Some("redis.example"));
    for (url, expected) in [
        ("redis:", "expected `redis://HOST:PORT`"),
        ("redis://secret@a:1", "expected `redis://USER:PASSWORD@HOST:PORT`"),
        ("redis://a:1?scheme=tls", "`scheme=tls`; expected `redis` or `rediss`"),
        ("redis://a:1/x", "registries.redis.db: found `x`"),
        ("redis://a", "registries.redis.addresses[0]: found `a`; expected `HOST:PORT`"),
        ("redis://a:1?sentinels=b", "`sentinels` cannot be set after the `?`"),
    ] {
        let shown = registry(url).unwrap_err();
        assert!(shown.contains(expected) && !shown.contains("secret"), "{url}: {shown}");
    }
}
