//! Canaries with their state in real stores, judged by their own figures. `real_canaries_prometheus` has those of a fleet.

use crate::{
    canaries::{
        Bad, Place, a_bad_canary_is_taken_back, a_good_canary_comes_through, few_requests_hold, who_decides_dies,
    },
    servers::{
        ConsulServer, EtcdServer, etcds,
        kubernetes::{ADMIN, KubernetesServer, NAMESPACE},
    },
};

impl Place for EtcdServer {
    fn settings(&self) -> String {
        format!("kind: etcd, endpoints: ['{}']", self.url())
    }
}

impl Place for ConsulServer {
    fn settings(&self) -> String {
        format!("kind: consul, address: 'http://127.0.0.1:{}'", self.port)
    }
}

impl Place for KubernetesServer {
    fn settings(&self) -> String {
        let (server, ca) = (self.url(), self.path("ca.pem"));
        format!(
            "kind: kubernetes, servers: ['{server}'], namespace: {NAMESPACE}, token: {ADMIN}, tls: {{ ca: '{}' }}",
            ca.display()
        )
    }
}

pub async fn etcd() -> EtcdServer {
    let (_, binary) = etcds().pop_last().unwrap();
    EtcdServer::start(&binary).await
}

#[tokio::test]
async fn a_good_one_comes_through_with_etcd() {
    a_good_canary_comes_through(&etcd().await).await;
}

#[tokio::test]
async fn a_good_one_comes_through_with_consul() {
    a_good_canary_comes_through(&ConsulServer::start().await).await;
}

#[tokio::test]
async fn one_with_five_percent_more_errors_is_taken_back() {
    a_bad_canary_is_taken_back(&etcd().await, Bad::FIVE_PERCENT_MORE_ERRORS).await;
    a_bad_canary_is_taken_back(&ConsulServer::start().await, Bad::FIVE_PERCENT_MORE_ERRORS).await;
}

#[tokio::test]
async fn one_with_a_doubled_p99_is_taken_back() {
    a_bad_canary_is_taken_back(&etcd().await, Bad::DOUBLED_P99).await;
}

#[tokio::test]
async fn one_that_breaks_at_half_of_all_requests_is_taken_back() {
    a_bad_canary_is_taken_back(&ConsulServer::start().await, Bad::ONLY_AT_HALF).await;
}

#[tokio::test]
async fn another_decides_when_the_one_that_did_dies_with_etcd() {
    who_decides_dies(&etcd().await).await;
}

#[tokio::test]
async fn another_decides_when_the_one_that_did_dies_with_consul() {
    who_decides_dies(&ConsulServer::start().await).await;
}

/// The state is in a ConfigMap, and the lock is a Lease.
#[tokio::test]
async fn another_decides_when_the_one_that_did_dies_with_kubernetes() {
    let server = KubernetesServer::start().await;
    who_decides_dies(&server).await;
    let state = server.kubectl(&["get", "configmap", "pillion-rollouts", "-o", "jsonpath={.data.users}"]);
    let state: serde_json::Value = serde_json::from_str(&state).unwrap();
    assert_eq!((state["phase"]["is"].as_str(), state["percent"].as_f64()), (Some("done"), Some(100.0)), "{state:#}");
    let transitions = ["get", "lease", "pillion-rollouts-locks-users", "-o", "jsonpath={.spec.leaseTransitions}"];
    let transitions: u32 = server.kubectl(&transitions).parse().unwrap();
    assert!(transitions >= 1, "{transitions}");
}

#[tokio::test]
async fn one_that_breaks_at_half_of_all_requests_is_taken_back_with_kubernetes() {
    a_bad_canary_is_taken_back(&KubernetesServer::start().await, Bad::ONLY_AT_HALF).await;
}

#[tokio::test]
async fn too_few_requests_decide_nothing() {
    few_requests_hold(&etcd().await).await;
}
