//! `pillion rollout`: how far canaries are, and changing that by hand.

use super::client::{self, Align, Asking, Table, age, printable};
use crate::{
    admin::view::{RolloutState, Rollouts, ServiceRollout, StepRequests, StoreState},
    rollout::{At, Phase},
};
use anyhow::bail;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use std::{fmt::Write, time::Duration};

/// Show how far rollouts are; start, pause, resume, promote or abort one.
///
/// What is asked for goes to the registry's store, so it is in force in every pillion, whichever is asked.
#[derive(Debug, Clone, clap::Args)]
pub struct Rollout {
    #[command(flatten)]
    asking: Asking,
    /// What to do.
    #[arg(value_enum, default_value_t = What::Status)]
    what: What,
    /// Which service's rollout. To look, none is needed.
    #[arg(required_if_eq_any(Self::commands()))]
    service: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum What {
    /// Look, at one or at all of them.
    Status,
    /// Begin it: where it begins by hand only, or once more after it was taken back.
    Start,
    /// Let it stay at its share. A bad canary is taken back all the same.
    Pause,
    /// Go on after a pause.
    Resume,
    /// Go to the next step now, whatever the figures say.
    Promote,
    /// Take the canary back now.
    Abort,
}

impl Rollout {
    fn commands() -> [(&'static str, &'static str); 5] {
        crate::rollout::Command::ALL.map(|command| ("what", command.as_str()))
    }

    pub fn run(self) -> anyhow::Result<()> {
        client::run(self.output())
    }

    async fn output(self) -> anyhow::Result<String> {
        match (self.what, &self.service) {
            (What::Status, service) => self.status(service.as_deref()).await,
            (_, None) => bail!("expected the name of a service"),
            (what, Some(service)) => self.command(what, service).await,
        }
    }

    async fn status(&self, service: Option<&str>) -> anyhow::Result<String> {
        let answer = self.asking.get("/api/rollouts").await?.good()?;
        let mut rollouts: Rollouts = answer.read()?;
        let Some(service) = service else {
            return Ok(if self.asking.json { answer.text() } else { list(&rollouts) });
        };
        let names: Vec<_> = rollouts.services.iter().map(|rollout| rollout.service.clone()).collect();
        let Some(at) = names.iter().position(|name| name == service) else {
            let known =
                if names.is_empty() { "none has one".into() } else { format!("these have: {}", names.join(", ")) };
            bail!("`{}` has no rollout; {known}", printable(service));
        };
        let (rollout, failing) = (rollouts.services.swap_remove(at), failing(&rollouts));
        let text = if self.asking.json {
            serde_json::to_string_pretty(&rollout)? + "\n"
        } else {
            one(&rollout, failing.is_none())
        };
        Ok(failing.filter(|_| !self.asking.json).unwrap_or_default() + &text)
    }

    async fn command(&self, what: What, service: &str) -> anyhow::Result<String> {
        let word = clap::ValueEnum::to_possible_value(&what).map(|value| value.get_name().to_owned());
        let path =
            format!("/api/rollouts/{}/{}", utf8_percent_encode(service, NON_ALPHANUMERIC), word.unwrap_or_default());
        let answer = self.asking.post(&path).await?.good()?;
        if self.asking.json {
            return Ok(answer.text());
        }
        let state: RolloutState = answer.read()?;
        let last = state.decisions.last().map(|decision| printable(&decision.to_string())).unwrap_or_default();
        Ok(format!("the rollout of {} {last}\n", printable(service)))
    }
}

fn list(rollouts: &Rollouts) -> String {
    if rollouts.services.is_empty() {
        return "no service has a rollout: it is `services.NAME.rollout` in the config\n".into();
    }
    let failing = failing(rollouts);
    let mut table = Table::new([
        ("SERVICE", Align::Left),
        ("RELEASE", Align::Left),
        ("PHASE", Align::Left),
        ("CANARY", Align::Right),
        ("FOR", Align::Right),
        ("BY", Align::Left),
        ("LAST", Align::Left),
    ]);
    for ServiceRollout { service, release, leading, in_force, state, refused, .. } in &rollouts.services {
        let last = state.as_ref().and_then(|state| state.decisions.last());
        let by = if *leading { "this one".to_owned() } else { last.map(|last| last.by.clone()).unwrap_or_default() };
        table.row([
            service.clone(),
            state.as_ref().map_or(release, |state| &state.release).clone(),
            match state {
                None if failing.is_some() => "not known".to_owned(),
                None => "not begun".to_owned(),
                Some(state) if *in_force => phase(&state.phase).to_owned(),
                Some(state) => format!("{}, not in force here", phase(&state.phase)),
            },
            state.as_ref().map(|state| format!("{} %", state.percent)).unwrap_or_default(),
            state.as_ref().map(since).unwrap_or_default(),
            by,
            match refused {
                Some(refused) => format!("the state in the store cannot be used: {refused}"),
                None => last.map(|last| last.verdict.to_string()).unwrap_or_default(),
            },
        ]);
    }
    failing.unwrap_or_default() + &table.print()
}

fn one(rollout: &ServiceRollout, is_known: bool) -> String {
    let ServiceRollout {
        service,
        canary,
        baseline,
        release,
        steps,
        leading,
        in_force,
        from_disk,
        state,
        refused,
        cool_down,
        ..
    } = rollout;
    let mut out = format!(
        "{}: {} against {}, release {}\n",
        printable(service),
        printable(canary),
        printable(baseline),
        printable(release)
    );
    if let Some(refused) = refused {
        let _ = writeln!(out, "the state in the store cannot be used: {}", printable(refused));
    }
    let Some(state) = state else {
        out.push_str(match is_known {
            true => "not begun; the splits are as they are written\n",
            false => "not known yet; until then the splits are as they are written\n",
        });
        return out;
    };
    let steps: Vec<_> = steps.iter().map(f64::to_string).collect();
    let _ =
        writeln!(out, "{}, {} % for {}, of {} %", phase(&state.phase), state.percent, since(state), steps.join(", "));
    if let Phase::RolledBack { at, by_hand } = state.phase {
        out.push_str(&next(rollout, state.attempt, cool_down.saturating_sub(At::now().since(at)), by_hand));
    }
    let StepRequests { canary: of_canary, baseline: of_baseline } = state.requests;
    let watched = age(state.watched.as_secs_f64());
    let _ = writeln!(
        out,
        "looked at for {watched}: {of_canary} requests of {}, {of_baseline} of {}",
        printable(canary),
        printable(baseline)
    );
    if !in_force {
        let of = printable(&state.release);
        let _ = writeln!(
            out,
            "not in force here: it is of release {of}, so the splits are as they are written; `pillion rollout start` begins {}",
            printable(release)
        );
    }
    if *from_disk {
        out.push_str("read from the disk; the store has not confirmed it yet\n");
    }
    if let Some(error) = &state.last_error {
        let _ = writeln!(out, "no figures: {}", printable(error));
    }
    if *leading {
        out.push_str("this pillion decides\n");
    }
    out.push('\n');
    for decision in &state.decisions {
        let _ = writeln!(out, "{}  {}  ({})", decision.at, printable(&decision.to_string()), printable(&decision.by));
    }
    out
}

/// How long the canary has had its share.
fn since(state: &RolloutState) -> String {
    let since = match state.phase {
        Phase::RolledBack { at, .. } => at,
        _ => state.step_since,
    };
    age(At::now().since(since).as_secs_f64())
}

/// What comes after it was taken back, where nothing may begin for another `left`.
fn next(rollout: &ServiceRollout, attempt: u32, left: Duration, by_hand: bool) -> String {
    let (attempts, service) = (rollout.attempts, printable(&rollout.service));
    let when = match left.is_zero() {
        true => "now".to_owned(),
        false => format!("in {}", age(left.as_secs_f64())),
    };
    match by_hand || attempt >= attempts {
        true => format!(
            "attempt {attempt} of {attempts}; not tried again by itself: `pillion rollout start {service}` can begin it {when} (cool_down)\n"
        ),
        false => format!(
            "attempt {attempt} of {attempts}; the next can begin {when} (cool_down), once the canary takes requests\n"
        ),
    }
}

/// While the store fails, what is shown may be old.
fn failing(rollouts: &Rollouts) -> Option<String> {
    let store = rollouts.store.as_ref().filter(|store| store.state != StoreState::Answering)?;
    let failure = store.failure.as_deref().unwrap_or("it has not answered yet");
    Some(format!("the store {} fails, and all stays as it is: {}\n\n", printable(&store.registry), printable(failure)))
}

fn phase(phase: &Phase) -> &'static str {
    match phase {
        Phase::Running => "running",
        Phase::Paused => "paused",
        Phase::RolledBack { .. } => "rolled-back",
        Phase::Done => "done",
    }
}
