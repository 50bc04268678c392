//! Canaries with their state in real stores, judged by their own figures or by those of a real Prometheus server.

use crate::{
    canaries::{
        Fleet, Place, a_bad_canary_is_taken_back, a_good_canary_comes_through, decision, few_requests_hold, load,
        rollout, until_percent, until_state, who_decides_dies,
    },
    servers::{ConsulServer, EtcdServer, PrometheusServer, etcds},
};
use std::sync::atomic::Ordering::Relaxed;

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

async fn etcd() -> EtcdServer {
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
    let spoil = |canary: &crate::canaries::Manners| canary.failing.store(5, Relaxed);
    a_bad_canary_is_taken_back(&etcd().await, "error-rate", 20.0, spoil).await;
    a_bad_canary_is_taken_back(&ConsulServer::start().await, "error-rate", 20.0, spoil).await;
}

#[tokio::test]
async fn one_with_a_doubled_p99_is_taken_back() {
    let spoil = |canary: &crate::canaries::Manners| canary.slower.store(2, Relaxed);
    a_bad_canary_is_taken_back(&etcd().await, "p99", 20.0, spoil).await;
}

#[tokio::test]
async fn one_that_breaks_at_half_of_all_requests_is_taken_back() {
    let spoil = |canary: &crate::canaries::Manners| canary.failing.store(100, Relaxed);
    a_bad_canary_is_taken_back(&ConsulServer::start().await, "error-rate", 50.0, spoil).await;
}

#[tokio::test]
async fn another_decides_when_the_one_that_did_dies_with_etcd() {
    who_decides_dies(&etcd().await).await;
}

#[tokio::test]
async fn another_decides_when_the_one_that_did_dies_with_consul() {
    who_decides_dies(&ConsulServer::start().await).await;
}

#[tokio::test]
async fn too_few_requests_decide_nothing() {
    few_requests_hold(&etcd().await).await;
}

/// The one that decides sees no requests itself; the figures are those of another one.
#[tokio::test]
async fn the_whole_fleet_is_judged_by_prometheus() {
    let (etcd, prometheus) = (etcd().await, PrometheusServer::reserve());
    let settings =
        |more: &str| format!(", evidence: prometheus, prometheus: {{ address: '{}' }}{more}", prometheus.url());
    let fleet = Fleet::start(&etcd, &settings("")).await;
    let decides = fleet.pillion().await;
    // It cannot be asked yet, so nothing goes on or back.
    let blind = until_state(&decides, "no figures", |state| state["last_error"].is_string()).await;
    assert!(blind["last_error"].as_str().unwrap().contains("cannot reach"), "{blind:#}");
    assert_eq!(blind["percent"], 20.0);
    assert_eq!(rollout(&decides).await["leading"], true);
    let carries = fleet.pillion().await;
    let load = load(&carries);
    let prometheus = prometheus.start(&[decides.admin(), carries.admin()]).await;
    let state = until_percent(&carries, 50.0).await;
    let figures = &decision(&state, "promote")["figures"];
    println!("by the fleet's figures: {figures}");
    assert!(figures["canary"]["requests"].as_u64() >= Some(100), "{figures:#}");
    // Those of the whole fleet, exactly.
    fleet.canary.manners.failing.store(50, Relaxed);
    let state = until_state(&carries, "being taken back", |state| state["is"] == "rolled-back").await;
    println!("{}", decision(&state, "roll-back"));
    assert_eq!(decision(&state, "roll-back")["cause"], "error-rate");
    load.end().await;
    drop(prometheus);
}

/// A query of the operator's takes back what has good figures otherwise.
#[tokio::test]
async fn a_query_takes_a_canary_back() {
    let (consul, prometheus) = (ConsulServer::start().await, PrometheusServer::reserve());
    let query = "sum(rate(pillion_subset_requests_total{subset=\\\"canary\\\"}[2s]))";
    let more = format!(
        ", prometheus: {{ address: '{}' }}, queries: [ {{ name: many, query: \"{query}\", above: 40, for: 1s }} ]",
        prometheus.url()
    );
    let fleet = Fleet::start(&consul, &more).await;
    let pillion = fleet.pillion().await;
    let prometheus = prometheus.start(&[pillion.admin()]).await;
    let load = load(&pillion);
    let state = until_state(&pillion, "being taken back", |state| state["is"] == "rolled-back").await;
    let last = decision(&state, "roll-back");
    assert_eq!((last["cause"].as_str(), last["guard"].as_str()), (Some("query"), Some("many")), "{last:#}");
    load.end_without_failure().await;
    drop(prometheus);
}
