//! Instances come and go through a real etcd, under load.

use crate::{
    e2e::{Pillion, Upstream, until, until_answer},
    servers::{EtcdServer, program},
    tools::{h2load, wrk},
};
use std::{collections::VecDeque, time::Duration};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{interval, sleep},
};

const TIME: Duration = Duration::from_secs(30);
const INSTANCES: usize = 8;
/// How often one leaves and another joins.
const PERIOD: Duration = Duration::from_secs(1);
/// How long an instance goes on after it has deregistered, as every guide to graceful shutdown has it.
const NOTICE: Duration = Duration::from_millis(300);

/// A service whose instances come and go.
struct Churn<'e> {
    etcd: &'e EtcdServer,
    service: &'static str,
    protocol: &'static str,
    instances: VecDeque<Upstream>,
    started: usize,
}

impl<'e> Churn<'e> {
    async fn start(etcd: &'e EtcdServer, service: &'static str, protocol: &'static str) -> Self {
        let mut churn = Self { etcd, service, protocol, instances: VecDeque::new(), started: 0 };
        for _ in 0..INSTANCES {
            churn.join().await;
        }
        churn
    }

    async fn join(&mut self) {
        self.started += 1;
        let instance = Upstream::start(&format!("{}-{}", self.service, self.started)).await;
        let value = format!(r#"{{"address":"{}","protocol":"{}"}}"#, instance.address, self.protocol);
        self.etcd.put(&self.key(&instance), value).await;
        self.instances.push_back(instance);
    }

    fn key(&self, instance: &Upstream) -> String {
        format!("/pillion/{}/{}", self.service, instance.name)
    }

    /// Until it is told to end. Returns how many requests each instance took that has left.
    async fn run(mut self, mut end: watch::Receiver<bool>) -> Vec<u64> {
        // Whoever left before that could not have taken a share.
        until("load on all instances", async || self.instances.iter().all(|instance| instance.requests() > 0)).await;
        let (mut leaving, mut ticks) = (JoinSet::new(), interval(PERIOD));
        ticks.tick().await;
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                _ = end.changed() => return leaving.join_all().await,
            }
            let oldest = self.instances.pop_front().unwrap();
            self.etcd.delete(&self.key(&oldest)).await;
            leaving.spawn(async move {
                sleep(NOTICE).await;
                let requests = oldest.requests();
                oldest.leave().await;
                requests
            });
            self.join().await;
        }
    }
}

#[tokio::test]
async fn instances_leave_and_join_every_second_and_no_request_fails() {
    let etcd = EtcdServer::start(&program("etcd")).await;
    let web = Churn::start(&etcd, "web", "http1").await;
    let api = Churn::start(&etcd, "api", "http2").await;
    let mut pillion = Pillion::with_registry(&format!("etcd://127.0.0.1:{}", etcd.port)).await;
    let egress = pillion.egress();
    for service in ["web", "api"] {
        until_answer(egress, service, |status, _| status == 200).await;
    }
    let (end, ended) = watch::channel(false);
    let load = async {
        let outcomes = tokio::join!(wrk(egress, "web", TIME), h2load(egress, "api", TIME));
        end.send_replace(true);
        outcomes
    };
    let ((http1, http2), web, api) = tokio::join!(load, web.run(ended.clone()), api.run(ended));
    let retries = pillion.metric("pillion_retries_total").await;
    let swaps = pillion.metric("pillion_table_swaps_total").await;
    println!(
        "churn: wrk {} and h2load {} requests in {TIME:?}; {swaps} tables, {retries} retries",
        http1.done, http2.done
    );
    http1.assert_good();
    http2.assert_good();
    for (service, requests) in [("web", web), ("api", api)] {
        assert!(requests.len() >= INSTANCES, "{service}: {} left", requests.len());
        assert!(requests.iter().all(|count| *count > 0), "{service}: every one took its share: {requests:?}");
    }
    pillion.signal("TERM");
    assert_eq!(pillion.ended().await, 0);
}
