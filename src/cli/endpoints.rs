//! `pillion endpoints NAME`: where a service lives, as a running pillion sees it.

#[cfg(test)]
mod tests;

use super::{
    client::{self, Align, Asking, Table, printable},
    origin,
    services::{some, state},
};
use crate::{
    admin::view::{CheckState, Condition, Detail, EndpointDetail, Health, Refused, Retries, State, SubsetDetail},
    config::{self, FaultInjection, human},
    error::Reason,
    registry::Protocol,
};
use anyhow::anyhow;
use http::StatusCode;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use std::{
    fmt::Write,
    net::{IpAddr, SocketAddr},
};

/// List one service's endpoints with what their traffic showed.
#[derive(Debug, Clone, clap::Args)]
pub struct Endpoints {
    /// The service's name, as requests name it.
    #[arg(value_name = "SERVICE")]
    name: String,
    /// Tells also how each source does, and why what it says is in use or not.
    #[arg(long)]
    why: bool,
    #[command(flatten)]
    asking: Asking,
}

impl Endpoints {
    pub fn run(self) -> anyhow::Result<()> {
        client::run(self.output())
    }

    async fn output(self) -> anyhow::Result<String> {
        let name = utf8_percent_encode(&self.name, NON_ALPHANUMERIC);
        let answer = self.asking.get(&format!("/api/services/{name}")).await?;
        if answer.status == StatusCode::NOT_FOUND {
            let followed = answer.read::<Refused>()?.followed.unwrap_or_default();
            return Err(anyhow!(not_followed(&self.name, &followed)));
        }
        let answer = answer.good()?;
        if self.asking.json {
            return Ok(answer.text());
        }
        let detail: Detail = answer.read()?;
        let why = if self.why { format!("\n{}", origin::why(&detail.origin)) } else { String::new() };
        Ok(show(&detail) + &why)
    }
}

fn not_followed(name: &str, followed: &[String]) -> String {
    let name = printable(name);
    if followed.is_empty() {
        return format!("`{name}` is not followed, and no other service is; the first request for one starts that");
    }
    // A third of the letters may be wrong, as in the config's errors.
    let most = (name.chars().count() / 3).max(1);
    let near = followed
        .iter()
        .map(|other| (strsim::osa_distance(&name.to_ascii_lowercase(), &other.to_ascii_lowercase()), other))
        .filter(|(distance, _)| *distance <= most)
        .min_by_key(|(distance, _)| *distance)
        .map_or_else(String::new, |(_, other)| format!("; did you mean `{}`?", printable(other)));
    let names: Vec<&str> = followed.iter().map(String::as_str).collect();
    format!("`{name}` is not followed{near}\nfollowed: {}", some(&names))
}

fn show(detail: &Detail) -> String {
    let available = detail.endpoints.iter().filter(|endpoint| endpoint.is_available()).count();
    let (name, known) = (printable(&detail.name), state(detail.state));
    let mut out = format!("{name}: {known}, {available} of {} endpoints available\n", detail.endpoints.len());
    let _ = writeln!(out, "  {}", settings(detail));
    if let Some(limits) = limits(detail) {
        let _ = writeln!(out, "  {limits}");
    }
    out.push_str(&origin::lines(&detail.origin));
    detail.subsets.iter().for_each(|subset| out.push_str(&self::subset(subset)));
    if detail.panicking {
        out.push_str("  panic: too few endpoints are available, so all are used\n");
    }
    let Retries { active, made, denied, hedges, hedges_won } = &detail.retries;
    if made + denied + hedges > 0 {
        let _ = writeln!(
            out,
            "  retries: {made} made, {active} now, {denied} denied by the budget; hedges: {hedges}, {hedges_won} won"
        );
    }
    for (reason, count) in &detail.errors {
        let _ = writeln!(out, "  answered or cut off by pillion: {count} × {}", printable(reason));
    }
    out.push('\n');
    out.push_str(&if detail.endpoints.is_empty() { none(detail) } else { table(&detail.endpoints) });
    out
}

fn subset(subset: &SubsetDetail) -> String {
    let SubsetDetail { name, labels, endpoints, available, when_empty, requests, failures, fallbacks } = subset;
    let labels: Vec<String> = labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let mut out = format!("  subset {name} ({}): {available} of {endpoints} available, ", labels.join(", "));
    let _ = write!(out, "{requests} requests, {failures} failed");
    if *fallbacks > 0 {
        let _ = write!(out, ", {fallbacks} went elsewhere because it was empty");
    }
    if *available == 0 {
        let _ = write!(out, "; empty, so its requests go to: {when_empty}");
    }
    printable(&out) + "\n"
}

/// Why there is no endpoint, as far as it is known.
fn none(detail: &Detail) -> String {
    let why = match detail.state {
        State::Pending if detail.origin.sources.is_empty() => "there is no registry to ask",
        State::Pending if detail.origin.sources.iter().any(|source| source.instances.is_some()) => {
            "not all registries have answered, and none lists an instance"
        }
        State::Pending => "no registry has answered yet",
        State::Unknown => "no registry knows a service of this name",
        State::Known => "no registry lists an instance now",
    };
    format!("no endpoints: {why}\n")
}

fn settings(Detail { settings, .. }: &Detail) -> String {
    let mut words = vec![settings.policy.as_str().to_owned()];
    words.extend(settings.protocol.map(|protocol| self::protocol(protocol).to_owned()));
    words.extend(settings.tls.then(|| "TLS".to_owned()));
    words.extend(settings.registered_as.iter().map(|name| format!("registered as {}", printable(name))));
    let times = &settings.timeouts;
    let [connect, request, idle] = [times.connect, times.request, times.idle].map(human::format);
    words.push(format!("timeouts: connect {connect}, request {request}, idle {idle}"));
    words.extend(settings.fallback.iter().map(|fallback| format!("fallback: {}", printable(fallback))));
    words.extend(settings.faults.as_ref().map(faults));
    words.join(", ")
}

/// The limits and what is taken of them, if they are not the usual ones or were met.
fn limits(Detail { limits, in_flight, errors, .. }: &Detail) -> Option<String> {
    let settings = &limits.settings;
    let met = [Reason::Overloaded, Reason::ConnectionLimit].iter().any(|reason| errors.contains_key(reason.as_str()));
    if *settings == config::Limits::default() && !met && limits.waiting == 0 {
        return None;
    }
    let mut words = vec![format!("limits: {in_flight} of {} requests", limits.requests)];
    if let Some(config::AdaptiveLimit { min, max, .. }) = settings.adaptive {
        words.push(format!("adaptive from {min} to {}", max.min(settings.requests)));
    }
    if !settings.queue_timeout.is_zero() {
        words.push(format!("{} of {} waiting", limits.waiting, settings.pending));
    }
    words.push(format!("{} of {} connections", limits.connections, settings.connections));
    if let Some(rate) = &settings.rate {
        words.extend(rate.per_second.map(|count| format!("{count} per second")));
        let caller = rate.per_caller.as_ref();
        words
            .extend(caller.map(|caller| format!("{} per second and {}", caller.per_second, printable(&caller.header))));
    }
    Some(words.join(", "))
}

/// What nobody should forget to take out again.
fn faults(faults: &FaultInjection) -> String {
    let delay = faults.delay.as_ref().map(|delay| {
        let only = delay.header.as_deref().map_or_else(String::new, |header| format!(" with {}", printable(header)));
        format!("delay {} in {} %{only}", human::format(delay.duration), delay.percent.0)
    });
    let abort = faults.abort.as_ref().map(|abort| {
        let only = abort.header.as_deref().map_or_else(String::new, |header| format!(" with {}", printable(header)));
        format!("abort {} in {} %{only}", abort.status, abort.percent.0)
    });
    format!("faults: {}", delay.into_iter().chain(abort).collect::<Vec<_>>().join(", "))
}

fn protocol(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Http1 => "http1",
        Protocol::Http2 => "http2",
    }
}

fn table(endpoints: &[EndpointDetail]) -> String {
    let mut table = Table::new([
        ("ADDRESS", Align::Left),
        ("STATE", Align::Left),
        ("WEIGHT", Align::Right),
        ("IN FLIGHT", Align::Right),
        ("REQUESTS", Align::Right),
        ("FAILED", Align::Right),
        ("LATENCY", Align::Right),
        ("SPEAKS", Align::Left),
        ("ZONE", Align::Left),
        ("LABELS", Align::Left),
    ]);
    let mut sorted: Vec<_> = endpoints.iter().collect();
    sorted.sort_by_cached_key(|endpoint| place(&endpoint.address));
    for endpoint in sorted {
        let labels = endpoint.labels.iter().map(|(name, value)| format!("{name}={value}"));
        table.row([
            endpoint.address.clone(),
            condition(endpoint),
            endpoint.weight.to_string(),
            endpoint.in_flight.to_string(),
            endpoint.requests.to_string(),
            endpoint.failures.to_string(),
            endpoint.latency_ms.and_then(latency).unwrap_or_else(|| "-".into()),
            speaks(endpoint),
            endpoint.zone.clone().unwrap_or_default(),
            labels.collect::<Vec<_>>().join(","),
        ]);
    }
    table.print()
}

/// Addresses in the order of their numbers, then names.
fn place(address: &str) -> (bool, Option<(IpAddr, u16)>, String) {
    let ip = address.parse::<SocketAddr>().ok().map(|address| (address.ip(), address.port()));
    (ip.is_none(), ip, address.to_owned())
}

fn condition(EndpointDetail { health, checks, gone, penalty_seconds, .. }: &EndpointDetail) -> String {
    let Health { state, cause, probe_in_seconds, .. } = health;
    let failure = checks.as_ref().and_then(|checks| checks.failure.as_deref()).map_or("checks".into(), short);
    let suspect = checks.as_ref().is_some_and(|checks| checks.state == CheckState::Suspect);
    let cause = cause.as_deref().unwrap_or_default().replace('_', " ");
    match (state, probe_in_seconds) {
        (Condition::Available, _) if *gone => "available, gone from its registry".into(),
        (Condition::Available, _) if suspect => format!("available, suspect ({failure})"),
        (Condition::Available, _) => match penalty_seconds {
            Some(left) => format!("available, asked for a pause of {left:.1}s"),
            None => "available".into(),
        },
        (Condition::Failing, _) => format!("failing ({cause}), no more may be ejected"),
        (Condition::Ejected, Some(left)) if *left > 0.0 => format!("ejected ({cause}), probe in {left:.1}s"),
        (Condition::Ejected, _) => format!("ejected ({cause}), probe is due"),
        (Condition::Probing, _) => format!("probing ({cause})"),
        (Condition::Unhealthy, _) => format!("unhealthy ({failure})"),
        (Condition::Withdrawn, _) => "unhealthy (registry)".into(),
        (Condition::NoWeight, _) => "no weight".into(),
    }
}

/// The whole of it is in `--json`.
fn short(failure: &str) -> String {
    const LONGEST: usize = 60;
    let failure = printable(failure);
    if failure.chars().count() <= LONGEST {
        return failure;
    }
    failure.chars().take(LONGEST - 1).chain(['…']).collect()
}

/// What its registry says that it speaks.
fn speaks(endpoint: &EndpointDetail) -> String {
    let tls = match endpoint.tls {
        Some(true) => Some("tls"),
        Some(false) | None => None,
    };
    endpoint.protocol.map(protocol).into_iter().chain(tls).collect::<Vec<_>>().join("+")
}

/// A latency in the unit that leaves it short. Nothing for what has decayed so far that it says nothing.
fn latency(milliseconds: f64) -> Option<String> {
    match milliseconds {
        ms if ms < 0.001 => None,
        ms if ms < 0.9995 => Some(format!("{:.0}us", ms * 1000.0)),
        ms if ms < 99.95 => Some(format!("{ms:.1}ms")),
        ms if ms < 999.5 => Some(format!("{ms:.0}ms")),
        ms => Some(format!("{:.1}s", ms / 1000.0)),
    }
}
