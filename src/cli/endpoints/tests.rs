use super::*;
use crate::{
    admin::{
        tests::{embedded, naming, register, start},
        view::{Checks, Limits, Origin, Settings, Source, SourceState},
    },
    cli::services::Services,
    config::{Policy, Timeouts},
    registry::layout::plain::Entry,
};
use clap::Args;
use std::collections::BTreeMap;

fn command<T: Args>(args: &[&str]) -> T {
    let matches = T::augment_args(clap::Command::new("x")).get_matches_from([&["x"], args].concat());
    T::from_arg_matches(&matches).unwrap()
}

#[tokio::test]
async fn the_commands_read_a_running_admin_interface() {
    let registry = embedded("main");
    register(&registry, "users", Entry::new("10.0.0.7:80")).await;
    register(&registry, "mail", Entry::new("10.0.0.8:80")).await;
    let running = start(naming(&["users"]), vec![registry]);
    running.until_ready().await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let admin = listener.local_addr().unwrap().to_string();
    tokio::spawn(axum::serve(listener, running.router.clone()).into_future());

    let endpoints = async |args: &[&str]| {
        command::<Endpoints>(&[args, &["--admin", &admin]].concat()).output().await.map_err(|e| e.to_string())
    };
    let shown = endpoints(&["users"]).await.unwrap();
    assert!(shown.starts_with("users: known, 1 of 1 endpoints available\n  peak-ewma, timeouts: "), "{shown}");
    assert!(shown.contains("\n10.0.0.7:80  available     100 "), "{shown}");
    let json: Detail = serde_json::from_str(&endpoints(&["users", "--json"]).await.unwrap()).unwrap();
    assert_eq!(json.endpoints[0].address, "10.0.0.7:80");
    for name in ["user", "user/../é ?"] {
        let error = endpoints(&[name]).await.unwrap_err();
        let expected = format!("`{name}` is not followed");
        assert!(error.starts_with(&expected) && error.ends_with("\nfollowed: users"), "{error}");
    }
    let services = command::<Services>(&["--all", "--admin", &admin]).output().await.unwrap();
    assert!(services.contains("\nusers    known        1/1 ") && services.contains("\nmail "), "{services}");
}

fn health(state: Condition) -> Health {
    Health { state, ..endpoint("").health }
}

fn endpoint(address: &str) -> EndpointDetail {
    EndpointDetail {
        id: address.into(),
        address: address.into(),
        weight: 100,
        zone: None,
        labels: BTreeMap::new(),
        protocol: None,
        tls: None,
        registry_healthy: true,
        gone: false,
        checks: None,
        health: Health {
            state: Condition::Available,
            cause: None,
            probe_in_seconds: None,
            consecutive_failures: 0,
            ejections: 0,
            recent_requests: 0,
            recent_success_rate: None,
        },
        in_flight: 0,
        requests: 0,
        failures: 0,
        latency_ms: None,
        penalty_seconds: None,
    }
}

fn detail(state: State, endpoints: Vec<EndpointDetail>, sources: Vec<Source>) -> Detail {
    Detail {
        name: "users".into(),
        state,
        settings: Settings {
            policy: Policy::PeakEwma,
            protocol: Some(Protocol::Http2),
            tls: true,
            registered_as: Some("users-v2".into()),
            timeouts: Timeouts::default(),
            balance: config::Balance::default(),
            retry: config::Retry::default(),
            hedge: None,
            breaker: config::Breaker::default(),
            outlier: config::Outlier::default(),
            panic_threshold: 50,
            health_check: None,
            fallback: None,
            faults: None,
        },
        retries: Retries::default(),
        subsets: Vec::new(),
        limits: Limits { settings: config::Limits::default(), requests: 1024, waiting: 0, connections: 0 },
        origin: Origin { sources, ..Origin::default() },
        in_flight: 0,
        panicking: false,
        errors: [("no_endpoints".to_owned(), 3)].into(),
        endpoints,
    }
}

#[test]
fn endpoints_are_a_table_under_what_holds_for_all() {
    let canary = EndpointDetail {
        weight: 0,
        health: health(Condition::NoWeight),
        zone: Some("az-1".into()),
        labels: [("env", "dev"), ("version", "canary")].map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
        ..endpoint("10.0.0.10:8080")
    };
    let busy =
        EndpointDetail { in_flight: 12, requests: 120_455, latency_ms: Some(1.234), ..endpoint("10.0.0.9:8080") };
    let ejected = Health {
        cause: Some("consecutive_failures".into()),
        probe_in_seconds: Some(1.25),
        ..health(Condition::Ejected)
    };
    let ill = EndpointDetail { health: ejected, failures: 7, ..endpoint("node-3:80") };
    let main = Source {
        source: "main".into(),
        state: SourceState::Failing,
        in_use: true,
        instances: Some(3),
        age_seconds: Some(3.2),
        failure: Some("no".into()),
        ..Source::default()
    };
    let shown = show(&detail(State::Known, vec![ill, canary, busy], vec![main]));
    let expected = "\
users: known, 1 of 3 endpoints available
  peak-ewma, http2, TLS, registered as users-v2, timeouts: connect 1s, request 15s, idle 1m
  main 3s failing, 3 instances: no
  answered or cut off by pillion: 3 × no_endpoints

ADDRESS         STATE                                          WEIGHT  IN FLIGHT  REQUESTS  FAILED  LATENCY  ZONE  LABELS
10.0.0.9:8080   available                                         100         12    120455       0    1.2ms
10.0.0.10:8080  no weight                                           0          0         0       0        -  az-1  env=dev,version=canary
node-3:80       ejected (consecutive failures), probe in 1.2s     100          0         0       7        -
";
    assert_eq!(shown, expected);
}

#[test]
fn limits_are_shown_where_there_is_something_to_tell() {
    let mut detail = detail(State::Known, Vec::new(), Vec::new());
    assert_eq!(limits(&detail), None);
    detail.errors.insert("overloaded".into(), 1);
    let met = limits(&detail).unwrap();
    assert_eq!(met, "limits: 0 of 1024 requests, 0 of 1024 connections");
    let per_caller = config::CallerRate { header: "x-caller".into(), per_second: 5, burst: None, max_callers: 10 };
    detail.limits = Limits {
        settings: config::Limits {
            requests: 200,
            queue_timeout: std::time::Duration::from_secs(1),
            adaptive: Some(config::AdaptiveLimit::default()),
            rate: Some(config::RateLimit { per_second: Some(100), burst: None, per_caller: Some(per_caller) }),
            ..config::Limits::default()
        },
        requests: 47,
        waiting: 3,
        connections: 50,
    };
    detail.in_flight = 47;
    let expected = "limits: 47 of 47 requests, adaptive from 10 to 200, 3 of 1024 waiting, 50 of 1024 connections, \
                        100 per second, 5 per second and x-caller";
    assert_eq!(limits(&detail).unwrap(), expected);
}

#[test]
fn what_active_checks_found_is_in_the_state() {
    let seen = |state, check, failure: &str| {
        let failure = Some(failure.to_owned()).filter(|failure| !failure.is_empty());
        let checks = Checks { state: check, failure, age_seconds: Some(1.0), took_ms: Some(2.0), next_in_seconds: 3.0 };
        EndpointDetail { health: health(state), checks: Some(checks), ..endpoint("a:1") }
    };
    let shown = |state, check, failure| condition(&seen(state, check, failure));
    assert_eq!(
        shown(Condition::Unhealthy, CheckState::Unhealthy, "HTTP: status 503; expected 200-399"),
        "unhealthy (HTTP: status 503; expected 200-399)"
    );
    assert_eq!(shown(Condition::Unhealthy, CheckState::Unhealthy, ""), "unhealthy (checks)");
    assert_eq!(shown(Condition::Available, CheckState::Suspect, "TCP: x"), "available, suspect (TCP: x)");
    assert_eq!(shown(Condition::Available, CheckState::Healthy, ""), "available");
    let long = shown(Condition::Unhealthy, CheckState::Unhealthy, &"é".repeat(100));
    assert_eq!(long, format!("unhealthy ({}…)", "é".repeat(59)));
    let gone = EndpointDetail { gone: true, ..seen(Condition::Available, CheckState::Healthy, "") };
    assert_eq!(condition(&gone), "available, gone from its registry");
}

#[test]
fn fallbacks_and_faults_stand_behind_the_other_settings() {
    let mut detail = detail(State::Known, Vec::new(), Vec::new());
    detail.settings.fallback = Some("service orders-standby".into());
    detail.settings.faults = crate::config::read(
        "f",
        b"delay: { percent: 0.5, duration: 1s }\nabort: { percent: 10, status: 502, header: x-fault }",
    )
    .ok();
    assert!(
        settings(&detail).ends_with(
            ", idle 1m, fallback: service orders-standby, faults: delay 1s in 0.5 %, abort 502 in 10 % with x-fault"
        ),
        "{}",
        settings(&detail)
    );
}

#[test]
fn why_there_are_no_endpoints_is_said() {
    let last = |state, sources| show(&detail(state, Vec::new(), sources)).lines().last().unwrap().to_owned();
    let main = || Source { source: "main".into(), ..Source::default() };
    assert_eq!(last(State::Pending, vec![main()]), "no endpoints: no registry has answered yet");
    assert_eq!(last(State::Pending, Vec::new()), "no endpoints: there is no registry to ask");
    assert_eq!(last(State::Unknown, vec![main()]), "no endpoints: no registry knows a service of this name");
    assert_eq!(last(State::Known, vec![main()]), "no endpoints: no registry lists an instance now");
}

#[test]
fn a_name_that_is_not_followed_is_answered_with_those_that_are() {
    let followed = ["orders".to_owned(), "users".to_owned()];
    assert_eq!(
        not_followed("usres", &followed),
        "`usres` is not followed; did you mean `users`?\nfollowed: orders, users"
    );
    assert_eq!(not_followed("mail", &followed), "`mail` is not followed\nfollowed: orders, users");
    assert!(not_followed("mail", &[]).contains("no other service is"));
}

#[test]
fn latencies_are_short() {
    for (ms, shown) in
        [(0.45, "450us"), (1.24, "1.2ms"), (99.9, "99.9ms"), (99.96, "100ms"), (750.4, "750ms"), (1500.0, "1.5s")]
    {
        assert_eq!(latency(ms).as_deref(), Some(shown));
    }
    assert_eq!((latency(0.0), latency(0.9999).as_deref()), (None, Some("1.0ms")));
}

#[test]
fn what_an_endpoint_speaks_is_in_one_word() {
    let speaking = |protocol, tls| speaks(&EndpointDetail { protocol, tls, ..endpoint("a:1") });
    assert_eq!(speaking(Some(Protocol::Http2), Some(true)), "http2+tls");
    assert_eq!((speaking(None, Some(true)), speaking(None, Some(false))), ("tls".into(), String::new()));
}
