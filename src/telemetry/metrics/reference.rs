//! docs/metrics.md: every metric, from the table and from what a scrape with one of everything shows.

use super::{Metrics, family::TABLE};
use crate::{error::Reason, telemetry::labels::WORDS};
use prometheus::proto::MetricType;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    path::Path,
    time::Duration,
};

/// Writes the document instead of comparing it.
const WRITE: &str = "PILLION_WRITE_DOCS";

const INTRODUCTION: &str = "\
# Every metric

Made from the code by `PILLION_WRITE_DOCS=1 cargo test --lib reference`, and compared with it by every run of the tests.

`GET /metrics` at the admin interface (127.0.0.1:4191) gives them in the text format of Prometheus, or of OpenMetrics to whoever
prefers that. The first to put on a screen: `pillion_requests_total` by service and code, `pillion_request_duration_seconds`,
`pillion_endpoints` by state, and `pillion_discovery_age_seconds`, which grows while a registry is silent.

A counter begins at 0 with the process, and a service's series end when it is no longer followed. Labels with fixed values are there
with all of them from the start, so that a rate misses no first event. Histograms of durations are in seconds.

| metric | type | labels | |
|---|---|---|---|
";

const REASONS: &str = "failures.md#when-pillion-answers-itself";

/// Labels whose values are words of pillion's own.
const FIXED: [&str; 8] = ["cause", "kind", "outcome", "phase", "reason", "result", "state", "verdict"];

/// Each label of a metric with its values, and how often it is there.
type Labels = Vec<(String, BTreeSet<String>, usize)>;

/// A scrape of a pillion that has one of everything: by metric, how often it is there, and its labels with their values.
fn scrape() -> BTreeMap<String, (usize, Labels)> {
    let metrics = Metrics::new(WORDS);
    let service = metrics.service("x");
    let app = metrics.app("x", "x");
    service.requests.inc(200);
    app.requests.inc(200);
    for lives in [&service.tcp.lives, &service.udp.lives, &app.tcp.lives, &app.udp.lives] {
        lives.open.inc();
    }
    let subset = service.subset("x");
    subset.red.count(200, false, Duration::ZERO);
    subset.available.set(0);
    let mirror = service.mirror("x", "x");
    mirror.requests.inc(200);
    mirror.compared();
    let inbound = metrics.inbound("x", || Some(true));
    let caller = inbound.caller("x", 1);
    caller.red.count(200, false, Duration::ZERO);
    let _handles = (
        metrics.source("x", "x", || Some(Duration::ZERO)),
        metrics.listener("x"),
        metrics.registration("x", "x", "x", || Some(Duration::ZERO)),
        metrics.routes("x"),
        metrics.store("x", "x"),
        metrics.rollout("x"),
        metrics.thread("x", || 0),
        metrics.dns(),
    );
    let mut found: BTreeMap<String, (usize, Labels)> = BTreeMap::new();
    for family in metrics.gather() {
        let (series, labels) = found.entry(family.name().to_owned()).or_default();
        for metric in family.get_metric() {
            *series += 1;
            for pair in metric.get_label() {
                if !labels.iter().any(|(name, ..)| name == pair.name()) {
                    labels.push((pair.name().to_owned(), BTreeSet::new(), 0));
                }
                let (_, values, times) = labels.iter_mut().find(|(name, ..)| name == pair.name()).unwrap();
                values.insert(pair.value().to_owned());
                *times += 1;
            }
        }
    }
    found
}

fn reference() -> String {
    let (mut text, found) = (INTRODUCTION.to_owned(), scrape());
    for (name, kind, help) in TABLE {
        let kind = match kind {
            MetricType::COUNTER => "counter",
            MetricType::GAUGE => "gauge",
            _ => "histogram",
        };
        let (series, labels) = found.get(*name).unwrap_or_else(|| panic!("{name}: the scrape has everything but this"));
        let told = labels.iter().map(|(label, values, times)| {
            let words: Vec<_> = values.iter().map(|value| format!("`{value}`")).collect();
            match () {
                // Any value may be there, and this one only of the local application.
                () if times < series => format!("`{label}` (of the local application)"),
                () if !FIXED.contains(&label.as_str()) => format!("`{label}`"),
                () if words.contains(&"`done`".to_owned()) && words.len() > Reason::ALL.len() => {
                    format!("`{label}` (`done`, or a [reason]({REASONS}))")
                }
                () if words.len() == Reason::ALL.len() => format!("`{label}` ([all reasons]({REASONS}))"),
                () => format!("`{label}` ({})", words.join(", ")),
            }
        });
        writeln!(text, "| `{name}` | {kind} | {} | {help} |", told.collect::<Vec<_>>().join(", ")).unwrap();
    }
    text
}

#[test]
fn every_metric_is_documented_as_the_code_has_it() {
    let text = reference();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/metrics.md");
    if std::env::var_os(WRITE).is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    let there = std::fs::read_to_string(&path).unwrap_or_default();
    let first = there.lines().zip(text.lines()).find(|(there, made)| there != made);
    assert!(
        there == text,
        "docs/metrics.md is not what the code says; `{WRITE}=1 cargo test --lib reference` makes it anew: {first:#?}"
    );
}
