//! A `trafficPolicy`, which becomes a service's settings.

use crate::{
    config::human,
    import::{
        reader::{At, Log},
        services::number,
    },
};
use serde_json::{Map, Value, json};
use std::{path::Path, time::Duration};

/// What Envoy does not eject for longer than, if `baseEjectionTime` is not longer itself.
const LONGEST_EJECTION: Duration = Duration::from_secs(300);

pub fn settings(at: &At<'_>, log: &mut Log) -> Map<String, Value> {
    at.others(
        &[
            "loadBalancer",
            "connectionPool",
            "outlierDetection",
            "tls",
            "portLevelSettings",
            "tunnel",
            "proxyProtocol",
            "retryBudget",
        ],
        log,
    );
    for (key, why) in [
        ("portLevelSettings", "not carried over: a service has one set of settings in pillion, for all ports"),
        ("tunnel", "not carried over: pillion opens no tunnels"),
        ("proxyProtocol", "not carried over: pillion does not speak the PROXY protocol"),
    ] {
        if let Some(at) = at.get(key) {
            log.note(&at, why);
        }
    }
    let mut out = Map::new();
    if let Some(at) = at.get("loadBalancer") {
        put(&mut out, "balance", balance(&at, log));
    }
    if let Some(at) = at.get("connectionPool") {
        connection_pool(&at, &mut out, log);
    }
    if let Some(at) = at.get("retryBudget") {
        retry_budget(&at, &mut out, log);
    }
    if let Some(at) = at.get("outlierDetection") {
        outlier_detection(&at, &mut out, log);
    }
    if let Some(tls) = at.get("tls").and_then(|at| tls(&at, log)) {
        out.insert("tls".into(), Value::Object(tls));
    }
    out
}

fn put(out: &mut Map<String, Value>, key: &str, map: Map<String, Value>) {
    if !map.is_empty() {
        out.insert(key.into(), Value::Object(map));
    }
}

fn balance(at: &At<'_>, log: &mut Log) -> Map<String, Value> {
    at.others(&["simple", "consistentHash", "localityLbSetting", "warmupDurationSecs", "warmup"], log);
    let mut out = Map::new();
    if let Some(word) = at.text("simple", log)
        && let Some(place) = at.get("simple")
    {
        let policy = match word.as_str() {
            "ROUND_ROBIN" => Some("round-robin"),
            "RANDOM" => Some("random"),
            "LEAST_REQUEST" | "LEAST_CONN" => Some("least-request"),
            "UNSPECIFIED" => None,
            "PASSTHROUGH" => {
                log.note(
                    &place,
                    "not carried over: pillion chooses among the registry's instances, whatever address \
                     was asked for",
                );
                None
            }
            _ => {
                log.fault(
                    &place,
                    format!(
                        "found `{word}`; expected `ROUND_ROBIN`, `RANDOM`, `LEAST_REQUEST`, \
                         `PASSTHROUGH` or `UNSPECIFIED`"
                    ),
                );
                None
            }
        };
        policy.map(|policy| out.insert("policy".into(), json!(policy)));
    }
    if let Some(at) = at.get("consistentHash") {
        hash(&at, &mut out, log);
    }
    if let Some(window) = at.duration("warmupDurationSecs", log) {
        out.insert("slow_start".into(), json!({ "window": human::format(window) }));
    }
    if let Some(at) = at.get("warmup") {
        at.others(&["duration", "minimumPercent", "aggression"], log);
        let mut slow = Map::new();
        at.duration("duration", log).map(|window| slow.insert("window".into(), json!(human::format(window))));
        at.float("aggression", log).map(|aggression| slow.insert("aggression".into(), json!(aggression)));
        at.float("minimumPercent", log)
            .map(|percent| slow.insert("min_weight_percent".into(), number(percent.round())));
        put(&mut out, "slow_start", slow);
    }
    if let Some(at) = at.get("localityLbSetting")
        && at.bool("enabled", log) != Some(false)
    {
        log.note(
            &at,
            "not carried over: pillion has `balance.zone` to prefer the own zone, and `balance.priority` \
             for groups in order",
        );
    }
    out
}

fn hash(at: &At<'_>, out: &mut Map<String, Value>, log: &mut Log) {
    at.others(
        &[
            "httpHeaderName",
            "httpCookie",
            "useSourceIp",
            "httpQueryParameterName",
            "ringHash",
            "maglev",
            "minimumRingSize",
        ],
        log,
    );
    for (key, size) in [("minimumRingSize", None), ("ringHash", Some("minimumRingSize")), ("maglev", Some("tableSize"))]
    {
        let found = at.get(key).and_then(|at| size.map_or(Some(at.clone()), |size| at.get(size)));
        if let Some(at) = found {
            log.note(&at, "not carried over: pillion chooses the table's size by itself");
        }
    }
    let mut hash = Map::new();
    if let Some(header) = at.text("httpHeaderName", log) {
        hash.insert("header".into(), json!(header));
    } else if let Some(cookie) = at.get("httpCookie") {
        cookie.others(&["name", "path", "ttl", "attributes"], log);
        cookie.text("name", log).map(|name| hash.insert("cookie".into(), json!(name)));
        if let Some(at) = cookie.get("ttl") {
            log.note(
                &at,
                "pillion gives no cookie to those who come without; let the application set it, or hash a header",
            );
        }
    } else if at.bool("useSourceIp", log) == Some(true) {
        hash.insert("source".into(), json!(true));
    } else if let Some(at) = at.get("httpQueryParameterName") {
        log.note(&at, "not carried over: pillion hashes a header, a cookie, the source or the path");
    }
    if hash.is_empty() {
        return;
    }
    // Envoy has no bound unless it is asked for.
    hash.insert("balance_factor".into(), json!(0));
    out.insert("policy".into(), json!(if at.has("maglev") { "maglev" } else { "ring-hash" }));
    out.insert("hash".into(), Value::Object(hash));
}

fn connection_pool(at: &At<'_>, out: &mut Map<String, Value>, log: &mut Log) {
    at.others(&["tcp", "http"], log);
    let (mut limits, mut pool, mut timeouts) = (Map::new(), Map::new(), Map::new());
    if let Some(at) = at.get("tcp") {
        at.others(&["maxConnections", "connectTimeout", "tcpKeepalive", "maxConnectionDuration", "idleTimeout"], log);
        at.number("maxConnections", log).map(|most| limits.insert("connections".into(), json!(most)));
        at.duration("connectTimeout", log).map(|limit| timeouts.insert("connect".into(), json!(human::format(limit))));
        at.duration("maxConnectionDuration", log).map(|age| pool.insert("max_age".into(), json!(human::format(age))));
        for (key, why) in [
            (
                "tcpKeepalive",
                "not carried over: pillion has no setting for it; a dead connection is noticed by the \
                 request on it, which is tried elsewhere",
            ),
            (
                "idleTimeout",
                "not carried over: it is for TCP services; for HTTP, `connectionPool.http.idleTimeout` \
                 is what counts",
            ),
        ] {
            if let Some(at) = at.get(key) {
                log.note(&at, why);
            }
        }
    }
    if let Some(at) = at.get("http") {
        at.others(
            &[
                "http1MaxPendingRequests",
                "http2MaxRequests",
                "maxRequestsPerConnection",
                "maxRetries",
                "idleTimeout",
                "h2UpgradePolicy",
                "useClientProtocol",
                "maxConcurrentStreams",
            ],
            log,
        );
        at.number("http2MaxRequests", log).map(|most| limits.insert("requests".into(), json!(most)));
        at.duration("idleTimeout", log).map(|idle| pool.insert("idle_timeout".into(), json!(human::format(idle))));
        if at.text("h2UpgradePolicy", log).as_deref() == Some("UPGRADE") {
            out.insert("protocol".into(), json!("http2"));
        }
        for (key, why) in [
            (
                "http1MaxPendingRequests",
                "not carried over: no request waits for a connection in pillion, a new one is opened up \
                 to `limits.connections`; `limits.queue_timeout` and `limits.pending` make a queue",
            ),
            (
                "maxRequestsPerConnection",
                "not carried over: `pool.max_age` is what ends connections; `pool.max_idle: 0` keeps \
                 none in HTTP/1.1",
            ),
            ("maxRetries", "not carried over: `retry.budget` is a share of the requests, and not a number"),
            ("maxConcurrentStreams", "not carried over: it is as many as the upstream takes"),
        ] {
            if let Some(at) = at.get(key) {
                log.note(&at, why);
            }
        }
        if at.bool("useClientProtocol", log) == Some(true)
            && let Some(at) = at.get("useClientProtocol")
        {
            log.note(&at, "not carried over: `protocol` is `http1` or `http2`, by default what the registry says");
        }
    }
    put(out, "timeouts", timeouts);
    put(out, "pool", pool);
    put(out, "limits", limits);
}

fn retry_budget(at: &At<'_>, out: &mut Map<String, Value>, log: &mut Log) {
    at.others(&["percent", "minRetryConcurrency"], log);
    if let Some(percent) = at.float("percent", log) {
        out.insert("retry".into(), json!({ "budget": { "percent": number(percent.round()) } }));
    }
    if let Some(at) = at.get("minRetryConcurrency") {
        log.note(
            &at,
            "not carried over: what is allowed in any case is a number per second, `retry.budget.per_second`",
        );
    }
}

fn outlier_detection(at: &At<'_>, out: &mut Map<String, Value>, log: &mut Log) {
    at.others(
        &[
            "consecutiveErrors",
            "splitExternalLocalOriginErrors",
            "consecutiveLocalOriginFailures",
            "consecutiveGatewayErrors",
            "consecutive5xxErrors",
            "interval",
            "baseEjectionTime",
            "maxEjectionPercent",
            "minHealthPercent",
        ],
        log,
    );
    let mut breaker = Map::new();
    let gateway = at.number("consecutiveGatewayErrors", log).or_else(|| at.number("consecutiveErrors", log));
    let all = at.number("consecutive5xxErrors", log);
    if let Some(gateway) = gateway.filter(|gateway| *gateway > 0)
        && let Some(at) = at.get("consecutiveGatewayErrors").or_else(|| at.get("consecutiveErrors"))
    {
        if all.is_none_or(|all| all == 0) {
            breaker.insert("consecutive_failures".into(), json!(gateway));
            log.note(&at, "pillion counts every 5xx but 501, and not 502, 503 and 504 alone");
        } else {
            log.note(
                &at,
                "not carried over: pillion counts every 5xx but 501, by the number of `consecutive5xxErrors`",
            );
        }
    }
    if let Some(all) = all.filter(|all| *all > 0 || breaker.is_empty()) {
        breaker.insert("consecutive_failures".into(), json!(all));
    }
    if let Some(base) = at.duration("baseEjectionTime", log) {
        let max = base.max(LONGEST_EJECTION);
        breaker.insert("open".into(), json!({ "base": human::format(base), "max": human::format(max) }));
        if let Some(at) = at.get("baseEjectionTime") {
            log.note(&at, "each further ejection is twice as long in pillion; in Istio it is longer by the same time");
        }
    }
    if let Some(most) = at.number("maxEjectionPercent", log) {
        breaker.insert("max_ejected".into(), json!(most));
        if let Some(at) = at.get("maxEjectionPercent") {
            log.note(
                &at,
                "pillion counts the one to be ejected and never ejects the last one; Istio ejects at least \
                 one, whatever the percentage",
            );
        }
    }
    put(out, "breaker", breaker);
    if let Some(least) = at.number("minHealthPercent", log) {
        out.insert("panic_threshold".into(), json!(least));
    }
    for (key, why) in [
        ("interval", "not carried over: pillion ejects at once, and looks at shares over ten seconds"),
        ("splitExternalLocalOriginErrors", "not carried over: failures to connect count like any other"),
        ("consecutiveLocalOriginFailures", "not carried over: failures to connect count like any other"),
    ] {
        if let Some(at) = at.get(key) {
            log.note(&at, why);
        }
    }
}

fn tls(at: &At<'_>, log: &mut Log) -> Option<Map<String, Value>> {
    at.others(
        &[
            "mode",
            "clientCertificate",
            "privateKey",
            "caCertificates",
            "caCrl",
            "credentialName",
            "subjectAltNames",
            "sni",
            "insecureSkipVerify",
        ],
        log,
    );
    let mode = at.text("mode", log).unwrap_or_default();
    let place = at.get("mode").unwrap_or_else(|| at.clone());
    match mode.as_str() {
        "DISABLE" | "" => return None,
        "SIMPLE" | "MUTUAL" => {}
        "ISTIO_MUTUAL" => {
            log.note(
                &place,
                "not carried over: Istio's control plane gives those certificates, and pillion has \
                 none; set `tls` with your own, or call without TLS",
            );
            return None;
        }
        _ => {
            log.fault(&place, format!("found `{mode}`; expected `DISABLE`, `SIMPLE`, `MUTUAL` or `ISTIO_MUTUAL`"));
            return None;
        }
    }
    let mut out = Map::new();
    let files = [("caCertificates", "ca"), ("clientCertificate", "cert"), ("privateKey", "key")];
    let files: Vec<_> = files.into_iter().filter_map(|(key, ours)| Some((key, ours, at.text(key, log)?))).collect();
    // A certificate goes with its key.
    let pair = files.iter().filter(|(_, ours, file)| *ours != "ca" && Path::new(file).is_file()).count() == 2;
    for (key, ours, file) in files {
        if Path::new(&file).is_file() && (ours == "ca" || pair) {
            out.insert(ours.into(), json!(file));
        } else if let Some(at) = at.get(key) {
            log.note(&at, format!("left out: `{file}` is not there; write `tls.{ours}` where it is"));
        }
    }
    let mut names = at.texts("subjectAltNames", log);
    let sni = at.text("sni", log);
    if names.len() > 1 || names.first().is_some_and(|name| sni.as_ref().is_some_and(|sni| sni != name)) {
        if let Some(at) = at.get("subjectAltNames") {
            log.note(&at, "not carried over: pillion asks for one name and checks the same, `tls.server_name`");
        }
        names.truncate(1);
    }
    if let Some(name) = sni.or_else(|| names.pop()) {
        out.insert("server_name".into(), json!(name));
    }
    if at.bool("insecureSkipVerify", log) == Some(true)
        && let Some(at) = at.get("insecureSkipVerify")
    {
        log.note(&at, "not carried over: pillion always checks certificates; name the authority in `tls.ca`");
    }
    for (key, why) in [
        (
            "credentialName",
            "not carried over: pillion reads no secrets of Kubernetes; mount them, and name the files in `tls`",
        ),
        ("caCrl", "not carried over: pillion reads no revocation lists"),
    ] {
        if let Some(at) = at.get(key) {
            log.note(&at, why);
        }
    }
    Some(out)
}
