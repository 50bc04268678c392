use super::*;
use crate::{
    config::{AccessLog, AccessLogMode, HealthCheck, Listener, Node},
    telemetry::{access_log, labels::WORDS},
};
use std::{net::SocketAddr, time::Duration};
use tokio::{
    net::TcpListener,
    time::{sleep, timeout},
};

fn telemetry() -> Arc<Telemetry> {
    let metrics = Metrics::new(WORDS);
    let off = AccessLog { mode: AccessLogMode::Off, ..AccessLog::default() };
    let access_log = access_log::AccessLog::start(&off, metrics.access_log_dropped.clone()).unwrap();
    Arc::new(Telemetry { metrics, access_log })
}

fn config(service: Option<&str>, app: App) -> Config {
    let listener = Listener { name: "in".into(), app: Some(app), ..Listener::egress() };
    let node = Node { service: service.map(Into::into), ..Node::default() };
    Config { node, listeners: vec![Listener::egress(), listener], ..Config::default() }
}

fn checked(address: SocketAddr) -> App {
    // Soon, and no failure because the machine is busy.
    let [interval, timeout] = [Duration::from_millis(10), Duration::from_secs(20)];
    let check = HealthCheck { interval, timeout, rise: 1, fall: 2, ..HealthCheck::default() };
    App { health_check: Some(check), ..App::at(address) }
}

fn somewhere() -> SocketAddr {
    "127.0.0.1:1".parse().unwrap()
}

async fn until(app: &LocalApp, ready: bool) {
    let waiting = async {
        while app.not_ready().is_none() != ready {
            sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(Duration::from_secs(60), waiting).await.unwrap();
}

#[tokio::test]
async fn an_application_stays_over_a_reload_and_takes_over_its_settings() {
    let mut apps = LocalApps::new(telemetry());
    apps.apply(&config(Some("web"), App::at(somewhere())));
    let app = apps.get("in").unwrap();
    assert!(apps.get("egress").is_none());
    assert_eq!((&*app.cluster.name, apps.handle().load().len()), ("web", 1));
    assert_eq!(app.not_ready(), None, "without checks nothing is known of it");
    let (before, limit) = (app.cluster.load().endpoints[0].clone(), app.cluster.metrics.requests_limit.get());
    let mut other = App::at(somewhere());
    other.limits.requests = 7;
    apps.apply(&config(Some("web"), other));
    assert!(Arc::ptr_eq(&app, &apps.get("in").unwrap()));
    assert!(Arc::ptr_eq(&before.live, &app.cluster.load().endpoints[0].live), "its connections stay");
    assert_eq!((limit, app.cluster.metrics.requests_limit.get()), (1024, 7));
    apps.apply(&config(Some("web"), App::at("127.0.0.1:2".parse().unwrap())));
    assert_eq!(app.cluster.load().endpoints[0].instance.address.port(), 2);
    apps.apply(&config(None, App::at(somewhere())));
    assert_eq!(&*apps.get("in").unwrap().cluster.name, "in", "another name is another service");
    apps.apply(&Config::default().effective());
    assert!(apps.get("in").is_none() && apps.handle().load().is_empty());
}

#[tokio::test]
async fn it_is_not_ready_until_it_passes_its_checks_and_while_it_fails_them() {
    let telemetry = telemetry();
    let mut apps = LocalApps::new(telemetry.clone());
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    apps.apply(&config(None, checked(address)));
    let app = apps.get("in").unwrap();
    let unchecked = format!("the application at {address} (listener `in`) has not been checked yet");
    assert_eq!(app.not_ready(), Some(unchecked));
    assert!(telemetry.metrics.render(None).1.contains("pillion_app_healthy{listener=\"in\"} 0"));
    until(&app, true).await;
    assert!(telemetry.metrics.render(None).1.contains("pillion_app_healthy{listener=\"in\"} 1"));
    drop(socket);
    until(&app, false).await;
    let why = app.not_ready().unwrap();
    assert!(why.contains("fails its checks: TCP: ") && why.contains("refused"), "{why}");
    let endpoint = app.cluster.load().endpoints[0].clone();
    assert!(endpoint.live.health.is_available(), "requests are sent to it all the same");
    let _socket = TcpListener::bind(address).await.unwrap();
    until(&app, true).await;
    // Without checks there is nothing to wait for.
    apps.apply(&config(None, checked(somewhere())));
    until(&app, false).await;
    apps.apply(&config(None, App::at(somewhere())));
    assert_eq!(app.not_ready(), None);
    assert!(!telemetry.metrics.render(None).1.contains("pillion_app_healthy"));
}
