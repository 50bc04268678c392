//! What is behind inbound listeners.

use super::{EndpointDetail, Limits, errors};
use crate::{
    config::{HealthCheck, Timeouts},
    inbound::LocalApp,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use tokio::time::Instant;

/// `GET /api/inbound`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Inbound {
    pub listeners: Vec<InboundListener>,
}

/// One inbound listener, the local application behind it, and who calls that.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InboundListener {
    pub listener: String,
    /// What the application is called: `node.service`, or the listener's name.
    pub service: String,
    pub ready: bool,
    /// Why it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    pub timeouts: Timeouts,
    pub limits: Limits,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health_check: Option<HealthCheck>,
    pub in_flight: i64,
    /// Requests that pillion answered itself or cut off, by reason.
    pub errors: BTreeMap<String, u64>,
    pub app: Option<EndpointDetail>,
    /// Those that came lately.
    pub callers: Vec<Caller>,
}

/// Who calls the local application, and what came of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Caller {
    pub caller: String,
    pub requests: u64,
    /// Those of them that failed.
    pub errors: u64,
}

impl Inbound {
    pub fn new(apps: &[impl AsRef<LocalApp>], now: Instant) -> Self {
        Self { listeners: apps.iter().map(|app| InboundListener::new(app.as_ref(), now)).collect() }
    }
}

impl InboundListener {
    fn new(app: &LocalApp, now: Instant) -> Self {
        let (cluster, why) = (&app.cluster, app.not_ready());
        let snapshot = cluster.load();
        let service = &snapshot.settings.service;
        let callers = app.metrics.callers().into_iter().map(|metrics| {
            let (requests, errors) = metrics.red.totals();
            Caller { caller: metrics.caller.to_string(), requests, errors }
        });
        Self {
            listener: app.listener.to_string(),
            service: cluster.name.to_string(),
            ready: why.is_none(),
            why,
            timeouts: service.timeouts.clone(),
            limits: Limits::new(cluster),
            health_check: service.health_check.clone(),
            in_flight: cluster.metrics.in_flight.get(),
            errors: errors(&cluster.metrics),
            app: snapshot.endpoints.first().map(|endpoint| EndpointDetail::new(endpoint, now)),
            callers: callers.collect(),
        }
    }
}
