//! `pillion explain METHOD URL`: which way a request would go now, as a running pillion sees it, and why not another.

use super::{
    client::{self, Align, Asking, Table, printable},
    services::state,
};
use crate::admin::view::{
    CalledStep, Candidate, Carries, Explained, LimitsStep, Lot, MirrorStep, NotEligible, Outcome, ServiceStep,
    SplitStep, SubsetDetail, Way, Whose,
};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use std::fmt::Write;

/// Tell which way a request would go now: its listener, routes, subset, split and endpoints, and why not another.
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
    /// The listener on which it comes in. By default the first one for outbound requests.
    #[arg(long, value_name = "NAME")]
    listener: Option<String>,
    /// The address that the application calls, on a listener with `transparent`. By default the URL's, if its host is one.
    #[arg(long, value_name = "IP:PORT")]
    called: Option<String>,
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
        self.called.iter().for_each(|called| add("called", called));
        let answer = self.asking.get(&format!("/api/explain?{}", &query[1..])).await?.good()?;
        if self.asking.json { Ok(answer.text()) } else { Ok(show(&answer.read()?)) }
    }
}

fn show(explained: &Explained) -> String {
    let mut out = format!("listener {}\n", printable(&explained.listener));
    let by_byte = "method, path and headers are not seen, so routes and subsets do not count";
    match explained.carries {
        Carries::Requests => {}
        Carries::Tcp => line(&mut out, &format!("  it carries TCP, byte for byte: {by_byte}")),
        Carries::Tls => {
            line(&mut out, &format!("  it carries TLS, byte for byte, to the service that is named (SNI): {by_byte}"))
        }
        Carries::Datagrams => line(&mut out, &format!("  it carries datagrams: {by_byte}")),
        Carries::Either => line(&mut out, "  it carries requests if a connection speaks HTTP, and else bytes"),
    }
    if let Some(step) = &explained.called {
        called(&mut out, step);
    }
    if let Some(listener) = &explained.goes_on {
        line(
            &mut out,
            &format!("  it goes on by the listener {}, whose application has the port", printable(listener)),
        );
    }
    out.push_str(&way(&explained.way));
    if let Some(otherwise) = &explained.otherwise {
        out.push_str("\nwhat is neither HTTP nor TLS is carried byte for byte:\n");
        out.push_str(&way(otherwise));
    }
    out
}

fn line(out: &mut String, text: &str) {
    out.push_str(text);
    out.push('\n');
}

fn called(out: &mut String, step: &CalledStep) {
    let CalledStep { address, port, whose, service } = step;
    if let Some(port) = port {
        return line(out, &format!("  the port that was called, {port}, says which application is meant"));
    }
    let service = service.as_deref().map(printable).unwrap_or_default();
    let whose = match whose {
        Whose::Nobodys => "no service has that is followed, so it goes by the name it asks for".to_owned(),
        Whose::Endpoint => format!("an endpoint of {service} has"),
        Whose::Service => format!("{service} has by `addresses`"),
        Whose::Name => format!("{service} has by its DNS name"),
        Whose::NoName => "would be that of a DNS name, and no registry lists a service whose it is".to_owned(),
        Whose::Several => format!("several services have, {service} among them, so it goes by the name it asks for"),
    };
    match address {
        Some(address) => line(out, &format!("  called was {}, which {whose}", printable(address))),
        None => line(out, &format!("  called was (as far as is said: `--called IP:PORT`) an address that {whose}")),
    }
}

fn way(way: &Way) -> String {
    let mut out = String::new();
    for step in &way.services {
        service(&mut out, step);
    }
    if let Some(asked) = &way.asked_for {
        let word = match (asked.exists, asked.granted) {
            (false, _) => "but the service has none of that name, so its routes count",
            (true, false) => "but nobody in it can take requests, so its routes count",
            (true, true) => "and gets it",
        };
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
        Some(NotEligible::NotCalled) => "another was called".to_owned(),
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
    let set = split.rollout.as_ref().map(|release| format!(", as the rollout of {} has it", printable(release)));
    let (name, shares, set) = (printable(&split.name), shares.join(", "), set.unwrap_or_default());
    let _ = writeln!(out, "  split `{name}`: {shares}{set}; {by}");
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
        Outcome::Itself { service, address } => {
            format!("→ {} itself, an endpoint of {}", printable(address), printable(service))
        }
        Outcome::Passed { address: Some(address) } => format!("→ {}, untouched", printable(address)),
        Outcome::Passed { address: None } => "→ where it was to go, untouched".to_owned(),
        Outcome::Local { address } => format!("→ the local application at {}", printable(address)),
        Outcome::Drawn { service, .. } => format!("→ {}, by lot to one of the split's targets:", printable(service)),
        Outcome::Answered { status, location: None } => format!("→ pillion answers {status} itself"),
        Outcome::Answered { status, location: Some(location) } => {
            format!("→ pillion answers {status} itself, with location: {}", printable(location))
        }
        Outcome::Refused { reason, detail } => format!("→ refused, {reason}: {}", printable(detail)),
    }
}
