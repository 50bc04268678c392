//! Routes from the stores of real servers, with traffic; and what was last good survives a restart without the store.

use crate::{
    e2e::{get, until, until_answer},
    servers::{
        ConsulServer, EtcdServer, etcds,
        kubernetes::{ADMIN, KubernetesServer, NAMESPACE},
        nacos::{NacosServer, VERSIONS},
        program,
        zookeeper::{ZOOKEEPERS, ZookeeperServer},
    },
    store_routes::{AT_ONCE, KEY, Server, Versions, broken_values_change_nothing, changes_under_load, to, users},
};
use serde_json::json;
use std::{fs, path::Path, process::Command, time::Duration};

/// Nacos gathers changes before it pushes them.
const QUITE_SOON: Duration = Duration::from_millis(500);

impl Server for EtcdServer {
    fn put(&self, value: &str) {
        self.etcdctl(&["put", KEY, value]);
    }

    fn delete(&self) {
        self.etcdctl(&["del", KEY]);
    }
}

impl Server for ConsulServer {
    fn put(&self, value: &str) {
        self.kv(&["put", KEY, value]);
    }

    fn delete(&self) {
        self.kv(&["delete", KEY]);
    }
}

impl Server for ZookeeperServer {
    fn put(&self, value: &str) {
        let node = format!("/{KEY}");
        if !self.cli(&["set", &node, value]) {
            // Nothing makes those above it.
            for (end, _) in node.match_indices('/').skip(1) {
                self.cli(&["create", &node[..end]]);
            }
            assert!(self.cli(&["create", &node, value]));
        }
    }

    fn delete(&self) {
        assert!(self.cli(&["delete", &format!("/{KEY}")]));
    }
}

impl Server for NacosServer {
    fn put(&self, value: &str) {
        let content = format!("content={value}");
        curl(&["-d", "dataId=users", "-d", "group=pillion.routes", "--data-urlencode", &content, &configs(self)]);
    }

    fn delete(&self) {
        curl(&["-X", "DELETE", &format!("{}?dataId=users&group=pillion.routes", configs(self))]);
    }

    fn takes(&self, value: &str) -> bool {
        !value.is_empty()
    }
}

fn configs(server: &NacosServer) -> String {
    format!("{}/nacos/v1/cs/configs", server.url())
}

fn curl(args: &[&str]) {
    let output = Command::new(program("curl")).arg("-s").args(args).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "true", "{args:?}");
}

impl Server for KubernetesServer {
    fn put(&self, value: &str) {
        let patch = json!({"data": {"users": value}}).to_string();
        self.kubectl(&["patch", "configmap", "pillion-routes", "--type", "merge", "-p", &patch]);
    }

    fn delete(&self) {
        self.kubectl(&[
            "patch",
            "configmap",
            "pillion-routes",
            "--type",
            "json",
            "-p",
            r#"[{"op": "remove", "path": "/data/users"}]"#,
        ]);
    }
}

fn etcd(server: &EtcdServer) -> String {
    format!("kind: etcd, endpoints: ['{}']", server.url())
}

fn consul(server: &ConsulServer) -> String {
    format!("kind: consul, address: 'http://127.0.0.1:{}'", server.port)
}

fn zookeeper(server: &ZookeeperServer) -> String {
    format!("kind: zookeeper, endpoints: ['{}']", server.address())
}

fn nacos(server: &NacosServer) -> String {
    // The first value is found by asking; those after it are pushed.
    format!("kind: nacos, servers: ['{}'], poll: 1s", server.url())
}

async fn cluster() -> KubernetesServer {
    let server = KubernetesServer::start().await;
    server.kubectl(&["create", "configmap", "pillion-routes"]);
    server
}

fn kubernetes(server: &KubernetesServer) -> String {
    let (url, ca) = (server.url(), server.path("ca.pem"));
    let tls = format!("tls: {{ ca: '{}' }}", ca.display());
    format!("kind: kubernetes, servers: ['{url}'], namespace: {NAMESPACE}, token: {ADMIN}, {tls}")
}

async fn newest_etcd() -> EtcdServer {
    let (_, binary) = etcds().pop_last().unwrap();
    EtcdServer::start(&binary).await
}

#[tokio::test]
async fn changes_in_etcd_are_in_force_at_once_and_fail_no_request() {
    let server = newest_etcd().await;
    changes_under_load(&server, &etcd(&server), AT_ONCE).await;
}

#[tokio::test]
async fn changes_in_consul_are_in_force_at_once_and_fail_no_request() {
    let server = ConsulServer::start().await;
    changes_under_load(&server, &consul(&server), AT_ONCE).await;
}

#[tokio::test]
async fn changes_in_a_config_map_are_in_force_at_once_and_fail_no_request() {
    let server = cluster().await;
    changes_under_load(&server, &kubernetes(&server), AT_ONCE).await;
}

#[tokio::test]
async fn a_broken_value_in_a_config_map_changes_nothing() {
    let server = cluster().await;
    broken_values_change_nothing(&server, &kubernetes(&server)).await;
}

#[tokio::test]
async fn changes_in_zookeeper_are_in_force_at_once_and_fail_no_request() {
    let server = ZookeeperServer::start(ZOOKEEPERS[0]).await;
    changes_under_load(&server, &zookeeper(&server), AT_ONCE).await;
}

#[tokio::test]
async fn a_broken_value_in_etcd_changes_nothing() {
    let server = newest_etcd().await;
    broken_values_change_nothing(&server, &etcd(&server)).await;
}

#[tokio::test]
async fn a_broken_value_in_consul_changes_nothing() {
    let server = ConsulServer::start().await;
    broken_values_change_nothing(&server, &consul(&server)).await;
}

#[tokio::test]
async fn a_broken_value_in_zookeeper_changes_nothing() {
    // With watches that fire once.
    let server = ZookeeperServer::start(ZOOKEEPERS[2]).await;
    broken_values_change_nothing(&server, &zookeeper(&server)).await;
}

#[tokio::test]
async fn changes_in_nacos_are_in_force_at_once_and_fail_no_request() {
    for version in VERSIONS {
        let server = NacosServer::start_with_configs(version).await;
        changes_under_load(&server, &nacos(&server), QUITE_SOON).await;
    }
}

#[tokio::test]
async fn a_broken_value_in_nacos_changes_nothing() {
    let server = NacosServer::start_with_configs(VERSIONS[1]).await;
    broken_values_change_nothing(&server, &nacos(&server)).await;
}

async fn until_kept(folder: &Path, text: &str) {
    let is_kept = |path: &Path| {
        path.extension().is_some_and(|it| it == "pillion-routes")
            && fs::read_to_string(path).is_ok_and(|kept| kept.contains(text))
    };
    until("the routes to be kept", async || {
        fs::read_dir(folder.join("kept")).unwrap().any(|entry| is_kept(&entry.unwrap().path()))
    })
    .await;
}

#[tokio::test]
async fn the_last_good_routes_are_in_force_after_a_restart_without_the_store() {
    let mut server = newest_etcd().await;
    let versions = Versions::start(&etcd(&server)).await;
    let pillion = versions.pillion().await;
    server.put(KEY, to("canary")).await;
    until_answer(pillion.egress(), "users", |_, name| name == "canary").await;
    server.put(KEY, "routes: [").await;
    until("it to be refused", async || users(&pillion).await["refused"].is_object()).await;
    until_kept(versions.folder.path(), "canary").await;
    // The store goes, which changes nothing.
    server.kill();
    until("its failure to be seen", async || pillion.json("/api/routes").await["store"]["state"] == "failing").await;
    assert_eq!(get(pillion.egress(), "users").await, Ok((200, "canary".into())));
    drop(pillion);

    let mut pillion = versions.pillion().await;
    let stable = versions.stable.requests();
    pillion.until_logged("the store of routes fails").await;
    for _ in 0..20 {
        assert_eq!(get(pillion.egress(), "users").await, Ok((200, "canary".into())));
    }
    assert_eq!((users(&pillion).await["from"].as_str(), versions.stable.requests()), (Some("disk"), stable));
    assert_eq!(pillion.admin_text("/ready").await.0, 200, "it can take traffic");
    // It comes back with what was bad before, then with something better.
    server.restart().await;
    until("it to be refused", async || users(&pillion).await["refused"].is_object()).await;
    assert_eq!(get(pillion.egress(), "users").await, Ok((200, "canary".into())));
    server.put(KEY, to("stable")).await;
    until_answer(pillion.egress(), "users", |_, name| name == "stable").await;
    assert_eq!(users(&pillion).await["from"], "store");
}
