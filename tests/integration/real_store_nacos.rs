//! Nacos' configs as a store, on real servers, every line that is installed.

use crate::{
    relay::Relay,
    servers::nacos::{NacosServer, VERSIONS},
    stores::{Watching, hands_its_lock_over, keeps_its_word_with},
};
use pillion::{
    config::{NacosRegistry, NacosTransport, Secret},
    registry::{
        Nacos, Registry,
        store::{Put, Store},
    },
};
use std::{sync::Arc, time::Duration};

const TTL: Duration = Duration::from_secs(10);

/// What there is of a server that has users in it.
const USERS: [&str; 4] = [
    crate::servers::nacos::CONFIGS,
    "nacos.core.auth.enabled=true",
    "nacos.core.auth.admin.enabled=true",
    "nacos.core.auth.plugin.nacos.token.expire.seconds=8",
];

fn with(config: NacosRegistry) -> Arc<dyn Store> {
    Arc::new(Nacos::new("main", &config).unwrap()).store().unwrap()
}

fn at(url: String) -> NacosRegistry {
    NacosRegistry { servers: vec![url], poll: Duration::from_secs(1), ..NacosRegistry::default() }
}

#[tokio::test]
async fn nacos_is_a_store() {
    for version in VERSIONS {
        println!("{version}");
        let server = NacosServer::start_with_configs(version).await;
        let store = with(at(server.url()));
        keeps_its_word_with(store.clone(), "0").await;
        // As Nacos' own API has it.
        assert_eq!(server.config("pillion.test", "a").await, "2");
        let mut watch = Watching::start(&with(at(server.url())), "pillion/test");
        watch.until_set(&[("a", "2"), ("b", "0"), ("count", "20")]).await;
        server.delete_config("pillion.test", "a").await;
        server.put_config("pillion.test", "b", "new").await;
        // In other groups, of which one is like this one where `_` stands for any letter.
        server.put_config("pillion.test", "c:40:40d", "1").await;
        server.put_config("pillion_test", "x", "1").await;
        // And a name that is none of ours.
        server.put_config("pillion.test", "no:name", "1").await;
        watch.until_set(&[("b", "new"), ("c@@d", "1"), ("count", "20")]).await;

        for value in ["", " \n", "\u{fffd}"] {
            let value: Vec<u8> = if value == "\u{fffd}" { vec![0xff] } else { value.into() };
            let error =
                store.clone().put_if("pillion/test/e".into(), None, value.into()).await.unwrap_err().to_string();
            assert!(
                error.contains("`pillion/test/e` cannot be that in Nacos; expected text that is not blank"),
                "{error}"
            );
        }
        // A content that comes again is the same version.
        let get = async || store.clone().get("pillion/test/b".into()).await.unwrap().unwrap().version;
        let new = get().await;
        let put =
            |expected, value: &'static str| store.clone().put_if("pillion/test/b".into(), Some(expected), value.into());
        let Put::Done(other) = put(new.clone(), "other").await.unwrap() else { panic!("it was as expected") };
        assert_eq!(put(other, "new").await.unwrap(), Put::Done(new));
    }
}

/// With a poll that is never: only what the server tells by itself.
#[tokio::test]
async fn changes_of_what_is_known_are_pushed() {
    for version in VERSIONS {
        let server = NacosServer::start_with_configs(version).await;
        server.put_config("pillion.test", "a", "1").await;
        server.put_config("pillion.test", "b", "1").await;
        let mut watch = Watching::start(
            &with(NacosRegistry { poll: Duration::from_secs(3600), ..at(server.url()) }),
            "pillion/test",
        );
        watch.until_set(&[("a", "1"), ("b", "1")]).await;
        for value in ["2", "3", "1"] {
            server.put_config("pillion.test", "a", value).await;
            watch.until_set(&[("a", value), ("b", "1")]).await;
        }
        server.delete_config("pillion.test", "b").await;
        watch.until_set(&[("a", "1")]).await;
        server.put_config("pillion.test", "b", "2").await;
        watch.until_set(&[("a", "1"), ("b", "2")]).await;
    }
}

#[tokio::test]
async fn nacos_lock_is_handed_over() {
    for version in VERSIONS {
        println!("{version}");
        let server = NacosServer::start_with_configs(version).await;
        let other = with(at(server.url()));
        hands_its_lock_over(with(at(server.url())), other.clone(), TTL).await;
        let left = other.get("pillion/lock".into()).await.unwrap().unwrap();
        assert!(String::from_utf8_lossy(&left.value).contains(r#""holder":"""#), "nobody has it: {left:?}");
    }
}

#[tokio::test]
async fn a_nacos_that_is_gone_takes_nothing_away_and_is_found_again() {
    for version in VERSIONS {
        let mut server = NacosServer::start_with_configs(version).await;
        server.put_config("pillion.test", "a", "1").await;
        let mut watch = Watching::start(&with(at(server.url())), "pillion/test");
        watch.until_set(&[("a", "1")]).await;
        server.kill();
        watch.until_failure(1).await;
        server.restart().await;
        watch.until_set(&[("a", "1")]).await;
        server.put_config("pillion.test", "a", "2").await;
        watch.until_set(&[("a", "2")]).await;
    }
}

#[tokio::test]
async fn namespaces_are_apart_and_users_need_their_rights() {
    for version in VERSIONS {
        println!("{version}");
        let mut server = NacosServer::start_with(version, &USERS).await;
        server.make_user().await;
        let user = |password: &str| NacosRegistry {
            user: Some("nacos".into()),
            password: Some(Secret::new(password)),
            ..at(server.url())
        };
        let ours = with(NacosRegistry { namespace: "team-a".into(), ..user("nacos") });
        let public = with(user("nacos"));
        let put = |store: &Arc<dyn Store>, value: &'static str| {
            store.clone().put_if("pillion/test/a".into(), None, value.into())
        };
        assert!(matches!(put(&ours, "ours").await.unwrap(), Put::Done(_)));
        assert!(matches!(put(&public, "public").await.unwrap(), Put::Done(_)));
        Watching::start(&ours, "pillion/test").until_set(&[("a", "ours")]).await;
        Watching::start(&public, "pillion/test").until_set(&[("a", "public")]).await;

        for stranger in [with(at(server.url())), with(user("wrong"))] {
            assert!(put(&stranger, "x").await.is_err());
            let mut watch = Watching::start(&stranger, "pillion/test");
            let seen = watch.until("a failure", |seen| seen.failure.is_some()).await;
            assert!(seen.items.is_none(), "what must not be read is not nothing");
        }
    }
}

#[tokio::test]
async fn without_grpc_there_is_no_store() {
    let server = NacosServer::start_with_configs(VERSIONS[1]).await;
    let store = with(NacosRegistry { transport: NacosTransport::Http, ..at(server.url()) });
    let error = store.clone().get("pillion/test/a".into()).await.unwrap_err().to_string();
    assert!(error.contains("a store in Nacos needs gRPC"), "{error}");
    let seen = Watching::start(&store, "pillion/test").until("a failure", |seen| seen.failure.is_some()).await;
    assert!(seen.items.is_none());
}

/// A connection that is cut in silence is noticed.
#[tokio::test]
async fn a_watch_in_nacos_that_is_cut_off_is_told() {
    let server = NacosServer::start_with_configs(VERSIONS[0]).await;
    server.put_config("pillion.test", "a", "1").await;
    let relay = Relay::to(server.port + 1000).await;
    let port = relay.address().rsplit_once(':').unwrap().1.parse().unwrap();
    let mut watch = Watching::start(
        &with(NacosRegistry { grpc_port: Some(port), transport: NacosTransport::Grpc, ..at(server.url()) }),
        "pillion/test",
    );
    watch.until_set(&[("a", "1")]).await;
    relay.silence();
    watch.until_failure(1).await;
}
