//! `pillion rollout`: how far canaries are, and changing that by hand.

use super::client::{self, Align, Asking, Table, age, printable};
use crate::{
    admin::view::{RolloutState, Rollouts, ServiceRollout, StepRequests, StoreState},
    discovery::WaitingFor,
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
        let (service, release) = (printable(service), printable(&state.release));
        let stays = if state.phase == Phase::Paused && what == What::Promote { "; it stays paused" } else { "" };
        Ok(format!("{service}: the rollout of {release} {last}{stays}\n"))
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
        ("DECIDES", Align::Left),
        ("LAST", Align::Left),
    ]);
    for rollout in &rollouts.services {
        let ServiceRollout { service, release, canary, in_force, state, waiting_for, refused, .. } = rollout;
        let last = state.as_ref().and_then(|state| state.decisions.last());
        table.row([
            service.clone(),
            state.as_ref().map_or(release, |state| &state.release).clone(),
            match state {
                None if failing.is_some() => "not known".to_owned(),
                None => "not begun".to_owned(),
                Some(state) if *in_force => phase(&state.phase).to_owned(),
                Some(state) => format!("{}, not in force here", phase(&state.phase)),
            },
            state.as_ref().map(|state| format!("{} %", rollout.percent.unwrap_or(state.percent))).unwrap_or_default(),
            state.as_ref().map(since).unwrap_or_default(),
            decides(rollout, failing.is_none()),
            match (refused, waiting_for) {
                (Some(refused), _) => format!("the state in the store cannot be used: {refused}"),
                (None, Some(what)) => format!("{release} {}", waits(*what, canary)),
                (None, None) => last.map(|last| last.verdict.to_string()).unwrap_or_default(),
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
        in_force,
        from_disk,
        state,
        unattended,
        waiting_for,
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
    if let Some(what) = waiting_for {
        let waits = waits(*what, &printable(canary));
        match rollout.percent {
            Some(percent) => _ = writeln!(out, "{} {waits}; it keeps the {percent} % that it had", printable(release)),
            None => _ = writeln!(out, "not begun; the splits are as they are written: it {waits}"),
        }
    }
    let Some(state) = state else {
        if waiting_for.is_none() {
            out.push_str(match is_known {
                true => "not begun; the splits are as they are written\n",
                false => "not known yet; until then the splits are as they are written\n",
            });
        }
        return out;
    };
    let steps: Vec<_> = steps.iter().map(f64::to_string).collect();
    let _ =
        writeln!(out, "{}, {} % for {}, of {} %", phase(&state.phase), state.percent, since(state), steps.join(", "));
    let left = |at: Option<At>| at.map_or(Duration::ZERO, |at| cool_down.saturating_sub(At::now().since(at)));
    match state.phase {
        Phase::RolledBack { at } => {
            let again = state.attempt < rollout.attempts;
            let _ = writeln!(out, "attempt {}; {}", state.attempt, next(rollout, again, left(Some(at))));
        }
        Phase::Aborted { taken_back } => {
            let _ = writeln!(out, "{}", next(rollout, false, left(taken_back)));
        }
        Phase::Running | Phase::Paused | Phase::Done => {}
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
        let splits = match rollout.percent {
            Some(percent) => {
                format!("which keeps the {percent} % that it had when {} took its place", printable(&state.release))
            }
            None => "of which the state says nothing, so the splits are as they are written".to_owned(),
        };
        let (of, release, service) = (printable(&state.release), printable(release), printable(service));
        let _ = writeln!(out, "not in force here: it is of release {of}, and the config here has {release}, {splits}");
        if *waiting_for != Some(WaitingFor::Config) {
            let _ = writeln!(out, "`pillion rollout start {service}` begins {release}");
        }
    }
    if *from_disk {
        out.push_str("read from the disk; the store has not confirmed it yet\n");
    }
    if let Some(error) = &state.last_error {
        let _ = writeln!(out, "no figures: {}", printable(error));
    }
    let ago = age(At::now().since(state.looked_at).as_secs_f64());
    if *unattended {
        let _ = writeln!(
            out,
            "NOBODY DECIDES, and the share stays: the last to look was {}, {ago} ago. With `evidence: own` a pillion decides that has requests for the service, and its config must have this release",
            printable(&state.by)
        );
    } else if matches!(state.phase, Phase::Running | Phase::Paused) {
        let _ = writeln!(out, "decided by {}", decides(rollout, is_known));
    }
    out.push('\n');
    for decision in &state.decisions {
        let (release, by) = (printable(&decision.release), printable(&decision.by));
        let _ = writeln!(out, "{}  {release}  {}  ({by})", decision.at, printable(&decision.to_string()));
    }
    out
}

/// How long the canary has had its share.
fn since(state: &RolloutState) -> String {
    let since = match state.phase {
        Phase::RolledBack { at } | Phase::Aborted { taken_back: Some(at) } => at,
        _ => state.step_since,
    };
    age(At::now().since(since).as_secs_f64())
}

/// What comes after it was taken back, where nothing may begin for another `left`. `again`: it is tried by itself.
fn next(rollout: &ServiceRollout, again: bool, left: Duration) -> String {
    let (attempts, service) = (rollout.attempts, printable(&rollout.service));
    let when = match left.is_zero() {
        true => String::new(),
        false => format!(" in {} (cool_down)", age(left.as_secs_f64())),
    };
    match again {
        true => format!("the next of {attempts} can begin{when}, once the canary takes requests"),
        false => format!("not tried again by itself; `pillion rollout start {service}` can begin it{when}"),
    }
}

/// Who looks at one that is in progress. `is_known`: what the store says is.
fn decides(rollout: &ServiceRollout, is_known: bool) -> String {
    let live = |state: &&RolloutState| matches!(state.phase, Phase::Running | Phase::Paused);
    let Some(state) = rollout.state.as_ref().filter(live) else { return String::new() };
    match (rollout.leading, rollout.unattended) {
        (true, _) => "this one".to_owned(),
        (false, true) => "nobody".to_owned(),
        (false, false) if is_known => printable(&state.by),
        (false, false) => "not known".to_owned(),
    }
}

/// What a release waits for that has not begun.
fn waits(what: WaitingFor, canary: &str) -> String {
    match what {
        WaitingFor::Config => "was rolled out before that, so the config here may be out of date".to_owned(),
        WaitingFor::Hand => "begins by hand: `pillion rollout start`".to_owned(),
        WaitingFor::Canary => format!("waits for an endpoint of `{canary}` that can take requests"),
        WaitingFor::Requests => "waits for requests: none came through this pillion".to_owned(),
        WaitingFor::Decider => "waits for the pillion that decides to have it in its config, too".to_owned(),
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
        Phase::Aborted { .. } => "aborted",
        Phase::Done => "done",
    }
}
