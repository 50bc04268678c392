//! What a rule says besides where its requests go: headers, mirror, timeouts, retries, faults.

use super::rule::destined;
use crate::{
    config::human,
    import::{
        common::{self, Edit, Edits},
        name::Names,
        reader::{At, Log},
        services::{Destination, Services, number},
    },
};
use serde_json::{Map, Value, json};

pub fn edits(at: &At<'_>, log: &mut Log) -> Edits {
    let mut edits = Edits::default();
    add_edits(at, &mut edits, log);
    edits
}

/// Adds those under `headers`.
pub fn add_edits(at: &At<'_>, edits: &mut Edits, log: &mut Log) {
    let Some(at) = at.get("headers") else { return };
    at.others(&["request", "response"], log);
    if let Some(request) = at.get("request") {
        let is_host = |name: &str| name.eq_ignore_ascii_case("host") || name == ":authority";
        edit(&request, &mut edits.request, log);
        for map in [&mut edits.request.set, &mut edits.request.add] {
            if let Some(name) = map.keys().find(|name| is_host(name)).cloned() {
                edits.host = map.shift_remove(&name);
            }
        }
    }
    if let Some(response) = at.get("response") {
        edit(&response, &mut edits.response, log);
    }
}

fn edit(at: &At<'_>, edit: &mut Edit, log: &mut Log) {
    at.others(&["set", "add", "remove"], log);
    for (key, map) in [("set", &mut edit.set), ("add", &mut edit.add)] {
        for (name, value) in at.labels(key, log) {
            // Envoy's variables, as `%REQ(x-user)%`; `%%` is a plain one.
            let plain = value.replace("%%", "");
            if plain.contains('%')
                && let Some(at) = at.get(key).and_then(|map| map.get(&name))
            {
                log.note(&at, "not carried over: pillion sets values as they are written, without variables");
                continue;
            }
            map.insert(name, value.replace("%%", "%"));
        }
    }
    edit.remove.extend(at.texts("remove", log));
}

/// Where copies go, with the share in percent.
pub fn mirror<'o>(
    at: &At<'o>,
    names: &Names,
    services: &mut Services<'o>,
    log: &mut Log,
) -> Option<(Destination, f64)> {
    let mirrors = at.items("mirrors", log);
    for further in mirrors.iter().skip(1) {
        log.note(further, "not carried over: a route has one mirror in pillion");
    }
    if let Some(first) = mirrors.first() {
        first.others(&["destination", "percentage"], log);
        let percent = first.get("percentage").and_then(|at| at.float("value", log)).unwrap_or(100.0);
        return Some((destined(&first.get("destination")?, names, services, log)?, percent));
    }
    let to = destined(&at.get("mirror")?, names, services, log)?;
    let percent = at.get("mirrorPercentage").and_then(|at| at.float("value", log));
    let older = ["mirrorPercent", "mirror_percent"].into_iter().find_map(|key| at.float(key, log));
    Some((to, percent.or(older).unwrap_or(100.0)))
}

pub fn timeouts(at: &At<'_>, more: &mut Map<String, Value>, log: &mut Log) {
    if let (Some(place), Some(limit)) = (at.get("timeout"), at.duration("timeout", log)) {
        more.insert("timeouts".into(), common::timeouts(&place, limit, log));
    }
}

pub fn retries(at: &At<'_>, more: &mut Map<String, Value>, log: &mut Log) {
    let Some(at) = at.get("retries") else { return };
    at.others(
        &["attempts", "perTryTimeout", "retryOn", "retryRemoteLocalities", "retryIgnorePreviousHosts", "backoff"],
        log,
    );
    let mut out = Map::new();
    let attempts = at.number("attempts", log).unwrap_or(0);
    out.insert("attempts".into(), json!(attempts));
    if attempts > 0 {
        out.insert("on".into(), json!(retry_on(&at, log)));
        if let (Some(place), Some(limit)) = (at.get("perTryTimeout"), at.duration("perTryTimeout", log)) {
            let limit = common::per_try(&place, limit, attempts, more, log);
            if !limit.is_null() {
                out.insert("per_try_timeout".into(), limit);
            }
        }
        if let Some(base) = at.duration("backoff", log) {
            // As Envoy has it where nothing else is said.
            let max = base.saturating_mul(10);
            out.insert("backoff".into(), json!({ "base": human::format(base), "max": human::format(max) }));
        }
    }
    if let Some(at) = at.get("retryRemoteLocalities") {
        log.note(&at, "not carried over: pillion tries any other endpoint; `balance.zone` is what prefers some");
    }
    if at.bool("retryIgnorePreviousHosts", log) == Some(false)
        && let Some(at) = at.get("retryIgnorePreviousHosts")
    {
        log.note(&at, "not carried over: pillion always tries another endpoint where there is one");
    }
    more.insert("retry".into(), Value::Object(out));
}

/// pillion's words for Envoy's.
fn retry_on(at: &At<'_>, log: &mut Log) -> Vec<&'static str> {
    let Some(words) = at.text("retryOn", log).filter(|words| !words.trim().is_empty()) else {
        // Istio's own default is these and `cancelled`, which pillion does not try again.
        return vec!["connect-failure", "refused-stream", "grpc-unavailable"];
    };
    let place = at.get("retryOn").unwrap_or_else(|| at.clone());
    let mut on: Vec<&'static str> = Vec::new();
    let (mut lost, mut for_idempotent) = (Vec::new(), false);
    let mut add = |words: &[&'static str]| {
        for word in words {
            if !on.contains(word) {
                on.push(word);
            }
        }
    };
    for word in words.split(',').map(str::trim).filter(|word| !word.is_empty()) {
        match word {
            "connect-failure" => add(&["connect-failure"]),
            "refused-stream" => add(&["refused-stream"]),
            "unavailable" => add(&["grpc-unavailable"]),
            "reset" => add(&["reset"]),
            "gateway-error" => add(&["gateway-error"]),
            "5xx" => {
                add(&["connect-failure", "refused-stream", "reset", "gateway-error"]);
                log.note(
                    &place,
                    "`5xx`: of an upstream's own answers pillion tries 502, 503 and 504 again, and no \
                     other; a 500 may have been executed",
                );
            }
            "502" | "503" | "504" => {
                add(&["gateway-error"]);
                log.note(&place, format!("`{word}` becomes `gateway-error`, which is 502, 503 and 504"));
            }
            // It only says that there are numbers.
            "retriable-status-codes" => {}
            _ => lost.push(format!("`{word}`")),
        }
        for_idempotent |= ["reset", "gateway-error", "5xx", "502", "503", "504"].contains(&word);
    }
    if !lost.is_empty() {
        log.note(&place, format!("not carried over: pillion does not try again after {}", lost.join(", ")));
    }
    if for_idempotent {
        log.note(
            &place,
            "after a reset or a gateway's error pillion tries again only what is idempotent: no POST, no PATCH",
        );
    }
    on
}

pub fn faults(at: &At<'_>, more: &mut Map<String, Value>, log: &mut Log) {
    let Some(at) = at.get("fault") else { return };
    at.others(&["delay", "abort"], log);
    let mut out = Map::new();
    if let Some(at) = at.get("delay") {
        at.others(&["percent", "percentage", "fixedDelay", "exponentialDelay"], log);
        if let Some(at) = at.get("exponentialDelay") {
            log.note(&at, "not carried over: pillion's delays are fixed");
        }
        if let Some(delay) = at.duration("fixedDelay", log)
            && let Some(percent) = percent(&at, log)
        {
            out.insert("delay".into(), json!({ "percent": percent, "duration": human::format(delay) }));
        }
    }
    if let Some(at) = at.get("abort") {
        at.others(&["percentage", "httpStatus", "grpcStatus", "http2Error"], log);
        if let Some(at) = at.get("http2Error") {
            log.note(&at, "not carried over: pillion aborts with a status");
        }
        if let Some(abort) = abort(&at, log) {
            out.insert("abort".into(), abort);
        }
    }
    if !out.is_empty() {
        more.insert("faults".into(), Value::Object(out));
    }
}

fn abort(at: &At<'_>, log: &mut Log) -> Option<Value> {
    let percent = percent(at, log)?;
    if let Some(status) = at.number("httpStatus", log) {
        if !(400..=599).contains(&status) {
            log.note(
                at,
                "not carried over: pillion's faults are errors, with a status from 400 to 599; `respond` \
                 answers with any other",
            );
            return None;
        }
        return Some(json!({ "percent": percent, "status": status }));
    }
    let word = at.text("grpcStatus", log)?;
    let place = at.get("grpcStatus")?;
    let Some(code) = grpc_code(&word) else {
        log.note(&place, format!("not carried over: `{word}` is no error of gRPC"));
        return None;
    };
    Some(json!({ "percent": percent, "grpc_status": code }))
}

/// By their numbers, from 1.
const GRPC: [&str; 16] = [
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

fn grpc_code(word: &str) -> Option<usize> {
    let by_name = GRPC.iter().position(|name| *name == word).map(|index| index + 1);
    by_name.or_else(|| word.parse().ok().filter(|code| (1..=GRPC.len()).contains(code)))
}

/// How many requests a fault is for; `None`, with a note, where that is none.
fn percent(at: &At<'_>, log: &mut Log) -> Option<Value> {
    let given = at.get("percentage").and_then(|at| at.float("value", log)).or_else(|| at.float("percent", log));
    match given {
        Some(percent) if percent > 0.0 => Some(number(percent)),
        _ => {
            log.note(at, "left out: without a percentage Istio puts it into no request");
            None
        }
    }
}
