use super::*;
use proptest::prelude::*;
use std::collections::{HashMap, HashSet};

const WORDS: Words = Words {
    errors: &["no_endpoints", "connect"],
    retries: &["reset"],
    pool_closed: &["idle", "age"],
    refused: &["limit"],
    endpoints: &["ready", "ejected"],
    ejections: &["outlier"],
    health_checks: &["passed", "failed"],
    fallbacks: &["response"],
    faults: &["delay"],
    dns: &["answered"],
    dropped: &["full"],
    mirror_skipped: &["busy"],
    registrations: &["registered"],
    route_updates: &["accepted"],
    rollout_phases: &["running"],
    rollout_decisions: &["promote"],
};

const OPEN: Option<&str> = Some("application/openmetrics-text;version=1.0.0");

/// One of everything.
fn busy(service: &str) -> (Metrics, Vec<Box<dyn std::any::Any>>) {
    let metrics = Metrics::new(WORDS);
    let handle = metrics.service(service);
    for (code, micros) in [(200, 1), (200, 700), (503, 20_000_000), (100, 500), (599, 1), (0, 1), (999, 1)] {
        handle.requests.inc(code);
        handle.duration.observe(Duration::from_micros(micros));
    }
    handle.in_flight.inc();
    handle.requests_limit.set(7);
    handle.retries_active.inc();
    handle.errors.inc(1);
    handle.endpoints.set(0, 3);
    handle.pool.active.set(2);
    let source = metrics.source(service, "main", || Some(Duration::from_millis(1500)));
    source.changes.inc();
    let listener = metrics.listener("egress");
    listener.accepted.add(4);
    let app = metrics.app(service, "inbound");
    app.requests.inc(200);
    let inbound = metrics.inbound("inbound", || Some(true));
    let caller = inbound.caller(service, 10);
    caller.red.count(200, false, Duration::from_millis(3));
    caller.red.count(503, true, Duration::from_millis(3));
    let thread = metrics.thread("worker-0", || 6);
    metrics.reloads.failed.inc();
    metrics.snapshots.corrupt.inc();
    let more: [Box<dyn std::any::Any>; 3] = [Box::new(app), Box::new(inbound), Box::new(caller)];
    let handles: [Box<dyn std::any::Any>; 4] =
        [Box::new(handle), Box::new(source), Box::new(listener), Box::new(thread)];
    (metrics, more.into_iter().chain(handles).collect())
}

#[test]
fn the_prometheus_text_has_what_was_counted() {
    let (metrics, _handles) = busy("users");
    let (kind, body) = metrics.render(None);
    assert_eq!(kind, "text/plain; version=0.0.4");
    for line in [
        "# TYPE pillion_requests_total counter",
        r#"pillion_requests_total{service="users",code="200"} 2"#,
        r#"pillion_requests_total{service="users",code="503"} 1"#,
        r#"pillion_requests_total{service="users",code="599"} 1"#,
        r#"pillion_requests_total{service="users",code="other"} 2"#,
        r#"pillion_request_duration_seconds_bucket{service="users",le="0.0005"} 5"#,
        r#"pillion_request_duration_seconds_bucket{service="users",le="0.001"} 6"#,
        r#"pillion_request_duration_seconds_bucket{service="users",le="10"} 6"#,
        r#"pillion_request_duration_seconds_bucket{service="users",le="+Inf"} 7"#,
        r#"pillion_request_duration_seconds_count{service="users"} 7"#,
        r#"pillion_requests_in_flight{service="users"} 1"#,
        r#"pillion_requests_waiting{service="users"} 0"#,
        r#"pillion_requests_limit{service="users"} 7"#,
        r#"pillion_retries_active{service="users"} 1"#,
        r#"pillion_tasks{thread="worker-0"} 6"#,
        r#"pillion_errors_total{service="users",reason="connect"} 1"#,
        r#"pillion_errors_total{service="users",reason="no_endpoints"} 0"#,
        r#"pillion_endpoints{service="users",state="ready"} 3"#,
        r#"pillion_pool_connections{service="users",state="active"} 2"#,
        r#"pillion_discovery_age_seconds{service="users",source="main"} 1.5"#,
        r#"pillion_discovery_changes_total{service="users",source="main"} 1"#,
        r#"pillion_connections_accepted_total{listener="egress"} 4"#,
        r#"pillion_requests_total{service="users",listener="inbound",code="200"} 1"#,
        r#"pillion_requests_in_flight{service="users",listener="inbound"} 0"#,
        r#"pillion_inbound_requests_total{listener="inbound",caller="users",code="503"} 1"#,
        r#"pillion_inbound_errors_total{listener="inbound",caller="users"} 1"#,
        r#"pillion_inbound_request_duration_seconds_count{listener="inbound",caller="users"} 2"#,
        r#"pillion_app_healthy{listener="inbound"} 1"#,
        r#"pillion_config_reloads_total{result="failed"} 1"#,
        r#"pillion_access_log_dropped_total 0"#,
        r#"pillion_snapshot_writes_total 0"#,
        r#"pillion_snapshot_errors_total{kind="write"} 0"#,
        r#"pillion_snapshot_errors_total{kind="corrupt"} 1"#,
    ] {
        assert!(body.lines().any(|there| there == line), "{line}\n{body}");
    }
}

#[test]
fn openmetrics_names_counters_families_without_their_ending() {
    let (metrics, _handles) = busy("users");
    let (kind, body) = metrics.render(OPEN);
    assert_eq!(kind, openmetrics::CONTENT_TYPE);
    check_openmetrics(&body);
    for line in [
        "# TYPE pillion_request_bytes counter",
        "# UNIT pillion_request_bytes bytes",
        r#"pillion_request_bytes_total{service="users"} 0"#,
        r#"pillion_request_duration_seconds_bucket{service="users",le="10.0"} 6"#,
        r#"pillion_request_duration_seconds_bucket{service="users",le="+Inf"} 7"#,
    ] {
        assert!(body.lines().any(|there| there == line), "{line}\n{body}");
    }
}

#[test]
fn a_process_shows_itself() {
    let (_, body) = Metrics::new(WORDS).render(OPEN);
    check_openmetrics(&body);
    for name in [
        "process_cpu_seconds_total",
        "process_resident_memory_bytes",
        "process_virtual_memory_bytes",
        "process_open_fds",
        "process_max_fds",
        "process_threads",
        "process_start_time_seconds",
        "pillion_build_info{",
    ] {
        let line = body.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{name}\n{body}"));
        let value: f64 = line.rsplit_once(' ').unwrap().1.parse().unwrap();
        assert!(value > 0.0 || name.contains("cpu"), "{line}");
    }
}

#[test]
fn a_series_lives_as_long_as_its_handle() {
    let metrics = Metrics::new(WORDS);
    let (users, orders) = (metrics.service("users"), metrics.service("orders"));
    assert!(Arc::ptr_eq(&users, &metrics.service("users")));
    users.requests.inc(200);
    let source = metrics.source("users", "main", || None);
    let in_flight = users.clone();
    drop((users, source));
    assert!(metrics.render(None).1.contains("\"users\""), "a request still holds it");
    drop(in_flight);
    let (_, body) = metrics.render(None);
    assert!(!body.contains("\"users\"") && body.contains("\"orders\""), "{body}");
    let users = metrics.service("users");
    assert_eq!(users.requests.each().count(), 0, "it starts again from zero");
    drop(orders);
    assert_eq!(metrics.services.0.load().len(), 2);
    let _carts = metrics.service("carts");
    assert_eq!(metrics.services.0.load().len(), 2, "what nobody holds is also gone from the list");
}

#[test]
fn a_newer_source_takes_the_place_of_an_older_one() {
    let metrics = Metrics::new(WORDS);
    let older = metrics.source("users", "main", || Some(Duration::from_secs(9)));
    let newer = metrics.source("users", "main", || Some(Duration::from_secs(1)));
    older.failures.inc();
    let (_, body) = metrics.render(OPEN);
    check_openmetrics(&body);
    assert!(body.contains(r#"pillion_discovery_age_seconds{service="users",source="main"} 1"#), "{body}");
    assert_eq!(newer.failures.get(), 0);
}

#[test]
fn a_caller_has_its_numbers_for_as_long_as_somebody_holds_them() {
    let metrics = Metrics::new(WORDS);
    let inbound = metrics.inbound("inbound", || None);
    let first = inbound.caller("a", 1);
    assert!(Arc::ptr_eq(&first, &inbound.caller("a", 1)));
    first.red.count(200, false, Duration::ZERO);
    assert_eq!(
        (&*inbound.caller("b", 1).caller, &*inbound.caller("b", 2).caller),
        (OTHER, "b"),
        "the limit may change"
    );
    drop(first);
    let b = inbound.caller("b", 1);
    let (_, body) = metrics.render(None);
    assert!(!body.contains(r#"caller="a""#) && body.contains(r#"caller="b""#), "{body}");
    assert!(!body.contains("pillion_app_healthy"), "there are no checks");
    assert_eq!(b.red.totals(), (0, 0));
    assert_eq!(&*inbound.caller("a", 2).caller, "a");
    assert_eq!(&*inbound.caller("c", 1).caller, OTHER);
}

#[test]
fn no_more_callers_than_may_have_numbers_however_many_threads_find_them() {
    let metrics = Metrics::new(WORDS);
    let inbound = metrics.inbound("inbound", || None);
    let held: Vec<_> = std::thread::scope(|scope| {
        let all = |of: usize| (0..50).map(|n| inbound.caller(&format!("{of}-{n}"), 20)).collect::<Vec<_>>();
        let threads: Vec<_> = (0..4).map(|of| scope.spawn(move || all(of))).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(held.len(), 200);
    assert_eq!(inbound.callers().len(), 21, "and `other`");
}

#[test]
fn threads_that_ask_at_one_moment_get_one_handle() {
    let metrics = Metrics::new(WORDS);
    let handles: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| metrics.service("users"))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    for handle in &handles {
        assert!(Arc::ptr_eq(handle, &handles[0]));
    }
    assert_eq!(metrics.services.0.load().len(), 1);
}

#[test]
fn the_client_says_which_format_it_wants() {
    for (accept, open) in [
        ("application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.2", true),
        ("application/openmetrics-text", true),
        ("Application/OpenMetrics-Text; version=1.0.0", true),
        ("text/plain, application/openmetrics-text;q=0.5", false),
        ("application/openmetrics-text;q=0", false),
        ("application/openmetrics-text;q=x", false),
        ("text/html,*/*", false),
        ("*/*", false),
        ("", false),
    ] {
        assert_eq!(openmetrics::is_preferred(accept), open, "{accept}");
    }
}

proptest! {
    #[test]
    fn any_service_name_gives_valid_text(name in any::<String>()) {
        let (metrics, _handles) = busy(&name);
        let labels = check_openmetrics(&metrics.render(OPEN).1);
        prop_assert!(labels.contains(&name));
    }
}

/// Refuses what OpenMetrics 1.0 forbids, as far as pillion's types of metrics go. Gives all label values.
fn check_openmetrics(body: &str) -> HashSet<String> {
    let body = body.strip_suffix("# EOF\n").expect("ends with # EOF");
    let (mut families, mut series, mut values) = (HashSet::new(), HashSet::new(), HashSet::new());
    let (mut family, mut kind) = (String::new(), String::new());
    let mut buckets: HashMap<String, (f64, f64)> = HashMap::new();
    // Not `lines`, which would also take `\r\n`.
    for line in body.split_terminator('\n') {
        if let Some(text) = line.strip_prefix("# ") {
            let mut words = text.splitn(3, ' ');
            let (what, name, rest) = (words.next().unwrap(), words.next().unwrap(), words.next().unwrap());
            if what == "TYPE" {
                assert!(families.insert(name.to_owned()), "{line}: twice");
                assert!(rest != "counter" || !name.ends_with("_total"), "{line}");
                (family, kind) = (name.to_owned(), rest.to_owned());
            }
            assert_eq!(name, family, "{line}: not under its TYPE");
            assert!(what != "UNIT" || name.ends_with(&format!("_{rest}")), "{line}");
            assert!(["TYPE", "HELP", "UNIT"].contains(&what), "{line}");
            continue;
        }
        let end = line.find(['{', ' ']).unwrap();
        let ending = line[..end].strip_prefix(&*family).unwrap_or_else(|| panic!("{line}: not of family {family}"));
        let endings: &[&str] = match kind.as_str() {
            "counter" => &["_total"],
            "gauge" => &[""],
            "histogram" => &["_bucket", "_sum", "_count"],
            _ => panic!("{kind}"),
        };
        assert!(endings.contains(&ending), "{line}");
        let (labels, rest) = labels_of(&line[end..]);
        let value: f64 = rest.strip_prefix(' ').unwrap().parse().unwrap();
        assert!(kind == "gauge" || value >= 0.0, "{line}");
        assert!(series.insert(line[..line.len() - rest.len()].to_owned()), "{line}: twice");
        values.extend(labels.iter().map(|(_, value)| value.clone()));
        if ending == "_bucket" {
            let le = &labels.iter().find(|(name, _)| name == "le").expect(line).1;
            let bound: f64 = le.parse().unwrap();
            assert!(le == "+Inf" || *le == format!("{bound:?}"), "{line}: not canonical");
            let (of, _) = line.split_once("le=").unwrap();
            let (last_bound, last) = buckets.insert(of.into(), (bound, value)).unwrap_or((f64::NEG_INFINITY, 0.0));
            assert!(bound > last_bound && value >= last, "{line}: not cumulative");
        }
    }
    assert!(buckets.values().all(|(bound, _)| bound.is_infinite()), "a histogram without +Inf");
    values
}

/// The labels at the start of `text`, unescaped, and what comes after them.
fn labels_of(text: &str) -> (Vec<(String, String)>, &str) {
    let mut labels = Vec::new();
    let Some(mut rest) = text.strip_prefix('{') else { return (labels, text) };
    loop {
        let (name, after) = rest.split_once("=\"").unwrap();
        assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{text}");
        let mut value = String::new();
        let mut chars = after.char_indices();
        let end = loop {
            match chars.next().unwrap() {
                (at, '"') => break at,
                (_, '\\') => value.push(match chars.next().unwrap().1 {
                    'n' => '\n',
                    same @ ('"' | '\\') => same,
                    other => panic!("{text}: escape {other}"),
                }),
                (_, other) => value.push(other),
            }
        };
        labels.push((name.to_owned(), value));
        match after[end + 1..].strip_prefix(',') {
            Some(more) => rest = more,
            None => return (labels, after[end + 1..].strip_prefix('}').unwrap()),
        }
    }
}
