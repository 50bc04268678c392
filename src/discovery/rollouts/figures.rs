//! What a rollout is judged by: this pillion's own counters of two subsets, or the fleet's in Prometheus, and queries.

use super::prometheus::Prometheus;
use crate::{
    config::{QueryGuard, Rollout, RolloutEvidence},
    rollout::{Look, Side},
    telemetry::{
        Telemetry,
        metrics::{ServiceMetrics, SubsetMetrics},
    },
};
use futures_util::future::join_all;
use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};
use tokio::time::{Instant, sleep};

pub struct Figures {
    own: Counters,
    evidence: RolloutEvidence,
    prometheus: Option<Prometheus>,
    queries: Vec<QueryGuard>,
}

/// This pillion's own.
struct Counters {
    /// Without it, those of the subsets would begin anew when nobody else holds it.
    _service: Arc<ServiceMetrics>,
    canary: Arc<SubsetMetrics>,
    baseline: Arc<SubsetMetrics>,
    seen: [Side; 2],
    /// How many requests there were since then.
    recent: u64,
    since: Instant,
}

impl Figures {
    /// Fails if the server's TLS files cannot be used.
    pub fn new(service: &str, rollout: &Rollout, telemetry: &Telemetry) -> Result<Self, String> {
        let metrics = telemetry.metrics.service(service);
        let [canary, baseline] = [&rollout.canary, &rollout.baseline].map(|subset| metrics.subset(subset));
        let seen = [&canary, &baseline].map(side);
        let prometheus = rollout.prometheus.as_ref();
        let prometheus = prometheus.map(|config| Prometheus::new(config, service, rollout)).transpose()?;
        let own = Counters { _service: metrics, canary, baseline, seen, recent: 0, since: Instant::now() };
        Ok(Self { own, evidence: rollout.evidence, prometheus, queries: rollout.queries.clone() })
    }

    /// Whoever sees no requests cannot judge by them, so it does not want the lock.
    pub async fn until_there_are_some(&mut self, interval: Duration) {
        let before = self.own.now();
        while self.evidence == RolloutEvidence::Own && self.own.now() == before {
            sleep(interval).await;
        }
        (self.own.recent, self.own.since) = (0, Instant::now());
    }

    /// Whether a whole `hold` brought fewer requests of both sides together than each of them must have had.
    pub fn are_few(&mut self, hold: Duration, min_requests: u64) -> bool {
        if self.evidence == RolloutEvidence::Prometheus || self.own.since.elapsed() < hold {
            return false;
        }
        let few = self.own.recent < min_requests;
        (self.own.recent, self.own.since) = (0, Instant::now());
        few
    }

    pub fn canary_can_be_tried(&self) -> bool {
        can_be_tried(&self.own.canary)
    }

    /// What came up to now does not count.
    pub fn start(&mut self) {
        self.own.take();
        if let Some(prometheus) = &mut self.prometheus {
            prometheus.start();
        }
    }

    /// What came since the last time.
    pub async fn look(&mut self) -> Result<Look, String> {
        let [mut canary, mut baseline] = self.own.take();
        let canary_is_gone = !is_there(&self.own.canary);
        let Some(prometheus) = &mut self.prometheus else {
            return Ok(Look { canary, baseline, queries: Vec::new(), canary_is_gone });
        };
        if self.evidence == RolloutEvidence::Prometheus {
            [canary, baseline] = prometheus.sides().await?;
        }
        let queries = join_all(self.queries.iter().map(|guard| prometheus.number(&guard.query))).await;
        Ok(Look { canary, baseline, queries, canary_is_gone })
    }
}

impl Counters {
    fn now(&self) -> [Side; 2] {
        [&self.canary, &self.baseline].map(side)
    }

    /// What came since the last time.
    fn take(&mut self) -> [Side; 2] {
        let now = self.now();
        let [canary, baseline] = &self.seen;
        let new = [now[0].since(canary), now[1].since(baseline)];
        self.recent += new.iter().map(|side| side.requests).sum::<u64>();
        self.seen = now;
        new
    }
}

/// Whether anybody could answer. Where nobody calls the service through this pillion, it does not know.
fn is_there(subset: &SubsetMetrics) -> bool {
    subset.available.get() != 0
}

/// Whether a rollout could begin with it: somebody could answer, or would be asked how they are. A canary without a share
/// gets no request that could find out, so one that was kept out when it was taken back would stay out for ever.
pub fn can_be_tried(subset: &SubsetMetrics) -> bool {
    is_there(subset) || subset.probe_is_due.load(Relaxed)
}

/// Requests that went elsewhere, because nobody in it could take them, count as failed: a version that the breaker keeps out
/// would otherwise look better than one that still answers now and then.
fn side(subset: &Arc<SubsetMetrics>) -> Side {
    let (requests, failures) = subset.red.totals();
    let elsewhere = subset.fallbacks.get();
    Side { requests: requests + elsewhere, failures: failures + elsewhere, latencies: subset.red.latencies() }
}
