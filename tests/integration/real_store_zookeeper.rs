//! ZooKeeper's nodes as a store, on real servers, every line that is installed.

use crate::{
    relay::Relay,
    servers::zookeeper::{ZOOKEEPERS, ZookeeperServer},
    stores::{Watching, hands_its_lock_over, keeps_its_word},
};
use pillion::{
    config::{Secret, ZookeeperRegistry},
    registry::{
        Registry, Zookeeper,
        store::{Put, Store},
    },
};
use std::{sync::Arc, time::Duration};
use tokio::time::timeout;

/// The newest, and the oldest, which has no watches that stay.
const ENDS: [&str; 2] = [ZOOKEEPERS[0], ZOOKEEPERS[2]];

const TTL: Duration = Duration::from_secs(10);

fn with(config: ZookeeperRegistry) -> Arc<Zookeeper> {
    Arc::new(Zookeeper::new("main", &config).unwrap())
}

fn at(address: &str) -> ZookeeperRegistry {
    ZookeeperRegistry { endpoints: vec![address.into()], ..ZookeeperRegistry::default() }
}

fn store(address: &str) -> Arc<dyn Store> {
    with(at(address)).store().unwrap()
}

/// One whose sessions may live as long as a lock needs. By ZooKeeper's own defaults it is 40 s.
async fn with_long_sessions(name: &str) -> ZookeeperServer {
    ZookeeperServer::start_with(name, |_| "maxSessionTimeout=40000\n".into()).await
}

#[tokio::test]
async fn zookeeper_is_a_store() {
    for name in ZOOKEEPERS {
        println!("{name}");
        let server = ZookeeperServer::start(name).await;
        keeps_its_word(store(&server.address())).await;
        // As ZooKeeper's own client sees it, and writes it.
        let mut client = server.client().await;
        assert!(client.run("get /pillion/test/a").await.contains(&"2".to_owned()));
        let mut watch = Watching::start(&store(&server.address()), "pillion/test");
        client.delete("/pillion/test/a").await;
        client.set("/pillion/test/b", "new").await;
        // A node on the way to others is no key, and neither is what is below.
        client.create("/pillion/test/folder/c", "1", false).await;
        client.create("/pillion/test/d", "1", false).await;
        watch.until("d", |seen| seen.items.iter().any(|items| items.iter().any(|item| item.key == "d"))).await;
        client.delete("/pillion/test/d").await;
        Watching::start(&store(&server.address()), "pillion/test").until_set(&[("b", "new"), ("count", "20")]).await;
    }
}

/// Its version by ZooKeeper's own count is the old one again.
#[tokio::test]
async fn a_node_that_was_made_again_is_another_one() {
    for name in ENDS {
        let server = ZookeeperServer::start(name).await;
        let mut client = server.client().await;
        client.create("/pillion/test/a", "1", false).await;
        let store = store(&server.address());
        let get = async || store.clone().get("pillion/test/a".into()).await.unwrap().unwrap();
        let old = get().await;
        client.delete("/pillion/test/a").await;
        client.create("/pillion/test/a", "1", false).await;
        let put = |expected| store.clone().put_if("pillion/test/a".into(), Some(expected), "2".into());
        assert_eq!(put(old.version.clone()).await.unwrap(), Put::Conflict);
        let new = get().await;
        assert!(new.value == "1" && new.version != old.version);
        let shown = client.run("stat /pillion/test/a").await;
        assert!(shown.contains(&format!("mZxid = {}", new.version)), "{}: {shown:?}", new.version);
        assert!(matches!(put(new.version).await.unwrap(), Put::Done(_)));
    }
}

#[tokio::test]
async fn zookeepers_lock_is_handed_over() {
    for name in ENDS {
        println!("{name}");
        let server = with_long_sessions(name).await;
        let (one, other) = (store(&server.address()), store(&server.address()));
        hands_its_lock_over(one.clone(), other.clone(), TTL).await;
        let mut client = server.client().await;
        assert!(client.run("ls /pillion").await.contains(&"[]".to_owned()), "nothing is left of it");
        // The two clients' own, and the command line's.
        crate::servers::eventually("the locks' sessions to end", async || server.sessions().await.len() == 3).await;

        // Who holds it is there to be seen, and whoever takes it away by hand is noticed.
        let mut lock = one.lock("pillion/lock".into(), "one".into(), TTL).await.unwrap();
        assert!(client.run("get /pillion/lock").await.contains(&"one".to_owned()));
        client.delete("/pillion/lock").await;
        let why = timeout(6 * TTL, lock.lost()).await.unwrap();
        assert!(why.contains("somebody else"), "{why}");
    }
}

/// A session that is cut off is taken up again, and the lock with it; one that cannot be in time is lost before another has it.
#[tokio::test]
async fn a_lock_outlives_a_connection_and_no_more() {
    let server = with_long_sessions(ZOOKEEPERS[0]).await;
    let relay = Relay::to(server.port).await;
    let cut_off = store(&relay.address());
    let mut lock = cut_off.lock("pillion/lock".into(), "one".into(), TTL).await.unwrap();
    relay.cut();
    tokio::time::sleep(TTL / 3).await;
    relay.mend();
    assert!(timeout(2 * TTL, lock.lost()).await.is_err(), "it is held on");

    let heir = tokio::spawn(store(&server.address()).lock("pillion/lock".into(), "two".into(), TTL));
    relay.cut();
    let why = timeout(6 * TTL, lock.lost()).await.unwrap();
    assert!(why.contains("could not be renewed in time") && !heir.is_finished(), "{why}");
    timeout(6 * TTL, heir).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn a_server_whose_sessions_are_too_short_for_a_lock_is_told_off() {
    let server = ZookeeperServer::start(ZOOKEEPERS[0]).await;
    let error = store(&server.address()).lock("pillion/lock".into(), "one".into(), TTL).await.unwrap_err().to_string();
    assert!(error.contains("lets sessions live for 10s only") && error.contains("maxSessionTimeout"), "{error}");
}

#[tokio::test]
async fn a_zookeeper_that_is_gone_takes_nothing_away_and_is_found_again() {
    for name in ENDS {
        let mut server = ZookeeperServer::start(name).await;
        server.client().await.create("/pillion/test/a", "1", false).await;
        let mut watch = Watching::start(&store(&server.address()), "pillion/test");
        watch.until_set(&[("a", "1")]).await;
        server.kill();
        watch.until_failure(1).await;
        server.restart().await;
        server.client().await.set("/pillion/test/a", "2").await;
        watch.until_set(&[("a", "2")]).await;
        server.client().await.set("/pillion/test/a", "3").await;
        watch.until_set(&[("a", "3")]).await;
    }
}

#[tokio::test]
async fn what_has_an_owner_is_not_for_others() {
    for name in ENDS {
        let server = ZookeeperServer::start(name).await;
        let user = |name: &str| ZookeeperRegistry {
            user: Some(name.into()),
            password: Some(Secret::new("p")),
            chroot: Some("/team-a".into()),
            ..at(&server.address())
        };
        let [ours, others] = ["we", "they"].map(|name| with(user(name)).store().unwrap());
        let put = |store: &Arc<dyn Store>, key: &str| store.clone().put_if(key.into(), None, "1".into());
        assert!(matches!(put(&ours, "pillion/test/a").await.unwrap(), Put::Done(_)));
        Watching::start(&ours, "pillion/test").until_set(&[("a", "1")]).await;
        let error = put(&others, "pillion/test/b").await.unwrap_err().to_string();
        assert!(error.contains("no right to write /team-a/pillion/test/b (NoAuth)"), "{error}");
        let error = others.clone().get("pillion/test/a".into()).await.unwrap_err().to_string();
        assert!(error.contains("no right to read /team-a/pillion/test/a (NoAuth)"), "{error}");

        // A key that must not be read is not one that is not there.
        let mut client = server.client().await;
        let open = with(at(&server.address())).store().unwrap();
        client.create("/open/a", "1", false).await;
        client.create("/open/b", "1", false).await;
        client.run("setAcl /open/a world:anyone:a").await;
        let mut watch = Watching::start(&open, "open");
        let seen = watch.until("a failure", |seen| seen.failure.is_some()).await;
        let failure = seen.failure.unwrap().to_string();
        assert!(seen.items.is_none() && failure.contains("no right to read what is below /open (NoAuth)"), "{failure}");
        client.run("setAcl /open/a world:anyone:cdrwa").await;
        watch.until_set(&[("a", "1"), ("b", "1")]).await;
    }
}

/// The layout's prefix and the store's path may be one in the other, as they are by default.
#[tokio::test]
async fn what_is_stored_is_no_service() {
    let server = ZookeeperServer::start(ZOOKEEPERS[0]).await;
    let mut client = server.client().await;
    client.create("/pillion/users/a", "10.0.0.1:80", true).await;
    client.create("/pillion/routes/users", "routes: []", false).await;
    for (prefix, services) in [(None, ["users"]), (Some("/"), ["pillion/users"])] {
        let registry = with(ZookeeperRegistry { prefix: prefix.map(str::to_owned), ..at(&server.address()) });
        let watch = Watching::start(&registry.clone().store().unwrap(), "pillion/routes")
            .until_set(&[("users", "routes: []")])
            .await;
        drop(watch);
        let locks = registry.clone().store().unwrap().claim("pillion/locks/users".into(), "one".into(), TTL);
        client.create("/pillion/locks/users", "one", true).await;
        let mut listed = registry.list().await.unwrap();
        // ZooKeeper's own.
        listed.retain(|name| name != "zookeeper");
        assert_eq!(listed, services);
        client.delete("/pillion/locks/users").await;
        drop(locks);
    }
}
