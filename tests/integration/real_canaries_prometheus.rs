//! Canaries that are judged by the figures of a real Prometheus server, which scrapes the whole fleet.

use crate::{
    canaries::{Bad, Fleet, Place, comes_through, decision, is_taken_back, load, rollout, until_percent, until_state},
    e2e::{Load, Pillion},
    real_canaries::etcd,
    servers::{ConsulServer, PrometheusServer},
};

/// Two pillions, of which one decides and the other one carries all requests: what the first knows of them it has from Prometheus.
struct Judged {
    fleet: Fleet,
    carries: Pillion,
    load: Load,
    _decides: Pillion,
    _prometheus: PrometheusServer,
}

impl Judged {
    async fn start(place: &impl Place, prepare: impl FnOnce(&Fleet)) -> Self {
        let prometheus = PrometheusServer::reserve();
        let settings = format!(", evidence: prometheus, prometheus: {{ address: '{}' }}", prometheus.url());
        let fleet = Fleet::start(place, &settings).await;
        prepare(&fleet);
        let decides = fleet.pillion().await;
        // It cannot be asked yet, so nothing goes on or back.
        let blind = until_state(&decides, "no figures", |state| state["last_error"].is_string()).await;
        assert!(blind["last_error"].as_str().unwrap().contains("cannot reach"), "{blind:#}");
        assert_eq!(blind["percent"], 20.0);
        assert_eq!(rollout(&decides).await["leading"], true);
        let carries = fleet.pillion().await;
        let load = load(&carries);
        let prometheus = prometheus.start(&[decides.admin(), carries.admin()]).await;
        let sees = |state: &serde_json::Value| state["requests"]["canary"].as_u64() > Some(0);
        until_state(&carries, "figures", sees).await;
        Self { fleet, carries, load, _decides: decides, _prometheus: prometheus }
    }

    /// A canary that goes bad when it has a certain share is taken back because of that.
    async fn bad(place: &impl Place, bad: Bad) {
        let judged = Self::start(place, |fleet| bad.prepare(fleet)).await;
        until_percent(&judged.carries, bad.at).await;
        is_taken_back(&judged.fleet, &judged.carries, &bad).await;
        assert_eq!(rollout(&judged.carries).await["leading"], false);
        judged.load.end().await;
    }
}

#[tokio::test]
async fn a_good_one_comes_through() {
    let consul = ConsulServer::start().await;
    let judged = Judged::start(&consul, |_| ()).await;
    comes_through(&judged.fleet, &judged.carries).await;
    let state = &rollout(&judged.carries).await["state"];
    let figures = &decision(state, "promote")["figures"];
    println!("by the fleet's figures: {figures}");
    // All that there are go through the one that does not decide.
    assert!(figures["canary"]["requests"].as_u64() >= Some(100), "{figures:#}");
    judged.load.end_without_failure().await;
}

#[tokio::test]
async fn one_with_five_percent_more_errors_is_taken_back() {
    Judged::bad(&etcd().await, Bad::FIVE_PERCENT_MORE_ERRORS).await;
}

#[tokio::test]
async fn one_with_a_doubled_p99_is_taken_back() {
    Judged::bad(&ConsulServer::start().await, Bad::DOUBLED_P99).await;
}

#[tokio::test]
async fn one_that_breaks_at_half_of_all_requests_is_taken_back() {
    Judged::bad(&etcd().await, Bad::ONLY_AT_HALF).await;
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
