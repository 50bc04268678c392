//! The local application behind each inbound listener: a cluster of one endpoint, which the config names and no registry
//! changes, so that requests are carried to it as to any other.

#[cfg(test)]
mod tests;

use crate::{
    cluster::{
        Cluster, Endpoint,
        check::{self, Change, Last, State},
        table::{self, Settings},
    },
    config::{App, AppProtocol, AppSource, Config},
    registry::{Address, Instance},
    telemetry::{
        Telemetry,
        labels::CheckResult,
        metrics::{InboundMetrics, Metrics},
    },
};
use arc_swap::ArcSwap;
use std::{collections::BTreeMap, future::pending, sync::Arc};
use tokio::{task::JoinSet, time::Instant};

/// A local application, for one listener.
#[derive(Debug)]
pub struct LocalApp {
    pub listener: Arc<str>,
    pub cluster: Arc<Cluster>,
    pub metrics: Arc<InboundMetrics>,
}

/// The local applications that there are now, for those who want to know. In the order of their listeners' names.
pub type Handle = Arc<ArcSwap<Vec<Arc<LocalApp>>>>;

/// All local applications. They and what is known of them stay over a reload.
pub struct LocalApps {
    running: BTreeMap<String, Running>,
    shown: Handle,
    telemetry: Arc<Telemetry>,
}

struct Running {
    app: Arc<LocalApp>,
    /// Its checks. They end with it.
    _checks: JoinSet<()>,
}

impl LocalApps {
    pub fn new(telemetry: Arc<Telemetry>) -> Self {
        Self { running: BTreeMap::new(), shown: Handle::default(), telemetry }
    }

    pub fn handle(&self) -> Handle {
        self.shown.clone()
    }

    /// The application behind `listener`, if that is an inbound one.
    pub fn get(&self, listener: &str) -> Option<Arc<LocalApp>> {
        self.running.get(listener).map(|running| running.app.clone())
    }

    /// Puts another config in force.
    pub fn apply(&mut self, config: &Config) {
        let mut before = std::mem::take(&mut self.running);
        for listener in &config.listeners {
            let Some(settings) = &listener.app else { continue };
            let service = config.node.service.as_deref().unwrap_or(&listener.name);
            // Under another name it has other numbers.
            let known = before.remove(&listener.name).filter(|known| *known.app.cluster.name == *service);
            let running = known.unwrap_or_else(|| {
                let app = Arc::new(LocalApp::new(&listener.name, service, settings, &self.telemetry.metrics));
                let mut checks = JoinSet::new();
                checks.spawn(check(app.clone()));
                Running { app, _checks: checks }
            });
            running.app.configure(settings);
            self.running.insert(listener.name.clone(), running);
        }
        self.shown.store(Arc::new(self.running.values().map(|running| running.app.clone()).collect()));
    }
}

impl LocalApp {
    fn new(listener: &str, service: &str, app: &App, metrics: &Metrics) -> Self {
        // Nothing is ever to be reviewed: nothing takes the endpoint out.
        let cluster = Cluster::new(service, settings(app), metrics.app(service, listener), Arc::default());
        let cluster = Arc::new(cluster);
        let checked = cluster.clone();
        let healthy = move || {
            let snapshot = checked.load();
            snapshot.settings.service.health_check.as_ref()?;
            Some(snapshot.endpoints.iter().all(|endpoint| is_well(endpoint)))
        };
        Self { listener: listener.into(), metrics: metrics.inbound(listener, healthy), cluster }
    }

    fn configure(&self, app: &App) {
        let before = self.cluster.load();
        let new = settings(app);
        let same = before.settings.service == new.service
            && before.settings.same_protocol == new.same_protocol
            && before.settings.keeps_source == new.keeps_source;
        let settings = if same { before.settings.clone() } else { new };
        drop(before);
        let instance = Instance::new(app.address.to_string(), Address::Ip(app.address));
        self.cluster.publish(&settings, &[instance], table::State::Known);
    }

    /// Why it is not to be sent traffic, as far as its checks tell; nothing where there are none.
    pub fn not_ready(&self) -> Option<String> {
        let snapshot = self.cluster.load();
        snapshot.settings.service.health_check.as_ref()?;
        let endpoint = snapshot.endpoints.iter().find(|endpoint| !is_well(endpoint))?;
        let checked = endpoint.live.checked();
        let why = match checked.as_ref().and_then(|checked| checked.last.as_ref()) {
            Some(Last { failure: Some(failure), .. }) => format!("fails its checks: {failure}"),
            Some(_) => "has not passed enough checks since it failed".into(),
            None => "has not been checked yet".into(),
        };
        Some(format!("the application at {} (listener `{}`) {why}", endpoint.instance.address, self.listener))
    }
}

fn settings(app: &App) -> Arc<Settings> {
    let same_protocol = app.protocol == Some(AppProtocol::Same);
    let keeps_source = app.source == AppSource::Client;
    Arc::new(Settings { service: app.service(), same_protocol, keeps_source, ..Settings::default() })
}

/// Whether its checks say that it can serve. One failure after it was well says little.
fn is_well(endpoint: &Endpoint) -> bool {
    let state = endpoint.live.checked().map_or(State::Unknown, |checked| checked.state);
    matches!(state, State::Healthy | State::Suspect { .. })
}

/// Checks the application as its settings say, for ever.
async fn check(app: Arc<LocalApp>) {
    let mut published = app.cluster.published();
    loop {
        let snapshot = app.cluster.load().clone();
        let checking = async {
            let Some(endpoint) = snapshot.endpoints.first() else { return pending().await };
            match &snapshot.settings.service.health_check {
                Some(check) => {
                    let tell = |change, last: &Last| app.tell(endpoint, change, last);
                    check::repeat(&app.cluster.name, endpoint, &snapshot.settings, check, tell).await
                }
                None => {
                    check::forget(&endpoint.live, Instant::now());
                    pending().await
                }
            }
        };
        tokio::select! {
            // It fails when the cluster is gone, and we hold it.
            Ok(()) = published.changed() => {}
            never = checking => match never {},
        }
    }
}

impl LocalApp {
    /// Counts a check's result, and logs what it changes.
    fn tell(&self, endpoint: &Endpoint, Change { from, to }: Change, last: &Last) {
        let result = if last.failure.is_none() { CheckResult::Passed } else { CheckResult::Failed };
        self.cluster.metrics.health_checks.inc(result as usize);
        let (listener, address) = (&self.listener, &endpoint.instance.address);
        let failure = last.failure.as_ref().map(ToString::to_string).unwrap_or_default();
        match (from, to) {
            (State::Unhealthy { .. }, State::Unhealthy { .. }) => {}
            (_, State::Unhealthy { .. }) => {
                tracing::warn!(%listener, %address, failure, "the application fails its checks; not ready");
            }
            (State::Unknown | State::Unhealthy { .. }, State::Healthy) => {
                tracing::info!(%listener, %address, "the application passes its checks");
            }
            (_, State::Suspect { .. }) => tracing::debug!(%listener, %address, failure, "suspect"),
            _ => {}
        }
    }
}
