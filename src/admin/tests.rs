use super::{
    view::{Detail, Draining, NotReady, Services},
    *,
};
use crate::{
    cluster::health::{Choice, Outcome},
    config::{self, Service},
    discovery::{Discovery, Registries},
    drain::{End, Step},
    inbound::LocalApps,
    registry::{
        Consul, Registry, RegistryError, Sink,
        embedded::{Embedded, Registration},
        layout::plain::Entry,
    },
    telemetry::{access_log, labels::WORDS, log, metrics::Metrics},
};
use axum::body::{Body, Bytes};
use futures_util::future::BoxFuture;
use http_body_util::BodyExt;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::{
    future::pending,
    sync::{OnceLock, atomic::Ordering::Relaxed},
    time::Duration,
};
use tokio::{
    task::JoinHandle,
    time::{Instant, timeout},
};
use tower::ServiceExt;

/// Only a failing test waits so long.
const PATIENCE: Duration = Duration::from_secs(60);

/// The process has one log; the tests that change its level are one test.
fn log_handle() -> LogHandle {
    static LOG: OnceLock<LogHandle> = OnceLock::new();
    LOG.get_or_init(|| log::install(&config::Log { level: "off".into(), ..Default::default() }).unwrap()).clone()
}

pub(crate) struct Running {
    pub(crate) router: Router,
    discovery: discovery::Handle,
    health: Arc<Health>,
    drain: Arc<Drain>,
    following: JoinHandle<()>,
    _local_apps: LocalApps,
}

pub(crate) fn start(config: Config, registries: Vec<Arc<dyn Registry>>) -> Running {
    let metrics = Metrics::new(WORDS);
    let off = config::AccessLog { mode: config::AccessLogMode::Off, ..Default::default() };
    let access_log = access_log::AccessLog::start(&off, metrics.access_log_dropped.clone()).unwrap();
    let telemetry = Arc::new(Telemetry { metrics, access_log });
    let registries: Registries =
        registries.into_iter().map(|registry| (registry.name().to_owned(), registry)).collect();
    let config = Config {
        discovery: config::Discovery {
            sources: registries.keys().map(|name| name.as_str().into()).collect(),
            coalesce: Duration::from_millis(1),
            ..config.discovery
        },
        ..config
    };
    let (task, discovery) =
        Discovery::new(Arc::new(config.clone()), registries.clone(), None, Default::default(), telemetry.clone())
            .unwrap();
    let following = tokio::spawn(task.run());
    let mut local_apps = LocalApps::new(telemetry.clone());
    local_apps.apply(&config);
    let health = Arc::new(Health::default());
    health.listening.store(true, Relaxed);
    let drain = Arc::new(Drain::default());
    let router = router(Arc::new(State {
        config: Arc::new(ArcSwap::from_pointee(config)),
        discovery: discovery.clone(),
        telemetry: telemetry.clone(),
        log: log_handle(),
        registries: Arc::new(ArcSwap::from_pointee(registries)),
        registrar: crate::registrar::Registrar::new(telemetry).1,
        health: health.clone(),
        drain: drain.clone(),
        local_apps: local_apps.handle(),
    }));
    Running { router, discovery, health, drain, following, _local_apps: local_apps }
}

/// A config that names these services.
pub(crate) fn naming(services: &[&str]) -> Config {
    let services = services.iter().map(|name| ((*name).to_owned(), Service::default())).collect();
    Config { services, ..Config::default() }
}

pub(crate) fn embedded(name: &str) -> Arc<Embedded> {
    let (registry, task) = Embedded::open(name, &Default::default()).unwrap();
    tokio::spawn(task);
    registry
}

pub(crate) async fn register(registry: &Embedded, name: &str, entry: Entry) {
    registry.register(Registration { name: name.into(), entry, ttl: None }).await.unwrap();
}

/// A registry at whose address nobody listens.
fn down(name: &str) -> Arc<dyn Registry> {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let config = config::ConsulRegistry { address: format!("http://127.0.0.1:{port}"), ..Default::default() };
    Arc::new(Consul::new(name, &config).unwrap())
}

/// A registry that takes every question and answers none.
struct Mute;

impl Registry for Mute {
    fn name(&self) -> &str {
        "mute"
    }

    fn kind(&self) -> &'static str {
        "mute"
    }

    fn follow(self: Arc<Self>, _: String, _: Sink) -> BoxFuture<'static, ()> {
        Box::pin(pending())
    }

    fn list(self: Arc<Self>) -> BoxFuture<'static, Result<Vec<String>, RegistryError>> {
        Box::pin(pending())
    }

    fn silence_limit(&self) -> Duration {
        Duration::from_secs(3600)
    }
}

impl Running {
    async fn call(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> (StatusCode, HeaderMap, Bytes) {
        self.call_from("127.0.0.1:50000", method, path, headers).await
    }

    async fn call_from(
        &self,
        peer: &str,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
    ) -> (StatusCode, HeaderMap, Bytes) {
        let peer = ConnectInfo(peer.parse::<SocketAddr>().unwrap());
        let mut request = Request::builder().method(method).uri(path).extension(peer);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let answer = self.router.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
        let (head, body) = answer.into_parts();
        (head.status, head.headers, body.collect().await.unwrap().to_bytes())
    }

    async fn text(&self, path: &str) -> (StatusCode, String) {
        let (status, _, body) = self.call("GET", path, &[]).await;
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    async fn read<T: DeserializeOwned>(&self, path: &str) -> (StatusCode, T) {
        let (status, headers, body) = self.call("GET", path, &[]).await;
        assert_eq!(headers[header::CONTENT_TYPE], "application/json");
        (status, serde_json::from_slice(&body).unwrap_or_else(|error| panic!("{error}: {body:?}")))
    }

    pub(crate) async fn until_ready(&self) {
        let ready = async {
            while self.text("/ready").await.0 != StatusCode::OK {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(PATIENCE, ready).await.unwrap();
    }
}

#[tokio::test]
async fn services_and_their_endpoints_are_shown() {
    let registry = embedded("main");
    let labels = [("version".to_owned(), "v2".to_owned())].into();
    let full = Entry { weight: Some(50), zone: Some("az-1".into()), labels, ..Entry::new("10.0.0.7:80") };
    register(&registry, "users", full).await;
    register(&registry, "users", Entry { weight: Some(0), ..Entry::new("10.0.0.8:80") }).await;
    register(&registry, "mail", Entry::new("10.0.0.9:80")).await;
    let running = start(naming(&["users", "empty"]), vec![registry]);
    running.until_ready().await;

    let (status, seen) = running.read::<Services>("/api/services").await;
    assert_eq!((status, seen.not_followed), (StatusCode::OK, None));
    let [empty, users] = &seen.services[..] else { panic!("{:?}", seen.services) };
    assert_eq!((empty.name.as_str(), empty.state, empty.endpoints), ("empty", view::State::Known, 0));
    assert_eq!((users.endpoints, users.available, users.requests), (2, 1, 0));
    let [source] = &users.origin.sources[..] else { panic!("{:?}", users.origin.sources) };
    assert_eq!((source.source.as_str(), source.instances, &source.failure), ("main", Some(2), &None));
    assert!(source.age_seconds.is_some());

    let (_, seen) = running.read::<Services>("/api/services?all=1").await;
    let other = seen.not_followed.unwrap();
    assert_eq!(json!(other), json!({"services": [{"name": "mail", "registries": ["main"]}], "failures": []}));

    let cluster = running.discovery.table().get("users").unwrap();
    let endpoint = cluster.load().endpoints[0].clone();
    endpoint.live.observe(Duration::from_millis(5), Instant::now());
    let mut carried = crate::cluster::endpoint::InFlight::start(endpoint, Choice::Available);
    carried.tell(Outcome::Failure, 5);
    cluster.metrics.errors.inc(crate::error::Reason::ConnectFailed as usize);
    let (status, seen) = running.read::<Detail>("/api/services/users").await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(json!(seen.settings.policy), json!("peak-ewma"));
    assert_eq!(json!(seen.settings.timeouts)["request"], json!("15s"));
    assert_eq!(json!(seen.errors), json!({"connect_failed": 1}));
    assert_eq!((seen.limits.requests, seen.limits.waiting, seen.limits.connections), (1024, 0, 0));
    assert_eq!(json!(seen.limits.settings)["queue_timeout"], json!("0s"));
    let [first, second] = &seen.endpoints[..] else { panic!("{:?}", seen.endpoints) };
    assert_eq!((first.address.as_str(), first.weight, first.zone.as_deref()), ("10.0.0.7:80", 50, Some("az-1")));
    assert_eq!((first.in_flight, first.requests, first.failures), (1, 1, 1));
    assert_eq!((first.labels["version"].as_str(), first.is_available()), ("v2", true));
    assert!((1.0..=5.0).contains(&first.latency_ms.unwrap()), "{first:?}");
    assert!(second.registry_healthy && !second.is_available() && second.latency_ms.is_none());

    let (status, refused) = running.read::<Value>("/api/services/usres").await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    assert_eq!(refused["error"], "`usres` is not followed");
    assert_eq!(refused["followed"], json!(["empty", "users"]));
    assert!(running.discovery.table().get("usres").is_none(), "a question follows nothing");
}

#[tokio::test]
async fn a_service_that_is_followed_under_another_name_is_not_listed_as_unfollowed() {
    let registry = embedded("main");
    register(&registry, "users-v2", Entry::new("10.0.0.7:80")).await;
    let service = Service { registered_as: Some("users-v2".into()), ..Service::default() };
    let config = Config { services: [("users".to_owned(), service)].into(), ..Config::default() };
    let running = start(config, vec![registry]);
    running.until_ready().await;
    let (_, seen) = running.read::<Services>("/api/services?all=true").await;
    assert_eq!((seen.services[0].endpoints, seen.not_followed), (1, Some(view::NotFollowed::default())));
}

#[tokio::test]
async fn ready_needs_listeners_answers_and_no_drain() {
    let registry = embedded("main");
    let running = start(naming(&["users"]), vec![registry]);
    running.health.listening.store(false, Relaxed);
    let not_ready = async |path: &str, listening, draining| {
        let (status, seen) = running.read::<NotReady>(path).await;
        assert_eq!((status, seen.listening, seen.draining), (StatusCode::SERVICE_UNAVAILABLE, listening, draining));
        assert_eq!(running.text("/live").await, (StatusCode::OK, "ok\n".into()));
    };
    not_ready("/ready", false, false).await;
    not_ready("/startup", false, false).await;
    running.health.listening.store(true, Relaxed);
    running.until_ready().await;
    assert_eq!(running.text("/startup").await, (StatusCode::OK, "ok\n".into()));
    // The start is over for good, whatever comes.
    running.health.listening.store(false, Relaxed);
    not_ready("/ready", false, false).await;
    running.health.listening.store(true, Relaxed);
    running.drain.ask(End::Drain, "SIGTERM", Duration::from_secs(30));
    not_ready("/ready", true, true).await;
    assert_eq!(running.text("/startup").await, (StatusCode::OK, "ok\n".into()));
}

#[tokio::test]
async fn the_end_is_asked_for_and_seen() {
    let running = start(Config::default(), vec![embedded("main")]);
    let (status, seen) = running.read::<Draining>("/api/drain").await;
    assert_eq!((status, seen.step, seen.asked), (StatusCode::OK, Step::Running, None));
    assert_eq!(running.call("GET", "/api/quit", &[]).await.0, StatusCode::METHOD_NOT_ALLOWED);
    for path in ["/api/drain", "/api/quit"] {
        let (status, _, body) = running.call("POST", path, &[("origin", "http://evil.example")]).await;
        assert_eq!(status, StatusCode::FORBIDDEN, "{body:?}");
    }
    assert!(!running.drain.is_asked(), "by nobody who may");
    for (path, quit) in [("/api/drain", false), ("/api/quit", true), ("/api/drain", true)] {
        let (status, _, body) = running.call("POST", path, &[]).await;
        let asked = serde_json::from_slice::<Draining>(&body).unwrap().asked.unwrap();
        assert_eq!((status, asked.by.as_str(), asked.quit), (StatusCode::ACCEPTED, "POST /api/drain", quit));
        assert!((29.0..=30.0).contains(&asked.deadline_seconds), "{asked:?}");
    }
    running.drain.enter(Step::Spread);
    let (_, seen) = running.read::<Draining>("/api/drain").await;
    assert_eq!((seen.step, seen.now.as_str()), (Step::Spread, "callers hear that the application leaves"));
    assert_eq!(seen.steps.iter().map(|begun| begun.step).collect::<Vec<_>>(), [Step::Spread]);
}

#[tokio::test]
async fn others_may_look_and_only_those_beside_it_may_change_something() {
    let changes = [("POST", "/api/drain"), ("POST", "/api/quit"), ("PUT", "/api/log?level=loud")];
    let running = start(Config::default(), vec![embedded("main")]);
    for peer in ["10.0.0.7:50000", "[fd00::7]:50000", "[::ffff:10.0.0.7]:50000"] {
        for (method, path) in changes {
            let (status, _, body) = running.call_from(peer, method, path, &[]).await;
            let refused: Value = serde_json::from_slice(&body).unwrap();
            assert_eq!(status, StatusCode::FORBIDDEN, "{peer} {path}: {refused}");
            assert!(
                refused["error"].as_str().unwrap().ends_with("may look and cannot change anything here"),
                "{refused}"
            );
            assert!(refused["expected"].as_str().unwrap().contains("remote_control: true"), "{refused}");
        }
        for path in ["/live", "/metrics", "/api/services", "/api/drain", "/api/log"] {
            assert_eq!(running.call_from(peer, "GET", path, &[]).await.0, StatusCode::OK, "{peer} {path}");
        }
    }
    assert!(!running.drain.is_asked(), "by nobody who may");
    for peer in ["127.0.0.2:50000", "[::1]:50000", "[::ffff:127.0.0.1]:50000"] {
        assert_eq!(running.call_from(peer, "POST", "/api/drain", &[]).await.0, StatusCode::ACCEPTED, "{peer}");
    }

    let admin = config::Admin { remote_control: true, ..Default::default() };
    let running = start(Config { admin, ..Config::default() }, vec![embedded("main")]);
    let page = [("origin", "http://evil.example")];
    assert_eq!(running.call_from("10.0.0.7:50000", "POST", "/api/drain", &page).await.0, StatusCode::FORBIDDEN);
    assert!(!running.drain.is_asked());
    for (method, path) in changes {
        let (status, _, _) = running.call_from("10.0.0.7:50000", method, path, &[]).await;
        let expected = if method == "PUT" { StatusCode::BAD_REQUEST } else { StatusCode::ACCEPTED };
        assert_eq!(status, expected, "{path}");
    }
}

#[tokio::test]
async fn everything_answers_at_once_while_the_registries_are_down() {
    let running = start(naming(&["users"]), vec![down("main"), Arc::new(Mute)]);
    let failed = async {
        while running.discovery.status("users").await.sources[0].failure.is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, failed).await.unwrap();
    let begun = Instant::now();
    let (status, seen) = running.read::<NotReady>("/ready").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    let said = "no first answer about `users` (main: cannot reach http://127.0.0.1:";
    assert!(seen.error.contains(said) && seen.error.ends_with("mute: has not answered yet)"), "{}", seen.error);
    assert!(seen.waiting[0].sources[0].failure.is_some());
    let (_, services) = running.read::<Services>("/api/services").await;
    assert_eq!(services.services[0].state, view::State::Pending);
    for path in ["/", "/live", "/metrics", "/api/services/users", "/api/config", "/api/log", "/api/drain"] {
        assert_eq!(running.text(path).await.0, StatusCode::OK, "{path}");
    }
    // Whoever waited for one of them would take longer.
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn registries_that_cannot_list_their_services_are_named() {
    let registry = embedded("good");
    register(&registry, "mail", Entry::new("10.0.0.9:80")).await;
    let running = start(Config::default(), vec![registry, Arc::new(Mute)]);
    let begun = Instant::now();
    let (status, seen) = running.read::<Services>("/api/services?all=1").await;
    assert_eq!((status, begun.elapsed().as_secs()), (StatusCode::OK, 3));
    let expected = json!({
        "services": [{"name": "mail", "registries": ["good"]}],
        "failures": [{"registry": "mute", "failure": "no answer within 3s"}],
    });
    assert_eq!(json!(seen.not_followed), expected);
}

#[tokio::test]
async fn the_config_is_shown_without_its_secrets() {
    let consul = config::ConsulRegistry { token: Some(config::Secret::new("hush")), ..Default::default() };
    let registries = [("main".to_owned(), config::Registry::Consul(consul))].into();
    let running = start(Config { registries, ..Config::default() }, Vec::new());
    let (_, config) = running.read::<Value>("/api/config").await;
    assert_eq!(config["registries"]["main"]["token"], "***");
    assert_eq!(config["admin"]["listen"], "127.0.0.1:4191");
    let (status, headers, body) = running.call("GET", "/api/config", &[("accept", "application/yaml")]).await;
    let body = String::from_utf8(body.to_vec()).unwrap();
    assert_eq!((status, &headers[header::CONTENT_TYPE]), (StatusCode::OK, &"application/yaml".parse().unwrap()));
    assert!(body.contains("kind: consul") && !body.contains("hush"), "{body}");
}

#[tokio::test]
async fn the_log_level_changes_and_web_pages_cannot_change_it() {
    let running = start(Config::default(), Vec::new());
    let put = async |path: &str, headers: &[(&str, &str)]| {
        let (status, _, body) = running.call("PUT", path, headers).await;
        (status, serde_json::from_slice::<Value>(&body).unwrap())
    };
    let level = "error,pillion::registry=off";
    let answer = put(&format!("/api/log?level={level}"), &[]).await;
    assert_eq!(answer, (StatusCode::OK, json!({"level": level})));
    let (status, refused) = put("/api/log?level=loud", &[]).await;
    assert_eq!((status, refused["error"].as_str()), (StatusCode::BAD_REQUEST, Some("found `loud`")));
    assert!(refused["expected"].as_str().unwrap().starts_with("`off`, `error`"), "{refused}");
    for path in ["/api/log", "/api/log?levle=debug", "/api/log?level=%ff"] {
        let (status, refused) = put(path, &[]).await;
        assert!(status == StatusCode::BAD_REQUEST && refused["expected"].is_string(), "{path}: {refused}");
    }
    let page = [("origin", "https://evil.example")];
    assert_eq!(put("/api/log?level=trace", &page).await.0, StatusCode::FORBIDDEN);
    assert_eq!(running.call("GET", "/api/log", &page).await.0, StatusCode::OK);
    assert_eq!(running.read::<Value>("/api/log").await.1, json!({"level": level}));
    assert_eq!(put("/api/log?level=off", &[]).await.0, StatusCode::OK);
}

#[tokio::test]
async fn what_there_is_not_is_answered_with_what_there_is() {
    let running = start(Config::default(), Vec::new());
    let (_, index) = running.text("/").await;
    for (method, path, what) in PATHS {
        assert!(index.contains(path) && index.contains(what), "{index}");
        let path = path.replace("NAME", "x").replace("LEVEL", "off");
        let (status, _, _) = running.call("DELETE", &path, &[]).await;
        assert_eq!(status, StatusCode::METHOD_NOT_ALLOWED, "{method} {path} is in the list, so it must be there");
    }
    for (method, path, status) in [
        ("GET", "/api", StatusCode::NOT_FOUND),
        ("GET", "/api/services/", StatusCode::NOT_FOUND),
        ("POST", "/api/services", StatusCode::METHOD_NOT_ALLOWED),
        ("GET", "/api/services?al=1", StatusCode::BAD_REQUEST),
        ("GET", "/api/services?all=yes", StatusCode::BAD_REQUEST),
        ("GET", "/api/services/%ff", StatusCode::BAD_REQUEST),
    ] {
        let (seen, headers, body) = running.call(method, path, &[]).await;
        assert_eq!(seen, status, "{path}");
        assert_eq!(headers.contains_key(header::ALLOW), status == StatusCode::METHOD_NOT_ALLOWED, "{path}");
        let body: Value = serde_json::from_slice(&body).unwrap();
        assert!(body["error"].is_string() && body["expected"].is_string(), "{path}: {body}");
    }
}

#[tokio::test]
async fn metrics_come_in_the_format_that_is_asked_for() {
    let running = start(naming(&["users"]), vec![embedded("main")]);
    let (_, headers, body) = running.call("GET", "/metrics", &[]).await;
    assert!(headers[header::CONTENT_TYPE].to_str().unwrap().starts_with("text/plain"));
    assert!(String::from_utf8_lossy(&body).contains("pillion_build_info"));
    let open = [("accept", "application/openmetrics-text;version=1.0.0")];
    let (_, headers, body) = running.call("GET", "/metrics", &open).await;
    assert!(headers[header::CONTENT_TYPE].to_str().unwrap().starts_with("application/openmetrics-text"));
    assert!(body.ends_with(b"# EOF\n"));
}

#[tokio::test]
async fn it_answers_after_discovery_has_stopped() {
    let running = start(naming(&["users"]), vec![embedded("main")]);
    running.until_ready().await;
    running.following.abort();
    let (status, seen) = timeout(PATIENCE, running.read::<Services>("/api/services")).await.unwrap();
    assert_eq!((status, seen.services.len()), (StatusCode::OK, 1));
}
