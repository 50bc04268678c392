//! Registries' own key-value stores, on the real servers.

use crate::{
    relay::Relay,
    servers::{
        ConsulServer, EtcdServer, etcds, eventually,
        kubernetes::{ADMIN, KubernetesServer, NAMESPACE, READER},
    },
    stores::{TTL, Watching, hands_its_lock_over, keeps_its_word},
};
use pillion::{
    config::{ConsulRegistry, EtcdRegistry, KubernetesRegistry, Secret, Tls},
    registry::{
        Consul, Etcd, Kubernetes, Registry,
        store::{Put, Store},
    },
};
use serde_json::json;
use std::{path::PathBuf, sync::Arc, time::Duration};
use tokio::time::{Instant, timeout};

fn etcd(url: &str) -> Arc<dyn Store> {
    let config = EtcdRegistry { endpoints: vec![url.into()], ..EtcdRegistry::default() };
    Arc::new(Etcd::new("main", &config).unwrap()).store().unwrap()
}

fn consul(port: u16) -> Arc<dyn Store> {
    let config = ConsulRegistry { address: format!("http://127.0.0.1:{port}"), ..ConsulRegistry::default() };
    Arc::new(Consul::new("main", &config).unwrap()).store().unwrap()
}

/// Runs a test on each version of etcd.
async fn on_each(test: impl AsyncFn(PathBuf)) {
    for (version, binary) in etcds() {
        println!("etcd {version}");
        test(binary).await;
    }
}

#[tokio::test]
async fn etcd_is_a_store() {
    on_each(async |binary| {
        let server = EtcdServer::start(&binary).await;
        keeps_its_word(etcd(&server.url())).await;
        // As etcd's own client sees it, and writes it.
        assert_eq!(server.etcdctl(&["get", "--print-value-only", "pillion/test/a"]).trim(), "2");
        let mut watch = Watching::start(&etcd(&server.url()), "pillion/test");
        server.etcdctl(&["del", "pillion/test/a"]);
        server.etcdctl(&["put", "pillion/test/b", "new"]);
        watch.until_set(&[("b", "new"), ("count", "20")]).await;
    })
    .await;
}

#[tokio::test]
async fn etcds_lock_is_handed_over() {
    on_each(async |binary| {
        let server = EtcdServer::start(&binary).await;
        hands_its_lock_over(etcd(&server.url()), etcd(&server.url()), TTL).await;
        assert!(server.values("pillion/lock").await.is_empty(), "nothing is left of it");
    })
    .await;
}

#[tokio::test]
async fn an_etcd_that_is_gone_takes_nothing_away_and_is_found_again() {
    on_each(async |binary| {
        let mut server = EtcdServer::start(&binary).await;
        server.put("pillion/test/a", "1").await;
        let mut watch = Watching::start(&etcd(&server.url()), "pillion/test");
        watch.until_set(&[("a", "1")]).await;
        server.kill();
        watch.until_failure(1).await;
        server.restart().await;
        server.put("pillion/test/a", "2").await;
        watch.until_set(&[("a", "2")]).await;
    })
    .await;
}

#[tokio::test]
async fn consul_is_a_store() {
    let server = ConsulServer::start().await;
    keeps_its_word(consul(server.port)).await;
    assert_eq!(server.kv(&["get", "pillion/test/a"]).trim(), "2");
    let mut watch = Watching::start(&consul(server.port), "pillion/test");
    server.kv(&["delete", "pillion/test/a"]);
    // A folder, as Consul's own pages make them, is no key.
    server.kv(&["put", "pillion/test/folder/"]);
    server.kv(&["put", "pillion/test/b", "new"]);
    watch.until_set(&[("b", "new"), ("count", "20")]).await;
}

#[tokio::test]
async fn consuls_lock_is_handed_over() {
    let server = ConsulServer::start().await;
    hands_its_lock_over(consul(server.port), consul(server.port), TTL).await;
    assert!(server.get("/v1/session/list").await.contains("[]"), "no session is left");
}

#[tokio::test]
async fn a_consul_that_is_gone_takes_nothing_away_and_is_found_again() {
    let mut server = ConsulServer::start_with_data().await;
    server.kv(&["put", "pillion/test/a", "1"]);
    let mut watch = Watching::start(&consul(server.port), "pillion/test");
    watch.until_set(&[("a", "1")]).await;
    server.kill();
    watch.until_failure(1).await;
    server.restart().await;
    server.kv(&["put", "pillion/test/a", "2"]);
    watch.until_set(&[("a", "2")]).await;
}

#[tokio::test]
async fn a_consul_that_hides_keys_is_not_one_that_has_none() {
    let acl = r#"acl { enabled = true, default_policy = "deny", tokens { initial_management = "root" } }"#;
    let server = ConsulServer::start_with(acl).await.with_token("root").await;
    server.put("/v1/kv/pillion/test/a", &json!("1")).await;
    let open = |token: Option<&str>| -> Arc<dyn Store> {
        let config = ConsulRegistry {
            address: format!("http://127.0.0.1:{}", server.port),
            token: token.map(pillion::config::Secret::new),
            ..ConsulRegistry::default()
        };
        Arc::new(Consul::new("main", &config).unwrap()).store().unwrap()
    };
    let policy = json!({"Name": "other", "Rules": "key_prefix \"other\" { policy = \"read\" }"});
    server.put("/v1/acl/policy", &policy).await;
    let token = json!({"SecretID": "5c8d9b4e-7f53-4f7e-9a0e-3f3f0e6b1a77", "Policies": [{"Name": "other"}]});
    server.put("/v1/acl/token", &token).await;
    for token in [None, Some("5c8d9b4e-7f53-4f7e-9a0e-3f3f0e6b1a77")] {
        let mut watch = Watching::start(&open(token), "pillion/test");
        let seen = watch.until("a failure", |seen| seen.failure.is_some()).await;
        let failure = seen.failure.unwrap().to_string();
        assert!(seen.items.is_none() && failure.contains("key:read"), "{failure}");
        let put = open(token).put_if("pillion/test/a".into(), None, "2".into()).await;
        assert!(put.is_err_and(|error| error.to_string().contains("key:write")));
    }
    Watching::start(&open(Some("root")), "pillion/test").until_set(&[("a", "\"1\"")]).await;
}

/// A connection that is cut in silence is noticed.
#[tokio::test]
async fn a_watch_that_is_cut_off_is_told() {
    on_each(async |binary| {
        let server = EtcdServer::start(&binary).await;
        server.put("pillion/test/a", "1").await;
        let relay = Relay::to(server.port).await;
        let mut watch = Watching::start(&etcd(&format!("http://{}", relay.address())), "pillion/test");
        watch.until_set(&[("a", "1")]).await;
        relay.silence();
        watch.until_failure(1).await;
    })
    .await;
}

fn kubernetes(server: &KubernetesServer, token: &str) -> Arc<dyn Store> {
    kubernetes_at(server, &server.url(), token)
}

fn kubernetes_at(server: &KubernetesServer, url: &str, token: &str) -> Arc<dyn Store> {
    let config = KubernetesRegistry {
        servers: vec![url.into()],
        namespace: Some(NAMESPACE.into()),
        token: Some(Secret::new(token)),
        tls: Tls { ca: Some(server.path("ca.pem")), ..Tls::default() },
        ..KubernetesRegistry::default()
    };
    Arc::new(Kubernetes::new("main", &config, None).unwrap()).store().unwrap()
}

#[tokio::test]
async fn kubernetes_is_a_store() {
    let server = KubernetesServer::start().await;
    keeps_its_word(kubernetes(&server, ADMIN)).await;
    // As kubectl sees it, and writes it.
    assert_eq!(server.kubectl(&["get", "configmap", "pillion-test", "-o", "jsonpath={.data.a}"]), "2");
    let mut watch = Watching::start(&kubernetes(&server, ADMIN), "pillion/test");
    let patch = r#"{"data": {"a": null, "b": "new", "x.y_3A80": "odd"}}"#;
    server.kubectl(&["patch", "configmap", "pillion-test", "--type", "merge", "-p", patch]);
    watch.until_set(&[("b", "new"), ("count", "20"), ("x.y:80", "odd")]).await;
    server.kubectl(&["delete", "configmap", "pillion-test"]);
    watch.until_set(&[]).await;
    let value = "pillion/test/x:80";
    assert!(matches!(kubernetes(&server, ADMIN).put_if(value.into(), None, "1".into()).await, Ok(Put::Done(_))));
    watch.until_set(&[("x:80", "1")]).await;
    assert_eq!(server.kubectl(&["get", "configmap", "pillion-test", "-o", "jsonpath={.data}"]), r#"{"x_3A80":"1"}"#);
}

/// They share an object, whose version each write changes.
#[tokio::test]
async fn writers_of_different_keys_of_a_config_map_do_not_disturb_each_other() {
    let server = KubernetesServer::start().await;
    let writers = (0..5).map(|writer| {
        let store = kubernetes(&server, ADMIN);
        tokio::spawn(async move {
            let (key, mut version) = (format!("pillion/test/{writer}"), None);
            for count in 0..5 {
                let put = store.clone().put_if(key.clone(), version, count.to_string().into()).await.unwrap();
                let Put::Done(next) = put else { panic!("nobody else writes this key") };
                version = Some(next);
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
    let all = [("0", "4"), ("1", "4"), ("2", "4"), ("3", "4"), ("4", "4")];
    Watching::start(&kubernetes(&server, ADMIN), "pillion/test").until_set(&all).await;
}

#[tokio::test]
async fn kubernetes_lock_is_handed_over() {
    let server = KubernetesServer::start().await;
    hands_its_lock_over(kubernetes(&server, ADMIN), kubernetes(&server, ADMIN), TTL).await;
    // As others in the cluster read it: given back, after the fifth holder, for so long as it was asked for.
    let spec = "jsonpath={.spec.holderIdentity},{.spec.leaseTransitions},{.spec.leaseDurationSeconds}";
    assert_eq!(server.kubectl(&["get", "lease", "pillion-lock", "-o", spec]), ",4,10");
    // One of another program's, which does not renew it: its own duration counts.
    let lock = || kubernetes(&server, ADMIN).lock("pillion/lock".into(), "us".into(), TTL);
    let patch = r#"{"spec": {"holderIdentity": "other", "leaseDurationSeconds": 3}}"#;
    server.kubectl(&["patch", "lease", "pillion-lock", "--type", "merge", "-p", patch]);
    let since = Instant::now();
    let mut ours = lock().await.unwrap();
    assert!(since.elapsed() >= Duration::from_secs(3), "{:?}", since.elapsed());
    assert_eq!(server.kubectl(&["get", "lease", "pillion-lock", "-o", spec]), "us,5,10");
    // Whoever takes it away is believed.
    server.kubectl(&[
        "patch",
        "lease",
        "pillion-lock",
        "--type",
        "merge",
        "-p",
        r#"{"spec": {"holderIdentity": "other"}}"#,
    ]);
    let why = timeout(6 * TTL, ours.lost()).await.unwrap();
    assert!(why.contains("somebody else"), "{why}");
}

#[tokio::test]
async fn a_kubernetes_that_is_gone_takes_nothing_away_and_is_found_again() {
    let mut server = KubernetesServer::start().await;
    server.kubectl(&["create", "configmap", "pillion-test", "--from-literal=a=1"]);
    let mut watch = Watching::start(&kubernetes(&server, ADMIN), "pillion/test");
    watch.until_set(&[("a", "1")]).await;
    server.kill();
    watch.until_failure(1).await;
    server.restart().await;
    server.kubectl(&["patch", "configmap", "pillion-test", "-p", r#"{"data": {"a": "2"}}"#]);
    watch.until_set(&[("a", "2")]).await;
    // A new cluster, whose versions start again.
    server.restart_empty().await;
    watch.until_set(&[]).await;
    // And one that falls silent.
    server.kubectl(&["create", "configmap", "pillion-test", "--from-literal=a=3"]);
    let relay = Relay::to(server.port).await;
    let mut watch =
        Watching::start(&kubernetes_at(&server, &format!("https://{}", relay.address()), ADMIN), "pillion/test");
    watch.until_set(&[("a", "3")]).await;
    relay.silence();
    watch.until_failure(1).await;
}

#[tokio::test]
async fn rights_that_a_store_in_kubernetes_lacks_are_named() {
    let server = KubernetesServer::start_with(&["--authorization-mode=RBAC"]).await;
    server.kubectl(&["create", "configmap", "pillion-test", "--from-literal=a=1"]);
    let store = kubernetes(&server, READER);
    let put = async |key: &str| {
        let there = store.clone().get(key.into()).await?;
        store.clone().put_if(key.into(), there.map(|there| there.version), "2".into()).await
    };
    let mut watch = Watching::start(&store, "pillion/test");
    let seen = watch.until("a failure", |seen| seen.failure.is_some()).await;
    let failure = seen.failure.unwrap().to_string();
    assert!(
        seen.items.is_none() && failure.contains("needed are `get`, `list` and `watch` of `configmaps`"),
        "{failure}"
    );
    let lock = store.clone().lock("pillion/lock".into(), "us".into(), TTL).await.unwrap_err().to_string();
    assert!(lock.contains("`create` and `patch` of `leases`"), "{lock}");
    // To read, for the one map.
    let rules = json!([{
        "apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["pillion-test"],
        "verbs": ["get", "list", "watch"],
    }]);
    server.allow("reading", rules).await;
    watch.until_set(&[("a", "1")]).await;
    let refused = put("pillion/test/a").await.unwrap_err().to_string();
    assert!(refused.contains("cannot patch") && refused.contains("to write `create` and `patch`"), "{refused}");
    let other = store.clone().get("pillion/other/a".into()).await.unwrap_err().to_string();
    assert!(other.contains("403 Forbidden"), "{other}");
    // To write as well, and to take locks.
    let rules = json!([
        {"apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["pillion-test"], "verbs": ["patch"]},
        {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["get", "patch"]},
        {"apiGroups": ["", "coordination.k8s.io"], "resources": ["configmaps", "leases"], "verbs": ["create"]},
    ]);
    server.allow("writing", rules).await;
    let written = async || matches!(put("pillion/test/a").await, Ok(Put::Done(_)));
    eventually("the right to write", written).await;
    watch.until_set(&[("a", "2")]).await;
    for _ in 0..2 {
        store.clone().lock("pillion/lock".into(), "us".into(), TTL).await.unwrap().release().await;
    }
    // What the server itself does not take.
    let admin = kubernetes(&server, ADMIN);
    server.kubectl(&["patch", "configmap", "pillion-test", "-p", r#"{"immutable": true}"#]);
    let there = admin.clone().get("pillion/test/a".into()).await.unwrap().unwrap();
    let refused = admin.clone().put_if("pillion/test/a".into(), Some(there.version), "3".into()).await.unwrap_err();
    assert!(refused.to_string().contains("immutable"), "{refused}");
    let refused = admin.clone().put_if("Pillion/a".into(), None, "2".into()).await.unwrap_err().to_string();
    assert!(refused.contains("`Pillion` makes no name for a ConfigMap"), "{refused}");
    let mut unusable = Watching::start(&admin, "Pillion");
    let seen = unusable.until("a failure", |seen| seen.failure.is_some()).await;
    assert!(seen.items.is_none() && seen.failure.unwrap().to_string().contains("makes no name"));
}
