//! `pillion explain METHOD URL`: which way a request would go now, as a running pillion sees it, and why not another.

use super::{
    client::{self, Align, Asking, Table, printable},
    services::state,
};
use crate::admin::view::{
    Candidate, Explained, LimitsStep, Lot, MirrorStep, NotEligible, Outcome, ServiceStep, SplitStep, SubsetDetail, Way,
};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use std::fmt::Write;

/// Tells which way a request would go now: its listener, routes, subset, split and endpoints, and why not another.
#[derive(Debug, Clone, clap::Args)]
pub struct Explain {
    /// As in the request: GET, POST and so on.
    method: String,
    /// `http://SERVICE/PATH`, or a path with `-H 'host: SERVICE'`.
    url: String,
    /// A header of the request, `NAME: VALUE`. Can be given several times.
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE")]
    headers: Vec<String>,
    /// The address that the request comes from. By default 127.0.0.1.
    #[arg(long, value_name = "IP")]
    source: Option<String>,
    /// The listener on which it comes in. By default the first one for outbound traffic.
    #[arg(long, value_name = "NAME")]
    listener: Option<String>,
    #[command(flatten)]
    asking: Asking,
}

impl Explain {
    pub fn run(self) -> anyhow::Result<()> {
        client::run(self.output())
    }

    async fn output(self) -> anyhow::Result<String> {
        let mut query = String::new();
        let mut add = |key: &str, value: &str| {
            let _ = write!(query, "&{key}={}", utf8_percent_encode(value, NON_ALPHANUMERIC));
        };
        add("method", &self.method);
        add("url", &self.url);
        self.headers.iter().for_each(|header| add("header", header));
        self.source.iter().for_each(|source| add("source", source));
        self.listener.iter().for_each(|listener| add("listener", listener));
        let answer = self.asking.get(&format!("/api/explain?{}", &query[1..])).await?.good()?;
        if self.asking.json { Ok(answer.text()) } else { Ok(show(&answer.read()?)) }
    }
}

fn show(explained: &Explained) -> String {
    format!("listener {}\n{}", printable(&explained.listener), way(&explained.way))
}

fn way(way: &Way) -> String {
    let mut out = String::new();
    for step in &way.services {
        service(&mut out, step);
    }
    if let Some(asked) = &way.asked_for {
        let word =
            if asked.granted { "and gets it" } else { "but nobody in it can take requests, so its routes count" };
        let _ = writeln!(out, "  it asks for the subset `{}` by itself, {word}", printable(&asked.subset));
    }
    out.push_str(&outcome(&way.outcome));
    out.push('\n');
    if let Some(limits) = &way.limits {
        let _ = writeln!(out, "  within the service's limits: {}", limited(limits));
    }
    if let Outcome::Drawn { lots, .. } = &way.outcome {
        lots.iter().for_each(|lot| drawn(&mut out, lot));
    }
    if way.endpoints.is_empty() {
        return out;
    }
    let mut table =
        Table::new([("ADDRESS", Align::Left), ("", Align::Left), ("WEIGHT", Align::Right), ("LABELS", Align::Left)]);
    for endpoint in &way.endpoints {
        let labels: Vec<String> = endpoint.labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
        table.row([endpoint.address.clone(), word(endpoint), endpoint.weight.to_string(), labels.join(" ")]);
    }
    out + "\n" + &table.print()
}

/// One of a split's targets, with all that follows from it set in.
fn drawn(out: &mut String, lot: &Lot) {
    let _ = writeln!(out, "\n  {} %: {}", lot.percent, printable(&lot.target));
    if let Some(marked) = &lot.marked {
        let _ = writeln!(out, "      marked with `{}` for the services behind", printable(marked));
    }
    for line in way(&lot.way).lines() {
        let indent = if line.is_empty() { "" } else { "    " };
        let _ = writeln!(out, "{indent}{line}");
    }
}

/// Whether an endpoint may get the request, or why not.
fn word(endpoint: &Candidate) -> String {
    match endpoint.not {
        None => "eligible".to_owned(),
        Some(NotEligible::Subset) => "not in the subset".to_owned(),
        Some(NotEligible::OnlyGrpc) => "for gRPC only".to_owned(),
        Some(NotEligible::OnlyWithoutGrpc) => "not for gRPC".to_owned(),
        Some(NotEligible::Health) => {
            let state = serde_json::to_value(endpoint.health.state).ok();
            state.and_then(|word| Some(word.as_str()?.to_owned())).unwrap_or_default()
        }
    }
}

fn service(out: &mut String, step: &ServiceStep) {
    let _ = writeln!(out, "service {} ({})", printable(&step.service), state(step.state));
    if !step.subsets.is_empty() {
        let subsets: Vec<String> = step.subsets.iter().map(subset).collect();
        let _ = writeln!(out, "  subsets: {}", subsets.join(", "));
    }
    for route in &step.routes {
        let name = if route.name == route.number.to_string() {
            String::new()
        } else {
            format!(" `{}`", printable(&route.name))
        };
        let word = match (&route.not, &route.limits) {
            (None, None) => "takes it".to_owned(),
            (None, Some(limits)) => format!("takes it, within its limits: {}", limited(limits)),
            (Some(why), _) => format!("no: {}", printable(why)),
        };
        let _ = writeln!(out, "  route {}{name}: {word}", route.number);
    }
    if !step.routes.is_empty() && step.routes.iter().all(|route| route.not.is_some()) {
        out.push_str("  no route takes it, so it goes to the whole service\n");
    }
    if let Some(split) = &step.split {
        divided(out, split);
    }
    if let Some(rewritten) = &step.rewritten {
        let _ = writeln!(out, "  rewritten to {}", printable(rewritten));
    }
    if let Some(marked) = &step.marked {
        let _ = writeln!(out, "  marked with `{}` for the services behind", printable(marked));
    }
    if let Some(MirrorStep { to, percent }) = &step.mirrored {
        let _ = writeln!(out, "  {percent} % of such requests are copied to {}", printable(to));
    }
}

fn subset(subset: &SubsetDetail) -> String {
    let SubsetDetail { name, available, endpoints, when_empty, .. } = subset;
    let name = printable(name);
    match available {
        0 => format!("{name} (empty; then: {})", printable(when_empty)),
        _ => format!("{name} ({available} of {endpoints} available)"),
    }
}

fn limited(limits: &LimitsStep) -> String {
    let LimitsStep { requests, in_flight, per_second, per_caller } = limits;
    let requests = requests.map(|most| format!("{in_flight} of {most} requests in flight"));
    let rate = per_second.map(|rate| format!("{rate} per second"));
    let caller = per_caller
        .as_ref()
        .map(|caller| format!("{} per second with the same {}", caller.per_second, printable(&caller.header)));
    [requests, rate, caller].into_iter().flatten().collect::<Vec<_>>().join(", ")
}

fn divided(out: &mut String, split: &SplitStep) {
    let shares: Vec<String> =
        split.shares.iter().map(|(target, share)| format!("{} {share} %", printable(target))).collect();
    let by = match (&split.key, &split.chosen) {
        (None, _) => "each request is drawn".to_owned(),
        (Some(key), None) => format!("by {}, which it lacks, so it is drawn", printable(key)),
        (Some(key), Some(chosen)) => format!("by {}: {}", printable(key), printable(chosen)),
    };
    let _ = writeln!(out, "  split `{}`: {}; {by}", printable(&split.name), shares.join(", "));
}

fn outcome(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Sent { service, subset: None, .. } => format!("→ {}, any endpoint", printable(service)),
        Outcome::Sent { service, subset: Some(subset), instead: None } => {
            format!("→ {}, subset `{}`", printable(service), printable(subset))
        }
        Outcome::Sent { service, subset: Some(subset), instead: Some(instead) } => {
            let (service, subset) = (printable(service), printable(subset));
            match instead.as_str() {
                "service" => format!("→ {service}, any endpoint, because its subset `{subset}` is empty"),
                other => format!("→ {service}, subset `{}`, because `{subset}` is empty", printable(other)),
            }
        }
        Outcome::Local { address } => format!("→ the local application at {}", printable(address)),
        Outcome::Drawn { service, .. } => format!("→ {}, by lot to one of the split's targets:", printable(service)),
        Outcome::Answered { status, location: None } => format!("→ pillion answers {status} itself"),
        Outcome::Answered { status, location: Some(location) } => {
            format!("→ pillion answers {status} itself, with location: {}", printable(location))
        }
        Outcome::Refused { reason, detail } => format!("→ refused, {reason}: {}", printable(detail)),
    }
}
