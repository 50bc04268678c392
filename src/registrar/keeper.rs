//! Keeps one instance of ours in one registry: puts the entry in, renews it, looks whether it is still there, takes it out.

use super::Health;
use crate::{
    registry::{Entry, Registration, RegistryError, Renewal},
    telemetry::{labels::RegistrationState as State, metrics::RegistrationMetrics},
};
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until, timeout},
};

/// Renewed so often per TTL: two may fail.
const RENEWALS: u32 = 3;

/// Waits after failures grow by half each time, from the first to the TTL's third, within these bounds.
const FIRST_WAIT: Duration = Duration::from_millis(200);
const LONGEST_WAIT: Duration = Duration::from_secs(30);
const GROWTH: f64 = 1.5;

/// For one call, whatever limits the backend has.
const CALL: Duration = Duration::from_secs(15);

/// How long a call goes on although the entry is to be taken out.
const GRACE: Duration = Duration::from_secs(1);

/// What is wanted of the entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// It is not there yet, or not any more.
    Absent,
    Fit,
    /// There, as not fit to serve, where the registry can hold that.
    Unfit,
    /// Taken out for good.
    Gone,
}

/// What is known of the entry, for whoever asks.
#[derive(Debug, Clone)]
pub struct Kept {
    pub state: State,
    /// The last failure since it was last right.
    pub failure: Option<RegistryError>,
    /// When it was last put or renewed.
    pub renewed: Option<Instant>,
}

impl Kept {
    /// Whether the registry may tell others of the entry.
    pub fn is_listed(&self) -> bool {
        self.renewed.is_some() && !matches!(self.state, State::Waiting | State::Unhealthy | State::Gone)
    }
}

impl Default for Kept {
    fn default() -> Self {
        Self { state: State::Waiting, failure: None, renewed: None }
    }
}

/// Keeps one entry.
pub struct Keeper {
    pub registration: Arc<Registration>,
    /// The registry's name.
    pub registry: String,
    pub entry: Box<dyn Entry>,
    pub wanted: watch::Receiver<Wanted>,
    /// What the checks have shown.
    pub health: watch::Receiver<Health>,
    pub kept: watch::Sender<Kept>,
    pub metrics: Arc<RegistrationMetrics>,
}

/// What to do next.
enum Step {
    Wait,
    Put(bool),
    Renew,
    Remove,
    End,
}

impl Keeper {
    /// Ends when the entry is wanted gone, and is.
    pub async fn run(mut self) {
        // As what it was put; `None` if it is not there, or not known to be.
        let mut there: Option<bool> = None;
        // Whether it may be there: an earlier run of ours may have left it, and a call that failed may have been executed.
        let mut touched = true;
        // When we last tried to put or renew it.
        let mut kept_at: Option<Instant> = None;
        let mut failures = 0;
        let mut due = Instant::now();
        loop {
            let wanted = *self.wanted.borrow_and_update();
            let step = match (wanted, there) {
                (Wanted::Gone, _) if !touched => Step::End,
                (Wanted::Gone, _) => Step::Remove,
                // What an earlier run left stays until it is known whether the application is fit to serve.
                (Wanted::Absent, _) => Step::Wait,
                (Wanted::Fit, Some(true)) => Step::Renew,
                (Wanted::Fit, _) => Step::Put(true),
                (Wanted::Unfit, Some(false)) => Step::Renew,
                (Wanted::Unfit, _) if !touched => Step::Wait,
                (Wanted::Unfit, _) if kept_at.is_some() && self.entry.shows_health() => Step::Put(false),
                (Wanted::Unfit, _) => Step::Remove,
            };
            match step {
                Step::End => return self.become_state(State::Gone),
                Step::Wait => {
                    self.become_state(if wanted == Wanted::Unfit { State::Unhealthy } else { State::Waiting });
                    if self.wanted.changed().await.is_err() {
                        return;
                    }
                    due = Instant::now();
                    continue;
                }
                Step::Renew => {}
                Step::Put(_) if self.state() != State::Failing => self.become_state(State::Registering),
                Step::Remove if wanted == Wanted::Gone => self.become_state(State::Leaving),
                Step::Put(_) | Step::Remove => {}
            }
            // Until it is time, or something else is wanted. A first attempt is due at once.
            tokio::select! {
                biased;
                changed = self.wanted.changed() => match changed {
                    Ok(()) => {
                        due = Instant::now();
                        continue;
                    }
                    Err(_) => return,
                },
                () = sleep_until(due) => {}
                // After a failure it is tried again when it is time for that.
                () = self.entry.lost(), if there.is_some() && failures == 0 => due = Instant::now(),
            }
            self.entry.explain(self.health.borrow().failure.as_deref());
            let began = Instant::now();
            if matches!(step, Step::Put(_) | Step::Renew) {
                kept_at = Some(began);
            }
            let mut watched = self.wanted.clone();
            let done = tokio::select! {
                biased;
                done = call(&self.registry, perform(&mut *self.entry, &step)) => done,
                // What is being written to a registry that hangs is wanted no more.
                () = unwanted(&mut watched, wanted) => {
                    touched = true;
                    there = None;
                    due = Instant::now();
                    continue;
                }
            };
            touched = true;
            match done {
                Ok(Done::There) => {
                    let was = there;
                    failures = 0;
                    if let Step::Put(fit) = step {
                        there = Some(fit);
                    } else {
                        self.metrics.renewals.inc();
                        let late = began.saturating_duration_since(due) + began.elapsed();
                        self.metrics.renewal_delay.set(i64::try_from(late.as_micros()).unwrap_or(i64::MAX));
                    }
                    due = began + spread(self.registration.ttl / RENEWALS, 0.9, 1.0);
                    self.is_right(there, was);
                }
                Ok(Done::Lost(why)) => {
                    self.metrics.lost.inc();
                    tracing::warn!(
                        registry = self.registry,
                        service = self.registration.service,
                        id = self.registration.instance.id,
                        "the registry lost our entry, which is put again: {why}"
                    );
                    there = None;
                    due = Instant::now();
                }
                Ok(Done::Out) => {
                    touched = false;
                    there = None;
                    failures = 0;
                    due = Instant::now();
                    self.is_out();
                }
                // It expires by itself, or there never was one.
                Err(error)
                    if wanted == Wanted::Gone && kept_at.is_none_or(|at| at.elapsed() > self.registration.ttl) =>
                {
                    self.failed(error);
                    return self.become_state(State::Gone);
                }
                Err(error) => {
                    self.failed(error);
                    if !matches!(step, Step::Renew) {
                        there = None;
                    }
                    due = Instant::now() + self.wait_after(failures);
                    failures += 1;
                }
            }
            if self.wanted.has_changed().unwrap_or(false) {
                due = Instant::now();
            }
        }
    }

    fn state(&self) -> State {
        self.kept.borrow().state
    }

    fn become_state(&self, state: State) {
        for each in State::ALL {
            self.metrics.state.set(each as usize, u64::from(each == state));
        }
        self.kept.send_if_modified(|kept| std::mem::replace(&mut kept.state, state) != state);
    }

    /// The entry is there as it should be. `was`: as what it was there before.
    fn is_right(&self, there: Option<bool>, was: Option<bool>) {
        let fit = there == Some(true);
        let Registration { service, instance, .. } = &*self.registration;
        if there != was {
            let (address, as_what) = (&instance.address, if fit { "registered" } else { "registered as unhealthy" });
            tracing::info!(registry = self.registry, service, id = instance.id, %address, "{as_what}");
        } else if self.kept.borrow().failure.is_some() {
            tracing::info!(registry = self.registry, service, id = instance.id, "the registration is renewed again");
        }
        self.kept.send_modify(|kept| {
            kept.failure = None;
            kept.renewed = Some(Instant::now());
        });
        self.become_state(if fit { State::Registered } else { State::Unhealthy });
    }

    fn is_out(&self) {
        let Registration { service, instance, .. } = &*self.registration;
        tracing::info!(registry = self.registry, service, id = instance.id, "deregistered");
        self.kept.send_modify(|kept| {
            kept.failure = None;
            kept.renewed = None;
        });
    }

    fn failed(&self, error: RegistryError) {
        self.metrics.failures.inc();
        let Registration { service, instance, .. } = &*self.registration;
        let told = self.kept.borrow().failure.as_ref().map(ToString::to_string);
        if told != Some(error.to_string()) {
            tracing::warn!(registry = self.registry, service, id = instance.id, %error, "the registration fails");
        }
        self.kept.send_modify(|kept| kept.failure = Some(error));
        if self.state() != State::Leaving {
            self.become_state(State::Failing);
        }
    }

    fn wait_after(&self, failures: i32) -> Duration {
        let most = (self.registration.ttl / RENEWALS).clamp(FIRST_WAIT, LONGEST_WAIT).as_secs_f64();
        let wait = (FIRST_WAIT.as_secs_f64() * GROWTH.powi(failures.min(50))).min(most);
        spread(Duration::from_secs_f64(wait), 0.5, 1.0)
    }
}

/// What a call came to.
enum Done {
    There,
    Lost(String),
    Out,
}

async fn perform(entry: &mut dyn Entry, step: &Step) -> Result<Done, RegistryError> {
    match step {
        Step::Put(fit) => entry.put(*fit).await.map(|()| Done::There),
        Step::Renew => entry.renew().await.map(|renewal| match renewal {
            Renewal::Kept => Done::There,
            Renewal::Lost(why) => Done::Lost(why),
        }),
        Step::Remove | Step::Wait | Step::End => entry.remove().await.map(|()| Done::Out),
    }
}

async fn call(registry: &str, call: impl Future<Output = Result<Done, RegistryError>>) -> Result<Done, RegistryError> {
    let late = |_| RegistryError::Unreachable { server: registry.into(), cause: format!("no answer within {CALL:?}") };
    timeout(CALL, call).await.map_err(late)?
}

/// Waits until the entry is to be taken out, which what is being done with it is not for; and then a little, because what is
/// under way could otherwise be executed after the removal.
async fn unwanted(wanted: &mut watch::Receiver<Wanted>, now: Wanted) {
    if matches!(now, Wanted::Absent | Wanted::Gone) {
        return std::future::pending().await;
    }
    let out = wanted.wait_for(|wanted| matches!(wanted, Wanted::Absent | Wanted::Gone));
    let is_out = out.await.is_ok();
    match is_out {
        true => sleep(GRACE).await,
        false => std::future::pending().await,
    }
}

/// `time`, times something from `least` to `most`.
fn spread(time: Duration, least: f64, most: f64) -> Duration {
    time.mul_f64(least + fastrand::f64() * (most - least))
}
