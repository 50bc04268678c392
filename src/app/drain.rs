//! The end, in order and under one deadline: callers hear that the application leaves while everything still works, then
//! nothing new comes in, then requests in progress finish. docs/lifecycle.md tells it to users.

use super::{notify::Notifier, workers::Workers};
use crate::{
    config::{self, human},
    drain::{Asked, Drain, End, Step},
    telemetry::{Telemetry, metrics::Traffic},
};
use futures_util::future::BoxFuture;
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until, timeout, timeout_at},
};

/// How often it is looked whether requests are in flight.
const LOOK: Duration = Duration::from_millis(20);
/// Calls that an application makes one after the other have gaps. After so long without any, no more are expected.
const QUIET: Duration = Duration::from_millis(500);
/// Idle connections are told to go and do so. A peer that does not even hear it is left alone after so long.
const DEAF: Duration = Duration::from_secs(1);
/// How long requests that are cut off may take to be counted and logged.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// What ends, and how.
pub struct Course {
    pub settings: config::Drain,
    pub drain: Arc<Drain>,
    pub telemetry: Arc<Telemetry>,
    pub notifier: Arc<Notifier>,
    /// Takes the local application out of its registries; nothing where the config registers none.
    pub leaving: Option<BoxFuture<'static, ()>>,
    /// Whether it is in any of them.
    pub listed: bool,
    /// The words to listeners that they are to close.
    pub inbound: Vec<watch::Sender<bool>>,
    pub outbound: Vec<watch::Sender<bool>>,
}

impl Course {
    /// Carries it out, once it was asked for.
    pub async fn run(mut self, workers: &mut Workers) {
        let asked = self.drain.asked(End::Drain).await;
        self.notifier.stopping(&format!("stopping, asked by {}", asked.by));
        let timeout = human::format(asked.timeout());
        tracing::info!("stopping, asked by {}; what is in progress may end within {timeout}", asked.by);
        let serves_others = self.leaving.is_some() || !self.inbound.is_empty();
        if let Some(leaving) = self.leaving.take() {
            self.say_goodbye(&asked, leaving).await;
        }
        self.let_it_spread(&asked).await;
        close(&self.inbound);
        if serves_others || self.settings.wait_for_app {
            self.let_the_app_finish(&asked).await;
        }
        self.enter(Step::Close);
        close(&self.outbound);
        let quiet = until_quiet(|| self.traffic(), DEAF);
        let in_time = tokio::select! {
            () = workers.finish() => true,
            () = quiet => true,
            () = sleep_until(asked.deadline) => false,
        };
        if !in_time {
            self.cut(workers).await;
        }
        tracing::info!("stopped after {}", rounded(asked.at.elapsed()));
    }

    /// Until no registry has the application any more. Callers still reach it.
    async fn say_goodbye(&self, asked: &Asked, leaving: BoxFuture<'static, ()>) {
        self.enter(Step::Deregister);
        // A registry that does not answer must not take the time of the requests.
        let enough = asked.deadline - asked.timeout() / 2;
        if timeout_at(enough, leaving).await.is_err() {
            tracing::warn!("not every registry has confirmed that the application is gone; its entries expire there");
        }
    }

    /// Until callers know that the application leaves. They still reach it meanwhile. Those of an inbound listener may hear of it
    /// where pillion has no part in it: Kubernetes takes a pod that ends out of its EndpointSlices.
    async fn let_it_spread(&self, asked: &Asked) {
        let has_callers = self.listed || !self.inbound.is_empty();
        let spread = self.settings.spread.min(asked.timeout() / 2);
        if !has_callers || spread.is_zero() || asked.end == End::Quit {
            return;
        }
        self.enter(Step::Spread);
        tokio::select! {
            () = sleep(spread) => {}
            _ = self.drain.asked(End::Quit) => {}
        }
    }

    /// The application may still need outbound connections, new ones included, for what it works on. That it does not is
    /// seen by that nothing is asked for, or it is said. Where neither can be expected this is left out: an application that
    /// serves nobody could go on for ever.
    async fn let_the_app_finish(&self, asked: &Asked) {
        self.enter(Step::Finish);
        let done = async {
            if self.settings.wait_for_app {
                std::future::pending().await
            }
            until_quiet(|| self.traffic(), QUIET).await
        };
        // One that never stops asking is told to go in time, so that its connections end between two requests.
        let last_call = asked.deadline - (asked.timeout() / 10).min(DEAF);
        tokio::select! {
            () = done => {}
            _ = self.drain.asked(End::Quit) => {}
            () = sleep_until(last_call) => {}
        }
    }

    /// The time is up.
    async fn cut(&self, workers: &Workers) {
        let (count, services) = (self.traffic().in_flight, self.telemetry.metrics.in_progress());
        self.enter(Step::Cut);
        workers.cut();
        let gone = async {
            while self.traffic().in_flight > 0 {
                sleep(LOOK).await;
            }
        };
        let _ = timeout(LAST_WORDS, gone).await;
        if count > 0 {
            tracing::warn!("cut off {count} requests that were in progress at the deadline: {services}");
        }
    }

    fn traffic(&self) -> Traffic {
        self.telemetry.metrics.traffic()
    }

    fn enter(&self, step: Step) {
        let before = self.drain.enter(step);
        self.telemetry.metrics.draining.set(step as i64);
        let (requests, before) = (self.traffic().in_flight, rounded(before));
        tracing::info!(requests, "stopping: {} (the step before took {before})", step.what());
        self.notifier.status(&format!("stopping: {}", step.what()));
    }
}

fn close(listeners: &[watch::Sender<bool>]) {
    for listener in listeners {
        listener.send_replace(true);
    }
}

/// Returns once no request was in flight for `quiet`, and none has come and gone.
async fn until_quiet(traffic: impl Fn() -> Traffic, quiet: Duration) {
    let (mut before, mut since) = (traffic(), Instant::now());
    while since.elapsed() < quiet {
        sleep(LOOK).await;
        let now = traffic();
        if now.in_flight > 0 || now.ended != before.ended {
            since = Instant::now();
        }
        before = now;
    }
}

fn rounded(time: Duration) -> String {
    human::format(Duration::from_millis(u64::try_from(time.as_millis()).unwrap_or(u64::MAX)))
}

#[cfg(test)]
mod tests;
